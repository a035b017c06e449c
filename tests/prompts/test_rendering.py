"""Chat templates: one date, limits, variables; where the agent's turn opens; thoughts and roles that a
template handles its own way."""

import datetime
import re
from importlib import resources, util

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from interp.engine.decoding import parse_completion
from interp.prompts import rendering
from interp.prompts.format import MODES, PromptFormat
from interp.prompts.rendering import compiled
from interp.prompts.styles import STYLES, Style
from interp.prompts.templates import read_variables
from interp.tasks.episodes import Decision, Episode, Step
from interp.training.supervision import Supervision, supervised
from tests.prompts.test_formats import pieces

needs_trl = pytest.mark.skipif(
    util.find_spec("trl") is None, reason="trl, which ships the chat templates, is not installed"
)
SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<|user|>",
    "<|agent|>",
    "<|sys|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<action>",
    "</action>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|assistant|>",
    "<|system|>",
]
TURNS = "{% for m in messages %}<|{{ 'agent' if m.role == 'assistant' else 'sys' if m.role == 'system' else 'user' }}|>{{ m.content }}<|end|>{% endfor %}"
PLAIN = TURNS + "{% if add_generation_prompt %}<|agent|>{% endif %}"
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ GAP + m['content'] + '</s>' }}{% else %}"
    "{{ '[INST] ' + m['content'] + END }}{% endif %}{% endfor %}"
)
TEXTS = [
    "You are in a hall. You see a red door and a blue door. Your task is to: open the red door.",
    "go to red door",
    "I want the red door.",
] * 8
GPT_OSS = Style(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "<|start|>assistant<|channel|>final<|message|>",
    "<|return|>",
    native=True,
)


def byte_level() -> Tokenizer:
    inner = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=330, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return inner


def tokenizer_of(template: str | None, kind: str = "bytes") -> PreTrainedTokenizerFast:
    inner = byte_level() if kind == "bytes" else pieces(kind)
    inner.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.chat_template = template
    return made


def text_of(name: str) -> str:
    return (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def decision(turns: int = 2, **extra) -> Decision:
    messages = [dict(role="user", content="You are in a hall. Your task is to: open the red door.")]
    for i in range(turns):
        messages += [
            dict(role="agent", trace=f"Trace {i}.", action=f"go to door {i}"),
            dict(role="user", content=f"You see door {i}."),
        ]
    return Decision(
        tuple(messages),
        "open red door",
        ("open red door",),
        "game",
        turns,
        "open the red door",
        "open",
        "test",
        "I want it.",
        **extra,
    )


def episode() -> Episode:
    steps = tuple(
        Step(f"Trace {i}.", f"go to door {i}", f"You see door {i}.", f"go to door {i}") for i in range(3)
    )
    start = "You are in a hall. Your task is to: open the red door."
    return Episode("game", "train", "open", 0, "open the red door", start, steps, True)


@needs_trl
@pytest.mark.parametrize(
    "name",
    [
        "cohere2",
        "deepseekv3",
        "gemma4_v5",
        "glm4moe",
        "gptoss",
        "lfm2_2_5",
        "llama3_2",
        "muse_glimmer",
        "nemotron_3_nano",
        "phi3_5",
        "qwen3_5_think",
        "qwen3_training",
        "smolvlm",
    ],
)
def test_templates_render_as_transformers_renders_them(name, monkeypatch):
    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(rendering.TODAY)

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)
    tool = dict(
        name="go",
        description="Go.",
        parameters=dict(type="object", properties=dict(to=dict(type="string", description="Where."))),
    )
    said = [
        dict(role="user", content=" hello\n"),
        dict(role="assistant", content="hi", reasoning_content="I think."),
    ]
    talks = [
        (said[:1], None, {}),
        (
            [dict(role="system", content="Act."), *said, dict(role="user", content="b")],
            [dict(type="function", function=tool)],
            {},
        ),
        ([*said, dict(role="tool", content="b", name="go")], None, dict(enable_thinking=False)),
        (said, None, dict(enable_thinking=True)),
    ]
    source = text_of(name)
    for turns, tools, variables in talks:
        given = dict(bos_token="<s>", eos_token="</s>", **variables)
        texts = []
        for render in (
            lambda: chat_template_utils.render_jinja_template(
                [turns], tools=tools, chat_template=source, add_generation_prompt=True, **given
            )[0][0],
            lambda: compiled(source).render(turns, True, tools, given),
        ):
            try:
                texts.append(render())
            except Exception as error:
                texts.append((type(error), str(error)))
        assert texts[0] == texts[1]


