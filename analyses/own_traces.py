"""Effects of the prompt through the model's own traces, which it chooses (docs/methods.md 4.3)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from interp.stats.changes import part_share
from interp.system.limits import Limits, Sample

from .registry import Instrument
from .remedies import PARSES, NotApplicable
from .rows import mean_row, paired, twins
from .shards import by_shards
from .study import Study


@dataclass
class Config(Study):
    """The first pairs of `reliance`, each prompt with traces that the checkpoint draws itself."""

    pairs: Sample = 0
    """Pairs of each split (0: 20 quick, 60 full)."""
    samples: Annotated[int, Limits(1, 100)] = 4
    """Traces drawn from each prompt."""


def run(config: Config) -> None:
    """Draw traces and read direct and indirect effects, then average over pairs; a cell is a stage."""
    from interp.measures.own_traces import EFFECTS, own_trace_effects

    started, rows, unclosed = time.time(), [], {}
    pairs, unpaired = paired(config, config.number(config.pairs, 20, 60))
    for step, split in config.cells("own_traces"):
        inputs = dict(
            config.inputs(step),
            pairs=[config.digest(prompts) for prompts in pairs[split]],
            samples=config.samples,
            limits=config.limits,
        )

        def compute(part: slice) -> dict:
            read = [prompts[part] for prompts in pairs[split]]
            result = own_trace_effects(
                config.model(step),
                *read,
                samples=config.samples,
                seed=config.seed,
                max_new_tokens=config.trace_tokens,
            )
            return dict(
                effects=np.stack([getattr(result, name) for name in EFFECTS], 1).tolist(),
                kept=(result.kept + part.start).tolist(),
                pairs=twins(*read),
                unclosed=result.unclosed,
            )

        n = len(pairs[split][0])
        stored = by_shards(config, f"own_traces/{step}-{split}", inputs, n, compute)
        effects = np.array(stored["effects"]).reshape(-1, len(EFFECTS))
        if stored["unclosed"]:
            unclosed[f"{step} {split}"] = stored["unclosed"] / (2 * n * config.samples)
        groups = [pairs[split][0][i].decision.episode for i in stored["kept"]]
        readings = {name: lambda m, i=i: m[..., i] for i, name in enumerate(EFFECTS)}
        readings |= dict(
            interaction=lambda m: m[..., 2] - m[..., 0] - m[..., 1],
            prompt_reliance=lambda m: part_share(m[..., :2]),
        )
        for metric, function in readings.items():
            row = mean_row(effects, groups, config.seed, function=function)
            rows.append(dict(step=step, split=split, metric=metric, **row, n_dropped=n - len(effects)))
    if not any(row["n"] for row in rows):
        raise NotApplicable("No trace that was drawn opens an action", PARSES)
    if unclosed:
        shares = ", ".join(f"{share:.0%} at {cell}" for cell, share in unclosed.items())
        config.say(f"own_traces: drawn traces that open no action are left out: {shares}.")
    config.write(
        "own_traces",
        rows,
        started,
        [prompt for both in pairs.values() for prompts in both for prompt in prompts],
        not_paired=unpaired,
        unclosed=unclosed,
    )


INSTRUMENT = Instrument("own_traces", Config, run, in_all=(1, 3))
