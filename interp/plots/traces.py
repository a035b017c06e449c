"""Figures of what traces do, from tables: conflicting traces, early answering, shares, steering.

>>> frame, provenance = read_table("runs/quick/tables", "conflict")
>>> removal(frame, provenance).show()

Blue is the prompt's side, vermilion the trace's side, as in `interp.plots.basic`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import BOTTOM, HOVER, STEP_TITLE, TOP, draw_line, draw_metrics, draw_trace, fit_values, meta, panels, point_numbers, step_axis, whisker, zero_line
from interp.results.names import ALONG, ARMS, BLUE, GREY, ORANGE, PURPLE, SHARES, SKY, SPANS, SPLITS, STEERED, STYLE, VERMILION, VERSIONS
from interp.results.queries import need, pick, splits_of, steps_of

#: As `interp.plots.theme.STYLE`, of what only the figures here have.
LOOKS = {
    "arm_truncated": ("truncated", SKY, "dash", "diamond"),
    "arm_other_state": ("other state's trace", VERMILION, "solid", "circle"),
    "arm_resampled": ("resampled", ORANGE, "solid", "triangle-up"),
    "arm_shuffled_words": ("shuffled words", PURPLE, "dot", "x"),
    "arm_filler": ("filler", GREY, "dash", "triangle-down"),
    "arm_empty": ("empty", BLUE, "solid", "square"),
    "mass_own_before": ("own action, before", SKY, "dot", "diamond"),
    "mass_own": ("own action, after", BLUE, "solid", "square"),
    "mass_argued_before": ("argued action, before", ORANGE, "dot", "triangle-up"),
    "mass_argued": ("argued action, after", VERMILION, "solid", "circle"),
    "follow_likely": ("likelier half of the other traces", VERMILION, "solid", "circle"),
    "follow_unlikely": ("less likely half", ORANGE, "dash", "triangle-up"),
}
#: Arms in which another trace argues for another action; in the others the own one is cut, shuffled or taken away.
REPLACED = ("other_state", "resampled")


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


def conflict_shift(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """How far each arm's trace moves the action's distribution, what mass another state's trace moves, and how often it is followed where it is likely.

    Args:
        frame: table `conflict`, with the metrics of the distribution over admissible actions (`shift`, `mass_...`).
        provenance: kept in the figure's `layout.meta`.
    """
    need(frame, "conflict_shift", metric="shift")
    rows = {"distance,<br>another trace": 150, "distance,<br>own trace changed": 190, "probability,<br>other state": 170, "follow,<br>other state": 150}
    fig, steps = panels(frame, "conflict_shift", rows, provenance), steps_of(frame)
    masses = ("mass_own_before", "mass_own", "mass_argued_before", "mass_argued")
    lines = [(1 if arm in REPLACED else 2, pick(frame, metric="shift", arm=arm), f"arm_{arm}", False) for arm in list(ARMS)[1:]]
    lines += [(3, pick(frame, arm="other_state", metric=metric), metric, metric.endswith("before")) for metric in masses]
    lines += [(4, pick(frame, arm="other_state", metric=metric), metric, False) for metric in ("follow_likely", "follow_unlikely")]
    _draw_lines(fig, lines, splits_of(frame), steps)
    fig.update_yaxes(range=[-0.04, 1.05])
    return fig


def removal(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Flips of the action without its trace against flips under another state's, on the same decisions, and their difference.

    Where both must parse, the line of the other state's trace is that of the decisions that parse behind the filler.

    Args:
        frame: table `conflict`, with the metrics `flip_removed`, `flip_substituted` and `flip_difference`, also `_parsed`.
        provenance: kept in the figure's `layout.meta`.
    """
    need(frame, "removal", metric="flip_removed")
    rows = {"flips": 180, "flips,<br>both parsed": 180, "wrong − removed,<br>both parsed": 170}
    fig, steps = panels(frame, "removal", rows, provenance), steps_of(frame)
    arms = [arm for arm in ("filler", "empty") if len(pick(frame, metric="flip_removed", arm=arm))]
    lines = []
    for row, suffix in ((1, ""), (2, "_parsed")):
        lines.append((row, pick(frame, metric=f"flip_substituted{suffix}", arm=arms[0]), "arm_other_state", False))
        lines += [(row, pick(frame, metric=f"flip_removed{suffix}", arm=arm), f"arm_{arm}", False) for arm in arms]
    lines += [(3, pick(frame, metric="flip_difference_parsed", arm=arm), f"arm_{arm}", False) for arm in arms]
    _draw_lines(fig, lines, splits_of(frame), steps, shared=True)
    fig.update_yaxes(range=[-0.04, 1.05])
    fit_values(fig, frame[frame["arm"].isin(arms)], ["flip_difference_parsed"], row=3)
    zero_line(fig, row=3)
    return fig


