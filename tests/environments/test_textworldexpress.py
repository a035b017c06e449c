"""TextWorldExpress: its solutions through our interface, the recorded corpus, splits that share nothing,
hostile actions, and the study on it."""

import random
import re
from dataclasses import replace
from itertools import islice

import pytest

from analyses.shipped import series as training
from interp.environments.base import find
from interp.environments.java import missing
from interp.environments.recording import Sizes, record
from interp.environments.textworldexpress import cookingworld as cookingworld_record
from interp.environments.textworldexpress.environment import (
    GAMES,
    INSTALL,
    SPLITS,
    TWC_CORPUS,
    Game,
    Live,
    games,
    gold,
    parse,
    target,
    verb,
)
from interp.environments.textworldexpress.twc import SIZES, Belief, act, episodes, homes, plan
from interp.results import tables
from interp.tasks.episodes import by_split, load_episodes, save_episodes
from tests.conftest import ONE_TRAINING, TINY
from tests.tasks.test_bad_decisions import main

TRAINED = ("base", "train")


@pytest.fixture(scope="module")
def engine():
    """Skips where the games cannot be played."""
    if lacking := missing("textworld_express", INSTALL):
        pytest.skip(lacking)


@pytest.fixture(scope="module")
def corpus():
    return by_split(load_episodes(TWC_CORPUS))


@pytest.fixture(scope="module")
def live(engine):
    return Live()


def drawn(*kinds):
    """Games of (number, name, fold, seeds), seeds drawn from all there are."""
    rng = random.Random(11)
    return [Game(name, fold, seed) for n, name, fold, seeds in kinds for seed in rng.sample(seeds, n)]


@pytest.mark.parametrize(
    "chosen",
    [
        drawn(
            (40, "twc", "train", range(10_000)),
            (30, "twc", "dev", range(10_000, 20_000)),
            (30, "twc", "test", range(20_000, 30_000)),
        ),
        drawn(
            (60, "cookingworld", "train", range(10_000)), (40, "cookingworld-long", "train", range(10_000))
        ),
    ],
    ids=["twc", "cookingworld"],
)
def test_the_engines_solutions_win_100_of_100_games(live, chosen):
    won = 0
    for game in chosen:
        path, view = gold(game), live.reset(game)
        assert not view.done and len(view.text.split("\n\n")) == 2
        for action in path:
            assert not view.done and action in view.admissible and all(parse(a) == a for a in view.admissible)
            view = live.step(action)
        won += view.won
    assert len(set(chosen)) == won == 100


@pytest.mark.parametrize(
    "split, n", [("base", 30), ("train", 30), ("test_in_domain", 30), ("test_out_of_domain", 30)]
)
def test_the_recorded_corpus_replays_exactly(live, corpus, split, n):
    for episode in random.Random(2).sample(corpus[split], n):
        name, fold, seed, _ = episode.id.split("/", 1)[1].split("/")
        view = live.reset(Game(name, fold, int(seed)))
        assert view.text == episode.start and episode.start.endswith(episode.task)
        for step in episode.steps:
            assert step.action in view.admissible and step.reference in view.admissible
            assert step.admissible == (view.admissible if split.startswith("test") else ())
            view = live.step(step.action)
            assert view.text == step.observation
        assert view.won == episode.won


def test_the_shipped_corpus_is_what_the_defaults_record_with_any_number_of_workers(engine, corpus):
    jobs = plan(SIZES, 0)
    assert len(jobs) == 400 + 700 + 150 + 150
    some = jobs[::100]
    (one, report), (two, _) = (record(some, episodes, 0, workers=n) for n in (1, 2))
    shipped = {e.id: e for group in corpus.values() for e in group}
    assert (
        one == two == [shipped[e.id] for e in one]
        and report["dropped"] == {}
        and {e.kind for e in one} == {"expert", "noisy", "aimless"}
    )
    assert {s: len(g) for s, g in corpus.items()} == dict(
        base=1200, train=700, test_in_domain=150, test_out_of_domain=150
    )
    assert TWC_CORPUS.stat().st_size < 2**20


def things(groups):
    return {
        step.action[5:] for episode in groups for step in episode.steps if step.action.startswith("take ")
    }


def test_out_of_domain_things_are_in_no_training_text(corpus):
    trained = [e for split in TRAINED for e in corpus[split]]
    outside, inside, known = (
        things(corpus["test_out_of_domain"]),
        things(corpus["test_in_domain"]),
        things(trained),
    )
    places = {
        step.action.split(" in ")[1] for e in trained for step in e.steps if step.action.startswith("put ")
    }
    names = sorted(
        outside | known | places | {"key holder", "towel rail", "umbrella stand"}, key=len, reverse=True
    )  # an electric razor is no razor
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b")
    text = {
        line
        for e in trained
        for m in e.messages()
        for line in (m.get("content") or f"{m['trace']}\n{m['action']}").splitlines()
    }
    text |= {step.reference for e in trained for step in e.steps}
    found = {x for line in text for x in named.findall(line)}
    assert len(outside) > 100 and not outside & found and known <= found
    assert len(inside & found) > 0.8 * len(inside)
    seen = {
        x
        for e in corpus["test_out_of_domain"]
        for m in e.messages()
        for x in named.findall(m.get("content") or m["trace"])
    }
    assert outside <= seen


