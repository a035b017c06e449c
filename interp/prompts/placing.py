"""Where the contents of a conversation stand in the text that its chat template renders.

The template's own text is found by rendering marks in place of the contents, never by searching for a
content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    found = []
    for i, turn in enumerate(turns):
        found.append({**turn, **{field: mark(kind, i) for kind, field in FIELDS.items() if field in turn}})
    return found


def place(render: Render, turns: Sequence[Mapping], generation: bool, name: str) -> tuple[str, list[Place]]:
    """The rendered text of turns, and the place of each content and each kept trace in it.

    Raises ValueError where the template drops or changes a content.
    """
    text, frame = render(turns, generation, name), render(marked(turns), generation, name)
    cursor, passed, places, seen = 0, 0, [], []
    marks = list(_MARK.finditer(frame))
    for found, following in zip(marks, [*marks[1:], None]):
        kind, number = found.group(1), int(found.group(2))
        before, given = frame[passed : found.start()], turns[number][FIELDS[kind]]
        start = cursor + len(before)
        after = frame[found.end() : following and following.start()]
        fits = [form for form in _forms(given) if text.startswith(form, start)]
        kept = next(
            (form for form in fits if text.startswith(after, start + len(form))), fits[0] if fits else None
        )
        if kept is None or text[cursor:start] != before:
            raise ValueError(_changed(turns, number, name))
        cursor, passed = start + len(kept), found.end()
        places.append(Place(number, start, cursor))
        seen += [number] * (kind == "c")
    if seen != list(range(len(turns))):
        raise ValueError(_changed(turns, next(i for i, n in enumerate([*seen, -1]) if n != i), name))
    if text[cursor:] != frame[passed:]:
        raise ValueError(
            f"The chat template changes message {len(turns) - 1} of {name}: what follows it depends on "
            "its text."
        )
    return text, places


def _forms(given: str) -> Iterator[str]:
    """A content as templates write it: as it is, stripped, or in JSON."""
    yield given
    yield given.strip()
    yield given.strip("\n")
    yield given.lstrip("\n")
    yield json.dumps(given, ensure_ascii=False)[1:-1]


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
    pieces, cursor, length, moved = [], 0, 0, []
    for turn, start, end in places:
        before = text[cursor:start]
        if turn in contents:
            before = unwanted.sub("", before)
        content = contents.get(turn, text[start:end])
        pieces += [before, content]
        moved.append(Place(turn, length + len(before), length + len(before) + len(content)))
        cursor, length = end, moved[-1].end
    return "".join([*pieces, text[cursor:]]), moved
