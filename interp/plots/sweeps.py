"""Pictures of sweeps of patches and ablations: layer x token for `at="all"`, else lines by layer.

>>> sweep(result.to_frame(), direction="noise").show()      # as result.plot(direction="noise")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.pictures import (
    COLOURS,
    MANY,
    MARKERS,
    band_line,
    diverging_scale,
    heatmap,
    kept_of,
    means,
    n_of,
    titled,
)
from interp.plots.theme import facets, fit_values, layer_axis, plain
from interp.results.names import DIRECTIONS
from interp.results.queries import pick
from interp.results.wording import visible

EFFECT = "effect (0 = none, 1 = full)"
#: Labels of the tokens with the largest effects, where there is no room for all.
LABELS = 24
#: Characters of a token's label.
CHARACTERS = 18


def sweep(
    frame: pd.DataFrame,
    *,
    direction: str = "denoise",
    metric: str = "difference",
    pair: int | None = None,
    groups: Sequence | None = None,
) -> go.Figure:
    """Patching effects: a heatmap layer x token of a sweep at "all", else lines by layer for each site.

    Args:
        frame: of a `Sweep`.
        direction: that a heatmap shows: `denoise` or `noise` (lines show both).
        metric: of those that were asked for.
        pair: whose tokens; by default all pairs where they have the same tokens, else the first that is kept.
        groups: the episode of each pair, for intervals.

    Raises:
        ValueError: for pairs that were all dropped, and another direction, metric or pair.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"The direction is {' or '.join(DIRECTIONS)}, not {direction!r}.")
    chosen = pick(frame, metric=metric)
    if chosen.empty:
        raise ValueError(f"This sweep holds no metric {metric!r}: ask `patch` for it (metrics=).")
    kept, every = kept_of(chosen, direction, "pair", "pairs")
    if "position" in chosen:
        what = f"{DIRECTIONS[direction]}: effect by layer and token"
        return _over_tokens(chosen, direction, "pair", pair, what, EFFECT)
    if pair is not None:
        chosen = pick(chosen, pair=pair)
        kept, every = kept_of(chosen, direction, "pair", "pairs")
    counted = n_of(kept, every, "pairs")
    if chosen["site"].nunique() > len(COLOURS):
        what = f"{DIRECTIONS[direction]}: effect by head and layer"
        return _over_heads(chosen, direction, what, counted, EFFECT)
    sites, layers = list(chosen["site"].unique()), sorted(chosen["layer"].unique())
    fig = facets(1, 300, 0, list(DIRECTIONS.values()))
    fit = []
    for col, name in enumerate(DIRECTIONS, start=1):
        rows = means(chosen, ("site", "layer"), name, "pair", groups)
        for number, site in enumerate(sites):
            look = (site, COLOURS[number], "solid", MARKERS[number])
            band_line(fig, pick(rows, site=site), "layer", look, (1, col), show=col == 1)
        layer_axis(fig, layers, "layer", 1, col, axis="x")
        fig.add_hline(y=0, row=1, col=col, line=dict(color="#555555", width=1.2), layer="below")
        fit.append(rows.assign(metric="effect"))
    fit_values(fig, pd.concat(fit), ["effect"], row=1, at_least=(0.0, 1.0))
    fig.update_yaxes(title="patching effect (0 = none, 1 = full)", row=1, col=1)
    return titled(fig, f"Patching effect by layer, {counted}")


def ablation(
    frame: pd.DataFrame,
    *,
    metric: str = "",
    prompt: int | None = None,
    groups: Sequence | None = None,
) -> go.Figure:
    """What ablating does: a heatmap layer x token of an ablation at "all", else lines by layer for each site.

    Args:
        frame: of an `Ablation`.
        metric: `effect` on the answers, or `kl` of the next token; the first where answers were asked for.
        prompt: whose tokens; by default all prompts where they have the same tokens, else the first.
        groups: the episode of each prompt, for intervals.

    Raises:
        ValueError: for another metric or prompt, and where nothing was read.
    """
    metric = metric or ("effect" if frame["effect"].notna().any() else "kl")
    names = dict(effect="change of the answer (nats)", kl="KL from the unablated run (nats)")
    if metric not in names:
        raise ValueError(f"The metric is {' or '.join(names)}, not {metric!r}.")
    counted = n_of(*kept_of(frame, metric, "prompt", "prompts"), "prompts")
    if "position" in frame:
        return _over_tokens(frame, metric, "prompt", prompt, "Ablation by layer and token", names[metric])
    if frame["site"].nunique() > len(COLOURS):
        return _over_heads(frame, metric, "Ablation by head and layer", counted, names[metric])
    fig = facets(1, 300, 0, [""])
    rows = means(frame, ("site", "layer"), metric, "prompt", groups)
    for number, site in enumerate(frame["site"].unique()):
        look = (site, COLOURS[number], "solid", MARKERS[number])
        band_line(fig, pick(rows, site=site), "layer", look, (1, 1), show=True)
    layer_axis(fig, sorted(frame["layer"].unique()), "layer", 1, 1, axis="x")
    fig.add_hline(y=0, line=dict(color="#555555", width=1.2), layer="below")
    fig.update_yaxes(title=names[metric])
    return titled(fig, f"Ablation by layer, {counted}")


