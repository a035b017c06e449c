"""Counterfactual pairs: a decision and its twin with two names swapped everywhere, of equal token length.

The environment says which names can be exchanged (`swap_candidates`): the expert's rule must be the same for
both, so that the twin's right action is the swapped one. Any two texts are a pair as well, with the two
answers that are compared after them.

>>> clean, corrupt, dropped = make_pairs(fmt, decisions, n=24)
>>> texts = "You take the mug 1. Next I put the", "You take the pen 1. Next I put the"
>>> pair = pairs_of(tokenizer, *texts, answers=(" mug", " pen"))[0]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from interp.environments.alfworld.commands import swap_candidates as household
from interp.prompts.encoding import PreTrainedTokenizerBase
from interp.prompts.format import Prompt, PromptFormat
from interp.prompts.text import (
    AnyPrompt,
    Readable,
    TextPrompt,
    answer_ids,
    decoded,
    read_texts,
    shared,
    shown_tokens,
    tokenizer_of,
)
from interp.system.renamed import renamed_keywords
from interp.tasks.episodes import Decision


def swap(text: str, a: str, b: str) -> str:
    """`text` with the names `a` and `b` exchanged, whole words only (`drawer 1` is not in `drawer 11`)."""
    pattern = re.compile(rf"\b(?:{re.escape(a)}|{re.escape(b)})\b")
    return pattern.sub(lambda m: b if m.group() == a else a, text)


def swapped(decision: Decision, a: str, b: str) -> Decision:
    """The twin of a decision with two names exchanged in everything it says."""

    def turn(message: dict) -> dict:
        return {k: swap(v, a, b) if isinstance(v, str) and k != "role" else v for k, v in message.items()}

    return replace(
        decision,
        messages=tuple(turn(m) for m in decision.messages),
        reference=swap(decision.reference, a, b),
        admissible=tuple(swap(c, a, b) for c in decision.admissible),
        task=swap(decision.task, a, b),
        trace=swap(decision.trace, a, b),
    )


@renamed_keywords(partners="swap_candidates")
def make_pairs(
    fmt: PromptFormat,
    decisions: Sequence[Decision],
    n: int,
    seed: int = 0,
    swap_candidates: Callable[[Decision, Sequence[Decision]], list[tuple[str, str]]] = household,
) -> tuple[list[Prompt], list[Prompt], Counter]:
    """Up to `n` clean and corrupt prompts, one pair for a decision at most, and why others were dropped.

    A pair is kept only where every token has its counterpart: equal spans of the prompts, equal lengths of
    trace and
    action.

    Args:
        swap_candidates: from a decision and all those given to the pairs of names whose exchange changes the
            action; ALFWorld's by default.
    """
    rng = np.random.default_rng(seed)
    # One object for all calls of `swap_candidates`, which may keep what it looks up.
    decisions = tuple(decisions)
    clean: list[Prompt] = []
    corrupt: list[Prompt] = []
    dropped: Counter = Counter()
    for index in rng.permutation(len(decisions)):
        if len(clean) == n:
            break
        decision = decisions[index]
        # A name in a turn that is left out changes nothing.
        options = swap_candidates(fmt.fit(decision), decisions)
        if not options:
            dropped["no name to swap that changes the action"] += 1
            continue
        prompt = fmt.prompt(decision)
        for choice in rng.permutation(len(options)):
            twin = fmt.prompt(swapped(prompt.decision, *options[choice]))
            if not mismatch(prompt, twin):
                clean.append(prompt)
                corrupt.append(twin)
                break
        else:
            dropped["no swap of equal token length"] += 1
    return clean, corrupt, dropped


def mismatch(clean: Prompt, corrupt: Prompt) -> str:
    """Why two prompts are not a pair, as a sentence ("" where they are one)."""
    fmt, a, b = clean.format, clean.decision, corrupt.decision
    if clean.spans != corrupt.spans:
        tokens = f"{len(clean.ids)} and {len(corrupt.ids)} tokens"
        return f"The prompts of {a.id} and its twin differ in length or spans ({tokens})."
    if len(fmt.with_trace(a.trace)) != len(fmt.with_trace(b.trace)):
        return (
            f"The traces of {a.id} and its twin differ in length, so their keys and values cannot be swapped."
        )
    if a.reference == b.reference:
        same = f"The actions of {a.id} and its twin are the same ({a.reference!r})"
        return f"{same}, so there is no difference to explain."
    if len(fmt.action_ids(a.reference)) != len(fmt.action_ids(b.reference)):
        names = f"{a.reference!r} and {b.reference!r}"
        return f"The actions of {a.id} and its twin, {names}, differ in length."
    return ""


def check_pairs(clean: Sequence[Prompt], corrupt: Sequence[Prompt]) -> None:
    """Raise ValueError where two lists of prompts are not pairs, token for token."""
    check_number(clean, corrupt)
    problems = [p for p in map(mismatch, clean, corrupt) if p]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(clean)} pairs do not match. {problems[0]} "
            "Make pairs with `interp.make_pairs`."
        )


def check_number(clean: Sequence[AnyPrompt], corrupt: Sequence[AnyPrompt]) -> None:
    """Raise ValueError where there are not as many clean as corrupt prompts, or none."""
    if not clean or len(clean) != len(corrupt):
        raise ValueError(
            "Pairs need as many clean as corrupt prompts, and at least one: "
            f"there are {len(clean)} and {len(corrupt)}."
        )


#: A text, a token's id, or ids.
Answer: TypeAlias = "str | int | Sequence[int]"
#: One clean and one corrupt answer for all pairs, or two for each.
Answers: TypeAlias = "tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]]"
#: Position in the clean prompt -> position in the corrupt one; for all pairs, or one for each.
Align: TypeAlias = "Mapping[int, int] | Sequence[Mapping[int, int]]"
#: Positions that are replaced together: in the clean prompt, and those that correspond in the corrupt one.
PairedPositions: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt, the ids of the answers that are compared, and what corresponds."""

    clean: AnyPrompt
    corrupt: AnyPrompt
    answers: tuple[list[int], list[int]]
    """The clean prompt's, then the corrupt one's."""
    align: Mapping[int, int]
    """Position in the clean prompt -> position in the corrupt one."""

    @property
    def prompts(self) -> tuple[AnyPrompt, AnyPrompt]:
        """The two."""
        return self.clean, self.corrupt

    def prefix(self, prompt: AnyPrompt, mode: str) -> list[int]:
        """What stands before an answer: in mode `cot` the reference trace too; nothing after plain text."""
        if not isinstance(prompt, Prompt):
            return []
        return prompt.format.action_prefix(None if mode == "prompt" else prompt.decision.trace)

    def opened(self, mode: str) -> Pair:
        """The pair up to the last token of the opened action, which is then the boundary of both.

        In mode `cot` each prompt's own reference trace stands before the tag.
        """
        clean, corrupt = (
            TextPrompt((*prompt.ids, *self.prefix(prompt, mode)), tokenizer_of(prompt))
            for prompt in self.prompts
        )
        return Pair(clean, corrupt, self.answers, {i: i for i in range(len(clean.ids))})

    def continuations(self, prompt: AnyPrompt, mode: str) -> tuple[list[list[int]], list[int]]:
        """The two answers after one of the prompts, and how many of their last tokens decide between them."""
        return continuations(self.answers, self.prefix(prompt, mode))

    def positions(self, at: str | int | Sequence[int]) -> list[PairedPositions]:
        """The positions of each cell: one at a time for `all`, else together (none where there are none)."""
        if at == "all":
            return [((p,), (q,)) for p, q in self.align.items()]
        if at in ("boundary", "last"):
            return [((self.clean.boundary,), (self.corrupt.boundary,))]
        if at == "prompt":
            wanted = [*self.align]
        elif isinstance(at, str):
            wanted = [int(i) for i in self.clean.positions(at) if int(i) in self.align]
        else:
            wanted = self._indices([at] if isinstance(at, int) else at)
        return [(tuple(wanted), tuple(self.align[p] for p in wanted))] if wanted else []

    def _indices(self, at: Sequence[int]) -> list[int]:
        size = len(self.clean.ids)
        if wrong := [i for i in at if not -size <= i < size]:
            raise ValueError(f"{self.clean.name} has {size} tokens, so there is no position {wrong[0]}.")
        wanted = [i % size for i in at]
        if missing := [i for i in wanted if i not in self.align]:
            raise ValueError(f"Position {missing[0]} of {self.clean.name} is not in `align`.")
        return wanted


