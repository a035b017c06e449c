"""Rows of a file of decisions: one JSON object a line, and each fault told in a sentence that names its line.

>>> for place, row in lines("decisions.jsonl"):
...     row = decision_row(row) if "messages" in row else episode_row(row)

What is required: text where text belongs, actions among the admissible ones, a task that a user turn says. What an agent may well
do is not refused: steps may be missing from an episode, and its messages need not extend one another (a window of history).
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from interp.actions import canonical

ROLES = ("system", "user", "tool", "agent", "assistant")
#: Longer lines are no decision, but a file without line ends.
MAX_LINE = 64 * 2**20
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_OPTIONAL = dict(episode=str, task=str, task_type=str, split=str, trace=str)
_STEP = dict(trace=str, action=str, observation=str, reference=str)
_EPISODE = dict(id=str, split=str, task_type=str, scene=int, task=str, start=str, won=bool, kind=str)
_WORDS = {str: "text", int: "a whole number", bool: "true or false"}


def lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The place ("FILE, line N") and the JSON object of each line of a `.jsonl` or `.jsonl.xz` file; blank lines are passed over.

    Raises ValueError for a file or a line that is not UTF-8, cut, too long, or no JSON object.
    """
    with open(path, "rb") as stream:
        start = stream.read(6)
    packed = path.suffix == ".xz" or start == b"\xfd7zXZ\x00"
    if not packed and start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}, line 1: the file is UTF-16, and should be UTF-8 (`iconv -f UTF-16 -t UTF-8`).")
    with (lzma.open(path, "rb") if packed else open(path, "rb")) as stream:
        number = 0
        while True:
            try:
                line = stream.readline(MAX_LINE + 1)
            except (lzma.LZMAError, EOFError) as error:
                raise ValueError(f"{path} is damaged behind line {number} ({error}): copy it again, or record it again with `python -m analyses record`.") from error
            number += 1
            if not line:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(line: bytes, place: str) -> dict:
    if len(line) > MAX_LINE:
        raise ValueError(f"{place}: the line is longer than {MAX_LINE // 2**20} MiB, and should hold one decision or one episode.")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8: save the whole file as UTF-8.") from None
    if "\x00" in text:
        raise ValueError(f"{place}: there are NUL bytes in it, as UTF-16 has them: save the file as UTF-8.")
    try:
        row = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{place}: the JSON is nested too deeply for a decision.") from None
    except ValueError as error:
        if text.strip() in ("[", "{"):
            raise ValueError(f"{place}: a JSON value is spread over several lines, and each line should hold one whole decision.") from None
        if not text.endswith("\n") and not text.rstrip().endswith(("}", "]")):
            raise ValueError(f"{place}: the last line is cut off in the middle ({error}): copy the file again, or delete the line.") from None
        raise ValueError(f"{place}: this is no JSON ({error}).") from None
    if not isinstance(row, dict):
        what = "a JSON list" if isinstance(row, list) else _shown(row)
        raise ValueError(f"{place}: there is {what}, and each line should be one JSON object, an episode or a decision.")
    return row


def _no_number(name: str):
    raise ValueError(f"{name} is no JSON number: leave the field out, or write null")


def _text(value: object, name: str) -> None:
    """Raise ValueError where text holds what no prompt should: control characters, or half of a surrogate pair."""
    if isinstance(value, (dict, list)):  # tool calls
        value = json.dumps(value, ensure_ascii=False)
    if found := _CONTROL.search(value):
        raise ValueError(f"{name} holds the control character U+{ord(found.group()):04X} at character {found.start() + 1}: take it out")


def _typed(row: Mapping, fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if name in row:
            if type(row[name]) is not kind:
                raise ValueError(f"{name!r} is {_WORDS[kind]}, not {_shown(row[name])}")
            if kind is str:
                _text(row[name], repr(name))


def _known(row: Mapping, fields: Sequence[str], needed: Sequence[str], what: str) -> None:
    for name in row:
        if name not in fields:
            raise ValueError(f"{name!r} is no field of {what}: there are {', '.join(fields)}")
    for name in needed:
        if name not in row:
            raise ValueError(f"{what} needs its {name!r}" + (" action" if name == "reference" else ""))


def _shown(value: object) -> str:
    return json.dumps(value, default=str)[:60]


def _action(value: object, name: str) -> str:
    """An action in its one form."""
    if not isinstance(value, (str, dict)) and not (isinstance(value, list) and all(isinstance(call, dict) for call in value)):
        raise ValueError(f"{name} is text or a JSON object, or a list of objects, not {_shown(value)}")
    _text(value, name)
    if not canonical(value):
        raise ValueError(f"{name} is blank")
    return canonical(value)


def _among(reference: str, admissible: Sequence[str]) -> None:
    if admissible and reference not in admissible:
        raise ValueError(f"the reference {reference!r} is not among the {len(admissible)} admissible actions, of which the first is {admissible[0]!r}")


def _admissible(row: Mapping) -> Sequence:
    given = row.get("admissible", ())
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"'admissible' is a list of actions, not {_shown(given)}")
    return given


