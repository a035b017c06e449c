"""House style of the figures: panels, and the shared axes, lines, bands and whiskers.

>>> figure = panels(frame, {"accuracy": 230})
>>> draw_metrics(figure, frame, ["acc_cot", "acc_prompt"], row=1)

One concept has one name, colour, dash and marker in every figure. A band or a whisker is always the table's
95 % interval. Checkpoints stand evenly spaced in training order, so that step 0 (the base model) has a place.
Lengths are in units of half a printed point (see `interp.plots.look`).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from interp.plots.look import BOTTOM, LEFT, RIGHT, SMALL, current
from interp.results.estimates import span
from interp.results.names import BLUE, SPLITS, STYLE, VERMILION
from interp.results.queries import pick, splits_of, steps_of
from interp.results.tables import ESTIMATE_COLUMNS

STEP_TITLE = "training step (0 = base model)"
DIVERGING = [(0.0, VERMILION), (0.5, "#F7F7F7"), (1.0, BLUE)]
SEQUENTIAL = [(0.0, "#F7FBFF"), (0.5, "#6BAED6"), (1.0, "#08306B")]
INTERVAL = "95 % interval"
#: Between letters of panels, which stay in one line.
HELD = ",\N{NO-BREAK SPACE}"


HOVER = (
    "step %{customdata[0]}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]"
    "<br>n = %{customdata[4]} in %{customdata[5]} clusters"
)
CELL = (
    "%{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>n = %{customdata[2]} in "
    "%{customdata[3]} clusters"
)


def plain(text: object) -> object:
    """A table's text as a figure shows it: what looks like a tag in it is none (anything else as it is)."""
    return text.replace("<", "&lt;") if isinstance(text, str) else text


def point_numbers(rows: pd.DataFrame) -> Float[np.ndarray, "row 6"]:
    """What a point tells on hover, in the order of `HOVER`."""
    return rows[["step", *ESTIMATE_COLUMNS]].to_numpy(dtype=float)


def whisker(rows: pd.DataFrame, colour: str) -> dict:
    """Error bars from each row's value to its interval's ends."""
    return dict(
        type="data",
        array=rows["high"] - rows["value"],
        arrayminus=rows["value"] - rows["low"],
        color=colour,
        thickness=1.3,
        width=3,
    )


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def panels(frame: pd.DataFrame, rows: dict[str, int], fixed: Collection[str] = ()) -> go.Figure:
    """Empty figure with a panel per split, and one row of them per (axis title: height in units) of `rows`.

    The splits stand side by side; in a narrow figure below each other, and lower, except for rows in `fixed`.
    """
    splits, steps = splits_of(frame), steps_of(frame)
    if not splits:
        raise ValueError(f"the table has no rows with split in {list(SPLITS)}.")
    heights = [rows[title] if title in fixed else _height(rows[title]) for title in rows]
    fig = _grid(heights, [SPLITS[split] for split in splits], 16, BOTTOM, 0.03)
    for row, title in enumerate(rows, start=1):
        fig.update_yaxes(title=title, row=row, col=1)
        for col in range(1, len(splits) + 1):
            step_axis(fig, steps, row, col, title=row == len(rows))
    return fig


def facets(
    rows: int,
    each: int,
    gap: int,
    columns: list[str],
    below: int = BOTTOM,
    spacing: float = 0.03,
    across: int = 0,
    shared: bool = True,
) -> go.Figure:
    """Empty figure of `rows` rows of panels, `each` units high and `gap` apart, `below` units under them.

    Args:
        rows: of panels.
        each: height of a panel.
        gap: between rows.
        columns: what stands above each column.
        below: room for the lowest axis.
        spacing: between columns, as a share of the figure's width.
        across: panels side by side, of which the others follow below; by default all, in a narrow figure 1.
        shared: whether the panels of a row have one value axis.
    """
    return _grid([_height(each)] * rows, columns, gap, below, spacing, across, shared)


def _height(height: int) -> int:
    """A panel's height in the look that is drawn in: narrow panels are lower.

    A browser takes from the margins of a panel that is lower than 64, and with them the line that says n.
    """
    return max(96, round(0.65 * height) if current().narrow else height)


def _grid(
    heights: list[int],
    titles: list[str],
    gap: int,
    below: int,
    spacing: float,
    across: int = 0,
    shared: bool = True,
) -> go.Figure:
    """Empty panels that `interp.plots.arrange` gives their places when the figure is drawn."""
    across = min(across or (1 if current().narrow else len(titles)), len(titles))
    fig = make_subplots(len(heights), len(titles), shared_xaxes=True, shared_yaxes=shared)
    grid = dict(heights=heights, titles=titles, across=across, gap=gap, below=below, spacing=spacing)
    grid["shared"] = shared
    return fig.update_layout(meta={"grid": grid})


