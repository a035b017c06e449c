"""Linear probes that ship with their controls.

`probe` asks whether an action can be read off activations, at every layer, and by how much more than off the text alone.

>>> result = probe(acts, labels, episodes, prompts=texts, previous=previous_actions)
>>> table = result.table()
>>> table[(table.reader == "gain") & (table.layer == NESTED)]     # the headline: probe minus the best control without activations

Not supported: difference of means, LDA, control tasks, MDL, transfer between checkpoints, acts of more than one site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.sparse import issparse
from scipy.special import softmax
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from interp.stats import cluster_bootstrap, integer_codes

#: The `layer` of the nested choice and of every reader that has no layer of its own.
NESTED = -1
#: Readers of no activation: the gain is over the best of them.
CONTROLS = ("majority", "previous_action", "tfidf", "prompt_length")
SPLITS = ("in_domain", "out_of_domain")
#: Rows of TF-IDF have unit norm, standardised activations a norm of sqrt(d_model): equal room to fit needs a larger C.
TEXT_C = (1.0, 10.0, 100.0)
INNER_FOLDS = 3
SHUFFLES = 3
MAX_ITER = 1000
TOLERANCE = 1e-4
#: Probabilities are floored here, so a label never seen in training costs 6.9 nats, not infinity.
FLOOR = 1e-3

Features = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ProbeResult:
    """Probe and control scores with all that is needed to judge them. Rows: first set, then the out-of-domain set."""

    rows: tuple[dict, ...]
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    split: np.ndarray
    """`in_domain` or `out_of_domain` per decision."""
    fold: Int[np.ndarray, "decision"]
    """The fold in which a decision was held out; -1 out of domain."""
    predicted: dict[tuple[str, int], np.ndarray]
    """(reader, layer) to the held-out label predicted for each decision."""
    chosen: tuple[dict, ...]
    """Per training set (`fold`, -1 for out of domain) and reader: the C, and for the nested choice the layer."""
    best_control: dict[tuple[str, str], str]
    """(split, metric) to the control that the gain is over."""
    unseen: dict[str, int]
    """Split to the number of decisions whose label was not in their training set (all count as errors)."""
    n_unconverged: int
    """Final fits that stopped at the iteration limit."""
    seed: int
    folds: int
    draws: int

    def table(self) -> pd.DataFrame:
        """Tidy scores: layer, split, reader, metric, value, low, high, n, n_groups."""
        return pd.DataFrame(self.rows)

    def diagnostics(self) -> dict:
        """Everything but the scores and the predictions, ready for JSON."""
        return {
            "seed": self.seed, "folds": self.folds, "draws": self.draws, "layers": list(self.layers),
            "n_classes": len(self.classes), "classes": list(self.classes), "unseen": dict(self.unseen),
            "n_unconverged": self.n_unconverged, "chosen": [dict(row) for row in self.chosen],
            "best_control": {f"{split} {metric}": name for (split, metric), name in self.best_control.items()},
        }  # fmt: skip


def probe(
    acts: Float[np.ndarray, "decision layer d_model"],
    labels: Sequence[str],
    groups: Sequence,
    *,
    prompts: Sequence[str] | None = None,
    previous: Sequence[str] | None = None,
    test: tuple | None = None,
    folds: int = 5,
    C: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
    draws: int = 1000,
    layers: Sequence[int] | None = None,
) -> ProbeResult:
    """Read `labels` off `acts` by multinomial logistic regression at each layer, with controls on the same grouped folds.

    C (per layer) and the layer (reported as layer -1) are chosen by grouped inner folds of the training set: highest accuracy,
    then lowest log-loss, then smallest C and lowest layer. Features are standardised on the training set.

    acts: activations, layer 0 the embedding output; or an object whose `.values` is [decision, site, layer, d_model] with one site.
    labels: the action (class) of each decision. groups: its episode, which never spans training and test.
    prompts: prompt texts, for the controls `tfidf` (words and word pairs) and `prompt_length` (log of characters).
    previous: label of the action before (any string at the first step), for the control `previous_action`.
    test: (acts, labels, groups, prompts, previous) of an out-of-domain set, scored by readers fitted on all of the first set.
    folds: outer folds. C: inverse penalties to choose from (`tfidf` has its own: TEXT_C). draws: bootstrap resamples.
    layers: indices into the layer axis to probe; by default all.

    Readers: `probe` at each layer; `embedding` (the probe at layer 0); `majority`, `previous_action`, `tfidf`, `prompt_length`;
    `shuffled`, the probe refitted at the chosen layer and C on labels permuted among the training decisions, mean of SHUFFLES
    permutations; `gain`, the probe minus the best of the controls that read no activation. That control is the best one on the
    very decisions scored, which favours the control, so the gain is conservative. Metrics: accuracy, and log_loss in nats with
    probabilities floored at FLOOR; a gain in log_loss is control minus probe, so that positive is better in both.
    Intervals resample episodes, paired for gains; they hold the fitted probes fixed.

    Labels absent from a training set count as errors, and their number is kept in `unseen`.
    Raises ValueError for lengths or shapes that differ, NaN activations, a single class, too few episodes, and episodes that are
    in both sets. Sources: Alain & Bengio 2016 (linear probes), Hewitt & Liang 2019 (a probe is read against controls).
    """
    first = _checked("the first set", acts, labels, groups, prompts, previous)
    sets = [first] if test is None else [first, _checked("the test set", *test)]
    _check_pair(sets)
    n = len(first["labels"])
    joined = {name: None if first[name] is None else np.concatenate([each[name] for each in sets]) for name in first}
    layers = tuple(range(joined["acts"].shape[1])) if layers is None else tuple(layers)
    for layer in layers:
        if not 0 <= layer < joined["acts"].shape[1]:
            raise ValueError(f"There is no layer {layer}: acts has layers 0 to {joined['acts'].shape[1] - 1}.")
    grid = tuple(sorted(float(c) for c in C))
    if not layers or not grid or grid[0] <= 0:
        raise ValueError("layers and C must not be empty, and every C must be positive.")

    classes, group = np.unique(first["labels"]), integer_codes(joined["groups"].tolist())[0]
    if len(classes) < 2:
        raise ValueError(f"All {n} labels are {classes[0]!r}: a probe needs at least two classes.")
    n_groups = len(set(group[:n].tolist()))
    if folds < 2 or n_groups < max(folds, 4):
        raise ValueError(f"{n_groups} episodes cannot give {folds} folds with grouped folds inside: need folds >= 2 and at least max(folds, 4) episodes.")
    index = {label: i for i, label in enumerate(classes)}
    code = np.array([index.get(label, -1) for label in joined["labels"]])
    jobs = outer_splits(group[:n], folds, seed)
    if len(sets) == 2:
        jobs.append((np.arange(n), np.arange(n, len(code))))
    fold = np.full(len(code), -1)
    for number, (_, held_out) in enumerate(jobs[:folds]):
        fold[held_out] = number

    readers: dict[tuple[str, int], np.ndarray] = {}
    chosen: list[dict] = []
    with threadpool_limits(1):
        fitter = _Fitter(code, group, len(classes), jobs, seed)
        fits = [fitter.nested(_standardised(joined["acts"][:, layer]), grid) for layer in layers]
        nested = np.zeros_like(fits[0][0])
        shuffled = np.zeros((SHUFFLES, *nested.shape))
        rng = np.random.default_rng(seed)
        for job, (train, held_out) in enumerate(jobs):
            best = max(range(len(layers)), key=lambda i: fits[i][2][job])
            c = fits[best][1][job]
            nested[held_out] = fits[best][0][held_out]
            ends = _standardised(joined["acts"][:, layers[best]])(train, held_out)
            for repeat in shuffled:
                repeat[held_out] = fitter.fit(*ends, rng.permutation(code[train]), (c,))[0]
            name = {"fold": job if job < folds else -1}
            chosen += [{**name, "reader": "probe", "layer": layer, "C": fit[1][job]} for layer, fit in zip(layers, fits)]
            chosen += [{**name, "reader": "nested", "layer": layers[best], "C": c}]
        readers |= {("probe", layer): fit[0] for layer, fit in zip(layers, fits)} | {("probe", NESTED): nested}
        if 0 in layers:
            readers["embedding", 0] = readers["probe", 0]
        readers["majority", NESTED] = fitter.conditional(np.zeros(len(code), dtype=int))
        if joined["previous"] is not None:
            readers["previous_action", NESTED] = fitter.conditional(integer_codes(joined["previous"].tolist())[0])
        if joined["prompts"] is not None:
            length = np.log1p([[len(text)] for text in joined["prompts"]])
            for name, features, cs in (("tfidf", _tfidf(joined["prompts"]), TEXT_C), ("prompt_length", _standardised(length), grid)):
                readers[name, NESTED], picked, _ = fitter.nested(features, cs)
                chosen += [{"fold": job if job < folds else -1, "reader": name, "layer": NESTED, "C": c} for job, c in enumerate(picked)]

    split = np.array(SPLITS)[(np.arange(len(code)) >= n).astype(int)]
    scores = {key: _scores(probability, code) for key, probability in readers.items()}
    repeats = [_scores(probability, code) for probability in shuffled]
    scores["shuffled", NESTED] = {metric: np.mean([each[metric] for each in repeats], axis=0) for metric in repeats[0]}
    rows, best_control = _rows(scores, split, group, draws, seed)
    unseen = dict.fromkeys(SPLITS[: len(sets)], 0)
    for train, held_out in jobs:
        unseen[split[held_out[0]]] += int((~np.isin(code[held_out], code[train])).sum())
    predicted = {key: classes[probability.argmax(axis=1)] for key, probability in readers.items()}
    return ProbeResult(
        tuple(rows), tuple(classes.tolist()), layers, split, fold, predicted, tuple(chosen), best_control, unseen, fitter.n_unconverged, seed, folds, draws
    )


def outer_splits(groups: Int[np.ndarray, "decision"], folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of each fold; every episode is held out once, whole. Raises ValueError for fewer episodes than folds."""
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(groups, groups=groups))


