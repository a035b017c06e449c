"""The supervised tokens of every condition, on every prompt format, token by token against a slow reading of
the rendered text."""

import random
import re
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.prompts.format import PromptFormat
from interp.prompts.styles import STYLES, Style
from interp.tasks.episodes import Decision, Episode, Step
from interp.training.supervision import ACTION, COT, TAG, Supervision, lot, supervised, written
from tests.conftest import handmade
from tests.prompts.test_formats import ROWS, made, tokenizer_of

SHARES = (0.1, 0.3, 0.5, 0.7)
CONDITIONS = [
    Supervision(),
    *(Supervision(action_mask=k) for k in SHARES),
    *(Supervision(random_mask=k) for k in SHARES),
    Supervision(only="action"),
    Supervision(only="cot"),
]
MIXTURES = [Supervision(trace_dropout=0.15), Supervision(replay=0.1), Supervision(only="prompt")]


def slow_parts(fmt, ids, agent, answered):
    """What each token is, from the text alone: tags are searched in it, and a token stands where decoding it
    puts it.

    answered: (example, trace, action) of each of the agent's turns, in order.
    """
    s, text, ends = fmt.style, fmt.text(ids), [len(fmt.text(ids[:n])) for n in range(len(ids) + 1)]
    cursor, turns = ends[agent.index(True)] - 1, []
    for example, trace, action in answered:
        turn = re.compile(
            rf"{re.escape(s.open_think.strip())}\s*(?P<cot>{re.escape(trace)})\s*{re.escape(s.close_think.strip())}\s*"
            rf"{re.escape(s.open_action.strip())}\s*(?P<action>{re.escape(action)})\s*{re.escape(s.close_action.strip())}"
        )
        found = turn.search(text, max(cursor, 0))
        cursor = found.end()
        turns.append((example, found))
    parts, examples = [], []
    for mine, (start, end) in zip(agent, pairwise(ends)):
        inside = {
            kind: example
            for example, found in turns
            for kind in ("cot", "action")
            if start < found.end(kind) and found.start(kind) < end
        }
        parts.append(0 if not mine else ACTION if "action" in inside else COT if "cot" in inside else TAG)
        examples.append(inside.get("action") or inside.get("cot"))
    return parts, examples


def check(fmt, items):
    """Every condition's supervised tokens of `items` (episodes or decisions), each token held against the
    slow reading."""
    plain = (
        [fmt.sequence(e) for e in items]
        if isinstance(items[0], Episode) and not fmt.style.native
        else [fmt.example(d) for item in items for d in item.decisions()]
    )
    if isinstance(items[0], Episode) and not fmt.style.native:
        answered = [[(f"{e.id}#{i}", s.trace, s.action) for i, s in enumerate(e.steps)] for e in items]
    else:
        answered = [[(d.id, d.trace, d.reference)] for item in items for d in item.decisions()]
    slow = []
    for (ids, agent), turns in zip(plain, answered, strict=True):
        start = (
            0 if len(turns) > 1 else agent.index(True)
        )  # earlier turns of a decision's prompt are not searched
        parts, examples = slow_parts(fmt, ids[start:], agent[start:], turns)
        slow.append(([0] * start + parts, [None] * start + examples))
    assert {p for parts, _ in slow for p in parts} == {0, TAG, COT, ACTION}
    for condition in CONDITIONS:
        found, counts = supervised(fmt, items, condition, seed=3)
        assert [ids for ids, _ in found] == [ids for ids, _ in plain]
        share = 1 if condition.only else max(condition.action_mask, condition.random_mask)
        unsupervised = wanted = 0
        for (_, keep), (_, agent), (parts, examples) in zip(found, plain, slow, strict=True):
            for i, (kept, mine, part, example) in enumerate(zip(keep, agent, parts, examples, strict=True)):
                chosen = example is not None and lot(example, 3) < share
                unsupervised, wanted = (
                    unsupervised + (mine and not kept),
                    wanted + (part == ACTION and chosen),
                )
                if condition.random_mask:
                    assert kept == mine or (chosen and part == COT), (condition, i)
                else:
                    assert kept == (
                        mine and not (chosen and part == (COT if condition.only == "action" else ACTION))
                    ), (condition, i)
        if condition.random_mask:
            for example in {e for _, examples in slow for e in examples if e and lot(e, 3) < share}:
                of = [
                    (kept, part)
                    for (_, keep), (parts, examples) in zip(found, slow)
                    for kept, part, e in zip(keep, parts, examples)
                    if e == example
                ]
                assert sum(not kept for kept, _ in of) == min(
                    sum(part == ACTION for _, part in of), sum(part == COT for _, part in of)
                )
            assert unsupervised == wanted - counts["short"]
        assert counts["unsupervised"] == unsupervised and counts["agent_tokens"] == sum(
            sum(agent) for _, agent in plain
        )
        assert counts["examples"] == sum(map(len, answered)) and counts["chosen"] == sum(
            lot(e, 3) < share for turns in answered for e, *_ in turns
        )
    assert supervised(fmt, items)[0] == plain