def test_a_template_with_a_clock_gives_the_same_ids_on_every_day(monkeypatch):
    tokenizer = tokenizer_of("<|sys|>Today is {{ strftime_now('%d %B %Y, %H:%M') }}<|end|>" + PLAIN)
    first = PromptFormat(tokenizer).prompt(decision())
    assert "Today is 26 July 2024, 00:00" in first.format.text(first.ids)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr(rendering, "datetime", Later)
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert PromptFormat(tokenizer).prompt(decision()).ids == first.ids
    other = PromptFormat(tokenizer, options=dict(today="2025-01-02"))
    assert "02 January 2025" in other.text(other.prompt(decision()).ids) and other.hash != first.format.hash
    with pytest.raises(ValueError, match="a date such as 2024-07-26, not 'yesterday'"):
        PromptFormat(tokenizer, options=dict(today="yesterday"))


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "characters": "".join(f"{{% for {a} in x %}}" for a in "abcdef") + "{% endfor %}" * 6,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
}
LARGE = {
    "output": "{% for i in range(99999) %}{% for j in range(99999) %}"
    + "a" * 50
    + "{% endfor %}{% endfor %}",
    "times": "{{ 'a' * 9999999999 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "filter": "{{ 'a'|center(9999999999) }}",
    "method": "{{ 'a'.ljust(9999999999) }}",
    "doubled": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "added": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "captured": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "width": "{{ '%9999999999d' % 1 }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
}


@pytest.mark.parametrize("what", [*ENDLESS, *LARGE])
def test_a_template_that_loops_or_swells_is_refused_in_a_sentence(what, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.05 if what in ENDLESS else 5.0)
    monkeypatch.setattr(rendering, "LONGEST", 100_000)
    source = "{% set x = messages[0].content * 20 %}" + {**ENDLESS, **LARGE}[what] + PLAIN
    with pytest.raises(
        ValueError,
        match="refuses a lone user message .(it takes more than 0.05 seconds|it .*(00,000|64 bits|eight digits))",
    ):
        PromptFormat(tokenizer_of(source))


@pytest.mark.parametrize(
    "part, words",
    [
        ("{{ lipsum() }}", "at random"),
        ("{{ [1, 2]|random }}", "at random"),
        ("{{ raise_exception }}", "address"),
    ],
)
def test_a_template_whose_text_changes_from_reading_to_reading_is_refused(part, words):
    with pytest.raises(ValueError, match=words):
        PromptFormat(tokenizer_of(part + PLAIN))


def test_a_damaged_template_is_named_with_its_file_and_line():
    with pytest.raises(ValueError, match="chat template some/chat_template.jinja is damaged: line 2: "):
        PromptFormat(tokenizer_of("\n{% for m in messages %}"), template_file="some/chat_template.jinja")
    with pytest.raises(
        ValueError,
        match="chat template some/chat_template.jinja refuses a lone user message .'wrong' is undefined",
    ):
        PromptFormat(tokenizer_of("{{ wrong.field }}" + PLAIN), template_file="some/chat_template.jinja")
    with pytest.raises(ValueError, match="no chat template.*chat_template.jinja"):
        PromptFormat(tokenizer_of(None))


def test_variables_are_read_from_the_command_line_and_unknown_ones_refused():
    assert read_variables(
        ["a=false", "b=low", "c=12", "d=True", 'e="7"', "f=x=y", "today=2025-01-02"]
    ) == dict(a=False, b="low", c=12, d=True, e="7", f="x=y", today="2025-01-02")
    for wrong, words in (("enable_thinking", "NAME=VALUE"), ("=1", "NAME=VALUE")):
        with pytest.raises(ValueError, match=words):
            read_variables([wrong])
    with pytest.raises(ValueError, match="'a' twice"):
        read_variables(["a=1", "a=2"])
    tokenizer = tokenizer_of("{{ mood }}" + PLAIN)
    fmt = PromptFormat(tokenizer, options=dict(mood="calm"))
    assert (
        fmt.text(fmt.prompt(decision()).ids).startswith("calm<|user|>")
        and fmt.hash != PromptFormat(tokenizer).hash
    )
    with pytest.raises(ValueError, match="reads no variable 'moot': there are mood, today"):
        PromptFormat(tokenizer, options=dict(moot="calm"))


