"""The masking study's table read for figures, captions and LaTeX: names, order and looks of its conditions.

>>> frame, _ = read_table("figures/tables", "masking")
>>> [condition.title for condition in conditions_of(frame)]
['k = 0', 'k = .3', 'k = 1', 'random mask of .3']
>>> at_last(frame, metric="acc_cot", contrast="difference", condition=claimed(frame).name)
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from interp.results.names import BLACK, BLUE, GREEN, GREY, ORANGE, SPLITS
from interp.results.queries import need, pick, splits_of

#: Kind of condition, and the contrast to a random mask: name in legends, colour, dash, marker, as in
#: `interp.plots.theme.STYLE`; controls are hollow.
LOOKS = {
    "zero": ("k = 0", BLACK, "solid", "square"),
    "action_mask": ("actions masked", GREEN, "solid", "circle"),
    "random_mask": ("random mask", ORANGE, "dash", "circle-open"),
    "only": ("one part only", GREY, "dot", "diamond-open"),
    "mixture": ("other examples", BLUE, "dash", "cross"),
    "control": ("difference to the random mask of its share", ORANGE, "dash", "triangle-up-open"),
}
#: The side that the study's claim or mechanism predicts for the masked condition's difference: 1 more, -1
#: less.
PREDICTED = {("acc_cot", "out_of_domain"): 1} | {
    (metric, split): side
    for split in SPLITS
    for metric, side in (("acc_prompt", -1), ("gap", 1), ("prompt_reliance", -1), ("follow", 1))
}
_ONLY = {"action": "action only", "cot": "CoT only", "prompt": "prompt only"}
#: Conditions that differ in their examples and mask nothing: their names, before the share.
_MIXTURES = {"trace_dropout": "traces dropped", "replay": "base replayed"}
#: What a condition's examples hold: of a share of them, or of all.
_EXAMPLES = {
    "action_mask": "of actions masked",
    "random_mask": "masked at random",
    "trace_dropout": "of traces left out",
    "replay": "replay of the base",
    "action_only": "actions alone supervised",
    "cot_only": "traces alone supervised",
    "prompt_only": "no traces",
}


class Condition(NamedTuple):
    """A condition of training, by its name in tables (`interp.training.supervision.Supervision.name`)."""

    name: str
    kind: str
    """One of LOOKS."""
    share: float
    """Share of the examples in which something is unsupervised, left out or replayed."""

    @property
    def title(self) -> str:
        """Its name in sentences and tables."""
        if self.kind == "only":
            return _ONLY[self.name.removesuffix("_only")]
        if self.kind == "mixture":
            return f"{_MIXTURES[self.name.rpartition('_')[0]]}: {number(self.share)}"
        return (
            f"random mask of {number(self.share)}"
            if self.kind == "random_mask"
            else f"k = {number(self.share)}"
        )

    @property
    def words(self) -> str:
        """What its examples hold, for a reader who knows no k."""
        if self.kind == "zero":
            return "every trace kept"
        if self.kind == "only":
            return _EXAMPLES[self.name]
        return f"{100 * self.share:g} % {_EXAMPLES[self.name.rpartition('_')[0]]}"

    @property
    def tick(self) -> str:
        """Its name on an axis, on two lines where one is too long."""
        return (
            self.title.replace("mask of ", "").replace(" ", "<br>")
            if self.kind in ("only", "random_mask", "mixture")
            else self.title
        )


def number(value: float) -> str:
    """A share without its leading zero, as it is short: `.3`."""
    return f"{value:g}".removeprefix("0") or "0"


def named(name: str) -> Condition:
    """The condition of a name; raises ValueError for one that is no condition's."""
    kind, _, share = name.rpartition("_")
    if share == "only" and kind in _ONLY:
        return Condition(name, "only", 1.0)
    if kind in _MIXTURES:
        return Condition(name, "mixture", float(share))
    if kind not in ("action_mask", "random_mask"):
        raise ValueError(
            f"{name!r} is no condition of training: conditions are action_mask_K, random_mask_K, "
            f"{', '.join(f'{each}_K' for each in _MIXTURES)} and "
            f"{', '.join(f'{each}_only' for each in _ONLY)}."
        )
    return Condition(name, kind if float(share) else "zero", float(share))