@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=["-".join([r["template"] or r["family"], r["family"], r["style"], r["conversation"]]) for r in ROWS],
)
def test_every_condition_on_every_format(row):
    fmt, decision = made(row)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # tags that merge with what they enclose are counted as what they enclose
        check(fmt, [replace(decision, episode=f"e{i}") for i in range(6)])
        check(fmt, [handmade(i, "train") for i in range(2)])


@pytest.mark.parametrize(
    "style",
    [s for s in STYLES if not STYLES[s].native] + [Style("[plan] ", " [/plan] ", "[do] ", " [/do]")],
    ids=str,
)
def test_every_condition_in_every_style_on_the_small_tokenizer(tokenizer, style):
    check(PromptFormat(tokenizer, style), [handmade(i, "train") for i in range(5)])


def test_every_condition_where_the_template_strips_the_beginning_of_a_turn():
    fmt = PromptFormat(
        tokenizer_of("llama", "llama3"), Style("\n\n<think>\n", "\n</think>\n", "<action>\n", "\n</action>\n")
    )
    assert "\n\n<think>" not in fmt.rendered(handmade(0, "train"))[0].replace(
        "<|end_header_id|>\n\n<think>", ""
    )
    check(fmt, [handmade(i, "train") for i in range(3)])


def test_every_style_is_checked():
    assert {r["style"] for r in ROWS} == set(STYLES)


def test_the_tokens_of_one_turn_are_what_they_should_be_by_eye(fmt):
    episode = Episode(
        "e",
        "train",
        "t",
        0,
        "go",
        "Please go.",
        (Step("I look.", "open drawer 1", "Open.", "open drawer 1"),),
        True,
    )
    [(ids, agent, _)] = written(fmt, episode)

    def said(part):
        return fmt.text([i for i, p in zip(ids, agent) if p == part])

    assert (said(TAG), said(COT), said(ACTION)) == (
        "<think></think><action></action>",
        "I look.",
        "open drawer 1",
    )
    assert (
        fmt.text(
            [i for i, k in zip(ids, supervised(fmt, [episode], Supervision(action_mask=1))[0][0][1]) if k]
        )
        == "<think>I look.</think><action></action>"
    )


def test_a_token_that_closes_an_action_and_holds_its_end_is_the_actions():
    """Braces merge with the line break of the closing tag in many vocabularies; the action's last characters
    must not stay supervised."""
    fmt = PromptFormat(tokenizer_of("llama", "llama3"), "llama3")
    call = '{"name": "go", "arguments": {}}'
    decision = Decision((dict(role="user", content="Go."),), call, (), "e", 0, "", "", "train", "I go.")
    [(ids, parts, _)] = written(fmt, decision)
    last = max(i for i, p in enumerate(parts) if p == ACTION)
    assert "}" in fmt.text([ids[last]]) and "}" not in fmt.text([i for i, p in zip(ids, parts) if p == TAG])


EPISODES = [handmade(i, "train") for i in range(12)]


