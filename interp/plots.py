"""Figures from tables: each function takes one tidy table and returns one plotly figure in the house style.

>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, in every figure. A band or a whisker is always the table's
95 % interval. Checkpoints stand evenly spaced in training order, so that step 0 (the base model) has a place.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from plotly.subplots import make_subplots

# Okabe and Ito's palette, which survives the common colour-vision deficiencies.
BLACK, GREY, PALE = "#000000", "#7F7F7F", "#BBBBBB"
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"

#: Concept: name in legends, colour, dash, marker. One concept looks the same in every figure.
STYLE = {
    "acc_cot": ("CoT action", VERMILION, "solid", "circle"),
    "acc_prompt": ("prompt action", BLUE, "solid", "square"),
    "acc_empty_think": ("empty-think action", SKY, "dash", "diamond"),
    "gap": ("gap (CoT − prompt)", PURPLE, "solid", "circle"),
    "headroom_gap": ("headroom gap (gap / (1 − prompt))", BLACK, "dash", "square"),
    "agreement": ("agreement of prompt and CoT action", BLACK, "solid", "circle"),
    "kappa": ("Cohen's κ", PURPLE, "dash", "square"),
    "revision_helpful": ("helpful (wrong to right)", GREEN, "solid", "circle"),
    "revision_neutral": ("neutral", PALE, "solid", "diamond"),
    "revision_harmful": ("harmful (right to wrong)", ORANGE, "solid", "square"),
    "probe": ("probe (nested layer)", BLUE, "solid", "circle"),
    "majority": ("majority class", GREY, "dash", "line-ew"),
    "previous_action": ("previous action", ORANGE, "solid", "square"),
    "tfidf": ("TF-IDF of prompt", GREEN, "solid", "diamond"),
    "prompt_length": ("prompt length", PURPLE, "dot", "triangle-up"),
    "embedding": ("embedding layer", SKY, "solid", "triangle-down"),
    "shuffled": ("shuffled labels", BLACK, "dot", "x"),
    "prompt_reliance": ("prompt reliance = direct / (direct + via-CoT)", BLUE, "solid", "square"),
    "direct": ("direct (prompt)", BLUE, "solid", "square"),
    "via_cot": ("via CoT", VERMILION, "solid", "circle"),
    "total": ("total", BLACK, "solid", "diamond"),
    "interaction": ("interaction", GREY, "dot", "x"),
    "keep": ("keep (own CoT action)", BLUE, "solid", "square"),
    "follow": ("follow (inserted trace's action)", VERMILION, "solid", "circle"),
    "other": ("other action", GREY, "dash", "diamond"),
    "unparsed": ("unparsed", PALE, "dot", "x"),
}
for _mode in ("cot", "prompt", "empty_think"):
    STYLE[_mode] = STYLE[f"parse_{_mode}"] = STYLE[f"acc_{_mode}"]

SPLITS = {"in_domain": "In-domain", "out_of_domain": "Out-of-domain"}
ARMS = {
    "self_splice": "self-splice",
    "truncated": "truncated",
    "other_state": "other state",
    "shuffled_words": "shuffled words",
    "filler": "filler",
    "empty": "empty",
}
CONTROLS = ("majority", "previous_action", "tfidf", "prompt_length", "embedding", "shuffled")
LABELS = {
    "eventual_verb": "eventual action's verb",
    "eventual_target": "eventual action's target",
    "reference_verb": "reference action's verb",
    "reference_target": "reference action's target",
}
STEP_TITLE = "training step (0 = base model)"
WIDTH = 960  # px; on a 7-inch text width this scales 15 px type to 8 pt
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 74, 62  # px
DIVERGING = [[0.0, VERMILION], [0.5, "#F7F7F7"], [1.0, BLUE]]
SEQUENTIAL = [[0.0, "#F7FBFF"], [0.5, "#6BAED6"], [1.0, "#08306B"]]
INTERVAL = "95 % interval"

_AXIS = dict(
    showgrid=True, gridcolor="#E4E4E4", gridwidth=0.8, zeroline=False, showline=True, linecolor="#444444",
    linewidth=1, ticks="outside", ticklen=4, tickcolor="#444444", tickfont_size=14, title_font_size=15,
    title_standoff=8,
)  # fmt: skip
plotly.io.templates["interp"] = go.layout.Template(
    layout=dict(
        font=dict(family="Arial, Helvetica, Liberation Sans, sans-serif", size=15, color="#222222"),
        paper_bgcolor="white",
        plot_bgcolor="white",
        colorway=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK],
        width=WIDTH,
        margin=dict(l=LEFT, r=RIGHT, t=TOP, b=BOTTOM),
        xaxis=_AXIS,
        yaxis=_AXIS,
        legend=dict(orientation="h", x=0, xanchor="left", yanchor="bottom", font_size=14, bgcolor="rgba(0,0,0,0)"),
        bargap=0.45,
        hovermode="closest",
    )
)


def behaviour(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Accuracy of the prompt, CoT and empty-think actions over checkpoints, above the gap and the headroom gap.

    Args:
        frame: table `behaviour` (step, split, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    accuracy = ["acc_cot", "acc_prompt", "acc_empty_think"]
    fig = _panels(frame, "behaviour", {"accuracy": 230, "gap": 190}, provenance)
    _draw_metrics(fig, frame, accuracy, row=1, thin=("acc_empty_think",))
    _draw_metrics(fig, frame, ["gap", "headroom_gap"], row=2)
    _fit(fig, frame, accuracy, row=1)
    _fit(fig, frame, ["gap", "headroom_gap"], row=2)
    _zero_line(fig, row=2)
    return fig


def parse(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Share of decisions whose decoded text parses to an action, per mode over checkpoints.

    Args:
        frame: table `behaviour`.
        provenance: kept in the figure's `layout.meta`.
    """
    fig = _panels(frame, "parse", {"parse rate": 230}, provenance)
    _draw_metrics(fig, frame, ["parse_cot", "parse_prompt", "parse_empty_think"], row=1, thin=("parse_empty_think",))
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    return fig


