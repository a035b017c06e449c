"""Conditions of training compared over games and seeds: outcomes that are paired over both, and contrasts with intervals that respect both.

An outcome is what one training (a condition of one seed) did in one game. Every training plays the same games, and one seed's trainings
share their data's order; so games and seeds are crossed, and an interval must hold for other games *and* other seeds.

>>> y = outcomes(frame)                                        # y.values[condition, seed, game]
>>> contrast(y, {"action_mask_0.3": 1, "action_mask_0": -1})    # the difference, paired over seeds and games
>>> contrast(y, slope_weights({"action_mask_0": 0, "action_mask_0.3": 0.3, "action_mask_0.7": 0.7}))
>>> paired(frame, ["action_mask_0", "action_mask_0.3"])         # of what not every training has a value for, as of a ratio
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from interp.stats.intervals import Estimate, wilson


@dataclass(frozen=True)
class Outcomes:
    """One metric of every training in every game: `values`, NaN where a condition has no such seed, and the rows that a game has, `n`."""

    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    games: tuple[str, ...]
    values: Float[np.ndarray, "condition seed game"]
    n: Float[np.ndarray, "game"]

    def of(self, conditions: Iterable[str]) -> Float[np.ndarray, "condition seed game"]:
        """The values of these conditions, of the seeds that they all have; raises ValueError for a condition that is not there."""
        conditions = list(conditions)
        if missing := [condition for condition in conditions if condition not in self.conditions]:
            raise ValueError(
                f"There are no outcomes of the condition {missing[0]!r}: there are {', '.join(self.conditions)}."
            )
        values = self.values[[self.conditions.index(condition) for condition in conditions]]
        return values[:, ~np.isnan(values).any(axis=(0, 2))]


def outcomes(frame: pd.DataFrame) -> Outcomes:
    """Outcomes from rows of condition, seed, game and value, one or several (decisions) for each game.

    Raises ValueError where two trainings have not the same games, or not as many rows of one, and for values that are not finite.
    """
    bad = int((~np.isfinite(frame["value"])).sum())
    if frame.empty or bad:
        raise ValueError(
            f"{len(frame)} outcomes, of which {bad} are no numbers: give rows of condition, seed, game and value."
        )
    cells = frame.groupby(["condition", "seed", "game"])["value"]
    means, sizes = cells.mean().unstack("game"), cells.size().unstack("game")
    wrong = sizes.ne(sizes.iloc[0]).any(axis=1) | sizes.isna().any(axis=1)
    if wrong.any() or sizes.iloc[0].isna().any():
        (condition, seed), (first, its) = (
            (sizes.index[wrong] if wrong.any() else sizes.index)[0],
            sizes.index[0],
        )
        raise ValueError(
            f"The condition {condition!r} of seed {seed} has other games, or another number of rows in one, than {first!r} of seed {its}: "
            "conditions are compared on the same games."
        )
    conditions, seeds = (
        tuple(means.index.get_level_values(level).unique()) for level in ("condition", "seed")
    )
    seeds = tuple(sorted(int(s) for s in seeds))
    values = (
        means.reindex(pd.MultiIndex.from_product([conditions, seeds]))
        .to_numpy()
        .reshape(len(conditions), len(seeds), -1)
    )
    return Outcomes(
        conditions, seeds, tuple(map(str, means.columns)), values, sizes.iloc[0].to_numpy(dtype=float)
    )


def ratio(numerator: Outcomes, denominator: Outcomes) -> Outcomes:
    """Outcomes whose means over games are the ratios of the two's means, to first order in each game: what `contrast` needs of a ratio.

    Both of the same conditions, seeds and games. Source: the delta method (influence values; Efron & Tibshirani 1993).
    """
    above, below = ((o.values @ o.n / o.n.sum())[..., None] for o in (numerator, denominator))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = above / below + (numerator.values - above / below * denominator.values) / below
    return replace(numerator, values=values)


class NothingShared(ValueError):
    """Conditions that have nothing in common to be compared on."""


def paired(frame: pd.DataFrame, conditions: Iterable[str]) -> Outcomes:
    """Outcomes of some conditions, of the seeds that they share, on the items that each of those trainings has a value for.

    frame: rows of condition, seed, game, item, value and denominator, NaN where a training has none (an action that did not parse follows
    no trace). Denominators that are not all 1 make it a `ratio` of means. Raises ValueError where trainings were not asked for
    the same items, and NothingShared for conditions that share no seed and where no item is left.
    """
    conditions = list(conditions)
    rows = frame[frame["condition"].isin(conditions)]
    asked = rows.groupby(["condition", "seed"])["item"].agg(frozenset)
    if other := [key for key in asked.index if asked[key] != asked.iloc[0]]:
        (condition, seed), (first, its) = other[0], asked.index[0]
        raise ValueError(
            f"The condition {condition!r} of seed {seed} was asked for other items than {first!r} of seed {its}: conditions are compared on the same ones."
        )
    rows = rows.dropna(subset=["value", "denominator"])
    seeds = set.intersection(*(set(rows["seed"][rows["condition"] == condition]) for condition in conditions))
    if not seeds:
        raise NothingShared(
            f"The conditions {', '.join(conditions)} share no seed: conditions are compared on the same seeds."
        )
    rows = rows[rows["seed"].isin(seeds)]
    rows = rows[rows.groupby("item")["condition"].transform("size") == len(conditions) * len(seeds)]
    if rows.empty:
        raise NothingShared(
            f"There is nothing that all trainings of {', '.join(conditions)} have a value for."
        )
    found = outcomes(rows)
    return (
        found
        if (rows["denominator"] == 1).all()
        else ratio(found, outcomes(rows.assign(value=rows["denominator"])))
    )


#: The outcome that the claim is about, and the condition that is to be better in it (`analyses.masking.run` has the predictions).
CLAIM = dict(metric="acc_cot", split="out_of_domain", condition="action_mask_0.3")
#: What a difference in success must reach to matter.
SMALLEST = 0.05


def verdict(difference: Estimate, control: Estimate) -> str:
    """Whether masking action tokens helps as claimed: `supported`, `refuted`, or `open` where the intervals decide neither.

    difference: action-masked - unmasked. control: action-masked - the random mask of equal share.
    Supported where both intervals lie above 0; refuted where one of them lies below SMALLEST: it does not help, or masking any
    tokens helps as much.
    """
    if difference.low > 0 and control.low > 0:
        return "supported"
    return "refuted" if difference.high < SMALLEST or control.high < SMALLEST else "open"


def slope_weights(shares: Mapping[str, float]) -> dict[str, float]:
    """The weights of conditions in the least-squares slope of an outcome on the conditions' shares k; raises ValueError for fewer than two shares."""
    if len(set(shares.values())) < 2:
        raise ValueError(f"A slope needs conditions of at least two different shares, not {dict(shares)}.")
    k = np.array(list(shares.values()))
    return dict(zip(shares, (k - k.mean()) / ((k - k.mean()) ** 2).sum()))


