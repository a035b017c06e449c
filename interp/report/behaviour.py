"""What a report reads of behaviour: where a gain lands, which games are won, and other series beside.

>>> placed(study.tables["behaviour"], "in_domain").code
'mostly_trace'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from interp.plots.behaviour import READABLE
from interp.plots.environments import ENVIRONMENTS
from interp.report.study import Change, Read, Table, Verdict, together
from interp.results.estimates import Ends, ends, estimate, side
from interp.results.headline import READINGS, headline
from interp.results.names import SPLITS
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE

SMOLLM2 = "SmolLM2 on ALFWorld's own games"
_PLACING = ("acc_cot", "acc_prompt", "gap", "parse_prompt")
_MOVED = {
    "up": "rises",
    "down": "falls",
    "level": "no clear change",
    "single": "one checkpoint",
    "unknown": "no intervals",
}


class Placed(NamedTuple):
    """Where the gain of a series lands in one split."""

    code: str
    """Which of the template's words are said."""
    changes: dict[str, Change]
    """Of both accuracies and the gap; with the prompt action's parse rate where that is too low."""


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


def placed(frame: pd.DataFrame, split: str) -> Placed | None:
    """Where the gain of a series lands, by intervals; None where rows are missing.

    Args:
        frame: step, split, metric and the estimate: acc_cot, acc_prompt, gap, perhaps parse_prompt.
        split: one of SPLITS.
    """
    readings = {
        metric: both for metric in _PLACING if (both := ends(pick(frame, split=split, metric=metric)))
    }
    if not {"acc_cot", "acc_prompt", "gap"} <= readings.keys():
        return None
    parse = readings.get("parse_prompt")
    unread = parse is not None and bool(parse.last["value"] < READABLE)
    if not unread:
        readings.pop("parse_prompt", None)
    code = _place(readings["acc_cot"], readings["acc_prompt"], readings["gap"], unread)
    return Placed(code, {metric: Change.between(split, both) for metric, both in readings.items()})


def _place(cot: Ends, prompt: Ends, gap: Ends, unread: bool) -> str:
    if cot.moved == "single":
        return {1: "single_helps", -1: "single_harms", 0: "single_neither"}[side(gap.last)]
    if cot.moved != "up":
        return {"down": "worse", "level": "no_gain", "unknown": "no_intervals"}[cot.moved]
    if unread:
        return "unread"
    if gap.moved != "up" and prompt.moved != "up":
        return "untold"
    if gap.moved != "up":
        return "prompt" if gap.moved == "down" else "shows_without"
    if prompt.moved != "up":
        return "trace_alone" if prompt.moved == "down" else "trace"
    part = (prompt.last["value"] - prompt.first["value"]) / (cot.last["value"] - cot.first["value"])
    return "mostly_trace" if part < 0.5 else "mostly_without"


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


def gains(study: Read) -> list[Verdict]:
    """Where the gain lands, splits of which the same is said together."""
    rows = study.rows("behaviour")
    return together(
        {
            split: (where.code, where.changes)
            for split in study.splits("behaviour")
            if (where := placed(rows, split))
        }
    )


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


def beside(study: Read, split: str) -> dict[str, list[tuple[str, str]]]:
    """Where the gain of the other series lands: code of `placed` -> names, each with its gap at the end."""
    by: dict[str, list[tuple[str, str]]] = {}
    for name, rows in series(study).items():
        if where := placed(rows, split):
            by.setdefault(where.code, []).append((name, where.changes["gap"].last))
    return by


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
    return Table(heads, lines) if lines else None


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
    return Table(heads, lines) if lines else None
