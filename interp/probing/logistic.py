"""Logistic predictors with grouped folds: their features, and a penalty chosen inside the training rows.

>>> fitter = Fitter(code, group, n_classes, grouped_splits(group, 5, seed), seed)
>>> [(probability, inner)] = fitter.nested([("probe", 3, standardised(acts[:, 3]))], (0.01, 0.1, 1.0))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import spmatrix
from scipy.special import softmax
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.model_selection import GroupKFold

from interp.probing.solver import TOLERANCE, fit_logistic, problem_bytes

INNER_FOLDS = 3
#: Inner folds only rank C and layers, so they stop earlier.
INNER_TOLERANCE = 1e-3
#: Probabilities are floored here, so a label never seen in training costs 6.9 nats, not infinity.
FLOOR = 1e-3
#: Rows of TF-IDF have unit norm, standardised activations a norm of sqrt(d_model): equal room to fit needs a
#: larger C.
TEXT_C = (1.0, 10.0, 100.0)
#: Bytes that one batch of fits may take: on a CPU what its cache holds, on a GPU enough to keep it busy.
BUDGET = {"cpu": 32 * 2**20, "cuda": 2**30}

Rows = Int[np.ndarray, "_"]
#: Training rows and held-out rows.
Split = tuple[Rows, Rows]
#: From training rows and held-out rows to both as features [row, feature].
Features = Callable[[Rows, Rows], tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]]


class Held(NamedTuple):
    """What a predictor gives: held-out probabilities, and the inner (accuracy, -log-loss) of each job."""

    probability: Float[np.ndarray, "decision class"]
    inner: list[tuple[float, float]]


class Problem(NamedTuple):
    """One fit at several C: features of training and held-out rows, and the classes of the former."""

    train: Float[np.ndarray, "_ _"]
    held_out: Float[np.ndarray, "_ _"]
    code: Int[np.ndarray, "_"]
    grid: Sequence[float]


def grouped_splits(groups: Int[np.ndarray, "decision"], folds: int, seed: int) -> list[Split]:
    """(training rows, held-out rows) of each fold: every episode is held out once, whole.

    Raises:
        ValueError: for fewer episodes than folds.
    """
    return list(GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups))


class Fitter:
    """Fits on each job's training rows and predicts its held-out rows; it holds no features.

    Args:
        code: the class of each decision, -1 for a label that no training row has.
        group: the episode of each decision.
        jobs: training rows and held-out rows.
        seed: of the inner folds.
        device: where the fits run.
    """

    def __init__(
        self,
        code: Int[np.ndarray, "decision"],
        group: Int[np.ndarray, "decision"],
        n_classes: int,
        jobs: Sequence[Split],
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.code, self.group, self.n_classes = code, group, n_classes
        self.jobs, self.seed, self.device = jobs, seed, device
        self.chosen: list[dict] = []
        self.n_unconverged = 0
        self.inner = [
            grouped_splits(group[train], min(INNER_FOLDS, len(set(group[train]))), seed) for train, _ in jobs
        ]

    def fit(
        self, problems: Iterable[Problem], tolerance: float = TOLERANCE
    ) -> Iterator[Float[np.ndarray, "C decision class"]]:
        """Class probabilities of the held-out rows of each problem, for each C, in order.

        Problems have equally many C, and are drawn as room for them is made, so that memory stays within
        BUDGET.
        """
        budget = BUDGET.get(torch.device(self.device).type, BUDGET["cpu"])
        chunk: list[Problem] = []
        taken = 0
        for problem in problems:
            chunk.append(problem)
            taken += problem_bytes(problem.train.shape, self.n_classes * len(problem.grid))
            if taken >= budget:
                yield from self._solve(chunk, tolerance)
                chunk, taken = [], 0
        if chunk:
            yield from self._solve(chunk, tolerance)

    def _solve(
        self, chunk: Sequence[Problem], tolerance: float
    ) -> Iterator[Float[np.ndarray, "C decision class"]]:
        present, local = zip(*(np.unique(each.code, return_inverse=True) for each in chunk), strict=True)
        features, grids = [each.train for each in chunk], [each.grid for each in chunk]
        weights, bias, unconverged = fit_logistic(features, local, grids, tolerance, self.device)
        self.n_unconverged += unconverged
        for problem, w, b, classes in zip(chunk, weights, bias, present, strict=True):
            held_out = problem.held_out
            probability = np.zeros((len(w), len(held_out), self.n_classes))
            logit = held_out @ w[:, : held_out.shape[1]] + b
            probability[:, :, classes] = softmax(logit[:, :, : len(classes)], axis=2)
            yield probability

    def nested(self, predictors: Sequence[tuple[str, int, Features]], grid: Sequence[float]) -> list[Held]:
        """Fit predictors at the C that grouped folds inside each job's training rows choose.

        Args:
            predictors: (name, layer, features), features a function such as `standardised` returns; all are
                fitted together.
            grid: inverse penalties to choose from.
        """
        cells = [(predictor, job) for predictor in predictors for job in range(len(self.jobs))]
        inner = self.fit(self._inner_problems(cells, grid), INNER_TOLERANCE)
        picked = []
        for (name, layer, _), job in cells:
            train = self.jobs[job][0]
            probability = np.zeros((len(grid), len(train), self.n_classes))
            for _, score in self.inner[job]:
                probability[:, score] = next(inner)
            keys = [inner_key(of_c, self.code[train]) for of_c in probability]
            best = max(range(len(grid)), key=keys.__getitem__)
            picked.append((grid[best], keys[best]))
            self.chosen.append({"fold": job, "predictor": name, "layer": layer, "C": grid[best]})
        outer = self.fit(
            Problem(*features(*self.jobs[job]), self.code[self.jobs[job][0]], (c,))
            for ((_, _, features), job), (c, _) in zip(cells, picked, strict=True)
        )
        results = [Held(np.zeros((len(self.code), self.n_classes)), []) for _ in predictors]
        for i, (probability, (_, key)) in enumerate(zip(outer, picked, strict=True)):
            predictor, job = divmod(i, len(self.jobs))
            results[predictor].probability[self.jobs[job][1]] = probability[0]
            results[predictor].inner.append(key)
        return results

    def _inner_problems(
        self, cells: Sequence[tuple[tuple[str, int, Features], int]], grid: Sequence[float]
    ) -> Iterator[Problem]:
        for (_, _, features), job in cells:
            train = self.jobs[job][0]
            for fit, score in self.inner[job]:
                yield Problem(*features(train[fit], train[score]), self.code[train[fit]], grid)

    def predicted(self, predict: Callable[[Rows, Rows], Float[np.ndarray, "_ class"]]) -> Held:
        """What a predictor without a penalty gives: probabilities of the second rows, fitted on the first."""
        result = Held(np.zeros((len(self.code), self.n_classes)), [])
        for (train, held_out), inner in zip(self.jobs, self.inner, strict=True):
            probability = np.zeros((len(train), self.n_classes))
            for fit, score in inner:
                probability[score] = predict(train[fit], train[score])
            result.inner.append(inner_key(probability, self.code[train]))
            result.probability[held_out] = predict(train, held_out)
        return result

    def count(self, given: Int[np.ndarray, "decision"]) -> Held:
        """P(label | given) by counting in the training rows, the label's frequency as one more decision."""

        def counted(train: Rows, held_out: Rows) -> Float[np.ndarray, "_ class"]:
            counts = np.zeros((given.max() + 1, self.n_classes))
            np.add.at(counts, (given[train], self.code[train]), 1)
            counts += counts.sum(axis=0) / len(train)
            return (counts / counts.sum(axis=1, keepdims=True))[given[held_out]]

        return self.predicted(counted)