def contrast(
    found: Outcomes,
    weights: Mapping[str, float],
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    widen: float = 1.0,
) -> tuple[Estimate, int]:
    """A weighted sum of conditions' means, with its interval over games and seeds, and how many seeds it rests on.

    Only seeds that all its conditions have count, so that it is paired. draws, seed, level: as in `crossed`. widen: factor on the interval
    (`interp.stats.intervals.cross_fitted`). `n` counts those seeds' games, `n_groups` the games. The interval of
    what lies between 0 and 1 in every game reaches no further than the weights let such means. Where all that is summed is 0 or 1 and never
    differs, there is nothing to resample, which is no certainty: the interval is Wilson's on the games, of the share itself, or of the
    share of games in which conditions could differ.
    Raises ValueError for conditions that are not there or share no seed.
    """
    values = found.of(weights)
    if not values.shape[1]:
        raise ValueError(
            f"The conditions {', '.join(weights)} share no seed: conditions are compared on the same seeds."
        )
    given = np.array(list(weights.values()))
    summed, games = np.tensordot(given, values, 1), len(found.games)
    mean = float((summed.mean(axis=0) @ found.n) / found.n.sum())
    linear = mean + (summed - mean) * found.n / found.n.mean()  # games weigh as many as they have rows
    low, high = (mean + widen * (end - mean) for end in crossed(linear[None], draws, seed, level))
    if (values >= 0).all() and (values <= 1).all():
        low, high = np.clip((low, high), given[given < 0].sum(), given[given > 0].sum())
    if np.isin(values, (0, 1)).all() and np.ptp(summed) == 0 and games > 1:
        bound = wilson(0, games, level)[1]
        if np.isclose(given.sum(), 0):
            low, high = -bound * np.abs(given).max(), bound * np.abs(given).max()
        else:
            low, high = wilson(mean * games, games, level) if 0 <= mean <= 1 else (mean - bound, mean + bound)
    return Estimate(
        mean, float(np.ravel(low)[0]), float(np.ravel(high)[0]), values.shape[1] * games, games
    ), values.shape[1]


