"""The figure of the masking study's power: simulated effects that are found, and false finds.

>>> frame, provenance = read_table("figures/tables", "masking_power")
>>> power(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption
from interp.plots.condition_panels import grid, marker
from interp.plots.registry import figure
from interp.plots.theme import BOTTOM, under, whisker
from interp.results.condition_rows import number
from interp.results.names import BLACK, GREEN, GREY, ORANGE
from interp.results.queries import need, pick
from interp.results.tables import ESTIMATE_COLUMNS
from interp.results.wording import listed


def shares(rows: pd.DataFrame) -> str:
    """Shares of studies in %, lowest to highest."""
    low, high = (
        f"{100 * share:.{0 if 0.095 <= share < 0.985 or share == 1 else 1}f}"
        for share in (rows["value"].min(), rows["value"].max())
    )
    return f"{low} to {high} %" if low != high else f"{low} %"


def found_above(frame: pd.DataFrame) -> tuple[dict[float, pd.DataFrame], pd.DataFrame]:
    """Studies whose interval of k = .3 - k = 0 lies above 0: by planted effect, and where there is none."""
    above = frame.assign(world=frame["world"].fillna("null"))  # which is how the word is read from a CSV
    above = pick(above, what="above", contrast="difference")
    planted = pick(above, world="action")
    return {effect: of for effect, of in planted.groupby("effect")}, pick(above, world="null")


def _caption(frame: pd.DataFrame) -> Caption:
    planted, null = found_above(frame)
    told = listed(f"{number(effect)} in {shares(of)}" for effect, of in planted.items())
    message = f"Simulated studies find an effect of {told}; without one, they find one in {shares(null)}."
    drawn = (
        "Top: planted differences found, claim supported. Bottom: false finds (dotted: 2.5 %). "
        "Seed SD: between trainings, log-odds."
    )
    size = f"n = {int(frame['n'].min()):,} studies of each kind; 95 % Wilson intervals."
    rows = []
    kinds = [
        ("k = .3 > k = 0", dict(contrast="difference", what="above")),
        ("k = .3 < k = 0", dict(contrast="difference", what="below")),
        ("claim supported", dict(contrast="verdict", what="supported")),
        ("over games alone", dict(contrast="games_only", what="above")),
    ]
    frame = frame.assign(world=frame["world"].fillna("null"))
    for (world, effect), of in frame.groupby(["world", "effect"], sort=True):
        for name, where in kinds:
            by_seeds = {f"{seeds} seeds": shares(each) for seeds, each in pick(of, **where).groupby("seeds")}
            if by_seeds:
                rows.append(
                    {"planted": world.replace("_", " "), "effect": number(effect), "found": name} | by_seeds
                )
    return Caption(message, drawn, size, pd.DataFrame(rows).fillna("–"))


@figure(
    "Would the study find an effect?",
    name="masking_power",
    table="masking_power",
    section="masking",
    caption=_caption,
)
def power(frame: pd.DataFrame) -> go.Figure:
    """Shares of simulated studies in which a planted effect is found, above false finds."""
    frame = frame.assign(world=frame["world"].fillna("null"))  # which is how the word is read from a CSV
    need(frame, world="action", contrast="difference", what="above")
    sizes = sorted(set(zip(frame["training_sd"], frame["games"], strict=True)))
    effects = sorted(frame.loc[frame["world"] == "action", "effect"].unique(), reverse=True)
    fig = grid(
        sizes,
        [("power", 210), ("false positives", 170)],
        gap=46,
        bottom=BOTTOM,
        titles=[f"{games} games, seed SD {number(sd)}" for sd, games in sizes],
    )
    height = 210 + 170 + 46
    fig.update_layout(
        legend2=dict(y=(170 + 8) / height, x=0, orientation="h", font_size=14, yanchor="bottom")
    )
    for row, lines in enumerate(_lines(effects), start=1):
        for order, (name, colour, dash, symbol, where) in enumerate(lines):
            for col, (sd, games) in enumerate(sizes, start=1):
                rows = pick(frame, training_sd=sd, games=games, **where).sort_values("seeds")
                fig.add_scatter(
                    x=rows["seeds"] + 0.1 * (order - 1.5),
                    y=rows["value"],
                    mode="lines+markers",
                    error_y=whisker(rows, colour),
                    name=name,
                    legendgroup=name,
                    legend="legend" if row == 1 else "legend2",
                    showlegend=col == 1,
                    line=dict(color=colour, dash=dash, width=2),
                    marker=marker(symbol, colour, 8),
                    customdata=rows[["seeds", *ESTIMATE_COLUMNS]].to_numpy(dtype=float),
                    hovertemplate=_POWER_HOVER,
                    row=row,
                    col=col,
                )
    seeds = sorted(frame["seeds"].unique())
    fig.update_xaxes(tickvals=seeds, range=[seeds[0] - 0.4, seeds[-1] + 0.4])
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    highest = max(
        np.max(np.add(trace.y, trace.error_y.array))
        for trace in fig.data
        if trace.legend == "legend2" and len(trace.y)
    )
    fig.update_yaxes(range=[-0.05 * highest, 1.1 * highest], row=2)
    fig.add_hline(y=0.025, row=2, col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    return under(fig, "seeds of each condition", 30)


def _lines(effects: list[float]) -> tuple[list, list]:
    """Lines of finds and of false finds: name, colour, dash, marker, and what picks them."""
    dashes = dict(zip(effects, ("solid", "dash", "dot", "dashdot"), strict=False))
    kinds = (
        ("difference", "above", "k = .3 > k = 0", GREEN, "circle"),
        ("verdict", "supported", "supported", BLACK, "square"),
    )
    found = []
    for contrast, what, name, colour, symbol in kinds:
        for effect in effects:
            where = dict(world="action", effect=effect, contrast=contrast, what=what)
            found.append((f"{name}, effect {number(effect)}", colour, dashes[effect], symbol, where))
    any_mask = dict(world="any_mask", effect=effects[0])
    above = dict(world="null", what="above")
    false = [
        ("null: k = .3 > k = 0", GREEN, "solid", "circle", dict(above, contrast="difference")),
        (
            "any mask: k = .3 > random",
            ORANGE,
            "solid",
            "circle-open",
            dict(any_mask, contrast="control", what="above"),
        ),
        (
            "any mask: supported",
            BLACK,
            "solid",
            "square",
            dict(any_mask, contrast="verdict", what="supported"),
        ),
        ("null: over games alone", GREY, "dot", "x", dict(above, contrast="games_only")),
    ]
    return found, false


_POWER_HOVER = (
    "%{customdata[0]} seeds<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, "
    "%{customdata[3]:.3f}]<br>of %{customdata[4]} simulated studies"
)
