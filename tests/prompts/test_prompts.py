"""Prompts: the boundary, the spans, the training sequence and the parser; episodes on disk."""

import copy
import json
import lzma
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.prompts.format import MODES, SPANS, PromptFormat
from interp.prompts.styles import STYLES, Style
from interp.tasks.episodes import load_corpus, load_episodes, sample_decisions, save_episodes
from interp.training.trainer import CHAT_TEMPLATE

TAGS = STYLES["tags"]


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def positions_of(ids, part):
    return [i for i in range(len(ids) - len(part) + 1) if list(ids[i : i + len(part)]) == list(part)]


def test_the_boundary_is_the_agents_opening_in_every_mode(fmt, prompts):
    agent = fmt.tokenizer.convert_tokens_to_ids("<|agent|>")
    tags = {"cot": "<think>", "prompt": "<action>", "empty_think": "<think></think><action>"}
    for prompt in prompts:
        assert prompt.boundary == len(prompt.ids) - 1 and prompt.ids[prompt.boundary] == agent
        for mode in MODES:
            text = fmt.tokenizer.decode([*prompt.ids, *fmt.mode_prefix(mode)])
            assert text.endswith("<|agent|>" + tags[mode])


def test_every_token_has_exactly_one_span(prompts):
    for prompt in prompts:
        assert len(prompt.spans) == len(prompt.ids) and set(prompt.spans) <= set(SPANS)
        assert sum(len(prompt.positions(s)) for s in SPANS) == len(prompt.ids)
        assert prompt.positions("boundary").tolist() == [prompt.boundary]


def test_spans_hold_the_text_they_are_named_for(fmt, prompts):
    for prompt in prompts:
        decision = prompt.decision
        text = {s: fmt.tokenizer.decode([prompt.ids[i] for i in prompt.positions(s)]) for s in SPANS}
        assert text["task"].strip() == decision.task
        if decision.step:
            assert text["observation"] == decision.messages[-1]["content"]
            assert all(fmt.history.content(m) in text["history"] for m in decision.messages[1:-1])
        else:
            assert (
                text["observation"] + text["task"] == decision.messages[0]["content"] and not text["history"]
            )
        assert (
            text["template"].replace("<|end|>", "").replace("<|user|>", "").replace("<|agent|>", "")
            == "<|bos|>"
        )


@pytest.mark.parametrize("observation", ["user", "end", "agent", "s", "<"])
def test_an_observation_that_is_also_a_word_of_the_template_is_placed_right(fmt, prompts, observation):
    decision = prompts[1].decision
    last = dict(role="user", content=observation)
    prompt = fmt.prompt(replace(decision, messages=(*decision.messages[:-1], last)))
    own = len(fmt.encode(observation))
    assert prompt.positions("observation").tolist() == list(
        range(prompt.boundary - 1 - own, prompt.boundary - 1)
    )


def test_each_decisions_prompt_is_a_prefix_of_its_training_sequence(fmt, episodes):
    for episode in episodes["train"]:
        ids, _ = fmt.sequence(episode)
        for decision in episode.decisions():
            prompt = fmt.prompt(decision)
            assert tuple(ids[: len(prompt.ids)]) == prompt.ids


@pytest.mark.parametrize("traces", [True, False, "mixed"])
def test_supervised_tokens_are_exactly_the_agents_turns(fmt, episodes, traces):
    for episode in episodes["train"][:8]:
        keep = [i % 2 == 0 for i in range(len(episode.steps))] if traces == "mixed" else traces
        ids, agent = fmt.sequence(episode, keep)
        turns = [fmt.history.content(m) for m in episode.messages(traces=keep) if m["role"] == "agent"]
        assert all(
            TAGS.open_action in t
            and (TAGS.open_think in t) == (traces is True or traces == "mixed" and i % 2 == 0)
            for i, t in enumerate(turns)
        )
        assert fmt.tokenizer.decode([i for i, mine in zip(ids, agent) if mine]) == "".join(turns)
        others = "".join(m["content"] for m in episode.messages(traces=keep) if m["role"] == "user")
        left = fmt.tokenizer.decode([i for i, mine in zip(ids, agent) if not mine])
        for marker in ("<|bos|>", "<|user|>", "<|agent|>", "<|end|>"):
            left = left.replace(marker, "")
        assert left == others


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="<>"), max_size=40)


