"""The figures of a study as plotly figures, one function each, to be changed as a paper needs.

>>> figure = interp.figures.behaviour("figures", venue="icml", columns=1)
>>> changed = figure.update_traces(line_width=3)
>>> dir(interp.figures)  # their names: those of the files that `python -m analyses figures` writes
['along_trace', 'behaviour', 'calibration', ...]

Each takes a table (a data frame; a CSV file; or a folder of tables, or a run's folder, in which it is found),
or a result that holds the table's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

# What imports plotly, which takes a second, is imported where it is used.
if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.plots.look import Font, Venue
    from interp.plots.registry import Drawn, Figure


def __dir__() -> list[str]:
    from interp.plots.registry import figures

    return sorted(figure.name for figure in figures())


def __getattr__(name: str) -> Callable[..., go.Figure]:
    from interp.plots.registry import figures

    if name.startswith("_"):  # what Python itself asks of every module
        raise AttributeError(name)
    figure = next((each for each in figures() if each.name == name), None)
    if figure is None:
        raise AttributeError(f"There is no figure {name!r}: there are {', '.join(__dir__())}.")
    return _drawing(figure)


def _drawing(figure: Figure) -> Callable[..., go.Figure]:
    """The public function of a figure."""

    def draw(
        table_or_run: Drawn | str | Path,
        *,
        venue: Venue = "plain",
        columns: int = 2,
        font: Font = "sans",
        titles: bool = False,
        **beside: pd.DataFrame,
    ) -> go.Figure:
        from interp.plots.look import Look

        frame, provenance, others = _tables(table_or_run, figure)
        look = Look(venue, columns, font, titles)
        drawn: go.Figure = figure.draw(frame, provenance, look=look, **others | beside)
        return drawn

    draw.__name__ = draw.__qualname__ = figure.name
    draw.__doc__ = f"""{figure.title}.

        Args:
            table_or_run: the table `{figure.table}`, a path to it or to a run's folder, or a result.
            venue: where it is printed: plain, neurips, iclr, icml or acl.
            columns: of the page that it is as wide as, 1 or 2.
            font: sans, serif, or tex (Latin Modern).
            titles: whether its title stands above it.
            beside: other tables that it draws from, by name; from a folder they are read.

        Raises:
            FileNotFoundError: the table is not there.
            ValueError: the table lacks what the figure shows; another venue, number of columns or font.
        """
    return draw


def _tables(
    given: Drawn | str | Path, figure: Figure
) -> tuple[Drawn | pd.DataFrame, dict, dict[str, pd.DataFrame]]:
    """What a figure draws, its provenance, and the tables beside it, read where it is a path."""
    from interp.plots.registry import tables_beside
    from interp.results.tables import read_table

    if not isinstance(given, str | Path):
        return given, {} if isinstance(given, Mapping) else dict(getattr(given, "attrs", {})), {}
    path, name = Path(given), figure.table
    if path.suffix == ".csv":
        folder, name = path.parent, path.stem
    else:
        folder = path / "tables" if (path / "tables").is_dir() else path
    frame, provenance = read_table(folder, name)
    frame.attrs = provenance
    return frame, provenance, tables_beside(figure, folder)