def test_a_study_passes_its_templates_variables_on(series_folder, tmp_path):
    from analyses.study import Study

    plain, told = (
        Study(run=tmp_path, series=series_folder, template=given) for given in ((), ("today=2025-01-02",))
    )
    assert plain.format.hash != told.format.hash and told.format.chat.today == "2025-01-02"
    assert str(series_folder) in plain.format.chat.called
    with pytest.raises(ValueError, match="reads no variable 'enable_thinking'"):
        Study(run=tmp_path, series=series_folder, template=("enable_thinking=false",)).format


@pytest.mark.parametrize("kind", ["bytes", "", "each", "first"])
@pytest.mark.parametrize("gap, end", [(" ", " [/INST]"), ("", "[/INST]"), (" ", "[/INST]"), ("", " [/INST]")])
def test_where_the_users_turn_ends_with_the_opening_the_boundary_is_its_last_token(kind, gap, end):
    tokenizer = tokenizer_of(MISTRAL.replace("GAP", repr(gap)).replace("END", repr(end)), kind)
    fmt = PromptFormat(tokenizer, "llama3")
    prompt = fmt.prompt(decision())
    assert fmt.text([prompt.ids[prompt.boundary]]) == "[/INST]" and (fmt.chat.gap, fmt.header.strip()) == (
        gap,
        "[/INST]",
    )
    assert {mode: fmt.text(fmt.mode_prefix(mode)).replace(" ", "") for mode in ("cot", "prompt")} == dict(
        cot="<think>\n", prompt="<action>\n"
    )
    ids, agent = fmt.sequence(episode())
    for d in episode().decisions():
        n = len(fmt.prompt(d).ids)
        assert tuple(ids[:n]) == fmt.prompt(d).ids
        joined = [*fmt.prompt(d).ids, *fmt.with_trace(d.trace), *fmt.action_ids(d.reference)]
        assert ids[: len(joined)] == joined
    assert list(fmt.ends.values()) == ["</s>"]


def test_a_template_without_an_opening_is_served_once_it_is_told_one():
    with pytest.raises(
        ValueError,
        match=r"no findable boundary.*\{% if add_generation_prompt %\}\{\{ OPENING \}\}\{% endif %\}",
    ):
        PromptFormat(tokenizer_of(TURNS))
    fmt = PromptFormat(tokenizer_of(TURNS + "{% if add_generation_prompt %}{{ '<|agent|>' }}{% endif %}"))
    assert fmt.text(fmt.prompt(decision()).ids[-1:]) == "<|agent|>"
    with pytest.raises(ValueError, match="no findable boundary"):  # nothing at all stands between the turns
        PromptFormat(tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}"))


THINKING = [
    ("qwen3", "<|im_start|>assistant\n"),
    ("qwen3_5_think", "<|im_start|>assistant\n"),
    ("qwen3_5_nothink", "<|im_start|>assistant\n"),
    ("nemotron_3_nano", "<|im_start|>assistant\n"),
    ("glm4moe", "<|assistant|>"),
    ("deepseek_r1_distill", "<｜Assistant｜>"),
]


@needs_trl
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("style", ["qwen3", "tags", "llama3", "react"])
@pytest.mark.parametrize("name, header", THINKING)
def test_the_boundary_is_before_any_thought_and_one_thought_is_opened(name, header, style, thinking):
    source = text_of(name)
    if thinking is not None and "enable_thinking" not in source:
        pytest.skip("this template has no such variable")
    fmt = PromptFormat(
        tokenizer_of(source), style, options={} if thinking is None else dict(enable_thinking=thinking)
    )
    prompt = fmt.prompt(decision(0))
    texts = {mode: fmt.text([*prompt.ids, *fmt.mode_prefix(mode)]).rpartition(header)[2] for mode in MODES}
    if style == "react":  # an empty thought in other tags is the template's fixed text
        assert texts["prompt"].count("<think>") == texts["prompt"].count("</think>") and texts[
            "cot"
        ].endswith("Thought:")
        return
    assert fmt.text(prompt.ids).rstrip().endswith(header.rstrip()) and "think>" not in texts["prompt"]
    assert texts["cot"].count("<think>") == 1 and "</think>" not in texts["cot"]
    assert texts["empty_think"].count("<think>") == texts["empty_think"].count("</think>") == 1


