"""The calibration figure: what each instrument reads on agents whose answer is known, against that answer.

>>> frame, provenance = read_table("figures/tables", "calibration")
>>> calibration(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import WIDTH, meta
from interp.results.names import BLACK, BLUE, PALE, VERMILION
from interp.results.queries import need, pick
from interp.results.tables import ESTIMATE_COLUMNS

#: A reading counts as right within this distance of what the construction allows.
NEAR = 0.1
#: Instruments in reading order, and agents: their names in figures.
INSTRUMENTS = {
    "prompt_reliance": "prompt reliance",
    "state_share": "via-CoT: share of its hidden state",
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
    """Rows of the agents that learned their construction, and the competence rows of those that did not (below 1 - NEAR), which calibrate nothing."""
    failed = frame[(frame["instrument"] == "competence") & (frame["value"] < 1 - NEAR)]
    out = pd.MultiIndex.from_frame(frame[["agent", "seed"]]).isin(pd.MultiIndex.from_frame(failed[["agent", "seed"]]))
    return frame[~out], failed


def verdicts(frame: pd.DataFrame) -> pd.Series:
    """`right`, `misread` (more than NEAR from what the construction allows) or `open` (it decides nothing), for each row."""
    off = np.maximum(frame["truth_low"] - frame["value"], frame["value"] - frame["truth_high"])
    return pd.Series(np.select([off.isna(), off > NEAR], ["open", "misread"], "right"), index=frame.index)


def calibration(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Every instrument's reading of every organism that learned its construction, a point for each seed, on top of what that allows.

    Args:
        frame: table `calibration` (agent, seed, instrument, truth_low, truth_high, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    frame, _ = grown(frame)
    need(frame, "calibration", agent=next((a for a in AGENTS if (frame["agent"] == a).any()), "post_hoc"))
    agents = [a for a in AGENTS if (frame["agent"] == a).any()]
    shown = [i for i in INSTRUMENTS if (frame["instrument"] == i).any()]
    row_height, top, bottom = 34, 96, 62
    fig = make_subplots(rows=1, cols=len(agents), shared_yaxes=True, horizontal_spacing=0.012, column_titles=[AGENTS[a] for a in agents])
    looks = {"right": (f"within {NEAR:g} of it", BLUE, "circle"), "misread": ("further from it", VERMILION, "diamond"),
             "open": ("nothing decided", BLACK, "circle-open")}
    frame = frame.assign(verdict=verdicts(frame), place=frame["instrument"].map({name: i for i, name in enumerate(shown)}))
    seeds = sorted(frame["seed"].unique())
    frame["place"] += 0.34 * (frame["seed"].map(seeds.index) - (len(seeds) - 1) / 2) / max(1, len(seeds) - 1)
    for col, agent in enumerate(agents, 1):
        rows = pick(frame, agent=agent).dropna(subset="place")
        known = rows[rows["seed"] == rows["seed"].min()].dropna(subset="truth_low")
        middle = known["instrument"].map(shown.index)
        ends = np.stack([known["truth_low"] - 0.02, known["truth_high"] + 0.02, np.full(len(known), np.nan)], 1)
        fig.add_scatter(x=ends.ravel(), y=np.repeat(middle, 3), mode="lines", line=dict(color=PALE, width=17), opacity=0.75, hoverinfo="skip",
                        name="what the construction allows", showlegend=col == 1, legendgroup="truth", row=1, col=col)  # fmt: skip
        for verdict, (name, colour, symbol) in looks.items():
            some = rows[rows["verdict"] == verdict]
            fig.add_scatter(
                x=some["value"], y=some["place"], mode="markers", name=f"reading, {name}", legendgroup=verdict, showlegend=False,
                marker=dict(symbol=symbol, size=8, color=colour, line=dict(color=colour, width=1.3)),
                error_x=dict(type="data", array=some["high"] - some["value"], arrayminus=some["value"] - some["low"], color=colour, thickness=1.3, width=3),
                customdata=some[["seed", *ESTIMATE_COLUMNS]].to_numpy(dtype=float), hovertemplate=_HOVER, row=1, col=col,
            )  # fmt: skip
            if col == 1:  # an entry of its own, since a verdict may be missing from this agent
                fig.add_scatter(x=[None], y=[None], mode="markers", marker=dict(symbol=symbol, size=8, color=colour), name=f"reading, {name}",
                                legendgroup=verdict, row=1, col=1)  # fmt: skip
        fig.update_xaxes(range=[-0.12, 1.12], tickvals=[0, 0.5, 1], ticktext=["0", ".5", "1"], row=1, col=col)
    fig.update_yaxes(range=[len(shown) - 0.4, -0.6], tickvals=list(range(len(shown))), ticktext=[INSTRUMENTS[i] for i in shown], showgrid=True)
    fig.update_yaxes(ticks="", row=1)
    fig.update_layout(template="interp", width=WIDTH, height=row_height * len(shown) + top + bottom, margin=dict(l=252, t=top, b=bottom),
                      legend=dict(y=1 + 34 / (row_height * len(shown)), x=-0.34), meta=meta("calibration", provenance))  # fmt: skip
    fig.add_annotation(text="reading", xref="paper", yref="paper", x=0.5, y=0, yshift=-44, showarrow=False, font_size=15)
    return fig


_HOVER = (
    "seed %{customdata[0]}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]"
    "<br>n = %{customdata[4]} in %{customdata[5]} clusters"
)
