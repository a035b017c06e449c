"""Where a generated turn ends, and the trace and the action in it.

>>> stopping = Stopping(style, encoder, {tokenizer.eos_token_id: tokenizer.eos_token})
>>> stopping.parse("I need the mug.</think><action>take mug 1</action>", "cot")
('I need the mug.', 'take mug 1')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from interp.prompts.encoding import Encoder
from interp.prompts.styles import Style

Mode = Literal["prompt", "cot", "empty_think"]


class Stopping:
    """How completions of a style are read.

    tokens: ids that end the agent's turn -> their texts ("": none).
    """

    def __init__(self, style: Style, encoder: Encoder, tokens: Mapping[int, str]) -> None:
        self.style = style
        self.encoder = encoder
        self.tokens = tokens
        self._pieces: dict[int, str] = {}

    def ended(self, mode: Mode) -> Callable[[Sequence[int]], bool]:
        """Whether what was generated after a mode's prefix has closed its action, or its turn."""
        text = self.encoder.text
        closing = self.style.close_action.strip()
        window = len(self.encoder.encode(self.style.close_action).ids) + 2

        def check(ids: Sequence[int]) -> bool:
            last = ids[-1]
            if last in self.tokens and not self._begins_close(self.tokens[last]):
                return not self._in_turn(self.tokens[last]) or self._trace_end(text(ids), mode) >= 0
            if last not in self._pieces:
                self._pieces[last] = text([last])
            if (closing or "\n")[-1] not in self._pieces[last]:
                return False
            if closing:
                return closing in text(ids[-window:])
            return self.parse(text(ids), mode)[1] is not None

        return check

    def stops(self, mode: Mode) -> list[int]:
        """Tokens that end what is generated in a mode wherever they stand."""
        return [
            token
            for token, end in self.tokens.items()
            if not self._begins_close(end) and (mode != "cot" or not self._in_turn(end))
        ]

    def parse(self, text: str, mode: Mode) -> tuple[str | None, str | None]:
        """Split what a mode generated into (trace, action); None for a part that is not closed."""
        trace_end = self._trace_end(text, mode)
        ends = []
        for end in self.tokens.values():
            in_turn = self._in_turn(end)
            if not end or end in self.style.close_action or in_turn and trace_end < 0:
                continue
            ends.append(text.find(end, trace_end if in_turn else 0))
        first = min((end for end in ends if end >= 0), default=None)
        return self.style.parse(text[:first], mode == "cot", first is not None)

    def decoded_prefix(self, ids: Sequence[int]) -> list[int] | None:
        """The ids, of those generated in mode `cot`, up to the opened action tag; None where there is none.

        A token that holds the tag's end and the action's beginning is cut there, and its tag is tokenised as
        a prefilled one is.
        """
        decode = self.encoder.text
        text = decode(ids)
        lead = self.style.lead(text)
        if lead is None:
            return None
        n = next(n for n in range(1, len(ids) + 1) if len(decode(ids[:n])) >= lead.end())
        if text[lead.end() : len(decode(ids[:n]))].strip():
            tag = text[len(decode(ids[: n - 1])) : lead.end()]
            return [*ids[: n - 1], *self.encoder.encode(tag).ids]
        while (
            n < len(ids)
            and not decode(ids[:n]).endswith(self.style.open_action)
            and not decode([ids[n]]).strip()
        ):
            n += 1
        return list(ids[:n])

    def _trace_end(self, text: str, mode: Mode) -> int:
        """Index after a text's trace, from which stop tokens count; -1 while the trace is open."""
        if mode != "cot":
            return 0
        lead = self.style.lead(text)
        return lead.end() if lead else -1

    def _in_turn(self, end: str) -> bool:
        """Whether the style has an agent write this end within its turn, before the action."""
        return end != "" and end in self.style.close_think + self.style.open_action

    def _begins_close(self, end: str) -> bool:
        """Whether an end is but the beginning or the middle of what closes an action."""
        closing = self.style.close_action.rstrip()
        return end != "" and end in closing and not closing.endswith(end)
