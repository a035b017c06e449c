"""The calibration figure: what each instrument reads on agents whose answer is known, against that answer.

>>> frame, provenance = read_table("figures/tables", "calibration")
>>> calibration(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.caption import Caption
from interp.plots.registry import figure
from interp.plots.theme import under, whisker
from interp.results.estimates import estimate, span
from interp.results.names import BLACK, BLUE, PALE, VERMILION
from interp.results.queries import need, pick
from interp.results.tables import ESTIMATE_COLUMNS

#: A reading counts as right within this distance of what the construction allows.
NEAR = 0.1
#: Instruments in reading order, and agents: their names in figures.
INSTRUMENTS = {
    "prompt_reliance": "prompt reliance",
    "state_share": "via-CoT: share of its hidden state",
    "own_direct": "own traces: direct effect / largest",
    "own_indirect": "own traces: indirect effect / largest",
    "own_reliance": "own traces: prompt reliance",
    "prompt_patch": "patching the whole prompt",
    "boundary_patch": "patching the boundary",
    "keep": "conflicting trace: keep",
    "follow": "conflicting trace: follow",
    "early_area": "early answering: area over the curve",
    "agreement": "agreement of prompt and CoT action",
    "auroc": "boundary probe: AUROC",
    "gain": "boundary probe: gain over controls",
    "steering": "steering the boundary: excess flips",
    "attention_prompt": "attention share of the prompt",
    "gradient_prompt": "gradient share of the prompt",
}
AGENTS = {
    "post_hoc": "post-hoc",
    "mixture_75": "mixture, .75",
    "mixture_50": "mixture, .50",
    "mixture_25": "mixture, .25",
    "reasoner": "reasoner",
    "hidden_carry": "hidden carry",
    "overridable": "overridable",
}


def grown(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the agents that learned their construction, and competence rows of those that did not."""
    failed = frame[(frame["instrument"] == "competence") & (frame["value"] < 1 - NEAR)]
    out = pd.MultiIndex.from_frame(frame[["agent", "seed"]]).isin(
        pd.MultiIndex.from_frame(failed[["agent", "seed"]])
    )
    return frame[~out], failed


def verdicts(frame: pd.DataFrame) -> pd.Series:
    """`right`, `misread` (more than NEAR from what is allowed) or `open` (nothing is decided) by row."""
    off = np.maximum(frame["truth_low"] - frame["value"], frame["value"] - frame["truth_high"])
    return pd.Series(np.select([off.isna(), off > NEAR], ["open", "misread"], "right"), index=frame.index)


#: Exact checks on these agents and every checkpoint of the series, and how the worst of them is written.
EXACT = {
    "self_splice": ("own trace spliced back: share of actions reproduced, at worst", "{:.6g}"),
    "self_patch": ("a run patched with itself: largest change in nats", "{:.1g}"),
    "patch_everything": ("everything patched: largest distance from the other run in nats", "{:.1g}"),
}


def allowed(row: pd.Series) -> str:
    """What the construction allows, in words: one number, or a range."""
    low, high = f"{row['truth_low']:.2f}", f"{row['truth_high']:.2f}"
    return low if low == high else f"{low} to {high}"


