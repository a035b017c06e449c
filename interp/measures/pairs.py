"""Counterfactual pairs: a decision and its twin with two names swapped everywhere, of equal token length.

The environment says which names can be exchanged (`swap_candidates`): the expert's rule must be the same for
both, so that the twin's right action is the swapped one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from interp.environments.alfworld.commands import swap_candidates as household
from interp.prompts.format import Prompt, PromptFormat
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
    if not clean or len(clean) != len(corrupt):
        raise ValueError(
            "Pairs need as many clean as corrupt prompts, and at least one: "
            f"there are {len(clean)} and {len(corrupt)}."
        )
    problems = [p for p in map(mismatch, clean, corrupt) if p]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(clean)} pairs do not match. {problems[0]} "
            "Make pairs with `interp.make_pairs`."
        )
