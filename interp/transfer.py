"""Does a probe of one checkpoint read another? Held-out accuracy for every pair of training and test step.

>>> result = transfer({0: acts_0, 500: acts_500}, {0: labels_0, 500: labels_500}, episodes, layer=6)
>>> result.matrix()                    # [train step, test step]
>>> table = result.table()
>>> table[table.reader == "drop"]      # what the foreign probe loses against the test step's own, paired

Not supported: out-of-domain sets, layers that differ between steps, checkpoints of different decisions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from interp.logistic import Fitter, grouped_splits, scored, standardised
from interp.probe_inputs import check_folds, layered
from interp.stats import cluster_bootstrap, integer_codes


@dataclass(frozen=True)
class TransferResult:
    """Accuracy of every checkpoint's probe on every checkpoint's held-out decisions."""

    rows: tuple[dict, ...]
    steps: tuple
    classes: tuple[str, ...]
    layer: int
    chosen: tuple[dict, ...]
    """train_step, fold, C."""
    n_unconverged: int
    seed: int
    folds: int
    draws: int

    def table(self) -> pd.DataFrame:
        """Tidy scores: train_step, test_step, layer, reader, metric, value, low, high, n, n_groups."""
        return pd.DataFrame(self.rows)

    def matrix(self, reader: str = "probe", column: str = "value") -> Float[np.ndarray, "train_step test_step"]:
        """One column of a reader's rows, by training and test step in the order given."""
        rows = self.table().query("reader == @reader")
        return rows.pivot(index="train_step", columns="test_step", values=column).loc[list(self.steps), list(self.steps)].to_numpy()


def transfer(
    acts_by_step: Mapping[Hashable, Float[np.ndarray, "decision layer d_model"]],
    labels_by_step: Mapping[Hashable, Sequence[str | None]],
    groups: Sequence[Hashable],
    *,
    layer: int,
    folds: int = 5,
    C: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
    draws: int = 1000,
    device: str = "cpu",
) -> TransferResult:
    """Fit a probe at each step and score it at each step, always on episodes that no fit of that fold has seen at any step.

    acts_by_step: for each checkpoint the same decisions' activations, as `probe` takes them. labels_by_step: each checkpoint's
    labels; None where it has none, and such decisions are left out of its training and test rows. groups: the episode of each
    decision; all pairs share one assignment of episodes to folds. layer: index into the layer axis. folds, C, draws, device: as
    in `probe`; C is chosen by grouped folds of the training step's rows, and features are standardised on those rows.

    Readers: `probe`; `majority`, the training step's class frequencies; `drop`, the accuracy of the test step's own probe minus
    that of the training step's, on the same decisions. Intervals resample episodes and hold the fitted readers fixed.
    Raises ValueError for steps that differ, lengths or shapes that differ, activations that are not finite, labels that are neither
    strings nor None, a layer that is not there, fewer than two classes in a step's training rows, and too few episodes.
    Source: METHODS 3; Merchant et al. 2020 (probes across fine-tuning).
    """
    steps = tuple(acts_by_step)
    if not steps or set(steps) != set(labels_by_step):
        raise ValueError(f"acts_by_step has steps {steps} but labels_by_step has {tuple(labels_by_step)}: give both for the same steps.")
    acts = [layered(acts_by_step[step], "acts", f"step {step}") for step in steps]
    n, labels = len(groups), [list(labels_by_step[step]) for step in steps]
    for step, values, names in zip(steps, acts, labels, strict=True):
        if values.shape != acts[0].shape or len(values) != n or len(names) != n:
            raise ValueError(
                f"Step {step} has acts of shape {values.shape} and {len(names)} labels, step {steps[0]} acts of shape "
                f"{acts[0].shape}, and there are {n} groups: all must be of the same decisions and layers."
            )
        wrong = [i for i, name in enumerate(names) if not (name is None or isinstance(name, str))]
        if wrong:
            raise ValueError(f"labels of step {step} must be strings or None; decision {wrong[0]} has {names[wrong[0]]!r}.")
    if not 0 <= layer < acts[0].shape[1]:
        raise ValueError(f"layer must be one of 0 to {acts[0].shape[1] - 1}, which acts has, not {layer}.")
    if not len(C) or min(C) <= 0:
        raise ValueError(f"C must hold positive inverse penalties, not {tuple(C)}.")
    group, names = integer_codes(groups)
    check_folds(len(names), folds)
    classes = sorted({name for each in labels for name in each if name is not None})
    index = {name: i for i, name in enumerate(classes)} | {None: -1}
    code = np.array([[index[name] for name in each] for each in labels])
    splits = grouped_splits(group, folds, seed)

    # All steps' decisions lie behind each other, so that a fit at one step predicts all of them at once.
    features = standardised(np.concatenate([each[:, layer] for each in acts]))
    flat, everywhere = code.ravel(), np.arange(len(steps)) * n
    right, chosen, unconverged = {}, [], 0
    with threadpool_limits(1, "blas"):
        for s, step in enumerate(steps):
            jobs = [(s * n + train, (everywhere[:, None] + held_out).ravel()) for train, held_out in splits]
            jobs = [(train[flat[train] >= 0], held_out) for train, held_out in jobs]
            if any(len(set(flat[train].tolist())) < 2 or len(set(group[train % n].tolist())) < 2 for train, _ in jobs):
                raise ValueError(f"The training rows of step {step} hold fewer than two classes or episodes with a label in some fold.")
            fitter = Fitter(flat, np.tile(group, len(steps)), len(classes), jobs, seed, device)
            [(found, _)] = fitter.nested([("probe", layer, features)], sorted(float(c) for c in C))
            read = {"probe": found, "majority": fitter.count(np.zeros(len(flat), dtype=int))}
            right |= {(reader, s): scored(each, flat)["accuracy"].reshape(len(steps), n) for reader, each in read.items()}
            chosen += [{"train_step": step, "fold": row["fold"], "C": row["C"]} for row in fitter.chosen]
            unconverged += fitter.n_unconverged
    rows = []
    for s, train_step in enumerate(steps):
        for t, test_step in enumerate(steps):
            has = code[t] >= 0
            own = right["probe", t][t, has]
            columns = {reader: right[reader, s][t, has] for reader in ("probe", "majority")} | {"drop": own - right["probe", s][t, has]}
            for reader, column in columns.items():
                estimate = cluster_bootstrap(column, group[has], draws=draws, seed=seed)
                row = {"train_step": train_step, "test_step": test_step, "layer": layer, "reader": reader, "metric": "accuracy"}
                rows.append(row | estimate.row())
    return TransferResult(tuple(rows), steps, tuple(classes), layer, tuple(chosen), unconverged, seed, folds, draws)
