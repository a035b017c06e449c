"""The data of a figure: exactly the rows that it draws, read back from the figure itself.

>>> rows(interp.figures.behaviour("runs/quick", venue="icml", columns=1)).columns.tolist()
['panel', 'series', 'x', 'y', 'low', 'high', 'n', 'clusters']

Lines, points and bars have a row for each point, `y` being the value; a row of a heatmap is a series, and
`y` is its colour's value. What only decorates (bands, whiskers without a point) is of the same rows, and left
out; so is a figure that is a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

#: Columns of a figure's data.
COLUMNS = ["panel", "series", "x", "y", "low", "high", "n", "clusters"]
#: What a point and a cell of `interp.plots.theme` tell on hover, by the number of columns.
_TOLD = {6: ("x", "y", "low", "high", "n", "clusters"), 4: ("low", "high", "n", "clusters")}


def rows(fig: go.Figure) -> pd.DataFrame:
    """What a figure draws: panel, series, place, value, interval, and how much it rests on."""
    panels = (fig.layout.meta or {}).get("panels", {})
    made: list[dict[str, object]] = []
    for trace in fig.data:
        if isinstance(trace, go.Table) or trace.hoverinfo == "skip":
            continue
        axes = f"{trace.xaxis or 'x'}{trace.yaxis or 'y'}"
        cells = _heatmap(fig, trace) if isinstance(trace, go.Heatmap) else _points(fig, trace)
        made += [{"panel": panels.get(axes, ""), **cell} for cell in cells]
    return pd.DataFrame(made, columns=COLUMNS)


def _points(fig: go.Figure, trace: Any) -> Iterator[dict[str, object]]:
    """A row for each point of a line, or bar."""
    sideways = trace.orientation == "h" or (
        bool(trace.error_x.array is not None) and trace.error_y.array is None
    )
    value, place = (trace.x, trace.y) if sideways else (trace.y, trace.x)
    axis = _axis(fig, trace.yaxis or "y") if sideways else _axis(fig, trace.xaxis or "x")
    error = trace.error_x if sideways else trace.error_y
    told = _told(trace, 6)
    for number, each in enumerate(value if value is not None else ()):
        if each is None or pd.isna(each):
            continue
        low, high = _ends(error, number, float(each))
        name = trace.name if trace.hovertext is None else trace.hovertext[number]
        row = {"series": _plain(name), "x": _label(axis, place[number]), "y": each}
        row |= {"low": low, "high": high, "n": np.nan, "clusters": np.nan}
        yield row | (dict(zip(_TOLD[6], told[number], strict=True)) if told is not None else {})


def _heatmap(fig: go.Figure, trace: go.Heatmap) -> Iterator[dict[str, object]]:
    """A row for each cell."""
    told = _told(trace, 4)
    names = trace.meta or {}
    across = names.get("x") or [_label(_axis(fig, trace.xaxis or "x"), x) for x in trace.x]
    upwards = names.get("y") or [_label(_axis(fig, trace.yaxis or "y"), y) for y in trace.y]
    for i, line in enumerate(np.asarray(trace.z, dtype=float)):
        for j, each in enumerate(line):
            if np.isnan(each):
                continue
            row = {"series": upwards[i], "x": across[j], "y": each}
            yield row | (dict(zip(_TOLD[4], told[i, j], strict=True)) if told is not None else {})


def _told(trace: Any, columns: int) -> np.ndarray | None:
    """The numbers that a trace tells on hover, where they are those of an estimate."""
    last = f"customdata[{columns - 1}]"
    if trace.customdata is None or last not in (trace.hovertemplate or ""):
        return None
    numbers = np.asarray(trace.customdata)
    return numbers if numbers.shape[-1] == columns else None


def _ends(error: Any, number: int, value: float) -> tuple[float, float]:
    """The ends of a whisker."""
    if error.array is None:
        return np.nan, np.nan
    below = error.array if error.arrayminus is None else error.arrayminus
    return value - below[number], value + error.array[number]


def _axis(fig: go.Figure, name: str) -> Any:
    """An axis by its short name, such as `x2`."""
    return fig.layout[f"{name[0]}axis{name[1:]}"]


def _label(axis: Any, place: Any) -> object:
    """What an axis calls a place, or the place itself."""
    known: Sequence[Any] = axis.tickvals if axis.tickvals is not None else ()
    texts: Sequence[Any] = axis.ticktext if axis.ticktext is not None else ()
    if isinstance(place, str) or len(known) != len(texts):
        return place
    near = [text for at, text in zip(known, texts, strict=True) if abs(at - place) < 0.45]
    return _plain(near[0]) if near else place


def _plain(text: object) -> str:
    """A label without its line breaks and marks of type."""
    shown = str(text or "")
    for mark, plain in (("<br>", " "), ("<b>", ""), ("</b>", ""), ("&lt;", "<"), ("\u00a0", " ")):
        shown = shown.replace(mark, plain)
    return shown
