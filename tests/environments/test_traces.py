"""Traces of the household written again at other levels of leak, without its engine."""

import re
from dataclasses import replace

import pytest

from analyses.shipped import record, retrace
from interp.environments.alfworld import expert
from interp.environments.alfworld.expert import kind
from interp.environments.alfworld.traces import LEAKS, rewritten
from interp.tasks.episodes import load_corpus, save_episodes


@pytest.mark.parametrize("leak", LEAKS)
def test_traces_written_again_leak_what_their_level_says(leak):
    corpus = load_corpus()
    drawn = [e for split in ("train", "test_out_of_domain") for e in corpus[split][:60]]
    pairs = [(step, again) for e in drawn for step, again in zip(e.steps, rewritten(e, leak).steps)]
    assert [replace(again, trace=step.trace) for step, again in pairs] == [step for step, _ in pairs]
    named = [any(name in again.trace for name in _named(step.action)) for step, again in pairs]
    kinds = [any(kind(name) in again.trace for name in _named(step.action)) for step, again in pairs]
    numbers = [bool(re.search(r"\d", again.trace)) for _, again in pairs]
    assert all(named) == (leak == "full") and any(named) == (leak == "full")
    assert all(kinds) == (leak != "subgoal") and any(kinds) == (leak != "subgoal")
    assert any(numbers) == (leak == "full")
    assert rewritten(drawn[0], leak) == rewritten(drawn[0], leak)


def _named(action):
    return re.findall(r"[a-z]+ \d+", action)


def test_what_the_agent_knows_is_read_off_recorded_texts(engine):
    """The belief that traces are written from leads to the expert's recorded action at every test decision."""
    corpus = load_corpus()
    for episode in corpus["test_in_domain"][:100] + corpus["test_out_of_domain"][:100]:
        belief = expert.Belief(expert.Goal.read(episode.task), expert.listed(episode.start))
        for step in episode.steps:
            assert expert.act(belief, step.admissible) == step.reference
            belief.update(step.action, step.observation)


def test_a_task_or_a_level_that_there_is_not_is_a_sentence():
    with pytest.raises(ValueError, match="No goal can be read off the task 'juggle'"):
        expert.Goal.read("juggle")
    with pytest.raises(ValueError, match="no level of leak 'half': there are full, class, subgoal"):
        rewritten(load_corpus()["train"][0], "half")


def test_a_corpus_is_written_again_and_its_base_at_every_level(tmp_path):
    corpus = load_corpus()
    few = save_episodes(tmp_path / "few.jsonl.xz", [*corpus["base"][:12], *corpus["train"][:3]])
    for leak in ("class", "subgoal"):
        retrace.run(retrace.Config(out=tmp_path / f"{leak}.jsonl.xz", leak=leak, corpus=few))
    by_class, by_subgoal = (load_corpus(tmp_path / f"{leak}.jsonl.xz") for leak in ("class", "subgoal"))
    assert by_class["base"] == by_subgoal["base"] and by_class["train"] != by_subgoal["train"]
    assert by_subgoal["train"] == [rewritten(e, "subgoal") for e in corpus["train"][:3]]
    levels = {leak for e in by_class["base"] for leak in LEAKS if rewritten(e, leak).steps == e.steps}
    assert levels == set(LEAKS)


def test_the_shipped_traces_are_at_the_level_that_is_recorded_by_default():
    for split, episodes in load_corpus().items():
        assert retrace.retraced(episodes[:10], record.Config().leak) == episodes[:10], split
