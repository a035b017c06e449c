"""Does a probe of one checkpoint read another? Held-out accuracy for every pair of training and test step.

>>> result = transfer({0: acts_0, 500: acts_500}, {0: labels_0, 500: labels_500}, episodes)
>>> result.matrix()                    # [train step, test step]
>>> table = result.table()
>>> table[table.predictor == "drop"]      # what the foreign probe loses against the test step's own, paired

Not supported: a layer of one checkpoint read at another layer of the next, checkpoints of different decisions.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from interp.probing.baselines import choose_layer
from interp.probing.inputs import check_folds, checked_groups, layered
from interp.probing.logistic import Fitter, grouped_splits, scored, standardised
from interp.probing.metrics import NESTED
from interp.stats.intervals import cluster_bootstrap, cross_fitted, integer_codes


@dataclass(frozen=True)
class TransferResult:
    """Accuracy of every checkpoint's probe on every checkpoint's held-out decisions."""

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

    def table(self) -> pd.DataFrame:
        """Tidy scores: train_step, test_step, split, layer, predictor, metric, value, low, high, n, n_groups."""
        return pd.DataFrame(self.rows)

    def matrix(
        self, predictor: str = "probe", column: str = "value", split: str = "in_domain"
    ) -> Float[np.ndarray, "train_step test_step"]:
        """One column of a predictor's rows, by training and test step in the order given."""
        rows = self.table().query("predictor == @predictor and split == @split")
        return (
            rows.pivot(index="train_step", columns="test_step", values=column)
            .loc[list(self.steps), list(self.steps)]
            .to_numpy()
        )