def _over_heads(frame: pd.DataFrame, value: str, what: str, counted: str, scale: str) -> go.Figure:
    """Site x layer, for a sweep of many sites or heads."""
    sites, layers = list(frame["site"].unique()), sorted(frame["layer"].unique())
    grid = frame.pivot_table(index="site", columns="layer", values=value, sort=False)
    grid = grid.reindex(index=sites, columns=layers)
    fig = facets(1, max(160, 20 * len(sites)), 0, [""])
    heatmap(fig, grid, (1, 1), None, "layer %{x}, %{y}<br>%{z:.3f}")
    layer_axis(fig, layers, "layer", 1, 1, axis="x")
    fig.update_xaxes(range=[-0.5, len(layers) - 0.5], showgrid=False)
    fig.update_yaxes(
        tickvals=list(range(len(sites))), ticktext=sites, showgrid=False, range=[len(sites) - 0.5, -0.5]
    )
    diverging_scale(fig, grid.stack(), scale)
    return titled(fig, f"{what}, {counted}")


def _over_tokens(
    frame: pd.DataFrame, value: str, unit: str, number: int | None, what: str, scale: str
) -> go.Figure:
    """Layer x token of one pair or prompt (`unit`), or of all; a panel for each site."""
    chosen, told = _one_text(frame, value, unit, number)
    sites, layers = list(chosen["site"].unique()), sorted(chosen["layer"].unique())
    # Before the first token that differs nothing can have an effect: long prompts start there.
    acting = chosen[chosen[value].fillna(0) != 0]["position"]
    first = int(acting.min()) if len(acting) and chosen["position"].max() >= MANY else 0
    chosen = chosen[chosen["position"] >= first]
    positions = sorted(chosen["position"].unique())
    texts = [str(i) for i in positions]
    if "token" in chosen:
        token_of = chosen.drop_duplicates("position").set_index("position")["token"]
        texts = [visible(token_of[i]) for i in positions]
    grids = {}
    for site in sites:
        grid = pick(chosen, site=site).pivot_table(
            index="layer", columns="position", values=value, dropna=False
        )
        grids[site] = grid.reindex(index=layers, columns=positions)
    columns = _labelled(pd.concat(grids.values()))
    every = len(columns) == len(positions)
    labels = {i: _label(texts[i]) if every else f"{positions[i]}: {_label(texts[i])}" for i in columns}
    hover = [plain(f"{position}: {text}") for position, text in zip(positions, texts)]
    below = 40 + 7 * max(map(len, labels.values()), default=0)
    fig = facets(len(sites), max(150, 17 * len(layers)), 34, [""], below=below)
    for row, (site, grid) in enumerate(grids.items(), start=1):
        told_of = np.tile(np.array(hover, dtype=object), (len(grid), 1))
        heatmap(fig, grid, (row, 1), told_of, f"{site}, layer %{{y}}, %{{customdata}}<br>%{{z:.3f}}")
        layer_axis(fig, layers, f"layer ({site})", row, 1)
        _token_axis(fig, labels, row, len(positions), shown=row == len(sites))
    diverging_scale(fig, chosen[value], scale)
    start = f", tokens from {first} on" if first else ""
    return titled(fig, f"{what}, {told}{start}")


def _one_text(frame: pd.DataFrame, value: str, unit: str, number: int | None) -> tuple[pd.DataFrame, str]:
    """The cells of one pair or prompt, or of all where they have the same tokens, and which they are."""
    every = frame[unit].nunique()
    rows = frame.dropna(subset=value)
    if number is not None:
        rows = pick(rows, **{unit: number})
        if rows.empty:
            raise ValueError(f"There is nothing to draw: {unit} {number} was dropped, or is not there.")
        return rows, f"{unit} {number} of {every}"
    differ = "token" not in rows or (
        (rows.groupby("position")["token"].nunique() > 1).any()
        or rows.groupby(unit)["position"].nunique().nunique() > 1
    )
    kept = rows[unit].nunique()
    if kept == 1 or differ:
        first = int(rows[unit].iloc[0])
        told = f"1 {unit}" if every == 1 else f"{unit} {first} of {every} ({unit}= picks another)"
        return pick(rows, **{unit: first}), told
    return rows, f"mean of {n_of(kept, every, f'{unit}s')}"


def _labelled(grid: pd.DataFrame) -> list[int]:
    """The columns that have a label: all, or where there is no room those of the largest effects."""
    if grid.shape[1] <= MANY:
        return list(range(grid.shape[1]))
    largest = grid.abs().max().to_numpy()
    apart = 1 + grid.shape[1] // MANY
    chosen: list[int] = []
    for column in np.argsort(-largest, kind="stable"):
        if len(chosen) == LABELS or not largest[column] > 0.1 * largest.max():
            break
        if all(abs(column - other) >= apart for other in chosen):
            chosen.append(int(column))
    return sorted(chosen)


def _token_axis(fig: go.Figure, labels: dict[int, str], row: int, width: int, shown: bool) -> None:
    """Tokens below a heatmap of so many columns."""
    fig.update_xaxes(
        tickmode="array",
        tickvals=list(labels),
        ticktext=list(labels.values()),
        tickangle=-90,
        tickfont_size=14,
        showgrid=False,
        showticklabels=shown,
        range=[-0.5, width - 0.5],
        row=row,
        col=1,
    )


def _label(text: str) -> str:
    """A token as a label: short, its leading space seen, and no tag."""
    cut = text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"
    return str(plain(cut.replace(" ", "\u00a0"))) or "∅"
