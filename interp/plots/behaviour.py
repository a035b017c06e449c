"""Figures of what the agent does with and without its trace: accuracy, form, revisions, games.

>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, in every figure (see `interp.plots.theme`).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, clause, last_side, numbers, only, size, together, value
from interp.plots.registry import figure
from interp.plots.theme import (
    HOVER,
    INTERVAL,
    draw_metrics,
    fit_values,
    panels,
    point_numbers,
    whisker,
    zero_line,
)
from interp.results.estimates import Ends, ends, span
from interp.results.names import GREY, NO_TRACES, PALE, PARSED, STYLE
from interp.results.queries import need, pick, splits_of, steps_of
from interp.results.wording import listed, sentence

#: Share of decisions on which an action must parse, for its accuracy to be a reading.
READABLE = 0.5
#: What the last revisions' intervals say of helpful against harmful ones.
REVISED = {
    1: "the trace corrects more actions than it spoils",
    -1: "the trace spoils more actions than it corrects",
    0: "corrected and spoiled actions are not told apart",
}
_figure = partial(figure, section="better", expected=True)
_SHOWN = ("acc_cot", "acc_prompt", "acc_empty_think", "gap", "headroom_gap", "mcnemar_p")
#: Beside them in the table below the figure, where a study has them.
_TOLD = (
    *(f"{metric}{PARSED}" for metric in ("acc_cot", "acc_prompt", "gap", "headroom_gap")),
    *(f"admissible_{mode}" for mode in ("cot", "prompt", "empty_think", NO_TRACES)),
    *(f"acc_{NO_TRACES}", f"parse_{NO_TRACES}", f"{NO_TRACES}_difference"),
)
_PARSED = ("parse_cot", "parse_prompt", "parse_empty_think")
_REVISION = ("revision", "revision_helpful", "revision_harmful", "revision_neutral", "agreement", "kappa")
#: Where each mode's bar stands beside a checkpoint, and the colour of games that ran out of steps.
_SIDES = {"cot": -0.2, "prompt": 0.2}
_REST = "#E8E8E8"
#: Share of games ended by an action that did not parse, above which the caption says so.
_MANY_UNPARSED = 0.05


def _decoded(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of what was decoded at every decision: the others are of those that list actions, or parse."""
    fewer = frame["metric"].str.startswith(("choice_", "admissible_")) | frame["metric"].str.endswith(PARSED)
    return frame[~fewer]


def _behaviour_caption(frame: pd.DataFrame) -> Caption:
    words = {1: "is above 0", -1: "is below 0", 0: "is not told apart from 0"}
    last = last_side(frame, words, metric="gap")
    message = together(
        change("CoT accuracy", frame, metric="acc_cot"),
        change("Prompt accuracy", frame, metric="acc_prompt"),
        f"The last gap {last}." if last else "",
    )
    drawn = "Top: agreement with the reference action. Bottom: CoT − prompt, also over the headroom."
    metrics = frame["metric"]
    shown = frame[metrics.isin((*_SHOWN, *_TOLD)) | metrics.str.startswith("choice_")]
    return Caption(message, drawn, size(_decoded(frame)), numbers(shown))


def _parse_caption(frame: pd.DataFrame) -> Caption:
    rows = only(frame, metric=_PARSED).dropna(subset="value")
    last = rows[(rows["step"] == rows["step"].max()) & (rows["value"] < READABLE)]
    kinds = {
        split: listed(STYLE[metric][0] for metric in of["metric"]) for split, of in last.groupby("split")
    }
    message = "At the last checkpoint every mode's action parses on at least half of the decisions."
    if kinds:
        message = (
            "Fewer than half of the decisions parse at the last checkpoint, so accuracy says "
            f"little: {clause(kinds)}."
        )
    drawn = "Share of decisions whose decoded text parses to an action, by mode."
    lowest = rows.loc[rows.groupby(["metric", "split"], sort=False)["value"].idxmin()] if len(rows) else rows
    table = numbers(rows).assign(
        lowest=[f"{value(row)} (step {int(row['step'])})" for _, row in lowest.iterrows()]
    )
    return Caption(message, drawn, size(_decoded(frame)), table)


