"""What a report reads, and its sentences from rows: how a reading changes over checkpoints, in words that its intervals choose.

>>> study = read("figures/tables", "figures", ["behaviour", "online"])
>>> trend("the gap", study.ends("behaviour", metric="gap", split="in_domain"))
'the gap rises from 0.10 [0.05, 0.14] to 0.56 [0.51, 0.61]'
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from interp.plots.captions import _estimate
from interp.results.queries import pick, splits_of
from interp.results.tables import read_table

#: Studies that may stand beside a study's folder, by the name of their own folder.
BESIDE = ("smollm2", "environments", "masking_smollm2", "reinforcement")
#: Splits inside a sentence.
WHERE = {"in_domain": "in-domain", "out_of_domain": "out of domain"}


class Cells(NamedTuple):
    """A table of the report."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    """Cells as HTML; the first of each row is its heading."""


class Items(NamedTuple):
    """A list of the report."""

    items: list[str]
    """As HTML."""


class Missing(NamedTuple):
    """Why something is not in the report."""

    text: str
    """As plain text."""


#: What a section is made of: paragraphs (HTML without their tags), lists and tables.
Block = str | Items | Cells | Missing


class Ends(NamedTuple):
    """A reading's rows at the first and last checkpoint that it has (one and the same where there is one)."""

    first: pd.Series
    last: pd.Series

    @property
    def moved(self) -> str:
        """`up` or `down` where the interval of the difference excludes 0, `level` where it covers it, `single`, or `unknown` without intervals.

        That interval is put together from both ends' (square and add), as if they were independent, which is strict for readings of the same
        decisions. Source: Newcombe 1998, Zou & Donner 2008.
        """
        first, last = self.first[["value", "low", "high"]].astype(float), self.last[["value", "low", "high"]].astype(float)
        if self.first["step"] == self.last["step"]:
            return "single"
        if first.isna().any() or last.isna().any():
            return "unknown"
        change = last["value"] - first["value"]
        if change > math.hypot(last["value"] - last["low"], first["high"] - first["value"]):
            return "up"
        return "down" if -change > math.hypot(last["high"] - last["value"], first["value"] - first["low"]) else "level"


class Read(NamedTuple):
    """The tables of a study by name, each with its provenance in `attrs`, and the studies that stand beside it."""

    tables: dict[str, pd.DataFrame]
    beside: dict[str, Read]
    link: str
    """From the page that is written to the study's own page."""
    damaged: tuple[str, ...] = ()
    """Of each table that is there, or in a study beside it, and cannot be read, why, in a sentence."""

    def rows(self, table: str, **where) -> pd.DataFrame:
        """Rows of a table whose columns equal the values given and that have a value; empty where the table or a column is missing."""
        frame = self.tables.get(table)
        if frame is None or any(column not in frame for column in where):
            return pd.DataFrame(columns=["step", "split", "metric", "value", "low", "high", "n", "n_groups"])
        return pick(frame, **where).dropna(subset="value")

    def ends(self, table: str, **where) -> Ends | None:
        """First and last checkpoint of the rows picked; None where there is none."""
        return ends(self.rows(table, **where))

    def splits(self, table: str) -> list[str]:
        """Splits that a table has, in-domain first."""
        rows = self.rows(table)
        return splits_of(rows) if "split" in rows else []

    def made(self, table: str) -> dict:
        """A table's provenance."""
        return self.tables[table].attrs if table in self.tables else {}

    @property
    def games(self) -> str:
        """The table of whole games: of ALFWorld's own where no others were played."""
        return "online" if "online" in self.tables or "online_official" not in self.tables else "online_official"


