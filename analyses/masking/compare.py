"""Trainings of the masking study compared over games and seeds.

Contrasts of every metric, the verdict on the claim, and a choice of k.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from interp.results.tables import ESTIMATE_COLUMNS, read_table
from interp.stats.crossed import CLAIM, NothingShared, contrast, paired, select, slope_weights, verdict
from interp.stats.intervals import Estimate, cross_fitted
from interp.training.supervision import Supervision

from .config import FOLDS

#: What a row of items is of; every other column of the tables of decisions and games is a metric.
KEYS = ("condition", "seed", "step", "split", "game", "item")


def items(tables: Path) -> tuple[pd.DataFrame, dict[str, dict]]:
    """Rows of KEYS, metric, value and denominator of all tables of items, and those tables' provenances.

    Raises FileNotFoundError where the trainings have not been measured.
    """
    frames, made = [], {}
    if not (tables / "masking_decisions.csv").exists():
        raise FileNotFoundError(
            f"{tables} has no masking_decisions.csv to compare: the stage `measure` writes it."
        )
    for name in ("masking_decisions", "masking_games", "masking_instruments"):
        if (tables / f"{name}.csv").exists():
            frame, made[name] = read_table(tables, name)
            frames.append(frame if "metric" in frame else by_metric(frame))
    return pd.concat(frames, ignore_index=True), made


def by_metric(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each item and metric, of a table with a column for each metric; the gap is made here."""
    if {"acc_cot", "acc_prompt"} <= set(frame.columns):
        frame = frame.assign(gap=frame["acc_cot"] - frame["acc_prompt"])
    return frame.melt(KEYS, var_name="metric").assign(denominator=1.0)


def contrasts(conditions: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(contrast, condition, weights) that these conditions allow.

    They are each condition's `level`, its `difference` to k = 0, an action mask's `control` (the difference
    to the random mask of its share), and the `slope` in k.
    """
    zero, dose = Supervision().name, shares(conditions)
    for condition in conditions:
        supervision = Supervision.named(condition)
        yield "level", condition, {condition: 1}
        if condition != zero and zero in conditions:
            yield "difference", condition, {condition: 1, zero: -1}
        if supervision.control_of in conditions:
            yield "control", supervision.control_of, {supervision.control_of: 1, condition: -1}
    if len(dose) > 1:
        yield "slope", "", slope_weights(dose)


def shares(conditions: tuple[str, ...]) -> dict[str, float]:
    """k of each of the conditions that mask actions."""
    return {
        condition: s.action_mask
        for condition in conditions
        for s in [Supervision.named(condition)]
        if condition == f"action_mask_{s.action_mask:g}"
    }


def compare(frame: pd.DataFrame, seed: int = 0) -> list[dict]:
    """Rows of every contrast of every metric by checkpoint and split, and of each training (`training`).

    Contrasts whose conditions share no seed, or no item that all have a value for, are left out.

    Args:
        frame: rows of KEYS, metric, value and denominator.
        seed: of the resamples.

    Raises:
        ValueError: as `interp.stats.crossed.paired`.
    """
    rows = []
    for (step, split, metric), group in frame.groupby(["step", "split", "metric"], sort=True):
        key = dict(step=step, split=split, metric=metric)
        widen = cross_fitted(FOLDS) if (metric, split) == ("probe_gain", "in_domain") else 1.0
        for (condition, its), one in group.dropna(subset="value").groupby(["condition", "seed"]):
            estimate, n = contrast(paired(one, [condition]), {condition: 1}, seed=seed, widen=widen)
            rows.append(
                key | dict(contrast="training", condition=condition, seed=its, seeds=n, **estimate.row())
            )
        for name, condition, weights in contrasts(tuple(group["condition"].unique())):
            try:
                estimate, n = contrast(paired(group, weights), weights, seed=seed, widen=widen)
            except NothingShared:
                continue
            rows.append(key | dict(contrast=name, condition=condition, seed=-1, seeds=n, **estimate.row()))
    return rows


def primary(rows: list[dict]) -> str:
    """The verdict on the claim at the last checkpoint, or why there is none."""
    claimed = [r for r in rows if CLAIM.items() <= r.items()]
    last = max((r["step"] for r in claimed), default=None)
    estimates = {
        r["contrast"]: Estimate(*(r[c] for c in ESTIMATE_COLUMNS)) for r in claimed if r["step"] == last
    }
    if missing := [c for c in ("difference", "control") if c not in estimates]:
        return f"none: there is no {missing[0]} of {CLAIM['condition']} {CLAIM['split'].replace('_', ' ')}"
    return verdict(estimates["difference"], estimates["control"])


def selection(frame: pd.DataFrame, seed: int = 0) -> tuple[list[dict], str]:
    """The share k to train with, and a sentence that says why.

    It is chosen at the last checkpoint, out of domain where there are such decisions.
    """
    metric, split = CLAIM["metric"], CLAIM["split"]
    frame = frame[frame["metric"] == metric]
    frame = frame[frame["step"] == frame["step"].max()]
    split = split if (frame["split"] == split).any() else frame["split"].iloc[0]
    frame = frame[frame["split"] == split]
    dose = shares(tuple(frame["condition"].unique()))
    if 0 not in dose.values() or len(dose) < 2:
        return [], "no k is chosen: that needs action_mask_0 and another action mask"
    rows = [
        dict(step=frame["step"].iloc[0], split=split, metric=metric) | row
        for row in select(frame, dose, seed)
    ]
    row = next(r for r in rows if r["chosen"])
    outcome = f"{metric} {split.replace('_', ' ')}"
    if row["share"] == 0:
        return rows, f"k = 0 is chosen: no mask's {outcome} is better with an interval above 0"
    return rows, (
        f"k = {row['share']:g} is chosen: its {outcome} is {row['value']:.2f} [{row['low']:.2f}, "
        f"{row['high']:.2f}] better than that of k = 0, the smallest k from which the best is not told apart"
    )
