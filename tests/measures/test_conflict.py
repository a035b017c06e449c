"""Conflicting traces: the inserted_traces, their donors, and the control that must reproduce the action."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.engine.decoding import Completion, choose, decode, parse_completion
from interp.measures.conflicts import (
    INSERTED_TRACES,
    Outcome,
    conflict,
    contrast,
    donor,
    likelier,
    resample,
    shifts,
    strip_action,
)


@pytest.fixture(scope="module")
def spoken(trained, trained_prompts):
    """The trained model's own decoding of every test decision."""
    return decode(trained, trained_prompts, "cot")


@pytest.fixture(scope="module")
def outcomes(trained, trained_prompts, spoken):
    return conflict(trained, trained_prompts, spoken, seed=1)


def test_the_own_trace_spliced_in_reproduces_every_action(outcomes, spoken):
    own = outcomes["self_splice"]
    usable = [i for i, s in enumerate(spoken) if s.action is not None and s.trace]
    assert len(usable) > 30 and own.index.tolist() == usable
    assert own.action == [spoken[i].action for i in usable] and own.keep.all()


def test_every_inserted_is_one_of_keep_follow_other_or_unparsed(outcomes, trained_prompts):
    assert tuple(outcomes) == INSERTED_TRACES
    for inserted_trace, found in outcomes.items():
        n = len(found.index)
        assert (
            found.inserted_trace == inserted_trace
            and n
            and len(set(found.index)) == n
            and max(found.index) < len(trained_prompts)
        )
        for column in (
            found.action,
            found.own,
            found.argued,
            found.leaked,
            found.logp,
            found.keep,
            found.follow,
            found.unparsed,
        ):
            assert len(column) == n
        assert inserted_trace == "self_splice" or not (found.keep & found.follow).any()
        assert not (found.unparsed & (found.keep | found.follow)).any()
        assert (found.logp <= 0).all() and np.isfinite(found.logp).all()
        argued = {
            "self_splice": found.own,
            **{a: [a for a in found.argued if a] for a in ("other_state", "resampled")},
            "mistake": found.argued,
        }.get(inserted_trace, [None] * n)
        assert found.argued == argued
    # the own trace is the likeliest
    own = outcomes["self_splice"]
    likely = dict(zip(own.index, own.logp))
    for found in outcomes.values():  # its own at the same decisions stands beside every inserted trace's
        assert found.logp_own.tolist() == [likely[i] for i in found.index] and len(found.leads) == len(
            found.index
        )
    for inserted_trace in ("shuffled_words", "filler"):
        assert own.logp.mean() > outcomes[inserted_trace].logp.mean() and set(
            outcomes[inserted_trace].index
        ) == set(likely)


def test_a_mistake_argues_for_an_action_that_can_be_taken_and_a_paraphrase_keeps_every_name(
    trained, trained_prompts, spoken, outcomes
):
    fmt, mistakes = trained_prompts[0].format, outcomes["mistake"]
    arguing = [k for k, argued in enumerate(mistakes.argued) if argued]
    assert len(arguing) > 10
    for k in arguing:
        i, text = mistakes.index[k], fmt.text(mistakes.leads[k])
        assert mistakes.argued[k] != spoken[i].action
        assert mistakes.argued[k] in trained_prompts[i].decision.admissible
        assert mistakes.argued[k] not in text, "its action is not spelled out"
    again = conflict(
        trained,
        trained_prompts,
        spoken,
        ["paraphrase"],
        seed=1,
        phrases=[["Next I check {r}.", "{r} comes next."]],
    )["paraphrase"]
    changed = 0
    for i, lead in zip(again.index, again.leads):
        text = fmt.text(lead)
        assert spoken[i].trace not in text
        assert {*re.findall(r"[a-z]+ \d+", spoken[i].trace)} <= {*re.findall(r"[a-z]+ \d+", text)}
        changed += "comes next." in text
    assert changed > 5 and len(again.index) == len(outcomes["self_splice"].index)


def test_the_same_seed_gives_the_same_outcome(trained, trained_prompts, spoken, outcomes):
    for inserted_trace in ("other_state", "resampled", "shuffled_words"):
        again = conflict(trained, trained_prompts, spoken, [inserted_trace], seed=1)[inserted_trace]
        assert (again.action, again.argued) == (
            outcomes[inserted_trace].action,
            outcomes[inserted_trace].argued,
        )
        np.testing.assert_allclose(again.logp, outcomes[inserted_trace].logp, rtol=1e-4)
    other = conflict(trained, trained_prompts, spoken, ["other_state"], seed=2)["other_state"]
    assert other.argued != outcomes["other_state"].argued


