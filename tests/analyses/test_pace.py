"""The bare loop that training is timed against does the same work, and the table holds what it says."""

from dataclasses import replace

import torch

from analyses.benchmarks import pace
from interp.results.tables import read_table
from interp.training.supervision import Supervision, supervised
from interp.training.trainer import _Batches, batches, build_model, train
from tests.conftest import TINY

RECIPE = replace(TINY, hidden=16, layers=1, heads=2, batch_tokens=500)


def test_the_bare_loop_and_the_trainer_end_with_the_same_weights(tokenizer, fmt, episodes, tmp_path):
    sequences, _ = supervised(fmt, episodes["train"][:10], Supervision(action_mask=0.5), 0)
    plan = batches(sequences, RECIPE, 12, 0)
    loop, trained, untouched = (build_model(RECIPE, tokenizer) for _ in range(3))
    pace.bare(loop, _Batches(sequences, plan, tokenizer.pad_token_id), 12, 1e-2)
    train(
        trained,
        tokenizer,
        sequences,
        RECIPE,
        tmp_path,
        steps=12,
        lr=1e-2,
        keep=(),
        seed=0,
        device="cpu",
        plan=plan,
    )
    for name, value in loop.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=1e-5)
    assert (loop.model.embed_tokens.weight - untouched.model.embed_tokens.weight).abs().max() > 1e-2


def test_the_table_has_a_row_for_each_condition(corpus_file, tmp_path):
    pace.run(
        pace.Config(
            out=tmp_path,
            conditions=("action_mask_0", "cot_only"),
            corpus=corpus_file,
            episodes=6,
            steps=2,
            repeats=1,
            recipe=RECIPE,
        )
    )
    frame, made = read_table(tmp_path, "pace")
    assert (
        list(frame.condition) == ["action_mask_0", "cot_only"]
        and (frame.ratio > 0).all()
        and frame.tokens.nunique() == 1
    )
    torch.testing.assert_close(
        *(
            torch.tensor(v.to_numpy())
            for v in (frame.tokens_per_second, frame.ratio * frame.bare_tokens_per_second)
        ),
        rtol=1e-4,
        atol=0,
    )
    assert made["threads"] == 1 and made["recipe"]["hidden"] == 16
