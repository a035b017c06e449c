"""What a process has for itself: a model and prompts, whatever analysis it is at; part of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel
    from interp.prompts.format import Prompt, PromptFormat
    from interp.tasks.episodes import Decision

#: What the kept model was loaded from, and the model; None: none is kept in this process.
_kept: dict[tuple, HookedModel] | None = None
#: Decisions with their prompts, by the hash of the format and the tokenizer, of which the hash knows the
#: vocabulary alone.
_prompts: dict[tuple[str, int], list[tuple[Sequence[Decision], list[Prompt]]]] = {}


def keep() -> None:
    """Keep the model that is loaded next for studies of the same series."""
    global _kept
    _kept = {} if _kept is None else _kept


def share_gpu(part: float, device: str = "cuda") -> None:
    """Let this process, one of several on a GPU, take no more than a part of its memory."""
    import torch

    torch.cuda.set_per_process_memory_fraction(part, torch.device(device).index)


def loaded(source: tuple, load: Callable[[], HookedModel]) -> HookedModel:
    """The model of a series, at whichever of its checkpoints it is; loaded where it is not kept.

    Args:
        source: what it is loaded from, and how.
    """
    if _kept is None:
        return load()
    if source not in _kept:
        _kept.clear()  # before another takes its place
        _prompts.clear()
        _kept[source] = load()
    return _kept[source]


def prompts(fmt: PromptFormat, decisions: Sequence[Decision]) -> list[Prompt]:
    """Prompts of decisions; where a model is kept, those that were made before of equal ones."""
    if _kept is None:
        return [fmt.prompt(decision) for decision in decisions]
    made = _prompts.setdefault((fmt.hash, id(fmt.tokenizer)), [])  # each prompt holds it
    found = next((each for before, each in made if before == decisions), None)
    if found is None:
        found = [fmt.prompt(decision) for decision in decisions]
        made.append((decisions, found))
    return list(found)