def fit_logistic(features: Float[np.ndarray, "decision feature"], code: Int[np.ndarray, "decision"], grid: Sequence[float]):
    """Multinomial logistic regression with an L2 penalty, for each C of `grid`, each fit starting from the one before.

    The optimum is that of scikit-learn's LogisticRegression (for two classes, of its softmax form, which is its binary form at
    2 C); it is reached in fewer steps because every feature is scaled by the root of its approximate curvature inside the
    solver, which works best on orthogonal features.

    features: one row per decision. code: classes 0 to K - 1, all present. grid: inverse penalties.
    Returns weights [C, feature, class], bias [C, 1, class] and the number of fits that stopped at MAX_ITER.
    """
    n, d = features.shape
    n_classes = code.max() + 1
    weights, unconverged = np.zeros((len(grid), d + 1, n_classes)), 0
    target, padded = np.eye(n_classes)[code], np.hstack([features, np.ones((n, 1))])
    power = (padded**2).mean(axis=0)
    start = weights[0]
    for c, out in zip(grid, weights):
        penalty = np.append(np.full(d, 1 / (c * n)), 0.0)
        root = np.sqrt(power / n_classes + penalty)[:, None]
        scaled, shrink = padded / root.T, penalty[:, None] / root**2
        scaled_t = np.ascontiguousarray(scaled.T) / n

        def loss(flat):
            v = flat.reshape(d + 1, n_classes)
            logit = scaled @ v
            logit -= logit.max(axis=1, keepdims=True)
            of_label = (logit * target).sum(axis=1)
            np.exp(logit, out=logit)
            total = logit.sum(axis=1, keepdims=True)
            value = (np.log(total[:, 0]) - of_label).mean() + 0.5 * (shrink * v * v).sum()
            return value, (scaled_t @ (logit / total - target) + shrink * v).ravel()

        found = minimize(loss, (start * root).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITER, "gtol": TOLERANCE, "ftol": 1e-15})
        out[:] = start = found.x.reshape(d + 1, n_classes) / root
        unconverged += int(found.nit >= MAX_ITER)
    return weights[:, :-1], weights[:, -1:], unconverged


