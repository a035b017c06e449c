"""Paired changes and the verdicts on them: against the bootstrap of differences, and in simulated studies."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from analyses.pages import verdicts
from interp.stats.changes import Change, change, equivalent, sided
from interp.stats.intervals import cluster_bootstrap, headroom_share, kappa_of_means, labellings, wilson

RNG = np.random.default_rng(3)
GROUPS = np.repeat(np.arange(60), 2)


def moved(value, low, high, low_90=np.nan, high_90=np.nan):
    return Change(0.0, value, value, low, high, low_90, high_90, 100, 50)


def test_a_change_is_the_bootstrap_of_paired_differences():
    before, after = RNG.random((2, 120)) < [[0.3], [0.5]]
    found = change(before, after, GROUPS, most=1, draws=500, seed=4)
    difference = after.astype(float) - before
    for level, ends in ((0.95, (found.low, found.high)), (0.90, (found.low_90, found.high_90))):
        expected = cluster_bootstrap(difference, GROUPS, draws=500, seed=4, level=level)
        assert (expected.low, expected.high) == ends
    assert (found.before, found.after) == (before.mean(), after.mean())
    assert found.value == pytest.approx(difference.mean()) and (found.n, found.n_groups) == (120, 60)


def test_a_change_of_a_function_is_the_difference_of_both():
    right = RNG.random((120, 4)) < [0.3, 0.5, 0.6, 0.7]
    found = change(right[:, :2], right[:, 2:], GROUPS, headroom_share)
    p, c, q, d = right.mean(axis=0)
    assert (found.before, found.after) == pytest.approx(((c - p) / (1 - p), (d - q) / (1 - q)))
    assert found.value == pytest.approx(found.after - found.before) and found.low < found.value < found.high
    a, b, c, d = RNG.integers(3, size=(4, 120)).tolist()
    found = change(labellings(a, b), labellings(c, d), GROUPS, kappa_of_means)
    assert found.value == pytest.approx(cohen_kappa_score(c, d) - cohen_kappa_score(a, b))


def test_where_nothing_moves_the_interval_is_as_wide_as_so_few_clusters_allow():
    still = np.zeros(120)
    found = change(still, still, GROUPS, most=2)
    assert found.value == 0 and found.high == -found.low == 2 * wilson(0, 60)[1]
    assert equivalent(found, 0.05) == "open" and equivalent(found, 0.2) == "supported"
    assert np.isnan(change(still, still, GROUPS).low) and np.isnan(change([0.0], [1.0], ["one"], most=1).low)
    up = change(still, still + 1, GROUPS, most=1)
    assert up.high == 1 and 0.9 < up.low < 1 and sided(up) == "supported"
    pair = np.stack([still, still + 1], axis=1)
    assert np.isnan(change(pair, pair, GROUPS, lambda mean: mean[..., 0]).low)


def test_other_decisions_before_than_after_are_refused():
    with pytest.raises(ValueError, match="3 decisions before and 2 after"):
        change([0, 1, 1], [0, 1], range(3))


@pytest.mark.parametrize(
    "low, high, rises, falls",
    [
        (0.01, 0.2, "supported", "contradicted"),
        (-0.2, -0.01, "contradicted", "supported"),
        (-0.1, 0.1, "open", "open"),
        (0.0, 0.1, "open", "open"),
        (np.nan, np.nan, "open", "open"),
    ],
)
def test_a_sided_claim_is_judged_by_its_interval(low, high, rises, falls):
    each = moved(0.0, low, high)
    assert (sided(each), sided(each, predicted=-1)) == (rises, falls)


@pytest.mark.parametrize(
    "low, low_90, high_90, said",
    [
        (-0.05, -0.04, 0.04, "supported"),
        (0.001, 0.005, 0.04, "supported"),  # a rise, and too small a one to matter
        (0.01, 0.02, 0.06, "contradicted"),
        (-0.01, 0.00, 0.06, "open"),
        (-0.09, -0.08, -0.06, "open"),  # it fell: neither wider nor as it was
        (-0.06, -0.05, 0.05, "open"),
        (np.nan, np.nan, np.nan, "open"),
    ],
)
def test_equivalence_is_two_one_sided_tests(low, low_90, high_90, said):
    assert equivalent(moved(0.0, low, 0.1, low_90, high_90), 0.05) == said


#: Of a share of .05 in 1,000 studies, two standard errors.
TWO_ERRORS = 0.014


def test_simulated_verdicts_are_wrong_in_at_most_5_percent_and_find_what_is_there():
    """1,000 studies of each kind. At the edges of the margin equivalence may be wrong in up to 5 %."""
    frame = verdicts.rates(sizes=((1800, 200),)).set_index(["reading", "change"])
    null = frame.loc["prompt action", 0.0]
    assert null["supported"] + null["contradicted"] < 0.05 + TWO_ERRORS
    assert frame.loc["gap", 0.0]["contradicted"] < 0.025 + TWO_ERRORS
    assert all(frame.loc["gap", edge]["supported"] < 0.05 + TWO_ERRORS for edge in (-0.05, 0.05))
    assert frame.loc["prompt action", 0.05]["supported"] > 0.9
    assert frame.loc["gap", 0.0]["supported"] > 0.7 and frame.loc["gap", 0.1]["contradicted"] > 0.95
    small = verdicts.rates(300, ((100, 50),)).set_index(["reading", "change"])
    assert small.loc["gap", 0.0]["open"] > 0.9, "too few decisions to exclude a change"


@pytest.mark.parametrize("edge", (-0.05, 0.05))
def test_simulated_headroom_gaps_at_the_edge_of_the_margin_are_called_equal_in_at_most_5_percent(edge):
    (prompt, cot), rise = verdicts.BASE, verdicts.RISE
    gap = ((cot - prompt) / (1 - prompt) + edge) * (1 - prompt - rise) - (cot - prompt)
    right = verdicts.outcomes(1000, 1800, 200, rise, gap, seed=0).astype(float)
    moved = verdicts.changes(
        right, lambda mean: headroom_share(mean[..., 2:]) - headroom_share(mean[..., :2])
    )
    assert np.mean([each.value for each in moved]) == pytest.approx(edge, abs=0.005)
    assert np.mean([equivalent(each, 0.05) == "supported" for each in moved]) < 0.05 + TWO_ERRORS


def test_simulated_changes_are_those_of_the_estimator():
    right = verdicts.outcomes(3, 60, 20, 0.1, 0.05, seed=1).astype(float)
    assert right.shape == (3, 20, 3, 4)
    differences = right[..., 2:3] - right[..., :1]
    for study, simulated in zip(right, verdicts.changes(differences, lambda mean: mean[..., 0]), strict=True):
        found = change(study[..., 0].ravel(), study[..., 2].ravel(), np.repeat(np.arange(20), 3), most=1)
        ends = (found.value, found.low, found.high, found.low_90, found.high_90)
        assert ends == pytest.approx(
            (simulated.value, simulated.low, simulated.high, simulated.low_90, simulated.high_90)
        )


def test_simulated_rates_are_the_ones_planted():
    right = verdicts.outcomes(400, 400, 200, 0.1, 0.05, seed=0)
    assert right.mean(axis=(0, 1, 2)) == pytest.approx([0.3, 0.5, 0.4, 0.65], abs=0.005)
    pair = np.corrcoef(right[..., 0, 0].ravel(), right[..., 1, 0].ravel())[0, 1]
    paired = np.corrcoef(right[..., 0].ravel(), right[..., 2].ravel())[0, 1]
    assert 0.05 < pair < 0.2 < paired, "decisions of an episode, and one decision at two checkpoints, depend"
