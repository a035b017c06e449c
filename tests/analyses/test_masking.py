"""The masking study end to end on tiny conditions: trained, killed and resumed, measured, compared; and a
researcher's own conditions."""

import json
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from analyses.masking import run as masking
from analyses.masking.compare import by_metric, compare, primary, selection
from analyses.masking.measure import trainings
from interp.checkpoints.series import CheckpointSeries
from interp.results.tables import read_table
from interp.stats.crossed import CLAIM
from interp.training import trainer as training
from interp.training.supervision import Supervision, supervised
from interp.training.trainer import Tuning, train, train_condition
from tests.command_line import main
from tests.conftest import TINY
from tests.environments.test_environments import PAGE, module

RECIPE = replace(TINY, cot_steps=6, checkpoints=(0, 3, 6), batch_tokens=800)
CONDITIONS = ("action_mask_0", "action_mask_0.3", "random_mask_0.3")


@pytest.fixture(scope="module")
def base(series_folder):
    return series_folder / "checkpoint-0"


def config_of(base, corpus_file, run, **more):
    given = dict(
        base=base,
        corpus=corpus_file,
        run=run,
        conditions=CONDITIONS,
        seeds=1,
        more=("action_mask_0.3", "action_mask_0"),
        more_seeds=2,
        recipe=RECIPE,
        decisions=6,
        trace_tokens=32,
        pairs=8,
        patched=3,
        device="cpu",
    )
    return masking.Config(**given | more)


@pytest.fixture(scope="module")
def study(base, corpus_file, tmp_path_factory):
    run = tmp_path_factory.mktemp("masking")
    masking.run(config_of(base, corpus_file, run))
    return run


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k].float(), b[k].float()) for k in a)


