"""Conflicting traces: the model's own prompt with a trace that is not the one it wrote, and what it then does.

>>> found = conflict(model, prompts, decode(model, prompts, "cot"))
>>> found["other_state"].follow.mean(), found["self_splice"].keep.all()       # the second must be True: the own trace spliced back
>>> shifts(model, prompts, found, most=20)["other_state"].distance            # the same on the distribution over admissible actions
>>> contrast(found["empty"], found["other_state"]).removed                    # flips without a trace, and under a wrong one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.engine.decoding import LIMITS, Completion, format_of, parse_completion, preferences
from interp.engine.generation import continue_each
from interp.models.turns import measured
from interp.prompts.format import Prompt
from interp.system.choices import Inserted
from interp.system.renamed import renamed_keywords

INSERTED_TRACES: tuple[Inserted, ...] = get_args(Inserted)
FILLER = "."
#: Traces drawn at each decision, at temperature 1, in search of one that leads to another action.
SAMPLES = 4


@dataclass(frozen=True)
class Outcome:
    """One kind of inserted trace at the decisions where it applies (`index` into the prompts), each array [decision].

    `action`: what was done (None: unparsed); `own`: the prompt's own CoT action; `argued`: the action the trace argues
    for (None where it argues for none); `leaked`: the trace named that action word for word before it was stripped;
    `logp`: log p(trace and its closing tags | prompt) per token, in nats (an alien trace ignored may be competence), and
    `logp_own`, the own trace's at the same decisions; `leads`: what was put after the prompt, ids up to the opened action tag.
    """

    inserted_trace: str
    index: np.ndarray
    action: list[str | None]
    own: list[str]
    argued: list[str | None]
    leaked: np.ndarray
    logp: np.ndarray
    logp_own: np.ndarray
    leads: list[list[int]]

    @property
    def keep(self) -> np.ndarray:
        return np.array([a == o for a, o in zip(self.action, self.own)], dtype=bool)

    @property
    def follow(self) -> np.ndarray:
        return np.array([a is not None and a == g for a, g in zip(self.action, self.argued)], dtype=bool)

    @property
    def unparsed(self) -> np.ndarray:
        return np.array([a is None for a in self.action], dtype=bool)


@dataclass(frozen=True)
class Shift:
    """How far one kind of inserted trace moves the distribution over the candidate actions from where the own trace has it, each array [decision].

    `index` into the prompts; `distance`: total variation, 0 to 1; `own` and `argued`: probability of the own action and of the
    argued one after the inserted trace, `own_before` and `argued_before` after the own trace (NaN where the action is no
    candidate, or where the trace argues for none).
    """

    index: Int[np.ndarray, "decision"]
    distance: Float[np.ndarray, "decision"]
    own: Float[np.ndarray, "decision"]
    own_before: Float[np.ndarray, "decision"]
    argued: Float[np.ndarray, "decision"]
    argued_before: Float[np.ndarray, "decision"]


@dataclass(frozen=True)
class Contrast:
    """Flips of the own action where its trace was removed and where it was replaced, at the decisions that have both inserted traces, each [decision].

    An action that did not parse is a flip; `parsed`: both actions did.
    """

    index: Int[np.ndarray, "decision"]
    removed: Bool[np.ndarray, "decision"]
    substituted: Bool[np.ndarray, "decision"]
    parsed: Bool[np.ndarray, "decision"]


def sentences(trace: str) -> list[str]:
    """The sentences of a trace."""
    return re.split(r"(?<=[.!?])\s+", trace)


def complete(prompts: Sequence[Prompt], decoded: Sequence[Completion]) -> list[int]:
    """The decisions whose decoding in mode `cot` has a trace, an opened action tag and an action."""
    return [
        i
        for i, s in enumerate(decoded)
        if s.action is not None and s.trace and prompts[i].format.decoded_prefix(s.ids)
    ]


def strip_action(trace: str, action: str) -> str:
    """The trace without the sentences that name the action word for word (unchanged where none does)."""
    whole = sentences(trace)
    kept = [s for s in whole if not re.search(rf"\b{re.escape(action)}\b", s, re.IGNORECASE)]
    return trace if len(kept) == len(whole) else " ".join(kept)


def donor(
    index: int,
    prompts: Sequence[Prompt],
    decoded: Sequence[Completion],
    rng: np.random.Generator,
    closed_actions: bool = True,
) -> int | None:
    """Another episode's decision whose own action could be taken here too, but is not the one taken here.

    closed_actions: what could be taken here is what the decision lists; else any action that parsed.
    """
    here = prompts[index].decision
    options = [
        i
        for i, (p, s) in enumerate(zip(prompts, decoded))
        if (s.action in here.admissible if closed_actions else s.action is not None)
        and s.action != decoded[index].action
        and s.trace
        and p.decision.episode != here.episode
    ]
    return int(rng.choice(options)) if options else None


@measured
def resample(
    model,
    prompts: Sequence[Prompt],
    parser: Callable[[str], str | None] = str,
    samples: int = SAMPLES,
    seed: int = 0,
    max_new_tokens: int = LIMITS["cot"],
    progress: bool = False,
) -> list[list[Completion]]:
    """`samples` decodings of each prompt drawn at temperature 1, each prompt read once."""
    fmt = format_of(model, prompts)
    out = continue_each(
        model,
        [p.ids for p in prompts],
        {str(k): [fmt.mode_prefix("cot")] * len(prompts) for k in range(samples)},
        fmt.ended("cot"),
        max_new_tokens,
        progress=progress,
        temperature=1.0,
        seed=seed,
    )
    return [
        [parse_completion(fmt, found[i].ids, "cot", parser) for found in out.values()]
        for i in range(len(prompts))
    ]


def filler(fmt, trace: str) -> list[int]:
    """Full stops of as many tokens as a trace has, between the trace's tags, up to the opened action tag."""
    length = len(fmt.encode(trace))
    return fmt.with_trace((fmt.encode(FILLER) * length)[:length])


