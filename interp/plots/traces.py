"""Figures of what traces do, from tables: conflicting traces, early answering, shares, steering.

>>> frame, provenance = read_table("runs/quick/tables", "conflict")
>>> removal(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, as in `interp.plots.behaviour`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, change, clause, last_side, numbers, only, size, together
from interp.plots.registry import figure
from interp.plots.theme import (
    BOTTOM,
    HOVER,
    STEP_TITLE,
    draw_line,
    draw_metrics,
    draw_trace,
    facets,
    fit_values,
    panels,
    point_numbers,
    step_axis,
    under,
    whisker,
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
from interp.results.wording import sentence

#: As `interp.plots.theme.STYLE`, of what only the figures here have.
LOOKS = {
    "inserted_truncated": ("truncated", SKY, "dash", "diamond"),
    "inserted_other_state": ("other state's trace", VERMILION, "solid", "circle"),
    "inserted_resampled": ("resampled", ORANGE, "solid", "triangle-up"),
    "inserted_mistake": ("mistake", GREEN, "solid", "square"),
    "inserted_paraphrase": ("paraphrase", BLACK, "dot", "circle"),
    "inserted_shuffled_words": ("shuffled words", PURPLE, "dot", "x"),
    "inserted_filler": ("filler", GREY, "dash", "triangle-down"),
    "inserted_empty": ("empty", BLUE, "solid", "square"),
    "mass_own_before": ("own action, before", SKY, "dot", "diamond"),
    "mass_own": ("own action, after", BLUE, "solid", "square"),
    "mass_argued_before": ("argued action, before", ORANGE, "dot", "triangle-up"),
    "mass_argued": ("argued action, after", VERMILION, "solid", "circle"),
    "follow_likely": ("likelier half of the other traces", VERMILION, "solid", "circle"),
    "follow_unlikely": ("less likely half", ORANGE, "dash", "triangle-up"),
}
#: Inserted traces that argue for another action; else the own one is cut, shuffled or taken away.
REPLACED = ("other_state", "resampled")


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
_MASSES = ("mass_own_before", "mass_own", "mass_argued_before", "mass_argued")
_FOLLOWS = ("follow_likely", "follow_unlikely")
#: Row of panels, rows of the table, one of LOOKS, and whether the line is thin.
Line = tuple[int, pd.DataFrame, str, bool]
_figure = partial(figure, section="depends")


def splice_fails(frame: pd.DataFrame) -> float | None:
    """The lowest share of actions that the own trace, put back, reproduces where it is not 1; else None."""
    kept = pick(frame, inserted_trace="self_splice", metric="keep")["value"]
    return float(kept.min()) if len(kept) and not (kept == 1).all() else None


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
    drawn = (
        "The agent's own prompt with an inserted trace: keep, follow and other action, a column "
        "for each trace."
    )
    shown = only(frame, metric=("keep", "follow", "logp_trace", "logp_own", "leak_rate"))
    table = numbers(shown).rename(columns={"inserted_trace": "inserted trace"})
    return Caption(message, drawn, size(only(frame, metric=("keep", "follow"))), table)


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
        "Total variation distance after an inserted trace; probability of own and argued action; "
        "follow by that trace's likelihood."
    )
    moved = only(pick(frame, inserted_trace="other_state"), metric=(*_MASSES, *_FOLLOWS))
    shown = pd.concat([pick(frame, metric="shift"), moved])
    return Caption(message, drawn, size(pick(frame, metric="shift")), numbers(shown))


def _removal_caption(frame: pd.DataFrame) -> Caption:
    last = last_side(frame, REMOVED, inserted_trace="filler", metric="flip_difference_parsed")
    message = sentence(f"at the last checkpoint {last}") if last else ""
    drawn = (
        "Flips after removal (empty, full stops) or replacement; top: unparsed ones count. In "
        "arXiv 2603.01437: 2–14 %, 52–78 %."
    )
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
    """Keep, follow, other and unparsed over checkpoints, a column for each inserted trace."""
    inserted_traces = [kind for kind in INSERTED_TRACES if (frame["inserted_trace"] == kind).any()]
    splits, steps = splits_of(frame), steps_of(frame)
    fig = facets(len(splits), 170, 22, [INSERTED_TRACES[kind] for kind in inserted_traces], spacing=0.014)
    for row, split in enumerate(splits, start=1):
        for col, kind in enumerate(inserted_traces, start=1):
            rows = pick(frame, split=split, inserted_trace=kind)
            for metric in ("keep", "follow", "other", "unparsed"):
                thin = metric in ("other", "unparsed")
                draw_line(
                    fig, pick(rows, metric=metric), steps, metric, row, col, thin=thin, show=row == col == 1
                )
            step_axis(fig, steps, row=row, col=col, room=3, title=False)
        fig.update_yaxes(title=f"rate, {SPLITS[split].lower()}", row=row, col=1)
        kept = pick(frame, split=split, inserted_trace="self_splice", metric="keep")["value"]
        if len(kept):
            good = bool((kept == 1).all())
            failed = f"CHECK FAILED:<br>keep falls to {kept.min():.3f}"
            text = "check passed:<br>keep = 1 exactly" if good else failed
            fig.add_annotation(
                text=text,
                x=(len(steps) - 1) / 2,
                y=0.5,
                showarrow=False,
                row=row,
                col=inserted_traces.index("self_splice") + 1,
                font=dict(size=13, color=GREY if good else VERMILION),
            )
    fig.update_yaxes(range=[-0.05, 1.07])
    return under(fig, STEP_TITLE)


@_figure("How far another trace moves the action", table="conflict", caption=_shift_caption)
def conflict_shift(frame: pd.DataFrame) -> go.Figure:
    """How far inserted traces move the action's distribution, and what mass another state's moves."""
    need(frame, metric="shift")
    rows = {
        "distance,<br>another trace": 150,
        "distance,<br>own trace changed": 190,
        "probability,<br>other state": 170,
        "follow,<br>other state": 150,
    }
    fig, steps = panels(frame, rows), steps_of(frame)
    lines = []
    for kind in list(INSERTED_TRACES)[1:]:
        shift = pick(frame, metric="shift", inserted_trace=kind)
        lines.append((1 if kind in REPLACED else 2, shift, f"inserted_{kind}", False))
    for row, metrics in ((3, _MASSES), (4, _FOLLOWS)):
        for metric in metrics:
            rows_of = pick(frame, inserted_trace="other_state", metric=metric)
            lines.append((row, rows_of, metric, metric.endswith("before")))
    _draw_lines(fig, lines, splits_of(frame), steps)
    fig.update_yaxes(range=[-0.04, 1.05])
    return fig


@_figure("A trace removed against a wrong one", table="conflict", caption=_removal_caption)
def removal(frame: pd.DataFrame) -> go.Figure:
    """Flips of the action without its trace and under another state's, and their difference.

    Where both must parse, the other state's line is of the decisions that parse after the filler.
    """
    need(frame, metric="flip_removed")
    rows = {"flips": 180, "flips,<br>both parsed": 180, "wrong − removed,<br>both parsed": 170}
    fig, steps = panels(frame, rows), steps_of(frame)
    removed = pick(frame, metric="flip_removed")["inserted_trace"]
    kinds = [kind for kind in ("filler", "empty") if (removed == kind).any()]
    lines = []
    for row, suffix in ((1, ""), (2, "_parsed")):
        other = pick(frame, metric=f"flip_substituted{suffix}", inserted_trace=kinds[0])
        lines.append((row, other, "inserted_other_state", False))
        lines += _removals(frame, f"flip_removed{suffix}", kinds, row)
    lines += _removals(frame, "flip_difference_parsed", kinds, 3)
    _draw_lines(fig, lines, splits_of(frame), steps, shared=True)
    fig.update_yaxes(range=[-0.04, 1.05])
    fit_values(fig, only(frame, inserted_trace=kinds), ["flip_difference_parsed"], row=3)
    zero_line(fig, row=3)
    return fig


def _removals(frame: pd.DataFrame, metric: str, kinds: list[str], row: int) -> list[Line]:
    """A metric's line for each way of removing the trace."""
    return [
        (row, pick(frame, metric=metric, inserted_trace=kind), f"inserted_{kind}", False) for kind in kinds
    ]