@given(trace=text, action=text.filter(str.strip))
def test_parsing_gives_back_what_was_written(fmt_for_parsing, trace, action):
    s = TAGS
    closed = f"{action}{s.close_action}"
    assert fmt_for_parsing.parse(f"{trace}{s.close_think}{s.open_action}{closed}", "cot") == (
        trace.strip(),
        action.strip(),
    )
    assert fmt_for_parsing.parse(closed + trace, "prompt") == (None, action.strip())
    assert fmt_for_parsing.parse(closed, "empty_think") == (None, action.strip())
    assert fmt_for_parsing.parse(action, "prompt") == (None, None)
    assert fmt_for_parsing.parse(f"{trace}{s.close_think}{s.open_action}{action}", "cot") == (
        trace.strip(),
        None,
    )
    assert fmt_for_parsing.parse(f"{trace}{s.close_think} then {closed}", "cot") == (trace.strip(), None)
    assert fmt_for_parsing.parse(trace, "cot") == (None, None)


@pytest.fixture(scope="module")
def fmt_for_parsing(fmt):
    return fmt


def test_a_trace_as_text_and_as_ids_gives_the_same_continuation(fmt, episodes):
    step = episodes["train"][0].steps[0]
    ids = fmt.with_trace(step.trace)
    assert fmt.with_trace(fmt.encode(step.trace)) == ids
    assert fmt.tokenizer.decode(ids) == f"<think>{step.trace}</think><action>"
    assert fmt.with_trace("") == fmt.with_trace([]) == fmt.mode_prefix("empty_think")


@pytest.mark.parametrize(
    "template, words",
    [
        (None, "no chat template"),
        (CHAT_TEMPLATE.split("{% if add")[0], "no findable boundary"),
        (
            "{% if add_generation_prompt %}<|agent|>{% else %}" + CHAT_TEMPLATE + "{% endif %}",
            "no findable boundary",
        ),
    ],
)
def test_a_template_without_a_boundary_is_refused(tokenizer, template, words):
    with pytest.raises(ValueError, match=words):
        PromptFormat(with_template(tokenizer, template))


LOSSY = {
    "drops the first turn": CHAT_TEMPLATE.replace(
        "in messages %}", "in (messages[1:] if messages|length > 1 else messages) %}"
    ),
    "strips earlier thoughts": CHAT_TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]"),
}


@pytest.mark.parametrize("template", LOSSY.values(), ids=LOSSY.keys())
def test_a_template_that_loses_text_is_refused_for_prompts_and_sequences(tokenizer, episodes, template):
    fmt = PromptFormat(with_template(tokenizer, template))
    with pytest.raises(ValueError, match="template changes message"):
        fmt.prompt(episodes["train"][0].decisions()[1])
    with pytest.raises(ValueError, match="template"):
        fmt.sequence(episodes["train"][0])


def test_a_template_that_trims_its_messages_serves_prompts_and_sequences(tokenizer, episodes):
    fmt = PromptFormat(
        with_template(tokenizer, CHAT_TEMPLATE.replace("m['content']", "m['content'].strip()"))
    )
    episode = replace(episodes["train"][0], start=" " + episodes["train"][0].start + "\n")
    prompt = fmt.prompt(episode.decisions()[0])
    assert tuple(fmt.sequence(episode)[0][: len(prompt.ids)]) == prompt.ids


def test_a_task_that_is_in_no_message_is_refused(fmt, prompts):
    with pytest.raises(ValueError, match="task of decision"):
        fmt.prompt(replace(prompts[0].decision, task="fly to the moon"))


