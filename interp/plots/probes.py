"""The probes' figures from tables: gain and controls, transfer between checkpoints, codelengths.

>>> frame, provenance = read_table("runs/quick/tables", "transfer")
>>> transfer(frame, provenance).show()
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, clause, last_side, listing, numbers, only, size
from interp.plots.look import BOTTOM, SMALL
from interp.plots.registry import figure
from interp.plots.series import at_ends, by_split, draw_series, end_looks
from interp.plots.theme import (
    DIVERGING,
    draw_heatmap,
    facets,
    fit_values,
    layer_axis,
    note_n,
    panels,
    sizes,
    step_axis,
    zero_line,
)
from interp.results.estimates import side
from interp.results.names import BLUE, CONTROLS, GREEN, GREY, LABELS, ORANGE, SKY, SPLITS, STYLE
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


def _probes_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    rows = pick(frame, label=label, metric="accuracy")
    clear, count = cells_above(frame, label=label)
    told = last_side(rows, GAINED, predictor="gain", layer=-1)
    message = f"The last boundary probe {told}. " if told else ""
    message += f"Its gain is above 0 for sure in {clear} of {count} cells (layer, checkpoint, split)."
    fitted = "fitted_on" in rows and bool((rows["fitted_on"] == "train").any())
    drawn = (
        f"Linear probe of the {LABELS.get(label, label)}{', fitted on the training split' * fitted}; "
        "controls read no activation."
    )
    pairs = frame[
        frame["label"].str.startswith("pairwise") & (frame["layer"] == -1) & (frame["metric"] == "accuracy")
    ]
    shown = [_nested(rows)[lambda table: table["layer"] == -1], only(pairs, predictor=("probe", "gain"))]
    for _, cells in rows[rows["layer"] >= 0].dropna(subset="value").groupby("split", sort=False):
        # the largest gain of all cells, and the smallest corrected p
        for predictor, best in (("gain", "idxmax"), ("gain_p", "idxmin")):
            if len(of := pick(cells, predictor=predictor)):
                shown.append(of.loc[[getattr(of["value"], best)()]])
    shown += _lens(pick(frame, predictor="lens", label=f"{label.partition('_')[0]}_token"))
    return Caption(message, drawn, size(rows), numbers(pd.concat(shown, ignore_index=True)))


def _lens(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The logit lens at the layer where it is highest over all checkpoints, for each metric."""
    for _, of in rows.dropna(subset="value").groupby(["metric", "split"]):
        yield pick(of, layer=of.groupby("layer")["value"].mean().idxmax())