def _message(m: object, number: int) -> dict:
    if not isinstance(m, dict):
        raise ValueError(f"message {number} is a JSON object with a role and its text, not {_shown(m)}")
    if m.get("role") not in ROLES:
        raise ValueError(f"a message has a role, one of {', '.join(ROLES)}, but message {number} has {_shown(m.get('role'))}")
    agent = m["role"] in ("agent", "assistant")
    if agent and "action" in m:
        m = {**m, "action": m["action"] if isinstance(m["action"], str) else _action(m["action"], f"the action of message {number}")}
    if not isinstance(m.get("content", m.get("action") if agent else None), str):
        raise ValueError(f"a message has a role and text, but message {number} has {_shown(m.get('content'))} for its 'content'"
                         + (" and no 'action'" if agent and "action" not in m else ""))
    if not isinstance(m.get("trace"), (str, type(None))):
        raise ValueError(f"the trace of message {number} is text or null, not {_shown(m['trace'])}")
    for name in ("content", "trace", "action"):
        if isinstance(m.get(name), str):
            _text(m[name], f"message {number}'s {name}")
    return {**m, "role": "agent" if agent else m["role"]}


def decision_row(row: Mapping, place: str) -> dict:
    """A decision's fields as a user writes them, checked; what is left out gets the value that says the least.

    place: where it stands, the id of an episode of its own. Raises ValueError with what is wrong.
    """
    _known(row, ("messages", "reference", "admissible", "episode", "step", "task", "task_type", "split", "trace"), ("messages", "reference"), "a decision")
    if not isinstance(row["messages"], (list, tuple)):
        raise ValueError(f"'messages' is a list of messages, not {_shown(row['messages'])}")
    messages = tuple(_message(m, i) for i, m in enumerate(row["messages"]))
    if not messages:
        raise ValueError("there are no messages: the messages of a decision end with the user or tool turn that the agent answers")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"the messages of a decision end with the user or tool turn that the agent answers, not with one of the {messages[-1]['role']}")
    _typed(row, _OPTIONAL)
    default = dict(episode=place, step=sum(m["role"] == "agent" for m in messages), task="", task_type="", split="in_domain", trace="")
    found = {**default, **row, "messages": messages, "reference": _action(row["reference"], "the reference"),
             "admissible": tuple(_action(a, f"admissible action {i}") for i, a in enumerate(_admissible(row)))}
    if type(found["step"]) is not int or found["step"] < 0:
        raise ValueError(f"'step' is a whole number from 0 on, not {_shown(found['step'])}")
    if found["task"] and not any(m["role"] == "user" and found["task"] in m["content"] for m in messages):
        raise ValueError(f"the task {found['task'][:60]!r} is in none of the user's messages, and should stand in one word for word")
    _among(found["reference"], found["admissible"])
    return found


def episode_row(row: Mapping) -> dict:
    """An episode's fields, checked; raises ValueError with what is wrong."""
    if "steps" not in row:
        raise ValueError("this is neither an episode nor a decision: an episode has 'steps', a decision 'messages'")
    _known(row, (*_EPISODE, "steps"), [*_EPISODE][:-1], "an episode")
    _typed(row, _EPISODE)
    if not isinstance(row["steps"], (list, tuple)) or not all(isinstance(s, dict) for s in row["steps"]):
        raise ValueError(f"'steps' is a list of JSON objects, not {_shown(row['steps'])}")
    if row["task"] not in row["start"]:
        raise ValueError(f"the task {row['task'][:60]!r} is not in the episode's start, and should stand there word for word")
    steps = []
    for number, step in enumerate(row["steps"]):
        try:
            _known(step, (*_STEP, "admissible"), tuple(_STEP), "a step")
            _typed(step, _STEP)
            admissible = tuple(_admissible(step))
            if wrong := [a for a in admissible if type(a) is not str]:
                raise ValueError(f"an admissible action is text, not {_shown(wrong[0])}")
            _text("\n".join(admissible), "'admissible'")
            _among(step["reference"], admissible)
            steps.append({**step, "admissible": admissible})
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from None
    return {**row, "steps": steps}
