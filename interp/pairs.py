"""Counterfactual pairs: a decision and its twin with two names swapped everywhere, token for token of equal length.

A receptacle is swapped with another of its class ("drawer 3" with "drawer 5"), an object's class with another object's
("apple" with "mug"); the expert's rule is the same for both names, so the twin's right action is the swapped one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from interp.prompts import Prompt, PromptFormat
from interp.tasks import Decision


@dataclass(frozen=True)
class Pair:
    """Clean and corrupt prompts of equal length, with the trace and the action that belong to each."""

    clean: Prompt
    corrupt: Prompt
    clean_trace: str
    corrupt_trace: str
    clean_action: str
    corrupt_action: str


def swap(text: str, a: str, b: str) -> str:
    """`text` with the names `a` and `b` exchanged, whole words only (`drawer 1` is not in `drawer 11`)."""
    pattern = re.compile(rf"\b(?:{re.escape(a)}|{re.escape(b)})\b")
    return pattern.sub(lambda m: b if m.group() == a else a, text)


def swapped(decision: Decision, a: str, b: str) -> Decision:
    """The twin of a decision with two names exchanged in everything it says."""
    def turn(message):
        return {k: swap(v, a, b) if isinstance(v, str) and k != "role" else v for k, v in message.items()}

    return replace(decision, messages=tuple(turn(m) for m in decision.messages), reference=swap(decision.reference, a, b),
                   admissible=tuple(swap(c, a, b) for c in decision.admissible), task=swap(decision.task, a, b),
                   trace=swap(decision.trace, a, b))


def _partners(decision: Decision, objects: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names whose exchange changes the action."""
    text = " ".join(m["content"] for m in decision.messages if m["role"] == "user")
    action = decision.reference
    if action.startswith(("go to ", "open ")):
        name = action.removeprefix("go to ").removeprefix("open ")
        others = set(re.findall(rf"\b{re.escape(name.rsplit(' ', 1)[0])} \d+\b", text)) - {name}
        if action.startswith("go to "):
            return [(name, other) for other in sorted(others)]
        return []  # the opened receptacle is the one just reached: its number is copied, not decided
    if action.startswith("take "):
        name = action.split()[1]
        return [(name, other) for other in objects if other != name and re.search(rf"\b{other}\b", text)]
    return []


def make_pairs(fmt: PromptFormat, decisions: Sequence[Decision], n: int, seed: int = 0) -> tuple[list[Pair], Counter]:
    """Up to `n` pairs, at most one for each decision, and a count of what was dropped and why.

    Kept only where every token has its counterpart: equal lengths of prompt, trace and action, and equal spans.
    """
    rng = np.random.default_rng(seed)
    objects = sorted({w for d in decisions for m in re.findall(r"\btake (\w+) \d+", " ".join(d.admissible)) for w in [m]})
    pairs: list[Pair] = []
    dropped: Counter = Counter()
    for index in rng.permutation(len(decisions)):
        if len(pairs) == n:
            break
        decision = decisions[index]
        options = _partners(decision, objects)
        if not options:
            dropped["no name to swap that changes the action"] += 1
            continue
        clean = fmt.prompt(decision)
        for choice in rng.permutation(len(options)):
            twin = swapped(decision, *options[choice])
            corrupt = fmt.prompt(twin)
            if corrupt.spans == clean.spans and all(
                    len(fmt.encode(x)) == len(fmt.encode(y)) for x, y in ((decision.trace, twin.trace), (decision.reference, twin.reference))):
                pairs.append(Pair(clean, corrupt, decision.trace, twin.trace, decision.reference, twin.reference))
                break
        else:
            dropped["no swap of equal token length"] += 1
    return pairs, dropped
