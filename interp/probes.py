"""Linear probes that ship with their controls.

`probe` asks whether an action can be read off activations, at every layer, and by how much more than off the text alone.

>>> result = probe(acts, labels, episodes, prompts=texts, previous=previous_actions)
>>> table = result.table()
>>> table[(table.reader == "gain") & (table.layer == NESTED)]     # the headline: probe minus the best control without activations

Not supported: difference of means, LDA, control tasks, MDL, transfer between checkpoints, acts of more than one site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from interp.logistic import Fitter, grouped_splits, scored, standardised, tfidf
from interp.stats import cluster_bootstrap, integer_codes

#: The `layer` of the nested choice and of every reader that has no layer of its own.
NESTED = -1
#: Readers of no activation: the gain is over the best of them.
CONTROLS = ("majority", "previous_action", "tfidf", "prompt_length")
SPLITS = ("in_domain", "out_of_domain")
#: Rows of TF-IDF have unit norm, standardised activations a norm of sqrt(d_model): equal room to fit needs a larger C.
TEXT_C = (1.0, 10.0, 100.0)
SHUFFLES = 3


@dataclass(frozen=True)
class ProbeResult:
    """Probe and control scores, with what is needed to judge them. Decisions: the first set's, then the test set's."""

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
    """fold (-1 out of domain), reader, layer, C. Reader `nested` holds the layer chosen in each fold."""
    best_control: dict[tuple[str, str], str]
    """(split, metric) to the control that the gain is over."""
    unseen: dict[str, int]
    """Split to the number of decisions whose label was not in their training set; all count as errors."""
    n_unconverged: int
    """Fits that stopped at the iteration limit."""
    seed: int
    folds: int
    draws: int

    def table(self) -> pd.DataFrame:
        """Tidy scores: layer, split, reader, metric, value, low, high, n, n_groups."""
        return pd.DataFrame(self.rows)

    def diagnostics(self) -> dict:
        """Everything but the scores and the predictions, ready for JSON."""
        same = {name: getattr(self, name) for name in ("seed", "folds", "draws", "unseen", "n_unconverged")}
        best = {f"{split} {metric}": control for (split, metric), control in self.best_control.items()}
        lists = {"classes": list(self.classes), "layers": list(self.layers), "chosen": list(self.chosen)}
        return {**same, **lists, "n_classes": len(self.classes), "best_control": best}


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
    device: str = "cpu",
) -> ProbeResult:
    """Read `labels` off `acts` by multinomial logistic regression at each layer, with controls on the same grouped folds.

    C (per layer) and the layer (reported as layer -1) are chosen by grouped folds inside the training set: highest accuracy,
    then lowest log-loss, then smallest C and lowest layer. Features are standardised on the training set.

    acts: activations, layer 0 the embedding output; or an object whose `.values` is [decision, site, layer, d_model], one site.
    labels: the action (class) of each decision. groups: its episode, never split between training and held-out decisions.
    prompts: prompt texts, for the controls `tfidf` (words and word pairs) and `prompt_length` (log of characters).
    previous: label of the action before (any string at the first step), for the control `previous_action`.
    test: (acts, labels, groups, prompts, previous) of an out-of-domain set, scored by readers fitted on all of the first set.
    folds: outer folds. C: inverse penalties to choose from (`tfidf` has its own, TEXT_C). draws: bootstrap resamples.
    layers: indices into the layer axis to probe; by default all. device: where the fits run, in double precision.

    Readers: `probe` at each layer; `embedding` (the probe at layer 0); `majority`, `previous_action`, `tfidf`, `prompt_length`;
    `shuffled`, the probe refitted at the chosen layer and C on labels permuted among the training decisions (mean of SHUFFLES
    permutations); `gain`, the probe minus the best control that reads no activation. That control is the best one on the very
    decisions scored, which favours the control: the gain is conservative, and below 0 on pure noise. Metrics: accuracy, and
    log_loss in nats with probabilities floored at `logistic.FLOOR`; a gain in log_loss is control minus probe, so that
    positive is better in both.
    Intervals resample episodes, paired for gains, and hold the fitted readers fixed.

    Labels absent from a training set count as errors, and `unseen` says how many there were.
    Raises ValueError for lengths or shapes that differ, activations that are not finite, a single class, too few episodes, and
    episodes in both sets. Sources: Alain & Bengio 2016 (linear probes), Hewitt & Liang 2019 (a probe is read against controls).
    """
    data = [_checked("the first set", acts, labels, groups, prompts, previous)]
    if test is not None:
        data.append(_checked("the test set", *test))
        _check_pair(*data)
    n = len(data[0]["labels"])
    joined = dict(data[0])
    if test is not None:
        joined = {name: None if joined[name] is None else np.concatenate([each[name] for each in data]) for name in joined}
    acts, grid = joined["acts"], tuple(sorted(float(c) for c in C))
    layers = tuple(range(acts.shape[1])) if layers is None else tuple(int(layer) for layer in layers)
    if not layers or not set(layers) <= set(range(acts.shape[1])):
        raise ValueError(f"layers must be some of 0 to {acts.shape[1] - 1}, which acts has, not {layers}.")
    if not grid or grid[0] <= 0:
        raise ValueError(f"C must hold positive inverse penalties, not {grid}.")
    classes, group = np.unique(joined["labels"][:n]), integer_codes(joined["groups"].tolist())[0]
    if len(classes) < 2:
        raise ValueError(f"The labels of the first set hold only {classes.tolist()}: a probe needs at least two classes.")
    n_groups = len(set(group[:n].tolist()))
    if folds < 2 or n_groups < max(folds, 4):
        raise ValueError(f"{n_groups} episodes do not allow {folds} folds: need folds >= 2 and at least max(folds, 4) episodes.")

    index = {label: i for i, label in enumerate(classes)}
    code = np.array([index.get(label, -1) for label in joined["labels"]])
    jobs = grouped_splits(group[:n], folds, seed)
    fold = np.full(len(code), -1)
    for number, (_, held_out) in enumerate(jobs):
        fold[held_out] = number
    if test is not None:
        jobs.append((np.arange(n), np.arange(n, len(code))))
    with threadpool_limits(1, "blas"):  # the matrices to rotate are small: threads only wait for each other
        fitter = Fitter(code, group, len(classes), jobs, seed, device)
        probability, shuffled = _read_layers(fitter, acts, layers, grid)
        probability["majority", NESTED] = fitter.count(np.zeros(len(code), dtype=int))
        if previous is not None:
            probability["previous_action", NESTED] = fitter.count(integer_codes(joined["previous"].tolist())[0])
        if prompts is not None:
            length = np.log1p([[len(text)] for text in joined["prompts"]])
            for name, features, its_grid in (("tfidf", tfidf(joined["prompts"]), TEXT_C), ("prompt_length", standardised(length), grid)):
                [(probability[name, NESTED], _)] = fitter.nested([(name, NESTED, features)], its_grid)

    split = np.array(SPLITS)[(np.arange(len(code)) >= n).astype(int)]
    scores = {key: scored(each, code) for key, each in probability.items()}
    repeats = [scored(each, code) for each in shuffled]
    scores["shuffled", NESTED] = {metric: np.mean([each[metric] for each in repeats], axis=0) for metric in repeats[0]}
    rows, best_control = _rows(scores, split, group, draws, seed)
    unseen = dict.fromkeys(split.tolist(), 0)
    for train, held_out in jobs:
        unseen[str(split[held_out[0]])] += int((~np.isin(code[held_out], code[train])).sum())
    return ProbeResult(
        rows=tuple(rows),
        classes=tuple(classes.tolist()),
        layers=layers,
        split=split,
        fold=fold,
        predicted={key: classes[each.argmax(axis=1)] for key, each in probability.items()},
        chosen=tuple({**row, "fold": row["fold"] if row["fold"] < folds else -1} for row in fitter.chosen),
        best_control=best_control,
        unseen=unseen,
        n_unconverged=fitter.n_unconverged,
        seed=seed,
        folds=folds,
        draws=draws,
    )


def _read_layers(fitter: Fitter, acts, layers, grid):
    """Probabilities [decision, class] of the probe at each layer and at the nested choice, and of each shuffle."""
    features = [standardised(acts[:, layer]) for layer in layers]
    found = fitter.nested([("probe", *each) for each in zip(layers, features, strict=True)], grid)
    probability = {("probe", layer): each for layer, (each, _) in zip(layers, found, strict=True)}
    picked = {(row["fold"], row["layer"]): row["C"] for row in fitter.chosen}
    nested, best = np.zeros((len(acts), fitter.n_classes)), []
    for job, (_, held_out) in enumerate(fitter.jobs):
        best.append(max(range(len(layers)), key=lambda i: found[i][1][job]))
        layer = layers[best[job]]
        fitter.chosen.append({"fold": job, "reader": "nested", "layer": layer, "C": picked[job, layer]})
        nested[held_out] = probability["probe", layer][held_out]

    def permuted():
        rng = np.random.default_rng(fitter.seed)
        for job, (train, held_out) in enumerate(fitter.jobs):
            ends = features[best[job]](train, held_out)
            for _ in range(SHUFFLES):
                yield ends, rng.permutation(fitter.code[train]), (picked[job, layers[best[job]]],)

    shuffled, repeats = np.zeros((SHUFFLES, *nested.shape)), fitter.fit(permuted())
    for _, held_out in fitter.jobs:
        for repeat in shuffled:
            repeat[held_out] = next(repeats)[0]
    probability["probe", NESTED] = nested
    if 0 in layers:
        probability["embedding", 0] = probability["probe", 0]
    return probability, shuffled


def _rows(scores, split, group, draws, seed) -> tuple[list[dict], dict[tuple[str, str], str]]:
    """Table rows of every reader and of each probe's gain over the best control, and which control that was."""
    rows, best_control = [], {}
    controls = [name for name in CONTROLS if (name, NESTED) in scores]
    for name in dict.fromkeys(split.tolist()):
        here = split == name
        for metric, sign in (("accuracy", 1), ("log_loss", -1)):
            column = {key: score[metric][here] for key, score in scores.items()}
            best = max(controls, key=lambda control: sign * column[control, NESTED].mean())
            best_control[name, metric] = best
            gains = {("gain", key[1]): sign * (each - column[best, NESTED]) for key, each in column.items() if key[0] == "probe"}
            for (reader, layer), each in (column | gains).items():
                estimate = cluster_bootstrap(each, group[here], draws=draws, seed=seed)
                rows.append({"layer": layer, "split": name, "reader": reader, "metric": metric, **estimate.row()})
    return rows, best_control


