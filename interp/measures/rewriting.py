"""Own traces written again by rule: with one name mistaken, or in other words that say the same.

>>> rng = np.random.default_rng(0)
>>> mistaken("Next I check drawer 1.", "go to drawer 1", "You see a drawer 1 and a drawer 3.", rng)
Mistake(trace='Next I check drawer 3.', action='go to drawer 3')
>>> paraphrased("I hold pen 1. Next I check drawer 1.", [["Next I check {r}.", "{r} comes next."]], rng)
'I hold pen 1. drawer 1 comes next.'

No model writes anything: a mistake is a replaced name, and a paraphrase puts a sentence that is one of an
environment's phrases into another phrase for the same (its names stay as they are). Where no sentence is such
a phrase, the first sentence is moved to the end, which is a weaker change: the words are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

#: Templates that say the same, such as "Next I check {r}." and "{r} comes next.", in groups.
Phrases = Sequence[Sequence[str]]
_NUMBERED = re.compile(r"\b([a-z]+) \d+\b")
_SLOT = re.compile(r"\{(\w+)\}")


class Mistake(NamedTuple):
    """A trace with one name replaced, and the action with the same name replaced (None: it has none)."""

    trace: str
    action: str | None


def sentences(trace: str) -> list[str]:
    """The sentences of a trace."""
    return re.split(r"(?<=[.!?])\s+", trace)


def replaced(text: str, name: str, other: str) -> str:
    """`text` with a name, whole words only, replaced by another (`drawer 1` is not in `drawer 11`)."""
    return re.sub(rf"\b{re.escape(name)}\b", lambda _: other, text)


def mistaken(
    trace: str,
    action: str,
    prompt: str,
    rng: np.random.Generator,
    swaps: Iterable[tuple[str, str]] = (),
    possible: Callable[[str], bool] = lambda action: True,
) -> Mistake | None:
    """A trace with one name replaced, wherever it stands, by another of its class that the prompt names.

    Names are of one class where they differ in their number alone (`drawer 1`, `drawer 3`), and those of
    `swaps`. One that the action names as well is mistaken where there is one, so that the trace argues for
    another action. None where the trace names nothing that can be mistaken.

    Args:
        prompt: the text before the trace.
        swaps: (name, another of the same class), as an environment's `swap_candidates` gives.
        possible: whether an action could be taken here; no trace argues for one that could not.
    """
    named = {match.group(): match[1] for match in _NUMBERED.finditer(trace)}
    there = {match.group(): match[1] for match in _NUMBERED.finditer(prompt)}
    pairs = [(a, b) for a, kind in named.items() for b, its in there.items() if kind == its and a != b]
    pairs += [(a, b) for a, b in swaps if replaced(prompt, b, "") != prompt]
    changes = []
    for name, other in dict.fromkeys(pairs):
        changed = replaced(trace, name, other)
        if changed != trace:
            changes.append(Mistake(changed, replaced(action, name, other)))
    arguing = [each for each in changes if each.action != action and possible(each.action or "")]
    silent = [Mistake(each.trace, None) for each in changes if each.action == action]
    options = arguing or silent
    return options[int(rng.integers(len(options)))] if options else None


def paraphrased(trace: str, phrases: Phrases, rng: np.random.Generator) -> str | None:
    """A trace in other words that say the same, every name kept; None where no rule changes it.

    Every sentence that is one of `phrases` becomes another of its group with the same slots; where none is,
    the first sentence is moved to the end.
    """
    groups = _compiled(tuple(map(tuple, phrases)))
    whole = sentences(trace)
    changed = " ".join(_reworded(sentence, groups, rng) for sentence in whole)
    if changed == trace:
        changed = " ".join([*whole[1:], whole[0]])
    return changed if changed != trace else None


def _reworded(
    sentence: str, groups: Sequence[Sequence[tuple[str, re.Pattern[str]]]], rng: np.random.Generator
) -> str:
    """A sentence in another phrase of the group that it is of; itself where it is of none."""
    for group in groups:
        for template, pattern in group:
            match = pattern.fullmatch(sentence)
            if match is None:
                continue
            others = [each for each, _ in group if each != template and _slots(each) == _slots(template)]
            if others:
                return others[int(rng.integers(len(others)))].format(**match.groupdict())
    return sentence


def _slots(template: str) -> set[str]:
    return set(_SLOT.findall(template))


@lru_cache(maxsize=8)
def _compiled(phrases: tuple[tuple[str, ...], ...]) -> list[list[tuple[str, re.Pattern[str]]]]:
    """Each template with the pattern of the sentences that it makes."""
    return [[(template, _pattern(template)) for template in group] for group in phrases]


def _pattern(template: str) -> re.Pattern[str]:
    texts: list[str] = []
    seen: set[str] = set()
    for index, part in enumerate(_SLOT.split(template)):
        if index % 2 == 0:
            texts.append(re.escape(part))
        elif part in seen:
            texts.append(f"(?P={part})")
        else:
            texts.append(f"(?P<{part}>.+?)")
            seen.add(part)
    return re.compile("".join(texts))
