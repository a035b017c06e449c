"""What the model does at a decision: free decoding in three modes, and forced choice among candidates.

>>> completions = decode(model, prompts, mode="cot")
>>> completions[0].trace, completions[0].action
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.generation import Hooks, OnRead, continue_each
from interp.engine.reading import Memory
from interp.engine.scoring import score_each
from interp.models.hooked import HookedModel
from interp.models.texts import stop_tokens as stop_tokens
from interp.models.turns import measured
from interp.prompts.format import Mode, Prompt, PromptFormat, same_format
from interp.results.shown import Shown, counted, warn_incomplete

if TYPE_CHECKING:
    from interp.engine.vllm_backend import Engine

#: From the text between the action tags to an action, or None.
Parser = Callable[[str], str | None]


@dataclass(frozen=True, repr=False)
class Completion(Shown):
    """One decoding: generated `ids`, `trace` (None without one), and `action` (None: it did not parse)."""

    ids: tuple[int, ...]
    trace: str | None
    action: str | None

    def summary(self) -> str:
        action = "no action" if self.action is None else f"action {self.action[:60]!r}"
        return f"{counted(len(self.ids), 'token')}, {action}"

    def to_frame(self) -> pd.DataFrame:
        """One row: `tokens` generated, `trace`, `action`."""
        return pd.DataFrame([dict(tokens=len(self.ids), trace=self.trace, action=self.action)])


#: Tokens after which a decoding that has not closed its action is given up.
LIMITS = {"cot": 96, "prompt": 24, "empty_think": 24}


def format_of(model: HookedModel, prompts: Sequence[Prompt]) -> PromptFormat:
    """The one format of prompts, which ends a turn where the model's generation configuration does too.

    Raises ValueError as `same_format`.
    """
    return same_format(prompts).stopping_at(stop_tokens(model))


def _limits(modes: Sequence[Mode], max_new_tokens: int | Mapping[str, int] | None) -> dict[str, int]:
    """Tokens to generate in each mode; raises ValueError for fewer than one."""
    limits: dict[str, int] = {}
    for mode in modes:
        limit = max_new_tokens[mode] if isinstance(max_new_tokens, Mapping) else max_new_tokens
        limits[mode] = LIMITS[mode] if limit is None else limit
    if any(limit < 1 for limit in limits.values()):
        raise ValueError(f"A decoding takes at least one token: max_new_tokens is {max_new_tokens}.")
    return limits


@measured
def decode_modes(
    model: HookedModel,
    prompts: Sequence[Prompt],
    modes: Sequence[Mode],
    *,
    parser: Parser = str,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
    memory: Memory | None = None,
    engine: Engine | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    hooks: Hooks | None = None,
    on_read: OnRead | None = None,
) -> dict[str, list[Completion]]:
    """Decode in several modes, each prompt read once; as `decode`, for each mode.

    Args:
        memory: kept between calls, lets an episode's next prompt be read only from where it extends the
            last one.
        engine: vLLM over the same checkpoint, which generates instead.
        on_read: as that of `continue_each`; never called where vLLM generates.
    """
    if hooks and (engine is not None or memory is not None):
        raise ValueError("Hooks change keys and values: decode under them without a memory and without vLLM.")
    fmt = format_of(model, prompts)
    prefixes = {mode: fmt.mode_prefix(mode) for mode in modes}
    limits = _limits(modes, max_new_tokens)
    if engine is not None:
        return _by_engine(engine, fmt, prompts, modes, limits, parser, temperature)
    continuations = continue_each(
        model,
        [prompt.ids for prompt in prompts],
        {mode: [prefix] * len(prompts) for mode, prefix in prefixes.items()},
        {mode: fmt.ended(mode) for mode in modes},
        limits,
        progress=progress,
        memory=memory,
        names=[prompt.decision.episode for prompt in prompts],
        temperature=temperature,
        seed=seed,
        hooks=hooks,
        on_read=on_read,
    )
    return {mode: [parse_completion(fmt, c.ids, mode, parser) for c in continuations[mode]] for mode in modes}


@measured
def decode_each(
    model: HookedModel,
    prompts: Sequence[Prompt],
    modes: Sequence[Mode],
    *,
    parser: Parser = str,
    max_new_tokens: int | Mapping[str, int] | None = None,
    memory: Memory | None = None,
    engine: Engine | None = None,
) -> list[Completion]:
    """Decode each prompt in a mode of its own, greedily, those of all modes side by side.

    Args:
        modes: of each prompt.
        memory: as that of `decode_modes`, by episode and mode.
    """
    fmt = format_of(model, prompts)
    different = list(dict.fromkeys(modes))
    prefixes = {mode: fmt.mode_prefix(mode) for mode in different}
    limits = _limits(different, max_new_tokens)
    if engine is not None:
        members = {mode: [i for i, own in enumerate(modes) if own == mode] for mode in different}
        parts = {
            mode: _by_engine(engine, fmt, [prompts[i] for i in own], [mode], limits, parser)[mode]
            for mode, own in members.items()
        }
        by_prompt = {i: c for mode, own in members.items() for i, c in zip(own, parts[mode])}
        return [by_prompt[i] for i in range(len(prompts))]
    continuations = continue_each(
        model,
        [prompt.ids for prompt in prompts],
        {mode: [prefix if own == mode else None for own in modes] for mode, prefix in prefixes.items()},
        {mode: fmt.ended(mode) for mode in different},
        limits,
        memory=memory,
        names=[(prompt.decision.episode, mode) for prompt, mode in zip(prompts, modes)],
    )
    return [parse_completion(fmt, continuations[mode][i].ids, mode, parser) for i, mode in enumerate(modes)]


def _by_engine(
    engine: Engine,
    fmt: PromptFormat,
    prompts: Sequence[Prompt],
    modes: Sequence[Mode],
    limits: Mapping[str, int],
    parser: Parser,
    temperature: float = 0.0,
) -> dict[str, list[Completion]]:
    """Decode in several modes by vLLM."""
    if temperature:
        raise ValueError(
            "The vLLM engine decodes greedily here: leave the temperature at 0, or decode without it."
        )
    prefixes: dict[str, Sequence[int]] = {mode: fmt.mode_prefix(mode) for mode in modes}
    stops: dict[str, Sequence[int]] = {mode: fmt.stops(mode) for mode in modes}
    ids = [prompt.ids for prompt in prompts]
    generated = engine.continue_each(ids, prefixes, limits, fmt.style.close_action.strip(), stops)
    return {
        mode: [
            parse_completion(fmt, _up_to_end(new, fmt.ended(mode)), mode, parser) for new in generated[mode]
        ]
        for mode in modes
    }


def _up_to_end(ids: Sequence[int], ended: Callable[[Sequence[int]], bool]) -> Sequence[int]:
    """Generated ids up to where a turn ended: an engine that knows single tokens only may have gone on."""
    return next((ids[:n] for n in range(1, len(ids)) if ended(ids[:n])), ids)


def decode(
    model: HookedModel,
    prompts: Sequence[Prompt],
    mode: Mode = "cot",
    *,
    parser: Parser = str,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
    memory: Memory | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    hooks: Hooks | None = None,
) -> list[Completion]:
    """Decode in one mode, greedily unless a `temperature` is given.

    Args:
        parser: turns the text between the action tags into an action, or None.
        max_new_tokens: one number, or one for each mode; `LIMITS` where None.
        temperature: tokens are drawn where it is above 0.
        hooks: (site, layer), or "blocks.3.hook_resid_post", -> a function of the activation [row, token,
            width] and of where its tokens are (`interp.models.hooks.Where`), which may give another one; run
            in every pass, from the prompt's first token on.

    Warns of completions that did not parse.

    Raises:
        ValueError: no prompts, prompts of several formats, fewer than one token, or a temperature below 0.
    """
    completions = decode_modes(
        model,
        prompts,
        [mode],
        parser=parser,
        max_new_tokens=max_new_tokens,
        progress=progress,
        memory=memory,
        temperature=temperature,
        seed=seed,
        hooks=hooks,
    )[mode]
    unparsed = sum(completion.action is None for completion in completions)
    if unparsed:
        warn_incomplete(
            f"{unparsed} of {len(completions)} completions did not parse (their action is None): look at "
            "their text (`prompt.format.text(completion.ids)`). Where it ends before the action is closed, "
            "raise max_new_tokens; where it is written otherwise, give the style the model was trained in, "
            "or a parser."
        )
    return completions


@measured
def draw(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    parser: Parser = str,
    seed: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
) -> list[Completion]:
    """As `decode` in mode `cot` with each trace drawn, and its action the likeliest one after it.

    For agents whose likeliest trace is no sample of what they do. Where a trace opens no action, what was
    drawn is returned.
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
    prefixes = [fmt.decoded_prefix(completion.ids) for completion in drawn]
    limit = max_new_tokens["prompt"] if isinstance(max_new_tokens, Mapping) else LIMITS["prompt"]
    actions = continue_each(
        model,
        [prompt.ids for prompt in prompts],
        {"cot": [prefix and fmt.action_prefix(prefix) for prefix in prefixes]},
        fmt.ended("prompt"),
        limit,
        progress=progress,
    )["cot"]
    return [
        parse_completion(fmt, [*prefix, *action.ids], "cot", parser) if prefix else completion
        for completion, prefix, action in zip(drawn, prefixes, actions)
    ]


