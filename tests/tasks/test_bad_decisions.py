"""Bad files of decisions: each is one sentence that names the file and the line, and leaves earlier results
as they are."""

import json
import lzma
import re

import pytest

from interp.tasks import rows
from interp.tasks.episodes import load_episodes
from tests.command_line import main
from tests.conftest import handmade, tiny_hf


@pytest.fixture(scope="module")
def series(tokenizer, tmp_path_factory):
    """One random checkpoint: no decision of this file gets as far as being read by it, but those without a
    fault."""
    folder = tmp_path_factory.mktemp("series") / "checkpoint-4"
    tiny_hf("Llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder.parent


def row(number=0, **changes):
    """A decision without a fault, the step `number` of a game."""
    turns = [dict(role="user", content="You are in a hall. Your task is to: open the door.")]
    for _ in range(number):
        turns += [
            dict(role="assistant", trace="Look first.", action="look"),
            dict(role="user", content="A door."),
        ]
    found = dict(
        messages=turns,
        reference="open door",
        trace="It is closed.",
        admissible=["open door", "look"],
        episode="game-7",
        step=number,
        task="open the door",
        task_type="open",
        split="in_domain",
    )
    return {k: v for k, v in (found | changes).items() if v is not ...}


def message(**changes):
    """The changes that put a message of one's own before the last one."""
    return dict(
        messages=[
            dict(role="user", content="Your task is to: open the door."),
            {k: v for k, v in changes.items() if v is not ...},
            dict(role="user", content="A door."),
        ]
    )


def episode(**changes):
    return {
        k: v
        for k, v in (
            json.loads(json.dumps(vars(handmade(0, "test_in_domain")), default=vars)) | changes
        ).items()
        if v is not ...
    }


def second(**changes):
    """A file whose second line is at fault."""
    return [row(0), row(1, **changes)]


def text(found):
    return "".join(json.dumps(r) + "\n" for r in found)


def step(**changes):
    return episode(steps=[episode()["steps"][0] | changes])


GOOD = text([row(0), row(1)])
#: name -> what the file holds (rows, text or bytes), and the words of its sentence.
BAD = {
    "an empty file": ("", "holds no episodes and no decisions: it is empty"),
    "blank lines only": ("\n \n\n", "holds no episodes and no decisions"),
    "no messages": (
        second(messages=...),
        "line 2: this is neither an episode nor a decision.*'steps'.*'messages'",
    ),
    "an empty list of messages": (second(messages=[]), "line 2: there are no messages"),
    "messages that are a text": (
        second(messages="hello"),
        "line 2: 'messages' is a list of messages, not \"hello\"",
    ),
    "a message that is a text": (
        second(messages=["hello"]),
        'line 2: message 0 is a JSON object with a role and its text, not "hello"',
    ),
    "the agent's message last": (
        second(messages=[dict(role="user", content="open the door"), dict(role="agent", action="look")]),
        "line 2: the messages of a decision end with the user or tool turn .* not with one of the agent",
    ),
    "an unknown role": (
        second(**message(role="robot", content="a")),
        'line 2: a message has a role, one of system, .*message 1 has "robot"',
    ),
    "no role": (second(**message(content="a")), "line 2: a message has a role, .* message 1 has null"),
    "a message without text": (
        second(**message(role="user")),
        "line 2: a message has a role and text, but message 1 has null for its 'content'",
    ),
    "an agent's message without text": (
        second(**message(role="assistant", trace="a")),
        "line 2: .*message 1 has null for its 'content' and no 'action'",
    ),
    "a user's message with an action": (
        second(**message(role="user", action="look")),
        "line 2: .*message 1 has null",
    ),
    "a message of parts": (
        second(**message(role="user", content=[dict(type="text", text="a")])),
        'line 2: a message has a role and text.*"type"',
    ),
    "a number for a message's action": (
        second(**message(role="agent", action=3)),
        "line 2: the action of message 1 is text or a JSON object, or a list of objects, not 3",
    ),
    "a number for a message's trace": (
        second(**message(role="agent", action="look", trace=3)),
        "line 2: the trace of message 1 is text or null, not 3",
    ),
    "no reference": (second(reference=...), "line 2: a decision needs its 'reference' action"),
    "a blank reference": (second(reference=" "), "line 2: the reference is blank"),
    "a number for a reference": (
        second(reference=3),
        "line 2: the reference is text or a JSON object, or a list of objects, not 3",
    ),
    "a reference that is not admissible": (
        second(reference="fly"),
        "line 2: the reference 'fly' is not among the 2 admissible actions.*'open door'",
    ),
    "a text for the admissible actions": (
        second(admissible="open door"),
        "line 2: 'admissible' is a list of actions, not \"open door\"",
    ),
    "a number among the admissible actions": (
        second(admissible=["open door", 3]),
        "line 2: admissible action 1 is text or a JSON object, or a list of objects, not 3",
    ),
    "a text for a step": (second(step="1"), "line 2: 'step' is a whole number from 0 on, not \"1\""),
    "a step below 0": (second(step=-1), "line 2: 'step' is a whole number from 0 on, not -1"),
    "half a step": (second(step=1.5), "line 2: 'step' is a whole number from 0 on, not 1.5"),
    "true for a step": (second(step=True), "line 2: 'step' is a whole number from 0 on, not true"),
    "a number for an episode": (second(episode=7), "line 2: 'episode' is text, not 7"),
    "null for a trace": (second(trace=None), "line 2: 'trace' is text, not null"),
    "an unknown field": (
        second(refrence="open"),
        "line 2: 'refrence' is no field of a decision: there are messages, reference, ",
    ),
    "a task that no message says": (
        second(task="fly away"),
        "line 2: the task 'fly away' is in none of the user's messages",
    ),
    "an unknown split": (
        second(split="validation", episode="b"),
        "line 2: there is no split 'validation': there are base, .*in_domain",
    ),
    "one decision twice": (
        [row(0), row(1), row(1)],
        r"line 3: step 1 of the episode 'game-7' is there already \(line 2\)",
    ),
    "steps out of order": (
        [row(1), row(0)],
        r"line 2: step 0 of the episode 'game-7' comes after step 1 \(line 1\).*rising order",
    ),
    "an episode in two splits": (
        [row(0), row(1, split="out_of_domain")],
        "line 2: the episode 'game-7' is of the split 'test_out_of_domain' here",
    ),
    "an episode and its decision": (
        [episode(), row(1, episode=episode()["id"])],
        r"line 2: the episode 'test_in_domain/0' is there already \(line 1\)",
    ),
    "one episode twice": (
        [episode(), episode()],
        r"line 2: the episode 'test_in_domain/0' is there already \(line 1\)",
    ),
    "an episode without its start": ([row(), episode(start=...)], "line 2: an episode needs its 'start'"),
    "an episode's unknown field": ([row(), episode(colour=1)], "line 2: 'colour' is no field of an episode"),
    "an episode's number for a text": ([row(), episode(task=3)], "line 2: 'task' is text, not 3"),
    "an episode whose task is nowhere": (
        [row(), episode(task="fly away")],
        "line 2: the task 'fly away' is not in the episode's start",
    ),
    "an episode's step without an action": (
        [row(), episode(steps=[dict(trace="a")])],
        "line 2: step 0: a step needs its 'action'",
    ),
    "an episode's step that is a text": (
        [row(), episode(steps=["a"])],
        "line 2: 'steps' is a list of JSON objects",
    ),
    "an episode's reference that is not admissible": (
        [row(), step(reference="fly")],
        "line 2: step 0: the reference 'fly' is not among",
    ),
    "an episode's number for an action": ([row(), step(action=3)], "line 2: step 0: 'action' is text, not 3"),
    "a number among an episode's admissible": (
        [row(), step(admissible=[3])],
        "line 2: step 0: an admissible action is text, not 3",
    ),
    "a last line that is cut": (GOOD[:-60], "line 2: the last line is cut off in the middle"),
    "a line that is no JSON": (GOOD.replace('"reference"', "reference"), "line 1: this is no JSON"),
    "a JSON list": (
        json.dumps([row(0), row(1)]),
        "line 1: there is a JSON list, and each line should be one JSON object",
    ),
    "JSON over several lines": (
        json.dumps([row(0)], indent=1),
        "line 1: a JSON value is spread over several lines",
    ),
    "a number": (GOOD + "7\n", "line 3: there is 7, and each line should be one JSON object"),
    "NaN": (GOOD.replace('"step": 1', '"step": NaN'), "line 2: .*NaN is no JSON number"),
    "Infinity": (GOOD.replace('"step": 1', '"step": -Infinity'), "line 2: .*-Infinity is no JSON number"),
    "a nest without end": (GOOD + '{"messages": ' + "[" * 100000, "line 3: the JSON is nested too deeply"),
    "Latin-1": (
        text([row(0)]).encode()
        + text([row(1)]).replace("hall", "h\u00e4ll").encode("latin-1").replace(b"\\u00e4", b"\xe4"),
        "line 2: byte .* is 0xe4, which is not UTF-8",
    ),
    "UTF-16": (GOOD.encode("utf-16"), "line 1: the file is UTF-16, and should be UTF-8"),
    "UTF-16 without a mark": (
        GOOD.encode("utf-16-le"),
        "line 1: there are NUL bytes in it, as UTF-16 has them",
    ),
    "NUL in a message": (
        second(**message(role="user", content="a\0b")),
        r"line 2: message 1's content holds the control character U\+0000 at character 2",
    ),
    "a control character in a trace": (
        second(trace="a \x1b[1m"),
        r"line 2: 'trace' holds the control character U\+001B at character 3",
    ),
    "half of a pair": (
        second(**message(role="user", content="a\ud800")),
        r"line 2: 'messages\[1\].content' holds U\+D800, half of a surrogate pair",
    ),
    "an endless line": (
        GOOD + json.dumps(row(2)) + " " * 70000,
        r"line 3: the line has 0.07 MiB and may have 0.0625: .*\(INTERP_MAX_FILE_MB is 16 times",
    ),
    "a second object in a line": (GOOD.rstrip("\n") + GOOD, "line 2: a second JSON object begins at column"),
    "a key twice": (
        GOOD.replace('"step": 1', '"step": 1, "step": 2'),
        "line 2: the JSON value has the key 'step' twice",
    ),
    "a message's key twice": (
        GOOD.replace('"role": "user"', '"role": "user", "role": "agent"'),
        r"line 1: 'messages\[0\]' has the key 'role' twice",
    ),
    "an overflow": (
        GOOD.replace('"step": 1', '"step": 1e999'),
        "line 2: 'step' is at fault, 1e999 is larger than any number here",
    ),
    "a number of 5,000 digits": (
        GOOD.replace('"step": 1', '"step": ' + "1" * 5000),
        "line 2: there is a whole number of more than 4,300 digits",
    ),
    "a number of 30 digits": (
        GOOD.replace('"step": 1', '"step": ' + "1" * 30),
        "line 2: 'step' is a whole number from 0 on",
    ),
    "a scene of 30 digits": ([episode(scene=10**30)], "line 1: 'scene' is a whole number up to"),
    "a nest in a message": (
        GOOD.replace('"role": "user"', '"name": ' + "[" * 500 + "]" * 500 + ', "role": "user"'),
        "line 1: the JSON is nested too deeply",
    ),
    "half of a pair in what only the template reads": (
        GOOD.replace('"role": "user"', '"name": "\\udfff", "role": "user"'),
        r"line 1: 'messages\[0\].name' holds U\+DFFF",
    ),
    "too many actions": (
        [row(0, admissible=["open door", "look", "sing"])],
        "line 1: 'admissible' lists 3 actions, and may list 2: .*closed_actions=False",
    ),
    "too many steps": (
        [row(), step(), episode(id="b", steps=episode()["steps"][:1] * 7)],
        "line 3: 'steps' holds 7, and may hold 6: .*rows of their own",
    ),
    "a blank reference of a step": (
        [row(), step(reference=" ", admissible=[])],
        "line 2: step 0: the reference is blank",
    ),
    "UTF-32": (GOOD.encode("utf-32"), "line 1: the file is UTF-32, and should be UTF-8"),
    "CSV": ("messages,reference\nhello,open\n", "line 1: this looks like CSV"),
    "YAML": ("- messages:\n  - role: user\n", "line 1: this is no JSON"),
    "a web page": ("<!DOCTYPE html>\n<html></html>\n", "line 1: this is no JSON"),
    "a pointer of Git LFS": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "line 1: this is no JSON",
    ),
    "a picture": (b"\x89PNG\r\n\x1a\n", "is a picture, and should be a .jsonl"),
    "a pickle": (b"\x80\x04\x95\x05\x00", "is a pickle, and should be a .jsonl"),
    "a database": (b"SQLite format 3\x00", "is an SQLite database"),
    "no text at all": (b"\x89ABC\r\n\x1a\n\x00\x00", "line 1: byte 1 is 0x89, which is not UTF-8"),
}


