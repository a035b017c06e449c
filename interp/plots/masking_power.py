"""The figure of the masking study's power: simulated effects that are found.

>>> frame, provenance = read_table("figures/tables", "masking_power")
>>> power(frame, provenance).show()
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption
from interp.plots.registry import figure
from interp.plots.series import draw_series
from interp.plots.theme import facets, note_n
from interp.results.condition_rows import number
from interp.results.names import BLACK, GREEN
from interp.results.queries import need, pick
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
        "Planted differences that are found, and studies whose claim is supported. Seed SD: between "
        "trainings, in log-odds."
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
    """Shares of simulated studies in which a planted effect is found; false finds are in the table."""
    frame = frame.assign(world=frame["world"].fillna("null"))  # which is how the word is read from a CSV
    need(frame, world="action", contrast="difference", what="above")
    sizes = sorted(set(zip(frame["training_sd"], frame["games"], strict=True)))
    panels = [dict(training_sd=sd, games=games) for sd, games in sizes]
    effects = sorted(frame.loc[frame["world"] == "action", "effect"].unique(), reverse=True)
    dashes = dict(zip(effects, ("solid", "dash", "dot", "dashdot"), strict=False))
    looks, rows = {}, []
    for contrast, what, found, colour, symbol in (
        ("difference", "above", "k = .3 > k = 0", GREEN, "circle"),
        ("verdict", "supported", "supported", BLACK, "square"),
    ):
        for effect, dash in dashes.items():
            name = f"{found}, effect {number(effect)}"
            looks[name] = (name, colour, dash, symbol)
            of = pick(frame, world="action", effect=effect, contrast=contrast, what=what)
            rows.append(of.assign(line=name, step=of["seeds"]))
    seeds = sorted(int(count) for count in frame["seeds"].unique())
    titles = [f"{games} games, seed SD {number(sd)}" for sd, games in sizes]
    fig = facets(1, 190, 24, titles, across=2 if len(sizes) > 1 else 1)
    draw_series(fig, pd.concat(rows), looks, by="line", panels=panels, along="seeds", order=seeds)
    fig.update_xaxes(tickvals=list(range(len(seeds))), ticktext=[str(count) for count in seeds])
    fig.update_xaxes(title="seeds of each condition", range=[-0.3, len(seeds) - 0.7])
    fig.update_yaxes(range=[-0.03, 1.04])
    fig.update_yaxes(title="share of studies", row=1, col=1)
    return note_n(fig, f"n = {int(frame['n'].min()):,} simulated studies for each point")
