"""The data of a figure: exactly the rows that it draws, read back from the figure itself.

>>> rows(interp.figures.behaviour("runs/quick", venue="icml", columns=1)).columns.tolist()
['panel', 'series', 'x', 'y', 'low', 'high', 'n', 'clusters']

Lines, points and bars have a row for each point, `y` being the value; a row of a heatmap is a series, and
`y` is its colour's value. What only decorates (bands, whiskers without a point) is of the same rows, and left
out; so is a figure that is a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go

#: What plotly writes of a trace and of an axis.
Trace: TypeAlias = dict[str, Any]
Axis: TypeAlias = dict[str, Any]
#: Columns of a figure's data.
COLUMNS = ["panel", "series", "x", "y", "low", "high", "n", "clusters"]
#: What a point and a cell of `interp.plots.theme` tell on hover, by the number of columns.
_TOLD = {6: ("x", "y", "low", "high", "n", "clusters"), 4: ("low", "high", "n", "clusters")}


def rows(fig: go.Figure) -> pd.DataFrame:
    """What a figure draws: panel, series, place, value, interval, and how much it rests on."""
    panels = (fig.layout.meta or {}).get("panels", {})
    axes: dict[str, Any] = {}
    made: list[dict[str, object]] = []
    for each in fig.data:
        trace = each.to_plotly_json()
        if trace["type"] == "table" or trace.get("hoverinfo") == "skip":
            continue
        pair = [trace.get(name, name[0]) for name in ("xaxis", "yaxis")]
        for name in pair:
            axes[name] = axes.get(name) or fig.layout[f"{name[0]}axis{name[1:]}"].to_plotly_json()
        both = axes[pair[0]], axes[pair[1]]
        cells = _heatmap(trace, *both) if trace["type"] == "heatmap" else _points(trace, *both)
        made += [{"panel": panels.get("".join(pair), ""), **cell} for cell in cells]
    return pd.DataFrame(made, columns=COLUMNS)


def _points(trace: Trace, across: Axis, upwards: Axis) -> Iterator[dict[str, object]]:
    """A row for each point of a line, or bar."""
    whiskers = "array" in trace.get("error_x", {}) and "array" not in trace.get("error_y", {})
    sideways = trace.get("orientation") == "h" or whiskers
    value, place, axis = (trace.get("y"), trace.get("x"), across)
    if sideways:
        value, place, axis = (trace.get("x"), trace.get("y"), upwards)
    error = trace.get("error_x" if sideways else "error_y", {})
    told, names = _told(trace, 6), trace.get("hovertext")
    for number, each in enumerate(value if value is not None else ()):
        if each is None or pd.isna(each):
            continue
        low, high = _ends(error, number, float(each))
        name = trace.get("name") if names is None else names[number]
        at = _label(axis, place[number]) if place is not None else number
        row = {"series": as_text(name), "x": at, "y": each}
        row |= {"low": low, "high": high, "n": np.nan, "clusters": np.nan}
        if told is not None:
            row |= dict(zip(_TOLD[6], told[number], strict=True))
        # of rows of estimates the place is a row's name, and not the checkpoint that is told on hover
        yield row | ({"x": at} if sideways else {})


def _heatmap(trace: Trace, across: Axis, upwards: Axis) -> Iterator[dict[str, object]]:
    """A row for each cell."""
    told, names = _told(trace, 4), trace.get("meta") or {}
    columns = names.get("x") or [_label(across, x) for x in trace["x"]]
    lines = names.get("y") or [_label(upwards, y) for y in trace["y"]]
    for i, line in enumerate(np.asarray(trace["z"], dtype=float)):
        for j, each in enumerate(line):
            if np.isnan(each):
                continue
            row = {"series": lines[i], "x": columns[j], "y": each}
            yield row | (dict(zip(_TOLD[4], told[i, j], strict=True)) if told is not None else {})


def _told(trace: Trace, columns: int) -> np.ndarray | None:
    """The numbers that a trace tells on hover, where they are those of an estimate."""
    last = f"customdata[{columns - 1}]"
    if trace.get("customdata") is None or last not in trace.get("hovertemplate", ""):
        return None
    numbers = np.asarray(trace["customdata"])
    return numbers if numbers.shape[-1] == columns else None


def _ends(error: dict[str, Any], number: int, value: float) -> tuple[float, float]:
    """The ends of a whisker."""
    if "array" not in error:
        return np.nan, np.nan
    return value - error.get("arrayminus", error["array"])[number], value + error["array"][number]


def _label(axis: Axis, place: Any) -> object:
    """What an axis calls a place, or the place itself."""
    known, texts = axis.get("tickvals", ()), axis.get("ticktext", ())
    if isinstance(place, str) or len(known) != len(texts):
        return place
    near = [text for at, text in zip(known, texts, strict=True) if abs(at - place) < 0.45]
    return as_text(near[0]) if near else place


def as_text(text: object) -> str:
    """A figure's label without its line breaks and marks of type."""
    shown = str(text or "")
    for mark, plain in (("<br>", " "), ("<b>", ""), ("</b>", ""), ("&lt;", "<"), ("\u00a0", " ")):
        shown = shown.replace(mark, plain)
    return shown
