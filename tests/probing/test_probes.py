import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from interp.probing import logistic, probes
from interp.probing.logistic import grouped_splits
from interp.probing.probes import NESTED, probe
from interp.probing.solver import TOLERANCE, fit_logistic
from interp.stats.intervals import cluster_bootstrap

#: Predictors of no activation.
CONTROLS = ("majority", "previous_action", "tfidf", "prompt_length")


def planted(seed=0, n_groups=24, per_group=4, d=12, n_classes=3, layer=2, strength=2.0):
    """Activations of four layers of which only `layer` carries the label."""
    rng = np.random.default_rng(seed)
    n = n_groups * per_group
    code = rng.integers(n_classes, size=n)
    acts = rng.normal(size=(n, 4, d))
    acts[:, layer] += strength * np.random.default_rng(99).normal(size=(n_classes, d))[code]
    labels = [f"act {i}" for i in code]
    groups = [f"episode {seed} {i // per_group}" for i in range(n)]
    prompts = [" ".join(rng.choice(["pan", "cup", "sink", "desk", "shelf"], 12)) for _ in range(n)]
    return acts, labels, groups, prompts, ["none", *labels[:-1]]


def value(result, predictor, layer=NESTED, metric="accuracy", split="in_domain"):
    table = result.to_frame()
    rows = table[
        (table.predictor == predictor)
        & (table.layer == layer)
        & (table.metric == metric)
        & (table.split == split)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def result():
    acts, labels, groups, prompts, previous = planted()
    return probe(acts, labels, groups, prompts=prompts, previous=previous, draws=300)


def test_planted_signal_is_found_at_its_layer(result):
    assert value(result, "probe", 2).value > 0.9
    assert all(value(result, "probe", layer).value < 0.55 for layer in (0, 1, 3))
    assert value(result, "gain", 2).low > 0.3 and value(result, "gain").low > 0.3
    assert value(result, "gain", 2, "log_loss").low > 0.3
    nested = [row for row in result.chosen if row["predictor"] == "nested"]
    assert [row["layer"] for row in nested] == [2] * 5
    np.testing.assert_array_equal(result.predicted["probe", NESTED], result.predicted["probe", 2])
    assert value(result, "embedding", 0).value == value(result, "probe", 0).value


def test_shuffled_labels_are_near_chance(result):
    assert 0.15 < value(result, "shuffled").value < 0.5


def test_table_and_diagnostics(result):
    table = result.to_frame()
    assert list(table.columns) == [
        "layer",
        "split",
        "predictor",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "n_groups",
    ]
    assert set(table.metric) == {"accuracy", "log_loss"} and set(table.split) == {"in_domain"}
    assert set(table.predictor) == {"probe", "embedding", "gain", "shuffled", "best_control", *CONTROLS}
    assert (table.n == 96).all() and (table.n_groups == 24).all()
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    kept = json.loads(json.dumps(result.diagnostics()))
    assert (
        kept["n_classes"] == 3
        and kept["seed"] == 0
        and kept["n_unconverged"] == 0
        and kept["unseen"] == {"in_domain": 0}
    )


def test_gain_is_paired_and_over_the_control_that_is_best_inside_the_training_folds(result):
    assert len(result.best_control) == 5 and set(result.best_control) <= set(CONTROLS)
    for fold, name in enumerate(result.best_control):
        here = result.fold == fold
        np.testing.assert_array_equal(
            result.predicted["best_control", NESTED][here], result.predicted[name, NESTED][here]
        )
    for metric, sign in (("accuracy", 1), ("log_loss", -1)):
        difference = (
            value(result, "probe", 2, metric).value - value(result, "best_control", metric=metric).value
        )
        assert value(result, "gain", 2, metric).value == pytest.approx(sign * difference)


def test_the_choice_of_a_control_reads_no_held_out_label():
    """Labels changed in one fold leave the control chosen for it, and what it says there, as they were."""
    acts, labels, groups, prompts, previous = planted(n_groups=12)
    one = probe(acts, labels, groups, prompts=prompts, previous=previous, draws=20, layers=[0])
    here = one.fold == 2
    turned = [("act 0" if label != "act 0" else "act 1") if h else label for label, h in zip(labels, here)]
    other = probe(acts, turned, groups, prompts=prompts, previous=previous, draws=20, layers=[0])
    assert one.best_control[2] == other.best_control[2]
    np.testing.assert_array_equal(
        one.predicted["best_control", NESTED][here], other.predicted["best_control", NESTED][here]
    )


def test_noise_has_no_gain():
    gains = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = [f"act {i}" for i in rng.integers(3, size=120)]
        prompts = [f"text {i}" for i in rng.integers(9, size=120)]
        result = probe(
            rng.normal(size=(120, 2, 8)), labels, np.arange(120) // 4, seed=seed, draws=300, prompts=prompts
        )
        gains.append(value(result, "gain"))
    assert all(gain.low <= 0 for gain in gains)
    assert sum(gain.high >= 0 for gain in gains) >= 7


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 3))
def test_grouped_splits_hold_out_every_episode_once_and_whole(groups, folds, seed):
    groups = np.array([*groups, *range(4)])
    held = np.zeros(len(groups), dtype=int)
    for train, held_out in grouped_splits(groups, folds, seed):
        assert not set(groups[train]) & set(groups[held_out])
        assert len(train) + len(held_out) == len(groups)
        held[held_out] += 1
    assert (held == 1).all()


