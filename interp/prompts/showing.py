"""A prompt to look at: its tokens with their spans in colour, the boundary, and what each mode appends.

>>> show(prompts[0])                     # in a notebook: in colour, with a legend
>>> print(show(prompts[0]))              # in a terminal: a line for each run of one span
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.prompts.text import decoded, tokenizer_of
from interp.results.names import GREY, SPAN_COLOURS
from interp.results.shown import Shown, counted
from interp.results.wording import visible

#: Tokens that are shown at most; of a longer prompt the middle is left out.
MOST = 4000
_TOKEN = "border-right:1px solid #8884;padding:1px 0;border-radius:2px;"
_BOUNDARY = "outline:2px solid currentColor;font-weight:bold;"


@dataclass(frozen=True, eq=False, repr=False)
class ShownPrompt(Shown):
    """The text, id and span of each token, and the tokens that each mode appends."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[str, ...]
    boundary: int
    prefixes: Mapping[str, tuple[str, ...]]

    def summary(self) -> str:
        counts = (f"{span} {n}" for span, n in self._counts().items())
        return f"{counted(len(self.ids), 'token')}: {', '.join(counts)}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each token: `position`, `id`, `token`, `span`."""
        columns = dict(id=self.ids, token=self.tokens, span=self.spans)
        return pd.DataFrame(dict(position=range(len(self.ids)), **columns))

    def __str__(self) -> str:
        lines = [repr(self)]
        for span, start, end in self._runs():
            text = visible("".join(self.tokens[start:end]))
            lines.append(f"{start:>6}  {span:<12} {text}")
        after = self.boundary + 1
        lines += [
            f"{after:>6}  mode {mode:<7} {visible(''.join(tokens))}" for mode, tokens in self.prefixes.items()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        legend = "".join(
            f'<span style="{_tint(span)}padding:0 6px;margin-right:8px">{html.escape(span)} ({n})</span>'
            for span, n in self._counts().items()
        )
        tokens = "".join(self._token(i) for i in self._positions())
        modes = "".join(
            f"<div>mode {html.escape(mode)} goes on with {''.join(_piece(text) for text in appended)}</div>"
            for mode, appended in self.prefixes.items()
        )
        style = "font-family:monospace;line-height:1.7;white-space:pre-wrap;overflow-wrap:anywhere"
        return (
            f"<div><div>{counted(len(self.ids), 'token')}, boundary {self.boundary} (outlined)</div>"
            f'<div>{legend}</div><div style="{style}">{tokens}{modes}</div></div>'
        )

    def _counts(self) -> dict[str, int]:
        return {span: self.spans.count(span) for span in dict.fromkeys(self.spans)}

    def _runs(self) -> Iterator[tuple[str, int, int]]:
        """(span, start, end) of tokens of one span side by side."""
        start = 0
        for span, run in itertools.groupby(self.spans):
            end = start + len(list(run))
            yield span, start, end
            start = end

    def _positions(self) -> Iterator[int | None]:
        """The positions that are shown; None stands for those that are left out."""
        if len(self.ids) <= MOST:
            yield from range(len(self.ids))
            return
        yield from range(MOST // 2)
        yield None
        yield from range(len(self.ids) - MOST // 2, len(self.ids))

    def _token(self, position: int | None) -> str:
        if position is None:
            return f"<div>… {len(self.ids) - MOST:,} tokens …</div>"
        span = self.spans[position]
        title = f"{position}: id {self.ids[position]}, {span}"
        style = _tint(span) + (_BOUNDARY if position == self.boundary else "")
        line_end = "\n" if self.tokens[position].endswith("\n") else ""
        return _piece(self.tokens[position], style, title) + line_end


def _tint(span: str) -> str:
    return f"background:{SPAN_COLOURS.get(span, GREY)}40;"


def _piece(text: str, style: str = "", title: str = "") -> str:
    # isolated: a text's own direction moves nothing around it
    shown = html.escape(visible(text)) or "∅"
    return f'<bdi title="{html.escape(title)}" style="{_TOKEN}{style}">{shown}</bdi>'


def show(prompt: Any, tokenizer: Any = None) -> ShownPrompt:
    """A prompt to look at, in a notebook or printed.

    Args:
        prompt: a `Prompt`, a `TextPrompt`, or another object with `ids` and `spans`.
        tokenizer: where the prompt brings none.

    Raises:
        ValueError: there is no tokenizer.
    """
    tokenizer = tokenizer or tokenizer_of(prompt)
    if tokenizer is None:
        raise ValueError(
            "There is no tokenizer to read the tokens with: give one, as in show(prompt, model.tokenizer)."
        )
    ids = tuple(int(i) for i in prompt.ids)
    opening = getattr(getattr(prompt, "format", None), "mode_prefix", None)
    return ShownPrompt(
        tokens=decoded(tokenizer, ids),
        ids=ids,
        spans=tuple(prompt.spans),
        boundary=getattr(prompt, "boundary", len(ids) - 1),
        prefixes={mode: decoded(tokenizer, opening(mode)) for mode in ("prompt", "cot")} if opening else {},
    )
