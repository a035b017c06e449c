"""The figure of direct action: accuracy against generated tokens at the last checkpoint.

>>> frame, provenance = read_table("runs/quick/tables", "direct")
>>> direct(frame, provenance).show()
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, clause, listing, only, together
from interp.plots.registry import figure
from interp.plots.theme import facets, whisker
from interp.results.estimates import estimate, side, span
from interp.results.names import BLACK, BLUE, GREEN, GREY, PURPLE, SPLITS, VERMILION
from interp.results.queries import need, pick, splits_of
from interp.results.wording import sentence

#: Router: name, colour, dash, marker.
_LOOKS = {
    "oracle": ("oracle", GREEN, "dash", "diamond"),
    "margin": ("margin of the prompt action", BLUE, "solid", "square"),
    "probe": ("boundary probe", PURPLE, "solid", "circle"),
    "random": ("random, equal rate", GREY, "dot", "x"),
}
_GAMES = _LOOKS | {
    "at_once": ("always at once", BLACK, "solid", "triangle-up"),
    "thinking": ("always thinking", VERMILION, "solid", "circle"),
}
#: What an interval says of routing by margin against random routing of its rate.
_BEATS = {
    1: "beats random routing",
    -1: "is worse than random routing",
    0: "is not told apart from random routing",
}


def _last(frame: pd.DataFrame, where: str = "decisions") -> pd.DataFrame:
    """Rows of the last checkpoint, of decisions or of games."""
    rows = pick(frame, where=where)
    return rows[rows["step"] == rows["step"].max()]


def _caption(frame: pd.DataFrame) -> Caption:
    rows = pick(_last(frame), router="margin", rule="as_good")
    saves, beats = {}, {}
    for split in splits_of(rows):
        read = pick(rows, split=split).set_index("metric")
        saved, lost = read.loc["tokens_saved"], estimate(read.loc["accuracy_minus_thinking"], signed=True)
        saves[split] = f"saves {estimate(saved)} of the tokens at {lost} accuracy"
        if "over_random" in read.index:
            beats[split] = _BEATS[side(read.loc["over_random"])]
    message = together(
        sentence(f"Routing by margin {clause(saves)}"), sentence(f"it {clause(beats)}") if beats else ""
    )
    drawn = "Last checkpoint; left: always at once. Star: no loss on other episodes."
    size = f"n = {span(pick(rows, metric='accuracy')['n'])} decisions."
    routed = pick(_last(frame), rule="as_good")
    told = only(routed, metric=("accuracy", "tokens", "at_once", "tokens_saved", "over_random"))
    return Caption(message, drawn, size, listing(told.drop(columns=["step", "where", "share"])))


@figure("Act at once, or think first?", table="direct", section="better", caption=_caption)
def direct(frame: pd.DataFrame) -> go.Figure:
    """Accuracy against tokens by router at the last checkpoint, above whole games where some were played."""
    splits = splits_of(need(frame, where="decisions"))
    parts = [where for where in _SCORES if (frame["where"] == where).any()]
    fig = facets(len(parts), 230, 16, [SPLITS[split] for split in splits])
    for row, (where, (x, y, draw)) in enumerate(((name, _SCORES[name]) for name in parts), start=1):
        for col, split in enumerate(splits, start=1):
            draw(fig, pick(_last(frame, where), split=split), row, col)
        tokens = pick(_last(frame, where), metric="tokens")
        most = float(np.nanmax([*tokens["value"], *(tokens["high"] if where == "games" else ()), 1.0]))
        fig.update_xaxes(title=x, range=[0, 1.05 * most], matches=None, showticklabels=True, row=row)
        fig.update_yaxes(title=y, row=row, col=1)
    return fig


def _points(rows: pd.DataFrame, router: str, rule: str, score: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A router's tokens and scores, in the order of its rate."""
    of = pick(rows, router=router, rule=rule).sort_values("share", kind="stable")
    return pick(of, metric="tokens"), pick(of, metric=score)


def _curves(fig: go.Figure, rows: pd.DataFrame, row: int, col: int) -> None:
    """A line for each router over its rates, and a star where it is as good as thinking."""
    for router, (name, colour, dash, symbol) in _LOOKS.items():
        tokens, score = _points(rows, router, "share", "accuracy")
        if score.empty:
            continue
        look = dict(name=name, legendgroup=router, row=row, col=col)
        fig.add_scatter(
            x=tokens["value"],
            y=score["value"],
            mode="lines+markers",
            showlegend=col == 1,
            line=dict(color=colour, dash=dash, width=2),
            marker=dict(symbol=symbol, size=7, color=colour),
            error_y=whisker(score, colour) if router in ("margin", "probe") else None,
            customdata=score[["share", "low", "high"]].to_numpy(),
            hovertemplate="%{x:.1f} tokens, %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]"
            "<br>at once: %{customdata[0]:.0%}",
            **look,
        )
        tokens, score = _points(rows, router, "as_good", "accuracy")
        fig.add_scatter(
            x=tokens["value"],
            y=score["value"],
            mode="markers",
            showlegend=False,
            marker=dict(symbol="star", size=13, color=colour, line=dict(color="white", width=1)),
            hovertemplate="as good as thinking elsewhere: %{x:.1f} tokens, %{y:.3f}",
            **look,
        )


def _games(fig: go.Figure, rows: pd.DataFrame, row: int, col: int) -> None:
    """A point for each way of playing."""
    for router, (name, colour, _, symbol) in _GAMES.items():
        tokens, score = _points(rows, router, "as_good", "success")
        fig.add_scatter(
            x=tokens["value"],
            y=score["value"],
            mode="markers",
            name=name,
            legend="legend" if row == 1 else f"legend{row}",
            legendgroup=f"games {router}",
            showlegend=col == 1 and len(score) > 0,
            marker=dict(symbol=symbol, size=9, color=colour),
            error_y=whisker(score, colour),
            error_x=whisker(tokens, colour),
            row=row,
            col=col,
        )


#: What is read of decisions and of games: titles of the axes, and what draws a panel.
_SCORES: dict[str, tuple[str, str, Callable[[go.Figure, pd.DataFrame, int, int], None]]] = {
    "decisions": ("tokens per decision", "accuracy", _curves),
    "games": ("tokens per game", "games won", _games),
}
