"""What a report reads of behaviour: how both actions change, which games are won, and other series beside.

>>> moves(study)[0].changes["gap"].moved
'up'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from interp.plots.behaviour import READABLE
from interp.plots.environments import ENVIRONMENTS
from interp.report.study import Change, Read, Table
from interp.results.estimates import ends, estimate
from interp.results.headline import READINGS, headline
from interp.results.names import NO_TRACES, PARSED, SPLITS
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE

SMOLLM2 = "SmolLM2 on ALFWorld's own games"
_MOVING = ("acc_cot", "acc_prompt", "gap", "parse_prompt")
#: Forced choice by summed log-probability, as the template calls what it reads.
_FORCED = {"acc_cot": "choice_cot_sum", "acc_prompt": "choice_prompt_sum", "gap": "choice_gap_sum"}
#: Modes whose admissibility is told, in this order.
_MODES = ("cot", "prompt")
_MOVED = {
    "up": "rises",
    "down": "falls",
    "level": "no clear change",
    "single": "one checkpoint",
    "unknown": "no intervals",
}


_SUMMARY = (
    "The study's readings at the first and last checkpoint that each was taken at, with 95 % intervals."
)
_SERIES = (
    "Series side by side: agreement with the expert at the first checkpoint and the last, other readings at "
    "the last. Dash: not measured."
)


class Parsed(NamedTuple):
    """Readings over the decisions at which both actions parse, at the last checkpoint."""

    n: int
    of: int
    """Decisions in all."""
    readings: dict[str, str]
    """Estimates of both accuracies and the gap."""


class Moves(NamedTuple):
    """How both actions change from the first checkpoint to the last, in one split.

    Each part but `changes` is empty, or None, where the table has no such rows.
    """

    where: str
    changes: dict[str, Change]
    """Of both accuracies and the gap; with the prompt action's parse rate where that is too low."""
    forced: dict[str, Change]
    """The same by forced choice."""
    n_forced: int
    """Decisions that forced choice reads at the last checkpoint."""
    parsed: Parsed | None
    """None where both actions parse at every decision, or at none."""
    admissible: dict[str, str]
    """Shares of the parsed actions at the last checkpoint, by mode."""
    no_traces: Change | None
    """The prompt action without traces in the history."""
    no_traces_difference: str
    """At the last checkpoint, from the prompt action with them."""


class Games(NamedTuple):
    """Games won at the last checkpoint in one split."""

    where: str
    n: int
    cot: Change
    prompt: str


@dataclass(frozen=True)
class Studied:
    """What the study is of."""

    environment: str
    checkpoints: int
    steps: str
    sizes: list[tuple[int, str, int]]
    """Decisions, split, episodes."""


def studied(study: Read) -> Studied | None:
    """What the study is of, from the table of behaviour and its provenance."""
    rows = study.rows("behaviour", metric="acc_cot")
    if rows.empty:
        return None
    name = (study.made("behaviour").get("environment") or {}).get("name", "")
    parts = {split: pick(rows, split=split) for split in splits_of(rows)}
    sizes = [
        (int(part["n"].max()), WHERE[split], int(part["n_groups"].max())) for split, part in parts.items()
    ]
    return Studied(ENVIRONMENTS.get(name, name), rows["step"].nunique(), study.steps("behaviour"), sizes)


def moves(study: Read) -> list[Moves]:
    """How both actions and the gap change, in every split that has them."""
    splits = study.splits("behaviour")
    return [found for split in splits if (found := _moves(split, study.rows("behaviour", split=split)))]


def _moves(split: str, rows: pd.DataFrame) -> Moves | None:
    """One split's, of its rows."""
    pairs = {metric: ends(pick(rows, metric=metric)) for metric in rows["metric"].unique()}
    readings = {metric: both for metric, both in pairs.items() if both}
    moving = {metric: readings[metric] for metric in _MOVING if metric in readings}
    if not {"acc_cot", "acc_prompt", "gap"} <= moving.keys():
        return None
    if "parse_prompt" in moving and not moving["parse_prompt"].last["value"] < READABLE:
        moving.pop("parse_prompt")
    forced = {name: readings[metric] for name, metric in _FORCED.items() if metric in readings}
    step = moving["acc_cot"].last["step"]
    last = {metric: both.last for metric, both in readings.items() if both.last["step"] == step}
    bare, moved = readings.get(f"acc_{NO_TRACES}"), last.get(f"{NO_TRACES}_difference")
    return Moves(
        WHERE[split],
        {name: Change.between(split, both) for name, both in moving.items()},
        {name: Change.between(split, both) for name, both in forced.items()},
        max((int(both.last["n"]) for both in forced.values()), default=0),
        _parsed(last),
        {mode: estimate(last[f"admissible_{mode}"]) for mode in _MODES if f"admissible_{mode}" in last},
        Change.between(split, bare) if bare else None,
        "" if moved is None else estimate(moved, signed=True),
    )


