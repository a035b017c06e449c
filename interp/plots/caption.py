"""A figure's caption: what was found, what is drawn, and the numbers for the small table below it.

>>> caption = Caption("The gap rises in-domain.", "Bands: ...", "n = 400 decisions.", numbers(frame, {"gap": dict(metric="gap")}))
>>> caption.text
'The gap rises in-domain. Bands: ... n = 400 decisions.'

Captions are plain text of at most 60 words; the page escapes them. Their verbs are chosen by intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from interp.results.estimates import Ends, ends, estimate, side, span
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE, listed

#: What `Ends.moved` says of a reading.
VERBS = {
    "up": "rises", "down": "falls", "level": "shows no clear change", "unknown": "has no intervals to judge a change by",
    "single": "has one checkpoint",
}  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """What stands below a figure, as plain text."""

    message: str
    """What was found."""
    drawn: str
    """What is drawn."""
    size: str = ""
    """How many decisions, and which intervals."""
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Rows of the table below, as text; none where the figure is a table itself."""

    @property
    def text(self) -> str:
        """The caption's sentences."""
        return " ".join(part for part in (self.message, self.drawn, self.size) if part)


def clause(verdicts: Mapping[str, str]) -> str:
    """What is said of each split (or series), equal ones together: `rises in-domain and falls out-of-domain`."""
    by: dict[str, list[str]] = {}
    for where, verdict in verdicts.items():
        by.setdefault(verdict, []).append(WHERE.get(where, where))
    return listed(f"{verdict} {listed(places)}" for verdict, places in by.items())


def change(subject: str, frame: pd.DataFrame, **where) -> str:
    """Sentence on how a reading changes from the first to the last checkpoint in each split; empty where it has no rows."""
    found = {split: ends(pick(frame, split=split, **where)) for split in splits_of(frame)}
    verdicts = {split: VERBS[of.moved] for split, of in found.items() if of}
    return f"{subject} {clause(verdicts)}." if verdicts else ""


def last_side(frame: pd.DataFrame, words: Mapping[int, str], of: float = 0.0, **where) -> str:
    """What the last checkpoint's interval says in each split: one of `words`, for above, across (0) and below `of`."""
    found = {split: ends(pick(frame, split=split, **where)) for split in splits_of(frame)}
    return clause({split: words[side(each.last, of)] for split, each in found.items() if each})


def numbers(frame: pd.DataFrame, readings: Mapping[str, Mapping], signed: bool = False) -> pd.DataFrame:
    """Table of readings at their first and last checkpoint, a row for each reading and split.

    Args:
        frame: a table over checkpoints.
        readings: name -> the columns' values that pick it; what has no rows is left out.
        signed: write pluses, too.
    """
    rows = []
    for name, where in readings.items():
        for split in splits_of(frame):
            if of := ends(pick(frame, split=split, **where)):
                rows.append(row(name, split, of, signed))
    return pd.DataFrame(rows)


def row(name: str, split: str, of: Ends, signed: bool = False) -> dict[str, str]:
    """One row of the table of numbers."""
    first, last = (f"{value(each, signed)} (step {int(each['step'])})" for each in of)
    if of.moved == "single":
        first = "–"
    found = {"reading": name, "split": WHERE.get(split, split), "first checkpoint": first, "last checkpoint": last}
    return found | {"n": count(of.last), "clusters": count(of.last, "n_groups")}


def value(of: Mapping, signed: bool = False) -> str:
    """An estimate; one without an interval with two digits that say something."""
    return estimate(of, signed) if pd.notna(of["low"]) else f"{of['value']:.2g}".replace("-", "−")


def count(of: Mapping, column: str = "n") -> str:
    """A number of decisions or clusters; a dash where it is not known."""
    return "–" if pd.isna(of[column]) else f"{int(of[column]):,}"


def size(rows: pd.DataFrame, unit: str = "decisions", clusters: str = "episodes") -> str:
    """`n = 400 decisions in 60 episodes; 95 % cluster-bootstrap intervals.`"""
    return f"n = {span(rows['n'])} {unit} in {span(rows['n_groups'])} {clusters}; 95 % cluster-bootstrap intervals."
