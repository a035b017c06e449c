"""What the analyses' stages and tables share: a mean as columns, and a stage that says why it has nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interp.prompts.format import Prompt
from interp.stats.intervals import cluster_bootstrap


def mean_row(
    values: np.ndarray, groups: Sequence[str] | np.ndarray, seed: int, **options: Any
) -> dict[str, float]:
    """A mean with its interval over clusters, as the columns of a table; NaN of no values.

    Args:
        values: [decision], or [decision, column] for a `function` of columns' means. Those of a rate are bool
            or int: where all are equal its interval is Wilson's.
        groups: the cluster of each decision.
        seed: of the resamples.
        options: what else `cluster_bootstrap` takes.
    """
    if not len(values):
        return dict(value=np.nan, low=np.nan, high=np.nan, n=0, n_groups=0)
    return cluster_bootstrap(values, list(groups), seed=seed, **options).row()


def attempted(compute: Callable[[], dict]) -> dict:
    """What `compute` returns, and under `skipped` why it has nothing (too few decisions, one class)."""
    try:
        return dict(compute(), skipped="")
    except ValueError as problem:
        return dict(skipped=str(problem))


def twins(clean: Sequence[Prompt], corrupt: Sequence[Prompt]) -> list[list[str]]:
    """Of each pair the decision's id and the action that is right for its twin."""
    return [[a.decision.id, b.decision.reference] for a, b in zip(clean, corrupt, strict=True)]
