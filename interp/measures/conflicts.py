"""Conflicting traces: the model's own prompt with a trace that it did not write, and what it then does.

>>> outcomes = conflict(model, prompts, decode(model, prompts, "cot"))
>>> outcomes["other_state"].follow.mean()
>>> outcomes["self_splice"].keep.all()                                # True: the own trace spliced back
>>> shifts(model, prompts, outcomes, most=20)["other_state"].distance # of distributions over actions
>>> contrast(outcomes["empty"], outcomes["other_state"]).removed      # flips without a trace
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.engine.decoding import LIMITS, Completion, format_of, parse_completion, preferences
from interp.engine.generation import continue_each
from interp.engine.reading import Memory, memory_of
from interp.measures.rewriting import Phrases, mistaken, paraphrased, sentences
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.prompts.format import Prompt, PromptFormat
from interp.results.shown import Plotted, Shown, counted, warn_incomplete
from interp.system.choices import Inserted
from interp.system.renamed import renamed_keywords
from interp.tasks.episodes import Decision

#: As `interp.environments.base.Environment.swap_candidates`.
SwapCandidates = Callable[[Decision, Sequence[Decision]], Sequence[tuple[str, str]]]
INSERTED_TRACES: tuple[Inserted, ...] = get_args(Inserted)
FILLER = "."
#: Traces drawn at each decision, at temperature 1, in search of one that leads to another action.
SAMPLES = 4


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Plotted):
    """One kind of inserted trace at the decisions where it applies.

    `interp.plots.results.plot(outcomes)` draws all that `conflict` gives side by side.
    """

    picture: ClassVar[str] = "outcomes"
    inserted_trace: str
    index: Int[np.ndarray, "decision"]
    """Into the prompts."""
    action: list[str | None]
    """What was done (None: unparsed)."""
    own: list[str]
    """The prompt's own CoT action."""
    argued: list[str | None]
    """The action the trace argues for (None where it argues for none)."""
    leaked: Bool[np.ndarray, "decision"]
    """The trace named that action word for word before it was stripped."""
    logp: Float[np.ndarray, "decision"]
    """log p(trace and its closing tags | prompt) per token, in nats: ignoring an alien trace may be right."""
    logp_own: Float[np.ndarray, "decision"]
    """The own trace's at the same decisions."""
    leads: list[list[int]]
    """What was put after the prompt, ids up to the opened action tag."""

    @property
    def keep(self) -> Bool[np.ndarray, "decision"]:
        """Where the own action stays."""
        return np.array([a == own for a, own in zip(self.action, self.own)], dtype=bool)

    @property
    def follow(self) -> Bool[np.ndarray, "decision"]:
        """Where the action is the one that the trace argues for."""
        return np.array([a is not None and a == g for a, g in zip(self.action, self.argued)], dtype=bool)

    @property
    def unparsed(self) -> Bool[np.ndarray, "decision"]:
        """Where the action did not parse."""
        return np.array([a is None for a in self.action], dtype=bool)

    def summary(self) -> str:
        shares = "".join(
            f", {name} {getattr(self, name).mean():.2f}"
            for name in ("keep", "follow", "unparsed")
            if len(self.index)
        )
        return f"{self.inserted_trace}, {counted(len(self.index), 'decision')}{shares}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each decision: what was done after the trace, and what that is to its two actions."""
        names = ("action", "own", "argued", "keep", "follow", "unparsed", "leaked", "logp", "logp_own")
        columns = {name: getattr(self, name) for name in names}
        return pd.DataFrame(dict(inserted_trace=self.inserted_trace, decision=self.index, **columns))