def _draw_lines(
    fig: go.Figure,
    lines: list[Line],
    splits: list[str],
    steps: list[int],
    shared: bool = False,
) -> None:
    """Draw (row, rows of the table, look, thin) into every split's panels, with one legend or many."""
    named = set()
    for row, rows, look, thin in lines:
        legend = "legend" if shared or row == 1 else f"legend{row}"
        for col, split in enumerate(splits, start=1):
            here = pick(rows, split=split).sort_values("step")
            x = [steps.index(step) for step in here["step"]]
            draw_trace(fig, here, x, LOOKS[look], row, col, legend, (legend, look) not in named, thin)
            named |= {(legend, look)} if len(here) else set()


@_figure("Early answering", table="early", caption=_early_caption)
def early(frame: pd.DataFrame) -> go.Figure:
    """Area over the early-answering curve, above the rate of the same action after parts of the trace."""
    fig = panels(frame, {"area over the curve": 200, "same action as in the end": 210})
    areas = ["area_action", "area_filler", "area_distribution"]
    same = ["same_0", "same_25", "same_50", "same_75"]
    draw_metrics(fig, frame, areas, row=1, thin=("area_distribution", "area_filler"))
    draw_metrics(fig, frame, same, row=2, thin=("same_25", "same_75"))
    fit_values(fig, frame, areas, row=1, at_least=(0.0, 0.5))
    fit_values(fig, frame, same, row=2, at_least=(0.0, 1.0))
    return fig


