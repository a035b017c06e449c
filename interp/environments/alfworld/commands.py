"""The command language of ALFWorld's text engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from interp.tasks.episodes import Decision

_THING = r"[a-z]+ \d+"
_COMMAND = re.compile(
    rf"go to {_THING}|(?:open|close|examine|use) {_THING}|take {_THING} from {_THING}"
    rf"|move {_THING} to {_THING}"
    rf"|(?:clean|heat|cool|slice) {_THING} with {_THING}|inventory|look|help"
)


def parse(text: str) -> str | None:
    """The command in `text`, or None where it is none of the engine's forms."""
    text = " ".join(text.split())
    return text if _COMMAND.fullmatch(text) else None


def task_of(text: str) -> str:
    """The task's words in the first text of a game."""
    return text[text.index("Your task is to:") :]


def swap_candidates(decision: Decision, decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """Pairs of names whose exchange changes the action.

    A receptacle to go to pairs with another of its class ("drawer 3" with "drawer 5"), an object to take with
    another object ("apple" with "mug") that can be taken at any of `decisions`.
    """
    text = " ".join(m["content"] for m in decision.messages if m["role"] == "user")
    action = decision.reference
    # not one that is opened: it was just reached, so its number is copied, not decided
    if action.startswith("go to "):
        name = action.removeprefix("go to ")
        others = set(re.findall(rf"\b{re.escape(name.rsplit(' ', 1)[0])} \d+\b", text)) - {name}
        return [(name, other) for other in sorted(others)]
    if action.startswith("take "):
        name = action.split()[1]
        return [
            (name, other)
            for other in _objects(_Same(decisions))
            if other != name and re.search(rf"\b{other}\b", text)
        ]
    return []


class _Same:
    """A tuple, equal to itself alone: looking its objects up takes no longer for a longer one."""

    def __init__(self, decisions: Sequence[Decision]):
        self.decisions = tuple(decisions)

    def __hash__(self) -> int:
        return id(self.decisions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.decisions is other.decisions


@lru_cache(maxsize=1)  # it holds the tuple, so that its identity is given to no other
def _objects(listed: _Same) -> list[str]:
    return sorted(
        {m for d in listed.decisions for m in re.findall(r"\btake (\w+) \d+", " ".join(d.admissible))}
    )
