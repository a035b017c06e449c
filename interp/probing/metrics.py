"""Scores of class probabilities, and the table rows that hold them with intervals by episode.

>>> weights = bootstrap_weights(episodes, draws=1000)
>>> percentile(auroc(p, code, np.ones((1, len(p))))[0], auroc(p, code, weights), len(p), n_episodes)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.probing.logistic import scored
from interp.stats.intervals import (
    bootstrap_weights,
    cluster_bootstrap,
    cross_fitted,
    integer_codes,
    max_statistic,
    percentile,
)

#: The `layer` of the nested choice and of every predictor that has no layer of its own.
NESTED = -1
#: Scores that are means over decisions, with the sign in which more is better.
PER_DECISION = {"accuracy": 1, "log_loss": -1}


def macro_f1(
    probability: Float[np.ndarray, "decision class"],
    code: Int[np.ndarray, "decision"],
    weights: Float[np.ndarray, "draw decision"],
    fold: Int[np.ndarray, "decision"] | None = None,
) -> Float[np.ndarray, "draw"]:
    """F1 of the most probable class, mean over the classes that occur among labels or predictions of a draw.

    code: class of each decision; -1, a label that no predictor can predict, is a class of its own. weights: of each decision in
    each draw (see `stats.bootstrap_weights`). fold: not read, since hits and misses add up over folds.
    Sources: scikit-learn's f1_score(average="macro"); Forman & Scholz 2010 (counts pooled over folds).
    """
    columns = probability.shape[1] + 1
    true, predicted = (np.eye(columns)[each] for each in (code, probability.argmax(axis=1)))
    both, total = weights @ (true * predicted), weights @ (true + predicted)
    each = np.divide(2 * both, total, out=np.zeros_like(both), where=total > 0)
    return each.sum(axis=1) / (total > 0).sum(axis=1)


def auroc(
    probability: Float[np.ndarray, "decision class"],
    code: Int[np.ndarray, "decision"],
    weights: Float[np.ndarray, "draw decision"],
    fold: Int[np.ndarray, "decision"] | None = None,
) -> Float[np.ndarray, "draw"]:
    """Area under the ROC curve of each class against the rest, mean over the classes that a draw holds with both kinds.

    The area is the weighted share of (decision of the class, other decision) pairs in the right order, ties half. Only pairs of
    one fold are compared: folds have predictors of their own, and frequencies that run against the held-out labels, which puts
    uninformed predictors below 0.5 when pairs cross folds.

    code: class of each decision, -1 for a label that no predictor can predict. weights: of each decision in each draw (see
    `stats.bootstrap_weights`). fold: by default all decisions are of one.
    NaN in draws in which no class has both kinds. Sources: Hanley & McNeil 1982; Forman & Scholz 2010 (folds apart).
    """
    of_decision = np.ascontiguousarray(weights.T, dtype=float)
    folds = (
        [np.arange(len(code))] if fold is None else [np.flatnonzero(fold == each) for each in np.unique(fold)]
    )
    areas = []
    for label in np.unique(code[code >= 0]):
        area = pairs = np.zeros(len(weights))
        for rows in folds:
            hit, score = code[rows] == label, probability[rows, label]
            others = np.flatnonzero(~hit)[np.argsort(score[~hit])]
            below = np.vstack([np.zeros(len(weights)), np.cumsum(of_decision[rows[others]], axis=0)])
            first, last = (np.searchsorted(score[others], score[hit], side) for side in ("left", "right"))
            mine = of_decision[rows[hit]]
            area = area + (mine * (below[first] + below[last])).sum(axis=0) / 2
            pairs = pairs + mine.sum(axis=0) * below[-1]
        areas.append(np.divide(area, pairs, out=np.full_like(area, np.nan), where=pairs > 0))
    with warnings.catch_warnings():  # a draw without any class to rank is NaN by design
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(areas, axis=0)


#: Scores that are no means over decisions: functions of probabilities, codes, weights [draw, decision] and folds.
RESAMPLED = {"macro_f1": macro_f1, "auroc": auroc}
METRICS = (*PER_DECISION, *RESAMPLED)


@dataclass(frozen=True)
class Reading:
    """What a predictor said: held-out probabilities of one or more repeats, and the codes it was to find."""

    repeats: Sequence[Float[np.ndarray, "decision class"]]
    code: Int[np.ndarray, "decision"]


def score_rows(
    read: dict[tuple[str, int], Reading],
    split: np.ndarray,
    group: Int[np.ndarray, "decision"],
    fold: Int[np.ndarray, "decision"],
    metrics: Sequence[str] = METRICS,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[list[dict], list[dict]]:
    """Table rows of every predictor, of each probe's gain over `best_control` and of its selectivity.

    read: (predictor, layer) to what it said; a score is the mean over its repeats. split, group, fold: of each decision; intervals of
    a split in several folds are widened for the predictors that they share (`stats.cross_fitted`).
    metrics: some of METRICS.
    Returns the rows; and split, metric, layer and the p-value over layers (`stats.max_statistic`) of gains in scores that are means
    over decisions.
    """
    rows, corrected = [], []
    for name in dict.fromkeys(split.tolist()):
        here = split == name
        episodes = group[here]
        n, n_groups = len(episodes), len(integer_codes(episodes.tolist())[1])
        widen = cross_fitted(
            len(set(fold[here].tolist()))
        )  # 1 for a set of its own, which no predictor was fitted on
        resampled = set(metrics) & set(RESAMPLED)
        # The first draw is the data themselves.
        weights = np.vstack([np.ones(n), bootstrap_weights(episodes, draws, seed)]) if resampled else None
        for metric in metrics:
            sign, mean = PER_DECISION.get(metric, 1), metric in PER_DECISION
            column = {
                key: _column(metric, reading, here, weights, fold[here]) for key, reading in read.items()
            }
            probes = {key[1]: each for key, each in column.items() if key[0] == "probe"}
            more = {
                ("gain", layer): sign * (each - column["best_control", NESTED])
                for layer, each in probes.items()
            }
            if metric == "accuracy":
                more |= {
                    ("selectivity", layer): each - column["control_task", layer]
                    for layer, each in probes.items()
                    if ("control_task", layer) in column
                }
            layers = [layer for layer in probes if layer != NESTED]
            if mean and n_groups > 1:
                p = max_statistic(
                    np.stack([more["gain", layer] for layer in layers], axis=1),
                    episodes,
                    seed=seed,
                    widen=widen,
                )
                corrected += [
                    {"split": name, "metric": metric, "layer": layer, "p": float(each)}
                    for layer, each in zip(layers, p, strict=True)
                ]
            for (predictor, layer), each in (column | more).items():
                if mean:
                    if (
                        metric == "accuracy"
                        and (predictor, layer) in read
                        and len(read[predictor, layer].repeats) == 1
                    ):
                        each = each.astype(
                            bool
                        )  # a rate of exactly 0 or 1 is no certainty (`cluster_bootstrap`)
                    estimate = cluster_bootstrap(each, episodes, draws=draws, seed=seed, widen=widen)
                else:
                    estimate = percentile(each[0], each[1:], n, n_groups, widen=widen)
                rows.append(
                    {
                        "layer": layer,
                        "split": name,
                        "predictor": predictor,
                        "metric": metric,
                        **estimate.row(),
                    }
                )
    return rows, corrected


def _column(metric, reading, here, weights, fold) -> np.ndarray:
    """A reading's score of each decision, or for scores that are no means over decisions of each draw; mean over its repeats."""
    code = reading.code[here]
    if metric in PER_DECISION:
        return np.mean([scored(each[here], code)[metric] for each in reading.repeats], axis=0)
    return np.mean([RESAMPLED[metric](each[here], code, weights, fold) for each in reading.repeats], axis=0)