def told(capsys, tmp_path, series, file, words):
    """Run an analysis, and hold its standard error to one sentence and its earlier results to their bytes."""
    run = tmp_path / "run"
    for name in ("tables/behaviour.csv", "tables/behaviour.json", "partial/decoded/x.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"earlier {name}")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    status = main("behaviour", "--run", run, "--series", series, "--corpus", file, "--device", "cpu")
    error = capsys.readouterr().err
    assert status == 1 and error.startswith("error: ") and error.count("\n") == 1, error
    assert str(file) in error and re.search(words, error.strip()) and len(error) < 600, error
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def put(path, content):
    content = content if isinstance(content, (str, bytes)) else text(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence_and_leaves_earlier_results(series, tmp_path, capsys, monkeypatch, name):
    content, words = BAD[name]
    monkeypatch.setattr(rows, "MAX_ACTIONS", 2 if name == "too many actions" else 20)
    monkeypatch.setattr(rows, "MAX_STEPS", 6)
    if name == "an endless line":
        monkeypatch.setenv("INTERP_MAX_FILE_MB", "1")
    told(capsys, tmp_path, series, put(tmp_path / "decisions.jsonl", content), words)


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("cut.jsonl.xz", lzma.compress(GOOD.encode())[:-40], "is damaged after line"),
        (
            "flipped.jsonl.xz",
            bytes(b ^ (255 * (i == 40)) for i, b in enumerate(lzma.compress(GOOD.encode()))),
            "is damaged after line 0, in the part of the archive that begins at byte 0",
        ),
        (
            "plain.jsonl.xz",
            GOOD.encode(),
            "is damaged after line 0, in the part of the archive that begins at byte 0",
        ),
    ],
)
def test_a_damaged_archive_is_one_sentence(series, tmp_path, capsys, name, data, words):
    told(capsys, tmp_path, series, put(tmp_path / name, data), words)


