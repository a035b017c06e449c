"""Spans of a prompt: which part of a decision each character, and so each token, belongs to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from interp.prompts.history import SEPARATOR
from interp.prompts.placing import Place
from interp.tasks.episodes import Decision

SPANS = ("template", "task", "history", "observation", "boundary", "cot", "action_tag", "action")


class Rendering(NamedTuple):
    """A decision's turns, their text up to the boundary, and where each content stands in it."""

    turns: list[dict]
    text: str
    places: list[Place]


def character_spans(decision: Decision, rendering: Rendering, system: str) -> UInt8[np.ndarray, "character"]:
    """The span of each character up to the boundary, as an index into SPANS.

    system: the system prompt of messages that bring none. Raises ValueError where the task is in no message.
    """
    turns, text, places = rendering
    spans = np.full(len(text), SPANS.index("template"), dtype=np.uint8)
    last_agent = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    first = decision.messages[0]
    if first["role"] == "system":
        system = first["content"]
    task = decision.task
    is_marked = not task
    for number, start, end in places:
        role = turns[number]["role"]
        if role == "system":
            continue
        if system and number == 0:  # given as the user's, it stands at the start of the first message
            start += len(system + SEPARATOR)
        spans[start:end] = SPANS.index("observation" if number > last_agent else "history")
        task_start = text.find(task, start, end)
        if not is_marked and role == "user" and task_start >= 0:
            spans[task_start : task_start + len(task)] = SPANS.index("task")
            is_marked = True
    if not is_marked:
        raise ValueError(f"The task of decision {decision.id}, {task[:60]!r}, is in none of its messages.")
    return spans
