"""Figure of what each action rests on, over checkpoints, and of what traces give away.

>>> frame, provenance = read_table("runs/quick/tables", "diagnosis")
>>> diagnosis(frame, provenance).show()
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, numbers, only, size
from interp.plots.registry import figure
from interp.plots.theme import draw_trace, fit_values, panels
from interp.results.names import BLUE, DIAGNOSES, GREY, ORANGE, SKY, VERMILION
from interp.results.queries import need, pick, splits_of, steps_of

#: How each share is drawn, by whose traces and what is counted.
_LOOKS = {
    ("own", "post_hoc"): (BLUE, "solid", "square"),
    ("own", "overridable"): (ORANGE, "solid", "triangle-up"),
    ("own", "trace_decided"): (VERMILION, "solid", "circle"),
    ("own", "neither"): (GREY, "dash", "x"),
    ("own", "names_object"): (VERMILION, "solid", "circle"),
    ("own", "spells_action"): (BLUE, "solid", "square"),
    ("expert", "names_object"): (ORANGE, "dash", "triangle-up"),
    ("expert", "spells_action"): (SKY, "dash", "diamond"),
}
_LEAKS = {"names_object": "names the object", "spells_action": "spells the action"}


def _caption(frame: pd.DataFrame) -> Caption:
    own = pick(frame, traces="own")
    message = change("The share of post-hoc actions", own, metric="post_hoc")
    drawn = (
        "Top: what the CoT action rests on, where a conflicting trace was put in. Bottom: traces that give "
        "the action away."
    )
    shares = only(own, metric=DIAGNOSES)
    return Caption(message, drawn, size(shares if len(shares) else frame), numbers(frame))


@figure(
    "What the action rests on, and what traces give away",
    table="diagnosis",
    section="depends",
    caption=_caption,
)
def diagnosis(frame: pd.DataFrame) -> go.Figure:
    """Shares of each diagnosis over checkpoints, above the shares of traces that leak."""
    need(frame, metric="spells_action")
    fig, steps = panels(frame, {"share of decisions": 230, "share of traces": 190}), steps_of(frame)
    for (traces, metric), look in _LOOKS.items():
        row = 1 if metric in DIAGNOSES else 2
        name = DIAGNOSES.get(metric) or f"{traces}: {_LEAKS[metric]}"
        for col, split in enumerate(splits_of(frame), start=1):
            rows = pick(frame, traces=traces, metric=metric, split=split).sort_values("step")
            x = [steps.index(step) for step in rows["step"]]
            legend = "legend" if row == 1 else "legend2"
            draw_trace(fig, rows, x, (name, *look), row, col, legend, col == 1, traces == "expert")
    fit_values(fig, frame, list(DIAGNOSES), row=1, at_least=(0.0, 1.0))
    fit_values(fig, frame, list(_LEAKS), row=2, at_least=(0.0, 1.0))
    return fig