@_figure("What the action attends to and depends on", table="shares", caption=_shares_caption)
def shares(frame: pd.DataFrame, version: str = "sink_free") -> go.Figure:
    """Share over token share of every span at both ends, a row for each definition (log scale)."""
    chosen = need(frame, version=version, metric="ratio")
    chosen = chosen[chosen["value"] > 0]
    definitions = [name for name in SHARES if (chosen["definition"] == name).any()]
    spans = [name for name in SPANS if (chosen["span"] == name).any()]
    splits, steps = splits_of(chosen), steps_of(chosen)
    fig = facets(len(definitions), 190, 24, [SPLITS[split] for split in splits], below=BOTTOM + 44)
    shown_steps = list(dict.fromkeys([steps[0], steps[-1]]))
    drawn = chosen[chosen["step"].isin(shown_steps)]
    lowest = drawn.loc[drawn["low"] > 0, "low"].min()
    bottom = np.nanmin([drawn["value"].min(), lowest, 0.8])
    top = np.nanmax([drawn["value"].max(), drawn["high"].max(), 1.25])
    for row, definition in enumerate(definitions, start=1):
        for col, split in enumerate(splits, start=1):
            colours = ("#08306B",) if len(shown_steps) == 1 else (SKY, "#08306B")
            for step, colour, symbol in zip(shown_steps, colours, ("circle", "square"), strict=False):
                rows = pick(drawn, split=split, definition=definition, step=step).set_index("span")
                rows = rows.reindex([span for span in spans if span in rows.index]).reset_index()
                rows["low"] = rows["low"].clip(lower=bottom)  # 0 has no place on a log axis
                shift = 0.0 if len(shown_steps) == 1 else 0.13 if step == shown_steps[-1] else -0.13
                fig.add_scatter(
                    x=[spans.index(span) + shift for span in rows["span"]],
                    y=rows["value"],
                    mode="markers",
                    name=f"step {step}",
                    legendgroup=str(step),
                    showlegend=row == col == 1,
                    marker=dict(symbol=symbol, size=8, color=colour),
                    error_y=whisker(rows, colour),
                    customdata=point_numbers(rows),
                    hovertemplate=HOVER,
                    row=row,
                    col=col,
                )
            fig.update_xaxes(
                tickmode="array",
                tickvals=list(range(len(spans))),
                ticktext=[SPANS[span] for span in spans],
                tickangle=-40,
                range=[-0.5, len(spans) - 0.5],
                row=row,
                col=col,
            )
        fig.update_yaxes(title=f"{SHARES[definition].replace(', ', ',<br>')}", row=row, col=1)
    margin = 0.05 * np.log10(top / bottom)
    ticks = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 3)]
    fig.update_yaxes(
        type="log",
        range=[np.log10(bottom) - margin, np.log10(top) + margin],
        tickvals=ticks,
        tickformat=".4~g",
    )
    fig.add_hline(y=1, row="all", col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    return under(fig, f"span; share / token share by training step, {VERSIONS[version]} (1 = uniform)", 74)


@_figure("Steering along the probe's direction", table="steering", caption=_steering_caption)
def steering(frame: pd.DataFrame) -> go.Figure:
    """Flips, flips to the target and parse rate against alpha, a column for each position."""
    frame = need(frame, split="in_domain")
    step = steps_of(frame)[-1]
    frame = pick(frame, step=step)
    words = {
        "flip": "flips",
        "flip_parsed": "flips,<br>of parsed",
        "to_target": "flips<br>to target",
        "parse": "parse rate",
    }
    for metric in words:
        need(frame, metric=metric)
    positions = [name for name in STEERED if (frame["position"] == name).any()]
    fig = facets(len(words), 150, 20, [STEERED[name] for name in positions], spacing=0.014)
    alphas = sorted(frame["alpha"].unique())
    for row, (metric, word) in enumerate(words.items(), start=1):
        for col, position in enumerate(positions, start=1):
            for kind in ALONG:
                here = pick(frame, position=position, direction=kind, metric=metric).sort_values("alpha")
                look, show = STYLE[f"along_{kind}"], row == col == 1
                draw_trace(fig, here, list(here["alpha"]), look, row, col, "legend", show, kind != "probe")
        fig.update_yaxes(title=word, row=row, col=1)
    fig.update_xaxes(tickmode="array", tickvals=alphas, ticktext=[f"{alpha:g}" for alpha in alphas])
    fit_values(fig, frame, list(words), row=None)
    return under(fig, f"alpha (in norms of the residual), training step {step}")
