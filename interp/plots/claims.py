"""The figure of the four claims: what changed since the base at every checkpoint, and the verdicts on it.

>>> frame, provenance = read_table("runs/quick/tables", "claims")
>>> claims(frame, provenance).show()

Above, how both actions and the gap changed by the first readout; below, a mark for the verdict on each line
at each checkpoint, whatever it is read off.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from interp.plots import latex
from interp.plots.caption import Caption, count, value
from interp.plots.registry import figure
from interp.plots.theme import (
    HELD,
    HOVER,
    draw_trace,
    fit_values,
    note_n,
    panels,
    point_numbers,
    sizes,
    zero_line,
)
from interp.results.claims import READOUTS, Line, lines, of_line, ranges
from interp.results.estimates import span
from interp.results.names import BLACK, GREEN, GREY, PURPLE, STYLE
from interp.results.queries import pick, splits_of, steps_of
from interp.results.wording import WHERE, listed, sentence
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED

#: Verdict: marker and colour.
_MARKS = {
    SUPPORTED: ("circle", GREEN),
    CONTRADICTED: ("x", BLACK),
    OPEN: ("circle-open", GREY),
}
_BOTH = {"gain_cot": "acc_cot", "gain_prompt": "acc_prompt", "gap": "gap"}
#: Units of a line of verdicts, and of its name beside the panel.
_LINE, _NAME = 20, 156


def _judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of claims (a) to (c), which are read at the study's checkpoints."""
    return frame[frame["claim"].isin(["a", "b", "c"])]


def _said(frame: pd.DataFrame, line: Line, verdict: str) -> str:
    """At which checkpoints a verdict is said, by split."""
    parts: dict[str, list[str]] = {}
    for split in splits_of(frame):
        rows = of_line(frame, line, split)
        steps = rows["step"].tolist()
        there = ranges(rows.loc[rows["verdict"] == verdict, "step"].tolist(), steps)
        at = {"all": "at every checkpoint", "": "nowhere"}.get(there, f"at steps {there}")
        if steps:
            parts.setdefault(at, []).append(WHERE[split])
    return listed(f"{at} {listed(splits)}" for at, splits in parts.items())


def _caption(frame: pd.DataFrame) -> Caption:
    rows = _judged(frame)
    shown = lines(rows)
    message = []
    for claim, words in (("a", "prompt action improves"), ("b", "gap does not widen")):
        first = next((line for line in shown if line.claim == claim), None)
        if first:
            message.append(f"({claim}) the {words} is supported {_said(rows, first, SUPPORTED)}")
    drawn = "Changes since the base on the same decisions; dotted: the margin. Marks: verdicts."
    by = READOUTS.get(shown[0].readout, "") if shown else ""
    read = rows[rows["readout"].isin(READOUTS) & (rows["subset"] == "all") & (rows["n"] > 0)]
    size = f"n = {span(read['n'])} decisions or games; 95 % cluster-bootstrap intervals."
    return Caption(sentence(f"By {by}, {'; '.join(message)}") if message else "", drawn, size, _numbers(rows))


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Every line at every checkpoint."""
    cells = []
    for line in lines(frame):
        for split in splits_of(frame):
            for _, row in of_line(frame, line, split).iterrows():
                known = pd.notna(row["value"])
                cells.append(
                    {
                        "claim": f"({line.claim})",
                        "reading": line.title,
                        "split": WHERE[split],
                        "step": str(int(row["step"])),
                        "change": value(row, signed=True) if known else "–",
                        "verdict": row["verdict"],
                        "n": count(row),
                        "clusters": count(row, "n_groups"),
                    }
                )
    return pd.DataFrame(cells)


@figure(
    "The four claims at every checkpoint",
    table="claims",
    section="claims",
    caption=_caption,
    expected=True,
    latex=latex.claims_table,
)
def claims(frame: pd.DataFrame) -> go.Figure:
    """Changes of both actions and of the gap by the first readout, above the verdict on every line."""
    rows = pick(_judged(frame), subset="all").dropna(subset="value")
    if rows.empty:
        raise ValueError("the table has no change of claims (a) to (c).")
    shown = [line for line in lines(rows) if line.statistic != "headroom_gap"]
    first = next((line.readout for line in shown if line.claim != "c"), "")
    drawn = [Line("b", statistic, first) for statistic in _BOTH] if first else []
    heights = {"change since the base": 200} if drawn else {}
    fig = panels(rows, heights | {"": _LINE * len(shown)}, fixed=("",)).update_layout(margin_l=_NAME)
    if drawn:
        _changes(fig, rows, drawn)
    _verdicts(fig, rows, shown, len(heights) + 1)
    every = pd.concat([of_line(rows, line, split) for line in shown for split in splits_of(rows)])
    read = every[every["readout"] == first] if first else every
    verdicts = sizes(every, "decisions, pairs or games", "")
    if not first:
        return note_n(fig, verdicts)
    above, below = (f"a{HELD}b", f"c{HELD}d") if len(splits_of(rows)) > 1 else ("a", "b")
    return note_n(fig, f"{above}: {sizes(read)} by {READOUTS[first]}; {below}: {verdicts}")


def _changes(fig: go.Figure, rows: pd.DataFrame, drawn: Sequence[Line]) -> None:
    """The lines of both actions and of the gap with their intervals, and the margin."""
    steps, there = steps_of(rows), []
    for col, split in enumerate(splits_of(rows), start=1):
        for line in drawn:
            read = of_line(rows, line, split)
            x = [steps.index(step) for step in read["step"]]
            draw_trace(fig, read, x, STYLE[_BOTH[line.statistic]], 1, col, "legend", col == 1)
            there.append(read.assign(metric="change"))
    margin = float(max(rows["margin"]))
    for side in (-margin, margin) if margin else ():
        fig.add_hline(y=side, line=dict(color=PURPLE, width=1, dash="dot"), row=1)
    fit_values(fig, pd.concat(there), ["change"], row=1, at_least=(-margin, margin))
    zero_line(fig, 1)


def _verdicts(fig: go.Figure, rows: pd.DataFrame, shown: Sequence[Line], row: int) -> None:
    """A mark for the verdict on each line at each checkpoint."""
    steps, names = steps_of(rows), [_name(line) for line in shown]
    legend = "legend" if row == 1 else f"legend{row}"
    for col, split in enumerate(splits_of(rows), start=1):
        parts = [
            of_line(rows, line, split).assign(line=number, name=name)
            for number, (line, name) in enumerate(zip(shown, names, strict=True))
        ]
        judged = pd.concat(parts)
        for verdict, (symbol, colour) in _MARKS.items():
            these = judged[judged["verdict"] == verdict]
            fig.add_scatter(
                x=[steps.index(step) for step in these["step"]],
                y=these["line"],
                mode="markers",
                marker=dict(symbol=symbol, size=9, color=colour, line=dict(color=colour, width=1.5)),
                name=verdict,
                legend=legend,
                legendgroup=f"{legend} {verdict}",
                showlegend=col == 1,
                hovertext=these["name"] + ": " + verdict,
                customdata=point_numbers(these),
                hovertemplate="%{hovertext}<br>" + HOVER,
                row=row,
                col=col,
            )
    ticks = dict(tickmode="array", tickvals=list(range(len(shown))), ticktext=names)
    fig.update_yaxes(range=[len(shown) - 0.5, -0.5], row=row, **ticks)


def _name(line: Line) -> str:
    """What a line of verdicts is called beside the panel."""
    name = READOUTS[line.readout] if line.claim != "c" else " ".join(line.short).replace("- ", "")
    return f"({line.claim}) {name}"
