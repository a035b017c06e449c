"""The places of a figure's panels, legends, letters and notes, given once everything is drawn.

>>> arrange(panels(frame, {"accuracy": 230}))  # panels now stand where the figure's width puts them

Rows of panels stand below each other, each below its legend. Where fewer panels fit side by side than a row
has, its others follow below. Panels that follow each other show the axis that they share once.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from interp.plots.look import BOTTOM, LEFT, RIGHT, SMALL, TOP, current

#: Units: above the first legend, a figure's title, a line of a legend, of panels' titles, of tick labels
#: and of an axis title.
_ABOVE, _HEAD, _LEGEND, _TITLES, _TICKS, _AXIS_TITLE = 6, 28, 21, 23, 22, 22
#: Average width of a character, as a share of the type's size; a legend's line before a name; between names.
_CHARACTER, _KEY, _APART = 0.5, 40, 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class _Line:
    """Panels side by side, by their columns in a row of the figure."""

    row: int
    columns: list[int]
    first: bool
    """Of its row."""


def arrange(fig: go.Figure) -> go.Figure:
    """Give panels, legends and notes their places, and each of several panels a letter."""
    grid = (fig.layout.meta or {}).get("grid")
    if grid:
        _place(fig, grid)
    _place_note(fig)
    return fig


def text_width(text: str, size: float = SMALL) -> float:
    """About how many units a text is wide, or its longest line."""
    return max(len(line) for line in text.replace("<b>", "").split("<br>")) * _CHARACTER * size


def legend_lines(fig: go.Figure, legend: str, width: float) -> int:
    """How many lines of a width a legend takes."""
    names, seen = [], set()
    for trace in fig.data:
        key = trace.legendgroup or trace.name
        shown = trace.showlegend is not False and trace.visible is not False and trace.name
        if (trace.legend or "legend") == legend and shown and key not in seen:
            seen.add(key)
            names.append(trace.name)
    lines, used = 0, math.inf
    for name in names:
        wide = _KEY + text_width(name) + _APART
        if used + wide > width:
            lines, used = lines + 1, 0.0
        used += wide
    return lines


def _place(fig: go.Figure, grid: dict) -> None:
    """Places of all panels, from the top down."""
    rows, cols = len(grid["heights"]), len(grid["titles"])
    across = grid["across"]
    lines = [
        _Line(row, list(range(start, min(start + across, cols + 1))), start == 1)
        for row in range(1, rows + 1)
        for start in range(1, cols + 1, across)
    ]
    names = _panel_names(fig, rows, grid["titles"])
    if across < cols:
        _share_axes(fig, lines, grid["shared"])
    margin = fig.layout.margin
    left = (LEFT if margin.l is None else margin.l) + _wrap_titles(fig, grid["heights"])
    right = RIGHT if margin.r is None else margin.r
    width = current().width - left - right
    # Beside long names of rows the first legend starts further left.
    start = min(0.0, (LEFT + 20 - left) / width)
    top, bottoms, legends = _tops(fig, grid, lines, width * (1 - start))
    inner = bottoms[-1] - top
    for line, bottom in zip(lines, bottoms, strict=True):
        high = grid["heights"][line.row - 1]
        for place, col in enumerate(line.columns):
            each = (1 - grid["spacing"] * (across - 1)) / across
            from_left = place * (each + grid["spacing"])
            panel = fig.get_subplot(line.row, col)
            panel.xaxis.domain = (from_left, min(1.0, from_left + each))
            low = (bottoms[-1] - bottom) / inner
            panel.yaxis.domain = (low, min(1.0, low + high / inner))
    for legend, at in legends.items():
        x = start if legend == "legend" else 0
        fig.update_layout(
            {legend: dict(y=(bottoms[-1] - at) / inner, yanchor="bottom", x=x, orientation="h")}
        )
    below = grid["below"] if margin.b is None else margin.b
    fig.update_layout(height=top + inner + below, margin=dict(t=top, b=below, l=left, r=right))
    _head(fig, lines, grid["titles"], across < cols)
    fig.update_layout(meta={"panels": names})


def _panel_names(fig: go.Figure, rows: int, titles: list[str]) -> dict[str, str]:
    """What each panel shows, by the names of its axes: `In-domain: accuracy`."""
    names = {}
    for row in range(1, rows + 1):
        measure = fig.get_subplot(row, 1).yaxis.title.text or ""
        for col, title in enumerate(titles, start=1):
            axes = (axis.plotly_name.replace("axis", "") for axis in fig.get_subplot(row, col))
            names["".join(axes)] = ": ".join(filter(None, (title, measure.replace("<br>", " "))))
    return names


def _tops(
    fig: go.Figure, grid: dict, lines: list[_Line], width: float
) -> tuple[float, list[float], dict[str, float]]:
    """Where the first panel starts and each line of panels ends, and where legends stand, from the top."""
    at: float = _ABOVE + (_HEAD if fig.layout.title.text else 0)
    top = 0.0
    bottoms: list[float] = []
    legends: dict[str, float] = {}
    for number, line in enumerate(lines):
        legend = "legend" if line.row == 1 else f"legend{line.row}"
        count = legend_lines(fig, legend, width) if line.first else 0
        if count:
            at += _LEGEND * count
            legends[legend] = at
        if len(lines) > 1 or len(line.columns) > 1 or grid["titles"][line.columns[0] - 1]:
            at += _TITLES
        top = at if number == 0 else top
        at += grid["heights"][line.row - 1]
        bottoms.append(at)
        at += max(grid["gap"] if line.first else 10, _room_below(fig, line))
    return top, bottoms, legends


def _room_below(fig: go.Figure, line: _Line) -> int:
    """What the axes of a line need before the next one."""
    axes = [fig.get_subplot(line.row, col).xaxis for col in line.columns]
    ticks = any(axis.showticklabels is not False for axis in axes)
    titles = any(axis.title.text and axis.showticklabels is not False for axis in axes)
    return _TICKS * ticks + _AXIS_TITLE * titles + 6


def _share_axes(fig: go.Figure, lines: list[_Line], shared: bool) -> None:
    """Where a row's panels follow each other: axes below the last one, and beside each line's first one."""
    lowest = {place: line for line in lines for place, _ in enumerate(line.columns)}
    for line in lines:
        title = fig.get_subplot(line.row, 1).yaxis.title.text
        for place, col in enumerate(line.columns):
            panel = fig.get_subplot(line.row, col)
            below = lowest[place]
            alike = _axis(panel.xaxis) == _axis(fig.get_subplot(below.row, below.columns[place]).xaxis)
            if line is below:
                panel.xaxis.showticklabels = True
            elif alike and panel.xaxis.range:
                panel.xaxis.update(showticklabels=False, title=None)
            if not shared:
                continue
            panel.yaxis.showticklabels = place == 0
            panel.yaxis.title.text = title if place == 0 else None


def _axis(axis: go.layout.XAxis) -> list[list[object] | None]:
    """What tells two axes apart."""
    parts = (axis.range, axis.tickvals, axis.ticktext)
    return [None if part is None else list(part) for part in parts]


def _wrap_titles(fig: go.Figure, heights: list[int]) -> int:
    """Break titles of upright axes that are longer than their panels are high; the room that this takes."""
    more = 0
    for row, height in enumerate(heights, start=1):
        for axis in fig.select_yaxes(row=row):
            title = axis.title.text
            if title and "<br>" not in title and text_width(title, 15) > height + 10:
                axis.title.text = "<br>".join(textwrap.wrap(title, max(12, int(len(title) / 2 + 3))))
                more = 16
    return more


def _head(fig: go.Figure, lines: list[_Line], titles: list[str], every: bool) -> None:
    """A letter at the upper left corner of each of several panels, in reading order, and beside it a title.

    A column's title stands above its first panel only, unless panels of one row follow each other (`every`).
    """
    made: list[dict[str, Any]] = []
    panels = [(line.row, col) for line in lines for col in line.columns]
    for letter, (row, col) in zip(_LETTERS, panels):
        panel, title = fig.get_subplot(row, col), titles[col - 1]
        xref, yref = (axis.plotly_name.replace("axis", "") + " domain" for axis in panel)
        place = dict(
            xref=xref, yref=yref, x=0, y=1, yanchor="bottom", yshift=3, font_size=15, showarrow=False
        )
        if len(panels) > 1:
            made.append(place | dict(text=f"<b>{letter}</b>", name="letter", xanchor="right", xshift=-5))
        if title and (every or row == 1):
            made.append(place | dict(text=title, name="title", xanchor="left"))
    fig.update_layout(annotations=[*fig.layout.annotations, *made])


def _place_note(fig: go.Figure) -> None:
    """Put the line that says n at the lower left, below everything else."""
    margin, height = fig.layout.margin, fig.layout.height or 450
    below, left = (BOTTOM if margin.b is None else margin.b), (LEFT if margin.l is None else margin.l)
    for note in fig.layout.annotations:
        if note.name != "n" or note.xref == "paper":  # placed already
            continue
        room = 2 + 18 * len(note.text.split("<br>"))
        below, height = below + room, height + room
        note.update(xref="paper", yref="paper", x=0, y=0, xanchor="left", yanchor="bottom", align="left")
        note.update(xshift=4 - left, yshift=2 - below)
    top = TOP if margin.t is None else margin.t
    fig.update_layout(height=height, margin=dict(b=below, t=top))
