"""The same measurements in several environments, side by side.

>>> frame, provenance = read_table("figures/environments/tables", "environments")
>>> environments(frame, provenance).show()
"""

from __future__ import annotations

from functools import partial
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import VERBS, Caption, numbers, only, size, together
from interp.plots.look import current
from interp.plots.registry import figure
from interp.plots.series import ROW, draw_estimates, draw_series, fit_estimates
from interp.plots.tabular import draw_table
from interp.plots.theme import facets, note_n, plain, sizes, step_axis
from interp.results.estimates import ends, side
from interp.results.names import BLUE, ORANGE, STYLE
from interp.results.queries import need, pick, steps_of
from interp.results.wording import WHERE, listed

#: Environments in reading order: their names in figures.
ENVIRONMENTS = {
    "alfworld": "ALFWorld",
    "scienceworld": "ScienceWorld",
    "twc": "TextWorld Commonsense",
    "bfcl_single": "BFCL, single turn",
}
#: Readings of `environments`: their names in figures.
READINGS = {
    "success_cot": "games won with CoT",
    "success_prompt": "games won without",
    "prompt_reliance": "prompt reliance",
    "follow": "follows other trace",
    "keep": "keeps its own action",
    "probe_gain": "boundary probe's gain",
}
_MODES = ("acc_cot", "acc_prompt")


_figure = partial(figure, section="elsewhere")


def _splits_caption(frame: pd.DataFrame) -> Caption:
    return Caption(
        "",
        "What each series was trained on, and what its in-domain and out-of-domain decisions are. "
        "Episodes and decisions "
        "are those recorded; studied: decisions that every checkpoint acted on.",
    )


def _named(frame: pd.DataFrame) -> dict[str, str]:
    """The environments that a table has, and their names."""
    return {name: title for name, title in ENVIRONMENTS.items() if (frame["environment"] == name).any()}


def _nowhere_right(frame: pd.DataFrame) -> list[str]:
    """Environments in which no checkpoint's action is ever right, in any mode or split."""
    right = frame[frame["metric"].isin(_MODES)].groupby("environment")["value"].max()
    return [title for name, title in _named(frame).items() if right.get(name, 1) == 0]


def _caption(frame: pd.DataFrame) -> Caption:
    never = _nowhere_right(frame)
    gaps = pick(frame[~frame["environment"].map(ENVIRONMENTS).isin(never)], metric="gap")
    moved = [both.moved for _, rows in gaps.groupby(["environment", "split"]) if (both := ends(rows))]
    message = (
        f"The gap between CoT and prompt action {VERBS['up']} in {moved.count('up')} of {len(moved)} pairs "
        "of environment and split."
    )
    accuracy = only(frame, metric=(*_MODES, "gap"))
    return Caption(
        together(message if moved else "", f"No action is right in {listed(never)}." if never else ""),
        "Accuracy over checkpoints.",
        size(pick(frame, metric="acc_cot")),
        numbers(accuracy, {"environment": ENVIRONMENTS.get}),
    )


def _readings_caption(frame: pd.DataFrame) -> Caption:
    last = _last(frame)
    message = ""
    if len(follow := pick(last, metric="follow", split="in_domain")):
        most = [ENVIRONMENTS[row["environment"]] for _, row in follow.iterrows() if side(row, 0.5) > 0]
        message = (
            f"Another state's trace is followed more often than not in {len(most)} of {len(follow)} "
            "environments (in-domain)."
        )
    nothing = _nothing(last)
    message = together(
        message, f"Everywhere 0: {listed(READINGS[name] for name in nothing)}." if nothing else ""
    )
    drawn = (
        "The last checkpoint; gain: of the eventual action's target, in BFCL whether a function is called; "
        "blank: not measured."
    )
    table = numbers(only(frame, metric=READINGS), {"environment": ENVIRONMENTS.get, "metric": READINGS.get})
    return Caption(message, drawn, size(last, "decisions, pairs or games"), table)


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    """Every reading at the last checkpoint that has it."""
    rows = need(only(frame, metric=READINGS)).dropna(subset="value")
    newest = rows.groupby(["environment", "split", "metric"])["step"].transform("max")
    return rows[rows["step"] == newest]


