"""The loss and the gradient's share of each part of what the agent writes."""

import numpy as np
import pytest
import torch

from interp.training.parts import PARTS, part_losses
from interp.training.supervision import ACTION, COT, Supervision, Written, supervised, written
from tests.conftest import handmade, tiny_hf


@pytest.fixture
def model(tokenizer):
    return tiny_hf("Llama", tokenizer)


@pytest.fixture
def sequences(fmt):
    return [each for i in range(3) for each in written(fmt, handmade(i, "train"))]


def test_losses_and_shares_are_those_of_masked_backward_passes(model, fmt, sequences):
    """The oracle: the loss of one part alone, by a plain backward pass with the other parts' labels left out."""
    read = part_losses(model, sequences)
    model.requires_grad_(True)
    for i, sequence in enumerate(sequences):
        gradients = {}
        for part, number in [*PARTS.items(), ("whole", None)]:
            ids = torch.tensor([sequence.ids])
            kept = [p > 0 if number is None else p == number for p in sequence.parts]
            labels = torch.where(torch.tensor(kept), ids[0], -100)[None]
            loss = model(input_ids=ids, labels=labels).loss
            model.zero_grad()
            (loss * (labels[:, 1:] != -100).sum()).backward()
            gradients[part] = torch.cat([p.grad.flatten() for p in model.parameters()])
            if number is not None:
                assert np.isclose(read.nll[part][i], loss.item(), rtol=1e-4)
        for part in PARTS:
            share = gradients[part] @ gradients["whole"] / gradients["whole"].square().sum()
            assert np.isclose(read.gradient_share[part][i], share.item(), atol=1e-4)
        assert np.isclose(sum(read.gradient_share[part][i] for part in PARTS), 1, atol=1e-4)
    assert len(read.to_frame()) == len(sequences) * len(PARTS)


def test_weights_and_what_is_trainable_stay_as_they_were(model, sequences):
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part_losses(model, sequences[:1])
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_action_that_is_certain_weighs_nothing(model, fmt, sequences):
    """A model that was trained on one sequence until it knows it: neither loss nor, of its action, gradient."""
    sequence = sequences[0]
    alone = Written(sequence.ids, [p if p == ACTION else 0 for p in sequence.parts], sequence.examples)
    optimiser = torch.optim.Adam(model.requires_grad_(True).parameters(), 3e-3)
    for _ in range(80):
        labels = torch.where(torch.tensor(alone.parts) > 0, torch.tensor(alone.ids), -100)[None]
        model(input_ids=torch.tensor([alone.ids]), labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    read = part_losses(model, [sequence])
    assert read.nll["action"][0] < 0.05 < 1 < read.nll["cot"][0]
    assert abs(read.gradient_share["action"][0]) < 0.05


def test_a_part_that_is_not_there_has_no_number(model, fmt):
    [sequence] = written(fmt, handmade(0, "train").decisions()[0], lambda example: True)
    read = part_losses(model, [sequence])
    assert np.isnan(read.nll["cot"][0]) and not np.isnan(read.nll["action"][0]) and COT not in sequence.parts
    with pytest.raises(ValueError, match="no token of the agent's"):
        part_losses(model, [Written([1, 2, 3], [0, 0, 0], ["", "", ""])])
    assert supervised(fmt, [handmade(0, "train")], Supervision())  # what `written` gives is what is trained
