"""What probes read at the prompt boundary: the decisions, their activations, and the text of each prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from interp.prompts.format import Prompt
from interp.tasks.episodes import Decision, Episode, sample_decisions

if TYPE_CHECKING:
    from interp.engine.generation import OnRead
    from interp.models.hooked import HookedModel

    from .study import Study

#: What the decisions that probes are fitted on are called, beside the study's splits.
TRAIN = "train"
#: The run's folder of activations, and in it what those of random weights are called.
ACTIVATIONS, RANDOM = "activations", "random"
#: The sites that analyses read: the first layer's of the one, and every layer's of the other.
READ = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class Decisions:
    """Decisions that probes are fitted on or tested on, in order."""

    split: str
    """One of the study's, or TRAIN."""
    prompts: list[Prompt]
    texts: list[str]
    """Each prompt as text."""
    drawn: Int[np.ndarray, "_"]
    """Which of them are the study's own, whose actions were decoded."""


def training_decisions(config: Study, n: int) -> Decisions | None:
    """About `n` decisions of the training split, drawn as whole episodes; None where the corpus has none.

    Whole episodes are read in few passes, since each prompt begins the next one.
    """
    drawn = sample_episodes(config.training, n, config.seed)
    prompts = [config.format.prompt(decision) for decision in drawn]
    return Decisions(TRAIN, prompts, texts(prompts), np.array([], dtype=int)) if prompts else None


def sample_episodes(episodes: Sequence[Episode | Decision], n: int, seed: int) -> list[Decision]:
    """Whole episodes in random order until they hold `n` decisions; all of them where they hold fewer."""
    groups: dict[str, list[Episode | Decision]] = {}
    for each in filter(lambda each: each.references, episodes):
        groups.setdefault(each.episode if isinstance(each, Decision) else each.id, []).append(each)
    by_episode = list(groups.values())
    chosen: list[Decision] = []
    for index in np.random.default_rng(seed).permutation(len(by_episode)):
        if len(chosen) >= n:
            break
        chosen += [decision for each in by_episode[index] for decision in each.decisions()]
    return chosen


def held_out_decisions(config: Study, split: str, n: int) -> Decisions:
    """The study's decisions of a split, or `n` that hold them (all where there are fewer)."""
    own = config.prompts(split)
    held = sum(len(episode.references) for episode in config.episodes[split])
    if min(n, held) <= len(own):
        return Decisions(split, own, texts(own), np.arange(len(own)))
    made = {prompt.decision.id: prompt for prompt in own}
    more = sample_decisions(config.episodes[split], min(n, held), config.seed)
    prompts = [made.get(decision.id) or config.format.prompt(decision) for decision in more]
    drawn = np.array([i for i, prompt in enumerate(prompts) if prompt.decision.id in made], dtype=int)
    return Decisions(split, prompts, texts(prompts), drawn)


def texts(prompts: Sequence[Prompt]) -> list[str]:
    """Prompts as text."""
    return [prompt.format.tokenizer.decode(prompt.ids) for prompt in prompts]


def boundary_layers(
    config: Study, step: int, split: str, prompts: Sequence[Prompt] | None = None
) -> Float[np.ndarray, "decision layer d_model"]:
    """Boundary activations of the study's decisions, or of others: the embedding, then each block's."""
    return _layers(config, config.model(step), f"checkpoint-{step}", split, prompts)


def random_layers(
    config: Study, split: str, prompts: Sequence[Prompt] | None = None
) -> Float[np.ndarray, "decision layer d_model"]:
    """The same of a model of the series' architecture with random weights, drawn with the study's seed."""
    from interp.models.untrained import random_twin

    model = random_twin(config.model(config.steps[0]), config.seed)
    return _layers(config, model, RANDOM, split, prompts)


def stores_decoded(config: Study, n_layers: int) -> bool:
    """Whether activations are stored as prompts are decoded: of a model of so many layers, all of them."""
    every = len(config.stored_layers(n_layers)) == n_layers
    return config.store_decoded and every and READ[1] in config.stored_sites


