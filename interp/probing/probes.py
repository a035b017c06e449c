"""Linear probes that ship with their controls.

`probe` asks whether an action can be read off activations, at every layer, and by how much more than off the text alone.

>>> result = probe(acts, labels, episodes, prompts=texts, previous=previous_actions)
>>> table = result.table()
>>> table[(table.predictor == "gain") & (table.layer == NESTED)]     # the headline: probe minus the best control without activations

Elsewhere: codelengths in `interp.probing.mdl`, transfer between checkpoints in `interp.probing.transfer`, one action against another in `pairwise`.
Not supported: acts of more than one site, nonlinear predictors, probes of every token (only one position a decision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from interp.probing.baselines import PLAIN, choose_layer, control_labels, nested_plain
from interp.probing.inputs import check_folds, checked_set, joined_sets
from interp.probing.logistic import TEXT_C, Fitter, grouped_splits, standardised, tfidf
from interp.probing.metrics import METRICS, NESTED, PER_DECISION, Reading, score_rows
from interp.stats.intervals import integer_codes
from interp.system.renamed import renamed_keywords

SPLITS = ("in_domain", "out_of_domain")
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
    """(predictor, layer) to the held-out label predicted for each decision."""
    chosen: tuple[dict, ...]
    """fold (-1 out of domain), predictor, layer, C. Predictor `nested` holds the layer chosen in each fold (`nested_lda` and so on likewise)."""
    best_control: tuple[str, ...]
    """The control that the gain is over in each fold, then out of domain, where there is a test set."""
    layer_p: tuple[dict, ...]
    """split, metric, layer, p: that the gain at the layer is no larger than 0, corrected over layers (`stats.max_statistic`)."""
    unseen: dict[str, int]
    """Split to the number of decisions whose label was not in their training set; all count as errors."""
    n_unconverged: int
    """Fits that stopped at the iteration limit."""
    seed: int
    folds: int
    draws: int

    def table(self) -> pd.DataFrame:
        """Tidy scores: layer, split, predictor, metric, value, low, high, n, n_groups."""
        return pd.DataFrame(self.rows)

    def diagnostics(self) -> dict:
        """Everything but the scores and the predictions, ready for JSON."""
        same = {name: getattr(self, name) for name in ("seed", "folds", "draws", "unseen", "n_unconverged")}
        lists = {
            "classes": list(self.classes),
            "layers": list(self.layers),
            "chosen": list(self.chosen),
            "layer_p": list(self.layer_p),
        }
        return {**same, **lists, "n_classes": len(self.classes), "best_control": list(self.best_control)}


@renamed_keywords(readers="predictors")
def probe(
    acts: Float[np.ndarray, "decision layer d_model"],
    labels: Sequence[str],
    groups: Sequence | None = None,
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
    metrics: Sequence[str] = tuple(PER_DECISION),
    predictors: Sequence[str] = ("logistic",),
    types: Sequence[str] | None = None,
    random_acts: Float[np.ndarray, "decision layer d_random"] | None = None,
) -> ProbeResult:
    """Read `labels` off `acts` by multinomial logistic regression at each layer, with controls on the same grouped folds.

    C (per layer) and the layer (reported as layer -1) are chosen by grouped folds inside the training set: highest accuracy,
    then lowest log-loss, then smallest C and lowest layer. Features are standardised on the training set.

    acts: activations, layer 0 the embedding output; or an object whose `.values` is [decision, site, layer, d_model], one site.
    labels: the action (class) of each decision. groups: its episode, never split between training and held-out decisions; there is
        no default, since decisions taken for independent that are not make every interval too narrow.
    prompts: prompt texts, for the controls `tfidf` (words and word pairs) and `prompt_length` (log of characters).
    previous: label of the action before (any string at the first step), for the control `previous_action`.
    test: (acts, labels, groups, prompts, previous, types, random_acts; the last ones may be left off) of an out-of-domain set,
        scored by predictors fitted on all of the first set.
    folds: outer folds. C: inverse penalties to choose from (`tfidf` has its own, TEXT_C). draws: bootstrap resamples.
    layers: indices into the layer axis to probe; by default all. device: where the fits run, in double precision.
    metrics: of accuracy, log_loss (nats, probabilities floored at `logistic.FLOOR`), macro_f1 and auroc (see `interp.probing.metrics`).
    predictors: "logistic", and perhaps "lda" and "mean_difference" (see `interp.probing.baselines`), which have no C, at the same layers.
    types: prompt type of each decision (its task and previous action, say), for the predictor `control_task`.
    random_acts: the same decisions and layers read off a randomly initialised model, for the predictor `random_model`.

    Predictors: `probe` at each layer; `embedding` (the probe at layer 0); `majority`, `previous_action`, `tfidf`, `prompt_length`;
    `shuffled`, the probe refitted at the chosen layer and C on labels permuted among the training decisions (mean of SHUFFLES
    permutations); `lda`, `mean_difference` and `random_model` (the probe on random_acts) at each layer and the nested one;
    `control_task`, the probe fitted to a random label for each prompt type (same class shares, same procedure), and `selectivity`,
    the probe's accuracy minus that predictor's on its own labels; `best_control`, of those that read no activation the one with the best
    accuracy, then log-loss, in grouped folds inside the training set, as C and layer are chosen, so that the choice favours neither
    side; `gain`, the probe minus that one. A gain in log_loss is control minus probe, so that positive is better in every metric.
    Intervals resample episodes, paired for gains, and hold the fitted predictors fixed; those of held-out folds are widened for the
    training folds that their predictors share (`stats.cross_fitted`), as are the p-values over layers.

    Labels absent from a training set count as errors, and `unseen` says how many there were.
    Raises ValueError for lengths or shapes that differ, activations that are not finite, a single class, too few episodes, episodes
    in both sets, unknown metrics and predictors, and prompt types too few for a control task.
    Sources: Alain & Bengio 2016 (linear probes), Hewitt & Liang 2019 (a probe is read against controls and a control task).
    """
    data = [checked_set("the first set", acts, labels, groups, prompts, previous, types, random_acts)]
    if test is not None:
        data.append(checked_set("the test set", *test))
    n, joined = len(data[0]["labels"]), joined_sets(data)
    acts, grid = joined["acts"], tuple(sorted(float(c) for c in C))
    layers = tuple(range(acts.shape[1])) if layers is None else tuple(int(layer) for layer in layers)
    if not layers or not set(layers) <= set(range(acts.shape[1])):
        raise ValueError(f"layers must be some of 0 to {acts.shape[1] - 1}, which acts has, not {layers}.")
    if not grid or grid[0] <= 0:
        raise ValueError(f"C must hold positive inverse penalties, not {grid}.")
    if not metrics or not set(metrics) <= set(METRICS):
        raise ValueError(f"metrics must be some of {', '.join(METRICS)}, not {tuple(metrics)}.")
    if "logistic" not in predictors or not set(predictors) <= {"logistic", *PLAIN}:
        raise ValueError(
            f"predictors must be 'logistic' and any of {', '.join(PLAIN)}, not {tuple(predictors)}."
        )
    classes, group = np.unique(joined["labels"][:n]), integer_codes(joined["groups"].tolist())[0]
    if len(classes) < 2:
        raise ValueError(
            f"The labels of the first set hold only {classes.tolist()}: a probe needs at least two classes."
        )
    check_folds(len(set(group[:n].tolist())), folds, seed)

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
        features = [standardised(acts[:, layer]) for layer in layers]
        probability, shuffled = _read_layers(fitter, features, layers, grid)
        for name in (name for name in PLAIN if name in predictors):
            _keep(
                probability, fitter, name, layers, nested_plain(fitter, features, PLAIN[name], acts.shape[2])
            )
        if random_acts is not None:
            cells = [
                ("random_model", layer, standardised(joined["random_acts"][:, layer])) for layer in layers
            ]
            _keep(probability, fitter, "random_model", layers, fitter.nested(cells, grid))
        task = None
        if types is not None:
            task = Fitter(
                control_labels(joined["types"].tolist(), code[:n], seed),
                group,
                len(classes),
                jobs,
                seed,
                device,
            )
            found = task.nested(
                [("control_task", *each) for each in zip(layers, features, strict=True)], grid
            )
            _keep(probability, task, "control_task", layers, found)
        controls = {"majority": fitter.count(np.zeros(len(code), dtype=int))}
        if previous is not None:
            controls["previous_action"] = fitter.count(integer_codes(joined["previous"].tolist())[0])
        if prompts is not None:
            length = np.log1p([[len(text)] for text in joined["prompts"]])
            for name, read_off, its_grid in (
                ("tfidf", tfidf(joined["prompts"]), TEXT_C),
                ("prompt_length", standardised(length), grid),
            ):
                [controls[name]] = fitter.nested([(name, NESTED, read_off)], its_grid)
        probability |= {(name, NESTED): each for name, (each, _) in controls.items()}
        probability["best_control", NESTED], best_control = _best_control(controls, jobs)

    split = np.array(SPLITS)[(np.arange(len(code)) >= n).astype(int)]
    read = {
        key: Reading([each], task.code if key[0] == "control_task" else code)
        for key, each in probability.items()
    }
    read["shuffled", NESTED] = Reading(shuffled, code)
    rows, layer_p = score_rows(read, split, group, fold, metrics, draws, seed)
    chosen = fitter.chosen + (task.chosen if task else [])
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
        chosen=tuple({**row, "fold": row["fold"] if row["fold"] < folds else -1} for row in chosen),
        best_control=tuple(best_control),
        layer_p=tuple(layer_p),
        unseen=unseen,
        n_unconverged=fitter.n_unconverged + (task.n_unconverged if task else 0),
        seed=seed,
        folds=folds,
        draws=draws,
    )


def _best_control(controls: dict[str, tuple], jobs: Sequence[tuple]) -> tuple[np.ndarray, list[str]]:
    """Probabilities of the control that is best inside each job's training rows, and its name in each."""
    whole, names = np.zeros_like(next(iter(controls.values()))[0]), []
    for job, (_, held_out) in enumerate(jobs):
        names.append(max(controls, key=lambda name: controls[name][1][job]))
        whole[held_out] = controls[names[-1]][0][held_out]
    return whole, names