def test_no_two_uses_share_a_game_whatever_their_seeds(live):
    def handled(game):
        return tuple(
            sorted(
                a for a in live.gold(game) if a.startswith(("take", "put", "cook", "chop", "slice", "dice"))
            )
        )

    for name, split in SPLITS:
        met = {}
        for use, seed in (("train", 0), ("test", 0), ("online", 0), ("test", 5), ("online", 3)):
            chosen = list(islice(games(name, split, use, seed), 6))
            assert chosen[:2] == list(islice(games(name, split, use, seed), 2))
            for game in chosen:
                assert met.setdefault(handled(game), use) == use
    assert find("twc").games("in_domain", 4, 0) != find("twc").games("in_domain", 4, 1)


def test_played_games_are_none_of_the_recorded_ones(corpus, live):
    def moved(path):
        return frozenset(a for a in path if a.startswith("put "))

    recorded = {
        moved(s.action for s in e.steps) for split, group in corpus.items() if split != "base" for e in group
    }
    for split in ("in_domain", "out_of_domain"):
        played = find("twc").games(split, 60, 0)
        assert len({str(g) for g in played}) == 60 and not recorded & {moved(live.gold(g)) for g in played}
    tested, trained = (
        {moved(s.action for s in e.steps) for e in corpus[split]} for split in ("test_in_domain", "train")
    )
    assert len(tested) == 150 and not tested & trained
    assert {e.id.split("/")[2] for e in corpus["test_out_of_domain"]} == {"dev", "test"}


def test_the_expert_takes_over_after_any_detour(live):
    rng = random.Random(4)
    for game in islice(games("twc", "in_domain", "train", 9), 15):
        belief = Belief(homes(live.gold(game)))
        view = live.reset(game)
        belief.update("", view.text)
        for step in range(60):
            strays = [a for a in view.admissible if a not in ("look around", "inventory")]
            action = rng.choice(strays) if step < 15 else act(belief, view.admissible)[0]
            view = live.step(action)
            belief.update(action, view.text)
            if view.done:
                break
        assert view.won, game


def test_traces_argue_for_the_action_that_follows(corpus):
    steps = [s for split in ("train", "test_in_domain", "base") for e in corpus[split] for s in e.steps]
    spelled = [s.action in s.trace for s in steps]
    assert 0.1 < sum(spelled) / len(spelled) < 0.25
    for step in steps:
        what, _, place = step.action.partition(" ")[2].partition(" in ")
        assert what in step.trace and place in step.trace or step.action.startswith("move ")
    assert all(s.action == s.reference for e in corpus["train"] for s in e.steps)
    assert (
        0.2
        < sum(s.action != s.reference for e in corpus["base"] if e.kind == "noisy" for s in e.steps)
        / sum(len(e.steps) for e in corpus["base"] if e.kind == "noisy")
        < 0.4
    )
    aimless = [s.action != s.reference for e in corpus["base"] if e.kind == "aimless" for s in e.steps]
    assert sum(aimless) > 0.98 * len(aimless)  # some rooms leave nothing else to do


HOSTILE = [
    "",
    " ",
    "\n",
    "x" * 1_000_000,
    "take " + "beret " * 50_000,
    "née ☃ 🧦",
    "\ud800",
    "\x00",
    "take\nlook around",
    "look around\nlook around",
    "__import__('os').system('touch hacked')",
    "help",
    "take",
    "put in",
    "open door to the moon",
    " look around",
    "LOOK AROUND",
    '{"name": "look"}',
    "e\n",
    "!xro1;e\n",
    "take beret\r\ny",
]


@pytest.mark.parametrize("name", GAMES)
def test_hostile_actions_change_nothing_and_get_the_engines_own_answer(live, name):
    game = Game(name, "train", 3)
    first = live.reset(game)
    for action in HOSTILE:
        view = live.step(action)
        assert (
            view.text == "Unknown action: I'm not sure what you mean."
            and view.admissible == first.admissible
            and not view.done
        )
    assert live._interface.stepJSON("sing a song").find(view.text) > 0
    path = live.gold(game)
    live.reset(game)
    for action in path:
        live.step(HOSTILE[3])
        view = live.step(action)
    assert view.won and live.step("dance").done


def test_games_that_do_not_exist_are_refused_in_a_sentence(live):
    with pytest.raises(
        ValueError, match="There is no game 'chess': there are twc, cookingworld, cookingworld-long."
    ):
        live.reset(Game("chess", "train", 1))
    with pytest.raises(ValueError, match="out-of-domain things are in no training text"):
        plan(replace(SIZES, base_out_of_domain=3), 0)
    assert Sizes(train=5).filled(SIZES) == replace(SIZES, train=5)


