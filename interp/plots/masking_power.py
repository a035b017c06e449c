"""The figure of what the masking study's analysis finds in simulated studies: planted effects, and effects that are not there.

>>> frame, provenance = read_table("figures/tables", "masking_power")
>>> power(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.arm_panels import grid, marker, under
from interp.results.arm_rows import number
from interp.plots.theme import BOTTOM, whisker
from interp.results.names import BLACK, GREEN, GREY, ORANGE
from interp.results.queries import need, pick
from interp.results.tables import ESTIMATE_COLUMNS


def power(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Shares of simulated studies in which a planted effect is found, above those in which something is found that is not there.

    Args:
        frame: table `masking_power` (world, effect, seeds, games, training_sd, contrast, what, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    frame = frame.assign(world=frame["world"].fillna("null"))  # which is how the word is read from a CSV
    need(frame, "masking_power", world="action", contrast="difference", what="above")
    sizes = sorted(set(zip(frame["training_sd"], frame["games"])))
    effects = sorted(frame.loc[frame["world"] == "action", "effect"].unique(), reverse=True)
    dashes = dict(zip(effects, ("solid", "dash", "dot", "dashdot")))
    kinds = (("difference", "above", "k = .3 > k = 0", GREEN, "circle"), ("verdict", "supported", "supported", BLACK, "square"))
    found = [(f"{name}, effect {number(effect)}", colour, dashes[effect], symbol,
              dict(world="action", effect=effect, contrast=contrast, what=what))
             for contrast, what, name, colour, symbol in kinds for effect in effects]
    any_mask = dict(world="any_mask", effect=effects[0])
    false = [("null: k = .3 > k = 0", GREEN, "solid", "circle", dict(world="null", contrast="difference", what="above")),
             ("any mask: k = .3 > random", ORANGE, "solid", "circle-open", dict(any_mask, contrast="control", what="above")),
             ("any mask: supported", BLACK, "solid", "square", dict(any_mask, contrast="verdict", what="supported")),
             ("null: over games alone", GREY, "dot", "x", dict(world="null", contrast="games_only", what="above"))]
    fig = grid("masking_power", sizes, [("power", 210), ("false positives", 170)], provenance, gap=46, bottom=BOTTOM,
               titles=[f"{games} games, seed SD {number(sd)}" for sd, games in sizes])
    height = 210 + 170 + 46
    fig.update_layout(legend2=dict(y=(170 + 8) / height, x=0, orientation="h", font_size=14, yanchor="bottom"))
    for row, lines in enumerate((found, false), start=1):
        for order, (name, colour, dash, symbol, where) in enumerate(lines):
            for col, (sd, games) in enumerate(sizes, start=1):
                rows = pick(frame, training_sd=sd, games=games, **where).sort_values("seeds")
                fig.add_scatter(
                    x=rows["seeds"] + 0.1 * (order - 1.5), y=rows["value"], mode="lines+markers", error_y=whisker(rows, colour), name=name,
                    legendgroup=name, legend="legend" if row == 1 else "legend2", showlegend=col == 1,
                    line=dict(color=colour, dash=dash, width=2),
                    marker=marker(symbol, colour, 8),
                    customdata=rows[["seeds", *ESTIMATE_COLUMNS]].to_numpy(dtype=float), hovertemplate=_POWER_HOVER, row=row, col=col,
                )  # fmt: skip
    seeds = sorted(frame["seeds"].unique())
    fig.update_xaxes(tickvals=seeds, range=[seeds[0] - 0.4, seeds[-1] + 0.4])
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    highest = max(np.max(np.add(trace.y, trace.error_y.array)) for trace in fig.data if trace.legend == "legend2" and len(trace.y))
    fig.update_yaxes(range=[-0.05 * highest, 1.1 * highest], row=2)
    fig.add_hline(y=0.025, row=2, col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    return under(fig, "seeds of each arm", 30)


_POWER_HOVER = (
    "%{customdata[0]} seeds<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]<br>of %{customdata[4]} simulated studies"
)
