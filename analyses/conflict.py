"""Conflicting traces: does the action keep to the prompt or follow the trace? (METHODS 5)"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from analyses.study import NotApplicable, Study
from interp.conflicts import ARMS, conflict
from interp.stats import cluster_bootstrap


@dataclass
class Config(Study):
    """Seven arms at every checkpoint, on the first decisions of each split."""

    conflicts: int = 0
    """Decisions of each split (0: 40 quick, 200 full)."""
    arms: tuple[str, ...] = ARMS
    """Which traces are put in."""


def run(config: Config) -> None:
    """Splice, decode and tabulate; one checkpoint and split is one resumable stage."""
    started, rows, skipped = time.time(), [], {}
    n = config.number(config.conflicts, 40, 200)
    for step, split in config.cells("conflict"):
        prompts, own = config.prompts(split)[:n], config.decoded(step, split, "cot")[:n]

        def compute():
            outcomes = conflict(config.model(step), prompts, own, config.arms, parser=config.parse, seed=config.seed,
                                max_new_tokens=config.action_tokens, trace_tokens=config.trace_tokens)
            return {arm: dict(index=o.index.tolist(), keep=o.keep.tolist(), follow=o.follow.tolist(), unparsed=o.unparsed.tolist(),
                              other=(~(o.keep | o.follow | o.unparsed)).tolist(), leak_rate=o.leaked.tolist(), logp_trace=o.logp.tolist())
                    for arm, o in outcomes.items()}

        found = config.stage(f"conflict/{step}-{split}", dict(config.inputs(step, split), arms=config.arms, n=n, limits=config.limits), compute)
        for arm in config.arms:
            columns = dict(found[arm])
            groups = [prompts[i].decision.episode for i in columns.pop("index")]
            if not groups:
                skipped[f"{step} {split} {arm}"] = "no decision of this checkpoint parsed, or none found a donor"
                continue
            for metric, values in columns.items():
                estimate = cluster_bootstrap(np.array(values), groups, seed=config.seed)
                rows.append(dict(step=step, split=split, arm=arm, metric=metric, **estimate.row()))
    if not rows:
        raise NotApplicable(f"No arm could be run: {next(iter(skipped.values()))}")
    config.write("conflict", rows, started, skipped=skipped)