def _trace(
    kind: str, index: int, prompts, decoded, drawn, rng, closed_actions
) -> tuple[list[int], str | None, bool] | None:
    """What an inserted trace puts after the prompt up to the opened action, the action it argues for, and whether it leaked it.

    None where there is none: no donor, none among the drawn that leads elsewhere, or one whose trace says nothing but its action.
    """
    fmt, own = prompts[index].format, decoded[index]
    if kind == "self_splice":
        return fmt.action_prefix(fmt.decoded_prefix(own.ids)), own.action, False
    if kind == "truncated":
        whole = sentences(own.trace)
        return fmt.with_trace(" ".join(whole[: max(1, len(whole) // 2)])), None, False
    if kind == "shuffled_words":
        return fmt.with_trace(" ".join(rng.permutation(own.trace.split()))), None, False
    if kind == "filler":
        return filler(fmt, own.trace), None, False
    if kind == "empty":
        return fmt.with_trace(""), None, False
    if kind == "resampled":
        other = next(
            (s for s in drawn[index] if s.action is not None and s.trace and s.action != own.action), None
        )
    else:
        place = donor(index, prompts, decoded, rng, closed_actions)
        other = None if place is None else decoded[place]
    if other is None:
        return None
    bare = strip_action(other.trace, other.action)
    return (fmt.with_trace(bare), other.action, bare != other.trace) if bare else None


@renamed_keywords(arms="inserted_traces", listed="closed_actions")
@measured
def conflict(
    model,
    prompts: Sequence[Prompt],
    decoded: Sequence[Completion],
    inserted_traces: Sequence[str] = INSERTED_TRACES,
    *,
    parser: Callable[[str], str | None] = str,
    closed_actions: bool = True,
    seed: int = 0,
    max_new_tokens: int = 24,
    trace_tokens: int = LIMITS["cot"],
    progress: bool = False,
) -> dict[str, Outcome]:
    """Put traces after the prompts and decode the action: one Outcome for each kind of inserted trace.

    Kinds: `self_splice` (own trace, ids as decoded: the action must come back exactly), `truncated` (first half of the own
    trace), `other_state` (another episode's trace, its action stripped), `resampled` (a trace that the model itself drew here at
    temperature 1 on the way to another action, one of `SAMPLES` of at most `trace_tokens`, its action stripped), `shuffled_words`, `filler` (full stops, equal
    length), `empty`. `self_splice` is always among them. Decisions whose own decoding did not parse, or that find no donor with
    words beside its action, are left out; a kind without any has empty arrays. closed_actions: as in `donor`.
    Raises ValueError for an kind that is not known.
    """
    unknown = [kind for kind in inserted_traces if kind not in INSERTED_TRACES]
    if unknown:
        raise ValueError(
            f"There is no inserted trace {unknown[0]!r}: the inserted traces are {', '.join(INSERTED_TRACES)}."
        )
    inserted_traces = tuple(dict.fromkeys(("self_splice", *inserted_traces)))
    usable = complete(prompts, decoded)
    traces, variants, drawn = {}, {}, {}
    if "resampled" in inserted_traces and usable:
        drawn = dict(
            zip(
                usable,
                resample(model, [prompts[i] for i in usable], parser, SAMPLES, seed, trace_tokens, progress),
            )
        )
    for kind in inserted_traces:
        rng = np.random.default_rng(seed)
        traces[kind] = {
            i: t
            for i in usable
            if (t := _trace(kind, i, prompts, decoded, drawn, rng, closed_actions)) is not None
        }
        variants[kind] = [traces[kind][i][0] if i in traces[kind] else None for i in range(len(prompts))]
    fmt = format_of(model, prompts)
    out = continue_each(
        model, [p.ids for p in prompts], variants, fmt.ended("prompt"), max_new_tokens, progress=progress
    )
    found = {}
    for kind in inserted_traces:
        index = list(traces[kind])
        words = [parse_completion(fmt, out[kind][i].ids, "prompt", parser) for i in index]
        found[kind] = Outcome(
            kind,
            np.array(index, dtype=int),
            [w.action for w in words],
            [decoded[i].action for i in index],
            [traces[kind][i][1] for i in index],
            np.array([traces[kind][i][2] for i in index], dtype=bool),
            np.array([out[kind][i].logp for i in index]),
            np.array([out["self_splice"][i].logp for i in index]),
            [traces[kind][i][0] for i in index],
        )
    return found


@measured
def shifts(
    model,
    prompts: Sequence[Prompt],
    outcomes: Mapping[str, Outcome],
    most: int | None = None,
    candidates: Sequence[Sequence[str]] | None = None,
) -> dict[str, Shift]:
    """Read the distribution over the candidate actions after every inserted trace, at the first `most` decisions that have some.

    outcomes: what `conflict` gave for these prompts. candidates: for each prompt; the admissible actions where None. Each prompt is
    read once; a long list of candidates costs most.
    """
    own = outcomes["self_splice"]
    candidates = [p.decision.admissible for p in prompts] if candidates is None else candidates
    place = {kind: {int(i): k for k, i in enumerate(found.index)} for kind, found in outcomes.items()}
    rows: dict[str, list] = {kind: [] for kind in outcomes}
    for i in [int(i) for i in own.index if candidates[i]][:most]:
        here, where = (
            [kind for kind in outcomes if i in place[kind]],
            {a: k for k, a in enumerate(candidates[i])},
        )
        likely = preferences(
            model, prompts[i], candidates[i], [outcomes[kind].leads[place[kind][i]] for kind in here]
        )
        before = likely[here.index("self_splice")]
        for kind, after in zip(here, likely):
            at = [where.get(side[place[kind][i]]) for side in (outcomes[kind].own, outcomes[kind].argued)]
            masses = [np.nan if k is None else p[k] for k in at for p in (after, before)]
            rows[kind].append((i, abs(after - before).sum() / 2, *masses))
    columns = {kind: np.array(found, dtype=float).reshape(-1, 6).T for kind, found in rows.items()}
    return {kind: Shift(index.astype(int), *rest) for kind, (index, *rest) in columns.items()}


def contrast(removed: Outcome, substituted: Outcome) -> Contrast:
    """Hold flips without a trace (`empty`, `filler`) against flips under another one (`other_state`), on the same decisions.

    Source: arXiv 2603.01437, which reports 2-14 % for removal and 52-78 % for a wrong trace.
    """
    index, a, b = np.intersect1d(removed.index, substituted.index, return_indices=True)
    return Contrast(
        index, ~removed.keep[a], ~substituted.keep[b], ~(removed.unparsed[a] | substituted.unparsed[b])
    )


def likelier(logp: Float[np.ndarray, "decision"]) -> Bool[np.ndarray, "decision"]:
    """Which traces are the likelier half, by log p(trace | prompt) per token: at the median or above."""
    return logp >= np.median(logp)
