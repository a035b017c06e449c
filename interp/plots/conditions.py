"""The figure of training conditions side by side: where each one's gain lands, in the trace or in the prompt.

>>> frame, provenance = read_table("figures/conditions/tables", "conditions")
>>> conditions(frame, provenance).show()

Each condition has a line for each action from the base's accuracy to the last checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, only, value
from interp.plots.registry import figure
from interp.plots.seeds import size
from interp.plots.series import ROW, by_split, fit_estimates
from interp.plots.theme import HOVER, facets, note_n, plain, point_numbers, whisker
from interp.results.claims import READOUTS
from interp.results.condition_rows import named
from interp.results.estimates import span
from interp.results.names import SPLITS, STYLE
from interp.results.queries import need, pick, splits_of
from interp.results.trainings import MEAN
from interp.results.wording import WHERE, listed, sentence
from interp.system.limits import SMALLEST

#: Statistics that are drawn, what each looks like, and its place beside a condition's name, in rows.
_DRAWN = {"gain_cot": ("acc_cot", -0.19), "gain_prompt": ("acc_prompt", 0.19)}
#: Readouts of both actions, in the order in which one is looked for.
_READOUTS = ("free", "choice_sum")
#: Rows of the table below the figure: heading, statistic, and its readout where it is not the drawn one.
_CHANGES = (
    ("prompt action", "gain_prompt", ""),
    ("prompt action, forced choice", "gain_prompt", "choice_sum"),
    ("CoT action", "gain_cot", ""),
    ("gap (CoT − prompt)", "gap", ""),
    ("prompt reliance", "prompt_reliance", "pairs"),
    ("prompt reliance, own traces", "prompt_reliance", "own_traces"),
)
#: Of these nothing is read where no trace is written.
_OF_TRACES = ("gain_cot", "gap")
#: How far below an action's line its single trainings are, in rows; characters of a line of a name.
_BELOW, _LINE = 0.14, 17


def words(condition: str) -> str:
    """What a condition's examples hold, or its name where it is none of `interp.results.condition_rows`."""
    try:
        return named(condition).words
    except ValueError:
        return condition.replace("_", " ")


def writes_traces(frame: pd.DataFrame, condition: str, split: str) -> bool:
    """Whether the last checkpoint's CoT action parses at all: at more than 5 % of the decisions."""
    rows = pick(frame, condition=condition, split=split, statistic="parse_cot", quantity="level", seed=MEAN)
    return rows.empty or _last(rows)["value"].item() > SMALLEST


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows["step"].max()]


def _levels(frame: pd.DataFrame) -> pd.DataFrame:
    """Both actions' accuracy by the first readout that the table has of both."""
    rows = only(pick(frame, quantity="level"), statistic=_DRAWN).dropna(subset="value")
    there = next((name for name in _READOUTS if (rows["readout"] == name).any()), "")
    if not there:
        raise ValueError("the table has no level of both actions.")
    return pick(rows, readout=there)


def _message(frame: pd.DataFrame) -> str:
    """Between which values the actions' changes lie in the first split."""
    split, readout = splits_of(frame)[0], _levels(frame)["readout"].iloc[0]
    rows = _last(pick(frame, quantity="change", seed=MEAN, readout=readout, split=split))
    prompt, cot = (pick(rows, statistic=name).sort_values("value") for name in ("gain_prompt", "gain_cot"))
    cot = cot[[writes_traces(frame, name, split) for name in cot["condition"]]]
    if prompt.empty or cot.empty:
        return ""
    least, most = (f"{_signed(each['value'])} ({words(each['condition'])})" for each in _ends(prompt))
    whole = " to ".join(dict.fromkeys(_signed(each["value"]) for each in _ends(cot)))
    actions = f"the CoT action by {whole}, the prompt action by {least} to {most}"
    return f"{SPLITS[split]}, training changes {actions}."


