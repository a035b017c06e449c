"""Reinforcement learning with TRL on live games: which tokens of a game are trained on, what it earns, and a
run that resumes."""

import json
import shlex

import pytest
import torch

from analyses import reinforce as command
from analyses.command import configured
from analyses.study import Study
from interp.checkpoints.series import CheckpointSeries
from interp.engine.decoding import Completion
from interp.environments.base import Environment
from interp.prompts.format import PromptFormat
from interp.rollouts.workers import engines
from interp.training import reinforcement
from interp.training.recipes import Reinforcement
from interp.training.reinforcement import Rollouts, reinforce, trained
from tests.doors import COLOURS, Doors, Parity


def names(split, n, seed):
    return [f"{split}/{seed}/{i}" for i in range(n)]


PARITY = Environment("parity", live=Parity, games=names, task=lambda text: "act")
DOORS = Environment("doors", live=Doors, games=names, task=lambda text: text.split("is to: ")[1].rstrip("."))


@pytest.fixture(scope="module")
def pool():
    with engines(Doors, 1) as pool:
        yield pool


def scripted(fmt, say):
    """A sampler that says what `say(prompt, turn)` gives, (trace, action), or an unparsed text."""

    def sample(asked, memory, turn):
        found = []
        for prompt in asked:
            what = say(prompt, turn)
            text = (
                what
                if isinstance(what, str)
                else f"{what[0]}{fmt.style.close_think}{fmt.style.open_action}{what[1]}{fmt.style.close_action}"
            )
            found.append(
                Completion(
                    tuple(fmt.encode(text)),
                    None if isinstance(what, str) else what[0],
                    None if isinstance(what, str) else what[1],
                )
            )
        return found

    return sample


def expert(prompt, turn):
    wanted = prompt.decision.task.split()[2]
    return (f"I want the {wanted} door.", f"go to {wanted} door" if turn == 0 else f"open {wanted} door")


def test_a_game_is_one_sequence_of_which_only_what_the_agent_sampled_is_trained_on(fmt, pool):
    rollouts = Rollouts(DOORS, names("in_domain", 4, 0), fmt, Reinforcement(), pool)
    for play in rollouts.play(names("in_domain", 4, 0), scripted(fmt, expert)):
        text, s = fmt.text([*play.prompt_ids, *play.ids]), fmt.style
        assert play.won and play.reward == 1 and len(play.ids) == len(play.trained)
        assert text.count("You are at the") == 1 and "It opens" not in text, (
            "nothing is read after the last action"
        )
        kept = fmt.text([i for i, t in zip(play.ids, play.trained) if t])
        wanted = text.split("open the ")[1].split()[0]
        turn = f"I want the {wanted} door.{s.close_think}{s.open_action}{{}} {wanted} door{s.close_action}"
        assert kept == turn.format("go to") + turn.format("open")


def test_the_sequence_is_what_the_format_makes_of_the_same_game(fmt, pool):
    from interp.tasks.episodes import Episode, Step

    rollouts = Rollouts(DOORS, names("in_domain", 1, 0), fmt, Reinforcement(), pool)
    [play] = rollouts.play(names("in_domain", 1, 0), scripted(fmt, expert))
    wanted = fmt.text(play.prompt_ids).split("open the ")[1].split()[0]
    trace = f"I want the {wanted} door."
    game = Episode(
        "e",
        "train",
        "t",
        0,
        f"open the {wanted} door",
        f"You see three doors. Your task is to: open the {wanted} door.",
        (
            Step(trace, f"go to {wanted} door", f"You are at the {wanted} door.", ""),
            Step(trace, f"open {wanted} door", "It opens.", ""),
        ),
        True,
    )
    ids, agent = fmt.sequence(game)
    ours = [*play.prompt_ids, *play.ids]
    assert ours == list(ids[: len(ours)])
    opening = set(fmt.mode_prefix("cot"))
    assert [t for t in play.trained] == [
        int(a and i not in opening) for i, a in list(zip(ids, agent))[len(play.prompt_ids) : len(ours)]
    ]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_mask_leaves_out_the_actions_tokens_alone_and_no_reward(fmt, pool, share):
    asked = names("in_domain", 12, 3)
    recipe = Reinforcement(action_mask=share)
    masked = Rollouts(DOORS, asked, fmt, recipe, pool).play(asked, scripted(fmt, expert))
    whole = Rollouts(DOORS, asked, fmt, Reinforcement(), pool).play(asked, scripted(fmt, expert))
    assert [p.ids for p in masked] == [p.ids for p in whole] and [p.reward for p in masked] == [
        p.reward for p in whole
    ]
    left = [
        fmt.text([i for i, a, b in zip(w.ids, w.trained, m.trained) if a and not b])
        for w, m in zip(whole, masked)
    ]
    dropped = sum(text.count(" door") for text in left)
    assert {0.0: dropped == 0, 0.5: 4 < dropped < 20, 1.0: dropped == 24}[share]
    assert all(
        set(text.replace("go to ", "|").replace("open ", "|").replace(" door", "").split("|"))
        <= {"", *COLOURS}
        for text in left
    )