def test_every_fit_keeps_training_and_scored_episodes_apart(monkeypatch):
    acts, labels, groups, *_ = planted(n_groups=10)
    names, seen = np.array(groups), []
    standardised = probes.standardised

    def watched(values):
        features = standardised(values)

        def watch(train, held_out):
            seen.append(set(names[train]) & set(names[held_out]))
            return features(train, held_out)

        return watch

    monkeypatch.setattr(probes, "standardised", watched)
    probe(acts, labels, groups, draws=20, layers=[2])
    assert len(seen) == 5 * 3 + 5 + 5 and not any(seen)


def problems():
    """(rows, codes, unseen rows): tall and wide, of two and four classes, with a class missing and a constant
    feature."""
    for seed, (n, d, classes) in enumerate(
        [(60, 9, (0, 1, 2, 3)), (40, 70, (0, 1, 2, 3)), (50, 12, (0, 3)), (75, 5, (0, 2, 3))]
    ):
        rng = np.random.default_rng(seed)
        code = np.array(classes)[rng.permutation(np.arange(n) % len(classes))]
        x, unseen = (rng.normal(size=(rows, d)) * np.linspace(0.2, 3, d) for rows in (n, 25))
        x += 0.5 * rng.normal(size=(4, d))[code]
        x[:, -1] = unseen[:, -1] = 0.0
        yield x, code, unseen


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_batch_of_fits_equals_scikit_learn_one_by_one(device):
    data = list(problems())
    ends = [logistic.rotated(x, unseen) for x, _, unseen in data]
    assert all(train.shape[1] <= min(x.shape) for (train, _), (x, _, _) in zip(ends, data, strict=True))
    grid = np.array([[0.01, 0.1, 1.0], [0.02, 0.2, 1.0], [0.01, 0.1, 1.0], [5.0, 0.1, 0.001]])
    for tolerance, close, error in ((1e-9, 1e-4, 1e-4), (TOLERANCE, 5e-3, 0.03)):
        weights, bias, unconverged = fit_logistic(
            [train for train, _ in ends], [code for _, code, _ in data], grid, tolerance, device
        )
        assert unconverged == 0 and weights.shape[:2] == grid.shape and weights.dtype == np.float64
        for (x, code, unseen), (_, held_out), w, b, row in zip(data, ends, weights, bias, grid, strict=True):
            present = np.unique(code)
            for i, c in enumerate(row):
                ours = softmax(held_out @ w[i, : held_out.shape[1]] + b[i], axis=1)
                assert (ours[:, np.setdiff1d(range(4), present)] == 0).all()
                reference = LogisticRegression(
                    C=c * (2 if len(present) == 2 else 1), tol=1e-9, max_iter=10000
                )
                slow = reference.fit(x, code).predict_proba(unseen)
                np.testing.assert_allclose(ours[:, present], slow, atol=error)
                truth = np.arange(25) % len(present)
                losses = [-np.log(p[np.arange(25), truth]).mean() for p in (ours[:, present], slow)]
                assert abs(losses[0] - losses[1]) < close * max(1, losses[1])
                if tolerance < TOLERANCE:
                    np.testing.assert_array_equal(ours[:, present].argmax(axis=1), slow.argmax(axis=1))


