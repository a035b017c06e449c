"""What the model does at a decision: free greedy decoding in three modes, and forced choice among candidates.

>>> said = decode(model, prompts, mode="cot")
>>> said[0].trace, said[0].action
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from interp.capture import length_batches, padded
from interp.packing import score
from interp.prompts import Mode, Prompt


@dataclass(frozen=True)
class Said:
    """One greedy decoding: generated `ids`, `trace` (None without one), and `action` (None where it did not parse)."""

    ids: tuple[int, ...]
    trace: str | None
    action: str | None


@torch.inference_mode()
def greedy(model, rows: Sequence[Sequence[int]], stop: int, max_new_tokens: int, batch_tokens: int = 32768,
           progress: bool = False) -> list[tuple[int, ...]]:
    """Continue each row of ids greedily until `stop` (kept) or `max_new_tokens`; rows of about equal length run together."""
    found: list[tuple[int, ...]] = [()] * len(rows)
    pad = model.tokenizer.pad_token_id
    pad = stop if pad is None else pad
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=pad,
                                use_cache=True)  # trainers save configurations that turn it off
    for group in tqdm(length_batches([len(r) for r in rows], batch_tokens), desc="decode", leave=False, disable=not progress):
        model.check_length(max(len(rows[i]) for i in group) + max_new_tokens)
        ids, mask = padded([rows[i] for i in group], pad, model.device, side="left")
        out = model.hf.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1]:].tolist()
        for i, new in zip(group, out):
            found[i] = tuple(new[:new.index(stop) + 1] if stop in new else new)
    return found


def decode(model, prompts: Sequence[Prompt], mode: Mode = "cot", *, parser: Callable[[str], str | None] = str,
           max_new_tokens: int | None = None, batch_tokens: int = 32768, progress: bool = False) -> list[Said]:
    """Decode greedily in one mode; `parser` turns the text between the action tags into an action, or None.

    `max_new_tokens` is 96 in CoT mode and 24 in the others unless given.
    Raises ValueError for an empty list of prompts, or a closing action tag that is not one token.
    """
    if not prompts:
        raise ValueError("There is nothing to decode: the list of prompts is empty.")
    fmt = prompts[0].format
    rows = [[*p.ids, *fmt.opening(mode)] for p in prompts]
    out = greedy(model, rows, closing(fmt), max_new_tokens or (96 if mode == "cot" else 24), batch_tokens, progress)
    return [said(fmt, ids, mode, parser) for ids in out]


def said(fmt, ids: Sequence[int], mode: Mode, parser: Callable[[str], str | None] = str) -> Said:
    """Parse what was generated after a mode's opening."""
    trace, action = fmt.parse(fmt.tokenizer.decode(list(ids), skip_special_tokens=False), mode)
    return Said(tuple(ids), trace, parser(action) if action else None)


def closing(fmt) -> int:
    """The closing action tag, which must be one token to end a decoding."""
    ids = fmt.encode(fmt.style.close_action)
    if len(ids) != 1:
        raise ValueError(f"The closing tag {fmt.style.close_action!r} is {len(ids)} tokens, but decoding stops at one: add it as a token.")
    return ids[0]


def choose(model, prompt: Prompt, candidates: Sequence[str], trace: Sequence[int] | None = None) -> torch.Tensor:
    """Forced choice at one decision: log-probability of every candidate action [candidate, (summed, per token)], in nats.

    Without `trace` the action tag stands right at the boundary; with it (ids as decoded) behind that trace. The closing
    tag counts, so that a candidate is not preferred for being another's beginning.
    """
    if not candidates:
        raise ValueError(f"Decision {prompt.decision.id} lists no admissible actions to choose from.")
    fmt = prompt.format
    lead = fmt.opening("prompt") if trace is None else fmt.with_trace(trace)
    cache = model.read([*prompt.ids, *lead[:-1]])
    actions = [[*fmt.encode(c), closing(fmt)] for c in candidates]
    sums = score(model, cache, [[lead[-1], *a] for a in actions], [len(a) for a in actions])[0]
    return torch.stack([sums, sums / torch.tensor([len(a) for a in actions])], -1)
