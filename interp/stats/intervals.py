"""Estimates with intervals that respect episodes, and the paired tests used beside them.

Decisions of one episode are not independent, so every interval here resamples whole episodes.

>>> cluster_bootstrap(correct_cot - correct_prompt, episode)                  # the gap
>>> cluster_bootstrap(np.stack([correct_prompt, correct_cot], axis=1), episode,
...                   function=lambda mean: mean[..., 1] / mean[..., 0])    # a ratio, paired by construction
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import lazy_loader as lazy
import numpy as np
from jaxtyping import Float, Int, Num, Shaped

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")  # half a second, which a bad flag need not wait for

# scipy.stats, sklearn and statsmodels take seconds to import, and are imported where they are used
#: The cluster of each decision: a list, range, array, series or tensor of names or numbers.
Groups = Collection[object]
#: A number or truth value for each decision, perhaps for several quantities: [decision] or [decision, k].
Columns = Shaped[np.ndarray, "..."] | Sequence[float]
#: From means [..., k] to values [...].
OfMeans = Callable[[Float[np.ndarray, "*draw k"]], Float[np.ndarray, "*draw"]]


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


def integer_codes(values: Iterable[Hashable]) -> tuple[Int[np.ndarray, "row"], list]:
    """Number `values` in order of first appearance; returns a code per row and the distinct values."""
    seen: dict[Hashable, int] = {}
    codes = [seen.setdefault(value, len(seen)) for value in values]
    return np.array(codes, dtype=int), list(seen)


def cluster_codes(groups: Groups) -> tuple[Int[np.ndarray, "decision"], list]:
    """Number the clusters as `integer_codes` does; numbers of numpy and torch count as plain ones.

    Raises:
        ValueError: for a decision without a cluster (None, NaN), and for clusters that are not hashable.
    """
    if hasattr(groups, "tolist"):
        plain = groups.tolist()
    else:
        plain = [group.item() if hasattr(group, "item") else group for group in groups]
    try:
        codes, names = integer_codes(plain)
    except TypeError as error:
        raise ValueError(f"groups must be names or numbers, one for each decision ({error}).") from error
    for code, name in enumerate(names):
        if pd.api.types.is_scalar(name) and pd.isna(name):
            first = int(np.argmax(codes == code))
            raise ValueError(f"Decision {first} has no group ({name}): name the episode of every decision.")
    return codes, names


def bootstrap_weights(groups: Groups, draws: int = 2000, seed: int = 0) -> Int[np.ndarray, "draw decision"]:
    """Count how often each decision is in each resample of whole clusters.

    They are those of `cluster_bootstrap` for equal `seed` and `groups`. They serve scores that are no
    function of means: `percentile` turns the values of a score (AUROC, F1) in them into an estimate.

    Raises:
        ValueError: for no decisions and draws below 1.
    """
    if len(groups) == 0 or draws < 1:
        raise ValueError(f"Resamples need at least one decision and one draw, not {len(groups)} and {draws}.")
    code, names = cluster_codes(groups)
    return _cluster_weights(len(names), draws, seed).astype(int)[:, code]


def percentile(
    value: float,
    values: Float[np.ndarray, "draw"],
    n: int,
    n_groups: int,
    level: float = 0.95,
    widen: float = 1.0,
) -> Estimate:
    """Estimate with the expanded percentile interval of the `values` in resamples.

    Resamples of G clusters spread less than samples do, by sqrt((G - 1) / G), and their spread is itself
    uncertain. So the quantiles are those at which a normal has its sqrt(G / (G - 1)) t quantile of G - 1
    degrees of freedom: 2.5 % become 1.9 at 30 clusters and 0.9 at 10.

    Values that are not finite are left out. The interval is NaN where they are more than 1 - level of all,
    where `value` is not finite, and for one cluster.

    Args:
        n, n_groups: decisions and clusters.
        level: coverage.
        widen: factor on the interval for dependence that clusters do not hold (`cross_fitted`).

    Source: Efron & Tibshirani 1993; Hesterberg 2015 (expanded percentiles).
    """
    finite = values[np.isfinite(values)]
    low = high = np.nan
    if n_groups > 1 and np.isfinite(value) and len(finite) >= level * len(values):
        tail = expanded_tail(n_groups, level, widen)
        low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high), n, n_groups)


@lru_cache(maxsize=1024)
def expanded_tail(n_groups: int, level: float = 0.95, widen: float = 1.0) -> float:
    """Share of resamples beyond each end of `percentile`'s interval, of two clusters or more."""
    from scipy.special import ndtr, stdtrit  # which scipy.stats checks and calls, in a hundred times as long

    quantile = -stdtrit(n_groups - 1, (1 - level) / 2)
    return float(ndtr(-(widen * np.sqrt(n_groups / (n_groups - 1)) * quantile)))


