"""Messages as chat interfaces write them, made into those of decisions: an agent's turn is trace and action.

>>> message, action, unfit = agent_turn(dict(role="assistant", content="<think>It is shut.</think>open door"))
>>> message
{'role': 'assistant', 'trace': 'It is shut.', 'action': 'open door'}

A fault is an `Unfit`, whose reason is the same for all that is left out for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from interp.system.json_files import parse_json
from interp.tasks.actions import canonical

#: The text of a turn -> its trace and its action, None for what it does not hold.
Parser = Callable[[str], tuple[str | None, str | None]]
#: Roles as chat interfaces call them -> as decisions do.
ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "agent",
    "agent": "agent",
    "gpt": "agent",
    "chatgpt": "agent",
    "bing": "agent",
    "bard": "agent",
    "model": "agent",
    "function_call": "agent",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THOUGHT_PARTS = ("reasoning", "thinking", "summary_text")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_ARGUMENTS = "a tool call whose arguments are no JSON object"
_OPEN = re.compile(r"^\s*<think(?:ing)?>")
_CLOSE = re.compile(r"</think(?:ing)?>")
_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Unfit(ValueError):
    """Why something is left out, in words that are the same for all like it; `detail` is of this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class Tally:
    """How often each reason was met, and where and how it was met first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str, n: int = 1) -> None:
        """Count a reason that was met at a place `n` times."""
        self.counts[reason] = self.counts.get(reason, 0) + n
        self.first.setdefault(reason, place)

    def add_unfit(self, unfit: Unfit, place: str, n: int = 1) -> None:
        """Count what is left out at a place."""
        self.add(unfit.reason, f"{place}: {unfit.detail[:120]}" if unfit.detail else place, n)

    def rows(self) -> list[dict[str, object]]:
        """Reason, count and first example of each, the most frequent first."""
        ordered = sorted(self.counts, key=lambda reason: -self.counts[reason])
        return [dict(reason=each, n=self.counts[each], first=self.first[each]) for each in ordered]


class AgentTurn(NamedTuple):
    """A turn of the agent's: its message, its action where it has one, and why not where it has none."""

    message: dict
    action: str | None
    unfit: Unfit | None


def content_of(content: object) -> tuple[str, str]:
    """The text and the reasoning of a message's content, a text or a list of parts.

    Raises Unfit for parts that are no text.
    """
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise Unfit("a message whose content is neither text nor a list of parts", _shown(content))
    texts, thoughts = [], []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None
        fields = dict(text=part) if isinstance(part, str) else part if isinstance(part, dict) else {}
        if kind in _TEXT_PARTS or kind is None and "text" in fields:
            texts.append(_part(fields, ("text", "refusal")))
        elif kind in _THOUGHT_PARTS:
            thoughts.append(_part(fields, ("reasoning", "thinking", "text", "summary")))
        else:
            raise Unfit("a message with a part that is no text", f"a part of type {_shown(kind)}")
    return "\n".join(texts), "\n".join(thoughts)


def _part(fields: Mapping, names: tuple[str, ...]) -> str:
    value = next((fields[name] for name in names if fields.get(name) is not None), "")
    if not isinstance(value, str):
        raise Unfit("a message with a part that is no text", _shown(value))
    return value


def plain_turn(message: Mapping, role: str) -> dict:
    """A turn of the system, the user or a tool; raises Unfit where it is no text."""
    text, _ = content_of(message.get("content"))
    turn = dict(role=role, content=text)
    if role == "tool" and isinstance(message.get("name"), str):
        turn["name"] = message["name"]
    return turn


def agent_turn(message: Mapping, parse: Parser | None = None) -> AgentTurn:
    """A turn of the agent's; raises Unfit where its content is no text.

    parse: splits a text without tool calls in trace and action; `split_text` unless it is given.
    """
    text, thought = content_of(message.get("content"))
    thought = thought or next((message[name] for name in _THOUGHTS if isinstance(message.get(name), str)), "")
    try:
        if calls := _calls(message):
            before, trailing = _split_thought(text)
            trace, action = _joined(thought, before, trailing), canonical(calls)
        else:
            own, said = (parse or split_text)(text)
            trace, action = _joined(thought, own), said or ""
    except Unfit as fault:
        return AgentTurn(dict(role="assistant", content=text), None, fault)
    if not action.strip():
        unfit = Unfit("a turn without an action", text.strip()[-80:])
        return AgentTurn(dict(role="assistant", content=text), None, unfit)
    return AgentTurn(dict(role="assistant", trace=trace or None, action=action.strip()), action.strip(), None)


def split_text(text: str) -> tuple[str | None, str | None]:
    """Trace and action of a turn's text: what `<think>`, `<tool_call>` and `<action>` hold, else all of it.

    Text before a call or an action belongs to the trace. Raises Unfit for a call that is no JSON object, and
    for a trace that has no end.
    """
    trace, rest = _split_thought(text)
    if calls := _CALL.findall(rest):
        outside = _CALL.sub("", rest)
        return _joined(trace, outside), canonical([_call(each) for each in calls])
    if found := _ACTION.search(rest):
        return _joined(trace, rest[: found.start()]), found.group(1)
    return trace, rest.strip()


def _split_thought(text: str) -> tuple[str, str]:
    """The text before the first end of a thought, whose opening may be in the prompt, and that after it."""
    opened, closed = _OPEN.search(text), _CLOSE.search(text)
    if closed is None:
        if opened:
            raise Unfit("a trace that has no end", text[-80:])
        return "", text
    return text[opened.end() if opened else 0 : closed.start()].strip(), text[closed.end() :]


def _joined(*texts: str | None) -> str:
    """The texts that are not blank, each once, a line between them."""
    return "\n".join(dict.fromkeys(text.strip() for text in texts if text and text.strip()))


def _calls(message: Mapping) -> list[dict]:
    """The tool calls of a message, as OpenAI (now and before) and inspect_ai write them."""
    given = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if isinstance(given, str):
        given = _parsed(given, "tool calls that are no JSON list")
    if not isinstance(given, list):
        raise Unfit("tool calls that are no JSON list", _shown(given))
    return [_call(each) for each in given]


def _call(given: object) -> dict:
    """One call, its name and its arguments; raises Unfit where it has none that can be read."""
    if isinstance(given, str):
        given = _parsed(given, "a tool call that is no JSON object")
    if not isinstance(given, dict):
        raise Unfit("a tool call that is no JSON object", _shown(given))
    function = given.get("function", given)
    flat = dict(name=function, arguments=given.get("arguments")) if isinstance(function, str) else function
    if given.get("parse_error") or not isinstance(flat, dict) or not isinstance(flat.get("name"), str):
        raise Unfit("a tool call without a name", _shown(given))
    arguments = flat.get("arguments", flat.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, _ARGUMENTS, f"{flat['name']}: ") if arguments.strip() else {}
    if not isinstance(arguments, (dict, type(None))):
        raise Unfit(_ARGUMENTS, f"{flat['name']}: {_shown(arguments)}")
    return dict(name=flat["name"], arguments=arguments or {})


def _parsed(text: str, reason: str, name: str = "") -> object:
    """The value of a JSON text within a log; raises Unfit where it is none."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise Unfit(reason, f"{name}{text.strip()[:60]} ({error})") from None


def _shown(value: object) -> str:
    return ascii(value)[:80]
