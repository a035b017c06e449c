"""Figure of what each action rests on, over checkpoints, and of what traces give away.

>>> frame, provenance = read_table("runs/quick/tables", "diagnosis")
>>> diagnosis(frame, provenance).show()
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, numbers, only, size
from interp.plots.registry import figure
from interp.plots.series import by_split, draw_series
from interp.plots.theme import note_n, panels, sizes
from interp.results.names import BLUE, DIAGNOSES, GREY, ORANGE, SKY, VERMILION
from interp.results.queries import need, pick, steps_of

#: Whose traces, and what is counted: name in legends, colour, dash, marker.
_RESTS = {
    "own post_hoc": (DIAGNOSES["post_hoc"], BLUE, "solid", "square"),
    "own overridable": (DIAGNOSES["overridable"], ORANGE, "solid", "triangle-up"),
    "own trace_decided": (DIAGNOSES["trace_decided"], VERMILION, "solid", "circle"),
    "own neither": (DIAGNOSES["neither"], GREY, "dash", "x"),
}
_LEAKS = {
    "own names_object": ("own: names the object", VERMILION, "solid", "circle"),
    "own spells_action": ("own: spells the action", BLUE, "solid", "square"),
    "expert names_object": ("expert: names the object", ORANGE, "dash", "triangle-up"),
    "expert spells_action": ("expert: spells the action", SKY, "dash", "diamond"),
}


#: Leaks that are never more than this share are told in the caption.
LITTLE = 0.05


def _leaking(frame: pd.DataFrame) -> pd.DataFrame:
    """The shares of traces that leak."""
    return frame[(frame["traces"] + " " + frame["metric"]).isin(_LEAKS)]


def _caption(frame: pd.DataFrame) -> Caption:
    own = pick(frame, traces="own")
    message = change("The share of post-hoc actions", own, metric="post_hoc")
    drawn = "What the CoT action rests on, where a conflicting trace was put in."
    most = _leaking(frame)["value"].max()
    if most < LITTLE:
        drawn += f" Traces that give the action away before its tag: at most {100 * most:.1f} %."
    elif most >= LITTLE:
        drawn += " Bottom: traces that give the action away."
    shares = only(own, metric=DIAGNOSES)
    return Caption(message, drawn, size(shares if len(shares) else frame), numbers(frame))


@figure(
    "What the action rests on, and what traces give away",
    table="diagnosis",
    section="depends",
    caption=_caption,
)
def diagnosis(frame: pd.DataFrame) -> go.Figure:
    """Shares of each diagnosis over checkpoints, above the shares of traces that leak, where some do."""
    need(frame, metric="spells_action")
    frame = frame.assign(series=frame["traces"] + " " + frame["metric"])
    rows = {"share of decisions": _RESTS, "share of traces": _LEAKS}
    rows = {title: looks for title, looks in rows.items() if frame["series"].isin(looks).any()}
    if len(rows) > 1 and _leaking(frame)["value"].max() < LITTLE:
        del rows["share of traces"]
    fig = panels(frame, dict.fromkeys(rows, 160))
    thin = [key for key in _LEAKS if key.startswith("expert")]
    for row, looks in enumerate(rows.values(), start=1):
        drawn = only(frame, series=looks)
        places: dict[str, Any] = dict(panels=by_split(frame), order=steps_of(frame), row=row)
        draw_series(fig, drawn, looks, by="series", thin=thin, **places)
    fig.update_yaxes(range=[-0.04, 1.05])
    return note_n(fig, sizes(only(frame, series=[key for looks in rows.values() for key in looks])))
