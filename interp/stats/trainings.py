"""A reading of several trainings of one recipe: its mean, with an interval over episodes and seeds.

>>> episodes = np.repeat(np.arange(40), 2)
>>> rng = np.random.default_rng(0)
>>> right = [rng.random(80) < 0.6 for seed in range(5)]      # of each training, whether decisions are right
>>> pooled = over_trainings(right, [episodes] * 5, most=1)
>>> pooled.seeds, pooled.over
(5, 'episodes x seeds')

Trainings read the same episodes, so both are crossed (`interp.stats.crossed`). A training may lack a
decision, as where its trace never closed. Its value is what it reads alone: the mean over its own decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.stats.changes import INNER, OUTER
from interp.stats.crossed import crossed
from interp.stats.intervals import Columns, Groups, OfMeans, integer_codes, wilson

#: Fewer trainings than these say too little of others: their interval is over episodes alone.
FEWEST = 3
#: What an interval is over.
BOTH, EPISODES = "episodes x seeds", "episodes"
#: Relative step of a numerical derivative.
_STEP = 1e-6


@dataclass(frozen=True)
class OverTrainings:
    """The mean over trainings with two intervals (NaN: not known), and each training's own value.

    `low` to `high` covers 95 %, `low_90` to `high_90` 90 %. `n` counts the decisions of all trainings,
    `n_groups` the episodes.
    """

    values: tuple[float, ...]
    value: float
    low: float
    high: float
    low_90: float
    high_90: float
    n: int
    n_groups: int
    over: str
    """What the intervals are over: BOTH, or EPISODES where there are fewer than FEWEST trainings."""

    @property
    def seeds(self) -> int:
        """How many trainings there are."""
        return len(self.values)


def over_trainings(
    columns: Sequence[Columns],
    groups: Sequence[Groups],
    function: OfMeans | None = None,
    most: float | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    draws: int = 2000,
    seed: int = 0,
) -> OverTrainings:
    """The mean over trainings of a reading, with its interval over episodes x seeds.

    A function of means is taken to first order around each training's means. Where nothing differs between
    episodes there is nothing to resample, which is no certainty: the intervals then reach as far as Wilson's
    bound on the share of episodes that could differ, times `most`; they are NaN where that is not given, and
    where a training's value is not defined.

    Args:
        columns: of each training the numbers of its decisions, [decision] or [decision, k].
        groups: of each training the episode of each decision.
        function: from means [..., k] to values [...]; by default the mean of single numbers.
        most: by how much one decision can differ.
        bounds: the least and the greatest value that there can be.
        draws, seed: as in `interp.stats.crossed.crossed`.

    Raises:
        ValueError: for no training, one without decisions, and lengths that differ.

    Source: Owen 2007; the delta method (Efron & Tibshirani 1993).
    """
    if not columns or len(columns) != len(groups) or any(len(each) == 0 for each in columns):
        raise ValueError(
            f"There are {len(columns)} trainings with {[len(each) for each in columns]} decisions, and "
            f"episodes of {len(groups)}: give at least one training, each with decisions and their episodes."
        )
    names = [str(name) for each in groups for name in each]
    codes, episodes = integer_codes(names)
    ends = np.cumsum([len(each) for each in groups])
    by_training = np.split(codes, ends[:-1])
    read = [_linear(each, code, len(episodes), function) for each, code in zip(columns, by_training)]
    values = tuple(value for value, _ in read)
    summed = np.stack([row for _, row in read])
    alone = len(values) < FEWEST
    table = summed.mean(axis=0, keepdims=True) if alone else summed
    value = float(np.mean(values))
    outer, inner = (_ends(table, value, most, bounds, draws, seed, level) for level in (OUTER, INNER))
    return OverTrainings(
        values, value, *outer, *inner, len(names), len(episodes), EPISODES if alone else BOTH
    )


def _linear(
    columns: Columns, code: np.ndarray, episodes: int, function: OfMeans | None
) -> tuple[float, Float[np.ndarray, "episode"]]:
    """One training's value, and a number for each episode whose mean it is; an episode that it lacks has it.

    Episodes weigh as many as they have decisions.
    """
    numbers = np.asarray(columns, dtype=float)
    numbers = numbers[:, None] if numbers.ndim == 1 else numbers
    if len(numbers) != len(code):
        raise ValueError(f"There are {len(numbers)} decisions and {len(code)} episodes: give one for each.")
    mean = numbers.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(mean[0] if function is None else function(mean))
        slope = np.ones(1) if function is None else _gradient(function, mean)
    above = np.bincount(code, weights=(numbers - mean) @ slope, minlength=episodes)
    return value, value + above * episodes / len(numbers)


def _gradient(function: OfMeans, mean: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    step = _STEP * np.maximum(1, np.abs(mean))
    up, down = function(mean + np.diag(step)), function(mean - np.diag(step))
    return (up - down) / (2 * step)


def _ends(
    table: Float[np.ndarray, "seed episode"],
    value: float,
    most: float | None,
    bounds: tuple[float, float],
    draws: int,
    seed: int,
    level: float,
) -> tuple[float, float]:
    """The interval's ends."""
    episodes = table.shape[1]
    if not np.isfinite(table).all() or episodes < 2:
        return np.nan, np.nan
    if np.ptp(table) < 1e-12:
        if most is None:
            return np.nan, np.nan
        reach = most * wilson(0, episodes, level)[1]
        low, high = value - reach, value + reach
    else:
        low, high = (float(end) for end in crossed(table, draws, seed, level))
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))
