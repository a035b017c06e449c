"""Draw every figure whose table exists, and the report around them; reads tables only, never activations.

python -m analyses figures --tables runs/quick/tables --out runs/quick
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from interp.results.tables import read_table, write_text
from interp.system.limits import Folder, Limits

from .provenance import mixed
from .registry import Instrument

# What imports plotly, which takes a second, is imported where it is used.
if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.plots.look import Look
    from interp.plots.registry import Figure
    from interp.report import page

Format = Literal["html", "svg", "pdf", "png", "pgf"]
FORMATS: tuple[Format, ...] = ("html", "svg", "pdf")  # of those, what is written unless asked for
# The same names as `interp.plots.look.Venue` and `Font`, whose import takes a second.
Venue = Literal["plain", "neurips", "iclr", "icml", "acl"]
Font = Literal["sans", "serif", "tex"]


def draw(
    tables: Path,
    out: Path,
    formats: Sequence[Format] = FORMATS,
    look: Look | None = None,
    dpi: int = 300,
) -> list[Path]:
    """Draw every registered figure whose table is in `tables` into `out`, and the page `index.html`.

    What a figure draws is also written as CSV beside it, and tables as LaTeX.

    Args:
        tables: folder of `<name>.csv` and `<name>.json`.
        out: folder to write to, made where it is missing.
        formats: of the figures; without a browser they are interactive pages whatever is asked for.
        look: what they are drawn for in print; interactive pages are as wide as a plain text.
        dpi: dots to the inch of a PNG.

    Returns:
        Every file written, `index.html` last.

    Raises:
        FileNotFoundError: none of the tables is there.
        ValueError: a table is damaged, or was edited; the page is drawn without it first. Or `out` is the
            folder of the tables, which the figures' data would replace.
    """
    from interp.plots import export, pgf
    from interp.plots.look import Look
    from interp.plots.registry import figures
    from interp.report import page
    from interp.report.study import TOLD, read

    tables, out, look = Path(tables), Path(out), look or Look()
    if out.resolve() == tables.resolve():
        raise ValueError(f"{out} is the folder of the tables: give the figures another one, such as {out}/..")
    every = figures()
    there = {figure.table for figure in every if (tables / f"{figure.table}.csv").exists()}
    if not there:
        names = ", ".join(f"{name}.csv" for name in sorted({figure.table for figure in every}))
        raise FileNotFoundError(f"No table to draw in {tables}: expected {names}.")
    study = any(
        figure.expected for figure in every if figure.table in there
    )  # else nothing of a study is missed
    drawn, entries, written = {}, [], []
    for figure in every:
        missed = (
            study and figure.expected and not (figure.instead and (tables / f"{figure.instead}.csv").exists())
        )
        if figure.table not in there and not missed:
            continue
        entry, plot, latex = _entry(figure, tables, look)
        entries += [entry] if entry else []
        if plot is not None:
            drawn[figure.name] = plot
        if latex:
            written.append(write_text(out / f"{figure.name}.tex", latex))
    static = [each for each in ("svg", "pdf", "png") if each in formats]
    rendered = export.save_static(drawn, out, tuple(static), dpi) if static else []
    framed = "svg" not in static or not rendered
    interactive: list[Path] = []
    if framed or "html" in formats:
        roomy = Look(font=look.font, titles=look.titles)
        if roomy.width != look.width:
            wide = [_entry(figure, tables, roomy)[1] for figure in every if figure.name in drawn]
        else:
            wide = list(drawn.values())
        interactive = export.save_html({name: plot for name, plot in zip(drawn, wide) if plot}, out)
    written += export.save_data(drawn, out)
    written += pgf.save(drawn, out, look) if "pgf" in formats else []
    made_in = [*(["html"] if interactive else []), *(static if rendered else [])]
    made = read(tables, out, sorted({*TOLD, *(figure.table for figure in every)}))
    notes = mixed({name: frame.attrs for name, frame in made.tables.items()})
    for note in notes:
        print(note, file=sys.stderr)
    index = page.save_index(entries, made, tables, out, made_in, notes)
    written = [*interactive, *written, *rendered, index]
    if made.damaged:
        raise ValueError(
            f"{written[-1]} was drawn without {len(made.damaged)} of its tables. {made.damaged[0]}"
        )
    return written


def draw_own(table: Path, out: Path) -> list[Path]:
    """Draw the figures of one table as interactive pages into `out`, and print why where there is none."""
    from interp.plots import export
    from interp.plots.registry import figures

    drawn, problems = {}, []
    for figure in figures():
        if figure.table != table.stem:
            continue
        entry, plot, _ = _entry(figure, table.parent)
        if plot is not None:
            drawn[figure.name] = plot
        elif entry:
            problems.append(entry.problem)
    for problem in problems[:1] if not drawn else []:
        print(f"no figure of {table}: {problem}", file=sys.stderr)
    return [path for path in export.save_html(drawn, out) if path.stem in drawn] if drawn else []


def _entry(
    figure: Figure, tables: Path, look: Look | None = None
) -> tuple[page.Entry | None, go.Figure | None, str]:
    """A figure's place on the page, the figure, and its LaTeX; nothing where its table lacks it."""
    import plotly.graph_objects as go

    from interp.plots.registry import tables_beside
    from interp.report import page
    from interp.report.study import UNREADABLE, unreadable

    entry = page.Entry(figure.name, figure.title, figure.table, figure.section, {})
    try:
        frame, provenance = read_table(tables, figure.table)
    except (FileNotFoundError, ValueError) as problem:
        return replace(entry, problem=str(problem)), None, ""
    frame.attrs = provenance
    try:
        plot = figure.draw(frame, provenance, look=look, **tables_beside(figure, tables))
        caption = figure.caption(frame)
        latex = figure.latex(frame) if figure.latex else ""
    except UNREADABLE as problem:
        if isinstance(problem, ValueError) and not figure.expected and figure.name != figure.table:
            return None, None, ""
        reason = str(problem)
        if not isinstance(problem, ValueError):
            reason = (
                f"The table {figure.table}.csv holds something else than this figure shows "
                f"({unreadable(problem)})."
            )
        return replace(entry, problem=reason), None, ""
    tabular = isinstance(plot.data[0], go.Table)
    return (
        replace(entry, provenance=provenance, caption=caption, tabular=tabular, latex=bool(latex)),
        plot,
        latex,
    )


@dataclass
class Config:
    """What is drawn, and where to."""

    tables: Path
    """Folder of the tables (CSV and JSON)."""
    out: Annotated[Path, Folder()]
    """Folder to write the figures and index.html to."""
    formats: tuple[Format, ...] = FORMATS
    """Of each figure's files: an interactive page, drawings to print, or source for LaTeX (lines only)."""
    venue: Venue = "plain"
    """Where they are printed, which sets their width; plain is text 5.5 inches wide."""
    columns: Annotated[int, Limits(1, 2)] = 2
    """Of the page that a figure is as wide as: 1 or 2."""
    font: Font = "sans"
    """Of all text: tex is Latin Modern."""
    titles: bool = False
    """Whether a figure's title stands above it."""
    dpi: Annotated[int, Limits(36, 2400)] = 300
    """Dots to the inch of a PNG."""


def run(config: Config) -> None:
    """Draw the figures, and say where they are; raises what `draw` raises."""
    from interp.plots.look import Look

    look = Look(config.venue, config.columns, config.font, config.titles)
    written = draw(config.tables, config.out, config.formats, look, config.dpi)
    print(f"{len(written)} files written, start at {written[-1]}")


INSTRUMENT = Instrument("figures", Config, run)
