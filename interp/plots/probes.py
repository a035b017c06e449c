"""The probes' figures from tables: gain and controls, transfer between checkpoints, codelengths.

>>> frame, provenance = read_table("runs/quick/tables", "transfer")
>>> transfer(frame, provenance).show()
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Int
from plotly.subplots import make_subplots

from interp.plots.caption import Caption, clause, last_side, listing, numbers, only, size
from interp.plots.registry import figure
from interp.plots.theme import (
    BOTTOM,
    DIVERGING,
    SEQUENTIAL,
    TOP,
    corner,
    draw_heatmap,
    draw_line,
    draw_metrics,
    draw_trace,
    facets,
    fit_values,
    layer_axis,
    panels,
    plain,
    step_axis,
    uncertain,
    under,
)
from interp.results.estimates import side
from interp.results.names import ACTIVATION_CONTROLS, BLUE, CONTROLS, GREEN, GREY, LABELS, ORANGE, SKY, SPLITS
from interp.results.queries import label_of, need, pick, splits_of, steps_of

#: What the last gain's interval says of the probe against the best guess made without activations.
GAINED = {
    1: "beats the best control",
    -1: "does worse than the best control",
    0: "is not told apart from the best control",
}
#: What the interval of the bits saved says.
BITS = {
    1: "the activations save bits",
    -1: "the activations cost bits",
    0: "the activations neither save nor cost bits for sure",
}
_CODES = {
    "probe": "activations",
    "tfidf": "prompt's text",
    "majority": "class frequencies",
    "gain": "saved by the activations",
}
_figure = partial(figure, section="predicted")


def cells_above(frame: pd.DataFrame, **where: object) -> tuple[int, int]:
    """How many cells (layer, checkpoint) have a gain whose interval lies above 0, and of how many."""
    cells = pick(frame, predictor="gain", metric="accuracy", **where).dropna(subset="value")
    cells = cells[cells["layer"] >= 0]
    return int((cells["low"] > 0).sum()), len(cells)


def pairs_that_drop(frame: pd.DataFrame, split: str) -> tuple[int, int]:
    """How many pairs of different checkpoints lose accuracy by an interval above 0, and of how many."""
    drops = pick(frame, predictor="drop", split=split).dropna(subset="value")
    drops = drops[drops["train_step"] != drops["test_step"]]
    return int((drops["low"] > 0).sum()), len(drops)


def _probes_caption(frame: pd.DataFrame, label: str | None = None, split: str = "in_domain") -> Caption:
    label = label or label_of(frame)
    rows = pick(frame, label=label, split=split, metric="accuracy")
    clear, count = cells_above(frame, label=label, split=split)
    told = last_side(rows, GAINED, predictor="gain", layer=-1)
    message = f"At the last checkpoint the boundary probe {told}. " if told else ""
    message += f"Its gain's interval lies above 0 in {clear} of {count} cells (layer, checkpoint)."
    fitted = "fitted_on" in rows and (rows["fitted_on"] == "train").any()
    drawn = (
        f"Linear probe at the boundary for the {LABELS.get(label, label)}"
        f"{', fitted on the training split' if fitted else ''}: gain by layer; nested accuracy."
    )
    pairs = frame[
        frame["label"].str.startswith("pairwise") & (frame["layer"] == -1) & (frame["metric"] == "accuracy")
    ]
    shown = [_nested(rows)[lambda table: table["layer"] == -1], only(pairs, predictor=("probe", "gain"))]
    cells = rows[rows["layer"] >= 0].dropna(subset="value")
    for predictor, best in (
        ("gain", "idxmax"),
        ("gain_p", "idxmin"),
    ):  # the map's largest gain, and its smallest corrected p
        if len(of := pick(cells, predictor=predictor)):
            shown.append(of.loc[[getattr(of["value"], best)()]])
    shown += _lens(pick(frame, split=split, predictor="lens", label=f"{label.partition('_')[0]}_token"))
    return Caption(message, drawn, size(rows), numbers(pd.concat(shown, ignore_index=True)))


def _lens(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The logit lens at the layer where it is highest over all checkpoints, for each metric."""
    for _, of in rows.dropna(subset="value").groupby("metric"):
        yield pick(of, layer=of.groupby("layer")["value"].mean().idxmax())