def room_of(fig: go.Figure, row: int) -> tuple[float, float]:
    """Width and height of a panel in units, as far as they are known before the figure is finished."""
    grid = (fig.layout.meta or {}).get("grid")
    if not grid:
        return 320, 320
    margin = fig.layout.margin
    left, right = (LEFT if margin.l is None else margin.l), (RIGHT if margin.r is None else margin.r)
    width, across = current().width - left - right, grid["across"]
    return width * (1 - grid["spacing"] * (across - 1)) / across, grid["heights"][row - 1]


def note_n(fig: go.Figure, text: str) -> go.Figure:
    """The line under a figure that says its n."""
    lines = "<br>".join(textwrap.wrap(text, int(current().width / 6.9)))
    return fig.add_annotation(text=lines, name="n", showarrow=False, font=dict(size=SMALL, color="#555555"))


def sizes(rows: pd.DataFrame, unit: str = "decisions", clusters: str = "episodes") -> str:
    """How many decisions of how many episodes some rows rest on: `n = 400 decisions of 57 episodes`."""
    known = rows.dropna(subset="n")
    if known.empty:
        return ""
    of = known["n_groups"].dropna() if "n_groups" in known else pd.Series(dtype=float)
    grouped = f" of {span(of)} {clusters}" if len(of) and clusters else ""
    return f"n = {span(known['n'])} {unit}{grouped}"


def under(fig: go.Figure, title: str, below: int = 30) -> go.Figure:
    """A title for all columns' axes, so many pixels below them."""
    place = dict(xref="paper", yref="paper", x=0.5, y=0, yanchor="top", yshift=-below)
    return fig.add_annotation(text=title, showarrow=False, font_size=15, **place)


def draw_heatmap(
    fig: go.Figure,
    rows: pd.DataFrame,
    index: str,
    columns: str,
    order: tuple[list, list],
    row: int,
    col: int,
    **look: object,
) -> dict[str, pd.DataFrame]:
    """Draw the rows' values by two columns in this order; returns the grid of each number."""
    grid = {name: rows.pivot(index=index, columns=columns, values=name) for name in ESTIMATE_COLUMNS}
    grid = {name: table.reindex(index=order[0], columns=order[1]) for name, table in grid.items()}
    hover = np.stack([grid[name].to_numpy(dtype=float) for name in ESTIMATE_COLUMNS[1:]], axis=-1)
    fig.add_heatmap(
        meta=dict(x=[str(name) for name in order[1]], y=[str(name) for name in order[0]]),
        z=grid["value"].to_numpy(),
        x=list(range(len(order[1]))),
        y=list(range(len(order[0]))),
        customdata=hover,
        hovertemplate=CELL,
        xgap=1,
        ygap=1,
        row=row,
        col=col,
        **look,
    )
    return grid


def corner(fig: go.Figure, text: str, row: int, col: int, above: bool = False, **look: Any) -> None:
    """Text in a panel's upper left corner, or above it."""
    place = dict(x=0, y=1, yanchor="bottom") if above else dict(x=0.02, y=0.98, yanchor="top")
    place |= dict(xref="x domain", yref="y domain", xanchor="left", align="left", row=row, col=col)
    fig.add_annotation(text=text, showarrow=False, **place | dict(font_size=SMALL) | look)


def draw_metrics(
    fig: go.Figure,
    frame: pd.DataFrame,
    metrics: Sequence[str],
    row: int,
    thin: Sequence[str] = (),
    steps: list[int] | None = None,
    legend: bool = True,
) -> None:
    """Draw one line with its interval per metric into every split's panel of one row."""
    if not frame["metric"].isin(metrics).any():
        raise ValueError(f"the table has no rows with metric in {list(metrics)}.")
    steps = steps or steps_of(frame)
    for col, split in enumerate(splits_of(frame), start=1):
        for order, metric in enumerate(metrics):
            rows = pick(frame, split=split, metric=metric)
            legend_name = "legend" if row == 1 else f"legend{row}"
            # Whiskers of a single checkpoint stand side by side.
            shift = 0.08 * (order - (len(metrics) - 1) / 2) if len(steps) == 1 else 0.0
            draw_line(
                fig, rows, steps, metric, row, col, metric in thin, legend and col == 1, legend_name, shift
            )


def draw_line(
    fig: go.Figure,
    rows: pd.DataFrame,
    steps: list[int],
    concept: str,
    row: int,
    col: int,
    thin: bool = False,
    show: bool = True,
    legend: str = "legend",
    shift: float = 0.0,
) -> None:
    """Draw one concept's line and interval over checkpoints."""
    rows = rows.sort_values("step")
    x = [steps.index(step) + shift for step in rows["step"]]
    draw_trace(fig, rows, x, STYLE[concept], row, col, legend, show, thin)