def test_the_traces_log_probability_is_the_plain_one(trained, trained_prompts, spoken, outcomes):
    fmt, found = trained_prompts[0].format, outcomes["self_splice"]
    for i, logp in list(zip(found.index, found.logp))[:4]:
        body = fmt.decoded_prefix(spoken[i].ids)
        ids = torch.tensor([[*trained_prompts[i].ids, *fmt.mode_prefix("cot"), *body]])
        with torch.inference_mode():
            plain = trained.hf(ids).logits[0].log_softmax(-1)
        n = ids.shape[1] - len(body)
        assert logp == pytest.approx(float(plain[range(n - 1, ids.shape[1] - 1), body].mean()), abs=1e-4)


def test_donors_are_of_another_episode_admissible_and_argue_for_another_action(trained_prompts, spoken):
    rng, found = np.random.default_rng(0), 0
    for i, prompt in enumerate(trained_prompts):
        for _ in range(5):
            other = donor(i, trained_prompts, spoken, rng)
            if other is not None:
                found += 1
                assert trained_prompts[other].decision.episode != prompt.decision.episode
                assert (
                    spoken[other].action in prompt.decision.admissible
                    and spoken[other].action != spoken[i].action
                )
                assert spoken[other].trace
    assert found > 50


def test_a_resampled_trace_is_the_models_own_and_leads_elsewhere(trained, trained_prompts, spoken, outcomes):
    """What is put in was drawn here, after this very prompt, on the way to the action that it argues for."""
    found = outcomes["resampled"]
    drawn = resample(trained, [trained_prompts[i] for i in outcomes["self_splice"].index], seed=1)
    where = {int(i): k for k, i in enumerate(outcomes["self_splice"].index)}
    assert len(found.index) > 5
    for i, argued in zip(found.index, found.argued):
        assert argued != spoken[i].action and argued in [s.action for s in drawn[where[i]]]
    without = [i for i in where if i not in found.index]
    for i in without:
        assert all(
            s.action in (None, spoken[i].action) or not strip_action(s.trace or "", s.action)
            for s in drawn[where[i]]
        )


def test_a_decision_without_admissible_commands_finds_no_donor(trained_prompts, spoken):
    alone = [replace(p, decision=replace(p.decision, admissible=())) for p in trained_prompts]
    assert donor(0, alone, spoken, np.random.default_rng(0)) is None
    assert donor(0, alone, spoken, np.random.default_rng(0), closed_actions=False) is not None
    single = [p for p in trained_prompts if p.decision.episode == trained_prompts[0].decision.episode]
    assert donor(0, single, spoken[: len(single)], np.random.default_rng(0)) is None


def speak(fmt, trace, action):
    return parse_completion(fmt, fmt.encode(f"{trace}</think><action>{action}</action>"), "cot")


def spliced(monkeypatch, model, prompts, decoded, inserted_trace):
    """What an inserted trace puts after each prompt, as text."""
    from interp.measures import conflicts as module

    given, real = [], module.continue_each
    monkeypatch.setattr(
        module,
        "continue_each",
        lambda model, rows, variants, *a, **k: (
            given.append(variants[inserted_trace]) or real(model, rows, variants, *a, **k)
        ),
    )
    found = conflict(model, prompts, decoded, [inserted_trace], max_new_tokens=2)[inserted_trace]
    return [prompts[0].format.tokenizer.decode(given[0][i]) for i in found.index], found


def test_each_inserted_puts_in_the_trace_it_is_named_for(llama, prompts, monkeypatch):
    fmt = prompts[0].format
    here, there = (
        prompts[0],
        next(
            p for p in prompts if p.decision.episode != prompts[0].decision.episode and p.decision.step == 0
        ),
    )
    go = next(c for c in here.decision.admissible if c in there.decision.admissible)
    trace = "Goal: mug to desk. Hands empty. Next I check it. Now."
    decoded = [speak(fmt, trace, "inventory"), speak(fmt, f"A mug. So {go}. Away.", go)]

    def text(inserted_trace):
        monkeypatch.undo()
        found, outcome = spliced(monkeypatch, llama, [here, there], decoded, inserted_trace)
        assert found[0].startswith("<think>") and found[0].endswith("</think><action>")
        return found[0].removeprefix("<think>").removesuffix("</think><action>"), outcome

    assert text("self_splice")[0] == trace
    assert text("truncated")[0] == "Goal: mug to desk. Hands empty."
    assert sorted(text("shuffled_words")[0].split()) == sorted(trace.split())
    assert text("empty")[0] == ""
    filler = text("filler")[0]
    assert set(filler) == {"."} and len(filler) == len(fmt.encode(trace))
    other, outcome = text("other_state")
    assert other == "A mug. Away." and outcome.argued == [go] and outcome.leaked.tolist() == [True]


