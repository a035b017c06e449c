"""What the written traces of several environments say in the same words."""

from __future__ import annotations

import random

_HELD = ("I hold {held}.", "In hand: {held}.", "I carry {held}.")
_EMPTY = ("Hands empty.", "I hold nothing.", "Nothing in hand.")
#: Phrases that say the same, in groups.
IN_HAND = (_HELD, _EMPTY)
#: One trace in six ends with the action in so many words.
SPELLED_OUT = 1 / 6


def in_hand(held: str, rng: random.Random) -> str:
    """What is carried ("": nothing)."""
    return rng.choice(_HELD).format(held=held) if held else rng.choice(_EMPTY)


def spelled_out(action: str, rng: random.Random) -> list[str]:
    """The sentence that names the action, in one of six traces; else none."""
    return [f"So {action}."] if rng.random() < SPELLED_OUT else []
