"""Early answering: the action after a part of the own trace."""

import re
from dataclasses import replace

import numpy as np
import pytest

from analyses.early import by_sentences
from interp.engine.decoding import Completion, choose, decode, parse_completion
from interp.measures.early import EarlyAnswers, early_answers


@pytest.fixture(scope="module")
def spoken(trained, trained_prompts):
    return decode(trained, trained_prompts[:24], "cot")


@pytest.fixture(scope="module")
def found(trained, trained_prompts, spoken):
    return early_answers(trained, trained_prompts[:24], spoken)


def test_the_whole_trace_gives_the_own_action_and_distribution(found, spoken):
    assert (
        found.index.tolist() == [i for i, s in enumerate(spoken) if s.action is not None and s.trace]
        and len(found.index) > 10
    )
    for share, same, distance, filler in zip(found.share, found.same, found.distance, found.filler):
        assert filler[0] == same[0] and len(filler) == len(same)  # no full stops are no trace
        assert (
            share[0] == 0
            and share[-1] == 1
            and (np.diff(share) > 0).all()
            and len(share) == len(same) == len(distance) <= 5
        )
        assert same[-1] and distance[-1] == 0 and (distance >= 0).all() and (distance <= 1).all()


def test_each_part_is_decoded_as_that_trace_by_itself(found, trained, trained_prompts, spoken):
    """The slow twin: every cut trace after its prompt, one at a time."""
    from interp.engine.generation import continue_each

    for k, i in list(enumerate(found.index))[:5]:
        prompt, sentences = trained_prompts[i], spoken[i].trace.split(". ")
        fmt, n = prompt.format, len(sentences)
        for share, same, distance in zip(found.share[k][:-1], found.same[k], found.distance[k]):
            kept = round(share * n)
            trace = ". ".join(sentences[:kept]) + "." * (0 < kept < n) or None  # at first the tag alone
            ids = continue_each(
                trained, [prompt.ids], dict(a=[fmt.action_prefix(trace)]), fmt.ended("prompt"), 24
            )["a"][0].ids
            assert (parse_completion(fmt, ids, "prompt").action == spoken[i].action) == same
            own = fmt.decoded_prefix(spoken[i].ids)
            p, q = (
                choose(trained, prompt, prompt.decision.admissible, [t])[0, :, 0].double().softmax(-1).numpy()
                for t in (trace, own)
            )
            assert distance == pytest.approx(abs(p - q).sum() / 2, abs=1e-4)


def test_the_first_point_is_the_prompt_action_and_sentences_are_counted(
    found, trained, trained_prompts, spoken
):
    prompt = decode(trained, trained_prompts[:24], "prompt")
    for k, i in enumerate(found.index):
        assert found.same[k][0] == (prompt[i].action == spoken[i].action)
        assert found.sentences[k] == len(re.split(r"(?<=[.!?])\s+", spoken[i].trace))


def test_areas_are_those_of_traces_of_each_length():
    columns = dict(area_action=np.array([0.0, 0.5, 1.0]), area_distribution=np.array([0.1, np.nan, 0.3]))
    by_length = by_sentences(columns, np.array([2, 9, 2]))
    assert set(by_length) == {
        f"area_{what}_sentences_{n}" for what in ("action", "distribution") for n in ("2", "6_or_more")
    }
    np.testing.assert_array_equal(by_length["area_action_sentences_2"], [0, np.nan, 1])
    np.testing.assert_array_equal(by_length["area_action_sentences_6_or_more"], [np.nan, 0.5, np.nan])
    assert np.isnan(by_length["area_distribution_sentences_6_or_more"]).all()


def test_filler_is_as_long_as_the_part_it_stands_for(trained, trained_prompts, spoken, monkeypatch):
    from interp.measures import early as module

    given, real = [], module.continue_each
    monkeypatch.setattr(
        module,
        "continue_each",
        lambda model, rows, variants, *a, **k: given.append(variants) or real(model, rows, variants, *a, **k),
    )
    found = early_answers(trained, trained_prompts[:24], spoken, choices=2)
    fmt, read = trained_prompts[0].format, 0
    for k, i in enumerate(found.index):
        for p, share in enumerate(found.share[k]):
            if 0 < share < 1:
                part, dots = given[0][f"trace{p}"][i], given[0][f"filler{p - 1}"][i]
                assert len(part) == len(dots) and set(
                    fmt.text(dots).removeprefix("<think>").removesuffix("</think><action>")
                ) <= {"."}
                read += len(dots) > 8
    assert read > 5
    assert [len(d) > 0 for d in found.distance] == [
        k < 2 for k in range(len(found.index))
    ]  # distributions of the first two only


def test_areas_and_curves_are_those_of_the_steps():
    flat = np.array([0, 0.25, 0.5, 0.75, 1])
    one = EarlyAnswers(
        np.arange(3),
        [flat, flat, np.array([0, 1.0])],
        [np.array([1, 1, 1, 1, 1]) > 0, np.array([0, 0, 0, 0, 1]) > 0, np.array([0, 1]) > 0],
        [np.zeros(5), np.array([1, 1, 0.5, 0, 0]), np.array([])],
        [np.zeros(5) > 0, np.array([0, 0, 0, 1, 1]) > 0, np.array([1, 1]) > 0],
    )
    np.testing.assert_allclose(one.area(), [0, 0.875, 0.5])
    np.testing.assert_allclose(one.area("distribution"), [0, 0.5, np.nan])
    np.testing.assert_array_equal(one.curve([0, 0.6, 1]), [[1, 1, 1], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(one.area("filler"), [1, 0.625, 0])
    with pytest.raises(ValueError, match="not of 'text'"):
        one.area("text")


def test_decisions_without_a_trace_an_action_or_candidates(trained, trained_prompts, spoken):
    mute = [
        Completion(s.ids, None, s.action) if i % 2 else Completion(s.ids, s.trace, None)
        for i, s in enumerate(spoken)
    ]
    empty = early_answers(trained, trained_prompts[:24], mute)
    assert len(empty.index) == 0 == len(empty.area()) and empty.curve([0, 1]).shape == (0, 2)
    alone = [replace(p, decision=replace(p.decision, admissible=())) for p in trained_prompts[:3]]
    some = early_answers(trained, alone, spoken[:3])
    assert np.isnan(some.area("distribution")).all() and np.isfinite(some.area()).all()
    given = early_answers(
        trained, alone, spoken[:3], candidates=[p.decision.admissible for p in trained_prompts[:3]]
    )
    np.testing.assert_array_equal(
        given.area("distribution"),
        early_answers(trained, trained_prompts[:3], spoken[:3]).area("distribution"),
    )
    with pytest.raises(ValueError, match="at least 2 points"):
        early_answers(trained, trained_prompts[:2], spoken[:2], points=1)
