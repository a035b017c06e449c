"""Conditions of training: which traces are left out, and which tokens are supervised (docs/methods.md 8).

An example is one step of an episode, since each step ends in an action of its own: its trace and its action,
each in its tags. The tags are supervised in every condition, so that every condition learns the format and
when to act; conditions differ in what stands inside them, and in which steps have a trace.

>>> # what `interp.training.trainer.train` takes
>>> sequences, counts = supervised(fmt, episodes, Supervision(action_mask=0.3), seed=1)
>>> Supervision.named("random_mask_0.3").control_of
'action_mask_0.3'
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from interp.prompts.format import PromptFormat
from interp.tasks.episodes import Decision, Episode

#: What a token of the agent's is; one that holds characters of several is of the last of them.
TAG, COT, ACTION = 1, 2, 3
#: Fields that are a share, and what may be the `only` part.
SHARES = ("action_mask", "random_mask", "trace_dropout", "replay")
ONLY = ("", "action", "cot", "prompt")
#: Ids, and which of them are supervised.
TrainingSequence = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Supervision:
    """A condition of training.

    By default every step has its trace, and all that the agent writes is supervised. At most one field is
    set.
    """

    action_mask: float = 0.0
    """Share of the examples, 0 to 1, whose action tokens are unsupervised (k)."""
    random_mask: float = 0.0
    """Share of the same examples in which as many tokens of the trace are unsupervised instead, at random."""
    trace_dropout: float = 0.0
    """Share of the examples whose trace is left out: they answer right at the boundary."""
    replay: float = 0.0
    """Share of the training sequences that are the base's, 0 to below 1."""
    only: Literal["", "action", "cot", "prompt"] = ""
    """In every example the action alone, or the trace alone, is supervised; or no example has a trace."""

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a share of the examples, from 0 to 1, not {getattr(self, name)}."
                )
        if self.replay == 1:
            raise ValueError("replay is below 1: of nothing but the base's sequences nothing new is learned.")
        if self.only not in ONLY:
            raise ValueError(f"only is {', '.join(map(repr, ONLY[1:]))} or '', not {self.only!r}.")
        if given := [f"{k}={v}" for k, v in asdict(self).items() if v][1:]:
            raise ValueError(f"One condition masks one thing: leave out {' and '.join(given)}.")

    @property
    def name(self) -> str:
        """The condition's name and folder."""
        if self.only:
            return f"{self.only}_only"
        kind = next((name for name in SHARES if getattr(self, name)), "action_mask")
        return f"{kind}_{getattr(self, kind):g}"

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
            f"There is no condition {name!r}: conditions are {', '.join(f'{each}_K' for each in SHARES)}, K "
            f"a share such as 0.3, and {', '.join(f'{each}_only' for each in ONLY[1:])}."
        )

    def without_trace(self, example: str, seed: int) -> bool:
        """Whether an example has no trace."""
        return self.only == "prompt" or lot(example, seed) < self.trace_dropout


class Written(NamedTuple):
    """A training sequence: ids, the part of each token (TAG, COT or ACTION; 0: another's), its example."""

    ids: list[int]
    parts: list[int]
    examples: list[str]


def written(
    fmt: PromptFormat, item: Episode | Decision, bare: Callable[[str], bool] = lambda example: False
) -> Iterator[Written]:
    """An episode as one sequence, or as one for each step where earlier traces are stripped.

    A decision is one sequence. A token that holds any character of an action is the action's, and of the
    others one that holds any of a trace is the trace's.

    Args:
        bare: whether an example's trace is left out.
    """
    if isinstance(item, Decision) or not fmt.whole:
        yield from (_answered(fmt, decision, bare(decision.id)) for decision in item.decisions())
        return
    names = [f"{item.id}#{number}" for number in range(len(item.steps))]
    text, turns, encoded = fmt.rendered(item, [not bare(name) for name in names])
    characters = bytearray(len(text))
    steps = np.full(len(text), -1)
    for number, ((start, end), step) in enumerate(zip(turns, item.steps, strict=True)):
        trace = None if bare(names[number]) else step.trace
        turn = _turn(fmt, trace, step.action)
        # templates may strip a turn's ends
        shift = fmt.history.turn(trace, step.action).index(text[start:end])
        characters[start:end] = turn[shift : shift + end - start]
        steps[start:end] = number
    parts = _parts(bytes(characters), encoded.offsets)
    last = [end - 1 for _, end in encoded.offsets]
    examples = [names[steps[i]] if part else "" for part, i in zip(parts, last)]
    yield Written(encoded.ids, parts, examples)


def _turn(fmt: PromptFormat, trace: str | None, action: str) -> bytes:
    """What each character of an agent's turn is; trace: None where it is left out."""
    s, thought = fmt.style, b""
    if trace is not None:
        opened = [TAG] * len(f"{s.open_think}{s.space}")
        thought = bytes(opened + [COT] * len(trace) + [TAG] * len(s.close_think))
    opened = [TAG] * len(f"{s.open_action}{s.space}")
    return thought + bytes(opened + [ACTION] * len(action) + [TAG] * len(s.close_action))


def _parts(characters: bytes, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The part of each token.

    It is the agent's where its last character is, as in `PromptFormat.sequence`.
    """
    return [
        max(characters[min(start, end - 1) : end]) if characters[end - 1] else 0 for start, end in offsets
    ]


def _answered(fmt: PromptFormat, decision: Decision, bare: bool) -> Written:
    s, prompt = fmt.style, fmt.prompt(decision).ids
    lead = fmt.action_prefix(None if bare else decision.trace)
    parts = [TAG] * len(lead)
    if not bare:
        opened, start = fmt.trace_prefix(decision.trace)
        rest = len(s.close_think + s.open_action)
        parts = _parts(bytes([TAG] * start + [COT] * len(decision.trace) + [TAG] * rest), opened.offsets)
    action = bytes([TAG] * len(s.space) + [ACTION] * len(decision.reference) + [TAG] * len(s.close_action))
    written = [*lead, *fmt.action_ids(decision.reference)]
    parts += _parts(action, fmt.closed_action(decision.reference).offsets)
    parts += [TAG] * (len(written) - len(parts))  # the end of a turn, where it closes the action
    return Written(
        [*prompt, *written],
        [0] * len(prompt) + parts,
        [""] * len(prompt) + [decision.id] * len(written),
    )


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
    same examples. Counts: `examples`, `chosen` (something is masked), `bare` (without a trace),
    `agent_tokens`, `action_tokens`, `unsupervised` tokens, and `short`, those that a random mask lacks since
    a trace has fewer tokens than its action.
    """
    share = supervision.action_mask or supervision.random_mask
    if supervision.only in ("action", "cot"):
        share = 1.0

    def bare(example: str) -> bool:
        return supervision.without_trace(example, seed)

    sequences: list[TrainingSequence] = []
    counts = dict(examples=0, chosen=0, bare=0, agent_tokens=0, action_tokens=0, unsupervised=0, short=0)
    for sequence in (s for item in items for s in written(fmt, item, bare)):
        parts, examples = np.array(sequence.parts), np.array(sequence.examples)
        keep = parts > 0
        for example in dict.fromkeys(e for e in sequence.examples if e):
            cot, action = (np.flatnonzero((examples == example) & (parts == part)) for part in (COT, ACTION))
            counts["examples"] += 1
            counts["bare"] += bare(example)
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
