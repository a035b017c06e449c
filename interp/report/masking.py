"""What a report reads of the masking study: the verdict on the claim, and other trainings beside it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from interp.plots.behaviour import READABLE
from interp.plots.masking import MECHANISM, claim_rows
from interp.report.study import Read, Table
from interp.results.condition_rows import PAPER, at_last, claimed, named, number, one
from interp.results.estimates import estimate
from interp.results.queries import splits_of
from interp.results.wording import WHERE
from interp.stats.crossed import SMALLEST

#: Conditions of other trainings that may stand beside the study's, and what was trained.
BESIDE = {
    "masking_smollm2": "Low-rank updates of SmolLM2-135M-Instruct",
    "reinforcement": "Reinforcement learning from two of these trainings",
}


@dataclass(frozen=True)
class Claim:
    """The verdict on the claim, and the differences that it rests on."""

    verdict: str
    """`supported`, `refuted`, `open`, or why there is none."""
    judged: bool
    rests: list[tuple[str, str, int]]
    """To what the difference is, the estimate, seeds."""
    below: int
    """How many of these intervals lie wholly below the least difference that matters."""
    smallest: str


@dataclass(frozen=True)
class Masked:
    """What the section says."""

    claim: Claim | None
    trained_once: bool
    rarest: list[tuple[str, str, str]]
    """Condition whose prompt action parses most rarely, how often, and split, where that is too rare."""
    table: Table | None
    power: bool
    """Whether its power was simulated."""


def claim(study: Read) -> Claim | None:
    """The verdict on the claim; None without the study's table."""
    frame = study.tables.get("masking")
    if frame is None:
        return None
    verdict = str(frame.attrs.get("verdict") or "none: its provenance has no verdict")
    rows = claim_rows(frame)
    rests = [(name, estimate(row, signed=True), int(row["seeds"])) for name, row in rows.items()]
    below = sum(row["high"] < SMALLEST for row in rows.values())
    return Claim(
        verdict.removeprefix("none: "), not verdict.startswith("none"), rests, below, number(SMALLEST)
    )


def masked(study: Read) -> Masked | None:
    """The section; None where there is nothing of a masking study, here or beside."""
    frame = study.tables.get("masking")
    once = frame is not None and bool(frame["seeds"].max() == 1)
    found = Masked(
        claim(study),
        once,
        _rarest(frame) if frame is not None else [],
        _side_by_side(study),
        study.any("masking_power"),
    )
    return found if found.claim or found.table or found.power else None


def _rarest(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Of each split the condition whose prompt action parses most rarely, where it is no reading."""
    found = []
    for split in splits_of(frame):
        rows = at_last(frame, metric="parse_prompt", split=split, contrast="level").sort_values("value")
        if len(rows) and rows["value"].iloc[0] < READABLE:
            found.append((named(rows["condition"].iloc[0]).title, estimate(rows.iloc[0]), WHERE[split]))
    return found


def _side_by_side(study: Read) -> Table | None:
    """The claimed condition's difference to k = 0 here and in other trainings; None without others."""
    other = {title: study.beside[name] for name, title in BESIDE.items() if name in study.beside}
    found = {title: of.tables["masking"] for title, of in other.items() if "masking" in of.tables}
    here = {"this study": study.tables["masking"]} if "masking" in study.tables else {}
    lines, metrics = (
        [],
        [
            metric
            for metric, *_ in PAPER
            if any((frame["metric"] == metric).any() for frame in found.values())
        ],
    )
    for title, frame in (here | found).items():
        condition = claimed(frame)
        for split in splits_of(frame) if condition is not None else ():
            rows = [
                one(frame, metric=metric, split=split, condition=condition.name, contrast="difference")
                for metric in metrics
            ]
            seeds = {int(row["seeds"]) for row in rows if row is not None}
            if seeds:
                lines.append(
                    [
                        title,
                        condition.title,
                        WHERE[split],
                        str(max(seeds)),
                        *("–" if row is None else estimate(row, signed=True) for row in rows),
                    ]
                )
    if not lines or lines[-1][0] in here:
        return None
    heads = ["trainings", "condition", "split", "seeds", *(MECHANISM[metric] for metric in metrics)]
    return Table(heads, lines, {title: other[title].link for title in found})
