"""Results that show themselves: one line of shapes, a small table in a notebook, a frame, and a picture.

A result is a dataclass that says what its one line holds and how it is a table; the rest comes with `Shown`,
and with `Plotted` where a function of `interp.plots.results` draws its table:

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, eq=False, repr=False)
... class Lengths(Shown):
...     tokens: list[int]
...
...     def summary(self) -> str:
...         return counted(len(self.tokens), "decision")
...
...     def to_frame(self) -> pd.DataFrame:
...         return pd.DataFrame(dict(decision=range(len(self.tokens)), tokens=self.tokens))
>>> Lengths([3, 5])
Lengths(2 decisions)

`eq=False, repr=False` keep the dataclass from putting its own in the place of these.
"""

from __future__ import annotations

import html
import importlib
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import xarray

#: Rows and columns of the table that a notebook shows.
ROWS, COLUMNS = 8, 12
#: Characters of a text in that table.
CHARACTERS = 60


class Incomplete(UserWarning):
    """Part of what was asked for is missing: pairs, decisions, or actions that did not parse."""


def warn_incomplete(sentence: str) -> None:
    """Warn that part of a result is missing, at the line outside of this package that asked for it."""
    frame = sys._getframe(1)
    level = 2
    between = ("interp.", "torch.", "jaxtyping.", "tests.shapes")  # and what checks the arrays of calls
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(between):
        frame = frame.f_back
        level += 1
    warnings.warn(sentence, Incomplete, stacklevel=level)


class Shown(ABC):
    """What every result is: equal by value, one line as text, and a table."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """A tidy table: one row for each value, its coordinates in named columns."""

    def summary(self) -> str:
        """What the one line says between its brackets: the shapes of the arrays where a type says no more."""
        arrays = [f"{name} {list(value.shape)}" for name, value in vars(self).items() if is_array(value)]
        return ", ".join(arrays)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    def glance(self) -> pd.DataFrame:
        """The table of which a notebook shows the first rows: the frame, unless it is a flood."""
        return self.to_frame()

    def _repr_html_(self) -> str:
        return f"<div><code>{html.escape(repr(self))}</code>{table_html(self.glance())}</div>"

    def __eq__(self, other: object) -> bool:
        return same(self, other) if type(other) is type(self) else NotImplemented


class Plotted(Shown):
    """A result of which a picture is natural."""

    picture: ClassVar[str]
    """The function of `interp.plots.results` that draws its frame."""

    def plot(self, **options: Any) -> go.Figure:
        """The picture of this result in the house style.

        Args:
            options: those of its picture in `interp.plots.results`.

        Raises:
            ValueError: where nothing is left to draw.
        """
        # Figures draw tables and know no model: found by name, they stay a layer above what measures.
        pictures = importlib.import_module("interp.plots.results")
        return getattr(pictures, self.picture)(self.to_frame(), **options)


def is_array(value: object) -> bool:
    """Whether a value is an array or a tensor with axes, not a single number."""
    return hasattr(value, "dtype") and getattr(value, "shape", ()) != ()


def same(a: Any, b: Any) -> bool:
    """Whether two values hold the same: arrays number by number, and NaN is equal to NaN."""
    if is_array(a) and is_array(b):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if is_array(a) or is_array(b):
        return False
    if type(a) is not type(b):
        return bool(a == b)
    if is_dataclass(a):
        return all(same(getattr(a, each.name), getattr(b, each.name)) for each in fields(a) if each.compare)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or bool(a != a and b != b)


def counted(n: int, noun: str) -> str:
    """`1 pair`, `24 pairs`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def table_html(frame: pd.DataFrame) -> str:
    """The first rows and columns of a table, with every text escaped."""
    columns = list(frame.columns[:COLUMNS])
    more_columns = len(frame.columns) - len(columns)
    names = [str(name) for name in columns] + ["…"] * bool(more_columns)
    rows = [_row("th", names)]
    for number in range(min(ROWS, len(frame))):
        values = [_cell(frame[name].iloc[number]) for name in columns]
        rows.append(_row("td", values + ["…"] * bool(more_columns)))
    more = [f"{len(frame) - ROWS:,} more rows"] * (len(frame) > ROWS)
    more += [f"{more_columns:,} more columns"] * bool(more_columns)
    below = f"<div>… and {', '.join(more)}</div>" if more else ""
    return f"<table>{''.join(rows)}</table>{below}"


def _row(tag: str, values: Sequence[str]) -> str:
    # isolated: a text's own direction moves nothing around it
    cells = (f"<{tag}><bdi>{html.escape(value)}</bdi></{tag}>" for value in values)
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"


def labelled(
    variables: Mapping[str, tuple[Sequence[str], Any]],
    coordinates: Mapping[str, Sequence | tuple[str, Sequence]],
    attributes: Mapping[str, object],
) -> xarray.Dataset:
    """Arrays with named axes.

    Args:
        variables: name -> its axes, and the array.
        coordinates: axis -> the name or number of each of its places.
        attributes: what the whole is of.

    Raises:
        ImportError: xarray is not installed.
    """
    try:
        import xarray
    except ImportError:
        raise ImportError(
            "Named axes need the package xarray: install it (`pip install xarray`), or take `to_frame()`."
        ) from None
    return xarray.Dataset(dict(variables), dict(coordinates), dict(attributes))
