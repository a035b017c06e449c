"""What the model does at a decision: free decoding in three modes, and forced choice among candidates.

>>> said = decode(model, prompts, mode="cot")
>>> said[0].trace, said[0].action
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from interp.engine.generation import Memory, continue_each
from interp.engine.packing import score, score_whole
from interp.models.turns import measured
from interp.prompts.format import Mode, Prompt, PromptFormat, same_format


@dataclass(frozen=True)
class Completion:
    """One decoding: generated `ids`, `trace` (None without one), and `action` (None where it did not parse)."""

    ids: tuple[int, ...]
    trace: str | None
    action: str | None


#: Tokens of candidates that are read at once: their mask has the square of it.
PACK_TOKENS = 1024
#: Tokens after which a decoding that has not closed its action is given up.
LIMITS = {"cot": 96, "prompt": 24, "empty_think": 24}


def stop_tokens(model) -> list[int]:
    """Ids at which a model's own generation configuration ends a turn (none without one)."""
    named = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    return [] if named is None else [int(i) for i in (named if isinstance(named, (list, tuple)) else [named])]


def format_of(model, prompts: Sequence[Prompt]) -> PromptFormat:
    """The one format of prompts, which ends a turn where the model's generation configuration does too; raises ValueError as `same_format`."""
    return same_format(prompts).stopping_at(stop_tokens(model))


@measured
def decode_modes(
    model,
    prompts: Sequence[Prompt],
    modes: Sequence[Mode],
    *,
    parser: Callable[[str], str | None] = str,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
    memory: Memory | None = None,
    engine=None,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, list[Completion]]:
    """Decode in several modes, each prompt read once; as `decode`, for each mode.

    memory: kept between calls, lets an episode's next prompt be read only from where it extends the last one. engine: an
    `interp.engine.vllm_backend.Engine` over the same checkpoint, which generates instead.
    """
    fmt = format_of(model, prompts)
    openings = {mode: fmt.mode_prefix(mode) for mode in modes}
    given = max_new_tokens if isinstance(max_new_tokens, Mapping) else dict.fromkeys(modes, max_new_tokens)
    limits = {mode: LIMITS[mode] if given[mode] is None else given[mode] for mode in modes}
    if any(limit < 1 for limit in limits.values()):
        raise ValueError(f"A decoding takes at least one token: max_new_tokens is {max_new_tokens}.")
    if engine is not None:
        if temperature:
            raise ValueError(
                "The vLLM engine decodes greedily here: leave the temperature at 0, or decode without it."
            )
        ends = {mode: fmt.stops(mode) for mode in modes}
        found = engine.continue_each(
            [p.ids for p in prompts], openings, limits, fmt.style.close_action.strip(), ends
        )
        return {
            mode: [
                parse_completion(fmt, _up_to_end(ids, fmt.ended(mode)), mode, parser) for ids in found[mode]
            ]
            for mode in modes
        }
    variants = {mode: [ids] * len(prompts) for mode, ids in openings.items()}
    out = continue_each(
        model,
        [p.ids for p in prompts],
        variants,
        {m: fmt.ended(m) for m in modes},
        limits,
        progress=progress,
        memory=memory,
        names=[p.decision.episode for p in prompts],
        temperature=temperature,
        seed=seed,
    )
    return {mode: [parse_completion(fmt, c.ids, mode, parser) for c in out[mode]] for mode in modes}


def _up_to_end(ids: Sequence[int], ended: Callable[[Sequence[int]], bool]) -> Sequence[int]:
    """Generated ids up to where a turn ended, which an engine that knows single tokens only may have gone past."""
    return next((ids[:n] for n in range(1, len(ids)) if ended(ids[:n])), ids)


def decode(
    model,
    prompts: Sequence[Prompt],
    mode: Mode = "cot",
    *,
    parser: Callable[[str], str | None] = str,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
    memory: Memory | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Completion]:
    """Decode in one mode, greedily unless a `temperature` is given; `parser` turns the text between the action tags into an action, or None.

    `max_new_tokens` (one number, or one for each mode) is `LIMITS[mode]` unless given; `seed`: of what is drawn. Raises
    ValueError for an empty list of prompts, prompts of several formats, fewer than one token, or a temperature below 0.
    """
    return decode_modes(
        model,
        prompts,
        [mode],
        parser=parser,
        max_new_tokens=max_new_tokens,
        progress=progress,
        memory=memory,
        temperature=temperature,
        seed=seed,
    )[mode]


