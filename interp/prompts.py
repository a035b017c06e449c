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
import warnings
from collections.abc import Callable, Mapping, Sequence
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from interp.styles import STYLES, Style
from interp.tasks import Decision, Episode

SPANS = ("template", "task", "history", "observation", "boundary", "cot", "action_tag", "action")
Mode = Literal["prompt", "cot", "empty_think"]
MODES: tuple[Mode, ...] = ("prompt", "cot", "empty_think")
Truncate = Literal["none", "oldest_turns"]
#: Llama 3's templates write today's date into every prompt unless they are told one.
OPTIONS = {"date_string": "26 Jul 2024"}
_MARK = re.compile("\ue000([ct])(\\d+)\ue001")


@dataclass(frozen=True)
class Prompt:
    """One decision as the model reads it: `ids` [token], one span name for each, and the boundary's index.

    `decision` holds the messages that are in it; `dropped` of the agent's turns, with their answers, were left out.
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


class PromptFormat:
    """How messages become ids: the tokenizer's own chat template, and the tags of a style.

    style: a name in `STYLES`, or a Style of one's own. system: put before messages that bring no system message of their own.
    tools: function signatures that the template is given. options: the template's own variables (a date is fixed, since
    prompts must not change from one day to the next). context: tokens that the model reads at most (None: lengths are not
    looked at). room: tokens that a trace, and an action behind it, may take. truncate: what is done with a longer prompt, `none` (refused)
    or `oldest_turns` (see `fit`). Raises ValueError where the template has no boundary that can be found, or drops the system message.
    """

    def __init__(self, tokenizer, style: str | Style = "tags", system: str = "", tools: Sequence[dict] = (), options: Mapping | None = None,
                 context: int | None = None, room: int = 0, truncate: Truncate = "none"):
        if truncate not in get_args(Truncate):
            raise ValueError(f"There is no policy {truncate!r} for long prompts: there are {', '.join(get_args(Truncate))}.")
        if isinstance(style, str) and style not in STYLES:
            raise ValueError(f"There is no prompt style {style!r}: give one of {', '.join(STYLES)} or a Style of your own.")
        if tokenizer is None:
            raise ValueError("There is no tokenizer, so no prompt can be made: give one (a model made without one has model.tokenizer None).")
        if not tokenizer.chat_template:
            raise ValueError("This tokenizer has no chat template, so its prompts have no boundary: set tokenizer.chat_template.")
        self.tokenizer, self.style, self.system = tokenizer, STYLES[style] if isinstance(style, str) else style, system
        self.tools, self.options = list(tools) or None, {**OPTIONS, **(options or {})}
        self.context, self.room, self.truncate = context, room, truncate
        self._anchored = str(tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]).startswith("▁")
        self._seams: dict[str, bool] = {}
        self._pieces: dict[int, str] = {}
        probe = [dict(role="user", content="a")]
        without, with_turn = (self._render(probe, add, "a lone user message") for add in (False, True))
        ended, without = without, without.removesuffix(tokenizer.eos_token or "")  # Phi's templates end a finished conversation with it
        if with_turn == ended or not (with_turn.startswith(without) and len(with_turn) > len(without)):
            raise ValueError("This chat template has no findable boundary: rendered with add_generation_prompt it should be the "
                             f"text without it plus the opening of the agent's turn, but it gave {with_turn!r} after {without!r}.")
        self.header = re.sub(rf"{re.escape(self.style.open_think.strip())}\s*$", "", with_turn[len(without):])
        if system:
            self._place([dict(role="system", content=system), *probe], True, "the system prompt")

    @cached_property
    def hash(self) -> str:
        """Content hash of template, style, system prompt, tools, options and vocabulary."""
        parts = [self.tokenizer.chat_template, str(self.style), self.system, self.tools, self.options, sorted(self.tokenizer.get_vocab().items())]
        parts += [] if self.truncate == "none" else [self.truncate, self.context, self.room]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def _render(self, turns: Sequence[dict], generation: bool, name: str) -> str:
        try:
            return self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=generation, tools=self.tools, **self.options)
        except Exception as error:  # jinja raises its own kinds, and templates raise through it
            roles = ", ".join(t["role"] for t in turns[:4])
            raise ValueError(f"The chat template refuses {name} ({error}); its first roles are {roles}. A template that knows no system "
                             "message needs that text at the start of the first user message.") from error

    def encode(self, text: str, behind: str = "\n") -> list[int]:
        """Ids of a text that follows a tag, or what else it is `behind`."""
        return self.encoded(text, behind)[0]

    def encoded(self, text: str, behind: str = "\n") -> tuple[list[int], list[tuple[int, int]]]:
        """Ids as `encode` gives them, and from where to where in the text each token stands."""
        if not text:
            return [], []
        if self._anchored:  # such tokenizers put a space before the first word of a text, or behind each special token
            before = self.tokenizer(behind, add_special_tokens=False)["input_ids"]
            both = self.tokenizer(behind + text, add_special_tokens=False, return_offsets_mapping=True)
            if both["input_ids"][:len(before)] == before:
                cut = len(behind)
                return both["input_ids"][len(before):], [(max(0, a - cut), max(0, b - cut)) for a, b in both["offset_mapping"][len(before):]]
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], found["offset_mapping"]

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens and spaces as they are."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @cached_property
    def ends(self) -> dict[int, str]:
        """Tokens that end the agent's turn, and their texts: the tokenizer's end of sequence, and what the template writes."""
        marked = self._render([dict(role="user", content="a"), dict(role="assistant", content="\ue000")], False, "a conversation")
        tail = self.tokenizer(marked.partition("\ue000")[2], add_special_tokens=False)["input_ids"][:1]
        special = {self.tokenizer.eos_token_id, *(i for i in tail if i in self.tokenizer.added_tokens_decoder)} - {None}
        return {i: self.text([i]) for i in [*tail, *special] if i in special}

    def opening(self, mode: Mode) -> list[int]:
        """Ids appended to a prompt so that the model acts at once (`prompt`), reasons first (`cot`), or acts after an
        empty trace (`empty_think`: the control for the tag's format)."""
        if mode not in MODES:
            raise ValueError(f"There is no decoding mode {mode!r}: the modes are {', '.join(MODES)}.")
        s = self.style
        return self.with_trace("") if mode == "empty_think" else self.encode(s.open_think if mode == "cot" else s.open_action, self.header)

    def with_trace(self, trace: str | Sequence[int]) -> list[int]:
        """Ids that put a trace (text, or ids) and the opened action tag behind a prompt."""
        s = self.style
        if isinstance(trace, str):
            return self.encode(s.lead_text(trace), self.header)
        return [*self.encode(s.open_think, self.header), *trace, *self.encode(s.close_think + s.open_action)]

    def tail(self, trace: str | Sequence[int] | None) -> list[int]:
        """Ids from the boundary to the opened action tag.

        trace: a text; ids as they were decoded up to the opened action (`lead_ids`); or None for the tag right at the boundary.
        """
        if trace is None:
            return self.opening("prompt")
        return self.with_trace(trace) if isinstance(trace, str) else [*self.opening("cot"), *trace]

    def action_ids(self, action: str) -> list[int]:
        """Ids of an action behind its opened tag, with what closes it.

        Warns, once for each format, where the tag would merge with the action if both were read as one text.
        """
        s = self.style
        ids = self.encode(s.space + action + s.close_action)
        if "action" not in self._seams:
            joint = self.encode(s.open_action + s.space + action + s.close_action)
            self._seams["action"] = joint == [*self.encode(s.open_action), *ids]
            if not self._seams["action"]:
                warnings.warn(f"In this vocabulary {s.open_action!r} merges with the action behind it ({action!r}): a prefilled tag is tokenised "
                              "otherwise than a written one. A style with its tags on lines of their own (`llama3`) keeps them apart.", stacklevel=2)
        return ids if s.close_action else [*ids, *list(self.ends)[:1]]

    def ended(self, mode: Mode) -> Callable[[Sequence[int]], bool]:
        """Whether what was generated behind a mode's opening has closed its action, or its turn."""
        closing = self.style.close_action.strip()
        tail = len(self.encode(self.style.close_action)) + 2

        def check(ids: Sequence[int]) -> bool:
            last = ids[-1]
            if last in self.ends:
                return True
            if last not in self._pieces:
                self._pieces[last] = self.text([last])
            if (closing or "\n")[-1] not in self._pieces[last]:
                return False
            if closing:
                return closing in self.text(ids[-tail:])
            return self.parse(self.text(ids), mode)[1] is not None

        return check

    def parse(self, text: str, mode: Mode) -> tuple[str | None, str | None]:
        """Split what was generated after a mode's opening into (trace, action); None for a part that is not closed."""
        over = min((at for end in self.ends.values() if end != self.style.close_action and (at := text.find(end)) >= 0), default=None)
        return self.style.parse(text[:over], mode == "cot", over is not None)

    def lead_ids(self, ids: Sequence[int]) -> list[int] | None:
        """Of ids generated in mode `cot`, those up to the opened action tag, exactly; None where none was opened.

        A token that holds the tag's end and the action's beginning is cut there, its tag tokenised as a prefilled one is.
        """
        text = self.text(ids)
        found = self.style.lead(text)
        if found is None:
            return None
        n = next(n for n in range(1, len(ids) + 1) if len(self.text(ids[:n])) >= found.end())
        if text[found.end():len(self.text(ids[:n]))].strip():
            return [*ids[:n - 1], *self.encode(text[len(self.text(ids[:n - 1])):found.end()])]
        while n < len(ids) and not self.text(ids[:n]).endswith(self.style.open_action) and not self.text([ids[n]]).strip():
            n += 1
        return list(ids[:n])

    def content(self, turn: Mapping) -> str:
        """Text of one turn; an agent's turn is written in the style's tags unless it brings its text itself."""
        return turn["content"] if "content" in turn else self.style.turn(turn.get("trace"), turn["action"])

    def _turns(self, messages: Sequence[Mapping]) -> list[dict]:
        found = [dict(role="system", content=self.system)] if self.system and messages[0]["role"] != "system" else []
        for m in messages:
            own = {k: v for k, v in m.items() if k not in ("trace", "action")} if m["role"] != "agent" else dict(role="assistant")
            thought = dict(reasoning_content=m["trace"]) if self.style.native and m.get("trace") else {}
            found.append({**own, "content": self.content(m), **thought})
        return found

    def _place(self, turns: Sequence[dict], generation: bool, name: str) -> tuple[str, list[tuple[int, int, int]]]:
        """The rendered text, and (turn, from, to) of each content and each kept trace in it.

        The template's own text is found by rendering marks in place of the contents, never by searching for a content.
        """
        text = self._render(turns, generation, name)
        marked = [{**t, **{k: f"\ue000{k[0].replace('r', 't')}{i}\ue001" for k in ("content", "reasoning_content") if k in t}} for i, t in enumerate(turns)]
        frame, cursor, behind, places, seen = self._render(marked, generation, name), 0, 0, [], []
        marks = list(_MARK.finditer(frame))
        for mark, following in zip(marks, [*marks[1:], None]):
            number, kind = int(mark.group(2)), mark.group(1)
            before, given = frame[behind:mark.start()], turns[number]["content" if kind == "c" else "reasoning_content"]
            start = cursor + len(before)
            fits = [c for c in (given, given.strip(), given.strip("\n"), given.lstrip("\n")) if text.startswith(c, start)]
            after = frame[mark.end():following and following.start()]
            kept = next((c for c in fits if text.startswith(after, start + len(c))), fits[0] if fits else None)
            if kept is None or text[cursor:start] != before:
                raise ValueError(self._changed(turns, number, name))
            cursor, behind = start + len(kept), mark.end()
            places.append((number, start, cursor))
            seen += [number] * (kind == "c")
        if seen != list(range(len(turns))):
            raise ValueError(self._changed(turns, next(i for i, n in enumerate([*seen, -1]) if n != i), name))
        if text[cursor:] != frame[behind:]:
            raise ValueError(f"The chat template changes message {len(turns) - 1} of {name}: what follows it depends on its text.")
        return text, places

    @staticmethod
    def _changed(turns, number: int, name: str) -> str:
        if turns[number]["role"] == "system":
            return (f"The chat template drops or changes the system message of {name}: put its text at the start of the first user "
                    "message, or use a template that keeps it.")
        return (f"The chat template changes message {number} of {name}: its text {turns[number]['content'][:60]!r} is not in "
                "the rendered prompt as it was given, so spans cannot be placed.")

    def prompt(self, decision: Decision) -> Prompt:
        """Render one decision up to its boundary, without the turns that `fit` leaves out.

        Raises ValueError where the template drops a message, the task is not in the messages, or too little of the context is left.
        """
        fitted = self.fit(decision)
        prompt = self._prompt(fitted)
        if self.context and (space := self._space(decision)) < len(prompt.ids):
            behind = "" if self.truncate == "none" else " even without its history"
            raise ValueError(f"The prompt of decision {decision.id} has {len(prompt.ids)} tokens{behind}, and {self.context - space} more are kept free for a trace "
                             f"and its action, but this model reads at most {self.context}: leave out turns with --truncate oldest_turns, or "
                             "the decision, or lower --trace_tokens.")
        return replace(prompt, dropped=sum(m["role"] == "agent" for m in decision.messages) - sum(m["role"] == "agent" for m in fitted.messages))

    def _space(self, decision: Decision) -> int:
        """Tokens that the prompt may take, so that a decoded and the recorded trace, and the longest action, fit behind it."""
        s, longest = self.style, max((decision.reference, *decision.admissible), key=len)
        action = len(self.encode(s.space + longest + s.close_action)) + 1
        return self.context - max(len(self.with_trace("")) + self.room, len(self.with_trace(decision.trace))) - action

    def fit(self, decision: Decision) -> Decision:
        """The decision without the oldest of its turns, as many as its prompt is too long for the context (itself where it fits).

        Policy `oldest_turns`: what comes up to the task, or to the first user message where no task is given, stays, and so do the
        last of the agent's turns and what answers it. Between them the agent's oldest turns go, each with its answers.
        """
        if self.truncate == "none" or not self.context:
            return decision
        messages = decision.messages
        head = next((i for i, m in enumerate(messages) if m["role"] == "user" and decision.task in m["content"]), 0)
        turns = [i for i, m in enumerate(messages) if m["role"] == "agent" and i > head]
        if not turns:
            return decision
        kept = [replace(decision, messages=(*messages[:turns[0]], *messages[start:])) for start in turns]
        space = self._space(decision)
        first = bisect_left(range(len(kept)), -space, key=lambda k: -len(self._prompt(kept[k]).ids))
        return decision if first == 0 else kept[min(first, len(kept) - 1)]

    def _prompt(self, decision: Decision) -> Prompt:
        turns = self._turns(decision.messages)
        text, places = self._place(turns, True, f"decision {decision.id}")
        opened = re.search(rf"{re.escape(self.style.open_think.strip())}\s*$", text)  # a template that begins the trace itself
        if opened and opened.start() >= places[-1][2]:
            text = text[:opened.start()]
        spans = np.full(len(text), "template", dtype="<U11")
        last_agent = max((i for i, t in enumerate(turns) if t["role"] == "assistant"), default=-1)
        task_found = not decision.task
        for number, start, end in places:
            role = turns[number]["role"]
            if role == "system":
                continue
            spans[start:end] = "observation" if number > last_agent else "history"
            at = text.find(decision.task, start, end) if not task_found and role == "user" else -1
            if at >= 0:
                spans[at:at + len(decision.task)], task_found = "task", True
        if not task_found:
            raise ValueError(f"The task of decision {decision.id}, {decision.task[:60]!r}, is in none of its messages.")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        names = [str(spans[end - 1]) for _, end in encoded["offset_mapping"]]
        names[-1] = "boundary"
        return Prompt(tuple(encoded["input_ids"]), tuple(names), decision, self)

    def example(self, decision: Decision) -> tuple[list[int], list[bool]]:
        """One decision as a training sequence, ids and which of them the agent writes now: its trace and its reference action."""
        prompt, said = self.prompt(decision), [*self.with_trace(decision.trace), *self.action_ids(decision.reference)]
        return [*prompt.ids, *said], [False] * len(prompt.ids) + [True] * len(said)

    def sequence(self, episode: Episode, traces=True) -> tuple[list[int], list[bool]]:
        """A whole episode as one training sequence: ids, and which of them the agent wrote (tags included).

        Raises ValueError for a style whose template strips earlier traces: no one sequence holds them all (see `example`).
        """
        text, turns = self.rendered(episode, traces)
        agent = np.zeros(len(text), dtype=bool)
        for start, end in turns:
            agent[start:end] = True
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [bool(agent[end - 1]) for _, end in encoded["offset_mapping"]]

    def rendered(self, episode: Episode, traces=True) -> tuple[str, list[tuple[int, int]]]:
        """The text of an episode's sequence, and from where to where in it each of the agent's turns stands; raises as `sequence` does."""
        if self.style.native:
            raise ValueError("This style's template strips the traces of earlier turns, so an episode is no single sequence: "
                             "train on `PromptFormat.example` of each of its decisions.")
        turns = self._turns(episode.messages(traces=traces))
        text, places = self._place(turns, False, f"episode {episode.id}")
        return text, [(start, end) for number, start, end in places if turns[number]["role"] == "assistant"]
