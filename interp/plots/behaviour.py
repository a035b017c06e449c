"""Figures of what the agent does with and without its trace: accuracy, form, revisions, games.

>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, in every figure (see `interp.plots.theme`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, clause, last_side, numbers, row, size, value
from interp.plots.registry import figure
from interp.plots.theme import HOVER, INTERVAL, draw_metrics, fit_values, panels, point_numbers, whisker, zero_line
from interp.results.estimates import Ends, ends, span
from interp.results.names import STYLE
from interp.results.queries import need, pick, splits_of, steps_of
from interp.results.wording import listed, sentence

#: Share of decisions on which an action must parse, for its accuracy to be a reading.
READABLE = 0.5
#: What the last revisions' intervals say of helpful against harmful ones.
REVISED = {
    1: "the trace corrects more actions than it spoils", -1: "the trace spoils more actions than it corrects",
    0: "corrected and spoiled actions are not told apart",
}  # fmt: skip
_SECTION = dict(section="better", expected=True)
_ACCURACIES = ("acc_cot", "acc_prompt", "acc_empty_think", "gap", "headroom_gap")
_CHOICES = {
    "choice_prompt_sum": "prompt action, forced choice by sum", "choice_prompt_mean": "prompt action, forced choice per token",
    "choice_cot_sum": "CoT action, forced choice by sum", "choice_cot_mean": "CoT action, forced choice per token",
}  # fmt: skip
_PARSED = ("parse_cot", "parse_prompt", "parse_empty_think")
#: Share of games ended by an action that did not parse, above which the caption says so.
_MANY_UNPARSED = 0.05


def _decoded(frame):
    """Rows of what was decoded: forced choice reads fewer decisions."""
    return frame[~frame["metric"].isin(_CHOICES)]


def _behaviour_caption(frame: pd.DataFrame) -> Caption:
    words = {1: "is above 0", -1: "is below 0", 0: "is not told apart from 0"}
    last = last_side(frame, words, metric="gap")
    message = [change("CoT accuracy", frame, metric="acc_cot"), change("Prompt accuracy", frame, metric="acc_prompt")]
    message += [f"The last gap {last}."] if last else []
    drawn = "Top: agreement with the reference action. Bottom: CoT − prompt, also over the headroom."
    readings = {STYLE[metric][0]: dict(metric=metric) for metric in _ACCURACIES}
    readings |= {"McNemar's test of the gap, p": dict(metric="mcnemar_p")}
    readings |= {name: dict(metric=metric) for metric, name in _CHOICES.items()}
    return Caption(" ".join(filter(None, message)), drawn, size(_decoded(frame)), numbers(frame, readings))


def _parse_caption(frame: pd.DataFrame) -> Caption:
    rows, rare = [], {}
    for split in splits_of(frame):
        for metric in _PARSED:
            of = pick(frame, split=split, metric=metric).dropna(subset="value")
            if of.empty:
                continue
            worst, name = of.loc[of["value"].idxmin()], STYLE[metric][0]
            lowest = {"lowest": f"{value(worst)} (step {int(worst['step'])})"}
            rows.append(row(name, split, ends(of)) | lowest)
            if ends(of).last["value"] < READABLE:
                rare.setdefault(name, []).append(split)
    message = "At the last checkpoint every mode's action parses on at least half of the decisions."
    if rare:
        kinds = clause({split: listed(name for name in rare if split in rare[name]) for split in splits_of(frame)
                        if any(split in of for of in rare.values())})  # fmt: skip
        message = f"Fewer than half of the decisions parse at the last checkpoint, so accuracy says little: {kinds}."
    drawn = "Share of decisions whose decoded text parses to an action, by mode."
    return Caption(message, drawn, size(_decoded(frame)), pd.DataFrame(rows))


def revised(frame: pd.DataFrame, split: str) -> tuple[int, Ends, Ends] | None:
    """1 where helpful revisions are more than harmful ones at the last checkpoint, -1 fewer, 0 not told apart; and both."""
    helpful, harmful = (ends(pick(frame, split=split, metric=f"revision_{kind}")) for kind in ("helpful", "harmful"))
    if helpful is None or harmful is None:
        return None
    sign = int(helpful.last["low"] > harmful.last["high"]) - int(harmful.last["low"] > helpful.last["high"])
    return sign, helpful, harmful


def _revision_caption(frame: pd.DataFrame) -> Caption:
    found = {split: of for split in splits_of(frame) if (of := revised(frame, split))}
    message = sentence(clause({split: REVISED[of[0]] for split, of in found.items()}))
    drawn = ("Top: how often the trace changes the action, by effect; a whisker belongs to the part whose upper edge it "
             "stands on. Bottom: agreement of both modes.")  # fmt: skip
    readings = {"revision rate": dict(metric="revision")}
    parts = ("revision_helpful", "revision_harmful", "revision_neutral", "agreement", "kappa")
    readings |= {STYLE[metric][0]: dict(metric=metric) for metric in parts}
    return Caption(message, drawn, size(_decoded(frame)), numbers(frame, readings))


def _online_caption(frame: pd.DataFrame) -> Caption:
    message = [change("Success with the trace", frame, metric="success", mode="cot")]
    message += [change("Without it, success", frame, metric="success", mode="prompt")]
    unparsed = pick(frame, metric="unparsed")
    many = unparsed[(unparsed["step"] == unparsed["step"].max()) & (unparsed["value"] > _MANY_UNPARSED)]
    if len(many):
        message.append(f"At the last checkpoint up to {100 * many['value'].max():.0f} % of games end by an unparsed action.")
    words = {"success": "games won", "unparsed": "games ended by an unparsed action", "steps": "steps per episode"}
    readings = {f"{word}, {STYLE[mode][0]}": dict(metric=metric, mode=mode)
                for metric, word in words.items() for mode in ("cot", "prompt")}  # fmt: skip
    drawn = "Both modes on the same games."
    size = f"n = {span(pick(frame, metric='success')['n'])} games; 95 % cluster-bootstrap intervals."
    return Caption(" ".join(filter(None, message)), drawn, size, numbers(frame, readings))


@figure("Accuracy with and without the trace", table="behaviour", caption=_behaviour_caption, **_SECTION)
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


@figure("Do both modes produce an action at all?", table="behaviour", caption=_parse_caption, **_SECTION)
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


@figure("What the trace changes", table="behaviour", caption=_revision_caption, **_SECTION)
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


@figure("Success in the environment", table="online", caption=_online_caption, instead="online_official", **_SECTION)
@figure("Success in ALFWorld's own games", name="online_official", table="online_official", section="better", caption=_online_caption)
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
