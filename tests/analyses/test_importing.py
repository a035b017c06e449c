"""`import`: a log to a file of decisions, said in a few lines, each mistake one sentence."""

import json

import pytest

from interp.tasks.episodes import load_episodes
from tests.command_line import main


@pytest.fixture
def log(tmp_path):
    turns = [dict(role="user", content="Go."), dict(role="assistant", content="Thought: hm\nAction: go")]
    cut = [dict(role="user", content="Sit.\x1b"), dict(role="assistant", content="\u202eThought: hm")]
    tools = [dict(type="function", function=dict(name="go"))]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(dict(messages=each, tools=tools)) + "\n" for each in (turns, cut)))
    return path


def test_decisions_are_written_and_what_was_left_out_is_said(log, tmp_path, capsys):
    out = tmp_path / "own.jsonl"
    assert main("import", log, "--out", out, "--style", "react", "--split", "out_of_domain") == 0
    printed = capsys.readouterr().out
    (decision,) = load_episodes(out)
    assert (decision.trace, decision.reference, decision.split) == ("hm", "go", "test_out_of_domain")
    assert "own.jsonl: 1 decisions of 1 episodes (openai)" in printed
    assert "left out 1: a turn without an action; first" in printed and "line 2, message 1" in printed
    assert "\x1b" not in printed and "\u202e" not in printed
    assert "changed 1: control characters were taken out of a message" in printed
    assert f"--decisions {out} --tools {tmp_path / 'own.tools.json'}" in printed
    kept = json.loads((tmp_path / "own.import.json").read_text())
    assert kept["dropped"][0]["n"] == 1 and kept["format"] == "openai"
    assert json.loads((tmp_path / "own.tools.json").read_text())[0]["type"] == "function"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("gone.jsonl",), "--file: there is no file or folder gone.jsonl"),
        (("LOG", "--out", "LOG"), "--out is the log itself"),
        (("LOG", "--out", "decisions.xz"), "should be a file named .jsonl"),
        (("LOG", "--format", "csv"), "invalid choice 'csv'"),
        (("LOG", "--style", "xml"), "There is no prompt style 'xml'"),
        (("LOG", "--format", "sharegpt"), "gives no decision: a record whose 'conversation' are no list"),
        (("LOG", "--score", "reward"), "gives no decision: a conversation without the score 'reward'"),
        (("EMPTY",), "gives no decision: it is empty"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_file(log, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    names = dict(LOG=log, EMPTY=tmp_path / "empty.jsonl")
    assert main("import", *(names.get(word, word) for word in arguments)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and words in errors
    assert not (tmp_path / "decisions.jsonl").exists()