@given(k=st.floats(0, 1), more=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_masks_are_nested_in_k_and_counts_are_those_of_the_control(fmt, k, more, seed):
    k, more = sorted((k, more))
    masks = {}
    for kind in ("action_mask", "random_mask"):
        for share in (k, more):
            sequences, counts = supervised(fmt, EPISODES[:3], Supervision(**{kind: share}), seed)
            masks[kind, share] = np.concatenate([keep for _, keep in sequences])
            assert (
                counts["short"] == 0
                and counts["unsupervised"] + masks[kind, share].sum() == counts["agent_tokens"]
            )
        assert (masks[kind, more] <= masks[kind, k]).all()
    for share in (k, more):
        assert masks["action_mask", share].sum() == masks["random_mask", share].sum()


@given(order=st.permutations(range(5)), seed=st.integers(0, 10**6))
def test_what_is_masked_does_not_depend_on_what_else_is_trained_on(fmt, order, seed):
    condition = Supervision(random_mask=0.5)
    whole = supervised(fmt, EPISODES[:5], condition, seed)[0]
    assert [whole[i] for i in order] == supervised(fmt, [EPISODES[i] for i in order], condition, seed)[0]


@pytest.mark.parametrize("style", ["tags", "react", "llama3"])
def test_a_step_without_its_trace_is_answered_right_at_the_boundary(tokenizer, style):
    fmt, condition = PromptFormat(tokenizer, style), Supervision(trace_dropout=0.4)
    sequences, counts = supervised(fmt, EPISODES, condition, seed=3)
    names = [f"{e.id}#{i}" for e in EPISODES for i in range(len(e.steps))]
    assert counts["bare"] == sum(lot(name, 3) < 0.4 for name in names) > 0
    assert counts["unsupervised"] == 0
    for episode, (ids, keep) in zip(EPISODES, sequences, strict=True):
        kept = [lot(f"{episode.id}#{i}", 3) >= 0.4 for i in range(len(episode.steps))]
        assert (ids, keep) == fmt.sequence(episode, kept)
        parts = next(written(fmt, episode, lambda name: lot(name, 3) < 0.4)).parts
        said = fmt.text([i for i, part in zip(ids, parts) if part == COT])
        assert all((step.trace in said) == has for step, has in zip(episode.steps, kept) if step.trace)


def test_a_decision_without_its_trace_is_its_prompt_and_its_action(fmt):
    decision = EPISODES[0].decisions()[1]
    [(ids, keep)], counts = supervised(fmt, [decision], Supervision(only="prompt"))
    prompt = fmt.prompt(decision).ids
    assert ids == [*prompt, *fmt.action_prefix(None), *fmt.action_ids(decision.reference)]
    assert keep == [False] * len(prompt) + [True] * (len(ids) - len(prompt)) and counts["bare"] == 1


@given(less=st.floats(0, 1), more=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_what_is_dropped_is_nested(less, more, seed):
    less, more = sorted((less, more))
    names = [f"e#{i}" for i in range(50)]
    small, large = (
        {n for n in names if Supervision(trace_dropout=k).without_trace(n, seed)} for k in (less, more)
    )
    assert small <= large


@given(seed=st.integers(0, 10**6))
def test_the_chosen_are_about_the_share(seed):
    drawn = np.array([lot(f"episode/{i}#{i % 7}", seed) for i in range(2000)])
    assert ((0 <= drawn) & (drawn < 1)).all()
    for k in SHARES:
        assert abs((drawn < k).mean() - k) < 5 * (k * (1 - k) / 2000) ** 0.5


def test_another_seed_masks_other_examples(fmt):
    first, again, other = (
        supervised(fmt, EPISODES, Supervision(action_mask=0.3), seed)[0] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_short_trace_is_counted(fmt):
    steps = (
        Step("Go.", "move the apple 1 to the desk 1", "Done.", "move the apple 1 to the desk 1"),
        Step("", "look", "You look.", "look"),
    )
    episode = Episode("e", "train", "t", 0, "go", "Please go.", steps, True)
    _, counts = supervised(fmt, [episode], Supervision(random_mask=1))
    parts = next(written(fmt, episode)).parts
    assert (
        counts["unsupervised"] == parts.count(COT) > 0
        and counts["short"] == parts.count(ACTION) - parts.count(COT) > 0
    )


def test_conditions_have_names_that_lead_back_to_them():
    every = [*CONDITIONS, *MIXTURES]
    assert len({condition.name for condition in every}) == len(every) and all(
        Supervision.named(condition.name) == condition for condition in every
    )
    assert (
        Supervision().name == "action_mask_0"
        and Supervision(random_mask=0.3).control_of == "action_mask_0.3"
        and not CONDITIONS[1].control_of
    )
    for name in (
        "action_mask",
        "action_mask_2",
        "action_mask_.3",
        "random_mask_0",
        "both_only",
        "only",
        "action_mask_nan",
        "x_0.3",
        "only_action",
    ):
        with pytest.raises(ValueError, match="no condition"):
            Supervision.named(name)


def test_impossible_conditions_are_refused():
    with pytest.raises(ValueError, match="0 to 1"):
        Supervision(action_mask=1.1)
    with pytest.raises(ValueError, match="One condition masks one thing"):
        Supervision(action_mask=0.1, random_mask=0.1)
    with pytest.raises(ValueError, match="only is"):
        Supervision(only="both")


def test_random_masks_are_spread_over_the_trace(fmt):
    """A control that always took the first tokens would pass every count."""
    rng = random.Random(0)
    words = " ".join(rng.choice(("apple", "mug", "pen", "book")) for _ in range(30))
    steps = tuple(Step(words, "look", "You look.", "look") for _ in range(200))
    episode = Episode("e", "train", "t", 0, "go", "Please go.", steps, True)
    [(_, keep)], _ = supervised(fmt, [episode], Supervision(random_mask=1))
    parts = np.array(next(written(fmt, episode)).parts)
    per_place = (~np.array(keep)[parts == COT]).reshape(200, -1).mean(0)
    assert per_place.min() > 0 and per_place.max() < 5 * per_place.mean()