def test_what_closes_an_action_stays_trained_on(fmt):
    ids = fmt.encode(
        f"Now.{fmt.style.close_think}{fmt.style.open_action}go to red door{fmt.style.close_action}"
    )
    kept = [i for i, t in zip(ids, trained(fmt, ids, True)) if t]
    assert fmt.text(kept) == f"Now.{fmt.style.close_think}{fmt.style.open_action}{fmt.style.close_action}"
    assert trained(fmt, fmt.encode("no action at all"), True) == [1] * len(fmt.encode("no action at all"))


def test_an_unparsed_action_ends_the_game_with_the_penalty_and_a_long_game_with_nothing(fmt, pool):
    asked = names("in_domain", 2, 0)
    recipe = Reinforcement(step_limit=3, format_penalty=0.25)
    first, second = Rollouts(DOORS, asked, fmt, recipe, pool).play(
        asked,
        scripted(
            fmt,
            lambda prompt, turn: (
                "I never act" if prompt.decision.episode.startswith(asked[0]) and turn else ("Look.", "look")
            ),
        ),
    )
    assert (
        first.reward == -0.25
        and not first.won
        and second.reward == 0
        and fmt.text(second.ids).count("Nothing happens") == 2
    )


def test_a_game_without_room_for_another_turn_ends_with_what_it_has(fmt, pool):
    asked = names("in_domain", 1, 0)
    [whole] = Rollouts(DOORS, asked, fmt, Reinforcement(step_limit=6), pool).play(
        asked, scripted(fmt, lambda prompt, turn: ("Look.", "look"))
    )
    context = len(whole.prompt_ids) + len(whole.ids) // 2 + Reinforcement().trace_tokens
    [short] = Rollouts(DOORS, asked, fmt, Reinforcement(step_limit=6), pool, context).play(
        asked, scripted(fmt, lambda prompt, turn: ("Look.", "look"))
    )
    assert (
        0 < len(short.ids) < len(whole.ids)
        and short.ids == whole.ids[: len(short.ids)]
        and short.reward == 0
        and len(short.prompt_ids) + len(short.ids) <= context
    )


def test_sampled_tokens_stay_as_they_were_sampled(fmt, pool):
    odd = [
        *fmt.encode("N"),
        *fmt.encode("o"),
        *fmt.encode("w"),
        *fmt.encode(f"{fmt.style.close_think}{fmt.style.open_action}look{fmt.style.close_action}"),
    ]
    seen = []

    def sample(asked, memory, turn):
        seen.append(list(asked[0].ids))
        return [Completion(tuple(odd), "Now", "look")]

    [play] = Rollouts(DOORS, ["a"], fmt, Reinforcement(step_limit=2), pool).play(["a"], sample)
    assert seen[1] == [
        *seen[0],
        *fmt.mode_prefix("cot"),
        *odd,
        *seen[1][len(seen[0]) + len(fmt.mode_prefix("cot")) + len(odd) :],
    ]
    assert (
        play.ids[: len(fmt.mode_prefix("cot")) + len(odd)] == [*fmt.mode_prefix("cot"), *odd]
        and fmt.encode("Now") != odd[:3]
    )


@pytest.fixture
def start(series_folder):
    from transformers import AutoModelForCausalLM

    series = CheckpointSeries.discover(series_folder)
    loaded = series.load(series.steps[-1], "cpu", "float32")
    return AutoModelForCausalLM.from_pretrained(
        series.path(series.steps[-1]), dtype=torch.float32
    ), loaded.tokenizer


