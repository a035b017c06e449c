"""Prompts as token ids with spans and the prompt boundary: the last prompt token before any reasoning token.

The boundary is the same token in every decoding mode, because a mode only appends its opening ids to the prompt's.

>>> fmt = PromptFormat(tokenizer, style="tags")
>>> prompt = fmt.prompt(decision)
>>> prompt.ids[prompt.boundary], prompt.positions("task")
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from interp.tasks import Decision, Episode

SPANS = ("template", "task", "history", "observation", "boundary", "cot", "action_tag", "action")
Mode = Literal["prompt", "cot", "empty_think"]
MODES: tuple[Mode, ...] = ("prompt", "cot", "empty_think")


@dataclass(frozen=True)
class Style:
    """The tags around a trace and an action, declared once."""

    open_think: str
    close_think: str
    open_action: str
    close_action: str


STYLES = {"tags": Style("<think>", "</think>", "<action>", "</action>")}


@dataclass(frozen=True)
class Prompt:
    """One decision as the model reads it: `ids` [token], one span name for each, and the boundary's index."""

    ids: tuple[int, ...]
    spans: tuple[str, ...]
    decision: Decision
    format: "PromptFormat"

    @property
    def boundary(self) -> int:
        """Index of the last prompt token."""
        return len(self.ids) - 1

    @cached_property
    def hash(self) -> str:
        """Content hash of ids and spans."""
        return hashlib.sha256(json.dumps([self.ids, self.spans]).encode()).hexdigest()[:16]

    def positions(self, span: str) -> np.ndarray:
        """Token indices of one span."""
        if span not in SPANS:
            raise ValueError(f"There is no span {span!r}: the spans are {', '.join(SPANS)}.")
        return np.flatnonzero(np.array(self.spans) == span)