@dataclass(frozen=True, eq=False, repr=False)
class Shift(Shown):
    """How far one kind of inserted trace moves the distribution over the candidate actions.

    `index` into the prompts; `distance` from the distribution after the own trace: total variation, 0 to 1;
    `own` and `argued`: probability of the own action and of the argued one after the inserted trace,
    `own_before` and `argued_before` after the own trace (NaN where the action is no candidate, or where the
    trace argues for none).
    """

    index: Int[np.ndarray, "decision"]
    distance: Float[np.ndarray, "decision"]
    own: Float[np.ndarray, "decision"]
    own_before: Float[np.ndarray, "decision"]
    argued: Float[np.ndarray, "decision"]
    argued_before: Float[np.ndarray, "decision"]

    def summary(self) -> str:
        return counted(len(self.index), "decision")

    def to_frame(self) -> pd.DataFrame:
        """A row for each decision."""
        return pd.DataFrame(vars(self)).rename(columns=dict(index="decision"))


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Shown):
    """Flips of the own action where its trace was removed and where it was replaced.

    Decisions are those that have both. An action that did not parse is a flip; `parsed`: both actions did.
    """

    index: Int[np.ndarray, "decision"]
    removed: Bool[np.ndarray, "decision"]
    substituted: Bool[np.ndarray, "decision"]
    parsed: Bool[np.ndarray, "decision"]

    def summary(self) -> str:
        flips = f"flips {self.removed.mean():.2f} removed, {self.substituted.mean():.2f} substituted"
        return f"{counted(len(self.index), 'decision')}{f', {flips}' if len(self.index) else ''}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each decision."""
        return pd.DataFrame(vars(self)).rename(columns=dict(index="decision"))


class InsertedTrace(NamedTuple):
    """What an inserted trace puts after the prompt, the action it argues for, and whether it named it."""

    prefix: list[int]
    argued: str | None
    leaked: bool