@measured
def draw(
    model,
    prompts: Sequence[Prompt],
    *,
    parser: Callable[[str], str | None] = str,
    seed: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
) -> list[Completion]:
    """As `decode` in mode `cot` with each trace drawn at `temperature`, and its action the likeliest one after it.

    For agents whose likeliest trace is no sample of what they do. Where a trace opens no action, what was drawn is returned.
    """
    fmt = format_of(model, prompts)
    drawn = decode(
        model,
        prompts,
        "cot",
        parser=parser,
        max_new_tokens=max_new_tokens,
        progress=progress,
        temperature=temperature,
        seed=seed,
    )
    leads = [fmt.decoded_prefix(s.ids) for s in drawn]
    limit = max_new_tokens["prompt"] if isinstance(max_new_tokens, Mapping) else LIMITS["prompt"]
    out = continue_each(
        model,
        [p.ids for p in prompts],
        {"cot": [lead and fmt.action_prefix(lead) for lead in leads]},
        fmt.ended("prompt"),
        limit,
        progress=progress,
    )
    return [
        parse_completion(fmt, [*lead, *c.ids], "cot", parser) if lead else s
        for s, lead, c in zip(drawn, leads, out["cot"])
    ]


def parse_completion(
    fmt, ids: Sequence[int], mode: Mode, parser: Callable[[str], str | None] = str
) -> Completion:
    """Parse what was generated after a mode's opening."""
    trace, action = fmt.parse(fmt.text(ids), mode)
    return Completion(tuple(ids), trace, parser(action) if action else None)


@measured
def choose(
    model, prompt: Prompt, candidates: Sequence[str], traces: Sequence[str | Sequence[int] | None] = (None,)
) -> torch.Tensor:
    """Forced choice at one decision: log-probability of every candidate action [trace, candidate, (summed, per token)], in nats.

    For a trace of None the action tag stands right at the boundary; for a text after that trace; for ids, after those as
    they were decoded up to the opened action (`PromptFormat.decoded_prefix`). The closing tag counts, so that a candidate is not preferred for being another's beginning. The prompt is read once.
    Raises ValueError where there are no candidates.
    """
    return _choose(model, prompt, candidates, [prompt.format.action_prefix(trace) for trace in traces])


def _choose(model, prompt: Prompt, candidates: Sequence[str], leads: Sequence[Sequence[int]]) -> torch.Tensor:
    """As `choose`, after ids from the boundary up to the opened action tag."""
    if not candidates:
        raise ValueError(f"Decision {prompt.decision.id} lists no admissible actions to choose from.")
    found, cache = [], None
    actions = [prompt.format.action_ids(c) for c in candidates]
    scored = [len(a) for a in actions]
    for lead in leads:
        longest = len(prompt.ids) + len(lead) + max(scored)
        model.check_length(longest)
        if model.rereads(longest):
            found.append(score_whole(model, [*prompt.ids, *lead], actions, scored))
            continue
        cache = model.read(prompt.ids) if cache is None else cache
        held = model.read(lead[:-1], model.fork(cache))
        packs = [actions[part] for part in packs_of([1 + n for n in scored])]
        found.append(
            torch.cat(
                [score(model, held, [[lead[-1], *a] for a in pack], [len(a) for a in pack]) for pack in packs]
            )
        )
    lengths = torch.tensor(scored)
    return torch.stack([torch.stack([sums, sums / lengths], -1) for sums in found])


def packs_of(lengths: Sequence[int]) -> list[slice]:
    """Slices of sequences that have at most PACK_TOKENS tokens together, or are one alone."""
    starts, held = [0], 0
    for number, length in enumerate(lengths):
        if held and held + length > PACK_TOKENS:
            starts.append(number)
            held = 0
        held += length
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(lengths)])]


@measured
def preferences(
    model, prompt: Prompt, candidates: Sequence[str], traces: Sequence[Sequence[int]]
) -> Float[np.ndarray, "trace candidate"]:
    """The distribution over candidate actions after each trace: the forced choice by summed log-probability, normalised.

    traces: ids from the boundary up to the opened action tag, a mode's opening with them. Raises ValueError where there are no candidates.
    """
    return _choose(model, prompt, candidates, traces)[..., 0].double().softmax(-1).numpy()