class _Fitter:
    """Fits on each job's training rows and predicts its held-out rows; knows labels and episodes, not what is read."""

    def __init__(self, code, group, n_classes, jobs, seed):
        self.code, self.group, self.n_classes, self.jobs, self.seed = code, group, n_classes, jobs, seed
        self.n_unconverged = 0

    def fit(self, train, held_out, code, grid) -> Float[np.ndarray, "C decision class"]:
        """Class probabilities of the held-out features for each C."""
        probability = np.zeros((len(grid), len(held_out), self.n_classes))
        present, local = np.unique(code, return_inverse=True)
        weights, bias, unconverged = fit_logistic(train, local, grid)
        probability[:, :, present] = softmax(held_out @ weights + bias, axis=2)
        self.n_unconverged += unconverged
        return probability

    def nested(self, features: Features, grid):
        """Held-out probabilities [decision, class], and per job the chosen C and its inner (accuracy, minus log-loss)."""
        probability = np.zeros((len(self.code), self.n_classes))
        chosen, inner_score = [], []
        for train, held_out in self.jobs:
            inner = np.zeros((len(grid), len(train), self.n_classes))
            for fit, score in outer_splits(self.group[train], min(INNER_FOLDS, len(set(self.group[train]))), self.seed):
                inner[:, score] = self.fit(*features(train[fit], train[score]), self.code[train[fit]], grid)
            results = [_scores(each, self.code[train]) for each in inner]
            keys = [(each["accuracy"].mean(), -each["log_loss"].mean()) for each in results]
            best = max(range(len(grid)), key=keys.__getitem__)
            probability[held_out] = self.fit(*features(train, held_out), self.code[train], (grid[best],))[0]
            chosen.append(grid[best])
            inner_score.append(keys[best])
        return probability, chosen, inner_score

    def conditional(self, given: Int[np.ndarray, "decision"]) -> Float[np.ndarray, "decision class"]:
        """P(label | given) by counting in the training rows; the label's overall frequency counts as one more decision."""
        probability = np.zeros((len(self.code), self.n_classes))
        for train, held_out in self.jobs:
            counts = np.zeros((given.max() + 1, self.n_classes))
            np.add.at(counts, (given[train], self.code[train]), 1)
            counts += counts.sum(axis=0) / len(train)
            probability[held_out] = (counts / counts.sum(axis=1, keepdims=True))[given[held_out]]
        return probability