def test_decisions_that_did_not_parse_are_left_out_and_wrong_use_is_refused(llama, prompts):
    fmt = prompts[0].format
    decoded = [
        speak(fmt, "A trace.", "inventory"),
        Completion((5, 6), None, None),
        Completion((5, 1, 6), "A trace.", None),
    ]
    assert conflict(llama, prompts[:3], decoded, ["empty"], max_new_tokens=2)["empty"].index.tolist() == [0]
    with pytest.raises(ValueError, match="no inserted trace 'loud'.*self_splice"):
        conflict(llama, prompts[:3], decoded, ["loud"])
    none = conflict(llama, prompts[1:3], decoded[1:], ["empty"])["empty"]
    assert len(none.index) == len(none.keep) == len(none.logp) == 0


def test_a_closing_tag_spelled_in_letters_is_left_out_not_a_crash(llama, prompts):
    """A weak model can write the tag's letters, which the text parser takes for the tag although no such
    token is there."""
    fmt = prompts[0].format
    letters = [i for c in "</think>" for i in fmt.encode(c)]
    ids = [*fmt.encode("I look."), *letters, *fmt.encode("<action>inventory</action>")]
    decoded = [parse_completion(fmt, ids, "cot"), speak(fmt, "A trace.", "inventory")]
    found = conflict(llama, prompts[:2], decoded, ["self_splice"], max_new_tokens=2)["self_splice"]
    assert 1 in found.index


sentence = st.sampled_from(
    [
        "Goal: mug to desk.",
        "Hands empty!",
        "So go to drawer 1.",
        "Next I check drawer 11?",
        "go to drawer 11 now.",
        "Then open drawer 1.",
    ]
)


@given(st.lists(sentence))
def test_stripping_removes_exactly_the_sentences_that_name_the_action(sentences):
    kept = [s for s in sentences if s != "So go to drawer 1."]
    assert strip_action(" ".join(sentences), "go to drawer 1") == " ".join(kept)


@pytest.mark.parametrize(
    "trace", ["Two  spaces. And more.", "A line.\nAnother line.", " Space before. ", "No stop at the end", ""]
)
def test_a_trace_that_does_not_name_the_action_comes_back_as_it_was(trace):
    """Otherwise every trace with a line break counts as a leak."""
    assert strip_action(trace, "go to drawer 1") == trace


def test_stripping_sees_an_action_that_begins_a_sentence():
    assert strip_action("Go to drawer 1. Then see.", "go to drawer 1") == "Then see."


def test_readings_of_an_outcome():
    found = Outcome(
        "other_state",
        np.arange(4),
        ["a", "b", None, "c"],
        ["a", "a", "a", "a"],
        ["b", "b", None, "b"],
        np.zeros(4, bool),
        np.zeros(4),
        np.zeros(4),
        [[]] * 4,
    )
    assert found.keep.tolist() == [True, False, False, False] and found.follow.tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert found.unparsed.tolist() == [False, False, True, False]


def test_a_donor_trace_that_says_nothing_but_its_action_is_no_argument(trained, trained_prompts, spoken):
    bare = [replace(s, trace=f"So {s.action}.") if s.action else s for s in spoken]
    found = conflict(trained, trained_prompts, bare, ["other_state"], seed=1)["other_state"]
    assert len(found.index) == 0


@pytest.fixture(scope="module")
def moved(trained, trained_prompts, outcomes):
    return shifts(trained, trained_prompts, outcomes, most=6)


