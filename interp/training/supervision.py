"""Which tokens a training supervises: the conditions of the masking study (docs/methods.md 8.1).

An example is one step of an episode, since each step ends in an action of its own: its trace and its action,
each in its tags. The tags are supervised in every condition, so that every condition learns the format and
when to act; conditions differ in what stands inside them.

>>> # what `interp.training.trainer.train` takes
>>> sequences, counts = supervised(fmt, episodes, Supervision(action_mask=0.3), seed=1)
>>> Supervision.named("random_mask_0.3").control_of
'action_mask_0.3'
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from interp.prompts.format import PromptFormat
from interp.tasks.episodes import Decision, Episode

#: What a token of the agent's is; one that holds characters of several is of the last of them.
TAG, COT, ACTION = 1, 2, 3
#: Ids, and which of them are supervised.
TrainingSequence = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Supervision:
    """A condition of training.

    By default all that the agent writes is supervised. At most one field is set.
    """

    action_mask: float = 0.0
    """Share of the examples, 0 to 1, whose action tokens are unsupervised (k)."""
    random_mask: float = 0.0
    """Share of the same examples in which as many tokens of the trace are unsupervised instead, at random."""
    only: Literal["", "action", "cot"] = ""
    """In every example the action alone, or the trace alone, is supervised."""

    def __post_init__(self) -> None:
        for name in ("action_mask", "random_mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a share of the examples, from 0 to 1, not {getattr(self, name)}."
                )
        if self.only not in ("", "action", "cot"):
            raise ValueError(f"only is 'action', 'cot' or '', not {self.only!r}.")
        if given := [f"{k}={v}" for k, v in asdict(self).items() if v][1:]:
            raise ValueError(f"One condition masks one thing: leave out {' and '.join(given)}.")

    @property
    def name(self) -> str:
        """The condition's name and folder."""
        if self.only:
            return f"{self.only}_only"
        return (
            f"random_mask_{self.random_mask:g}" if self.random_mask else f"action_mask_{self.action_mask:g}"
        )

    @property
    def control_of(self) -> str:
        """The condition that a random mask is the control of ("" of another condition)."""
        return f"action_mask_{self.random_mask:g}" if self.random_mask else ""

    @classmethod
    def named(cls, name: str) -> "Supervision":
        """The condition of a name; raises ValueError for one that names none."""
        kind, _, share = name.rpartition("_")
        fields: dict[str, Any] = dict(only=kind)
        try:
            if share != "only":
                fields = {kind: float(share)}
            condition = cls(**fields)
            if condition.name == name:
                return condition
        except (TypeError, ValueError):  # no field, or no share
            pass
        raise ValueError(
            f"There is no condition {name!r}: conditions are action_mask_K and random_mask_K, K a share of "
            "the examples such as 0.3, action_only and cot_only."
        )


class Written(NamedTuple):
    """A training sequence: ids, the part of each token (TAG, COT or ACTION; 0: another's), its example."""

    ids: list[int]
    parts: list[int]
    examples: list[str]


def written(fmt: PromptFormat, item: Episode | Decision) -> Iterator[Written]:
    """An episode as one sequence, or as one for each step where earlier traces are stripped.

    A decision is one sequence. A token that holds any character of an action is the action's, and of the
    others one that holds any of a trace is the trace's.
    """
    if isinstance(item, Decision) or not fmt.whole:
        yield from (_answered(fmt, decision) for decision in item.decisions())
        return
    text, turns, encoded = fmt.rendered(item)
    characters = bytearray(len(text))
    steps = np.full(len(text), -1)
    for number, ((start, end), step) in enumerate(zip(turns, item.steps, strict=True)):
        turn = _turn(fmt, step.trace, step.action)
        # templates may strip a turn's ends
        shift = fmt.history.turn(step.trace, step.action).index(text[start:end])
        characters[start:end] = turn[shift : shift + end - start]
        steps[start:end] = number
    parts = _parts(bytes(characters), encoded.offsets)
    last = [end - 1 for _, end in encoded.offsets]
    examples = [f"{item.id}#{steps[i]}" if part else "" for part, i in zip(parts, last)]
    yield Written(encoded.ids, parts, examples)


