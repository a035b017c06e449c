"""Estimates with intervals that respect episodes, and the paired tests used beside them.

Decisions of one episode are not independent, so every interval here resamples whole episodes.

>>> cluster_bootstrap(correct_cot - correct_prompt, episode)                  # the gap
>>> cluster_bootstrap(np.stack([correct_prompt, correct_cot], axis=1), episode,
...                   function=lambda mean: mean[..., 1] / mean[..., 0])      # a ratio, paired by construction
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float, Int
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import contingency_tables, multitest, proportion


@dataclass(frozen=True)
class Estimate:
    """A value, its interval, and how many decisions and clusters it rests on."""

    value: float
    low: float
    high: float
    n: int
    n_groups: int

    def row(self) -> dict:
        """The five numbers as the columns that end every measurement table."""
        return asdict(self)


def integer_codes(values: Sequence[Hashable]) -> tuple[Int[np.ndarray, "row"], list]:
    """Number `values` (any hashables) in order of first appearance; returns a code per row and the distinct values."""
    seen: dict = {}
    codes = [seen.setdefault(value, len(seen)) for value in values]
    return np.array(codes, dtype=int), list(seen)


def cluster_codes(groups: Sequence[Hashable]) -> tuple[Int[np.ndarray, "decision"], list]:
    """As `integer_codes` of the cluster of each decision; numbers of numpy and torch count as plain ones.

    Raises ValueError for a decision without a cluster (None, NaN), and for clusters that cannot be told apart (not hashable).
    """
    plain = (
        groups.tolist()
        if hasattr(groups, "tolist")
        else [each.item() if hasattr(each, "item") else each for each in groups]
    )
    try:
        codes, names = integer_codes(plain)
    except TypeError as error:
        raise ValueError(f"groups must be names or numbers, one for each decision ({error}).") from error
    for code, name in enumerate(names):
        if pd.api.types.is_scalar(name) and pd.isna(name):
            raise ValueError(
                f"Decision {int(np.argmax(codes == code))} has no group ({name}): name the episode of every decision."
            )
    return codes, names


def bootstrap_weights(
    groups: Sequence[Hashable], draws: int = 2000, seed: int = 0
) -> Int[np.ndarray, "draw decision"]:
    """How often each decision is in each resample of whole clusters; those of `cluster_bootstrap` for equal `seed` and `groups`.

    groups: the cluster (episode) of each decision. draws: number of resamples.
    For scores that are no function of means (AUROC, F1); `percentile` turns their values in the resamples into an estimate.
    Raises ValueError for no decisions and draws below 1.
    """
    if len(groups) == 0 or draws < 1:
        raise ValueError(f"Resamples need at least one decision and one draw, not {len(groups)} and {draws}.")
    code, names = cluster_codes(groups)
    return _cluster_weights(len(names), draws, seed)[:, code]


def percentile(
    value: float,
    values: Float[np.ndarray, "draw"],
    n: int,
    n_groups: int,
    level: float = 0.95,
    widen: float = 1.0,
) -> Estimate:
    """Estimate with the expanded percentile interval of the `values` that it takes in resamples.

    Resamples of G clusters spread less than samples do, by sqrt((G - 1) / G), and their spread is itself uncertain. So the quantiles
    are those at which a normal has its sqrt(G / (G - 1)) t quantile of G - 1 degrees of freedom: 2.5 % become
    1.9 at 30 clusters and 0.9 at 10.

    n, n_groups: decisions and clusters. level: coverage. widen: factor on the interval for dependence that clusters do not hold
    (`cross_fitted`). Values that are not finite are left out; where they are more than 1 - level of all, the value is not finite or
    there is one cluster, the interval is NaN. Sources: Efron & Tibshirani 1993; Hesterberg 2015 (expanded percentiles).
    """
    finite = values[np.isfinite(values)]
    low = high = np.nan
    if n_groups > 1 and np.isfinite(value) and len(finite) >= level * len(values):
        tail = scipy.stats.norm.sf(
            widen * np.sqrt(n_groups / (n_groups - 1)) * scipy.stats.t.isf((1 - level) / 2, n_groups - 1)
        )
        low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high), n, n_groups)


def cross_fitted(folds: int) -> float:
    """Factor on intervals of scores from `folds` folds, each held out once: sqrt(1 + (folds - 1) / folds), 1.34 for five.

    Held-out scores of two folds depend on each other through the predictors, since each fold trains the other's. Their correlation is
    taken as a fold's share of the decisions, 1 / folds. Source: Nadeau & Bengio 2003; `analyses.coverage` measures it.
    """
    return float(np.sqrt(1 + (folds - 1) / folds))


def cluster_bootstrap(
    columns: Float[np.ndarray, "decision k"] | Float[np.ndarray, "decision"],
    groups: Sequence[Hashable],
    function: Callable[[Float[np.ndarray, "*draw k"]], Float[np.ndarray, "*draw"]] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    widen: float = 1.0,
) -> Estimate:
    """Estimate a function of column means, with a percentile interval (expanded, see `percentile`) that resamples whole clusters.

    All columns are resampled together, so differences and ratios are paired; equal `seed` and `groups` give equal resamples
    whatever the columns. Clusters keep their own sizes: the mean is over decisions, not over clusters.

    columns: one number per decision and quantity; a vector is one column.
    groups: the cluster (episode) of each decision.
    function: from means [..., k] to values [...]; by default the mean of the single column.
    draws: number of resamples. level: coverage of the interval. widen: as in `percentile`.

    Truth values that are all equal have nothing to resample either, which is no certainty: their interval is Wilson's, on the
    clusters.
    With one cluster the interval is NaN. Resamples in which `function` is not finite are left
    out; where they are more than 1 - level of all, the interval is NaN.
    Raises ValueError for no rows, rows that are not finite, lengths that differ, and several columns without a function.
    Sources: Field & Welsh 2007 (cluster bootstrap), Hesterberg 2015 (expanded percentile interval).
    """
    rate = function is None and np.asarray(columns).dtype == bool
    columns = np.asarray(columns, dtype=float)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2:
        raise ValueError(f"columns must be [decision] or [decision, k], not of shape {columns.shape}.")
    if len(groups) != len(columns):
        raise ValueError(
            f"columns has {len(columns)} decisions but groups names {len(groups)}: give one for each."
        )
    if len(columns) == 0:
        raise ValueError("There are no decisions, hence no clusters to resample: give at least one row.")
    bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(columns)} rows are NaN or infinite (first: row {bad[0]}): drop and count them."
        )
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level between 0 and 1, not {draws} and {level}.")
    if function is None:
        if columns.shape[1] != 1:
            raise ValueError(
                f"{columns.shape[1]} columns need a function of their means; only a single column has a default."
            )

        def function(mean):
            return mean[..., 0]

    code, names = cluster_codes(groups)
    n_groups = len(names)
    if n_groups > 1 and rate and columns.min() == columns.max() and columns[0, 0] in (0, 1):
        effective = max(n_groups / widen**2, 1)
        low, high = wilson(columns[0, 0] * effective, effective, level)
        return Estimate(float(columns[0, 0]), low, high, len(columns), n_groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(function(columns.mean(axis=0)), dtype=float)
        if value.shape:
            raise ValueError(
                f"function must map means [..., k] to values [...]; [k] became shape {value.shape}."
            )
        value = float(value)
        if n_groups == 1:
            return Estimate(value, np.nan, np.nan, len(columns), 1)
        sums = np.stack(
            [np.bincount(code, weights=column, minlength=n_groups) for column in columns.T], axis=1
        )
        counts = np.bincount(code, minlength=n_groups)
        weights = _cluster_weights(n_groups, draws, seed)
        values = np.asarray(function(weights @ sums / (weights @ counts)[:, None]), dtype=float)
    if values.shape != (draws,):
        raise ValueError(
            f"function must map means [..., k] to values [...]; means [{draws}, k] became shape {values.shape}."
        )
    return percentile(value, values, len(columns), n_groups, level, widen)


def headroom_gap(
    correct_prompt: Float[np.ndarray, "decision"],
    correct_cot: Float[np.ndarray, "decision"],
    groups: Sequence[Hashable],
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate (acc_cot - acc_prompt) / (1 - acc_prompt): the share of what the prompt action left open that the trace gains.

    correct_prompt, correct_cot: 1 where the action is right. groups, draws, seed, level: as in `cluster_bootstrap`.
    The value is NaN where the prompt action is always right. Raises what `cluster_bootstrap` raises.
    """
    prompt, cot = _same_length(correct_prompt, correct_cot)

    def share(mean):
        left = 1 - mean[..., 0]
        return np.where(left > 0, (mean[..., 1] - mean[..., 0]) / left, np.nan)

    return cluster_bootstrap(np.stack([prompt, cot], axis=1).astype(float), groups, share, draws, seed, level)


