"""The same measurements in several environments, side by side.

>>> frame, provenance = read_table("figures/environments/tables", "environments")
>>> environments(frame, provenance).show()
"""

from __future__ import annotations

from functools import partial

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.caption import VERBS, Caption, clause, numbers, size
from interp.plots.registry import figure
from interp.plots.theme import BOTTOM, TOP, draw_trace, plain, step_axis
from interp.results.estimates import ends
from interp.results.names import STYLE
from interp.results.queries import need, pick, steps_of

#: Environments in reading order: their names in figures.
ENVIRONMENTS = {
    "alfworld": "ALFWorld",
    "scienceworld": "ScienceWorld",
    "twc": "TextWorld Commonsense",
    "bfcl_single": "BFCL, single turn",
}
#: Rows of the figure: the axis' title, and its metrics (of `environments`) with what each is drawn as.
ROWS = {
    "accuracy": {"acc_cot": "acc_cot", "acc_prompt": "acc_prompt"},
    "success in games": {"success_cot": "cot", "success_prompt": "prompt"},
    "prompt reliance": {"prompt_reliance": "prompt_reliance"},
    "another state's trace": {"follow": "follow", "keep": "keep"},
    "probe's gain": {"probe_gain": "probe_gain"},
}
_LOOKS = {
    **STYLE,
    "probe_gain": ("boundary probe, gain over best control", *STYLE["probe"][1:]),
    "prompt_reliance": ("prompt reliance", *STYLE["prompt_reliance"][1:]),
}
_SHARES = ("accuracy", "success in games", "another state's trace")


_figure = partial(figure, section="elsewhere")


def _splits_caption(frame: pd.DataFrame) -> Caption:
    return Caption(
        "",
        "What each series was trained on, and what its in-domain and out-of-domain decisions are. "
        "Episodes and decisions "
        "are those recorded; studied: decisions that every checkpoint acted on.",
    )


def _caption(frame: pd.DataFrame, split: str = "in_domain") -> Caption:
    rows, verdicts = pick(frame, split=split), {}
    for name, title in ENVIRONMENTS.items():
        if gap := ends(pick(rows, environment=name, metric="gap")):
            verdicts[title] = f"{VERBS[gap.moved]} in"
    message = f"The gap between CoT and prompt action {clause(verdicts)}." if verdicts else ""
    drawn = (
        "The probe's gain is about the eventual action's target; in BFCL, whether the recorded "
        "action calls a function."
    )
    return Caption(
        message, drawn, size(pick(rows, metric="acc_cot")), numbers(rows, {"environment": ENVIRONMENTS.get})
    )


def _caption_out_of_domain(frame: pd.DataFrame) -> Caption:
    return _caption(frame, "out_of_domain")


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
    cells = [frame[column].map(lambda v: f"{v:,}" if isinstance(v, int) else plain(v)) for column in shown]
    align = ["left"] * 4 + ["right"] * 4
    fig = go.Figure(
        go.Table(
            columnwidth=[1.3, 2.3, 1.0, 3.0, 0.7, 0.8, 0.9, 0.75],
            header=dict(values=list(shown.values()), align=align, fill_color="#EEEEEE", font_size=13),
            cells=dict(
                values=cells, align=align, fill_color="white", line_color="#CCCCCC", font_size=13, height=20
            ),
        )
    )
    return fig.update_layout(height=70 + 64 * len(frame), margin=dict(l=8, r=8, t=8, b=8))


@_figure(
    "Several environments, in-domain", name="environments_in_domain", table="environments", caption=_caption
)
def environments(frame: pd.DataFrame, split: str = "in_domain") -> go.Figure:
    """The headline readings over checkpoints, a row for each and a column for each environment."""
    chosen = need(frame, split=split)
    names = [name for name in ENVIRONMENTS if (chosen["environment"] == name).any()]
    rows = {title: metrics for title, metrics in ROWS.items() if chosen["metric"].isin(metrics).any()}
    each, gap = 120, 36  # px
    height = len(rows) * each + (len(rows) - 1) * gap
    fig = make_subplots(
        rows=len(rows),
        cols=len(names),
        shared_yaxes=True,
        vertical_spacing=gap / height if len(rows) > 1 else 0,
        horizontal_spacing=0.02,
        column_titles=[ENVIRONMENTS[name] for name in names],
    )
    fig.update_layout(height=TOP + height + BOTTOM)
    fig.update_annotations(font_size=15)
    for row, (title, metrics) in enumerate(rows.items(), start=1):
        legend = "legend" if row == 1 else f"legend{row}"
        top = 1 - (row - 1) * (each + gap) / height
        look = dict(x=0, orientation="h", font_size=13, yanchor="bottom", bgcolor="rgba(0,0,0,0)")
        fig.update_layout({legend: look | dict(y=top + (26 if row == 1 else 3) / height)})
        fig.update_yaxes(title=title, title_font_size=13, row=row, col=1)
        measured = chosen[chosen["metric"].isin(metrics)]
        low, high = min(0.0, measured["low"].min()), max(0.0, measured["high"].max())
        if title in _SHARES:
            low, high = 0.0, 1.0
        margin = 0.05 * (high - low)
        fig.update_yaxes(range=[low - margin, high + margin], zeroline=True, zerolinecolor="#555555", row=row)
        shown: set[str] = set()
        for col, name in enumerate(names, start=1):
            here = pick(chosen, environment=name)
            steps = steps_of(here)
            for metric, concept in metrics.items():
                of = pick(here, metric=metric).sort_values("step")
                x = [steps.index(step) for step in of["step"]]
                draw_trace(fig, of, x, _LOOKS[concept], row, col, legend, metric not in shown)
                shown |= {metric} if len(of) else set()
            if not here["metric"].isin(metrics).any():
                text = dict(mode="text", text=["not measured"], textfont=dict(size=13, color="#777777"))
                at = dict(x=[(len(steps) - 1) / 2], y=[(low + high) / 2], row=row, col=col)
                fig.add_scatter(showlegend=False, hoverinfo="skip", **text, **at)
            step_axis(fig, steps, row, col, title=False, room=3)
            below = dict(showticklabels=row == len(rows), title="training step" if row == len(rows) else None)
            fig.update_xaxes(**below, title_font_size=13, row=row, col=col)
    return fig


@_figure(
    "Several environments, out-of-domain",
    name="environments_out_of_domain",
    table="environments",
    caption=_caption_out_of_domain,
)
def out_of_domain(frame: pd.DataFrame) -> go.Figure:
    """`environments` of the out-of-domain split."""
    return environments(frame, split="out_of_domain")