def parse_completion(fmt: PromptFormat, ids: Sequence[int], mode: Mode, parser: Parser = str) -> Completion:
    """Parse what was generated after a mode's opening."""
    trace, action = fmt.parse(fmt.text(ids), mode)
    return Completion(tuple(ids), trace, parser(action) if action else None)


@measured
def choose(
    model: HookedModel,
    prompt: Prompt,
    candidates: Sequence[str],
    traces: Sequence[str | Sequence[int] | None] = (None,),
) -> Float[Tensor, "trace candidate 2"]:
    """Forced choice at one decision: log-probability of each action, summed and per token, in nats.

    The prompt is read once. The closing tag counts, so that a candidate is not preferred for being another's
    beginning. `choose_each` takes many decisions, which is faster.

    Args:
        traces: text before the action tag, or ids as they were decoded up to the opened action
            (`PromptFormat.decoded_prefix`); for None the tag stands right at the boundary.

    Raises:
        ValueError: there are no candidates.
    """
    return choose_each(model, [prompt], [candidates], [traces])[0]


@measured
def choose_each(
    model: HookedModel,
    prompts: Sequence[Prompt],
    candidates: Sequence[Sequence[str]],
    traces: Sequence[Sequence[str | Sequence[int] | None]] | None = None,
) -> list[Float[Tensor, "trace candidate 2"]]:
    """As `choose` for many decisions, which are read together in batches.

    Args:
        candidates: of each decision.
        traces: of each decision, as those of `choose` (None where the tag stands right at the boundary).

    Raises:
        ValueError: a decision has no candidates, or the lists are not of one length.
    """
    traces = [(None,)] * len(prompts) if traces is None else traces
    prefixes = [[p.format.action_prefix(trace) for trace in own] for p, own in zip(prompts, traces)]
    return _choose(model, prompts, candidates, prefixes)


