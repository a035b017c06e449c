"""Multinomial logistic regression with grouped folds: the solver, its features, and a penalty chosen inside the training rows.

>>> train, held_out = standardised(acts)(train_rows, held_out_rows)
>>> weights, bias, unconverged = fit_logistic(train, code[train_rows], (0.01, 0.1, 1.0))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.sparse import issparse
from scipy.special import softmax
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.model_selection import GroupKFold

INNER_FOLDS = 3
TOLERANCE, MAX_ITER = 1e-4, 1000
#: Inner folds only rank C and layers, so they stop earlier.
INNER_TOLERANCE = 1e-3
#: Probabilities are floored here, so a label never seen in training costs 6.9 nats, not infinity.
FLOOR = 1e-3


def fit_logistic(
    features: Float[np.ndarray, "decision feature"],
    code: Int[np.ndarray, "decision"],
    grid: Sequence[float],
    tolerance: float = TOLERANCE,
) -> tuple[Float[np.ndarray, "C feature class"], Float[np.ndarray, "C 1 class"], int]:
    """Multinomial logistic regression with an L2 penalty, for each C of `grid`, each fit starting from the one before.

    The optimum is that of scikit-learn's LogisticRegression (for two classes, of its softmax form: its binary form at 2 C).
    It is reached in fewer steps because the solver sees every feature scaled by the root of its approximate curvature, which
    works best on orthogonal features.

    features: one row per decision. code: classes 0 to K - 1, all present. grid: inverse penalties.
    tolerance: largest gradient entry, in the scaled features, at which a fit stops.
    Returns weights, bias and the number of fits that stopped at MAX_ITER instead.
    """
    (n, d), n_classes = features.shape, code.max() + 1
    target, padded = np.eye(n_classes)[code], np.hstack([features, np.ones((n, 1))])
    power = (padded**2).mean(axis=0)
    weights, unconverged = np.zeros((len(grid), d + 1, n_classes)), 0
    start = weights[0]
    for c, out in zip(grid, weights, strict=True):
        penalty = np.append(np.full(d, 1 / (c * n)), 0.0)
        root = np.sqrt(power / n_classes + penalty)[:, None]
        scaled, shrink = padded / root.T, penalty[:, None] / root**2
        transposed = np.ascontiguousarray(scaled.T) / n

        def loss(flat, scaled=scaled, shrink=shrink, transposed=transposed):
            v = flat.reshape(d + 1, n_classes)
            logit = scaled @ v
            logit -= logit.max(axis=1, keepdims=True)
            of_label = (logit * target).sum(axis=1)
            np.exp(logit, out=logit)
            total = logit.sum(axis=1, keepdims=True)
            value = (np.log(total[:, 0]) - of_label).mean() + 0.5 * (shrink * v * v).sum()
            return value, (transposed @ (logit / total - target) + shrink * v).ravel()

        options = {"maxiter": MAX_ITER, "gtol": tolerance, "ftol": 1e-15}
        found = minimize(loss, (start * root).ravel(), jac=True, method="L-BFGS-B", options=options)
        out[:] = start = found.x.reshape(d + 1, n_classes) / root
        unconverged += int(found.nit >= MAX_ITER)
    return weights[:, :-1], weights[:, -1:], unconverged


def grouped_splits(groups: Int[np.ndarray, "decision"], folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of each fold: every episode is held out once, whole.

    Raises ValueError for fewer episodes than folds.
    """
    return list(GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups))