def cross_fitted(folds: int) -> float:
    """Factor on intervals of scores from `folds` folds, each held out once: sqrt(1 + (folds - 1) / folds).

    It is 1.34 for five. Held-out scores of two folds depend on each other through the predictors, since each
    fold trains the other's. Their correlation is taken as a fold's share of the decisions, 1 / folds.

    Source: Nadeau & Bengio 2003; `analyses.coverage` measures it.
    """
    return float(np.sqrt(1 + (folds - 1) / folds))


def cluster_bootstrap(
    columns: Columns,
    groups: Groups,
    function: OfMeans | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    widen: float = 1.0,
) -> Estimate:
    """Estimate a function of column means, resampling whole clusters.

    All columns are resampled together, so differences and ratios are paired; equal `seed` and `groups` give
    equal resamples whatever the columns. Clusters keep their sizes: the mean is over decisions, not over
    clusters.

    Truth values that are all equal have nothing to resample, which is no certainty: their interval is
    Wilson's, on
    the clusters. With one cluster the interval is NaN. Resamples in which `function` is not finite are left
    out; where they are more than 1 - level of all, the interval is NaN.

    Args:
        columns: one number per decision and quantity; a vector is one column.
        groups: the cluster (episode) of each decision.
        function: from means [..., k] to values [...]; by default the mean of the single column.
        draws: resamples.
        level, widen: as in `percentile`.

    Raises:
        ValueError: for no rows, rows that are not finite, lengths that differ, or columns without a function.

    Source: Field & Welsh 2007 (cluster bootstrap); Hesterberg 2015 (expanded percentile interval).
    """
    rate = function is None and np.asarray(columns).dtype == bool
    values = _checked_columns(columns, groups)
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level between 0 and 1, not {draws} and {level}.")
    of_means = _single_column if function is None else function
    if function is None and values.shape[1] != 1:
        raise ValueError(f"{values.shape[1]} columns need a function of their means: one has a default.")
    code, names = cluster_codes(groups)
    n, n_groups = len(values), len(names)
    if n_groups > 1 and rate and values.min() == values.max():
        effective = max(n_groups / widen**2, 1)
        low, high = wilson(values[0, 0] * effective, effective, level)
        return Estimate(float(values[0, 0]), low, high, n, n_groups)
    shapes = "function must map means [..., k] to values [...]; "
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.asarray(of_means(values.mean(axis=0)), dtype=float)
        if whole.shape:
            raise ValueError(f"{shapes}[k] became shape {whole.shape}.")
        if n_groups == 1:
            return Estimate(float(whole), np.nan, np.nan, n, 1)
        by_column = [np.bincount(code, weights=column, minlength=n_groups) for column in values.T]
        counts = np.bincount(code, minlength=n_groups)
        weights = _cluster_weights(n_groups, draws, seed)
        means = weights @ np.stack(by_column, axis=1) / (weights @ counts)[:, None]
        drawn = np.asarray(of_means(means), dtype=float)
    if drawn.shape != (draws,):
        raise ValueError(f"{shapes}means [{draws}, k] became shape {drawn.shape}.")
    return percentile(float(whole), drawn, n, n_groups, level, widen)


def headroom_gap(
    correct_prompt: Columns,
    correct_cot: Columns,
    groups: Groups,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate (acc_cot - acc_prompt) / (1 - acc_prompt), the share of errors that the trace mends.

    The value is NaN where the prompt action is always right.

    Args:
        correct_prompt, correct_cot: 1 where the action is right.
        groups, draws, seed, level: as in `cluster_bootstrap`, which raises.
    """
    prompt, cot = _same_length(correct_prompt, correct_cot)
    columns = np.stack([prompt, cot], axis=1).astype(float)
    return cluster_bootstrap(columns, groups, headroom_share, draws, seed, level)


def headroom_share(mean: Float[np.ndarray, "*draw 2"]) -> Float[np.ndarray, "*draw"]:
    """The headroom gap of the accuracies of the prompt and the CoT action."""
    errors = 1 - mean[..., 0]
    return np.where(errors > 0, (mean[..., 1] - mean[..., 0]) / errors, np.nan)


def kappa(
    a: Groups,
    b: Groups,
    groups: Groups | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate Cohen's kappa: agreement of two labellings beyond what their marginals give.

    The value is NaN where both use one and the same label throughout.

    Args:
        a, b: labels (a parse failure is a label of its own).
        groups: clusters; by default every decision is one.

    Raises:
        ValueError: for lengths that differ and where `cluster_bootstrap` does.

    Source: Cohen 1960.
    """
    from sklearn.metrics import cohen_kappa_score

    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} labels and b {len(b)}: they must label the same decisions.")
    columns = labellings([*a], [*b])
    clusters = range(len(a)) if groups is None else groups
    estimate = cluster_bootstrap(columns, clusters, kappa_of_means, draws, seed, level)
    if columns.shape[1] == 3:  # one label
        return estimate
    code, _ = integer_codes([*a, *b])
    return replace(estimate, value=float(cohen_kappa_score(code[: len(a)], code[len(a) :])))


