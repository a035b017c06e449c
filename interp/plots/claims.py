"""The figure of the four claims: what changed since the base at every checkpoint, and the verdicts on it.

>>> frame, provenance = read_table("runs/quick/tables", "claims")
>>> claims(frame, provenance).show()

A row of panels for each readout of both actions, and one for what claim (c) rests on. Below the lines of a
panel stands, at each checkpoint, the word that its verdict is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots import latex
from interp.plots.caption import Caption, count, value
from interp.plots.registry import figure
from interp.plots.theme import corner, draw_trace, panels, zero_line
from interp.results.claims import READOUTS, Line, lines, of_line, ranges
from interp.results.estimates import span
from interp.results.names import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION
from interp.results.queries import pick, splits_of, steps_of
from interp.results.wording import WHERE, listed, sentence
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED

#: Pixels of a panel's lines, and of a verdict below them; of many checkpoints the words stand upright.
_LINES, _WORD, _UPRIGHT = 170, 34, 78
#: Most checkpoints whose words fit side by side.
_MOST = 9
#: Words as they are drawn, and how.
_WORDS = {
    SUPPORTED: ("sup-<br>ported", GREEN),
    CONTRADICTED: ("contra-<br>dicted", BLACK),
    OPEN: ("open", GREY),
}
_BOTH = ("gain_prompt", "gain_cot", "gap")
_ACTIONS = {"gain_prompt": "acc_prompt", "gain_cot": "acc_cot", "gap": "gap"}
_LOOKS = {
    "revision_own": (VERMILION, "solid", "circle"),
    "revision_conflict": (ORANGE, "dash", "diamond"),
    "prompt_reliance": (BLUE, "solid", "square"),
    "kappa": (PURPLE, "dash", "square"),
    "area_action": (SKY, "dot", "triangle-up"),
}
_SYMBOLS = ("diamond", "triangle-down", "x", "star")


def _judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of claims (a) to (c), which are read at the study's checkpoints."""
    return frame[frame["claim"].isin(["a", "b", "c"])]


def _said(frame: pd.DataFrame, line: Line, verdict: str) -> str:
    """At which checkpoints a verdict is said, by split."""
    parts = []
    for split in splits_of(frame):
        rows = of_line(frame, line, split)
        steps = rows["step"].tolist()
        there = ranges(rows.loc[rows["verdict"] == verdict, "step"].tolist(), steps)
        parts.append(f"{there or 'none'} {WHERE[split]}" if steps else "")
    return listed(parts)


def _caption(frame: pd.DataFrame) -> Caption:
    rows = _judged(frame)
    shown = lines(rows)
    message = []
    for claim, words in (("a", "prompt action improves"), ("b", "gap does not widen")):
        first = next((line for line in shown if line.claim == claim), None)
        if first:
            message.append(f"{words} at steps {_said(rows, first, SUPPORTED)}")
    drawn = "Changes since the base on the same decisions; dotted: the margin. Words: verdicts."
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
    """Changes of both actions and of the gap by readout, and of what claim (c) rests on, with verdicts."""
    rows = pick(_judged(frame), subset="all").dropna(subset="value")
    if rows.empty:
        raise ValueError("the table has no change of claims (a) to (c).")
    shown = lines(rows)
    readouts = [
        name for name in READOUTS if any(line.readout == name and line.claim != "c" for line in shown)
    ]
    others = [line for line in shown if line.claim == "c"]
    parts: list[tuple[str, list[Line], list[Line]]] = []
    for name in readouts:
        drawn = [Line("b", statistic, name) for statistic in _BOTH]
        judged = [line for line in shown if line.readout == name and line.statistic in _BOTH]
        parts.append((f"{READOUTS[name]}:<br>change", drawn, judged))
    if others:
        parts.append(("reliance on the<br>prompt: change", others, others))
    steps = steps_of(rows)
    word = _WORD if len(steps) <= _MOST else _UPRIGHT
    fig = panels(rows, {title: _LINES + word * len(judged) for title, _, judged in parts})
    for row, (_, drawn, judged) in enumerate(parts, start=1):
        _draw(fig, rows, steps, drawn, row)
        _words(fig, rows, steps, judged, _scale(fig, rows, drawn, judged, word, row), row)
    return fig.update_xaxes(range=[-_room(steps), len(steps) - 0.6])


