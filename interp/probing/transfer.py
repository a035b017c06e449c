"""Does a probe of one checkpoint predict from another's activations? Accuracy for every pair of steps.

>>> result = transfer({0: acts_0, 500: acts_500}, {0: labels_0, 500: labels_500}, episodes)
>>> result.matrix()                    # [train step, test step]
>>> table = result.to_frame()
>>> table[table.predictor == "drop"]      # the test step's own probe - the foreign one, paired

Not supported: a layer of one checkpoint read at another layer of the next, checkpoints of different
decisions.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num
from threadpoolctl import threadpool_limits

from interp.probing.baselines import choose_layer
from interp.probing.inputs import Acts, check_apart, check_folds, checked_groups, checked_penalties, layered
from interp.probing.logistic import Fitter, Split, grouped_splits, scored, standardised
from interp.probing.metrics import NESTED
from interp.results.shown import Plotted, counted
from interp.stats.intervals import Groups, cluster_bootstrap, cross_fitted, integer_codes
from interp.system.renamed import renamed_attributes


@renamed_attributes(table="to_frame")
@dataclass(frozen=True, eq=False, repr=False)
class TransferResult(Plotted):
    """Accuracy of every checkpoint's probe on every checkpoint's held-out decisions."""

    picture: ClassVar[str] = "transfer"
    rows: tuple[dict, ...]
    steps: tuple
    classes: tuple[str, ...]
    layer: int
    """-1: chosen at each training step (`chosen`)."""
    chosen: tuple[dict, ...]
    """train_step, fold (-1 out of domain), layer, C."""
    n_unconverged: int
    seed: int
    folds: int
    draws: int

    def summary(self) -> str:
        return f"{counted(len(self.steps), 'step')}, {len(self.classes)} classes, {self.folds} folds"

    def to_frame(self) -> pd.DataFrame:
        """Tidy scores: train_step, test_step, split, layer, predictor, metric, and the estimate."""
        return pd.DataFrame(self.rows)

    def matrix(
        self, predictor: str = "probe", column: str = "value", split: str = "in_domain"
    ) -> Num[np.ndarray, "train_step test_step"]:
        """One column of a predictor's rows, by training and test step in the order given."""
        rows = self.to_frame().query("predictor == @predictor and split == @split")
        grid = rows.pivot(index="train_step", columns="test_step", values=column)
        return grid.loc[list(self.steps), list(self.steps)].to_numpy()


def transfer(
    acts_by_step: Mapping[Hashable, Acts],
    labels_by_step: Mapping[Hashable, Sequence[str | None]],
    groups: Groups,
    *,
    layer: int | None = None,
    test: tuple[Mapping, Mapping, Groups] | None = None,
    folds: int = 5,
    C: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
    draws: int = 1000,
    device: str = "cpu",
) -> TransferResult:
    """Fit a probe at each step and score it at each step, on episodes that no fit of the fold has seen.

    Predictors: `probe`; `majority`, the training step's class frequencies; `drop`, the accuracy of the test
    step's own
    probe minus that of the training step's, on the same decisions. Features are standardised on the training
    rows. Intervals resample episodes and hold the fitted predictors fixed; those of held-out folds are
    widened (`stats.cross_fitted`).

    Args:
        acts_by_step: for each checkpoint the same decisions' activations, as `probe` takes them.
        labels_by_step: each checkpoint's labels; decisions without one (None) are left out of its rows.
        groups: the episode of each decision; all pairs share one assignment of episodes to folds.
        layer: index into the layer axis; by default the one that grouped folds of the training step's rows
            choose, as they choose C, and the test step is scored at the same one.
        test: (acts_by_step, labels_by_step, groups) of an out-of-domain set at the same steps, scored by
            probes of all of the first set's rows at the training step.
        folds, C, seed, draws, device: as in `ProbeOptions`.

    Raises:
        ValueError: as `probe` does, and for steps that differ, labels that are neither strings nor None, a
            layer that is not there, and fewer than two classes in a step's training rows.

    Source: docs/methods.md 3.6; Merchant et al. 2020 (probes across fine-tuning).
    """
    sets = {"in_domain": _checked(acts_by_step, labels_by_step, groups)}
    if test is not None:
        sets["out_of_domain"] = _checked(*test, steps=tuple(acts_by_step))
        check_apart(sets["in_domain"].groups, sets["out_of_domain"].groups)
    n, n_layers, width = sets["in_domain"].acts[0].shape
    for each in sets.values():
        shape = each.acts[0].shape[1:]
        if shape != (n_layers, width):
            raise ValueError(f"The sets differ in [layer, d_model]: {(n_layers, width)} and {shape}.")
    if layer is not None and not 0 <= layer < n_layers:
        raise ValueError(f"layer must be one of 0 to {n_layers - 1}, which acts has, not {layer}.")
    grid = checked_penalties(C)
    check_folds(len(set(sets["in_domain"].groups)), folds, seed)
    layers = list(range(n_layers)) if layer is None else [layer]
    with threadpool_limits(1, "blas"):
        pairs = _Pairs(tuple(acts_by_step), sets, layers, folds, seed)
        return pairs.result(NESTED if layer is None else layer, grid, draws, device)


