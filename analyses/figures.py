"""Draw every figure whose table exists, and a page of them all; reads tables only, never activations.

    python -m analyses.figures --tables runs/quick/tables --out figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from interp import captions, captions_probes, plots, plots_probes, report
from interp.tables import read_table

#: Figures in reading order: name, heading, table, plot, caption.
FIGURES = (
    ("behaviour", "Accuracy with and without the trace", "behaviour", plots.behaviour, captions.behaviour),
    ("parse", "Do both modes produce an action at all?", "behaviour", plots.parse, captions.parse),
    ("revision", "What the trace changes", "behaviour", plots.revision, captions.revision),
    ("online", "Success in the environment", "online", plots.online, captions.online),
    ("online_official", "Success in ALFWorld's own games", "online_official", plots.online, captions.online_official),
    ("probes", "What the prompt boundary already predicts", "probes", plots_probes.probes, captions_probes.probes),
    ("transfer", "Do probes carry over between checkpoints?", "transfer", plots_probes.transfer, captions_probes.transfer),
    ("mdl", "Bits to send the action", "mdl", plots_probes.mdl, captions_probes.mdl),
    ("patching", "Where the prompt acts: activation patching", "patching", plots.patching, captions.patching),
    ("reliance", "Prompt reliance", "reliance", plots.reliance, captions.reliance),
    ("conflict", "Conflicting traces", "conflict", plots.conflict, captions.conflict),
    ("early", "Early answering", "early", plots.early, captions.early),
    ("shares", "What the action attends to and depends on", "shares", plots.shares, captions.shares),
    ("steering", "Steering along the probe's direction", "steering", plots.steering, captions.steering),
)


#: Drawn where it was asked for, and not missed elsewhere.
OPTIONAL = ("online_official", "transfer", "mdl", "early", "shares", "steering")


def draw(tables: Path, out: Path) -> list[Path]:
    """Draw every figure whose table is in `tables` into `out`, as HTML, SVG and PDF, with `index.html`.

    Args:
        tables: folder of `<name>.csv` and `<name>.json`.
        out: folder to write to, made where it is missing.

    Returns:
        Every file written, `index.html` last.

    Raises:
        FileNotFoundError: none of the tables is there.
    """
    tables, out = Path(tables), Path(out)
    names = sorted({figure[2] for figure in FIGURES})
    if not any((tables / f"{name}.csv").exists() for name in names):
        raise FileNotFoundError(f"No table to draw in {tables}: expected {', '.join(f'{name}.csv' for name in names)}.")
    figures, entries = {}, []
    for name, title, table, plot, caption in FIGURES:
        instead = name == "online" and (tables / "online_official.csv").exists()  # ALFWorld's own games were played
        if (name in OPTIONAL or instead) and not (tables / f"{table}.csv").exists():
            continue
        try:
            frame, provenance = read_table(tables, table)
            figures[name] = plot(frame, provenance)
            entries.append(report.Entry(name, title, table, caption(frame), True, provenance))
        except (FileNotFoundError, ValueError) as problem:
            figures.pop(name, None)
            entries.append(report.Entry(name, title, table, f"Not drawn. {problem}", False, {}))
    written = report.save_html(figures, out)
    static = report.save_static(figures, out)
    return [*written, *static, report.save_index(entries, tables, out, static=bool(static))]


def main(argv: list[str] | None = None) -> int:
    """Command line: draw the figures and say where they are; 1 where there is nothing to draw."""
    parser = argparse.ArgumentParser(prog="python -m analyses.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables (CSV and JSON)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the figures and index.html to")
    arguments = parser.parse_args(argv)
    try:
        written = draw(arguments.tables, arguments.out)
    except FileNotFoundError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{len(written)} files written, start at {written[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
