"""What a report reads of the masking study: the verdict on the claim, and other trainings beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from interp.plots.behaviour import READABLE
from interp.plots.masking import MECHANISM, claim_rows, gain
from interp.report.study import Read, Table
from interp.results.claims import masked as by_claim
from interp.results.condition_rows import PAPER, at_last, claimed, named, number, one
from interp.results.estimates import estimate
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE
from interp.system.limits import SMALLEST

#: Conditions of other trainings that may stand beside the study's, and what was trained.
BESIDE = {
    "masking_smollm2": "Low-rank updates of SmolLM2-135M-Instruct",
    "reinforcement": "Reinforcement learning from two of these trainings",
}
_OTHERS = (
    "The claim's condition − k = 0 at the last checkpoint, in other trainings as well, with 95 % intervals "
    "over games and seeds. Of one seed they are over games alone and hold for no other training: an "
    "illustration. Dash: not measured."
)


@dataclass(frozen=True)
class Claim:
    """The differences that the claim rests on."""

    unjudged: str
    """Why there is no verdict; empty where there is one."""
    verdict: str
    """Supported, a gain of at least the margin excluded, or open; empty where there is none."""
    rests: list[tuple[str, str, str, int]]
    """What is compared with, what the interval shows of a gain, the estimate, seeds."""
    smallest: str
    """The least difference that matters."""


@dataclass(frozen=True)
class Masked:
    """What the section says."""

    claim: Claim | None
    trained_once: bool
    rarest: list[tuple[str, str, str]]
    """Condition whose prompt action parses most rarely, how often, and split, where that is too rare."""
    check: tuple[int, str, str] | None
    """Last step, and without a mask the action's loss in nats a token and its share of the gradient."""
    table: Table | None
    power: bool
    """Whether its power was simulated."""


def claim(study: Read) -> Claim | None:
    """What the intervals show of the claim; None without the study's table."""
    frame = study.tables.get("masking")
    if frame is None:
        return None
    verdict = str(frame.attrs.get("verdict") or "none: its provenance has no verdict")
    rests = [
        (other, gain(row), estimate(row, signed=True), int(row["seeds"]))
        for other, row in claim_rows(frame).items()
    ]
    unjudged = verdict.removeprefix("none: ") if verdict.startswith("none") else ""
    judged = [row["verdict"] for row in by_claim(frame)]  # an older table's provenance has other words
    return Claim(unjudged, judged[-1] if judged else "", rests, number(SMALLEST))


def masked(study: Read) -> Masked | None:
    """The section; None where there is nothing of a masking study, here or beside."""
    frame = study.tables.get("masking")
    once = frame is not None and bool(frame["seeds"].max() == 1)
    found = Masked(
        claim(study),
        once,
        _rarest(frame) if frame is not None else [],
        _check(study.tables.get("masking_manipulation")),
        side_by_side(study),
        study.any("masking_power"),
    )
    return found if found.claim or found.table or found.power else None


def _check(frame: pd.DataFrame | None) -> tuple[int, str, str] | None:
    """What the action's tokens weigh at the end of the first training without a mask; None where unread."""
    if frame is None:
        return None
    rows = pick(frame, condition="action_mask_0", part="action")
    if not len(rows):
        return None
    last = rows[(rows["seed"] == rows["seed"].min()) & (rows["step"] == rows["step"].max())]
    by_metric = {row["metric"]: row for _, row in last.iterrows()}
    nll, share = by_metric["nll"], by_metric["gradient_share"]
    return int(nll["step"]), estimate(nll), estimate(share)


def _rarest(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Of each split the condition whose prompt action parses most rarely, where it is no reading."""
    found = []
    for split in splits_of(frame):
        rows = at_last(frame, metric="parse_prompt", split=split, contrast="level").sort_values("value")
        if len(rows) and rows["value"].iloc[0] < READABLE:
            found.append((named(rows["condition"].iloc[0]).title, estimate(rows.iloc[0]), WHERE[split]))
    return found


def side_by_side(study: Read) -> Table | None:
    """The claimed condition's difference to k = 0 here and in other trainings; None without others."""
    others = {
        title: study.beside[name]
        for name, title in BESIDE.items()
        if name in study.beside and "masking" in study.beside[name].tables
    }
    here = {"this study": study.tables["masking"]} if "masking" in study.tables else {}
    frames = here | {title: other.tables["masking"] for title, other in others.items()}
    measured = {metric for title in others for metric in frames[title]["metric"]}
    metrics = [metric for metric, *_ in PAPER if metric in measured]
    lines = [line for title, frame in frames.items() for line in _differences(title, frame, metrics)]
    if not lines or lines[-1][0] in here:
        return None
    heads = ["trainings", "condition", "split", "seeds", *(MECHANISM[metric] for metric in metrics)]
    links = {title: other.link for title, other in others.items()}
    return Table("masking_others", _OTHERS, heads, lines, links)


def _differences(title: str, frame: pd.DataFrame, metrics: list[str]) -> Iterator[list[str]]:
    """A line for each split: the claimed condition's differences to k = 0."""
    condition = claimed(frame)
    if condition is None:
        return
    for split in splits_of(frame):
        where = dict(split=split, condition=condition.name, contrast="difference")
        rows = [one(frame, metric=metric, **where) for metric in metrics]
        seeds = [int(row["seeds"]) for row in rows if row is not None]
        if seeds:
            cells = ["–" if row is None else estimate(row, signed=True) for row in rows]
            yield [title, condition.title, WHERE[split], str(max(seeds)), *cells]
