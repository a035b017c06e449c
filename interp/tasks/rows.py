"""Rows of a file of decisions, checked: each fault is told in a sentence that names the field.

>>> row = decision_row(row, "line 1") if "messages" in row else episode_row(row)

What is required: text where text belongs, actions among the admissible ones, a task that a user turn says.
What an agent may well do is not refused: steps may be missing from an episode, and its messages need not
extend one another (a window of history).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from interp.tasks.actions import canonical

ROLES = ("system", "user", "tool", "agent", "assistant")
#: Rows of one file; a study reads some hundreds of them.
MAX_ROWS = 100_000
#: Admissible actions at one step, each of which a forced choice reads.
MAX_ACTIONS = 100_000
#: Steps of one episode: each is a decision with all the turns before it.
MAX_STEPS = 5_000
MAX_NUMBER = 2**53
#: Characters that no text may hold: control characters, and halves of surrogate pairs.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
# pydantic makes it no shorter: each of its errors would have to be translated into one of these sentences
_OPTIONAL = dict(episode=str, task=str, task_type=str, split=str, trace=str)
_STEP = dict(trace=str, action=str, observation=str, reference=str)
_EPISODE = dict(id=str, split=str, task_type=str, scene=int, task=str, start=str, won=bool, kind=str)
_WORDS = {str: "text", int: "a whole number", bool: "true or false"}


def _text(value: object, name: str) -> None:
    """Raise ValueError where text holds control characters, or half of a surrogate pair."""
    text = value
    if not isinstance(text, str):  # tool calls
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:  # of a program, not of a file
            raise ValueError(f"{name} is no JSON ({error})") from None
    if control := CONTROL.search(text):
        raise ValueError(
            f"{name} holds the control character U+{ord(control.group()):04X} at character "
            f"{control.start() + 1}: take it out"
        )


def _typed(row: Mapping, fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if name in row:
            if type(row[name]) is not kind:
                raise ValueError(f"{name!r} is {_WORDS[kind]}, not {_shown(row[name])}")
            if kind is int and abs(row[name]) > MAX_NUMBER:
                raise ValueError(f"{name!r} is a whole number up to {MAX_NUMBER:,}, not {_shown(row[name])}")
            if kind is str:
                _text(row[name], repr(name))


def _known(row: Mapping, fields: Sequence[str], needed: Sequence[str], what: str) -> None:
    for name in row:
        if name not in fields:
            raise ValueError(f"{str(name)[:60]!r} is no field of {what}: there are {', '.join(fields)}")
    for name in needed:
        if name not in row:
            raise ValueError(f"{what} needs its {name!r}" + (" action" if name == "reference" else ""))


def _shown(value: object) -> str:
    try:
        return json.dumps(value, default=str)[:60]
    except (TypeError, ValueError, RecursionError):  # of a program
        return f"a {type(value).__name__} that is no JSON"


def _action(value: object, name: str) -> str:
    """An action in its one form."""
    if not isinstance(value, (str, dict)) and not (
        isinstance(value, list) and all(isinstance(call, dict) for call in value)
    ):
        raise ValueError(f"{name} is text or a JSON object, or a list of objects, not {_shown(value)}")
    _text(value, name)
    if not canonical(value):
        raise ValueError(f"{name} is blank")
    return canonical(value)


def _among(reference: str, admissible: Sequence[str]) -> None:
    if admissible and reference not in admissible:
        raise ValueError(
            f"the reference {reference[:80]!r} is not among the {len(admissible)} admissible actions, of "
            f"which the first is {admissible[0][:80]!r}"
        )


def _admissible(row: Mapping) -> Sequence:
    given = row.get("admissible", ())
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"'admissible' is a list of actions, not {_shown(given)}")
    if len(given) > MAX_ACTIONS:
        raise ValueError(
            f"'admissible' lists {len(given):,} actions, and may list {MAX_ACTIONS:,}: "
            "list a sample that holds the reference, in an environment of one's own with closed_actions=False"
        )
    return given


def _once(actions: Iterable[str]) -> tuple[str, ...]:
    """Each action once: a list may name it for each of two equal things."""
    return tuple(dict.fromkeys(actions))


def _message(m: object, number: int) -> dict:
    if not isinstance(m, dict):
        raise ValueError(f"message {number} is a JSON object with a role and its text, not {_shown(m)}")
    if m.get("role") not in ROLES:
        raise ValueError(
            f"a message has a role, one of {', '.join(ROLES)}, but message {number} has "
            f"{_shown(m.get('role'))}"
        )
    agent = m["role"] in ("agent", "assistant")
    # tables write null into the columns that only other messages fill
    m = {name: value for name, value in m.items() if value is not None or agent and name == "trace"}
    if agent and "action" in m:
        m = {
            **m,
            "action": m["action"]
            if isinstance(m["action"], str)
            else _action(m["action"], f"the action of message {number}"),
        }
    if not isinstance(m.get("content", m.get("action") if agent else None), str):
        raise ValueError(
            f"a message has a role and text, but message {number} has {_shown(m.get('content'))} for its "
            "'content'" + (" and no 'action'" if agent and "action" not in m else "")
        )
    if not isinstance(m.get("trace"), (str, type(None))):
        raise ValueError(f"the trace of message {number} is text or null, not {_shown(m['trace'])}")
    for name in ("content", "trace", "action"):
        if isinstance(m.get(name), str):
            _text(m[name], f"message {number}'s {name}")
    return {**m, "role": "agent" if agent else m["role"]}


def decision_row(row: Mapping, place: str) -> dict:
    """A decision's fields as a user writes them, checked, with defaults for those left out.

    place: where it stands, the id of an episode of its own. Raises ValueError with what is wrong.
    """
    _known(
        row,
        ("messages", "reference", "admissible", "episode", "step", "task", "task_type", "split", "trace"),
        ("messages", "reference"),
        "a decision",
    )
    if not isinstance(row["messages"], (list, tuple)):
        raise ValueError(f"'messages' is a list of messages, not {_shown(row['messages'])}")
    messages = tuple(_message(m, i) for i, m in enumerate(row["messages"]))
    if not messages:
        raise ValueError(
            "there are no messages: the messages of a decision end with the user or tool turn that the agent "
            "answers"
        )
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            "the messages of a decision end with the user or tool turn that the agent answers, not with one "
            f"of the {messages[-1]['role']}"
        )
    _typed(row, _OPTIONAL)
    default = dict(
        episode=place,
        step=sum(m["role"] == "agent" for m in messages),
        task="",
        task_type="",
        split="in_domain",
        trace="",
    )
    fields = {
        **default,
        **row,
        "messages": messages,
        "reference": _action(row["reference"], "the reference"),
        "admissible": _once(_action(a, f"admissible action {i}") for i, a in enumerate(_admissible(row))),
    }
    if type(fields["step"]) is not int or not 0 <= fields["step"] <= MAX_NUMBER:
        raise ValueError(f"'step' is a whole number from 0 on, not {_shown(fields['step'])}")
    if fields["task"] and not any(m["role"] == "user" and fields["task"] in m["content"] for m in messages):
        raise ValueError(
            f"the task {fields['task'][:60]!r} is in none of the user's messages, and should stand in one "
            "word for word"
        )
    _among(fields["reference"], fields["admissible"])
    return fields


def episode_row(row: Mapping) -> dict:
    """An episode's fields, checked; raises ValueError with what is wrong."""
    if "steps" not in row:
        raise ValueError(
            "this is neither an episode nor a decision: an episode has 'steps', a decision 'messages'"
        )
    _known(row, (*_EPISODE, "steps"), [*_EPISODE][:-1], "an episode")
    _typed(row, _EPISODE)
    if not isinstance(row["steps"], (list, tuple)) or not all(isinstance(s, dict) for s in row["steps"]):
        raise ValueError(f"'steps' is a list of JSON objects, not {_shown(row['steps'])}")
    if len(row["steps"]) > MAX_STEPS:
        raise ValueError(
            f"'steps' holds {len(row['steps']):,}, and may hold {MAX_STEPS:,}: "
            "write the decisions that are studied as rows of their own"
        )
    if row["task"] not in row["start"]:
        raise ValueError(
            f"the task {row['task'][:60]!r} is not in the episode's start, and should stand there word for "
            "word"
        )
    steps = []
    for number, step in enumerate(row["steps"]):
        try:
            _known(step, (*_STEP, "admissible"), tuple(_STEP), "a step")
            _typed(step, _STEP)
            admissible = tuple(_admissible(step))
            if wrong := [a for a in admissible if type(a) is not str]:
                raise ValueError(f"an admissible action is text, not {_shown(wrong[0])}")
            _text("\n".join(admissible), "'admissible'")
            if not step["reference"].strip():
                raise ValueError("the reference is blank")
            _among(step["reference"], admissible)
            steps.append({**step, "admissible": _once(admissible)})
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from None
    return {**row, "steps": steps}