def token_texts(pair: Pair) -> tuple[str, ...]:
    """The text of each token of the clean prompt, with the corrupt one's (`Mary → John`) where it differs."""
    one, other = (decoded(tokenizer_of(prompt), prompt.ids) for prompt in pair.prompts)
    both = ((text, other[pair.align[i]] if i in pair.align else text) for i, text in enumerate(one))
    return tuple(a if a == b else f"{a} → {b}" for a, b in both)


def continuations(
    answers: tuple[list[int], list[int]], prefix: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Two answers after `prefix`, and how many of their last tokens decide between them.

    What both begin with is equally likely in both, so their difference starts where they part.
    """
    alike = shared(*answers)
    return [[*prefix, *a] for a in answers], [len(a) - alike for a in answers]


def reference_actions(clean: Prompt, corrupt: Prompt) -> tuple[list[int], list[int]]:
    """Ids of the reference actions of a pair of decisions."""
    first, second = (p.format.action_ids(p.decision.reference) for p in (clean, corrupt))
    return first, second


def pairs_of(
    tokenizer: PreTrainedTokenizerBase | None,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    answers: Answers | None = None,
    align: Align | None = None,
) -> list[Pair]:
    """Pairs of prompts, texts or ids.

    Args:
        answers: the clean and the corrupt answer, texts or token ids; or two for each pair. The reference
            actions of decisions where None.
        align: which position of the clean prompt corresponds to which of the corrupt one; each to its own
            where None.

    Raises:
        ValueError: for prompts that are no pairs token for token where no `align` is given, plain text
            without answers, and answers of which none differs.
    """
    first, second = read_texts(tokenizer, clean), read_texts(tokenizer, corrupt)
    check_number(first, second)
    if answers is None and align is None and all(isinstance(p, Prompt) for p in (*first, *second)):
        check_pairs(first, second)  # type: ignore[arg-type]  # all are prompts of a format
    ids = _answers(tokenizer, first, second, answers)
    maps = [align] * len(first) if align is None or isinstance(align, Mapping) else list(align)
    if len(maps) != len(first):
        raise ValueError(f"There are {len(first)} pairs, but {len(maps)} maps of positions.")
    return [
        Pair(a, b, both, _aligned(tokenizer, a, b, own)) for a, b, both, own in zip(first, second, ids, maps)
    ]


def _aligned(
    tokenizer: PreTrainedTokenizerBase | None,
    clean: AnyPrompt,
    corrupt: AnyPrompt,
    align: Mapping[int, int] | None,
) -> Mapping[int, int]:
    if align is None:
        if len(clean.ids) != len(corrupt.ids):
            shown = [shown_tokens(tokenizer, prompt.ids) for prompt in (clean, corrupt)]
            raise ValueError(
                f"The prompts have {len(clean.ids)} and {len(corrupt.ids)} tokens, so their positions do not "
                f"correspond: {shown[0]} and {shown[1]}. Change the texts, or give align=, a map from "
                "positions of the clean prompt to those of the corrupt one."
            )
        if clean.spans != corrupt.spans:
            raise ValueError(f"The spans of {clean.name} and {corrupt.name} differ.")
        return {i: i for i in range(len(clean.ids))}
    for names, prompt in ((align.keys(), clean), (align.values(), corrupt)):
        if wrong := [i for i in names if not 0 <= i < len(prompt.ids)]:
            raise ValueError(
                f"`align` names position {wrong[0]}, but {prompt.name} has {len(prompt.ids)} tokens."
            )
    if len({*align.values()}) < len(align):
        raise ValueError("`align` maps two positions of the clean prompt to one of the corrupt prompt.")
    return dict(sorted(align.items()))


def _answers(
    tokenizer: PreTrainedTokenizerBase | None,
    clean: Sequence[AnyPrompt],
    corrupt: Sequence[AnyPrompt],
    answers: Answers | None,
) -> list[tuple[list[int], list[int]]]:
    """Ids of both answers of each pair."""
    both: list[tuple[list[int], list[int]]] = []
    if answers is None:
        for a, b in zip(clean, corrupt):
            if not isinstance(a, Prompt) or not isinstance(b, Prompt):
                raise ValueError(
                    "Plain text has no reference action: give answers=, the clean and the corrupt answer, as "
                    'in answers=(" Mary", " John").'
                )
            both.append(reference_actions(a, b))
    else:
        alike = all(isinstance(answer, (str, int)) for answer in answers)
        each: list[Any] = [answers] * len(clean) if alike else list(answers)
        if len(each) != len(clean) or not all(isinstance(a, Sequence) and len(a) == 2 for a in each):
            raise ValueError(
                "answers= takes two answers, the clean and the corrupt one, or a list of two for each of the "
                f"{len(clean)} pairs."
            )
        for prompt, (one, other) in zip(clean, each):
            both.append((answer_tokens(tokenizer, prompt, one), answer_tokens(tokenizer, prompt, other)))
    for one, other in both:
        check_differ(tokenizer, one, other)
    return both


def check_differ(tokenizer: PreTrainedTokenizerBase | None, one: Sequence[int], other: Sequence[int]) -> None:
    """Raise ValueError where no token decides between two answers."""
    if shared(one, other) == min(len(one), len(other)):
        shown = " and ".join(repr(shown_tokens(tokenizer, ids)) for ids in (one, other))
        raise ValueError(f"The answers {shown} differ in no token that both have: nothing is compared.")


def answer_tokens(tokenizer: PreTrainedTokenizerBase | None, prompt: AnyPrompt, answer: Answer) -> list[int]:
    """Ids of an answer after a prompt: after an agent's, of an action with what closes it."""
    if isinstance(answer, str) and isinstance(prompt, Prompt):
        return prompt.format.action_ids(answer)
    return answer_ids(tokenizer, answer)


def answers_after(
    tokenizer: PreTrainedTokenizerBase | None, prompt: AnyPrompt, answers: Sequence[Answer]
) -> tuple[list[list[int]], list[int]]:
    """The answers after a prompt (some token where there is none), and how many last tokens of each count.

    Those of an agent's prompt are actions, right after the opened tag. Raises ValueError for more than two
    answers, and for two that differ in no token.
    """
    if isinstance(answers, str) or len(answers) > 2:
        raise ValueError("answers= takes one answer or two, as in answers=(' Mary', ' John').")
    prefix = prompt.format.action_prefix(None) if isinstance(prompt, Prompt) else []
    ids = [answer_tokens(tokenizer, prompt, answer) for answer in answers] or [[0]]
    if len(ids) == 1:
        return [[*prefix, *ids[0]]], [len(ids[0])]
    one, other = ids
    check_differ(tokenizer, one, other)
    return continuations((one, other), prefix)