def _nested(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the controls, which read no layer, filed under the nested choice."""
    reads_none = rows["predictor"].isin(CONTROLS)
    controls = rows[reads_none].sort_values("layer").drop_duplicates(["step", "split", "predictor"])
    return pd.concat([rows[~reads_none], controls.assign(layer=-1)])


def _transfer_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    first, last = frame["train_step"].min(), frame["train_step"].max()
    counts = {split: pairs_that_drop(frame, split) for split in splits_of(frame)}
    told = clause({split: f"in {clear} of {count} pairs" for split, (clear, count) in counts.items()})
    message = f"Read at another checkpoint, a probe loses accuracy (interval above 0) {told}."
    drawn = (
        "Top: accuracy of three probes. Bottom: drop against the own probe, which includes changed "
        "actions; blank: covers 0."
    )
    ends_ = only(frame, train_step=(first, last), test_step=(first, last), predictor=("probe", "drop"))
    return Caption(message, drawn, size(pick(frame, predictor="probe")), listing(ends_))


def _mdl_caption(frame: pd.DataFrame, label: str | None = None) -> Caption:
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    told = last_side(frame, BITS, metric="bits", predictor="gain")
    message = f"At the last checkpoint {told}, against the shorter of both other codes." if told else ""
    drawn = (
        f"Online codelength of the {LABELS.get(label, label)}: bits for each decision (top) and "
        "bits saved (bottom)."
    )
    return Caption(
        message,
        drawn,
        size(pick(frame, metric="bits", predictor="probe")),
        numbers(frame, {"predictor": _CODES.get}),
    )


@_figure("What the prompt boundary already predicts", table="probes", caption=_probes_caption, expected=True)
def probes(frame: pd.DataFrame, label: str | None = None) -> go.Figure:
    """Probe's gain over the best control by checkpoint, above its gain by layer at both ends.

    Layer 0 is left to the table: there the boundary is one and the same token in every prompt.
    """
    chosen = need(frame, label=label or label_of(frame), metric="accuracy")
    gain = need(chosen, predictor="gain")
    by_layer, nested = need(gain[gain["layer"] > 0]), pick(gain, layer=-1)
    nested = nested if len(nested) else by_layer.loc[by_layer.groupby(["step", "split"])["value"].idxmax()]
    steps, ends, layers = steps_of(gain), at_ends(by_layer), sorted(by_layer["layer"].unique())
    fig = panels(gain, {"gain over best control": 160, "gain by layer": 160})
    looks = {"gain": ("probe − best control, nested layer", *STYLE["probe"][1:])}
    draw_series(fig, nested, looks, by="predictor", panels=by_split(gain), order=steps)
    drawn: dict[str, Any] = dict(
        by="step", panels=by_split(gain), row=2, along="layer", order=layers, legend="legend"
    )
    draw_series(fig, by_layer, end_looks(ends), **drawn)
    for col in range(1, len(by_split(gain)) + 1):
        step_axis(fig, steps, 1, col)
        layer_axis(fig, layers, "layer", 2, col, axis="x")
    shown = pd.concat([nested, only(by_layer, step=ends)])
    fit_values(fig, shown, ["accuracy"], row=None)
    for row in (1, 2):
        zero_line(fig, row)
    fig.update_xaxes(matches=None, showticklabels=True)
    return note_n(fig, sizes(nested))


@_figure("Do probes carry over between checkpoints?", table="transfer", caption=_transfer_caption)
def transfer(frame: pd.DataFrame, label: str | None = None) -> go.Figure:
    """What the own, the first and the last checkpoint's probe read over steps, above every probe's drop.

    A drop that is not told apart from 0 is blank.
    """
    frame = need(frame, label=label or label_of(frame), metric="accuracy")
    probe, drop = (need(frame, predictor=predictor) for predictor in ("probe", "drop"))
    steps, splits = sorted(frame["train_step"].unique()), by_split(frame)
    fig = facets(2, 190, 20, [SPLITS[where["split"]] for where in splits])
    own = probe[probe["train_step"] == probe["test_step"]].assign(probe="own")
    first, last = (pick(probe, train_step=step).assign(probe=step) for step in (steps[0], steps[-1]))
    looks = {
        "own": ("own probe", BLUE, "solid", "circle"),
        steps[0]: (f"step {steps[0]}'s probe", SKY, "dash", "square"),
        steps[-1]: (f"step {steps[-1]}'s probe", ORANGE, "dash", "diamond"),
    }
    rows = pd.concat([own, first, last]).assign(step=lambda table: table["test_step"])
    draw_series(fig, rows, looks, by="probe", panels=splits, order=steps, thin=(steps[0], steps[-1]))
    apart = drop[(drop["low"] > 0) | (drop["high"] < 0)]
    limit = max(0.01, float(drop["value"].abs().max()))
    for col, where in enumerate(splits, start=1):
        look = dict(name="drop", coloraxis="coloraxis")
        draw_heatmap(fig, pick(apart, **where), "train_step", "test_step", (steps, steps), 2, col, **look)
        for row in (1, 2):
            step_axis(fig, steps, row, col, title=False)
        axis = fig.get_subplot(2, col).xaxis
        fig.update_yaxes(showgrid=False, tickvals=axis.tickvals, ticktext=axis.ticktext, row=2, col=col)
        fig.update_xaxes(showgrid=False, row=2, col=col)
    fig.update_xaxes(title="read at training step", row=2)
    fig.update_yaxes(title="accuracy", row=1, col=1)
    fit_values(fig, rows, ["accuracy"], row=1)
    fig.update_yaxes(range=[-0.5, len(steps) - 0.5], row=2)
    fig.update_yaxes(title="probe of training step", row=2, col=1)
    bar = dict(title=dict(text="drop in accuracy", side="right"), thickness=13, outlinewidth=0, x=1.01)
    bar |= dict(tickfont_size=SMALL, title_font_size=SMALL, tickformat=".1f", len=0.45, y=0, yanchor="bottom")
    drops = [(1 - at, colour) for at, colour in DIVERGING[::-1]]
    fig.update_layout(coloraxis=dict(colorscale=drops, cmin=-limit, cmax=limit, colorbar=bar), margin_r=92)
    return note_n(fig, sizes(probe))


@_figure("Bits to send the action", table="mdl", caption=_mdl_caption)
def mdl(frame: pd.DataFrame, label: str | None = None) -> go.Figure:
    """Bits for each decision with the activations, the text and class frequencies, above the bits saved."""
    frame = need(frame, label=label or label_of(frame), metric="bits")
    codes = {name: STYLE[name] for name in ("probe", "tfidf", "majority")}
    saved = {"gain": ("saved against the shorter other code", *STYLE["probe"][1:])}
    fig = panels(frame, {"bits per decision": 170, "bits saved": 130})
    for row, looks in enumerate((codes, saved), start=1):
        rows = need(only(frame, predictor=looks))
        draw_series(fig, rows, looks, by="predictor", panels=by_split(frame), row=row, thin=("majority",))
        fit_values(fig, rows, ["bits"], row=row)
    zero_line(fig, 2)
    return note_n(fig, sizes(pick(frame, predictor="probe")))


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
    """Accuracy of the probe and of its controls from the boundary to the action tag, at both ends.

    What is read without a trace stands apart from the curve.
    """
    rows = need(frame, label=label or label_of(frame))
    places = rows.drop_duplicates("position").sort_values("share")["position"].tolist()
    names = [place.removesuffix(" of the trace").replace(", ", ",<br>") for place in places]
    steps = at_ends(rows)
    fig = facets(1, 210, 20, [f"step {step}" for step in steps], below=BOTTOM + 60)
    panels = [dict(step=step) for step in steps]
    for part in (rows[rows["share"] >= 0], rows[rows["share"] < 0]):
        lines: dict[str, Any] = dict(by="predictor", panels=panels, along="position", order=places)
        draw_series(fig, part.sort_values("share"), _ALONG, thin=[*_ALONG][1:], **lines)
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-45)
    fig.update_yaxes(range=[0, 1.02])
    fig.update_yaxes(title="accuracy", col=1)
    fig.update_xaxes(title="read at: share of the trace", range=[-0.4, len(places) - 0.6])
    return note_n(fig, sizes(pick(rows, predictor="probe")))