def draw_trace(
    fig: go.Figure,
    rows: pd.DataFrame,
    x: Sequence[float],
    look: Sequence[str],
    row: int,
    col: int,
    legend: str,
    show: bool,
    thin: bool = False,
) -> None:
    """Draw a line over its interval: a band, or a whisker at a point whose neighbours have none."""
    if rows.empty:
        return
    name, colour, dash, symbol = look
    place = dict(legendgroup=f"{legend} {name}", legend=legend, row=row, col=col)
    known = np.flatnonzero(rows[["low", "high"]].notna().all(axis=1))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
    band_x, band_y = [], []
    for run in (run for run in runs if len(run) > 1):
        band_x += [x[i] for i in (*run, *run[::-1])] + [None]
        band_y += [*high[run], *low[run[::-1]], None]
    if band_x:
        fig.add_scatter(
            x=band_x,
            y=band_y,
            mode="lines",
            line_width=0,
            fill="toself",
            fillcolor=_faint(colour, 0.10 if thin else 0.17),
            hoverinfo="skip",
            showlegend=False,
            name=f"{name}, {INTERVAL}",
            **place,
        )
    alone = [run[0] for run in runs if len(run) == 1]
    lone = rows.iloc[alone].reindex(rows.index) if alone else rows
    fig.add_scatter(
        x=x,
        y=rows["value"],
        mode="lines+markers",
        name=name,
        showlegend=show,
        cliponaxis=False,
        line=dict(color=colour, dash=dash, width=1.4 if thin else 2.2),
        marker=dict(symbol=symbol, size=5.5 if thin else 7, color=colour, line=dict(color=colour, width=1)),
        error_y=whisker(lone, colour) if alone else None,
        customdata=point_numbers(rows),
        hovertemplate=HOVER,
        **place,
    )


def step_axis(
    fig: go.Figure, steps: list[int], row: int, col: int, title: bool = True, room: int = 0
) -> None:
    """Evenly spaced checkpoints with `room` labels, by default as many as fit; first and last kept."""
    texts = [f"{step // 1000}k" if step >= 10_000 and step % 1000 == 0 else str(step) for step in steps]
    wide = 7.2 * max(map(len, texts)) + 8
    count = min(room or max(2, int(room_of(fig, row)[0] // wide)), len(steps))
    last = len(steps) - 1
    apart = math.ceil(last / max(1, count - 1)) or 1  # so that no two labels stand closer than others
    shown = [i for i in range(0, last, apart) if last - i >= apart] + [last]
    fig.update_xaxes(
        tickmode="array",
        tickvals=shown,
        ticktext=[texts[i] for i in shown],
        range=[-0.4, len(steps) - 0.6],
        tickangle=0,
        title=STEP_TITLE if title else None,
        row=row,
        col=col,
    )


def layer_axis(
    fig: go.Figure, layers: list[int], title: str | None, row: int, col: int, axis: str = "y"
) -> None:
    """Layers in order, labelled at most every so often that the labels keep apart."""
    width, height = room_of(fig, row)
    most = max(2, int(width // 26 if axis == "x" else height // 18))
    shown = list(range(0, len(layers), 1 + (len(layers) - 1) // most))
    settings = dict(
        tickmode="array", tickvals=shown, ticktext=[str(int(layers[i])) for i in shown], title=title
    )
    if axis == "x":
        fig.update_xaxes(range=[-0.4, len(layers) - 0.6], **settings, row=row, col=col)
    else:
        fig.update_yaxes(showgrid=False, range=[-0.5, len(layers) - 0.5], **settings, row=row, col=col)


def fit_values(
    fig: go.Figure,
    frame: pd.DataFrame,
    metrics: Sequence[str],
    row: int | None,
    at_least: tuple[float, float] = (0.0, 0.0),
    col: int | None = None,
) -> None:
    """Range of a row's or panel's value axes: all values and intervals, and `at_least`, with 5 % around."""
    drawn = frame.loc[frame["metric"].isin(metrics), ["value", "low", "high"]]
    low, high = np.nanmin([at_least[0], drawn.min().min()]), np.nanmax([at_least[1], drawn.max().max()])
    margin = 0.05 * max(high - low, 0.02)
    fig.update_yaxes(range=[low - margin, high + margin], row=row, col=col)


def zero_line(fig: go.Figure, row: int) -> None:
    """Draw the line at zero in one row."""
    fig.update_yaxes(zeroline=True, zerolinecolor="#555555", zerolinewidth=1.2, row=row)
