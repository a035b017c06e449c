"""Figures of what traces do, from tables: conflicting traces, early answering, shares, steering.

>>> frame, provenance = read_table("runs/quick/tables", "conflict")
>>> removal(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, as in `interp.plots.behaviour`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, clause, last_side, numbers, only, size, together
from interp.plots.registry import figure
from interp.plots.series import GREY_LINE, ROW, at_ends, by_split, draw_estimates, draw_series, end_looks
from interp.plots.theme import (
    corner,
    draw_metrics,
    facets,
    fit_values,
    note_n,
    panels,
    sizes,
    under,
    zero_line,
)
from interp.results.estimates import ends, estimate
from interp.results.names import (
    ALONG,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INSERTED_TRACES,
    ORANGE,
    PURPLE,
    SHARES,
    SKY,
    SPANS,
    SPLITS,
    STEERED,
    STYLE,
    VERMILION,
    VERSIONS,
)
from interp.results.queries import need, pick, splits_of, steps_of
from interp.results.wording import listed, sentence

#: Inserted traces: name in legends, colour, dash, marker. Other traces, then the own one changed or removed.
LOOKS = {
    "other_state": ("other state's trace", VERMILION, "solid", "circle"),
    "resampled": ("resampled", ORANGE, "solid", "triangle-up"),
    "mistake": ("mistake", GREEN, "solid", "square"),
    "truncated": ("truncated", SKY, "dash", "diamond"),
    "paraphrase": ("paraphrase", BLACK, "dot", "circle"),
    "shuffled_words": ("shuffled words", PURPLE, "dot", "x"),
    "filler": ("filler", GREY, "dash", "triangle-down"),
    "empty": ("empty", BLUE, "solid", "square"),
}
#: Inserted traces that argue for another action, so that the agent may follow them.
ARGUING = ("other_state", "resampled", "mistake")
_MASSES = ("mass_own", "mass_argued")
_FOLLOWS = ("follow_likely", "follow_unlikely")
#: Decisions below which a share is left to the table: its interval says nothing, and hides the others.
FEWEST = 5


#: What the last intervals say of another state's trace, and of a removed against a wrong one.
FOLLOWED = {
    1: "the agent follows another state's trace more often than not",
    -1: "the agent does not follow another state's trace more often than not",
    0: "the agent follows another state's trace about half of the time",
}
REMOVED = {
    1: "a wrong trace changes the action more often than none does",
    -1: "no trace changes the action more often than a wrong one does",
    0: "no trace and a wrong one are not told apart",
}
#: What random directions at the same strength change, against the probe's.
STEERS = {1: "changes more actions than", -1: "changes fewer actions than", 0: "is not told apart from"}
_figure = partial(figure, section="depends")


def splice_fails(frame: pd.DataFrame) -> float | None:
    """The lowest share of actions that the own trace, put back, reproduces where it is not 1; else None."""
    kept = pick(frame, inserted_trace="self_splice", metric="keep")["value"]
    return float(kept.min()) if len(kept) and not (kept == 1).all() else None


def _unparsed(frame: pd.DataFrame) -> str:
    """The inserted traces after which a tenth or more of the last actions do not parse."""
    last = pick(frame, step=frame["step"].max(), metric="unparsed")
    most = last.groupby("inserted_trace")["value"].max()
    told = [
        f"{INSERTED_TRACES[kind]} ({100 * most[kind]:.0f} %)" for kind in LOOKS if most.get(kind, 0) >= 0.1
    ]
    return f"Not parsed: {listed(told)}." if told else ""


def _conflict_caption(frame: pd.DataFrame) -> Caption:
    last = last_side(frame, FOLLOWED, 0.5, inserted_trace="other_state", metric="follow")
    message = sentence(f"at the last checkpoint {last}") if last else ""
    if (worst := splice_fails(frame)) is not None:
        message = (
            f"SELF-SPLICE CHECK FAILED: keep falls to {worst:.3f} where it must be 1, so no trace "
            "here is to be trusted."
        )
    elif len(pick(frame, inserted_trace="self_splice", metric="keep")):
        message += " The self-splice check passed."
    shown = only(frame, metric=("keep", "follow", "logp_trace", "logp_own", "leak_rate"))
    table = numbers(shown).rename(columns={"inserted_trace": "inserted trace"})
    return Caption(
        together(message, _unparsed(frame)),
        "Top: traces for another action; bottom: the own one, changed.",
        size(only(frame, metric=("keep", "follow"))),
        table,
    )


def _shift_caption(frame: pd.DataFrame) -> Caption:
    tops = {}
    for split in splits_of(frame):
        last = [
            (kind, of.last)
            for kind in INSERTED_TRACES
            if (of := ends(pick(frame, metric="shift", inserted_trace=kind, split=split)))
        ]
        if last:
            kind, top = max(last, key=lambda each: each[1]["value"])
            tops[split] = f"{INSERTED_TRACES[kind]} ({estimate(top)})"
    message = f"The last action's distribution moves most after: {clause(tops)}." if tops else ""
    drawn = (
        "Total variation distance to the distribution after the own trace. Top: traces for another action; "
        "bottom: the own one, changed."
    )
    moved = only(
        pick(frame, inserted_trace="other_state"),
        metric=(*_MASSES, *(f"{name}_before" for name in _MASSES), *_FOLLOWS),
    )
    shown = pd.concat([pick(frame, metric="shift"), moved])
    return Caption(message, drawn, size(pick(frame, metric="shift")), numbers(shown))


def _removal_caption(frame: pd.DataFrame) -> Caption:
    last = last_side(frame, REMOVED, inserted_trace="filler", metric="flip_difference_parsed")
    message = sentence(f"at the last checkpoint {last}") if last else ""
    drawn = "Flips where both actions parse. In arXiv 2603.01437: 2–14 % removed, 52–78 % replaced."
    shown = frame[frame["metric"].str.startswith("flip_")]
    return Caption(message, drawn, size(frame[frame["metric"].str.endswith("_parsed")]), numbers(shown))


def _early_caption(frame: pd.DataFrame) -> Caption:
    message = together(
        change("The same action without the trace", frame, metric="same_0"),
        change("The area", frame, metric="area_action"),
    )
    drawn = (
        "Action after parts of the own trace against all of it; area over the curve (0: no trace "
        "needed, 1: all)."
    )
    return Caption(message, drawn, size(pick(frame, metric="area_action")), numbers(frame))


def _shares_caption(frame: pd.DataFrame, version: str = "sink_free") -> Caption:
    frame = pick(frame, version=version)
    message = [
        change(f"The trace's {name} ratio", frame, span="cot", metric="ratio", definition=definition)
        for definition, name in (("attention", "attention"), ("gradient_value", "gradient"))
    ]
    drawn = (
        "A span's share of what the action attends to and depends on, over its token share, "
        f"{VERSIONS[version]}. Descriptive."
    )
    ratios = only(frame, metric=("ratio",), span=("task", "history", "observation", "cot"))
    shown = pd.concat([ratios, only(frame, metric=("share", "token_share"), span=("cot",))])
    return Caption(together(*message), drawn, size(pick(frame, metric="ratio")), numbers(shown))


def widest(frame: pd.DataFrame) -> float:
    """The largest alpha at which half of one position's last decisions parse, else the smallest."""
    parse = pick(frame, step=frame["step"].max(), direction="probe", metric="parse")
    return max(parse.loc[parse["value"] >= 0.5, "alpha"], default=parse["alpha"].min())


