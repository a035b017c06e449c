"""What a report reads of the masking study: the verdict on the claim, which predicted readings moved, the choice of k, and its power."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from interp.plots.behaviour import READABLE
from interp.plots.masking import MECHANISM, claim_rows, moved_further, moves
from interp.plots.masking_power import found_above, shares
from interp.report.study import Read, Table
from interp.results.arm_rows import PAPER, Arm, at_last, claimed, named, number, one
from interp.results.estimates import estimate
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE
from interp.stats.crossed import SMALLEST

#: Conditions of other trainings that may stand beside the study's, and what was trained.
BESIDE = {"masking_smollm2": "Low-rank updates of SmolLM2-135M-Instruct", "reinforcement": "Reinforcement learning from two of these trainings"}


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
class Mechanism:
    """What moved with the claimed condition in one split; texts are names with estimates."""

    where: str
    arm: str
    moved: dict[int, list[str]]
    """1: as predicted, -1: the other way, 0: not shown to move."""
    further: list[str] | None
    """Of what moved as predicted, what moved further than under the random mask; None where that was not measured."""
    rarest: tuple[str, str] | None
    """Condition whose prompt action parses most rarely, and how often, where that is too rare to read it."""
    slope: str
    games: str


@dataclass(frozen=True)
class Masked:
    """What the section says."""

    claim: Claim | None
    trained_once: bool
    mechanisms: list[Mechanism]
    chosen: list[tuple[str, str]]
    """Share that is chosen, and its difference (empty for 0)."""
    table: Table | None
    studies: str
    """Simulated studies of each kind."""
    planted: list[tuple[str, list[tuple[int, str]]]]
    """Effect, and how often it is found with how many seeds."""
    null: str


def claim(study: Read) -> Claim | None:
    """The verdict on the claim; None without the study's table."""
    frame = study.tables.get("masking")
    if frame is None:
        return None
    verdict = str(frame.attrs.get("verdict") or "none: its provenance has no verdict")
    rows = claim_rows(frame)
    rests = [(name, estimate(row, signed=True), int(row["seeds"])) for name, row in rows.items()]
    below = sum(row["high"] < SMALLEST for row in rows.values())
    return Claim(verdict.removeprefix("none: "), not verdict.startswith("none"), rests, below, number(SMALLEST))


def masked(study: Read) -> Masked | None:
    """The section; None where there is nothing of a masking study, here or beside."""
    frame, power = study.tables.get("masking"), study.rows("masking_power")
    arm = claimed(frame) if frame is not None else None
    mechanisms = [_mechanism(frame, arm, split) for split in splits_of(frame)] if arm else []
    chosen = [(number(row["share"]), estimate(row, signed=True) if row["share"] else "")
              for _, row in study.rows("masking_selection", chosen=True).iterrows()]  # fmt: skip
    planted, null = found_above(power) if len(power) else ({}, power)
    effects = [(number(effect), [(seeds, shares(each)) for seeds, each in of.groupby("seeds")]) for effect, of in planted.items()]
    found = Masked(
        claim(study), frame is not None and bool(frame["seeds"].max() == 1), [each for each in mechanisms if each], chosen, _side_by_side(study),
        f"{int(power['n'].min()):,}" if len(power) else "", effects, shares(null) if len(null) else "",
    )  # fmt: skip
    return found if found.claim or chosen or found.table or found.studies else None


def _mechanism(frame: pd.DataFrame, arm: Arm, split: str) -> Mechanism | None:
    """Which of the predicted readings moved, and how what is gained goes with k."""
    found = moves(frame, arm, split)
    if not found:
        return None
    moved = {kind: [f"{MECHANISM[metric]} {estimate(row, signed=True)}" for metric, (how, row) in found.items() if how == kind] for kind in (1, -1, 0)}
    controls = {metric: how for metric, how in moved_further(frame, arm, split).items() if how is not None}
    control = {metric: one(frame, metric=metric, split=split, arm=arm.name, contrast="control") for metric in controls}
    further = [f"{MECHANISM[metric]} {estimate(control[metric], signed=True)}" for metric, how in controls.items() if how == 1] if controls else None
    parse = at_last(frame, metric="parse_prompt", split=split, contrast="level").sort_values("value")
    rare = len(parse) and parse["value"].iloc[0] < READABLE
    rarest = (named(parse.iloc[0]["arm"]).title, estimate(parse.iloc[0])) if rare else None
    slope = one(frame, metric="acc_cot", split=split, contrast="slope")
    games = one(frame, metric="success_cot", split=split, contrast="difference", arm=arm.name)
    told = ("" if row is None else estimate(row, signed=True) for row in (slope, games))
    return Mechanism(WHERE[split], arm.title, moved, further, rarest, *told)


def _side_by_side(study: Read) -> Table | None:
    """The claimed condition's difference to k = 0 in this study and in those of other trainings beside it; None where there are none."""
    other = {title: study.beside[name] for name, title in BESIDE.items() if name in study.beside}
    found = {title: of.tables["masking"] for title, of in other.items() if "masking" in of.tables}
    here = {"this study": study.tables["masking"]} if "masking" in study.tables else {}
    lines, metrics = [], [metric for metric, *_ in PAPER if any((frame["metric"] == metric).any() for frame in found.values())]
    for title, frame in (here | found).items():
        arm = claimed(frame)
        for split in splits_of(frame) if arm is not None else ():
            rows = [one(frame, metric=metric, split=split, arm=arm.name, contrast="difference") for metric in metrics]
            seeds = {int(row["seeds"]) for row in rows if row is not None}
            if seeds:
                lines.append([title, arm.title, WHERE[split], str(max(seeds)), *("–" if row is None else estimate(row, signed=True) for row in rows)])
    if not lines or lines[-1][0] in here:
        return None
    heads = ["trainings", "condition", "split", "seeds", *(MECHANISM[metric] for metric in metrics)]
    return Table(heads, lines, {title: other[title].link for title in found})
