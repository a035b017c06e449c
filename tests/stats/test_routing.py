"""Routing between acting at once and thinking, on decisions whose outcome is known."""

import itertools

import numpy as np
import pytest

from interp.stats.routing import Ways, as_good, at_share, folds_of, oracle, threshold_as_good

N = 400


def ways(seed=0, at_once=0.5, thinking=0.8):
    """At once 5 tokens, thinking 20 to 60."""
    rng = np.random.default_rng(seed)
    right = rng.random((N, 2)) < [at_once, thinking]
    return Ways(right, np.stack([np.full(N, 5), rng.integers(20, 60, N)], axis=1))


GROUPS = np.repeat(np.arange(80), 5)
FOLDS = folds_of(GROUPS, 5, 0)


def test_folds_hold_whole_episodes_and_every_decision_once():
    assert sorted(np.concatenate(FOLDS)) == list(range(N))
    for one, other in itertools.combinations(FOLDS, 2):
        assert not set(GROUPS[one]) & set(GROUPS[other])
    assert {len(rows) for rows in FOLDS} == {80}
    with pytest.raises(ValueError, match="5 folds need as many episodes, and there are 3"):
        folds_of([0, 1, 2, 2], 5, 0)


def test_both_ends_are_the_two_ways_and_chance_lies_between():
    both = ways()
    for at_once, column in ((np.ones(N), 0), (np.zeros(N), 1)):
        score, tokens = both.routed(at_once)
        assert (score == both.right[:, column]).all() and (tokens == both.tokens[:, column]).all()
    score, tokens = both.routed(np.full(N, 0.25))
    assert score.mean() == pytest.approx(both.right.mean(axis=0) @ [0.25, 0.75])
    assert tokens.mean() == pytest.approx(both.tokens.mean(axis=0) @ [0.25, 0.75])


def test_a_threshold_is_set_on_other_episodes():
    confidence = np.random.default_rng(1).normal(size=N)
    assert at_share(confidence, 0.0, FOLDS).sum() == 0 and at_share(confidence, 1.0, FOLDS).all()
    assert at_share(confidence, 0.3, FOLDS).mean() == pytest.approx(0.3, abs=0.05)
    shifted = confidence.copy()
    shifted[FOLDS[0]] -= 100  # its own numbers do not set its threshold
    assert not at_share(shifted, 0.3, FOLDS)[FOLDS[0]].any()
    others = np.concatenate(FOLDS[1:])
    assert (at_share(shifted, 0.3, FOLDS)[others] >= at_share(confidence, 0.3, FOLDS)[others]).all()


def test_a_confidence_that_knows_saves_tokens_at_no_loss_and_one_that_does_not_is_random():
    both, rng = ways(), np.random.default_rng(2)
    knows = both.right[:, 0] + 0.1 * rng.random(N)
    at_once = as_good(knows, both, FOLDS)
    score, tokens = both.routed(at_once)
    assert score.mean() >= both.right[:, 1].mean() and tokens.mean() < 0.6 * both.tokens[:, 1].mean()
    assert both.right[at_once, 0].mean() > 0.8
    blind = [both.routed(at_share(rng.random(N), 0.5, FOLDS))[0].mean() for _ in range(200)]
    assert np.mean(blind) == pytest.approx(both.right.mean(), abs=0.01), "as chance of equal rate"


def test_where_acting_at_once_never_pays_everything_is_thought_about():
    both = ways(at_once=0.0, thinking=1.0)
    assert threshold_as_good(np.arange(N, dtype=float), both) == np.inf
    assert not as_good(np.random.default_rng(0).random(N), both, FOLDS).any()
    equal = Ways(np.ones((N, 2), dtype=bool), both.tokens)
    assert threshold_as_good(np.arange(N, dtype=float), equal) == 0.0
    tied = Ways(np.array([[1, 1], [0, 1]], dtype=bool), both.tokens[:2])
    assert threshold_as_good(np.array([2.0, 2.0]), tied) == np.inf, "equal confidences go together"


def test_the_oracle_is_the_best_of_all_routers_of_its_rate():
    both = Ways(*(column[:9] for column in ways(3)))
    for count in range(10):
        best = max(
            both.routed(np.isin(np.arange(9), rows))[0].sum()
            for rows in itertools.combinations(range(9), count)
        )
        chosen = oracle(both, count / 9)
        assert chosen.sum() == count and both.routed(chosen)[0].sum() == best