def test_several_games_in_one_java_process_are_played_as_if_alone(live):
    chosen = drawn((3, "twc", "train", range(10_000)), (3, "cookingworld", "train", range(10_000)))
    paths = [gold(g) for g in chosen]
    alone = []
    for game, path in zip(chosen, paths):
        alone.append([live.reset(game), *map(live.step, path)])
    many = [Live() for _ in chosen]
    together = [[one.reset(game)] for one, game in zip(many, chosen)]
    for at in range(max(map(len, paths))):
        for one, path, views in zip(many, paths, together):
            if at < len(path):
                views.append(one.step(path[at]))
    assert together == alone


def test_cookingworld_is_recorded_for_tests_alone_and_says_how(engine, tmp_path, capsys):
    file = tmp_path / "cooking.jsonl.xz"
    assert (
        main("record", "--environment", "cookingworld", "--sizes.test", "3", "--workers", "1", "--out", file)
        == 0
    )
    groups = find("cookingworld").recorded(file)
    assert {s: len(g) for s, g in groups.items()} == dict(test_in_domain=3, test_out_of_domain=3)
    asked = {
        s: {sum(step.action.startswith("take ") for step in e.steps) for e in g} for s, g in groups.items()
    }  # the cookbook, the knife, the ingredients
    assert max(asked["test_in_domain"]) <= 4 < min(asked["test_out_of_domain"])
    steps = [s for group in groups.values() for e in group for s in e.steps]
    assert all(e.won for group in groups.values() for e in group) and all(
        s.action in s.admissible and s.trace for s in steps
    )
    assert (
        not any("next room" in s.trace for s in steps)
        and sum(s.action in s.trace for s in steps) < len(steps) / 2
    )
    capsys.readouterr()
    for arguments, words in (
        (
            ("record", "--environment", "cookingworld"),
            "Give --out: the environment 'cookingworld' has no shipped corpus",
        ),
        (("record", "--environment", "cookingworld", "--out", file, "--sizes.train", "1"), "for tests alone"),
        (("record", "--environment", "twc", "--official", "1"), "has no official games"),
        (
            ("behaviour", "--environment", "cookingworld", "--run", tmp_path),
            "analyses record --environment cookingworld --out FILE",
        ),
    ):
        assert main(*arguments) == 1
        assert words in capsys.readouterr().err
    assert cookingworld_record.plan(Sizes(0, 0, 0, 0), 0) == []


@pytest.mark.parametrize(
    "action, what, klass",
    [
        ("take dirty green T-shirt", "take", "T-shirt"),
        ("put TV remote control in TV stand", "put", "TV remote control"),
        ("open clothes drier", "open", "clothes drier"),
        ("move north", "move", "north"),
        ("look around", "look", "look around"),
        ("inventory", "inventory", "inventory"),
        ("open door to east", "open", "door"),
        ("cook red hot pepper in oven", "cook", "hot pepper"),
        ("prepare meal", "prepare", "meal"),
        ("take used Q-tip", "take", "used Q-tip"),
    ],
)
def test_classes_of_actions(action, what, klass):
    assert (
        parse(action) == parse(f" {action}\n") == action and verb(action) == what and target(action) == klass
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sing a song",
        "take",
        "move up",
        "put sock",
        "look",
        "open door to",
        "take sock; open door",
        "take {sock}",
        "I take sock",
    ],
)
def test_what_is_no_action_does_not_parse(text):
    assert parse(text) is None


def test_a_series_is_trained_on_the_corpus_and_studied_and_played(engine, corpus, tmp_path):
    few = save_episodes(tmp_path / "few.jsonl.xz", [e for split in corpus for e in corpus[split][:10]])
    assert "base_aimless" not in corpus
    recipe = replace(TINY, vocabulary=600, context=2048, base_steps=2, cot_steps=2, checkpoints=(0, 2))
    training.run(
        training.Config(
            work=tmp_path / "work",
            out=tmp_path / "series",
            corpus=few,
            recipe=recipe,
            device="cpu",
            **ONE_TRAINING,
        )
    )
    common = (
        "--environment",
        "twc",
        "--series",
        tmp_path / "series",
        "--device",
        "cpu",
        "--run",
        tmp_path / "run",
    )
    assert main("behaviour", *common, "--decisions", "8", "--choices", "4") == 0
    frame, provenance = tables.read_table(tmp_path / "run" / "tables", "behaviour")
    assert set(frame.split) == {"in_domain", "out_of_domain"} and provenance["environment"]["name"] == "twc"
    assert main("online", *common, "--games", "2", "--step_limit", "3", "--workers", "1") == 0
    frame, provenance = tables.read_table(tmp_path / "run" / "tables", "online")
    assert (
        set(frame.metric) == {"success", "steps", "tokens", "unparsed", "score"}
        and provenance["games"] == "twc"
        and set(frame.step) == {0, 2}
    )