def transfer(
    acts_by_step: Mapping[Hashable, Float[np.ndarray, "decision layer d_model"]],
    labels_by_step: Mapping[Hashable, Sequence[str | None]],
    groups: Sequence[Hashable],
    *,
    layer: int | None = None,
    test: tuple[Mapping, Mapping, Sequence] | None = None,
    folds: int = 5,
    C: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
    draws: int = 1000,
    device: str = "cpu",
) -> TransferResult:
    """Fit a probe at each step and score it at each step, always on episodes that no fit of that fold has seen at any step.

    acts_by_step: for each checkpoint the same decisions' activations, as `probe` takes them. labels_by_step: each checkpoint's
    labels; None where it has none, and such decisions are left out of its training and test rows. groups: the episode of each
    decision; all pairs share one assignment of episodes to folds. layer: index into the layer axis; by default the one that grouped
    folds of the training step's rows choose, as they choose C, and the test step is read at the same one. test: (acts_by_step,
    labels_by_step, groups) of an out-of-domain set at the same steps, scored by probes of all of the first set's rows at the training
    step. folds, C, draws, device: as in `probe`. Features are standardised on the training rows.

    Predictors: `probe`; `majority`, the training step's class frequencies; `drop`, the accuracy of the test step's own probe minus
    that of the training step's, on the same decisions. Intervals resample episodes and hold the
    fitted predictors fixed; those of held-out folds are widened (`stats.cross_fitted`).
    Raises ValueError for steps that differ, lengths or shapes that differ, activations that are not finite, labels that are neither
    strings nor None, a layer that is not there, episodes in both sets, fewer than two classes in a step's training rows, and too few episodes.
    Source: docs/methods.md 3.6; Merchant et al. 2020 (probes across fine-tuning).
    """
    steps = tuple(acts_by_step)
    sets = {"in_domain": _checked(steps, acts_by_step, labels_by_step, groups)}
    if test is not None:
        sets["out_of_domain"] = _checked(steps, *test)
        if shared := set(sets["in_domain"][2]) & set(sets["out_of_domain"][2]):
            raise ValueError(
                f"{len(shared)} episodes (one is {min(shared, key=str)!r}) are in both sets: share none."
            )
    shape = sets["in_domain"][0][0].shape
    for acts, _, _ in sets.values():
        if acts[0].shape[1:] != shape[1:]:
            raise ValueError(f"The sets differ in [layer, d_model]: {shape[1:]} and {acts[0].shape[1:]}.")
    if layer is not None and not 0 <= layer < shape[1]:
        raise ValueError(f"layer must be one of 0 to {shape[1] - 1}, which acts has, not {layer}.")
    if not len(C) or min(C) <= 0:
        raise ValueError(f"C must hold positive inverse penalties, not {tuple(C)}.")
    layers, grid, n = range(shape[1]) if layer is None else [layer], sorted(float(c) for c in C), shape[0]
    group = integer_codes([name for _, _, names in sets.values() for name in names])[0]
    check_folds(len(set(group[:n].tolist())), folds, seed)
    classes = sorted(
        {name for _, labels, _ in sets.values() for each in labels for name in each if name is not None}
    )
    index = {name: i for i, name in enumerate(classes)} | {None: -1}

    # All steps' decisions lie after each other, one set's after the other's, so that a fit at one step predicts all of them at once.
    flat = np.array([index[name] for _, labels, _ in sets.values() for each in labels for name in each])
    place, ends = {}, 0
    for name, (acts, _, _) in sets.items():
        place[name] = ends + np.arange(len(steps) * len(acts[0])).reshape(len(steps), -1)
        ends += place[name].size
    features = [
        standardised(np.concatenate([each[:, i] for acts, _, _ in sets.values() for each in acts]))
        for i in layers
    ]
    of_set = {name: group[:n] if name == "in_domain" else group[n:] for name in sets}
    of_row = np.concatenate([np.tile(of_set[name], len(steps)) for name in sets])
    splits = grouped_splits(group[:n], folds, seed)
    right, chosen, unconverged = {}, [], 0
    with threadpool_limits(1, "blas"):
        for s, step in enumerate(steps):
            own = place["in_domain"][s]
            jobs = [(own[train], place["in_domain"][:, held_out].ravel()) for train, held_out in splits]
            jobs += [(own, place["out_of_domain"].ravel())] if test is not None else []
            jobs = [(train[flat[train] >= 0], held_out) for train, held_out in jobs]
            if any(
                len(set(flat[train].tolist())) < 2 or len(set(of_row[train].tolist())) < 2
                for train, _ in jobs
            ):
                raise ValueError(
                    f"The training rows of step {step} hold fewer than two classes or episodes with a label in some fold."
                )
            fitter = Fitter(flat, of_row, len(classes), jobs, seed, device)
            found = fitter.nested(
                [("probe", i, each) for i, each in zip(layers, features, strict=True)], grid
            )
            read = {
                "probe": choose_layer(fitter, "probe", layers, found)[0],
                "majority": fitter.count(np.zeros(len(flat), dtype=int))[0],
            }
            right |= {(predictor, s): scored(each, flat)["accuracy"] for predictor, each in read.items()}
            picked = [row for row in fitter.chosen if row["predictor"] == "nested"]
            chosen += [
                {
                    "train_step": step,
                    "fold": row["fold"] if row["fold"] < folds else -1,
                    "layer": row["layer"],
                    "C": row["C"],
                }
                for row in picked
            ]
            unconverged += fitter.n_unconverged
    rows, kept = [], NESTED if layer is None else layer
    for split, at in place.items():
        widen = cross_fitted(folds) if split == "in_domain" else 1.0
        for (s, train_step), (t, test_step) in itertools.product(enumerate(steps), repeat=2):
            has = flat[at[t]] >= 0
            here, episodes = at[t][has], of_set[split][has]
            if not len(here):
                continue
            columns = {
                predictor: right[predictor, s][here].astype(bool) for predictor in ("probe", "majority")
            }
            columns["drop"] = right["probe", t][here] - right["probe", s][here]
            for predictor, column in columns.items():
                estimate = cluster_bootstrap(column, episodes, draws=draws, seed=seed, widen=widen)
                row = {"train_step": train_step, "test_step": test_step, "split": split, "layer": kept}
                rows.append(row | {"predictor": predictor, "metric": "accuracy"} | estimate.row())
    return TransferResult(
        tuple(rows), steps, tuple(classes), kept, tuple(chosen), unconverged, seed, folds, draws
    )


def _checked(
    steps: tuple, acts_by_step: Mapping, labels_by_step: Mapping, groups: Sequence
) -> tuple[list[np.ndarray], list[list], list]:
    """Activations and labels of each step, and the episodes, of one set."""
    if not steps or set(steps) != set(acts_by_step) or set(steps) != set(labels_by_step):
        raise ValueError(
            f"acts_by_step has steps {tuple(acts_by_step)} but labels_by_step has {tuple(labels_by_step)}: give both for the same steps."
        )
    groups = checked_groups(groups, "the set")
    acts = [layered(acts_by_step[step], "acts", f"step {step}") for step in steps]
    labels = [list(labels_by_step[step]) for step in steps]
    for step, values, names in zip(steps, acts, labels, strict=True):
        if values.shape != acts[0].shape or len(values) != len(groups) or len(names) != len(groups):
            raise ValueError(
                f"Step {step} has acts of shape {values.shape} and {len(names)} labels, step {steps[0]} acts of shape "
                f"{acts[0].shape}, and there are {len(groups)} groups: all must be of the same decisions and layers."
            )
        wrong = [i for i, name in enumerate(names) if not (name is None or isinstance(name, str))]
        if wrong:
            raise ValueError(
                f"labels of step {step} must be strings or None; decision {wrong[0]} has {names[wrong[0]]!r}."
            )
    return acts, labels, groups
