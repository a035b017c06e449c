"""Linear probes that ship with their controls.

`probe` asks whether an action can be read off activations at every layer, and how much better than off the
text alone.

>>> result = probe(acts, labels, episodes, prompts=texts, previous=previous_actions)
>>> table = result.to_frame()
>>> table[(table.predictor == "gain") & (table.layer == NESTED)]     # the headline: probe - best control

Predictors in the table:

- `probe` at each layer; `embedding`, the probe at layer 0; `majority`, `previous_action`, `tfidf`,
  `prompt_length`.
- `shuffled`: the probe refitted at the chosen layer and C on labels permuted among the training decisions
  (mean of SHUFFLES permutations).
- `lda`, `mean_difference` and `random_model` (the probe on random_acts) at each layer and the nested one.
- `control_task`: the probe fitted to a random label for each prompt type (same class shares, same
  procedure), and `selectivity`, the probe's accuracy - that predictor's on its own labels.
- `best_control`: of those without activations the one with the best accuracy, then log-loss, in grouped
  folds inside the training set, as C and layer are chosen, so that the choice favours neither; `gain`,
  probe - best_control (in log_loss best_control - probe, so that positive is better in every metric).

With `train=` everything is fitted on decisions of other episodes instead of folds; thousands of them make a
better probe and a better TF-IDF, and leave the tested decisions' intervals as they are:

>>> result = probe(acts, labels, episodes, prompts=texts, train=(more_acts, more_labels, others, more_texts))

Codelengths are in `interp.probing.mdl`, transfer between checkpoints in `interp.probing.transfer`, one action
against another in `interp.probing.pairwise`. Not supported: acts of more than one site, nonlinear predictors,
probes of every token (only one position a decision).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from threadpoolctl import threadpool_limits

from interp.probing.baselines import PLAIN, choose_layer, control_labels, nested_plain
from interp.probing.inputs import (
    Acts,
    Names,
    ProbeSet,
    check_folds,
    checked_penalties,
    checked_set,
    joined_sets,
)
from interp.probing.logistic import (
    INNER_FOLDS,
    TEXT_C,
    Features,
    Fitter,
    Held,
    Problem,
    Split,
    grouped_splits,
    standardised,
    tfidf,
)
from interp.probing.metrics import METRICS, NESTED, PER_DECISION, Key, Reading, score_rows
from interp.results.shown import Plotted, counted
from interp.stats.intervals import Groups, integer_codes
from interp.system.options import takes_fields
from interp.system.renamed import renamed_attributes, renamed_keywords

SPLITS = ("in_domain", "out_of_domain")
SHUFFLES = 3
#: What controls gave, by (predictor, layer).
Controls = Mapping[Key, Held]


@dataclass(frozen=True)
class ProbeOptions:
    """How `probe` fits and scores."""

    folds: int = 5
    """Outer folds."""
    C: Sequence[float] = (0.01, 0.1, 1.0)
    """Inverse penalties to choose from (`tfidf` has its own, TEXT_C)."""
    seed: int = 0
    """Of folds, permutations, control labels and resamples."""
    draws: int = 1000
    """Bootstrap resamples."""
    layers: Sequence[int] | None = None
    """Indices into the layer axis to probe; by default all."""
    device: str = "cpu"
    """Where the fits run, in double precision."""
    metrics: Sequence[str] = tuple(PER_DECISION)
    """Some of accuracy, log_loss (nats, probabilities floored at `logistic.FLOOR`), macro_f1 and auroc
    (`interp.probing.metrics`)."""
    predictors: Sequence[str] = ("logistic",)
    """"logistic", and perhaps "lda" and "mean_difference" (`interp.probing.baselines`), which have no C."""

    def checked(self, n_layers: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The layers to probe and the penalties to choose from; raises ValueError for wrong options."""
        layers = tuple(range(n_layers)) if self.layers is None else tuple(int(layer) for layer in self.layers)
        if not layers or not set(layers) <= set(range(n_layers)):
            raise ValueError(f"layers must be some of 0 to {n_layers - 1}, which acts has, not {layers}.")
        grid = checked_penalties(self.C)
        if not self.metrics or not set(self.metrics) <= set(METRICS):
            raise ValueError(f"metrics must be some of {', '.join(METRICS)}, not {tuple(self.metrics)}.")
        if "logistic" not in self.predictors or not set(self.predictors) <= {"logistic", *PLAIN}:
            raise ValueError(
                f"predictors must be 'logistic' and any of {', '.join(PLAIN)}, not {tuple(self.predictors)}."
            )
        return layers, grid


