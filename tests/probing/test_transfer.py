"""Codelengths, transfer between checkpoints, and pairs of actions."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from interp.probing.logistic import grouped_splits
from interp.probing.mdl import UNIFORM, mdl
from interp.probing.pairwise import pairwise
from interp.probing.probes import NESTED, probe
from interp.probing.transfer import transfer
from interp.stats.intervals import integer_codes
from interp.system.choices import SHARES
from tests.probing.test_probes import planted, value


def test_codelength_is_a_plain_loop_of_scikit_learn():
    acts, labels, groups, *_ = planted(strength=0.8)
    result = mdl(acts[:, 2], labels, groups, C=(0.1,), seed=3, draws=100)
    classes, code = np.unique(labels, return_inverse=True)
    number = integer_codes(groups)[0]
    order = np.argsort(np.random.default_rng(3).permutation(24)[number], kind="stable")
    known, bits = 0, 0.0
    for block in result.blocks:
        assert block["n_known"] == known and known % 4 == 0
        rows, before = order[known : known + block["n"]], order[:known]
        if known:
            scaler = StandardScaler().fit(acts[before, 2])
            model = LogisticRegression(C=0.1, tol=1e-9, max_iter=5000).fit(
                scaler.transform(acts[before, 2]), code[before]
            )
            found = softmax(model.decision_function(scaler.transform(acts[rows, 2])), axis=1)
        else:
            found = np.full((len(rows), 3), 1 / 3)
        bits -= np.log2((1 - UNIFORM) * found[np.arange(len(rows)), code[rows]] + UNIFORM / 3).sum()
        known += block["n"]
    assert (
        known == 96
        and len(result.blocks) == len(SHARES)
        and [block["n_known"] for block in result.blocks[1:]] == [8, 12, 24, 48]
    )
    assert (
        result.bits
        == pytest.approx(bits, rel=2e-3)
        == pytest.approx(result.of_decision["probe"].sum(), rel=2e-3)
    )
    assert sum(block["bits"] for block in result.blocks) == pytest.approx(result.bits)
    assert (
        result.blocks[0]["bits"] == pytest.approx(result.blocks[0]["n"] * np.log2(3))
        and result.blocks[0]["C"] is None
    )
    assert result.uniform_bits == pytest.approx(96 * np.log2(3))
    assert result.compression.value == pytest.approx(result.uniform_bits / result.bits)
    assert result.gain.value == pytest.approx((result.majority_bits - result.bits) / 96)


def test_informative_layers_compress_and_noise_does_not():
    acts, labels, groups, *_ = planted()
    signal, noise = mdl(acts[:, 2], labels, groups), mdl(acts[:, 1], labels, groups)
    assert signal.compression.low > 1.5 and signal.gain.low > 0.3
    assert noise.compression.value < 1.05 and noise.gain.low < 0
    assert (
        mdl(acts[:, 2], labels, groups).of_decision["probe"].tolist() == signal.of_decision["probe"].tolist()
    )
    assert mdl(acts[:, 2], labels, groups, seed=1).bits != signal.bits
    one_class_first = [label if i >= 24 else "act 0" for i, label in enumerate(labels)]
    assert np.isfinite(mdl(acts[:, 2], one_class_first, groups).bits)
    assert mdl(acts[:, 2], labels, groups, shares=(1.0,)).compression.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"acts": np.zeros((32, 2, 5, 1))}, r"must be \[decision, d_model\]"),
        ({"acts": np.full((32, 5), np.nan)}, "not finite at decision 0"),
        ({"labels": ["same"] * 32}, "at least two classes"),
        ({"labels": ["a", "b"]}, "32 decisions but labels has 2"),
        ({"shares": (0.5, 0.5, 1.0)}, "must rise"),
        ({"shares": (0.2, 0.9)}, "must rise from above 0 to 1"),
        ({"shares": (0.01, 1.0)}, "holds only one"),
        ({"C": (0.0,)}, "positive"),
    ],
)
def test_bad_input_of_a_codelength_is_refused_with_a_sentence(changes, sentence):
    acts, labels, groups, *_ = planted(n_groups=8)
    given = {"acts": acts[:, 2], "labels": labels, "groups": groups} | changes
    with pytest.raises(ValueError, match=sentence):
        mdl(given.pop("acts"), given.pop("labels"), given.pop("groups"), **given)


@pytest.fixture(scope="module")
def checkpoints():
    """Three steps of the same decisions: the first two with one code for the label, the last with another."""
    acts, labels, groups, *_ = planted()
    rng = np.random.default_rng(3)
    code = np.unique(labels, return_inverse=True)[1]
    other = rng.normal(size=acts.shape)
    other[:, 2] += 2 * rng.normal(size=(3, 12))[code]
    return (
        {0: acts, 500: acts + 0.3 * rng.normal(size=acts.shape), 900: other},
        dict.fromkeys((0, 500, 900), labels),
        groups,
    )


def test_probes_transfer_where_the_code_is_shared(checkpoints):
    result = transfer(*checkpoints, layer=2, draws=200)
    matrix = result.matrix()
    assert (np.diag(matrix) > 0.85).all() and min(matrix[0, 1], matrix[1, 0]) > 0.85
    assert matrix[:2, 2].max() < 0.75 and matrix[2, :2].max() < 0.75
    assert result.matrix("drop", "low")[0, 2] > 0.1 and (np.diag(result.matrix("drop")) == 0).all()
    assert list(result.to_frame().columns) == [
        "train_step",
        "test_step",
        "split",
        "layer",
        "predictor",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "n_groups",
    ]
    assert len(result.to_frame()) == 27 and result.n_unconverged == 0 and len(result.chosen) == 15
    assert (result.to_frame().low <= result.to_frame().value).all() and (
        result.to_frame().value <= result.to_frame().high
    ).all()


def test_the_diagonal_is_the_probe_and_the_rest_a_plain_loop(checkpoints):
    acts, labels, groups = checkpoints
    result = transfer(acts, labels, groups, layer=2, C=(0.1,), draws=20)
    own = probe(acts[0], labels[0], groups, layers=[2], C=(0.1,), draws=20)
    assert result.matrix()[0, 0] == value(own, "probe", 2).value
    hits, names = [], np.array(labels[0])
    for train, held_out in grouped_splits(integer_codes(groups)[0], 5, 0):
        scaler = StandardScaler().fit(acts[500][train, 2])
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(
            scaler.transform(acts[500][train, 2]), names[train]
        )
        hits += (model.predict(scaler.transform(acts[900][held_out, 2])) == names[held_out]).tolist()
    assert result.matrix()[1, 2] == pytest.approx(np.mean(hits), abs=0.02)


def test_out_of_domain_decisions_are_read_by_probes_of_all_of_the_first_set(checkpoints):
    acts, labels, groups = checkpoints
    other, names, episodes, *_ = planted(seed=7, n_groups=10)
    test = ({step: other for step in acts}, dict.fromkeys(acts, ["never seen", *names[1:]]), episodes)
    result = transfer(acts, labels, groups, layer=2, test=test, draws=50)
    assert (
        result.to_frame()[lambda t: t.split == "in_domain"]
        .reset_index(drop=True)
        .equals(transfer(acts, labels, groups, layer=2, draws=50).to_frame())
    )
    for step in (0, 900):
        alone = probe(
            acts[step],
            labels[step],
            groups,
            layers=[2],
            test=(other, ["never seen", *names[1:]], episodes),
            draws=50,
        )
        at = result.steps.index(step)
        assert (
            result.matrix(split="out_of_domain")[at, at]
            == value(alone, "probe", 2, split="out_of_domain").value
        )
    assert result.matrix(split="out_of_domain", column="n_groups").tolist() == [[10] * 3] * 3
    assert {row["fold"] for row in result.chosen} == {-1, *range(5)}
    with pytest.raises(ValueError, match="1 episodes .* are in both sets"):
        transfer(acts, labels, groups, layer=2, test=(*test[:2], [groups[0]] * 40))


def test_the_layer_is_chosen_where_the_probe_is_trained(checkpoints):
    acts, labels, groups = checkpoints
    moved = {
        0: acts[0],
        900: acts[0][:, [2, 0, 1, 3]],
    }  # the layer with the label is another one at the last step
    result = transfer(moved, {step: labels[0] for step in moved}, groups, draws=20)
    assert {(row["train_step"], row["layer"]) for row in result.chosen} == {
        (0, 2),
        (900, 0),
    } and result.layer == NESTED
    assert np.diag(result.matrix()).min() > 0.85 and result.matrix()[[0, 1], [1, 0]].max() < 0.6
    assert mdl(moved[900], labels[0], groups).blocks[-1]["layer"] == 0


def test_a_code_by_the_text_stands_beside():
    acts, labels, groups, *_ = planted()
    result = mdl(acts[:, 1], labels, groups, prompts=[f"please {label}" for label in labels])
    assert result.of_decision["tfidf"].sum() < 0.8 * result.bits
    assert result.of_decision["majority"].sum() == pytest.approx(result.majority_bits)


def test_decisions_without_a_label_at_a_step_are_left_out_there(checkpoints):
    acts, labels, groups = checkpoints
    some = labels | {500: [None if i % 3 == 0 else label for i, label in enumerate(labels[500])]}
    result = transfer(acts, some, groups, layer=2, draws=20)
    assert result.matrix(column="n").tolist() == [[96, 64, 96]] * 3
    whole = transfer(acts, labels, groups, layer=2, draws=20)
    assert result.matrix()[0, 2] == whole.matrix()[0, 2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda acts, labels, groups: (acts, {0: labels[0]}, groups, 2), "same steps"),
        (
            lambda acts, labels, groups: (acts, labels, groups[1:], 2),
            "must be of the same decisions and layers",
        ),
        (
            lambda acts, labels, groups: (acts | {500: acts[500][:, :, :3]}, labels, groups, 2),
            "Step 500 has acts of shape",
        ),
        (
            lambda acts, labels, groups: (acts, labels | {500: [3] * 96}, groups, 2),
            "labels of step 500 must be strings or None",
        ),
        (
            lambda acts, labels, groups: (acts, labels | {500: ["one"] * 96}, groups, 2),
            "step 500 hold fewer than two classes",
        ),
        (lambda acts, labels, groups: (acts, labels, groups, 4), "layer must be one of 0 to 3"),
        (lambda acts, labels, groups: (acts, labels, ["a", "b"] * 48, 2), "2 episodes do not allow 5 folds"),
        (
            lambda acts, labels, groups: (acts | {0: np.full_like(acts[0], np.nan)}, labels, groups, 2),
            "acts of step 0 are not finite",
        ),
    ],
)
def test_bad_input_of_a_transfer_is_refused_with_a_sentence(checkpoints, change, sentence):
    acts, labels, groups, layer = change(*checkpoints)
    with pytest.raises(ValueError, match=sentence):
        transfer(acts, labels, groups, layer=layer)


def choices():
    """Decisions in which the first two actions are on offer together, the third only ever beside the
    first."""
    acts, labels, groups, prompts, previous = planted(n_groups=40)
    rejected = [["act 1", "look"] if label == "act 0" else ["act 0", label] for label in labels]
    return acts, labels, rejected, groups, prompts, previous


def test_a_pair_is_probed_where_both_actions_are_admissible():
    acts, labels, rejected, groups, prompts, previous = choices()
    found = pairwise(
        acts,
        labels,
        rejected,
        groups,
        prompts=prompts,
        previous=previous,
        draws=50,
        metrics=("accuracy", "auroc"),
    )
    assert list(found) == [("act 0", "act 1")]
    result, at = found["act 0", "act 1"], [i for i, label in enumerate(labels) if label != "act 2"]
    alone = probe(
        acts[at],
        [labels[i] for i in at],
        [groups[i] for i in at],
        prompts=[prompts[i] for i in at],
        previous=[previous[i] for i in at],
        draws=50,
        metrics=("accuracy", "auroc"),
    )
    assert result.to_frame().equals(alone.to_frame()) and result.classes == ("act 0", "act 1")
    assert value(result, "probe").value > 0.9 and value(result, "probe", NESTED, "auroc").value > 0.95
    named = pairwise(
        acts,
        labels,
        rejected,
        groups,
        pairs=[("act 1", "act 0")],
        prompts=prompts,
        previous=previous,
        draws=50,
        metrics=("accuracy", "auroc"),
    )
    assert named["act 0", "act 1"].to_frame().equals(result.to_frame())


def test_bad_pairs_are_refused_with_a_sentence():
    acts, labels, rejected, groups, *_ = choices()
    for options, sentence in (
        ({"episodes": 41}, "at least 41 episodes"),
        ({"pairs": [("act 1", "act 2")]}, "never both admissible"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pairwise(acts, labels, rejected, groups, **options)
    with pytest.raises(ValueError, match="160 decisions but rejected has 1"):
        pairwise(acts, labels, ["look"], groups)
    with pytest.raises(ValueError, match="only"):
        pairwise(acts, labels, rejected, groups, pairs=[("act 0", "look")])