def conditions_of(frame: pd.DataFrame) -> list[Condition]:
    """The conditions that a table has levels of: shares of masked actions in order, then the controls."""
    conditions = [named(name) for name in pick(frame, contrast="level")["condition"].unique()]
    return sorted(
        conditions, key=lambda condition: (list(LOOKS).index(condition.kind), condition.share, condition.name)
    )


def claimed(frame: pd.DataFrame) -> Condition | None:
    """The compared condition: k = .3, else the smallest k with a random control, else the smallest."""
    conditions = conditions_of(frame)
    controlled = {condition.share for condition in conditions if condition.kind == "random_mask"}
    masks = [condition for condition in conditions if condition.kind == "action_mask"]
    return min(
        masks,
        key=lambda condition: (condition.share != 0.3, condition.share not in controlled, condition.share),
        default=None,
    )


def at_last(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows whose columns equal the values given, of the last checkpoint that has any."""
    rows = pick(frame, **where)
    return rows[rows["step"] == rows["step"].max()]


def one(frame: pd.DataFrame, **where: object) -> pd.Series | None:
    """The row of the last checkpoint, or None."""
    rows = at_last(frame, **where)
    return rows.iloc[0] if len(rows) else None


#: Columns of the paper's table: metric, heading, and whether both splits are told; else the one that the
#: claim is about.
PAPER = (
    ("acc_cot", "CoT action", True),
    ("acc_prompt", "prompt action", True),
    ("gap", "gap", False),
    ("prompt_reliance", "prompt reliance", False),
    ("follow", "follows trace", False),
)


def paper_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What each condition reads at the last checkpoint, as text, and the compared condition's differences.

    Index: the condition, or difference. Columns: (heading, split), the first of them the number of trainings.
    What was not measured is a dash. Raises ValueError where the table has levels of none of the metrics.
    """
    need(frame[frame["metric"].isin([metric for metric, *_ in PAPER])], contrast="level")
    splits, condition = splits_of(frame), claimed(frame)
    columns = [
        (metric, heading, split)
        for metric, heading, both in PAPER
        for split in (splits if both else splits[-1:])
    ]
    columns = [column for column in columns if len(pick(frame, metric=column[0], split=column[2]))]
    rows = [(a.title, "level", a.name) for a in conditions_of(frame)]
    if condition:
        rows += [
            (f"{condition.title} − k = 0", "difference", condition.name),
            (f"{condition.title} − random", "control", condition.name),
        ]
    rows = [row for row in rows if len(pick(frame, contrast=row[1], condition=row[2]))]
    table = {
        ("", "seeds"): [str(int(pick(frame, contrast=c, condition=a)["seeds"].max())) for _, c, a in rows]
    }
    for metric, heading, split in columns:
        cells = [one(frame, metric=metric, split=split, contrast=c, condition=a) for _, c, a in rows]
        table[heading, SPLITS[split].lower()] = [
            cell(row, signed=c != "level") for row, (_, c, _) in zip(cells, rows)
        ]
    return pd.DataFrame(table, index=[title for title, *_ in rows])


def cell(row: pd.Series | None, signed: bool = False) -> str:
    """`.68 [.64, .72]`; a difference's value has its sign, and what was not measured is a dash."""
    if row is None or pd.isna(row["value"]):
        return "–"
    numbers = [f"{row['value']:{'+' if signed else ''}.2f}", *(f"{row[end]:.2f}" for end in ("low", "high"))]
    numbers = [re.sub(r"\b0\.", ".", text).replace("-", "−") for text in numbers]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if pd.notna(row["low"]) else numbers[0]
