"""Scores of class probabilities, and the table rows that hold them with intervals by episode.

>>> weights = bootstrap_weights(episodes, draws=1000)
>>> percentile(auroc(p, code, np.ones((1, len(p))))[0], auroc(p, code, weights), len(p), n_episodes)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from interp.probing.logistic import scored
from interp.stats.intervals import (
    Estimate,
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
#: (predictor, layer)
Key = tuple[str, int]


def macro_f1(
    probability: Float[np.ndarray, "decision class"],
    code: Int[np.ndarray, "decision"],
    weights: Num[np.ndarray, "draw decision"],
    fold: Int[np.ndarray, "decision"] | None = None,
) -> Float[np.ndarray, "draw"]:
    """F1 of the most probable class, mean over the classes that occur among labels or predictions of a draw.

    Args:
        code: class of each decision; -1, a label that no predictor can predict, is a class of its own.
        weights: of each decision in each draw (`stats.bootstrap_weights`).
        fold: not read, since hits and misses add up over folds.

    Source: scikit-learn's f1_score(average="macro"); Forman & Scholz 2010 (counts pooled over folds).
    """
    columns = probability.shape[1] + 1
    true, predicted = (np.eye(columns)[each] for each in (code, probability.argmax(axis=1)))
    both, total = weights @ (true * predicted), weights @ (true + predicted)
    each = np.divide(2 * both, total, out=np.zeros_like(both), where=total > 0)
    return each.sum(axis=1) / (total > 0).sum(axis=1)


def auroc(
    probability: Float[np.ndarray, "decision class"],
    code: Int[np.ndarray, "decision"],
    weights: Num[np.ndarray, "draw decision"],
    fold: Int[np.ndarray, "decision"] | None = None,
) -> Float[np.ndarray, "draw"]:
    """Area under the ROC curve of each class against the rest, mean over the classes.

    The area is the weighted share of (decision of the class, other decision) pairs in the right order, ties
    half. Only pairs of one fold are compared: folds have predictors of their own, and frequencies that run
    against the held-out labels, which puts uninformed predictors below 0.5 when pairs cross folds. It is NaN
    in draws in which no class has both kinds.

    Args:
        code: class of each decision, -1 for a label that no predictor can predict.
        weights: of each decision in each draw (`stats.bootstrap_weights`).
        fold: by default all decisions are of one.

    Source: Hanley & McNeil 1982; Forman & Scholz 2010 (folds apart).
    """
    by_decision = np.ascontiguousarray(weights.T, dtype=float)
    if fold is None:
        folds = [np.arange(len(code))]
    else:
        folds = [np.flatnonzero(fold == each) for each in np.unique(fold)]
    areas = []
    for label in np.unique(code[code >= 0]):
        area = pairs = np.zeros(len(weights))
        for rows in folds:
            hit, score = code[rows] == label, probability[rows, label]
            own, others = by_decision[rows[hit]], by_decision[rows[~hit]]
            in_order = (1 + np.sign(score[hit][:, None] - score[~hit])) / 2
            area = area + (own * (in_order @ others)).sum(axis=0)
            pairs = pairs + own.sum(axis=0) * others.sum(axis=0)
        areas.append(np.divide(area, pairs, out=np.full_like(area, np.nan), where=pairs > 0))
    with warnings.catch_warnings():  # a draw without any class to rank is NaN by design
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(areas, axis=0)


#: Scores that are no means over decisions: functions of probabilities, codes, weights [draw, decision] and
#: folds.
RESAMPLED = {"macro_f1": macro_f1, "auroc": auroc}
METRICS = (*PER_DECISION, *RESAMPLED)


@dataclass(frozen=True)
class Reading:
    """Held-out probabilities of a predictor, of one or more repeats, and the codes it was to predict."""

    repeats: Sequence[Float[np.ndarray, "decision class"]]
    code: Int[np.ndarray, "decision"]


def score_rows(
    read: Mapping[Key, Reading],
    split: Shaped[np.ndarray, "decision"],
    group: Int[np.ndarray, "decision"],
    fold: Int[np.ndarray, "decision"],
    metrics: Sequence[str] = METRICS,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[list[dict], list[dict]]:
    """Table rows of every predictor, of each probe's gain over `best_control` and of its selectivity.

    Intervals of a split in several folds are widened for the predictors that they share
    (`stats.cross_fitted`).

    Args:
        read: what each predictor gave; a score is the mean over its repeats.
        split, group, fold: of each decision.
        metrics: some of METRICS.

    Returns:
        The rows; and split, metric, layer and the p-value over layers (`stats.max_statistic`) of gains in
        scores that are means over decisions.
    """
    rows: list[dict] = []
    corrected: list[dict] = []
    for name in dict.fromkeys(split.tolist()):
        here = split == name
        part = _Part(here, group[here], fold[here], draws, seed, bool(set(metrics) & set(RESAMPLED)))
        for metric in metrics:
            scores = {key: part.scores(metric, reading) for key, reading in read.items()}
            gains = dict(_gains(metric, scores))
            if metric in PER_DECISION and part.n_groups > 1:
                by_layer = {
                    layer: gain for (of, layer), gain in gains.items() if of == "gain" and layer != NESTED
                }
                p = part.p_values(list(by_layer.values()))
                corrected += [
                    {"split": name, "metric": metric, "layer": layer, "p": float(each)}
                    for layer, each in zip(by_layer, p, strict=True)
                ]
            for (predictor, layer), values in (scores | gains).items():
                reading = read.get((predictor, layer))
                # A rate of exactly 0 or 1 is no certainty (`cluster_bootstrap`).
                rate = metric == "accuracy" and reading is not None and len(reading.repeats) == 1
                estimate = part.estimate(metric, values.astype(bool) if rate else values)
                row = {"layer": layer, "split": name, "predictor": predictor, "metric": metric}
                rows.append(row | estimate.row())
    return rows, corrected


def _gains(
    metric: str, scores: Mapping[Key, Float[np.ndarray, "_"]]
) -> Iterator[tuple[Key, Float[np.ndarray, "_"]]]:
    """Each probe's gain over the best control, positive where it is better, and its selectivity."""
    probes = {layer: values for (predictor, layer), values in scores.items() if predictor == "probe"}
    sign = PER_DECISION.get(metric, 1)
    for layer, values in probes.items():
        yield ("gain", layer), sign * (values - scores["best_control", NESTED])
    if metric == "accuracy":
        for layer, values in probes.items():
            if ("control_task", layer) in scores:
                yield ("selectivity", layer), values - scores["control_task", layer]


