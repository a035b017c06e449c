"""Estimates with intervals: how one is written, its side of a value, its change over checkpoints.

>>> estimate(dict(value=0.42, low=0.38, high=0.46))
'0.42 [0.38, 0.46]'
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

#: Numbers that are 0 but for rounding.
_NOTHING = 1e-9


def estimate(row: Mapping, signed: bool = False) -> str:
    """Value with its interval, with two decimals, or more where an end would round to 0.

    Args:
        row: value, low and high (NaN where there is no interval).
        signed: write a plus, too.
    """
    numbers = [0.0 if abs(row[name]) < _NOTHING else row[name] for name in ("value", "low", "high")]
    largest = max((abs(number) for number in numbers if pd.notna(number)), default=0.0)
    digits = 2
    if 0 < largest < 0.005:
        digits = min(5, 1 - math.floor(math.log10(largest)))
    elif (signed or numbers[1] < 0) and any(0 < abs(end) < 0.005 for end in numbers[1:]):
        digits = 3
    value, low, high = (
        f"{number:{'+' if signed else 'z'}.{digits}f}".replace("-", "−") for number in numbers
    )
    return (
        f"{value} [{low}, {high}]"
        if pd.notna(row["low"]) and pd.notna(row["high"])
        else f"{value} (no interval)"
    )


def side(row: Mapping, of: float = 0.0) -> int:
    """1 where the interval lies above `of`, -1 where it lies below, 0 where it covers it or is unknown."""
    return int(row["low"] > of) - int(row["high"] < of)


def span(values: pd.Series) -> str:
    """`3`, or `3 to 5` where the values differ; `?` where there is none."""
    low, high = values.min(), values.max()
    if pd.isna(low):
        return "?"
    return f"{int(low):,}" if low == high else f"{int(low):,} to {int(high):,}"


class Ends(NamedTuple):
    """A reading's rows at the first and last checkpoint that it has (one and the same where there is one)."""

    first: pd.Series
    last: pd.Series

    @property
    def moved(self) -> str:
        """`up`, `down` or `level` by the interval of the change; `single` or `unknown` without one.

        That interval is put together from both ends' (square and add), as if they were independent,
        which is strict for readings of the same decisions. Source: Newcombe 1998, Zou & Donner 2008.
        """
        first, last = ({name: float(row[name]) for name in ("value", "low", "high")} for row in self)
        if self.first["step"] == self.last["step"]:
            return "single"
        if any(math.isnan(number) for number in (*first.values(), *last.values())):
            return "unknown"
        change = last["value"] - first["value"]
        if change > math.hypot(last["value"] - last["low"], first["high"] - first["value"]):
            return "up"
        return (
            "down"
            if -change > math.hypot(last["high"] - last["value"], first["value"] - first["low"])
            else "level"
        )


def ends(rows: pd.DataFrame) -> Ends | None:
    """First and last checkpoint of the rows that have a value; None where there is none."""
    rows = rows.dropna(subset="value").sort_values("step", kind="stable")
    return Ends(rows.iloc[0], rows.iloc[-1]) if len(rows) else None
