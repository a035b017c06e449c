"""How prompts are written, as several analyses' command lines say it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from interp.prompts.format import HistoryTraces, Markers, Prompt
from interp.prompts.styles import STYLES
from interp.prompts.templates import read_variables
from interp.system.json_files import read_tools
from interp.system.limits import Existing, Known


def style(name: str) -> None:
    """Raise ValueError for a prompt style that is none ("": as the checkpoint says)."""
    if name and name not in STYLES:
        raise ValueError(f"There is no prompt style {name!r}: there are {', '.join(STYLES)}.")


def other_style(used: str, trained: str, texts: Iterable[str]) -> str:
    """A sentence on another style that a checkpoint seems to write in; "" where there is no sign of one.

    Args:
        used: name of the style in which nothing of what it wrote parses.
        trained: that of the checkpoint's own notes, "" where it has none.
        texts: what it wrote.
    """
    if trained in STYLES and trained != used:
        return f"it was trained in the style {trained!r}, and read in {used!r}: give --style {trained}."
    own = STYLES[used].open_action.strip()
    tags = {style.open_action.strip(): name for name, style in reversed(STYLES.items())}
    for text in texts:
        for tag, name in tags.items():
            if tag != own and tag in text:
                return (
                    f"it writes {tag!r}, which is of the style {name!r}, not of {used!r}: try --style {name}."
                )
    return ""


def digest(prompts: Sequence[Prompt]) -> str:
    """Content hash of prompts and of what their decisions are judged by."""
    parts = [
        [p.hash, p.format.hash, p.decision.id, p.decision.reference, p.decision.admissible, p.decision.trace]
        for p in prompts
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass
class Prompting:
    """The options of `interp.prompts.format.PromptFormat` that a checkpoint does not bring along."""

    style: Annotated[str, Known(style)] = ""
    """Prompt style (interp.prompts.styles.STYLES); the one that checkpoints were trained in, else `tags`."""
    system: str = ""
    """System prompt of decisions that bring none; the one that checkpoints were trained with, else none."""
    tools: Annotated[Path | None, Existing()] = None
    """JSON file with the list of function signatures that the chat template is given."""
    template: tuple[str, ...] = ()
    """Variables of the chat template as NAME=VALUE, each value in JSON or else a text (enable_thinking=false
    reasoning_effort=low), and today=DATE, the day that its clock shows."""
    history_traces: HistoryTraces = "template"
    """Traces of earlier turns: as the template has them, kept where it would take them away, or dropped."""
    system_as: Literal["system", "user"] = "system"
    """user: a system message becomes the start of the first user message, for templates that know none."""
    tool_as: Literal["tool", "user"] = "tool"
    """user: tool messages become the user's, for templates that know none."""
    markers: Markers = "text"
    """How control tokens inside messages are read: as text (warned of), or as the tokens."""

    @cached_property
    def _signatures(self) -> Sequence[dict]:
        """The function signatures that the chat template is given."""
        return read_tools(self.tools) if self.tools else ()

    def format_options(self) -> dict:
        """Further arguments of `PromptFormat`; raises ValueError for what cannot be read."""
        return dict(
            tools=self._signatures,
            options=read_variables(self.template),
            history_traces=self.history_traces,
            system_as=self.system_as,
            tool_as=self.tool_as,
            markers=self.markers,
        )

    def prompting_flags(self) -> list[str]:
        """The given ones of these options as they are written on a command line."""
        flags = []
        for field in dataclasses.fields(Prompting):
            value = getattr(self, field.name)
            if value != field.default:
                flags += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else [value])]
        return flags