def select(
    frame: pd.DataFrame, shares: Mapping[str, float], seed: int = 0, level: float = 0.95
) -> list[dict]:
    """Choose a share k: rows of each condition's difference to k = 0, simultaneous intervals, and which one is `chosen`.

    k = 0 unless another condition's interval lies above 0 (Bonferroni's, for the number of other conditions); of those that do the smallest k from
    which the best is not told apart. So a share is chosen on evidence alone, and where there is none, nothing is masked. The chosen condition's
    difference is the greatest of several, hence too large on average: measure it again on other games.

    frame: as in `paired`. shares: condition -> k, among them 0. seed, level: as in `crossed`. Raises ValueError where no condition has k = 0, or
    none another one.
    """
    zero, others = (
        next((condition for condition, k in shares.items() if k == 0), None),
        sorted((condition for condition, k in shares.items() if k), key=shares.get),
    )
    if zero is None or not others:
        raise ValueError(
            f"A share is chosen among k = 0 and others, not among {', '.join(shares) or 'none'}."
        )
    strict = 1 - (1 - level) / len(others)
    found = {
        condition: contrast(
            paired(frame, (condition, zero)), {condition: 1, zero: -1}, seed=seed, level=strict
        )
        for condition in others
    }
    better = [condition for condition in others if found[condition][0].low > 0]
    best = max(better, key=lambda condition: found[condition][0].value, default=zero)
    chosen = next(
        (
            condition
            for condition in better
            if condition == best
            or contrast(paired(frame, (best, condition)), {best: 1, condition: -1}, seed=seed)[0].low <= 0
        ),
        zero,
    )
    estimate, seeds = found[others[0]]
    found = {zero: (replace(estimate, value=0.0, low=np.nan, high=np.nan), seeds)} | found
    return [
        dict(
            condition=condition,
            share=shares[condition],
            seeds=n,
            chosen=condition == chosen,
            **estimate.row(),
        )
        for condition, (estimate, n) in found.items()
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
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Ends of the interval of the mean over crossed seeds and games: a bootstrap of both, widened to what few seeds are worth.

    In each draw seeds and games are resampled, each with replacement. Of three seeds that alone reaches no further than from the
    least to the greatest, so the draws' deviations are stretched: their spread becomes the standard error of the analysis of
    variance, sqrt((MS_seed + max(0, MS_game - MS_rest)) / (seeds * games)), or that over games alone where it is larger, and a
    normal's quantile becomes that of t with Hillis' degrees of freedom. `analyses.masking.power` measures how often such intervals
    are wrong. With one seed the interval is over games alone, and says nothing of other seeds; with one game it is NaN.

    values: of leading axes any number, each a data set of its own. draws: resamples. seed: theirs. level: coverage.
    Sources: Owen 2007 (the pigeonhole bootstrap), Hillis 2007 and Obuchowski & Rockette 1995 (readers crossed with cases).
    """
    values = np.asarray(values, dtype=float)
    *rest, seeds, games = values.shape
    mean = values.mean(axis=(-2, -1), keepdims=True)
    if games < 2:
        return (np.full(rest, np.nan),) * 2
    rows, columns = values.mean(axis=-1), values.mean(axis=-2)
    ms_game = seeds * columns.var(axis=-1, ddof=1)
    if seeds == 1:
        variance, freedom = ms_game / games, np.full(rest, games - 1.0)
    else:
        ms_seed = games * rows.var(axis=-1, ddof=1)
        ms_rest = ((values - rows[..., None] - columns[..., None, :] + mean) ** 2).sum(axis=(-2, -1)) / (
            (seeds - 1) * (games - 1)
        )
        both = np.maximum(ms_game, ms_seed + np.maximum(0, ms_game - ms_rest))
        variance = both / (seeds * games)
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = np.minimum((both / ms_seed) ** 2 * (seeds - 1), (seeds - 1) * (games - 1) + games - 1)
        freedom = np.where(np.isfinite(freedom), freedom, games - 1)
    by_seed, by_game = _resampled(draws, seed, seeds, games)
    drawn = np.einsum(
        "ds,...sg,dg->...d", by_seed, values - mean, by_game, optimize=["einsum_path", (0, 1), (0, 1)]
    )
    # The draws' spread, as it is on average: of few draws it is uncertain, and an interval that ends at 0 would end on either side of it.
    rows, columns = rows - mean[..., 0], columns - mean[..., 0]
    spread = np.sqrt(
        ((values - mean) ** 2).sum(axis=(-2, -1)) / (seeds * games) ** 2
        + (1 - 1 / seeds) * (columns**2).sum(axis=-1) / games**2
        + (1 - 1 / games) * (rows**2).sum(axis=-1) / seeds**2
    )
    stretch = np.divide(np.sqrt(variance), spread, out=np.zeros_like(spread), where=spread > 0)
    stretch *= scipy.stats.t.isf((1 - level) / 2, freedom) / scipy.stats.norm.isf((1 - level) / 2)
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=-1) * stretch
    return mean[..., 0, 0] + ends[0], mean[..., 0, 0] + ends[1]