class PromptFormat:
    """How messages become ids: the tokenizer's own chat template, and the tags of a style.

    Raises ValueError where the template has no boundary that can be found, or loses a message.
    """

    def __init__(self, tokenizer, style: str | Style = "tags", system: str = ""):
        if isinstance(style, str) and style not in STYLES:
            raise ValueError(f"There is no prompt style {style!r}: give one of {', '.join(STYLES)} or a Style of your own.")
        if not tokenizer.chat_template:
            raise ValueError("This tokenizer has no chat template, so its prompts have no boundary: set tokenizer.chat_template.")
        self.tokenizer, self.style, self.system = tokenizer, STYLES[style] if isinstance(style, str) else style, system
        probe = [dict(role="user", content="a")]
        without, with_turn = (self._render(probe, add) for add in (False, True))
        if not (with_turn.startswith(without) and len(with_turn) > len(without)):
            raise ValueError("This chat template has no findable boundary: rendered with add_generation_prompt it should be the "
                             f"text without it plus the opening of the agent's turn, but it gave {with_turn!r} after {without!r}.")

    @cached_property
    def hash(self) -> str:
        """Content hash of template, style and vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(json.dumps([self.tokenizer.chat_template, str(self.style), vocabulary]).encode()).hexdigest()[:16]

    def _render(self, turns: Sequence[dict], generation: bool) -> str:
        return self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=generation)

    def encode(self, text: str) -> list[int]:
        """Ids of a text that follows a tag."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def opening(self, mode: Mode) -> list[int]:
        """Ids appended to a prompt so that the model acts at once (`prompt`), reasons first (`cot`), or acts after an
        empty trace (`empty_think`: the control for the tag's format)."""
        s = self.style
        tags = {"cot": [s.open_think], "prompt": [s.open_action], "empty_think": [s.open_think, s.close_think, s.open_action]}
        if mode not in tags:
            raise ValueError(f"There is no decoding mode {mode!r}: the modes are {', '.join(MODES)}.")
        return [i for tag in tags[mode] for i in self.encode(tag)]

    def with_trace(self, trace: str | Sequence[int]) -> list[int]:
        """Ids that put a trace (text, or ids as decoded) and the opened action tag behind a prompt."""
        middle = self.encode(trace) if isinstance(trace, str) else list(trace)
        s = self.style
        return [*self.encode(s.open_think), *middle, *self.encode(s.close_think), *self.encode(s.open_action)]

    def content(self, turn: dict) -> str:
        """Text of one turn; an agent's turn carries its trace (unless None) and its action in their tags."""
        if turn["role"] != "agent":
            return turn["content"]
        s = self.style
        thought = "" if turn["trace"] is None else f"{s.open_think}{turn['trace']}{s.close_think}"
        return f"{thought}{s.open_action}{turn['action']}{s.close_action}"

    def _turns(self, messages: Sequence[dict]) -> list[dict]:
        system = [dict(role="system", content=self.system)] if self.system and messages[0]["role"] != "system" else []
        return system + [dict(role="assistant" if m["role"] == "agent" else m["role"], content=self.content(m)) for m in messages]

    def _place(self, turns: Sequence[dict], generation: bool, name: str) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text, and from where to where each turn's content stands in it.

        The template's own text is found by rendering marks in place of the contents, never by searching for a content.
        """
        text = self._render(turns, generation)
        marks = [f"\ue000{i}\ue001" for i in range(len(turns))]
        frame, cursor, places = self._render([{**t, "content": m} for t, m in zip(turns, marks)], generation), 0, []
        for number, (turn, mark) in enumerate(zip(turns, marks)):
            before, found, frame = frame.partition(mark)
            start = cursor + len(before)
            content = turn["content"] if text.startswith(turn["content"], start) else turn["content"].strip()
            if not found or text[cursor:start] != before or not text.startswith(content, start):
                raise ValueError(f"The chat template changes message {number} of {name}: its text {turn['content'][:60]!r} is not in "
                                 "the rendered prompt as it was given, so spans cannot be placed.")
            cursor = start + len(content)
            places.append((start, cursor))
        if text[cursor:] != frame:
            raise ValueError(f"The chat template changes message {len(turns) - 1} of {name}: what follows it depends on its text.")
        return text, places

    def prompt(self, decision: Decision) -> Prompt:
        """Render one decision up to its boundary.

        Raises ValueError where the template drops a message, or the task is not in the messages.
        """
        turns = self._turns(decision.messages)
        text, places = self._place(turns, True, f"decision {decision.id}")
        spans = np.full(len(text), "template", dtype="<U11")
        task_found = not decision.task
        for number, (turn, (start, end)) in enumerate(zip(turns, places)):
            spans[start:end] = "observation" if number == len(turns) - 1 else "history"
            at = text.find(decision.task, start, end) if not task_found and turn["role"] == "user" else -1
            if at >= 0:
                spans[at:at + len(decision.task)], task_found = "task", True
        if not task_found:
            raise ValueError(f"The task of decision {decision.id}, {decision.task[:60]!r}, is in none of its messages.")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        names = [str(spans[end - 1]) for _, end in encoded["offset_mapping"]]
        names[-1] = "boundary"
        return Prompt(tuple(encoded["input_ids"]), tuple(names), decision, self)

    def sequence(self, episode: Episode, traces=True) -> tuple[list[int], list[bool]]:
        """A whole episode as one training sequence: ids, and which of them the agent wrote (tags included)."""
        turns = self._turns(episode.messages(traces=traces))
        text, places = self._place(turns, False, f"episode {episode.id}")
        agent = np.zeros(len(text), dtype=bool)
        for turn, (start, end) in zip(turns, places):
            agent[start:end] = turn["role"] == "assistant"
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [bool(agent[end - 1]) for _, end in encoded["offset_mapping"]]

    def parse(self, text: str, mode: Mode) -> tuple[str | None, str | None]:
        """Split what was generated after a mode's opening into (trace, action); None for a part that is not closed."""
        s, trace = self.style, None
        if mode == "cot":
            trace, closed, text = text.partition(s.close_think)
            if not closed:
                return None, None
            match = re.match(rf"\s*{re.escape(s.open_action)}", text)
            if not match:
                return trace.strip(), None
            text = text[match.end():]
        action, closed, _ = text.partition(s.close_action)
        return trace and trace.strip(), (action.strip() or None) if closed else None
