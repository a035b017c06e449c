"""The command language of ALFWorld's text engine."""

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


def task_of(text: str) -> str:
    """The task's words in the first text of a game."""
    return text[text.index("Your task is to:"):]
