"""Prompt styles: how an agent's turn holds a trace and an action, written and parsed by one declaration.

>>> style = Style("Thought:", "\\n", "Action:", "", space=" ")
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Style:
    """What stands around a trace and an action.

    A turn is `open_think` trace `close_think` `open_action` action `close_action`; without `close_action` an
    action ends with its line or its turn. `space` stands between an opening and its text. `native`: the trace
    is the template's own `reasoning_content`, and the template decides which of the earlier ones stay in the
    history.
    """

    open_think: str
    close_think: str
    open_action: str
    close_action: str
    space: str = ""
    native: bool = False

    def __post_init__(self) -> None:
        if not self.open_think.strip() or not self.open_action.strip():
            raise ValueError(
                "A style needs a text that opens a trace and one that opens an action, and neither may be "
                "blank."
            )

    @property
    def tags(self) -> tuple[str, str, str, str]:
        """The texts around trace and action."""
        return self.open_think, self.close_think, self.open_action, self.close_action

    def turn(self, trace: str | None, action: str) -> str:
        """One agent's turn; without a trace it is the action in its tags."""
        thought = (
            "" if trace is None or self.native else f"{self.open_think}{self.space}{trace}{self.close_think}"
        )
        return f"{thought}{self.open_action}{self.space}{action}{self.close_action}"

    @cached_property
    def _lead(self) -> re.Pattern:
        """The end of a trace and the opening of an action (white space between them is free)."""
        return re.compile(
            rf"\s*{re.escape(self.close_think.strip())}\s*{re.escape(self.open_action.strip())}"
        )

    def lead(self, text: str) -> re.Match | None:
        """Where the first trace of `text` ends and its action opens; None where it does not."""
        closing = self.close_think.strip()
        match = self._lead.search(text)
        return None if match and closing and text.index(closing) < match.start() else match

    def parse(self, text: str, with_trace: bool, ended: bool = False) -> tuple[str | None, str | None]:
        """Split a turn after its opening into (trace, action); None for a part that is not closed.

        ended: the turn's end was generated, which closes an action that has no closing text.
        """
        trace = None
        if with_trace:
            lead, closing = self.lead(text), self.close_think.strip()
            if lead is None:
                return (
                    (text.partition(closing)[0].strip(), None)
                    if closing and closing in text
                    else (None, None)
                )
            trace, text = text[: lead.start()].strip(), text[lead.end() :]
        closing = self.close_action.strip()
        action, closed, _ = text.partition(closing) if closing else text.lstrip().partition("\n")
        return trace, (action.strip() or None) if closed or ended and not closing else None


#: `tags` where the tags are tokens; `llama3` keeps each tag on a line of its own, so that no tag merges with
#: what it encloses.
STYLES = {
    "tags": Style("<think>", "</think>", "<action>", "</action>"),
    "react": Style("Thought:", "\n", "Action:", "", space=" "),
    "qwen3": Style("<think>\n", "\n</think>\n\n", "<action>\n", "\n</action>", native=True),
    "qwen3_tools": Style("<think>\n", "\n</think>\n\n", "<tool_call>\n", "\n</tool_call>", native=True),
    "llama3": Style("<think>\n", "\n</think>\n", "<action>\n", "\n</action>"),
}


def find_style(style: str | Style) -> Style:
    """The style of a name in STYLES, or one's own as it is; raises ValueError for another name."""
    if isinstance(style, Style):
        return style
    if style not in STYLES:
        raise ValueError(
            f"There is no prompt style {style!r}: give one of {', '.join(STYLES)} or a Style of your own."
        )
    return STYLES[style]
