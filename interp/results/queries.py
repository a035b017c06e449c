"""Rows picked out of tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.results.names import SPLITS


def steps_of(frame: pd.DataFrame) -> list[int]:
    """Training steps of a table's checkpoints, in order."""
    return sorted(int(step) for step in frame["step"].unique())


def splits_of(frame: pd.DataFrame) -> list[str]:
    """Splits that a table has, in-domain first."""
    return [split for split in SPLITS if (frame["split"] == split).any()]


def label_of(frame: pd.DataFrame) -> str:
    """The label that a figure shows by default.

    It is the table's first one where that is of the reference action, else the eventual action's target or
    verb where there is one, else the first one.
    """
    first = frame["label"].iloc[0]
    eventual = (name for name in ("eventual_target", "eventual_verb") if (frame["label"] == name).any())
    return first if first.startswith("reference_") else next(eventual, first)


def pick(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows whose columns equal the values given."""
    if not where:
        return frame
    masks = [(frame[column] == value).to_numpy() for column, value in where.items()]
    return frame[np.logical_and.reduce(masks)]


def need(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows whose columns equal the values given; ValueError where there is none."""
    rows = pick(frame, **where)
    if rows.empty:
        wanted = ", ".join(f"{column} = {value}" for column, value in where.items())
        raise ValueError(f"the table has no rows with {wanted}." if wanted else "the table has no such rows.")
    return rows


def with_places(frame: pd.DataFrame) -> pd.DataFrame:
    """Table `patching` with columns `mode`, `at` and `metric`, filled in for tables of older releases."""
    return frame.assign(
        **{
            name: value
            for name, value in dict(mode="prompt", at="boundary", metric="difference").items()
            if name not in frame
        }
    )
