"""Texts as token ids: where each token stands in the text, and control tokens in data read as text.

>>> encoder = Encoder(tokenizer, tags=("<think>", "</think>"), template=tokenizer.chat_template)
>>> encoder.encode("You see a door.")
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizerBase
else:  # transformers takes seconds to import
    PreTrainedTokenizerBase = object

#: Tokens at most that hold one character of a text together (its bytes).
_TOGETHER = 16
_INK = re.compile(r"\S")


class Data(NamedTuple):
    """Part of a text, from `start` to `end`, that the data brought.

    `own`: the agent's or the system's, who may write the style's tags.
    """

    start: int
    end: int
    own: bool = False


class Encoded(NamedTuple):
    """Token ids, the characters [start, end) of each, and the control tokens that were read as text."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    markers: tuple[str, ...] = ()


def check_text(text: str, name: str) -> None:
    """Raise ValueError, naming the text, where it holds half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half of a surrogate pair ({text[error.start]!r}, character {error.start}), "
            "which is no text: write the whole character."
        ) from None


class Encoder:
    """A tokenizer, fast or in Python, as it reads the parts of a prompt.

    tags: a style's texts; template: the source of the chat template. Tokens that either holds, and all
    special ones, are control tokens: in text that the data brought they are read as the text they are.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tags: Sequence[str] = (), template: str = ""
    ) -> None:
        self.tokenizer = tokenizer
        self.size = max([len(tokenizer), *(i + 1 for i in tokenizer.added_tokens_decoder)])
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
        self._anchored = str(first).startswith("▁")
        added = tokenizer.added_tokens_decoder
        marks = {i: str(t) for i, t in added.items() if str(t).strip("▁ \n\t")}  # no mere white space
        self._wide = {
            i: t for i, t in marks.items() if added[i].lstrip or added[i].rstrip or not tokenizer.is_fast
        }
        self._added = {i: t for i, t in marks.items() if not t.strip("▁ ").isalnum()}
        special = {i for i, t in added.items() if t.special} | set(tokenizer.all_special_ids)
        tagged = {i for i, t in self._added.items() if any(t in tag for tag in tags)}
        written = {i for i, t in self._added.items() if t in template}
        everywhere, for_own = special | tagged | written, special - tagged
        self._control = {False: everywhere & self._added.keys(), True: for_own & self._added.keys()}

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))

    def encode(self, text: str, after: str = "\n", data: Sequence[Data] = ()) -> Encoded:
        """Ids of a text that follows another one, `after`.

        data: parts of it whose control tokens are read as text. Raises ValueError where the tokenizer cannot
        do that, or where it is one in Python whose tokens do not add up to the text.
        """
        if not text:
            return Encoded([], [])
        whole = self._following(text, after)
        marked = self._markers(whole, data)
        if not marked:
            return whole
        pieces, cursor, before = [], 0, after
        for start, end in marked:
            pieces.append((cursor, self._following(text[cursor:start], before)))
            pieces.append((start, self._as_text(text[start:end])))
            cursor, before = end, "\n"
        pieces.append((cursor, self._following(text[cursor:], before)))
        ids = [i for _, piece in pieces for i in piece.ids]
        offsets = [(start + a, start + b) for start, piece in pieces for a, b in piece.offsets]
        markers = tuple(dict.fromkeys(text[start:end] for start, end in marked))
        read = Encoded(ids, offsets, markers)
        if self._markers(read, data):
            raise ValueError(
                f"this tokenizer reads {markers[0]!r} as a token of its own even where it is text"
            )
        return read

    def check_held(self, text: str, name: str) -> None:
        """Raise ValueError, naming the text, where it holds a control token other than the style's tags."""
        if markers := self.encode(text, data=[Data(0, len(text), True)]).markers:
            raise ValueError(
                f"{name} holds {markers[0]!r}, which is a control token in this vocabulary and would be read "
                "as one: write it another way, or, where it is meant as the token, give --markers tokens."
            )

    def _markers(self, read: Encoded, data: Sequence[Data]) -> list[tuple[int, int]]:
        """Where control tokens stand in data, those next to one another together."""
        where: list[tuple[int, int]] = []
        parts = iter(sorted(data))
        part = next(parts, None)
        control = self._control[False] | self._control[True]
        controls = [n for n, i in enumerate(read.ids) if i in control]
        for n in controls:
            i, (start, end) = read.ids[n], read.offsets[n]
            while part and part.end <= start:
                part = next(parts, None)
            if part is None:
                break
            if i not in self._control[part.own] or end <= part.start:
                continue
            # what is around the data may make it a marker
            start, end = max(start, part.start), min(end, part.end)
            if where and where[-1][1] == start > part.start:
                where[-1] = (where[-1][0], end)
            else:
                where.append((start, end))
        return where

    def _following(self, text: str, after: str) -> Encoded:
        if not text:
            return Encoded([], [])
        # a space would come before a text's first word, or after a special token
        if self._anchored and after:
            before, both = self._tokens(after), self._tokens(after + text)
            if both.ids[: len(before.ids)] == before.ids:
                cut, n = len(after), len(before.ids)
                return Encoded(
                    both.ids[n:], [(max(0, a - cut), max(0, b - cut)) for a, b in both.offsets[n:]]
                )
        return self._tokens(text)

    def _tokens(self, text: str) -> Encoded:
        if self.tokenizer.is_fast:
            read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = read["input_ids"], read["offset_mapping"]
        else:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            offsets = self._located(text, ids)
        for n, i in enumerate(ids if self._wide else ()):
            if i in self._wide:  # it stands where its text does, not where the white space does that it takes
                at = text.find(self._wide[i], *offsets[n])
                offsets[n] = offsets[n] if at < 0 else (at, at + len(self._wide[i]))
        return Encoded(ids, offsets)

    def _as_text(self, text: str) -> Encoded:
        """Ids of a text as if no token had been added to the vocabulary."""
        if self.tokenizer.is_fast:
            read = self._bare.encode(f"\n{text}" if self._anchored else text, add_special_tokens=False)
            shift = int(self._anchored)
            kept = [
                (i, (max(0, a - shift), b - shift)) for i, (a, b) in zip(read.ids, read.offsets) if b > shift
            ]
            return Encoded([i for i, _ in kept], [offset for _, offset in kept])
        pieces = self.tokenizer.tokenize(text, split_special_tokens=True)
        ids = cast(list[int], self.tokenizer.convert_tokens_to_ids(pieces))
        return Encoded(ids, self._located(text, ids))

    @cached_property
    def _bare(self) -> Tokenizer:
        whole = json.loads(self.tokenizer.backend_tokenizer.to_str())
        unset = dict.fromkeys(("post_processor", "truncation", "padding"))
        return Tokenizer.from_str(json.dumps({**whole, "added_tokens": [], **unset}))

    def _located(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token stands, found by decoding; tokens that share a character stand where it does."""
        offsets: list[tuple[int, int]] = []
        cursor, first = 0, 0
        for n in range(1, len(ids) + 1):
            piece = self._decoded(list(ids[first:n]))
            # added tokens may take the white space around them away
            ink = _INK.search(text, cursor)
            skipped = ink.start() if ink else len(text)
            start = next((at for at in (cursor, skipped) if piece and text.startswith(piece, at)), None)
            if start is None and n - first < _TOGETHER:
                continue
            if start is None:
                break
            offsets += [(cursor, start + len(piece))] * (n - first)
            cursor, first = start + len(piece), n
        if first < len(ids) or text[cursor:].strip():
            raise ValueError(
                f"The tokenizer {type(self.tokenizer).__name__} is one in Python, which does not say where "
                f"its tokens stand, and they do not add up to the text: after character {cursor} it reads "
                f"{text[cursor : cursor + 20]!r} otherwise. Give the model's fast tokenizer (a "
                "tokenizer.json)."
            )
        return offsets

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens and spaces as they are; an id beyond the vocabulary is U+FFFD.

        Raises ValueError for what is no id.
        """
        ids = list(ids)
        if odd := [i for i in ids if not hasattr(i, "__index__") or not 0 <= i < 2**31]:
            raise ValueError(
                f"{odd[0]!r} is no token id: ids are whole numbers, from 0 to {self.size - 1} here."
            )
        runs = groupby(ids, key=lambda i: i < self.size)
        return "".join(
            self._decoded(list(run)) if in_vocabulary else "\ufffd" * len(list(run))
            for in_vocabulary, run in runs
        )

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
