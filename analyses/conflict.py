"""Conflicting traces: does the action keep to the prompt or follow the trace? (docs/methods.md 5.1)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Annotated, get_args

import numpy as np

from interp.system.choices import Inserted
from interp.system.limits import Sample, Several

from .registry import Instrument
from .remedies import PARSES, NotApplicable
from .rows import mean_row
from .study import Study

if TYPE_CHECKING:
    from interp.measures.conflicts import Outcome, Shift

#: Insertions without a trace, compared with the one with another state's trace.
REMOVED, SUBSTITUTED = ("empty", "filler"), "other_state"


@dataclass
class Config(Study):
    """Inserted traces at every checkpoint, on the first decisions of each split."""

    conflicts: Sample = 0
    """Decisions of each split (0: 40 quick, 200 full)."""
    choices: Sample = 0
    """Of these, decisions whose distribution over the admissible actions is read (0: a quarter)."""
    inserted_traces: Annotated[tuple[Inserted, ...], Several(none=True)] = get_args(Inserted)
    """Which traces are put in (`self_splice` always is)."""


def columns(outcome: Outcome) -> dict[str, list]:
    """One inserted trace's metrics that have a number for each of its decisions."""
    metrics = dict(
        keep=outcome.keep,
        follow=outcome.follow,
        unparsed=outcome.unparsed,
        other=~(outcome.keep | outcome.follow | outcome.unparsed),
        leak_rate=outcome.leaked,
        logp_trace=outcome.logp,
    )
    if outcome.inserted_trace != "self_splice":
        metrics |= dict(logp_own=outcome.logp_own, logp_gap=outcome.logp - outcome.logp_own)
    return {metric: values.tolist() for metric, values in metrics.items()}


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
    started, rows, skipped, failed = time.time(), [], {}, {}
    n = config.number(config.conflicts, 40, 200)
    choices = config.choices or -(-n // 4)
    for step, split in config.cells("conflict"):
        inputs = dict(
            config.inputs(step, split),
            inserted_traces=config.inserted_traces,
            n=n,
            choices=choices,
            limits=config.limits,
            closed_actions=config.env.closed_actions,
            names=f"{config.env.swap_candidates.__module__}.{config.env.swap_candidates.__qualname__}",
            phrases=config.env.phrases,
        )
        stored = config.stage(
            f"conflict/{step}-{split}", inputs, lambda: _inserted(config, step, split, n, choices)
        )
        decisions = [prompt.decision for prompt in config.prompts(split)[:n]]
        readings = []
        for kind in dict.fromkeys(("self_splice", *config.inserted_traces)):
            metrics = stored["inserted_traces"][kind]
            index = metrics.pop("index")
            if index:
                argued = stored["texts"][kind]["argued"]
                readings += [(kind, *each) for each in _by_metric(index, metrics, argued)]
            else:
                skipped[f"{step} {split} {kind}"] = (
                    "no decision of this checkpoint parsed, or none found a donor"
                )
            if kind == "self_splice" and not all(metrics["keep"]):
                failed[f"{step} {split}"] = [
                    decisions[i].id for i, kept in zip(index, metrics["keep"], strict=True) if not kept
                ]
        for kind, metric, index, values in [*readings, *stored["subsets"]]:
            row = mean_row(np.array(values), [decisions[i].episode for i in index], config.seed)
            if metric.startswith("flip_difference") and len(set(values)) == 1:
                row |= dict(low=np.nan, high=np.nan)  # nothing to resample, which is no certainty
            rows.append(dict(step=step, split=split, inserted_trace=kind, metric=metric, **row))
    if not rows:
        raise NotApplicable(f"No trace could be inserted: {next(iter(skipped.values()))}", PARSES)
    if failed:  # rounding can do this in half precision; anywhere else the splice is not what was decoded
        config.say(
            "conflict: SELF-SPLICE FAILED, the own trace spliced back gave another action at "
            f"{sum(map(len, failed.values()))} decisions of {', '.join(failed)}: do not trust this table "
            "(see self_splice_failed in its provenance)"
        )
    config.write(
        "conflict",
        rows,
        started,
        skipped=skipped,
        self_splice="FAILED" if failed else "passed on every decision",
        self_splice_failed=failed,
    )


def _by_metric(
    index: list[int], metrics: dict[str, list], argued: list[str | None]
) -> Iterator[tuple[str, list[int], list]]:
    """(metric, decisions, values); only a trace that argues for an action can be followed."""
    for metric, values in metrics.items():
        among = [action is not None for action in argued]
        if metric != "follow" or not any(among):
            among = [True] * len(index)
        yield metric, list(compress(index, among)), list(compress(values, among))


def _inserted(config: Config, step: int, split: str, n: int, choices: int) -> dict:
    """What inserted traces do to the first `n` decisions; the distribution is read of `choices` of them."""
    from interp.measures.conflicts import conflict, shifts

    model, prompts = config.model(step), config.prompts(split)[:n]
    outcomes = conflict(
        model,
        prompts,
        config.decoded(step, split, "cot")[:n],
        config.inserted_traces,
        parser=config.parse,
        closed_actions=config.env.closed_actions,
        swap_candidates=config.env.swap_candidates,
        phrases=config.env.phrases,
        seed=config.seed,
        max_new_tokens=config.action_tokens,
        trace_tokens=config.trace_tokens,
    )
    argued: dict[int, list] = {i: [] for i in range(len(prompts))}
    for outcome in outcomes.values():
        for i, action in zip(outcome.index, outcome.argued, strict=True):
            argued[int(i)].append(action)
    moved = shifts(model, prompts, outcomes, choices, config.candidates(step, split, argued)[:n])
    return dict(
        inserted_traces={
            kind: dict(index=outcome.index.tolist(), **columns(outcome)) for kind, outcome in outcomes.items()
        },
        subsets=subsets(outcomes, moved),
        decisions=[prompt.decision.id for prompt in prompts],
        texts={kind: texts(config, outcome) for kind, outcome in outcomes.items()},
    )


def texts(config: Config, outcome: Outcome) -> dict[str, list]:
    """What one inserted trace put after each of its decisions' prompts, argued for, and led to."""
    inserted = [config.format.text(ids) for ids in outcome.leads]
    return dict(inserted=inserted, argued=outcome.argued, action=outcome.action)


INSTRUMENT = Instrument("conflict", Config, run, in_all=(0, 4))
