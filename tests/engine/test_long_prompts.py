"""Prompts longer than the model's context: refused with their count before anything is computed, or truncated
by name and counted."""

from dataclasses import replace

import pytest

from interp.engine.decoding import Completion
from interp.environments.base import Environment, View
from interp.measures.pairs import make_pairs
from interp.prompts.format import PromptFormat
from interp.results.tables import read_table
from interp.rollouts import play as rollout
from tests.conftest import tiny_hf
from tests.tasks.test_bad_decisions import main

ROOM = 20


@pytest.fixture(scope="module")
def long(episodes):
    """The last decision of the longest episode."""
    return max((e for e in episodes["test_in_domain"]), key=lambda e: len(e.steps)).decisions()[-1]


def short_format(tokenizer, context, truncate="oldest_turns"):
    return PromptFormat(tokenizer, context=context, room=ROOM, truncate=truncate)


def test_a_prompt_that_leaves_no_room_is_refused_with_its_count(tokenizer, fmt, long):
    n = len(fmt.prompt(long).ids)
    loose = short_format(tokenizer, 1024, "none")
    need = 1024 - loose._space(long, 1024)
    assert need > ROOM and short_format(tokenizer, n + need, "none").prompt(long).ids == fmt.prompt(long).ids
    with pytest.raises(
        ValueError,
        match=f"decision {long.id} has {n} tokens, and {need} more are kept free .* at most {n + need - 1}: .*--truncate oldest_turns",
    ):
        short_format(tokenizer, n + need - 1, "none").prompt(long)


@pytest.mark.parametrize("turns", [1, 2])
def test_the_oldest_turns_go_whole_until_the_prompt_fits(tokenizer, fmt, long, turns):
    by_hand = replace(long, messages=(long.messages[0], *long.messages[1 + 2 * turns :]))
    wanted, one_less = (
        fmt.prompt(by_hand),
        fmt.prompt(replace(long, messages=(long.messages[0], *long.messages[2 * turns - 1 :]))),
    )
    need = 1024 - short_format(tokenizer, 1024)._space(long, 1024)
    for context in (
        len(wanted.ids) + need,
        len(one_less.ids) + need - 1,
    ):  # the least and the most that take this many turns away
        found = short_format(tokenizer, context).prompt(long)
        assert (found.ids, found.spans, found.hash, found.decision, found.dropped) == (
            wanted.ids,
            wanted.spans,
            wanted.hash,
            by_hand,
            turns,
        )
    assert fmt.text([found.ids[i] for i in found.positions("task")]).strip() == long.task
    assert found.ids[found.boundary] == fmt.prompt(long).ids[-1] and found.spans[found.boundary] == "boundary"
    assert [found.ids[i] for i in found.positions("observation")] == [
        fmt.prompt(long).ids[i] for i in fmt.prompt(long).positions("observation")
    ]


def test_what_fits_is_left_as_it_is(tokenizer, fmt, long):
    found = short_format(tokenizer, 1024)
    assert (
        found.fit(long) is long
        and found.prompt(long).hash == fmt.prompt(long).hash
        and found.prompt(long).dropped == 0
    )
    assert (
        fmt.hash
        == short_format(tokenizer, 400, "none").hash
        != found.hash
        != short_format(tokenizer, 400).hash
    )
    with pytest.raises(ValueError, match="truncate is 'none' or 'oldest_turns', not 'middle'"):
        short_format(tokenizer, 400, "middle")


def test_what_is_too_long_without_its_history_is_refused(tokenizer, long):
    with pytest.raises(ValueError, match=f"decision {long.id} has .* tokens even without its history"):
        short_format(tokenizer, 100).prompt(long)


def test_what_comes_up_to_the_task_stays(tokenizer, fmt, long):
    example = (dict(role="user", content="An example."), dict(role="agent", trace="So.", action="look"))
    shown = replace(long, messages=(*example, *long.messages))
    need = 1024 - short_format(tokenizer, 1024)._space(long, 1024)
    found = short_format(tokenizer, len(fmt.prompt(shown).ids) + need - 1).prompt(shown)
    assert found.dropped == 1 and found.decision.messages == (*shown.messages[:3], *shown.messages[5:])


