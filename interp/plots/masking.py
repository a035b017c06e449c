"""Figures of the masking study: training conditions side by side, and where what they gain or lose lands.

>>> frame, provenance = read_table("figures/tables", "masking")
>>> success(frame, provenance).show()

Green is a mask of action tokens, orange and hollow the mask of as many other tokens, in every
figure here (`interp.results.condition_rows.LOOKS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots import latex
from interp.plots.caption import Caption, clause, listing, numbers, only
from interp.plots.condition_panels import (
    CONDITION_HOVER,
    K_TITLE,
    condition_axis,
    condition_numbers,
    draw_conditions,
    grid,
    marker,
    points,
)
from interp.plots.registry import figure
from interp.plots.theme import (
    BOTTOM,
    STEP_TITLE,
    draw_trace,
    facets,
    fit_values,
    step_axis,
    under,
    whisker,
    zero_line,
)
from interp.results.condition_rows import (
    LOOKS,
    PREDICTED,
    Condition,
    at_last,
    claimed,
    conditions_of,
    named,
    number,
    one,
    paper_table,
)
from interp.results.estimates import estimate, side, span
from interp.results.names import GREEN, ORANGE, SPLITS, STYLE
from interp.results.queries import need, pick, splits_of, steps_of
from interp.results.wording import WHERE, listed, sentence
from interp.stats.crossed import CLAIM
from interp.system.limits import SMALLEST

#: Metrics of the forest plot in reading order: their names in figures; every one is a share.
MECHANISM = {
    "acc_cot": "CoT action right",
    "acc_prompt": "prompt action right",
    "gap": "gap (CoT − prompt)",
    "success_cot": "games won with CoT",
    "success_prompt": "games won without",
    "prompt_reliance": "prompt reliance",
    "follow": "follows another state's trace",
    "keep": "keeps its own action",
    "patch_prompt": "patching the whole prompt",
    "patch_boundary": "patching the boundary",
    "probe_gain": "boundary probe's gain",
    "parse_cot": "CoT action parses",
    "parse_prompt": "prompt action parses",
}


_figure = partial(figure, section="masking", table="masking")
#: Contrasts that are told: levels, differences to k = 0 and to the random mask, and slopes per unit of k.
CONTRASTS = ("level", "difference", "control", "slope")


def claim(frame: pd.DataFrame) -> str:
    """What the intervals show of the claim, or why the provenance has no verdict on it."""
    verdict = str(frame.attrs.get("verdict") or "none: its provenance has no verdict")
    if verdict.startswith("none"):
        return (
            f"The claim that masking actions helps out of domain is not judged{verdict.removeprefix('none')}."
        )
    parts = [
        f"{gain(row)} against {other} ({estimate(row, signed=True)})"
        for other, row in claim_rows(frame).items()
    ]
    return f"Masking actions (k = .3), out of domain: {listed(parts)}."


def gain(row: pd.Series) -> str:
    """What a difference's interval shows of a gain; below `SMALLEST` also how large it can be at most."""
    if row["high"] < 0:
        return "worse"
    if row["low"] > 0:
        return "a gain"
    return f"a gain of at most {row['high']:.3f}" if row["high"] < SMALLEST else "no gain shown"