def revised(frame: pd.DataFrame, split: str) -> tuple[int, Ends, Ends] | None:
    """1 where the last helpful revisions outnumber harmful ones, -1 fewer, 0 neither; and both."""
    helpful, harmful = (
        ends(pick(frame, split=split, metric=f"revision_{kind}")) for kind in ("helpful", "harmful")
    )
    if helpful is None or harmful is None:
        return None
    sign = int(helpful.last["low"] > harmful.last["high"]) - int(harmful.last["low"] > helpful.last["high"])
    return sign, helpful, harmful


def _revision_caption(frame: pd.DataFrame) -> Caption:
    verdicts = {split: REVISED[each[0]] for split in splits_of(frame) if (each := revised(frame, split))}
    message = sentence(clause(verdicts))
    drawn = (
        "Top: how often the trace changes the action, by effect; whiskers: of helpful changes, and of all. "
        "Bottom: agreement of both modes."
    )
    shown = only(frame, metric=(*_REVISION, *(f"{metric}{PARSED}" for metric in _REVISION)))
    return Caption(message, drawn, size(_decoded(frame)), numbers(shown))


def _online_caption(frame: pd.DataFrame) -> Caption:
    unparsed = pick(frame, metric="unparsed")
    most = unparsed.loc[unparsed["step"] == unparsed["step"].max(), "value"].max()
    lost = f"Up to {100 * most:.0f} % of the last games end by an unparsed action."
    message = together(
        change("Success with the trace", frame, metric="success", mode="cot"),
        change("Without it, success", frame, metric="success", mode="prompt"),
        lost if most > _MANY_UNPARSED else "",
    )
    drawn = "Both modes play the same games, CoT left; whiskers: of games won."
    size = f"n = {span(pick(frame, metric='success')['n'])} games; 95 % cluster-bootstrap intervals."
    return Caption(message, drawn, size, numbers(frame))


@_figure("Accuracy with and without the trace", table="behaviour", caption=_behaviour_caption)
def behaviour(frame: pd.DataFrame) -> go.Figure:
    """Accuracy of the prompt, CoT and empty-think actions over checkpoints, above the gaps."""
    accuracy = ["acc_cot", "acc_prompt", "acc_empty_think"]
    fig = panels(frame, {"accuracy": 230, "gap": 190})
    draw_metrics(fig, frame, accuracy, row=1, thin=("acc_empty_think",))
    draw_metrics(fig, frame, ["gap", "headroom_gap"], row=2)
    fit_values(fig, frame, accuracy, row=1)
    fit_values(fig, frame, ["gap", "headroom_gap"], row=2)
    zero_line(fig, row=2)
    return fig


@_figure("Do both modes produce an action at all?", table="behaviour", caption=_parse_caption)
def parse(frame: pd.DataFrame) -> go.Figure:
    """Share of decisions whose decoded text parses to an action, per mode over checkpoints."""
    fig = panels(frame, {"parse rate": 230})
    draw_metrics(
        fig, frame, ["parse_cot", "parse_prompt", "parse_empty_think"], row=1, thin=("parse_empty_think",)
    )
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    return fig


