"""Figures from tables: each function takes one tidy table and returns one plotly figure in the house style.

>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, in every figure (see `interp.plots.theme`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.theme import HOVER, INTERVAL, draw_metrics, fit_values, panels, point_numbers, whisker, zero_line
from interp.results.names import STYLE
from interp.results.queries import need, pick, splits_of, steps_of


def behaviour(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Accuracy of the prompt, CoT and empty-think actions over checkpoints, above the gap and the headroom gap.

    Args:
        frame: table `behaviour` (step, split, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    accuracy = ["acc_cot", "acc_prompt", "acc_empty_think"]
    fig = panels(frame, "behaviour", {"accuracy": 230, "gap": 190}, provenance)
    draw_metrics(fig, frame, accuracy, row=1, thin=("acc_empty_think",))
    draw_metrics(fig, frame, ["gap", "headroom_gap"], row=2)
    fit_values(fig, frame, accuracy, row=1)
    fit_values(fig, frame, ["gap", "headroom_gap"], row=2)
    zero_line(fig, row=2)
    return fig


def parse(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Share of decisions whose decoded text parses to an action, per mode over checkpoints.

    Args:
        frame: table `behaviour`.
        provenance: kept in the figure's `layout.meta`.
    """
    fig = panels(frame, "parse", {"parse rate": 230}, provenance)
    draw_metrics(fig, frame, ["parse_cot", "parse_prompt", "parse_empty_think"], row=1, thin=("parse_empty_think",))
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    return fig


def revision(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Revision rate stacked by its effect over checkpoints, above agreement and Cohen's kappa of the two modes.

    Args:
        frame: table `behaviour`.
        provenance: kept in the figure's `layout.meta`.
    """
    fig = panels(frame, "revision", {"revision rate": 230, "agreement": 170}, provenance)
    steps, tops = steps_of(frame), []
    for col, split in enumerate(splits_of(frame), start=1):
        base = np.zeros(len(steps))
        for part, offset in zip(("revision_helpful", "revision_harmful", "revision_neutral"), (-0.16, 0.0, 0.16)):
            rows = pick(frame, split=split, metric=part).set_index("step").reindex(steps)
            name, colour, _, _ = STYLE[part]
            look = dict(name=name, legendgroup=part, marker_color=colour)
            place = dict(row=1, col=col)
            hover = dict(customdata=point_numbers(rows.reset_index()), hovertemplate=HOVER)
            heights = rows["value"].fillna(0)
            fig.add_bar(x=list(range(len(steps))), y=heights, base=base, showlegend=col == 1, **look, **hover, **place)
            base = base + heights.to_numpy()
            tops.append(float((base + (rows["high"] - rows["value"]).fillna(0)).max()))
            # Whiskers stand side by side on their part's upper edge: stacked ones would hide each other.
            fig.add_scatter(
                x=np.arange(len(steps)) + offset, y=base, mode="markers", marker=dict(size=1, color="#333333"),
                error_y=whisker(rows, "#333333"), name=f"{name}, {INTERVAL}", legendgroup=part, showlegend=False,
                hoverinfo="skip", **place,
            )  # fmt: skip
    fig.update_layout(barmode="overlay")
    fig.update_yaxes(range=[0, 1.12 * max(tops + [0.05])], row=1)
    draw_metrics(fig, frame, ["agreement", "kappa"], row=2)
    fit_values(fig, frame, ["agreement", "kappa"], row=2)
    return fig


def online(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Success in the environment per mode over checkpoints, above the steps per episode where the table has them.

    Args:
        frame: table `online` (step, split, mode, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    rows = {"success rate": 230} | ({"steps per episode": 150} if (frame["metric"] == "steps").any() else {})
    fig = panels(frame, "online", rows, provenance)
    for row, metric in enumerate(("success", "steps")[: len(rows)], start=1):
        measured = need(frame, "online", metric=metric).assign(metric=lambda table: table["mode"])
        draw_metrics(fig, measured, ["cot", "prompt"], row=row, steps=steps_of(frame), legend=row == 1)
        if metric == "steps":
            fit_values(fig, measured, ["cot", "prompt"], row=row)
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    return fig


def reliance(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Prompt reliance over checkpoints, above the direct, via-CoT (by text, by state), total and interaction effects it is made of.

    Args:
        frame: table `reliance` (step, split, metric, value, low, high, n, n_groups); effects in nats.
        provenance: kept in the figure's `layout.meta`.
    """
    fig = panels(frame, "reliance", {"prompt reliance": 230, "effect on the action (nats)": 210}, provenance)
    draw_metrics(fig, frame, ["prompt_reliance"], row=1)
    parts = ["direct", "via_cot", "via_text", "via_state", "total", "interaction"]
    draw_metrics(fig, frame, parts, row=2, thin=("via_text", "via_state"))
    fit_values(fig, frame, ["prompt_reliance"], row=1, at_least=(0.0, 1.0))
    fit_values(fig, frame, parts, row=2)
    fig.add_hline(y=0.5, row=1, col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    fig.add_annotation(
        text="direct = via-CoT", x=1, xref="x domain", y=0.5, yref="y", xanchor="right", yanchor="top",
        showarrow=False, font=dict(size=12, color="#666666"),
    )  # fmt: skip
    zero_line(fig, row=2)
    return fig