def claim_rows(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The two differences that the claim rests on, by what they are to: both must lie above 0."""
    found = {
        name: one(frame, **CLAIM, contrast=contrast)
        for contrast, name in (("difference", "k = 0"), ("control", "the random mask"))
    }
    return {name: row for name, row in found.items() if row is not None}


def moves(frame: pd.DataFrame, condition: Condition, split: str) -> dict[str, tuple[int, pd.Series]]:
    """By reading 1 where the difference to k = 0 moved as predicted, -1 the other way, else 0; its row."""
    found = {}
    for metric in MECHANISM:
        row = one(frame, metric=metric, split=split, condition=condition.name, contrast="difference")
        if (metric, split) in PREDICTED and metric != "acc_cot" and row is not None:
            found[metric] = (side(row) * PREDICTED[metric, split], row)
    return found


def moved_further(frame: pd.DataFrame, condition: Condition, split: str) -> dict[str, int | None]:
    """Of what moved as predicted: 1 beyond the random mask, -1 short of it, 0 neither, or None."""
    further = {}
    for metric, (moved, _) in moves(frame, condition, split).items():
        if moved == 1:
            row = one(frame, metric=metric, split=split, condition=condition.name, contrast="control")
            further[metric] = None if row is None else side(row) * PREDICTED[metric, split]
    return further


def _told_apart(frame: pd.DataFrame, metric: str) -> dict[str, str]:
    """Of each split, the conditions whose difference to k = 0 excludes 0."""
    by_split = {}
    for split in splits_of(frame):
        rows = at_last(frame, metric=metric, contrast="difference", split=split).dropna(
            subset=["low", "high"]
        )
        if len(rows):
            apart = rows[(rows["low"] > 0) | (rows["high"] < 0)].set_index("condition")["value"]
            names = [
                f"{condition.title} ({'higher' if apart[condition.name] > 0 else 'lower'})"
                for condition in conditions_of(frame)
                if condition.name in apart.index
            ]
            by_split[split] = listed(names) or f"none of {len(rows)}"
    return by_split


def _numbers(
    frame: pd.DataFrame, *metrics: str, contrasts: Sequence[str] = CONTRASTS, **where: object
) -> pd.DataFrame:
    """Levels, differences and slopes of these readings at the first and last checkpoint read."""
    rows = only(pick(frame, **where), metric=metrics, contrast=contrasts).drop(columns="seed")
    titles = {condition.name: condition.title for condition in conditions_of(frame)}
    return numbers(rows, {"condition": lambda name: titles.get(name, "–"), "metric": MECHANISM.get})


def _size(frame: pd.DataFrame, metric: str = "") -> str:
    """Games and seeds, and what intervals of one seed do not say."""
    rows = only(frame, contrast=CONTRASTS[:3])
    rows = at_last(rows, metric=metric) if metric else rows
    alone = (pick(frame, contrast="level")["seeds"] == 1).any()
    over = "over games alone for one seed" if alone else "over games and seeds"
    seeds = f"{span(rows['seeds'])} seed{'' if rows['seeds'].max() == 1 else 's'}"
    return f"n = {span(rows['n_groups'])} games, {seeds}; 95 % intervals {over}, uncorrected."


def _success_caption(frame: pd.DataFrame) -> Caption:
    drawn = f"CoT accuracy, differences (dashed: {number(SMALLEST)}, the least that matters), games won."
    return Caption(claim(frame), drawn, _size(frame, "acc_cot"), _numbers(frame, "acc_cot", "success_cot"))


def _dose_caption(frame: pd.DataFrame) -> Caption:
    words = {1: "rises with k", -1: "falls with k", 0: "has no clear slope in k"}
    message = []
    for metric, name in (("acc_cot", "CoT accuracy"), ("acc_prompt", "prompt accuracy")):
        slopes = {
            split: one(frame, metric=metric, contrast="slope", split=split) for split in splits_of(frame)
        }
        verdicts = {split: words[side(row)] for split, row in slopes.items() if row is not None}
        message += [sentence(f"{name} {clause(verdicts)}")] if verdicts else []
    drawn = (
        "Accuracy of both modes against k, the share of examples whose action is unsupervised. "
        "Hollow: random masks."
    )
    return Caption(
        " ".join(message),
        drawn,
        _size(frame, "acc_cot"),
        _numbers(frame, "acc_cot", "acc_prompt", contrasts=("level", "slope")),
    )


def _difference_caption(frame: pd.DataFrame, metric: str, name: str, drawn: str) -> Caption:
    apart = _told_apart(frame, metric)
    message = (
        f"{name} is told apart from k = 0 for: {clause(apart)}."
        if apart
        else "There is nothing to compare with k = 0."
    )
    if apart and all(text.startswith("none") for text in apart.values()):
        message = f"No condition's {name[0].lower()}{name[1:]} is told apart from k = 0."
    return Caption(message, drawn, _size(frame, metric), _numbers(frame, metric))


_gap_caption = partial(
    _difference_caption,
    metric="gap",
    name="Gap",
    drawn="CoT − prompt action by condition, and its paired differences.",
)
_reliance_caption = partial(
    _difference_caption,
    metric="prompt_reliance",
    name="Prompt reliance",
    drawn="Every condition beside k = 0 (black) over checkpoints.",
)


def _claimed(frame: pd.DataFrame) -> Condition:
    """`claimed`; raises ValueError where no condition masks actions."""
    condition = claimed(frame)
    if condition is None:
        raise ValueError("the table has no condition that masks actions.")
    return condition


def _mechanism_caption(frame: pd.DataFrame) -> Caption:
    condition, counts = _claimed(frame), {}
    for split in splits_of(frame):
        found = moves(frame, condition, split)
        right, wrong = (sum(moved == kind for moved, _ in found.values()) for kind in (1, -1))
        further = sum(how == 1 for how in moved_further(frame, condition, split).values())
        if found:
            counts[split] = f"{right} of {len(found)} readings"
            counts[split] += f" ({wrong} the other way)" if wrong else ""
            counts[split] += f" ({further} beyond the random mask)" if right else ""
    message = (
        f"{condition.title} − k = 0 as predicted: {clause(counts)}."
        if counts
        else f"{condition.title}: no predicted reading was measured."
    )
    drawn = (
        "Differences in every reading. Shaded: predicted if action supervision teaches a way past the trace."
    )
    return Caption(
        message,
        drawn,
        _size(pick(frame, condition=condition.name)),
        _numbers(frame, *MECHANISM, contrasts=("difference", "control"), condition=condition.name),
    )


def _selection_caption(frame: pd.DataFrame) -> Caption:
    chosen = frame[frame["chosen"].astype(bool)].iloc[0]
    reason = (
        "the smallest share better than 0 from which the best is not told apart"
        if chosen["share"]
        else "no share is clearly better"
    )
    others = frame[frame["share"] > 0].sort_values("share")
    drawn = (
        "Each share's difference in CoT accuracy to k = 0; the greatest is too large on average, "
        "so measure it again."
    )
    size = (
        f"n = {span(others['n_groups'])} games; 95 % intervals over games and seeds, simultaneous "
        "for all shares."
    )
    table = listing(others.drop(columns=["condition", "chosen"]), {"share": number})
    return Caption(
        f"k = {number(chosen['share'])} is chosen {WHERE[chosen['split']]}: {reason}.", drawn, size, table
    )


def _table_caption(frame: pd.DataFrame) -> Caption:
    condition, split = claimed(frame), WHERE[splits_of(frame)[-1]]
    less = f"; last rows: paired differences of {condition.title}" if condition else ""
    return Caption(
        "",
        f"Training conditions at the last checkpoint{less}. Gap, reliance and followed traces are {split}.",
        _size(frame),
    )


@_figure("Does leaving actions unsupervised help?", name="masking_success", caption=_success_caption)
def success(frame: pd.DataFrame) -> go.Figure:
    """The primary outcome by condition, its differences to k = 0, and games won where they were played.

    Each training is a dot; the dashed line is the least difference that matters.
    """
    need(frame, metric="acc_cot", contrast="level")
    conditions, rows = conditions_of(frame), [("acc_cot", "level", "accuracy of CoT action", 200)]
    if len(pick(frame, metric="acc_cot", contrast="difference")):
        rows.append(("acc_cot", "difference", "difference to k = 0", 170))
    if len(pick(frame, metric="success_cot", contrast="level")):
        rows.append(("success_cot", "level", "share of games won", 170))
    fig = condition_axis(grid(splits_of(frame), [row[2:] for row in rows]), conditions)
    for row, (metric, contrast, *_) in enumerate(rows, start=1):
        draw_conditions(fig, frame, conditions, metric, contrast, row)
        if contrast == "difference":
            zero_line(fig, row)
            fig.add_hline(
                y=SMALLEST,
                row=row,
                col="all",
                line=dict(color="#888888", width=1, dash="dash"),
                layer="below",
            )
    return fig


@_figure("The conditions in numbers", name="masking_table", caption=_table_caption, latex=latex.masking_table)
def table(frame: pd.DataFrame) -> go.Figure:
    """What each condition reads, and the claimed one's differences, as in `interp.plots.latex`."""
    shown = paper_table(frame)
    heads = ["condition", *("<br>".join(part for part in column if part) for column in shown.columns)]
    fills = ["#F3F3F3" if " − " in title else "white" for title in shown.index]
    look = dict(align=["left", "right", "center"], font_size=12)
    fig = go.Figure(
        go.Table(
            columnwidth=[1.4, 0.5, *[1.12] * (len(heads) - 2)],
            header=dict(values=heads, fill_color="#EEEEEE", **look),
            cells=dict(
                values=[shown.index, *(shown[column] for column in shown)],
                fill_color=[fills],
                line_color="#CCCCCC",
                height=24,
            )
            | look,
        )
    )
    return fig.update_layout(height=72 + 24 * len(shown), margin=dict(l=8, r=8, t=8, b=8))


@_figure("More masking, more of what?", name="masking_dose", caption=_dose_caption)
def dose(frame: pd.DataFrame) -> go.Figure:
    """Accuracy of both modes against the share k whose actions are masked; random masks are hollow."""
    need(frame, metric="acc_cot", contrast="level")
    modes = ("acc_cot", "acc_prompt")
    metrics = [metric for metric in modes if len(pick(frame, metric=metric, contrast="level"))]
    conditions = [condition for condition in conditions_of(frame) if condition.kind != "only"]
    shares = sorted({condition.share for condition in conditions if condition.kind != "random_mask"})
    if len(shares) < 2:
        raise ValueError("a dose needs conditions action_mask_K of at least two shares K.")
    fig = grid(splits_of(frame), [("accuracy", 260)], bottom=BOTTOM)
    for col, split in enumerate(splits_of(frame), start=1):
        for order, metric in enumerate(metrics):
            name, colour, dash, symbol = STYLE[metric]
            rows = at_last(frame, metric=metric, split=split, contrast="level")
            for random in (False, True):
                names = [
                    condition.name
                    for condition in conditions
                    if (condition.kind == "random_mask") == random
                    and (rows["condition"] == condition.name).any()
                ]
                if not names:
                    continue
                some = rows.set_index("condition").loc[names].reset_index()
                look = points(some, f"{symbol}-open" if random else symbol, colour, 9)
                look["mode"] = "markers" if random else "lines+markers"
                fig.add_scatter(
                    x=[named(each).share + 0.012 * (order - 0.5) + 0.03 * random for each in names],
                    y=some["value"],
                    cliponaxis=False,
                    line=dict(color=colour, dash=dash, width=2.2),
                    error_y=whisker(some, colour),
                    name=f"{name}, random mask" if random else name,
                    legendgroup=f"{metric} {random}",
                    showlegend=col == 1,
                    row=1,
                    col=col,
                    **look,
                )
        fig.update_xaxes(title=K_TITLE, tickvals=shares, ticktext=[number(k) for k in shares], row=1, col=col)
    return fig


@figure(
    "Which share to mask",
    name="masking_selection",
    table="masking_selection",
    section="masking",
    caption=_selection_caption,
)
def selection(frame: pd.DataFrame) -> go.Figure:
    """Each share's difference to k = 0 with simultaneous intervals, the chosen one filled."""
    frame = need(frame).sort_values("share")
    split, metric = frame[["split", "metric"]].iloc[0]
    fig = grid([split], [(f"{STYLE[metric][0]} right, − k = 0", 230)], bottom=BOTTOM)
    for chosen, name, symbol in ((True, "chosen", "circle"), (False, "not chosen", "circle-open")):
        rows = pick(frame, chosen=chosen)
        look = points(rows, symbol, GREEN, 11) | dict(name=name, error_y=whisker(rows, GREEN))
        fig.add_scatter(x=rows["share"], y=rows["value"], row=1, col=1, **look)
    zero_line(fig, row=1)
    fig.update_xaxes(title=K_TITLE, tickvals=frame["share"], ticktext=frame["share"].map(number))
    return fig


@_figure("The gap by condition", name="masking_gap", caption=_gap_caption)
def gap(frame: pd.DataFrame) -> go.Figure:
    """The gap between the modes by condition, above its differences to k = 0."""
    need(frame, metric="gap", contrast="level")
    rows = [("gap (CoT − prompt)", 210)] + [("gap − that of k = 0", 170)] * bool(
        len(pick(frame, metric="gap", contrast="difference"))
    )
    conditions = conditions_of(frame)
    fig = condition_axis(grid(splits_of(frame), rows), conditions)
    for row, contrast in enumerate(("level", "difference")[: len(rows)], start=1):
        draw_conditions(fig, frame, conditions, "gap", contrast, row)
        zero_line(fig, row)
    return fig


@_figure("Prompt reliance by condition", name="masking_reliance", caption=_reliance_caption)
def reliance(frame: pd.DataFrame) -> go.Figure:
    """Prompt reliance over checkpoints, a column for each condition beside k = 0."""
    frame = need(frame, metric="prompt_reliance", contrast="level")
    steps, splits, conditions = steps_of(frame), splits_of(frame), conditions_of(frame)
    zero = next((condition for condition in conditions if condition.kind == "zero"), None)
    others = [condition for condition in conditions if condition != zero] or conditions
    fig = facets(len(splits), 170, 22, [condition.title for condition in others], spacing=0.014)
    seen: set[str] = set()
    for row, split in enumerate(splits, start=1):
        for col, condition in enumerate(others, start=1):
            for order, each in enumerate([zero, condition] if zero and condition != zero else [condition]):
                rows = pick(frame, split=split, condition=each.name).sort_values("step")
                shift = 0.1 * (order - 0.5) if len(steps) == 1 else 0.0
                x = [steps.index(step) + shift for step in rows["step"]]
                show, thin = each.kind not in seen, each == zero
                draw_trace(fig, rows, x, LOOKS[each.kind], row, col, "legend", show, thin)
                seen |= {each.kind} if len(rows) else set()
            step_axis(fig, steps, row, col, title=False, room=3)
        fig.update_yaxes(title=f"prompt reliance,<br>{SPLITS[split].lower()}", row=row, col=1)
    fit_values(fig, frame, ["prompt_reliance"], row=None)
    return under(fig, STEP_TITLE, 30)


@_figure("Where the gain landed", name="masking_mechanism", caption=_mechanism_caption)
def mechanism(frame: pd.DataFrame) -> go.Figure:
    """Where a gain landed: the claimed condition's differences in every reading, a column for each split."""
    condition = _claimed(frame)
    rows = pick(frame, condition=condition.name)
    rows = need(only(rows, contrast=("difference", "control"), metric=MECHANISM))
    shown, splits = [metric for metric in MECHANISM if (rows["metric"] == metric).any()], splits_of(rows)
    places = {metric: i for i, metric in enumerate(shown)}
    height = 32 * len(shown)
    fig = grid(splits, [("", height)], bottom=BOTTOM).update_layout(margin_l=222)
    last = pd.concat([at_last(rows, metric=metric) for metric in shown])
    reach = min(1.0, max(0.05, float(np.nanmax(last[["value", "low", "high"]].abs()))) * 1.06)
    looks = {
        "difference": (f"{condition.title} − k = 0", GREEN, "circle"),
        "control": (f"{condition.title} − its random mask", ORANGE, "circle-open"),
    }
    for col, split in enumerate(splits, start=1):
        predicted = [metric for metric in shown if (metric, split) in PREDICTED]
        for metric in predicted:
            y = places[metric]
            box = dict(x0=0, x1=PREDICTED[metric, split] * reach, y0=y - 0.42, y1=y + 0.42, line_width=0)
            fig.add_shape(
                type="rect",
                fillcolor="#E3F1EC",
                layer="below",
                name="side that was predicted",
                showlegend=col == 1 and metric == predicted[0],
                row=1,
                col=col,
                **box,
            )
        for order, (contrast, (name, colour, symbol)) in enumerate(looks.items()):
            some = pick(last, split=split, contrast=contrast)
            fig.add_scatter(
                x=some["value"],
                y=[places[metric] + 0.28 * (order - 0.5) for metric in some["metric"]],
                mode="markers",
                name=name,
                legendgroup=contrast,
                showlegend=col == 1 and bool(len(pick(last, contrast=contrast))),
                marker=marker(symbol, colour, 9),
                error_x=whisker(some, colour),
                customdata=condition_numbers(some, [MECHANISM[metric] for metric in some["metric"]]),
                hovertemplate=CONDITION_HOVER,
                row=1,
                col=col,
            )
        fig.update_xaxes(
            range=[-reach, reach], zeroline=True, zerolinecolor="#555555", zerolinewidth=1.2, row=1, col=col
        )
    names = [MECHANISM[metric] for metric in shown]
    fig.update_yaxes(
        range=[len(shown) - 0.45, -0.55], tickvals=list(places.values()), ticktext=names, ticks=""
    )
    return under(fig, "difference, all readings being shares (1 = everything)", 30)
