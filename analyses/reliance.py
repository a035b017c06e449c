"""Prompt reliance: direct and via-CoT effects of the prompt on the action (docs/methods.md 4.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from interp.prompts.format import Prompt
from interp.system.limits import Sample

from .registry import Instrument
from .rows import mean_row, paired, twins
from .shards import by_shards
from .study import Study


@dataclass
class Config(Study):
    """Pairs by symmetric renaming with the expert's trace, the same at every checkpoint."""

    pairs: Sample = 0
    """Pairs of each split (0: 40 quick, 150 full)."""


def run(config: Config) -> None:
    """Read direct and via-CoT effects, then average over the pairs that every checkpoint keeps."""
    started, rows = time.time(), []
    pairs, unpaired = paired(config, config.number(config.pairs, 40, 150))
    stored = {
        (step, split): _stage(config, step, split, *pairs[split]) for step, split in config.cells("reliance")
    }
    for (step, split), each in stored.items():
        common = set.intersection(*(set(stored[other, split]["kept"]) for other in config.steps))
        key = dict(step=step, split=split)
        rows += [key | row for row in _rows(config, each, common, pairs[split][0])]
    config.write(
        "reliance",
        rows,
        started,
        [prompt for both in pairs.values() for prompts in both for prompt in prompts],
        not_paired=unpaired,
        path=sorted({path for each in stored.values() for path in each["paths"]}),
    )


def _stage(config: Config, step: int, split: str, clean: list[Prompt], corrupt: list[Prompt]) -> dict:
    """A checkpoint's effects of the pairs that it keeps."""
    from interp.measures.reliance import EFFECTS, prompt_reliance

    def compute(part: slice) -> dict:
        result = prompt_reliance(config.model(step), clean[part], corrupt[part])
        return dict(
            effects=np.stack([getattr(result, name) for name in EFFECTS], 1).tolist(),
            kept=(result.kept + part.start).tolist(),
            pairs=twins(clean[part], corrupt[part]),
            paths=[result.path],
        )

    inputs = dict(config.inputs(step), pairs=[config.digest(prompts) for prompts in (clean, corrupt)])
    return by_shards(config, f"reliance/{step}-{split}", inputs, len(clean), compute)


def _rows(config: Config, stored: dict, common: set[int], clean: list[Prompt]) -> Iterator[dict]:
    """Every reading over the common pairs, beside that over all that this checkpoint keeps."""
    from interp.measures.reliance import EFFECTS
    from interp.stats.changes import part_share

    own = np.array(stored["effects"], dtype=float).reshape(-1, len(EFFECTS))
    shared = np.array([pair in common for pair in stored["kept"]], dtype=bool)
    groups = [clean[pair].decision.episode for pair in stored["kept"] if pair in common]
    readings = {name: lambda m, i=i: m[..., i] for i, name in enumerate(EFFECTS)}
    readings |= dict(
        interaction=lambda m: m[..., 2] - m[..., 0] - m[..., 1],
        prompt_reliance=lambda m: part_share(m[..., :2]),
    )
    for metric, function in readings.items():
        yield dict(
            metric=metric,
            **mean_row(own[shared], groups, config.seed, function=function),
            n_dropped=len(clean) - len(groups),
            value_own=float(function(own.mean(0))) if len(own) else np.nan,
            n_own=len(own),
        )


INSTRUMENT = Instrument("reliance", Config, run, in_all=(1, 2))
