"""Golden tests of prompts on real chat templates (those that trl ships), written as data: what each token is
for."""

import hashlib
import json
import warnings
from importlib import resources, util

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.engine.decoding import parse_completion
from interp.prompts.format import MODES, PromptFormat
from interp.system.paths import ROOT
from interp.tasks.episodes import Decision

pytestmark = pytest.mark.skipif(
    util.find_spec("trl") is None, reason="trl, which ships the chat templates, is not installed"
)
ROWS = json.loads((ROOT / "tests" / "data" / "templates.json").read_text())
#: How Llama 3, Qwen and others with tiktoken-like vocabularies cut a text before merging.
TIKTOKEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = {
    "qwen": (
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"],
        "<|im_end|>",
        None,
    ),
    "chatml": (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|im_end|>", None),
    "llama": (
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>"),
    "deepseek": (
        ["<|bos|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"],
        "<｜end▁of▁sentence｜>",
        "<|bos|>",
    ),
    "phi": (
        ["<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"],
        "<|endoftext|>",
        "<s>",
    ),
}
TEXTS = [
    "You see a mug 1, a desk 2.",
    "Your task is to: put a mug in desk.",
    "go to desk 2",
    "I look.\n</think>\n<action>\ntake mug 1 from desk 2",
    '{"name": "go", "arguments": {"to": "desk 2"}}',
    "Thought: I look.\nAction: go to desk 2",
    "<action>go to desk 2</action>",
] * 4


def tokenizer_of(family: str, template: str) -> PreTrainedTokenizerFast:
    special, eos, bos = SPECIAL[family]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TIKTOKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def text_of(name: str) -> str:
    return (resources.files("trl") / "chat_templates" / name).read_text()


def made(row: dict) -> tuple[PromptFormat, Decision]:
    fmt = PromptFormat(
        tokenizer_of(row["family"], text_of(row["template"])), row["style"], row["system"], row["tools"]
    )
    decision = Decision(
        tuple(row["messages"]), row["reference"], (), "e", 1, row["task"], "", "test", row["trace"]
    )
    return fmt, decision


def segments(fmt, prompt) -> list[list[str]]:
    found: list = []
    for i, span in zip(prompt.ids, prompt.spans):
        if found and found[-1][0] == span:
            found[-1][1].append(i)
        else:
            found.append([span, [i]])
    return [[span, fmt.text(ids)] for span, ids in found]


@pytest.fixture(
    params=ROWS, ids=[f"{r['template'].removesuffix('.jinja')}-{r['style']}-{r['case']}" for r in ROWS]
)
def row(request):
    return request.param


def test_every_token_is_of_the_span_that_the_data_say(row):
    assert hashlib.sha256(text_of(row["template"]).encode()).hexdigest()[:16] == row["sha"], (
        "trl's template has changed: read it, and renew the row"
    )
    fmt, decision = made(row)
    prompt = fmt.prompt(decision)
    assert segments(fmt, prompt) == row["segments"] and len(prompt.ids) == row["tokens"]
    assert {mode: fmt.text(fmt.mode_prefix(mode)) for mode in MODES} == row["openings"]
    assert (
        fmt.text(fmt.with_trace(decision.trace)) == row["behind"]
        and fmt.text(fmt.action_ids(decision.reference)) == row["action"]
    )
    assert list(fmt.ends.values()) == row["ends"]


def test_ids_are_the_templates_own_up_to_the_boundary(row):
    fmt, decision = made(row)
    prompt = fmt.prompt(decision)
    whole = fmt.tokenizer.apply_chat_template(
        fmt.history.turns(decision.messages),
        tokenize=True,
        add_generation_prompt=True,
        tools=fmt.tools,
        return_dict=False,
        **fmt.options,
    )
    assert list(prompt.ids) == whole[: len(prompt.ids)] and (len(whole) > len(prompt.ids)) == (
        row["family"] == "deepseek" and row["style"] != "react"
    )
    bos = fmt.tokenizer.bos_token_id
    assert bos is None or list(prompt.ids).count(bos) == 1 or row["family"] == "phi"
    fmt.tokenizer.padding_side, fmt.tokenizer.add_bos_token = "left", True
    assert fmt.prompt(decision).ids == prompt.ids


def test_what_the_agent_says_is_read_back_in_sloppy_white_space_too(row):
    fmt, decision = made(row)
    ids = [*fmt.with_trace(decision.trace), *fmt.action_ids(decision.reference)][
        len(fmt.mode_prefix("cot")) :
    ]
    words = parse_completion(fmt, ids, "cot")
    assert (words.trace, words.action) == (decision.trace, decision.reference)
    assert parse_completion(fmt, fmt.action_ids(decision.reference), "prompt").action == decision.reference
    assert fmt.ended("cot")(ids) and not fmt.ended("cot")(ids[: len(ids) // 2])
    lead = fmt.decoded_prefix(ids)
    assert (
        fmt.text(lead).rstrip().endswith(fmt.style.open_action.strip())
        and parse_completion(fmt, ids[len(lead) :], "prompt").action == decision.reference
    )
    s = fmt.style
    loose = fmt.encode(
        f"\n{decision.trace} {s.close_think.strip()}\n\n{s.open_action.strip()} {decision.reference}\n{s.close_action.strip()}\n"
    )
    words = parse_completion(fmt, loose, "cot")
    assert (words.trace, words.action) == (decision.trace, decision.reference)


def test_a_day_later_the_prompt_is_the_same(monkeypatch):
    fmt, decision = made(next(r for r in ROWS if r["template"] == "llama3_2.jinja"))
    assert "26 Jul 2024" in fmt.text(fmt.prompt(decision).ids)
    other = PromptFormat(fmt.tokenizer, "llama3", options=dict(date_string="01 Jan 2026"))
    assert "01 Jan 2026" in other.text(other.prompt(decision).ids) and other.hash != fmt.hash


def test_a_tool_call_is_written_as_the_template_writes_it():
    fmt, decision = made(next(r for r in ROWS if r["style"] == "qwen3_tools"))
    turns = fmt.history.turns(decision.messages)
    call = json.loads(decision.messages[1]["action"])
    official = [
        {**t, "content": "", "tool_calls": [dict(type="function", function=call)]}
        if t["role"] == "assistant"
        else t
        for t in turns
    ]
    assert fmt.chat.render(turns, True, "") == fmt.chat.render(official, True, "")


def test_a_template_that_takes_no_system_message_is_refused():
    with pytest.raises(ValueError, match="System role not supported.*first user message by --system_as user"):
        PromptFormat(tokenizer_of("gemma", text_of("gemma.jinja")), "llama3", system="Act.")


def test_a_style_that_the_template_strips_is_refused_by_the_message():
    fmt, decision = made(next(r for r in ROWS if r["style"] == "qwen3"))
    with pytest.raises(ValueError, match="changes message 2"):
        PromptFormat(fmt.tokenizer, "tags", "Act.").prompt(decision)


def test_a_tag_that_merges_with_the_action_is_warned_of():
    tokenizer = tokenizer_of("llama", text_of("llama3.jinja"))
    with pytest.warns(UserWarning, match="merges with the action"):
        PromptFormat(tokenizer, "tags").action_ids("go to desk 2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptFormat(tokenizer, "llama3").action_ids("go to desk 2")
