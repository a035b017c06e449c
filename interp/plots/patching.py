"""Figures of causal effects of the prompt: patching, its first-order screen, prompt reliance, own traces.

>>> frame, provenance = read_table("runs/quick/tables", "patching")
>>> spans(frame, provenance).show()
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, clause, last_side, listing, numbers, only, size
from interp.plots.registry import figure
from interp.plots.series import at_ends, draw_series
from interp.plots.theme import (
    HOVER,
    corner,
    draw_metrics,
    facets,
    fit_values,
    layer_axis,
    note_n,
    panels,
    point_numbers,
    sizes,
    step_axis,
    whisker,
    zero_line,
)
from interp.results.estimates import ends, estimate, side, span
from interp.results.names import DIRECTIONS, PURPLE, SPAN_COLOURS, SPANS, VERMILION
from interp.results.queries import need, pick, steps_of, with_places
from interp.results.wording import listed

#: Where all positions are patched together, in reading order: name, colour, dash, marker.
PLACES = {
    "task": (SPANS["task"], SPAN_COLOURS["task"], "dash", "diamond"),
    "history": (SPANS["history"], SPAN_COLOURS["history"], "solid", "square"),
    "observation": (SPANS["observation"], SPAN_COLOURS["observation"], "dash", "triangle-up"),
    "boundary": (SPANS["boundary"], SPAN_COLOURS["boundary"], "dot", "circle"),
    "action_tag": (SPANS["action_tag"], VERMILION, "dot", "star"),
    "prompt": ("whole prompt", PURPLE, "solid", "x"),
}
#: Effects that are at most this large for sure are none that a figure shows: a hundredth of the difference.
NOTHING = 0.01


#: Which way the larger part of the prompt's effect goes, by the side of 1/2 on which prompt reliance lies.
WAYS = {
    1: "more of the effect goes around the trace",
    -1: "more of the effect goes through the trace",
    0: "neither way is the larger for sure",
}
_MODES = {"prompt": "action read at the boundary", "cot": "action read after the trace"}
_NAMES: dict[str, Callable[[str], str]] = {
    "mode": _MODES.__getitem__,
    "direction": str,
    "at": lambda span: PLACES[span][0] if span in PLACES else span,
}
_figure = partial(figure, section="depends", table="patching")


def boundary(frame: pd.DataFrame) -> pd.Series | None:
    """The largest effect, up or down, of patching the boundary alone."""
    rows = pick(with_places(frame), at="boundary", metric="difference").dropna(subset="value")
    return rows.loc[rows["value"].abs().idxmax()] if len(rows) else None


def best_spans(frame: pd.DataFrame) -> list[pd.Series]:
    """The part of the prompt and layer that give most back, at the first and last checkpoint."""
    rows = pick(with_places(frame), mode="prompt", metric="difference", direction="denoise").dropna(
        subset="value"
    )
    rows = rows[rows["at"].isin(("task", "history", "observation"))]
    steps = sorted({rows["step"].min(), rows["step"].max()}) if len(rows) else []
    return [rows.loc[pick(rows, step=step)["value"].idxmax()] for step in steps]


def _largest(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The largest effect of each group at the first and last checkpoint."""
    rows = only(rows, step=(rows["step"].min(), rows["step"].max())).dropna(subset="value")
    return rows.loc[rows.groupby([*keys, "step"], sort=False)["value"].idxmax()]


