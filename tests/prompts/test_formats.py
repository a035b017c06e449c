"""Golden prompts on real chat templates in real families' kinds of tokenizers; what the agent says after them
is what the template writes.

Each row of the data names a template, a kind of tokenizer, a style and a conversation, and holds the segments
[span, text] of the prompt.
"""

import copy
import hashlib
import json
import warnings
from dataclasses import replace
from functools import cache
from importlib import resources, util
from itertools import groupby

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from interp.engine.decoding import parse_completion
from interp.prompts.format import MODES, PromptFormat
from interp.prompts.styles import STYLES
from interp.system.paths import ROOT
from interp.tasks.episodes import Decision

pytestmark = pytest.mark.skipif(
    util.find_spec("trl") is None, reason="trl, which ships the chat templates, is not installed"
)
DATA = json.loads((ROOT / "tests" / "data" / "formats.json").read_text())
SMOLLM2 = ROOT / "runs" / "smollm2" / "base"
#: Llama 3's cut of a text before merging; Qwen's takes digits one by one.
TIKTOKEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = r"▁?\p{L}+|▁?\p{N}|\n|▁?[^\p{L}\p{N}\n▁]+|▁+"


def byte_level(*cut):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *cut,
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=len(cut) == 0 or "Digits" in str(cut)),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        DATA["sentences"] * 4,
        trainers.BpeTrainer(
            vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return inner


def pieces(prefix: str):
    """A vocabulary of pieces with '▁' for a space: none put before a text, one before each part of it, or one
    before the first."""
    inner = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    inner.normalizer, inner.pre_tokenizer = spaces, pre_tokenizers.Split(Regex(PIECES), "isolated")
    inner.train_from_iterator(
        DATA["sentences"] * 4,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=[f"<0x{i:02X}>" for i in range(256)], show_progress=False
        ),
    )
    raw = json.loads(inner.to_str())
    inner = Tokenizer.from_str(json.dumps({**raw, "pre_tokenizer": None, "added_tokens": []}))
    if prefix == "each":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif prefix == "first":
        inner.normalizer, inner.pre_tokenizer = (
            None,
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return inner


KINDS = {
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "qwen": lambda: byte_level(pre_tokenizers.Split(Regex(TIKTOKEN.replace("{1,3}", "")), "isolated")),
    "llama": lambda: byte_level(pre_tokenizers.Split(Regex(TIKTOKEN), "isolated")),
    "deepseek": lambda: byte_level(pre_tokenizers.Split(Regex(TIKTOKEN), "isolated")),
    "gemma": lambda: pieces(""),
    "phi": lambda: pieces("each"),
    "phi_first": lambda: pieces("first"),
}


@cache
def family(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of a family's kind, with its special tokens; the real one of SmolLM2 where it is on
    this machine."""
    if kind == "smollm2":
        if not (SMOLLM2 / "tokenizer.json").exists():
            pytest.skip("SmolLM2's tokenizer is not on this machine (runs/smollm2/base)")
        return AutoTokenizer.from_pretrained(SMOLLM2)
    inner, made = KINDS[kind](), DATA["families"][kind]
    inner.add_special_tokens(
        [AddedToken(t, rstrip=t in made.get("swallow", ()), normalized=False) for t in made["special"]]
    )
    inner.add_tokens([AddedToken(t, normalized=False, special=False) for t in made.get("added", ())])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=made["bos"], eos_token=made["eos"])


def template(name: str) -> str:
    text = (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text()
    found = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert found == DATA["templates"][name], (
        f"trl's template {name} is another ({found}) than these rows were read against: read it, renew them"
    )
    return text


def tokenizer_of(kind: str, name: str = ""):
    other = copy.deepcopy(family(kind))
    if name:
        other.chat_template = template(name)
    return other


def made(row: dict, **settings) -> tuple[PromptFormat, Decision]:
    tokenizer = tokenizer_of(row["family"], row["template"])
    for key, value in settings.items():
        setattr(tokenizer, key, value)
    with_tools = DATA["tools"] if row.get("tools") else ()
    decision = Decision(
        tuple(DATA["conversations"][row["conversation"]]),
        row["action"],
        (),
        "e",
        1,
        DATA["task"],
        "",
        "test",
        row["trace"],
    )
    return PromptFormat(tokenizer, row["style"], row.get("system", ""), with_tools), decision


def golden(row: dict) -> dict:
    """What the data say of a row."""
    fmt, decision = made(row)
    prompt = fmt.prompt(decision)
    cut = [
        (span, [i for _, i in group])
        for span, group in groupby(zip(prompt.spans, prompt.ids), key=lambda pair: pair[0])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        action = fmt.text(fmt.action_ids(decision.reference))
    return dict(
        segments=[[span, fmt.text(ids)] for span, ids in cut],
        last=[fmt.text([i]) for i in prompt.ids[-3:]],
        tokens=len(prompt.ids),
        openings={mode: fmt.text(fmt.mode_prefix(mode)) for mode in MODES},
        behind=fmt.text(fmt.with_trace(decision.trace)),
        closed=action,
        ends=list(fmt.ends.values()),
    )


ROWS = DATA["rows"]
each_row = pytest.mark.parametrize(
    "row",
    ROWS,
    ids=["-".join([r["template"] or r["family"], r["family"], r["style"], r["conversation"]]) for r in ROWS],
)


@each_row
def test_prompts_are_the_golden_ones(row):
    assert golden(row) == {key: row[key] for key in golden(row)}


@each_row
def test_ids_are_the_templates_own_with_the_boundary_last_in_every_mode(row):
    fmt, decision = made(row)
    prompt = fmt.prompt(decision)
    whole = fmt.tokenizer.apply_chat_template(
        fmt.history.turns(decision.messages),
        add_generation_prompt=True,
        tools=fmt.tools,
        return_dict=False,
        **fmt.options,
    )
    assert list(prompt.ids) == whole[: len(prompt.ids)]
    assert fmt.text(whole[len(prompt.ids) :]) == ("<think>\n" if "deepseek" in row["template"] else "")
    assert prompt.positions("boundary").tolist() == [prompt.boundary] and len(prompt.spans) == len(prompt.ids)
    for mode in MODES:
        joined = [*prompt.ids, *fmt.mode_prefix(mode)]
        assert joined[prompt.boundary] == prompt.ids[-1] and fmt.mode_prefix(mode)
    bos = DATA["families"].get(row["family"], {}).get("bos")
    if bos and bos != "<|im_start|>" and bos in row["segments"][0][1]:  # that one opens every turn
        assert prompt.ids.count(fmt.tokenizer.bos_token_id) == 1


@each_row
@pytest.mark.parametrize(
    "settings",
    [dict(padding_side="left", truncation_side="left"), dict(add_bos_token=True), dict(add_bos_token=False)],
    ids=["padded left", "with BOS", "without BOS"],
)
def test_settings_of_the_tokenizer_change_no_ids(row, settings):
    (fmt, decision), (other, _) = made(row), made(row, **settings)
    assert other.prompt(decision).ids == fmt.prompt(decision).ids and other.with_trace(
        "I look."
    ) == fmt.with_trace("I look.")


@each_row
def test_a_prefilled_turn_is_the_one_that_the_template_renders(row):
    """Ids for ids, but where the tag merges with the action (the warning says so)."""
    if "deepseek" in row["template"]:
        pytest.skip("this template renders no trace of a finished turn")
    if row["template"] == "qwen3" and row["style"] == "react":
        pytest.skip("this template puts an empty thought of its own before a finished turn")
    fmt, decision = made(row)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = [
            *fmt.prompt(decision).ids,
            *fmt.with_trace(decision.trace),
            *fmt.action_ids(decision.reference),
        ]
    turns = fmt.history.turns(
        [*decision.messages, dict(role="agent", trace=decision.trace, action=decision.reference)]
    )
    if fmt.style.native and "qwen3" not in row["template"]:
        turns[-1] = dict(
            role="assistant",
            content=replace(fmt.style, native=False).turn(decision.trace, decision.reference),
        )
    text = fmt.chat.render(turns, False, "a finished conversation")
    written = fmt.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert fmt.text(written).startswith(fmt.text(ids)) and fmt.text(written[len(ids) - 2 :]).strip()
    assert row.get("lossy") or text.startswith(fmt.text(ids))
    if not caught:
        assert written[: len(ids)] == ids
    assert bool(caught) == bool(row.get("seam"))


@each_row
def test_what_was_generated_is_read_back_however_loosely_it_is_written(row):
    fmt, decision = made(row)
    s, trace, action = fmt.style, decision.trace, decision.reference
    end = list(fmt.ends.values())[0]
    close = s.close_action.strip() or end
    for text in (
        f"{s.space}{trace}{s.close_think}{s.open_action}{s.space}{action}{s.close_action or end}",
        f"\n {trace} \n{s.close_think.strip()}\n\n\n{s.open_action.strip()}\n\n {action} \n{close}{end}",
        f"{trace}{s.close_think.strip() or chr(10)}{s.open_action.strip()}{action}{s.close_action.strip() or chr(10)}{end} more",
    ):
        ids = fmt.encode(text)
        words = parse_completion(fmt, ids, "cot")
        assert (words.trace, words.action) == (trace, action), text
        assert any(fmt.ended("cot")(ids[:n]) for n in range(1, len(ids) + 1))
        lead = fmt.decoded_prefix(ids)
        cut = fmt.text(lead)
        assert text.lstrip().startswith(cut.strip()) and cut.rstrip().endswith(s.open_action.strip())
        assert parse_completion(fmt, [*lead, *fmt.action_ids(action)], "cot").action == action
    assert (
        fmt.parse(f"{trace}{end}", "cot")[1] is None and fmt.parse(f"{s.space}{action}", "prompt")[1] is None
    )
    assert fmt.parse(f"{s.space}{action}{close}", "empty_think") == (None, action)


def test_a_tag_that_merges_into_the_trace_before_it_and_the_action_behind_it_is_cut_out_exactly():
    fmt = PromptFormat(tokenizer_of("llama", "llama3"), "tags")
    ids = fmt.encode("I look.</think><action>go to desk 2</action>")
    tokens = [fmt.text([i]) for i in ids]
    assert ".</" in tokens and ">go" in tokens
    lead = fmt.decoded_prefix(ids)
    assert fmt.text(lead) == "I look.</think><action>" and lead[:-1] == ids[: len(lead) - 1]
    loose = fmt.encode("I look.</think><action>\n\n")
    assert fmt.text(fmt.decoded_prefix(loose)) == "I look.</think><action>\n\n" or fmt.text(
        [loose[-1]]
    ).startswith("\n")
    assert fmt.decoded_prefix(fmt.encode("I look.</think> and <action>go")) is None


@pytest.mark.parametrize("kind, name", [("llama", "llama3"), ("qwen", "qwen2_5")])
def test_the_seam_is_warned_of_once_where_a_tag_is_no_token(kind, name):
    fmt = PromptFormat(tokenizer_of(kind, name), "tags")
    with pytest.warns(
        UserWarning,
        match="'<action>' merges with the action after it .*A style with its tags on lines of their own",
    ) as caught:
        fmt.action_ids("go to desk 2"), fmt.action_ids("take mug 1")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptFormat(tokenizer_of(kind, name), "llama3").action_ids("go to desk 2")


def row_of(name: str, conversation: str) -> dict:
    return next(r for r in ROWS if r["template"] == name and r["conversation"] == conversation)


@pytest.mark.parametrize("role, kept", [("user", False), ("tool", True)])
def test_qwen3_keeps_earlier_thinking_behind_the_last_question_only(role, kept):
    fmt, decision = made(row_of("qwen3", "calls"))
    messages = [
        {**m, "role": role} if m["role"] in ("tool", "user") and i > 1 else m
        for i, m in enumerate(decision.messages)
    ]
    text = fmt.text(fmt.prompt(replace(decision, messages=tuple(messages))).ids)
    traces = [m["trace"] for m in messages if m["role"] == "agent"]
    assert traces and all((f"<think>\n{t}\n</think>\n\n" in text) == kept for t in traces)


@pytest.mark.parametrize("trace", [None, "", "\n", " I look.\n"])
def test_a_history_of_empty_or_ragged_thoughts_is_rendered_as_the_template_does(trace):
    fmt, decision = made(row_of("qwen3", "calls"))
    messages = tuple({**m, "trace": trace} if m["role"] == "agent" else m for m in decision.messages)
    prompt = fmt.prompt(replace(decision, messages=messages))
    turns = [
        dict(role=m["role"], content=m["content"])
        if m["role"] != "agent"
        else dict(role="assistant", content=fmt.style.turn(None, m["action"]), reasoning_content=trace)
        for m in messages
    ]
    assert fmt.text(prompt.ids) == fmt.chat.render(turns, True, "the same")


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
def test_a_call_in_the_history_is_written_as_the_template_writes_tool_calls(name):
    fmt, decision = made({**row_of("qwen3", "calls"), "template": name})
    turns, agents = (
        fmt.history.turns(decision.messages),
        iter([m for m in decision.messages if m["role"] == "agent"]),
    )
    official = [
        {
            **t,
            "content": "",
            "tool_calls": [dict(type="function", function=json.loads(next(agents)["action"]))],
        }
        if t["role"] == "assistant"
        else t
        for t in turns
    ]
    assert (
        fmt.chat.render(turns, True, "") == fmt.chat.render(official, True, "")
        and "<tool_call>" in fmt.chat.render(turns, True, "").partition("</tools>")[2]
    )


def test_qwen3s_empty_trace_is_what_its_template_writes_where_thinking_is_off():
    fmt, decision = made(row_of("qwen3", "first"))
    ids = [*fmt.prompt(decision).ids, *fmt.mode_prefix("empty_think")]
    off = fmt.tokenizer.apply_chat_template(
        fmt.history.turns(decision.messages),
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=False,
    )
    assert fmt.text(ids) == off + "<action>\n"


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_another_day_gives_the_same_ids(name, monkeypatch):
    class Later(chat_template_utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3)

    fmt, decision = made({**row_of("llama3_2", "turns"), "template": name})
    before = fmt.prompt(decision).ids
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    plain = fmt.tokenizer.apply_chat_template([dict(role="user", content="a")], tokenize=False)
    assert ("03 Feb 2031" in plain) == (name == "llama3_2") and fmt.prompt(decision).ids == before


DROPS = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_system_message_that_a_template_refuses_or_drops_is_refused_in_a_sentence():
    with pytest.raises(
        ValueError,
        match="System role not supported.*first roles are system, user.*start of the first user message",
    ):
        PromptFormat(tokenizer_of("gemma", "gemma"), "llama3", "Act.")
    fmt, decision = made(row_of("gemma", "turns"))
    with pytest.raises(ValueError, match="refuses decision e#1 .*System role not supported"):
        fmt.prompt(replace(decision, messages=(dict(role="system", content="Act."), *decision.messages)))
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = DROPS
    with pytest.raises(ValueError, match="drops or changes the system message of the system prompt"):
        PromptFormat(tokenizer, "qwen3", "Act.")
    with pytest.raises(ValueError, match="drops or changes the system message of decision e#1"):
        PromptFormat(tokenizer, "qwen3").prompt(
            replace(decision, messages=(dict(role="system", content="Act."), *decision.messages))
        )


@pytest.mark.parametrize(
    "name, kind", [("qwen3", "qwen"), ("llama3_2", "llama"), ("gemma3", "gemma"), ("phi3", "phi")]
)
def test_a_real_template_without_its_generation_prompt_has_no_boundary(name, kind):
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = template(name).replace("if add_generation_prompt", "if false")
    with pytest.raises(ValueError, match="no findable boundary"):
        PromptFormat(tokenizer, "llama3")


def test_tags_that_a_template_strips_from_the_history_are_refused():
    for name, kind in (("qwen3", "qwen"), ("deepseek_r1_distill", "deepseek")):
        fmt, decision = made(
            {**row_of("qwen3", "turns"), "template": name, "family": kind, "style": "llama3"}
        )
        with pytest.raises(ValueError, match="changes message [12] of decision e#1"):
            fmt.prompt(decision)
        assert PromptFormat(fmt.tokenizer, "qwen3").prompt(decision).ids


def test_every_style_is_in_the_data():
    assert {r["style"] for r in ROWS} == set(STYLES) and {r["family"] for r in ROWS} == {*KINDS, "smollm2"}