def _parsed(last: Mapping[str, pd.Series]) -> Parsed | None:
    """What the last checkpoint's rows, by metric, say of the decisions at which both actions parse."""
    names = ("acc_cot", "acc_prompt", "gap")
    if not {name + ending for name in names for ending in ("", PARSED)} <= last.keys():
        return None
    n, of = int(last["gap" + PARSED]["n"]), int(last["gap"]["n"])
    return Parsed(n, of, {name: estimate(last[name + PARSED]) for name in names}) if n < of else None


def games(study: Read, table: str = "") -> list[Games]:
    """Games won at the last checkpoint in both modes, and whether that is a gain with the trace."""
    table = table or study.games
    results = []
    for split in study.splits(table):
        cot = study.ends(table, split=split, mode="cot", metric="success")
        prompt = study.ends(table, split=split, mode="prompt", metric="success")
        if cot:
            without = estimate(prompt.last) if prompt else ""
            results.append(Games(WHERE[split], int(cot.last["n"]), Change.between(split, cot), without))
    return results


def series(study: Read) -> dict[str, pd.DataFrame]:
    """Series beside this one, by name: rows of step, split, metric and the estimate."""
    studies = {SMOLLM2: headline(study.beside["smollm2"].tables)} if "smollm2" in study.beside else {}
    merged = study.tables.get("environments")
    if merged is None and "environments" in study.beside:
        merged = study.beside["environments"].tables.get("environments")
    if merged is not None:
        mine = (study.made("behaviour").get("environment") or {}).get("name")
        studies |= {
            name: rows
            for key, name in ENVIRONMENTS.items()
            if key != mine and len(rows := pick(merged, environment=key))
        }
    return studies


def beside(study: Read, split: str) -> list[tuple[str, Change]]:
    """How the gap of the other series changes, by the series' name."""
    gaps = {name: ends(pick(rows, split=split, metric="gap")) for name, rows in series(study).items()}
    return [(name, Change.between(split, both)) for name, both in gaps.items() if both]


def summary(study: Read) -> Table | None:
    """The study's headline readings at both ends, a row for each reading and a column for each split."""
    rows = headline(study.tables)
    splits, lines = splits_of(rows), []
    for metric, name in READINGS.items():
        line = [name]
        for split in splits:
            both = ends(pick(rows, metric=metric, split=split))
            line += [estimate(both.first), estimate(both.last), _MOVED[both.moved]] if both else ["–"] * 3
        if any(cell != "–" for cell in line[1:]):
            lines.append(line)
    heads = [
        "reading",
        *(f"{SPLITS[split]}, {which}" for split in splits for which in ("first", "last", "change")),
    ]
    return Table("summary", _SUMMARY, heads, lines) if lines else None


def side_by_side(study: Read) -> Table | None:
    """Other series' readings: both accuracies at both ends, the rest at the last checkpoint."""
    studies = series(study)
    measured = {metric for rows in studies.values() for metric in rows["metric"]}
    last = [m for m in ("success_cot", "prompt_reliance", "follow", "probe_gain") if m in measured]
    lines = []
    for name, rows in studies.items():
        for split in splits_of(rows):
            line = [name, WHERE[split]]
            for metric in ("acc_cot", "acc_prompt", *last):
                both = ends(pick(rows, split=split, metric=metric))
                before = f"{estimate(both.first)}, then " if both and metric not in last else ""
                line.append(before + estimate(both.last) if both else "–")
            lines.append(line)
    heads = [
        "series",
        "split",
        "CoT action, first and last",
        "prompt action, first and last",
        *(f"{READINGS[m]}, last" for m in last),
    ]
    return Table("series", _SERIES, heads, lines) if lines else None
