"""One record of a log, in the form of the program that wrote it, as conversations of OpenAI-like messages.

>>> [conversation] = conversations(dict(conversations=[{"from": "human", "value": "Go."}]), "sharegpt")
>>> conversation.messages
[{'role': 'human', 'content': 'Go.'}]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from interp.system.json_files import parse_json
from interp.tasks.importers.chat_text import split_chat
from interp.tasks.importers.turns import Unfit

Format = Literal["openai", "sharegpt", "inspect", "trl", "verl"]
#: Fields by which a record names its conversation, and its kind of task.
_NAMES = ("id", "conversation_id", "episode", "uid", "uuid")
_KINDS = ("task_type", "data_source", "ability", "source")


@dataclass(frozen=True)
class Conversation:
    """Messages with `role` and `content`, and what their record says of them."""

    messages: Sequence[object]
    name: str = ""
    kind: str = ""
    tools: object = None
    scores: Mapping[str, float] = field(default_factory=dict)


def recognised(record: object, place: str) -> Format:
    """The format of a record by its fields; raises ValueError with the fields of one that has none."""
    if isinstance(record, list):
        first = record[0] if record and isinstance(record[0], dict) else {}
        if record and not {"role", "from"} & set(first):
            raise ValueError(f"{place}: this is a list of records, not one record: call the file .json.")
        return "sharegpt" if "from" in first else "openai"
    fields = set(record) if isinstance(record, dict) else set()
    if {"messages", "reference"} <= fields:
        raise ValueError(f"{place}: this is a file of decisions already: give it to --decisions.")
    if fields & {"conversations", "conversation"}:
        return "sharegpt"
    if "messages" in fields:
        return "openai"
    if {"prompt", "completion"} <= fields:
        return "trl"
    if {"input", "output"} <= fields or "prompt" in fields and fields & {"responses", "response"}:
        return "verl"
    shown = ", ".join(map(str, sorted(fields, key=str)))[:200] or "none"
    raise ValueError(
        f"{place}: the format is not known by its fields ({shown}): 'messages' is openai, 'conversations' "
        "sharegpt, 'prompt' and 'completion' trl, 'input' and 'output' or 'prompt' and 'responses' verl."
    )


def conversations(record: object, format: Format) -> list[Conversation]:
    """The conversations of a record; raises Unfit where it does not have the fields of its format."""
    if isinstance(record, list):
        record = dict(messages=record, conversations=record)
    if not isinstance(record, dict):
        raise Unfit("a record that is no JSON object", ascii(record)[:80])
    name = next((str(record[key]) for key in _NAMES if isinstance(record.get(key), (str, int))), "")
    kind = next((record[key] for key in _KINDS if isinstance(record.get(key), str)), "")
    scores = {k: float(v) for k, v in record.items() if isinstance(v, (int, float)) and abs(v) < 1e300}
    return [
        Conversation(messages, name, kind, record.get("tools"), scores)
        for messages in _READERS[format](record)
    ]


def _openai(record: Mapping) -> list[list]:
    return [_messages(record, "messages")]


def _sharegpt(record: Mapping) -> list[list]:
    given = _messages(record, "conversations" if "conversations" in record else "conversation")
    turns = [_sharegpt_turn(turn) for turn in given]
    system = record.get("system")
    return [[dict(role="system", content=system), *turns] if isinstance(system, str) and system else turns]


def _sharegpt_turn(turn: object) -> object:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    if turn["from"] == "function_call":
        return dict(role="assistant", tool_calls=_listed(turn.get("value")))
    return dict(role=turn["from"], content=turn.get("value"))


def _listed(calls: object) -> list:
    """What a `function_call` turn holds: one call, or a JSON list of several."""
    try:
        value = parse_json(calls) if isinstance(calls, str) else calls
    except ValueError:
        return [calls]  # refused where it is read as a call
    return value if isinstance(value, list) else [value]


def _trl(record: Mapping) -> list[list]:
    return [_joined(record.get("prompt"), record.get("completion"))]


def _verl(record: Mapping) -> list[list]:
    if "input" in record and "output" in record:
        return [_joined(record["input"], record["output"])]
    responses = record.get("responses", record.get("response"))
    return [
        _joined(record.get("prompt"), response)
        for response in (responses if isinstance(responses, list) else [responses])
    ]


def _joined(prompt: object, completion: object) -> list:
    """A prompt and what was written after it, each a text or messages."""
    if isinstance(prompt, str) and isinstance(completion, str):
        if split_chat(prompt):
            return split_chat(prompt + completion)
        return [dict(role="user", content=prompt), dict(role="assistant", content=completion)]
    before = [dict(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    after = [dict(role="assistant", content=completion)] if isinstance(completion, str) else completion
    if not isinstance(before, list) or not isinstance(after, list):
        raise Unfit("a prompt or completion that is neither a text nor a list of messages")
    return [*before, *after]


def _messages(record: Mapping, name: str) -> list:
    """A list of messages, or the JSON text of one, as tables hold it."""
    given: object = record.get(name)
    if isinstance(given, str):
        text = given
        try:
            given = parse_json(text, nonfinite=True)
        except ValueError as error:
            raise Unfit(f"a record whose {name!r} are no JSON", f"{text[:60]} ({error})") from None
    if not isinstance(given, list):
        raise Unfit(f"a record whose {name!r} are no list", ascii(given)[:80])
    return given


_READERS: dict[Format, Callable[[Mapping], list[list]]] = dict(
    openai=_openai, sharegpt=_sharegpt, inspect=_openai, trl=_trl, verl=_verl
)
