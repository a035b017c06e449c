"""What a report reads: a study's tables, those of the studies beside it, and their readings at both ends.

>>> study = read("figures/tables", "figures", ["behaviour", "online"])
>>> study.changes("behaviour", metric="gap")[0]
Change(where='in-domain', first='−0.09 [−0.12, −0.04]', last='0.07 [0.04, 0.10]', moved='up')
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from interp.results.estimates import Ends, ends, estimate
from interp.results.queries import pick, splits_of
from interp.results.tables import ESTIMATE_COLUMNS, read_table
from interp.results.wording import WHERE, listed

#: Studies that may stand beside a study's folder, by the name of their own folder.
BESIDE = ("smollm2", "environments", "masking_smollm2", "reinforcement")
#: Tables that a section tells of and no figure draws.
TOLD = ("masking_manipulation",)
#: What comes of a table whose columns, names or kinds of values are others than are read.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, NotImplementedError)


class Change(NamedTuple):
    """A reading at its first and last checkpoint, in one split; texts are estimates."""

    where: str
    first: str
    last: str
    moved: str
    """As `Ends.moved` says."""

    @classmethod
    def between(cls, split: str, both: Ends) -> Change:
        """The change from the first to the last checkpoint of a split's reading."""
        return cls(WHERE[split], estimate(both.first), estimate(both.last), both.moved)


class Verdict(NamedTuple):
    """What is said of one or more splits, and the numbers that it rests on."""

    where: str
    code: str | int
    """Which of the template's words are said."""
    numbers: list[Mapping[str, str | Change]]
    """Estimates, or changes, by name, for each split."""


class Table(NamedTuple):
    """A table of the report, of plain text."""

    name: str
    """Of its LaTeX, without suffix."""
    caption: str
    heads: list[str]
    rows: list[list[str]]
    """The first cell of each is its heading."""
    links: Mapping[str, str] = {}
    """Heading of a row -> page that it links to."""


class Read(NamedTuple):
    """The tables of a study, each with its provenance in `attrs`, and the studies beside it."""

    tables: dict[str, pd.DataFrame]
    beside: dict[str, Read]
    link: str
    """From the page that is written to the study's own page."""
    damaged: tuple[str, ...] = ()
    """Of each table that is there, or in a study beside it, and cannot be read, why, in a sentence."""

    def any(self, *tables: str) -> bool:
        """Whether one of these tables is there."""
        return any(table in self.tables for table in tables)

    def rows(self, table: str, **where: object) -> pd.DataFrame:
        """Rows that equal the values given and have a value; none where the table or a column is missing."""
        frame = self.tables.get(table)
        if frame is None or any(column not in frame for column in where):
            return pd.DataFrame(columns=["step", "split", "metric", *ESTIMATE_COLUMNS])
        return pick(frame, **where).dropna(subset="value")

    def ends(self, table: str, **where: object) -> Ends | None:
        """First and last checkpoint of the rows picked; None where there is none."""
        return ends(self.rows(table, **where))

    def changes(self, table: str, **where: object) -> list[Change]:
        """The rows picked at both ends, in every split that has some."""
        return [
            Change.between(split, both)
            for split in self.splits(table)
            if (both := self.ends(table, split=split, **where))
        ]

    def splits(self, table: str) -> list[str]:
        """Splits that a table has, in-domain first."""
        rows = self.rows(table)
        return splits_of(rows) if "split" in rows else []

    def steps(self, table: str) -> str:
        """Which checkpoints a table has: `steps 0 to 2000`."""
        steps = self.rows(table)["step"]
        first, last = int(steps.min()), int(steps.max())
        return f"step {first}" if first == last else f"steps {first} to {last}"

    def checkpoints(self, steps: Collection[int]) -> str:
        """`the last checkpoint` of the study, or which ones these are where they are not that one alone."""
        every = [step for table in self.tables for step in self.made(table).get("weights") or ()]
        last = max((int(step) for step in every if str(step).isdigit()), default=None)
        if last is None or set(steps) <= {last}:
            return "the last checkpoint"
        return f"checkpoint{'s' * (len(steps) > 1)} {listed(map(str, sorted(steps)))}"

    def made(self, table: str) -> dict:
        """A table's provenance."""
        return self.tables[table].attrs if table in self.tables else {}

    @property
    def games(self) -> str:
        """The table of whole games: of ALFWorld's own where no others were played."""
        return (
            "online" if "online" in self.tables or "online_official" not in self.tables else "online_official"
        )


def together(verdicts: Mapping[str, tuple[str | int, Mapping[str, str | Change]]]) -> list[Verdict]:
    """Verdicts of splits, those with the same code as one; split -> code, numbers."""
    by_code: dict[str | int, list[str]] = {}
    for split, (code, _) in verdicts.items():
        by_code.setdefault(code, []).append(split)
    return [
        Verdict(listed(WHERE[split] for split in splits), code, [verdicts[split][1] for split in splits])
        for code, splits in by_code.items()
    ]


def read(tables: str | Path, out: str | Path, names: Iterable[str]) -> Read:
    """Read the tables of these names that are there and whole, and those of the studies beside.

    Args:
        tables: folder of `<name>.csv` and `<name>.json`.
        out: folder of the page, which links to the others' pages.
        names: of the tables.
    """
    tables, out, names = Path(tables), Path(out), list(names)
    folders = {name: tables.parent / name / "tables" for name in BESIDE}
    beside = {name: _read(folder, out, names) for name, folder in folders.items() if folder.is_dir()}
    study = _read(tables, out, names)
    damaged = (*study.damaged, *(problem for other in beside.values() for problem in other.damaged))
    return study._replace(
        beside={name: other for name, other in beside.items() if other.tables}, damaged=damaged
    )


def _read(tables: Path, out: Path, names: list[str]) -> Read:
    frames, damaged = {}, []
    for name in names:
        try:
            frame, made = read_table(tables, name)
        except FileNotFoundError:  # said in its figure's place
            continue
        except ValueError as problem:
            damaged.append(str(problem))
            continue
        frame.attrs = made
        frames[name] = frame
    return Read(frames, {}, href(tables.parent / "index.html", out), tuple(damaged))


def href(path: str | Path, out: str | Path) -> str:
    """A relative link from a page in `out`, quoted as a URL, so that no folder's name ends its attribute."""
    return quote(Path(os.path.relpath(Path(path).resolve(), Path(out).resolve())).as_posix())


def unreadable(problem: Exception) -> str:
    """An error over a table's content, in a few words."""
    missing = isinstance(problem, KeyError) and problem.args
    return (
        f"there is no {problem.args[0]!r}"
        if missing
        else str(problem).splitlines()[0]
        if str(problem)
        else type(problem).__name__
    )
