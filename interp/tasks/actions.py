"""Actions as text: one form for what is the same action, and the classes of actions that probes predict.

An action is a line of text, or a JSON object (a tool call) with `name` first and its arguments in order.
Several calls at once are a JSON list; one call alone is its object; `[]` is no call.
"""

from __future__ import annotations

import json
import re

from interp.system.json_files import parse_json


def _calls(action: object) -> list[dict] | None:
    """The tool calls of an action, an object or a list of objects; None where it is text."""
    try:
        calls = (
            parse_json(action) if isinstance(action, str) and action.lstrip()[:1] in ("{", "[") else action
        )
    except ValueError:
        return None
    calls = [calls] if isinstance(calls, dict) else calls
    return calls if isinstance(calls, list) and all(isinstance(call, dict) for call in calls) else None


def canonical(text: str | dict | list) -> str:
    """One form of an action: tool calls as JSON with ordered keys, other text with single spaces."""
    calls = _calls(text)
    if calls is None:
        return " ".join(str(text).split())
    ordered = [
        {k: call[k] for k in sorted(call, key=lambda k: (k != "name", k))}
        for call in json.loads(json.dumps(calls, sort_keys=True))
    ]
    return json.dumps(ordered[0] if len(ordered) == 1 else ordered, ensure_ascii=False)


def parse(text: str) -> str | None:
    """Any text that is not blank, in its canonical form."""
    return canonical(text) or None


def verb(action: str) -> str:
    """What is done: `verb("take mug 1 from shelf 2") == "take"`.

    Of tool calls the first one's name, or "none".
    """
    calls = _calls(action)
    if calls is None:
        return action.split()[0]
    return str(calls[0].get("name", "call")) if calls else "none"


def target(action: str) -> str:
    """The class of what it is done to: `target("go to shelf 2") == "shelf"`.

    Of tool calls it is the first argument of the first one; of any other text the whole action.
    """
    calls = _calls(action)
    if calls:
        arguments = calls[0].get("arguments") or calls[0].get("parameters") or {}
        return (
            str(next(iter(arguments.values()), verb(action)))
            if isinstance(arguments, dict)
            else str(arguments)
        )
    match = re.search(r"([a-z]+) \d+", action)
    return "none" if calls == [] else match.group(1) if match else action