@needs_trl
@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "nemotron_3_nano", "glm4moe", "deepseek_r1_distill", "gptoss"]
)
@pytest.mark.parametrize("style", ["tags", "native"])
def test_traces_that_the_template_takes_away_are_kept_where_that_is_asked_for(name, style):
    own = dict(native=GPT_OSS if name == "gptoss" else STYLES["qwen3"]).get(style, style)
    tokenizer = tokenizer_of(text_of(name))
    fmt = PromptFormat(tokenizer, own, history_traces="kept")
    text = fmt.text(fmt.prompt(decision()).ids)
    written = (
        fmt.style.open_think + "Trace 0." + fmt.style.close_think + fmt.style.open_action + "go to door 0"
    )
    assert (
        text.count(written) == 1
        and text.count(fmt.style.open_think) == 2
        and text.count(fmt.style.open_action) == 2
    )
    ids, _ = fmt.sequence(episode())
    assert all(tuple(ids[: len(p.ids)]) == p.ids for p in map(fmt.prompt, episode().decisions()))
    dropped = PromptFormat(tokenizer, own, history_traces="dropped")
    assert "Trace" not in dropped.text(dropped.prompt(decision()).ids) and len({fmt.hash, dropped.hash}) == 2
    if style == "tags" and name not in ("gptoss", "qwen3_5_think"):
        with pytest.raises(ValueError, match="changes message 1 .*--history_traces kept"):
            PromptFormat(tokenizer, own).prompt(decision())


#: Templates that write an agent's turn in the history otherwise than they open it, each with a style.
EMPTY = [
    ("qwen3_5_nothink", "react"),
    ("qwen3_5_think_training", "react"),
    ("nemotron_3_nano", "react"),
    ("glm4moe", "react"),
    ("qwen3_8", "tags"),
    ("qwen3_8", "llama3"),
]


@needs_trl
@pytest.mark.parametrize("name, style", EMPTY)
def test_a_template_that_writes_an_empty_thought_into_the_history_makes_no_sequence(name, style):
    fmt = PromptFormat(tokenizer_of(text_of(name)), style)
    with pytest.raises(
        ValueError,
        match="before the agent's turn in the history, but a prompt ends with .*`PromptFormat.example` of each",
    ):
        fmt.sequence(episode())
    assert not fmt.whole
    sequences, counts = supervised(fmt, [episode()], Supervision(), seed=0)  # which takes the advice
    assert counts["examples"] == len(sequences) == 3
    for (ids, _), decision_ in zip(sequences, episode().decisions()):
        assert (
            ids == fmt.example(decision_)[0]
            and tuple(ids[: len(fmt.prompt(decision_).ids)]) == fmt.prompt(decision_).ids
        )


@needs_trl
@pytest.mark.parametrize("style", ["react", "tags", "llama3", "qwen3"])
@pytest.mark.parametrize("history", ["template", "kept"])
def test_a_sequence_begins_with_each_of_its_prompts_under_every_template(history, style):
    whole = 0
    for file in sorted((resources.files("trl") / "chat_templates").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".jinja"):
            continue
        try:
            fmt = PromptFormat(tokenizer_of(file.read_text()), style, history_traces=history)
            ids, _ = fmt.sequence(episode())
        except ValueError:
            continue
        whole += 1
        for prompt in map(fmt.prompt, episode().decisions()):
            lead = [*prompt.ids, *fmt.with_trace(prompt.decision.trace)]
            assert ids[: len(lead)] == lead, file.name
    assert whole > 10 or (history, style) == ("template", "qwen3")


@needs_trl
def test_channels_are_the_templates_own_in_the_history_and_opened_once():
    fmt = PromptFormat(tokenizer_of(text_of("gptoss")), GPT_OSS)
    prompt = fmt.prompt(decision())
    text = fmt.text(prompt.ids)
    assert text.endswith(
        "<|start|>assistant<|channel|>final<|message|>go to door 1<|end|><|start|>user<|message|>You see door 1.<|end|><|start|>assistant"
    )
    assert "Trace" not in text and "2024-07-26" in text
    openings = {mode: fmt.text(fmt.mode_prefix(mode)) for mode in MODES}
    assert openings == dict(
        cot="<|channel|>analysis<|message|>",
        prompt="<|channel|>final<|message|>",
        empty_think="<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
    )
    ids = fmt.encode("I look.<|end|><|start|>assistant<|channel|>final<|message|>open door<|return|>")
    stops = [n for n in range(1, len(ids) + 1) if fmt.ended("cot")(ids[:n])]
    assert stops == [len(ids)] and (
        parse_completion(fmt, ids, "cot").trace,
        parse_completion(fmt, ids, "cot").action,
    ) == (
        "I look.",
        "open door",
    )
    assert fmt.history.turn("I look.", "open door") == "open door" and fmt.example(decision())[0][
        -1
    ] == fmt.tokenizer.convert_tokens_to_ids("<|return|>")


