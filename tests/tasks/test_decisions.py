"""A researcher's own decisions, as JSON lines: read, refused in sentences, and studied with one command."""

import json
import sys
from dataclasses import replace

import pandas as pd
import pytest

from analyses import __main__ as cli
from interp.tasks.actions import canonical, parse, target, verb
from interp.tasks.episodes import Decision, checked, load_corpus, load_episodes, sample_decisions


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**changes):
    return dict(messages=[dict(role="user", content="Open the door.")], reference="open door") | changes


def test_a_decision_needs_only_messages_and_a_reference(tmp_path):
    (decision,) = load_episodes(written(tmp_path / "d.jsonl", [row()]))
    assert decision == Decision(
        (dict(role="user", content="Open the door."),), "open door", (), "line 1", 0, "", "", "test_in_domain"
    )
    assert decision.decisions() == [decision] and decision.previous == ""


def test_a_decision_in_python_needs_no_more():
    turns = [
        dict(role="user", content="Go."),
        dict(role="assistant", content="go"),
        dict(role="user", content="B."),
    ]
    decision = Decision(turns, "open door")
    assert decision.step == 1 and decision.split == "in_domain" and decision.previous == "go"
    assert isinstance(decision.messages, tuple) and decision.messages[1]["role"] == "agent"
    assert repr(decision) == f"Decision('{decision.episode}#1', 3 messages, reference 'open door')"
    assert turns[1]["role"] == "assistant", "what was given stays as it was"


def test_decisions_without_an_episode_are_episodes_of_their_own():
    """Named by what is decided, on every machine and in every order, so that folds keep equal ones together."""
    one, other = (Decision([dict(role="user", content=text)], "open door") for text in ("A.", "B."))
    again = Decision(({"content": "A.", "role": "user"},), "open door", admissible=["open door"][:0])
    assert one.episode == again.episode == "decision-c1bc79499b647ec8" and one == again
    assert len({one.episode, other.episode, replace(one, reference="go", episode="").episode}) == 3
    assert [d.episode for d in checked([one, other], "mine")] == [one.episode, other.episode]
    assert {d.id for d in sample_decisions([one, other], 2)} == {one.id, other.id}


def test_turns_in_the_words_of_a_chat_interface_are_read(tmp_path):
    turns = [
        dict(role="system", content="Act."),
        dict(role="user", content="Go."),
        dict(role="assistant", content="Thought: x\nAction: go"),
        dict(role="tool", content="{}", name="move"),
    ]
    (decision,) = load_episodes(
        written(
            tmp_path / "d.jsonl",
            [
                row(
                    messages=turns,
                    split="out_of_domain",
                    reference={"arguments": {"b": 1, "a": 2}, "name": "f"},
                )
            ],
        )
    )
    assert [m["role"] for m in decision.messages] == [
        "system",
        "user",
        "agent",
        "tool",
    ] and decision.step == 1
    assert (
        decision.reference == '{"name": "f", "arguments": {"a": 2, "b": 1}}'
        and decision.split == "test_out_of_domain"
    )
    assert decision.previous == "Thought: x\nAction: go" and decision.messages[3]["name"] == "move"


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(reference=None, messages=[]), "end with the user or tool turn"),
        (
            dict(messages=[dict(role="user", content="a"), dict(role="agent", action="b")]),
            "end with the user or tool turn",
        ),
        (dict(messages=[dict(role="robot", content="a")]), "a message has a role"),
        (dict(messages=[dict(role="user")]), "a message has a role"),
        (dict(messages=["hello"]), "message 0 is a JSON object"),
        (dict(messages="hello"), "'messages' is a list"),
        (dict(refrence="open"), "'refrence' is no field of a decision"),
    ],
)
def test_a_row_that_is_no_decision_is_named_by_its_line(tmp_path, bad, words):
    with pytest.raises(ValueError, match=f"line 2: .*{words}"):
        load_episodes(written(tmp_path / "d.jsonl", [row(), row(**bad)]))


def test_a_decision_without_a_reference_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 1: .*needs its 'reference'"):
        load_episodes(written(tmp_path / "d.jsonl", [dict(messages=row()["messages"])]))


def test_actions_have_one_form_and_classes():
    assert canonical(" go  to\nshelf 2 ") == "go to shelf 2" and parse(" \n") is None
    assert canonical('{"arguments": {"y": 1, "x": "a"}, "name": "put"}') == canonical(
        {"name": "put", "arguments": {"x": "a", "y": 1}}
    )
    call = canonical({"name": "put", "arguments": {"x": "a", "y": 1}})
    assert (verb(call), target(call)) == ("put", "a") and (verb("take mug 1"), target("take mug 1")) == (
        "take",
        "mug",
    )
    several = canonical([{"arguments": {"y": 1, "x": "a"}, "name": "put"}, {"name": "look"}])
    assert several == '[{"name": "put", "arguments": {"x": "a", "y": 1}}, {"name": "look"}]' == canonical(
        several
    ) and (verb(several), target(several)) == ("put", "a")
    assert canonical([{"name": "look"}]) == canonical(
        '[{"name": "look"}]'
    ) == '{"name": "look"}' and canonical([]) == "[]" == parse(" [ ] ")
    assert verb("[]") == target("[]") == "none" and (verb("[look] around"), target("[go to shelf 2]")) == (
        "[look]",
        "shelf",
    )
    assert canonical("[1, 2]") == "[1, 2]" and target("open door") == "open door" and canonical("3") == "3"


def test_decisions_of_one_episode_are_sampled_together(tmp_path):
    rows = [
        row(episode=f"e{i // 5}", step=i % 5, messages=[dict(role="user", content=str(i))]) for i in range(20)
    ]
    found = load_corpus(written(tmp_path / "d.jsonl", rows))["test_in_domain"]
    drawn = sample_decisions(found, 8)
    assert pd.Series([d.episode for d in drawn]).value_counts().tolist() == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="only 20"):
        sample_decisions(found, 21)


def test_a_folder_of_checkpoints_and_a_file_of_decisions_go_to_figures_with_one_command(
    series_folder, episodes, no_browser, tmp_path, capsys, monkeypatch
):
    """No engine, no admissible actions, one split: what cannot be measured is left out in a sentence, the
    rest is drawn."""
    rows = []
    for episode in episodes["test_in_domain"]:
        for d in episode.decisions():
            turns = [
                m
                if m["role"] == "user"
                else dict(role="assistant", trace=m["trace"], action=m["action"].replace(" 1", ""))
                for m in d.messages
            ]
            rows.append(
                dict(
                    messages=turns, reference=d.reference.replace(" 1", ""), episode=d.episode, trace=d.trace
                )
            )
    file = written(tmp_path / "decisions.jsonl", rows)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "analyses",
            "all",
            "--series",
            str(series_folder),
            "--corpus",
            str(file),
            "--run",
            str(tmp_path / "run"),
            "--device",
            "cpu",
            "--checkpoints",
            "0",
            "110",
            *("--decisions", "24", "--pairs", "6", "--conflicts", "6", "--decisions_read", "6"),
        ],
    )
    assert cli.main() == 0
    assert (
        "left out: online: The environment 'any' has no games that can be played. " in capsys.readouterr().err
    )
    tables = {p.stem for p in (tmp_path / "run" / "tables").glob("*.csv")}
    assert {"behaviour", "probes", "conflict"} <= tables and "online" not in tables
    assert {"behaviour.html", "probes.html", "conflict.html", "index.html"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    frame = pd.read_csv(tmp_path / "run" / "tables" / "behaviour.csv")
    assert set(frame.split) == {"in_domain"} and not frame.metric.str.startswith("choice").any()