def _with_unpaired(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a row for every reason why decisions have no pair, as the provenance says."""
    rows = [
        {table.columns[0]: f"no pair: {why}", "n": str(n)}
        for why, n in sorted((frame.attrs.get("not_paired") or {}).items())
    ]
    if not rows or table.empty:
        return table
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True).fillna("–")


def _size(rows: pd.DataFrame) -> str:
    """How many pairs, those that every checkpoint keeps except in tables of older releases."""
    return size(rows, "common pairs" if "n_own" in rows else "pairs", "clusters")


def _at_site(frame: pd.DataFrame, site: str) -> pd.DataFrame:
    return pick(with_places(frame), site=site)


def _beyond(rows: pd.DataFrame) -> pd.DataFrame:
    """The effects that are larger than `NOTHING` for sure, up or down."""
    return rows[(rows["low"] > NOTHING) | (rows["high"] < -NOTHING)]


def _patching_caption(frame: pd.DataFrame, site: str = "resid_pre") -> Caption:
    every = pick(_at_site(frame, site), metric="difference").dropna(subset="value")
    rows = pick(every, at="boundary")
    top = boundary(rows)
    message = ""
    if top is not None:
        where = f"{estimate(top)} (layer {int(top['layer'])}, step {int(top['step'])})"
        message = f"Patching the boundary alone moves the action by at most {where}."
        if _beyond(rows).empty:
            message = (
                f"Patching the boundary alone moves nothing: none of {len(rows)} effects is above "
                f"{NOTHING:g} for sure, at most {where}."
            )
    drawn = (
        f"Patching {site} at all positions of a span (1: the other run's action), at its best layer on "
        "average."
    )
    table = listing(_largest(rows, ["mode", "direction"]), _NAMES)
    return Caption(message, drawn, _size(rows), _with_unpaired(table, frame))


def _spans_caption(frame: pd.DataFrame, site: str = "resid_pre") -> Caption:
    every = pick(_at_site(frame, site), mode="prompt")
    rows = pick(every, metric="difference").dropna(subset="value")
    rows = rows[rows["step"].isin(pick(rows, at="prompt")["step"])]
    message = ""
    if tops := best_spans(rows):
        message = (
            f"Of the prompt's parts, {PLACES[tops[-1]['at']][0]} gives most back at step "
            f"{int(tops[-1]['step'])}: {estimate(tops[-1])} (layer {int(tops[-1]['layer'])})."
        )
    drawn = f"Effect of patching {site} at all positions of a span, read at the boundary."
    shown = [_largest(rows, ["at", "direction"])]
    for top in tops[-1:]:  # the other metrics of that cell
        cell = pick(every, step=top["step"], direction="denoise", at=top["at"], layer=top["layer"]).dropna(
            subset="value"
        )
        shown.append(only(cell, metric=("logit_diff", "logp", "kl")))
    table = listing(pd.concat(shown), _NAMES)
    return Caption(message, drawn, _size(rows), _with_unpaired(table, frame))


def _screen_caption(frame: pd.DataFrame, site: str = "resid_pre") -> Caption:
    rows = pick(_at_site(frame, site), layer=-1).dropna(subset="value").assign(split="")
    words = {1: "a positive correlation", 0: "no clear correlation", -1: "a negative correlation"}
    verdicts = {}
    for mode, name in _MODES.items():
        if both := ends(pick(rows, metric="attribution_pearson", mode=mode, direction="denoise")):
            verdicts[f"({name})"] = words[side(both.last)]
    message = f"First-order estimates against true effects, last checkpoint: {clause(verdicts)}."
    message = message if verdicts else ""
    drawn = (
        f"Gradient × change of {site} against true patching, by span and layer; dotted: equal. r: "
        "over single pairs."
    )
    table = numbers(rows.drop(columns="split"), _NAMES)
    return Caption(message, drawn, _size(rows), _with_unpaired(table, frame))


def _reliance_caption(frame: pd.DataFrame) -> Caption:
    message = change("Prompt reliance", frame, metric="prompt_reliance")
    last = last_side(frame, WAYS, 0.5, metric="prompt_reliance")
    message += f" At the last checkpoint {last}." if last else ""
    drawn = "Top: the share of the effect that goes directly from prompt to action. Bottom: effects."
    return Caption(message, drawn, _size(frame), numbers(frame))


def _own_traces_caption(frame: pd.DataFrame) -> Caption:
    parts = dict(direct="The prompt's direct effect", indirect="The effect of the traces that it leads to")
    message = " ".join(filter(None, (change(words, frame, metric=part) for part, words in parts.items())))
    drawn = (
        "Traces are drawn by each checkpoint from both prompts of a pair. Top: the direct effect's share. "
        "Bottom: effects in nats."
    )
    return Caption(message, drawn, size(frame, "pairs", "clusters"), numbers(frame))


def _drawn(frame: pd.DataFrame, site: str) -> pd.DataFrame:
    """The effects on the action read at the boundary, without spans that have none anywhere.

    Where no checkpoint keeps a pair, all have no value, and all are given: the axes are drawn, and n = 0.
    """
    every = need(_at_site(frame, site), mode="prompt", metric="difference")
    rows = every.dropna(subset="value")
    acting = _beyond(rows)["at"].unique()
    return only(rows, at=acting) if len(acting) else every if rows.empty else rows


def _directions(rows: pd.DataFrame) -> list[dict]:
    return [dict(direction=name) for name in DIRECTIONS if (rows["direction"] == name).any()]


@_figure("Where the prompt acts: activation patching", caption=_patching_caption, expected=True)
def patching(frame: pd.DataFrame, site: str = "resid_pre") -> go.Figure:
    """Effect of patching each span over checkpoints, at the layer where it is largest on average.

    Patching the whole prompt, which gives all back at layer 0, is left to `spans`.
    """
    rows = _drawn(frame, site)
    rows = rows[rows["at"] != "prompt"]
    known = rows.dropna(subset="value")
    if len(known) and _beyond(known).empty:
        spans = listed(sorted({PLACES[at][0] for at in known["at"] if at in PLACES}))
        raise ValueError(
            f"none of {len(known)} effects of patching the {spans} is above {NOTHING:g} for sure, at any of "
            f"{known['step'].nunique()} checkpoints (n = {span(known['n'])} pairs)."
        )
    means = need(rows).groupby(["at", "layer"])["value"].mean().fillna(0)
    best = {at: int(means[at].idxmax()) for at in PLACES if at in means}
    rows = rows[rows["layer"] == rows["at"].map(best)]
    looks = {at: (f"{PLACES[at][0]}, layer {layer}", *PLACES[at][1:]) for at, layer in best.items()}
    steps, panels = steps_of(rows), _directions(rows)
    fig = facets(1, 190, 20, [DIRECTIONS[where["direction"]] for where in panels])
    draw_series(fig, rows, looks, by="at", panels=panels, order=steps)
    for col in range(1, len(panels) + 1):
        step_axis(fig, steps, 1, col)
    fig.update_yaxes(title="patching effect", row=1, col=1)
    return _fit(fig, rows)


@_figure("Which part of the prompt acts, and at which layer", name="patching_spans", caption=_spans_caption)
def spans(frame: pd.DataFrame, site: str = "resid_pre") -> go.Figure:
    """Patching effect by span and layer, a row for each direction, at the first and last checkpoint."""
    rows = _drawn(frame, site)
    rows = rows[rows["step"].isin(need(rows, at="prompt")["step"])]
    steps, layers, directions = at_ends(rows), sorted(rows["layer"].unique()), _directions(rows)
    looks = {at: look for at, look in PLACES.items() if (rows["at"] == at).any()}
    fig = facets(len(directions), 150, 24, [f"training step {step}" for step in steps])
    for row, where in enumerate(directions, start=1):
        panels = [where | dict(step=step) for step in steps]
        lines: dict[str, Any] = dict(
            by="at", panels=panels, row=row, along="layer", order=layers, legend="legend"
        )
        draw_series(fig, rows, looks, **lines)
        for col in range(1, len(steps) + 1):
            layer_axis(fig, layers, "layer" if row == len(directions) else None, row, col, axis="x")
        fig.update_yaxes(title=f"effect, {where['direction']}", row=row, col=1)
    return _fit(fig, only(rows, step=steps))


def _fit(fig: go.Figure, rows: pd.DataFrame) -> go.Figure:
    """Axes from no effect to all of it, wider where effects are, and how many pairs there are."""
    fit_values(fig, rows, ["difference"], row=None, at_least=(0.0, 1.0))
    return note_n(fig, sizes(rows, "pairs", "clusters"))


@_figure("Attribution patching against true patching", name="patching_screen", caption=_screen_caption)
def screen(frame: pd.DataFrame, site: str = "resid_pre") -> go.Figure:
    """First-order estimate against true effect, a point for each span and layer, at both ends."""
    frame = pick(_at_site(frame, site), mode="prompt")
    estimated, true = (need(frame, metric=metric) for metric in ("attribution", "difference"))
    counts = [name for name in ("n", "n_groups", "n_dropped") if name in frame]  # so the same pairs
    keys = ["step", "layer", "direction", "at", *counts]
    both = true.merge(estimated[[*keys, "value", "low", "high"]], on=keys, suffixes=("_x", "")).dropna(
        subset=["value", "value_x"]
    )
    if both.empty:
        raise ValueError("no pair is kept, so there are no effects to compare.")
    steps, directions = at_ends(both), _directions(both)
    drawn = both[both["step"].isin(steps)]
    fig = facets(len(directions), 190, 24, [f"training step {step}" for step in steps], across=len(steps))
    for row, where in enumerate(directions, start=1):
        for col, step in enumerate(steps, start=1):
            _draw_spans(fig, pick(drawn, step=step, **where), row, col)
            r = pick(frame, metric="attribution_pearson", step=step, **where)
            corner(fig, f"r = {estimate(r.iloc[0])}" if len(r) else "", row, col)
        fig.update_yaxes(title=f"estimate, {where['direction']}", row=row, col=1)
    note_n(fig, sizes(drawn, "pairs", ""))
    return _parity(fig, drawn, len(directions), len(steps))


def _draw_spans(fig: go.Figure, rows: pd.DataFrame, row: int, col: int) -> None:
    """A point with both intervals for each span and layer."""
    for place, (name, colour, _, symbol) in PLACES.items():
        of = pick(rows, at=place)
        if of.empty:
            continue
        across = of.assign(value=of["value_x"], low=of["low_x"], high=of["high_x"])
        fig.add_scatter(
            x=of["value_x"],
            y=of["value"],
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=not any(trace.name == name for trace in fig.data),
            marker=dict(symbol=symbol, size=7, color=colour),
            error_x=whisker(across, colour),
            error_y=whisker(of, colour),
            customdata=point_numbers(of),
            hovertemplate=HOVER,
            text=of["layer"],
            row=row,
            col=col,
        )


def _parity(fig: go.Figure, drawn: pd.DataFrame, rows: int, columns: int) -> go.Figure:
    """Axes that fit estimated and true effects, and the line on which they are equal."""
    sides = {}
    for axis, end in (("x", "_x"), ("y", "")):
        low = drawn[[f"value{end}", f"low{end}"]].min().min()
        high = drawn[[f"value{end}", f"high{end}"]].max().max()
        margin = 0.05 * max(high - low, 0.1)
        sides[axis] = [min(0.0, low) - margin, max(1.0, high) + margin]
    ends = [max(sides["x"][0], sides["y"][0]), min(sides["x"][1], sides["y"][1])]
    line = dict(
        x0=ends[0], y0=ends[0], x1=ends[1], y1=ends[1], line=dict(color="#888888", width=1, dash="dot")
    )
    for row in range(1, rows + 1):
        for col in range(1, columns + 1):
            fig.add_shape(type="line", layer="below", row=row, col=col, **line)
    fig.update_xaxes(range=sides["x"])
    fig.update_yaxes(range=sides["y"])
    fig.update_xaxes(title="true patching effect", row=rows)
    return fig


@figure("Prompt reliance", table="reliance", section="depends", caption=_reliance_caption, expected=True)
def reliance(frame: pd.DataFrame) -> go.Figure:
    """Prompt reliance over checkpoints, above the effects that it is made of."""
    return _share_and_parts(frame, ["direct", "via_cot", "via_state"])


@figure(
    "The prompt's effects through the agent's own traces",
    table="own_traces",
    section="depends",
    caption=_own_traces_caption,
)
def own_traces(frame: pd.DataFrame) -> go.Figure:
    """Prompt reliance through own traces over checkpoints, above the direct and the indirect effect."""
    return _share_and_parts(frame, ["direct", "indirect"])


def _share_and_parts(frame: pd.DataFrame, parts: list[str]) -> go.Figure:
    """Prompt reliance, on an axis of its own, above effects in nats."""
    fig = panels(frame, {"prompt reliance": 150, "effect (nats)": 150})
    draw_metrics(fig, frame, ["prompt_reliance"], row=1)
    fit_values(fig, frame, ["prompt_reliance"], row=1)
    draw_metrics(fig, frame, parts, row=2)
    fit_values(fig, frame, parts, row=2)
    zero_line(fig, row=1)
    zero_line(fig, row=2)
    return note_n(fig, sizes(pick(frame, metric="prompt_reliance"), "pairs", "clusters"))