def _nested(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the controls, which read no layer, filed under the nested choice."""
    reads_none = rows["predictor"].isin(CONTROLS)
    controls = rows[reads_none].sort_values("layer").drop_duplicates(["step", "predictor"])
    return pd.concat([rows[~reads_none], controls.assign(layer=-1)])


def _transfer_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    first, last = frame["train_step"].min(), frame["train_step"].max()
    counts = {split: pairs_that_drop(frame, split) for split in splits_of(frame)}
    told = clause({split: f"in {clear} of {count} pairs" for split, (clear, count) in counts.items()})
    message = f"Read at another checkpoint, a probe loses accuracy (interval above 0) {told}."
    drawn = (
        "Accuracy; drop against the own probe, which includes changed actions; three probes. "
        "Layer and C: chosen in training."
    )
    ends_ = only(frame, train_step=(first, last), test_step=(first, last), predictor=("probe", "drop"))
    return Caption(message, drawn, size(pick(frame, predictor="probe")), listing(ends_))


def _mdl_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    told = last_side(frame, BITS, metric="bits", predictor="gain")
    message = f"At the last checkpoint {told}, against the shorter of both other codes." if told else ""
    drawn = (
        f"Online codelength of the {LABELS.get(label, label)}: bits for each decision (top), "
        "compression against the uniform code (bottom)."
    )
    return Caption(
        message,
        drawn,
        size(pick(frame, metric="bits", predictor="probe")),
        numbers(frame, {"predictor": _CODES.get}),
    )


@_figure("What the prompt boundary already predicts", table="probes", caption=_probes_caption, expected=True)
def probes(frame: pd.DataFrame, label: str | None = None, split: str = "in_domain") -> go.Figure:
    """Probe's gain over the best control by layer and checkpoint, beside accuracies."""
    label = label or label_of(frame)
    chosen = need(frame, label=label, split=split, metric="accuracy")
    gain = need(chosen[chosen["layer"] >= 0], predictor="gain")
    steps, height = steps_of(chosen), 480
    fig = make_subplots(
        rows=2,
        cols=2,
        column_widths=[0.4, 0.6],
        horizontal_spacing=0.19,
        vertical_spacing=0.11,
        shared_xaxes=True,
        specs=[[dict(rowspan=2), {}], [None, {}]],
    )
    fig.update_layout(height=TOP + height + BOTTOM)
    layers = sorted(gain["layer"].unique())
    limit = max(0.01, float(gain["value"].abs().max()))
    title = dict(text="gain in accuracy over best control", side="right", font_size=14)
    bar = dict(title=title, x=0.335, thickness=13, outlinewidth=0, tickfont_size=13, tickformat="+.2f")
    look = dict(zmin=-limit, zmax=limit, colorscale=DIVERGING, name="gain", colorbar=bar)
    grid = draw_heatmap(fig, gain, "layer", "step", (layers, steps), 1, 1, **look)
    _mark(fig, uncertain(grid), "gain's interval covers 0", 1, 1)
    for row, predictors in enumerate((("probe", *CONTROLS), ("probe", *ACTIVATION_CONTROLS)), start=1):
        for predictor in predictors:
            # A control that reads no layer may be filed under any: the nested row first, else the first one.
            rows = pick(chosen, predictor=predictor).sort_values("layer").drop_duplicates("step")
            if len(rows):  # checkpoints without it break the line
                rows = rows.set_index("step").reindex(steps).reset_index()
            other = predictor != "probe"
            draw_line(fig, rows, steps, predictor, row=row, col=2, thin=other, show=row == 1 or other)
        step_axis(fig, steps, row=row, col=2, title=row == 2)
        text = ("against what reads no activation", "against controls of the activations")[row - 1]
        corner(fig, text, row, 2, above=True, font=dict(size=13, color="#666666"))
    step_axis(fig, steps, row=1, col=1, room=7)
    fig.update_xaxes(title="training step", row=1, col=1)
    layer_axis(fig, layers, "layer (0 = embedding output)", row=1, col=1)
    fig.update_yaxes(title=f"accuracy<br>({plain(LABELS.get(label, label))})", rangemode="tozero", col=2)
    fig.update_layout(legend=dict(y=1 + 26 / height, entrywidth=150))
    return fig


@_figure("Do probes carry over between checkpoints?", table="transfer", caption=_transfer_caption)
def transfer(frame: pd.DataFrame, label: str | None = None) -> go.Figure:
    """Accuracy of each checkpoint's probe at each checkpoint, its drop, and three probes over steps."""
    label = label or label_of(frame)
    frame = need(frame, label=label, metric="accuracy")
    probe, drop = (need(frame, predictor=predictor) for predictor in ("probe", "drop"))
    splits, steps = splits_of(frame), sorted(frame["train_step"].unique())
    height = 250 * len(splits) + 46 * (len(splits) - 1)
    titles = ("accuracy", "drop against the own probe", "three probes")
    fig = make_subplots(
        rows=len(splits), cols=3, horizontal_spacing=0.085, vertical_spacing=46 / height, column_titles=titles
    )
    fig.update_layout(height=height + TOP + BOTTOM + 70, margin=dict(b=BOTTOM + 70, l=88))
    limit = max(0.01, float(drop["value"].abs().max()))
    bar = dict(orientation="h", thickness=11, len=0.27, outlinewidth=0, tickfont_size=12, nticks=5)
    bar |= dict(y=-74 / height, yanchor="top")
    accuracies = dict(colorscale=SEQUENTIAL, cmin=0, cmax=float(probe["value"].max()))
    drops = dict(colorscale=[(1 - at, colour) for at, colour in DIVERGING[::-1]], cmin=-limit, cmax=limit)
    fig.update_layout(
        coloraxis=accuracies | dict(colorbar=dict(bar, x=0.135)),
        coloraxis2=drops | dict(colorbar=dict(bar, x=0.5, tickformat="+.2f")),
    )
    for row, split in enumerate(splits, start=1):
        for col, of in enumerate((probe, drop), start=1):
            rows = pick(of, split=split)
            look = dict(name=("accuracy", "drop")[col - 1], coloraxis=("coloraxis", "coloraxis2")[col - 1])
            grid = draw_heatmap(fig, rows, "train_step", "test_step", (steps, steps), row, col, **look)
            step_axis(fig, steps, row=row, col=col, title=False, room=5)
            axis = fig.get_subplot(row, col).xaxis
            ticks = dict(tickmode="array", tickvals=list(axis.tickvals), ticktext=list(axis.ticktext))
            fig.update_yaxes(showgrid=False, row=row, col=col, **ticks)
        unsure = uncertain(grid)
        _mark(fig, unsure[unsure[:, 0] != unsure[:, 1]], "drop's interval covers 0", row, 2, show=row == 1)
        _draw_probes(fig, pick(probe, split=split), steps, row)
        step_axis(fig, steps, row=row, col=3, title=False, room=5)
        fig.update_yaxes(title=f"{SPLITS[split]}:<br>probe of training step", row=row, col=1)
        fig.update_yaxes(rangemode="tozero", row=row, col=3)
    fig.update_xaxes(title="read at training step", row=len(splits))
    fig.update_layout(legend=dict(y=1 + 30 / height))
    return fig


def _draw_probes(fig: go.Figure, rows: pd.DataFrame, steps: list[int], row: int) -> None:
    """Draw what the own, the first and the last checkpoint's probe read over steps."""
    at = rows.assign(step=rows["test_step"]).sort_values("step")
    own = at[at["train_step"] == at["test_step"]]
    lines = (
        (own, "own probe", BLUE, "solid", "circle"),
        (pick(at, train_step=steps[0]), f"step {steps[0]}'s probe", SKY, "dash", "square"),
        (pick(at, train_step=steps[-1]), f"step {steps[-1]}'s probe", ORANGE, "dash", "diamond"),
    )
    for read, *look in lines:
        x = [steps.index(step) for step in read["step"]]
        draw_trace(fig, read, x, look, row, 3, "legend", row == 1, thin=look[0] != "own probe")


@_figure("Bits to send the action", table="mdl", caption=_mdl_caption)
def mdl(frame: pd.DataFrame, label: str | None = None) -> go.Figure:
    """Bits for each decision with the activations, the text and class frequencies, above the compression."""
    label = label or label_of(frame)
    frame = need(frame, label=label)
    predictors = ["probe", "tfidf", "majority"]
    fig = panels(frame, {"bits per decision": 210, "compression": 170})
    for row, metric in enumerate(("bits", "compression"), start=1):
        rows = need(frame, metric=metric).assign(metric=lambda table: table["predictor"])
        draw_metrics(
            fig, rows, predictors, row=row, thin=predictors[1:], steps=steps_of(frame), legend=row == 1
        )
        fit_values(fig, rows, predictors, row=row, at_least=(0.0, 1.0))
    return fig


def _mark(
    fig: go.Figure, at: Int[np.ndarray, "cell 2"], name: str, row: int, col: int, show: bool = True
) -> None:
    """Dots on the cells at (row, column)."""
    fig.add_scatter(
        x=at[:, 1],
        y=at[:, 0],
        mode="markers",
        marker=dict(size=5, color="#333333"),
        hoverinfo="skip",
        name=name,
        legendgroup=name,
        showlegend=show,
        row=row,
        col=col,
    )


#: Predictors along the trace, and how each is drawn.
_ALONG = {
    "probe": ("probe of the activations", BLUE, "solid", "square"),
    "tfidf": ("TF-IDF of the text so far", GREEN, "solid", "diamond"),
    "majority": ("majority class", GREY, "dash", "line-ew"),
    "named": ("the trace so far names it", ORANGE, "dot", "circle"),
}


def _along_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    rows = pick(frame, label=label)
    last = rows[rows["step"] == rows["step"].max()]
    told = {
        place: GAINED[side(each.iloc[0], 0.0)]
        for place in ("action tag, no trace", "boundary", "action tag")
        if len(each := pick(last, position=place, predictor="gain").dropna(subset=["low", "high"]))
    }
    places_of: dict[str, list[str]] = {}
    for place, words in told.items():
        places_of.setdefault(words, []).append(f"at the {place}")
    message = ", and ".join(f"{words} {' and '.join(places)}" for words, places in places_of.items())
    message = f"At the last checkpoint the probe {message}." if message else ""
    drawn = (
        f"Probe of the {LABELS.get(label, label)} at points of the own trace, nested accuracy; controls read "
        "the text up to the same token."
    )
    named = ("action tag, no trace", "boundary", "action tag")
    ends_ = only(rows, position=named, predictor=("probe", "gain"))
    return Caption(message, drawn, size(pick(rows, predictor="probe")), listing(ends_))


@_figure("When along the trace is the action settled?", table="along_trace", caption=_along_caption)
def along_trace(frame: pd.DataFrame, label: str | None = None) -> go.Figure:
    """Accuracy of the probe and of its controls from the boundary to the action tag, by checkpoint."""
    rows = need(frame, label=label or label_of(frame))
    steps = steps_of(rows)
    shown = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(4, len(steps)))})
    places = rows.drop_duplicates("position").sort_values("share")["position"].tolist()
    names = [place.removesuffix(" of the trace") for place in places]
    fig = facets(1, 300, 46, [f"step {step}" for step in shown], spacing=0.03)
    for col, step in enumerate(shown, start=1):
        for predictor, look in _ALONG.items():
            chosen = pick(rows, step=step, predictor=predictor).sort_values("share")
            # What is read without a trace stands apart from the curve.
            for part in (chosen[chosen["share"] >= 0], chosen[chosen["share"] < 0]):
                x = [places.index(place) for place in part["position"]]
                show = col == 1 and bool((part["share"] >= 0).any())
                draw_trace(fig, part, x, look, 1, col, "legend", show, predictor != "probe")
        fig.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-45, row=1, col=col)
    fig.update_yaxes(range=[0, 1.02], row=1)
    fig.update_yaxes(
        title=f"accuracy<br>({plain(LABELS.get(rows['label'].iloc[0], rows['label'].iloc[0]))})", col=1
    )
    fig.update_layout(margin_b=BOTTOM + 46)
    return under(fig, "read at: action tag without a trace, boundary, share of the trace, action tag", 74)
