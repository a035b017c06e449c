"""Draw every figure whose table exists, and the report around them; reads tables only, never activations.

python -m analyses.figures --tables runs/quick/tables --out figures
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go

from analyses.provenance import mixed
from interp.plots import export
from interp.plots.registry import Figure, figures
from interp.report import page
from interp.report.study import UNREADABLE, read, unreadable
from interp.results.tables import read_table, write_text


def draw(tables: Path, out: Path) -> list[Path]:
    """Draw every registered figure whose table is in `tables` into `out`, and the page `index.html`.

    Figures are written as HTML, SVG and PDF; tables also as LaTeX.

    Args:
        tables: folder of `<name>.csv` and `<name>.json`.
        out: folder to write to, made where it is missing.

    Returns:
        Every file written, `index.html` last.

    Raises:
        FileNotFoundError: none of the tables is there.
        ValueError: a table is damaged, or was edited; the page is drawn without it first.
    """
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
    written = [*export.save_html(drawn, out), *written]
    static = export.save_static(drawn, out)
    made = read(tables, out, sorted({figure.table for figure in every}))
    notes = mixed({name: frame.attrs for name, frame in made.tables.items()})
    for note in notes:
        print(note, file=sys.stderr)
    written = [*written, *static, page.save_index(entries, made, tables, out, bool(static), notes)]
    if made.damaged:
        raise ValueError(
            f"{written[-1]} was drawn without {len(made.damaged)} of its tables. {made.damaged[0]}"
        )
    return written


def _entry(figure: Figure, tables: Path) -> tuple[page.Entry | None, go.Figure | None, str]:
    """A figure's place on the page, the figure, and its LaTeX; nothing where its table lacks it."""
    entry = page.Entry(figure.name, figure.title, figure.table, figure.section, {})
    try:
        frame, provenance = read_table(tables, figure.table)
    except (FileNotFoundError, ValueError) as problem:
        return replace(entry, problem=str(problem)), None, ""
    frame.attrs = provenance
    try:
        plot, caption = figure.draw(frame, provenance), figure.caption(frame)
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


class Parser(argparse.ArgumentParser):
    """Raises ValueError for a command line that it cannot read."""

    def error(self, message: str):
        raise ValueError(f"{message}: see {self.prog} --help.")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder (the current folder is `.`)")
    return Path(text)


def main(argv: list[str] | None = None) -> int:
    """Command line: draw the figures, say where they are; 1 where none is drawn or a table is damaged."""
    parser = Parser(prog="python -m analyses.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=_path, required=True, help="folder of the tables (CSV and JSON)")
    parser.add_argument(
        "--out", type=_path, required=True, help="folder to write the figures and index.html to"
    )
    arguments = parser.parse_args(argv)
    try:
        written = draw(arguments.tables, arguments.out)
    except (FileNotFoundError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(f"{len(written)} files written, start at {written[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