def complete(prompts: Sequence[Prompt], decoded: Sequence[Completion]) -> list[int]:
    """The decisions whose decoding in mode `cot` has a trace, an opened action tag and an action."""
    return [
        i
        for i, completion in enumerate(decoded)
        if completion.action is not None
        and completion.trace
        and prompts[i].format.decoded_prefix(completion.ids)
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

    def fits(prompt: Prompt, completion: Completion) -> bool:
        action = completion.action
        possible = action in here.admissible if closed_actions else action is not None
        elsewhere = prompt.decision.episode != here.episode
        return possible and action != decoded[index].action and bool(completion.trace) and elsewhere

    options = [i for i, pair in enumerate(zip(prompts, decoded)) if fits(*pair)]
    return int(rng.choice(options)) if options else None


@measured
def resample(
    model: HookedModel,
    prompts: Sequence[Prompt],
    parser: Callable[[str], str | None] = str,
    samples: int = SAMPLES,
    seed: int | Sequence[int] = 0,
    max_new_tokens: int = LIMITS["cot"],
    progress: bool = False,
    memory: Memory | None = None,
    names: Sequence[Hashable] = (),
) -> list[list[Completion]]:
    """`samples` decodings of each prompt drawn at temperature 1, each prompt read once.

    seed: of all draws, or one for each prompt. memory, names: as `continue_each` has them.
    """
    fmt = format_of(model, prompts)
    opening = [fmt.mode_prefix("cot")] * len(prompts)
    out = continue_each(
        model,
        [p.ids for p in prompts],
        {str(k): opening for k in range(samples)},
        fmt.ended("cot"),
        max_new_tokens,
        progress=progress,
        memory=memory,
        names=names,
        temperature=1.0,
        seed=seed,
    )
    return [
        [parse_completion(fmt, sample[i].ids, "cot", parser) for sample in out.values()]
        for i in range(len(prompts))
    ]


def filler(fmt: PromptFormat, trace: str) -> list[int]:
    """Full stops of as many tokens as a trace has, between the trace's tags, up to the opened action tag."""
    length = len(fmt.encode(trace))
    return fmt.with_trace((fmt.encode(FILLER) * length)[:length])


@dataclass(frozen=True)
class _Source:
    """What inserted traces are made of. `drawn`: sampled decodings of each decision."""

    prompts: Sequence[Prompt]
    decoded: Sequence[Completion]
    drawn: Mapping[int, Sequence[Completion]]
    closed_actions: bool
    swap_candidates: SwapCandidates | None = None
    phrases: Phrases = ()

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """Of the prompts, one object for all calls of `swap_candidates`."""
        return tuple(prompt.decision for prompt in self.prompts)

    def every(self, kind: str, indices: Sequence[int], seed: int) -> dict[int, InsertedTrace]:
        """The inserted traces of a kind, at the decisions that have one."""
        rng = np.random.default_rng(seed)
        traces = {i: self.made(kind, i, rng) for i in indices}
        return {i: trace for i, trace in traces.items() if trace is not None}

    def made(self, kind: str, index: int, rng: np.random.Generator) -> InsertedTrace | None:
        """The inserted trace of a kind at one decision; None where there is none.

        That is: no donor, none among the drawn that leads elsewhere, one whose trace says nothing but its
        action, no name to mistake, or no other words.
        """
        fmt, own = self.prompts[index].format, self.decoded[index]
        trace = own.trace or ""
        if kind == "self_splice":
            return InsertedTrace(fmt.action_prefix(fmt.decoded_prefix(own.ids)), own.action, False)
        if kind == "truncated":
            whole = sentences(trace)
            return InsertedTrace(fmt.with_trace(" ".join(whole[: max(1, len(whole) // 2)])), None, False)
        if kind == "mistake":
            return self._mistake(index, rng)
        if kind == "paraphrase":
            again = paraphrased(trace, self.phrases, rng)
            return None if again is None else InsertedTrace(fmt.with_trace(again), None, False)
        if kind == "shuffled_words":
            return InsertedTrace(fmt.with_trace(" ".join(rng.permutation(trace.split()))), None, False)
        if kind == "filler":
            return InsertedTrace(filler(fmt, trace), None, False)
        if kind == "empty":
            return InsertedTrace(fmt.with_trace(""), None, False)
        other = self._other(kind, index, rng)
        if other is None or other.trace is None or other.action is None:
            return None
        bare = strip_action(other.trace, other.action)
        return InsertedTrace(fmt.with_trace(bare), other.action, bare != other.trace) if bare else None

    def _mistake(self, index: int, rng: np.random.Generator) -> InsertedTrace | None:
        """The own trace with one name replaced, without what spells out the action that it argues for."""
        prompt, own = self.prompts[index], self.decoded[index]
        decision, action = prompt.decision, own.action or ""
        swaps: Sequence[tuple[str, str]] = ()
        if self.swap_candidates is not None:
            swaps = self.swap_candidates(replace(decision, reference=action), self.decisions)

        def possible(changed: str) -> bool:
            return changed in decision.admissible or not self.closed_actions

        text = " ".join(str(m.get("content") or "") for m in decision.messages if m["role"] != "agent")
        mistake = mistaken(own.trace or "", action, text, rng, swaps, possible)
        if mistake is None:
            return None
        bare = strip_action(mistake.trace, mistake.action) if mistake.action else mistake.trace
        leaked = bare != mistake.trace
        return InsertedTrace(prompt.format.with_trace(bare), mistake.action, leaked) if bare else None

    def _other(self, kind: str, index: int, rng: np.random.Generator) -> Completion | None:
        """The decoding whose trace is inserted: a drawn one that leads elsewhere, or another decision's."""
        if kind == "resampled":
            own = self.decoded[index].action
            drawn = (s for s in self.drawn[index] if s.action is not None and s.trace and s.action != own)
            return next(drawn, None)
        other = donor(index, self.prompts, self.decoded, rng, self.closed_actions)
        return None if other is None else self.decoded[other]


@renamed_keywords(arms="inserted_traces", listed="closed_actions")
@measured
def conflict(
    model: HookedModel,
    prompts: Sequence[Prompt],
    decoded: Sequence[Completion],
    inserted_traces: Sequence[str] = INSERTED_TRACES,
    *,
    parser: Callable[[str], str | None] = str,
    closed_actions: bool = True,
    swap_candidates: SwapCandidates | None = None,
    phrases: Phrases = (),
    seed: int = 0,
    max_new_tokens: int = 24,
    trace_tokens: int = LIMITS["cot"],
    progress: bool = False,
) -> dict[str, Outcome]:
    """Put traces after the prompts and decode the action: one Outcome for each kind of inserted trace.

    Decisions whose own decoding did not parse, or without such a trace, are left out, with a warning.

    Args:
        inserted_traces: `self_splice` (own trace, ids as decoded: the action must come back exactly; always
            among them), `truncated` (first half of the own trace), `other_state` (another episode's trace,
            its action stripped), `resampled` (a trace that the model drew here at temperature 1 on the way to
            another action, one of `SAMPLES`, its action stripped), `mistake` and `paraphrase` (the own trace
            rewritten, `interp.measures.rewriting`), `shuffled_words`, `filler` (equally long), `empty`.
        closed_actions: as in `donor`.
        swap_candidates, phrases: names that a mistake exchanges, and templates that say the same.
        trace_tokens: most tokens of a `resampled` trace.

    Raises:
        ValueError: for an unknown kind.
    """
    kinds, usable = _kinds(inserted_traces), complete(prompts, decoded)
    fmt, ids, names = format_of(model, prompts), [p.ids for p in prompts], range(len(prompts))
    memory = memory_of(model, ids) if "resampled" in kinds else None
    drawn: dict[int, list[Completion]] = {}
    if "resampled" in kinds and usable:
        own = [prompts[i] for i in usable]
        samples = resample(model, own, parser, SAMPLES, seed, trace_tokens, progress, memory, usable)
        drawn = dict(zip(usable, samples))
    source = _Source(prompts, decoded, drawn, closed_actions, swap_candidates, phrases)
    traces = {kind: source.every(kind, usable, seed) for kind in kinds}
    variants = {
        kind: [made[i].prefix if i in made else None for i in range(len(prompts))]
        for kind, made in traces.items()
    }
    out = continue_each(
        model, ids, variants, fmt.ended("prompt"), max_new_tokens, None, progress, memory, names
    )
    acted = {
        kind: [parse_completion(fmt, out[kind][i].ids, "prompt", parser).action for i in made]
        for kind, made in traces.items()
    }
    after_own = {i: (decoded[i].action or "", out["self_splice"][i].logp) for i in usable}
    outcomes = {
        kind: _outcome(kind, made, acted[kind], [out[kind][i].logp for i in made], after_own)
        for kind, made in traces.items()
    }
    warn_left_out(len(usable), len(prompts), [outcome.unparsed for outcome in outcomes.values()])
    return outcomes


def _outcome(
    kind: str,
    made: Mapping[int, InsertedTrace],
    action: list[str | None],
    logp: list[float],
    own: Mapping[int, tuple[str, float]],
) -> Outcome:
    """One kind's outcome; `action` and `logp` of each decision in `made`, `own` those after the own trace."""
    return Outcome(
        inserted_trace=kind,
        index=np.array(list(made), dtype=int),
        action=action,
        own=[own[i][0] for i in made],
        argued=[trace.argued for trace in made.values()],
        leaked=np.array([trace.leaked for trace in made.values()], dtype=bool),
        logp=np.array(logp, dtype=float),
        logp_own=np.array([own[i][1] for i in made], dtype=float),
        leads=[trace.prefix for trace in made.values()],
    )


def warn_left_out(usable: int, prompts: int, unparsed: Sequence[Bool[np.ndarray, "decision"]] = ()) -> None:
    """Warn of decisions that are left out and of actions that did not parse, with the remedy."""
    sentences = []
    if usable < prompts:
        sentences.append(
            f"{prompts - usable} of {prompts} decisions are left out: their own decoding has no trace or no "
            "action (raise max_new_tokens in decode, or give the style the model was trained in)."
        )
    failures, actions = sum(int(each.sum()) for each in unparsed), sum(map(len, unparsed))
    if failures:
        sentences.append(
            f"{failures} of {actions} actions after inserted traces did not parse (they count as unparsed, "
            "neither kept nor followed; raise max_new_tokens if they were cut short)."
        )
    if sentences:
        warn_incomplete(" ".join(sentences))


def _kinds(inserted_traces: Sequence[str]) -> tuple[str, ...]:
    """The kinds to insert, each once, `self_splice` first."""
    unknown = [kind for kind in inserted_traces if kind not in INSERTED_TRACES]
    if unknown:
        raise ValueError(
            f"There is no inserted trace {unknown[0]!r}: "
            f"the inserted traces are {', '.join(INSERTED_TRACES)}."
        )
    return tuple(dict.fromkeys(("self_splice", *inserted_traces)))


@measured
def shifts(
    model: HookedModel,
    prompts: Sequence[Prompt],
    outcomes: Mapping[str, Outcome],
    most: int | None = None,
    candidates: Sequence[Sequence[str]] | None = None,
) -> dict[str, Shift]:
    """Read the distribution over the candidate actions after every inserted trace.

    The prompts are read together, each once; a long list of candidates costs most.

    Args:
        outcomes: what `conflict` gave for these prompts.
        most: only so many of the first decisions that have candidates.
        candidates: for each prompt; the admissible actions where None.
    """
    candidates = [p.decision.admissible for p in prompts] if candidates is None else candidates
    row_of = {kind: {int(i): k for k, i in enumerate(each.index)} for kind, each in outcomes.items()}
    rows: dict[str, list] = {kind: [] for kind in outcomes}
    chosen = [int(i) for i in outcomes["self_splice"].index if candidates[i]][:most]
    kinds = {i: [kind for kind in outcomes if i in row_of[kind]] for i in chosen}
    distributions = preferences(
        model,
        [prompts[i] for i in chosen],
        [candidates[i] for i in chosen],
        [[outcomes[kind].leads[row_of[kind][i]] for kind in kinds[i]] for i in chosen],
    )
    for i, likely in zip(chosen, distributions):
        here = kinds[i]
        position: dict[str | None, int] = {action: k for k, action in enumerate(candidates[i])}
        before = likely[here.index("self_splice")]
        for kind, after in zip(here, likely):
            masses = []
            for named in (outcomes[kind].own, outcomes[kind].argued):
                k = position.get(named[row_of[kind][i]])
                masses += [np.nan, np.nan] if k is None else [after[k], before[k]]
            rows[kind].append((i, abs(after - before).sum() / 2, *masses))
    columns = {kind: np.array(each, dtype=float).reshape(-1, 6).T for kind, each in rows.items()}
    return {kind: Shift(index.astype(int), *rest) for kind, (index, *rest) in columns.items()}


def contrast(removed: Outcome, substituted: Outcome) -> Contrast:
    """Compare flips without a trace (`empty`, `filler`) with flips under another one (`other_state`).

    Source: arXiv 2603.01437, which reports 2-14 % for removal and 52-78 % for a wrong trace.
    """
    index, a, b = np.intersect1d(removed.index, substituted.index, return_indices=True)
    parsed = ~(removed.unparsed[a] | substituted.unparsed[b])
    return Contrast(index, ~removed.keep[a], ~substituted.keep[b], parsed)


def likelier(logp: Float[np.ndarray, "decision"]) -> Bool[np.ndarray, "decision"]:
    """Which traces are the likelier half, by log p(trace | prompt) per token: at the median or above."""
    return logp >= np.median(logp)
