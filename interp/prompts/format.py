"""Prompts as token ids with spans and the prompt boundary: the last prompt token before any reasoning token.

The boundary is the same token in every decoding mode, because a mode only appends its opening ids to the
prompt's.

>>> fmt = PromptFormat(tokenizer, style="tags")
>>> prompt = fmt.prompt(decision)
>>> prompt.ids[prompt.boundary], prompt.positions("task")
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from interp.prompts.encoding import Data, Encoded, Encoder, check_text
from interp.prompts.placing import Place, mark, place, put
from interp.prompts.rendering import TODAY
from interp.prompts.styles import STYLES, Style
from interp.prompts.templates import ChatTemplate
from interp.system.renamed import renamed_attributes
from interp.tasks.episodes import Decision, Episode

SPANS = ("template", "task", "history", "observation", "boundary", "cot", "action_tag", "action")
Mode = Literal["prompt", "cot", "empty_think"]
MODES: tuple[Mode, ...] = ("prompt", "cot", "empty_think")
Truncate = Literal["none", "oldest_turns"]
#: What becomes of the traces of earlier turns: as the template has it, all kept, or none.
HistoryTraces = Literal["template", "kept", "dropped"]
#: How a template's control tokens are read where data hold them: as text, or as the tokens.
Markers = Literal["text", "tokens"]
#: Characters of a text that are read where no context says how many tokens there may be.
UNBOUNDED = 4_000_000
#: Characters for each token of the context beyond which a text's tokens are counted on its beginning.
_CHARACTERS = 16
#: What stands between messages that are given as one.
_BETWEEN = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """One decision as the model reads it: `ids` [token], one span name for each, and the boundary's index.

    `decision` holds the messages that are in it; `dropped` of the agent's turns, with their answers, were
    left out.
    """

    ids: tuple[int, ...]
    spans: tuple[str, ...]
    decision: Decision
    format: "PromptFormat"
    dropped: int = 0

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


class Rendered(NamedTuple):
    """An episode's one sequence: its text, where each of the agent's turns stands in it, and its tokens."""

    text: str
    turns: list[tuple[int, int]]
    tokens: Encoded


def same_format(prompts: Sequence[Prompt]) -> "PromptFormat":
    """The one format of prompts; raises ValueError where they are of several, or there are none."""
    if not prompts:
        raise ValueError("There is nothing to decode: the list of prompts is empty.")
    first = prompts[0]
    for prompt in prompts:
        if prompt.format is not first.format and prompt.format.hash != first.format.hash:
            raise ValueError(
                f"The prompts are of two formats, those of decisions {first.decision.id} and "
                f"{prompt.decision.id} (another style, template, system prompt or tokenizer): give those of "
                "one format at a time."
            )
    return first.format


@renamed_attributes(
    opening="mode_prefix", tail="action_prefix", lead_ids="decoded_prefix", ends="stop_tokens"
)
class PromptFormat:
    """How messages become ids: the tokenizer's own chat template, and the tags of a style.

    style: a name in `STYLES`, or a Style of one's own. system: put before messages that bring no system
    message of their own.
    tools: function signatures that the template is given. options: the template's own variables, and `today`,
    the date that its clock shows (fixed, since prompts must not change from one day to the next). context:
    tokens that the model reads at most (None: lengths are not looked at). room: tokens that a trace, and an
    action after it, may take. truncate: what is done with a longer prompt, `none` (refused) or `oldest_turns`
    (see `fit`). stop_tokens: ids that end a turn beside those of tokenizer and template (a generation
    configuration's).
    history_traces: traces of earlier turns as the template has them, all `kept` (as they are, where it would
    take them away), or `dropped`. system_as, tool_as: `user` gives system or tool messages as the user's, for
    templates that know none. markers: whether control tokens in the data are read as `text`, with a warning,
    or as the `tokens` they are. template_file: where the template is from, for sentences. Raises ValueError
    where the template has no boundary that can be found, or drops the system message.
    """

    def __init__(
        self,
        tokenizer,
        style: str | Style = "tags",
        system: str = "",
        tools: Sequence[dict] = (),
        options: Mapping | None = None,
        context: int | None = None,
        room: int = 0,
        truncate: Truncate = "none",
        *,
        stop_tokens: Sequence[int] = (),
        history_traces: HistoryTraces = "template",
        system_as: Literal["system", "user"] = "system",
        tool_as: Literal["tool", "user"] = "tool",
        markers: Markers = "text",
        template_file: object = None,
    ):
        if truncate not in get_args(Truncate):
            raise ValueError(
                f"There is no policy {truncate!r} for long prompts: there are "
                f"{', '.join(get_args(Truncate))}."
            )
        _check_choice("history_traces", history_traces, get_args(HistoryTraces))
        _check_choice("system_as", system_as, ("system", "user"))
        _check_choice("tool_as", tool_as, ("tool", "user"))
        _check_choice("markers", markers, get_args(Markers))
        if isinstance(style, str) and style not in STYLES:
            raise ValueError(
                f"There is no prompt style {style!r}: give one of {', '.join(STYLES)} or a Style of your own."
            )
        check_text(system, "The system prompt")
        if tokenizer is None:
            raise ValueError(
                "There is no tokenizer, so no prompt can be made: give one (a model made without one has "
                "model.tokenizer None)."
            )
        self.tokenizer, self.style, self.system = (
            tokenizer,
            STYLES[style] if isinstance(style, str) else style,
            system,
        )
        self.context, self.room, self.truncate, self._more_stops = context, room, truncate, tuple(stop_tokens)
        self.history_traces, self.system_as, self.tool_as, self.markers = (
            history_traces,
            system_as,
            tool_as,
            markers,
        )
        self.chat = ChatTemplate(tokenizer, self.style, tools, options, template_file)
        self.tools, self.options = self.chat.tools, self.chat.options
        s = self.style
        self.encoder = Encoder(
            tokenizer, (s.open_think, s.close_think, s.open_action, s.close_action), self.chat.source
        )
        if self.tools and self.markers == "text":
            self.encoder.check_held(json.dumps(self.tools, ensure_ascii=False), "A tool's text")
        self._warned: set[str] = set()
        self._pieces: dict[int, str] = {}
        self.header = self.chat.opening
        if system:
            self._placed(self._turns([dict(role="user", content="a")]), True, "the system prompt")

    @cached_property
    def hash(self) -> str:
        """Content hash of template, style, system prompt, tools, options, vocabulary and other settings."""
        parts = [
            self.tokenizer.chat_template,
            str(self.style),
            self.system,
            self.tools,
            self.options,
            sorted(self.tokenizer.get_vocab().items()),
        ]
        parts += [] if self.truncate == "none" else [self.truncate, self.context, self.room]
        parts += (
            [dict(today=self.chat.today)]
            if "strftime_now" in self.chat.source or self.chat.today != TODAY
            else []
        )
        asked = dict(
            history_traces=(self.history_traces, "template"),
            system_as=(self.system_as, "system"),
            tool_as=(self.tool_as, "tool"),
            markers=(self.markers, "text"),
            stop_tokens=(sorted({*self._more_stops} - {self.tokenizer.eos_token_id, *self.chat.ends}), []),
        )
        parts += [{name: value} for name, (value, default) in asked.items() if value != default]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def stopping_at(self, ids: Sequence[int]) -> "PromptFormat":
        """This format with more tokens that end the agent's turn (itself where they do already)."""
        if {*ids} <= {*self.stop_tokens}:
            return self
        other = copy.copy(self)
        other._more_stops = tuple(dict.fromkeys([*self._more_stops, *ids]))
        for name in ("stop_tokens", "hash"):
            other.__dict__.pop(name, None)
        return other

    def _render(self, turns: Sequence[dict], generation: bool, name: str) -> str:
        return self.chat.render(turns, generation, name)

    def encode(self, text: str, behind: str = "\n") -> list[int]:
        """Ids of a text that follows a tag, or what else it is `after`."""
        return self.encoder.encode(text, behind).ids

    def _written(
        self, before: str, said: str, rest: str, after: str = "\n", what: str = "An action"
    ) -> Encoded:
        """Ids of what data had the agent say, between what the style writes."""
        data = [Data(len(before), len(before) + len(said))] if said and self.markers == "text" else []
        try:
            found = self.encoder.encode(before + said + rest, after, data)
        except ValueError as error:
            raise ValueError(f"{what}, {said[:60]!r}, cannot be read: {error}.") from None
        if found.markers:
            self._warn(
                "said",
                f"{what} holds {found.markers[0]!r}, which is a control token in this vocabulary: it is read "
                "as text. Where it is meant as the token give --markers tokens.",
            )
        return found

    def _warn(self, kind: str, sentence: str) -> None:
        """Warn once for each format and kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(sentence, stacklevel=4)

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens and spaces as they are; raises ValueError for what is no id."""
        return self.encoder.text(ids)

    @cached_property
    def stop_tokens(self) -> dict[int, str]:
        """Tokens that end the agent's turn -> their texts: the template's, the tokenizer's, given ones."""
        ids = [
            *self.chat.ends,
            *([] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]),
            *self._more_stops,
        ]
        return {i: self.text([i]) if i < self.encoder.size else "" for i in ids}

    def _passed(self, text: str, mode: Mode) -> int:
        """Index in a generated text after its trace, from which stop tokens count.

        -1 while the trace is open.
        """
        if mode != "cot":
            return 0
        lead = self.style.lead(text)
        return lead.end() if lead else -1

    def mode_prefix(self, mode: Mode) -> list[int]:
        """Ids that a mode appends to a prompt.

        `prompt` opens the action at once, `cot` opens a trace, and `empty_think` opens the action after an
        empty trace (the control for the tag's format).
        """
        if mode not in MODES:
            raise ValueError(f"There is no decoding mode {mode!r}: the modes are {', '.join(MODES)}.")
        if mode == "empty_think":
            return self.with_trace("")
        opened = self.style.open_think if mode == "cot" else self.chat.action_opening
        return self.encode(self.chat.gap + opened, self.header)

    def with_trace(self, trace: str | Sequence[int]) -> list[int]:
        """Ids that put a trace (text, or ids) and the opened action tag after a prompt."""
        if isinstance(trace, str):
            return self.trace_prefix(trace)[0].ids
        return [
            *self.mode_prefix("cot"),
            *trace,
            *self.encode(self.style.close_think + self.style.open_action),
        ]

    def trace_prefix(self, trace: str) -> tuple[Encoded, int]:
        """What puts a trace and the opened action after a prompt, and where in its text the trace begins."""
        s = self.style
        opened = f"{self.chat.gap}{s.open_think}{s.space if trace else ''}"
        return self._written(opened, trace, s.close_think + s.open_action, self.header, "A trace"), len(
            opened
        )

    def action_prefix(self, trace: str | Sequence[int] | None) -> list[int]:
        """Ids from the boundary to the opened action tag.

        trace: a text; ids as they were decoded up to the opened action (`decoded_prefix`); or None for the
        tag right at the boundary.
        """
        if trace is None:
            return self.mode_prefix("prompt")
        return self.with_trace(trace) if isinstance(trace, str) else [*self.mode_prefix("cot"), *trace]

    def action_ids(self, action: str) -> list[int]:
        """Ids of an action after its opened tag, with what closes it.

        Warns, once for each format, where the tag would merge with the action if both were read as one text.
        """
        s = self.style
        ids = self.closed_action(action).ids
        if "seam" not in self._warned:
            joint = self.encode(s.open_action + s.space + action + s.close_action)
            if joint != [*self.encode(s.open_action), *ids]:
                self._warn(
                    "seam",
                    f"In this vocabulary {s.open_action!r} merges with the action after it ({action!r}): a "
                    "prefilled tag is tokenised otherwise than a written one. A style with its tags on "
                    "lines of their own (`llama3`) keeps them apart.",
                )
            self._warned.add("seam")
        return ids if s.close_action else [*ids, *list(self.stop_tokens)[:1]]

    def closed_action(self, action: str) -> Encoded:
        """An action after its opened tag, with the text that closes it."""
        return self._written(self.style.space, action, self.style.close_action)

    def ended(self, mode: Mode) -> Callable[[Sequence[int]], bool]:
        """Whether what was generated after a mode's opening has closed its action, or its turn."""
        closing = self.style.close_action.strip()
        tail = len(self.encode(self.style.close_action)) + 2

        def check(ids: Sequence[int]) -> bool:
            last = ids[-1]
            if last in self.stop_tokens and not self._closes(self.stop_tokens[last]):
                return not self._inside(self.stop_tokens[last]) or self._passed(self.text(ids), mode) >= 0
            if last not in self._pieces:
                self._pieces[last] = self.text([last])
            if (closing or "\n")[-1] not in self._pieces[last]:
                return False
            if closing:
                return closing in self.text(ids[-tail:])
            return self.parse(self.text(ids), mode)[1] is not None

        return check

    def stops(self, mode: Mode) -> list[int]:
        """Tokens that end what is generated in a mode wherever they stand."""
        return [
            i
            for i, end in self.stop_tokens.items()
            if not self._closes(end) and (mode != "cot" or not self._inside(end))
        ]

    def _inside(self, end: str) -> bool:
        """Whether the style has an agent write this end within its turn, before the action."""
        return end != "" and end in self.style.close_think + self.style.open_action

    def _closes(self, end: str) -> bool:
        """Whether an end is but the beginning or the middle of what closes an action."""
        closing = self.style.close_action.rstrip()
        return end != "" and end in closing and not closing.endswith(end)

    def parse(self, text: str, mode: Mode) -> tuple[str | None, str | None]:
        """Split what a mode generated into (trace, action); None for a part that is not closed."""
        passed = self._passed(text, mode)
        over = []
        for end in self.stop_tokens.values():
            inside = self._inside(end)
            if not end or end in self.style.close_action or inside and passed < 0:
                continue
            over.append(text.find(end, passed if inside else 0))
        first = min((at for at in over if at >= 0), default=None)
        return self.style.parse(text[:first], mode == "cot", first is not None)

    def decoded_prefix(self, ids: Sequence[int]) -> list[int] | None:
        """The ids, of those generated in mode `cot`, up to the opened action tag.

        None where no action is opened.

        A token that holds the tag's end and the action's beginning is cut there, its tag tokenised as a
        prefilled one is.
        """
        text = self.text(ids)
        found = self.style.lead(text)
        if found is None:
            return None
        n = next(n for n in range(1, len(ids) + 1) if len(self.text(ids[:n])) >= found.end())
        if text[found.end() : len(self.text(ids[:n]))].strip():
            return [*ids[: n - 1], *self.encode(text[len(self.text(ids[: n - 1])) : found.end()])]
        while (
            n < len(ids)
            and not self.text(ids[:n]).endswith(self.style.open_action)
            and not self.text([ids[n]]).strip()
        ):
            n += 1
        return list(ids[:n])

    def content(self, turn: Mapping) -> str:
        """Text of one turn: its own `content`, or trace and action in the style's tags."""
        return turn["content"] if "content" in turn else self.turn(turn.get("trace"), turn["action"])

    def turn(self, trace: str | None, action: str) -> str:
        """Text of an agent's turn in the history, without what the template itself writes around it."""
        trace = None if self.history_traces == "dropped" else trace
        if self.history_traces == "kept" and trace is not None:
            return replace(self.style, native=False).turn(trace, action)
        return action if self.chat.writes_action else self.style.turn(trace, action)

    @property
    def whole(self) -> bool:
        """Whether an episode is one sequence, in which each prompt begins what follows it."""
        return not self._stripped and not self._before

    @property
    def _stripped(self) -> bool:
        """Whether earlier turns lose their traces."""
        return self.history_traces == "dropped" or self.history_traces == "template" and self.style.native

    @cached_property
    def _before(self) -> str:
        """What the template writes before an agent's turn in the history, where prompts do not end with it.

        An empty thought, for example; "" where prompts end as the history goes on.
        """
        asked, said = dict(role="user", content="a"), dict(role="agent", trace="b", action="c")
        turns = self._turns([asked, said, asked, said, asked])
        text, places = self._placed(turns, False, "a short conversation")
        openings = tuple(opening.rstrip() for opening in (self.header, self.header + self.chat.gap))
        before = [text[:start] for number, start, _ in places if turns[number]["role"] == "assistant"]
        return next((each for each in before if not each.rstrip().endswith(openings)), "")

    def _roles(self, messages: Sequence[Mapping]) -> list[dict]:
        """Messages in roles that the template takes, the system's first.

        User messages that meet are joined.
        """
        system = (
            [dict(role="system", content=self.system)]
            if self.system and messages[0]["role"] != "system"
            else []
        )
        roles = dict(system=self.system_as, tool=self.tool_as)
        found: list[dict] = []
        for message in [*system, *messages]:
            message = {**message, "role": roles.get(message["role"], message["role"])}
            if "user" in roles.values() and found and message["role"] == found[-1]["role"] == "user":
                found[-1]["content"] += _BETWEEN + message["content"]
            else:
                found.append(message)
        return found

    def _turns(self, messages: Sequence[Mapping]) -> list[dict]:
        found = []
        for m in self._roles(messages):
            own = (
                {k: v for k, v in m.items() if k not in ("trace", "action")}
                if m["role"] != "agent"
                else dict(role="assistant")
            )
            native = self.style.native and self.history_traces == "template" and m.get("trace")
            found.append(
                {**own, "content": self.content(m), **(dict(reasoning_content=m["trace"]) if native else {})}
            )
        return found

    def _placed(self, turns: Sequence[dict], generation: bool, name: str) -> tuple[str, list[Place]]:
        """The rendered text and where each content stands in it.

        `kept` traces are put in where the template drops them.
        """
        for i, turn in enumerate(turns):
            check_text(turn["content"] + turn.get("reasoning_content", ""), f"Message {i} of {name}")
        kept = {}
        if self.history_traces == "kept":
            opened = self.style.open_think.strip()
            kept = {
                i: t["content"]
                for i, t in enumerate(turns)
                if t["role"] == "assistant" and opened in t["content"]
            }
        shown = [{**t, "content": mark("k", i)} if i in kept else t for i, t in enumerate(turns)]
        text, places = place(self._render, shown, generation, name)
        return put(text, places, kept, self.chat.before_kept) if kept else (text, places)

    def _tokens(self, turns: Sequence[dict], text: str, places: Sequence[Place], name: str) -> Encoded:
        """Tokens of a rendered text, with control tokens in the data read as text."""
        if self.context is None and len(text) > UNBOUNDED:
            raise ValueError(
                f"The text of {name} has {len(text):,} characters, and without the model's context at most "
                f"{UNBOUNDED:,} are read: give context=, the tokens that the model reads at most."
            )
        if self.markers == "tokens":
            return self.encoder.encode(text, "")
        data = [
            Data(start, end, turns[turn]["role"] in ("assistant", "system")) for turn, start, end in places
        ]
        try:
            found = self.encoder.encode(text, "", data)
        except ValueError as error:
            raise ValueError(f"The text of {name} cannot be read: {error}.") from None
        if found.markers:
            turn = next(number for number, start, end in places if found.markers[0] in text[start:end])
            self._warn(
                "turns",
                f"Message {turn} of {name} holds {found.markers[0]!r}, which is a control token of this "
                "template: it is read as text there, and so are others in the data. Where they are meant as "
                "the tokens give --markers tokens.",
            )
        return found

    def prompt(self, decision: Decision) -> Prompt:
        """Render one decision up to its boundary, without the turns that `fit` leaves out.

        Raises ValueError where the template drops a message, the task is not in the messages, or too little
        of the context is left.
        """
        fitted = self.fit(decision)
        rendered = self._rendered(fitted)
        if self.context and (least := self._at_least(rendered[1])) > self.context:
            raise self._too_long(decision, f"more than {least}")
        prompt = self._prompt(fitted, *rendered)
        if self.context and self._space(decision) < len(prompt.ids):
            raise self._too_long(decision, str(len(prompt.ids)))
        return replace(
            prompt,
            dropped=sum(m["role"] == "agent" for m in decision.messages)
            - sum(m["role"] == "agent" for m in fitted.messages),
        )

    def _too_long(self, decision: Decision, tokens: str) -> ValueError:
        after = "" if self.truncate == "none" else " even without its history"
        return ValueError(
            f"The prompt of decision {decision.id} has {tokens} tokens{after}, and "
            f"{self.context - self._space(decision)} more are kept free for a trace and its action, but this "
            f"model reads at most {self.context}: leave out turns with --truncate oldest_turns, or the "
            "decision, or lower --trace_tokens."
        )

    def _at_least(self, text: str) -> int:
        """Tokens that a text has at least; those of a very long one are counted on its beginning only."""
        least, beginning = len(text) // self.encoder.longest, text[: _CHARACTERS * self.context]
        if len(beginning) < len(text):
            least = max(
                least, int(0.9 * len(self.encoder.encode(beginning, "").ids))
            )  # the cut may have made some more
        return least

    def _space(self, decision: Decision) -> int:
        """Tokens left for a prompt whose trace (decoded or recorded) and longest action must follow it."""
        s, longest = self.style, max((decision.reference, *decision.admissible), key=len)
        action = len(self.encode(s.space + longest + s.close_action)) + 1
        return (
            self.context
            - max(len(self.with_trace("")) + self.room, len(self.with_trace(decision.trace)))
            - action
        )

    def fit(self, decision: Decision) -> Decision:
        """The decision without as many of its oldest turns as its prompt is too long for the context.

        Policy `oldest_turns`: what comes up to the task, or to the first user message where no task is given,
        stays, and so do the last of the agent's turns and what answers it. Between them the agent's oldest
        turns go, each with its answers.
        """
        if self.truncate == "none" or not self.context:
            return decision
        messages = decision.messages
        head = next(
            (i for i, m in enumerate(messages) if m["role"] == "user" and decision.task in m["content"]), 0
        )
        turns = [i for i, m in enumerate(messages) if m["role"] == "agent" and i > head]
        if not turns:
            return decision
        kept = [replace(decision, messages=(*messages[: turns[0]], *messages[start:])) for start in turns]
        space = self._space(decision)
        first = bisect_left(range(len(kept)), -space, key=lambda k: -self._length(kept[k]))
        return decision if first == 0 else kept[min(first, len(kept) - 1)]

    def _length(self, decision: Decision) -> int:
        """Tokens of a decision's prompt, at least where they are far too many."""
        rendered = self._rendered(decision)
        least = self._at_least(rendered[1])
        return least if least > self.context else len(self._prompt(decision, *rendered).ids)

    def _rendered(self, decision: Decision) -> tuple[list[dict], str, list[Place]]:
        """Turns of a decision, their text up to its boundary, and the places of their contents."""
        turns = self._turns(decision.messages)
        text, places = self._placed(turns, True, f"decision {decision.id}")
        end = places[-1].end
        return turns, text[:end] + self.chat.before_thought(text[end:]), places

    def _prompt(
        self, decision: Decision, turns: Sequence[dict], text: str, places: Sequence[Place]
    ) -> Prompt:
        spans = np.full(len(text), SPANS.index("template"), dtype=np.uint8)
        last_agent = max((i for i, t in enumerate(turns) if t["role"] == "assistant"), default=-1)
        first = decision.messages[0]
        system = first["content"] if first["role"] == "system" else self.system
        task_found = not decision.task
        for number, start, end in places:
            role = turns[number]["role"]
            if role == "system":
                continue
            if system and number == 0:  # given as the user's, it stands at the start of the first message
                start += len(system + _BETWEEN)
            spans[start:end] = SPANS.index("observation" if number > last_agent else "history")
            at = text.find(decision.task, start, end) if not task_found and role == "user" else -1
            if at >= 0:
                spans[at : at + len(decision.task)], task_found = SPANS.index("task"), True
        if not task_found:
            raise ValueError(
                f"The task of decision {decision.id}, {decision.task[:60]!r}, is in none of its messages."
            )
        tokens = self._tokens(turns, text, places, f"decision {decision.id}")
        last = np.array([end for _, end in tokens.offsets]) - 1
        names = [SPANS[i] for i in spans[np.maximum(last, 0)]]
        names[-1] = "boundary"
        return Prompt(tuple(tokens.ids), tuple(names), decision, self)

    def example(self, decision: Decision) -> tuple[list[int], list[bool]]:
        """One decision as a training sequence: ids, and True for those of its trace and action."""
        prompt, said = (
            self.prompt(decision),
            [*self.with_trace(decision.trace), *self.action_ids(decision.reference)],
        )
        return [*prompt.ids, *said], [False] * len(prompt.ids) + [True] * len(said)

    def sequence(self, episode: Episode, traces=True) -> tuple[list[int], list[bool]]:
        """A whole episode as one training sequence: ids, and which of them the agent wrote (tags included).

        Raises ValueError for a style whose template strips earlier traces, and for a template that opens the
        agent's turn otherwise than it writes it in the history, as with an empty thought: no one sequence
        holds them all (see `example`).
        """
        rendered = self.rendered(episode, traces)
        agent = np.zeros(len(rendered.text), dtype=bool)
        for start, end in rendered.turns:
            agent[start:end] = True
        return rendered.tokens.ids, [bool(agent[end - 1]) for _, end in rendered.tokens.offsets]

    def rendered(self, episode: Episode, traces=True) -> Rendered:
        """An episode's one sequence, as text and as tokens; raises as `sequence` does."""
        if self._stripped:
            raise ValueError(
                "This style's template strips the traces of earlier turns, so an episode is no single "
                "sequence: train on `PromptFormat.example` of each of its decisions, or keep the traces "
                "(history_traces='kept')."
            )
        if self._before:
            raise ValueError(
                f"The chat template writes {self._before[-60:]!r} before the agent's turn in the history, "
                f"but a prompt ends with {self.header!r}, so an episode is no single sequence: train on "
                "`PromptFormat.example` of each of its decisions."
            )
        name, turns = f"episode {episode.id}", self._turns(episode.messages(traces=traces))
        text, places = self._placed(turns, False, name)
        tokens = self._tokens(turns, text, places, name)
        return Rendered(
            text,
            [(start, end) for number, start, end in places if turns[number]["role"] == "assistant"],
            tokens,
        )


def _check_choice(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"{name} is {' or '.join(map(repr, known))}, not {given!r}.")
