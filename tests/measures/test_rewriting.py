"""Own traces with a name mistaken and in other words: what changes, and what must not."""

import random
import re

import numpy as np
import pytest

from interp.environments.alfworld.traces import LEAKS, PHRASES, rewritten
from interp.environments.base import ANY, find
from interp.measures.rewriting import mistaken, paraphrased, sentences
from interp.tasks.episodes import load_corpus

PROMPT = "You see a drawer 1, a drawer 3, a drawer 11, a mug 1 and a pen 1."
NAME = re.compile(r"\b[a-z]+ \d+\b")


@pytest.fixture(scope="module")
def traces():
    """Traces of one episode in twenty at each level of leak."""
    episodes = load_corpus()["test_in_domain"][::20]
    return {leak: [s.trace for e in episodes for s in rewritten(e, leak).steps] for leak in LEAKS}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_mistake_replaces_one_name_everywhere_by_another_of_its_class(rng):
    trace = "No mug in drawer 11. Next I check drawer 1, yes drawer 1."
    seen = set()
    for _ in range(30):
        mistake = mistaken(trace, "go to drawer 1", PROMPT, rng)
        other = mistake.action.removeprefix("go to ")
        seen.add(other)
        assert mistake.trace == trace.replace("drawer 1,", f"{other},").replace(
            "yes drawer 1", f"yes {other}"
        )
    assert seen == {"drawer 3", "drawer 11"}


def test_a_mistake_is_of_the_actions_name_where_it_can_be(rng):
    trace, action = "I hold pen 1. drawer 1 is next.", "open drawer 1"
    assert mistaken(trace, action, PROMPT, rng).action in ("open drawer 3", "open drawer 11")
    only = mistaken(trace, action, PROMPT, rng, possible=lambda other: other == "open drawer 3")
    assert only == ("I hold pen 1. drawer 3 is next.", "open drawer 3")
    # a name that the action does not have argues for nothing
    assert mistaken("drawer 1 is shut.", "look", PROMPT, rng).action is None
    # what could not be done is argued for by no trace
    assert mistaken(trace, action, PROMPT, rng, possible=lambda other: False) is None


def test_names_without_a_number_are_exchanged_as_the_environment_says(rng):
    trace, action = "mug 1 is here, pick it up.", "take mug 1 from drawer 1"
    assert mistaken(trace, action, PROMPT, rng) is None, "the prompt has one mug"
    mistake = mistaken(trace, action, PROMPT, rng, swaps=[("mug", "pen"), ("mug", "fork")])
    assert mistake == ("pen 1 is here, pick it up.", "take pen 1 from drawer 1")
    assert mistaken("It is not found yet.", action, PROMPT, rng, swaps=[("mug", "pen")]) is None


def test_a_paraphrase_keeps_names_and_number_of_sentences_and_is_another_text(traces):
    for leak, texts in traces.items():
        reworded = 0
        for number, trace in enumerate(texts):
            again = paraphrased(trace, PHRASES, np.random.default_rng(number))
            assert again is not None and again != trace
            assert sorted(NAME.findall(again)) == sorted(NAME.findall(trace)), (trace, again)
            assert len(sentences(again)) == len(sentences(trace))
            reworded += sorted(again.split()) != sorted(trace.split())
        assert reworded > 0.95 * len(texts), leak


def test_what_is_no_phrase_is_put_in_another_order_or_left_out(rng):
    assert paraphrased("One. Two. Three.", PHRASES, rng) == "Two. Three. One."
    assert paraphrased("One thing alone.", PHRASES, rng) is None
    again = paraphrased("Braces {r} stay. Next I check drawer 1.", [["Next I check {r}.", "{r}: next."]], rng)
    assert again == "Braces {r} stay. drawer 1: next."
    assert paraphrased("a a is.", [["{x} {x} is.", "{x}, {x}."]], rng) == "a, a."
    assert paraphrased("a b is.", [["{x} {x} is.", "{x}, {x}."]], rng) is None


def test_only_phrases_with_the_same_slots_say_the_same(rng):
    group = ["{x} can be left here.", "Put {x} down at {r}."]
    assert paraphrased("mug 1 can be left here.", [group], rng) is None


def test_mistakes_of_traces_that_name_nothing_are_none(traces):
    rng, numbers = np.random.default_rng(0), random.Random(0)
    named = [t for t in traces["full"] if NAME.search(t)]
    assert any(mistaken(t, "look", " ".join(named), rng) for t in numbers.sample(named, 5))
    for trace in traces["subgoal"]:
        assert mistaken(trace, "go to drawer 1", PROMPT, rng) is None


def test_environments_say_which_phrases_are_alike():
    assert ANY.phrases == () and find("alfworld").phrases == PHRASES
    for group in PHRASES:
        assert len(group) > 1