def read(tables: str | Path, out: str | Path, names: Iterable[str]) -> Read:
    """Read the tables of these names that are there and whole, and those of the studies that stand beside the folder `tables`.

    Args:
        tables: folder of `<name>.csv` and `<name>.json`.
        out: folder of the page, which links to the others' pages.
        names: of the tables.
    """
    tables, out, names = Path(tables), Path(out), list(names)
    beside = {name: _read(tables.parent / name / "tables", out, names) for name in BESIDE if (tables.parent / name / "tables").is_dir()}
    study = _read(tables, out, names)
    damaged = (*study.damaged, *(problem for other in beside.values() for problem in other.damaged))
    return study._replace(beside={name: other for name, other in beside.items() if other.tables}, damaged=damaged)


def _read(tables: Path, out: Path, names: list[str]) -> Read:
    found, damaged = {}, []
    for name in names:
        try:
            frame, made = read_table(tables, name)
        except FileNotFoundError:  # said in its figure's place
            continue
        except ValueError as problem:
            damaged.append(str(problem))
            continue
        frame.attrs = made
        found[name] = frame
    return Read(found, {}, href(tables.parent / "index.html", out), tuple(damaged))


def ends(rows: pd.DataFrame) -> Ends | None:
    """First and last checkpoint of the rows; None where there is none."""
    rows = rows.sort_values("step", kind="stable")
    return Ends(rows.iloc[0], rows.iloc[-1]) if len(rows) else None


def told(row: pd.Series, signed: bool = False) -> str:
    """Value with its interval, as captions write it."""
    return _estimate(row, signed)


def trend(subject: str, of: Ends | None) -> str:
    """Clause on how a reading changes, with both ends; empty where there is none."""
    if of is None:
        return ""
    first, last = told(of.first), told(of.last)
    return {
        "up": f"{subject} rises from {first} to {last}",
        "down": f"{subject} falls from {first} to {last}",
        "level": f"{subject} does not clearly change ({first}, then {last})",
        "unknown": f"{subject} goes from {first} to {last}, without intervals to judge the change by",
        "single": f"{subject} is {last}",
    }[of.moved]


def by_split(subject: str, study: Read, table: str, **where) -> str:
    """Sentence on one reading in every split: `In-domain the gap rises from .. to ..; out of domain it does not clearly change (..).`"""
    parts = []
    for split in study.splits(table):
        if said := trend("it" if parts else subject, study.ends(table, split=split, **where)):
            parts.append(f"{WHERE[split]} {said}")
    return sentence("; ".join(parts))


def grouped(found: Mapping[str, tuple[str, str]]) -> str:
    """Clause on every split, those of which the same is said together: `in-domain and out of domain it does (0.40 [..]; 0.50 [..])`.

    found: split -> what is said, and its numbers.
    """
    by: dict[str, list[str]] = {}
    for split, (words, _) in found.items():
        by.setdefault(words, []).append(split)
    return "; ".join(f"{listed(WHERE[split] for split in of)} {words} ({'; '.join(found[split][1] for split in of)})" for words, of in by.items())


def steps(rows: pd.DataFrame) -> str:
    """Which checkpoints a paragraph is about: `(steps 0 to 2000)`."""
    first, last = int(rows["step"].min()), int(rows["step"].max())
    return f"(step {first})" if first == last else f"(steps {first} to {last})"


def sentence(text: str) -> str:
    """The text with a capital and a full stop; nothing of nothing."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


def paragraph(*parts: str) -> str:
    """The parts that say something, one after the other."""
    return " ".join(part for part in parts if part)


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    words = [word for word in words if word]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def href(path: str | Path, out: str | Path) -> str:
    """A relative link from a page in the folder `out`, quoted as a URL, so that no name of a folder ends its attribute."""
    return quote(Path(os.path.relpath(Path(path).resolve(), Path(out).resolve())).as_posix())


#: What comes of a table whose columns, names or kinds of values are others than are read.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, NotImplementedError)


def unreadable(problem: Exception) -> str:
    """An error over a table's content, in a few words."""
    missing = isinstance(problem, KeyError) and problem.args
    return f"there is no {problem.args[0]!r}" if missing else str(problem).splitlines()[0] if str(problem) else type(problem).__name__


def escaped(text: object) -> str:
    """What a table or its provenance says, as HTML."""
    return html.escape(str(text), quote=False)
