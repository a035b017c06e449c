import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from interp.stats.intervals import (
    Estimate,
    bootstrap_weights,
    cluster_bootstrap,
    correlation,
    cross_fitted,
    expanded_tail,
    headroom_gap,
    holm,
    kappa,
    max_statistic,
    mcnemar,
    percentile,
    wilson,
)


def ratio(mean):
    return mean[..., 1] / mean[..., 0]


def tails(n_groups, widen=1.0):
    """Shares of resamples below and above an interval: a normal at sqrt(G / (G - 1)) times the t quantile."""
    share = scipy.stats.norm.cdf(
        -widen * (n_groups / (n_groups - 1)) ** 0.5 * scipy.stats.t.ppf(0.975, n_groups - 1)
    )
    return [share, 1 - share]


def clustered(rng, n_groups=30):
    sizes = rng.integers(1, 7, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    columns = rng.normal(3, 1, (n_groups, 2))[groups] + rng.normal(size=(len(groups), 2))
    return columns, groups


def test_bootstrap_equals_slow_twin():
    columns, groups = clustered(np.random.default_rng(0))
    fast = cluster_bootstrap(columns, groups, ratio, draws=300, seed=5)
    n_groups = len(set(groups))
    drawn = np.random.default_rng(5).integers(n_groups, size=(300, n_groups))
    slow = []
    for episodes in drawn:
        rows = np.concatenate([columns[groups == episode] for episode in episodes])
        slow.append(ratio(rows.mean(axis=0)))
    np.testing.assert_allclose([fast.low, fast.high], np.quantile(slow, tails(n_groups)), rtol=1e-10)
    assert fast.value == pytest.approx(ratio(columns.mean(axis=0)))
    assert (fast.n, fast.n_groups) == (len(columns), n_groups)


def test_weights_are_the_resamples_of_the_bootstrap():
    columns, groups = clustered(np.random.default_rng(7))
    weights = bootstrap_weights(groups, draws=300, seed=5)
    assert (
        weights.shape == (300, len(groups))
        and (weights[:, groups == 3] == weights[:, [np.flatnonzero(groups == 3)[0]]]).all()
    )
    means = weights @ columns / weights.sum(axis=1, keepdims=True)
    by_weights = percentile(ratio(columns.mean(axis=0)), ratio(means), len(groups), 30)
    for ours, theirs in zip(
        by_weights.row().values(),
        cluster_bootstrap(columns, groups, ratio, 300, 5).row().values(),
        strict=True,
    ):
        assert ours == pytest.approx(theirs)
    with pytest.raises(ValueError, match="at least one decision and one draw"):
        bootstrap_weights([], 10)


def test_bootstrap_without_clusters_agrees_with_scipy():
    x = np.random.default_rng(1).exponential(size=80)
    ours = cluster_bootstrap(x, np.arange(80), draws=20000, seed=0)
    level = np.subtract(*tails(80)[::-1])
    theirs = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=20000, method="percentile", rng=0, confidence_level=level
    ).confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.01)


def test_interval_covers_clustered_means_where_the_unclustered_one_does_not():
    rng = np.random.default_rng(2)
    hits = np.zeros(2)
    for repeat in range(300):
        groups = np.repeat(np.arange(40), 5)
        x = rng.normal(size=40)[groups] + 0.5 * rng.normal(size=200)
        by_episode = cluster_bootstrap(x, groups, draws=400, seed=repeat)
        by_decision = cluster_bootstrap(x, np.arange(200), draws=400, seed=repeat)
        hits += [by_episode.low <= 0 <= by_episode.high, by_decision.low <= 0 <= by_decision.high]
    assert 0.90 <= hits[0] / 300 <= 0.98
    assert hits[1] / 300 < 0.75


@pytest.mark.parametrize(("clusters", "rate"), [(10, 0.5), (30, 0.5), (30, 0.1)])
def test_interval_covers_rates_at_few_clusters(clusters, rate):
    rng, hits = np.random.default_rng(clusters), 0
    for repeat in range(600):
        of_cluster = rng.beta(rate * 7 / 3, (1 - rate) * 7 / 3, clusters)
        right = rng.random((clusters, 4)) < of_cluster[:, None]
        found = cluster_bootstrap(right.ravel(), np.repeat(np.arange(clusters), 4), draws=1000, seed=repeat)
        hits += found.low <= rate <= found.high
    assert 0.92 <= hits / 600 <= 0.98  # 95 % within three standard errors