@contextmanager
def keeping(config: Study, step: int, split: str, prompts: list[Prompt]) -> Iterator[OnRead | None]:
    """What stores the boundary activations of a split's prompts that are read to decode them, if any does."""
    import torch

    from interp.engine.store import Boundaries

    model = config.model(step)
    if not stores_decoded(config, model.n_layers):
        yield None
        return
    folder, dtype = config.run / ACTIVATIONS / f"checkpoint-{step}" / split, config.activation_dtype
    sites = [site for site in config.stored_sites if site in READ]
    boundaries = Boundaries(folder, model, prompts, sites, stored_as=getattr(torch, dtype))
    going = True

    def attempt(work: Callable[[], None]) -> None:
        """Who needs what is not stored captures it, and fails where that does; what is decoded is kept."""
        nonlocal going
        try:
            if going:
                work()
        except (ValueError, OSError) as problem:
            going = False
            config.say(f"activations are not stored as prompts are decoded: {problem}")

    yield lambda *read: attempt(lambda: boundaries(*read))
    attempt(boundaries.write)


def _layers(
    config: Study, model: HookedModel, name: str, split: str, prompts: Sequence[Prompt] | None
) -> Float[np.ndarray, "decision layer d_model"]:
    import torch

    from interp.engine.capturing import capture
    from interp.engine.store import capture_and_keep, rounded, stored_capture, stream_capture

    read = config.prompts(split) if prompts is None else prompts
    dtype, folder = getattr(torch, config.activation_dtype), config.run / ACTIVATIONS / name / split
    layers, own = config.stored_layers(model.n_layers), [s for s in config.stored_sites if s in READ]
    for sites in _by_width(model, [s for s in config.stored_sites if s not in READ], layers[0]):
        stream_capture(folder, model, read, sites, layers, stored_as=dtype)
    if READ[1] not in own or len(layers) < model.n_layers:
        pre, post = capture_and_keep(folder, model, read, READ, own, layers, stored_as=dtype).unbind(1)
    else:
        *before, post = stored_capture(folder, model, read, own, stored_as=dtype).values.unbind(1)
        # without it the embedding alone is read again, which takes no block
        pre = before[0] if before else rounded(capture(model, read, READ[:1], layers=[0]).values[:, 0], dtype)
    return torch.cat([pre[:, :1].float(), post], 1).numpy()


def _by_width(model: HookedModel, sites: Sequence[str], layer: int) -> Iterable[list[str]]:
    """Sites that are captured together, which those of one width can be."""
    groups: dict[int, list[str]] = {}
    for site in sites:
        groups.setdefault(model.width(site, layer), []).append(site)
    return groups.values()


@dataclass(frozen=True)
class Split:
    """What probes read of decisions at one checkpoint."""

    decisions: Decisions
    acts: Float[np.ndarray, "decision layer d_model"]
    random_acts: Float[np.ndarray, "decision layer d_model"] | None
    """The same of random weights; None where not all controls are read."""

    def arguments(self, kept: Int[np.ndarray, "_"], names: list[str]) -> dict[str, Any]:
        """Arguments of `probe` for the decisions that have a label."""
        decisions = [self.decisions.prompts[i].decision for i in kept]
        controlled = self.random_acts is not None
        return dict(
            acts=self.acts[kept],
            labels=names,
            groups=[d.episode for d in decisions],
            prompts=[self.decisions.texts[i] for i in kept],
            previous=[d.previous for d in decisions],
            types=[f"{d.task_type} {d.previous}" for d in decisions] if controlled else None,
            random_acts=self.random_acts[kept] if self.random_acts is not None else None,
        )


def stored_bytes(config: Study, split: str) -> int:
    """Bytes on disk of what was captured of a split, of all checkpoints and the random model."""
    shards = (config.run / ACTIVATIONS).glob(f"*/{split}/*.safetensors")
    return sum(shard.stat().st_size for shard in shards)
