"""Behaviour on decodings whose answer is known, and a run of the tiny series."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from analyses.behaviour import Config, measure
from analyses.both_modes import differ, side_by_side
from interp.engine.decoding import Completion
from interp.environments.base import as_recorded
from interp.results.decisions import read_decisions
from interp.results.names import NO_TRACES
from interp.results.tables import read_table
from interp.tasks.episodes import Decision, load_episodes
from tests.command_line import main

LISTED = ("right", "wrong", "third")


def measured(prompt, cot, admissible=LISTED, closed=True, **others):
    """Rows by metric of what was said at decisions whose right action is called so."""
    decisions = [
        Decision([dict(role="user", content="Go.")], "right", admissible, episode=f"episode {i}")
        for i in range(len(prompt))
    ]
    said = dict(prompt=prompt, cot=cot, **others)
    completions = {mode: [Completion((), None, a) for a in actions] for mode, actions in said.items()}
    return pd.DataFrame(measure(completions, decisions, as_recorded, 0, closed)).set_index("metric")


def test_two_actions_that_do_not_parse_do_not_agree():
    rows = measured([None] * 4 + ["right"] * 4, [None] * 4 + ["right"] * 4)
    assert rows.loc["agreement", "value"] == rows.loc["revision", "value"] == 0.5
    assert rows.loc["revision_neutral", "value"] == 0.5, "neither is right"
    assert rows.loc["kappa", "value"] == pytest.approx((0.5 - 0.25) / 0.75), "of three labels"
    assert rows.loc["agreement_parsed", "value"] == 1 and rows.loc["agreement_parsed", "n"] == 4


def test_an_unparsed_action_is_wrong_and_a_revision_of_any_other():
    rows = measured(["right", None, "wrong", None], [None, "right", None, None])["value"]
    assert rows["revision"] == 1 and rows["agreement"] == 0
    assert (rows["revision_helpful"], rows["revision_harmful"], rows["revision_neutral"]) == (0.25, 0.25, 0.5)
    assert (rows["acc_prompt"], rows["acc_cot"], rows["gap"]) == (0.25, 0.25, 0)
    assert (rows["parse_prompt"], rows["parse_cot"]) == (0.5, 0.25)


def test_rates_over_what_parses_are_those_of_the_parsed_decisions_alone():
    rng = np.random.default_rng(0)
    actions = np.array([*LISTED, None], dtype=object)
    prompt, cot = (rng.choice(actions, 80).tolist() for _ in range(2))
    rows = measured(prompt, cot)
    both = [(a, b) for a, b in zip(prompt, cot) if a and b]
    alone = measured(*map(list, zip(*both)))
    for metric in (
        "acc_prompt",
        "acc_cot",
        "gap",
        "headroom_gap",
        "agreement",
        "revision",
        "revision_helpful",
        "kappa",
    ):
        assert rows.loc[f"{metric}_parsed", "value"] == pytest.approx(alone.loc[metric, "value"]), metric
        assert rows.loc[f"{metric}_parsed", "n"] == len(both) < rows.loc[metric, "n"] == 80
    assert alone.loc["kappa", "value"] == pytest.approx(cohen_kappa_score(*zip(*both)))
    apart = ([a or "no prompt action" for a in prompt], [b or "no CoT action" for b in cot])
    assert rows.loc["kappa", "value"] == pytest.approx(cohen_kappa_score(*apart))


def test_where_nothing_parses_the_rates_of_what_does_are_of_nothing():
    rows = measured([None] * 3, ["right"] * 3)
    assert np.isnan(rows.loc["gap_parsed", "value"]) and rows.loc["kappa_parsed", "n"] == 0
    assert np.isnan(rows.loc["admissible_prompt", "value"]) and rows.loc["gap", "value"] == 1


def test_admissibility_is_a_share_of_the_parsed_actions():
    prompt, cot = ["right", "wrong", "sing", None], ["right", "third", "wrong", "right"]
    rows = measured(prompt, cot, empty_think=[None, None, "sing", "dance"])
    assert (
        rows.loc["admissible_prompt", "value"] == pytest.approx(2 / 3)
        and rows.loc["admissible_prompt", "n"] == 3
    )
    assert rows.loc["admissible_cot", "value"] == 1 and rows.loc["admissible_empty_think", "value"] == 0
    assert rows.loc["admissible_prompt", "low"] < 2 / 3 < rows.loc["admissible_prompt", "high"]
    for unlisted in (measured(prompt, cot, admissible=()), measured(prompt, cot, closed=False)):
        assert not unlisted.index.str.startswith("admissible").any(), "the environment does not list them"


def test_the_prompt_action_without_traces_is_paired_with_the_one_that_had_them():
    rows = measured(
        ["right", "right", "wrong", None], ["right"] * 4, **{NO_TRACES: ["right", "wrong", None, None]}
    )
    assert rows.loc[f"acc_{NO_TRACES}", "value"] == 0.25 and rows.loc[f"parse_{NO_TRACES}", "value"] == 0.5
    assert rows.loc[f"{NO_TRACES}_difference", "value"] == -0.25 and rows.loc["gap", "value"] == 0.5
    assert rows.loc[f"admissible_{NO_TRACES}", "n"] == 2


def test_both_modes_side_by_side_judge_only_what_parsed():
    decision = Decision([dict(role="user", content="Go.")], "right")
    asked = []
    both = side_by_side(
        [decision] * 2, [None, "right"], ["right", None], lambda _, a: asked.append(a) or True
    )
    assert asked == ["right", "right"] and differ(both).all() and not both["parsed"].any()
    assert both["prompt"].tolist() == [False, True] and both["cot"].tolist() == [True, False]


@pytest.fixture(scope="module")
def options(series_folder):
    words = ("--series", series_folder, "--device", "cpu", "--decisions", 12)
    return (*words, "--checkpoints", 110, "--splits", "in_domain")


def test_a_full_study_reads_every_decision_by_forced_choice_and_what_the_history_s_traces_are_worth(
    options, series_folder, corpus_file, tmp_path
):
    run = tmp_path / "run"
    assert main("behaviour", "--run", run, "--corpus", corpus_file, "--size", "full", *options) == 0
    frame = read_table(run / "tables", "behaviour")[0].set_index("metric")
    assert set(frame.loc[["choice_prompt_sum", "choice_gap_sum", "gap", f"{NO_TRACES}_difference"], "n"]) == {
        12
    }
    value = frame["value"]
    assert value["choice_gap_mean"] == pytest.approx(
        value["choice_cot_mean"] - value["choice_prompt_mean"], abs=1e-5
    )
    difference = value[f"acc_{NO_TRACES}"] - value["acc_prompt"]
    assert value[f"{NO_TRACES}_difference"] == pytest.approx(difference, abs=1e-5)
    config = Config(run=run, series=series_folder, corpus=corpus_file, device="cpu", decisions=12)
    shown, bare = config.prompts("in_domain"), config.prompts_without_traces("in_domain")
    assert [a.decision for a in shown] == [b.decision for b in bare]
    for a, b in zip(shown, bare):
        texts = [prompt.format.text(prompt.ids) for prompt in (a, b)]
        assert texts[1].count("<think>") == 0 and texts[0].count("<think>") == a.decision.step
    assert len(list((run / "partial" / "decoded").glob(f"110-in_domain-{NO_TRACES}-*.json"))) == 1
    assert main("decisions", "--run", run, "--corpus", corpus_file, *options) == 0
    rows, _ = read_decisions(run / "tables")
    bare = rows[rows["mode"] == NO_TRACES]
    assert len(bare) == 12 and bare["is_correct"].mean() == pytest.approx(value[f"acc_{NO_TRACES}"], abs=1e-5)
    assert bare[["actions_differ", "flipped", "candidates"]].isna().all(axis=None)
    assert "prompt action, no traces in the history" in (run / "decisions.html").read_text()


def test_histories_without_traces_are_not_decoded_again(options, corpus_file, tmp_path):
    file = tmp_path / "bare.jsonl"
    with file.open("w") as lines:
        for episode in load_episodes(corpus_file)[:20]:
            for d in episode.decisions():
                row = dict(
                    messages=episode.messages(d.step, traces=False), reference=d.reference, episode=d.episode
                )
                lines.write(json.dumps(row | dict(step=d.step, split="test_in_domain")) + "\n")
    run = tmp_path / "run"
    for flags in (("--corpus", corpus_file, "--history_traces", "dropped"), ("--corpus", file)):
        assert main("behaviour", "--run", run, *options, "--choices", 2, *flags) == 0
        metrics = read_table(run / "tables", "behaviour")[0]["metric"]
        assert not metrics.str.contains(NO_TRACES).any() and "acc_prompt" in set(metrics)
