"""Figures of causal effects of the prompt: patching, its first-order screen, prompt reliance, own traces.

>>> frame, provenance = read_table("runs/quick/tables", "patching")
>>> spans(frame, provenance).show()
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.caption import Caption, change, clause, last_side, listing, numbers, only, size
from interp.plots.registry import figure
from interp.plots.theme import (
    BOTTOM,
    HOVER,
    corner,
    draw_heatmap,
    draw_metrics,
    draw_trace,
    effect_scale,
    facets,
    fit_values,
    layer_axis,
    panels,
    point_numbers,
    step_axis,
    uncertain,
    whisker,
    zero_line,
)
from interp.results.estimates import ends, estimate, side
from interp.results.names import DIRECTIONS, GREEN, ORANGE, PURPLE, SKY, SPAN_COLOURS, SPANS, VERMILION
from interp.results.queries import need, pick, steps_of, with_places

#: Where all positions are patched together, in reading order: name, colour, marker.
PLACES = {
    "task": (SPANS["task"], SPAN_COLOURS["task"], "diamond"),
    "history": (SPANS["history"], SPAN_COLOURS["history"], "square"),
    "observation": (SPANS["observation"], SPAN_COLOURS["observation"], "triangle-up"),
    "boundary": (SPANS["boundary"], SPAN_COLOURS["boundary"], "circle"),
    "action_tag": (SPANS["action_tag"], VERMILION, "star"),
    "prompt": ("whole prompt", PURPLE, "x"),
}


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


def _patching_caption(frame: pd.DataFrame, site: str = "resid_pre") -> Caption:
    rows = pick(_at_site(frame, site), at="boundary", metric="difference").dropna(subset="value")
    top = boundary(rows)
    message = ""
    if top is not None:
        message = (
            f"Patching the boundary moves the action by at most {estimate(top)} of the difference "
            f"(layer {int(top['layer'])}, step {int(top['step'])})."
        )
    drawn = (
        f"Effect of patching {site} at the prompt's last token (0: none, 1: the other run's "
        "action), by layer and checkpoint."
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
    drawn = (
        "Top: the share of the effect that goes directly from prompt to action. Bottom: the "
        "effects it is made of, in nats."
    )
    return Caption(message, drawn, _size(frame), numbers(frame))


def _own_traces_caption(frame: pd.DataFrame) -> Caption:
    parts = dict(direct="The prompt's direct effect", indirect="The effect of the traces that it leads to")
    message = " ".join(filter(None, (change(words, frame, metric=part) for part, words in parts.items())))
    drawn = (
        "Traces are drawn by each checkpoint from both prompts of a pair. Top: effects in nats. Bottom: the "
        "direct effect's share, where neither is negative."
    )
    return Caption(message, drawn, size(frame, "pairs", "clusters"), numbers(frame))


@_figure("Where the prompt acts: activation patching", caption=_patching_caption, expected=True)
def patching(frame: pd.DataFrame, site: str = "resid_pre") -> go.Figure:
    """Patching effect by layer and checkpoint in both directions, above its layer profile."""
    frame = need(with_places(frame), site=site, mode="prompt", at="boundary", metric="difference")
    steps, layers = steps_of(frame), sorted(frame["layer"].unique())
    directions = [name for name in ("denoise", "noise") if (frame["direction"] == name).any()]
    heights = [max(200, min(420, 21 * len(layers))), 210]
    total = sum(heights) + 96
    fig = make_subplots(
        rows=2,
        cols=len(directions),
        row_heights=heights,
        vertical_spacing=96 / total,
        horizontal_spacing=0.05,
        shared_yaxes=True,
        column_titles=[DIRECTIONS[name] for name in directions],
    )
    fig.update_layout(height=total + 44 + BOTTOM, margin=dict(t=44, r=100))
    shown = sorted({0, len(steps) // 2, len(steps) - 1})
    for col, direction in enumerate(directions, start=1):
        rows = pick(frame, direction=direction)
        readable = len(layers) <= 20 and len(steps) <= 9
        look = dict(name=direction, coloraxis="coloraxis", textfont_size=13)
        look |= dict(texttemplate="%{z:.2f}" if readable else None)
        draw_heatmap(fig, rows, "layer", "step", (layers, steps), 1, col, **look)
        colours = (SKY, GREEN, "#08306B")[-len(shown) :]
        for index, colour, dash in zip(shown, colours, ("dot", "dash", "solid"), strict=False):
            at = rows[rows["step"] == steps[index]].sort_values("layer")
            x = [layers.index(layer) for layer in at["layer"]]
            line = (f"step {steps[index]}", colour, dash, ("circle", "square", "diamond")[index % 3])
            draw_trace(fig, at, x, line, row=2, col=col, legend="legend", show=col == 1)
        step_axis(fig, steps, row=1, col=col)
        layer_axis(fig, layers, None, row=2, col=col, axis="x")
        fig.update_xaxes(title="layer", row=2, col=col)
    layer_axis(fig, layers, "layer", row=1, col=1)
    layer_axis(fig, layers, None, row=1, col=2)
    zero_line(fig, row=2)
    fit_values(fig, frame.assign(metric="effect"), ["effect"], row=2, at_least=(0.0, 1.0))
    fig.update_yaxes(title="patching effect", row=2, col=1)
    effect_scale(fig, frame["value"], len=heights[0] / total, y=1, yanchor="top")
    return fig.update_layout(legend=dict(y=(heights[1] + 2) / total, x=0))


@_figure("Which part of the prompt acts, and at which layer", name="patching_spans", caption=_spans_caption)
def spans(frame: pd.DataFrame, site: str = "resid_pre") -> go.Figure:
    """Patching effect by span and layer, a row for each direction, at the first and last checkpoint."""
    frame = need(with_places(frame), site=site, mode="prompt", metric="difference")
    frame = frame[frame["step"].isin(need(frame, at="prompt")["step"])]
    steps, layers = _ends(frame), sorted(frame["layer"].unique())
    places = [p for p in PLACES if (frame["at"] == p).any()][::-1]
    directions = [name for name in DIRECTIONS if (frame["direction"] == name).any()]
    fig = facets(len(directions), 34 * len(places), 34, [f"training step {step}" for step in steps])
    fig.update_layout(margin=dict(l=112, r=100))
    for row, direction in enumerate(directions, start=1):
        for col, step in enumerate(steps, start=1):
            of = pick(frame, direction=direction, step=step)
            look = dict(name=f"{direction}, step {step}", coloraxis="coloraxis", textfont_size=13)
            look |= dict(texttemplate="%{z:.2f}" if len(layers) <= 12 else None)
            grid = draw_heatmap(fig, of, "at", "layer", (places, layers), row, col, **look)
            unsure = uncertain(grid)
            fig.add_scatter(
                x=unsure[:, 1] + 0.38,
                y=unsure[:, 0] + 0.28,
                mode="markers",
                marker=dict(size=6, color=ORANGE, line=dict(width=1, color="#333333")),
                hoverinfo="skip",
                name="interval covers 0",
                legendgroup="unsure",
                showlegend=row == col == 1,
                row=row,
                col=col,
            )
            layer_axis(fig, layers, "layer" if row == len(directions) else None, row=row, col=col, axis="x")
            fig.update_xaxes(range=[-0.5, len(layers) - 0.5], showgrid=False, row=row, col=col)
            fig.update_yaxes(
                tickvals=list(range(len(places))),
                ticktext=[PLACES[p][0] for p in places],
                showgrid=False,
                range=[-0.5, len(places) - 0.5],
                row=row,
                col=col,
            )
        fig.update_yaxes(title=direction, row=row, col=1)
    effect_scale(fig, frame["value"])
    return fig


@_figure("Attribution patching against true patching", name="patching_screen", caption=_screen_caption)
def screen(frame: pd.DataFrame, site: str = "resid_pre") -> go.Figure:
    """First-order estimate against true effect, a point for each span and layer, at both ends."""
    frame = pick(with_places(frame), site=site, mode="prompt")
    estimated, true = (need(frame, metric=metric) for metric in ("attribution", "difference"))
    counts = [name for name in ("n", "n_groups", "n_dropped") if name in frame]  # so the same pairs
    keys = ["step", "layer", "direction", "at", *counts]
    both = true.merge(estimated[[*keys, "value", "low", "high"]], on=keys, suffixes=("_x", "")).dropna(
        subset=["value", "value_x"]
    )
    if both.empty:
        raise ValueError("no pair is kept, so there are no effects to compare.")
    steps, directions = _ends(both), [name for name in DIRECTIONS if (both["direction"] == name).any()]
    fig = facets(len(directions), 250, 24, [f"training step {step}" for step in steps])
    drawn = both[both["step"].isin(steps)]
    named = set()
    for row, direction in enumerate(directions, start=1):
        for col, step in enumerate(steps, start=1):
            for place, (name, colour, symbol) in PLACES.items():
                of = pick(drawn, direction=direction, step=step, at=place)
                if of.empty:
                    continue
                across = of.assign(value=of["value_x"], low=of["low_x"], high=of["high_x"])
                fig.add_scatter(
                    x=of["value_x"],
                    y=of["value"],
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=name not in named,
                    marker=dict(symbol=symbol, size=9, color=colour),
                    error_x=whisker(across, colour),
                    error_y=whisker(of, colour),
                    customdata=point_numbers(of),
                    hovertemplate=HOVER,
                    text=of["layer"],
                    row=row,
                    col=col,
                )
                named.add(name)
            r = pick(frame, metric="attribution_pearson", step=step, direction=direction)
            corner(fig, f"r = {estimate(r.iloc[0])}" if len(r) else "", row, col)
        fig.update_yaxes(title=f"{direction},<br>estimated effect", row=row, col=1)
    return _parity(fig, drawn, len(directions), len(steps))


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
    fig = panels(frame, {"prompt reliance": 230, "effect on the action (nats)": 210})
    parts = ["direct", "via_cot", "via_text", "via_state", "total", "interaction"]
    draw_metrics(fig, frame, ["prompt_reliance"], row=1)
    draw_metrics(fig, frame, parts, row=2, thin=("via_text", "via_state"))
    fit_values(fig, frame, parts, row=2)
    _share_axis(fig, frame, row=1)
    zero_line(fig, row=2)
    return fig


@figure(
    "The prompt's effects through the agent's own traces",
    table="own_traces",
    section="depends",
    caption=_own_traces_caption,
)
def own_traces(frame: pd.DataFrame) -> go.Figure:
    """Direct and indirect effect through own traces over checkpoints, above the direct one's share."""
    fig = panels(frame, {"effect on the action (nats)": 230, "prompt reliance": 210})
    parts = ["direct", "indirect", "total", "interaction"]
    draw_metrics(fig, frame, parts, row=1, thin=("interaction",))
    draw_metrics(fig, frame, ["prompt_reliance"], row=2)
    fit_values(fig, frame, parts, row=1)
    _share_axis(fig, frame, row=2)
    zero_line(fig, row=1)
    return fig


def _share_axis(fig: go.Figure, frame: pd.DataFrame, row: int) -> None:
    """Fit a panel to prompt reliance, with a line where both ways are equal."""
    fit_values(fig, frame, ["prompt_reliance"], row=row, at_least=(0.0, 1.0))
    fig.add_hline(y=0.5, row=row, col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    fig.add_annotation(
        text="direct = via-CoT",
        x=1,
        xanchor="right",
        xref="x domain",
        y=0.5,
        yanchor="top",
        showarrow=False,
        font=dict(size=12, color="#666666"),
        row=row,
        col=1,
    )


def _ends(frame: pd.DataFrame) -> list[int]:
    return list(dict.fromkeys([steps_of(frame)[0], steps_of(frame)[-1]]))
