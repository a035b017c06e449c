"""Panels of training conditions side by side: their axis, levels and differences, and hover texts.

>>> fig = grid(splits_of(frame), [("gap", 200)])
>>> conditions = conditions_of(frame)
>>> draw_conditions(condition_axis(fig, conditions), frame, conditions, "gap", "level", row=1)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import TOP, under, whisker
from interp.results.condition_rows import LOOKS, Condition, at_last, cell, named, one
from interp.results.names import BLACK, SPLITS
from interp.results.queries import pick, splits_of
from interp.results.tables import ESTIMATE_COLUMNS
from interp.system.limits import SMALLEST

K_TITLE = "k: share of examples whose action is unsupervised"
CONDITION_TITLE = f"training condition ({K_TITLE})"
_BOTTOM = 84  # px: two lines of labels, and a title
#: What a point tells, of `condition_numbers`.
CONDITION_HOVER = (
    "%{customdata[0]}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]"
    "<br>n = %{customdata[4]} of %{customdata[5]} games, %{customdata[6]} seeds"
)


def grid(
    columns: Sequence,
    rows: list[tuple[str, int]],
    gap: int = 30,
    bottom: int = _BOTTOM,
    titles: list[str] | None = None,
) -> go.Figure:
    """Empty figure with a column for each split and a row for each (axis title, height in px)."""
    if not columns:
        raise ValueError(f"the table has no rows with split in {list(SPLITS)}.")
    heights = [height for _, height in rows]
    total = sum(heights) + gap * (len(rows) - 1)
    fig = make_subplots(
        rows=len(rows),
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=heights,
        horizontal_spacing=0.03,
        vertical_spacing=gap / total,
        column_titles=titles or [SPLITS[split] for split in columns],
    )
    fig.update_layout(height=total + TOP + bottom, margin_b=bottom, legend=dict(y=1 + 28 / total))
    for row, (title, _) in enumerate(rows, start=1):
        fig.update_yaxes(title=title, row=row, col=1)
    return fig


def draw_conditions(
    fig: go.Figure, frame: pd.DataFrame, conditions: list[Condition], metric: str, contrast: str, row: int
) -> None:
    """Draw one contrast of every condition into every split's panel of one row.

    Intervals have whiskers, each training is a dot, k = 0 a line.

    Differences to k = 0 have those to the random mask beside them. The axis fits the masks; a
    condition of one part only may lie off it.
    """
    places, drawn = {condition.name: i for i, condition in enumerate(conditions)}, []
    for col, split in enumerate(splits_of(frame), start=1):
        where = dict(metric=metric, split=split)
        rows = at_last(frame, contrast=contrast, **where)
        rows = rows.assign(
            kind=[named(condition).kind for condition in rows["condition"]],
            place=rows["condition"].map(places).astype(float),
        )
        if contrast == "difference":
            control = at_last(frame, contrast="control", **where)
            beside = control["condition"].map(places).astype(float) + 0.22
            rows = pd.concat([rows, control.assign(kind="control", place=beside)])
        dots = at_last(frame, contrast="training", **where) if contrast == "level" else rows[:0]
        if len(dots):
            _draw_trainings(fig, dots, places, row, col)
        for kind, (name, colour, _, symbol) in LOOKS.items():
            some = pick(rows, kind=kind)
            minus = " − random mask" if kind == "control" else " − k = 0" if contrast == "difference" else ""
            if len(some):
                fig.add_scatter(
                    x=some["place"],
                    y=some["value"],
                    name=name,
                    legendgroup=kind,
                    error_y=whisker(some, colour),
                    showlegend=not any(trace.legendgroup == kind for trace in fig.data),
                    row=row,
                    col=col,
                    **points(some, symbol, colour, 10, minus),
                )
        if (zero := one(rows, condition="action_mask_0")) is not None:
            fig.add_hline(
                y=zero["value"], row=row, col=col, line=dict(color=BLACK, width=1, dash="dot"), layer="below"
            )
        drawn.append((rows, dots))
    lines = [0.0, *[SMALLEST] * (metric == "acc_cot")] if contrast == "difference" else []
    _fit(fig, drawn, lines, row)


def _draw_trainings(fig: go.Figure, dots: pd.DataFrame, places: dict[str, int], row: int, col: int) -> None:
    """Draw single trainings as dots beside their condition."""
    pairs = zip(dots["condition"], dots["seed"], strict=True)
    titles = [f"{named(condition).title}, seed {seed}" for condition, seed in pairs]
    fig.add_scatter(
        x=dots["condition"].map(places) + 0.2 + 0.06 * (dots.groupby("condition")["seed"].rank() - 1),
        y=dots["value"],
        mode="markers",
        hovertemplate=CONDITION_HOVER,
        row=row,
        col=col,
        marker=dict(size=5, color="#555555", opacity=0.75),
        name="one training",
        legendgroup="training",
        showlegend=row == col == 1,
        customdata=condition_numbers(dots, titles),
        legendrank=2000,
    )


def _fit(
    fig: go.Figure, drawn: list[tuple[pd.DataFrame, pd.DataFrame]], lines: list[float], row: int
) -> None:
    """Fit one row's axis to its masks; conditions of one part that lie far off are told at its edge."""
    rows = pd.concat([rows for rows, _ in drawn])
    dots = pd.concat([dots for _, dots in drawn])
    near = [
        *rows.loc[rows["kind"] != "only", ["value", "low", "high"]].to_numpy().ravel(),
        *lines,
        *dots.loc[[named(condition).kind != "only" for condition in dots["condition"]], "value"],
    ]
    far = [*rows[["value", "low", "high"]].to_numpy().ravel(), *dots["value"], *near]
    if np.isnan(near).all() or np.nanmax(far) - np.nanmin(far) < 2 * (np.nanmax(near) - np.nanmin(near)):
        near = far
    low, high = np.nanmin(near), np.nanmax(near)
    margin = 0.06 * max(high - low, 0.02)
    low, high = low - margin * (1 if near is far or np.nanmin(far) >= low else 5), high + margin
    fig.update_yaxes(range=[low, high], row=row)
    for col, (of, _) in enumerate(drawn, start=1):
        for _, condition in of[(of["value"] < low) | (of["value"] > high)].iterrows():
            below = condition["value"] < low
            text = f"{'↓' if below else '↑'} {cell(condition).split(' ')[0]}"
            fig.add_annotation(
                x=condition["place"],
                y=low if below else high,
                yanchor="bottom" if below else "top",
                text=text,
                showarrow=False,
                font=dict(size=13, color=LOOKS[condition["kind"]][1]),
                row=row,
                col=col,
            )