def _draw_lines(fig, lines, splits, steps, shared=False):
    """Draw (row, rows of the table, look, thin) into every split's panels; a legend for each row, or one that all share."""
    told = set()
    for row, rows, look, thin in lines:
        legend = "legend" if shared or row == 1 else f"legend{row}"
        for col, split in enumerate(splits, start=1):
            of = pick(rows, split=split).sort_values("step")
            draw_trace(fig, of, [steps.index(step) for step in of["step"]], LOOKS[look], row, col, legend, (legend, look) not in told, thin)
            told |= {(legend, look)} if len(of) else set()


def early(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Area over the early-answering curve over checkpoints, above the rate of the same action after parts of the trace.

    Args:
        frame: table `early` (step, split, metric, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    fig = panels(frame, "early", {"area over the curve": 200, "same action as in the end": 210}, provenance)
    areas, same = ["area_action", "area_filler", "area_distribution"], ["same_0", "same_25", "same_50", "same_75"]
    draw_metrics(fig, frame, areas, row=1, thin=("area_distribution", "area_filler"))
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
    """Flips, flips of parsed decisions, flips to the target class and parse rate against alpha at the last checkpoint, a panel per position.

    Args:
        frame: table `steering` (step, split, position, direction, alpha, metric, value, low, high, n, n_groups); in-domain.
        provenance: kept in the figure's `layout.meta`.
    """
    frame = need(frame, "steering", split="in_domain")
    step = steps_of(frame)[-1]
    frame = pick(frame, step=step)
    words = {"flip": "flips", "flip_parsed": "flips,<br>of parsed", "to_target": "flips<br>to target", "parse": "parse rate"}
    for metric in words:
        need(frame, "steering", metric=metric)
    positions = [name for name in STEERED if (frame["position"] == name).any()]
    height = 150 * len(words) + 20 * (len(words) - 1)
    fig = make_subplots(
        rows=len(words), cols=len(positions), shared_xaxes=True, shared_yaxes="all", horizontal_spacing=0.014,
        vertical_spacing=20 / height, column_titles=[STEERED[name] for name in positions],
    )  # fmt: skip
    fig.update_layout(template="interp", height=height + TOP + BOTTOM, meta=meta("steering", provenance))
    alphas = sorted(frame["alpha"].unique())
    for row, (metric, word) in enumerate(words.items(), start=1):
        for col, position in enumerate(positions, start=1):
            for kind in ALONG:
                of = pick(frame, position=position, direction=kind, metric=metric).sort_values("alpha")
                look = STYLE[f"along_{kind}"]
                draw_trace(fig, of, list(of["alpha"]), look, row, col, "legend", row == col == 1, thin=kind != "probe")
        fig.update_yaxes(title=word, row=row, col=1)
    fig.update_xaxes(tickmode="array", tickvals=alphas, ticktext=[f"{alpha:g}" for alpha in alphas])
    fit_values(fig, frame, list(words), row=None)
    fig.add_annotation(
        text=f"alpha (in norms of the residual), training step {step}", xref="paper", yref="paper", x=0.5, y=0, yshift=-30, yanchor="top",
        showarrow=False,
    )  # fmt: skip
    fig.update_layout(legend=dict(y=1 + 30 / height))
    return fig