def test_intervals_of_cross_fitted_scores_are_wider_and_stay_in_range():
    assert cross_fitted(1) == 1 and cross_fitted(5) == pytest.approx(1.8**0.5)
    x, groups = np.random.default_rng(0).random(400) < 0.9, np.arange(400) // 4
    plain, wide = (cluster_bootstrap(x, groups, draws=20000, widen=widen) for widen in (1.0, cross_fitted(5)))
    assert (wide.high - wide.low) / (plain.high - plain.low) == pytest.approx(cross_fitted(5), abs=0.06)
    assert wide.high <= 1 and wide.value == plain.value
    certain = cluster_bootstrap(np.full(60, True), np.arange(60) % 30, widen=cross_fitted(5))
    assert certain.low < cluster_bootstrap(np.full(60, True), np.arange(60) % 30).low and certain.high == 1
    gains = x[:, None] - 0.85
    assert max_statistic(gains, groups, 400, widen=2.0)[0] > max_statistic(gains, groups, 400)[0]


def test_paired_difference_is_narrower_than_its_parts():
    columns, groups = clustered(np.random.default_rng(3))
    columns[:, 1] = columns[:, 0] + 0.01 * columns[:, 1]
    difference = cluster_bootstrap(columns, groups, lambda mean: mean[..., 1] - mean[..., 0])
    same = cluster_bootstrap(columns[:, 1] - columns[:, 0], groups)
    assert difference.low == pytest.approx(same.low) and difference.high == pytest.approx(same.high)
    assert difference.high - difference.low < 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abcde")), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_interval_is_deterministic_shifts_with_the_data_and_ignores_cluster_names(rows, seed):
    x, groups = np.array([row[0] for row in rows]), [row[1] for row in rows]
    first = cluster_bootstrap(x, groups, draws=60, seed=seed)
    renamed = cluster_bootstrap(x, [(name, 1) for name in groups], draws=60, seed=seed)
    moved = cluster_bootstrap(x + 2, groups, draws=60, seed=seed)
    np.testing.assert_equal(first.row(), renamed.row())
    np.testing.assert_allclose([moved.low, moved.high], np.add([first.low, first.high], 2), atol=1e-9)
    if len(set(groups)) > 1:
        assert x.min() - 1e-9 <= first.low <= first.high <= x.max() + 1e-9


@pytest.mark.parametrize("rate", [0, 1])
def test_a_rate_of_none_or_all_is_no_certainty(rate):
    found = cluster_bootstrap(np.full(60, bool(rate)), np.arange(60) % 30)
    assert (
        found.value == rate
        and (found.low, found.high) == pytest.approx(wilson(30 * rate, 30))
        and found.high - found.low > 0.1
    )
    assert np.isnan(cluster_bootstrap([True, True], ["a", "a"]).low)
    difference = cluster_bootstrap(np.zeros(4), list("abcd"))
    assert (difference.low, difference.high) == (0, 0)  # a difference that is always 0 is no rate


def test_one_cluster_has_a_value_and_no_interval():
    estimate = cluster_bootstrap([1.0, 2.0], ["a", "a"])
    assert (
        estimate.value == 1.5
        and np.isnan(estimate.low)
        and np.isnan(estimate.high)
        and estimate.n_groups == 1
    )


def test_resamples_without_a_value_are_left_out_or_void_the_interval():
    rng = np.random.default_rng(0)
    rare = np.ones((200, 2))
    rare[:6, 0] = 0
    share = lambda mean: np.where(mean[..., 0] < 1, mean[..., 1], np.nan)  # noqa: E731
    assert np.isfinite(cluster_bootstrap(rare, np.arange(200), share, seed=1).low)
    rare[1:6, 0] = 1
    assert np.isnan(cluster_bootstrap(rare, rng.permutation(200), share, seed=1).low)