class Fitter:
    """Fits on each job's training rows and predicts its held-out rows; knows labels and episodes, not what is read."""

    def __init__(self, code, group, n_classes, jobs, seed):
        self.code, self.group, self.n_classes, self.jobs, self.seed = code, group, n_classes, jobs, seed
        self.chosen, self.n_unconverged = [], 0

    def fit(self, features, code, grid, tolerance=TOLERANCE) -> Float[np.ndarray, "C decision class"]:
        """Class probabilities of the held-out rows of `features` = (training rows, held-out rows), for each C."""
        train, held_out = features
        probability = np.zeros((len(grid), len(held_out), self.n_classes))
        present, local = np.unique(code, return_inverse=True)
        weights, bias, unconverged = fit_logistic(train, local, grid, tolerance)
        probability[:, :, present] = softmax(held_out @ weights + bias, axis=2)
        self.n_unconverged += unconverged
        return probability

    def nested(self, reader, layer, features, grid):
        """Held-out probabilities [decision, class], and per job the inner (accuracy, minus log-loss) of the C it chose."""
        probability, inner_scores = np.zeros((len(self.code), self.n_classes)), []
        for job, (train, held_out) in enumerate(self.jobs):
            inner = np.zeros((len(grid), len(train), self.n_classes))
            for fit, score in grouped_splits(self.group[train], min(INNER_FOLDS, len(set(self.group[train]))), self.seed):
                ends = features(train[fit], train[score])
                inner[:, score] = self.fit(ends, self.code[train[fit]], grid, INNER_TOLERANCE)
            results = [scored(each, self.code[train]) for each in inner]
            keys = [(each["accuracy"].mean(), -each["log_loss"].mean()) for each in results]
            best = max(range(len(grid)), key=keys.__getitem__)
            probability[held_out] = self.fit(features(train, held_out), self.code[train], grid[best : best + 1])[0]
            self.chosen.append({"fold": job, "reader": reader, "layer": layer, "C": grid[best]})
            inner_scores.append(keys[best])
        return probability, inner_scores

    def count(self, given: Int[np.ndarray, "decision"]) -> Float[np.ndarray, "decision class"]:
        """P(label | given) by counting in the training rows; the label's overall frequency counts as one more decision."""
        probability = np.zeros((len(self.code), self.n_classes))
        for train, held_out in self.jobs:
            counts = np.zeros((given.max() + 1, self.n_classes))
            np.add.at(counts, (given[train], self.code[train]), 1)
            counts += counts.sum(axis=0) / len(train)
            probability[held_out] = (counts / counts.sum(axis=1, keepdims=True))[given[held_out]]
        return probability


def scored(probability: Float[np.ndarray, "decision class"], code: Int[np.ndarray, "decision"]) -> dict[str, np.ndarray]:
    """Accuracy and log-loss of each decision; code -1 is a label that no reader can predict."""
    of_label = np.where(code >= 0, probability[np.arange(len(code)), code], 0.0)
    return {"accuracy": (probability.argmax(axis=1) == code).astype(float), "log_loss": -np.log(np.maximum(of_label, FLOOR))}


def standardised(values: Float[np.ndarray, "decision feature"]):
    """Function from (training rows, held-out rows) to both as features, standardised on the training rows."""

    def features(train, held_out):
        mean, scale = values[train].mean(axis=0), values[train].std(axis=0)
        scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf)  # a constant feature says nothing: it becomes 0
        return rotated((values[train] - mean) / scale, (values[held_out] - mean) / scale)

    return features


def tfidf(texts: Sequence[str]):
    """Function from (training rows, held-out rows) to both as TF-IDF of words and word pairs, known from the training rows."""
    # Counting learns nothing from other rows, so it is done once; vocabulary and idf are those of the training rows.
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts).tocsr()

    def features(train, held_out):
        known = np.flatnonzero(np.asarray(counts[train].sum(axis=0)).ravel())
        weigh = TfidfTransformer().fit(counts[train][:, known])
        return rotated(weigh.transform(counts[train][:, known]), weigh.transform(counts[held_out][:, known]))

    return features


def rotated(train, held_out) -> tuple[np.ndarray, np.ndarray]:
    """The same rows along the principal axes of the training rows, without the axes that those do not reach.

    The penalised optimum lies in the training rows' span and rotation leaves the penalty alone: predictions are the same.
    """
    wide = train.shape[0] < train.shape[1]
    gram = _dense(train @ train.T if wide else train.T @ train)
    power, axes = np.linalg.eigh(gram)
    keep = power > 1e-12 * max(power[-1], 1e-300)
    axes = axes[:, keep] / (np.sqrt(power[keep]) if wide else 1)
    return (gram @ axes, _dense(held_out @ train.T) @ axes) if wide else (train @ axes, held_out @ axes)


def _dense(matrix) -> np.ndarray:
    return matrix.toarray() if issparse(matrix) else matrix
