"""What pictures of results share: means with intervals, lines with bands, heatmaps, a title that says n.

>>> rows = means(frame, ("site", "layer"), "denoise", "pair")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.arrange import arrange
from interp.plots.look import SMALL, current
from interp.plots.theme import DIVERGING, HOVER, draw_trace
from interp.results.names import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from interp.stats.intervals import cluster_bootstrap

DRAWS = 1000
#: Columns of a heatmap beyond which they have no gaps between them, nor a label each.
MANY = 44
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star")


def means(
    frame: pd.DataFrame, by: Sequence[str], value: str, cluster: str, groups: Sequence | None = None
) -> pd.DataFrame:
    """The mean of a column in each group of rows, with its interval over clusters; NaN are left out."""
    rows = []
    for key, cell in frame.dropna(subset=value).groupby(list(by), sort=False):
        clusters = cell[cluster].to_numpy()
        if groups is not None:
            clusters = np.asarray(groups, dtype=object)[clusters]
        estimate = cluster_bootstrap(cell[value].to_numpy(), clusters, draws=DRAWS)
        rows.append(dict(zip(by, key)) | estimate.row())
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n", "n_groups"])


def kept_of(frame: pd.DataFrame, value: str, cluster: str, what: str) -> tuple[int, int]:
    """How many pairs or decisions have a value, and of how many; ValueError where none has."""
    every = frame[cluster].nunique()
    kept = frame.dropna(subset=value)[cluster].nunique()
    if not kept:
        raise ValueError(
            f"There is nothing to draw: {'all' if every else 'there are no'} "
            f"{f'{every} {what} were dropped' if every else what}."
        )
    return kept, every


def n_of(kept: int, every: int, what: str) -> str:
    """`n = 22 of 24 pairs`."""
    return f"n = {kept} {what}" if kept == every else f"n = {kept} of {every} {what}"


def band_line(
    fig: go.Figure,
    rows: pd.DataFrame,
    x: str,
    look: Sequence[str],
    place: tuple[int, int],
    show: bool,
    thin: bool = False,
) -> None:
    """A line with its band over a numeric column (nothing of no rows)."""
    if rows.empty:
        return
    rows = rows.sort_values(x)
    draw_trace(fig, rows.assign(step=rows[x]), list(rows[x]), look, *place, "legend", show, thin)
    fig.data[-1].hovertemplate = HOVER.replace("step", x)


def titled(fig: go.Figure, title: str) -> go.Figure:
    """The house's look, with a title above it."""
    return arrange(fig.update_layout(template=current().template, title_text=title))


def heatmap(
    fig: go.Figure, grid: pd.DataFrame, place: tuple[int, int], text: np.ndarray | None, hover: str
) -> None:
    """Draw a grid (rows upwards) in the colours of `diverging_scale`; `text`: what a cell tells on hover."""
    fig.add_heatmap(
        z=grid.to_numpy(dtype=float),
        x=list(range(grid.shape[1])),
        y=list(range(grid.shape[0])),
        customdata=text,
        hovertemplate=hover,
        coloraxis="coloraxis",
        xgap=1 if grid.shape[1] <= MANY else 0,
        ygap=1,
        row=place[0],
        col=place[1],
    )


def diverging_scale(fig: go.Figure, values: pd.Series, title: str) -> None:
    """Colours around 0, as far as the values reach."""
    limit = max(0.05, float(np.nanmax(np.abs(values.to_numpy(dtype=float)))))
    head = dict(text=title, side="right", font_size=SMALL)
    bar = dict(title=head, x=1.01, thickness=13, outlinewidth=0, tickfont_size=SMALL)
    fig.update_layout(
        coloraxis=dict(cmin=-limit, cmax=limit, colorscale=DIVERGING, colorbar=bar),
        margin_r=96,
    )