def _keep(probability, fitter, name, layers, found) -> list[int]:
    """File what a predictor found at each layer and at the nested choice; returns the place of the chosen layer in each job."""
    probability |= {(name, layer): each for layer, (each, _) in zip(layers, found, strict=True)}
    probability[name, NESTED], best = choose_layer(fitter, name, layers, found)
    return best


def _read_layers(fitter: Fitter, features, layers, grid):
    """Probabilities [decision, class] of the probe at each layer and at the nested choice, and of each shuffle."""
    probability = {}
    best = _keep(
        probability,
        fitter,
        "probe",
        layers,
        fitter.nested([("probe", *each) for each in zip(layers, features, strict=True)], grid),
    )
    picked = {row["fold"]: row["C"] for row in fitter.chosen if row["predictor"] == "nested"}

    def permuted():
        rng = np.random.default_rng(fitter.seed)
        for job, (train, held_out) in enumerate(fitter.jobs):
            ends = features[best[job]](train, held_out)
            for _ in range(SHUFFLES):
                yield ends, rng.permutation(fitter.code[train]), (picked[job],)

    shuffled, repeats = np.zeros((SHUFFLES, len(fitter.code), fitter.n_classes)), fitter.fit(permuted())
    for _, held_out in fitter.jobs:
        for repeat in shuffled:
            repeat[held_out] = next(repeats)[0]
    if 0 in layers:
        probability["embedding", 0] = probability["probe", 0]
    return probability, shuffled