@pytest.mark.parametrize(
    ("columns", "groups", "function", "sentence"),
    [
        ([], [], None, "no decisions"),
        ([1.0, np.nan], [0, 1], None, "1 of 2 rows are NaN.*row 1"),
        ([1.0, 2.0], [0], None, "2 decisions but groups names 1"),
        (np.ones((3, 2)), [0, 1, 2], None, "2 columns need a function"),
        (np.ones((3, 2)), [0, 1, 2], lambda mean: mean, "must map means"),
        (np.ones((3, 2, 2)), [0, 1, 2], None, "shape"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(columns, groups, function, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        cluster_bootstrap(columns, groups, function)


def test_headroom_gap_is_the_share_of_what_was_left():
    rng = np.random.default_rng(4)
    prompt, cot, groups = rng.random(300) < 0.6, rng.random(300) < 0.8, np.arange(300) // 4
    estimate = headroom_gap(prompt, cot, groups)
    assert estimate.value == pytest.approx((cot.mean() - prompt.mean()) / (1 - prompt.mean()))
    assert estimate.low < estimate.value < estimate.high
    assert np.isnan(headroom_gap(np.ones(4), np.ones(4), range(4)).value)


def test_kappa_agrees_with_scikit_learn_in_value_and_in_every_resample():
    rng = np.random.default_rng(5)
    a = rng.choice(list("xyz"), 120)
    b = np.where(rng.random(120) < 0.6, a, rng.choice(list("xyzw"), 120))
    groups = np.arange(120) // 3
    estimate = kappa(a, b, groups, draws=200, seed=1)
    assert estimate.value == pytest.approx(cohen_kappa_score(a, b))
    drawn = np.random.default_rng(1).integers(40, size=(200, 40))
    rows = [np.concatenate([np.flatnonzero(groups == g) for g in episodes]) for episodes in drawn]
    slow = np.quantile([cohen_kappa_score(a[r], b[r]) for r in rows], tails(40))
    np.testing.assert_allclose([estimate.low, estimate.high], slow, rtol=1e-9)
    assert kappa(a, a).value == 1
    assert np.isnan(kappa(["x"] * 3, ["x"] * 3).value)
    with pytest.raises(ValueError, match="same decisions"):
        kappa(["x"], ["x", "y"])


def test_mcnemar_is_the_exact_binomial_test():
    rng = np.random.default_rng(6)
    a, b = rng.random(60) < 0.5, rng.random(60) < 0.7
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    p = mcnemar(a, b)
    assert p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    assert p == pytest.approx(scipy.stats.binomtest(int(table[0][1]), int(table[0][1] + table[1][0])).pvalue)
    assert p == mcnemar(b, a) and mcnemar(a, a) == 1
    with pytest.raises(ValueError, match="same decisions"):
        mcnemar([1], [1, 0])


def test_tail_is_scipys_to_the_bit():
    for n_groups, level, widen in ((2, 0.95, 1.0), (10, 0.9, 1.34), (54, 0.95, 2.0), (1000, 0.99, 1.0)):
        quantile = scipy.stats.t.isf((1 - level) / 2, n_groups - 1)
        share = scipy.stats.norm.sf(widen * np.sqrt(n_groups / (n_groups - 1)) * quantile)
        assert expanded_tail(n_groups, level, widen) == share


def test_wilson_parity_and_refusals():
    assert wilson(3, 20) == pytest.approx(proportion_confint(3, 20, method="wilson"))
    assert all(wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1 for n in range(1, 120)), (
        "exactly, or a share of none would lie above 0"
    )
    interval = scipy.stats.binomtest(3, 20).proportion_ci(method="wilson")
    assert wilson(3, 20) == pytest.approx((interval.low, interval.high))
    for k, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="0 <= k <= n"):
            wilson(k, n)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert len(holm([])) == 0
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, np.nan])


def test_one_layer_is_scipys_sign_flip_test():
    rng = np.random.default_rng(8)
    groups = np.arange(60) // 3
    gains = 0.5 * rng.normal(size=20)[groups] + rng.normal(0.25, 1, 60)
    sums = np.bincount(groups, weights=gains)
    for alternative in ("greater", "two-sided"):
        theirs = scipy.stats.permutation_test(
            (sums,), np.sum, permutation_type="samples", n_resamples=20000, alternative=alternative, rng=0
        )
        assert max_statistic(gains[:, None], groups, 20000, alternative=alternative)[0] == pytest.approx(
            theirs.pvalue, abs=0.01
        )


def test_correction_over_layers_holds_its_level_and_beats_holm_on_layers_alike():
    rng, groups, wrong, narrower = np.random.default_rng(9), np.arange(90) // 3, 0, []
    for seed in range(200):
        shared = rng.normal(size=30)[groups][:, None] + rng.normal(size=(90, 1))
        gains = shared + 0.3 * rng.normal(size=(90, 12))
        p = max_statistic(gains, groups, 400, seed)
        wrong += p.min() <= 0.05
        one_by_one = (
            [max_statistic(layer[:, None], groups, 400, seed)[0] for layer in gains.T] if seed < 10 else []
        )
        if one_by_one:
            assert (p >= np.array(one_by_one) - 1e-12).all()
            narrower.append(p.min() <= holm(one_by_one).min() + 1e-12)
    assert wrong / 200 <= 0.09 and np.mean(narrower) >= 0.9
    gains[:, 4] += 1.5
    found = max_statistic(gains, groups, 400)
    assert found[4] <= 0.01 and found.argmin() == 4
    assert (max_statistic(np.zeros((6, 2)), range(6), 50) == 1).all()


@pytest.mark.parametrize(
    ("gains", "groups", "options", "sentence"),
    [
        (np.zeros(4), range(4), {}, r"\[decision, layer\]"),
        (np.full((4, 2), np.nan), range(4), {}, "must be finite"),
        (np.zeros((4, 2)), range(3), {}, "4 decisions but groups names 3"),
        (np.zeros((4, 2)), [0] * 4, {}, "of one episode"),
        (np.zeros((4, 2)), range(4), {"alternative": "less"}, "'greater' or 'two-sided'"),
    ],
)
def test_a_correction_over_nothing_is_refused(gains, groups, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        max_statistic(gains, groups, **options)


def test_estimate_row_is_the_five_columns():
    assert list(Estimate(1.0, 0.0, 2.0, 5, 3).row()) == ["value", "low", "high", "n", "n_groups"]


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlation_is_scipys_in_the_sample_and_in_every_resample(kind):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(8), [1, 2, 3, 1, 2, 1, 2, 2])
    x = np.round(rng.normal(size=(14, 5)), 1)  # with ties
    y = x + rng.normal(size=x.shape)
    x[3], y[5, 2] = np.nan, np.nan
    function = dict(pearson=scipy.stats.pearsonr, spearman=scipy.stats.spearmanr)[kind]
    found, known = correlation(x, y, groups, kind, draws=60, seed=3), np.isfinite(x) & np.isfinite(y)
    rows = np.flatnonzero(known.any(1))
    assert (found.value, found.n, found.n_groups) == (
        pytest.approx(function(x[known], y[known]).statistic),
        13,
        8,
    )
    values = []
    for weights in bootstrap_weights(groups[rows], 60, 3):
        drawn = np.repeat(rows, weights)
        values.append(function(x[drawn][known[drawn]], y[drawn][known[drawn]]).statistic)
    whole = percentile(found.value, np.array(values), 13, 8)
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high))


def test_correlation_without_spread_or_of_wrong_shapes():
    nothing = correlation(np.full((4, 3), np.nan), np.ones((4, 3)), range(4))
    assert np.isnan(nothing.value) and nothing.n == 0
    assert np.isnan(
        correlation(np.ones((4, 3)), np.random.default_rng(0).normal(size=(4, 3)), range(4)).value
    )
    with pytest.raises(ValueError, match="one shape"):
        correlation(np.ones((4, 3)), np.ones((4, 2)), range(4))
    with pytest.raises(ValueError, match="no correlation 'kendall'"):
        correlation(np.ones((4, 3)), np.ones((4, 3)), range(4), "kendall")
