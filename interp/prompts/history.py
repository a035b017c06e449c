"""Messages as the turns that a chat template renders, and where their contents stand in its text.

>>> history = History(ChatTemplate(tokenizer, STYLES["tags"]))
>>> turns = history.turns(decision.messages)
>>> text, places = history.place(turns, True, "a decision")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from interp.prompts.encoding import check_text
from interp.prompts.placing import Place, mark, place, put
from interp.prompts.templates import ChatTemplate

#: What becomes of the traces of earlier turns: as the template has it, all kept, or none.
HistoryTraces = Literal["template", "kept", "dropped"]
#: Text between messages that are joined into one.
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class History:
    """How messages become turns.

    system: put before messages that bring no system message of their own. traces: what becomes of earlier
    turns' traces. system_as, tool_as: the roles in which system and tool messages are given.
    """

    chat: ChatTemplate
    system: str = ""
    traces: HistoryTraces = "template"
    system_as: Literal["system", "user"] = "system"
    tool_as: Literal["tool", "user"] = "tool"

    def __post_init__(self) -> None:
        check_choice("history_traces", self.traces, get_args(HistoryTraces))
        check_choice("system_as", self.system_as, ("system", "user"))
        check_choice("tool_as", self.tool_as, ("tool", "user"))

    def content(self, message: Mapping) -> str:
        """Text of one turn: its own `content`, or trace and action in the style's tags."""
        if "content" in message:
            return message["content"]
        return self.turn(message.get("trace"), message["action"])

    def turn(self, trace: str | None, action: str) -> str:
        """Text of an agent's turn in the history, without what the template itself writes around it."""
        style = self.chat.style
        if self.traces == "kept" and trace is not None:
            return replace(style, native=False).turn(trace, action)
        if self.chat.writes_action:
            return action
        return style.turn(None if self.traces == "dropped" else trace, action)

    @property
    def strips_traces(self) -> bool:
        """Whether earlier turns lose their traces."""
        return self.traces == "dropped" or self.traces == "template" and self.chat.style.native

    @cached_property
    def unlike_prompts(self) -> str:
        """Text up to an agent's turn in the history where prompts do not end so; "" where they do.

        An empty thought that a template writes before earlier turns, for example.
        """
        user = dict(role="user", content="a")
        agent = dict(role="agent", trace="b", action="c")
        turns = self.turns([user, agent, user, agent, user])
        text, places = self.place(turns, False, "a short conversation")
        opening = self.chat.opening
        endings = (opening.rstrip(), (opening + self.chat.gap).rstrip())
        for number, start, _ in places:
            if turns[number]["role"] == "assistant" and not text[:start].rstrip().endswith(endings):
                return text[:start]
        return ""

    def turns(self, messages: Sequence[Mapping]) -> list[dict]:
        """The template's turns: roles and contents, and traces of their own where the style is native."""
        turns = []
        for message in self._in_roles(messages):
            if message["role"] == "agent":
                turn = dict(role="assistant")
            else:
                turn = {name: value for name, value in message.items() if name not in ("trace", "action")}
            turn["content"] = self.content(message)
            if self.chat.style.native and self.traces == "template" and message.get("trace"):
                turn["reasoning_content"] = message["trace"]
            turns.append(turn)
        return turns

    def _in_roles(self, messages: Sequence[Mapping]) -> list[dict]:
        """Messages in roles that the template takes, the system's first.

        User messages that meet are joined where others became the user's.
        """
        first = []
        if self.system and messages[0]["role"] != "system":
            first = [dict(role="system", content=self.system)]
        roles = dict(system=self.system_as, tool=self.tool_as)
        joins = "user" in roles.values()
        result: list[dict] = []
        for message in [*first, *messages]:
            message = {**message, "role": roles.get(message["role"], message["role"])}
            if joins and result and message["role"] == result[-1]["role"] == "user":
                result[-1]["content"] += SEPARATOR + message["content"]
            else:
                result.append(message)
        return result

    def place(self, turns: Sequence[Mapping], generation: bool, name: str) -> tuple[str, list[Place]]:
        """The rendered text and where each content stands in it.

        Traces that are kept are put in after rendering, so that the template cannot drop them.
        """
        for number, turn in enumerate(turns):
            check_text(turn["content"] + turn.get("reasoning_content", ""), f"Message {number} of {name}")
        if self.traces != "kept":
            return place(self.chat.render, turns, generation, name)
        opened = self.chat.style.open_think.strip()
        kept = {}
        shown = list(turns)
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant" and opened in turn["content"]:
                kept[number] = turn["content"]
                shown[number] = {**turn, "content": mark("k", number)}
        text, places = place(self.chat.render, shown, generation, name)
        return put(text, places, kept, self.chat.before_kept) if kept else (text, places)


def check_choice(name: str, given: str, choices: Sequence[str]) -> None:
    """Raise ValueError, naming the argument, for what is none of its choices."""
    if given not in choices:
        raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, not {given!r}.")
