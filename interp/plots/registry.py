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
from pathlib import Path
from typing import TypeAlias

import pandas as pd
import plotly.graph_objects as go

from interp.plots import drawn
from interp.plots.arrange import arrange
from interp.plots.caption import Caption
from interp.plots.look import Look, current, drawn_for
from interp.plots.theme import note_n, sizes
from interp.results.shown import Shown
from interp.results.tables import read_table

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
    beside: tuple[str, ...] = ()
    """Other tables that it draws from where they are there; they are options of `draw` by their names."""


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
    unit: str = "decisions",
    clusters: str = "episodes",
    beside: tuple[str, ...] = (),
) -> Callable:
    """Register the function that follows as a figure; its name is the function's unless given.

    Arguments as in `Figure`. The function also takes the table's provenance and a look (by default the one
    that is drawn in), or a result that holds the table's columns (`transfer(result)`,
    `probes({0: result, 500: other})`); its ValueErrors name the figure. The figure says its n: what the
    function noted by `note_n`, else what is drawn: so many of `unit`, of so many of `clusters`.
    """

    def register(draw: Callable) -> Callable:
        key = name or draw.__name__

        @wraps(draw)
        def draw_table(
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
                _say_n(figure, rows, unit, clusters)
                arrange(figure)
            meta = dict(figure.layout.meta or {}) | {"figure": key, "provenance": provenance or {}}
            return figure.update_layout(meta=meta)

        _FIGURES[key] = Figure(
            key, title, table, section, draw_table, caption, expected, instead, latex, beside
        )
        return draw_table

    return register


def _say_n(figure: go.Figure, table: pd.DataFrame, unit: str, clusters: str) -> None:
    """Note a figure's n below it: of what it draws, else of its table; a figure that is a table holds it."""
    tabular = any(isinstance(trace, go.Table) for trace in figure.data)
    if tabular or any(note.name == "n" for note in figure.layout.annotations):
        return
    read = drawn.rows(figure).rename(columns={"clusters": "n_groups"})
    text = sizes(read, unit, clusters) or (sizes(table, unit, clusters) if "n" in table else "")
    if text:
        note_n(figure, text)


def tables_beside(figure: Figure, folder: Path) -> dict[str, pd.DataFrame]:
    """The other tables of a figure that a folder has."""
    there = [name for name in figure.beside if (folder / f"{name}.csv").exists()]
    return {name: read_table(folder, name)[0] for name in there}


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
