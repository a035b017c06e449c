"""A user's JSON files: what is at fault is said in one sentence with the file, and nothing else is raised
whatever they hold."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.environments.alfworld.scenes import official_games
from interp.system.json_files import MAX_DEPTH, parse_json, read_json, read_tools, read_training

GOOD = '{"style": "tags", "system": "Act.", "loss": [1.5, 2e3, -0.0], "n": 3}'
#: name -> bytes of a training.json, and the words of its sentence.
BAD = {
    "empty": (b"", "is empty, and should hold JSON"),
    "blank": (b" \n\n", "is empty"),
    "no JSON": (b'{"style": tags}', "line 1, column 11: this is no JSON"),
    "a cut": (GOOD[:-10].encode(), "line 1, column .*: this is no JSON"),
    "a second line at fault": (b'{"style": "tags",\n "n": }', "line 2, column 7: this is no JSON"),
    "two values": (b"{} {}", "column 4: this is no JSON .Extra data"),
    "a list": (b"[1]", "holds a JSON list, and should hold one JSON object"),
    "null": (b"null", "holds null, and should hold one JSON object"),
    "a number": (b"3", "holds 3, and"),
    "true": (b"true", "holds true, and"),
    "text": (b'"tags"', 'holds "tags", and'),
    "a number for a style": (b'{"style": 3}', "'style' is text, not 3"),
    "a list for a system prompt": (b'{"system": ["a"]}', "'system' is text, not a JSON list"),
    "null for a system prompt": (b'{"system": null}', "'system' is text, not null"),
    "a key twice": (b'{"style": "tags", "style": "llama3"}', "the JSON value has the key 'style' twice"),
    "an inner key twice": (b'{"a": [{"b": 1, "b": 2}]}', r"'a\[0\]' has the key 'b' twice"),
    "a key twice within one that is": (
        b'{"a": {"b": 1, "b": 2}, "a": 3}',
        "the JSON value has the key 'a' twice",
    ),
    "an overflow": (
        b'{"loss": [1, 1e999]}',
        r"'loss\[1\]' is at fault, 1e999 is larger than any number here",
    ),
    "NaN": (b'{"loss": {"last": NaN}}', "'loss.last' is at fault, NaN is no JSON number"),
    "Infinity": (b'{"loss": -Infinity}', "'loss' is at fault, -Infinity is no JSON number"),
    "half of a pair": (b'{"system": "a\\ud800"}', r"'system' holds U\+D800, half of a surrogate pair"),
    "half of a pair in a key": (b'{"a": {"\\udc00": 1}}', r"'a' holds U\+DC00"),
    "a long whole number": (b'{"n": ' + b"9" * 5000 + b"}", "a whole number of more than 4,300 digits"),
    "a deep nest": (
        b'{"a": ' + b"[" * 10000 + b"]" * 10000 + b"}",
        "nested too deeply, and may be nested 100 deep",
    ),
    "a nest one too deep": (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested too deeply"),
    "Latin-1": (
        '{"system":\n "h\u00e4ll"}'.encode("latin-1"),
        "byte 4 of line 2 is 0xe4, which is not UTF-8",
    ),
    "UTF-16": (GOOD.encode("utf-16"), "the file is UTF-16, and should be UTF-8"),
    "UTF-32": (GOOD.encode("utf-32"), "the file is UTF-32, and should be UTF-8"),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), "this is no JSON"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "byte 1 is 0x89, which is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_training_json_is_one_sentence(tmp_path, name):
    data, words = BAD[name]
    path = tmp_path / "training.json"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_training(path)
    sentence = str(error.value)
    assert (
        str(path) in sentence and re.search(words, sentence) and "\n" not in sentence and len(sentence) < 400
    )


@pytest.mark.parametrize(
    "data, words",
    [
        ("3", "holds 3, and should hold the list of function signatures"),
        ("null", "holds null, and"),
        ("true", "holds true, and"),
        ("{}", "holds one JSON object, and should hold the list"),
        ("[3]", "function 0 is 3, and"),
        ('[{}, ["a"]]', "function 1 is a JSON list, and"),
        ("", "is empty, and should hold the list"),
    ],
)
def test_tools_are_a_list_of_objects(tmp_path, data, words):
    path = tmp_path / "tools.json"
    path.write_text(data)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{words}"):
        read_tools(path)


def test_a_byte_order_mark_and_values_at_the_limit_are_read(tmp_path):
    path = tmp_path / "training.json"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_training(path) == json.loads(GOOD)
    nest = '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    assert parse_json(nest) == json.loads(nest)
    assert parse_json('{"a": "\\ud83d\\ude00 \\\\ud800 [[[["}') == {"a": "\U0001f600 \\ud800 [[[["}


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, kind, words in (
        (tmp_path, ValueError, "is a folder"),
        (tmp_path / "pipe", ValueError, "is a named pipe, .*to a file first"),
        ("/dev/zero", ValueError, "is a device"),
        (tmp_path / "none", FileNotFoundError, "There is no file"),
        (tmp_path / "loop", OSError, "loop"),
    ):
        with pytest.raises(kind, match=words):
            read_json(path)


def test_a_large_file_is_refused_by_its_number(tmp_path):
    path = tmp_path / "large.json"
    path.write_text("[" + "0," * 2**20 + "0]")
    with pytest.raises(ValueError, match="large.json has 2 MiB, and may have 1 MiB"):
        read_json(path, list, limit=2**20)


@pytest.mark.parametrize(
    "game, trial, words",
    [
        ("{", "{}", "game.tw-pddl, line 1, column 2: this is no JSON"),
        ("{}", "[]", "traj_data.json holds a JSON list"),
        ("{}", "{}", "no official game .KeyError: 'task_type'"),
        ("{}", '{"task_type": "pick_and_place_simple", "pddl_params": 3}', "no official game .TypeError"),
    ],
)
def test_a_damaged_official_game_is_named(tmp_path, game, trial, words):
    folder = tmp_path / "json_2.1.1" / "valid_seen" / "pick" / "trial_1"
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(game)
    (folder / "traj_data.json").write_text(trial)
    with pytest.raises(ValueError, match=words):
        official_games("valid_seen", str(tmp_path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_any_value_reads_back_equal(value):
    assert parse_json(json.dumps(value)) == value


@given(VALUES, st.data())
def test_a_changed_byte_is_a_sentence_or_another_value(tmp_path_factory, value, data):
    path = tmp_path_factory.getbasetemp() / "changed.json"
    whole = bytearray(json.dumps({"a": value}).encode())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] if data.draw(st.booleans()) else whole)
    try:
        read_json(path)
    except ValueError as error:
        assert str(path) in str(error)
