"""Conflicting traces: does the action keep to the prompt or follow the trace? (docs/methods.md 5.1)"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, get_args

import numpy as np

from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.stats.intervals import cluster_bootstrap
from interp.system.choices import Inserted
from interp.system.limits import Sample, Several

if TYPE_CHECKING:
    from interp.measures.conflicts import Outcome, Shift

#: Insertions without a trace, compared with the one with another state's trace.
REMOVED, SUBSTITUTED = ("empty", "filler"), "other_state"


@dataclass
class Config(Study):
    """Seven inserted traces at every checkpoint, on the first decisions of each split."""

    conflicts: Sample = 0
    """Decisions of each split (0: 40 quick, 200 full)."""
    choices: Sample = 0
    """Of these, decisions whose distribution over the admissible actions is read (0: a quarter)."""
    inserted_traces: Annotated[tuple[Inserted, ...], Several(none=True)] = get_args(Inserted)
    """Which traces are put in (`self_splice` always is)."""


def columns(found: Outcome) -> dict[str, list]:
    """One inserted trace's metrics that have a number for each of its decisions."""
    read = dict(
        keep=found.keep,
        follow=found.follow,
        unparsed=found.unparsed,
        other=~(found.keep | found.follow | found.unparsed),
        leak_rate=found.leaked,
        logp_trace=found.logp,
    )
    if found.inserted_trace != "self_splice":
        read |= dict(logp_own=found.logp_own, logp_gap=found.logp - found.logp_own)
    return {metric: values.tolist() for metric, values in read.items()}


def subsets(outcomes: dict[str, Outcome], moved: dict[str, Shift]) -> list[tuple[str, str, list[int], list]]:
    """(kind, metric, decisions, values) of what only some of an inserted trace's decisions have."""
    from interp.measures.conflicts import contrast, likelier

    rows = []
    for kind, shift in moved.items():
        read = dict(mass_own=shift.own)
        if kind != "self_splice":
            read |= dict(
                shift=shift.distance,
                mass_own_before=shift.own_before,
                mass_argued=shift.argued,
                mass_argued_before=shift.argued_before,
            )
        rows += [
            (kind, metric, shift.index[known], values[known])
            for metric, values in read.items()
            for known in [~np.isnan(values)]
        ]
    other = outcomes.get(SUBSTITUTED)
    if other is not None and len(other.index):
        likely = likelier(other.logp)
        rows += [
            (other.inserted_trace, f"follow_{name}", other.index[half], other.follow[half])
            for name, half in (("likely", likely), ("unlikely", ~likely))
        ]
        for kind in (a for a in REMOVED if a in outcomes):
            pair = contrast(outcomes[kind], other)
            for suffix, among in (("", np.ones_like(pair.parsed)), ("_parsed", pair.parsed)):
                a, b = pair.removed[among], pair.substituted[among]
                read = {"flip_removed": a, "flip_substituted": b, "flip_difference": b.astype(float) - a}
                rows += [
                    (kind, metric + suffix, pair.index[among], values) for metric, values in read.items()
                ]
    return [
        (kind, metric, index.tolist(), values.tolist()) for kind, metric, index, values in rows if len(index)
    ]


def run(config: Config) -> None:
    """Splice, decode and tabulate; one checkpoint and split is one resumable stage."""
    from interp.measures.conflicts import conflict, shifts

    started, rows, skipped, failed = time.time(), [], {}, {}
    n = config.number(config.conflicts, 40, 200)
    choices = config.choices or -(-n // 4)
    for step, split in config.cells("conflict"):
        prompts, own = config.prompts(split)[:n], config.decoded(step, split, "cot")[:n]

        def compute():
            model = config.model(step)
            outcomes = conflict(
                model,
                prompts,
                own,
                config.inserted_traces,
                parser=config.parse,
                closed_actions=config.env.closed_actions,
                seed=config.seed,
                max_new_tokens=config.action_tokens,
                trace_tokens=config.trace_tokens,
            )
            argued = {
                i: [action for o in outcomes.values() for k, action in zip(o.index, o.argued) if k == i]
                for i in range(len(prompts))
            }
            moved = shifts(model, prompts, outcomes, choices, config.candidates(step, split, argued)[:n])
            return dict(
                inserted_traces={
                    kind: dict(index=found.index.tolist(), **columns(found))
                    for kind, found in outcomes.items()
                },
                subsets=subsets(outcomes, moved),
            )

        inputs = dict(
            config.inputs(step, split),
            inserted_traces=config.inserted_traces,
            n=n,
            choices=choices,
            limits=config.limits,
            closed_actions=config.env.closed_actions,
        )
        found = config.stage(f"conflict/{step}-{split}", inputs, compute)

        def add(kind: str, metric: str, index: list[int], values: list) -> None:
            estimate = cluster_bootstrap(
                np.array(values), [prompts[i].decision.episode for i in index], seed=config.seed
            ).row()
            if (
                metric.startswith("flip_difference") and len(set(values)) == 1
            ):  # nothing to resample, which is no certainty
                estimate |= dict(low=np.nan, high=np.nan)
            rows.append(dict(step=step, split=split, inserted_trace=kind, metric=metric, **estimate))

        for kind in dict.fromkeys(("self_splice", *config.inserted_traces)):
            metrics = found["inserted_traces"][kind]
            index = metrics.pop("index")
            if not index:
                skipped[f"{step} {split} {kind}"] = (
                    "no decision of this checkpoint parsed, or none found a donor"
                )
            for metric, values in metrics.items() if index else ():
                add(kind, metric, index, values)
            if kind == "self_splice" and not all(metrics["keep"]):
                failed[f"{step} {split}"] = [
                    prompts[i].decision.id for i, kept in zip(index, metrics["keep"]) if not kept
                ]
        for row in found["subsets"]:
            add(*row)
    if not rows:
        raise NotApplicable(f"No trace could be inserted: {next(iter(skipped.values()))}")
    if failed:  # rounding can do this in half precision; anywhere else the splice is not what was decoded
        print(
            f"conflict: SELF-SPLICE FAILED, the own trace spliced back gave another action at {sum(map(len, failed.values()))} decisions of "
            f"{', '.join(failed)}: do not trust this table (see self_splice_failed in its provenance)",
            file=sys.stderr,
        )
    config.write(
        "conflict",
        rows,
        started,
        skipped=skipped,
        self_splice="FAILED" if failed else "passed on every decision",
        self_splice_failed=failed,
    )


INSTRUMENT = Instrument("conflict", Config, run, in_all=(0, 4))