def labellings(a: Sequence[Hashable], b: Sequence[Hashable]) -> Float[np.ndarray, "decision columns"]:
    """Of two labellings: whether they agree, then a column for each label of the first and of the second."""
    code, names = integer_codes([*a, *b])
    first, second, labels = code[: len(a)], code[len(a) :], np.eye(len(names))
    return np.hstack([(first == second)[:, None], labels[first], labels[second]])


def kappa_of_means(mean: Float[np.ndarray, "*draw columns"]) -> Float[np.ndarray, "*draw"]:
    """Cohen's kappa of the means of `labellings`."""
    k = (mean.shape[-1] - 1) // 2
    chance = (mean[..., 1 : k + 1] * mean[..., k + 1 :]).sum(axis=-1)
    return np.where(chance < 1, (mean[..., 0] - chance) / (1 - chance), np.nan)


def correlation(
    x: Num[np.ndarray, "_ _"],
    y: Num[np.ndarray, "_ _"],
    groups: Groups,
    kind: str = "pearson",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate the correlation of two quantities over all cells of all decisions, resampling whole clusters.

    The value is NaN where there are fewer than three cells, or all of x or of y are equal.

    Args:
        x, y: [decision, cell]; cells where either is not finite are left out. `n` counts the decisions with
            cells.
        groups, draws, seed, level: as in `cluster_bootstrap`.
        kind: `pearson`, or `spearman`, which ranks anew in each resample.

    Raises:
        ValueError: for shapes that differ and another kind.
    """
    from scipy.stats import pearsonr, spearmanr

    x, y, clusters = np.asarray(x, dtype=float), np.asarray(y, dtype=float), list(groups)
    if x.shape != y.shape or x.ndim != 2 or len(clusters) != len(x):
        raise ValueError(
            "x and y must be [decision, cell] of one shape, with a group for each decision, "
            f"not {x.shape}, {y.shape} and {len(clusters)} groups."
        )
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"There is no correlation {kind!r}: give pearson or spearman.")
    finite = np.isfinite(x) & np.isfinite(y)
    rows = np.flatnonzero(finite.any(axis=1))
    row_of_cell = np.nonzero(finite[rows])[0]
    clusters = [clusters[row] for row in rows]
    n_groups = len(set(clusters))
    a, b = x[finite], y[finite]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(np.nan, np.nan, np.nan, len(rows), n_groups)
    value = (pearsonr if kind == "pearson" else spearmanr)(a, b).statistic
    weights = bootstrap_weights(clusters, draws, seed)[:, row_of_cell]
    a, b = (v - v.mean() if kind == "pearson" else _weighted_ranks(v, weights) for v in (a, b))
    total = weights.sum(axis=1, keepdims=True)
    a, b = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        power = (weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1)
        values = (weights * a * b).sum(axis=1) / np.sqrt(power)
    return percentile(float(value), values, len(rows), n_groups, level)


def mcnemar(correct_a: Columns, correct_b: Columns) -> float:
    """Exact two-sided p-value that two predictors of the same decisions are right equally often.

    Decisions count as independent: quote a clustered interval beside it.

    Args:
        correct_a, correct_b: truth values, one per decision.

    Raises:
        ValueError: for lengths that differ.

    Source: McNemar 1947, exact binomial form.
    """
    from statsmodels.stats import contingency_tables

    a, b = (correct.astype(bool) for correct in _same_length(correct_a, correct_b))
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    if table[0][1] + table[1][0] == 0:
        return 1.0
    return float(contingency_tables.mcnemar(table, exact=True).pvalue)


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson interval (low, high) for `k` successes in `n` independent trials, or trials worth that many.

    Raises:
        ValueError: unless 0 <= k <= n and n >= 1.

    Source: Wilson 1927.
    """
    from statsmodels.stats import proportion

    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"A proportion needs 0 <= k <= n and n >= 1, not k = {k} and n = {n}.")
    low, high = proportion.proportion_confint(k, n, alpha=1 - level, method="wilson")
    # Rounding would put an end at 0 or 1 beside it.
    return (float(low) if k else 0.0), (float(high) if k < n else 1.0)


