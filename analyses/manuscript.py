"""A paper's skeleton of a run: figures, tables, numbers and methods, to be compiled with pdflatex.

python -m analyses manuscript --run runs/full --out paper --venue neurips
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from interp.results.tables import write_text
from interp.results.wording import listed
from interp.system.limits import Existing, Folder

from . import figures
from .figures import Font, Venue
from .registry import Instrument

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.plots.look import Look
    from interp.report.manuscript import Drawn


def write(run: Path, out: Path, look: Look) -> list[Path]:
    """Write `main.tex` and what it reads: figures as PDF, tables, `numbers.tex` and `methods.tex`.

    Args:
        run: folder of the run, with its tables in `tables`.
        out: folder to write to, made where it is missing.
        look: venue and font.

    Returns:
        Every file written, `main.tex` last.

    Raises:
        FileNotFoundError: the run has no table of a figure.
    """
    import pandas as pd

    from interp.plots import export
    from interp.plots.latex import booktabs
    from interp.plots.registry import figures as registered
    from interp.report.manuscript import main_tex, methods_tex
    from interp.report.methods import methods
    from interp.report.numbers import numbers_tex
    from interp.report.study import TOLD, read

    tables = run / "tables"
    drawn, plots, missing = _drawn(tables, out, look)
    written = [out / "tables" / f"{each.name}.tex" for each in drawn if each.numbers]
    written += export.save_static(plots, out / "figures", ("pdf",)) if plots else []
    study = read(tables, out, sorted({*TOLD, *(figure.table for figure in registered())}))
    made = methods(study)
    for table in (made.checkpoints, made.sizes, made.options):
        if table.rows:
            frame = pd.DataFrame(table.rows, columns=table.heads)
            text = booktabs(frame, table.caption, f"tab:{table.name}", replace(look, columns=2))
            written.append(write_text(out / "tables" / f"{table.name}.tex", text))
    written += figures.own_tables(study, out / "tables", look)
    written.append(write_text(out / "numbers.tex", numbers_tex(study)))
    written.append(write_text(out / "methods.tex", methods_tex(made)))
    if missing:
        print(f"The manuscript is without {listed(missing)}.", file=sys.stderr)
    return [*written, write_text(out / "main.tex", main_tex(study, drawn, look, str(run)))]


def _drawn(tables: Path, out: Path, look: Look) -> tuple[list[Drawn], dict[str, go.Figure], list[str]]:
    """The figures of a run with their captions, as plots, and what is missing, each in a few words."""
    from interp.plots.registry import figures as registered
    from interp.report.manuscript import MAIN, WIDE, Drawn

    drawn, plots, missing = [], {}, []
    there = {figure.name for figure in figures.wanted(tables)}
    for figure in registered():
        if figure.name not in there:
            unmade = figure.expected and not (tables / f"{figure.instead or figure.table}.csv").exists()
            missing += [f"{figure.name} (no {figure.table}.csv)"] if unmade else []
            continue
        one = figure.name in MAIN and figure.name not in WIDE
        entry, plot, latex = figures.entry_of(figure, tables, replace(look, columns=1 if one else 2))
        if entry is None:
            continue
        if plot is None or entry.caption is None:
            reason = f"no {figure.table}.csv" if "No table" in entry.problem else entry.problem.rstrip(".")
            missing.append(f"{figure.name} ({reason})")
            continue
        if latex:
            write_text(out / "tables" / f"{figure.name}.tex", latex)
        if not entry.tabular:
            plots[figure.name] = plot
        drawn.append(Drawn(figure.name, figure.section, entry.caption.text, bool(latex), entry.tabular))
    return drawn, plots, missing


@dataclass
class Config:
    """The run, and where its manuscript is written to."""

    run: Annotated[Path, Existing()]
    """Folder of the run, whose tables are in its folder `tables`."""
    out: Annotated[Path, Folder()] = Path("paper")
    """Folder to write to."""
    venue: Venue = "plain"
    """Whose width and columns the pages have; plain is text 5.5 inches wide."""
    font: Font = "serif"
    """Of the figures' text: tex is Latin Modern."""


def run(config: Config) -> None:
    """Write the manuscript, and say how it is compiled; raises what `write` raises."""
    from interp.plots.look import Look

    written = write(config.run, config.out, Look(config.venue, font=config.font))
    print(f"{len(written)} files written; compile them: cd {config.out} && pdflatex main && pdflatex main")


INSTRUMENT = Instrument("manuscript", Config, run)