def _choose(
    model: HookedModel,
    prompts: Sequence[Prompt],
    candidates: Sequence[Sequence[str]],
    prefixes: Sequence[Sequence[Sequence[int]]],
) -> list[Float[Tensor, "trace candidate 2"]]:
    """As `choose_each`, after ids from the boundary up to the opened action tag."""
    if not len(prompts) == len(candidates) == len(prefixes):
        raise ValueError(
            f"{len(prompts)} prompts, candidates of {len(candidates)} and traces of {len(prefixes)} were "
            "given: each prompt needs its own."
        )
    actions: list[list[list[int]]] = []
    ids: dict[tuple[PromptFormat, str], list[int]] = {}
    for prompt, names in zip(prompts, candidates):
        if not names:
            raise ValueError(f"Decision {prompt.decision.id} lists no admissible actions to choose from.")
        keys = [(prompt.format, name) for name in names]
        ids |= {(fmt, name): fmt.action_ids(name) for fmt, name in keys if (fmt, name) not in ids}
        actions.append([ids[key] for key in keys])
    sums = score_each(model, [prompt.ids for prompt in prompts], prefixes, actions)
    lengths = [torch.tensor([len(action) for action in own]) for own in actions]
    return [torch.stack([logp, logp / tokens], -1) for logp, tokens in zip(sums, lengths)]


@measured
def preferences(
    model: HookedModel,
    prompts: Sequence[Prompt],
    candidates: Sequence[Sequence[str]],
    traces: Sequence[Sequence[Sequence[int]]],
) -> list[Float[np.ndarray, "trace candidate"]]:
    """The distribution over each decision's candidates after each of its traces, by summed log-probability.

    traces: ids from the boundary up to the opened action tag, with a mode's opening. Raises ValueError
    as `choose_each`.
    """
    chosen = _choose(model, prompts, candidates, traces)
    return [logp[..., 0].double().softmax(-1).numpy() for logp in chosen]
