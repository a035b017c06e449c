"""Draw every figure whose table exists, and the report around them; reads tables only, never activations.

    python -m analyses.figures --tables runs/quick/tables --out figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import plotly.graph_objects as go

from analyses.provenance import mixed
from interp.plots import captions, captions_calibration, captions_environments, captions_masking, captions_patching, captions_probes, captions_traces, basic as plots, calibration as plots_calibration, environments as plots_environments, masking as plots_masking, masking_power as plots_masking_power, patching as plots_patching, probes as plots_probes, traces as plots_traces, export as report, latex as tex
from interp.report import page as report_page, words as report_words  # fmt: skip
from interp.report.words import read
from interp.results.tables import read_table, write_text

#: Figures in reading order: name, heading, table, plot, caption.
FIGURES = (
    ("calibration", "Readings of agents whose answer is known", "calibration", plots_calibration.calibration,
     captions_calibration.calibration),
    ("behaviour", "Accuracy with and without the trace", "behaviour", plots.behaviour, captions.behaviour),
    ("parse", "Do both modes produce an action at all?", "behaviour", plots.parse, captions.parse),
    ("revision", "What the trace changes", "behaviour", plots.revision, captions.revision),
    ("online", "Success in the environment", "online", plots.online, captions.online),
    ("online_official", "Success in ALFWorld's own games", "online_official", plots.online, captions.online_official),
    ("probes", "What the prompt boundary already predicts", "probes", plots_probes.probes, captions_probes.probes),
    ("transfer", "Do probes carry over between checkpoints?", "transfer", plots_probes.transfer, captions_probes.transfer),
    ("mdl", "Bits to send the action", "mdl", plots_probes.mdl, captions_probes.mdl),
    ("patching", "Where the prompt acts: activation patching", "patching", plots_patching.patching, captions_patching.patching),
    ("patching_spans", "Which part of the prompt acts, and at which layer", "patching", plots_patching.spans, captions_patching.spans),
    ("patching_screen", "Attribution patching against true patching", "patching", plots_patching.screen, captions_patching.screen),
    ("reliance", "Prompt reliance", "reliance", plots.reliance, captions.reliance),
    ("conflict", "Conflicting traces", "conflict", plots_traces.conflict, captions_traces.conflict),
    ("conflict_shift", "How far another trace moves the action", "conflict", plots_traces.conflict_shift, captions_traces.conflict_shift),
    ("removal", "A trace removed against a wrong one", "conflict", plots_traces.removal, captions_traces.removal),
    ("early", "Early answering", "early", plots_traces.early, captions_traces.early),
    ("shares", "What the action attends to and depends on", "shares", plots_traces.shares, captions_traces.shares),
    ("steering", "Steering along the probe's direction", "steering", plots_traces.steering, captions_traces.steering),
    ("splits", "What is in domain, and what is out of it", "splits", plots_environments.splits, captions_environments.splits),
    ("environments_in_domain", "Several environments, in-domain", "environments", plots_environments.environments, captions_environments.environments),
    ("environments_out_of_domain", "Several environments, out-of-domain", "environments", plots_environments.out_of_domain,
     captions_environments.out_of_domain),
    ("masking_success", "Does leaving actions unsupervised help?", "masking", plots_masking.success, captions_masking.success),
    ("masking_table", "The arms in numbers", "masking", plots_masking.table, captions_masking.table),
    ("masking_dose", "More masking, more of what?", "masking", plots_masking.dose, captions_masking.dose),
    ("masking_selection", "Which share to mask", "masking_selection", plots_masking.selection, captions_masking.selection),
    ("masking_gap", "The gap by arm", "masking", plots_masking.gap, captions_masking.gap),
    ("masking_reliance", "Prompt reliance by arm", "masking", plots_masking.reliance, captions_masking.reliance),
    ("masking_mechanism", "Where the gain landed", "masking", plots_masking.mechanism, captions_masking.mechanism),
    ("masking_power", "Would the study find an effect?", "masking_power", plots_masking_power.power, captions_masking.power),
)
#: Figures that are tables, and what writes them in LaTeX, as NAME.tex.
LATEX = {"masking_table": tex.masking_table}


#: Drawn where it was asked for, and not missed elsewhere.
OPTIONAL = (
    "calibration", "online_official", "transfer", "mdl", "patching_spans", "patching_screen", "conflict_shift", "removal", "early", "shares",
    "steering", "splits", "environments_in_domain", "environments_out_of_domain",
    "masking_success", "masking_table", "masking_dose", "masking_selection", "masking_gap", "masking_reliance", "masking_mechanism", "masking_power",
)  # fmt: skip


def draw(tables: Path, out: Path) -> list[Path]:
    """Draw every figure whose table is in `tables` into `out`, as HTML, SVG and PDF, with `index.html`; tables of LATEX also as that.

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
    names = sorted({figure[2] for figure in FIGURES})
    if not any((tables / f"{name}.csv").exists() for name in names):
        raise FileNotFoundError(f"No table to draw in {tables}: expected {', '.join(f'{name}.csv' for name in names)}.")
    figures, entries = {}, []
    study = any((tables / f"{table}.csv").exists() for name, _, table, *_ in FIGURES if name not in OPTIONAL)  # else nothing of a study is missed
    for name, title, table, plot, caption in FIGURES:
        instead = name == "online" and (tables / "online_official.csv").exists()  # ALFWorld's own games were played
        if (name in OPTIONAL or instead or not study) and not (tables / f"{table}.csv").exists():
            continue
        try:
            frame, provenance = read_table(tables, table)
        except (FileNotFoundError, ValueError) as problem:
            entries.append(report_page.Entry(name, title, table, f"Not drawn. {problem}", False, {}))
            continue
        frame.attrs = provenance
        try:
            figures[name] = plot(frame, provenance)
            entries.append(report_page.Entry(name, title, table, caption(frame), True, provenance, isinstance(figures[name].data[0], go.Table)))
        except report_words.UNREADABLE as problem:
            figures.pop(name, None)
            if isinstance(problem, ValueError) and name in OPTIONAL and name != table:
                continue  # the table was made without what this figure of several shows
            entries.append(report_page.Entry(name, title, table, f"Not drawn. {_reason(table, problem)}", False, {}))
    written = report.save_html(figures, out)
    for name, _, table, *_ in FIGURES:
        if name in LATEX and name in figures:
            written.append(write_text(out / f"{name}.tex", LATEX[name](read_table(tables, table)[0])))
    static = report.save_static(figures, out)
    made = read(tables, out, names)
    notes = mixed({name: frame.attrs for name, frame in made.tables.items()})
    for note in notes:
        print(note, file=sys.stderr)
    written = [*written, *static, report_page.save_index(entries, made, tables, out, bool(static), notes)]
    if made.damaged:
        raise ValueError(f"{written[-1]} was drawn without {len(made.damaged)} of its tables. {made.damaged[0]}")
    return written


def _reason(table: str, problem: Exception) -> str:
    if isinstance(problem, ValueError):
        return str(problem)
    return f"The table {table}.csv holds something else than this figure shows ({report_words.unreadable(problem)})."


class Parser(argparse.ArgumentParser):
    """Raises ValueError for a command line that it cannot read."""

    def error(self, message: str):
        raise ValueError(f"{message}: see {self.prog} --help.")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder (the current folder is `.`)")
    return Path(text)


def main(argv: list[str] | None = None) -> int:
    """Command line: draw the figures and say where they are; 1 where there is nothing to draw, or a table is damaged."""
    parser = Parser(prog="python -m analyses.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=_path, required=True, help="folder of the tables (CSV and JSON)")
    parser.add_argument("--out", type=_path, required=True, help="folder to write the figures and index.html to")
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
