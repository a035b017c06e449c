"""The two kinds of picture that most figures are: lines over checkpoints or layers, and rows of estimates.

>>> figure = facets(1, 150, 20, ["In-domain"])
>>> draw_series(figure, frame, {"gap": STYLE["gap"]}, by="metric", panels=[dict(split="in_domain")])

A panel is said by what its rows have in common, and a series by the value of one column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.theme import draw_trace, whisker
from interp.results.names import SPLITS
from interp.results.queries import pick, splits_of, steps_of
from interp.results.tables import ESTIMATE_COLUMNS

#: Of a line or of markers: name in the legend, colour, dash, marker.
Looks = Mapping[Any, Sequence[str]]
GREY_LINE = dict(line=dict(color="#888888", width=1, dash="dot"), layer="below")
_HOVER = (
    "%{text}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]"
    "<br>n = %{customdata[4]} in %{customdata[5]} clusters"
)
#: Units between the labels of rows of estimates, and what those of one row are apart, in rows.
ROW, _APART = 28, 0.3


def by_split(frame: pd.DataFrame) -> list[dict]:
    """A panel for each split that a table has; raises ValueError where it has none."""
    splits = splits_of(frame)
    if not splits:
        raise ValueError(f"the table has no rows with split in {list(SPLITS)}.")
    return [dict(split=split) for split in splits]


def draw_series(
    fig: go.Figure,
    frame: pd.DataFrame,
    looks: Looks,
    *,
    by: str,
    panels: Sequence[Mapping],
    row: int = 1,
    along: str = "step",
    order: list | None = None,
    thin: Iterable[str] = (),
    legend: str = "",
) -> None:
    """Draw a line with its interval for each series into every panel of one row.

    Args:
        fig: from `panels` or `facets`.
        frame: rows of a table.
        looks: how each value of the column `by` is drawn.
        by: column whose values are series.
        panels: what picks each panel's rows.
        row: of panels.
        along: column of the x axis: step or layer.
        order: values of that column in their places; by default those of the rows drawn.
        thin: series that are drawn thin.
        legend: where the series are named; by default above the row.
    """
    places = {value: place for place, value in enumerate(order or sorted(frame[along].unique()))}
    legend = legend or ("legend" if row == 1 else f"legend{row}")
    for col, where in enumerate(panels, start=1):
        here = pick(frame, **where)
        for number, (key, look) in enumerate(looks.items()):
            rows = pick(here, **{by: key}).sort_values(along, key=lambda column: column.map(places))
            # Whiskers of a single checkpoint stand side by side.
            shift = 0.08 * (number - (len(looks) - 1) / 2) if len(places) == 1 else 0.0
            x = [places[value] + shift for value in rows[along]]
            draw_trace(fig, rows, x, look, row, col, legend, not _named(fig, look[0], legend), key in thin)


def _named(fig: go.Figure, name: str, legend: str) -> bool:
    """Whether a legend already has a name."""
    return any(
        trace.name == name and trace.showlegend and (trace.legend or "legend") == legend for trace in fig.data
    )


def draw_estimates(
    fig: go.Figure,
    frame: pd.DataFrame,
    looks: Looks,
    *,
    by: str,
    panels: Sequence[Mapping],
    along: str,
    order: Mapping[str, str],
    row: int = 1,
) -> None:
    """Draw a marker with its interval for each series, side by side in rows of names, into every panel.

    Args:
        fig: from `facets`.
        frame: rows of a table.
        looks: as `draw_series`.
        by: column whose values are series.
        panels: what picks each panel's rows.
        along: column whose values have a row of the panel each.
        order: those values from the top, and their names.
        row: of panels.
    """
    places = {key: number for number, key in enumerate(order)}
    for col, where in enumerate(panels, start=1):
        here = pick(frame, **where)
        here = here[here[along].isin(places) & here[by].isin(looks)]
        here = here.sort_values(by, key=lambda column: column.map(list(looks).index), kind="stable")
        many = here.groupby(along)[along].transform("size")
        beside = (here.groupby(along).cumcount() - (many - 1) / 2) * (0.8 / many).clip(upper=_APART)
        here = here.assign(place=here[along].map(places).astype(float) + beside)
        for key, (name, colour, _, symbol) in looks.items():
            rows = pick(here, **{by: key})
            if rows.empty:
                continue
            fig.add_scatter(
                x=rows["value"],
                y=rows["place"],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=not _named(fig, name, "legend"),
                marker=dict(symbol=symbol, size=8, color=colour, line=dict(color=colour, width=1.6)),
                error_x=whisker(rows, colour),
                customdata=rows.reindex(columns=["step", *ESTIMATE_COLUMNS]).to_numpy(dtype=float),
                hovertemplate=_HOVER,
                text=rows[along].map(order),
                row=row,
                col=col,
            )
        fig.update_yaxes(
            range=[len(order) - 0.45, -0.55],
            tickvals=list(places.values()),
            ticktext=list(order.values()),
            ticks="",
            row=row,
            col=col,
        )


def fit_estimates(
    fig: go.Figure, rows: pd.DataFrame, least: Iterable[float] | None = (), **where: object
) -> None:
    """Range of value axes: all values and intervals of the rows; 0 with a line and `least`, but for None."""
    drawn = [*rows[["value", "low", "high"]].to_numpy(dtype=float).ravel()]
    if least is not None:
        drawn += [0.0, *least]
        fig.update_xaxes(zeroline=True, zerolinecolor="#555555", zerolinewidth=1.2, **where)
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    margin = 0.05 * max(high - low, 0.02)
    fig.update_xaxes(range=[low - margin, high + margin], **where)


def at_ends(frame: pd.DataFrame) -> list[int]:
    """The first and the last checkpoint, or the only one."""
    return list(dict.fromkeys([steps_of(frame)[0], steps_of(frame)[-1]]))


def end_looks(steps: list[int]) -> dict[int, tuple[str, str, str, str]]:
    """How the first checkpoint and the last one are drawn."""
    looks = [("#56B4E9", "dash", "circle"), ("#08306B", "solid", "square")]
    return {
        step: (f"training step {step}", *look) for step, look in zip(steps, looks[-len(steps) :], strict=True)
    }
