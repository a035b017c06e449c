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
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from interp.prompts.encoding import Data, Encoded, Encoder, PreTrainedTokenizerBase, check_text
from interp.prompts.history import History, HistoryTraces, check_choice
from interp.prompts.placing import Place
from interp.prompts.prompt import Prompt as Prompt
from interp.prompts.rendering import TODAY
from interp.prompts.spans import SPANS as SPANS
from interp.prompts.spans import Rendering, character_spans
from interp.prompts.stopping import Mode as Mode
from interp.prompts.stopping import Stopping
from interp.prompts.styles import Style, find_style
from interp.prompts.templates import ChatTemplate
from interp.system.renamed import renamed_attributes
from interp.tasks.episodes import Decision, Episode

MODES: tuple[Mode, ...] = ("prompt", "cot", "empty_think")
Truncate = Literal["none", "oldest_turns"]
#: How a template's control tokens are read where data hold them: as text, or as the tokens.
Markers = Literal["text", "tokens"]
#: Characters of a text that are read where no context says how many tokens there may be.
UNBOUNDED = 4_000_000
#: Characters for each token of the context beyond which a text's tokens are counted on its beginning.
_CHARACTERS = 16


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

    Args:
        tokenizer: with a chat template.
        style: a name in `STYLES`, or a Style of one's own.
        system: put before messages that bring no system message of their own.
        tools: function signatures that the template is given.
        options: the template's own variables, and `today`, the date that its clock shows (fixed, since
            prompts must not change from one day to the next).
        context: tokens that the model reads at most (None: any length).
        room: tokens that a trace, and an action after it, may take.
        truncate: what is done with a longer prompt, `none` (refused) or `oldest_turns` (see `fit`).
        stop_tokens: ids that end a turn beside those of tokenizer and template.
        history_traces: earlier turns' traces as the template has them, all `kept`, or `dropped`.
        system_as: `user` gives system messages as the user's, for templates that know none.
        tool_as: the same for tool messages.
        markers: control tokens in the data are read as `text`, with a warning, or as the `tokens` they are.
        template_file: where the template is from, for sentences.

    Raises:
        ValueError: the template has no boundary that can be found, or drops the system message.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
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
    ) -> None:
        check_choice("truncate", truncate, get_args(Truncate))
        check_choice("markers", markers, get_args(Markers))
        check_text(system, "The system prompt")
        if tokenizer is None:
            raise ValueError(
                "There is no tokenizer, so no prompt can be made: give one (a model made without one has "
                "model.tokenizer None)."
            )
        self.tokenizer = tokenizer
        self.style = find_style(style)
        self.system = system
        self.context = context
        self.room = room
        self.truncate = truncate
        self.markers = markers
        self.chat = ChatTemplate(tokenizer, self.style, tools, options, template_file)
        self.history = History(self.chat, system, history_traces, system_as, tool_as)
        self.history_traces, self.system_as, self.tool_as = history_traces, system_as, tool_as
        self.tools = self.chat.tools
        self.options = self.chat.options
        self.header = self.chat.opening
        self.encoder = Encoder(tokenizer, self.style.tags, self.chat.source)
        if self.tools and markers == "text":
            self.encoder.check_held(json.dumps(self.tools, ensure_ascii=False), "A tool's text")
        self._more_stops = tuple(stop_tokens)
        self._warned: set[str] = set()
        if system:
            turns = self.history.turns([dict(role="user", content="a")])
            self.history.place(turns, True, "the system prompt")

    def __repr__(self) -> str:
        tags = f"trace {self.style.open_think!r}, action {self.style.open_action!r}"
        return f"PromptFormat({type(self.tokenizer).__name__}, {tags})"

    @cached_property
    def hash(self) -> str:
        """Content hash of template, style, system prompt, tools, options, vocabulary and other settings."""
        parts: list = [
            self.tokenizer.chat_template,
            str(self.style),
            self.system,
            self.tools,
            self.options,
            sorted(self.tokenizer.get_vocab().items()),
        ]
        if self.truncate != "none":
            parts += [self.truncate, self.context, self.room]
        if "strftime_now" in self.chat.source or self.chat.today != TODAY:
            parts.append(dict(today=self.chat.today))
        more_stops = {*self._more_stops} - {self.tokenizer.eos_token_id, *self.chat.ends}
        settings = dict(
            history_traces=(self.history.traces, "template"),
            system_as=(self.history.system_as, "system"),
            tool_as=(self.history.tool_as, "tool"),
            markers=(self.markers, "text"),
            stop_tokens=(sorted(more_stops), []),
        )
        parts += [{name: value} for name, (value, default) in settings.items() if value != default]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def stopping_at(self, ids: Sequence[int]) -> "PromptFormat":
        """This format with more tokens that end the agent's turn (itself where they do already)."""
        if {*ids} <= {*self.stop_tokens}:
            return self
        other = copy.copy(self)
        other._more_stops = tuple(dict.fromkeys([*self._more_stops, *ids]))
        for name in ("stop_tokens", "stopping", "hash"):
            other.__dict__.pop(name, None)
        return other

    def encode(self, text: str, after: str = "\n") -> list[int]:
        """Ids of a text that follows a tag, or the text `after`."""
        return self.encoder.encode(text, after).ids

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens and spaces as they are; raises ValueError for what is no id."""
        return self.encoder.text(ids)

    def _encode_written(
        self, before: str, written: str, rest: str, after: str = "\n", what: str = "An action"
    ) -> Encoded:
        """Ids of what the agent wrote, by the data, between texts of the style."""
        data = []
        if written and self.markers == "text":
            data = [Data(len(before), len(before) + len(written))]
        try:
            encoded = self.encoder.encode(before + written + rest, after, data)
        except ValueError as error:
            raise ValueError(f"{what}, {written[:60]!r}, cannot be read: {error}.") from None
        if encoded.markers:
            self._warn(
                "said",
                f"{what} holds {encoded.markers[0]!r}, which is a control token in this vocabulary: it is "
                "read as text. Where it is meant as the token give --markers tokens.",
            )
        return encoded

    def _warn(self, kind: str, sentence: str) -> None:
        """Warn once for each format and kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(sentence, stacklevel=4)

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
        closed = self.encode(self.style.close_think + self.style.open_action)
        return [*self.mode_prefix("cot"), *trace, *closed]

    def trace_prefix(self, trace: str) -> tuple[Encoded, int]:
        """What puts a trace and the opened action after a prompt, and where in its text the trace begins."""
        s = self.style
        opened = f"{self.chat.gap}{s.open_think}{s.space if trace else ''}"
        encoded = self._encode_written(opened, trace, s.close_think + s.open_action, self.header, "A trace")
        return encoded, len(opened)

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
        return self._encode_written(self.style.space, action, self.style.close_action)

    @cached_property
    def stop_tokens(self) -> dict[int, str]:
        """Tokens that end the agent's turn -> their texts: the template's, the tokenizer's, given ones."""
        end_of_sequence = self.tokenizer.eos_token_id
        ids = [*self.chat.ends, *([] if end_of_sequence is None else [end_of_sequence]), *self._more_stops]
        return {i: self.text([i]) if i < self.encoder.size else "" for i in ids}

    @cached_property
    def stopping(self) -> Stopping:
        """How completions are read."""
        return Stopping(self.style, self.encoder, self.stop_tokens)

    def ended(self, mode: Mode) -> Callable[[Sequence[int]], bool]:
        """Whether what was generated after a mode's prefix has closed its action, or its turn."""
        return self.stopping.ended(mode)

    def stops(self, mode: Mode) -> list[int]:
        """Tokens that end what is generated in a mode wherever they stand."""
        return self.stopping.stops(mode)

    def parse(self, text: str, mode: Mode) -> tuple[str | None, str | None]:
        """Split what a mode generated into (trace, action); None for a part that is not closed."""
        return self.stopping.parse(text, mode)

    def decoded_prefix(self, ids: Sequence[int]) -> list[int] | None:
        """The ids up to the opened action tag (`Stopping.decoded_prefix`)."""
        return self.stopping.decoded_prefix(ids)

    @property
    def whole(self) -> bool:
        """Whether an episode is one sequence, in which each prompt begins what follows it."""
        return not self.history.strips_traces and not self.history.unlike_prompts

    def _tokens(self, turns: Sequence[dict], text: str, places: Sequence[Place], name: str) -> Encoded:
        """Tokens of a rendered text, with control tokens in the data read as text."""
        if self.context is None and len(text) > UNBOUNDED:
            raise ValueError(
                f"The text of {name} has {len(text):,} characters, and without the model's context at most "
                f"{UNBOUNDED:,} are read: give context=, the tokens that the model reads at most."
            )
        if self.markers == "tokens":
            return self.encoder.encode(text, "")
        own = ("assistant", "system")
        data = [Data(start, end, turns[number]["role"] in own) for number, start, end in places]
        try:
            encoded = self.encoder.encode(text, "", data)
        except ValueError as error:
            raise ValueError(f"The text of {name} cannot be read: {error}.") from None
        if encoded.markers:
            marker = encoded.markers[0]
            holder = next(number for number, start, end in places if marker in text[start:end])
            self._warn(
                "turns",
                f"Message {holder} of {name} holds {marker!r}, which is a control token of this template: it "
                "is read as text there, and so are others in the data. Where they are meant as the tokens "
                "give --markers tokens.",
            )
        return encoded

    def prompt(self, decision: Decision) -> Prompt:
        """Render one decision up to its boundary, without the turns that `fit` leaves out.

        Raises ValueError where the template drops a message, the task is not in the messages, or too little
        of the context is left.
        """
        fitted = self.fit(decision)
        rendering = self._rendering(fitted)
        if self.context:
            least = self._at_least(rendering.text, self.context)
            if least > self.context:
                raise self._too_long(decision, self.context, f"more than {least}")
        prompt = self._prompt(fitted, rendering)
        if self.context and self._space(decision, self.context) < len(prompt.ids):
            raise self._too_long(decision, self.context, str(len(prompt.ids)))
        return replace(prompt, dropped=_agent_turns(decision) - _agent_turns(fitted))

    def _too_long(self, decision: Decision, context: int, tokens: str) -> ValueError:
        after = "" if self.truncate == "none" else " even without its history"
        return ValueError(
            f"The prompt of decision {decision.id} has {tokens} tokens{after}, and "
            f"{context - self._space(decision, context)} more are kept free for a trace and its action, but "
            f"this model reads at most {context}: leave out turns with --truncate oldest_turns, or the "
            "decision, or lower --trace_tokens."
        )

    def _at_least(self, text: str, context: int) -> int:
        """Tokens that a text has at least; those of a very long one are counted on its beginning only."""
        least = len(text) // self.encoder.longest
        beginning = text[: _CHARACTERS * context]
        if len(beginning) < len(text):
            counted = len(self.encoder.encode(beginning, "").ids)
            least = max(least, int(0.9 * counted))  # the cut may have made some more
        return least

    def _space(self, decision: Decision, context: int) -> int:
        """Tokens left for a prompt whose trace (decoded or recorded) and longest action must follow it."""
        s = self.style
        longest = max((decision.reference, *decision.admissible), key=len)
        action = len(self.encode(s.space + longest + s.close_action)) + 1
        traced = len(self.with_trace(decision.trace)) if decision.trace else self._untraced
        return context - max(self._untraced + self.room, traced) - action

    @cached_property
    def _untraced(self) -> int:
        """Tokens of an empty trace and the opened action tag."""
        return len(self.with_trace(""))

    def fit(self, decision: Decision) -> Decision:
        """The decision without as many of its oldest turns as its prompt is too long for the context.

        Policy `oldest_turns`: what comes up to the task, or to the first user message where no task is given,
        stays, and so do the last of the agent's turns and what answers it. Between them the agent's oldest
        turns go, each with its answers.
        """
        context = self.context
        if self.truncate == "none" or not context:
            return decision
        messages = decision.messages
        with_task = (
            i for i, m in enumerate(messages) if m["role"] == "user" and decision.task in m["content"]
        )
        head = next(with_task, 0)
        turns = [i for i, m in enumerate(messages) if m["role"] == "agent" and i > head]
        if not turns:
            return decision
        shortened = [
            replace(decision, messages=[*messages[: turns[0]], *messages[start:]]) for start in turns
        ]
        space = self._space(decision, context)
        first = bisect_left(range(len(turns)), -space, key=lambda n: -self._length(shortened[n], context))
        return decision if first == 0 else shortened[min(first, len(turns) - 1)]

    def _length(self, decision: Decision, context: int) -> int:
        """Tokens of a decision's prompt, at least where they are far too many."""
        rendering = self._rendering(decision)
        least = self._at_least(rendering.text, context)
        return least if least > context else len(self._prompt(decision, rendering).ids)

    def _rendering(self, decision: Decision) -> Rendering:
        turns = self.history.turns(decision.messages)
        text, places = self.history.place(turns, True, f"decision {decision.id}")
        end = places[-1].end
        return Rendering(turns, text[:end] + self.chat.before_thought(text[end:]), places)

    def _prompt(self, decision: Decision, rendering: Rendering) -> Prompt:
        spans = character_spans(decision, rendering, self.system)
        encoded = self._tokens(*rendering, f"decision {decision.id}")
        last = np.array([end for _, end in encoded.offsets]) - 1
        names = [SPANS[span] for span in spans[np.maximum(last, 0)]]
        names[-1] = "boundary"
        return Prompt(tuple(encoded.ids), tuple(names), decision, self)

    def example(self, decision: Decision) -> tuple[list[int], list[bool]]:
        """One decision as a training sequence: ids, and True for those of its trace and action."""
        prompt = self.prompt(decision)
        written = [*self.with_trace(decision.trace), *self.action_ids(decision.reference)]
        return [*prompt.ids, *written], [False] * len(prompt.ids) + [True] * len(written)

    def sequence(
        self, episode: Episode, traces: bool | Sequence[bool] = True
    ) -> tuple[list[int], list[bool]]:
        """A whole episode as one training sequence: ids, and which of them the agent wrote (tags included).

        traces: whether steps keep their traces (one flag, or one for each step). Raises ValueError for a
        style whose template strips earlier traces, and for a template that opens the agent's turn otherwise
        than it writes it in the history, as with an empty thought: no one sequence holds them all (see
        `example`).
        """
        rendered = self.rendered(episode, traces)
        agent = np.zeros(len(rendered.text), dtype=bool)
        for start, end in rendered.turns:
            agent[start:end] = True
        return rendered.tokens.ids, [bool(agent[end - 1]) for _, end in rendered.tokens.offsets]

    def rendered(self, episode: Episode, traces: bool | Sequence[bool] = True) -> Rendered:
        """An episode's one sequence, as text and as tokens; raises as `sequence` does."""
        if self.history.strips_traces:
            raise ValueError(
                "This style's template strips the traces of earlier turns, so an episode is no single "
                "sequence: train on `PromptFormat.example` of each of its decisions, or keep the traces "
                "(history_traces='kept')."
            )
        if self.history.unlike_prompts:
            raise ValueError(
                f"The chat template writes {self.history.unlike_prompts[-60:]!r} before the agent's turn in "
                f"the history, but a prompt ends with {self.header!r}, so an episode is no single sequence: "
                "train on `PromptFormat.example` of each of its decisions."
            )
        name = f"episode {episode.id}"
        turns = self.history.turns(episode.messages(traces=traces))
        text, places = self.history.place(turns, False, name)
        agent = [(start, end) for number, start, end in places if turns[number]["role"] == "assistant"]
        return Rendered(text, agent, self._tokens(turns, text, places, name))


def _agent_turns(decision: Decision) -> int:
    return sum(message["role"] == "agent" for message in decision.messages)
