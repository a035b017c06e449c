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
from interp.plots.condition_panels import K_TITLE, by_condition, compared, games
from interp.plots.look import current
from interp.plots.registry import figure
from interp.plots.series import ROW, by_split, draw_estimates, draw_series, fit_estimates
from interp.plots.tabular import draw_table
from interp.plots.theme import facets, note_n
from interp.results.condition_rows import (
    PREDICTED,
    Condition,
    at_last,
    claimed,
    conditions_of,
    number,
    one,
    paper_table,
)
from interp.results.estimates import estimate, side, span
from interp.results.names import GREEN, ORANGE, SPLITS, STYLE
from interp.results.queries import need, pick, splits_of
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


#: Half an interval that covers 0 and is too wide to say anything; drawn, it would set the axis of the others.
WIDE = 0.2
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


def _not_drawn(frame: pd.DataFrame) -> str:
    """The conditions that only the table has."""
    shown = compared(frame)
    left = listed(condition.title for condition in conditions_of(frame) if condition not in shown)
    return f" Table only: {left}." if left else ""


def _success_caption(frame: pd.DataFrame) -> Caption:
    drawn = f"Dashed: {number(SMALLEST)}, the least that matters.{_not_drawn(frame)}"
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
    drawn = "Accuracy of both modes against k, the share of examples whose action is unsupervised."
    drawn += " Hollow: random masks." * any(each.kind.startswith("random") for each in compared(frame))
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
    return Caption(message, drawn + _not_drawn(frame), _size(frame, metric), _numbers(frame, metric))


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
    drawn="Each condition at the last checkpoint, and its paired differences.",
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
    wide = listed(MECHANISM[metric] for metric in too_wide(_differences(frame, condition)))
    drawn = "Shaded: the predicted side."
    drawn += f" Too wide to draw: {wide}." if wide else ""
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
    """The primary outcome by condition beside its differences; dashed: the least that matters."""
    return by_condition(frame, "acc_cot", "CoT accuracy")


@_figure("The conditions in numbers", name="masking_table", caption=_table_caption, latex=latex.masking_table)
def table(frame: pd.DataFrame) -> go.Figure:
    """What each condition reads, and the claimed one's differences, as in `interp.plots.latex`.

    In a narrow figure without intervals and numbers of trainings.
    """
    shown = paper_table(frame)
    if current().narrow:
        shown = shown.drop(columns=("", "seeds")).map(lambda cell: cell.partition(" ")[0])
        shown = shown.rename(columns={"in-domain": "in", "out-of-domain": "out"}, level=1)
    heads = [" ".join(filter(None, column)).replace("-", " ") for column in shown.columns]
    columns = {"condition": list(shown.index)} | {
        head: list(shown[column].str.replace(" [", "<br>[", regex=False))
        for head, column in zip(heads, shown, strict=True)
    }
    widths = [1.0 if head == "seeds" else 1.6 for head in columns]
    fills = ["#F3F3F3" if " − " in title else "white" for title in shown.index]
    return draw_table(columns, [2.4, *widths[1:]], ["left", "center"], fills)


