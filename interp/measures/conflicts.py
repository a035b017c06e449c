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

from interp.engine.decoding import LIMITS, Said, format_of, preferences, said
from interp.engine.generation import continue_each
from interp.models.turns import measured
from interp.prompts.format import Prompt
from interp.system.choices import Arm

ARMS: tuple[Arm, ...] = get_args(Arm)
FILLER = "."
#: Traces drawn at each decision, at temperature 1, in search of one that leads to another action.
SAMPLES = 4


@dataclass(frozen=True)
class Outcome:
    """One arm at the decisions where it applies (`index` into the prompts), each array [decision].

    `action`: what was done (None: unparsed); `own`: the prompt's own CoT action; `argued`: the action the trace argues
    for (None where it argues for none); `leaked`: the trace named that action word for word before it was stripped;
    `logp`: log p(trace and its closing tags | prompt) per token, in nats (an alien trace ignored may be competence), and
    `logp_own`, the own trace's at the same decisions; `leads`: what was put behind the prompt, ids up to the opened action tag.
    """

    arm: str
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
    """How far one arm's trace moves the distribution over the candidate actions from where the own trace has it, each array [decision].

    `index` into the prompts; `distance`: total variation, 0 to 1; `own` and `argued`: probability of the own action and of the
    argued one behind the arm's trace, `own_before` and `argued_before` behind the own trace (NaN where the action is no
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
    """Flips of the own action where its trace was removed and where it was replaced, at the decisions that both arms have, each [decision].

    An action that did not parse is a flip; `parsed`: both arms' actions did.
    """

    index: Int[np.ndarray, "decision"]
    removed: Bool[np.ndarray, "decision"]
    substituted: Bool[np.ndarray, "decision"]
    parsed: Bool[np.ndarray, "decision"]


def sentences(trace: str) -> list[str]:
    """The sentences of a trace."""
    return re.split(r"(?<=[.!?])\s+", trace)


def complete(prompts: Sequence[Prompt], decoded: Sequence[Said]) -> list[int]:
    """The decisions whose decoding in mode `cot` has a trace, an opened action tag and an action."""
    return [
        i
        for i, s in enumerate(decoded)
        if s.action is not None and s.trace and prompts[i].format.lead_ids(s.ids)
    ]


def strip_action(trace: str, action: str) -> str:
    """The trace without the sentences that name the action word for word (unchanged where none does)."""
    whole = sentences(trace)
    kept = [s for s in whole if not re.search(rf"\b{re.escape(action)}\b", s, re.IGNORECASE)]
    return trace if len(kept) == len(whole) else " ".join(kept)


def donor(
    index: int,
    prompts: Sequence[Prompt],
    decoded: Sequence[Said],
    rng: np.random.Generator,
    listed: bool = True,
) -> int | None:
    """Another episode's decision whose own action could be taken here too, but is not the one taken here.

    listed: what could be taken here is what the decision lists; else any action that parsed.
    """
    here = prompts[index].decision
    options = [
        i
        for i, (p, s) in enumerate(zip(prompts, decoded))
        if (s.action in here.admissible if listed else s.action is not None)
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
) -> list[list[Said]]:
    """`samples` decodings of each prompt drawn at temperature 1, each prompt read once."""
    fmt = format_of(model, prompts)
    out = continue_each(
        model,
        [p.ids for p in prompts],
        {str(k): [fmt.opening("cot")] * len(prompts) for k in range(samples)},
        fmt.ended("cot"),
        max_new_tokens,
        progress=progress,
        temperature=1.0,
        seed=seed,
    )
    return [[said(fmt, found[i].ids, "cot", parser) for found in out.values()] for i in range(len(prompts))]


def filler(fmt, trace: str) -> list[int]:
    """Full stops of as many tokens as a trace has, between the trace's tags, up to the opened action tag."""
    length = len(fmt.encode(trace))
    return fmt.with_trace((fmt.encode(FILLER) * length)[:length])