def test_a_run_moves_the_weights_writes_a_series_and_resumes(start, tmp_path):
    pytest.importorskip("trl")
    model, tokenizer = start
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = Reinforcement(
        steps=2,
        games=2,
        generations=8,
        step_limit=2,
        trace_tokens=32,
        checkpoints=(1, 2),
        games_held=8,
        lr=1e-3,
    )
    folder = reinforce(
        model,
        tokenizer,
        tmp_path / "rl",
        PARITY,
        recipe,
        provenance=dict(start="tiny"),
        workers=1,
        device="cpu",
    )
    made = json.loads((folder / "checkpoint-2" / "training.json").read_text())
    assert (
        made["environment"] == "parity"
        and made["step"] == 2
        and made["start"] == "tiny"
        and set(made["reward"]) == {"1", "2"}
    )
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()) and any(
        -0.1 < r < 1 for r in made["reward"].values()
    )
    series = CheckpointSeries.discover(folder)
    assert series.steps == [1, 2] and series.load(2, "cpu").tokenizer.chat_template == tokenizer.chat_template
    again = reinforce(
        model,
        tokenizer,
        tmp_path / "rl",
        PARITY,
        Reinforcement(**{**vars(recipe), "steps": 3, "checkpoints": (1, 2, 3)}),
        workers=1,
        device="cpu",
    )
    assert CheckpointSeries.discover(again).steps == [1, 2, 3]


def test_low_rank_updates_are_sampled_from_as_they_are_and_saved_as_adapters(start, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    model, tokenizer = start
    sampled, plain = [], reinforcement._plain

    def spied(trainer):
        copied = plain(trainer)
        ids = torch.arange(6)[None]
        tuned = trainer.accelerator.unwrap_model(trainer.model)
        with torch.no_grad():
            sampled.append((copied(ids).logits, tuned(ids).logits))
        return copied

    monkeypatch.setattr(reinforcement, "_plain", spied)
    recipe = Reinforcement(
        steps=2, games=1, step_limit=1, trace_tokens=8, checkpoints=(2,), games_held=4, lr=1e-2, rank=2
    )
    model.name_or_path = model.config._name_or_path
    folder = reinforce(model, tokenizer, tmp_path / "rl", PARITY, recipe, workers=1, device="cpu")
    assert len(sampled) == 2 and all(torch.allclose(a, b, atol=1e-4) for a, b in sampled)
    assert (folder / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert CheckpointSeries.discover(folder).steps == [0, 2]


def test_the_command_takes_every_option_of_a_template(series_folder, tmp_path, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(
        reinforcement, "reinforce", lambda *given, **options: taken.append(options) or tmp_path / "rl"
    )
    start = series_folder / "checkpoint-110"
    flags = [
        "--system",
        "Act.",
        "--system_as",
        "user",
        "--tool_as",
        "user",
        "--markers",
        "tokens",
        "--history_traces",
        "kept",
        "--template",
        "today=2024-05-01",
    ]
    config = configured(
        command.Config, ["--start", str(start), "--work", str(tmp_path / "rl"), *flags], "reinforce"
    )
    command.run(config)
    fmt, made = taken[0]["fmt"], taken[0]["provenance"]
    assert (fmt.system, fmt.system_as, fmt.tool_as, fmt.markers) == ("Act.", "user", "user", "tokens")
    assert (fmt.history_traces, fmt.chat.today) == ("kept", "2024-05-01")
    assert made["format"] == fmt.hash and made["system"] == "Act." and "--history_traces" in made["prompts"]
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])[4:]
    study = configured(
        Study, [word for word in printed if word not in ("--environment", "alfworld")], "all"
    )  # the advice
    assert study.format_options() == config.format_options() and study.system == "Act."


def test_a_game_that_is_no_one_sequence_is_refused(start, tmp_path):
    pytest.importorskip("trl")
    fmt = PromptFormat(start[1], history_traces="dropped")
    with pytest.raises(ValueError, match="A game is trained on as one sequence.*--history_traces kept"):
        reinforce(*start, tmp_path, PARITY, Reinforcement(), fmt=fmt)
    assert PromptFormat(start[1], history_traces="kept").whole


def test_an_environment_without_games_is_refused(start, tmp_path):
    pytest.importorskip("trl")
    with pytest.raises(ValueError, match="nothing to learn from: the environment 'quiet' has no games"):
        reinforce(*start, tmp_path, Environment("quiet"), Reinforcement())


def test_what_is_rewarded_becomes_more_likely(start, tmp_path):
    """Signs, masks and positions are right: of actions that win half of the time, those that win take
    over."""
    pytest.importorskip("trl")
    recipe = Reinforcement(
        steps=48,
        games=2,
        generations=8,
        step_limit=1,
        trace_tokens=32,
        checkpoints=(48,),
        games_held=8,
        lr=1e-3,
    )
    folder = reinforce(*start, tmp_path / "rl", PARITY, recipe, workers=1, device="cpu")
    earned = list(json.loads((folder / "checkpoint-48" / "training.json").read_text())["reward"].values())
    assert sum(earned[-8:]) / 8 > sum(earned[:8]) / 8 + 0.2, earned