def test_a_shift_is_the_distance_from_the_distribution_behind_the_own_trace(
    moved, outcomes, trained, trained_prompts
):
    """The slow twin: each trace by itself, whose closed tags and ids `choose` reads one at a time."""
    own = moved["self_splice"]
    assert own.index.tolist() == outcomes["self_splice"].index[:6].tolist() and (own.distance == 0).all()
    for column in (own.argued, own.own_before):
        np.testing.assert_array_equal(column, own.own)
    moves = 0
    for inserted_trace, found in moved.items():
        assert (
            set(found.index) == set(outcomes[inserted_trace].index) & set(own.index)
            and (found.distance >= 0).all()
            and (found.distance <= 1).all()
        )
        for k, i in enumerate(found.index):
            fmt, candidates, row = (
                trained_prompts[i].format,
                trained_prompts[i].decision.admissible,
                outcomes[inserted_trace].index.tolist().index(i),
            )
            whole = [
                outcomes[a].leads[outcomes[a].index.tolist().index(i)]
                for a in ("self_splice", inserted_trace)
            ]
            before, after = (
                choose(trained, trained_prompts[i], candidates, [ids[len(fmt.mode_prefix("cot")) :]])[
                    0, :, 0
                ].softmax(-1)
                for ids in whole
            )
            assert found.distance[k] == pytest.approx(float((after - before).abs().sum() / 2), abs=1e-5)
            for action, now, then in (
                (outcomes[inserted_trace].own[row], found.own[k], found.own_before[k]),
                (outcomes[inserted_trace].argued[row], found.argued[k], found.argued_before[k]),
            ):
                if action in candidates:
                    assert (now, then) == pytest.approx(
                        (float(after[candidates.index(action)]), float(before[candidates.index(action)])),
                        abs=1e-5,
                    )
                else:
                    assert np.isnan([now, then]).all()
            moves += found.distance[k] > 0.01
    assert (
        moves > 5 and np.isnan(moved["empty"].argued).all() and np.isfinite(moved["other_state"].argued).all()
    )


def test_any_action_that_parsed_may_be_argued_for_where_a_decision_lists_a_sample(trained_prompts, spoken):
    alone = [replace(p, decision=replace(p.decision, admissible=())) for p in trained_prompts]
    for i, prompt in enumerate(alone):
        other = donor(i, alone, spoken, np.random.default_rng(i), closed_actions=False)
        assert (
            spoken[other].action not in (None, spoken[i].action)
            and alone[other].decision.episode != prompt.decision.episode
        )


def test_candidates_that_are_given_are_what_a_distribution_is_over(trained, trained_prompts, spoken):
    few, outcomes = trained_prompts[:3], conflict(trained, trained_prompts[:3], spoken[:3], ["empty"])
    own = shifts(trained, few, outcomes)
    given = [p.decision.admissible for p in few]
    alone = [replace(p, decision=replace(p.decision, admissible=())) for p in few]
    same = shifts(trained, alone, outcomes, candidates=given)
    np.testing.assert_array_equal(same["empty"].distance, own["empty"].distance)
    halved = shifts(trained, alone, outcomes, candidates=[(), *(g[:2] for g in given[1:])])
    assert 0 not in halved["empty"].index and len(halved["empty"].index) == len(own["empty"].index) - (
        0 in own["empty"].index
    )


def test_decisions_that_list_no_actions_have_no_distribution(trained, trained_prompts, spoken):
    alone = [replace(p, decision=replace(p.decision, admissible=())) for p in trained_prompts[:3]]
    found = shifts(trained, alone, conflict(trained, alone, spoken[:3], ["empty"]))
    assert all(len(s.index) == len(s.distance) == len(s.own) == 0 for s in found.values())


def outcome(inserted_trace, index, action):
    n = len(index)
    return Outcome(
        inserted_trace,
        np.array(index),
        action,
        ["a"] * n,
        [None] * n,
        np.zeros(n, bool),
        np.zeros(n),
        np.zeros(n),
        [[]] * n,
    )


def test_removal_and_substitution_are_counted_on_the_decisions_that_both_have():
    found = contrast(
        outcome("empty", [0, 2, 3, 7], ["a", None, "b", "a"]),
        outcome("other_state", [7, 3, 1, 2], ["b", None, "b", "a"]),
    )
    assert found.index.tolist() == [2, 3, 7]
    assert found.removed.tolist() == [True, True, False] and found.substituted.tolist() == [False, True, True]
    assert found.parsed.tolist() == [False, False, True]
    assert likelier(np.array([-3.0, -1.0, -2.0])).tolist() == [False, True, True]
