"""Rows of decisions with a value of any kind at any field: read, or one ValueError with the field, and never
another exception."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.environments.base import ANY
from interp.tasks.episodes import Decision, Episode, Step, checked, load_episodes
from tests.tasks.test_bad_decisions import episode, put, row

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["", " ", "agent", "user", "a\0", "\ud800", "{", '{"name": 3}', "[" * 5000, '{"a": NaN}', "in_domain"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "action", "name", "\0"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """Where in a row another value can be put."""
    yield path
    for key, child in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(child, (*path, key))


def changed(found, path, value):
    """The row with another value at a place of it, or without that place."""
    found = copy.deepcopy(found)
    if not path:
        return value
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return found


ROWS = [json.loads(json.dumps(found)) for found in (row(2), episode())]


@settings(max_examples=300)
@given(st.sampled_from(ROWS), VALUES | st.just(...), st.data())
def test_any_value_at_any_field_is_read_or_one_sentence(tmp_path_factory, found, value, data):
    path = data.draw(st.sampled_from([p for p in places(found) if p or value is not ...]))
    file = put(
        tmp_path_factory.getbasetemp() / "fuzzed.jsonl",
        json.dumps(row(0, episode="b")) + "\n" + json.dumps(changed(found, path, value)) + "\n",
    )
    try:
        read = ANY.recorded(file)
    except ValueError as error:
        assert (
            (f"{file}, line 2" in str(error) or "The parser" in str(error))
            and "\n" not in str(error)
            and len(str(error)) < 600
        ), str(error)
    else:
        for item in (d for group in read.values() for e in group for d in e.decisions()):
            assert isinstance(item.reference, str) and all(
                isinstance(kind(item.reference), str) for kind in ANY.classes.values()
            )


ODD = st.sampled_from(
    [
        None,
        3,
        2.5,
        float("nan"),
        object(),
        b"a",
        {1: 2},
        {(1, 2): 3},
        [object()],
        {"role"},
        "a\ud800",
        ("a",),
        lambda: 3,
    ]
)


@given(
    ODD,
    st.sampled_from(
        ["messages", "reference", "admissible", "episode", "step", "task", "task_type", "split", "trace"]
    ),
    st.booleans(),
)
def test_any_object_in_a_programs_decision_is_checked_or_one_sentence(odd, field, wrapped):
    good = Decision((dict(role="user", content="Go."),), "go", (), "e", 0, "", "", "in_domain")
    try:
        checked([Decision(**{**vars(good), field: [odd] if wrapped else odd})], "mine")
    except ValueError as error:
        assert str(error).startswith("mine, number 1: ") and "\n" not in str(error)


@given(ODD, st.sampled_from(["id", "split", "task_type", "scene", "task", "start", "steps", "won", "kind"]))
def test_any_object_in_a_programs_episode_is_checked_or_one_sentence(odd, field):
    good = Episode("e", "in_domain", "", 0, "", "Go.", (Step("", "go", "", "go"),), True)
    try:
        checked([Episode(**{**vars(good), field: odd})], "mine")
    except ValueError as error:
        assert str(error).startswith("mine, number 1: ") and "\n" not in str(error)


def test_null_in_a_message_is_a_column_that_other_messages_fill(tmp_path):
    turns = [
        dict(role="user", content="Go.", action=None, trace=None, name=None),
        dict(role="agent", content=None, action="look", trace=None),
        dict(role="user", content="A door.", action=None, trace=None, name="hall"),
    ]
    (found,) = load_episodes(put(tmp_path / "d.jsonl", [dict(messages=turns, reference="open")]))
    assert found.messages == (
        dict(role="user", content="Go."),
        dict(role="agent", action="look", trace=None),
        dict(role="user", content="A door.", name="hall"),
    )


def test_an_action_that_is_listed_twice_is_one_action(tmp_path):
    found = load_episodes(
        put(tmp_path / "d.jsonl", [row(0, admissible=["open door", "look", "open  door"]), episode()])
    )
    assert found[0].admissible == ("open door", "look")


def test_an_episodes_decisions_hold_the_turns_before_them():
    found = Episode(
        "e",
        "in_domain",
        "",
        0,
        "",
        "Go.",
        tuple(Step(f"t{i}", f"a{i}", f"o{i}", f"a{i}") for i in range(4)),
        True,
    )
    assert [d.messages for d in found.decisions()] == [found.messages(i) for i in range(4)]


@pytest.mark.parametrize("text", ['{"name": "a", "name": "b"}', "[" * 5000, '{"name": 1e999}'])
def test_an_action_that_is_no_strict_json_stays_text(text):
    assert ANY.parse(text) == text
