"""Draw every figure whose table exists, and the report around them; reads tables only, never activations.

python -m analyses figures --tables runs/quick/tables --out runs/quick
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Literal

from interp.results.tables import read_table, write_text
from interp.system.limits import Folder, Limits

from .provenance import mixed
from .registry import Instrument

# What imports plotly, which takes a second, is imported where it is used.
if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.plots.caption import Caption
    from interp.plots.look import Look
    from interp.plots.registry import Figure
    from interp.report import page
    from interp.report.study import Read

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

    Beside a figure stand what it draws as CSV and its numbers as LaTeX, beside the page its own tables and
    headline numbers (`numbers.tex`).

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
    from interp.report.numbers import numbers_tex
    from interp.report.study import TOLD, read

    tables, out, look = Path(tables), Path(out), look or Look()
    if out.resolve() == tables.resolve():
        raise ValueError(f"{out} is the folder of the tables: give the figures another one, such as {out}/..")
    drawn, entries, written = {}, [], []
    every = wanted(tables)
    static = tuple(each for each in ("svg", "pdf", "png") if each in formats)
    with _rendering(out, static, dpi) as (render, rendering):
        for figure in every:
            entry, plot, latex = entry_of(figure, tables, look)
            entries += [entry] if entry else []
            if plot is not None:
                drawn[figure.name] = plot
                render((figure.name, plot.to_dict()))
            if latex:
                written.append(write_text(out / f"{figure.name}.tex", latex))
        render(None)
        wide = _roomy(drawn, every, tables, look) if "html" in formats else {}
        interactive = export.save_html(wide, out) if wide else []
        written += export.save_data(drawn, out)
        written += pgf.save(drawn, out, look) if "pgf" in formats else []
        made = read(tables, out, sorted({*TOLD, *(figure.table for figure in figures())}))
        notes = mixed({name: frame.attrs for name, frame in made.tables.items()})
        for note in notes:
            print(note, file=sys.stderr)
        written += [write_text(out / "numbers.tex", numbers_tex(made)), *own_tables(made, out, look)]
        rendered = rendering.result()
    if "html" not in formats and ("svg" not in static or not rendered):  # what the page shows in place of it
        interactive = export.save_html(_roomy(drawn, every, tables, look), out)
    made_in = [*(["html"] if interactive else []), *(static if rendered else [])]
    entries = [replace(entry, data=(out / f"{entry.name}.csv").exists()) for entry in entries]
    index = page.save_index(entries, made, tables, out, made_in, notes)
    written = [*interactive, *written, *rendered, index]
    if made.damaged:
        raise ValueError(
            f"{written[-1]} was drawn without {len(made.damaged)} of its tables. {made.damaged[0]}"
        )
    return written


@contextmanager
def _rendering(
    out: Path, formats: tuple[str, ...], dpi: int
) -> Iterator[tuple[Callable[[tuple[str, dict] | None], None], Future[list[Path]]]]:
    """A thread that renders figures while others are made.

    Yields:
        What takes a figure's name and JSON, and None after the last one; and the files that will be written.
    """
    from interp.plots import export

    figures: SimpleQueue[tuple[str, dict] | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        arriving = iter(figures.get, None)
        files = thread.submit(export.save_static, arriving, out, formats, dpi) if formats else Future()
        if not formats:
            files.set_result([])
        try:
            yield figures.put, files
        finally:
            figures.put(None)


def _roomy(
    drawn: dict[str, go.Figure], every: Sequence[Figure], tables: Path, look: Look
) -> dict[str, go.Figure]:
    """The figures that were drawn, as wide as a plain text."""
    from interp.plots.look import Look

    roomy = Look(font=look.font, titles=look.titles)
    if roomy.width == look.width:
        return drawn
    wide = {figure.name: entry_of(figure, tables, roomy)[1] for figure in every if figure.name in drawn}
    return {name: plot for name, plot in wide.items() if plot is not None}


def wanted(tables: Path) -> list[Figure]:
    """The figures whose table is there, and those that the page of a study misses.

    Raises:
        FileNotFoundError: none of the tables is there.
    """
    from interp.plots.registry import figures

    every = figures()
    there = {figure.table for figure in every if (tables / f"{figure.table}.csv").exists()}
    if not there:
        names = ", ".join(f"{name}.csv" for name in sorted({figure.table for figure in every}))
        raise FileNotFoundError(f"No table to draw in {tables}: expected {names}.")
    # of another folder than a study's nothing is missed
    study = any(figure.expected for figure in every if figure.table in there)

    def missed(figure: Figure) -> bool:
        return study and figure.expected and not (tables / f"{figure.instead or figure.table}.csv").exists()

    return [figure for figure in every if figure.table in there or missed(figure)]


def own_tables(study: Read, out: Path, look: Look) -> list[Path]:
    """Write the tables of the report's own words as LaTeX."""
    import pandas as pd

    from interp.plots.latex import booktabs
    from interp.report.sections import tables

    written = []
    for table in tables(study):
        frame = pd.DataFrame(table.rows, columns=table.heads)
        latex = booktabs(frame, table.caption, f"tab:{table.name}", look)
        written.append(write_text(out / f"{table.name}.tex", latex))
    return written


def draw_own(table: Path, out: Path) -> list[Path]:
    """Draw the figures of one table as interactive pages into `out`, and print why where there is none."""
    from interp.plots import export
    from interp.plots.registry import figures

    drawn, problems = {}, []
    for figure in figures():
        if figure.table != table.stem:
            continue
        entry, plot, _ = entry_of(figure, table.parent)
        if plot is not None:
            drawn[figure.name] = plot
        elif entry:
            problems.append(entry.problem)
    for problem in problems[:1] if not drawn else []:
        print(f"no figure of {table}: {problem}", file=sys.stderr)
    return [path for path in export.save_html(drawn, out) if path.stem in drawn] if drawn else []


def entry_of(
    figure: Figure, tables: Path, look: Look | None = None
) -> tuple[page.Entry | None, go.Figure | None, str]:
    """A figure's place on the page, the figure, and its LaTeX; nothing where its table lacks it."""
    import plotly.graph_objects as go

    from interp.plots.look import Look
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
        latex = _latex(figure, frame, plot, caption, look or Look())
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


def _latex(figure: Figure, frame: pd.DataFrame, plot: go.Figure, caption: Caption, look: Look) -> str:
    """A figure's numbers as a table for a paper; nothing where it has none."""
    import pandas as pd
    import plotly.graph_objects as go

    from interp.plots.latex import booktabs

    if figure.latex:
        return figure.latex(frame, look)
    numbers, drawn = caption.numbers, plot.data[0]
    if isinstance(drawn, go.Table):
        numbers = pd.DataFrame(dict(zip(drawn.header["values"], drawn.cells["values"], strict=True)))
    title = f"{figure.title}{'' if figure.title.endswith('?') else ':'} numbers."
    return booktabs(numbers.fillna("–"), title, f"tab:{figure.name}", look) if len(numbers) else ""


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
