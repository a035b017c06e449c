"""Metrics, predictors and controls that `probe` takes beside logistic regression, and intervals on labels
that nothing predicts."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from analyses.coverage import Config, run
from interp.probing.baselines import control_labels, lda, mean_difference
from interp.probing.logistic import rotated
from interp.probing.metrics import METRICS, auroc, macro_f1
from interp.probing.probes import NESTED, probe
from interp.results.tables import read_table
from interp.stats.intervals import bootstrap_weights
from tests.probing.test_probes import changed, planted, value


def said(seed=0, n=90, classes=3):
    rng = np.random.default_rng(seed)
    code = rng.integers(classes, size=n)
    probability = rng.dirichlet(np.ones(classes), size=n).round(1) + 0.5 * np.eye(classes)[code] * rng.random(
        (n, 1)
    )
    return probability / probability.sum(axis=1, keepdims=True), code, np.arange(n) // 3


def test_scores_are_scikit_learns_on_the_data_and_in_every_resample():
    probability, code, groups = said()
    weights = np.vstack([np.ones(len(code)), bootstrap_weights(groups, 40, seed=3)])
    areas, f1 = auroc(probability, code, weights), macro_f1(probability, code, weights)
    for i, weight in enumerate(weights):
        rows = np.repeat(np.arange(len(code)), weight.astype(int))
        ranked = np.mean(
            [roc_auc_score(code == label, probability[:, label], sample_weight=weight) for label in range(3)]
        )
        assert areas[i] == pytest.approx(ranked)
        assert areas[i] == pytest.approx(roc_auc_score(code[rows], probability[rows], multi_class="ovr"))
        assert f1[i] == pytest.approx(f1_score(code[rows], probability[rows].argmax(axis=1), average="macro"))


def test_classes_of_one_kind_and_pairs_across_folds_are_left_out():
    probability, code, _ = said(classes=3)
    ones = np.ones((1, len(code)))
    weights = ones * (code != 2)
    expected = np.mean(
        [roc_auc_score(code[code != 2] == label, probability[code != 2, label]) for label in (0, 1)]
    )
    assert auroc(probability, code, weights)[0] == pytest.approx(expected)
    assert np.isnan(auroc(probability, np.zeros_like(code), ones)[0])
    fold = np.arange(len(code)) % 2
    moved = probability + fold[:, None]  # predictors of two folds that differ by a constant
    area = 0
    for label in (0, 1, 2):
        parts = [
            (
                roc_auc_score(code[fold == f] == label, moved[fold == f, label]),
                np.prod(np.bincount(code[fold == f] == label)),
            )
            for f in (0, 1)
        ]
        area += sum(score * size for score, size in parts) / sum(size for _, size in parts) / 3
    assert auroc(moved, code, ones, fold)[0] == pytest.approx(area)
    unseen = np.where(np.arange(len(code)) < 5, -1, code)
    names = np.where(unseen < 0, 9, unseen)
    assert macro_f1(probability, unseen, ones)[0] == pytest.approx(
        f1_score(names, probability.argmax(axis=1), average="macro")
    )


def problem(n, d, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    code = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n + 30, d)) * np.linspace(0.3, 2, d)
    x[:n] += rng.normal(size=(classes, d))[code]
    scaler = StandardScaler().fit(x[:n])
    return scaler.transform(x[:n]), code, scaler.transform(x[n:])


@pytest.mark.parametrize(("n", "d", "classes"), [(80, 9, 3), (40, 70, 3), (50, 90, 2)])
def test_predictors_on_rotated_rows_are_scikit_learns_on_all_features(n, d, classes):
    train, code, held_out = problem(n, d, classes=classes)
    ends = rotated(train, held_out)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf()).fit(train, code)
    np.testing.assert_allclose(
        lda(ends[0], code, ends[1], classes, d), theirs.predict_proba(held_out), atol=1e-6
    )
    ours = mean_difference(ends[0], code, ends[1], classes, d)
    np.testing.assert_array_equal(ours.argmax(axis=1), NearestCentroid().fit(train, code).predict(held_out))
    if classes == 2:
        apart = np.subtract(*(train[code == label].mean(axis=0) for label in (1, 0)))
        score = held_out @ apart
        assert (np.argsort(np.argsort(ours[:, 1])) == np.argsort(np.argsort(score))).all()


def test_predictors_bear_missing_classes_single_rows_and_nothing_to_read():
    train, code, held_out = problem(12, 4)
    for predictor in (lda, mean_difference):
        for these in (code + 1, np.zeros_like(code), np.arange(12)):
            given = predictor(train, these, held_out, 13, 4)
            np.testing.assert_allclose(given.sum(axis=1), 1)
            assert (given[:, np.setdiff1d(range(13), these)] == 0).all()
        np.testing.assert_allclose(predictor(train[:, :0], code, held_out[:, :0], 3, 4), 1 / 3)


@pytest.fixture(scope="module")
def whole():
    acts, labels, groups, prompts, previous = planted(n_groups=16)
    types = [f"{before} {i % 3}" for i, before in enumerate(previous)]
    noise = np.random.default_rng(5).normal(size=(len(labels), 4, 7))
    test = (
        *planted(seed=7, n_groups=8),
        [f"type {i % 5}" for i in range(32)],
        np.random.default_rng(6).normal(size=(32, 4, 7)),
    )
    given = dict(prompts=prompts, previous=previous, draws=100)
    options = dict(
        metrics=METRICS,
        predictors=("logistic", "lda", "mean_difference"),
        types=types,
        random_acts=noise,
        test=test,
    )
    return probe(acts, labels, groups, **given, **options), probe(
        acts, labels, groups, **given, test=test[:5]
    )


def test_what_is_opted_into_leaves_the_other_rows_as_they_are(whole):
    more, plain = (result.to_frame() for result in whole)
    added = {"lda", "mean_difference", "random_model", "control_task", "selectivity"}
    kept = more[~more.predictor.isin(added) & more.metric.isin(["accuracy", "log_loss"])].reset_index(
        drop=True
    )
    assert (
        kept.equals(plain)
        and set(more.predictor) - set(plain.predictor) == added
        and set(more.metric) == set(METRICS)
    )


def test_predictors_find_the_planted_layer_and_the_random_model_nothing(whole):
    result = whole[0]
    for predictor in ("lda", "mean_difference"):
        for metric in ("accuracy", "auroc", "macro_f1"):
            assert (
                value(result, predictor, 2, metric).value > 0.8
                and value(result, predictor, NESTED, metric).value > 0.8
            )
        assert value(result, predictor, 1).value < 0.6
        layers = [row["layer"] for row in result.chosen if row["predictor"] == f"nested_{predictor}"]
        assert layers == [2] * 6
    assert (
        value(result, "random_model").value < 0.6
        and 0.3 < value(result, "random_model", 0, "auroc").value < 0.7
    )
    assert value(result, "majority", metric="auroc").value == 0.5  # a constant predictor ranks nothing


def test_selectivity_is_accuracy_minus_the_control_tasks(whole):
    result = whole[0]
    for split in ("in_domain", "out_of_domain"):
        for layer in (NESTED, 0, 2):
            found = value(result, "selectivity", layer, split=split)
            expected = (
                value(result, "probe", layer, split=split).value
                - value(result, "control_task", layer, split=split).value
            )
            assert found.value == pytest.approx(expected) and found.low <= found.value <= found.high
    assert value(result, "selectivity", 2).low > 0.1
    assert set(result.to_frame().query("predictor == 'selectivity'").metric) == {"accuracy"}


def test_gains_are_paired_in_every_metric_and_corrected_over_layers(whole):
    result = whole[0]
    for metric in ("auroc", "macro_f1"):
        difference = (
            value(result, "probe", 2, metric).value - value(result, "best_control", metric=metric).value
        )
        gain = value(result, "gain", 2, metric)
        assert gain.value == pytest.approx(difference) and 0 < gain.low <= gain.value <= gain.high
    p = {
        row["layer"]: row["p"]
        for row in result.layer_p
        if row["split"] == "in_domain" and row["metric"] == "accuracy"
    }
    assert set(p) == {0, 1, 2, 3} and p[2] < 0.01 and min(p[0], p[1], p[3]) > 0.05
    assert {row["metric"] for row in result.layer_p} == {"accuracy", "log_loss"}


def test_control_labels_are_one_for_a_type_seeded_and_of_the_same_shares():
    rng = np.random.default_rng(0)
    code, types = (
        rng.choice(3, p=[0.6, 0.3, 0.1], size=3000),
        [f"type {i}" for i in rng.integers(200, size=3000)],
    )
    drawn = control_labels(types, code, 4)
    assert all(len(set(drawn[np.array(types) == each])) == 1 for each in set(types))
    np.testing.assert_allclose(np.bincount(drawn) / 3000, np.bincount(code) / 3000, atol=0.02)
    np.testing.assert_array_equal(drawn, control_labels(types, code, 4))
    assert (drawn != control_labels(types, code, 5)).any()
    of_type = {each: label for each, label in zip(types, drawn, strict=True)}
    true = np.array([np.bincount(code[np.array(types) == each], minlength=3).argmax() for each in of_type])
    assert abs(np.corrcoef(true, list(of_type.values()))[0, 1]) < 0.25
    assert len(control_labels([*types, "new"], code, 4)) == 3001
    with pytest.raises(ValueError, match="1 prompt types are too few"):
        control_labels(["same"] * 6, np.arange(6) % 2, 0)


def test_intervals_on_labels_that_nothing_predicts_cover_chance(tmp_path):
    run(Config(run=tmp_path, datasets=24, decisions=80, draws=300, clusters=(10,)))
    table, made = read_table(tmp_path / "tables", "coverage")
    assert (table.n == 24).all() and made["config"]["decisions"] == 80
    read = table[table.what == "predictor"]
    assert set(read.predictor) == {
        "probe",
        "lda",
        "mean_difference",
        "random_model",
        "selectivity",
        "majority",
    } and set(read.layer) == {NESTED, 0}
    assert (
        read.value.mean() >= 0.92 and read.value.min() >= 0.83
    )  # intervals not widened for shared training folds cover .87
    assert 0.75 < read.sd_ratio.mean() < 1.15 and read.bias.abs().max() < 0.05
    false = table[table.what == "false_gain"]
    assert (
        set(false.predictor) == {"over_majority", "over_all"}
        and false.value.max() <= 0.15
        and false.bias.abs().max() < 0.05
    )
    assert table[table.what == "layer_p"].value.max() <= 0.15 and len(table[table.what == "mean"]) == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"metrics": lambda _: ("accuracy", "kappa")},
            "metrics must be some of accuracy, log_loss, macro_f1, auroc",
        ),
        ({"predictors": lambda _: ("lda",)}, "predictors must be 'logistic' and any of lda, mean_difference"),
        ({"types": lambda _: ["a"]}, "32 decisions but types has 1"),
        ({"types": lambda _: [3] * 32}, "types of the first set must be strings"),
        ({"types": lambda _: ["same"] * 32}, "too few or too uneven for a control task"),
        (
            {"random_acts": lambda _: np.zeros((32, 3, 5))},
            r"random_acts of the first set are .* = \(32, 3\) but acts are \(32, 4\)",
        ),
        (
            {"random_acts": lambda _: np.full((32, 4, 5), np.nan)},
            "random_acts of the first set are not finite at decision 0, layer 0",
        ),
        (
            {"types": lambda _: ["a", "b"] * 16, "test": lambda _: planted(seed=1)},
            "types is given for one set only",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        probe(**changed(**changes))