def _checked(name, acts, labels, groups, prompts=None, previous=None) -> dict[str, np.ndarray | None]:
    """One set as arrays over the same decisions. Raises ValueError with the set, the argument and the decision at fault."""
    values = np.asarray(acts.values if hasattr(acts, "values") and not callable(acts.values) else acts)
    if values.ndim == 4:
        if values.shape[1] != 1:
            raise ValueError(f"acts of {name} hold {values.shape[1]} sites: a probe reads one, so select it first.")
        values = values[:, 0]
    if values.ndim != 3 or len(values) == 0:
        raise ValueError(f"acts of {name} must be [decision, layer, d_model] with decisions, not of shape {values.shape}.")
    given = {"labels": labels, "groups": groups, "prompts": prompts, "previous": previous}
    columns = {argument: None if column is None else list(column) for argument, column in given.items()}
    for argument, column in columns.items():
        if column is not None and len(column) != len(values):
            raise ValueError(f"acts of {name} have {len(values)} decisions but {argument} has {len(column)}: give one for each.")
        wrong = [i for i, value in enumerate(column or []) if argument in ("labels", "prompts") and not isinstance(value, str)]
        if wrong:
            first = f"decision {wrong[0]} has {column[wrong[0]]!r}"
            raise ValueError(f"{argument} of {name} must be strings; {first} ({len(wrong)} such).")
    bad = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(bad):
        raise ValueError(f"acts of {name} are not finite at decision {bad[0][0]}, layer {bad[0][1]} ({len(bad)} such places).")
    # The extra None keeps numpy from turning groups that are tuples into a second axis.
    arrays = {key: None if column is None else np.array([*column, None], dtype=object)[:-1] for key, column in columns.items()}
    return {"acts": values.astype(float), **arrays}


def _check_pair(first: dict, second: dict) -> None:
    if first["acts"].shape[1:] != second["acts"].shape[1:]:
        raise ValueError(f"The sets differ in [layer, d_model]: {first['acts'].shape[1:]} and {second['acts'].shape[1:]}.")
    for argument in ("prompts", "previous"):
        if (first[argument] is None) != (second[argument] is None):
            raise ValueError(f"{argument} is given for one set only: give it for both or for neither.")
    shared = set(first["groups"].tolist()) & set(second["groups"].tolist())
    if shared:
        raise ValueError(f"{len(shared)} episodes (one is {min(shared, key=str)!r}) are in both sets: share none.")