def holm(p: Sequence[float] | Float[np.ndarray, "test"]) -> Float[np.ndarray, "test"]:
    """Holm-adjusted p-values, in the order given.

    Raises:
        ValueError: for a p-value outside [0, 1] or NaN.

    Source: Holm 1979.
    """
    from statsmodels.stats import multitest

    raw = np.asarray(p, dtype=float)
    if not ((raw >= 0) & (raw <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1]; given {raw.tolist()}.")
    return multitest.multipletests(raw, method="holm")[1] if len(raw) else raw


def max_statistic(
    gains: Num[np.ndarray, "..."],
    groups: Groups,
    permutations: int = 2000,
    seed: int = 0,
    alternative: str = "greater",
    widen: float = 1.0,
) -> Float[np.ndarray, "layer"]:
    """P-values that the mean gain is 0, corrected over layers by sign flips of whole episodes.

    A layer's statistic is its sum of gains over the root of the episodes' summed squares, which sign flips
    leave alone. A p-value is the share of flips in which the largest statistic of all layers reaches it, the
    data counted as one flip. Layers that rise and fall together cost little, unlike in `holm`. Under the null
    an episode's gains are symmetric about 0.

    Args:
        gains: paired differences (probe - control), [decision, layer].
        groups: the cluster (episode) of each decision.
        permutations: random flips.
        alternative: `greater` than 0, or `two-sided`.
        widen: as in `percentile`; statistics are divided by it.

    Raises:
        ValueError: for another shape, gains that are not finite, lengths that differ, fewer than two
            episodes, no permutation and an unknown alternative.

    Source: Westfall & Young 1993 (maxT); Winkler et al. 2014 (sign flips of exchangeable blocks).
    """
    gains = np.asarray(gains, dtype=float)
    if gains.ndim != 2 or not gains.size or not np.isfinite(gains).all():
        raise ValueError(
            f"gains must be finite and [decision, layer], with some of both; they are of shape {gains.shape}."
        )
    _check_length("gains has", gains, groups)
    if alternative not in ("greater", "two-sided") or permutations < 1:
        raise ValueError(
            "Need alternative 'greater' or 'two-sided' and permutations >= 1, "
            f"not {alternative!r} and {permutations}."
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
    statistic, null = sums.sum(axis=0) / widen, flips @ sums
    if alternative == "two-sided":
        statistic, null = np.abs(statistic), np.abs(null)
    # Equal sums added in another order count as equal.
    reached = null.max(axis=1)[:, None] >= statistic - 1e-12
    return (1 + reached.sum(axis=0)) / (1 + permutations)


def _single_column(mean: Float[np.ndarray, "*draw k"]) -> Float[np.ndarray, "*draw"]:
    return mean[..., 0]


def _check_length(what: str, values: Shaped[np.ndarray, "..."], groups: Groups) -> None:
    if len(groups) != len(values):
        raise ValueError(f"{what} {len(values)} decisions but groups names {len(groups)}: give one for each.")


def _checked_columns(columns: Columns, groups: Groups) -> Float[np.ndarray, "decision k"]:
    """Columns as finite numbers [decision, k], or a ValueError."""
    values = np.asarray(columns, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise ValueError(f"columns must be [decision] or [decision, k], not of shape {values.shape}.")
    _check_length("columns has", values, groups)
    if len(values) == 0:
        raise ValueError("There are no decisions, hence no clusters to resample: give at least one row.")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} rows are NaN or infinite (first: row {bad[0]}): leave them out."
        )
    return values


def _weighted_ranks(
    values: Float[np.ndarray, "cell"], weights: Int[np.ndarray, "draw cell"]
) -> Float[np.ndarray, "draw cell"]:
    """Mean rank of each cell's value in samples that hold it `weights` times."""
    _, code = np.unique(values, return_inverse=True)
    held = np.zeros((len(weights), code.max() + 1))
    np.add.at(held.T, code, weights.T)
    return (held.cumsum(axis=1) - (held - 1) / 2)[:, code]


@lru_cache(maxsize=4)  # a table's rows are of the same clusters
def _cluster_weights(n_groups: int, draws: int, seed: int) -> Float[np.ndarray, "draw cluster"]:
    """How often each cluster is in each resample, as floats, which multiply faster; not to be changed."""
    drawn = np.random.default_rng(seed).integers(n_groups, size=(draws, n_groups))
    cells = drawn + n_groups * np.arange(draws)[:, None]
    return np.bincount(cells.ravel(), minlength=draws * n_groups).reshape(draws, n_groups).astype(float)


def _same_length(
    a: Columns, b: Columns
) -> tuple[Shaped[np.ndarray, "decision"], Shaped[np.ndarray, "decision"]]:
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"Both must be vectors over the same decisions, not of shapes {first.shape} and {second.shape}."
        )
    return first, second
