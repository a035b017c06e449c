"""What a figure is drawn for: its width, fonts and sizes by venue, and the template that plotly has of them.

>>> Look("icml", columns=1).width
468
>>> with drawn_for(Look("icml", columns=1)):
...     figure = panels(frame, {"accuracy": 230})

A figure is drawn in units of half a printed point, so that a column of 3.25 inches is 468 units wide and type
of 14 units has 7 points.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import plotly.graph_objects as go
import plotly.io

from interp.results.names import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

Venue = Literal["plain", "neurips", "iclr", "icml", "acl"]
Font = Literal["sans", "serif", "tex"]
#: Inches of one column and of both; where a venue has one column, both are the width of its text.
INCHES: dict[Venue, tuple[float, float]] = {
    "plain": (5.5, 5.5),
    "neurips": (5.5, 5.5),
    "iclr": (5.5, 5.5),
    "icml": (3.25, 6.75),
    "acl": (3.03, 6.3),
}
FONTS: dict[Font, str] = {
    "sans": "Arial, Helvetica, Liberation Sans, sans-serif",
    "serif": "Times New Roman, Times, Liberation Serif, serif",
    "tex": "CMU Serif, Latin Modern Roman, serif",
}
UNITS = 144  # to the inch
SMALL, TYPE = 14, 16  # 7 and 8 points
#: Units below which a figure is one panel wide.
NARROW = 600

LEFT, RIGHT, TOP, BOTTOM = 64, 14, 74, 58  # units


@dataclass(frozen=True)
class Look:
    """What a figure is drawn for.

    Raises:
        ValueError: for another venue, number of columns or font.
    """

    venue: Venue = "plain"
    """Where it is printed; `plain` is text 5.5 inches wide."""
    columns: int = 2
    """Of the page that it is as wide as: 1 or 2."""
    font: Font = "sans"
    titles: bool = False
    """Whether its title stands above it; in a paper the caption says it."""

    def __post_init__(self) -> None:
        choices: dict[str, tuple[object, tuple[object, ...]]] = {
            "venue": (self.venue, tuple(INCHES)),
            "columns": (self.columns, (1, 2)),
            "font": (self.font, get_args(Font)),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, not {value!r}.")

    @property
    def inches(self) -> float:
        """Width in print."""
        return INCHES[self.venue][self.columns - 1]

    @property
    def width(self) -> int:
        """Width in units of half a point."""
        return round(UNITS * self.inches)

    @property
    def narrow(self) -> bool:
        """Whether there is room for one panel beside its axis, and not for two."""
        return self.width < NARROW

    @property
    def template(self) -> go.layout.Template:
        """Fonts, sizes and colours, for plotly."""
        return _template(self)


_AXIS = dict(
    showgrid=True,
    gridcolor="#E4E4E4",
    gridwidth=0.8,
    zeroline=False,
    showline=True,
    linecolor="#444444",
    linewidth=1,
    ticks="outside",
    ticklen=4,
    tickcolor="#444444",
    tickfont_size=SMALL,
    title_font_size=15,
    title_standoff=8,
)


@cache
def _template(look: Look) -> go.layout.Template:
    legend = dict(
        orientation="h",
        x=0,
        xanchor="left",
        yanchor="bottom",
        font_size=SMALL,
        bgcolor="rgba(0,0,0,0)",
        itemwidth=30,
        tracegroupgap=0,
    )
    return go.layout.Template(
        layout=dict(
            font=dict(family=FONTS[look.font], size=15, color="#222222"),
            title=dict(x=0, xref="paper", font_size=TYPE, y=0.99, yanchor="top", yref="container"),
            paper_bgcolor="white",
            plot_bgcolor="white",
            colorway=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK],
            width=look.width,
            margin=dict(l=LEFT, r=RIGHT, t=TOP, b=BOTTOM),
            xaxis=_AXIS,
            yaxis=_AXIS,
            bargap=0.45,
            hovermode="closest",
            **{"legend" if row == 1 else f"legend{row}": legend for row in range(1, 7)},
        )
    )


plotly.io.templates["interp"] = Look().template
_CURRENT: ContextVar[Look] = ContextVar("look", default=Look())


def current() -> Look:
    """The look that is drawn in."""
    return _CURRENT.get()


@contextmanager
def drawn_for(look: Look) -> Iterator[None]:
    """Make this the look that figures are drawn in."""
    before = _CURRENT.set(look)
    try:
        yield
    finally:
        _CURRENT.reset(before)