@renamed_attributes(table="to_frame")
@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult(Plotted):
    """Probe and control scores, with what is needed to judge them.

    Decisions are the first set's, then the test set's; those of `train` are fitted on and not held here.
    """

    picture: ClassVar[str] = "probes"
    rows: tuple[dict, ...]
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    split: Shaped[np.ndarray, "decision"]
    """`in_domain` or `out_of_domain` per decision."""
    fold: Int[np.ndarray, "decision"]
    """The fold in which a decision was held out; -1 where it was read by predictors of another set."""
    predicted: dict[Key, Shaped[np.ndarray, "decision"]]
    """(predictor, layer) to the held-out label predicted for each decision."""
    chosen: tuple[dict, ...]
    """fold (-1 of predictors fitted on a whole set), predictor, layer, C.

    Predictor `nested` holds the layer chosen in each fold (`nested_lda` and so on likewise).
    """
    best_control: tuple[str, ...]
    """The control that the gain is over in each fold, then of predictors fitted on a whole set."""
    layer_p: tuple[dict, ...]
    """split, metric, layer, p: that the gain at the layer is at most 0, corrected over layers."""
    unseen: dict[str, int]
    """Split to the number of decisions whose label was not in their training set; all count as errors."""
    n_unconverged: int
    """Fits that stopped at the iteration limit."""
    seed: int
    folds: int
    """0 where everything was fitted on another set."""
    draws: int
    controls: Controls = field(default_factory=dict, compare=False)
    """What the controls that read no activation of this model gave, for `probe(controls=)`."""

    def summary(self) -> str:
        layers = counted(len(self.layers), "layer")
        shape = f"{len(self.split):,} decisions, {len(self.classes)} classes, {layers}"
        scores = [
            f"{row['metric']} {row['value']:.2f} {row['split']}"
            for row in self.rows
            if (row["predictor"], row["layer"]) == ("probe", NESTED)
        ]
        return f"{shape}; at the nested layer {', '.join(scores)}"

    def to_frame(self) -> pd.DataFrame:
        """Tidy scores: layer, split, predictor, metric, value, low, high, n, n_groups."""
        return pd.DataFrame(self.rows)

    def diagnostics(self) -> dict:
        """Everything but the scores and the predictions, ready for JSON."""
        same = {name: getattr(self, name) for name in ("seed", "folds", "draws", "unseen", "n_unconverged")}
        lists = {name: list(getattr(self, name)) for name in ("classes", "layers", "chosen", "layer_p")}
        return {**same, **lists, "n_classes": len(self.classes), "best_control": list(self.best_control)}


@renamed_keywords(readers="predictors")
@takes_fields(ProbeOptions)
def probe(
    acts: Acts,
    labels: Names,
    groups: Groups | None = None,
    *,
    prompts: Names | None = None,
    previous: Names | None = None,
    types: Names | None = None,
    random_acts: Acts | None = None,
    test: Sequence | None = None,
    train: Sequence | None = None,
    controls: Controls | None = None,
    options: ProbeOptions = ProbeOptions(),
) -> ProbeResult:
    """Predict `labels` from `acts` by logistic regression at each layer, with controls on the same folds.

    C (per layer) and the layer (reported as layer -1) are chosen by grouped folds inside the training set:
    highest accuracy, then lowest log-loss, then smallest C and lowest layer. Features are standardised on the
    training set. Labels absent from a training set count as errors, and `unseen` says how many there were.

    Intervals resample episodes, paired for gains, and hold the fitted predictors fixed. Those of held-out
    folds are widened for the training folds that their predictors share (`stats.cross_fitted`), as are the
    p-values over layers.

    Args:
        acts: [decision, layer, d_model], layer 0 the embedding output; or an object whose `.values` is
            [decision, site, layer, d_model], one site.
        labels: the action (class) of each decision.
        groups: its episode, never split between training and held-out decisions. There is no default:
            decisions taken for independent that are not make every interval too narrow.
        prompts: texts, for the controls `tfidf` (words and word pairs) and `prompt_length` (log of
            characters).
        previous: label of the action before (any string at the first step), for the control
            `previous_action`.
        types: prompt type (its task and previous action, say), for the predictor `control_task`.
        random_acts: the same decisions and layers of a randomly initialised model, for the predictor
            `random_model`.
        test: (acts, labels, groups, prompts, previous, types, random_acts; the last ones may be left off) of
            an out-of-domain set, scored by predictors fitted on all of the first set.
        train: as `test`, a set of other episodes that all is fitted on, in place of folds of the first set.
        controls: `controls` of an earlier result of the same decisions and labels, which are not fitted
            again: prompts say the same at every checkpoint.
        options: how to fit and score; its fields are also taken as keywords.

    Raises:
        ValueError: for lengths or shapes that differ, activations that are not finite, a single class, too
            few episodes, episodes in both sets, unknown metrics and predictors, and prompt types too few for
            a control task.

    Source: Alain & Bengio 2016 (linear probes); Hewitt & Liang 2019 (controls and a control task).
    """
    first = checked_set("the first set", acts, labels, groups, prompts, previous, types, random_acts)
    second = None if test is None else checked_set("the test set", *test)
    if train is None:
        return _probed(joined_sets(first, second), 0, len(first.labels), options, controls)
    fitted = checked_set("the training set", *train)
    data = joined_sets(joined_sets(fitted, first), second)
    return _probed(data, len(fitted.labels), len(first.labels), options, controls)


