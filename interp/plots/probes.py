"""The probes' figures from tables: gain and controls, transfer between checkpoints, codelengths.

>>> frame, provenance = read_table("runs/quick/tables", "transfer")
>>> transfer(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import BOTTOM, CELL, DIVERGING, SEQUENTIAL, TOP, cell_numbers, draw_line, draw_metrics, draw_trace, fit_values, layer_axis, meta, panels, plain, step_axis
from interp.results.names import ACTIVATION_CONTROLS, BLUE, CONTROLS, LABELS, ORANGE, SKY, SPLITS
from interp.results.queries import label_of, need, pick, splits_of, steps_of
from interp.results.tables import ESTIMATE_COLUMNS


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
    chosen = need(frame, "probes", label=label, split=split, metric="accuracy")
    gain = need(chosen[chosen["layer"] >= 0], "probes", reader="gain")
    steps, height = steps_of(chosen), 480
    fig = make_subplots(
        rows=2, cols=2, column_widths=[0.4, 0.6], horizontal_spacing=0.19, vertical_spacing=0.11, shared_xaxes=True,
        specs=[[dict(rowspan=2), {}], [None, {}]],
    )  # fmt: skip
    fig.update_layout(template="interp", height=TOP + height + BOTTOM, meta=meta("probes", provenance))
    layers = sorted(gain["layer"].unique())
    grid = {name: gain.pivot(index="layer", columns="step", values=name) for name in ESTIMATE_COLUMNS}
    grid = {name: table.reindex(columns=steps) for name, table in grid.items()}
    limit = max(0.01, float(np.nanmax(np.abs(grid["value"].to_numpy()))))
    fig.add_heatmap(
        z=grid["value"].to_numpy(), x=list(range(len(steps))), y=list(range(len(layers))),
        customdata=cell_numbers(grid), hovertemplate=CELL, zmin=-limit, zmax=limit, colorscale=DIVERGING,
        xgap=1, ygap=1, name="gain",
        colorbar=dict(title=dict(text="gain in accuracy over best control", side="right", font_size=14), x=0.335,
                      thickness=13, outlinewidth=0, tickfont_size=13, tickformat="+.2f"),
        row=1, col=1,
    )  # fmt: skip
    _mark(fig, (grid["low"] <= 0) & (grid["high"] >= 0), "gain's interval covers 0", 1, 1)
    for row, readers in enumerate((("probe", *CONTROLS), ("probe", *ACTIVATION_CONTROLS)), start=1):
        for reader in readers:
            rows = pick(chosen, reader=reader)
            # A control that reads no layer may be filed under any: the nested row first, else the first one.
            # Checkpoints without it break the line.
            rows = rows.sort_values("layer").drop_duplicates("step").set_index("step").reindex(steps).reset_index() if len(rows) else rows
            draw_line(fig, rows, steps, reader, row=row, col=2, thin=reader != "probe", show=row == 1 or reader != "probe")
        step_axis(fig, steps, row=row, col=2, title=row == 2)
        text = ("against what reads no activation", "against controls of the activations")[row - 1]
        fig.add_annotation(text=text, x=0, xref="x domain", y=1, yref="y domain", yanchor="bottom", xanchor="left", showarrow=False, row=row, col=2,
                           font=dict(size=13, color="#666666"))  # fmt: skip
    step_axis(fig, steps, row=1, col=1, room=7)
    fig.update_xaxes(title="training step", row=1, col=1)
    layer_axis(fig, layers, "layer (0 = embedding output)", row=1, col=1)
    fig.update_yaxes(title=f"accuracy<br>({plain(LABELS.get(label, label))})", rangemode="tozero", col=2)
    fig.update_layout(legend=dict(y=1 + 26 / height, entrywidth=150))
    return fig


def transfer(frame: pd.DataFrame, provenance: dict | None = None, label: str | None = None) -> go.Figure:
    """Accuracy of each checkpoint's probe at each checkpoint, its drop against the own probe, and the own, first and last probe over steps.

    Args:
        frame: table `transfer` (train_step, test_step, split, label, layer, reader, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
        label: what the probes predict, one of `LABELS`; by default as `style.label_of` says.
    """
    label = label or label_of(frame)
    frame = need(frame, "transfer", label=label, metric="accuracy")
    probe, drop = (need(frame, "transfer", reader=reader) for reader in ("probe", "drop"))
    splits, steps = splits_of(frame), sorted(frame["train_step"].unique())
    height = 250 * len(splits) + 46 * (len(splits) - 1)
    titles = ("accuracy", "drop against the own probe", "three probes")
    fig = make_subplots(rows=len(splits), cols=3, horizontal_spacing=0.085, vertical_spacing=46 / height, column_titles=titles)
    fig.update_layout(template="interp", height=height + TOP + BOTTOM + 70, meta=meta("transfer", provenance), margin=dict(b=BOTTOM + 70, l=88))
    limit = max(0.01, float(drop["value"].abs().max()))
    bar = dict(orientation="h", thickness=11, len=0.27, outlinewidth=0, tickfont_size=12, y=-74 / height, yanchor="top")
    fig.update_layout(
        coloraxis=dict(colorscale=SEQUENTIAL, cmin=0, cmax=float(probe["value"].max()), colorbar=dict(bar, x=0.135, nticks=5)),
        coloraxis2=dict(colorscale=[[1 - at, colour] for at, colour in DIVERGING[::-1]], cmin=-limit, cmax=limit,
                        colorbar=dict(bar, x=0.5, nticks=5, tickformat="+.2f")),
    )  # fmt: skip
    lines = {"own probe": (BLUE, "solid", "circle"), f"step {steps[0]}'s probe": (SKY, "dash", "square"), f"step {steps[-1]}'s probe": (ORANGE, "dash", "diamond")}
    for row, split in enumerate(splits, start=1):
        for col, of in enumerate((probe, drop), start=1):
            rows = pick(of, split=split)
            grid = {name: rows.pivot(index="train_step", columns="test_step", values=name) for name in ESTIMATE_COLUMNS}
            grid = {name: table.reindex(index=steps, columns=steps) for name, table in grid.items()}
            fig.add_heatmap(
                z=grid["value"].to_numpy(), x=list(range(len(steps))), y=list(range(len(steps))), customdata=cell_numbers(grid),
                hovertemplate=CELL, xgap=1, ygap=1, name=("accuracy", "drop")[col - 1], coloraxis=("coloraxis", "coloraxis2")[col - 1], row=row, col=col,
            )  # fmt: skip
            step_axis(fig, steps, row=row, col=col, title=False, room=5)
            shown = list(fig.get_subplot(row, col).xaxis.tickvals), list(fig.get_subplot(row, col).xaxis.ticktext)
            fig.update_yaxes(tickmode="array", tickvals=shown[0], ticktext=shown[1], showgrid=False, row=row, col=col)
        apart = ~np.eye(len(steps), dtype=bool)
        _mark(fig, (grid["low"] <= 0) & (grid["high"] >= 0) & apart, "drop's interval covers 0", row, 2, show=row == 1)
        at = pick(probe, split=split).assign(step=lambda table: table["test_step"])
        own = at[at["train_step"] == at["test_step"]]
        for (name, look), rows in zip(lines.items(), (own, pick(at, train_step=steps[0]), pick(at, train_step=steps[-1])), strict=True):
            rows = rows.sort_values("step")
            draw_trace(fig, rows, [steps.index(step) for step in rows["step"]], (name, *look), row, 3, "legend", row == 1, thin=name != "own probe")
        step_axis(fig, steps, row=row, col=3, title=False, room=5)
        fig.update_yaxes(title=f"{SPLITS[split]}:<br>probe of training step", row=row, col=1)
        fig.update_yaxes(rangemode="tozero", row=row, col=3)
    fig.update_xaxes(title="read at training step", row=len(splits))
    fig.update_layout(legend=dict(y=1 + 30 / height))
    return fig


def mdl(frame: pd.DataFrame, provenance: dict | None = None, label: str | None = None) -> go.Figure:
    """Bits for each decision with the activations, the text and class frequencies over checkpoints, above the compression.

    Args:
        frame: table `mdl` (step, split, label, reader, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
        label: what is sent, one of `LABELS`; by default as `style.label_of` says.
    """
    label = label or label_of(frame)
    frame = need(frame, "mdl", label=label)
    readers = ["probe", "tfidf", "majority"]
    fig = panels(frame, "mdl", {"bits per decision": 210, "compression": 170}, provenance)
    for row, metric in enumerate(("bits", "compression"), start=1):
        rows = need(frame, "mdl", metric=metric).assign(metric=lambda table: table["reader"])
        draw_metrics(fig, rows, readers, row=row, thin=readers[1:], steps=steps_of(frame), legend=row == 1)
        fit_values(fig, rows, readers, row=row, at_least=(0.0, 1.0))
    return fig


def _mark(fig, unsure: pd.DataFrame, name: str, row: int, col: int, show: bool = True):
    """Dots on the cells whose interval covers 0."""
    at = np.argwhere(unsure.to_numpy())
    fig.add_scatter(
        x=at[:, 1], y=at[:, 0], mode="markers", marker=dict(size=5, color="#333333"), hoverinfo="skip", name=name, legendgroup=name,
        showlegend=show, row=row, col=col,
    )  # fmt: skip