@_figure("What the trace changes", table="behaviour", caption=_revision_caption)
def revision(frame: pd.DataFrame) -> go.Figure:
    """Revision rate by its effect over checkpoints, above agreement and Cohen's kappa of both modes."""
    fig = panels(frame, {"revision rate": 230, "agreement": 170})
    steps, tops = steps_of(frame), []
    for col, split in enumerate(splits_of(frame), start=1):
        base = np.zeros(len(steps))
        every = pick(frame, split=split, metric="revision").set_index("step").reindex(steps)
        # Only the lowest part's interval and that of all together stand on edges that are their values.
        whiskers = {"revision_helpful": -0.12, "revision_harmful": None, "revision_neutral": 0.12}
        for part, offset in whiskers.items():
            rows = pick(frame, split=split, metric=part).set_index("step").reindex(steps)
            name, colour, _, _ = STYLE[part]
            look = dict(name=name, legendgroup=part, marker_color=colour)
            place = dict(row=1, col=col)
            hover = dict(customdata=point_numbers(rows.reset_index()), hovertemplate=HOVER)
            heights = rows["value"].fillna(0)
            fig.add_bar(
                x=list(range(len(steps))), y=heights, base=base, showlegend=col == 1, **look, **hover, **place
            )
            base = base + heights.to_numpy()
            if offset is None:
                continue
            of, of_name = (every, "all") if part == "revision_neutral" else (rows, name)
            tops.append(float(np.nanmax([*of["value"], *of["high"], 0.0])))
            fig.add_scatter(
                x=np.arange(len(steps)) + offset,
                y=of["value"],
                mode="markers",
                marker=dict(size=1, color="#333333"),
                error_y=whisker(of, "#333333"),
                name=f"{of_name}, {INTERVAL}",
                legendgroup=part,
                showlegend=False,
                hoverinfo="skip",
                **place,
            )
    fig.update_layout(barmode="overlay")
    fig.update_yaxes(range=[0, 1.03 * max(tops + [0.05])], row=1)
    draw_metrics(fig, frame, ["agreement", "kappa"], row=2)
    fit_values(fig, frame, ["agreement", "kappa"], row=2)
    return fig


@figure(
    "ALFWorld's own games",
    name="online_official",
    table="online_official",
    section="better",
    caption=_online_caption,
    unit="games",
    clusters="",
)
@_figure(
    "Games won, in the environment",
    name="online",
    table="online",
    caption=_online_caption,
    instead="online_official",
    unit="games",
    clusters="",
)
def online(frame: pd.DataFrame) -> go.Figure:
    """How games end in both modes over checkpoints: won, out of steps, or by an unparsed action."""
    need(frame, metric="success")
    fig, steps = panels(frame, {"share of games": 230}), steps_of(frame)
    for col, split in enumerate(splits_of(frame), start=1):
        for mode, shift in _SIDES.items():
            _outcomes(fig, pick(frame, split=split, mode=mode), mode, shift, steps, col)
    for part, fill in (("out of steps", _REST), ("unparsed action", PALE)):  # of either mode
        look = dict(marker=dict(color=fill, line=dict(color=GREY, width=1.2)), hoverinfo="skip")
        fig.add_bar(x=[None], y=[None], name=part, legendgroup=part, legendrank=2000, **look, row=1, col=1)
    fig.update_layout(barmode="overlay")
    return fig.update_yaxes(range=[0, 1.02])


def _outcomes(
    fig: go.Figure, rows: pd.DataFrame, mode: str, shift: float, steps: list[int], col: int
) -> None:
    """A mode's bars: games won with their interval, above them the games that were not, by why."""
    won = pick(rows, metric="success").set_index("step").reindex(steps)
    lost = pick(rows, metric="unparsed").set_index("step").reindex(steps)
    rest = lost.assign(value=1 - won["value"] - lost["value"], low=np.nan, high=np.nan)
    name, colour, _, _ = STYLE[mode]
    below = won["value"].fillna(0)
    parts = [  # what is won is drawn last, so that no part covers its whisker
        ("out of steps", rest, below, _REST),
        ("unparsed action", lost, below + rest["value"].fillna(0), PALE),
        (f"won, {name}", won, 0 * below, colour),
    ]
    for part, these, base, fill in parts:
        if these["value"].isna().all():
            continue
        first = these is won
        fig.add_bar(
            x=np.arange(len(steps)) + shift,
            y=these["value"],
            base=base,
            width=0.36,
            name=part,
            legendgroup=part,
            showlegend=col == 1 and first,
            marker=dict(color=fill, line=dict(color=colour, width=1.2)),
            error_y=whisker(won, "#222222") if first else None,
            customdata=point_numbers(these.reset_index()),
            hovertemplate=f"{name}, {part}<br>{HOVER}",
            row=1,
            col=col,
        )
