"""Where the contents of a conversation stand in the text that its chat template renders.

The template's own text is found by rendering marks in place of the contents, never by searching for a
content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

#: (turns, whether the agent's turn is opened, what they are called) -> the rendered text
Render = Callable[[Sequence[Mapping], bool, str], str]
FIELDS = {"c": "content", "t": "reasoning_content"}
_MARK = re.compile("\ue000([ct])(\\d+)\ue001")


class Place(NamedTuple):
    """From where to where in a rendered text the content, or the kept trace, of one turn stands."""

    turn: int
    start: int
    end: int


def mark(kind: str, number: int) -> str:
    """A mark in place of a turn's content (`c`), its trace (`t`), or a content that is put in later (`k`)."""
    return f"\ue000{kind}{number}\ue001"


def marked(turns: Sequence[Mapping]) -> list[dict]:
    """Turns with marks in place of their contents and traces."""
    return [
        {**turn, **{field: mark(kind, i) for kind, field in FIELDS.items() if field in turn}}
        for i, turn in enumerate(turns)
    ]


def place(render: Render, turns: Sequence[Mapping], generation: bool, name: str) -> tuple[str, list[Place]]:
    """The rendered text of turns, and the place of each content and each kept trace in it.

    Raises ValueError where the template drops or changes a content.
    """
    text = render(turns, generation, name)
    frame = _MARK.split(render(marked(turns), generation, name))
    own, kinds, numbers = frame[::3], frame[1::3], [int(number) for number in frame[2::3]]
    places: list[Place] = []
    cursor = 0
    for kind, number, before, after in zip(kinds, numbers, own, own[1:]):
        start = cursor + len(before)
        length = _written_length(text, start, turns[number][FIELDS[kind]], after)
        if length is None or text[cursor:start] != before:
            raise ValueError(_changed(turns, number, name))
        cursor = start + length
        places.append(Place(number, start, cursor))
    contents = [number for kind, number in zip(kinds, numbers) if kind == "c"]
    if contents != list(range(len(turns))):
        missing = next(i for i, number in enumerate([*contents, -1]) if number != i)
        raise ValueError(_changed(turns, missing, name))
    if text[cursor:] != own[-1]:
        raise ValueError(
            f"The chat template changes message {len(turns) - 1} of {name}: what follows it depends on "
            "its text."
        )
    return text, places


def _written_length(text: str, start: int, content: str, after: str) -> int | None:
    """Characters of a content in the form in which a template writes it at `start`; None where it does not.

    Templates write it as it is, stripped, or in JSON; the form with `after` next is preferred.
    """
    escaped = json.dumps(content, ensure_ascii=False)[1:-1]
    forms = (content, content.strip(), content.strip("\n"), content.lstrip("\n"), escaped)
    fitting = [len(form) for form in forms if text.startswith(form, start)]
    followed = (length for length in fitting if text.startswith(after, start + length))
    return next(followed, fitting[0] if fitting else None)


def _changed(turns: Sequence[Mapping], number: int, name: str) -> str:
    role = turns[number]["role"]
    if role == "system":
        return (
            f"The chat template drops or changes the system message of {name}: give its text at the start of "
            "the first user message (--system_as user), or use a template that keeps it."
        )
    advice = {
        "assistant": " Where the template takes earlier traces away, give a style whose trace is the "
        "template's own "
        "(native), or keep the traces as they are (--history_traces kept).",
        "tool": " Where the template knows no tool turns, give them as the user's (--tool_as user).",
    }.get(role, "")
    return (
        f"The chat template changes message {number} of {name}: its text {turns[number]['content'][:60]!r} "
        f"is not in the rendered prompt as it was given, so spans cannot be placed.{advice}"
    )


def put(
    text: str, places: Sequence[Place], contents: Mapping[int, str], unwanted: re.Pattern
) -> tuple[str, list[Place]]:
    """The text with other contents for some turns, and without what `unwanted` matches right before them."""
    result = ""
    moved: list[Place] = []
    cursor = 0
    for turn, start, end in places:
        before = text[cursor:start]
        result += unwanted.sub("", before) if turn in contents else before
        new_start = len(result)
        result += contents.get(turn, text[start:end])
        moved.append(Place(turn, new_start, len(result)))
        cursor = end
    return result + text[cursor:], moved
