"""The places of a figure's panels, legends, letters and notes, given once everything is drawn.

>>> arrange(panels(frame, {"accuracy": 230}))  # panels now stand where the figure's width puts them

Rows of panels stand below each other, each below its legend. Where fewer panels fit side by side than a row
has, its others follow below. Panels that follow each other show the axis that they share once.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any, TypeAlias

import plotly.graph_objects as go

from interp.plots.look import BOTTOM, LEFT, RIGHT, TOP, current
from interp.plots.ticks import ticks_within
from interp.plots.wide import text_width, wrapped

#: Units: above the first legend, a figure's title, a line of a legend, of panels' titles, of tick labels
#: and of an axis title.
_ABOVE, _HEAD, _LEGEND, _TITLES, _TICKS, _AXIS_TITLE = 6, 28, 21, 26, 22, 22
#: A legend's line before a name, and between names; a further line of a title; a letter and its distances.
_KEY, _APART, _LINE, _LETTER = 40, 8, 19, 24
#: Units from the names of rows to their panel, and of an upright axis title.
_TO_NAMES, _UPRIGHT = 8, 24
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


#: Range, ticks and their labels.
_Axis: TypeAlias = "list[list[object] | None]"


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
    left = _left(fig, lines) + _wrap_titles(fig, grid["heights"])
    right = RIGHT if margin.r is None else margin.r
    width = current().width - left - right
    # Beside long names of rows the first legend starts further left.
    start = min(0.0, (LEFT + 20 - left) / width)
    each = (1 - grid["spacing"] * (across - 1)) / across
    gap = grid["spacing"] * width
    titles = _wrapped_titles(grid["titles"], width * each + (gap - _LETTER if across > 1 else 0))
    top, bottoms, legends = _tops(fig, grid, lines, (width * (1 - start), width), titles)
    inner = bottoms[-1] - top
    for line, bottom in zip(lines, bottoms, strict=True):
        high = grid["heights"][line.row - 1]
        for place, col in enumerate(line.columns):
            from_left = place * (each + grid["spacing"])
            panel = fig.get_subplot(line.row, col)
            panel.xaxis.domain = (from_left, min(1.0, from_left + each))
            low = (bottoms[-1] - bottom) / inner
            panel.yaxis.domain = (low, min(1.0, low + high / inner))
            over = (gap / 2 - 4 if place else 20, gap / 2 - 4 if place < across - 1 else right)
            ticks_within(panel.xaxis, width * each, over)
    for legend, at in legends.items():
        x, y = (start if legend == "legend" else 0), (bottoms[-1] - at) / inner
        fig.update_layout({legend: dict(y=y, yanchor="bottom", x=x, orientation="h")})
    below = grid["below"] if margin.b is None else margin.b
    fig.update_layout(height=top + inner + below, margin=dict(t=top, b=below, l=left, r=right))
    _head(fig, lines, titles, across < cols)
    fig.update_layout(meta={"panels": names})


def _panel_names(fig: go.Figure, rows: int, titles: list[str]) -> dict[str, str]:
    """What each panel shows, by the names of its axes: `In-domain: accuracy`."""
    names = {}
    for row in range(1, rows + 1):
        first = fig.get_subplot(row, 1).yaxis.title.text
        for col, title in enumerate(titles, start=1):
            measure = fig.get_subplot(row, col).yaxis.title.text or first or ""
            axes = (axis.plotly_name.replace("axis", "") for axis in fig.get_subplot(row, col))
            names["".join(axes)] = ": ".join(filter(None, (title, measure.replace("<br>", " "))))
    return names


def _left(fig: go.Figure, lines: list[_Line]) -> float:
    """Room left of the first panels: for the names of their rows, and beside these an upright title."""
    least = fig.layout.margin.l
    room: float = LEFT if least is None else least
    for line in lines:
        axis = fig.get_subplot(line.row, line.columns[0]).yaxis
        names = [text_width(str(text)) for text in axis.ticktext or ()]
        room = max(room, max(names, default=0) + _TO_NAMES + (_UPRIGHT if axis.title.text else 0))
    return math.ceil(room)


def _wrapped_titles(titles: list[str], room: float) -> list[str]:
    """Titles of panels in lines that do not reach the next panel's letter."""
    return ["<br>".join(wrapped(title, room, 15)) for title in titles]


def _tops(
    fig: go.Figure, grid: dict, lines: list[_Line], widths: tuple[float, float], titles: list[str]
) -> tuple[float, list[float], dict[str, float]]:
    """Where the first panel starts and each line of panels ends, and where legends stand, from the top.

    A browser breaks the first legend, which stands above all panels, at one width, and others at another.
    """
    at: float = _ABOVE + (_HEAD if fig.layout.title.text else 0)
    top = 0.0
    bottoms: list[float] = []
    legends: dict[str, float] = {}
    for number, line in enumerate(lines):
        legend = "legend" if line.row == 1 else f"legend{line.row}"
        count = legend_lines(fig, legend, widths[number > 0]) if line.first else 0
        if count:
            at += _LEGEND * count
            legends[legend] = at
        if len(lines) > 1 or len(line.columns) > 1 or titles[line.columns[0] - 1]:
            shown = line.first and number == 0 or grid["across"] < len(titles)
            more = max(titles[col - 1].count("<br>") for col in line.columns) if shown else 0
            at += _TITLES + _LINE * more
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
    """Where a row's panels follow each other: axes below the last line alike, and beside each line's first.

    Of axes that differ and have one title, the last one says it.
    """
    below: list[tuple[_Axis, str | None]] = []
    for line in reversed(lines):
        title = fig.get_subplot(line.row, 1).yaxis.title.text
        panels = [fig.get_subplot(line.row, col) for col in line.columns]
        axes = [(_axis(panel.xaxis), panel.xaxis.title.text) for panel in panels]
        said = all(panel.xaxis.range for panel in panels) and _alike(axes, below)
        for place, panel in enumerate(panels):
            panel.xaxis.showticklabels = not said
            if said or (place < len(below) and axes[place][1] == below[place][1]):
                panel.xaxis.title = None
            if not shared:
                continue
            panel.yaxis.showticklabels = place == 0
            panel.yaxis.title.text = title if place == 0 else None
        below = axes


def _alike(axes: list[tuple[_Axis, str | None]], below: list[tuple[_Axis, str | None]]) -> bool:
    """Whether the line below has the same axes in the same places."""
    return len(axes) == len(below) and all(a[0] == b[0] for a, b in zip(axes, below, strict=True))


def _axis(axis: go.layout.XAxis) -> _Axis:
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
            xref=xref,
            yref=yref,
            x=0,
            y=1,
            yanchor="bottom",
            yshift=5,
            font_size=15,
            showarrow=False,
        )
        if len(panels) > 1:
            made.append(place | dict(text=f"<b>{letter}</b>", name="letter", xanchor="right", xshift=-5))
        if title and (every or row == 1):
            made.append(place | dict(text=title, name="title", xanchor="left", align="left"))
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
