"""Plain text and token ids as prompts: for questions that need no agent and no chat template.

>>> read_texts(None, [[5, 6, 7]])[0].boundary
2
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Int

from interp.prompts.encoding import PreTrainedTokenizerBase, check_text

if TYPE_CHECKING:
    from interp.prompts.format import Prompt

#: The one span of plain text.
TEXT = "text"


@dataclass(frozen=True)
class TextPrompt:
    """Plain text as the model reads it: `ids` [token], all of one span; the boundary is the last token."""

    ids: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"TextPrompt({len(self.ids)} tokens, {self.name[:80]!r})"

    @property
    def boundary(self) -> int:
        """Index of the last token."""
        return len(self.ids) - 1

    @property
    def spans(self) -> tuple[str, ...]:
        """The span of each token."""
        return (TEXT,) * len(self.ids)

    @cached_property
    def hash(self) -> str:
        """Content hash of the ids."""
        return hashlib.sha256(json.dumps([self.ids, TEXT]).encode()).hexdigest()[:16]

    @property
    def episode(self) -> str:
        """An episode of its own."""
        return self.hash

    @property
    def name(self) -> str:
        """What sentences call it: its tokens, the middle left out where there are many."""
        return shown_tokens(self.tokenizer, self.ids)

    def positions(self, span: str) -> Int[np.ndarray, "position"]:
        """Token indices of one span: of all tokens for `text`, of the last one for `boundary`."""
        if span not in (TEXT, "boundary"):
            raise ValueError(
                f"Plain text has no span {span!r}: it is all {TEXT!r}, and its last token is the 'boundary'."
            )
        return np.arange(len(self.ids)) if span == TEXT else np.array([self.boundary])


#: What is measured at: an agent's prompt, or plain text.
AnyPrompt: TypeAlias = "Prompt | TextPrompt"
#: What may be given in place of prompts.
Readable: TypeAlias = "str | Prompt | TextPrompt | Sequence[int]"


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def shown_tokens(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], most: int = 24) -> str:
    """Tokens of a sequence one by one, between bars, for a sentence."""
    texts = decoded(tokenizer, ids)
    if len(texts) > most:
        texts = (*texts[: most // 2], "...", *texts[-most // 2 :])
    return "|".join(texts).replace("\n", "\\n")


def tokenizer_of(prompt: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a prompt was made with: its own, or its format's."""
    return getattr(prompt, "tokenizer", None) or getattr(getattr(prompt, "format", None), "tokenizer", None)


def decoded(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token by itself; its id where there is no tokenizer."""
    texts = {i: str(i if tokenizer is None else tokenizer.decode([i])) for i in set(ids)}
    return tuple(texts[i] for i in ids)


def _needs_tokenizer(text: str) -> ValueError:
    return ValueError(
        f"The text {text[:40]!r} cannot be read: this model has no tokenizer. Give token ids, or make the "
        "model with one (HookedModel(hf, tokenizer))."
    )


def text_ids(
    tokenizer: PreTrainedTokenizerBase | None, text: str, prepend_bos: bool | None = None
) -> list[int]:
    """Ids of a text as the tokenizer reads one: with the special tokens that it puts around.

    prepend_bos: whether the tokenizer's first token stands before it (None: as the tokenizer has it).
    Raises ValueError where there is no tokenizer, no such token, or no token at all.
    """
    check_text(text, "The text")
    if tokenizer is None:
        raise _needs_tokenizer(text)
    ids = _without_end(list(tokenizer(text)["input_ids"]), _plain(tokenizer, text))
    if prepend_bos is not None:
        bos = tokenizer.bos_token_id
        if prepend_bos and bos is None:
            raise ValueError("prepend_bos was asked for, but this tokenizer has no first token (bos_token).")
        has = bool(ids) and ids[0] == bos
        if prepend_bos and not has:
            ids.insert(0, bos)
        elif has and not prepend_bos:
            del ids[0]
    if not ids:
        raise ValueError(f"The text {text!r} has no token: there is nothing to read.")
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _without_end(ids: list[int], plain: list[int]) -> list[int]:
    """Ids without the special tokens that a tokenizer puts after a text, since a text goes on."""
    for start in range(len(ids) - len(plain) + 1):
        if ids[start : start + len(plain)] == plain:
            return ids[: start + len(plain)]
    return ids


def answer_ids(tokenizer: PreTrainedTokenizerBase | None, answer: str | int | Sequence[int]) -> list[int]:
    """Ids of an answer: a text without special tokens, a token's id, or ids."""
    if isinstance(answer, (int, np.integer)) and not isinstance(answer, bool):
        return [int(answer)]
    if not isinstance(answer, str):
        ids = _plain_ids(answer)
    else:
        check_text(answer, "An answer")
        if tokenizer is None:
            raise _needs_tokenizer(answer)
        ids = _plain(tokenizer, answer)
    if not ids:
        raise ValueError(f"The answer {answer!r} has no token.")
    return ids


def _plain_ids(ids: Any) -> list[int]:
    """Ids as a list of ints; raises ValueError where they are something else."""
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if wrong := [i for i in values if not isinstance(i, (int, np.integer)) or isinstance(i, bool)]:
        raise ValueError(f"Token ids are integers, not {wrong[0]!r}.")
    return [int(i) for i in values]


def _one(tokenizer: PreTrainedTokenizerBase | None, given: Any, prepend_bos: bool | None) -> AnyPrompt:
    if hasattr(given, "boundary"):
        return given
    if isinstance(given, str):
        return TextPrompt(tuple(text_ids(tokenizer, given, prepend_bos)), tokenizer)
    if not isinstance(given, Sequence) and not hasattr(given, "tolist"):
        raise ValueError(
            f"A prompt is a text, a list of token ids, or what PromptFormat.prompt gives, not {given!r}."
        )
    ids = _plain_ids(given)
    if not ids:
        raise ValueError("A prompt of no tokens cannot be read.")
    return TextPrompt(tuple(ids), tokenizer)


def _is_one(given: Any) -> bool:
    """Whether what was given is one prompt, rather than a list of them."""
    if isinstance(given, str) or hasattr(given, "boundary"):
        return True
    if hasattr(given, "ndim"):
        return bool(given.ndim == 1)
    return isinstance(given, Sequence) and bool(given) and isinstance(given[0], (int, np.integer))


def read_texts(
    tokenizer: PreTrainedTokenizerBase | None,
    given: Readable | Iterable[Readable],
    prepend_bos: bool | None = None,
) -> list[AnyPrompt]:
    """Prompts of what was given: a text, ids, or a prompt, or a list of these.

    prepend_bos: as in `text_ids`, for texts. Raises ValueError for anything else.
    """
    if _is_one(given):
        return [_one(tokenizer, given, prepend_bos)]
    if not isinstance(given, Iterable):
        raise ValueError(f"Prompts are texts, token ids, or what PromptFormat.prompt gives, not {given!r}.")
    return [_one(tokenizer, each, prepend_bos) for each in given]