def test_every_condition_and_seed_has_a_series_of_its_own_that_says_what_made_it(study, base):
    found = [(condition, seed) for condition, seed, _ in trainings(study / "conditions")]
    assert found == [
        ("action_mask_0", 0),
        ("action_mask_0", 1),
        ("action_mask_0.3", 0),
        ("action_mask_0.3", 1),
        ("random_mask_0.3", 0),
    ]
    for condition, seed, folder in trainings(study / "conditions"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert CheckpointSeries.discover(folder).steps == [0, 3, 6]
        assert same(weights(folder / "checkpoint-0"), weights(base))
        made = json.loads((folder / "checkpoint-6" / "training.json").read_text())
        assert (made["condition"], made["mask_seed"], made["recipe"]["seed"], made["style"]) == (
            condition,
            seed,
            seed,
            "tags",
        )
        assert (
            Supervision(**made["supervision"]).name == condition
            and made["corpus"]
            and made["base"]
            and made["format"]
        )
        assert (
            (made["masked"]["unsupervised"] > 0) == (condition != "action_mask_0")
            and made["step"] == 6
            and made["loss"]
        )
        assert not list(folder.glob("*/optimizer.pt"))
    masked = [
        json.loads(
            (study / "conditions" / condition / "seed-0" / "checkpoint-6" / "training.json").read_text()
        )["masked"]
        for condition in CONDITIONS[1:]
    ]
    assert masked[0] == masked[1]  # as many tokens in as many examples
    last = [weights(study / "conditions" / condition / "seed-0" / "checkpoint-6") for condition in CONDITIONS]
    assert not same(last[0], last[1]) and not same(last[1], last[2])


def test_the_condition_without_a_mask_is_what_train_does(study, base, episodes, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = [training.PromptFormat(tokenizer).sequence(e) for e in episodes["train"]]
    train(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        tokenizer,
        plain,
        RECIPE,
        tmp_path,
        steps=6,
        lr=RECIPE.cot_lr,
        keep=(),
        seed=1,
        device="cpu",
    )
    assert same(
        weights(tmp_path / "checkpoint-6"),
        weights(study / "conditions" / "action_mask_0" / "seed-1" / "checkpoint-6"),
    )


def test_conditions_of_one_seed_read_the_same_batches(base, episodes, tmp_path, monkeypatch):
    seen = {}

    def record(model, tokenizer, sequences, recipe, folder, **options):
        seen[folder.name] = sequences, training.batches(sequences, recipe, options["steps"], options["seed"])

    monkeypatch.setattr(training, "train", record)
    for condition in (*CONDITIONS, "action_only", "cot_only"):
        train_condition(
            base,
            episodes["train"],
            Supervision.named(condition),
            RECIPE,
            tmp_path / condition,
            seed=1,
            device="cpu",
        )
    plans = [plan for _, plan in seen.values()]
    assert (
        all(plan == plans[0] for plan in plans)
        and len({str([keep for _, keep in sequences]) for sequences, _ in seen.values()}) == 5
    )
    assert all(
        [ids for ids, _ in sequences] == [ids for ids, _ in seen[CONDITIONS[0]][0]]
        for sequences, _ in seen.values()
    )


def test_a_study_killed_in_the_middle_of_a_training_goes_on_to_the_same_weights(
    study, base, corpus_file, tmp_path, monkeypatch
):
    config = config_of(base, corpus_file, tmp_path)

    class Killed(training.SaveAt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5 and "random" in args.output_dir:
                raise KeyboardInterrupt
            return super().on_step_end(args, state, control, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "SaveAt", Killed)
        masking.run(config)
    finished = tmp_path / "conditions" / "action_mask_0" / "seed-0" / "checkpoint-6" / "model.safetensors"
    when = finished.stat().st_mtime_ns
    masking.train(config)
    assert finished.stat().st_mtime_ns == when
    for condition, seed, folder in trainings(study / "conditions"):
        assert same(
            weights(folder / "checkpoint-6"),
            weights(tmp_path / "conditions" / condition / f"seed-{seed}" / "checkpoint-6"),
        ), (condition, seed)


def test_a_folder_that_holds_another_training_is_refused(base, corpus_file, study):
    with pytest.raises(ValueError, match="action_mask_0/seed-0 holds another training, whose recipe is"):
        masking.train(config_of(base, corpus_file, study, recipe=replace(RECIPE, cot_lr=1e-5)))


def test_outcomes_and_comparisons_are_in_their_tables(study):
    decided, made = read_table(study / "tables", "masking_decisions")
    assert (
        set(decided.split) == {"in_domain", "out_of_domain"}
        and len(decided) == 5 * 2 * 6
        and set(decided.step) == {6}
        and len(made["weights"]) == 5 * 3
    )  # reliance reads every checkpoint
    frame, made = read_table(study / "tables", "masking")
    row = frame[
        (frame.metric == "parse_cot")
        & (frame.split == "in_domain")
        & (frame.contrast == "difference")
        & (frame.condition == "action_mask_0.3")
    ].iloc[0]
    mean = decided[decided.split == "in_domain"].groupby("condition").parse_cot.mean()
    assert (
        row.value == pytest.approx(mean["action_mask_0.3"] - mean["action_mask_0"], abs=1e-6)
        and row.seeds == 2
    )
    metrics = {"acc_cot", "acc_prompt", "parse_cot", "parse_prompt", "gap"}
    assert metrics | {"prompt_reliance", "patch_prompt", "patch_boundary"} <= set(frame.metric)
    assert set(frame.contrast) == {"training", "level", "difference", "control", "slope"}
    assert frame[frame.contrast == "control"].seeds.eq(1).all() and made["verdict"] in (
        "supported",
        "a gain of at least 0.05 excluded",
        "open",
    )
    chosen, _ = read_table(study / "tables", "masking_selection")
    assert (
        chosen.chosen.sum() == 1
        and chosen.share.tolist() == [0, 0.3]
        and made["selection"].startswith("k = ")
    )
    before = (study / "tables" / "masking.csv").read_bytes()
    assert main("masking", "--run", study, "--stages", "compare") == 0  # from its tables alone
    assert (study / "tables" / "masking.csv").read_bytes() == before


def test_what_a_mask_removes_is_read_at_every_checkpoint(study):
    frame, _ = read_table(study / "tables", "masking_manipulation")
    assert set(frame["step"]) == {0, 3, 6} and set(frame["condition"]) == set(CONDITIONS)
    shares = frame[frame["metric"] == "gradient_share"].groupby(["condition", "seed", "step"])["value"]
    assert np.allclose(shares.sum(), 1, atol=1e-3) and set(shares.size()) == {3}
    at_base = frame[(frame["step"] == 0) & (frame["part"] == "action") & (frame["metric"] == "nll")]
    assert at_base["value"].nunique() == 1  # every training starts from one base
    assert (at_base["n_groups"] == 12).all() or (at_base["n_groups"] > 1).all()


def test_instruments_say_the_same_as_their_own_analyses(study, base, corpus_file, tmp_path):
    """Of one training: the rows that conditions are compared on, against the tables that its series gives by
    itself."""
    folder, frame = (
        study / "conditions" / "action_mask_0" / "seed-0",
        read_table(study / "tables", "masking_instruments")[0],
    )
    rows = frame[(frame.condition == "action_mask_0") & (frame.seed == 0)]
    assert set(frame.metric) == {"prompt_reliance", "patch_prompt", "patch_boundary"} | set(frame.metric) & {
        "follow",
        "keep",
        "probe_gain",
    }
    given = (
        "--series",
        folder,
        "--corpus",
        corpus_file,
        "--decisions",
        "6",
        "--trace_tokens",
        "32",
        "--device",
        "cpu",
        "--run",
        tmp_path,
    )
    assert main("reliance", *given, "--pairs", "8") == 0
    theirs, _ = read_table(tmp_path / "tables", "reliance")
    for (step, split), of in rows[rows.metric == "prompt_reliance"].groupby(["step", "split"]):
        row = theirs[
            (theirs.step == step) & (theirs.split == split) & (theirs.metric == "prompt_reliance")
        ].iloc[0]
        kept = of if not row.n_dropped else of.iloc[:0]
        if len(kept):
            assert (
                kept.value.sum() / kept.denominator.sum() == pytest.approx(row.value, rel=1e-4)
                and len(kept) == row.n
            )
    paired = frame[frame.metric.isin(["prompt_reliance", "patch_prompt", "patch_boundary"])]
    assert (
        paired.value.notna().all() and (paired.denominator < 0).any()
    )  # also pairs whose difference is 0 or has the wrong sign
    assert set(rows[rows.metric == "prompt_reliance"].step) == {0, 3, 6} and set(
        rows[rows.metric == "patch_prompt"].step
    ) == {6}


def test_nothing_is_compared_before_it_is_measured(tmp_path, capsys):
    assert main("masking", "--run", tmp_path, "--stages", "compare") == 1
    assert "the stage `measure` writes it" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_two_parts_do_what_one_process_does(study, base, corpus_file, tmp_path):
    for i in range(2):
        masking.run(config_of(base, corpus_file, tmp_path, part=(i, 2)))
    assert not (tmp_path / "tables").exists() and len(list(trainings(tmp_path / "conditions"))) == 5
    masking.run(config_of(base, corpus_file, tmp_path, stages=("train", "measure")))
    for name in ("masking_decisions", "masking_instruments"):
        assert (tmp_path / "tables" / f"{name}.csv").read_bytes() == (
            study / "tables" / f"{name}.csv"
        ).read_bytes()
    with pytest.raises(ValueError, match="--part is a number"):
        masking.run(config_of(base, corpus_file, tmp_path, part=(2, 2)))


def test_a_researchers_own_conditions_are_compared(study, corpus_file, tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(study / "conditions", own)
    for file in own.glob("*/*/condition.json"):
        file.unlink()
    given = (
        "masking",
        "--series",
        own,
        "--run",
        tmp_path / "run",
        "--corpus",
        corpus_file,
        "--decisions",
        "6",
        "--trace_tokens",
        "32",
        "--pairs",
        "8",
        "--patched",
        "3",
        "--device",
        "cpu",
    )
    assert main(*given) == 0
    assert "the claim is" in capsys.readouterr().out
    theirs, ours = (read_table(run / "tables", "masking")[0] for run in (tmp_path / "run", study))
    pd.testing.assert_frame_equal(theirs, ours)
    shutil.rmtree(own / "action_mask_0" / "seed-1" / "checkpoint-6")
    assert (
        main(*given) == 1
        and "compared at one step, but action_mask_0 of seed 1 ends at 3 and" in capsys.readouterr().err
    )
    assert main(*given, "--checkpoints", "3", "--stages", "measure", "--instruments", "reliance") == 0
    for file in (own / "action_mask_0.3").glob("*/*/training.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(system="Act.")))
    assert (
        main(*given, "--checkpoints", "3") == 1
        and "action_mask_0.3 of seed 0 reads other prompts" in capsys.readouterr().err
    )
    (own / "my_condition" / "seed-0").mkdir(parents=True)
    assert main(*given) == 1 and "no condition 'my_condition'" in capsys.readouterr().err
    assert main("masking", "--series", tmp_path, "--run", tmp_path / "run") == 1


def test_conditions_play_the_same_games_of_a_task_of_ones_own(study, tmp_path, monkeypatch):
    (code,) = re.findall(r"<!-- own task -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module(tmp_path, monkeypatch, "my_task", code)
    given = (
        "--series",
        study / "conditions",
        "--run",
        tmp_path / "run",
        "--environment",
        "my_task:TASK",
        "--decisions",
        "4",
        "--trace_tokens",
        "24",
        "--pairs",
        "8",
        "--patched",
        "3",
        "--device",
        "cpu",
    )
    assert (
        main(
            *("masking", *given, "--games", "4", "--step_limit", "2", "--workers", "1"),
            *("--splits", "in_domain", "--instruments", "reliance"),
        )
        == 0
    )
    played, _ = read_table(tmp_path / "run" / "tables", "masking_games")
    assert (
        len(played) == 5 * 4
        and played.groupby("game").size().eq(5).all()
        and set(played.success_cot) <= {0, 1}
    )
    frame, made = read_table(tmp_path / "run" / "tables", "masking")
    assert {"success_cot", "success_prompt", "acc_cot"} <= set(frame.metric) and made["verdict"].startswith(
        "none: there is no difference"
    )


def test_a_base_that_is_not_there_is_refused_and_not_looked_for_on_a_hub(tmp_path):
    for recipe in (RECIPE, Tuning(steps=2)):
        with pytest.raises(
            FileNotFoundError, match="no checkpoint at .*nowhere to train from: give a folder"
        ):
            train_condition(tmp_path / "nowhere", [], Supervision(), recipe, tmp_path / "condition", seed=0)
    assert not (tmp_path / "condition").exists()


def test_a_corpus_without_training_episodes_is_refused(base, tmp_path, episodes):
    from interp.tasks.episodes import save_episodes

    path = save_episodes(tmp_path / "test_only.jsonl.xz", episodes["test_in_domain"])
    with pytest.raises(ValueError, match="no episodes of the split 'train'"):
        masking.train(config_of(base, path, tmp_path))


def test_a_random_mask_that_cannot_mask_as_much_is_no_control(base, episodes, tmp_path):
    bare = [replace(e, steps=tuple(replace(s, trace="") for s in e.steps)) for e in episodes["train"]]
    with pytest.raises(
        ValueError, match="no control of action_mask_0.3 here: it would leave 0 tokens unsupervised and not"
    ):
        train_condition(base, bare, Supervision(random_mask=0.3), RECIPE, tmp_path, seed=0, device="cpu")


def test_low_rank_conditions_are_a_series_over_the_untouched_base(base, episodes, tmp_path):
    tuning = Tuning(rank=2, context=1024, steps=3, batch_tokens=800, checkpoints=(2, 3))
    folders = [
        train_condition(
            base,
            episodes["train"],
            Supervision(action_mask=k),
            tuning,
            tmp_path / f"{k}",
            seed=4,
            device="cpu",
        )
        for k in (0.0, 0.5)
    ]
    for folder in folders:
        assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
        assert CheckpointSeries.discover(folder, base=base).steps == [0, 2, 3]
    first, other = (load_file(f / "checkpoint-3" / "adapter_model.safetensors") for f in folders)
    assert not same(first, other)


def outcomes_of(rng, effect, random_effect, n=150, seeds=5):
    """Outcomes of three conditions as `measure` writes them, of episodes of two decisions."""
    rows, ease = [], rng.normal(0, 0.15, n)
    for condition, shift in zip(CONDITIONS, (0, effect, random_effect)):
        for seed in range(seeds):
            chance = np.clip(0.4 + shift + ease + rng.normal(0, 0.01), 0, 1)
            rows += [
                dict(
                    condition=condition,
                    seed=seed,
                    step=6,
                    split="out_of_domain",
                    game=f"g{g}",
                    item=2 * g + i,
                    acc_cot=int(rng.random() < chance[g]),
                    acc_prompt=int(rng.random() < 0.3),
                )
                for g in range(n)
                for i in range(2)
            ]
    frame = by_metric(pd.DataFrame(rows))
    return frame[frame.metric != "acc_prompt"]  # which only the gap is about


@pytest.mark.parametrize(
    "effect, random_effect, said",
    [
        (0.2, 0.0, "supported"),
        (0.0, 0.0, "a gain of at least 0.05 excluded"),
        (-0.2, 0.0, "a gain of at least 0.05 excluded"),
    ],
)
def test_the_verdict_on_planted_outcomes(effect, random_effect, said):
    rows = compare(outcomes_of(np.random.default_rng(1), effect, random_effect))
    assert primary(rows) == said
    gap, level = (
        next(
            r
            for r in rows
            if r["metric"] == "gap" and r["contrast"] == c and r["condition"] == "action_mask_0.3"
        )
        for c in ("difference", "level")
    )
    assert gap["low"] < effect < gap["high"] and level["seeds"] == 5 and level["n_groups"] == 150
    slope = next(r for r in rows if r["metric"] == "acc_cot" and r["contrast"] == "slope")
    assert slope["low"] < effect / 0.3 < slope["high"]


def test_where_any_mask_helps_the_claim_is_not_supported():
    rows = compare(outcomes_of(np.random.default_rng(1), 0.2, 0.2))
    found = {r["contrast"]: r for r in rows if CLAIM.items() <= r.items()}
    assert (
        found["difference"]["low"] > 0
        and found["control"]["low"] < 0 < found["control"]["high"]
        and primary(rows) != "supported"
    )


def test_without_the_control_there_is_no_verdict():
    frame = outcomes_of(np.random.default_rng(1), 0.2, 0.0, n=20)
    assert (
        primary(compare(frame[frame.condition != "random_mask_0.3"]))
        == "none: there is no control of action_mask_0.3 out of domain"
    )


def test_masks_change_nothing_but_what_is_supervised(fmt, episodes):
    plain = [fmt.sequence(e) for e in episodes["train"]]
    assert supervised(fmt, episodes["train"])[0] == plain


def planted(k_effects, n=150, seeds=4):
    """Rows of conditions whose action masks change the outcome by `k_effects` (share -> effect)."""
    rng = np.random.default_rng(2)
    ease = rng.normal(0, 0.1, n)
    rows = [
        dict(
            condition=f"action_mask_{k:g}",
            seed=s,
            step=6,
            split="out_of_domain",
            game=f"g{g}",
            item=g,
            acc_cot=int(rng.random() < 0.4 + e + ease[g]),
        )
        for k, e in k_effects.items()
        for s in range(seeds)
        for g in range(n)
    ]
    return by_metric(pd.DataFrame(rows))


@pytest.mark.parametrize(
    "effects, k",
    [
        ({0: 0, 0.1: 0, 0.3: 0}, 0),
        ({0: 0, 0.1: 0, 0.3: 0.3}, 0.3),
        ({0: 0, 0.1: 0.3, 0.3: 0.3}, 0.1),
        ({0: 0, 0.1: 0.2, 0.3: 0.5}, 0.3),
        ({0: 0, 0.3: -0.3}, 0),
    ],
)
def test_k_is_chosen_on_evidence_alone(effects, k):
    rows, why = selection(planted(effects))
    assert [r["share"] for r in rows if r["chosen"]] == [k] and why.startswith(f"k = {k:g} is chosen")
    assert selection(planted({0.1: 0, 0.3: 0}))[1].startswith("no k is chosen")