def test_unknown_names_are_refused_with_the_known_ones(tokenizer, fmt, prompts):
    with pytest.raises(ValueError, match="no prompt style 'xml'.*tags"):
        PromptFormat(tokenizer, "xml")
    with pytest.raises(ValueError, match="no decoding mode.*cot"):
        fmt.mode_prefix("loud")
    with pytest.raises(ValueError, match="no span.*boundary"):
        prompts[0].positions("middle")


def test_hashes_tell_templates_styles_and_prompts_apart(tokenizer, fmt, prompts):
    other = PromptFormat(
        with_template(tokenizer, CHAT_TEMPLATE.replace("bos_token }}", "bos_token }}You act. "))
    )
    own = PromptFormat(tokenizer, Style("<t>", "</t>", "<a>", "</a>"))
    assert len({fmt.hash, other.hash, own.hash}) == 3 and PromptFormat(tokenizer).hash == fmt.hash
    contents = Counter(p.ids for p in prompts)
    assert len({p.hash for p in prompts}) == len(contents)


def test_episodes_come_back_from_disk_and_equal_ones_give_equal_bytes(episodes, tmp_path):
    group = episodes["test_in_domain"]
    first, second = (save_episodes(tmp_path / name, group) for name in ("a.jsonl.xz", "b/c.jsonl.xz"))
    assert first.read_bytes() == second.read_bytes() and load_episodes(first) == group
    (tmp_path / "plain.jsonl").write_text(lzma.decompress(first.read_bytes()).decode())
    assert load_corpus(tmp_path / "plain.jsonl") == {"test_in_domain": group}


def damaged(path, group, how):
    data = save_episodes(path, group).read_bytes()
    plain = lzma.decompress(data).decode().splitlines()
    broken = {
        "cut": data[: len(data) // 2],
        "flipped": data[:300] + bytes([data[300] ^ 255]) + data[301:],
        "nothing": b"",
        "noise": b"\xff\xfe\x00 not a corpus",
    }
    if how in broken:
        path.write_bytes(broken[how])
        return path
    rows = {
        "not json": "{",
        "no steps": "{}",
        "a list": "[1]",
        "unknown field": json.dumps(json.loads(plain[1]) | dict(colour=1)),
    }
    path = path.with_suffix("")  # the plain .jsonl
    path.write_text("\n".join([plain[0], rows[how]]))
    return path


@pytest.mark.parametrize(
    "how", ["cut", "flipped", "nothing", "noise", "not json", "no steps", "a list", "unknown field"]
)
def test_a_damaged_corpus_is_named_with_its_line(episodes, tmp_path, how):
    path = damaged(tmp_path / "corpus.jsonl.xz", episodes["train"][:3], how)
    with pytest.raises(
        ValueError,
        match="is damaged|holds no episodes|line 2: (this is n|a JSON value is spread|there is a JSON list|.colour. is no field)",
    ) as caught:
        load_episodes(path)
    assert path.name in str(caught.value)


def test_a_plain_file_of_noise_is_named(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(b"\xff\xfe\x00 not a corpus")
    with pytest.raises(ValueError, match="corpus.jsonl"):
        load_episodes(tmp_path / "corpus.jsonl")


def test_decisions_are_drawn_evenly_and_by_seed(episodes):
    group = episodes["test_in_domain"]
    drawn = sample_decisions(group, 20, seed=3)
    per_episode = Counter(d.episode for d in drawn)
    assert (
        len({d.id for d in drawn}) == 20
        and len(per_episode) == len(group)
        and set(per_episode.values()) == {2}
    )
    assert [d.id for d in drawn] == [d.id for d in sample_decisions(group, 20, seed=3)]
    assert [d.id for d in drawn] != [d.id for d in sample_decisions(group, 20, seed=4)]
    with pytest.raises(ValueError, match="hold only"):
        sample_decisions(group, 10_000)