def _probed(
    data: ProbeSet, n_train: int, n_first: int, options: ProbeOptions, controls: Controls | None
) -> ProbeResult:
    """As `probe`, of checked decisions: `n_train` that are fitted on alone, the first set's, the test set's.

    Without the former the first set is cross-fitted.
    """
    seed = options.seed
    layers, grid = options.checked(data.acts.shape[1])
    fitted = slice(n_train or n_first)
    classes, group = np.unique(data.labels[fitted]), integer_codes(data.groups.tolist())[0]
    if len(classes) < 2:
        name = "training" if n_train else "first"
        raise ValueError(
            f"The labels of the {name} set hold only {classes.tolist()}: a probe needs at least two classes."
        )
    folds = 0 if n_train else options.folds
    check_folds(len(set(group[fitted].tolist())), folds or INNER_FOLDS, seed)
    index = {label: i for i, label in enumerate(classes)}
    code = np.array([index.get(label, -1) for label in data.labels])
    jobs = grouped_splits(group[fitted], folds, seed) if folds else []
    fold = np.full(len(code), -1)
    for number, (_, held_out) in enumerate(jobs):
        fold[held_out] = number
    if len(code) > fitted.stop:
        jobs.append((np.arange(fitted.stop), np.arange(fitted.stop, len(code))))
    with threadpool_limits(1, "blas"):  # the matrices to rotate are small: threads only wait for each other
        fitter = Fitter(code, group, len(classes), jobs, seed, options.device)
        readings = _Readings(data, layers, grid, fitter, controls)
        readings.read(options.predictors, fitted.stop)
    tested = slice(n_train, None)
    split = np.array(SPLITS)[(np.arange(len(code)) >= n_train + n_first).astype(int)][tested]
    rows, layer_p = score_rows(
        readings.scored(tested), split, group[tested], fold[tested], options.metrics, options.draws, seed
    )
    predicted = {key: classes[each[tested].argmax(axis=1)] for key, each in readings.probability.items()}
    chosen = [row for each in readings.fitters for row in each.chosen]
    return ProbeResult(
        rows=tuple(rows),
        classes=tuple(classes.tolist()),
        layers=layers,
        split=split,
        fold=fold[tested],
        predicted=predicted,
        chosen=tuple({**row, "fold": row["fold"] if row["fold"] < folds else -1} for row in chosen),
        best_control=tuple(readings.best_control),
        layer_p=tuple(layer_p),
        unseen=_unseen(code, jobs, dict(zip(range(n_train, len(code)), split.tolist()))),
        n_unconverged=sum(each.n_unconverged for each in readings.fitters),
        seed=seed,
        folds=folds,
        draws=options.draws,
        controls=readings.controls,
    )


def _unseen(
    code: Int[np.ndarray, "decision"], jobs: Sequence[Split], split: Mapping[int, str]
) -> dict[str, int]:
    """Decisions of each split whose label is not in their training set; `split` of each tested decision."""
    unseen = dict.fromkeys(split.values(), 0)
    for train, held_out in jobs:
        for decision in held_out[~np.isin(code[held_out], code[train])]:
            unseen[split[int(decision)]] += 1
    return unseen


