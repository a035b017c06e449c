"""What the analyses' stages and tables share: a mean as columns, pairs, and a stage that says
why it has nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.prompts.format import Prompt
from interp.stats.intervals import cluster_bootstrap

from .remedies import EXCHANGED, NotApplicable

if TYPE_CHECKING:
    from .study import Study


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


def paired(study: Study, n: int) -> tuple[dict[str, list[list[Prompt]]], dict[str, Any]]:
    """By split at most `n` counterfactual pairs, clean and corrupt, and why decisions have no twin.

    Raises NotApplicable where some split has no pair.
    """
    pairs, unpaired = {}, {}
    for split in study.parts:
        *pairs[split], unpaired[split] = study.pairs_of(split, n)
    if not all(clean for clean, _ in pairs.values()):
        raise NotApplicable(f"Some split has no decision with a counterfactual twin ({unpaired})", EXCHANGED)
    return pairs, unpaired


def twins(clean: Sequence[Prompt], corrupt: Sequence[Prompt]) -> list[list[str]]:
    """Of each pair the decision's id and the action that is right for its twin."""
    return [[a.decision.id, b.decision.reference] for a, b in zip(clean, corrupt, strict=True)]