def _trace(
    arm: str, index: int, prompts, decoded, drawn, rng, listed
) -> tuple[list[int], str | None, bool] | None:
    """What an arm puts behind the prompt up to the opened action, the action it argues for, and whether it leaked it.

    None where there is none: no donor, none among the drawn that leads elsewhere, or one whose trace says nothing but its action.
    """
    fmt, own = prompts[index].format, decoded[index]
    if arm == "self_splice":
        return fmt.tail(fmt.lead_ids(own.ids)), own.action, False
    if arm == "truncated":
        whole = sentences(own.trace)
        return fmt.with_trace(" ".join(whole[: max(1, len(whole) // 2)])), None, False
    if arm == "shuffled_words":
        return fmt.with_trace(" ".join(rng.permutation(own.trace.split()))), None, False
    if arm == "filler":
        return filler(fmt, own.trace), None, False
    if arm == "empty":
        return fmt.with_trace(""), None, False
    if arm == "resampled":
        other = next(
            (s for s in drawn[index] if s.action is not None and s.trace and s.action != own.action), None
        )
    else:
        place = donor(index, prompts, decoded, rng, listed)
        other = None if place is None else decoded[place]
    if other is None:
        return None
    bare = strip_action(other.trace, other.action)
    return (fmt.with_trace(bare), other.action, bare != other.trace) if bare else None


@measured
def conflict(
    model,
    prompts: Sequence[Prompt],
    decoded: Sequence[Said],
    arms: Sequence[str] = ARMS,
    *,
    parser: Callable[[str], str | None] = str,
    listed: bool = True,
    seed: int = 0,
    max_new_tokens: int = 24,
    trace_tokens: int = LIMITS["cot"],
    progress: bool = False,
) -> dict[str, Outcome]:
    """Put the arms' traces behind the prompts and decode the action: one Outcome for each arm.

    Arms: `self_splice` (own trace, ids as decoded: the action must come back exactly), `truncated` (first half of the own
    trace), `other_state` (another episode's trace, its action stripped), `resampled` (a trace that the model itself drew here at
    temperature 1 on the way to another action, one of `SAMPLES` of at most `trace_tokens`, its action stripped), `shuffled_words`, `filler` (full stops, equal
    length), `empty`. `self_splice` is always among them. Decisions whose own decoding did not parse, or that find no donor with
    words beside its action, are left out; an arm without any has empty arrays. listed: as in `donor`.
    Raises ValueError for an arm that is not known.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise ValueError(f"There is no arm {unknown[0]!r}: the arms are {', '.join(ARMS)}.")
    arms = tuple(dict.fromkeys(("self_splice", *arms)))
    usable = complete(prompts, decoded)
    traces, variants, drawn = {}, {}, {}
    if "resampled" in arms and usable:
        drawn = dict(
            zip(
                usable,
                resample(model, [prompts[i] for i in usable], parser, SAMPLES, seed, trace_tokens, progress),
            )
        )
    for arm in arms:
        rng = np.random.default_rng(seed)
        traces[arm] = {
            i: t for i in usable if (t := _trace(arm, i, prompts, decoded, drawn, rng, listed)) is not None
        }
        variants[arm] = [traces[arm][i][0] if i in traces[arm] else None for i in range(len(prompts))]
    fmt = format_of(model, prompts)
    out = continue_each(
        model, [p.ids for p in prompts], variants, fmt.ended("prompt"), max_new_tokens, progress=progress
    )
    found = {}
    for arm in arms:
        index = list(traces[arm])
        words = [said(fmt, out[arm][i].ids, "prompt", parser) for i in index]
        found[arm] = Outcome(
            arm,
            np.array(index, dtype=int),
            [w.action for w in words],
            [decoded[i].action for i in index],
            [traces[arm][i][1] for i in index],
            np.array([traces[arm][i][2] for i in index], dtype=bool),
            np.array([out[arm][i].logp for i in index]),
            np.array([out["self_splice"][i].logp for i in index]),
            [traces[arm][i][0] for i in index],
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
    """Read the distribution over the candidate actions behind every arm's trace, at the first `most` decisions that have some.

    outcomes: what `conflict` gave for these prompts. candidates: for each prompt; the admissible actions where None. Each prompt is
    read once; a long list of candidates costs most.
    """
    own = outcomes["self_splice"]
    candidates = [p.decision.admissible for p in prompts] if candidates is None else candidates
    place = {arm: {int(i): k for k, i in enumerate(found.index)} for arm, found in outcomes.items()}
    rows: dict[str, list] = {arm: [] for arm in outcomes}
    for i in [int(i) for i in own.index if candidates[i]][:most]:
        here, where = (
            [arm for arm in outcomes if i in place[arm]],
            {a: k for k, a in enumerate(candidates[i])},
        )
        likely = preferences(
            model, prompts[i], candidates[i], [outcomes[arm].leads[place[arm][i]] for arm in here]
        )
        before = likely[here.index("self_splice")]
        for arm, after in zip(here, likely):
            at = [where.get(side[place[arm][i]]) for side in (outcomes[arm].own, outcomes[arm].argued)]
            masses = [np.nan if k is None else p[k] for k in at for p in (after, before)]
            rows[arm].append((i, abs(after - before).sum() / 2, *masses))
    columns = {arm: np.array(found, dtype=float).reshape(-1, 6).T for arm, found in rows.items()}
    return {arm: Shift(index.astype(int), *rest) for arm, (index, *rest) in columns.items()}


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