@_figure("More masking, more of what?", name="masking_dose", caption=_dose_caption)
def dose(frame: pd.DataFrame) -> go.Figure:
    """Accuracy of both modes against the share k whose actions are masked; random masks are hollow."""
    need(frame, metric="acc_cot", contrast="level")
    conditions = {condition.name: condition for condition in compared(frame)}
    masks = {
        condition.share for condition in conditions.values() if condition.kind in ("zero", "action_mask")
    }
    if len(masks) < 2:
        raise ValueError("a dose needs conditions action_mask_K of at least two shares K.")
    looks = {}
    for metric in ("acc_cot", "acc_prompt"):
        name, colour, dash, symbol = STYLE[metric]
        looks[metric] = STYLE[metric]
        looks[f"{metric} random"] = (f"{name}, random mask", colour, "dot", f"{symbol}-open")
    rows = only(at_last(pick(frame, contrast="level"), metric="acc_cot"), condition=conditions)
    rows = pd.concat(
        [rows, only(at_last(frame, metric="acc_prompt", contrast="level"), condition=conditions)]
    )
    random = rows["condition"].str.startswith("random")
    rows = rows.assign(
        share=[conditions[name].share for name in rows["condition"]],
        series=rows["metric"] + np.where(random, " random", ""),
    )
    rows = rows[random | rows["condition"].str.startswith("action")]
    shares, panels = sorted(rows["share"].unique()), by_split(rows)
    fig = facets(1, 210, 20, [SPLITS[where["split"]] for where in panels])
    draw_series(fig, rows, looks, by="series", panels=panels, along="share", order=shares)
    ticks = dict(tickvals=list(range(len(shares))), ticktext=[number(share) for share in shares])
    fig.update_xaxes(title=K_TITLE, range=[-0.3, len(shares) - 0.7], **ticks)
    fig.update_yaxes(title="accuracy", row=1, col=1)
    return note_n(fig, games(rows))


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
    looks = {
        True: ("chosen", GREEN, "solid", "circle"),
        False: ("not chosen", GREEN, "solid", "circle-open"),
    }
    order = {share: f"k = {number(share)}" for share in frame["share"]}
    fig = facets(1, ROW * len(order), 20, [SPLITS[split]])
    draw_estimates(fig, frame, looks, by="chosen", panels=[dict(split=split)], along="share", order=order)
    fit_estimates(fig, frame)
    fig.update_xaxes(title=f"{STYLE[metric][0]} right: difference to k = 0")
    return note_n(fig, f"{games(frame[frame['share'] > 0])}; {K_TITLE}")


@_figure("The gap by condition", name="masking_gap", caption=_gap_caption)
def gap(frame: pd.DataFrame) -> go.Figure:
    """The gap between the modes by condition, beside its differences."""
    return by_condition(frame, "gap", "gap (CoT − prompt)")


@_figure("Prompt reliance by condition", name="masking_reliance", caption=_reliance_caption)
def reliance(frame: pd.DataFrame) -> go.Figure:
    """Prompt reliance by condition at the last checkpoint, beside its differences."""
    return by_condition(frame, "prompt_reliance", "prompt reliance")


@_figure("Where the gain landed", name="masking_mechanism", caption=_mechanism_caption)
def mechanism(frame: pd.DataFrame) -> go.Figure:
    """Where a gain landed: the claimed condition's differences in every reading, a panel for each split.

    Shaded: the side that was predicted. Readings in `too_wide` are left to the table.
    """
    condition = _claimed(frame)
    rows = _differences(frame, condition)
    wide = too_wide(rows)
    rows = need(rows[~rows["metric"].isin(wide)])
    order = {metric: name for metric, name in MECHANISM.items() if (rows["metric"] == metric).any()}
    panels = by_split(rows)
    looks = {
        "difference": (f"{condition.title} − k = 0", GREEN, "solid", "circle"),
        "control": (f"{condition.title} − its random mask", ORANGE, "solid", "circle-open"),
    }
    fig = facets(1, ROW * len(order), 24, [SPLITS[where["split"]] for where in panels])
    draw_estimates(fig, rows, looks, by="contrast", panels=panels, along="metric", order=order)
    reach = max(0.05, float(np.nanmax(rows[["value", "low", "high"]].abs()))) * 1.06
    for col, where in enumerate(panels, start=1):
        for place, metric in enumerate(order):
            if side := PREDICTED.get((metric, where["split"])):
                ends = dict(x0=0, x1=side * reach, y0=place - 0.45, y1=place + 0.45)
                shade = dict(fillcolor="#E3F1EC", line_width=0, layer="below")
                fig.add_shape(type="rect", row=1, col=col, **ends, **shade)
    fit_estimates(fig, rows, (-reach, reach))
    fig.update_xaxes(title="difference (all readings are shares)")
    return note_n(fig, games(rows))


def _differences(frame: pd.DataFrame, condition: Condition) -> pd.DataFrame:
    """One condition's differences to k = 0 and to its random mask, each reading at its last checkpoint."""
    rows = pick(frame, condition=condition.name)
    rows = need(only(rows, contrast=("difference", "control"), metric=MECHANISM))
    return rows[rows["step"] == rows.groupby("metric")["step"].transform("max")]


def too_wide(rows: pd.DataFrame) -> list[str]:
    """Readings with an interval that covers 0 and says less than `WIDE` either way, by their metric."""
    open_ = (rows["low"] < 0) & (rows["high"] > 0) & (rows["high"] - rows["low"] > 2 * WIDE)
    return [metric for metric in MECHANISM if metric in set(rows.loc[open_, "metric"])]
