"""Elicitation on agents whose answer is known: it raises what is hidden, and not what is not there."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.checkpoints.series import CheckpointSeries
from interp.engine.decoding import choose_each, decode
from interp.models.untrained import random_twin
from interp.prompts.format import PromptFormat
from interp.training.elicitation import elicit, parted
from interp.training.organisms import THINGS, decisions, grow
from interp.training.recipes import Elicitation

RECIPE = Elicitation(rounds=2, lr=3e-3)


@functools.cache
def agent(name):
    """A shipped organism, 80 prompts to tune on, and 40 of other decisions."""
    series = CheckpointSeries.discover(grow(name))
    model = series.load(series.steps[-1], "cpu", "float32")
    fmt = PromptFormat(model.tokenizer)
    tuned_on = [fmt.prompt(d) for d in decisions(name, 80, 0, "train")]
    return model, tuned_on, [fmt.prompt(d) for d in decisions(name, 40, 5)]


def accuracy(model, prompts):
    """Accuracy of the prompt action by free decoding and by forced choice."""
    said = [completion.action for completion in decode(model, prompts, "prompt")]
    scores = choose_each(model, prompts, [p.decision.admissible for p in prompts])
    best = [p.decision.admissible[int(s[0, :, 0].argmax())] for p, s in zip(prompts, scores)]
    return tuple(np.mean([a == p.decision.reference for a, p in zip(acts, prompts)]) for acts in (said, best))


def test_a_hidden_prompt_action_is_raised_and_the_given_weights_stay():
    """Its prompt puts the thing at the boundary, and it was never taught to act there."""
    model, tuned_on, prompts = agent("hidden_carry")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    hidden = accuracy(model, prompts)
    elicited = elicit(model, tuned_on, RECIPE)
    free, forced = accuracy(elicited.model, prompts)
    assert min(free, forced) > 0.8 and hidden[0] < 0.1 and hidden[1] < 0.8, (hidden, free, forced)
    assert elicited.held_out[elicited.kept].mean() < 0.5 < elicited.held_out[0].mean()
    assert len(elicited.held_out) - 1 <= RECIPE.rounds and elicited.kept > 0
    after = model.hf.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert accuracy(model, prompts) == hidden
    assert elicited.model.weights_hash != model.weights_hash


def test_what_is_not_there_is_not_raised():
    model, tuned_on, prompts = agent("hidden_carry")
    twin = elicit(random_twin(model), tuned_on, RECIPE)
    assert max(accuracy(twin.model, prompts)) < 0.4, "words without their order leave one in four"
    model, tuned_on, prompts = agent("reasoner")
    picked = elicit(model, tuned_on, RECIPE)
    assert max(accuracy(picked.model, prompts)) < 0.3, "its things are picked at random"
    nats = picked.held_out.mean(axis=1)
    assert nats[picked.kept] == nats.min() > 0.8 * np.log(len(THINGS))


def test_the_same_tuning_gives_the_same_copy():
    model, tuned_on, _ = agent("hidden_carry")
    short = replace(RECIPE, rounds=1, batch=64)
    first, again, other = (elicit(model, tuned_on[:20], short, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.held_out, again.held_out) and first.episodes == again.episodes
    assert first.episodes != other.episodes
    alone = elicit(model, tuned_on[:20], replace(short, batch_tokens=1))
    assert np.allclose(alone.held_out, first.held_out, atol=1e-3), "each decision in a pass of its own"


def test_a_copy_that_learns_by_heart_is_stopped_and_has_its_best_round_s_weights():
    model, tuned_on, _ = agent("reasoner")
    heart = replace(RECIPE, rounds=30, lr=3e-2, batch=4)
    stopped = elicit(model, tuned_on[:10], heart)
    nats = stopped.held_out.mean(axis=1)
    assert len(nats) - 1 == stopped.kept + heart.patience < 30 and nats[stopped.kept] == nats.min()
    best = elicit(model, tuned_on[:10], replace(heart, rounds=max(1, stopped.kept)))
    assert best.kept == stopped.kept
    pairs = zip(best.model.hf.state_dict().values(), stopped.model.hf.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_whole_episodes_are_held_out():
    _, tuned_on, _ = agent("hidden_carry")
    named = [
        replace(p, decision=replace(p.decision, episode=f"game {i // 7}")) for i, p in enumerate(tuned_on)
    ]
    learnt, held = parted(named, 0.2, 0)
    assert sorted([*learnt, *held]) == list(range(80)) and 16 <= len(held) < 23
    assert not {named[i].episode for i in learnt} & {named[i].episode for i in held}
    learnt, held = parted(named[:14], 0.9, 0)
    assert len(learnt) == len(held) == 7
    with pytest.raises(ValueError, match="The 5 decisions to tune on are of 1 episode"):
        parted(named[:5], 0.2, 0)
