"""Early answering: how much of its own trace an action needs (docs/methods.md 5.4)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.stats.intervals import cluster_bootstrap
from interp.system.limits import Limits, Sample

SHARES = (0.0, 0.25, 0.5, 0.75)


@dataclass
class Config(Study):
    """The own trace cut after some of its sentences, at every checkpoint."""

    conflicts: Sample = 0
    """Decisions of each split (0: 40 quick, 200 full)."""
    points: Annotated[int, Limits(2, 100)] = 5
    """Most parts at which a trace is cut, the empty and the whole one included."""
    choices: Sample = 0
    """Decisions whose distribution over the admissible actions is read (0: a quarter of them)."""


def run(config: Config) -> None:
    """Cut, decode, choose and tabulate; one checkpoint and split is one resumable stage."""
    from interp.measures.early import early_answers

    started, rows, skipped = time.time(), [], {}
    n = config.number(config.conflicts, 40, 200)
    choices = config.choices or -(-n // 4)
    for step, split in config.cells("early"):
        prompts, own = config.prompts(split)[:n], config.decoded(step, split, "cot")[:n]

        def compute():
            found = early_answers(
                config.model(step),
                prompts,
                own,
                parser=config.parse,
                points=config.points,
                choices=choices,
                candidates=config.candidates(step, split)[:n],
                max_new_tokens=config.action_tokens,
            )
            area = np.where(np.isnan(found.area("distribution")), None, found.area("distribution"))
            return dict(
                index=found.index.tolist(),
                area_action=found.area().tolist(),
                area_distribution=area.tolist(),
                area_filler=found.area("filler").tolist(),
                same=found.curve(SHARES).tolist(),
            )

        inputs = dict(
            config.inputs(step, split),
            n=n,
            points=config.points,
            choices=choices,
            limits=config.limits,
            closed_actions=config.env.closed_actions,
        )
        found = config.stage(f"early/{step}-{split}", inputs, compute)
        if not found["index"]:
            skipped[f"{step} {split}"] = "no decision of this checkpoint has a trace and an action"
            continue
        columns = {metric: found[metric] for metric in ("area_action", "area_distribution", "area_filler")}
        columns["area_difference"] = [a - b for a, b in zip(found["area_filler"], found["area_action"])]
        columns |= {
            f"same_{share * 100:.0f}": [bool(s[k]) for s in found["same"]] for k, share in enumerate(SHARES)
        }
        for metric, values in columns.items():
            kept = [(v, prompts[i].decision.episode) for v, i in zip(values, found["index"]) if v is not None]
            if kept:
                estimate = cluster_bootstrap(
                    np.array([v for v, _ in kept]), [e for _, e in kept], seed=config.seed
                )
                rows.append(dict(step=step, split=split, metric=metric, **estimate.row()))
    if not rows:
        raise NotApplicable(f"No trace could be cut: {next(iter(skipped.values()))}.")
    config.write("early", rows, started, skipped=skipped)


INSTRUMENT = Instrument("early", Config, run, in_all=(1, 3))