@dataclass(frozen=True)
class _Set:
    """Activations and labels of each step, and the episode of each decision."""

    acts: list[Float[np.ndarray, "decision layer d_model"]]
    labels: list[list[str | None]]
    groups: list


class _Pairs:
    """All steps' decisions after each other, one set's after the other's.

    So a fit at one step predicts all of them at once. `rows` holds each set's rows, [step, decision].
    """

    def __init__(
        self, steps: tuple, sets: Mapping[str, _Set], layers: Sequence[int], folds: int, seed: int
    ) -> None:
        self.steps, self.layers, self.folds, self.seed = steps, layers, folds, seed
        every_label = [labels for each in sets.values() for labels in each.labels]
        self.classes = sorted({name for labels in every_label for name in labels if name is not None})
        index = {name: i for i, name in enumerate(self.classes)} | {None: -1}
        self.code = np.array([index[name] for labels in every_label for name in labels])
        group = integer_codes([name for each in sets.values() for name in each.groups])[0]
        n = len(sets["in_domain"].groups)
        self.groups = {name: group[:n] if name == "in_domain" else group[n:] for name in sets}
        self.group = np.concatenate([np.tile(self.groups[name], len(steps)) for name in sets])
        self.splits = grouped_splits(group[:n], folds, seed)
        self.rows: dict[str, Int[np.ndarray, "step decision"]] = {}
        end = 0
        for name, each in sets.items():
            size = len(steps) * len(each.groups)
            self.rows[name] = end + np.arange(size).reshape(len(steps), -1)
            end += size
        self.features = [
            standardised(np.concatenate([acts[:, i] for each in sets.values() for acts in each.acts]))
            for i in layers
        ]
        self.chosen: list[dict] = []
        self.correct: dict[tuple[str, int], Float[np.ndarray, "row"]] = {}
        self.n_unconverged = 0

    def result(self, layer: int, grid: Sequence[float], draws: int, device: str) -> TransferResult:
        """Fit and score every pair of steps; `layer` is what the table calls the layer."""
        for s in range(len(self.steps)):
            self._fit(s, grid, device)
        return TransferResult(
            rows=tuple(self._scores(layer, draws)),
            steps=self.steps,
            classes=tuple(self.classes),
            layer=layer,
            chosen=tuple(self.chosen),
            n_unconverged=self.n_unconverged,
            seed=self.seed,
            folds=self.folds,
            draws=draws,
        )

    def _jobs(self, s: int) -> list[Split]:
        """Training rows of one step, and held-out rows of all steps."""
        rows = self.rows["in_domain"]
        jobs = [(rows[s][train], rows[:, held_out].ravel()) for train, held_out in self.splits]
        if "out_of_domain" in self.rows:
            jobs.append((rows[s], self.rows["out_of_domain"].ravel()))
        jobs = [(train[self.code[train] >= 0], held_out) for train, held_out in jobs]
        for train, _ in jobs:
            if min(len(np.unique(self.code[train])), len(np.unique(self.group[train]))) < 2:
                raise ValueError(
                    f"The training rows of step {self.steps[s]} hold fewer than two classes or episodes "
                    "with a label in some fold."
                )
        return jobs

    def _fit(self, s: int, grid: Sequence[float], device: str) -> None:
        """Fit the probe of one step, and score it on every row."""
        fitter = Fitter(self.code, self.group, len(self.classes), self._jobs(s), self.seed, device)
        cells = [("probe", layer, each) for layer, each in zip(self.layers, self.features, strict=True)]
        probe, _ = choose_layer(fitter, "probe", self.layers, fitter.nested(cells, grid))
        majority = fitter.count(np.zeros(len(self.code), dtype=int)).probability
        self.correct["probe", s] = scored(probe, self.code)["accuracy"]
        self.correct["majority", s] = scored(majority, self.code)["accuracy"]
        for row in fitter.chosen:
            if row["predictor"] == "nested":
                fold = row["fold"] if row["fold"] < self.folds else -1
                self.chosen.append(
                    {"train_step": self.steps[s], "fold": fold, "layer": row["layer"], "C": row["C"]}
                )
        self.n_unconverged += fitter.n_unconverged

    def _scores(self, layer: int, draws: int) -> Iterator[dict]:
        for split, rows in self.rows.items():
            widen = cross_fitted(self.folds) if split == "in_domain" else 1.0
            for (s, train_step), (t, test_step) in itertools.product(enumerate(self.steps), repeat=2):
                labelled = self.code[rows[t]] >= 0
                here, episodes = rows[t][labelled], self.groups[split][labelled]
                if not len(here):
                    continue
                probe, own = self.correct["probe", s][here], self.correct["probe", t][here]
                majority = self.correct["majority", s][here]
                columns = {
                    "probe": probe.astype(bool),
                    "majority": majority.astype(bool),
                    "drop": own - probe,
                }
                for predictor, column in columns.items():
                    estimate = cluster_bootstrap(column, episodes, draws=draws, seed=self.seed, widen=widen)
                    row = {"train_step": train_step, "test_step": test_step, "split": split, "layer": layer}
                    yield row | {"predictor": predictor, "metric": "accuracy"} | estimate.row()