@needs_trl
@pytest.mark.parametrize(
    "name, written", [("gptoss", "<|channel|>final<|message|>"), ("muse_glimmer", " to=user<|message|>")]
)
def test_what_a_template_writes_before_each_content_is_written_before_what_is_decoded(name, written):
    fmt = PromptFormat(tokenizer_of(text_of(name)), "tags", history_traces="kept")
    assert fmt.chat.gap == written and fmt.text(fmt.mode_prefix("prompt")) == written + "<action>"
    ids, _ = fmt.sequence(episode())
    for d in episode().decisions():
        joined = [*fmt.prompt(d).ids, *fmt.with_trace(d.trace), *fmt.action_ids(d.reference)]
        assert ids[: len(joined)] == joined


@needs_trl
def test_messages_in_roles_that_a_template_does_not_know_become_the_users():
    tokenizer = tokenizer_of(text_of("gemma"))
    told = decision(1)
    messages = [
        dict(role="system", content="Act well."),
        *told.messages[:-1],
        dict(role="tool", content="A."),
        dict(role="tool", content="B."),
    ]
    told = Decision(
        tuple(messages),
        *[
            getattr(told, f)
            for f in ("reference", "admissible", "episode", "step", "task", "task_type", "split", "trace")
        ],
    )
    with pytest.raises(ValueError, match="System role not supported.*by --system_as user; .*--tool_as user"):
        PromptFormat(tokenizer, "llama3").prompt(told)
    fmt = PromptFormat(tokenizer, "llama3", system_as="user", tool_as="user")
    prompt = fmt.prompt(told)
    text = fmt.text(prompt.ids)
    assert (
        "<start_of_turn>user\nAct well.\n\nYou are in a hall." in text
        and "<start_of_turn>user\nA.\n\nB.<end_of_turn>" in text
    )
    of = {
        span: fmt.text([prompt.ids[i] for i in prompt.positions(span)])
        for span in ("template", "observation", "task")
    }
    assert (
        "Act well." in of["template"] and of["observation"] == "A.\n\nB." and of["task"].strip() == told.task
    )
    by_option = PromptFormat(tokenizer, "llama3", "Act well.", system_as="user", tool_as="user")
    assert (
        by_option.prompt(
            Decision(
                tuple(messages[1:]),
                *[
                    getattr(told, f)
                    for f in (
                        "reference",
                        "admissible",
                        "episode",
                        "step",
                        "task",
                        "task_type",
                        "split",
                        "trace",
                    )
                ],
            )
        ).ids
        == prompt.ids
    )
    with pytest.raises(ValueError, match="system_as is 'system' or 'user', not 'tool'"):
        PromptFormat(tokenizer, system_as="tool")


@needs_trl
def test_a_template_that_reads_typed_parts_is_given_them():
    fmt = PromptFormat(tokenizer_of(text_of("smolvlm")), "llama3", "Act well.")
    text = fmt.text(fmt.prompt(decision()).ids)
    assert "Act well." in text and "You see door 1." in text and text.endswith("Assistant:")


def test_an_end_that_stands_only_between_turns_ends_a_turn_too():
    between = "{% for m in messages %}<|{{ 'agent' if m.role == 'assistant' else 'user' }}|>{{ m.content }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}"
    fmt = PromptFormat(
        tokenizer_of(between + "{% if add_generation_prompt %}<|end|><|agent|>{% endif %}"), "react"
    )
    assert list(fmt.ends.values()) == ["<|end|>", "</s>"]
    assert re.fullmatch(
        "open door", parse_completion(fmt, fmt.encode(" open door<|end|> more"), "prompt").action
    )


def test_stages_tell_styles_apart_whose_prompts_have_the_same_ids():
    from analyses.study import Study

    prompts = [PromptFormat(tokenizer_of(PLAIN), style).prompt(decision(0)) for style in ("tags", "llama3")]
    assert prompts[0].hash == prompts[1].hash and Study.digest(prompts[:1]) != Study.digest(prompts[1:])
