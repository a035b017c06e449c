"""What the report opens with: what may be said of each of the four claims, at every checkpoint.

>>> said = claims(study)
>>> [claim.letter for claim in said.claims]
['a', 'b', 'c']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from interp.plots.caption import count
from interp.report.study import Read
from interp.results.claims import CLAIMS, READOUTS, VERDICTS, Line, few, lines, masked, of_line, ranges
from interp.results.condition_rows import number
from interp.results.estimates import estimate
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE
from interp.stats.changes import OPEN
from interp.system.limits import SMALLEST


class Judged(NamedTuple):
    """A reading in one split, over the checkpoints."""

    verdicts: list[tuple[str, str]]
    """Verdict, and at which checkpoints it is said."""
    step: int
    """The last checkpoint, and what was read there."""
    last: str
    n: str
    fell: bool
    """Whether the last gap is narrower for sure, which is no widening and leaves the claim open."""


class Counted(NamedTuple):
    """How many of what claim (c) rests on agree at the last checkpoint, in one split."""

    step: int
    verdicts: list[tuple[str, int]]


class Masking(NamedTuple):
    """Claim (d) at the last checkpoint of its trainings."""

    step: int
    verdict: str
    against: list[tuple[str, str]]
    """What the masked condition is compared with, and the difference."""
    n: str
    games: str


@dataclass(frozen=True)
class Claim:
    """One of the four."""

    letter: str
    words: str
    readings: list[tuple[str, list[Judged | None]]]
    """What is read, and in each split what is said of it."""
    counted: list[Counted | None]
    """Of each split; nothing where the readings are not counted."""


@dataclass(frozen=True)
class Cell:
    """A reading at one checkpoint."""

    change: str
    interval: str
    verdict: str


@dataclass(frozen=True)
class Row:
    """A reading in one split, a cell for each checkpoint (None: not read)."""

    letter: str
    title: str
    where: str
    n: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class Claims:
    """The first screen."""

    base: str
    """Its step, where the table's provenance says it."""
    margin: str
    claims: list[Claim]
    masking: Masking | None
    unjudged: str
    """Why nothing is said of claims (a) to (c), where that is so."""
    splits: list[str]
    steps: list[int]
    rows: list[Row]
    few: list[tuple[str, str]]
    """What was read off few decisions, games or pairs, and how many."""


def claims(study: Read) -> Claims | None:
    """What may be said of each claim; None for a study of none of them."""
    masking = _masking(study)
    frame = study.tables.get("claims")
    if frame is None:
        missing = "there is no table claims.csv of this run" if "behaviour" in study.tables else ""
        return _without(masking, missing) if missing or masking else None
    frame = frame[frame["claim"].isin(list(CLAIMS)[:3])]
    shown = lines(frame)
    if not shown:
        return _without(masking, "its table has no change of theirs")
    return Claims(
        base=str(study.made("claims").get("base", "")),
        margin=number(float(frame["margin"].max())),
        claims=[_claim(frame, letter, [x for x in shown if x.claim == letter]) for letter in "abc"],
        masking=masking,
        unjudged="",
        splits=[WHERE[split] for split in splits_of(frame)],
        steps=sorted({int(step) for step in frame["step"]}),
        rows=list(_rows(frame, shown)),
        few=list(_few(frame, shown)),
    )


def _without(masking: Masking | None, why: str) -> Claims:
    return Claims("", number(SMALLEST), [], masking, why, [], [], [], [])


def _claim(frame: pd.DataFrame, letter: str, shown: Sequence[Line]) -> Claim:
    splits = splits_of(frame)
    readings = [
        (line.title, [_judged(of_line(frame, line, split), line) for split in splits]) for line in shown
    ]
    counted = [_counted([of_line(frame, line, split) for line in shown]) for split in splits]
    return Claim(letter, CLAIMS[letter], readings, counted if letter == "c" and shown else [])


def _judged(rows: pd.DataFrame, line: Line) -> Judged | None:
    """What is said of a line's rows, a row for each checkpoint; None where none has a value."""
    read = rows.dropna(subset="value")
    if read.empty:
        return None
    steps, last = [int(step) for step in rows["step"]], read.iloc[-1]
    said = {word: [int(step) for step in rows.loc[rows["verdict"] == word, "step"]] for word in VERDICTS}
    return Judged(
        [(word, ranges(there, steps)) for word, there in said.items() if there],
        int(last["step"]),
        estimate(last, signed=True),
        f"{count(last)} {line.unit}",
        line.statistic in ("gap", "headroom_gap") and last["verdict"] == OPEN and bool(last["high"] < 0),
    )


def _counted(lines: Sequence[pd.DataFrame]) -> Counted | None:
    last = [rows.iloc[-1] for rows in lines if len(rows)]
    if not last:
        return None
    step = max(int(row["step"]) for row in last)
    words = [row["verdict"] for row in last if int(row["step"]) == step]
    return Counted(step, [(word, words.count(word)) for word in VERDICTS])


def _rows(frame: pd.DataFrame, shown: Sequence[Line]) -> Iterator[Row]:
    steps = sorted({int(step) for step in frame["step"]})
    for line in shown:
        for split in splits_of(frame):
            rows = of_line(frame, line, split)
            by_step = {int(row["step"]): row for _, row in rows.iterrows()}
            if by_step:
                n = count(rows.iloc[-1])
                cells = [_cell(by_step.get(step)) for step in steps]
                yield Row(line.claim, line.title, WHERE[split], n, cells)


def _cell(row: pd.Series | None) -> Cell | None:
    if row is None:
        return None
    if pd.isna(row["value"]):
        return Cell("–", "", row["verdict"])
    change, _, interval = estimate(row, signed=True).partition(" ")
    return Cell(change, interval, row["verdict"])


def _few(frame: pd.DataFrame, shown: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """The readouts that some checkpoint read off few decisions, each with the fewest."""
    fewest: dict[tuple[str, str], int] = {}
    for line in shown:
        read = pick(frame, statistic=line.statistic, readout=line.readout, subset="all")
        for _, row in read.iterrows():
            if few(row):
                key = READOUTS.get(line.readout, line.title), line.unit
                fewest[key] = min(int(row["n"]), fewest.get(key, int(row["n"])))
    for (title, unit), n in fewest.items():
        yield title, f"{n} {unit}"


def _masking(study: Read) -> Masking | None:
    """Claim (d), of this run's table of claims or of its masking study."""
    rows = pick(study.tables["claims"], claim="d") if "claims" in study.tables else pd.DataFrame()
    if rows.empty and (frame := study.tables.get("masking")) is not None:
        rows = pd.DataFrame(masked(frame))
    if rows.empty:
        return None
    last = rows[rows["step"] == rows["step"].max()].set_index("statistic")
    names = {"masked_minus_none": "no mask", "masked_minus_random": "a random mask of the same size"}
    return Masking(
        int(rows["step"].max()),
        str(last["verdict"].iloc[0]),
        [(name, estimate(last.loc[key], signed=True)) for key, name in names.items()],
        count(last.iloc[0]),
        count(last.iloc[0], "n_groups"),
    )
