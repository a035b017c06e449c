"""The household: engine, scenes, expert, traces, recording and rollouts."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import islice

import pytest

from interp.environments import recording
from interp.environments.alfworld.commands import parse
from interp.environments.alfworld.record import episodes, plan, plan_official
from interp.environments.alfworld.scenes import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    TASK_TYPES,
    TEST_SCENES,
    TRAIN_SCENES,
    Game,
    games,
    make_game,
    official_games,
)
from interp.environments.recording import Sizes, record
from tests.conftest import handmade

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def played(engine):
    """(game, the expert's episode) for two games of each task type."""
    found = []
    for task_type in TASK_TYPES:
        for game in islice(games("test", (task_type,), TEST_SCENES, 5), 2):
            found.append((game, episodes((game, ("expert",), True))[0]))
    return found


def house_of(game):
    from interp.environments.alfworld.engine import Household

    house = Household()
    house.reset(game)
    return house


STOCK = """
import json, random, sys
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from alfworld.agents.utils.misc import add_task_to_grammar
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
from textworld.envs import PddlEnv
from tests.environments.test_alfworld import walk
for game in json.load(sys.stdin):
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)
    random.seed(game["id"])
    text = add_task_to_grammar(open(ALFRED_TWL2_PATH).read(), dict(task_type=game["task_type"], pddl_params=game["params"]))
    env.load(dict(pddl_domain=open(ALFRED_PDDL_PATH).read(), grammar=text, pddl_problem=game["problem"]))
    print("WALK", json.dumps(walk(env)))
"""


def walk(env, steps=12):
    """A random walk (one command in six is nonsense): everything the engine says."""
    rng, state = random.Random(0), env.reset()
    found = [[state.feedback, list(state.admissible_commands), bool(state["won"])]]
    for _ in range(steps):
        command = rng.choice([*rng.choices(state.admissible_commands, k=5), "sing a song"])
        state = env.step(command)[0]
        found.append([command, state.feedback, list(state.admissible_commands), bool(state["won"])])
    return found


def test_the_fast_engine_says_what_the_stock_engine_says_byte_for_byte():
    chosen = [
        make_game(230, "look_at_obj_in_light", 1, "x"),
        make_game(426, "pick_clean_then_place_in_recep", 3, "x"),
    ]
    environment = dict(os.environ, PYTHONPATH=os.getcwd())
    stock = subprocess.run(
        [sys.executable, "-c", STOCK],
        input=json.dumps([asdict(g) for g in chosen]),
        text=True,
        capture_output=True,
        env=environment,
    )
    assert stock.returncode == 0, stock.stderr
    theirs = [json.loads(line[5:]) for line in stock.stdout.splitlines() if line.startswith("WALK ")]
    ours = [walk(house_of(g)._env) for g in chosen]
    assert json.loads(json.dumps(ours)) == theirs


def test_the_expert_wins_games_of_every_type(played):
    assert {g.task_type for g, _ in played} == set(TASK_TYPES) and len(played) == 12
    assert [e.id for _, e in played if not e.won] == []
    assert all(s.action == s.reference and s.action in s.admissible for _, e in played for s in e.steps)


def test_every_admissible_command_parses(played):
    assert all(parse(c) == c for _, e in played for s in e.steps for c in s.admissible)


def test_at_least_half_of_the_traces_do_not_spell_out_their_action(played):
    steps = [s for _, e in played for s in e.steps]
    silent = sum(s.action not in s.trace for s in steps) / len(steps)
    assert 0.5 <= silent < 1 and all(s.trace.strip() for s in steps)


def test_the_task_is_part_of_the_first_message(played):
    assert all(
        e.task in e.start and e.task.startswith("Your task is to:") and e.split == "test" for _, e in played
    )


def test_noisy_and_aimless_episodes_record_what_the_expert_wanted(played):
    game = next(g for g, e in played if 4 <= len(e.steps) <= 15)
    *noisy, aimless = episodes((game, ("noisy",) * 4 + ("aimless",), True))
    wrong = [sum(s.action != s.reference for s in e.steps) for e in (*noisy, aimless)]
    assert (
        any(wrong[:-1])
        and all(n < len(e.steps) for n, e in zip(wrong, noisy))
        and wrong[-1] == len(aimless.steps)
    )
    assert all(s.action in s.admissible for e in (*noisy, aimless) for s in e.steps)
    bare = episodes((game, ("noisy",), False))[0]
    assert bare.steps == tuple(replace(s, admissible=()) for s in noisy[0].steps)


def test_a_reset_game_plays_the_same_again_and_nonsense_changes_nothing(played):
    game, episode = played[0]
    house = house_of(game)
    for _ in range(2):
        view = house.reset(game)
        assert view.text == episode.start and not view.won
        for step in episode.steps:
            nothing = house.step("sing a song")
            assert (
                nothing.text.startswith("Nothing happens")
                and nothing.admissible == view.admissible == step.admissible
            )
            view = house.step(step.action)
            assert view.text == step.observation
        assert view.won
    house.close()


def test_held_out_task_types_and_scenes_never_reach_training():
    jobs = plan(Sizes(base=12, base_out_of_domain=6, train=30, test=10), seed=3)
    assert len(jobs) == 12 + 6 + 30 + 10 + 10
    for game, kinds, keep in jobs:
        test = game.split.startswith("test")
        assert game.scene in (TEST_SCENES if test else TRAIN_SCENES) and keep == test
        assert game.task_type in (
            OUT_OF_DOMAIN if game.split in ("base_aimless", "test_out_of_domain") else IN_DOMAIN
        )
        assert kinds == dict(base=("noisy", "noisy", "aimless"), base_aimless=("aimless",) * 2).get(
            game.split, ("expert",)
        )
    assert not set(TEST_SCENES) & set(TRAIN_SCENES) and len({g.id for g, _, _ in jobs}) == len(jobs)


def test_games_depend_on_the_seed_alone():
    first, again, other = (
        list(islice(games("train", IN_DOMAIN, TRAIN_SCENES, seed), 5)) for seed in (1, 1, 2)
    )
    assert first == again and not {g.problem for g in first} & {g.problem for g in other}


def test_the_same_seed_gives_the_same_episodes_with_any_number_of_workers():
    sizes = Sizes(base=0, base_out_of_domain=1, train=9, test=0)  # more jobs than one worker takes at once
    (one, report), (two, _) = (
        record(plan(sizes, 2), episodes, 2, workers=1),
        record(plan(sizes, 2), episodes, 2, workers=2),
    )
    assert one == two and report["games"] == 10 and len(one) >= 9
    assert all(e.won == (e.kind == "expert") for e in one) and {
        e.task_type for e in one if e.kind == "expert"
    } <= set(IN_DOMAIN)


def test_aimless_wins_and_lost_expert_games_are_dropped_and_counted(monkeypatch):
    played = [
        replace(handmade(i, "base"), kind=kind, won=won)
        for i, (kind, won) in enumerate(
            [
                ("expert", True),
                ("expert", False),
                ("aimless", True),
                ("aimless", False),
                ("noisy", False),
                ("noisy", True),
            ]
        )
    ]
    empty = replace(played[4], steps=())

    class Here:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def map(self, function, jobs, chunksize):
            return [[*played, empty]]

    monkeypatch.setattr(recording, "ProcessPoolExecutor", Here)
    kept, report = record(plan(Sizes(0, 0, 0, 0), 0), episodes)
    assert [(e.kind, e.won) for e in kept] == [
        ("expert", True),
        ("aimless", False),
        ("noisy", False),
        ("noisy", True),
    ]
    assert report["dropped"] == {"base": 3}


def official(root, game: Game, name: str, trial="trial_1", solvable=True, **changes):
    """A game written as ALFWorld ships it, with a domain and a grammar that must not be used."""
    folder = root / "json_2.1.1" / "valid_seen" / name / trial
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(
        json.dumps(
            dict(
                pddl_domain="(define nonsense",
                grammar="__import__('os')",
                solvable=solvable,
                pddl_problem=game.problem,
            )
        )
    )
    (folder / "traj_data.json").write_text(
        json.dumps(
            dict(
                task_type=changes.get("task_type", game.task_type),
                pddl_params=game.params | changes.get("params", {}),
                scene=dict(floor_plan=f"FloorPlan{game.scene}"),
            )
        )
    )


def test_official_games_are_read_without_their_grammar_or_domain(played, tmp_path):
    game, episode = played[0]
    official(tmp_path, game, "b-game")
    official(tmp_path, played[1][0], "a-game")
    official(tmp_path, game, "unsolvable", solvable=False)
    official(tmp_path, game, "sliced", params=dict(object_sliced=True))
    official(tmp_path, game, "movable", task_type="pick_and_place_with_movable_recep")
    found = official_games("valid_seen", str(tmp_path))
    assert [g.id for g in found] == ["valid_seen/a-game/trial_1", "valid_seen/b-game/trial_1"]
    again = found[1]
    assert (again.problem, again.params, again.scene, again.task_type) == (
        game.problem,
        game.params,
        game.scene,
        game.task_type,
    )
    house = house_of(again)
    assert house.reset(again).text.split("Your task")[0] == episode.start.split("Your task")[0]
    assert [house.step(s.action).won for s in episode.steps][-1]
    house.close()


def test_missing_official_games_are_said_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    for root in (None, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="ALFWORLD_DATA"):
            official_games("valid_seen", root)


def test_official_plans_split_valid_seen_by_task_type_and_train_in_domain_only(played, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    for number, (game, _) in enumerate(played):
        official(tmp_path, game, f"game-{number}")
    shutil.copytree(tmp_path / "json_2.1.1" / "valid_seen", tmp_path / "json_2.1.1" / "train")
    jobs = plan_official(3, 0)
    assert jobs == plan_official(3, 0) and len(jobs) == len(played) + 3
    splits = {(g.split, g.task_type in IN_DOMAIN, keep) for g, kinds, keep in jobs}
    assert splits == {
        ("test_in_domain", True, True),
        ("test_out_of_domain", False, True),
        ("train", True, False),
    }


@pytest.mark.skipif(
    not os.environ.get("ALFWORLD_DATA"), reason="ALFWORLD_DATA is not set: no official games on this machine"
)
def test_the_expert_wins_alfworlds_own_games():
    found = official_games("valid_seen")
    assert len(found) >= 100 and {g.task_type for g in found} == set(TASK_TYPES)
    chosen = random.Random(0).sample(found, 12)
    assert sum(episodes((game, ("expert",), True))[0].won for game in chosen) >= 11