def test_a_folder_or_no_file_is_one_sentence(series, tmp_path, capsys):
    told(capsys, tmp_path, series, tmp_path, "is a folder: give a .jsonl or .jsonl.xz file")
    told(capsys, tmp_path, series, tmp_path / "none.jsonl", "No episodes at .*none.jsonl: give a .jsonl")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        (GOOD + "\n\n").encode(),
        GOOD.rstrip("\n").encode(),
        lzma.compress(GOOD.encode()),
    ],
    ids=[
        "a mark of UTF-8",
        "Windows line ends",
        "blank lines at the end",
        "no last line end",
        "an archive that is not named so",
    ],
)
def test_what_does_no_harm_is_read(tmp_path, data):
    assert load_episodes(put(tmp_path / "d.jsonl", data)) == load_episodes(put(tmp_path / "good.jsonl", GOOD))


def test_steps_may_be_missing_and_messages_need_not_extend_one_another(tmp_path):
    short = [dict(role="user", content="Your task is to: open the door. Earlier turns are left out.")]
    assert [
        d.step for d in load_episodes(put(tmp_path / "d.jsonl", [row(0), row(3), row(7, messages=short)]))
    ] == [0, 3, 7]


def test_one_decision_is_measured_and_what_needs_more_is_left_out_in_a_sentence(series, tmp_path, capsys):
    options = (
        "--run",
        tmp_path / "run",
        "--series",
        series,
        "--corpus",
        put(tmp_path / "one.jsonl", [row(0)]),
        "--device",
        "cpu",
        "--trace_tokens",
        "20",
    )
    assert main("behaviour", *options) == 0
    assert (tmp_path / "run" / "tables" / "behaviour.csv").exists()
    for name, words in dict(
        probes="No probe could be fitted",
        patching="No decision has a counterfactual twin",
        reliance="no decision with a counterfactual twin",
        own_traces="no decision with a counterfactual twin",
        conflict="No trace could be inserted",
        early="No trace could be cut",
        shares="No share could be computed",
        steering="There is one decision only",
        online="The environment 'any' has no games that can be played",
    ).items():
        capsys.readouterr()
        assert main(name, *options) == 0
        assert re.search(
            f"(?m)^left out: {name}: .*{words}.*\\. (Give|Install) ",
            capsys.readouterr().err.replace("\r", "\n"),
        ), name
        assert not (tmp_path / "run" / "tables" / f"{name}.csv").exists()
