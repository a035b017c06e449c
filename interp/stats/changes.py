"""Changes of a reading between two checkpoints, paired on the same decisions, and verdicts on claims.

>>> before, after = [False] * 40, [True] * 30 + [False] * 10            # right at the base, and later
>>> moved = change(before, after, groups=range(40), most=1)
>>> moved.value, sided(moved)
(0.75, 'supported')
>>> equivalent(change(before, before, groups=range(40), most=1), margin=0.05)  # too few to exclude a change
'open'

Two levels' intervals say little of a difference: what a checkpoint gets right is mostly what the base got
right. So the decisions that both read are resampled together, whole episodes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from interp.stats.intervals import Estimate, Groups, OfMeans, cluster_bootstrap, wilson

#: What may be said of a claim.
SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "open"
#: A part of an effect that is smaller than this share of the other counts as none.
NO_PART = 0.05
#: Coverage of the interval that is shown, and of the one that two one-sided tests at 5 % read.
OUTER, INNER = 0.95, 0.90


@dataclass(frozen=True)
class Change:
    """A reading before and after, and its change with two intervals (NaN: not known).

    `low` to `high` covers 95 %. `low_90` to `high_90` covers 90 %: it lies within a margin where two
    one-sided tests at 5 % each exclude a change as large as the margin.
    """

    before: float
    after: float
    value: float
    low: float
    high: float
    low_90: float
    high_90: float
    n: int
    n_groups: int


def change(
    before: Shaped[np.ndarray, "decision *k"] | Sequence[float],
    after: Shaped[np.ndarray, "decision *j"] | Sequence[float],
    groups: Groups,
    function: OfMeans | None = None,
    most: float | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Change:
    """Estimate how a reading changes, from both checkpoints' numbers at the same decisions.

    Where every decision changes alike, as where none does, there is nothing to resample, which is no
    certainty: the intervals then reach as far as Wilson's bound on the share of clusters that could differ,
    times `most`; they are NaN where that is not given.

    Args:
        before, after: numbers or truth values of each decision.
        groups: the cluster (episode) of each decision.
        function: from means [..., k] to values [...]; by default the mean of single numbers.
        most: by how much one decision can change (1 for a rate, 2 for a gap of two rates; None: not bounded).
        draws, seed: as in `interp.stats.intervals.cluster_bootstrap`, which raises.

    Raises:
        ValueError: for other decisions before than after, and for none.

    Source: Field & Welsh 2007 (cluster bootstrap); Schuirmann 1987 (two one-sided tests).
    """
    first, second = (np.asarray(values, dtype=float) for values in (before, after))
    if len(first) != len(second):
        raise ValueError(
            f"There are {len(first)} decisions before and {len(second)} after: a change is of the same ones."
        )
    if function is None:
        columns, of_means = second - first, None
        ends = float(first.mean()), float(second.mean())
        alike = bool(len(columns)) and float(np.ptp(columns)) == 0
    else:
        columns, of_means = np.hstack([first, second]), difference(function, first.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = float(function(first.mean(axis=0))), float(function(second.mean(axis=0)))
        alike = np.array_equal(first, second)
    outer, inner = (
        cluster_bootstrap(columns, groups, of_means, draws, seed, level) for level in (OUTER, INNER)
    )
    if alike:
        outer, inner = _of_clusters(outer, most, OUTER), _of_clusters(inner, most, INNER)
    return Change(*ends, outer.value, outer.low, outer.high, inner.low, inner.high, outer.n, outer.n_groups)


def difference(function: OfMeans, k: int) -> OfMeans:
    """The function of the columns from `k` on, minus that of those before."""

    def of_means(mean: Float[np.ndarray, "*draw columns"]) -> Float[np.ndarray, "*draw"]:
        return function(mean[..., k:]) - function(mean[..., :k])

    return of_means


def _of_clusters(estimate: Estimate, most: float | None, level: float) -> Estimate:
    """A change that is the same at every decision, with the interval that the number of clusters allows."""
    if most is None or estimate.n_groups < 2:
        return replace(estimate, low=np.nan, high=np.nan)
    bound = most * wilson(0, estimate.n_groups, level)[1]
    low, high = (float(np.clip(estimate.value + side * bound, -most, most)) for side in (-1, 1))
    return replace(estimate, low=low, high=high)


def part_share(means: Float[np.ndarray, "*draw 2"]) -> Float[np.ndarray, "*draw"]:
    """The first part's share of two, from their means, as prompt reliance is the direct effect's share.

    Not defined (NaN) where one of the two is negative. One that is below 0 by less than 5 % of the other
    counts as 0: a part that is none comes out on either side of it.
    """
    slack = NO_PART * np.abs(means).max(axis=-1, keepdims=True)
    parts = np.where((means < 0) & (means >= -slack), 0.0, means)
    defined = (parts >= 0).all(axis=-1) & (parts.sum(axis=-1) > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, parts[..., 0] / parts.sum(axis=-1), np.nan)


def sided(moved: Change, predicted: int = 1) -> str:
    """The verdict on a claim that a reading moves to one side, by the 95 % interval.

    Args:
        predicted: 1 where the claim says that it rises, -1 where it says that it falls.
    """
    side = predicted * (int(moved.low > 0) - int(moved.high < 0))
    return {1: SUPPORTED, -1: CONTRADICTED, 0: OPEN}[side]


def equivalent(moved: Change, margin: float) -> str:
    """The verdict on a claim that a reading does not rise.

    Supported where the 90 % interval lies within the margin on both sides (so two one-sided tests exclude a
    change as large as it), contradicted where the 95 % interval lies above 0, open otherwise. A rise that is
    shown and shown to be smaller than the margin supports the claim. A fall beyond the margin is open: the
    reading did not rise, and did not stay.
    """
    if -margin < moved.low_90 and moved.high_90 < margin:
        return SUPPORTED
    return CONTRADICTED if moved.low > 0 else OPEN
