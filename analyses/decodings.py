"""Greedy decodings of a study's prompts as stages keep them: in all modes, and without earlier traces."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from interp.checkpoints.contents import training_notes
from interp.engine.vllm_backend import MISSING
from interp.prompts.format import MODES, Mode, Prompt
from interp.results.names import NO_TRACES

from .boundary import keeping
from .fields import places
from .prompting import other_style
from .shards import by_shards

if TYPE_CHECKING:
    from interp.engine.decoding import Completion
    from interp.engine.generation import OnRead
    from interp.engine.vllm_backend import Engine

    from .study import Study


def decode_prompts(
    study: Study,
    step: int,
    prompts: Sequence[Prompt],
    modes: Sequence[Mode],
    on_read: OnRead | None = None,
) -> dict[str, list[dict]]:
    """What a checkpoint writes after prompts in some modes, as a stage keeps it."""
    from interp.engine.decoding import decode_modes

    with generator(study, step) as engine:
        decoded = decode_modes(
            study.model(step),
            prompts,
            modes,
            parser=study.parse,
            max_new_tokens=study.limits,
            engine=engine,
            on_read=on_read,
        )
    return {mode: [dataclasses.asdict(each) for each in rows] for mode, rows in decoded.items()}


def check_generator(study: Study) -> None:
    """Raise ImportError where what decodes is not installed, ValueError where it knows one device only."""
    places(study)
    if study.generator == "vllm" and "vllm" not in sys.modules and not importlib.util.find_spec("vllm"):
        raise ImportError(MISSING)


@contextmanager
def generator(study: Study, step: int) -> Iterator[Engine | None]:
    """What decodes in the model's place: vLLM over a checkpoint where the study has it, else nothing."""
    if study.generator != "vllm":
        yield None
        return
    from interp.engine.vllm_backend import Engine

    with Engine(study.checkpoint_series.path(step)) as engine:
        yield engine


def completions(rows: Sequence[dict]) -> list[Completion]:
    """What a stage kept, as completions."""
    from interp.engine.decoding import Completion

    return [Completion(tuple(row["ids"]), row["trace"], row["action"]) for row in rows]


def decode_split(study: Study, step: int, split: str, mode: Mode) -> list[Completion]:
    """Greedy decoding of a split in one mode; all modes are decoded at once, and kept."""
    prompts = study.prompts(split)

    def decode(part: slice) -> dict[str, list[dict]]:
        with keeping(study, step, split, prompts[part]) as on_read:
            return decode_prompts(study, step, prompts[part], MODES, on_read)

    modes = by_shards(
        study,
        f"decoded/{step}-{split}",
        dict(study.inputs(step, split), limits=study.limits, generator=study.generator),
        len(prompts),
        decode,
    )
    rows = modes[mode]
    if not any(row["action"] for each in modes.values() for row in each):
        _warn_of_style(study, step, [row["ids"] for row in rows])
    return completions(rows)


def _warn_of_style(study: Study, step: int, written: Sequence[Sequence[int]]) -> None:
    """Say so where a checkpoint of whose decodings none parses seems to write in another style."""
    path = study.checkpoint_series.path(step)
    trained = training_notes(path).get("style", "") if isinstance(path, Path) else ""
    texts = (study.format.tokenizer.decode(ids) for ids in written[:100])
    sentence = other_style(study.style_name, trained, texts)
    study.say(sentence and f"Nothing that checkpoint {step} writes parses: {sentence}")


def without_history_traces(study: Study, step: int, split: str) -> list[Completion] | None:
    """The prompt action at a split's decisions with the traces of earlier turns left out.

    None where that leaves every prompt as it is (histories without traces, or a template that shows none),
    and where the template renders no such history, which is said.
    """
    try:
        prompts = study.prompts_without_traces(split)
    except ValueError as problem:
        study.say(f"left out: behaviour: the prompt action without traces in the history: {problem}")
        return None
    if [prompt.ids for prompt in prompts] == [prompt.ids for prompt in study.prompts(split)]:
        return None
    rows = by_shards(
        study,
        f"decoded/{step}-{split}-{NO_TRACES}",
        dict(
            study.inputs(step, split),
            without_traces=study.digest(prompts),
            limits=study.limits,
            generator=study.generator,
        ),
        len(prompts),
        lambda part: decode_prompts(study, step, prompts[part], ["prompt"])["prompt"],
    )
    return completions(rows)
