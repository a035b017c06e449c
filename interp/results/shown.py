"""Results that show themselves: one line of shapes, a small table in a notebook, a frame, and a picture.

A result is a dataclass that says what its one line holds and how it is a table; the rest comes with `Shown`:

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, eq=False, repr=False)
... class Lengths(Plotted):
...     tokens: Int[np.ndarray, "decision"]
...
...     def summary(self) -> str:
...         return counted(len(self.tokens), "decision")
...
...     def to_frame(self) -> pd.DataFrame:
...         return pd.DataFrame(dict(decision=range(len(self.tokens)), tokens=self.tokens))
>>> Lengths(np.array([3, 5]))
Lengths(2 decisions)

`eq=False, repr=False` keep the dataclass from putting its own in the place of these.
"""

from __future__ import annotations

import html
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import xarray

#: Rows and columns of the table that a notebook shows.
ROWS, COLUMNS = 8, 12
#: Characters of a text in that table.
CHARACTERS = 60


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

    def _repr_html_(self) -> str:
        return f"<div><code>{html.escape(repr(self))}</code>{table_html(self.to_frame())}</div>"

    def __eq__(self, other: object) -> bool:
        return same(self, other) if type(other) is type(self) else NotImplemented


class Plotted(Shown):
    """A result of which a picture is natural."""

    def plot(self, **options: Any) -> go.Figure:
        """The picture of this result in the house style.

        Args:
            options: those of its picture in `interp.plots.results`.

        Raises:
            ValueError: where nothing is left to draw.
        """
        # Figures know results, not the other way round: found by name, they stay a layer above.
        return importlib.import_module("interp.plots.results").plot(self, **options)


def is_array(value: object) -> bool:
    """Whether a value is an array or a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


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
    below = f"<div>… and {', '.join(more)}: <code>to_frame()</code></div>" if more else ""
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