def revision(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Revision rate stacked by its effect over checkpoints, above agreement and Cohen's kappa of the two modes.

    Args:
        frame: table `behaviour`.
        provenance: kept in the figure's `layout.meta`.
    """
    fig = _panels(frame, "revision", {"revision rate": 230, "agreement": 170}, provenance)
    steps, tops = _steps(frame), []
    for col, split in enumerate(_splits(frame), start=1):
        base = np.zeros(len(steps))
        for part, offset in zip(("revision_helpful", "revision_harmful", "revision_neutral"), (-0.16, 0.0, 0.16)):
            rows = _pick(frame, split=split, metric=part).set_index("step").reindex(steps)
            name, colour, _, _ = STYLE[part]
            look = dict(name=name, legendgroup=part, marker_color=colour)
            place = dict(row=1, col=col)
            hover = dict(customdata=_custom(rows.reset_index()), hovertemplate=_HOVER)
            heights = rows["value"].fillna(0)
            fig.add_bar(x=list(range(len(steps))), y=heights, base=base, showlegend=col == 1, **look, **hover, **place)
            base = base + heights.to_numpy()
            tops.append(float((base + (rows["high"] - rows["value"]).fillna(0)).max()))
            # Whiskers stand side by side on their part's upper edge: stacked ones would hide each other.
            fig.add_scatter(
                x=np.arange(len(steps)) + offset, y=base, mode="markers", marker=dict(size=1, color="#333333"),
                error_y=_whisker(rows, "#333333"), name=f"{name}, {INTERVAL}", legendgroup=part, showlegend=False,
                hoverinfo="skip", **place,
            )  # fmt: skip
    fig.update_layout(barmode="overlay")
    fig.update_yaxes(range=[0, 1.12 * max(tops + [0.05])], row=1)
    _draw_metrics(fig, frame, ["agreement", "kappa"], row=2)
    _fit(fig, frame, ["agreement", "kappa"], row=2)
    return fig


def online(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Success in the environment per mode over checkpoints, above the steps per episode where the table has them.

    Args:
        frame: table `online` (step, split, mode, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    rows = {"success rate": 230} | ({"steps per episode": 150} if (frame["metric"] == "steps").any() else {})
    fig = _panels(frame, "online", rows, provenance)
    for row, metric in enumerate(("success", "steps")[: len(rows)], start=1):
        measured = _need(frame, "online", metric=metric).assign(metric=lambda table: table["mode"])
        _draw_metrics(fig, measured, ["cot", "prompt"], row=row, steps=_steps(frame), legend=row == 1)
        if metric == "steps":
            _fit(fig, measured, ["cot", "prompt"], row=row)
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    return fig


def probes(
    frame: pd.DataFrame, provenance: dict | None = None, label: str = "eventual_target", split: str = "in_domain"
) -> go.Figure:
    """Probe's gain over the best control by layer and checkpoint, beside the nested probe's accuracy and its controls.

    Args:
        frame: table `probes` (step, layer, label, split, reader, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
        label: what the probe predicts, one of `LABELS`.
        split: test split, `in_domain` or `out_of_domain`.
    """
    chosen = _need(frame, "probes", label=label, split=split, metric="accuracy")
    gain = _need(chosen[chosen["layer"] >= 0], "probes", reader="gain")
    steps, height = _steps(chosen), 340
    fig = make_subplots(rows=1, cols=2, column_widths=[0.4, 0.6], horizontal_spacing=0.19)
    fig.update_layout(template="interp", height=TOP + height + BOTTOM, meta=_meta("probes", provenance))
    layers = sorted(gain["layer"].unique())
    grid = {name: gain.pivot(index="layer", columns="step", values=name).reindex(columns=steps) for name in _NUMBERS}
    limit = max(0.01, float(np.nanmax(np.abs(grid["value"].to_numpy()))))
    fig.add_heatmap(
        z=grid["value"].to_numpy(), x=list(range(len(steps))), y=list(range(len(layers))), customdata=_cube(grid),
        zmin=-limit, zmax=limit, colorscale=DIVERGING, xgap=1, ygap=1, name="gain", hovertemplate=_CELL,
        colorbar=dict(title=dict(text="gain in accuracy over best control", side="right", font_size=14), x=0.335,
                      thickness=13, outlinewidth=0, tickfont_size=13, tickformat="+.2f"),
        row=1, col=1,
    )  # fmt: skip
    unsure = np.argwhere(((grid["low"] <= 0) & (grid["high"] >= 0)).to_numpy())
    fig.add_scatter(
        x=unsure[:, 1], y=unsure[:, 0], mode="markers", marker=dict(size=5, color="#333333"), hoverinfo="skip",
        name="gain's interval covers 0", showlegend=True, row=1, col=1,
    )  # fmt: skip
    for reader in ("probe", *CONTROLS):
        rows = _pick(chosen, reader=reader)
        # A control that reads no layer may be filed under any: the nested row first, else the first one.
        rows = rows.sort_values("layer").drop_duplicates("step") if len(rows) else rows
        _line(fig, rows, steps, reader, row=1, col=2, thin=reader != "probe")
    _step_axis(fig, steps, row=1, col=1, room=7)
    _step_axis(fig, steps, row=1, col=2)
    fig.update_xaxes(title="training step", row=1, col=1)
    _layer_axis(fig, layers, "layer (0 = embedding output)", row=1, col=1)
    fig.update_yaxes(title=f"accuracy ({LABELS.get(label, label)})", rangemode="tozero", row=1, col=2)
    fig.update_layout(legend=dict(y=1 + 8 / height, entrywidth=150))
    return fig


def patching(frame: pd.DataFrame, provenance: dict | None = None, site: str = "resid_pre") -> go.Figure:
    """Patching effect by layer and checkpoint for both directions, above its layer profile at three checkpoints.

    Args:
        frame: table `patching` (step, layer, site, direction, value, low, high, n, n_groups, n_dropped).
        provenance: kept in the figure's `layout.meta`.
        site: activation that was patched.
    """
    frame = _need(frame, "patching", site=site)
    steps, layers = _steps(frame), sorted(frame["layer"].unique())
    directions = [name for name in ("denoise", "noise") if (frame["direction"] == name).any()]
    heights = [max(200, min(420, 21 * len(layers))), 210]
    total = sum(heights) + 96
    fig = make_subplots(
        rows=2, cols=len(directions), row_heights=heights, vertical_spacing=96 / total, horizontal_spacing=0.05,
        shared_yaxes=True, column_titles=[_DIRECTIONS[name] for name in directions],
    )  # fmt: skip
    fig.update_layout(template="interp", height=total + 44 + BOTTOM, meta=_meta("patching", provenance))
    fig.update_layout(margin=dict(t=44, r=100))
    low, high = min(0.0, frame["value"].min()), max(1.0, frame["value"].max())
    shown = sorted({0, len(steps) // 2, len(steps) - 1})
    for col, direction in enumerate(directions, start=1):
        rows = _pick(frame, direction=direction)
        grid = {name: rows.pivot(index="layer", columns="step", values=name) for name in _NUMBERS}
        grid = {name: table.reindex(index=layers, columns=steps) for name, table in grid.items()}
        readable = len(layers) <= 20 and len(steps) <= 9
        fig.add_heatmap(
            z=grid["value"].to_numpy(), x=list(range(len(steps))), y=list(range(len(layers))), name=direction,
            coloraxis="coloraxis", customdata=_cube(grid), hovertemplate=_CELL, xgap=1, ygap=1,
            texttemplate="%{z:.2f}" if readable else None, textfont_size=13, row=1, col=col,
        )  # fmt: skip
        for index, colour, dash in zip(shown, (SKY, GREEN, "#08306B")[-len(shown) :], ("dot", "dash", "solid")):
            at = rows[rows["step"] == steps[index]].sort_values("layer")
            x = [layers.index(layer) for layer in at["layer"]]
            look = (f"step {steps[index]}", colour, dash, ("circle", "square", "diamond")[index % 3])
            _trace(fig, at, x, look, row=2, col=col, legend="legend", show=col == 1)
        _step_axis(fig, steps, row=1, col=col)
        _layer_axis(fig, layers, None, row=2, col=col, axis="x")
        fig.update_xaxes(title="layer", row=2, col=col)
    _layer_axis(fig, layers, "layer", row=1, col=1)
    _layer_axis(fig, layers, None, row=1, col=2)
    _zero_line(fig, row=2)
    _fit(fig, frame.assign(metric="effect"), ["effect"], row=2, at_least=(0.0, 1.0))
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
    """Prompt reliance over checkpoints, above the direct, via-CoT, total and interaction effects it is made of.

    Args:
        frame: table `reliance` (step, split, metric, value, low, high, n, n_groups); effects in nats.
        provenance: kept in the figure's `layout.meta`.
    """
    fig = _panels(frame, "reliance", {"prompt reliance": 230, "effect on the action (nats)": 210}, provenance)
    _draw_metrics(fig, frame, ["prompt_reliance"], row=1)
    _draw_metrics(fig, frame, ["direct", "via_cot", "total", "interaction"], row=2)
    _fit(fig, frame, ["prompt_reliance"], row=1, at_least=(0.0, 1.0))
    _fit(fig, frame, ["direct", "via_cot", "total", "interaction"], row=2)
    fig.add_hline(y=0.5, row=1, col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    fig.add_annotation(
        text="direct = via-CoT", x=1, xref="x domain", y=0.5, yref="y", xanchor="right", yanchor="top",
        showarrow=False, font=dict(size=12, color="#666666"),
    )  # fmt: skip
    _zero_line(fig, row=2)
    return fig


def conflict(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """What the agent does with an inserted trace: keep, follow, other and unparsed over checkpoints, a panel per arm.

    Args:
        frame: table `conflict` (step, split, arm, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    arms = [arm for arm in ARMS if (frame["arm"] == arm).any()]
    splits, steps = _splits(frame), _steps(frame)
    height = 170 * len(splits) + 22 * (len(splits) - 1)
    fig = make_subplots(
        rows=len(splits), cols=len(arms), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.014,
        vertical_spacing=22 / height, column_titles=[ARMS[arm] for arm in arms],
    )  # fmt: skip
    fig.update_layout(template="interp", height=height + TOP + BOTTOM, meta=_meta("conflict", provenance))
    for row, split in enumerate(splits, start=1):
        for col, arm in enumerate(arms, start=1):
            rows = _pick(frame, split=split, arm=arm)
            for metric in ("keep", "follow", "other", "unparsed"):
                thin = metric in ("other", "unparsed")
                _line(fig, _pick(rows, metric=metric), steps, metric, row, col, thin=thin, show=row == col == 1)
            _step_axis(fig, steps, row=row, col=col, room=3, title=False)
        fig.update_yaxes(title=f"rate, {SPLITS[split].lower()}", row=row, col=1)
        kept = _pick(frame, split=split, arm="self_splice", metric="keep")["value"]
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


_NUMBERS = ("value", "low", "high", "n", "n_groups")
_HOVER = (
    "step %{customdata[0]}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]"
    "<br>n = %{customdata[4]} in %{customdata[5]} clusters"
)
_CELL = "%{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>n = %{customdata[2]} in %{customdata[3]} clusters"
_DIRECTIONS = {"denoise": "Denoise (clean into corrupt)", "noise": "Noise (corrupt into clean)"}


def _steps(frame: pd.DataFrame) -> list[int]:
    return sorted(int(step) for step in frame["step"].unique())


def _splits(frame: pd.DataFrame) -> list[str]:
    return [split for split in SPLITS if (frame["split"] == split).any()]


def _pick(frame: pd.DataFrame, **where) -> pd.DataFrame:
    """Rows whose columns equal the values given."""
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def _need(frame: pd.DataFrame, figure: str, **where) -> pd.DataFrame:
    """Rows whose columns equal the values given; ValueError where there is none."""
    rows = _pick(frame, **where)
    if rows.empty:
        wanted = ", ".join(f"{column} = {value}" for column, value in where.items())
        raise ValueError(f"Figure {figure}: the table has no rows with {wanted}.")
    return rows


def _meta(name: str, provenance: dict | None) -> dict:
    return {"figure": name, "provenance": provenance or {}}


def _custom(rows: pd.DataFrame) -> np.ndarray:
    return rows[["step", *_NUMBERS]].to_numpy(dtype=float)


def _cube(grid: dict[str, pd.DataFrame]) -> np.ndarray:
    return np.stack([grid[name].to_numpy(dtype=float) for name in _NUMBERS[1:]], axis=-1)


def _whisker(rows: pd.DataFrame, colour: str) -> dict:
    return dict(
        type="data", array=rows["high"] - rows["value"], arrayminus=rows["value"] - rows["low"], color=colour,
        thickness=1.3, width=3,
    )  # fmt: skip


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _panels(frame: pd.DataFrame, name: str, rows: dict[str, int], provenance: dict | None) -> go.Figure:
    """Empty figure with one column per split and one row per (axis title: height in px) of `rows`."""
    splits, steps = _splits(frame), _steps(frame)
    if not splits:
        raise ValueError(f"Figure {name}: the table has no rows with split in {list(SPLITS)}.")
    gap = 46  # px between rows: room for the lower row's legend
    height = sum(rows.values()) + gap * (len(rows) - 1)
    fig = make_subplots(
        rows=len(rows), cols=len(splits), shared_xaxes=True, shared_yaxes=True, row_heights=list(rows.values()),
        vertical_spacing=gap / height, horizontal_spacing=0.03, column_titles=[SPLITS[split] for split in splits],
    )  # fmt: skip
    fig.update_layout(template="interp", height=height + TOP + BOTTOM, meta=_meta(name, provenance))
    fig.update_layout(legend=dict(y=1 + 28 / height))
    for row, title in enumerate(rows, start=1):
        fig.update_yaxes(title=title, row=row, col=1)
        for col in range(1, len(splits) + 1):
            _step_axis(fig, steps, row, col, title=row == len(rows))
    if len(rows) > 1:
        fig.update_layout(legend2=dict(y=(list(rows.values())[1] + 6) / height, x=0, orientation="h", font_size=14))
        fig.update_layout(legend2_yanchor="bottom")
    return fig


def _draw_metrics(fig, frame, metrics, row, thin=(), steps=None, legend=True):
    """Draw one line with its interval per metric into every split's panel of one row."""
    if not frame["metric"].isin(metrics).any():
        raise ValueError(f"Figure {fig.layout.meta['figure']}: the table has no rows with metric in {list(metrics)}.")
    steps = steps or _steps(frame)
    for col, split in enumerate(_splits(frame), start=1):
        for order, metric in enumerate(metrics):
            rows = _pick(frame, split=split, metric=metric)
            legend_name = "legend" if row == 1 else "legend2"
            # Whiskers of a single checkpoint stand side by side.
            shift = 0.08 * (order - (len(metrics) - 1) / 2) if len(steps) == 1 else 0.0
            _line(fig, rows, steps, metric, row, col, metric in thin, legend and col == 1, legend_name, shift)


def _line(fig, rows, steps, concept, row, col, thin=False, show=True, legend="legend", shift=0.0):
    """Draw one concept's line and interval over checkpoints."""
    rows = rows.sort_values("step")
    x = [steps.index(step) + shift for step in rows["step"]]
    _trace(fig, rows, x, STYLE[concept], row, col, legend, show, thin)


def _trace(fig, rows, x, look, row, col, legend, show, thin=False):
    """Draw a line over its interval: a band, or a whisker at a point whose neighbours have none."""
    if rows.empty:
        return
    name, colour, dash, symbol = look
    place = dict(legendgroup=f"{legend} {name}", legend=legend, row=row, col=col)
    known = np.flatnonzero(rows[["low", "high"]].notna().all(axis=1))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
    band_x, band_y = [], []
    for run in (run for run in runs if len(run) > 1):
        band_x += [x[i] for i in (*run, *run[::-1])] + [None]
        band_y += [*high[run], *low[run[::-1]], None]
    if band_x:
        fig.add_scatter(
            x=band_x, y=band_y, mode="lines", line_width=0, fill="toself",
            fillcolor=_faint(colour, 0.10 if thin else 0.17), hoverinfo="skip", showlegend=False,
            name=f"{name}, {INTERVAL}", **place,
        )  # fmt: skip
    alone = [run[0] for run in runs if len(run) == 1]
    lone = rows.iloc[alone].reindex(rows.index) if alone else rows
    fig.add_scatter(
        x=x, y=rows["value"], mode="lines+markers", name=name, showlegend=show, cliponaxis=False,
        line=dict(color=colour, dash=dash, width=1.5 if thin else 2.6),
        marker=dict(symbol=symbol, size=6 if thin else 8, color=colour, line=dict(color=colour, width=1)),
        error_y=_whisker(lone, colour) if alone else None,
        customdata=_custom(rows), hovertemplate=_HOVER, **place,
    )  # fmt: skip


def _step_axis(fig, steps, row, col, title=True, room=9):
    """Evenly spaced checkpoints, labelled with their training step; at most `room` labels, first and last kept."""
    count = min(room, len(steps))
    shown = sorted({round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)})
    text = [f"{steps[i] // 1000}k" if steps[i] >= 10_000 and steps[i] % 1000 == 0 else str(steps[i]) for i in shown]
    fig.update_xaxes(
        tickmode="array", tickvals=shown, ticktext=text, range=[-0.4, len(steps) - 0.6], tickangle=0,
        title=STEP_TITLE if title else None, row=row, col=col,
    )  # fmt: skip


def _layer_axis(fig, layers, title, row, col, axis="y"):
    """Layers in order, labelled at most every so often that the labels keep apart."""
    shown = list(range(0, len(layers), 1 + len(layers) // 16))
    settings = dict(tickmode="array", tickvals=shown, ticktext=[str(int(layers[i])) for i in shown], title=title)
    if axis == "x":
        fig.update_xaxes(range=[-0.4, len(layers) - 0.6], **settings, row=row, col=col)
    else:
        fig.update_yaxes(showgrid=False, range=[-0.5, len(layers) - 0.5], **settings, row=row, col=col)


def _fit(fig, frame, metrics, row, at_least=(0.0, 0.0)):
    """Range of one row's value axes: every value and interval drawn, and `at_least`, with a margin of 5 %."""
    drawn = frame.loc[frame["metric"].isin(metrics), ["value", "low", "high"]]
    low, high = np.nanmin([at_least[0], drawn.min().min()]), np.nanmax([at_least[1], drawn.max().max()])
    margin = 0.05 * max(high - low, 0.02)
    fig.update_yaxes(range=[low - margin, high + margin], row=row)


def _zero_line(fig, row):
    fig.update_yaxes(zeroline=True, zerolinecolor="#555555", zerolinewidth=1.2, row=row)