class _Part:
    """The decisions of one split, and how scores of them are estimated."""

    def __init__(
        self,
        here: Bool[np.ndarray, "every_decision"],
        group: Int[np.ndarray, "decision"],
        fold: Int[np.ndarray, "decision"],
        draws: int,
        seed: int,
        resampled: bool,
    ) -> None:
        self.here, self.group, self.fold = here, group, fold
        self.draws, self.seed = draws, seed
        self.n_groups = len(integer_codes(group.tolist())[1])
        self.widen = cross_fitted(len(set(fold.tolist())))  # 1 for a set that no predictor was fitted on
        self.weights = np.ones((1, len(group)))
        if resampled:  # the first draw is the data themselves
            self.weights = np.vstack([self.weights, bootstrap_weights(group, draws, seed)])

    def scores(self, metric: str, reading: Reading) -> Float[np.ndarray, "_"]:
        """A reading's score of each decision, or of each draw for scores that are no means over decisions."""
        code, repeats = reading.code[self.here], [each[self.here] for each in reading.repeats]
        if metric in PER_DECISION:
            return np.mean([scored(each, code)[metric] for each in repeats], axis=0)
        function = RESAMPLED[metric]
        return np.mean([function(each, code, self.weights, self.fold) for each in repeats], axis=0)

    def estimate(self, metric: str, values: Shaped[np.ndarray, "_"]) -> Estimate:
        if metric in PER_DECISION:
            return cluster_bootstrap(values, self.group, draws=self.draws, seed=self.seed, widen=self.widen)
        return percentile(values[0], values[1:], len(self.group), self.n_groups, widen=self.widen)

    def p_values(self, gains: Sequence[Float[np.ndarray, "decision"]]) -> Float[np.ndarray, "layer"]:
        return max_statistic(np.stack(gains, axis=1), self.group, seed=self.seed, widen=self.widen)