def test_a_fit_does_not_depend_on_its_batch():
    data = list(problems())
    together = fit_logistic([x for x, *_ in data], [code for _, code, _ in data], (0.1, 1.0), 1e-8)
    for i, (x, code, _) in enumerate(data):
        alone = fit_logistic([x], [code], (1.0,), 1e-8)
        np.testing.assert_allclose(together[0][i, 1, : x.shape[1]], alone[0][0, 0], atol=1e-6)
        np.testing.assert_allclose(together[1][i, 1], alone[1][0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("features", "code", "grid", "sentence"),
    [
        ([np.zeros((3, 2))], [np.zeros(2, dtype=int)], (1.0,), "equally many"),
        ([], [], (1.0,), "needs rows"),
        ([np.zeros((0, 2))], [np.zeros(0, dtype=int)], (1.0,), "needs rows"),
        ([np.zeros((2, 2))], [np.array([0, 1])], (0.0,), "positive inverse penalties"),
    ],
)
def test_fits_of_nothing_and_of_no_penalty_are_refused(features, code, grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_logistic(features, code, grid)


def test_small_batches_give_the_same_table(monkeypatch):
    acts, labels, groups, prompts, previous = planted(n_groups=12)
    options = dict(prompts=prompts, previous=previous, draws=20)
    whole = probe(acts, labels, groups, **options)
    monkeypatch.setitem(logistic.BUDGET, "cpu", 1)
    single = probe(acts, labels, groups, **options)
    np.testing.assert_allclose(whole.to_frame().value, single.to_frame().value, atol=2e-3)


def test_probe_equals_a_plain_scikit_learn_loop():
    acts, labels, groups, *_ = planted(strength=0.7)
    result = probe(acts, labels, groups, C=(0.1,), draws=20, layers=[2])
    labels, predicted = np.array(labels), np.empty(len(labels), dtype=object)
    for fold in range(5):
        train, held_out = result.fold != fold, result.fold == fold
        scaler = StandardScaler().fit(acts[train, 2])
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(
            scaler.transform(acts[train, 2]), labels[train]
        )
        predicted[held_out] = model.predict(scaler.transform(acts[held_out, 2]))
    assert (predicted == result.predicted["probe", 2]).mean() > 0.98


def test_tfidf_features_are_those_of_a_vectoriser_fitted_on_train():
    *_, prompts, _ = planted()
    prompts[3] = "a word of its own"
    train, held_out = np.arange(10, 40), np.arange(10)
    ours, other = logistic.tfidf(prompts)(train, held_out)
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    x = vectoriser.fit_transform([prompts[i] for i in train]).toarray()
    y = vectoriser.transform([prompts[i] for i in held_out]).toarray()
    np.testing.assert_allclose(ours @ ours.T, x @ x.T, atol=1e-9)
    np.testing.assert_allclose(other @ ours.T, y @ x.T, atol=1e-9)


def test_text_and_previous_controls_find_what_the_text_and_the_past_say():
    acts, labels, groups, _, _ = planted(n_groups=12)
    prompts = [f"please {label} 1" * (1 + int(label[-1])) for label in labels]
    previous = [f"before {label}" for label in labels]
    result = probe(acts, labels, groups, prompts=prompts, previous=previous, draws=50, layers=[2])
    for control in ("tfidf", "prompt_length", "previous_action"):
        assert value(result, control).value > 0.95
    assert value(result, "gain").high <= 0.05


def test_counting_control_falls_back_on_overall_frequencies():
    acts, labels, groups, _, _ = planted(n_groups=12)
    never_twice = [f"step {i}" for i in range(len(labels))]
    result = probe(acts, labels, groups, previous=never_twice, draws=20, layers=[0])
    code = np.unique(labels, return_inverse=True)[1]
    most = [f"act {np.bincount(code[result.fold != fold]).argmax()}" for fold in result.fold]
    np.testing.assert_array_equal(result.predicted["previous_action", NESTED], most)


def test_out_of_domain_set_is_scored_by_readers_of_the_first():
    acts, labels, groups, prompts, previous = planted()
    test = planted(seed=7, n_groups=10)
    test[1][0] = "never seen"
    first = probe(acts, labels, groups, prompts=prompts, previous=previous, draws=100)
    both = probe(acts, labels, groups, prompts=prompts, previous=previous, draws=100, test=test)
    table, alone = both.to_frame(), first.to_frame()
    inside = table[(table.split == "in_domain") & (table.predictor != "shuffled")].reset_index(drop=True)
    alone = alone[alone.predictor != "shuffled"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        inside, alone, check_exact=False, rtol=0, atol=2e-3
    )  # equal up to where the solver stops
    outside = value(both, "probe", split="out_of_domain")
    assert outside.value > 0.85 and outside.n == 40 and outside.n_groups == 10
    assert both.unseen == {"in_domain": 0, "out_of_domain": 1}
    assert value(both, "gain", split="out_of_domain").low > 0.2
    assert [row["layer"] for row in both.chosen if row["predictor"] == "nested" and row["fold"] == -1] == [2]
    assert both.predicted["probe", 2][96] != "never seen" and set(both.fold[96:]) == {-1}
    scaler = StandardScaler().fit(acts[:, 2])
    c = next(
        row["C"]
        for row in both.chosen
        if row["predictor"] == "probe" and row["layer"] == 2 and row["fold"] == -1
    )
    model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(scaler.transform(acts[:, 2]), labels)
    assert (model.predict(scaler.transform(test[0][:, 2])) == both.predicted["probe", 2][96:]).mean() > 0.97


def test_a_training_set_replaces_the_folds_and_is_not_scored():
    acts, labels, groups, prompts, previous = planted(seed=1)
    other = planted(seed=2)
    train = planted(seed=0, n_groups=60)
    given = dict(prompts=prompts, previous=previous, draws=100, layers=(0, 2))
    result = probe(acts, labels, groups, **given, test=other, train=train)
    assert (result.folds, set(result.fold)) == (0, {-1})
    assert result.split.tolist() == ["in_domain"] * len(labels) + ["out_of_domain"] * len(other[1])
    assert {row["fold"] for row in result.chosen} == {-1} and len(result.best_control) == 1
    c = next(row["C"] for row in result.chosen if row["predictor"] == "probe" and row["layer"] == 2)
    scaler = StandardScaler().fit(train[0][:, 2])
    plain = LogisticRegression(C=c, max_iter=5000).fit(scaler.transform(train[0][:, 2]), train[1])
    said = plain.predict(scaler.transform(np.concatenate([acts, other[0]])[:, 2]))
    np.testing.assert_array_equal(result.predicted["probe", 2], said)
    for split, (ours, truth) in dict(
        in_domain=(said[: len(labels)], labels), out_of_domain=(said[len(labels) :], other[1])
    ).items():
        row = value(result, "probe", 2, split=split)
        assert row.value == pytest.approx((ours == np.array(truth)).mean(), abs=1e-9)
        assert row.n == len(truth) and row.low < row.value
    counts = pd.Series(train[1]).value_counts()
    assert value(result, "majority").value == pytest.approx((np.array(labels) == counts.index[0]).mean())
    alone = probe(acts, labels, groups, **given, train=train)
    assert set(alone.split) == {"in_domain"}
    assert value(alone, "probe", 2).value == value(result, "probe", 2).value
    many = probe(acts, [*labels[:-1], "never seen"], groups, **given, train=train)
    assert many.unseen == {"in_domain": 1} and "never seen" not in many.classes


def test_intervals_of_a_training_set_are_not_widened_for_folds():
    acts, labels, groups, *_ = planted(strength=0.4)
    train = planted(seed=5, strength=0.4)[:3]
    result = probe(acts, labels, groups, draws=400, layers=(2,), train=train)
    hits = (result.predicted["probe", 2] == np.array(labels)).astype(float)
    row, plain = value(result, "probe", 2), cluster_bootstrap(hits, groups, draws=400)
    assert (row.low, row.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


def test_controls_that_are_given_are_not_fitted_again(monkeypatch):
    acts, labels, groups, prompts, previous = planted()
    rng = np.random.default_rng(1)
    train = (*planted(seed=3), None, rng.normal(size=(96, 4, 5)))
    given = dict(prompts=prompts, previous=previous, random_acts=rng.normal(size=(96, 4, 5)), draws=50)
    first = probe(acts, labels, groups, **given, train=train)
    assert {name for name, _ in first.controls} == {*CONTROLS, "random_model"}
    monkeypatch.setattr(probes, "tfidf", None)
    other = acts + rng.normal(size=acts.shape)
    again = probe(other, labels, groups, **given, train=train, controls=first.controls)
    for control in (*CONTROLS, "random_model"):
        assert value(again, control).value == value(first, control).value
    assert again == probe(other, labels, groups, **given, train=train, controls=again.controls)
    assert value(again, "probe").value != value(first, "probe").value
    with pytest.raises(ValueError, match="controls are of other decisions or classes"):
        probe(acts[:-4], labels[:-4], groups[:-4], train=train[:3], controls=first.controls)


def test_a_training_set_shares_no_episode_and_has_two_classes():
    acts, labels, groups, *_ = planted()
    with pytest.raises(ValueError, match="are in both sets"):
        probe(acts, labels, groups, train=(acts, labels, groups))
    other = planted(seed=1)
    with pytest.raises(ValueError, match="labels of the training set hold only"):
        probe(acts, labels, groups, train=(other[0], ["one"] * len(labels), other[2]))


def test_a_class_of_one_episode_is_kept_and_counted():
    acts, labels, groups, *_ = planted(n_groups=12)
    labels = ["rare" if i in (0, 1) else label for i, label in enumerate(labels)]
    result = probe(acts, labels, groups, draws=20, layers=[2])
    assert "rare" in result.classes and result.unseen == {"in_domain": 2}
    assert not (result.predicted["probe", 2][:2] == "rare").any()


def test_constant_layer_reads_as_the_majority():
    acts, labels, groups, *_ = planted(n_groups=12)
    acts[:, 0] = 3.7
    labels = ["common" if label != "act 2" else label for label in labels]
    result = probe(acts, labels, groups, draws=20, layers=[0])
    np.testing.assert_array_equal(result.predicted["probe", 0], result.predicted["majority", NESTED])


def test_same_seed_same_table_and_activations_object():
    acts, labels, groups, prompts, previous = planted(n_groups=10)
    first, again, other = (
        probe(given, labels, groups, prompts=prompts, previous=previous, draws=50, layers=[1, 2], seed=seed)
        for given, seed in ((acts, 3), (SimpleNamespace(values=acts[:, None]), 3), (acts, 4))
    )
    assert first.to_frame().equals(again.to_frame()) and first.chosen == again.chosen
    assert not first.to_frame().equals(other.to_frame())


def changed(**changes):
    acts, labels, groups, prompts, previous = planted(n_groups=8)
    given = {
        "acts": acts,
        "labels": labels,
        "groups": groups,
        "prompts": prompts,
        "previous": previous,
        "draws": 5,
    }
    return {**given, **{name: change(given.get(name)) for name, change in changes.items()}}


def with_nan(acts):
    acts = acts.copy()
    acts[5, 1, 0] = np.nan
    return acts


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"acts": with_nan}, "first set are not finite at decision 5, layer 1"),
        ({"acts": lambda acts: acts[:, 0]}, r"must be \[decision, layer, d_model\]"),
        ({"acts": lambda acts: np.stack([acts, acts], axis=1)}, "2 sites"),
        ({"labels": lambda labels: labels[1:]}, "32 decisions but labels has 31"),
        ({"labels": lambda labels: ["same"] * len(labels)}, "at least two"),
        (
            {"labels": lambda labels: [None, *labels[1:]]},
            "labels of the first set must be strings; decision 0 has None",
        ),
        ({"groups": lambda groups: [group[-1] > "3" for group in groups]}, "2 episodes do not allow 5 folds"),
        ({"folds": lambda _: 9}, "8 episodes do not allow 9 folds"),
        ({"layers": lambda _: [4]}, "layers must be some of 0 to 3"),
        ({"C": lambda _: [0.0]}, "positive"),
        ({"test": lambda _: planted(n_groups=3)}, r"3 episodes \(one is .*\) are in both sets"),
        ({"test": lambda _: planted(seed=1, d=5)}, "differ in"),
        ({"test": lambda _: planted(seed=1)[:3]}, "prompts is given for one set only"),
        ({"test": lambda _: (with_nan(planted(seed=1)[0]), *planted(seed=1)[1:])}, "test set are not finite"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        probe(**changed(**changes))