def _checked(
    acts_by_step: Mapping[Hashable, Acts],
    labels_by_step: Mapping[Hashable, Sequence[str | None]],
    groups: Groups,
    steps: tuple | None = None,
) -> _Set:
    """One set of decisions at each of the `steps` (by default its own)."""
    steps = tuple(acts_by_step) if steps is None else steps
    if not steps or set(steps) != set(acts_by_step) or set(steps) != set(labels_by_step):
        raise ValueError(
            f"acts_by_step has steps {tuple(acts_by_step)} but labels_by_step has {tuple(labels_by_step)}: "
            "give both for the same steps."
        )
    episodes = checked_groups(groups, "the set")
    acts = [layered(acts_by_step[step], "acts", f"step {step}") for step in steps]
    labels = [list(labels_by_step[step]) for step in steps]
    for step, values, names in zip(steps, acts, labels, strict=True):
        if values.shape != acts[0].shape or not len(values) == len(names) == len(episodes):
            raise ValueError(
                f"Step {step} has acts of shape {values.shape} and {len(names)} labels, step {steps[0]} acts "
                f"of shape {acts[0].shape}, and there are {len(episodes)} groups: all must be of the same "
                "decisions and layers."
            )
        wrong = [i for i, name in enumerate(names) if not (name is None or isinstance(name, str))]
        if wrong:
            raise ValueError(
                f"labels of step {step} must be strings or None; decision {wrong[0]} has {names[wrong[0]]!r}."
            )
    return _Set(acts, labels, episodes)