def steered(frame: pd.DataFrame) -> pd.Series | None:
    """The largest share of actions that steering at the boundary changes."""
    rows = pick(frame, position="boundary", metric="flip").dropna(subset="value")
    return rows.loc[rows["value"].idxmax()] if len(rows) else None


def against_random(frame: pd.DataFrame) -> tuple[int, pd.Series, pd.Series] | None:
    """1 where the probe's direction changes more actions than random ones, -1 fewer, 0 neither; and both.

    At the last checkpoint and the largest strength that leaves half of its decisions parsing.
    """
    rows = pick(frame, position="cot", step=frame["step"].max(), metric="flip")
    at = pick(rows, alpha=widest(pick(frame, position="cot"))).dropna(subset="value")
    probe, random = pick(at, direction="probe"), pick(at, direction="orthogonal")
    if probe.empty or random.empty:
        return None
    probe, random = probe.iloc[0], random.iloc[0]
    return int(probe["low"] > random["high"]) - int(probe["high"] < random["low"]), probe, random


def _steering_caption(frame: pd.DataFrame) -> Caption:
    message = []
    if (top := steered(frame)) is not None:
        message.append(f"At the boundary at most {estimate(top)} of actions change.")
    if found := against_random(frame):
        message.append(
            f"During the trace the probe's direction {STEERS[found[0]]} random directions (last checkpoint)."
        )
    positions = [name for name in STEERED if (frame["position"] == name).any()]
    shown = []
    for name in positions:
        here = pick(frame, position=name)
        alpha = widest(here)
        shown.append(
            pick(here, alpha=alpha).assign(position=f"{STEERED[name]}, alpha {alpha:g}").drop(columns="alpha")
        )
    drawn = (
        "A direction is added while the action is decoded. Flips include unparsed actions, minus "
        "the resample rate at alpha 0."
    )
    return Caption(
        " ".join(message),
        drawn,
        size(pick(frame, metric="flip", direction="probe")),
        numbers(pd.concat(shown)),
    )


