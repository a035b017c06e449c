"""The figure of the elicited prompt action: before the tuning, after it, and a tuned untrained twin.

>>> frame, provenance = read_table("runs/quick/tables", "elicited")
>>> elicited(frame, provenance).show()
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, last_side, numbers, only, size, together
from interp.plots.registry import figure
from interp.plots.theme import draw_metrics, fit_values, panels
from interp.results.claims import READOUTS
from interp.results.names import SPLITS
from interp.results.queries import pick

_METRICS = ("acc_elicited", "acc_prompt", "acc_twin")
_DIFFERENCES = ("elicited_minus_prompt", "elicited_minus_twin")
_SHOWN = ("choice_sum", "free")
#: What the last interval of the tuned checkpoint minus the tuned twin says.
_OVER = {
    1: "is above the untrained twin's",
    -1: "is below the untrained twin's",
    0: "is not told apart from the untrained twin's",
}


def _studied(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study's decisions, not of those that the tuning was stopped by."""
    return frame[frame["split"].isin(list(SPLITS))]


def _caption(frame: pd.DataFrame) -> Caption:
    rows = _studied(frame)
    first = next(readout for readout in _SHOWN if (rows["readout"] == readout).any())
    last = last_side(rows, _OVER, metric="elicited_minus_twin", readout=first)
    message = together(
        change(
            f"By {READOUTS[first]}, the elicited prompt action", rows, metric="acc_elicited", readout=first
        ),
        f"At the last checkpoint it {last}." if last else "",
    )
    drawn = "The prompt action before and after one small tuning, the same for every model."
    told = only(rows, metric=(*_METRICS, *_DIFFERENCES, "parse_prompt", "parse_elicited"))
    table = numbers(told.drop(columns="round"), dict(readout=READOUTS.__getitem__))
    return Caption(message, drawn, size(pick(rows, metric="acc_elicited")), table)


@figure("What the prompt action is after elicitation", table="elicited", section="better", caption=_caption)
def elicited(frame: pd.DataFrame) -> go.Figure:
    """Accuracy of the prompt action before and after the tuning, and of a tuned untrained twin."""
    rows = _studied(frame)
    readouts = [readout for readout in _SHOWN if (rows["readout"] == readout).any()]
    fig = panels(rows, {f"accuracy, {READOUTS[readout]}": 210 for readout in readouts})
    for row, readout in enumerate(readouts, start=1):
        there = pick(rows, readout=readout)
        draw_metrics(fig, there, _METRICS, row=row, thin=("acc_twin",), legend=row == 1)
        fit_values(fig, there, _METRICS, row=row)
    return fig
