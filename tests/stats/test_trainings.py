"""Readings over several trainings: against the interval over episodes, by simulation, and at the edges."""

import numpy as np
import pytest

from interp.stats.changes import part_share
from interp.stats.intervals import cluster_bootstrap, wilson
from interp.stats.trainings import BOTH, EPISODES, over_trainings

EPISODE = np.repeat(np.arange(50), 4)


def right(rate, seed, spread=0.2):
    rng = np.random.default_rng(seed)
    return rng.random(200) < np.clip(rate + spread * rng.standard_normal(50), 0, 1)[EPISODE]


def width(estimate):
    return estimate.high - estimate.low


def test_equal_trainings_give_the_interval_over_episodes_alone():
    one = right(0.6, 0)
    alone = cluster_bootstrap(one.astype(float), EPISODE)
    pooled = over_trainings([one] * 5, [EPISODE] * 5, most=1)
    assert pooled.over == BOTH and pooled.seeds == 5 and pooled.values == (one.mean(),) * 5
    assert pooled.value == pytest.approx(alone.value)
    assert (pooled.low, pooled.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert (pooled.n, pooled.n_groups) == (1000, 50)
    assert pooled.low < pooled.low_90 < pooled.high_90 < pooled.high


def test_trainings_that_differ_more_widen_the_interval():
    widths = []
    for apart in (0.0, 0.1, 0.2):
        read = [right(0.5 + apart * k, 7) for k in (-1, -0.5, 0, 0.5, 1)]
        widths.append(width(over_trainings(read, [EPISODE] * 5, most=1)))
    assert widths[0] < widths[1] < widths[2] and widths[2] > 2 * widths[0]


def test_two_trainings_have_an_interval_over_episodes_alone():
    read = [right(0.2, 0), right(0.8, 1)]
    pooled = over_trainings(read, [EPISODE] * 2, most=1)
    assert pooled.over == EPISODES
    means = (read[0].astype(float) + read[1]) / 2
    alone = cluster_bootstrap(means, EPISODE)
    assert (pooled.low, pooled.high) == pytest.approx((alone.low, alone.high), abs=0.01)


def test_a_training_that_lacks_decisions_has_the_mean_of_its_own():
    read = [right(0.6, seed) for seed in range(4)]
    kept = np.random.default_rng(3).random(200) < 0.7
    kept[:8] = False
    pooled = over_trainings([read[0][kept], *read[1:]], [EPISODE[kept], *[EPISODE] * 3])
    assert pooled.values[0] == pytest.approx(read[0][kept].mean())
    assert pooled.value == pytest.approx(np.mean([read[0][kept].mean(), *(each.mean() for each in read[1:])]))
    assert pooled.n == kept.sum() + 600 and pooled.n_groups == 50


def test_a_function_of_means_is_each_training_s_own():
    rng = np.random.default_rng(0)
    pairs = [rng.normal([3.0 + seed, 6.0], 1.0, (200, 2)) for seed in range(5)]
    pooled = over_trainings(pairs, [EPISODE] * 5, part_share)
    assert pooled.values == pytest.approx([float(part_share(each.mean(axis=0))) for each in pairs])
    equal = over_trainings(pairs[:1] * 5, [EPISODE] * 5, part_share)
    alone = cluster_bootstrap(pairs[0], EPISODE, part_share)
    assert (equal.low, equal.high) == pytest.approx((alone.low, alone.high), abs=0.003)
    negative = over_trainings([*pairs, -pairs[0] * [1, -1]], [EPISODE] * 6, part_share)
    assert np.isnan([negative.value, negative.low, negative.high]).all(), "one has no share"


def test_what_never_differs_is_no_certainty():
    none = [np.zeros(200)] * 5
    pooled = over_trainings(none, [EPISODE] * 5, most=1, bounds=(0, 1))
    assert (pooled.low, pooled.high) == (0, pytest.approx(wilson(0, 50)[1]))
    pooled = over_trainings(none, [EPISODE] * 5)
    assert np.isnan([pooled.low, pooled.high]).all()
    assert np.isnan(over_trainings([np.ones(3)] * 3, [["a"] * 3] * 3, most=1).low), "one episode"


@pytest.mark.parametrize("apart", [0.0, 0.1])
def test_intervals_cover_the_truth_about_as_often_as_they_say(apart):
    """Rates of five trainings that differ by `apart` (one sd), in 40 episodes that differ as well."""
    rng, covered, draws = np.random.default_rng(11), 0, 300
    episode = np.repeat(np.arange(40), 3)
    for _ in range(draws):
        seeds, games = apart * rng.standard_normal(5), 0.15 * rng.standard_normal(40)
        rates = 0.5 + seeds[:, None] + games[episode]
        read = list(rng.random(rates.shape) < rates)
        pooled = over_trainings(read, [episode] * 5, most=1, draws=500)
        covered += pooled.low <= 0.5 <= pooled.high
    assert 0.92 <= covered / draws <= 0.99


def test_no_training_and_no_decision_are_refused():
    with pytest.raises(ValueError, match="give at least one training"):
        over_trainings([], [])
    with pytest.raises(ValueError, match="each with decisions"):
        over_trainings([[1.0], []], [["a"], []])
    with pytest.raises(ValueError, match="give one for each"):
        over_trainings([[1.0, 2.0]], [["a"]])
