"""The probes' figures from tables: gain and controls, transfer between checkpoints, codelengths.

>>> frame, provenance = read_table("runs/quick/tables", "transfer")
>>> transfer(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.caption import Caption, clause, last_side, numbers, size, value
from interp.plots.registry import figure
from interp.plots.theme import (
    BOTTOM, CELL, DIVERGING, SEQUENTIAL, TOP, cell_numbers, draw_line, draw_metrics, draw_trace, fit_values, layer_axis,
    meta, panels, plain, step_axis,
)  # fmt: skip
from interp.results.names import ACTIVATION_CONTROLS, BLUE, CONTROLS, LABELS, ORANGE, SKY, SPLITS, STYLE
from interp.results.queries import label_of, need, pick, splits_of, steps_of
from interp.results.tables import ESTIMATE_COLUMNS


#: What the last gain's interval says of the probe against the best guess made without activations.
GAINED = {1: "beats the best control", -1: "does worse than the best control", 0: "is not told apart from the best control"}
#: What the interval of the bits saved says.
BITS = {1: "the activations save bits", -1: "the activations cost bits", 0: "the activations neither save nor cost bits for sure"}
_SECTION = dict(section="predicted")


def cells_above(frame: pd.DataFrame, **where) -> tuple[int, int]:
    """How many of the probes' cells (layer, checkpoint) have a gain whose interval lies above 0, and of how many."""
    cells = pick(frame, reader="gain", metric="accuracy", **where).dropna(subset="value")
    cells = cells[cells["layer"] >= 0]
    return int((cells["low"] > 0).sum()), len(cells)


def pairs_that_drop(frame: pd.DataFrame, split: str) -> tuple[int, int]:
    """How many pairs of different checkpoints lose accuracy by an interval above 0, and of how many."""
    drops = pick(frame, reader="drop", split=split).dropna(subset="value")
    drops = drops[drops["train_step"] != drops["test_step"]]
    return int((drops["low"] > 0).sum()), len(drops)


def best_control(frame: pd.DataFrame) -> pd.Series | None:
    """The control that reads no activation which is best at the last checkpoint of these rows."""
    last = frame[(frame["step"] == frame["step"].max()) & frame["reader"].isin(CONTROLS)].sort_values("layer")
    last = last.drop_duplicates("reader").dropna(subset="value")
    return last.loc[last["value"].idxmax()] if len(last) else None


def _probes_caption(frame: pd.DataFrame, label: str = "eventual_target", split: str = "in_domain") -> Caption:
    rows = pick(frame, label=label, split=split, metric="accuracy")
    clear, count = cells_above(frame, label=label, split=split)
    told = last_side(rows, GAINED, reader="gain", layer=-1)
    message = f"At the last checkpoint the boundary probe {told}. " if told else ""
    message += f"Its gain's interval lies above 0 in {clear} of {count} cells (layer, checkpoint)."
    drawn = f"Linear probe at the last prompt token for the {LABELS.get(label, label)}: gain by layer; nested accuracy."
    readings = {"probe, nested layer": dict(reader="probe", layer=-1)}
    readings |= {f"control: {STYLE[reader][0]}": dict(reader=reader, layer=-1) for reader in CONTROLS}
    readings |= {STYLE[reader][0]: dict(reader=reader, layer=-1) for reader in ACTIVATION_CONTROLS}
    readings |= {"selectivity": dict(reader="selectivity", layer=-1)}
    gains = {"gain over the best control": dict(reader="gain", layer=-1)}
    map_ = pick(rows, reader="gain")
    map_ = map_[map_["layer"] >= 0].dropna(subset="value")
    if len(map_):
        top = map_.loc[map_["value"].idxmax()]
        gains[f"largest gain of the map, layer {int(top['layer'])} at step {int(top['step'])}"] = dict(reader="gain", layer=top["layer"], step=top["step"])
    parts = [numbers(_nested(rows), readings), numbers(rows, gains, signed=True)]
    if len(p := pick(rows, reader="gain_p").dropna(subset="value")):
        smallest = p.loc[p["value"].idxmin()]
        parts.append(numbers(rows, {"smallest p, corrected over layers": dict(reader="gain_p", layer=smallest["layer"], step=smallest["step"])}))
    pairs = frame[frame["label"].str.startswith("pairwise") & (frame["layer"] == -1) & (frame["metric"] == "accuracy")]
    for name in sorted(pairs["label"].unique()):
        of = {f"{name.removeprefix('pairwise ')}: {word}": dict(label=name, reader=word) for word in ("probe", "gain")}
        parts.append(numbers(pairs, of))
    return Caption(message, drawn, size(rows), pd.concat(parts, ignore_index=True))


def _nested(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with controls, which read no layer and may be filed under any, filed under the nested choice."""
    reads_none = rows["reader"].isin(CONTROLS)
    controls = rows[reads_none].sort_values("layer").drop_duplicates(["step", "reader"])
    return pd.concat([rows[~reads_none], controls.assign(layer=-1)])


def _transfer_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    first, last = frame["train_step"].min(), frame["train_step"].max()
    counts = {split: pairs_that_drop(frame, split) for split in splits_of(frame)}
    told = clause({split: f"in {clear} of {count} pairs" for split, (clear, count) in counts.items()})
    message = f"Read at another checkpoint, a probe loses accuracy (interval above 0) {told}."
    drawn = "Accuracy; drop against the own probe, which includes changed actions; three probes. Layer and C: chosen in training."
    rows = []
    for split in splits_of(frame):
        for train, test, name in ((first, last, "first probe at the last step"), (last, first, "last probe at the first step")):
            cells = {}
            for word, reader, at in (("accuracy", "probe", train), ("own probe there", "probe", test), ("drop", "drop", train)):
                of = pick(frame, split=split, reader=reader, train_step=at, test_step=test)
                cells[word] = value(of.iloc[0]) if len(of) else "–"
            rows.append({"probe": f"{name} ({train}, {test})", "split": SPLITS[split].lower(), **cells})
    return Caption(message, drawn, size(pick(frame, reader="probe")), pd.DataFrame(rows))


def _mdl_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    told = last_side(frame, BITS, metric="bits", reader="gain")
    message = f"At the last checkpoint {told}, against the shorter of both other codes." if told else ""
    drawn = f"Online codelength of the {LABELS.get(label, label)}: bits for each decision (top), compression against the uniform code (bottom)."
    codes = {"probe": "the activations", "tfidf": "the prompt's text", "majority": "class frequencies"}
    bits = {f"bits with {name}": dict(metric="bits", reader=reader) for reader, name in codes.items()}
    bits |= {f"compression with {name}": dict(metric="compression", reader=reader) for reader, name in codes.items()}
    saved = numbers(frame, {"bits saved by the activations": dict(metric="bits", reader="gain")}, signed=True)
    table = pd.concat([saved, numbers(frame, bits)], ignore_index=True)
    return Caption(message, drawn, size(pick(frame, metric="bits", reader="probe")), table)


@figure("What the prompt boundary already predicts", table="probes", caption=_probes_caption, expected=True, **_SECTION)
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


@figure("Do probes carry over between checkpoints?", table="transfer", caption=_transfer_caption, **_SECTION)
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


@figure("Bits to send the action", table="mdl", caption=_mdl_caption, **_SECTION)
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