class _Readings:
    """Held-out probabilities of the probe and of its controls, by (predictor, layer)."""

    def __init__(
        self,
        data: ProbeSet,
        layers: Sequence[int],
        grid: Sequence[float],
        fitter: Fitter,
        controls: Controls | None = None,
    ) -> None:
        self.data, self.layers, self.grid, self.fitter = data, layers, grid, fitter
        self.fitters = [fitter]
        self.controls: dict[Key, Held] = dict(controls or {})
        shape = (len(fitter.code), fitter.n_classes)
        if any(each.probability.shape != shape for each in self.controls.values()):
            raise ValueError(
                f"The controls are of other decisions or classes: these are {shape[0]} decisions with "
                f"{shape[1]} classes."
            )
        self.probability: dict[Key, Float[np.ndarray, "decision class"]] = {}
        self.shuffled: list[Float[np.ndarray, "decision class"]] = []
        self.best_control: list[str] = []

    def read(self, predictors: Sequence[str], n: int) -> None:
        """Fit everything; the first `n` decisions are those that are fitted on."""
        data, fitter = self.data, self.fitter
        features = [standardised(data.acts[:, layer]) for layer in self.layers]
        best = self._fit("probe", fitter, features)
        self.shuffled = self._permuted(features, best)
        if 0 in self.layers:
            self.probability["embedding", 0] = self.probability["probe", 0]
        for name, predictor in PLAIN.items():
            if name in predictors:
                self._keep(name, fitter, nested_plain(fitter, features, predictor, data.acts.shape[2]))
        if data.random_acts is not None:
            keys = [("random_model", layer) for layer in self.layers]
            if not set(keys) <= self.controls.keys():
                cells = [(*key, standardised(data.random_acts[:, key[1]])) for key in keys]
                self.controls |= dict(zip(keys, fitter.nested(cells, self.grid), strict=True))
            self._keep("random_model", fitter, [self.controls[key] for key in keys])
        if data.types is not None:
            labels = control_labels(data.types.tolist(), fitter.code[:n], fitter.seed)
            task = Fitter(labels, fitter.group, fitter.n_classes, fitter.jobs, fitter.seed, fitter.device)
            self.fitters.append(task)
            self._fit("control_task", task, features)
        self._keep_controls(self._controls())

    def scored(self, tested: slice) -> dict[Key, Reading]:
        """What is to be scored: each predictor's probabilities and the labels it was fitted to."""
        code, task = self.fitter.code[tested], self.fitters[-1].code[tested]
        readings = {
            key: Reading([each[tested]], task if key[0] == "control_task" else code)
            for key, each in self.probability.items()
        }
        readings["shuffled", NESTED] = Reading([each[tested] for each in self.shuffled], code)
        return readings

    def _fit(self, name: str, fitter: Fitter, features: Sequence[Features]) -> list[int]:
        cells = [(name, layer, each) for layer, each in zip(self.layers, features, strict=True)]
        return self._keep(name, fitter, fitter.nested(cells, self.grid))

    def _keep(self, name: str, fitter: Fitter, results: Sequence[Held]) -> list[int]:
        """File a predictor's results at each layer and at the nested choice; returns its index per job."""
        for layer, result in zip(self.layers, results, strict=True):
            self.probability[name, layer] = result.probability
        self.probability[name, NESTED], best = choose_layer(fitter, name, self.layers, results)
        return best

    def _permuted(
        self, features: Sequence[Features], best: Sequence[int]
    ) -> list[Float[np.ndarray, "decision class"]]:
        """Probabilities of the probe at the chosen layer and C on permuted labels, for each shuffle."""
        fitter = self.fitter
        picked = {row["fold"]: row["C"] for row in fitter.chosen if row["predictor"] == "nested"}

        def problems() -> Iterator[Problem]:
            rng = np.random.default_rng(fitter.seed)
            for job, (train, held_out) in enumerate(fitter.jobs):
                ends = features[best[job]](train, held_out)
                for _ in range(SHUFFLES):
                    yield Problem(*ends, rng.permutation(fitter.code[train]), (picked[job],))

        shuffled = np.zeros((SHUFFLES, len(fitter.code), fitter.n_classes))
        repeats = fitter.fit(problems())
        for _, held_out in fitter.jobs:
            for repeat in shuffled:
                repeat[held_out] = next(repeats)[0]
        return list(shuffled)

    def _controls(self) -> dict[str, Held]:
        """What the controls without activations give."""
        data, fitter = self.data, self.fitter
        shared = {name: held for (name, layer), held in self.controls.items() if layer == NESTED}
        if shared:
            return shared
        controls = {"majority": fitter.count(np.zeros(len(fitter.code), dtype=int))}
        if data.previous is not None:
            controls["previous_action"] = fitter.count(integer_codes(data.previous.tolist())[0])
        if data.prompts is not None:
            length = np.log1p([[len(text)] for text in data.prompts])
            [controls["tfidf"]] = fitter.nested([("tfidf", NESTED, tfidf(data.prompts.tolist()))], TEXT_C)
            cell = ("prompt_length", NESTED, standardised(length))
            [controls["prompt_length"]] = fitter.nested([cell], self.grid)
        self.controls |= {(name, NESTED): held for name, held in controls.items()}
        return controls

    def _keep_controls(self, controls: Mapping[str, Held]) -> None:
        """File the controls, and the one that is best inside each job's training rows."""
        whole = np.zeros((len(self.fitter.code), self.fitter.n_classes))
        for job, (_, held_out) in enumerate(self.fitter.jobs):
            best = max(controls, key=lambda name: controls[name].inner[job])
            whole[held_out] = controls[best].probability[held_out]
            self.best_control.append(best)
        for name, control in controls.items():
            self.probability[name, NESTED] = control.probability
        self.probability["best_control", NESTED] = whole