def _caption(frame: pd.DataFrame) -> Caption:
    every, failed = grown(frame)
    rows = every[every["agent"].isin(AGENTS) & every["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    decided, wrong = rows[verdict != "open"], rows[verdict == "misread"]
    means = wrong.groupby(["instrument", "agent"])[["value", "truth_low", "truth_high"]].mean()
    table = [
        {
            "misread": f"{INSTRUMENTS[i]}, {AGENTS[a]}",
            "reading": f"{means.loc[(i, a), 'value']:.2f}",
            "allowed": allowed(means.loc[(i, a)]),
        }
        for i in INSTRUMENTS
        for a in AGENTS
        if (i, a) in means.index
    ]
    table += [
        {
            "misread": f"left out, did not learn to be: {AGENTS[row['agent']]}, seed {row['seed']}",
            "reading": estimate(row),
            "allowed": "1.00",
        }
        for _, row in failed.iterrows()
    ]
    for name, (words, digits) in EXACT.items():
        values = pick(every, instrument=name)["value"]
        if len(values):
            worst = values.min() if name == "self_splice" else values.max()
            table.append(
                {
                    "misread": f"exact check, {words}",
                    "reading": digits.format(worst),
                    "allowed": "1" if name == "self_splice" else "0",
                }
            )
    message = (
        f"{len(decided) - len(wrong)} of {len(decided)} readings whose answer the construction "
        f"decides lie within {NEAR:g} of it"
    )
    message += (
        f"; {wrong['instrument'].nunique()} of {decided['instrument'].nunique()} instruments misread some."
        if len(wrong)
        else "."
    )
    message += (
        f" Left out: {len(failed)} agent{'s' * (len(failed) > 1)} that did not learn the construction."
        if len(failed)
        else ""
    )
    drawn = "Points: what each instrument reads on each agent; grey: what its construction allows."
    size = (
        f"n = {span(rows['n'])} decisions or pairs, {rows['seed'].nunique()} training seed(s); 95 "
        "% intervals."
    )
    return Caption(
        message,
        drawn,
        size,
        pd.DataFrame(table).rename(columns={"misread": "misread on average, and checks"}),
    )


@figure("Readings of agents whose answer is known", table="calibration", section="trusted", caption=_caption)
def calibration(frame: pd.DataFrame) -> go.Figure:
    """Every instrument's reading of every organism that learned its construction, on what that allows."""
    frame, _ = grown(frame)
    need(frame, agent=next((a for a in AGENTS if (frame["agent"] == a).any()), "post_hoc"))
    agents = [a for a in AGENTS if (frame["agent"] == a).any()]
    shown = [i for i in INSTRUMENTS if (frame["instrument"] == i).any()]
    row_height, top, bottom = 34, 96, 62
    fig = make_subplots(
        rows=1,
        cols=len(agents),
        shared_yaxes=True,
        horizontal_spacing=0.012,
        column_titles=[AGENTS[a] for a in agents],
    )
    frame = frame.assign(
        verdict=verdicts(frame), place=frame["instrument"].map({name: i for i, name in enumerate(shown)})
    )
    seeds = sorted(frame["seed"].unique())
    frame["place"] += 0.34 * (frame["seed"].map(seeds.index) - (len(seeds) - 1) / 2) / max(1, len(seeds) - 1)
    for col, agent in enumerate(agents, 1):
        rows = pick(frame, agent=agent).dropna(subset="place")
        _draw_truth(fig, rows, shown, col)
        _draw_readings(fig, rows, col)
        fig.update_xaxes(range=[-0.12, 1.12], tickvals=[0, 0.5, 1], ticktext=["0", ".5", "1"], row=1, col=col)
    fig.update_yaxes(
        range=[len(shown) - 0.4, -0.6],
        tickvals=list(range(len(shown))),
        ticktext=[INSTRUMENTS[i] for i in shown],
        showgrid=True,
    )
    fig.update_yaxes(ticks="", row=1)
    fig.update_layout(
        height=row_height * len(shown) + top + bottom,
        margin=dict(l=252, t=top, b=bottom),
        legend=dict(y=1 + 34 / (row_height * len(shown)), x=-0.34),
    )
    return under(fig, "reading", 34)


def _draw_truth(fig: go.Figure, rows: pd.DataFrame, shown: list[str], col: int) -> None:
    """Draw what the construction of one agent allows."""
    known = rows[rows["seed"] == rows["seed"].min()].dropna(subset="truth_low")
    ends = np.stack([known["truth_low"] - 0.02, known["truth_high"] + 0.02, np.full(len(known), np.nan)], 1)
    fig.add_scatter(
        x=ends.ravel(),
        y=np.repeat(known["instrument"].map(shown.index), 3),
        mode="lines",
        line=dict(color=PALE, width=17),
        opacity=0.75,
        hoverinfo="skip",
        name="what the construction allows",
        showlegend=col == 1,
        legendgroup="truth",
        row=1,
        col=col,
    )


def _draw_readings(fig: go.Figure, rows: pd.DataFrame, col: int) -> None:
    """Draw one agent's readings by verdict."""
    for verdict, (name, colour, symbol) in _LOOKS.items():
        some = rows[rows["verdict"] == verdict]
        entry = dict(mode="markers", name=f"reading, {name}", legendgroup=verdict, row=1, col=col)
        marker = dict(symbol=symbol, size=8, color=colour)
        fig.add_scatter(
            x=some["value"],
            y=some["place"],
            showlegend=False,
            marker=marker | dict(line=dict(color=colour, width=1.3)),
            error_x=whisker(some, colour),
            customdata=some[["seed", *ESTIMATE_COLUMNS]].to_numpy(dtype=float),
            hovertemplate=_HOVER,
            **entry,
        )
        if col == 1:  # an entry of its own, since a verdict may be missing from this agent
            fig.add_scatter(x=[None], y=[None], marker=marker, **entry)


_LOOKS = {
    "right": (f"within {NEAR:g} of it", BLUE, "circle"),
    "misread": ("further from it", VERMILION, "diamond"),
    "open": ("nothing decided", BLACK, "circle-open"),
}
_HOVER = (
    "seed %{customdata[0]}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]"
    "<br>n = %{customdata[4]} in %{customdata[5]} clusters"
)