@_figure("Conflicting traces", table="conflict", caption=_conflict_caption, expected=True)
def conflict(frame: pd.DataFrame) -> go.Figure:
    """How often other traces are followed, above how often the own action is kept without the own trace."""
    kinds = [kind for kind in LOOKS if (frame["inserted_trace"] == kind).any()]
    rows = {"follows the trace": ("follow", ARGUING), "keeps its action": ("keep", set(kinds) - {*ARGUING})}
    rows = {title: of for title, of in rows.items() if set(of[1]) & set(kinds)}
    if not rows:
        raise ValueError("the table has no rows of another trace than the own one.")
    fig = _by_kind(frame, rows)
    if (worst := splice_fails(frame)) is not None:
        text = f"SELF-SPLICE CHECK FAILED: keep falls to {worst:.3f}"
        corner(fig, text, 1, 1, font=dict(color=VERMILION))
    return fig


@_figure("How far another trace moves the action", table="conflict", caption=_shift_caption)
def conflict_shift(frame: pd.DataFrame) -> go.Figure:
    """How far traces that argue for another action move the action's distribution, above changed ones."""
    kinds = need(frame, metric="shift")["inserted_trace"]
    rows = {"distance": ("shift", ARGUING), "distance, own trace": ("shift", set(LOOKS) - {*ARGUING})}
    return _by_kind(frame, {title: of for title, of in rows.items() if kinds.isin(of[1]).any()})


def _by_kind(frame: pd.DataFrame, rows: Mapping[str, tuple[str, Collection[str]]]) -> go.Figure:
    """Shares by inserted trace, a row of panels for each (axis title: metric and traces)."""
    fig, drawn = panels(frame, dict.fromkeys(rows, 160)), []
    for row, (metric, kinds) in enumerate(rows.values(), start=1):
        looks = {kind: look for kind, look in LOOKS.items() if kind in kinds}
        of = only(pick(frame, metric=metric), inserted_trace=looks)
        drawn.append(of.mask(of["n"] < FEWEST, of.assign(value=np.nan, low=np.nan, high=np.nan)))
        places: dict[str, Any] = dict(panels=by_split(frame), row=row, order=steps_of(frame))
        draw_series(fig, drawn[-1], looks, by="inserted_trace", **places)
    fig.update_yaxes(range=[-0.05, 1.07])
    every = pd.concat(drawn)
    shown = every.dropna(subset="value")
    return note_n(fig, sizes(shown) + "; fewer: table only" * (len(shown) < len(every)))


@_figure("A trace removed against a wrong one", table="conflict", caption=_removal_caption)
def removal(frame: pd.DataFrame) -> go.Figure:
    """Flips of the action without its trace and under another state's, and their difference.

    Both actions must parse; the other state's line is of the decisions that parse after the filler.
    """
    removed = need(frame, metric="flip_removed_parsed")
    kinds = [kind for kind in ("filler", "empty") if (removed["inserted_trace"] == kind).any()]
    wrong = pick(frame, metric="flip_substituted_parsed", inserted_trace=kinds[0])
    flips = pd.concat([wrong.assign(inserted_trace="other_state"), removed])
    differences = need(frame, metric="flip_difference_parsed")
    fig = panels(frame, {"flips": 160, "wrong − removed": 140})
    places: dict[str, Any] = dict(
        by="inserted_trace", panels=by_split(frame), order=steps_of(frame), legend="legend"
    )
    draw_series(fig, flips, {kind: LOOKS[kind] for kind in ("other_state", *kinds)}, **places)
    draw_series(fig, differences, {kind: LOOKS[kind] for kind in kinds}, row=2, **places)
    fig.update_yaxes(range=[-0.04, 1.05], row=1)
    fit_values(fig, only(differences, inserted_trace=kinds), ["flip_difference_parsed"], row=2)
    zero_line(fig, row=2)
    return note_n(fig, sizes(flips))


