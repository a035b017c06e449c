"""Logistic predictors with grouped folds: their features, and a penalty chosen inside the training rows.

>>> fitter = Fitter(code, group, n_classes, grouped_splits(group, 5, seed), seed)
>>> [(probability, inner)] = fitter.nested([("probe", 3, standardised(acts[:, 3]))], (0.01, 0.1, 1.0))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import issparse
from scipy.special import softmax
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.model_selection import GroupKFold

from interp.probing.solver import TOLERANCE, fit_logistic, problem_bytes

INNER_FOLDS = 3
#: Inner folds only rank C and layers, so they stop earlier.
INNER_TOLERANCE = 1e-3
#: Probabilities are floored here, so a label never seen in training costs 6.9 nats, not infinity.
FLOOR = 1e-3
#: Rows of TF-IDF have unit norm, standardised activations a norm of sqrt(d_model): equal room to fit needs a larger C.
TEXT_C = (1.0, 10.0, 100.0)
#: Bytes that one batch of fits may take: on a CPU what its cache holds, on a GPU enough to keep it busy.
BUDGET = {"cpu": 32 * 2**20, "cuda": 2**30}


def grouped_splits(
    groups: Int[np.ndarray, "decision"], folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of each fold: every episode is held out once, whole.

    Raises ValueError for fewer episodes than folds.
    """
    return list(GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups))


class Fitter:
    """Fits on each job's training rows and predicts its held-out rows; knows labels and episodes, not what is read."""

    def __init__(self, code, group, n_classes, jobs, seed, device="cpu"):
        self.code, self.group, self.n_classes, self.jobs, self.seed, self.device = (
            code,
            group,
            n_classes,
            jobs,
            seed,
            device,
        )
        self.chosen, self.n_unconverged = [], 0
        self.inner = [
            grouped_splits(group[train], min(INNER_FOLDS, len(set(group[train]))), seed) for train, _ in jobs
        ]

    def fit(
        self, problems: Iterable[tuple], tolerance=TOLERANCE
    ) -> Iterator[Float[np.ndarray, "C decision class"]]:
        """Class probabilities of the held-out rows of each problem, for each C, in order.

        problems: (features of training rows and of held-out rows, training codes, C), equally many C in all; drawn as room
        for them is made, so that memory stays within BUDGET.
        """
        chunk, taken = [], 0
        for problem in problems:
            chunk.append(problem)
            taken += problem_bytes(problem[0][0].shape, self.n_classes * len(problem[2]))
            if taken >= BUDGET.get(torch.device(self.device).type, BUDGET["cpu"]):
                yield from self._solve(chunk, tolerance)
                chunk, taken = [], 0
        if chunk:
            yield from self._solve(chunk, tolerance)

    def _solve(self, chunk, tolerance):
        ends, code, grids = zip(*chunk, strict=True)
        present, local = zip(*(np.unique(each, return_inverse=True) for each in code), strict=True)
        weights, bias, unconverged = fit_logistic(
            [train for train, _ in ends], local, grids, tolerance, self.device
        )
        self.n_unconverged += unconverged
        for (_, held_out), w, b, classes in zip(ends, weights, bias, present, strict=True):
            probability = np.zeros((len(w), len(held_out), self.n_classes))
            logit = held_out @ w[:, : held_out.shape[1]] + b
            probability[:, :, classes] = softmax(logit[:, :, : len(classes)], axis=2)
            yield probability

    def nested(
        self, predictors: Sequence[tuple], grid: Sequence[float]
    ) -> list[tuple[np.ndarray, list[tuple[float, float]]]]:
        """Held-out probabilities [decision, class], and per job the inner (accuracy, minus log-loss) of the C it chose.

        predictors: (name, layer, features), features a function such as `standardised` returns; all are fitted together.
        """
        cells = [(predictor, job) for predictor in predictors for job in range(len(self.jobs))]
        inner = self.fit(self._inner_problems(cells, grid), INNER_TOLERANCE)
        picked = []
        for (name, layer, _), job in cells:
            train = self.jobs[job][0]
            probability = np.zeros((len(grid), len(train), self.n_classes))
            for _, score in self.inner[job]:
                probability[:, score] = next(inner)
            results = [scored(each, self.code[train]) for each in probability]
            keys = [(each["accuracy"].mean(), -each["log_loss"].mean()) for each in results]
            best = max(range(len(grid)), key=keys.__getitem__)
            picked.append((grid[best], keys[best]))
            self.chosen.append({"fold": job, "predictor": name, "layer": layer, "C": grid[best]})
        outer = self.fit(
            (features(*self.jobs[job]), self.code[self.jobs[job][0]], (c,))
            for ((_, _, features), job), (c, _) in zip(cells, picked, strict=True)
        )
        found = [(np.zeros((len(self.code), self.n_classes)), []) for _ in predictors]
        for i, (probability, (_, key)) in enumerate(zip(outer, picked, strict=True)):
            whole, keys = found[i // len(self.jobs)]
            whole[self.jobs[i % len(self.jobs)][1]] = probability[0]
            keys.append(key)
        return found

    def _inner_problems(self, cells, grid):
        for (_, _, features), job in cells:
            train = self.jobs[job][0]
            for fit, score in self.inner[job]:
                yield features(train[fit], train[score]), self.code[train[fit]], grid

    def count(
        self, given: Int[np.ndarray, "decision"]
    ) -> tuple[Float[np.ndarray, "decision class"], list[tuple[float, float]]]:
        """P(label | given) by counting in the training rows, the label's overall frequency as one more decision; results as of `nested`."""
        probability, keys = np.zeros((len(self.code), self.n_classes)), []
        for (train, held_out), inner in zip(self.jobs, self.inner, strict=True):
            said = np.zeros((len(train), self.n_classes))
            for fit, score in inner:
                said[score] = self._counted(given, train[fit], train[score])
            results = scored(said, self.code[train])
            keys.append((results["accuracy"].mean(), -results["log_loss"].mean()))
            probability[held_out] = self._counted(given, train, held_out)
        return probability, keys

    def _counted(self, given, train, held_out):
        counts = np.zeros((given.max() + 1, self.n_classes))
        np.add.at(counts, (given[train], self.code[train]), 1)
        counts += counts.sum(axis=0) / len(train)
        return (counts / counts.sum(axis=1, keepdims=True))[given[held_out]]


def scored(
    probability: Float[np.ndarray, "decision class"], code: Int[np.ndarray, "decision"]
) -> dict[str, np.ndarray]:
    """Accuracy and log-loss of each decision; code -1 is a label that no predictor can predict."""
    of_label = np.where(code >= 0, probability[np.arange(len(code)), code], 0.0)
    return {
        "accuracy": (probability.argmax(axis=1) == code).astype(float),
        "log_loss": -np.log(np.maximum(of_label, FLOOR)),
    }


def standardised(values: Float[np.ndarray, "decision feature"]):
    """Function from (training rows, held-out rows) to both as features, standardised on the training rows."""

    def features(train, held_out):
        mean, scale = values[train].mean(axis=0), values[train].std(axis=0)
        scale = np.where(
            scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf
        )  # a constant feature says nothing: it becomes 0
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
