"""Logs of other programs as decisions: each format by a small log of its own, and what is left out of it."""

import json
import lzma
import sys
import types
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.system.unpacking import VARIABLE
from interp.tasks.episodes import load_episodes
from interp.tasks.importers.chat_text import split_chat
from interp.tasks.importers.decisions import Importer
from interp.tasks.importers.turns import agent_turn, split_text


def user(text):
    return dict(role="user", content=text)


def agent(text=None, **fields):
    return dict(role="assistant", content=text, **fields)


def call(name="move", arguments='{"to": "door"}'):
    return dict(id="c1", type="function", function=dict(name=name, arguments=arguments))


def imported(path, **options):
    """The importer, and the decisions as a study reads them."""
    log = Importer(path, **options)
    written = path.with_name("decisions.jsonl")
    written.write_text("".join(f"{line}\n" for line in log.lines()))
    return log, load_episodes(written) if log.decisions else []


def jsonl(tmp_path, *records, name="log.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def reasons(log):
    return {row["reason"]: row["n"] for row in log.dropped.rows()}


def test_openai_messages_with_tool_calls_and_parts(tmp_path):
    messages = [
        dict(role="developer", content="Act."),
        dict(
            role="user", content=[dict(type="text", text="Open"), dict(type="input_text", text="the door.")]
        ),
        agent(tool_calls=[call()], reasoning_content="It is shut."),
        dict(role="tool", tool_call_id="c1", name="move", content="You are at the door."),
        agent("I open it.", tool_calls=[call("open", ""), call("look", '{"b": 1, "a": 2}')]),
        dict(role="tool", content="Open."),
        agent("<think>All is done.</think>The door is open."),
    ]
    log, decisions = imported(
        jsonl(tmp_path, dict(messages=messages, id="run 7", tools=[dict(type="function")]))
    )
    assert log.format == "openai" and not log.dropped.rows() and log.episodes == 1
    assert [d.reference for d in decisions] == [
        '{"name": "move", "arguments": {"to": "door"}}',
        '[{"name": "open", "arguments": {}}, {"name": "look", "arguments": {"a": 2, "b": 1}}]',
        "The door is open.",
    ]
    assert [d.trace for d in decisions] == ["It is shut.", "I open it.", "All is done."]
    assert [d.id for d in decisions] == ["run 7#0", "run 7#1", "run 7#2"]
    assert decisions[0].messages == (dict(role="system", content="Act."), user("Open\nthe door."))
    assert decisions[1].messages[2] == dict(role="agent", trace="It is shut.", action=decisions[0].reference)
    assert decisions[1].messages[3] == dict(role="tool", content="You are at the door.", name="move")
    assert log.signatures == {'[{"type": "function"}]'}


def test_sharegpt_turns_in_one_list_of_a_file(tmp_path):
    path = tmp_path / "share.json"
    turns = [
        ("human", "Go."),
        ("function_call", '{"name": "go", "arguments": {"to": "a"}}'),
        ("observation", "At a."),
    ]
    turns.append(("gpt", "There."))
    record = dict(system="Act.", conversations=[{"from": role, "value": text} for role, text in turns])
    path.write_text(json.dumps([record, dict(record, system="Do.")], indent=1))
    log, decisions = imported(path)
    assert log.format == "sharegpt" and [d.reference for d in decisions[:2]] == [
        '{"name": "go", "arguments": {"to": "a"}}',
        "There.",
    ]
    assert [m["role"] for m in decisions[1].messages] == [
        "system",
        "user",
        "agent",
        "tool",
    ] and log.episodes == 2


CHATML = "<|im_start|>system\nAct.<|im_end|>\n<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n"
BARE = "system\nAct.\nuser\nGo.\nassistant\n"


@pytest.mark.parametrize("prompt, end", [(CHATML, "<|im_end|>"), (BARE, "")])
def test_verl_rollouts_are_split_at_their_templates_markers(tmp_path, prompt, end):
    first = '<think>\nWhere?\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    answer = "user\n<tool_response>\nA door.\n</tool_response>"
    output = f"{first}\n{answer}\nassistant\n<action>open door</action>"
    if end:
        output = (
            f"{first}{end}\n<|im_start|>{answer}{end}\n<|im_start|>assistant\n<action>open door</action>{end}"
        )
    log, decisions = imported(
        jsonl(
            tmp_path,
            dict(input=prompt, output=output, gts=None, score=1.0, step=3, acc=float("nan")),
            dict(input=prompt, output="<think>other</think>sit", score=0.0, step=3),
        )
    )
    assert log.format == "verl" and reasons(log) == {"a decision with the same messages as an earlier one": 1}
    assert [(d.trace, d.reference) for d in decisions] == [
        ("Where?", '{"name": "look", "arguments": {}}'),
        ("", "open door"),
    ]
    assert decisions[1].messages[-1] == dict(role="tool", content="A door.")


def test_rollouts_of_one_prompt_are_one_episode_and_those_below_a_score_are_left_out(tmp_path):
    def record(reply, reward):
        turns = [agent(reply), user("And now?"), agent("sit")]
        return dict(prompt=[user("Go.")], completion=turns, reward=reward)

    path = jsonl(
        tmp_path, record("go", 1), record("stay", 0.2), record("run", 1), dict(prompt="x", completion="y")
    )
    log, decisions = imported(path, score="reward")
    assert log.format == "trl" and log.episodes == 1
    assert [d.id for d in decisions] == ["log, line 1#0", "log, line 1#1", "log, line 1#2"]
    assert reasons(log) == {
        "a conversation whose reward is below 1": 1,
        "a conversation without the score 'reward'": 1,
        "a decision with the same messages as an earlier one": 1,
    }
    assert log.dropped.first["a conversation without the score 'reward'"].endswith(
        "line 4: its numbers are none"
    )


def test_parquet_rows_of_trl_and_verl(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        dict(step=1, prompt="Go.", completion="go", accuracy_reward=1.0, images=b"x"),
        dict(step=1, prompt="Sit.", completion="sit", accuracy_reward=None, images=b"x"),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "completions.parquet")
    log, decisions = imported(tmp_path / "completions.parquet", score="accuracy_reward")
    assert log.format == "trl" and [d.reference for d in decisions] == ["go"]
    assert "'accuracy_reward'" in next(iter(reasons(log)))
    calls = [
        agent(tool_calls=[dict(function=dict(name="go", arguments=dict(to="a", by=None)))]),
        user("now?"),
    ]
    rows = [dict(prompt=[user("Go."), *calls], responses=["left", "<think>cut"], data_source="own")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "generated.parquet")
    log, decisions = imported(tmp_path / "generated.parquet")
    assert log.format == "verl" and [d.reference for d in decisions] == [
        '{"name": "go", "arguments": {"to": "a"}}',
        "left",
    ]
    assert decisions[0].task_type == "own" and reasons(log)["a trace that has no end"] == 1


def test_logs_of_inspect(tmp_path):
    pytest.importorskip("inspect_ai")
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
    )
    from inspect_ai.scorer import Score
    from inspect_ai.tool import ToolCall

    def sample(epoch, last, grade):
        thought = [ContentReasoning(reasoning="It is shut."), ContentText(text="")]
        calls = [ToolCall(id="1", function="open", arguments=dict(what="door"))]
        messages = [
            ChatMessageUser(content="Open the door."),
            ChatMessageAssistant(content=thought, tool_calls=calls),
            ChatMessageTool(content="Open.", tool_call_id="1", function="open"),
            ChatMessageAssistant(content=last),
        ]
        scores = dict(match=Score(value=grade))
        return EvalSample(id=1, epoch=epoch, input="x", target="y", messages=messages, scores=scores)

    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="doors",
        dataset=EvalDataset(),
        model="m",
        config=EvalConfig(),
    )
    for name in ("log.eval", "log.json"):
        path = tmp_path / name
        write_eval_log(
            EvalLog(eval=spec, status="success", samples=[sample(1, "Done.", "C"), sample(2, "No.", "I")]),
            str(path),
        )
        log, decisions = imported(path, score="match")
        assert [(d.trace, d.reference, d.id) for d in decisions] == [
            ("It is shut.", '{"name": "open", "arguments": {"what": "door"}}', "doors/1/1#0"),
            ("", "Done.", "doors/1/1#1"),
        ]
        assert (
            reasons(log) == {"a conversation whose match is below 1": 1} and decisions[0].task_type == "doors"
        )
    damaged = tmp_path / "damaged.eval"
    damaged.write_bytes((tmp_path / "log.eval").read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged.eval cannot be read as a log of inspect"):
        imported(damaged)


def test_without_inspects_package_its_logs_are_refused_in_a_sentence(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as archive:
        archive.writestr("header.json", "{}")
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(ImportError, match=r"pip install 'interp-agents\[inspect\]'"):
        imported(tmp_path / "log.eval")
    monkeypatch.setitem(
        sys.modules, "inspect_ai.log", types.SimpleNamespace(read_eval_log=0, read_eval_log_samples=0)
    )
    monkeypatch.setenv(VARIABLE, "1")
    with zipfile.ZipFile(tmp_path / "bomb.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/1.json", b" " * 2**21)
    with pytest.raises(ValueError, match="'samples/1.json' unpacks to 2.00 MiB, and may have 1.00 MiB"):
        imported(tmp_path / "bomb.eval")


UNFIT = {
    "a turn without an action": [user("a"), agent(None), user("b"), agent("go")],
    "a tool call whose arguments are no JSON object": [
        user("a"),
        agent(tool_calls=[call(arguments='{"a"')]),
        user("b"),
        agent("go"),
    ],
    "a tool call without a name": [
        user("a"),
        agent(tool_calls=[dict(function=dict(arguments="{}"))]),
        user("b"),
        agent("go"),
    ],
    "tool calls that are no JSON list": [user("a"), agent(tool_calls=7), user("b"), agent("go")],
    "a trace that has no end": [user("a"), agent("<think>so"), user("b"), agent("go")],
    "a turn that answers neither the user nor a tool": [user("b"), agent("go"), agent("go on")],
    "a decision after a message with a part that is no text": [
        user("b"),
        agent("go"),
        user([dict(type="image_url", image_url=dict(url="data:"))]),
        agent("see"),
        agent("see more"),
    ],
    "a decision after a message whose role is not known": [
        user("b"),
        agent("go"),
        dict(role="robot", content="x"),
        agent("y"),
    ],
    "a decision after a message whose content is neither text nor a list of parts": [
        user("b"),
        agent("go"),
        user(dict(a=1)),
        agent("y"),
    ],
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_is_no_decision_is_counted_and_the_rest_is_kept(tmp_path, reason):
    log, decisions = imported(jsonl(tmp_path, dict(messages=UNFIT[reason])))
    assert [d.reference for d in decisions] == ["go"]
    assert reasons(log) == {reason: 2 if "part" in reason and "neither" not in reason else 1}
    assert "log.jsonl, line 1, message" in log.dropped.first[reason]


def test_control_characters_are_taken_out_and_counted(tmp_path):
    log, (decision,) = imported(jsonl(tmp_path, dict(messages=[user("\x1b[31mred\x00"), agent("go\x07")])))
    assert decision.messages[0]["content"] == "[31mred" and decision.reference == "go"
    assert [row["n"] for row in log.changed.rows()] == [2]


BROKEN = {
    "cut": (b'{"messages": []}\n{"messages": [', "line 2: this is no JSON"),
    "deep": (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "line 1: the JSON is nested too deeply"),
    "bytes": (b'{"messages": []}\n{"a": "\xff"}', "line 2: byte 8 is 0xff"),
    "surrogate": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half of a surrogate pair"),
    "unknown": (b'{"texts": 1}', r"line 1: the format is not known by its fields \(texts\)"),
    "decisions": (b'{"messages": [], "reference": "a"}', "a file of decisions already"),
    "records": (b'[{"messages": []}]', "a list of records, not one record: call the file .json"),
    "gzip": (b"\x1f\x8b\x08\0", "is gzip"),
    "pickle": (b"\x80\x04\x95", "is a pickle"),
    "parquet": (b"PAR1 and no more", "is a damaged parquet file"),
    "text": (b"hello\n", "line 1: this is no JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_log_is_refused_with_its_file_and_line(tmp_path, kind):
    content, words = BROKEN[kind]
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words) as told:
        imported(tmp_path / "log.jsonl")
    assert "log.jsonl" in str(told.value)


def test_a_damaged_list_is_refused_with_its_line(tmp_path):
    path = tmp_path / "share.json"
    path.write_text('[\n{"conversations": []},\n{"conversations": ]\n]')
    with pytest.raises(ValueError, match="share.json, line 3, column 19: this is no JSON"):
        imported(path)
    path.write_text('[{"conversations": []} {"conversations": []}]')
    with pytest.raises(ValueError, match="record 1 .*neither a comma nor the end"):
        imported(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="share.json"):
        imported(path)


def test_one_conversation_over_several_lines_and_packed_ones_are_read(tmp_path):
    messages = [user("a"), agent("go")]
    for text in (json.dumps(messages, indent=1), json.dumps(dict(messages=messages), indent=1)):
        (tmp_path / "one.json").write_text(text)
        assert [d.reference for d in imported(tmp_path / "one.json")[1]] == ["go"]
    (tmp_path / "log.jsonl.xz").write_bytes(lzma.compress(json.dumps(messages).encode()))
    assert [d.reference for d in imported(tmp_path / "log.jsonl.xz")[1]] == ["go"]


def test_lines_and_files_have_limits(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    path = jsonl(tmp_path, dict(messages=[user("a" * 70_000), agent("go")]))
    with pytest.raises(ValueError, match="line 1: the line has more than 0.0625 MiB"):
        imported(path)
    many = [dict(messages=[user(f"{i} {'a' * 50_000}"), agent("go")]) for i in range(20)]
    log, decisions = imported(jsonl(tmp_path, *many))
    assert len(decisions) == 20
    turns = [user("a" * 30_000), agent("b"), user("c" * 30_000), agent("d")]
    record = dict(messages=turns)
    turns[-1]["content"] = "d" * (65_500 - len(json.dumps(record)))
    log, decisions = imported(jsonl(tmp_path, record))
    assert [d.reference for d in decisions] == ["b"]
    assert reasons(log) == {"a decision of more than 0.0625 MiB": 1}


def test_a_file_of_decisions_is_not_made_larger_than_one_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.tasks.importers.decisions.MAX_ROWS", 3)
    many = [dict(messages=[user(str(i)), agent("go")]) for i in range(5)]
    log, decisions = imported(jsonl(tmp_path, *many))
    assert len(decisions) == 3 and "all from here on" in next(iter(reasons(log)))
    assert next(iter(log.dropped.first.values())).endswith("line 4")


def test_texts_are_split_at_what_the_agent_wrote():
    assert split_text("go") == ("", "go")
    assert split_text("so it is\n</think>\ngo") == ("so it is", "go")
    assert split_text("<think>a</think>b<action>c</action>") == ("a\nb", "c")
    assert agent_turn(agent("x"), lambda text: (None, None)).unfit.reason == "a turn without an action"
    assert split_chat("no markers, but a user\nand more") == []
    llama = "<|start_header_id|>user<|end_header_id|>\n\nGo.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nno"
    assert split_chat(f"<|begin_of_text|>{llama}") == [user("Go."), agent("no")]
    assert split_chat("<start_of_turn>user\nGo.<end_of_turn>\n<start_of_turn>model\nno")[1] == dict(
        role="model", content="no"
    )


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["user", "assistant", "{", "<think>", "[]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "type",
                    "text",
                    "from",
                    "value",
                    "tools",
                    "id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
RECORDS = (
    st.fixed_dictionaries({"messages": VALUES | st.lists(VALUES, max_size=3)})
    | st.fixed_dictionaries({"prompt": VALUES, "completion": VALUES})
    | st.fixed_dictionaries({"conversations": VALUES | st.lists(VALUES, max_size=3)})
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@settings(max_examples=60)
@given(records=st.lists(RECORDS, min_size=5, max_size=15))
def test_any_value_in_a_record_is_taken_or_counted(folder, records):
    log, decisions = imported(jsonl(folder, dict(messages=[user("a"), agent("go")]), *records))
    assert len(decisions) == log.decisions >= 1