def _ends(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return rows.iloc[0], rows.iloc[-1]


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def _caption(frame: pd.DataFrame) -> Caption:
    silent = [
        words(name)
        for name in frame["condition"].unique()
        if not any(writes_traces(frame, name, split) for split in splits_of(frame))
    ]
    drawn = "Bars start at the base."
    drawn += f" {sentence(listed(silent)).removesuffix('.')}: no CoT action parses." if silent else ""
    return Caption(_message(frame), drawn, size(_last(_levels(frame))), _numbers(frame))


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Every reading's change at the last checkpoint, with its verdict: a column for each condition."""
    last, drawn = _last(pick(frame, quantity="change", seed=MEAN)), _levels(frame)["readout"].iloc[0]
    order = frame["condition"].unique()
    rows = []
    for heading, statistic, own in _CHANGES:
        readings = pick(last, statistic=statistic, readout=own or drawn)
        for split in splits_of(readings):
            row = {"change of": f"{heading}, {WHERE[split]}"}
            for name in order:
                silent = statistic in _OF_TRACES and not writes_traces(frame, name, split)
                cell = _cell(pick(readings, condition=name, split=split))
                row[words(name)] = "no trace written" if silent else cell
            rows.append(row)
    seeds = {words(name): span(pick(last, condition=name)["seeds"]) for name in order}
    return pd.DataFrame([*rows, {"change of": "trainings"} | seeds])


def _cell(rows: pd.DataFrame) -> str:
    """A change with its interval and, where there is one, its verdict."""
    if rows.empty or pd.isna(rows["value"].iloc[0]):
        return "–"
    row = rows.iloc[0]
    verdict = "" if pd.isna(row["verdict"]) or not row["verdict"] else f", {row['verdict']}"
    return f"{value(row, signed=True)}{verdict}"


@figure("Where does the gain land?", table="conditions", section="compared", caption=_caption)
def conditions(frame: pd.DataFrame) -> go.Figure:
    """Both actions' accuracy before and after each condition's training, a panel for each split."""
    rows = _levels(frame)
    need(rows, seed=MEAN)
    rows = rows[(rows["seed"] == MEAN) | rows["condition"].isin(_trained_again(rows))]
    order = list(rows["condition"].unique())
    titles = ["<br>".join(map(str, map(plain, wrap(words(name), _LINE)))) for name in order]
    panels = by_split(rows)
    fig = facets(1, round(2.3 * ROW) * len(order), 26, [SPLITS[where["split"]] for where in panels])
    for col, where in enumerate(panels, start=1):
        here = pick(rows, **where)
        silent = [name for name in order if not writes_traces(frame, name, where["split"])]
        for statistic in _DRAWN:
            _draw(fig, pick(here, statistic=statistic), statistic, order, silent, col)
        fig.update_yaxes(
            range=[len(order) - 0.45, -0.55],
            tickvals=list(range(len(order))),
            ticktext=titles,
            ticks="",
            showgrid=False,
            row=1,
            col=col,
        )
    _name_marks(fig, len(_trained_again(rows)) > 0)
    fit_estimates(fig, rows, (0.9,))
    fig.update_xaxes(title="accuracy")
    mean = _last(pick(rows, seed=MEAN))
    decisions = f"{span(mean['n'] // mean['seeds'])} decisions of {span(mean['n_groups'])} episodes"
    trainings = f"{span(mean['seeds'])} training{'s' if mean['seeds'].max() > 1 else ''} of each condition"
    return note_n(fig, f"n = {decisions}, {trainings}, by {READOUTS[rows['readout'].iloc[0]]}")


def _draw(
    fig: go.Figure, rows: pd.DataFrame, statistic: str, order: list[str], silent: Sequence[str], col: int
) -> None:
    """Draw one action of every condition: single trainings, the base, and the last checkpoint's mean.

    silent: conditions that write no trace, of which the CoT action is not drawn, but said.
    """
    concept, shift = _DRAWN[statistic]
    name, colour, _, symbol = STYLE[concept]
    mean = pick(rows, seed=MEAN)
    base, last = mean[mean["step"] == rows["step"].min()], _last(mean)
    single = _last(rows[rows["seed"] != MEAN])
    if statistic in _OF_TRACES:
        last, single = (each[~each["condition"].isin(silent)] for each in (last, single))
        _say_silent(fig, base[base["condition"].isin(silent)], order, shift, colour, col)
    _draw_gains(fig, base, last, order, shift, colour, col)
    looks = dict(orientation="h", mode="markers", row=1, col=col)
    fig.add_scatter(
        x=single["value"],
        y=[order.index(each) + shift + _BELOW for each in single["condition"]],
        marker=dict(size=4.5, color=colour, opacity=0.75),
        name=f"{name}, one training",
        showlegend=False,
        hovertext=[
            f"{plain(words(each))}, seed {plain(str(seed))}"
            for each, seed in zip(single["condition"], single["seed"], strict=True)
        ],
        hovertemplate="%{hovertext}<br>%{x:.3f}",
        **looks,
    )
    for points, marks, shown in ((base, f"{symbol}-open", f"{name}, base"), (last, symbol, name)):
        fig.add_scatter(
            x=points["value"],
            y=[order.index(each) + shift for each in points["condition"]],
            marker=dict(symbol=marks, size=8, color=colour, line=dict(color=colour, width=1.4)),
            error_x=whisker(points, colour),
            name=shown,
            showlegend=col == 1 and shown == name,
            customdata=point_numbers(points),
            hovertemplate=HOVER,
            **looks,
        )


def _trained_again(rows: pd.DataFrame) -> list[str]:
    """The conditions of more than one training: of another the mean says all."""
    several = pick(rows, seed=MEAN)
    return list(several.loc[several["seeds"] > 1, "condition"].unique())


def _name_marks(fig: go.Figure, dots: bool) -> None:
    """Say in the legend what a hollow mark and, where there are any, a dot are, of whichever action."""
    marks: dict[str, dict[str, object]] = {"base, before training": dict(symbol="circle-open", size=8)}
    if dots:
        marks["one training"] = dict(size=4.5)
    for name, mark in marks.items():
        fig.add_scatter(
            x=[None], y=[None], mode="markers", marker=mark | dict(color="#555555"), name=name, row=1, col=1
        )


def _draw_gains(
    fig: go.Figure,
    base: pd.DataFrame,
    last: pd.DataFrame,
    order: list[str],
    shift: float,
    colour: str,
    col: int,
) -> None:
    """Draw a line from the base's accuracy to the last checkpoint's in every condition."""
    before = base.set_index("condition")["value"]
    for condition, after in zip(last["condition"], last["value"], strict=True):
        place = order.index(condition) + shift
        ends = dict(x0=before[condition], x1=after, y0=place, y1=place)
        look = dict(line=dict(color=colour, width=6), opacity=0.3, layer="below")
        fig.add_shape(type="line", row=1, col=col, **ends, **look)


def _say_silent(
    fig: go.Figure, base: pd.DataFrame, order: list[str], shift: float, colour: str, col: int
) -> None:
    """Say beside the base's mark of what no trace is written after."""
    for condition, end in zip(base["condition"], base["high"], strict=True):
        fig.add_annotation(
            text="writes no trace",
            x=end,
            y=order.index(condition) + shift,
            xanchor="left",
            xshift=4,
            showarrow=False,
            font=dict(color=colour),
            row=1,
            col=col,
        )
