"""What is handed to probes, codes and intervals: tensors of every kind are read as the numbers they hold, and
a missing group is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from interp.probing.directions import probe_direction
from interp.probing.inputs import numbers
from interp.probing.mdl import mdl
from interp.probing.probes import probe
from interp.probing.transfer import transfer
from interp.stats.intervals import cluster_bootstrap, cluster_codes

VALUES = torch.linspace(-2, 2, 24 * 2 * 3).reshape(24, 2, 3).bfloat16()
GROUPS = [f"episode {i // 3}" for i in range(24)]
LABELS = ["ab"[(i // 2) % 2] for i in range(24)]
KINDS = {
    "bfloat16": VALUES,
    "float16": VALUES.half(),
    "float8": VALUES.to(torch.float8_e4m3fn),
    "with a gradient": VALUES.clone().requires_grad_(),
    "a result with a gradient": VALUES.clone().requires_grad_() * 1,
    "made in inference mode": torch.inference_mode()(lambda: VALUES * 1)(),
    "quantised": torch.quantize_per_tensor(VALUES.float(), 0.02, 0, torch.qint8),
    "integers": (VALUES * 8).int(),
    "a list of tensors": list(VALUES),
    "lists of numbers": VALUES.tolist(),
    "transposed": VALUES.transpose(1, 2).contiguous().transpose(1, 2),
    "float32 of numpy": VALUES.float().numpy(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_every_kind_are_read_as_the_numbers_they_hold(kind):
    given = KINDS[kind]
    rows = (
        given
        if isinstance(given, list)
        else [row.dequantize() if getattr(row, "is_quantized", False) else row for row in given]
    )
    plain = np.array(
        [
            [[float(x) for x in layer] for layer in row]
            for row in (torch.as_tensor(row).detach() for row in rows)
        ]
    )
    assert numbers(given).dtype == float and np.array_equal(numbers(given), plain)


def test_a_probe_of_own_bfloat16_tensors_is_that_of_their_numbers():
    own = VALUES.clone().requires_grad_()
    plain = probe(VALUES.float().numpy(), LABELS, GROUPS, folds=2, draws=20)
    assert probe(own, LABELS, GROUPS, folds=2, draws=20).rows == plain.rows
    assert (
        mdl(own, LABELS, GROUPS, shares=(0.5, 1.0), draws=20).bits
        == mdl(VALUES.float().numpy(), LABELS, GROUPS, shares=(0.5, 1.0), draws=20).bits
    )
    assert np.array_equal(
        probe_direction(own[:, 0], LABELS, "a", "b"),
        probe_direction(VALUES.float().numpy()[:, 0], LABELS, "a", "b"),
    )


@pytest.mark.parametrize(
    "given",
    [
        VALUES.to(torch.complex64),
        VALUES.to("meta"),
        [["x"]],
        np.array([{}, {}]),
        np.array("1.5"),
        [[1, 2], [3]],
    ],
    ids=["complex", "meta", "text", "objects", "number in text", "ragged"],
)
def test_what_holds_no_numbers_is_refused(given):
    with pytest.raises(ValueError, match="acts are no array of real numbers"):
        numbers(given)


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_a_decision_without_a_group_is_refused_and_no_cluster_of_its_own(missing):
    groups = [*GROUPS[:7], missing, *GROUPS[8:]]
    for call in (
        lambda: probe(VALUES, LABELS, groups, folds=2, draws=20),
        lambda: cluster_bootstrap(np.arange(24.0), groups),
        lambda: mdl(VALUES, LABELS, groups),
        lambda: transfer({0: VALUES}, {0: LABELS}, groups, folds=2),
    ):
        with pytest.raises(
            ValueError, match="Decision 7 has no group .*: name the episode of every decision"
        ):
            call()


def test_without_groups_a_sentence_says_what_to_give_and_that_works():
    for call in (
        lambda: probe(VALUES, LABELS),
        lambda: probe(VALUES, LABELS, None),
        lambda: mdl(VALUES, LABELS, None),
        lambda: transfer({0: VALUES}, {0: LABELS}, None),
    ):
        with pytest.raises(
            ValueError,
            match=r"groups of .* are missing: give the episode of each decision.*range\(len\(acts\)\)",
        ):
            call()
    assert probe(VALUES, LABELS, range(len(VALUES)), folds=2, draws=20).rows[0]["n_groups"] == 24


def test_groups_of_numpy_and_torch_are_told_apart_by_their_numbers():
    plain = [i // 3 for i in range(24)]
    for groups in (
        np.array(plain),
        torch.tensor(plain),
        list(torch.tensor(plain)),
        list(np.array(plain)),
        pd.Series(plain),
    ):
        codes, names = cluster_codes(groups)
        assert codes.tolist() == plain and names == list(range(8))
    with pytest.raises(ValueError, match="groups must be names or numbers"):
        cluster_codes([[1], [2]])


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is a number from 0 on, not -1"):
        probe(VALUES, LABELS, GROUPS, folds=2, seed=-1)
