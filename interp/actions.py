"""Actions as text: one form for what is the same action, and the classes of actions that probes predict.

An action is a line of text, or a JSON object (a tool call) with `name` first and its arguments in order.
"""

from __future__ import annotations

import json
import re


def canonical(text: str | dict) -> str:
    """One form of an action: a tool call as JSON with its keys in a fixed order, other text with single spaces."""
    try:
        call = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        call = None
    if not isinstance(call, dict):
        return " ".join(str(text).split())
    ordered = json.loads(json.dumps(call, sort_keys=True))
    return json.dumps({k: ordered[k] for k in sorted(ordered, key=lambda k: (k != "name", k))}, ensure_ascii=False)


def parse(text: str) -> str | None:
    """Any text that is not blank, in its canonical form."""
    return canonical(text) or None


def verb(action: str) -> str:
    """What is done: `verb("take mug 1 from shelf 2") == "take"`; a tool call's name."""
    return json.loads(action).get("name", "call") if action.startswith("{") else action.split()[0]


def target(action: str) -> str:
    """The class of what it is done to: `target("go to shelf 2") == "shelf"`; a tool call's first argument; else all of the action."""
    if action.startswith("{"):
        arguments = json.loads(action).get("arguments") or json.loads(action).get("parameters") or {}
        return str(next(iter(arguments.values()), verb(action))) if isinstance(arguments, dict) else str(arguments)
    match = re.search(r"([a-z]+) \d+", action)
    return match.group(1) if match else action
