"""Training: batches, what is supervised, what is left out, and resuming after a kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from analyses.shipped import series
from interp.prompts.format import PromptFormat
from interp.tasks.episodes import save_episodes
from interp.training import trainer as training
from interp.training.supervision import Supervision
from interp.training.trainer import (
    Recipe,
    Tuning,
    _Batches,
    base_mixture,
    batches,
    build_model,
    fit_tokenizer,
    replayed,
    train,
    train_condition,
)
from tests.conftest import ONE_TRAINING, TINY, handmade


def sequences_of(lengths):
    return [([1] * n, [True] * n) for n in lengths]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(60, 200),
    context=st.integers(60, 80),
    steps=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_batches_keep_the_budget_the_seed_and_every_sequence(lengths, budget, context, steps, seed):
    recipe = replace(TINY, batch_tokens=budget, context=context)
    plan = batches(sequences_of(lengths), recipe, steps, seed)
    assert len(plan) == steps and all(plan)
    assert all(max(lengths[i] for i in b) * len(b) <= budget for b in plan)
    assert plan == batches(sequences_of(lengths), recipe, steps, seed)
    assert (
        plan == batches(sequences_of(lengths), recipe, steps + 7, seed)[:steps]
    )  # a longer plan begins the same
    long = batches(sequences_of(lengths), recipe, 200, seed)
    assert {i for b in long for i in b} == set(range(len(lengths)))


def test_sequences_beyond_the_context_are_left_out():
    recipe = replace(TINY, batch_tokens=100, context=50)
    plan = batches(sequences_of([10, 51, 30, 500]), recipe, 20, 0)
    assert {i for b in plan for i in b} == {0, 2}
    with pytest.raises(ValueError, match="context"):
        batches(sequences_of([51, 500]), recipe, 3, 0)


def test_another_seed_orders_the_batches_differently():
    lengths = list(range(10, 60))
    assert batches(sequences_of(lengths), TINY, 10, 0) != batches(sequences_of(lengths), TINY, 10, 1)


def test_the_loss_is_on_the_agents_tokens_only(fmt, episodes):
    sequences = [fmt.sequence(e) for e in episodes["train"][:3]]
    batch = _Batches(sequences, [[0, 1, 2]], fmt.tokenizer.pad_token_id)[0]
    for row, (ids, agent) in enumerate(sequences):
        labels = batch["labels"][row]
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert labels[: len(ids)].tolist() == [i if mine else -100 for i, mine in zip(ids, agent)]
        assert (labels[len(ids) :] == -100).all() and (
            batch["input_ids"][row, len(ids) :] == fmt.tokenizer.pad_token_id
        ).all()
        if "attention_mask" in batch:
            assert batch["attention_mask"][row].sum() == len(ids)


def test_padding_does_not_change_the_loss(fmt, episodes, tokenizer):
    model = build_model(TINY, tokenizer)
    sequences = [fmt.sequence(e) for e in episodes["train"][:2]]

    def loss(plan):
        with torch.no_grad():
            return float(model(**_Batches(sequences, [plan], tokenizer.pad_token_id)[0]).loss)

    counts = [sum(agent) for _, agent in sequences]
    assert len(sequences[0][0]) != len(sequences[1][0])
    assert loss([0, 1]) == pytest.approx(np.average([loss([0]), loss([1])], weights=counts), abs=1e-5)


def test_the_tokenizer_keeps_tags_whole_and_loses_nothing(episodes):
    tokenizer = fit_tokenizer(["go to drawer 1"], 300)
    for tag in ("<think>", "</think>", "<action>", "</action>", "<|user|>", "<|agent|>", "<|end|>"):
        assert len(tokenizer(tag, add_special_tokens=False)["input_ids"]) == 1
    text = "Ünïcode, <tags>, drawer 11 \n and ☃."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_initial_model_depends_on_the_seed_alone(tokenizer):
    torch.manual_seed(123)
    first, again, other = (
        build_model(TINY, tokenizer),
        build_model(TINY, tokenizer),
        build_model(replace(TINY, seed=1), tokenizer),
    )
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not all(map(torch.equal, first.state_dict().values(), other.state_dict().values()))


def test_the_base_mixture_has_every_kind_of_trace(fmt, episodes):
    mixture = base_mixture(fmt, episodes["base"], seed=0)
    think = fmt.tokenizer.convert_tokens_to_ids("<think>")
    shares = [sum(i == think for i in ids) / len(e.steps) for (ids, _), e in zip(mixture, episodes["base"])]
    assert (
        len(mixture) == len(episodes["base"])
        and 0.0 in shares
        and 1.0 in shares
        and any(0 < s < 1 for s in shares)
    )
    assert (
        mixture == base_mixture(fmt, episodes["base"], seed=0) != base_mixture(fmt, episodes["base"], seed=1)
    )


def tiny_run(folder, tokenizer, fmt, episodes):
    recipe = replace(TINY, hidden=16, layers=1, heads=2, batch_tokens=500)
    train(
        build_model(recipe, tokenizer),
        tokenizer,
        [fmt.sequence(e) for e in episodes["train"]],
        recipe,
        folder,
        steps=8,
        lr=1e-2,
        keep=(3, 6),
        seed=4,
        device="cpu",
    )


def test_training_killed_and_resumed_gives_the_uninterrupted_weights(
    tmp_path, tokenizer, fmt, episodes, monkeypatch
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tiny_run(whole, tokenizer, fmt, episodes)
    assert sorted(p.name for p in whole.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-8",
    ]

    class Killed(training.SaveAt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt
            return super().on_step_end(args, state, control, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "SaveAt", Killed)
        tiny_run(cut, tokenizer, fmt, episodes)
    half = cut / "checkpoint-5"  # and a checkpoint that was being written when the process died
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    tiny_run(cut, tokenizer, fmt, episodes)
    for name in ("checkpoint-3", "checkpoint-6", "checkpoint-8"):
        first, second = (load_file(folder / name / "model.safetensors") for folder in (whole, cut))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first), name
    notes = json.loads((cut / "checkpoint-8" / "training.json").read_text())
    assert notes["step"] == 8 and notes["recipe"]["hidden"] == 16


def test_test_episodes_and_held_out_tasks_are_never_trained_on(corpus_file, episodes, tmp_path, monkeypatch):
    """Neither tokenizer nor base nor fine-tuning may see a test episode; fine-tuning sees no held-out task
    type."""
    seen, fitted = {}, []

    def record(model, tokenizer, sequences, recipe, folder, **options):
        made = options["provenance"]
        stage = made.get("stage") or made["condition"]
        seen[stage] = [tokenizer.decode(ids) for ids, _ in sequences]
        model.save_pretrained(folder / f"checkpoint-{options['steps']}")
        tokenizer.save_pretrained(folder / f"checkpoint-{options['steps']}")
        return folder

    monkeypatch.setattr(training, "train", record)
    monkeypatch.setattr(series, "export", lambda *a: None)
    monkeypatch.setattr(
        training, "fit_tokenizer", lambda texts, size: fitted.extend(texts) or fit_tokenizer(texts, size)
    )
    series.run(
        series.Config(
            work=tmp_path,
            out=tmp_path / "out",
            corpus=corpus_file,
            recipe=replace(TINY, hidden=16, layers=1),
            device="cpu",
            **ONE_TRAINING,
        )
    )
    starts = {split: {e.start for e in group} for split, group in episodes.items()}
    text = {stage: "\n".join(s) for stage, s in seen.items()} | {"tokenizer": "\n".join(fitted)}
    for stage, words in text.items():
        assert not any(
            s in words for split in ("test_in_domain", "test_out_of_domain") for s in starts[split]
        ), stage
    assert len(seen["action_mask_0"]) == len(episodes["train"]) and not any(
        s in text["action_mask_0"] for s in starts["base_aimless"]
    )
    assert not any(s in text["base"] for s in starts["train"])


def test_a_corpus_without_training_splits_is_refused_in_a_sentence(episodes, tmp_path):
    path = save_episodes(tmp_path / "test_only.jsonl.xz", episodes["test_in_domain"])
    with pytest.raises(ValueError, match="test_only.*base"):
        series.run(series.Config(work=tmp_path, out=tmp_path / "out", corpus=path, recipe=TINY, device="cpu"))


def test_the_shipped_checkpoints_are_complete_and_say_what_made_them(series_folder):
    for step in TINY.checkpoints:
        folder = series_folder / f"checkpoint-{step}"
        notes = json.loads((folder / "training.json").read_text())
        assert Recipe(**{**notes["recipe"], "checkpoints": tuple(notes["recipe"]["checkpoints"])}) == TINY
        assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
        assert PromptFormat(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("share", [1, 1.5, -0.1])
def test_a_replayed_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match="replay is"):
        Supervision(replay=share)


def test_a_replay_is_a_share_of_all_sequences_and_refuses_too_few_episodes(fmt):
    episodes = [handmade(i, "base") for i in range(10)]
    assert len(replayed(fmt, episodes, 0.1, 36, seed=0)) == 4
    assert replayed(fmt, episodes, 0.1, 36, seed=0) == replayed(fmt, episodes, 0.1, 36, seed=0)
    with pytest.raises(ValueError, match="asks for 12 of the base's episodes, and there are 10"):
        replayed(fmt, episodes, 0.25, 36, seed=0)


def test_a_low_rank_training_in_half_precision_keeps_its_update_in_float32(tokenizer, episodes, tmp_path):
    from tests.conftest import tiny_hf

    base = tmp_path / "base"
    tiny_hf("Llama", tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    tuning = Tuning(rank=2, steps=2, batch_tokens=1600, checkpoints=(2,), half=True, recompute=True)
    folder = train_condition(
        base, episodes["train"][:8], Supervision(), tuning, tmp_path / "half", seed=0, device="cpu"
    )
    update = load_file(folder / "checkpoint-2" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in update.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for name, tensor in update.items() if "lora_B" in name)


def test_adapters_are_trained_in_three_rises_and_shipped_as_a_series_over_the_untouched_model(
    tokenizer, corpus_file, tmp_path
):
    from analyses.shipped import smollm2
    from interp.checkpoints.series import CheckpointSeries
    from tests.conftest import tiny_hf

    untouched = tiny_hf("Llama", tokenizer)
    untouched.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    tuning = Tuning(
        rank=2, context=1024, steps=4, batch_tokens=1024, lr=1e-2, checkpoints=(2, 4), again=(3, 2)
    )
    config = smollm2.Config(work=tmp_path, tuning=tuning, device="cpu")
    smollm2.retrain(config, tmp_path / "base", corpus_file, tmp_path / "series")
    series = CheckpointSeries.discover(tmp_path / "series")
    assert series.steps == [0, 2, 4, 7, 9] and [series.kind(s) for s in series.steps] == [
        "full",
        *["adapter"] * 4,
    ]
    assert json.loads((tmp_path / "series" / "checkpoint-9" / "training.json").read_text())[
        "continues"
    ].startswith("checkpoint-7,")
    made = json.loads((tmp_path / "series" / "checkpoint-7" / "training.json").read_text())
    assert made["step"] == 7 and made["system"] == smollm2.SYSTEM and set(made["loss"]) == {"5", "6", "7"}
    assert (
        made["loss"]["7"]
        < json.loads((tmp_path / "series" / "checkpoint-2" / "training.json").read_text())["loss"]["1"]
    )
    model = series.load(0, "cpu", "float32")
    assert all(torch.equal(p, untouched.state_dict()[n]) for n, p in model.hf.named_parameters())
    before = model.hf.model.embed_tokens.weight.clone()
    series.swap(model, 7)
    assert torch.equal(model.hf.model.embed_tokens.weight, before) and not torch.equal(
        model.hf.model.layers[0].self_attn.q_proj.weight, untouched.model.layers[0].self_attn.q_proj.weight
    )


def test_logits_are_read_only_where_some_row_is_supervised(tokenizer):
    rows = [([5, 6, 7, 8], [False, False, True, True]), ([9, 10, 11], [False, True, False])]
    batch = _Batches(rows, [[0, 1]], tokenizer.pad_token_id)[0]
    assert batch["logits_to_keep"].tolist() == [0, 1, 2] and batch["shift_labels"].tolist() == [
        [-100, 7, 8],
        [10, -100, -100],
    ]
    model = build_model(TINY, tokenizer)
    part = model(
        input_ids=batch["input_ids"],
        labels=batch["labels"],
        shift_labels=batch["shift_labels"],
        logits_to_keep=batch["logits_to_keep"],
    ).loss
    assert torch.allclose(part, model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
