"""Predictors of activations without a penalty to choose, the random labels of a control task, and the choice of a layer.

>>> found = nested_plain(fitter, [standardised(acts[:, layer]) for layer in layers], lda, acts.shape[2])
>>> probability, best = choose_layer(fitter, "lda", layers, found)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from interp.probing.logistic import Fitter, scored
from interp.stats.intervals import integer_codes


class _Shrunk:
    """Ledoit-Wolf covariance of rows known in fewer coordinates than the `width` features that they came from."""

    def __init__(self, width: int):
        self.width = width

    def fit(self, rows):
        rows = rows - rows.mean(axis=0)
        covariance = rows.T @ rows / len(rows)
        mean, square = np.trace(covariance) / self.width, (covariance**2).sum()
        spread = square - self.width * mean**2
        noise = min((((rows**2).sum(axis=1) ** 2).sum() / len(rows) - square) / len(rows), spread)
        share = noise / spread if noise > 0 else 0.0
        self.covariance_ = (1 - share) * covariance + share * mean * np.eye(len(covariance))
        return self


def lda(train, code, held_out, n_classes: int, width: int) -> Float[np.ndarray, "decision class"]:
    """Class probabilities of `held_out` rows by scikit-learn's linear discriminant with Ledoit-Wolf shrinkage.

    train, held_out: features [row, feature], perhaps rotated onto the span of the training rows (`logistic.rotated`), which
    leaves the answer as it is in all `width` features. code: classes of the training rows.
    Sources: Fisher 1936; Ledoit & Wolf 2004.
    """
    probability, present = np.zeros((len(held_out), n_classes)), np.unique(code)
    if (
        len(present) in (1, len(code)) or train.shape[1] == 0
    ):  # no spread within a class, or nothing to read: by frequency
        probability[:, present] = np.bincount(code)[present] / len(code)
        return probability
    model = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Shrunk(width)).fit(train, code)
    probability[:, present] = model.predict_proba(held_out)
    return probability


def mean_difference(train, code, held_out, n_classes: int, width: int) -> Float[np.ndarray, "decision class"]:
    """Class probabilities of `held_out` rows by their distances to the class means; for two classes, by the means' difference.

    Probabilities are the softmax of minus half the squared distances, in units of the training rows' mean squared distance to
    their own class mean: their order means something, their size (log-loss) little. train, code, held_out: as for `lda`;
    width is not read. Source: Marks & Tegmark 2023 (arXiv 2310.06824, mass-mean probing).
    """
    probability, present = np.zeros((len(held_out), n_classes)), np.unique(code)
    means = np.stack([train[code == label].mean(axis=0) for label in present])
    within = ((train - means[np.searchsorted(present, code)]) ** 2).sum(axis=1).mean()
    squared = (means**2).sum(
        axis=1
    ) - 2 * held_out @ means.T  # the row's own square is the same for all classes
    probability[:, present] = softmax(-0.5 * squared / max(within, 1e-12), axis=1)
    return probability


#: What `probes.probe` takes beside "logistic".
PLAIN = {"lda": lda, "mean_difference": mean_difference}


def nested_plain(
    fitter: Fitter, features: Sequence[Callable], predictor: Callable, width: int
) -> list[tuple[np.ndarray, list]]:
    """Held-out probabilities [decision, class] of each layer and, per job, its inner (accuracy, minus log-loss), as `Fitter.nested`.

    features: for each layer, a function such as `logistic.standardised` returns. predictor: one of PLAIN. width: d_model.
    """
    found = []
    for of_layer in features:
        whole, keys = np.zeros((len(fitter.code), fitter.n_classes)), []
        for (train, held_out), inner in zip(fitter.jobs, fitter.inner, strict=True):
            code, said = fitter.code[train], np.zeros((len(train), fitter.n_classes))
            for fit, score in inner:
                ends = of_layer(train[fit], train[score])
                said[score] = predictor(ends[0], code[fit], ends[1], fitter.n_classes, width)
            results, ends = scored(said, code), of_layer(train, held_out)
            keys.append((results["accuracy"].mean(), -results["log_loss"].mean()))
            whole[held_out] = predictor(ends[0], code, ends[1], fitter.n_classes, width)
        found.append((whole, keys))
    return found


def choose_layer(
    fitter: Fitter, name: str, layers: Sequence[int], found: Sequence[tuple]
) -> tuple[np.ndarray, list[int]]:
    """Probabilities of the layer with the best inner scores in each job, and its place in `layers`; kept in `fitter.chosen`.

    name: the `predictor` of the rows of `chosen`. found: what `Fitter.nested` or `nested_plain` returned for the layers.
    """
    picked = {(row["fold"], row["layer"]): row["C"] for row in fitter.chosen if row["predictor"] == name}
    nested, best = np.zeros((len(fitter.code), fitter.n_classes)), []
    for job, (_, held_out) in enumerate(fitter.jobs):
        best.append(max(range(len(layers)), key=lambda i: found[i][1][job]))
        layer = layers[best[job]]
        row = {"fold": job, "predictor": "nested" if name == "probe" else f"nested_{name}", "layer": layer}
        fitter.chosen.append({**row, "C": picked.get((job, layer))})
        nested[held_out] = found[best[job]][0][held_out]
    return nested, best


def control_labels(
    types: Sequence[str], code: Int[np.ndarray, "decision"], seed: int
) -> Int[np.ndarray, "decision"]:
    """A random label for each prompt type, with the class shares of `code` as far as whole types allow.

    The types are laid out in random order, each as long as it has decisions, beside the classes, each as long as it has; a type
    takes the class at its middle. types: of each decision; the first len(code) of them are those of `code`, others take labels too.
    Raises ValueError where all types would share one class. Source: Hewitt & Liang 2019 (arXiv 1909.03368), control tasks.
    """
    number, names = integer_codes(types)
    size, order = np.bincount(number), np.random.default_rng(seed).permutation(len(names))
    middle = np.empty(len(names))
    middle[order] = (np.cumsum(size[order]) - size[order] / 2) / size.sum()
    share = np.cumsum(np.bincount(code[code >= 0]))
    label = np.searchsorted(share / share[-1], middle, side="right")
    drawn = label[number]
    if len(set(drawn[: len(code)].tolist())) < 2:
        raise ValueError(
            f"{len(names)} prompt types are too few or too uneven for a control task: all would share one label."
        )
    return drawn
