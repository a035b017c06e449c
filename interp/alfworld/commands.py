"""The command language of ALFWorld's text engine, and the classes that probes predict."""

from __future__ import annotations

import re

_THING = r"[a-z]+ \d+"
_COMMAND = re.compile(
    rf"go to {_THING}|(?:open|close|examine|use) {_THING}|take {_THING} from {_THING}|move {_THING} to {_THING}"
    rf"|(?:clean|heat|cool|slice) {_THING} with {_THING}|inventory|look|help")


def parse(text: str) -> str | None:
    """The command in `text`, or None where it is none of the engine's forms."""
    text = " ".join(text.split())
    return text if _COMMAND.fullmatch(text) else None


def verb(command: str) -> str:
    """What is done: `verb("take mug 1 from shelf 2") == "take"`."""
    return command.split()[0]


def target(command: str) -> str:
    """The class of what it is done to: `target("go to shelf 2") == "shelf"`; the verb itself where there is nothing."""
    match = re.search(r"([a-z]+) \d+", command)
    return match.group(1) if match else command