def kappa(
    a: Sequence[Hashable],
    b: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate Cohen's kappa between two labellings of the same decisions: agreement beyond what their marginals give.

    a, b: labels, any hashables (a parse failure is a label of its own). groups: clusters; by default every decision is one.
    The value is NaN where both sides use one and the same label throughout.
    Raises ValueError for lengths that differ and what `cluster_bootstrap` raises. Source: Cohen 1960.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} labels and b {len(b)}: they must label the same decisions.")
    code, names = integer_codes([*a, *b])
    a_code, b_code, k = code[: len(a)], code[len(a) :], len(names)
    columns = np.hstack([(a_code == b_code)[:, None], np.eye(k)[a_code], np.eye(k)[b_code]])

    def from_means(mean):
        chance = (mean[..., 1 : k + 1] * mean[..., k + 1 :]).sum(axis=-1)
        return np.where(chance < 1, (mean[..., 0] - chance) / (1 - chance), np.nan)

    estimate = cluster_bootstrap(
        columns, np.arange(len(a)) if groups is None else groups, from_means, draws, seed, level
    )
    return estimate if k == 1 else replace(estimate, value=float(cohen_kappa_score(a_code, b_code)))


def correlation(
    x: Float[np.ndarray, "decision cell"],
    y: Float[np.ndarray, "decision cell"],
    groups: Sequence[Hashable],
    kind: Literal["pearson", "spearman"] = "pearson",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate the correlation of two quantities over all cells of all decisions, with an interval that resamples whole clusters.

    x, y: a row of cells for each decision (pair); cells where either is not finite are left out. groups, draws, seed, level: as in
    `cluster_bootstrap`. kind: `spearman` ranks anew in each resample. The value is NaN where there are fewer than three cells, or all
    of one side are equal. `n` counts the decisions that have cells. Raises ValueError for shapes that differ and another kind.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 2 or len(groups) != len(x):
        raise ValueError(
            f"x and y must be [decision, cell] of one shape, with a group for each decision, not {x.shape}, {y.shape} and {len(groups)} groups."
        )
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"There is no correlation {kind!r}: give pearson or spearman.")
    known = np.isfinite(x) & np.isfinite(y)
    rows = np.flatnonzero(known.any(axis=1))
    n_groups, of = len({groups[i] for i in rows}), np.nonzero(known[rows])[0]
    a, b = x[known], y[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(np.nan, np.nan, np.nan, len(rows), n_groups)
    value = (pearsonr if kind == "pearson" else spearmanr)(a, b).statistic
    weights = bootstrap_weights([groups[i] for i in rows], draws, seed)[:, of]
    sides = [side - side.mean() if kind == "pearson" else _weighted_ranks(side, weights) for side in (a, b)]
    total = weights.sum(axis=1, keepdims=True)
    a, b = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (weights * a * b).sum(axis=1) / np.sqrt(
            (weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1)
        )
    return percentile(float(value), values, len(rows), n_groups, level)


def mcnemar(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> float:
    """Exact two-sided p-value that two readings of the same decisions are right equally often.

    correct_a, correct_b: truth values, one per decision. Decisions count as independent: quote a clustered interval beside it.
    Raises ValueError for lengths that differ. Source: McNemar 1947, exact binomial form.
    """
    a, b = (side.astype(bool) for side in _same_length(correct_a, correct_b))
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    if table[0][1] + table[1][0] == 0:
        return 1.0
    return float(contingency_tables.mcnemar(table, exact=True).pvalue)


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson interval (low, high) for `k` successes in `n` independent trials (or as many as dependent ones are worth).

    Raises ValueError unless 0 <= k <= n and n >= 1. Source: Wilson 1927.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"A proportion needs 0 <= k <= n and n >= 1, not k = {k} and n = {n}.")
    low, high = proportion.proportion_confint(k, n, alpha=1 - level, method="wilson")
    return (float(low) if k else 0.0), (
        float(high) if k < n else 1.0
    )  # which rounding would put beside its end


def holm(p: Sequence[float]) -> Float[np.ndarray, "test"]:
    """Holm-adjusted p-values, in the order given.

    Raises ValueError for a p-value outside [0, 1] or NaN. Source: Holm 1979.
    """
    p = np.asarray(p, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1]; given {p.tolist()}.")
    return multitest.multipletests(p, method="holm")[1] if len(p) else p


def max_statistic(
    gains: Float[np.ndarray, "decision layer"],
    groups: Sequence[Hashable],
    permutations: int = 2000,
    seed: int = 0,
    alternative: Literal["greater", "two-sided"] = "greater",
    widen: float = 1.0,
) -> Float[np.ndarray, "layer"]:
    """P-values that the mean gain is 0, corrected over layers: sign flips of whole episodes, and the largest statistic of each.

    A layer's statistic is its sum of gains over the root of the episodes' summed squares, which sign flips leave alone; a p-value
    is the share of flips in which the largest statistic of all layers reaches it, the data themselves counted as one flip.
    Layers that rise and fall together cost little, unlike in `holm`. Under the null an episode's gains are symmetric about 0.

    gains: paired differences (probe minus control) per decision and layer. groups: the cluster (episode) of each decision.
    permutations: random flips. alternative: gain above 0, or different from it. widen: as in `percentile`; statistics are divided by it.
    Raises ValueError for another shape, gains that are not finite, lengths that differ, fewer than two episodes, no permutation
    and an unknown alternative. Sources: Westfall & Young 1993 (maxT), Winkler et al. 2014 (sign flips of exchangeable blocks).
    """
    gains = np.asarray(gains, dtype=float)
    if gains.ndim != 2 or not gains.size or not np.isfinite(gains).all():
        raise ValueError(
            f"gains must be finite and [decision, layer], with some of both; they are of shape {gains.shape}."
        )
    if len(groups) != len(gains):
        raise ValueError(
            f"gains has {len(gains)} decisions but groups names {len(groups)}: give one for each."
        )
    if alternative not in ("greater", "two-sided") or permutations < 1:
        raise ValueError(
            f"Need alternative 'greater' or 'two-sided' and permutations >= 1, not {alternative!r} and {permutations}."
        )
    code, names = cluster_codes(groups)
    if len(names) < 2:
        raise ValueError(
            "All decisions are of one episode: flipping its sign alone tests nothing, so give at least two."
        )
    sums = np.stack([np.bincount(code, weights=layer, minlength=len(names)) for layer in gains.T], axis=1)
    scale = np.sqrt((sums**2).sum(axis=0))
    sums = np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, len(names)))
    found, null = sums.sum(axis=0) / widen, flips @ sums
    if alternative == "two-sided":
        found, null = np.abs(found), np.abs(null)
    reached = null.max(axis=1)[:, None] >= found - 1e-12  # equal sums added in another order count as equal
    return (1 + reached.sum(axis=0)) / (1 + permutations)


def _weighted_ranks(
    values: Float[np.ndarray, "cell"], weights: Int[np.ndarray, "draw cell"]
) -> Float[np.ndarray, "draw cell"]:
    """Mean rank of each cell's value in samples that hold it `weights` times."""
    _, code = np.unique(values, return_inverse=True)
    held = np.zeros((len(weights), code.max() + 1))
    np.add.at(held.T, code, weights.T)
    return (held.cumsum(axis=1) - (held - 1) / 2)[:, code]


def _cluster_weights(n_groups: int, draws: int, seed: int) -> Int[np.ndarray, "draw cluster"]:
    drawn = (
        np.random.default_rng(seed).integers(n_groups, size=(draws, n_groups))
        + n_groups * np.arange(draws)[:, None]
    )
    return np.bincount(drawn.ravel(), minlength=draws * n_groups).reshape(draws, n_groups)


def _same_length(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"Both sides must be vectors over the same decisions, not of shapes {a.shape} and {b.shape}."
        )
    return a, b
