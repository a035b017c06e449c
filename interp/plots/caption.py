"""A figure's caption: what was found, what is drawn, and the numbers for the small table below it.

>>> caption = Caption("The gap rises in-domain.", "Bands: ...", "n = 400 decisions.", numbers(frame))
>>> caption.text
'The gap rises in-domain. Bands: ... n = 400 decisions.'

Captions are plain text of at most 60 words; the page escapes them. Their verbs are chosen by intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from interp.results.estimates import Ends, ends, estimate, side, span
from interp.results.headline import READINGS
from interp.results.names import INSERTED_TRACES, LABELS, SHARES, SPANS, STEERED, STYLE, TOLD
from interp.results.queries import pick, splits_of
from interp.results.tables import ESTIMATE_COLUMNS
from interp.results.wording import WHERE, listed

#: What `Ends.moved` says of a reading.
VERBS = {
    "up": "rises",
    "down": "falls",
    "level": "shows no clear change",
    "unknown": "has no intervals to judge a change by",
    "single": "has one checkpoint",
}


#: Names of the values of a table's columns.
NAMES = {
    "metric": READINGS | {name: look[0] for name, look in STYLE.items()} | TOLD,
    "predictor": {name: look[0] for name, look in STYLE.items()},
    "mode": {"cot": "CoT", "prompt": "prompt"},
    "inserted_trace": INSERTED_TRACES,
    "span": SPANS,
    "definition": SHARES,
    "position": STEERED,
    "label": LABELS,
    "split": WHERE,
    "at": SPANS,
    "direction": {
        name.removeprefix("along_"): look[0] for name, look in STYLE.items() if name.startswith("along_")
    },
}
#: Columns that say what an estimate is of, and what all of a checkpoint's own pairs give.
_COUNTS = ("seeds", "n_dropped", "n_own", "value_own")


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
        return together(self.message, self.drawn, self.size)


def together(*sentences: str) -> str:
    """The sentences that are not empty, as one text."""
    return " ".join(filter(None, sentences))


def clause(verdicts: Mapping[str, str]) -> str:
    """What is said of each split or series, equal ones together: `rises in-domain and out-of-domain`."""
    by_verdict: dict[str, list[str]] = {}
    for where, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(WHERE.get(where, where))
    return listed(f"{verdict} {listed(places)}" for verdict, places in by_verdict.items())


def change(subject: str, frame: pd.DataFrame, **where: object) -> str:
    """Sentence on how a reading changes from the first to the last checkpoint, by split."""
    verdicts = {split: VERBS[both.moved] for split, both in _by_split(frame, **where).items()}
    return f"{subject} {clause(verdicts)}." if verdicts else ""


def only(frame: pd.DataFrame, **values: Iterable[object]) -> pd.DataFrame:
    """Rows whose columns have one of the values given."""
    for column, allowed in values.items():
        frame = frame[frame[column].isin(list(allowed))]
    return frame


def last_side(frame: pd.DataFrame, words: Mapping[int, str], of: float = 0.0, **where: object) -> str:
    """What the last interval says in each split: one of `words`, for above, across (0) and below `of`."""
    readings = _by_split(frame, **where)
    return clause({split: words[side(both.last, of)] for split, both in readings.items()})


def _by_split(frame: pd.DataFrame, **where: object) -> dict[str, Ends]:
    """The rows picked at both ends, in every split that has some."""
    readings = {split: ends(pick(frame, split=split, **where)) for split in splits_of(frame)}
    return {split: both for split, both in readings.items() if both}


def numbers(rows: pd.DataFrame, names: Mapping[str, Callable] = {}) -> pd.DataFrame:
    """Table of readings at their first and last checkpoint, a row for each combination of other columns.

    Args:
        rows: of a table; without `step`, or with `step` among several layers, use `listing`.
        names: column -> what its values are called, where `NAMES` does not have it.
    """
    keys, lines = _keys(rows.drop(columns="step")), []
    for key, group in rows.groupby(keys, sort=False, dropna=False) if keys else [((), rows)]:
        if both := ends(group):
            first, last = (f"{value(each)} (step {int(each['step'])})" for each in both)
            over = {"first checkpoint": "–" if both.moved == "single" else first, "last checkpoint": last}
            lines.append(_named(dict(zip(keys, key, strict=True)), names) | over | _counts(both.last))
    return pd.DataFrame(lines)


def listing(rows: pd.DataFrame, names: Mapping[str, Callable] = {}) -> pd.DataFrame:
    """Table of single rows, with the columns in which they differ; arguments as `numbers`."""
    keys = _keys(rows)
    return pd.DataFrame(
        [
            _named(row[keys].to_dict(), names) | {"value": value(row)} | _counts(row)
            for _, row in rows.iterrows()
        ]
    )


def _keys(rows: pd.DataFrame) -> list[str]:
    """Columns that tell rows apart, the split last."""
    keys = [
        name
        for name in rows
        if name not in (*ESTIMATE_COLUMNS, *_COUNTS) and rows[name].nunique(dropna=False) > 1
    ]
    return sorted(keys, key=lambda name: name == "split")


def _named(key: Mapping, names: Mapping[str, Callable]) -> dict[str, str]:
    """A row's key with the names of its values."""
    return {
        column.replace("_", " "): names[column](each)
        if column in names
        else NAMES.get(column, {}).get(each, str(each).replace("_", " "))
        for column, each in key.items()
    }


def _counts(row: pd.Series) -> dict[str, str]:
    heads = {"n": "n", "n_groups": "clusters", "seeds": "seeds", "n_dropped": "dropped", "n_own": "own pairs"}
    return {head: count(row, name) for name, head in heads.items() if name in row}


def value(of: Mapping, signed: bool = False) -> str:
    """An estimate; one without an interval with two digits that say something."""
    return estimate(of, signed) if pd.notna(of["low"]) else f"{of['value']:.2g}".replace("-", "−")


def count(of: Mapping, column: str = "n") -> str:
    """A number of decisions or clusters; a dash where it is not known."""
    return "–" if pd.isna(of[column]) else f"{int(of[column]):,}"


def size(rows: pd.DataFrame, unit: str = "decisions", clusters: str = "episodes") -> str:
    """How many decisions in how many episodes: `n = 400 decisions in 60 episodes; 95 % ... intervals.`."""
    return (
        f"n = {span(rows['n'])} {unit} in {span(rows['n_groups'])} {clusters}; 95 % "
        "cluster-bootstrap intervals."
    )