def test_a_name_in_a_turn_that_is_left_out_makes_no_pair(tokenizer, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    fmt = short_format(tokenizer, 230)
    clean, corrupt, _ = make_pairs(fmt, decisions, 40)
    assert (
        clean
        and all(a.ids != b.ids and a.spans == b.spans for a, b in zip(clean, corrupt))
        and sum(p.dropped for p in clean)
    )


@pytest.fixture(scope="module")
def series(tokenizer, tmp_path_factory):
    """One random checkpoint that reads few tokens."""
    folder = tmp_path_factory.mktemp("short") / "checkpoint-4"
    tiny_hf("Llama", tokenizer, max_position_embeddings=240).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder.parent


@pytest.mark.parametrize(
    "name",
    ["behaviour", "probes", "patching", "reliance", "own_traces", "conflict", "early", "shares", "steering"],
)
def test_every_analysis_refuses_before_it_computes(series, corpus_file, tmp_path, capsys, name):
    assert (
        main(
            name,
            "--run",
            tmp_path,
            "--series",
            series,
            "--corpus",
            corpus_file,
            "--device",
            "cpu",
            "--decisions",
            "30",
            "--trace_tokens",
            "60",
        )
        == 1
    )
    error = capsys.readouterr().err
    assert (
        "error: The prompt of decision t" in error  # of the study's, or of those that probes are fitted on
        and "this model reads at most 240" in error
        and "Traceback" not in error
    )
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.safetensors"))


def test_the_table_says_how_many_decisions_were_truncated(series, corpus_file, tmp_path):
    options = (
        "--series",
        series,
        "--corpus",
        corpus_file,
        "--device",
        "cpu",
        "--decisions",
        "30",
        "--trace_tokens",
        "20",
        "--action_tokens",
        "10",
        "--choices",
        "4",
    )
    assert main("behaviour", "--run", tmp_path, *options, "--truncate", "oldest_turns") == 0
    made = read_table(tmp_path / "tables", "behaviour")[1]["truncation"]
    assert made["policy"] == "oldest_turns" and made["decisions"] == 60 and 0 < made["truncated"] < 60


class Corridor:
    """A game without end, and a pool of one's own process."""

    def reset(self, game):
        return View("You are in a room. Your task is to: walk.", ("go to drawer 1",))

    def step(self, action):
        return View("You arrive at drawer 1. You see nothing.", ("go to drawer 1",))

    def send(self, orders):
        return {slot: getattr(self, order)(what) for slot, (order, what) in orders.items()}


def test_games_go_on_behind_the_context_and_count_it(tokenizer, monkeypatch):
    read = []

    def decode_each(model, prompts, modes, **more):
        read.extend(prompts)
        return [Completion((), "Next I check drawer 1.", "go to drawer 1") for _ in prompts]

    monkeypatch.setattr(rollout, "decode_each", decode_each)
    corridor = Environment(
        "corridor",
        live=Corridor,
        games=lambda split, n, seed: range(n),
        task=lambda text: text.split(". ")[1],
    )
    fmt = short_format(tokenizer, 200)
    [found] = rollout.play(None, fmt, corridor, [1], "cot", Corridor(), step_limit=12)
    assert (
        found.game == "1"
        and found.steps == 12
        and not found.won
        and 0 < found.truncated == sum(p.dropped > 0 for p in read) < 12
    )
    assert all(
        p.positions("task").size and p.decision.messages[0]["content"].startswith("You are in a room")
        for p in read
    )
    with pytest.raises(ValueError, match="decision 1#.* has .*--truncate oldest_turns"):
        rollout.play(
            None, short_format(tokenizer, 200, "none"), corridor, [1], "cot", Corridor(), step_limit=12
        )
    with pytest.raises(ValueError, match="Two of the 2 games .* have the same name"):
        rollout.play(None, fmt, corridor, [1, "1"], "cot", Corridor())
