"""Conflicting traces: does the action keep to the prompt or follow the trace? (METHODS 5)"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from analyses.study import Study
from interp.alfworld.commands import parse
from interp.conflict import ARMS, conflict
from interp.stats import cluster_bootstrap


@dataclass
class Config(Study):
    """Six arms at every checkpoint, on the first decisions of each split."""

    conflicts: int = 0
    """Decisions of each split (0: 80 quick, 300 full)."""
    arms: tuple[str, ...] = ARMS
    """Which traces are put in."""


def run(config: Config) -> None:
    """Splice, decode and tabulate; one arm of a checkpoint and split is one resumable stage."""
    started, rows, skipped = time.time(), [], {}
    n = config.number(config.conflicts, 80, 300)
    for step, split in config.cells("conflict"):
        prompts, own = config.prompts(split)[:n], config.decoded(step, split, "cot")[:n]
        for arm in config.arms:
            def compute():
                try:
                    found = conflict(config.model(step), prompts, own, arm, parser=parse, seed=config.seed)
                except ValueError as problem:  # nothing parsed, or no donor: said in the provenance, the others go on
                    return dict(skipped=str(problem))
                columns = dict(keep=found.keep, follow=found.follow, other=~(found.keep | found.follow | found.unparsed),
                               unparsed=found.unparsed, leak_rate=found.leaked, logp_trace=found.logp)
                return dict(index=found.index.tolist(), **{k: v.astype(float).tolist() for k, v in columns.items()})

            found = config.stage(f"conflict/{step}-{split}-{arm}", dict(config.inputs(step, split), arm=arm, n=n), compute)
            if "skipped" in found:
                skipped[f"{step} {split} {arm}"] = found["skipped"]
                continue
            groups = [prompts[i].decision.episode for i in found.pop("index")]
            for metric, values in found.items():
                estimate = cluster_bootstrap(np.array(values), groups, seed=config.seed)
                rows.append(dict(step=step, split=split, arm=arm, metric=metric, **estimate.row()))
    if not rows:
        raise ValueError(f"No arm could be run: {next(iter(skipped.values()))}")
    config.write("conflict", rows, started, skipped=skipped)
