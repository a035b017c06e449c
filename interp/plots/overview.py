"""A paper's first figure: both actions over training, what the trace adds, and what moves the action.

>>> interp.figures.overview("runs/quick", venue="icml", columns=2)
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, last_side, numbers, only, size, together
from interp.plots.registry import figure
from interp.plots.theme import HELD, draw_trace, facets, fit_values, note_n, sizes, step_axis, zero_line
from interp.results.names import GREY, STYLE
from interp.results.queries import need, pick, splits_of, steps_of

_ACTIONS = ("acc_cot", "acc_prompt")
_EFFECTS = ("via_cot", "direct")
#: What the last gap's interval says.
_WIDER = {1: "helps", -1: "harms", 0: "neither clearly helps nor harms"}


def _caption(frame: pd.DataFrame) -> Caption:
    last = last_side(frame, _WIDER, metric="gap")
    message = together(
        change("CoT accuracy", frame, metric="acc_cot"),
        change("Prompt accuracy", frame, metric="acc_prompt"),
        f"At the last checkpoint the trace {last}." if last else "",
    )
    drawn = "Both actions, their difference, and what moves the action."
    shown = only(frame, metric=(*_ACTIONS, "gap"))
    return Caption(message, drawn, size(shown), numbers(shown))


@figure(
    "Where the gain of training lands",
    table="behaviour",
    section="answer",
    caption=_caption,
    beside=("reliance",),
)
def overview(frame: pd.DataFrame, reliance: pd.DataFrame | None = None) -> go.Figure:
    """Accuracy of both actions, their gap, and the effects on the action, over checkpoints.

    Args:
        frame: table `behaviour`.
        reliance: table `reliance`, whose panel is left out without it.
    """
    need(frame, metric="gap")
    parts = [
        ("a", "Both actions", "accuracy", frame, _ACTIONS),
        ("b", "What the trace adds", "CoT − prompt", frame, ("gap",)),
    ]
    if reliance is not None:
        parts.append(("c", "What moves the action", "effect (nats)", reliance, _EFFECTS))
    steps = sorted({step for *_, table, _ in parts for step in steps_of(table)})
    fig = facets(1, 220, 0, [title for _, title, *_ in parts], spacing=0.1, shared=False)
    notes: dict[str, str] = {}
    for col, (letter, _, axis, table, metrics) in enumerate(parts, start=1):
        for metric in metrics:
            _draw(fig, table, metric, steps, col)
        step_axis(fig, steps, 1, col)
        fig.update_yaxes(title=axis, row=1, col=col)
        shown = only(table, metric=metrics)
        fit_values(fig, shown.assign(metric="any"), ["any"], row=1, col=col)
        text = sizes(shown, *(("pairs", "clusters") if table is reliance else ("decisions",)))
        notes[text] = notes.get(text, "") + letter
    zero_line(fig, row=1)
    _explain(fig, reliance is not None, len(splits_of(frame)) > 1)
    return note_n(fig, "; ".join(f"{HELD.join(letters)}: {text}" for text, letters in notes.items()))


def _draw(fig: go.Figure, table: pd.DataFrame, metric: str, steps: list[int], col: int) -> None:
    """A metric's lines: in-domain filled, out-of-domain thin with open markers."""
    name, colour, dash, symbol = STYLE[metric]
    for number, split in enumerate(splits_of(table)):
        rows = pick(table, metric=metric, split=split).sort_values("step")
        look = (f"{name}, out-of-domain" if number else name, colour, dash, symbol + "-open" * bool(number))
        shift = 0.08 * number if len(steps) == 1 else 0.0
        x = list(np.array([steps.index(step) for step in rows["step"]]) + shift)
        draw_trace(fig, rows, x, look, 1, col, "legend", show=False, thin=number > 0)


def _explain(fig: go.Figure, effects: bool, splits: bool) -> None:
    """The legend: a colour is one of both ways to an action, in every panel."""
    ways = (("acc_cot", ", effect via CoT"), ("acc_prompt", ", direct effect"), ("gap", ""))
    entries = [(STYLE[metric][0] + more * effects, *STYLE[metric][1:]) for metric, more in ways]
    entries += [("out-of-domain", GREY, "solid", "circle-open")] if splits else []
    for name, colour, dash, symbol in entries:
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            hoverinfo="skip",
            line=dict(color=colour, dash=dash, width=2),
            marker=dict(symbol=symbol, size=7, color=colour),
            row=1,
            col=1,
        )
