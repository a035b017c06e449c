"""Training conditions below each other: what each reads, and its differences to k = 0 and the random mask.

>>> by_condition(frame, "gap", "gap (CoT − prompt)")
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.series import GREY_LINE, ROW, by_split, draw_estimates, fit_estimates
from interp.plots.theme import facets, note_n
from interp.results.condition_rows import LOOKS, Condition, at_last, conditions_of, named, one
from interp.results.estimates import span
from interp.results.names import SPLITS
from interp.results.queries import need, pick
from interp.system.limits import SMALLEST

K_TITLE = "k: share of examples whose action is unsupervised"
_CONTRASTS = {"level": "{}", "difference": "difference to k = 0"}


def compared(frame: pd.DataFrame) -> list[Condition]:
    """The conditions that stand beside each other; those of one part only are far off, in the table."""
    every = conditions_of(frame)
    return [condition for condition in every if condition.kind != "only"] or every


def by_condition(frame: pd.DataFrame, metric: str, title: str) -> go.Figure:
    """A reading of every condition, with its single trainings, beside its differences, a row for each split.

    Args:
        frame: table `masking`.
        metric: one that it holds levels of.
        title: of that reading.

    Raises:
        ValueError: where it has no level of that metric.
    """
    need(frame, metric=metric, contrast="level")
    order = {condition.name: condition.title for condition in compared(frame)}
    rows = pd.concat(at_last(frame, metric=metric, contrast=name) for name in (*_CONTRASTS, "control"))
    rows = rows[rows["condition"].isin(order)]
    control = rows["contrast"] == "control"
    kinds = rows["condition"].map(lambda name: named(name).kind)
    rows = rows.assign(
        kind=kinds.mask(control, "control"), contrast=rows["contrast"].mask(control, "difference")
    )
    shown = [name for name in _CONTRASTS if (rows["contrast"] == name).any()]
    splits = by_split(rows)
    titles = [_CONTRASTS[name].format(title) for name in shown]
    fig = facets(len(splits), ROW * len(order), 26, titles, below=34, across=len(shown))
    for row, where in enumerate(splits, start=1):
        panels = [where | dict(contrast=name) for name in shown]
        draw_estimates(fig, rows, LOOKS, by="kind", panels=panels, along="condition", order=order, row=row)
        _draw_trainings(fig, at_last(frame, metric=metric, contrast="training", **where), list(order), row)
        if (zero := one(rows, contrast="level", condition="action_mask_0", **where)) is not None:
            fig.add_vline(x=zero["value"], row=row, col=1, **GREY_LINE)
        fig.update_yaxes(title=SPLITS[where["split"]].lower(), row=row, col=1)
    fit_estimates(fig, pick(rows, contrast="level"), None, col=1)
    if "difference" in shown:
        fit_estimates(
            fig, pick(rows, contrast="difference"), [SMALLEST] if metric == "acc_cot" else [], col=2
        )
        if metric == "acc_cot":
            fig.add_vline(x=SMALLEST, row="all", col=2, **GREY_LINE | dict(line_dash="dash"))
    return note_n(fig, f"{games(rows)}; {K_TITLE}")


def _draw_trainings(fig: go.Figure, dots: pd.DataFrame, order: list[str], row: int) -> None:
    """Draw single trainings as dots below their condition's level."""
    dots = dots[dots["condition"].isin(order)]
    fig.add_scatter(
        x=dots["value"],
        y=[order.index(name) + 0.28 for name in dots["condition"]],
        orientation="h",
        mode="markers",
        marker=dict(size=5, color="#555555", opacity=0.75),
        name="one training",
        legendgroup="training",
        legendrank=2000,
        showlegend=row == 1,
        text=[f"{named(name).title}, seed {seed}" for name, seed in zip(dots["condition"], dots["seed"])],
        hovertemplate="%{text}<br>%{x:.3f}",
        row=row,
        col=1,
    )


def games(rows: pd.DataFrame) -> str:
    """How many games and trainings some rows rest on: `n = 198 games, 3 to 5 seeds`."""
    seeds = span(rows["seeds"])
    return f"n = {span(rows['n_groups'])} games, {seeds} seed{'' if seeds == '1' else 's'}"
