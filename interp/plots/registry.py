"""Every figure, registered where it is drawn: title, table, section of the page, and caption.

>>> @figure("Prompt reliance", table="reliance", section="depends", caption=reliance_caption)
... def reliance(frame): return go.Figure()
>>> reliance(frame, provenance)  # which is kept in the figure's `layout.meta`

`figures()` has them in reading order: module by module of this package, in each as they stand
there, then those of others.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TypeAlias

import pandas as pd
import plotly.graph_objects as go

from interp.plots.arrange import arrange
from interp.plots.caption import Caption
from interp.plots.theme import Look, current, drawn_for, note_n, sizes
from interp.results.shown import Shown

#: What a figure draws: a table; a result; or results by training step.
Drawn: TypeAlias = "pd.DataFrame | Shown | Mapping[int, Shown]"


@dataclass(frozen=True)
class Figure:
    """One figure of the page."""

    name: str
    """Name of its files, without suffix."""
    title: str
    table: str
    """Name of the table that it draws."""
    section: str
    """Section of the page that it stands in; one that the page does not know becomes one of its own."""
    draw: Callable[..., go.Figure]
    """Takes the table, its provenance and the look."""
    caption: Callable[[pd.DataFrame], Caption]
    expected: bool
    """Whether the page of a study says so where its table is missing."""
    instead: str
    """A table that is as good: where it is there, this figure's is not missed."""
    latex: Callable[[pd.DataFrame, Look], str] | None
    """Writes the figure's numbers in LaTeX where a plain table of them does not do."""


_FIGURES: dict[str, Figure] = {}


def figure(
    title: str,
    *,
    table: str,
    section: str,
    caption: Callable[[pd.DataFrame], Caption],
    name: str = "",
    expected: bool = False,
    instead: str = "",
    latex: Callable[[pd.DataFrame, Look], str] | None = None,
) -> Callable:
    """Register the function that follows as a figure; its name is the function's unless given.

    Arguments as in `Figure`. The function also takes the table's provenance and a look (by default the one
    that is drawn in), or a result that holds the table's columns (`transfer(result)`,
    `probes({0: result, 500: other})`); its ValueErrors name the figure. The figure says its n: what the
    function noted by `note_n`, else what the table's columns give.
    """

    def register(draw: Callable) -> Callable:
        key = name or draw.__name__

        @wraps(draw)
        def drawn(
            frame: Drawn, provenance: dict | None = None, look: Look | None = None, **options: object
        ) -> go.Figure:
            look = look or current()
            rows = table_of(frame)
            with drawn_for(look):
                try:
                    figure = draw(rows, **options)
                except ValueError as problem:
                    raise ValueError(f"Figure {key}: {problem}") from problem
                if look.titles:
                    figure.update_layout(title_text=title)
                figure.update_layout(template=look.template)
                if not _says_n(figure) and (text := sizes(rows) if "n" in rows else ""):
                    note_n(figure, text)
                arrange(figure)
            return figure.update_layout(meta={"figure": key, "provenance": provenance or {}})

        _FIGURES[key] = Figure(key, title, table, section, drawn, caption, expected, instead, latex)
        return drawn

    return register


def _says_n(figure: go.Figure) -> bool:
    """Whether a figure's n stands on it; a figure that is a table has a column of it."""
    tabular = any(isinstance(trace, go.Table) for trace in figure.data)
    return tabular or any(note.name == "n" for note in figure.layout.annotations)


def table_of(given: Drawn) -> pd.DataFrame:
    """A table as it is; a result's, or those of results by training step in one, as a study writes them."""
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, Mapping):
        table = pd.concat([each.to_frame().assign(step=step) for step, each in given.items()])
    else:
        table = given.to_frame()
    return table if "label" in table else table.assign(label="label")


def figures() -> tuple[Figure, ...]:
    """All figures, in reading order."""
    package = importlib.import_module("interp.plots")
    for module in pkgutil.iter_modules(package.__path__, "interp.plots."):
        importlib.import_module(module.name)
    own = sorted(
        (each for each in _FIGURES.values() if each.draw.__module__.startswith("interp.plots.")),
        key=lambda each: each.draw.__module__,
    )
    return (*own, *(each for each in _FIGURES.values() if each not in own))
