"""A chat template as a style uses it: its rendering, where the agent's turn opens, and what ends that turn.

>>> chat = ChatTemplate(tokenizer, STYLES["tags"])
>>> chat.opening, chat.gap
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from jinja2 import TemplateSyntaxError

from interp.prompts.encoding import PreTrainedTokenizerBase
from interp.prompts.placing import mark
from interp.prompts.rendering import TODAY, clock, compiled
from interp.prompts.styles import Style
from interp.system.sentences import first_line

#: Llama 3's templates read their date under this name.
DATED = "date_string"
#: A tag that templates write around a thought, or a word that stands for one.
_TAG = r"<[^<>\s]+>|\[[^\[\]\s]+\]"
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
#: What every rendering gives.
_RENDERED = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}
_USER = dict(role="user", content="a")


def read_variables(pairs: Sequence[str]) -> dict:
    """Template variables from NAME=VALUE pairs; a value is JSON, Python's True, False or None, or else text.

    >>> read_variables(["enable_thinking=false", "reasoning_effort=low"])
    {'enable_thinking': False, 'reasoning_effort': 'low'}
    """
    variables = {}
    for pair in pairs:
        name, written, value = pair.partition("=")
        if not (written and name.isidentifier()):
            raise ValueError(f"--template takes NAME=VALUE, such as enable_thinking=false, not {pair!r}.")
        if name in variables:
            raise ValueError(f"--template gives {name!r} twice.")
        try:
            variables[name] = json.loads(_CONSTANTS.get(value, value))
        except ValueError:
            variables[name] = value
    return variables


class ChatTemplate:
    """A tokenizer's chat template with its variables, read for one style.

    options: the template's own variables, and `today`, the date that its clock shows. file: where the
    template is from, for sentences. Raises ValueError where there is no template, it cannot be compiled, it
    reads no variable of a given name, or the agent's turn has no opening that can be found.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        style: Style,
        tools: Sequence[dict] = (),
        options: Mapping | None = None,
        file: object = None,
    ) -> None:
        self.tokenizer, self.style, self.tools = tokenizer, style, list(tools) or None
        self.called = f"The chat template {file}" if file else "The chat template"
        if not tokenizer.chat_template:
            raise ValueError(
                "This tokenizer has no chat template, so its prompts have no boundary: set "
                "tokenizer.chat_template, or put the trainer's template into the checkpoint's folder as "
                "chat_template.jinja."
            )
        # there may be one for tools beside its own
        self.source = tokenizer.get_chat_template(tools=self.tools)
        try:
            self._template = compiled(self.source)
        except TemplateSyntaxError as error:
            raise ValueError(f"{self.called} is damaged: line {error.lineno}: {first_line(error)}") from error
        except Exception as error:
            raise ValueError(f"{self.called} cannot be compiled: {first_line(error)}") from error
        self.options, self.today = self._variables(dict(options or {}))
        self._given = {**tokenizer.special_tokens_map, **self.options, "strftime_now": clock(self.today)}
        self._parts = self._takes_parts()
        self.opening, self.gap = self._opening()

    def _variables(self, given: dict) -> tuple[dict, str]:
        names_read = self._template.variables - _RENDERED
        if unknown := [name for name in given if name not in {*names_read, "today"}]:
            names = ", ".join(sorted({*names_read - self.tokenizer.special_tokens_map.keys(), "today"}))
            raise ValueError(f"{self.called} reads no variable {unknown[0]!r}: there are {names}.")
        try:
            given = json.loads(json.dumps(given))
        except TypeError as error:
            raise ValueError(
                f"A template's variables are values that JSON knows ({error}): {', '.join(given)}."
            ) from None
        today = given.get("today", TODAY)
        if "today" not in names_read:
            given.pop("today", None)
        return {DATED: clock(today)("%d %b %Y"), **given}, today

    def _takes_parts(self) -> bool:
        """Whether the template reads a content only as a list of typed parts, as of vision models."""
        plain = self._tried([dict(role="user", content=mark("c", 0))], False)
        if not plain or mark("c", 0) in plain:
            return False
        self._parts = True
        return mark("c", 0) in self._tried([dict(role="user", content=mark("c", 0))], False)

    _parts = False

    def render(self, turns: Sequence[Mapping], generation: bool, name: str) -> str:
        """The text of turns.

        Raises ValueError with their name where the template refuses them or passes a limit.
        """
        if self._parts:
            turns = [{**turn, "content": [dict(type="text", text=turn["content"])]} for turn in turns]
        try:
            return self._template.render(turns, generation, self.tools, self._given)
        except Exception as error:  # jinja raises its own kinds, and templates raise through it
            roles = [turn["role"] for turn in turns]
            advice = ""
            if roles[0] == "system":
                advice += (
                    "; a template that knows no system message is given its text at the start of the first "
                    "user message by --system_as user"
                )
            if "tool" in roles:
                advice += "; one that knows no tool turns is given them as the user's by --tool_as user"
            raise ValueError(
                f"{self.called} refuses {name} ({first_line(error)}); its first roles are "
                f"{', '.join(roles[:4])}{advice}."
            ) from error

    def _tried(self, turns: Sequence[Mapping], generation: bool) -> str:
        """As `render`, or nothing where the template refuses."""
        try:
            return self.render(turns, generation, "a trial")
        except ValueError:
            return ""

    def _opening(self) -> tuple[str, str]:
        """What opens the agent's turn, up to any thought, and the white space before the turn's content."""
        ended, opened = (self.render([_USER], flag, "a lone user message") for flag in (False, True))
        # Phi's templates end a finished conversation with the end of sequence
        without = ended.removesuffix(self.tokenizer.eos_token or "")
        agent = [_USER, dict(role="assistant", content=mark("c", 1))]
        before, answered, _ = self._tried(agent, False).partition(mark("c", 1))
        if opened == ended and answered and before.startswith(ended) and not before[len(ended) :].strip():
            user = [dict(role="user", content=mark("c", 0))]
            after_user = self._tried(user, False).partition(mark("c", 0))[2]
            # the user's turn ends with the opening of the agent's, as Mistral's with [/INST]
            if after_user.strip():
                return after_user, before[len(ended) :]
        if opened == ended or not (opened.startswith(without) and len(opened) > len(without)):
            raise ValueError(
                f"{self.called} has no findable boundary: rendered with add_generation_prompt it should be "
                f"the text without it plus the opening of the agent's turn, but it gave {opened[-200:]!r} "
                f"after {without[-200:]!r}. Let it write that opening at its end: {{% if "
                "add_generation_prompt %}{{ OPENING }}{% endif %}."
            )
        opening = self.before_thought(opened[len(without) :])
        start = without + opening
        between = before[len(start) :] if answered and before.startswith(start) else ""
        rest = re.sub(self.empty_thought, "", between).strip()
        if not rest:
            return opening, between[: len(between) - len(between.lstrip())]
        return opening, between if self._fixed(rest) else ""

    def _fixed(self, rest: str) -> bool:
        """Whether text before a turn's content is the template's: no part of a thought or of the style."""
        style = self.style
        if any(closed and closed in rest for closed in (self.thought[1], style.close_think.strip())):
            return False
        tag = re.search(_TAG, rest)
        return tag is None or tag.group() not in style.open_think + style.open_action

    @cached_property
    def _turn(self) -> tuple[str, str, str]:
        """What the template writes before a trace, between trace and action, and after.

        Empty without a trace.
        """
        turn = dict(role="assistant", content=mark("c", 1), reasoning_content=mark("t", 1))
        before, kept, rest = self._tried([_USER, turn], False).partition(mark("t", 1))
        between, acted, after = rest.partition(mark("c", 1))
        return (before, between, after) if kept and acted else ("", "", "")

    @cached_property
    def thought(self) -> tuple[str, str]:
        """The template's own tags around a thought."""
        before, between = self._turn[0].rstrip(), self._turn[1].lstrip()
        opened = re.search(rf"(?:{_TAG})$", before) or re.search(r"\S+$", before)
        closed = re.match(rf"{_TAG}|\S+", between)
        return (opened.group(), closed.group()) if opened and closed else ("<think>", "</think>")

    @cached_property
    def empty_thought(self) -> re.Pattern:
        """An empty thought at the end of a text, as the template writes it."""
        opened, closed = map(re.escape, self.thought)
        return re.compile(rf"{opened}\s*{closed}\s*$")

    @cached_property
    def before_kept(self) -> re.Pattern:
        """What the template writes before a content, and a content with thought and tags would repeat."""
        action = f"|{re.escape(self.action_opening)}" if self.writes_action else ""
        return re.compile(rf"(?:{self.empty_thought.pattern[:-1]}{action})$")

    def before_thought(self, opening: str) -> str:
        """The opening of a turn without a thought that it begins, or the style's own empty thought.

        An empty thought in other tags than the style's is the template's fixed text and stays.
        """
        style = self.style
        lead = style.open_think[: len(style.open_think) - len(style.open_think.lstrip())]
        opened, closed = re.escape(style.open_think.strip()), re.escape(style.close_think.strip())
        own = rf"(?:{re.escape(lead)})?{opened}\s*(?:{closed}\s*)?$"
        for pattern in (own, rf"{re.escape(self.thought[0])}\s*$"):
            match = re.search(pattern, opening)
            if match and opening[: match.start()].strip():
                return opening[: match.start()]
        return opening

    @cached_property
    def writes_action(self) -> bool:
        """Whether the template opens a turn's action itself (channels): a content is the bare action."""
        return self.style.native and self._turn[1].rstrip().endswith(self.style.open_action.strip())

    @cached_property
    def action_opening(self) -> str:
        """What opens an action at the boundary, without the turn's opening if the style repeats it."""
        return (
            self.style.open_action.removeprefix(self.opening)
            if self.writes_action
            else self.style.open_action
        )

    @cached_property
    def ends(self) -> list[int]:
        """Added tokens that the template writes right after what an agent said, at the end and within."""
        agent = [_USER, dict(role="assistant", content=mark("c", 1))]
        user = dict(role="user", content=mark("c", 2))
        within = self._tried([*agent, user], True).partition(mark("c", 2))[0]
        tokens = []
        for text in (self._tried(agent, False), within):
            rest = text.partition(mark("c", 1))[2].lstrip()
            first = self.tokenizer(rest, add_special_tokens=False)["input_ids"][:1] if rest else []
            tokens += [i for i in first if i in self.tokenizer.added_tokens_decoder]
        return list(dict.fromkeys(tokens))
