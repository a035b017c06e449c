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

from interp.generation import Memory, continue_each
from interp.packing import score, score_whole
from interp.prompts import Mode, Prompt
from interp.turns import measured


@dataclass(frozen=True)
class Said:
    """One decoding: generated `ids`, `trace` (None without one), and `action` (None where it did not parse)."""

    ids: tuple[int, ...]
    trace: str | None
    action: str | None


#: Tokens after which a decoding that has not closed its action is given up.
LIMITS = {"cot": 96, "prompt": 24, "empty_think": 24}


@measured
def decode_modes(model, prompts: Sequence[Prompt], modes: Sequence[Mode], *, parser: Callable[[str], str | None] = str,
                 max_new_tokens: int | Mapping[str, int] | None = None, progress: bool = False, memory: Memory | None = None, engine=None,
                 temperature: float = 0.0, seed: int = 0) -> dict[str, list[Said]]:
    """Decode in several modes, each prompt read once; as `decode`, for each mode.

    memory: kept between calls, lets an episode's next prompt be read only from where it extends the last one. engine: an
    `interp.vllm.Engine` over the same checkpoint, which generates instead.
    """
    if not prompts:
        raise ValueError("There is nothing to decode: the list of prompts is empty.")
    fmt = prompts[0].format
    openings = {mode: fmt.opening(mode) for mode in modes}
    limits = {mode: max_new_tokens[mode] if isinstance(max_new_tokens, Mapping) else LIMITS[mode] if max_new_tokens is None else max_new_tokens
              for mode in modes}
    if none := [n for n in limits.values() if n < 1]:
        raise ValueError(f"max_new_tokens is a number from 1 on, not {none[0]}.")
    if engine is not None:
        if temperature:
            raise ValueError("The vLLM engine decodes greedily here: leave the temperature at 0, or decode without it.")
        found = engine.continue_each([p.ids for p in prompts], openings, limits, fmt.style.close_action.strip(), list(fmt.ends))
        return {mode: [said(fmt, ids, mode, parser) for ids in found[mode]] for mode in modes}
    variants = {mode: [ids] * len(prompts) for mode, ids in openings.items()}
    out = continue_each(model, [p.ids for p in prompts], variants, {m: fmt.ended(m) for m in modes}, limits, progress=progress,
                        memory=memory, names=[p.decision.episode for p in prompts], temperature=temperature, seed=seed)
    return {mode: [said(fmt, c.ids, mode, parser) for c in out[mode]] for mode in modes}


def decode(model, prompts: Sequence[Prompt], mode: Mode = "cot", *, parser: Callable[[str], str | None] = str,
           max_new_tokens: int | Mapping[str, int] | None = None, progress: bool = False, memory: Memory | None = None,
           temperature: float = 0.0, seed: int = 0) -> list[Said]:
    """Decode in one mode, greedily unless a `temperature` is given; `parser` turns the text between the action tags into an action, or None.

    `max_new_tokens` (one number, or one for each mode) is `LIMITS[mode]` unless given; `seed`: of what is drawn. Raises
    ValueError for an empty list of prompts, no token to generate, or a temperature below 0.
    """
    return decode_modes(model, prompts, [mode], parser=parser, max_new_tokens=max_new_tokens, progress=progress, memory=memory,
                        temperature=temperature, seed=seed)[mode]


@measured
def draw(model, prompts: Sequence[Prompt], *, parser: Callable[[str], str | None] = str, seed: int = 0, temperature: float = 1.0,
         max_new_tokens: int | Mapping[str, int] | None = None, progress: bool = False) -> list[Said]:
    """As `decode` in mode `cot` with each trace drawn at `temperature`, and its action the likeliest one behind it.

    For agents whose likeliest trace is no sample of what they do. Where a trace opens no action, what was drawn is returned.
    """
    fmt = prompts[0].format if prompts else None
    drawn = decode(model, prompts, "cot", parser=parser, max_new_tokens=max_new_tokens, progress=progress, temperature=temperature, seed=seed)
    leads = [fmt.lead_ids(s.ids) for s in drawn]
    limit = max_new_tokens["prompt"] if isinstance(max_new_tokens, Mapping) else LIMITS["prompt"]
    out = continue_each(model, [p.ids for p in prompts], {"cot": [lead and fmt.tail(lead) for lead in leads]}, fmt.ended("prompt"), limit, progress=progress)
    return [said(fmt, [*lead, *c.ids], "cot", parser) if lead else s for s, lead, c in zip(drawn, leads, out["cot"])]


def said(fmt, ids: Sequence[int], mode: Mode, parser: Callable[[str], str | None] = str) -> Said:
    """Parse what was generated after a mode's opening."""
    trace, action = fmt.parse(fmt.text(ids), mode)
    return Said(tuple(ids), trace, parser(action) if action else None)


@measured
def choose(model, prompt: Prompt, candidates: Sequence[str], traces: Sequence[str | Sequence[int] | None] = (None,)) -> torch.Tensor:
    """Forced choice at one decision: log-probability of every candidate action [trace, candidate, (summed, per token)], in nats.

    For a trace of None the action tag stands right at the boundary; for a text behind that trace; for ids, behind those as
    they were decoded up to the opened action (`PromptFormat.lead_ids`). The closing tag counts, so that a candidate is not preferred for being another's beginning. The prompt is read once.
    Raises ValueError where there are no candidates.
    """
    return _choose(model, prompt, candidates, [prompt.format.tail(trace) for trace in traces])


def _choose(model, prompt: Prompt, candidates: Sequence[str], leads: Sequence[Sequence[int]]) -> torch.Tensor:
    """As `choose`, behind ids from the boundary up to the opened action tag."""
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
        found.append(score(model, model.read(lead[:-1], model.fork(cache)), [[lead[-1], *a] for a in actions], scored))
    lengths = torch.tensor(scored)
    return torch.stack([torch.stack([sums, sums / lengths], -1) for sums in found])


@measured
def preferences(model, prompt: Prompt, candidates: Sequence[str], traces: Sequence[Sequence[int]]) -> Float[np.ndarray, "trace candidate"]:
    """The distribution over candidate actions behind each trace: the forced choice by summed log-probability, normalised.

    traces: ids from the boundary up to the opened action tag, a mode's opening with them. Raises ValueError where there are no candidates.
    """
    return _choose(model, prompt, candidates, traces)[..., 0].double().softmax(-1).numpy()
