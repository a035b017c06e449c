"""Differences between two runs at their last checkpoint.

>>> frame, provenance = read_table("runs/compare/tables", "compare")
>>> compare(frame, provenance).show()
"""

from __future__ import annotations

import textwrap

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, listing, size
from interp.plots.look import BOTTOM, current
from interp.plots.registry import figure
from interp.plots.theme import HOVER, point_numbers, whisker
from interp.results.names import BLUE, ORANGE, SPLITS, STYLE

_COLOURS = {"in_domain": BLUE, "out_of_domain": ORANGE}


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["step"] == frame["step"].max()]


def _caption(frame: pd.DataFrame) -> Caption:
    last = _last(frame)
    clear = int(((last["low"] > 0) | (last["high"] < 0)).sum())
    message = f"{clear} of {len(last)} readings differ between the two runs."
    drawn = (
        "Second run minus first at the last checkpoint that both have. Filled: paired by decision; open: "
        "from both estimates, as if they were independent."
    )
    return Caption(message, drawn, size(last), listing(last.drop(columns=["step", "step_a", "a", "b"])))


@figure("Two runs compared", table="compare", section="compared", caption=_caption)
def compare(frame: pd.DataFrame) -> go.Figure:
    """Each reading's difference at the last checkpoint with its interval, by split."""
    last = _last(frame)
    metrics = list(dict.fromkeys(last["metric"]))
    fig = go.Figure()
    for number, (split, name) in enumerate(SPLITS.items()):
        rows = last[last["split"] == split]
        if rows.empty:
            continue
        shift = 0.12 * (1 - 2 * number)
        symbols = ["circle" if paired else "circle-open" for paired in rows["paired"].astype(str) == "True"]
        fig.add_scatter(
            x=rows["value"],
            y=[metrics.index(metric) + shift for metric in rows["metric"]],
            mode="markers",
            name=name,
            marker=dict(color=_COLOURS[split], symbol=symbols, size=7),
            error_x=whisker(rows, _COLOURS[split]),
            customdata=point_numbers(rows),
            hovertemplate=HOVER,
        )
    wide = 170 if current().narrow else 260
    titles = [STYLE.get(metric, (metric.replace("_", " "),))[0] for metric in metrics]
    texts = ["<br>".join(textwrap.wrap(title, wide // 8)) for title in titles]
    fig.update_yaxes(tickvals=list(range(len(metrics))), ticktext=texts, autorange="reversed")
    fig.update_xaxes(title="second run − first", zeroline=True, zerolinecolor="#555555")
    heights = sum(20 + 16 * text.count("<br>") for text in texts) + 30
    return fig.update_layout(
        height=36 + heights + BOTTOM, margin=dict(l=wide, t=36), legend=dict(y=1 + 6 / heights)
    )
