"""House style of the figures: the template, and the shared axes, bands and whiskers.

>>> figure = panels(frame, {"accuracy": 230})
>>> draw_metrics(figure, frame, ["acc_cot", "acc_prompt"], row=1)

One concept has one name, colour, dash and marker in every figure. A band or a whisker is always the
table's 95 % interval. Checkpoints stand evenly spaced in training order, so that step 0 (the base model)
has a place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from interp.results.names import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, SPLITS, STYLE, VERMILION
from interp.results.queries import pick, splits_of, steps_of
from interp.results.tables import ESTIMATE_COLUMNS

STEP_TITLE = "training step (0 = base model)"
WIDTH = 960  # px; on a 7-inch text width this scales 15 px type to 8 pt
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 74, 62  # px
DIVERGING = [(0.0, VERMILION), (0.5, "#F7F7F7"), (1.0, BLUE)]
SEQUENTIAL = [(0.0, "#F7FBFF"), (0.5, "#6BAED6"), (1.0, "#08306B")]
INTERVAL = "95 % interval"

_AXIS = dict(
    showgrid=True,
    gridcolor="#E4E4E4",
    gridwidth=0.8,
    zeroline=False,
    showline=True,
    linecolor="#444444",
    linewidth=1,
    ticks="outside",
    ticklen=4,
    tickcolor="#444444",
    tickfont_size=14,
    title_font_size=15,
    title_standoff=8,
)
plotly.io.templates["interp"] = go.layout.Template(
    layout=dict(
        font=dict(family="Arial, Helvetica, Liberation Sans, sans-serif", size=15, color="#222222"),
        paper_bgcolor="white",
        plot_bgcolor="white",
        colorway=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK],
        width=WIDTH,
        margin=dict(l=LEFT, r=RIGHT, t=TOP, b=BOTTOM),
        xaxis=_AXIS,
        yaxis=_AXIS,
        legend=dict(
            orientation="h", x=0, xanchor="left", yanchor="bottom", font_size=14, bgcolor="rgba(0,0,0,0)"
        ),
        bargap=0.45,
        hovermode="closest",
    )
)


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


def panels(frame: pd.DataFrame, rows: dict[str, int]) -> go.Figure:
    """Empty figure with one column per split and one row per (axis title: height in px) of `rows`."""
    splits, steps = splits_of(frame), steps_of(frame)
    if not splits:
        raise ValueError(f"the table has no rows with split in {list(SPLITS)}.")
    gap = 46  # px between rows: room for the lower row's legend
    height = sum(rows.values()) + gap * (len(rows) - 1)
    fig = make_subplots(
        rows=len(rows),
        cols=len(splits),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=list(rows.values()),
        vertical_spacing=gap / height,
        horizontal_spacing=0.03,
        column_titles=[SPLITS[split] for split in splits],
    )
    fig.update_layout(height=height + TOP + BOTTOM)
    fig.update_layout(legend=dict(y=1 + 28 / height))
    for row, title in enumerate(rows, start=1):
        fig.update_yaxes(title=title, row=row, col=1)
        for col in range(1, len(splits) + 1):
            step_axis(fig, steps, row, col, title=row == len(rows))
    heights = list(rows.values())
    for i in range(1, len(heights)):  # each row has its legend above it
        top = sum(heights[i:]) + gap * (len(heights) - 1 - i)
        fig.update_layout(
            {
                f"legend{i + 1}": dict(
                    y=(top + 6) / height, x=0, orientation="h", font_size=14, yanchor="bottom"
                )
            }
        )
    return fig


def facets(
    rows: int, each: int, gap: int, columns: list[str], below: int = BOTTOM, spacing: float = 0.03
) -> go.Figure:
    """Empty figure of `rows` rows of panels, `each` px high and `gap` px apart, `below` px under them."""
    height = each * rows + gap * (rows - 1)
    fig = make_subplots(
        rows=rows,
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=spacing,
        vertical_spacing=gap / height,
        column_titles=columns,
    )
    return fig.update_layout(height=height + TOP + below, margin_b=below, legend_y=1 + 28 / height)


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


def effect_scale(fig: go.Figure, values: pd.Series, **bar: object) -> None:
    """The colours of heatmaps of patching effects, and their bar."""
    title = dict(text="effect (0 = none, 1 = full)", side="right", font_size=14)
    look = dict(title=title, x=1.015, thickness=13, outlinewidth=0, tickfont_size=13)
    low, high = min(0.0, values.min()), max(1.0, values.max())
    fig.update_layout(coloraxis=dict(cmin=low, cmax=high, colorscale=SEQUENTIAL, colorbar=look | bar))


def corner(fig: go.Figure, text: str, row: int, col: int, above: bool = False, **look: object) -> None:
    """Text in a panel's upper left corner, or above it."""
    place = dict(x=0, y=1, yanchor="bottom") if above else dict(x=0.02, y=0.98, yanchor="top")
    place |= dict(xref="x domain", yref="y domain", xanchor="left", row=row, col=col)
    fig.add_annotation(text=text, showarrow=False, **place, **look)


def uncertain(grid: dict[str, pd.DataFrame]) -> Int[np.ndarray, "cell 2"]:
    """(row, column) of the cells of `draw_heatmap` whose interval covers 0."""
    return np.argwhere(((grid["low"] <= 0) & (grid["high"] >= 0)).to_numpy())


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
        line=dict(color=colour, dash=dash, width=1.5 if thin else 2.6),
        marker=dict(symbol=symbol, size=6 if thin else 8, color=colour, line=dict(color=colour, width=1)),
        error_y=whisker(lone, colour) if alone else None,
        customdata=point_numbers(rows),
        hovertemplate=HOVER,
        **place,
    )


def step_axis(
    fig: go.Figure, steps: list[int], row: int, col: int, title: bool = True, room: int = 9
) -> None:
    """Evenly spaced checkpoints with at most `room` labels, first and last kept."""
    count = min(room, len(steps))
    shown = sorted({round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)})
    text = [
        f"{steps[i] // 1000}k" if steps[i] >= 10_000 and steps[i] % 1000 == 0 else str(steps[i])
        for i in shown
    ]
    fig.update_xaxes(
        tickmode="array",
        tickvals=shown,
        ticktext=text,
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
    shown = list(range(0, len(layers), 1 + len(layers) // 16))
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
) -> None:
    """Range of one row's value axes: every value and interval drawn, and `at_least`, with a margin of 5 %."""
    drawn = frame.loc[frame["metric"].isin(metrics), ["value", "low", "high"]]
    low, high = np.nanmin([at_least[0], drawn.min().min()]), np.nanmax([at_least[1], drawn.max().max()])
    margin = 0.05 * max(high - low, 0.02)
    fig.update_yaxes(range=[low - margin, high + margin], row=row)


def zero_line(fig: go.Figure, row: int) -> None:
    """Draw the line at zero in one row."""
    fig.update_yaxes(zeroline=True, zerolinecolor="#555555", zerolinewidth=1.2, row=row)