def _nothing(last: pd.DataFrame) -> list[str]:
    """Readings that are exactly 0 in every environment and split."""
    most = last.groupby("metric")["value"].agg(lambda values: values.abs().max())
    return [name for name in READINGS if name in most and most[name] == 0]


@_figure("What is in domain, and what is out of it", table="splits", caption=_splits_caption)
def splits(frame: pd.DataFrame) -> go.Figure:
    """What each environment's series was trained on and what its splits hold, as a table."""
    shown = {
        "environment": "environment",
        "trained_on": "trained on",
        "split": "split",
        "holds": "its decisions",
        "task_types": "task types",
        "episodes": "episodes",
        "decisions": "decisions",
        "studied": "studied",
    }
    widths = dict(
        environment=1.8 if current().narrow else 1.4, trained_on=2.2, split=1.0, holds=2.6, task_types=0.8
    )
    if current().narrow:
        for column in ("trained_on", "task_types", "episodes"):
            del shown[column]
    cells = {
        title: [f"{value:,}" if isinstance(value, int) else str(plain(value)) for value in frame[column]]
        for column, title in shown.items()
    }
    words = sum(column in ("environment", "trained_on", "split", "holds") for column in shown)
    align = [*["left"] * words, *["right"] * (len(shown) - words)]
    return draw_table(cells, [widths.get(column, 1.15) for column in shown], align)


@_figure("Several environments", name="environments", table="environments", caption=_caption)
def environments(frame: pd.DataFrame) -> go.Figure:
    """Accuracy of both modes over checkpoints, a panel for each environment in which some action is right."""
    never = _nowhere_right(frame)
    names = {name: title for name, title in _named(frame).items() if title not in never} or _named(frame)
    rows = need(only(frame, metric=_MODES, environment=names))
    rows = rows.assign(series=rows["metric"] + " " + rows["split"])
    looks = {}
    for metric in _MODES:
        name, colour, _, symbol = STYLE[metric]
        for split, dash, mark in (
            ("in_domain", "solid", symbol),
            ("out_of_domain", "dash", f"{symbol}-open"),
        ):
            looks[f"{metric} {split}"] = (f"{name}, {WHERE[split]}", colour, dash, mark)
    thin = [key for key in looks if key.endswith("out_of_domain")]
    # Each environment has its own checkpoints.
    rows["place"] = rows.groupby("environment")["step"].rank("dense").astype(int) - 1
    fig = facets(1, 170, 30, list(names.values()), across=min(1 if current().narrow else 3, len(names)))
    panels = [dict(environment=name) for name in names]
    draw_series(fig, rows, looks, by="series", panels=panels, along="place", thin=thin)
    for col, where in enumerate(panels, start=1):
        step_axis(fig, steps_of(pick(rows, **where)), 1, col)
    fig.update_xaxes(title="training step")
    fig.update_yaxes(range=[-0.04, 1.04])
    fig.update_yaxes(title="accuracy", row=1, col=1)
    return note_n(fig, sizes(rows))


@_figure(
    "What actions depend on in several environments",
    name="environments_readings",
    table="environments",
    caption=_readings_caption,
)
def readings(frame: pd.DataFrame) -> go.Figure:
    """The last checkpoint's other readings, a panel for each and a row of it for each environment."""
    last = _last(frame)
    shown = [name for name in READINGS if (last["metric"] == name).any() and name not in _nothing(last)]
    rows = need(only(last, metric=shown))
    order = {name: "<br>".join(wrap(title, 17)) for name, title in _named(rows).items()}
    looks = {
        "in_domain": ("in-domain", BLUE, "solid", "circle"),
        "out_of_domain": ("out-of-domain", ORANGE, "solid", "circle-open"),
    }
    across = 2 if current().narrow else 3
    titles = [READINGS[name] for name in shown]
    fig = facets(1, 2 * ROW * len(order), 30, titles, below=34, across=min(across, len(shown)))
    panels = [dict(metric=name) for name in shown]
    draw_estimates(fig, rows, looks, by="split", panels=panels, along="environment", order=order)
    for col, name in enumerate(shown, start=1):
        of = pick(rows, metric=name)
        fit_estimates(fig, of, () if name in ("prompt_reliance", "probe_gain") else (1.0,), row=1, col=col)
    return note_n(fig, sizes(rows, "decisions, pairs or games", ""))