def _room(steps: Sequence[int]) -> float:
    """How much of the axis stands before the first checkpoint, for the names of what is judged."""
    return max(1.1, 0.2 * (len(steps) + 0.6))


def _look(line: Line, drawn: Sequence[Line]) -> tuple[str, str, str, str]:
    """A line's name in the legend, its colour, dash and marker."""
    if line.statistic in _ACTIONS:
        return STYLE[_ACTIONS[line.statistic]]
    colour, dash, symbol = _LOOKS[line.statistic]
    kinds = [each.readout for each in drawn if each.statistic == line.statistic]
    if len(kinds) > 1:
        symbol = _SYMBOLS[kinds.index(line.readout) % len(_SYMBOLS)]
    return " ".join(line.short).replace("- ", ""), colour, dash, symbol


def _draw(fig: go.Figure, rows: pd.DataFrame, steps: list[int], drawn: Sequence[Line], row: int) -> None:
    """A panel's lines with their intervals, its margin and how much it rests on, in every split."""
    legend = "legend" if row == 1 else f"legend{row}"
    shown = row == 1 or drawn[0].claim == "c"  # the same lines in every panel above
    for col, split in enumerate(splits_of(rows), start=1):
        for line in drawn:
            of = of_line(rows, line, split)
            x = [steps.index(step) for step in of["step"]]
            draw_trace(fig, of, x, _look(line, drawn), row, col, legend, shown and col == 1)
        read = pd.concat([of_line(rows, line, split) for line in drawn])
        if len(read):
            corner(fig, f"n = {span(read['n'])}", row, col)
    if margin := max(rows["margin"]) if drawn[0].statistic in _BOTH else 0:
        for side in (-margin, margin):
            fig.add_hline(y=side, line=dict(color=PURPLE, width=1, dash="dot"), row=row)
    zero_line(fig, row)


def _scale(
    fig: go.Figure, rows: pd.DataFrame, drawn: Sequence[Line], judged: Sequence[Line], word: int, row: int
) -> tuple[float, float]:
    """Set a row's axis with room for words below its lines; the lines' lower end, and a word's height."""
    there = [of_line(rows, line, split) for line in drawn for split in splits_of(rows)]
    numbers = pd.concat(there)[["value", "low", "high"]].to_numpy(dtype=float)
    low, high = min(-0.1, float(np.nanmin(numbers))), max(0.1, float(np.nanmax(numbers)))
    low, high = low - 0.05 * (high - low), high + 0.12 * (high - low)
    height = (high - low) * word / _LINES
    every = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if (high - low) / step <= 7)
    ticks = np.arange(np.ceil(low / every), np.floor(high / every) + 1) * every
    texts = [f"{tick:+.2g}".replace("-", "−") if abs(tick) > 1e-9 else "0" for tick in ticks]
    fig.update_yaxes(range=[low - height * len(judged), high], tickvals=ticks, ticktext=texts, row=row)
    fig.add_hline(y=low, line=dict(color="#BBBBBB", width=1), row=row)
    return low, height


def _words(
    fig: go.Figure,
    rows: pd.DataFrame,
    steps: list[int],
    judged: Sequence[Line],
    scale: tuple[float, float],
    row: int,
) -> None:
    """The verdict on each line at each checkpoint, below the lines."""
    low, height = scale
    upright = len(steps) > _MOST
    for order, line in enumerate(judged):
        y = low - (order + 0.5) * height
        name = f"({line.claim})" if line.claim != "c" else "<br>".join(line.short)
        for col, split in enumerate(splits_of(rows), start=1):
            of = of_line(rows, line, split)
            place = dict(y=y, showarrow=False, row=row, col=col)
            left = dict(x=-_room(steps), xanchor="left", xshift=4, align="left")
            fig.add_annotation(text=name, font=dict(size=14, color="#222222"), **left, **place)
            for step, verdict in zip(of["step"], of["verdict"], strict=True):
                text, colour = _WORDS[verdict]
                text = verdict if upright else text
                fig.add_annotation(
                    x=steps.index(step),
                    text=text if verdict == OPEN else f"<b>{text}</b>",
                    textangle=-90 if upright else 0,
                    font=dict(size=14, color=colour),
                    **place,
                )
