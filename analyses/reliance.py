"""Prompt reliance: direct and via-CoT effects of the prompt on the action (docs/methods.md 4.2)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from interp.system.limits import Sample

from .registry import Instrument
from .remedies import EXCHANGED, NotApplicable
from .rows import mean_row, twins
from .study import Study


@dataclass
class Config(Study):
    """Pairs by symmetric renaming with the expert's trace, the same at every checkpoint."""

    pairs: Sample = 0
    """Pairs of each split (0: 40 quick, 150 full)."""


def run(config: Config) -> None:
    """Read direct and via-CoT effects, then average over pairs with intervals that resample episodes."""
    from interp.measures.reliance import EFFECTS, prompt_reliance

    started, rows, unpaired, paths = time.time(), [], {}, set()
    pairs = {}
    for split in config.parts:
        *pairs[split], unpaired[split] = config.pairs_of(split, config.number(config.pairs, 40, 150))
    if not all(clean for clean, _ in pairs.values()):
        raise NotApplicable(f"Some split has no decision with a counterfactual twin ({unpaired})", EXCHANGED)
    for step, split in config.cells("reliance"):
        inputs = dict(config.inputs(step), pairs=[config.digest(prompts) for prompts in pairs[split]])

        def compute() -> dict:
            result = prompt_reliance(config.model(step), *pairs[split])
            return dict(
                effects=np.stack([getattr(result, name) for name in EFFECTS], 1).tolist(),
                kept=result.kept.tolist(),
                pairs=twins(*pairs[split]),
                path=result.path,
            )

        stored = config.stage(f"reliance/{step}-{split}", inputs, compute)
        effects = np.array(stored["effects"]).reshape(-1, len(EFFECTS))
        paths.add(stored["path"])
        groups = [pairs[split][0][i].decision.episode for i in stored["kept"]]
        readings = {name: lambda m, i=i: m[..., i] for i, name in enumerate(EFFECTS)}
        readings |= dict(
            interaction=lambda m: m[..., 2] - m[..., 0] - m[..., 1],
            prompt_reliance=lambda m: m[..., 0] / (m[..., 0] + m[..., 1]),
        )
        for metric, function in readings.items():
            row = mean_row(effects, groups, config.seed, function=function)
            lost = len(pairs[split][0]) - len(effects)
            rows.append(dict(step=step, split=split, metric=metric, **row, n_dropped=lost))
    config.write(
        "reliance",
        rows,
        started,
        [prompt for both in pairs.values() for prompts in both for prompt in prompts],
        not_paired=unpaired,
        path=sorted(paths),
    )


INSTRUMENT = Instrument("reliance", Config, run, in_all=(1, 2))
