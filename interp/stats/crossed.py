"""Conditions of training compared over games and seeds, with intervals that respect both.

An outcome is what one training (a condition of one seed) did in one game. Every training plays the same
games, and the trainings of one seed share their data's order. So games and seeds are crossed, and an interval
must hold for other games *and* other seeds.

>>> y = outcomes(frame)                                        # y.values[condition, seed, game]
>>> contrast(y, {"action_mask_0.3": 1, "action_mask_0": -1})    # the difference, paired over seeds and games
>>> contrast(y, slope_weights({"action_mask_0": 0, "action_mask_0.3": 0.3, "action_mask_0.7": 0.7}))
>>> paired(frame, ["action_mask_0", "action_mask_0.3"])         # where some trainings lack a value
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

from interp.stats.changes import OPEN, SUPPORTED
from interp.stats.intervals import Estimate, wilson
from interp.system.limits import SMALLEST

#: A number for each data set of `crossed` (a plain one for a single set).
PerSet = Float[np.ndarray, "*rest"] | float


@dataclass(frozen=True)
class Outcomes:
    """One metric of every training in every game, and the rows `n` of a game.

    `values` are NaN where a condition has no such seed.
    """

    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    games: tuple[str, ...]
    values: Float[np.ndarray, "condition seed game"]
    n: Float[np.ndarray, "game"]

    def of(self, conditions: Iterable[str]) -> Float[np.ndarray, "condition seed game"]:
        """The values of these conditions, of the seeds that they all have.

        Raises:
            ValueError: for a condition that is not there.
        """
        conditions = list(conditions)
        if missing := [condition for condition in conditions if condition not in self.conditions]:
            raise ValueError(
                f"There are no outcomes of the condition {missing[0]!r}: "
                f"there are {', '.join(self.conditions)}."
            )
        values = self.values[[self.conditions.index(condition) for condition in conditions]]
        return values[:, ~np.isnan(values).any(axis=(0, 2))]


def outcomes(frame: pd.DataFrame) -> Outcomes:
    """Outcomes from rows of condition, seed, game and value, one or several (decisions) for each game.

    Raises:
        ValueError: where two trainings differ in their games or in the rows of one, and for values that are
            not finite.
    """
    values = frame["value"].to_numpy(dtype=float)
    bad = int((~np.isfinite(values)).sum())
    if frame.empty or bad:
        raise ValueError(
            f"{len(frame)} outcomes, of which {bad} are no numbers: "
            "give rows of condition, seed, game and value."
        )
    codes, (conditions, seeds, games) = _numbered(frame, "condition", "seed", "game")
    n = _counted(codes, (conditions, seeds, games))
    trainings = np.argwhere(n.any(axis=-1))  # by condition, then seed
    first = n[tuple(trainings[0])]
    wrong = trainings[(n[tuple(trainings.T)] != first).any(axis=-1)]
    if len(wrong) or not first.all():
        (a, s), (b, t) = [*wrong, *trainings][0], trainings[0]
        raise ValueError(
            f"The condition {conditions[a]!r} of seed {seeds[s]} has other games, or another number of rows "
            f"in one, than {conditions[b]!r} of seed {seeds[t]}: conditions are compared on the same games."
        )
    with np.errstate(invalid="ignore"):  # a condition that has no such seed
        means = _counted(codes, (conditions, seeds, games), values) / n
    return Outcomes(
        tuple(conditions), tuple(map(int, seeds)), tuple(map(str, games)), means, first.astype(float)
    )


def _numbered(frame: pd.DataFrame, *columns: str) -> tuple[list[Int[np.ndarray, "row"]], list[pd.Index]]:
    """Each row's number in each column's values, and those values in order."""
    codes, values = zip(*(pd.factorize(frame[column], sort=True) for column in columns), strict=True)
    return list(codes), list(values)


def _counted(
    codes: Sequence[Int[np.ndarray, "row"]],
    values: Sequence[pd.Index],
    weights: Float[np.ndarray, "row"] | None = None,
) -> Num[np.ndarray, "*values"]:
    """How many rows, or their summed weights, there are of every combination of `_numbered` values."""
    shape = tuple(map(len, values))
    cell = np.ravel_multi_index(tuple(codes), shape)
    return np.bincount(cell, weights, minlength=int(np.prod(shape))).reshape(shape)


def ratio(numerator: Outcomes, denominator: Outcomes) -> Outcomes:
    """Outcomes whose means over games are the ratios of two outcomes' means, to first order in each game.

    Both are of the same conditions, seeds and games. Source: the delta method (Efron & Tibshirani 1993).
    """
    above, below = ((o.values @ o.n / o.n.sum())[..., None] for o in (numerator, denominator))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = above / below + (numerator.values - above / below * denominator.values) / below
    return replace(numerator, values=values)


class NothingShared(ValueError):
    """Conditions that have nothing in common to be compared on."""


def paired(frame: pd.DataFrame, conditions: Iterable[str]) -> Outcomes:
    """Outcomes of some conditions on the seeds they share and the items that all have a value for.

    Args:
        frame: rows of condition, seed, game, item, value and denominator, NaN where a training has none (an
            action that did not parse follows no trace). Denominators that are not all 1 make it a `ratio` of
            means.

    Raises:
        ValueError: where trainings were given different items.
        NothingShared: for conditions that share no seed, and where no item is left.
    """
    conditions = list(conditions)
    rows = frame[frame["condition"].isin(conditions)]
    if rows.empty:
        raise NothingShared(_no_shared_seed(conditions))
    codes, (named, seeds, items) = _numbered(rows, "condition", "seed", "item")
    asked = _counted(codes, (named, seeds, items)) > 0
    trainings = np.argwhere(asked.any(axis=-1))
    other = trainings[(asked[tuple(trainings.T)] != asked[tuple(trainings[0])]).any(axis=-1)]
    if len(other):
        (a, s), (b, t) = other[0], trainings[0]
        raise ValueError(
            f"The condition {named[a]!r} of seed {seeds[s]} was asked for other items than {named[b]!r} of "
            f"seed {seeds[t]}: conditions are compared on the same ones."
        )
    known = rows[["value", "denominator"]].notna().to_numpy().all(axis=1)
    answered = _counted([code[known] for code in codes], (named, seeds, items))
    shared = np.logical_and.reduce(answered.any(axis=-1))
    if len(named) < len(set(conditions)) or not shared.any():
        raise NothingShared(_no_shared_seed(conditions))
    whole = answered[:, shared].sum(axis=(0, 1)) == len(conditions) * shared.sum()
    rows = rows[known & shared[codes[1]] & whole[codes[2]]]
    if rows.empty:
        raise NothingShared(
            f"There is nothing that all trainings of {', '.join(conditions)} have a value for."
        )
    values = outcomes(rows)
    if (rows["denominator"] == 1).all():
        return values
    return ratio(values, outcomes(rows.assign(value=rows["denominator"])))


def _no_shared_seed(conditions: Iterable[str]) -> str:
    return f"The conditions {', '.join(conditions)} share no seed: conditions are compared on the same seeds."


#: The outcome that the claim is about, and the condition that is to be better in it (`analyses.masking.run`
#: has the predictions).
CLAIM = dict(metric="acc_cot", split="out_of_domain", condition="action_mask_0.3")


def verdict(difference: Estimate, control: Estimate, margin: float = SMALLEST) -> str:
    """Whether masking action tokens helps as claimed: `supported`, `excluded(margin)`, or `open`.

    difference: action-masked - unmasked. control: action-masked - the random mask of equal share.
    Supported where both intervals lie above 0; a gain is excluded where one of them lies below the margin: it
    does not help by an amount that would matter, or masking any tokens helps as much.
    """
    if difference.low > 0 and control.low > 0:
        return SUPPORTED
    return excluded(margin) if difference.high < margin or control.high < margin else OPEN


def excluded(margin: float = SMALLEST) -> str:
    """The verdict on a gain that is shown to be smaller than the margin."""
    return f"a gain of at least {margin:g} excluded"


def slope_weights(shares: Mapping[str, float]) -> dict[str, float]:
    """The weights of conditions in the least-squares slope of an outcome on the conditions' shares k.

    Raises:
        ValueError: for fewer than two different shares.
    """
    if len(set(shares.values())) < 2:
        raise ValueError(f"A slope needs conditions of at least two different shares, not {dict(shares)}.")
    k = np.array(list(shares.values()))
    return dict(zip(shares, (k - k.mean()) / ((k - k.mean()) ** 2).sum()))


def contrast(
    results: Outcomes,
    weights: Mapping[str, float],
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    widen: float = 1.0,
) -> tuple[Estimate, int]:
    """A weighted sum of conditions' means with its interval over games and seeds, and the number of seeds.

    Only seeds that all its conditions have count, so that it is paired. `n` counts those seeds' games,
    `n_groups` the games. An interval of values between 0 and 1 reaches no further than the weights let such
    means. Where all that is summed is 0 or 1 and never differs, there is nothing to resample, which is no
    certainty: the interval is Wilson's on the games, of the share itself, or of the share of games in which
    conditions could differ.

    Args:
        draws, seed, level: as in `crossed`.
        widen: factor on the interval (`interp.stats.intervals.cross_fitted`).

    Raises:
        ValueError: for conditions that are not there or share no seed.
    """
    values = results.of(weights)
    if not values.shape[1]:
        raise ValueError(_no_shared_seed(weights))
    weight = np.array(list(weights.values()))
    summed, games = np.tensordot(weight, values, 1), len(results.games)
    mean = float((summed.mean(axis=0) @ results.n) / results.n.sum())
    linear = mean + (summed - mean) * results.n / results.n.mean()  # games weigh as many as they have rows
    low, high = (
        mean + widen * (float(np.ravel(end)[0]) - mean) for end in crossed(linear[None], draws, seed, level)
    )
    if (values >= 0).all() and (values <= 1).all():
        least, most = float(weight[weight < 0].sum()), float(weight[weight > 0].sum())
        low, high = (float(np.clip(end, least, most)) for end in (low, high))
    if np.isin(values, (0, 1)).all() and np.ptp(summed) == 0 and games > 1:
        bound = wilson(0, games, level)[1]
        if np.isclose(weight.sum(), 0):
            high = float(bound * np.abs(weight).max())
            low = -high
        elif 0 <= mean <= 1:
            low, high = wilson(mean * games, games, level)
        else:
            low, high = mean - bound, mean + bound
    return Estimate(mean, low, high, values.shape[1] * games, games), values.shape[1]


def select(
    frame: pd.DataFrame, shares: Mapping[str, float], seed: int = 0, level: float = 0.95
) -> list[dict]:
    """Choose a share k: each condition's difference to k = 0, simultaneous intervals, one of them `chosen`.

    k = 0 is chosen unless another condition's interval lies above 0 (Bonferroni's, for the number of other
    conditions). Of those that do, it is the smallest k from which the best is not told apart. So a share is
    chosen on evidence alone, and where there is none, nothing is masked. The chosen condition's difference is
    the greatest of several, hence too large on average: measure it again on other games.

    Args:
        frame: as in `paired`.
        shares: condition -> k, among them 0.
        seed, level: as in `crossed`.

    Raises:
        ValueError: where no condition has k = 0, or none another one.
    """
    zero = next((condition for condition, k in shares.items() if k == 0), None)
    others = sorted((condition for condition, k in shares.items() if k), key=lambda name: shares[name])
    if zero is None or not others:
        raise ValueError(
            f"A share is chosen among k = 0 and others, not among {', '.join(shares) or 'none'}."
        )

    def difference(a: str, b: str, level: float) -> tuple[Estimate, int]:
        return contrast(paired(frame, (a, b)), {a: 1, b: -1}, seed=seed, level=level)

    strict = 1 - (1 - level) / len(others)
    differences = {condition: difference(condition, zero, strict) for condition in others}
    better = [condition for condition in others if differences[condition][0].low > 0]
    best = max(better, key=lambda condition: differences[condition][0].value, default=zero)
    chosen = zero
    for condition in better:
        if condition == best or difference(best, condition, 0.95)[0].low <= 0:
            chosen = condition
            break
    first, seeds = differences[others[0]]
    differences = {zero: (replace(first, value=0.0, low=np.nan, high=np.nan), seeds)} | differences
    return [
        dict(condition=name, share=shares[name], seeds=n, chosen=name == chosen, **estimate.row())
        for name, (estimate, n) in differences.items()
    ]


@lru_cache(maxsize=4)  # a table's rows are contrasts of the same seeds and games
def _resampled(
    draws: int, seed: int, seeds: int, games: int
) -> tuple[Float[np.ndarray, "draw seed"], Float[np.ndarray, "draw game"]]:
    """The weights of seeds and of games in each resample; not to be changed."""
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    by_game = rng.multinomial(games, np.full(games, 1 / games), size=draws) / games
    return by_seed, by_game


def crossed(
    values: Float[np.ndarray, "*rest seed game"], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[PerSet, PerSet]:
    """Ends of the interval of the mean over crossed seeds and games: a bootstrap, widened for few seeds.

    In each draw seeds and games are resampled with replacement. Of three seeds that alone reaches no further
    than from the least to the greatest, so the draws' deviations are stretched. Their spread becomes the
    standard error of the analysis of variance, sqrt((MS_seed + max(0, MS_game - MS_rest)) / (seeds * games)),
    or that over games alone where it is larger. A normal's quantile becomes that of t with Hillis' degrees of
    freedom. `analyses.masking.power` measures how often such intervals are wrong. With one seed the interval
    is over games alone, and says nothing of other seeds; with one game it is NaN.

    Args:
        values: each index of the leading axes is a data set of its own.
        draws: resamples, drawn with `seed`.
        level: coverage.

    Source: Owen 2007 (the pigeonhole bootstrap); Hillis 2007 and Obuchowski & Rockette 1995 (readers crossed
    with cases).
    """
    import scipy.stats  # which takes a second

    *rest, seeds, games = values.shape
    mean = values.mean(axis=(-2, -1), keepdims=True)
    if games < 2:
        unknown = np.full(rest, np.nan)
        return unknown, unknown
    by_seed, by_game = _resampled(draws, seed, seeds, games)
    path = ["einsum_path", (0, 1), (0, 1)]
    drawn = np.einsum("ds,...sg,dg->...d", by_seed, values - mean, by_game, optimize=path)
    # The draws' expected spread: of few draws it is uncertain, and an interval that ends at 0 would end on
    # either side.
    rows, columns = values.mean(axis=-1) - mean[..., 0], values.mean(axis=-2) - mean[..., 0]
    spread = np.sqrt(
        ((values - mean) ** 2).sum(axis=(-2, -1)) / (seeds * games) ** 2
        + (1 - 1 / seeds) * (columns**2).sum(axis=-1) / games**2
        + (1 - 1 / games) * (rows**2).sum(axis=-1) / seeds**2
    )
    variance, freedom = _variance(values)
    stretch = np.divide(np.sqrt(variance), spread, out=np.zeros_like(spread), where=spread > 0)
    stretch *= scipy.stats.t.isf((1 - level) / 2, freedom) / scipy.stats.norm.isf((1 - level) / 2)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=-1) * stretch
    return mean[..., 0, 0] + low, mean[..., 0, 0] + high


def _variance(
    values: Float[np.ndarray, "*rest seed game"],
) -> tuple[PerSet, PerSet]:
    """Variance of the mean over seeds and games, and its degrees of freedom."""
    *rest, seeds, games = values.shape
    mean = values.mean(axis=(-2, -1), keepdims=True)
    rows, columns = values.mean(axis=-1), values.mean(axis=-2)
    ms_game = seeds * columns.var(axis=-1, ddof=1)
    if seeds == 1:
        return ms_game / games, np.full(rest, games - 1.0)
    ms_seed = games * rows.var(axis=-1, ddof=1)
    residual = values - rows[..., None] - columns[..., None, :] + mean
    ms_rest = (residual**2).sum(axis=(-2, -1)) / ((seeds - 1) * (games - 1))
    both = np.maximum(ms_game, ms_seed + np.maximum(0, ms_game - ms_rest))
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.minimum((both / ms_seed) ** 2 * (seeds - 1), (seeds - 1) * (games - 1) + games - 1)
    return both / (seeds * games), np.where(np.isfinite(freedom), freedom, games - 1)
