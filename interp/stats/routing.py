"""Acting at once or thinking first: accuracy against generated tokens, arrays only (docs/methods.md 2.7).

>>> ways = Ways(right=np.array([[1, 1], [0, 1]]), tokens=np.array([[5, 40], [5, 60]]))    # at once, thinking
>>> score, tokens = ways.routed(np.array([True, False]))         # at once at the first decision alone
>>> score.tolist(), tokens.tolist()
([1.0, 1.0], [5.0, 60.0])

A router acts at once where its confidence is at least a threshold, which is set on other episodes than those
it is used on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from interp.stats.intervals import Groups, cluster_codes


class Ways(NamedTuple):
    """What both ways of acting do at the same decisions: column 0 at once, column 1 after thinking."""

    right: Shaped[np.ndarray, "decision 2"]
    """Whether the action is right."""
    tokens: Shaped[np.ndarray, "decision 2"]
    """Tokens that are generated."""

    def routed(
        self, at_once: Shaped[np.ndarray, " decision"]
    ) -> tuple[Float[np.ndarray, " decision"], Float[np.ndarray, " decision"]]:
        """Score and tokens of each decision; an `at_once` between 0 and 1 is the chance of it."""
        share = np.stack([at_once, 1.0 - at_once], axis=1)
        return (self.right * share).sum(axis=1), (self.tokens * share).sum(axis=1)

    def part(self, rows: Int[np.ndarray, "_"]) -> Ways:
        """Some of the decisions."""
        return Ways(self.right[rows], self.tokens[rows])


def folds_of(groups: Groups, folds: int, seed: int) -> list[Int[np.ndarray, "_"]]:
    """Decisions of each fold, whole episodes; raises ValueError for fewer episodes than folds."""
    codes, names = cluster_codes(groups)
    if len(names) < folds:
        raise ValueError(f"{folds} folds need as many episodes, and there are {len(names)}.")
    fold = np.random.default_rng(seed).permutation(len(names)) % folds
    return [np.flatnonzero(fold[codes] == number) for number in range(folds)]


def at_share(
    confidence: Float[np.ndarray, " decision"], share: float, folds: Sequence[Int[np.ndarray, "_"]]
) -> Bool[np.ndarray, " decision"]:
    """Where to act at once so that about a share of the decisions does; thresholds are of the other folds."""

    def threshold(rows: Int[np.ndarray, "_"]) -> float:
        return _quantile(confidence[rows], share)

    return _cross_fitted(confidence, folds, threshold)


def as_good(
    confidence: Float[np.ndarray, " decision"], ways: Ways, folds: Sequence[Int[np.ndarray, "_"]]
) -> Bool[np.ndarray, " decision"]:
    """Where to act at once by `threshold_as_good`, which is set on the other folds."""
    return _cross_fitted(confidence, folds, lambda rows: threshold_as_good(confidence[rows], ways.part(rows)))


def threshold_as_good(confidence: Float[np.ndarray, " decision"], ways: Ways) -> float:
    """The lowest threshold at which these decisions are no less often right than after thinking.

    Infinite where there is none: then every decision is thought about.
    """
    order = np.argsort(-confidence, kind="stable")
    gained = np.cumsum(ways.right[order, 0].astype(float) - ways.right[order, 1])
    sorted_confidence = confidence[order]
    # equal confidences are routed together
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    good = np.flatnonzero(last & (gained >= 0))
    return float(sorted_confidence[good[-1]]) if len(good) else np.inf


def oracle(ways: Ways, share: float) -> Bool[np.ndarray, " decision"]:
    """Where to act at once knowing what both ways give: the best that a router of this share could do.

    First where only acting at once is right, last where only thinking is; among equals where it saves the
    most tokens.
    """
    gained = ways.right[:, 0].astype(float) - ways.right[:, 1]
    saved = ways.tokens[:, 1].astype(float) - ways.tokens[:, 0]
    order = np.lexsort((-saved, -gained))
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: round(share * len(order))]] = True
    return chosen


def _quantile(confidence: Float[np.ndarray, " decision"], share: float) -> float:
    """The threshold that a share of the decisions reaches; none and all are exact, whatever the numbers."""
    count = round(share * len(confidence))
    if count in (0, len(confidence)):
        return np.inf if count == 0 else -np.inf
    return float(np.sort(confidence)[len(confidence) - count])


def _cross_fitted(
    confidence: Float[np.ndarray, " decision"],
    folds: Sequence[Int[np.ndarray, "_"]],
    threshold: Callable[[Int[np.ndarray, "_"]], float],
) -> Bool[np.ndarray, " decision"]:
    """Where confidence reaches the threshold that is set on the rows of the other folds."""
    at_once = np.zeros(len(confidence), dtype=bool)
    for number, held_out in enumerate(folds):
        others = np.concatenate([rows for other, rows in enumerate(folds) if other != number])
        at_once[held_out] = confidence[held_out] >= threshold(others)
    return at_once
