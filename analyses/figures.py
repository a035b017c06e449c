"""Draw every figure whose table exists, and the report around them; reads tables only, never activations.

python -m analyses figures --tables runs/quick/tables --out runs/quick
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from interp.results.tables import read_table, write_text
from interp.system.limits import Folder

from .provenance import mixed
from .registry import Instrument

# What imports plotly, which takes a second, is imported where it is used.
if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.plots.caption import Caption
    from interp.plots.registry import Figure
    from interp.report import page
    from interp.report.study import Read

Format = Literal["html", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)


def draw(tables: Path, out: Path, formats: Sequence[Format] = FORMATS) -> list[Path]:
    """Draw every registered figure whose table is in `tables` into `out`, and the page `index.html`.

    Beside them stand the report's tables and its numbers in LaTeX (`NAME.tex`, `numbers.tex`).

    Args:
        tables: folder of `<name>.csv` and `<name>.json`.
        out: folder to write to, made where it is missing.
        formats: of the figures; without a browser they are interactive pages whatever is asked for.

    Returns:
        Every file written, `index.html` last.

    Raises:
        FileNotFoundError: none of the tables is there.
        ValueError: a table is damaged, or was edited; the page is drawn without it first.
    """
    from interp.plots import export
    from interp.plots.registry import figures
    from interp.report import page
    from interp.report.study import TOLD, read

    tables, out = Path(tables), Path(out)
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
        entry, plot, latex = _entry(figure, tables)
        entries += [entry] if entry else []
        if plot is not None:
            drawn[figure.name] = plot
        if latex:
            written.append(write_text(out / f"{figure.name}.tex", latex))
    static = [each for each in FORMATS if each in formats and each != "html"]
    rendered = export.save_static(drawn, out, tuple(static)) if static else []
    framed = "svg" not in static or not rendered
    interactive = export.save_html(drawn, out) if framed or "html" in formats else []
    made_in = [*(["html"] if interactive else []), *(static if rendered else [])]
    made = read(tables, out, sorted({*TOLD, *(figure.table for figure in every)}))
    notes = mixed({name: frame.attrs for name, frame in made.tables.items()})
    for note in notes:
        print(note, file=sys.stderr)
    written += _for_papers(made, out)
    entries = [replace(entry, data=(out / f"{entry.name}.csv").exists()) for entry in entries]
    index = page.save_index(entries, made, tables, out, made_in, notes)
    written = [*interactive, *written, *rendered, index]
    if made.damaged:
        raise ValueError(
            f"{written[-1]} was drawn without {len(made.damaged)} of its tables. {made.damaged[0]}"
        )
    return written


def _for_papers(study: Read, out: Path) -> list[Path]:
    """Write the report's own tables as LaTeX, and its headline numbers as macros."""
    import pandas as pd

    from interp.plots.latex import booktabs
    from interp.report.numbers import numbers_tex
    from interp.report.sections import tables

    written = [write_text(out / "numbers.tex", numbers_tex(study))]
    for table in tables(study):
        frame = pd.DataFrame(table.rows, columns=table.heads)
        latex = booktabs(frame, table.caption, f"tab:{table.name}")
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
        entry, plot, _ = _entry(figure, table.parent)
        if plot is not None:
            drawn[figure.name] = plot
        elif entry:
            problems.append(entry.problem)
    for problem in problems[:1] if not drawn else []:
        print(f"no figure of {table}: {problem}", file=sys.stderr)
    return [path for path in export.save_html(drawn, out) if path.stem in drawn] if drawn else []


def _entry(figure: Figure, tables: Path) -> tuple[page.Entry | None, go.Figure | None, str]:
    """A figure's place on the page, the figure, and its LaTeX; nothing where its table lacks it."""
    import plotly.graph_objects as go

    from interp.report import page
    from interp.report.study import UNREADABLE, unreadable

    entry = page.Entry(figure.name, figure.title, figure.table, figure.section, {})
    try:
        frame, provenance = read_table(tables, figure.table)
    except (FileNotFoundError, ValueError) as problem:
        return replace(entry, problem=str(problem)), None, ""
    frame.attrs = provenance
    try:
        plot, caption = figure.draw(frame, provenance), figure.caption(frame)
        latex = _latex(figure, frame, plot, caption)
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


def _latex(figure: Figure, frame: pd.DataFrame, plot: go.Figure, caption: Caption) -> str:
    """A figure's numbers as a table for a paper; nothing where it has none."""
    import pandas as pd
    import plotly.graph_objects as go

    from interp.plots.latex import booktabs

    if figure.latex:
        return figure.latex(frame)
    numbers, drawn = caption.numbers, plot.data[0]
    if isinstance(drawn, go.Table):
        numbers = pd.DataFrame(dict(zip(drawn.header["values"], drawn.cells["values"], strict=True)))
    title = f"{figure.title}{'' if figure.title.endswith('?') else ':'} numbers."
    return booktabs(numbers.fillna("–"), title, f"tab:{figure.name}") if len(numbers) else ""


@dataclass
class Config:
    """What is drawn, and where to."""

    tables: Path
    """Folder of the tables (CSV and JSON)."""
    out: Annotated[Path, Folder()]
    """Folder to write the figures and index.html to."""
    formats: tuple[Format, ...] = FORMATS
    """Of each figure's files: an interactive page, a drawing, a drawing to print."""


def run(config: Config) -> None:
    """Draw the figures, and say where they are; raises what `draw` raises."""
    written = draw(config.tables, config.out, config.formats)
    print(f"{len(written)} files written, start at {written[-1]}")


INSTRUMENT = Instrument("figures", Config, run)
