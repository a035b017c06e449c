"""Figures from tables: each function takes one tidy table and returns one plotly figure in the house style.

>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, in every figure (see `interp.style`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.style import (
    ALONG,
    ARMS,
    BOTTOM,
    CELL,
    DIRECTIONS,
    GREEN,
    GREY,
    HOVER,
    INTERVAL,
    SEQUENTIAL,
    SHARES,
    SKY,
    SPANS,
    SPLITS,
    STEERED,
    STEP_TITLE,
    STYLE,
    TOP,
    VERMILION,
    VERSIONS,
    cell_numbers,
    draw_line,
    draw_metrics,
    draw_trace,
    fit_values,
    layer_axis,
    meta,
    need,
    panels,
    pick,
    point_numbers,
    splits_of,
    step_axis,
    steps_of,
    whisker,
    with_mode,
    zero_line,
)  # fmt: skip
from interp.tables import ESTIMATE_COLUMNS


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


def patching(frame: pd.DataFrame, provenance: dict | None = None, site: str = "resid_pre") -> go.Figure:
    """Patching effect by layer and checkpoint for both directions, above its layer profile at three checkpoints.

    Args:
        frame: table `patching` (step, mode, layer, site, direction, value, low, high, n, n_groups, n_dropped); of the
            modes, `prompt` is drawn.
        provenance: kept in the figure's `layout.meta`.
        site: activation that was patched.
    """
    frame = need(with_mode(frame), "patching", site=site, mode="prompt")
    steps, layers = steps_of(frame), sorted(frame["layer"].unique())
    directions = [name for name in ("denoise", "noise") if (frame["direction"] == name).any()]
    heights = [max(200, min(420, 21 * len(layers))), 210]
    total = sum(heights) + 96
    fig = make_subplots(
        rows=2, cols=len(directions), row_heights=heights, vertical_spacing=96 / total, horizontal_spacing=0.05,
        shared_yaxes=True, column_titles=[DIRECTIONS[name] for name in directions],
    )  # fmt: skip
    fig.update_layout(template="interp", height=total + 44 + BOTTOM, meta=meta("patching", provenance))
    fig.update_layout(margin=dict(t=44, r=100))
    low, high = min(0.0, frame["value"].min()), max(1.0, frame["value"].max())
    shown = sorted({0, len(steps) // 2, len(steps) - 1})
    for col, direction in enumerate(directions, start=1):
        rows = pick(frame, direction=direction)
        grid = {name: rows.pivot(index="layer", columns="step", values=name) for name in ESTIMATE_COLUMNS}
        grid = {name: table.reindex(index=layers, columns=steps) for name, table in grid.items()}
        readable = len(layers) <= 20 and len(steps) <= 9
        fig.add_heatmap(
            z=grid["value"].to_numpy(), x=list(range(len(steps))), y=list(range(len(layers))), name=direction,
            coloraxis="coloraxis", customdata=cell_numbers(grid), hovertemplate=CELL, xgap=1, ygap=1,
            texttemplate="%{z:.2f}" if readable else None, textfont_size=13, row=1, col=col,
        )  # fmt: skip
        for index, colour, dash in zip(shown, (SKY, GREEN, "#08306B")[-len(shown) :], ("dot", "dash", "solid")):
            at = rows[rows["step"] == steps[index]].sort_values("layer")
            x = [layers.index(layer) for layer in at["layer"]]
            look = (f"step {steps[index]}", colour, dash, ("circle", "square", "diamond")[index % 3])
            draw_trace(fig, at, x, look, row=2, col=col, legend="legend", show=col == 1)
        step_axis(fig, steps, row=1, col=col)
        layer_axis(fig, layers, None, row=2, col=col, axis="x")
        fig.update_xaxes(title="layer", row=2, col=col)
    layer_axis(fig, layers, "layer", row=1, col=1)
    layer_axis(fig, layers, None, row=1, col=2)
    zero_line(fig, row=2)
    fit_values(fig, frame.assign(metric="effect"), ["effect"], row=2, at_least=(0.0, 1.0))
    fig.update_yaxes(title="patching effect", row=2, col=1)
    fig.update_layout(
        coloraxis=dict(
            cmin=low, cmax=high, colorscale=SEQUENTIAL,
            colorbar=dict(title=dict(text="effect (0 = none, 1 = full)", side="right", font_size=14), x=1.015,
                          thickness=13, len=heights[0] / total, y=1, yanchor="top", outlinewidth=0, tickfont_size=13),
        ),
        legend=dict(y=(heights[1] + 2) / total, x=0),
    )  # fmt: skip
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


def conflict(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """What the agent does with an inserted trace: keep, follow, other and unparsed over checkpoints, a panel per arm.

    Args:
        frame: table `conflict` (step, split, arm, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    arms = [arm for arm in ARMS if (frame["arm"] == arm).any()]
    splits, steps = splits_of(frame), steps_of(frame)
    height = 170 * len(splits) + 22 * (len(splits) - 1)
    fig = make_subplots(
        rows=len(splits), cols=len(arms), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.014,
        vertical_spacing=22 / height, column_titles=[ARMS[arm] for arm in arms],
    )  # fmt: skip
    fig.update_layout(template="interp", height=height + TOP + BOTTOM, meta=meta("conflict", provenance))
    for row, split in enumerate(splits, start=1):
        for col, arm in enumerate(arms, start=1):
            rows = pick(frame, split=split, arm=arm)
            for metric in ("keep", "follow", "other", "unparsed"):
                thin = metric in ("other", "unparsed")
                draw_line(fig, pick(rows, metric=metric), steps, metric, row, col, thin=thin, show=row == col == 1)
            step_axis(fig, steps, row=row, col=col, room=3, title=False)
        fig.update_yaxes(title=f"rate, {SPLITS[split].lower()}", row=row, col=1)
        kept = pick(frame, split=split, arm="self_splice", metric="keep")["value"]
        if len(kept):
            good = bool((kept == 1).all())
            text = "check passed:<br>keep = 1 exactly" if good else f"CHECK FAILED:<br>keep falls to {kept.min():.3f}"
            fig.add_annotation(
                text=text, x=(len(steps) - 1) / 2, y=0.5, showarrow=False, row=row, col=arms.index("self_splice") + 1,
                font=dict(size=13, color=GREY if good else VERMILION),
            )  # fmt: skip
    fig.update_yaxes(range=[-0.05, 1.07])
    fig.add_annotation(
        text=STEP_TITLE, xref="paper", yref="paper", x=0.5, y=0, yshift=-30, yanchor="top", showarrow=False
    )
    fig.update_layout(legend=dict(y=1 + 30 / height))
    return fig


def early(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Area over the early-answering curve over checkpoints, above the rate of the same action after parts of the trace.

    Args:
        frame: table `early` (step, split, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    fig = panels(frame, "early", {"area over the curve": 200, "same action as in the end": 210}, provenance)
    areas, same = ["area_action", "area_distribution"], ["same_0", "same_25", "same_50", "same_75"]
    draw_metrics(fig, frame, areas, row=1, thin=("area_distribution",))
    draw_metrics(fig, frame, same, row=2, thin=("same_25", "same_75"))
    fit_values(fig, frame, areas, row=1, at_least=(0.0, 0.5))
    fit_values(fig, frame, same, row=2, at_least=(0.0, 1.0))
    return fig


def shares(frame: pd.DataFrame, provenance: dict | None = None, version: str = "sink_free") -> go.Figure:
    """Share over token share of every span at the first and last checkpoint, a row per definition (log scale, 1 = uniform).

    Args:
        frame: table `shares` (step, split, span, definition, version, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
        version: `all` positions, or `sink_free`: without the first one.
    """
    chosen = need(frame, "shares", version=version, metric="ratio")
    chosen = chosen[chosen["value"] > 0]
    definitions = [name for name in SHARES if (chosen["definition"] == name).any()]
    spans = [name for name in SPANS if (chosen["span"] == name).any()]
    splits, steps = splits_of(chosen), steps_of(chosen)
    gap, height = 24, 190 * len(definitions) + 24 * (len(definitions) - 1)
    fig = make_subplots(
        rows=len(definitions), cols=len(splits), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03,
        vertical_spacing=gap / height, column_titles=[SPLITS[split] for split in splits],
    )  # fmt: skip
    fig.update_layout(template="interp", height=height + TOP + BOTTOM + 44, meta=meta("shares", provenance))
    fig.update_layout(margin=dict(b=BOTTOM + 44), legend=dict(y=1 + 28 / height))
    ends = list(dict.fromkeys([steps[0], steps[-1]]))
    drawn = chosen[chosen["step"].isin(ends)]
    lowest = drawn.loc[drawn["low"] > 0, "low"].min()
    bottom, top = np.nanmin([drawn["value"].min(), lowest, 0.8]), np.nanmax([drawn["value"].max(), drawn["high"].max(), 1.25])
    for row, definition in enumerate(definitions, start=1):
        for col, split in enumerate(splits, start=1):
            for step, colour, symbol in zip(ends, ("#08306B",) if len(ends) == 1 else (SKY, "#08306B"), ("circle", "square")):
                rows = pick(drawn, split=split, definition=definition, step=step).set_index("span")
                rows = rows.reindex([span for span in spans if span in rows.index]).reset_index()
                rows["low"] = rows["low"].clip(lower=bottom)  # 0 has no place on a log axis
                shift = 0.0 if len(ends) == 1 else 0.13 if step == ends[-1] else -0.13
                fig.add_scatter(
                    x=[spans.index(span) + shift for span in rows["span"]], y=rows["value"], mode="markers", name=f"step {step}",
                    legendgroup=str(step), showlegend=row == col == 1, marker=dict(symbol=symbol, size=8, color=colour),
                    error_y=whisker(rows, colour), customdata=point_numbers(rows), hovertemplate=HOVER, row=row, col=col,
                )  # fmt: skip
            fig.update_xaxes(
                tickmode="array", tickvals=list(range(len(spans))), ticktext=[SPANS[span] for span in spans], tickangle=-40,
                range=[-0.5, len(spans) - 0.5], row=row, col=col,
            )  # fmt: skip
        fig.update_yaxes(title=f"{SHARES[definition].replace(', ', ',<br>')}", row=row, col=1)
    margin = 0.05 * np.log10(top / bottom)
    ticks = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 3)]
    fig.update_yaxes(type="log", range=[np.log10(bottom) - margin, np.log10(top) + margin], tickvals=ticks, tickformat=".4~g")
    fig.add_hline(y=1, row="all", col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    fig.add_annotation(
        text=f"span; share / token share by training step, {VERSIONS[version]} (1 = uniform)", xref="paper", yref="paper", x=0.5, y=0,
        yshift=-74, yanchor="top", showarrow=False,
    )  # fmt: skip
    return fig


def steering(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Flips, and flips to the target class, against alpha for each kind of direction, a panel per position, at the first and last checkpoint.

    Args:
        frame: table `steering` (step, split, position, direction, alpha, metric, value, low, high, n, n_groups); in-domain.
        provenance: kept in the figure's `layout.meta`.
    """
    frame = need(frame, "steering", split="in_domain")
    positions = [name for name in STEERED if (frame["position"] == name).any()]
    words = {"flip": "flips", "to_target": "flips to target"}
    rows = [(step, metric) for step in sorted({steps_of(frame)[0], steps_of(frame)[-1]}) for metric in words]
    for metric in words:
        need(frame, "steering", metric=metric)
    height = 150 * len(rows) + 20 * (len(rows) - 1)
    fig = make_subplots(
        rows=len(rows), cols=len(positions), shared_xaxes=True, shared_yaxes="all", horizontal_spacing=0.014,
        vertical_spacing=20 / height, column_titles=[STEERED[name] for name in positions],
    )  # fmt: skip
    fig.update_layout(template="interp", height=height + TOP + BOTTOM, meta=meta("steering", provenance))
    alphas = sorted(frame["alpha"].unique())
    for row, (step, metric) in enumerate(rows, start=1):
        for col, position in enumerate(positions, start=1):
            for kind in ALONG:
                of = pick(frame, step=step, position=position, direction=kind, metric=metric).sort_values("alpha")
                look = STYLE[f"along_{kind}"]
                draw_trace(fig, of, list(of["alpha"]), look, row, col, "legend", row == col == 1, thin=kind != "probe")
        fig.update_yaxes(title=f"{words[metric]},<br>training step {step}", row=row, col=1)
    fig.update_xaxes(tickmode="array", tickvals=alphas, ticktext=[f"{alpha:g}" for alpha in alphas])
    fit_values(fig, frame[frame["step"].isin([step for step, _ in rows])], list(words), row=None)
    fig.add_annotation(
        text="alpha (in norms of the residual)", xref="paper", yref="paper", x=0.5, y=0, yshift=-30, yanchor="top", showarrow=False
    )
    fig.update_layout(legend=dict(y=1 + 30 / height))
    return fig
