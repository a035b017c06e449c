"""Games played side by side: the engine's workers, the order of results, and what ends a game."""

import itertools
from dataclasses import replace

import pytest

from interp.engine.decoding import Completion
from interp.environments.alfworld import expert
from interp.environments.alfworld.engine import Household
from interp.environments.alfworld.environment import ALFWORLD
from interp.environments.alfworld.scenes import TASK_TYPES, TRAIN_SCENES, games
from interp.rollouts import play as rollout
from interp.rollouts.workers import engines

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def three():
    return list(itertools.islice(games("train", TASK_TYPES[:1], TRAIN_SCENES[-20:], 5), 3))


class Expert:
    """Stands in for a model: plays the expert's action from the conversation alone, and counts what it is
    asked."""

    def __init__(self, played, silent=()):
        self.games, self.silent, self.widths = {g.id: g for g in played}, silent, []
        self.engines, self.modes, self.kept = set(), [], []

    def __call__(self, model, prompts, modes, *, parser, memory, max_new_tokens, engine):
        self.engines.add(engine)
        self.widths.append(len(prompts))
        self.modes.append(tuple(modes))
        return [self.say(p.decision, memory, mode) for p, mode in zip(prompts, modes, strict=True)]

    def say(self, decision, memory, mode):
        memory[decision.episode, mode] = ()
        self.kept.append(len(memory))
        if decision.episode in self.silent:
            return Completion((), None, None)
        first, *rest = decision.messages
        belief = expert.Belief.start(self.games[decision.episode], first["content"])
        for agent, user in zip(rest[::2], rest[1::2]):
            belief.update(agent["action"], user["content"])
        return Completion((), "I think.", expert.act(belief, decision.admissible))


def play(fmt, played, monkeypatch, width, silent=(), mode="cot", **more):
    agent = Expert(played, silent)
    monkeypatch.setattr(rollout, "decode_each", agent)
    with engines(Household, 1) as pool:
        found = rollout.play(None, fmt, replace(ALFWORLD, side_by_side=width), played, mode, pool, **more)
        workers = pool._processes
    assert not any(w.is_alive() for w in workers)
    return found, agent


def test_the_expert_wins_and_results_come_in_the_games_order(fmt, three, monkeypatch):
    together, agent = play(fmt, three, monkeypatch, 2)
    assert [r.game for r in together] == [g.id for g in three] and all(
        r.won and not r.unparsed for r in together
    )
    assert max(agent.widths) == 2
    alone, _ = play(fmt, three, monkeypatch, 1)
    assert alone == together


def test_an_engine_decodes_every_step_of_all_games(fmt, three, monkeypatch):
    found, agent = play(fmt, three, monkeypatch, 3, engine="vllm")
    assert agent.engines == {"vllm"} and all(result.won for result in found)


def test_a_game_ends_at_the_limit_or_at_an_action_that_does_not_parse(fmt, three, monkeypatch):
    found, _ = play(fmt, three, monkeypatch, 3, silent=(three[1].id,), step_limit=1)
    assert [(r.won, r.steps, r.unparsed) for r in found] == [
        (False, 1, False),
        (False, 0, True),
        (False, 1, False),
    ]


def test_games_of_both_modes_stand_side_by_side_and_come_out_as_those_of_one(fmt, three, monkeypatch):
    games, modes = [*three, *three[:2]], ["cot"] * 3 + ["prompt"] * 2
    found, agent = play(fmt, games, monkeypatch, 4, mode=modes)
    assert {"cot", "prompt"} == set(agent.modes[0]) and len(agent.modes[0]) == 4 == max(agent.kept)
    cot, prompt = (
        play(fmt, three[:n], monkeypatch, 4, mode=mode)[0] for n, mode in ((3, "cot"), (2, "prompt"))
    )
    assert found == [*cot, *prompt]


def test_modes_of_another_number_than_the_games_are_refused(fmt, three):
    with pytest.raises(ValueError, match="There are 3 games and 1 modes"):
        rollout.play(None, fmt, ALFWORLD, three, ["cot"], None)


def test_a_limit_that_no_game_can_be_played_in_is_refused(fmt, three):
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"after 1 step or more, not {limit}"):
            rollout.play(None, fmt, ALFWORLD, three, "cot", None, step_limit=limit)


def test_what_a_worker_raises_reaches_the_caller(three):
    with engines(Household, 1) as pool, pytest.raises(KeyError):
        pool.send({0: ("step", "look")})