def scored(
    probability: Float[np.ndarray, "decision class"], code: Int[np.ndarray, "decision"]
) -> dict[str, Float[np.ndarray, "decision"]]:
    """Accuracy and log-loss (nats) of each decision; code -1 is a label that no predictor can predict."""
    of_label = np.where(code >= 0, probability[np.arange(len(code)), code], 0.0)
    return {
        "accuracy": (probability.argmax(axis=1) == code).astype(float),
        "log_loss": -np.log(np.maximum(of_label, FLOOR)),
    }


def inner_key(
    probability: Float[np.ndarray, "decision class"], code: Int[np.ndarray, "decision"]
) -> tuple[float, float]:
    """(accuracy, -log-loss), by which a penalty, a layer or a control is chosen."""
    scores = scored(probability, code)
    return scores["accuracy"].mean(), -scores["log_loss"].mean()


def standardised(values: Float[np.ndarray, "decision feature"]) -> Features:
    """Features that are standardised on the training rows; a constant one becomes 0."""

    def features(train: Rows, held_out: Rows) -> tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]:
        mean, scale = scaling(values[train])
        return rotated((values[train] - mean) / scale, (values[held_out] - mean) / scale)

    return features


def scaling(
    values: Float[np.ndarray, "row feature"],
) -> tuple[Float[np.ndarray, "feature"], Float[np.ndarray, "feature"]]:
    """Mean and standard deviation of each feature; infinity for one that is constant but for rounding."""
    mean, scale = values.mean(axis=0), values.std(axis=0)
    return mean, np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf)


def tfidf(texts: Sequence[str]) -> Features:
    """Features that are the TF-IDF of words and word pairs of the training rows."""
    # Counting learns nothing from other rows, so it is done once; vocabulary and idf are those of the
    # training rows.
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts).tocsr()

    def features(train: Rows, held_out: Rows) -> tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]:
        vocabulary = np.flatnonzero(np.asarray(counts[train].sum(axis=0)).ravel())
        weigh = TfidfTransformer().fit(counts[train][:, vocabulary])
        ends = (weigh.transform(counts[rows][:, vocabulary]) for rows in (train, held_out))
        return rotated(*ends)

    return features


def rotated(
    train: Float[np.ndarray, "row feature"] | spmatrix,
    held_out: Float[np.ndarray, "held feature"] | spmatrix,
) -> tuple[Float[np.ndarray, "row axis"], Float[np.ndarray, "held axis"]]:
    """The same rows along the principal axes of the training rows, without the axes that those do not reach.

    The penalised optimum lies in the training rows' span and rotation leaves the penalty alone: predictions
    are the same.
    """
    wide = train.shape[0] < train.shape[1]
    gram = _dense(train @ train.T if wide else train.T @ train)
    power, axes = np.linalg.eigh(gram)
    keep = power > 1e-12 * max(power[-1], np.finfo(float).tiny)
    axes = axes[:, keep] / (np.sqrt(power[keep]) if wide else 1)
    return (gram @ axes, _dense(held_out @ train.T) @ axes) if wide else (train @ axes, held_out @ axes)


def _dense(matrix: Float[np.ndarray, "_ _"] | spmatrix) -> Float[np.ndarray, "_ _"]:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