def _standardised(values: Float[np.ndarray, "decision feature"]) -> Features:
    def features(train, held_out):
        mean, scale = values[train].mean(axis=0), values[train].std(axis=0)
        scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf)  # a constant feature says nothing: it becomes 0
        return _rotated((values[train] - mean) / scale, (values[held_out] - mean) / scale)

    return features


def _tfidf(texts) -> Features:
    # Counting learns nothing from the data, so it is done once; vocabulary and idf are those of the training rows.
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts).tocsr()

    def features(train, held_out):
        known = np.flatnonzero(np.asarray(counts[train].sum(axis=0)).ravel())
        weigh = TfidfTransformer().fit(counts[train][:, known])
        return _rotated(weigh.transform(counts[train][:, known]), weigh.transform(counts[held_out][:, known]))

    return features


def _rotated(train, held_out) -> tuple[np.ndarray, np.ndarray]:
    """The same rows in the orthonormal basis of the training rows' principal axes, without the axes they do not reach.

    The penalised optimum lies in the training rows' span and the penalty does not change under rotation: predictions are the same.
    """
    wide = train.shape[0] < train.shape[1]
    gram = _dense(train @ train.T if wide else train.T @ train)
    power, axes = np.linalg.eigh(gram)
    keep = power > 1e-12 * max(power[-1], 1e-300)
    axes = axes[:, keep] / (np.sqrt(power[keep]) if wide else 1)
    return (gram @ axes, _dense(held_out @ train.T) @ axes) if wide else (train @ axes, held_out @ axes)