def _turn(fmt: PromptFormat, trace: str, action: str) -> bytes:
    """What each character of an agent's turn is."""
    s = fmt.style
    return bytes(
        [TAG] * len(f"{s.open_think}{s.space}")
        + [COT] * len(trace)
        + [TAG] * len(f"{s.close_think}{s.open_action}{s.space}")
        + [ACTION] * len(action)
        + [TAG] * len(s.close_action)
    )


def _parts(characters: bytes, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The part of each token.

    It is the agent's where its last character is, as in `PromptFormat.sequence`.
    """
    return [
        max(characters[min(start, end - 1) : end]) if characters[end - 1] else 0 for start, end in offsets
    ]


def _answered(fmt: PromptFormat, decision: Decision) -> Written:
    s = fmt.style
    ids, _ = fmt.example(decision)
    opened, start = fmt.trace_prefix(decision.trace)
    closed = fmt.closed_action(decision.reference)
    rest = len(s.close_think + s.open_action)
    trace = bytes([TAG] * start + [COT] * len(decision.trace) + [TAG] * rest)
    action = bytes([TAG] * len(s.space) + [ACTION] * len(decision.reference) + [TAG] * len(s.close_action))
    parts = [*_parts(trace, opened.offsets), *_parts(action, closed.offsets)]
    written = len(fmt.with_trace(decision.trace)) + len(fmt.action_ids(decision.reference))
    parts += [TAG] * (written - len(parts))  # the end of a turn, where it closes the action
    prompt = len(ids) - written
    return Written(ids, [0] * prompt + parts, [""] * prompt + [decision.id] * written)


def lot(example: str, seed: int) -> float:
    """A number from 0 to 1 for an example; a share k chooses those below k, so larger k choose them, too."""
    return int(hashlib.sha256(f"{seed} {example}".encode()).hexdigest()[:13], 16) / 16**13


def _random(example: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"{seed} {example} random".encode()).digest()[:8], "big")
    )


def supervised(
    fmt: PromptFormat,
    items: Sequence[Episode | Decision],
    supervision: Supervision = Supervision(),
    seed: int = 0,
) -> tuple[list[TrainingSequence], dict[str, int]]:
    """Training sequences, ids and which of them are supervised, and what was left unsupervised.

    The same for an equal seed, whatever else is trained on; an action mask and its random control choose the
    same examples. Counts: `examples`, `chosen`, `agent_tokens`, `action_tokens`, `unsupervised` tokens, and
    `short`, those that a random mask lacks since a trace has fewer tokens than its action.
    """
    share = 1.0 if supervision.only else supervision.action_mask or supervision.random_mask
    sequences: list[TrainingSequence] = []
    counts = dict(examples=0, chosen=0, agent_tokens=0, action_tokens=0, unsupervised=0, short=0)
    for sequence in (s for item in items for s in written(fmt, item)):
        parts, examples = np.array(sequence.parts), np.array(sequence.examples)
        keep = parts > 0
        for example in dict.fromkeys(e for e in sequence.examples if e):
            cot, action = (np.flatnonzero((examples == example) & (parts == part)) for part in (COT, ACTION))
            counts["examples"] += 1
            counts["action_tokens"] += len(action)
            if lot(example, seed) >= share:
                continue
            counts["chosen"] += 1
            if supervision.random_mask:
                left = _random(example, seed).permutation(cot)[: len(action)]
                counts["short"] += len(action) - len(left)
            else:
                left = cot if supervision.only == "action" else action
            keep[left] = False
        counts["agent_tokens"] += int((parts > 0).sum())
        counts["unsupervised"] += int(((parts > 0) & ~keep).sum())
        sequences.append((sequence.ids, keep.tolist()))
    return sequences, counts