@_figure("Early answering", table="early", caption=_early_caption)
def early(frame: pd.DataFrame) -> go.Figure:
    """Area over the early-answering curve, above the rate of the same action after parts of the trace."""
    fig = panels(frame, {"area over the curve": 160, "same action": 160})
    areas = ["area_action", "area_filler", "area_distribution"]
    same = ["same_0", "same_25", "same_50", "same_75"]
    draw_metrics(fig, frame, areas, row=1, thin=("area_distribution", "area_filler"))
    draw_metrics(fig, frame, same, row=2, thin=("same_25", "same_75"))
    fit_values(fig, frame, areas, row=1, at_least=(0.0, 0.5))
    fit_values(fig, frame, same, row=2, at_least=(0.0, 0.5))
    return note_n(fig, sizes(pick(frame, metric="area_action")))


@_figure("What the action attends to and depends on", table="shares", caption=_shares_caption)
def shares(frame: pd.DataFrame, version: str = "sink_free") -> go.Figure:
    """Share over token share of every span at both ends, a row for each definition (log scale).

    The gradient's is along the value path where that was measured; the other one is left to the table.
    """
    chosen = need(frame, version=version, metric="ratio")
    chosen = chosen[chosen["value"] > 0]
    kinds = [name for name in SHARES if (chosen["definition"] == name).any()][:2]
    spans = {name: SPANS[name] for name in SPANS if (chosen["span"] == name).any()}
    splits, ends = by_split(chosen), at_ends(chosen)
    rows = only(chosen, step=ends, definition=kinds)
    bottom = np.nanmin([rows["value"].min(), rows.loc[rows["low"] > 0, "low"].min(), 0.8])
    top = np.nanmax([rows["value"].max(), rows["high"].max(), 1.25])
    rows = rows.assign(low=rows["low"].clip(lower=bottom))  # 0 has no place on a log axis
    fig = facets(len(kinds), ROW * len(spans), 26, [SPLITS[where["split"]] for where in splits])
    for row, kind in enumerate(kinds, start=1):
        places: dict[str, Any] = dict(panels=splits, along="span", order=spans, row=row)
        draw_estimates(fig, pick(rows, definition=kind), end_looks(ends), by="step", **places)
        fig.update_yaxes(title=SHARES[kind].partition(",")[0], row=row, col=1)
    margin = 0.05 * np.log10(top / bottom)
    ticks = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 3)]
    reach = [np.log10(bottom) - margin, np.log10(top) + margin]
    fig.update_xaxes(type="log", range=reach, tickvals=ticks, tickformat=".4~g")
    fig.update_xaxes(title="share / token share (1 = uniform)", row=len(kinds))
    fig.add_vline(x=1, row="all", col="all", **GREY_LINE)
    return note_n(fig, sizes(rows))


@_figure("Steering along the probe's direction", table="steering", caption=_steering_caption)
def steering(frame: pd.DataFrame) -> go.Figure:
    """Flips and parse rate against alpha at up to three positions where some direction changes actions."""
    frame = need(frame, split="in_domain")
    step = steps_of(frame)[-1]
    frame = pick(frame, step=step)
    rows = {"flips": need(frame, metric="flip"), "parse rate": need(frame, metric="parse")}
    moved = rows["flips"][rows["flips"]["low"] > 0]["position"].unique()
    shown = [name for name in STEERED if name in moved][:3] or [*dict.fromkeys(frame["position"])][:1]
    fig = facets(2, 150, 20, [STEERED[name] for name in shown], across=len(shown))
    looks = {kind: STYLE[f"along_{kind}"] for kind in ALONG}
    alphas = sorted(frame["alpha"].unique())
    places: dict[str, Any] = dict(panels=[dict(position=name) for name in shown], along="alpha", order=alphas)
    for row, (title, of) in enumerate(rows.items(), start=1):
        thin = [kind for kind in ALONG if kind != "probe"]
        draw_series(fig, of, looks, by="direction", row=row, thin=thin, legend="legend", **places)
        fig.update_yaxes(title=title, range=[-0.05, 1.07], row=row, col=1)
    ticks = [f"{alpha:g}".removeprefix("0") or "0" for alpha in alphas]
    fig.update_xaxes(tickvals=list(range(len(alphas))), ticktext=ticks)
    under(fig, f"alpha (norms of the residual), training step {step}")
    return note_n(fig, sizes(rows["flips"]))
