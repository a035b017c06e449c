"""Contrasts of conditions over games and seeds: against slow readings, on planted effects and planted
nulls."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analyses.masking import power as masking_power
from interp.stats.crossed import (
    NothingShared,
    Outcomes,
    contrast,
    crossed,
    outcomes,
    paired,
    ratio,
    select,
    slope_weights,
    verdict,
)
from interp.stats.intervals import Estimate, cluster_bootstrap, wilson

RNG = np.random.default_rng(0)


def frame_of(values, per_game=None, conditions=("action_mask_0", "action_mask_0.3", "random_mask_0.3")):
    """Rows of condition, seed, game and value from values [condition, seed, game]; NaN for what a condition
    has not."""
    return pd.DataFrame(
        [
            dict(condition=condition, seed=s, game=f"g{g}", value=values[a, s, g])
            for a, condition in enumerate(conditions)
            for s in range(values.shape[1])
            for g in range(values.shape[2])
            for _ in range(per_game[g] if per_game is not None else 1)
            if not np.isnan(values[a, s, g])
        ]
    )


def test_means_and_differences_are_those_of_the_rows():
    values, per_game = RNG.random((3, 3, 7)), [1, 2, 3, 1, 5, 1, 4]
    frame = frame_of(values, per_game)
    found = outcomes(frame.sample(frac=1, random_state=0))
    means = frame.groupby("condition").value.mean()
    for condition in means.index:
        assert contrast(found, {condition: 1})[0].value == pytest.approx(means[condition])
    difference, seeds = contrast(found, {"action_mask_0.3": 1, "action_mask_0": -1})
    assert difference.value == pytest.approx(means["action_mask_0.3"] - means["action_mask_0"])
    assert (seeds, difference.n, difference.n_groups) == (
        3,
        21,
        7,
    ) and difference.low < difference.value < difference.high


def test_only_seeds_that_all_conditions_have_count():
    values = RNG.random((3, 5, 9))
    values[1, 3:] = np.nan
    found = outcomes(frame_of(values))
    assert contrast(found, {"action_mask_0": 1})[1] == 5
    difference, seeds = contrast(found, {"action_mask_0.3": 1, "action_mask_0": -1})
    assert seeds == 3 and difference.value == pytest.approx((values[1, :3] - values[0, :3]).mean())
    values[0, :3] = np.nan
    with pytest.raises(ValueError, match="share no seed"):
        contrast(outcomes(frame_of(values)), {"action_mask_0.3": 1, "action_mask_0": -1})
    with pytest.raises(ValueError, match="no outcomes of the condition 'cot_only'"):
        contrast(found, {"cot_only": 1})


def test_outcomes_of_other_games_are_refused():
    frame = frame_of(RNG.random((3, 2, 4)))
    for wrong in (
        frame.drop(index=5),
        pd.concat([frame, frame.tail(1)]),
        frame.assign(value=np.nan),
        frame.head(0),
    ):
        with pytest.raises(ValueError, match="same games|no numbers|0 outcomes"):
            outcomes(wrong)


def spread(values):
    """The standard deviation of the mean of resampled rows and columns, from every pair of cells and the
    covariance of their weights."""
    seeds, games = values.shape
    deviation = values - values.mean()
    by_seed, by_game = (
        (np.eye(n) / n - 1 / n**2) / n + 1 / n**2 for n in (seeds, games)
    )  # expected products of two weights
    return (
        sum(
            by_seed[s, t] * by_game[g, h] * deviation[s, g] * deviation[t, h]
            for s in range(seeds)
            for t in range(seeds)
            for g in range(games)
            for h in range(games)
        )
        ** 0.5
    )


def slow(values, draws, seed, level=0.95):
    """The interval by loops: each draw's mean of resampled rows and columns, and the analysis of variance
    written out."""
    seeds, games = values.shape
    rng = np.random.default_rng(seed)
    rows = [np.repeat(np.arange(seeds), w) for w in rng.multinomial(seeds, [1 / seeds] * seeds, size=draws)]
    columns = [
        np.repeat(np.arange(games), w) for w in rng.multinomial(games, [1 / games] * games, size=draws)
    ]
    drawn = np.array([values[np.ix_(r, c)].mean() for r, c in zip(rows, columns)]) - values.mean()
    ss = {
        "seed": games
        * sum((values[s].mean() - values.mean()) ** 2 for s in range(seeds))
        / max(seeds - 1, 1),
        "game": seeds * sum((values[:, g].mean() - values.mean()) ** 2 for g in range(games)) / (games - 1),
    }
    ss["rest"] = sum(
        (values[s, g] - values[s].mean() - values[:, g].mean() + values.mean()) ** 2
        for s in range(seeds)
        for g in range(games)
    )
    ss["rest"] /= max((seeds - 1) * (games - 1), 1)
    both = max(ss["game"], ss["seed"] + max(0, ss["game"] - ss["rest"])) if seeds > 1 else ss["game"]
    freedom = min((both / ss["seed"]) ** 2 * (seeds - 1), seeds * games - seeds) if seeds > 1 else games - 1
    factor = (
        np.sqrt(both / (seeds * games))
        / spread(values)
        * scipy.stats.t.isf((1 - level) / 2, freedom)
        / scipy.stats.norm.isf((1 - level) / 2)
    )
    return tuple(values.mean() + factor * np.quantile(drawn, q) for q in ((1 - level) / 2, (1 + level) / 2))


@pytest.mark.parametrize("seeds, games", [(1, 8), (3, 12), (5, 6)])
def test_the_interval_is_the_slow_one(seeds, games):
    values = RNG.normal(size=(4, seeds, games)) + RNG.normal(size=(4, seeds, 1))
    low, high = crossed(values, 300, seed=2)
    for i in range(4):
        assert (low[i], high[i]) == pytest.approx(slow(values[i], 300, 2))


def test_one_game_of_many_tells_no_conditions_apart():
    """Whatever the draws: a difference in a single game is no evidence, and its interval covers 0."""
    values = np.zeros((1, 100))
    values[0, 7] = 1
    for seed in range(20):
        low, high = crossed(values, 2000, seed)
        assert low < 0 < high
    drawn = [np.mean(values[0, RNG.integers(0, 100, 100)]) for _ in range(20_000)]
    assert np.std(drawn) == pytest.approx(spread(values), rel=0.03)


def test_with_one_seed_it_is_the_bootstrap_over_games():
    wins = RNG.random(80) < 0.4
    (low, high), other = (
        crossed(wins[None].astype(float), 20_000),
        cluster_bootstrap(wins.astype(float), range(80), draws=20_000),
    )
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.006)


@given(
    shift=st.floats(-5, 5),
    scale=st.floats(0.1, 10),
    seeds=st.integers(1, 4),
    games=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_intervals_move_and_stretch_with_their_data_and_hold_the_mean(shift, scale, seeds, games, seed):
    values = np.random.default_rng(seed).normal(size=(seeds, games))
    low, high = crossed(values, 200)
    assert low <= values.mean() <= high
    assert crossed(shift + scale * values, 200) == pytest.approx(
        (shift + scale * low, shift + scale * high), abs=1e-6
    )


def test_an_interval_is_not_narrower_for_other_seeds_than_for_these():
    values = np.tile(RNG.normal(size=40), (3, 1)) + RNG.normal(0, 1e-3, (3, 40))  # seeds that hardly differ
    low, high = crossed(values, 2000)
    assert high - low >= 0.97 * np.subtract(*crossed(values.mean(0, keepdims=True), 2000)[::-1])
    apart = values + np.array([[-1.0], [0], [1]])
    wide = np.subtract(*crossed(apart, 2000)[::-1])
    assert wide > 2 * scipy.stats.t.isf(0.025, 2.5) * np.sqrt(1 / 3) > 3 * (high - low)


def test_what_never_differs_is_no_certainty():
    values = np.zeros((3, 3, 30))
    values[2] = 1
    found = outcomes(frame_of(values))
    assert (
        contrast(found, {"action_mask_0": 1})[0].low,
        contrast(found, {"action_mask_0": 1})[0].high,
    ) == pytest.approx(wilson(0, 30))
    same, _ = contrast(found, {"action_mask_0.3": 1, "action_mask_0": -1})
    assert same.value == 0 and -same.low == same.high == pytest.approx(wilson(0, 30)[1])
    apart, _ = contrast(found, {"random_mask_0.3": 1, "action_mask_0": -1})
    assert apart.value == 1 and apart.low < 1
    flat, _ = contrast(
        outcomes(frame_of(np.zeros((3, 3, 30)))),
        slope_weights({"action_mask_0": 0, "action_mask_0.3": 0.1, "random_mask_0.3": 0.7}),
    )
    assert flat.value == 0 and -flat.low == flat.high > 0
    one, _ = contrast(outcomes(frame_of(RNG.random((3, 3, 1)))), {"action_mask_0": 1})
    assert np.isnan(one.low) and np.isnan(one.high)


def test_the_interval_of_a_share_ends_at_none_and_all():
    """Of a few games of one seed the bootstrap's stretched interval would go below 0, which no share does; a
    difference may."""
    values = np.zeros((3, 1, 12))
    values[0, 0, :2] = values[1, 0, 2:] = 1
    found = outcomes(frame_of(values))
    few, most = (contrast(found, {condition: 1})[0] for condition in found.conditions[:2])
    assert few.low == 0 < few.high < 1 and 0 < most.low < most.high == 1
    difference = contrast(found, {found.conditions[0]: 1, found.conditions[1]: -1})[0]
    assert -1 <= difference.low < difference.value < difference.high <= 1
    assert contrast(replace(found, values=2 * found.values), {found.conditions[0]: 1})[0].low < 0, (
        "what is no share has no such ends"
    )


def test_a_slope_is_least_squares():
    shares = {"action_mask_0": 0, "action_mask_0.3": 0.3, "random_mask_0.3": 0.7}
    values = RNG.random((3, 4, 6))
    slope, _ = contrast(outcomes(frame_of(values)), slope_weights(shares))
    assert slope.value == pytest.approx(np.polyfit(list(shares.values()), values.mean((1, 2)), 1)[0])
    with pytest.raises(ValueError, match="two different shares"):
        slope_weights({"action_mask_0": 0.0})


def test_a_ratios_contrast_is_the_difference_of_ratios_and_its_interval_about_the_bootstraps():
    def of(values):
        return Outcomes(("a", "b"), (0, 1), tuple(map(str, range(60))), values, np.ones(60))

    direct, total = RNG.random((2, 2, 60)), 2 + RNG.random((2, 2, 60))
    found, _ = contrast(ratio(of(direct), of(total)), {"a": 1, "b": -1})
    assert found.value == pytest.approx((direct.mean(2) / total.mean(2)).mean(1) @ [1, -1])
    one = replace(of(direct[:, :1]), seeds=(0,)), replace(of(total[:, :1]), seeds=(0,))
    found, _ = contrast(ratio(*one), {"a": 1})
    other = cluster_bootstrap(
        np.stack([direct[0, 0], total[0, 0]], 1), range(60), lambda m: m[..., 0] / m[..., 1]
    )
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.006)


@pytest.mark.parametrize(
    "difference, control, said",
    [
        ((0.01, 0.2), (0.02, 0.3), "supported"),
        ((0.01, 0.2), (-0.1, 0.04), "a gain of at least 0.05 excluded"),
        ((-0.1, 0.04), (0.01, 0.2), "a gain of at least 0.05 excluded"),
        ((-0.1, 0.2), (0.01, 0.2), "open"),
        ((0.01, 0.2), (-0.1, 0.2), "open"),
        ((np.nan, np.nan), (0.01, 0.2), "open"),
        ((0.01, 0.03), (0.01, 0.03), "supported"),
    ],
)
def test_the_verdict_is_the_rule(difference, control, said):
    assert verdict(*(Estimate(0.0, low, high, 1, 1) for low, high in (difference, control))) == said


def test_a_planted_effect_is_found_and_a_planted_null_is_not():
    config = masking_power.Config(
        studies=300, seeds=(5,), games=(100,), effects=(0.2,), training_sd=(0.2,), draws=300
    )
    value = masking_power.power(config).set_index(["world", "contrast", "what"]).value
    assert value["action", "verdict", "supported"] > 0.85 and value["action", "verdict", "excluded"] < 0.02
    assert value["action", "difference", "above"] > 0.9 and value["action", "slope", "above"] > 0.9
    for world in ("null", "any_mask"):
        assert value[world, "verdict", "supported"] < 0.05 and value[world, "control", "above"] < 0.05
        assert value[world, "control", "covers"] > 0.92
    assert (
        value["null", "difference", "above"] + value["null", "difference", "below"]
        < 0.09
        < value["null", "games_only", "above"] + value["null", "games_only", "below"]
    )
    assert (
        value["any_mask", "difference", "above"] > 0.9
    )  # masking helps there, and the control says that actions have nothing to do with it


def test_planted_effects_are_as_large_as_they_say():
    config = masking_power.Config(studies=400, rate=0.3)
    null, action = (
        masking_power.outcomes(config, world, 0.1, 3, 60, 0.1).mean((0, 2, 3)) for world in ("null", "action")
    )
    assert null == pytest.approx([0.3] * 6, abs=0.015)
    assert (
        action[[0, 2, 3, 4, 5]] == pytest.approx([0.3, 0.4, 0.4, 0.4, 0.3], abs=0.015)
        and 0.31 < action[1] < 0.36
    )


def test_decisions_of_a_game_share_its_probability():
    """So a share of two decisions has the rate of one, and less spread over games than two games have."""
    one, two = (
        masking_power.outcomes(masking_power.Config(studies=200, decisions=n), "null", 0.1, 3, 60, 0.1)
        for n in (1, 2)
    )
    assert set(np.unique(one)) == {0, 1} and set(np.unique(two)) == {0, 0.5, 1}
    assert two.mean() == pytest.approx(one.mean(), abs=0.01)
    assert one.var() / 2 < two.var() < one.var()


def items_of(values, denominators=None):
    """Rows of condition, seed, game, item, value and denominator from values [condition, seed, item], two
    items a game."""
    return pd.DataFrame(
        [
            dict(
                condition="ab"[a],
                seed=s,
                game=f"g{i // 2}",
                item=i,
                value=v,
                denominator=1.0 if denominators is None else denominators[a, s, i],
            )
            for (a, s, i), v in np.ndenumerate(values)
        ]
    )


def test_trainings_are_compared_on_what_all_have_a_value_for():
    values = RNG.random((2, 3, 10))
    frame = items_of(values)
    whole = paired(frame, ["a", "b"])
    assert (
        contrast(whole, {"a": 1, "b": -1})[0].value == pytest.approx((values[0] - values[1]).mean())
        and whole.n.sum() == 10
    )
    values[0, 1, [2, 3, 7]] = np.nan
    kept = np.setdiff1d(np.arange(10), [2, 3, 7])
    found = paired(items_of(values), ["a", "b"])
    assert (
        contrast(found, {"a": 1, "b": -1})[0].value == pytest.approx((values[0] - values[1])[:, kept].mean())
        and found.n.sum() == 7
    )
    assert paired(items_of(values), ["b"]).n.sum() == 10
    values[1, 2] = np.nan  # of which nothing is left: a seed that the conditions do not share
    assert paired(items_of(values), ["a", "b"]).values.shape[1] == 2
    values[0, 0, :5], values[1, 0, 5:] = np.nan, np.nan
    with pytest.raises(NothingShared, match="nothing that all trainings of a, b"):
        paired(items_of(values), ["a", "b"])
    with pytest.raises(NothingShared, match="share no seed"):
        paired(frame[(frame.condition == "a") | (frame.seed > 5)].assign(seed=lambda f: f.seed), ["a", "b"])
    with pytest.raises(ValueError, match="asked for other items"):
        paired(frame.drop(index=3), ["a", "b"])


def test_rows_with_denominators_are_ratios_of_means():
    above, below = RNG.random((2, 3, 10)), 1 + RNG.random((2, 3, 10))
    found, _ = contrast(paired(items_of(above, below), ["a", "b"]), {"a": 1, "b": -1})
    assert found.value == pytest.approx(
        np.mean(above[0].mean(1) / below[0].mean(1) - above[1].mean(1) / below[1].mean(1))
    )


def test_intervals_are_widened_about_their_mean():
    found = outcomes(frame_of(RNG.random((3, 3, 12))))
    plain, wide = (contrast(found, {"action_mask_0": 1}, widen=w)[0] for w in (1, 2))
    assert wide.value == plain.value and (wide.low, wide.high) == pytest.approx(
        (2 * plain.low - plain.value, 2 * plain.high - plain.value)
    )


def test_of_many_null_studies_few_choose_a_mask():
    """Bonferroni's: at most one in twenty, but for simulation."""
    chosen, rng = 0, np.random.default_rng(5)
    for _ in range(200):
        frame = pd.DataFrame(
            [
                dict(
                    condition=f"action_mask_{k}",
                    seed=s,
                    game=g,
                    item=g,
                    value=float(rng.random() < 0.5),
                    denominator=1.0,
                )
                for k in (0, 0.1, 0.3, 0.5)
                for s in range(3)
                for g in range(20)
            ]
        )
        rows = select(frame, {f"action_mask_{k}": k for k in (0, 0.1, 0.3, 0.5)})
        chosen += not next(r for r in rows if r["chosen"])["share"] == 0
    assert chosen <= 16
