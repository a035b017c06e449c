"""Predictors without a penalty to choose, the random labels of a control task, and the choice of a layer.

>>> results = nested_plain(fitter, [standardised(acts[:, layer]) for layer in layers], lda, acts.shape[2])
>>> probability, best = choose_layer(fitter, "lda", layers, results)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from interp.probing.logistic import Features, Fitter, Held, Rows
from interp.stats.intervals import integer_codes

#: From training rows, their classes, held-out rows, the number of classes and of original features to
#: probabilities.
Predictor = Callable[
    [Float[np.ndarray, "_ _"], Int[np.ndarray, "_"], Float[np.ndarray, "_ _"], int, int],
    Float[np.ndarray, "_ class"],
]


class _LedoitWolf:
    """scikit-learn's LedoitWolf of all `width` features, from rows in the coordinates of their span.

    In those it costs far less, and the coordinates that are left out share in the shrinkage all the same.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def fit(self, rows: Float[np.ndarray, "row feature"]) -> _LedoitWolf:
        rows = rows - rows.mean(axis=0)
        covariance = rows.T @ rows / len(rows)
        mean, square = np.trace(covariance) / self.width, (covariance**2).sum()
        spread = square - self.width * mean**2
        noise = min((((rows**2).sum(axis=1) ** 2).sum() / len(rows) - square) / len(rows), spread)
        share = noise / spread if noise > 0 else 0.0
        self.covariance_ = (1 - share) * covariance + share * mean * np.eye(len(covariance))
        return self


def lda(
    train: Float[np.ndarray, "row feature"],
    code: Int[np.ndarray, "row"],
    held_out: Float[np.ndarray, "held feature"],
    n_classes: int,
    width: int,
) -> Float[np.ndarray, "held class"]:
    """Class probabilities of `held_out` by scikit-learn's linear discriminant with Ledoit-Wolf shrinkage.

    Args:
        train, held_out: features, perhaps rotated onto the span of the training rows (`logistic.rotated`),
            which leaves the answer as it is in all `width` features.
        code: classes of the training rows.

    Source: Fisher 1936; Ledoit & Wolf 2004.
    """
    probability, present = np.zeros((len(held_out), n_classes)), np.unique(code)
    if len(present) in (1, len(code)) or train.shape[1] == 0:
        # There is no spread within a class, or no feature: by frequency.
        probability[:, present] = np.bincount(code)[present] / len(code)
        return probability
    model = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_LedoitWolf(width))
    probability[:, present] = model.fit(train, code).predict_proba(held_out)
    return probability


def mean_difference(
    train: Float[np.ndarray, "row feature"],
    code: Int[np.ndarray, "row"],
    held_out: Float[np.ndarray, "held feature"],
    n_classes: int,
    width: int,
) -> Float[np.ndarray, "held class"]:
    """Class probabilities of `held_out` by their distances to the class means.

    Probabilities are the softmax of minus half the squared distances, in units of the training rows' mean
    squared distance to their own class mean: their order means something, their size (log-loss) little.

    Args:
        train, code, held_out: as for `lda`; `width` is not read.

    Source: Marks & Tegmark 2023 (arXiv 2310.06824, mass-mean probing).
    """
    probability, present = np.zeros((len(held_out), n_classes)), np.unique(code)
    means = np.stack([train[code == label].mean(axis=0) for label in present])
    within = ((train - means[np.searchsorted(present, code)]) ** 2).sum(axis=1).mean()
    # The row's own square is the same for all classes.
    squared = (means**2).sum(axis=1) - 2 * held_out @ means.T
    probability[:, present] = softmax(-0.5 * squared / max(within, 1e-12), axis=1)
    return probability


#: What `probes.probe` takes beside "logistic".
PLAIN: dict[str, Predictor] = {"lda": lda, "mean_difference": mean_difference}


def nested_plain(
    fitter: Fitter, features: Sequence[Features], predictor: Predictor, width: int
) -> list[Held]:
    """What a predictor gives at each layer, as `Fitter.nested` does.

    Args:
        features: for each layer, a function such as `logistic.standardised` returns.
        predictor: one of PLAIN.
        width: d_model.
    """

    def at(layer: Features) -> Held:
        def predict(train: Rows, held_out: Rows) -> Float[np.ndarray, "_ class"]:
            fitted, scored = layer(train, held_out)
            return predictor(fitted, fitter.code[train], scored, fitter.n_classes, width)

        return fitter.predicted(predict)

    return [at(layer) for layer in features]


def choose_layer(
    fitter: Fitter, name: str, layers: Sequence[int], results: Sequence[Held]
) -> tuple[Float[np.ndarray, "decision class"], list[int]]:
    """Probabilities of the layer with the best inner scores in each job, and its index in `layers`.

    The choice is kept in `fitter.chosen`.

    Args:
        name: the `predictor` of the rows of `chosen`.
        results: what `Fitter.nested` or `nested_plain` returned for the layers.
    """
    picked = {(row["fold"], row["layer"]): row["C"] for row in fitter.chosen if row["predictor"] == name}
    nested, best = np.zeros((len(fitter.code), fitter.n_classes)), []
    for job, (_, held_out) in enumerate(fitter.jobs):
        best.append(max(range(len(layers)), key=lambda i: results[i].inner[job]))
        layer = layers[best[job]]
        row = {"fold": job, "predictor": "nested" if name == "probe" else f"nested_{name}", "layer": layer}
        fitter.chosen.append({**row, "C": picked.get((job, layer))})
        nested[held_out] = results[best[job]].probability[held_out]
    return nested, best


def control_labels(
    types: Sequence[str], code: Int[np.ndarray, "decision"], seed: int
) -> Int[np.ndarray, "every_decision"]:
    """A random label for each prompt type, with the class shares of `code` as far as whole types allow.

    The types are laid out in random order, each as long as it has decisions, beside the classes, each as long
    as it has; a type takes the class at its middle.

    Args:
        types: of each decision; the first len(code) of them are those of `code`, others take labels too.

    Raises:
        ValueError: where all types would share one class.

    Source: Hewitt & Liang 2019 (arXiv 1909.03368), control tasks.
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
            f"{len(names)} prompt types are too few or too uneven for a control task: "
            "all would share one label."
        )
    return drawn