def _dense(matrix):
    return matrix.toarray() if issparse(matrix) else matrix


def _scores(probability: Float[np.ndarray, "decision class"], code: Int[np.ndarray, "decision"]) -> dict[str, np.ndarray]:
    of_label = np.where(code >= 0, probability[np.arange(len(code)), code], 0.0)
    return {"accuracy": (probability.argmax(axis=1) == code).astype(float), "log_loss": -np.log(np.maximum(of_label, FLOOR))}


def _rows(scores, split, group, draws, seed) -> tuple[list[dict], dict[tuple[str, str], str]]:
    """Table rows of every reader, and of the gain of each probe over the best control of the split and metric."""
    rows, best_control = [], {}
    for name in dict.fromkeys(split.tolist()):
        here = split == name
        for metric, sign in (("accuracy", 1), ("log_loss", -1)):
            controls = [control for control in CONTROLS if (control, NESTED) in scores]
            best = max(controls, key=lambda control: sign * scores[control, NESTED][metric][here].mean())
            best_control[name, metric] = best
            gains = {("gain", layer): {metric: sign * (score[metric] - scores[best, NESTED][metric])} for (reader, layer), score in scores.items() if reader == "probe"}
            for (reader, layer), score in (scores | gains).items():
                estimate = cluster_bootstrap(score[metric][here], group[here], draws=draws, seed=seed)
                rows.append({"layer": layer, "split": name, "reader": reader, "metric": metric, **estimate.row()})
    return rows, best_control


def _checked(name, acts, labels, groups, prompts=None, previous=None) -> dict[str, np.ndarray | None]:
    """One set as arrays over the same decisions. Raises ValueError with the set, the argument and the decision at fault."""
    values = acts.values if hasattr(acts, "values") and not callable(acts.values) else acts
    values = np.asarray(values)
    if values.ndim == 4:
        if values.shape[1] != 1:
            raise ValueError(f"acts of {name} hold {values.shape[1]} sites: a probe reads one, so select it first.")
        values = values[:, 0]
    if values.ndim != 3:
        raise ValueError(f"acts of {name} must be [decision, layer, d_model], not of shape {values.shape}.")
    arrays = {"labels": labels, "groups": groups, "prompts": prompts, "previous": previous}
    for argument, column in arrays.items():
        if column is not None and len(column) != len(values):
            raise ValueError(f"acts of {name} have {len(values)} decisions but {argument} has {len(column)}: give one per decision.")
    for argument in ("labels", "prompts"):
        missing = [] if arrays[argument] is None else [i for i, value in enumerate(arrays[argument]) if not isinstance(value, str)]
        if missing:
            raise ValueError(f"{argument} of {name} must be strings; decision {missing[0]} has {arrays[argument][missing[0]]!r} ({len(missing)} such).")
    bad = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(bad):
        raise ValueError(f"acts of {name} are not finite at decision {bad[0][0]}, layer {bad[0][1]} ({len(bad)} such places): check the capture.")
    columns = {key: None if column is None else np.array([*column, None], dtype=object)[:-1] for key, column in arrays.items()}
    return {"acts": values.astype(float), **columns}


def _check_pair(sets: list[dict]) -> None:
    if len(sets) == 1:
        return
    first, second = sets
    if first["acts"].shape[1:] != second["acts"].shape[1:]:
        raise ValueError(f"The sets differ in [layer, d_model]: {first['acts'].shape[1:]} and {second['acts'].shape[1:]}.")
    if len(second["acts"]) == 0:
        raise ValueError("The test set holds no decisions: leave test out instead.")
    for argument in ("prompts", "previous"):
        if (first[argument] is None) != (second[argument] is None):
            raise ValueError(f"{argument} is given for one set only: give it for both or for neither.")
    shared = set(first["groups"].tolist()) & set(second["groups"].tolist())
    if shared:
        raise ValueError(f"{len(shared)} episodes are in both sets (one is {next(iter(shared))!r}): an out-of-domain set must share none.")
