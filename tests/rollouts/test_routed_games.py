"""Games in which some steps are played at once: where the margin says so, or at random."""

import numpy as np
import pytest
import torch

from interp.engine.decoding import Completion
from interp.environments.base import Environment, View
from interp.rollouts import play as rollout
from interp.rollouts.play import Routing, play

CORRIDOR = Environment("corridor", task=lambda text: "")
STEPS = 4


class Pool:
    """Games of four steps, each won by going right throughout; every second step lists its actions."""

    def __init__(self):
        self.at = {}

    def send(self, orders):
        return {slot: self._played(slot, *order) for slot, order in orders.items()}

    def _played(self, slot, order, what):
        at, right = self.at.get(slot, (0, True)) if order == "step" else (-1, True)
        right = right and (order == "reset" or what == "right")
        self.at[slot] = at + 1, right
        listed = ("left", "right") if at % 2 else ()
        return View(f"Door {at + 1}.", listed, done=at + 1 == STEPS, score=float(right))


@pytest.fixture
def agent(monkeypatch):
    """Thinks its way right in ten tokens; at once it is right by a margin that rises with the step."""
    asked = dict(thought=[], chosen=[])

    def decode(model, prompts, modes, **_):
        asked["thought"] += [(p.decision.episode, p.decision.step) for p in prompts]
        return [Completion((0,) * 10, "So right.", "right") for _ in prompts]

    def choose(model, prompts, candidates):
        asked["chosen"] += [(p.decision.episode, p.decision.step) for p in prompts]
        return [torch.tensor([[[0.0, 0.0], [p.decision.step + 1.0, 0.0]]]) for p in prompts]

    monkeypatch.setattr(rollout, "decode_each", decode)
    monkeypatch.setattr(rollout, "choose_each", choose)
    return asked


def played(fmt, agent, routing, games=("a", "b", "c")):
    for each in agent.values():
        each.clear()
    return play(None, fmt, CORRIDOR, games, "cot", Pool(), routing=routing)


def test_a_step_is_played_at_once_where_its_margin_reaches_the_threshold(fmt, agent):
    length = len(fmt.action_ids("right"))
    never = played(fmt, agent, None)
    assert agent["chosen"] == [] and {(r.won, r.steps, r.tokens, r.at_once) for r in never} == {
        (True, 4, 40, 0)
    }
    assert played(fmt, agent, Routing()) == never, "no margin reaches a threshold that is infinite"
    late = played(fmt, agent, Routing(threshold=2.5))
    assert {(r.won, r.tokens, r.at_once) for r in late} == {(True, 30 + length, 1)}
    assert {step for _, step in agent["chosen"]} == {0, 2}, "only steps that list actions can be chosen at"
    assert {step for _, step in agent["thought"]} == {0, 1, 3}
    assert {r.at_once for r in played(fmt, agent, Routing(threshold=1.0))} == {2}


def test_what_was_done_at_once_stands_in_the_history_without_a_trace(fmt, agent, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fmt, "prompt", lambda decision, make=type(fmt).prompt: seen.append(decision) or make(fmt, decision)
    )
    played(fmt, agent, Routing(threshold=2.5), games=("a",))
    traces = [message["trace"] for message in seen[-1].messages if message["role"] == "agent"]
    assert traces == ["So right.", "So right.", None]


def test_random_routing_is_drawn_alike_whatever_is_played_beside(fmt, agent):
    games = tuple(f"game {i}" for i in range(40))
    half = Routing(share=0.5, seed=3)
    results = played(fmt, agent, half, games)
    assert results == played(fmt, agent, half, games) and results[:5] == played(fmt, agent, half, games[:5])
    rate = np.mean([r.at_once for r in results]) / 2
    assert 0.35 < rate < 0.65, "of the two steps that list actions"
    assert results != played(fmt, agent, Routing(share=0.5, seed=4), games)
    assert {r.at_once for r in played(fmt, agent, Routing(share=1.0))} == {2}
    assert {r.at_once for r in played(fmt, agent, Routing(share=0.0))} == {0} and agent["chosen"] == []
