"""Which tokens are read: of each prompt, and of what follows it, the positions that a name stands for.

>>> readings(prompts, "trace", decode(model, prompts))[0].positions      # every token of the first trace
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from interp.engine.decoding import Completion
from interp.prompts.format import SPANS, Prompt, PromptFormat
from interp.prompts.text import TEXT, AnyPrompt

#: Positions by name; an index, or several, of every prompt; or a list of them for each prompt.
At: TypeAlias = "str | int | Sequence[int] | Sequence[Sequence[int]]"
#: What follows a prompt: a trace as text, a completion, ids up to the opened action, or None (the tag alone).
Trace: TypeAlias = "str | Completion | Sequence[int] | None"
#: Names that stand for tokens after a prompt.
WITH_TRACES = ("action_tag", "trace")
NAMES = ("boundary", "last", "action_tag", "trace", "all", TEXT, *SPANS)


def is_single(at: At) -> bool:
    """Whether positions are one token of each prompt by their name."""
    return isinstance(at, str) and at in ("boundary", "last", "action_tag")


@dataclass(frozen=True)
class Reading:
    """A sequence that is read, and the positions of it that are kept.

    `hash` is the prompt's own at the boundary, else that of sequence and positions.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    episode: str
    hash: str


def readings(prompts: Sequence[AnyPrompt], at: At, traces: Sequence[Trace] | None = None) -> list[Reading]:
    """The sequence and positions of each prompt.

    Args:
        at: `boundary` or `last` (the last prompt token), `action_tag` (the last token of the opened action),
            `trace` (every token of the trace), `all`, a span, an index (negative ones count from the end), a
            list of indices, or one list for each prompt. A prompt without such tokens has no positions.
        traces: what follows each prompt, for `trace`, `action_tag` (None: the tag stands right at the
            boundary) and indices, which then count on into it.

    Raises:
        ValueError: another name, an index that a sequence does not have, or traces that do not match the
            prompts.
    """
    if traces is not None and len(traces) != len(prompts):
        raise ValueError(f"There are {len(prompts)} prompts, but {len(traces)} traces: give one for each.")
    if isinstance(at, str):
        return _named(prompts, at, traces)
    return _indexed(prompts, at, traces)


def _named(prompts: Sequence[AnyPrompt], at: str, traces: Sequence[Trace] | None) -> list[Reading]:
    if at not in NAMES:
        raise ValueError(
            f"There is no position {at!r}: give {', '.join(NAMES[:5])}, a span ({', '.join(SPANS)}), an "
            "index, or a list of them."
        )
    if at in WITH_TRACES:
        if at == "trace" and traces is None:
            raise ValueError(
                "The trace of each prompt is read from traces=: give what `decode` gave, or texts."
            )
        place = _tag if at == "action_tag" else _trace
        return [place(p, t) for p, t in zip(prompts, traces or [None] * len(prompts))]
    if traces is not None:
        raise ValueError(f"traces are read at 'trace', 'action_tag' and indices, not at {at!r}.")
    if at in ("boundary", "last"):
        return [Reading(p.ids, (p.boundary,), p.episode, p.hash) for p in prompts]
    if at == "all":
        return [_reading(p, p.ids, range(len(p.ids))) for p in prompts]
    return [_reading(p, p.ids, p.positions(at).tolist()) for p in prompts]


def _indexed(prompts: Sequence[AnyPrompt], at: At, traces: Sequence[Trace] | None) -> list[Reading]:
    assert not isinstance(at, str)
    each: list[Any] = [[at]] * len(prompts) if isinstance(at, (int, np.integer)) else list(at)
    if each and isinstance(each[0], (int, np.integer)):
        each = [each] * len(prompts)
    if len(each) != len(prompts):
        raise ValueError(f"There are {len(prompts)} prompts, but {len(each)} lists of positions.")
    made = []
    for prompt, wanted, trace in zip(prompts, each, traces or [None] * len(prompts)):
        ids = prompt.ids if traces is None else (*prompt.ids, *_after(prompt, trace))
        if wrong := [i for i in wanted if not -len(ids) <= i < len(ids)]:
            raise ValueError(f"{prompt.name} has {len(ids)} tokens, so there is no position {wrong[0]}.")
        made.append(_reading(prompt, ids, [int(i) % len(ids) for i in wanted]))
    return made


def _reading(prompt: AnyPrompt, ids: Sequence[int], positions: Sequence[int]) -> Reading:
    kept = tuple(int(i) for i in positions)
    content = json.dumps([prompt.hash, list(ids), kept])
    return Reading(tuple(ids), kept, prompt.episode, hashlib.sha256(content.encode()).hexdigest()[:16])


def _format(prompt: AnyPrompt) -> PromptFormat:
    if not isinstance(prompt, Prompt):
        raise ValueError(
            f"Plain text ({prompt.name}) has no trace and no action tag: give prompts of a PromptFormat, or "
            "indices."
        )
    return prompt.format


def _after(prompt: AnyPrompt, trace: Trace) -> list[int]:
    """Ids from the boundary up to the opened action."""
    fmt = _format(prompt)
    if isinstance(trace, Completion):
        decoded = fmt.decoded_prefix(trace.ids)
        if decoded is None:
            raise ValueError(f"The completion of {prompt.name} opens no action after its trace.")
        return fmt.action_prefix(decoded)
    return fmt.action_prefix(trace)


def _tag(prompt: AnyPrompt, trace: Trace) -> Reading:
    ids = [*prompt.ids, *_after(prompt, trace)]
    return _reading(prompt, ids, [len(ids) - 1])


def _trace(prompt: AnyPrompt, trace: Trace) -> Reading:
    """The trace's tokens; none where there is no trace, or it was never closed."""
    fmt = _format(prompt)
    if isinstance(trace, Completion):
        trace = fmt.decoded_prefix(trace.ids)
    if trace is None:
        return _reading(prompt, prompt.ids, [])
    if isinstance(trace, str):
        encoded, start = fmt.trace_prefix(trace)
        end = start + len(trace)
        inside = [i for i, (_, stop) in enumerate(encoded.offsets) if start < stop <= end]
        return _reading(prompt, [*prompt.ids, *encoded.ids], [len(prompt.ids) + i for i in inside])
    ids = [*prompt.ids, *_after(prompt, trace)]
    first = len(prompt.ids) + len(fmt.mode_prefix("cot"))
    return _reading(prompt, ids, range(first, _closing(fmt, ids, first)))


def _closing(fmt: PromptFormat, ids: Sequence[int], first: int) -> int:
    """Index of the token in which the tag that closes a trace begins."""
    close = fmt.style.close_think.strip() or fmt.style.open_action.strip()
    return next((i for i in range(len(ids) - 1, first, -1) if close in fmt.text(ids[i:])), first)