def condition_axis(fig: go.Figure, conditions: list[Condition]) -> go.Figure:
    """Name the conditions below the last row and shade the controls; call it before anything is drawn."""
    ticks = dict(
        tickvals=list(range(len(conditions))),
        ticktext=[condition.tick for condition in conditions],
        tickangle=0,
    )
    fig.update_xaxes(range=[-0.6, len(conditions) - 0.4], showgrid=False, **ticks)
    masks = sum(condition.kind in ("zero", "action_mask") for condition in conditions)
    if masks < len(conditions):
        fig.add_vrect(
            x0=masks - 0.5,
            x1=len(conditions) - 0.4,
            fillcolor="#F1F1F1",
            line_width=0,
            layer="below",
            exclude_empty_subplots=False,
        )
    return under(fig, CONDITION_TITLE, 48)


def marker(symbol: str, colour: str, size: float) -> dict:
    """A marker whose hollow form has a line that can be seen."""
    return dict(symbol=symbol, size=size, color=colour, line=dict(color=colour, width=1.8))


def points(rows: pd.DataFrame, symbol: str, colour: str, size: float, suffix: str = "") -> dict:
    """Markers of conditions that tell their numbers; `suffix` follows a condition's title."""
    return dict(
        mode="markers",
        marker=marker(symbol, colour, size),
        customdata=condition_numbers(rows, [named(name).title + suffix for name in rows["condition"]]),
        hovertemplate=CONDITION_HOVER,
    )


def condition_numbers(rows: pd.DataFrame, titles: Iterable[str]) -> np.ndarray:
    """What a point tells on hover, in the order of `CONDITION_HOVER`."""
    return np.column_stack(
        [np.array(list(titles), dtype=object), rows[[*ESTIMATE_COLUMNS, "seeds"]].to_numpy(dtype=object)]
    )
