"""Continuations of many prompts, greedy or sampled, each prompt read once for all the ways in which it is continued.

What several prompts begin with (the system prompt of all, the history of one episode's) is read once: they are a tree, read
behind their common beginning in packs. Their keys and values are kept, and every variant (a mode's opening, a spliced
trace) goes on from them, many prompts in one batch. The plain twin is Hugging Face's `generate`, prompt by prompt (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.models.hooked import layers_of
from interp.engine.packing import ancestors, merge, shared
from interp.models.turns import measured
from interp.models.whole import Growing, padded

#: tokens of prompts that are read in one pass
PACK = 2048
#: whether the ids generated so far are at their end
Stop = Callable[[Sequence[int]], bool]
#: logits [row, vocabulary] -> token of each row
Pick = Callable[[torch.Tensor], torch.Tensor]
#: name -> ids read so far, and for each layer their keys and values [head, token, width]
Memory = dict[Hashable, tuple[tuple[int, ...], list]]


@dataclass(frozen=True)
class Continuation:
    """Generated `ids`, and the log-probability per token, in nats, of the given suffix after its first token."""

    ids: tuple[int, ...]
    logp: float


class _Room(DynamicLayer):
    """A cache layer with room for what comes, so that a new token copies no old one."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._used, self._buffers = keys.shape[-2], [torch.cat([t, t.new_empty(*t.shape[:2], room, t.shape[3])], 2) for t in (keys, values)]
        self.keys, self.values = (b[:, :, :self._used] for b in self._buffers)

    def update(self, key_states, value_states, *args, **kwargs):
        end = self._used + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, self._used:end] = new
        self._used = end
        self.keys, self.values = (b[:, :, :end] for b in self._buffers)
        return self.keys, self.values


class _Rows:
    """The rows of a batch that are still generating: their cache, which of its keys count, and their next positions."""

    def __init__(self, model, layers, seen: torch.Tensor, position: torch.Tensor, room: int):
        self.model, self.seen, self.position = model, seen, position
        self.keys_at = seen.cumsum(1) - 1
        self.cache = DynamicCache()
        self.cache.layers = [_Room(k, v, room) for k, v in layers]

    def forward(self, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Final hidden states [row, token, width] of new tokens; each sees the keys that count and the new ones up to itself."""
        rows, width = ids.shape
        new = valid[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        visible = torch.cat([self.seen[:, None, :].expand(rows, width, -1), new], 2)
        positions = self.position[:, None] + torch.arange(width, device=ids.device)
        self.keys_at = torch.cat([self.keys_at, positions], 1)
        hidden = self.model.inner(input_ids=ids, position_ids=positions, attention_mask=self.model.mask(visible, positions, self.keys_at),
                                  past_key_values=self.cache, use_cache=True).last_hidden_state
        self.seen = torch.cat([self.seen, valid], 1)
        self.position = self.position + valid.sum(1)
        return hidden

    def keep(self, alive: torch.Tensor, room: int) -> None:
        """Drop the rows that have ended."""
        self.seen, self.position, self.keys_at = self.seen[alive], self.position[alive], self.keys_at[alive]
        self.cache.layers = [_Room(layer.keys[alive], layer.values[alive], room) for layer in self.cache.layers]


def _picker(temperature: float, seed: int, device) -> Pick:
    """The likeliest token at temperature 0, else one drawn from the tempered distribution, the same ones for the same seed."""
    if temperature < 0:
        raise ValueError(f"A temperature is 0 (greedy) or above, not {temperature}.")
    if temperature == 0:
        return lambda logits: logits.argmax(-1)
    generator = torch.Generator(device).manual_seed(seed)
    return lambda logits: torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[..., 0]


def _continue(model, layers, seen, suffixes, stop: Stop, max_new_tokens: int, pick: Pick, *, begun: Sequence[Sequence[int]] = (),
              edits: Callable | None = None) -> list[Continuation]:
    """Continue one variant of one batch; `layers` are the prompts' keys and values, of which `seen` [row, slot] count.

    begun: ids generated earlier, with which each row's ids begin. edits: from (continuation of each row, ids of each
    continuation, whether the suffixes are being read) to what is tapped in that pass.
    """
    ids, valid = padded(suffixes, model.device)
    rows = _Rows(model, layers, seen, seen.sum(1), ids.shape[1] + max_new_tokens)
    out: list[list[int]] = [list(b) for b in begun] or [[] for _ in suffixes]
    owner = list(range(len(suffixes)))  # row of the running batch -> continuation
    with model.taps(edits(owner, out, True)) if edits else nullcontext():
        hidden = rows.forward(ids, valid)
    lengths = valid.sum(1)
    scored = valid[:, 1:].nonzero()
    logp = torch.zeros(len(ids), device=model.device)
    if len(scored):
        picked = model.logits(hidden[scored[:, 0], scored[:, 1]]).log_softmax(-1).gather(1, ids[scored[:, 0], scored[:, 1] + 1][:, None])[:, 0]
        logp.index_add_(0, scored[:, 0], picked)
    logp = (logp / (lengths - 1).clamp(min=1)).tolist()
    token = pick(model.logits(hidden[torch.arange(len(ids)), lengths - 1]))
    over: set[int] = set()
    for left in range(max_new_tokens, 0, -1):
        for i, t in zip(owner, token.tolist()):
            if i not in over:
                out[i].append(t)
                if stop(out[i]):
                    over.add(i)
        alive = [r for r, i in enumerate(owner) if i not in over]
        if not alive or left == 1:
            break
        if len(alive) <= len(owner) // 2:
            rows.keep(torch.tensor(alive, device=model.device), left)
            token, owner = token[alive], [owner[r] for r in alive]
        with model.taps(edits(owner, out, False)) if edits else nullcontext():
            hidden = rows.forward(token[:, None], torch.ones(len(owner), 1, dtype=torch.bool, device=model.device))
        token = pick(model.logits(hidden[:, 0]))
    return [Continuation(tuple(o), p) for o, p in zip(out, logp)]


def tree_batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` with padding, rows that begin alike next to each other."""
    found: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        longest = max(longest, len(rows[i]))
        if not found or longest * (len(found[-1]) + 1) > batch_tokens:
            found.append([])
            longest = len(rows[i])
        found[-1].append(i)
    return found


def _packs(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in the order of their ids, in packs of at most `PACK` tokens where each beginning counts once."""
    found, size, last = [], PACK, ()
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        size += len(rows[i]) - shared(last, rows[i])
        if size > PACK:
            found.append([])
            size = len(rows[i])
        found[-1].append(i)
        last = rows[i]
    return found


def _read(model, rows) -> tuple[list, torch.Tensor]:
    """Keys and values of each layer for a batch of prompts, and which of their slots count; each beginning is read once."""
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    start = min(shared(first, last), len(first) - 1)
    prefix = layers_of(model.read(first[:start])) or model.empty()
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    layers = [tuple(t.new_zeros(len(rows), t.shape[1], max(map(len, rows)), t.shape[3]) for t in layer) for layer in prefix]
    for layer, known in zip(layers, prefix):
        for whole, part in zip(layer, known):
            whole[:, :, :start] = part
    for pack in _packs([row[start:] for row in rows]):
        tokens, parents, nodes = merge([rows[i][start:] for i in pack])
        seen = ancestors(parents)
        visible = torch.cat([torch.ones(len(tokens), start, dtype=torch.bool), seen], 1)
        _, new = model.packed(prefix, *(t.to(model.device) for t in (torch.tensor(tokens), seen.sum(1) - 1 + start, visible, torch.arange(start))))
        for i, path in zip(pack, nodes):
            for layer, parts in zip(layers, new):
                for whole, part in zip(layer, parts):
                    whole[i, :, start:len(rows[i])] = part[0][:, path]
    return layers, torch.arange(int(lengths.max()), device=model.device) < lengths[:, None]


def _read_on(model, rows, names, memory: Memory) -> tuple[list, torch.Tensor]:
    """As `_read`, but of each row only what follows its longest common prefix with what `memory` holds under its name."""
    known = []
    for row, name in zip(rows, names):
        old = memory[name][0] if name in memory else ()
        known.append(min(shared(old, row), len(row) - 1))
    if not any(known):
        layers, seen = _read(model, rows)
        for r, (row, name) in enumerate(zip(rows, names)):
            memory[name] = (tuple(row), [(k[r, :, :len(row)], v[r, :, :len(row)]) for k, v in layers])
        return layers, seen
    width, example = max(known), next(memory[n][1] for n, s in zip(names, known) if s)
    old = [tuple(t.new_zeros(len(rows), t.shape[0], width, t.shape[2]) for t in pair) for pair in example]
    for r, (name, n) in enumerate(zip(names, known)):
        for layer, pair in enumerate(memory[name][1] if n else ()):
            for whole, part in zip(old[layer], pair):
                whole[r, :, :n] = part[:, :n]
    position = torch.tensor(known, device=model.device)
    batch = _Rows(model, old, torch.arange(width, device=model.device) < position[:, None], position, max(len(r) - n for r, n in zip(rows, known)))
    batch.forward(*padded([row[n:] for row, n in zip(rows, known)], model.device))
    layers = [(layer.keys, layer.values) for layer in batch.cache.layers]
    for r, (row, name, n) in enumerate(zip(rows, names, known)):
        memory[name] = (tuple(row), [tuple(torch.cat([t[r, :, :n], t[r, :, width:width + len(row) - n]], 1) for t in pair) for pair in layers])
    return layers, batch.seen


def _plain(model, prompt: Sequence[int], suffix: Sequence[int], stop: Stop, max_new_tokens: int, pick: Pick) -> Continuation:
    """One continuation by itself, without padding, a mask of one's own or another's keys and values."""
    sequence, suffix_ids = Growing(model), torch.tensor(list(suffix), device=model.device)
    hidden = sequence.add([*prompt, *suffix])[len(prompt):]
    logp = model.logits(hidden[:-1]).log_softmax(-1).gather(1, suffix_ids[1:, None]).sum().item() / max(1, len(suffix) - 1)
    out: list[int] = []
    while True:
        out.append(int(pick(model.logits(hidden[-1:]))))
        if stop(out) or len(out) == max_new_tokens:
            return Continuation(tuple(out), logp)
        hidden = sequence.add(out[-1:])


@measured
@torch.inference_mode()
def continue_each(model, prompts: Sequence[Sequence[int]], variants: Mapping[str, Sequence[Sequence[int] | None]], stop: Stop | Mapping[str, Stop],
                  max_new_tokens: int | Mapping[str, int], batch_tokens: int = 24576, progress: bool = False,
                  memory: Memory | None = None, names: Sequence[Hashable] = (), temperature: float = 0.0, seed: int = 0) -> dict[str, list]:
    """Continue every prompt in every variant until `stop(ids generated so far)` or `max_new_tokens`.

    variants: name -> one suffix of ids for each prompt (None: not this one), read behind the prompt before generating.
    memory, names: keys and values kept from earlier calls under each prompt's name, brought up to date in place; a prompt
    that extends the one kept (checked on ids) is read only from where it differs. temperature: 0 is greedy; above, tokens are
    drawn, and `seed` and the same prompts give the same ones.
    Returns name -> one Continuation (or None) for each prompt. Raises ValueError for an empty suffix, no token to generate, or a
    context too long.
    """
    if any(suffix is not None and not len(suffix) for suffixes in variants.values() for suffix in suffixes):
        raise ValueError("Every suffix needs at least one token to generate from.")
    model.check_ids([*prompts, *(suffix for suffixes in variants.values() for suffix in suffixes if suffix is not None)])
    limits = {name: max_new_tokens if isinstance(max_new_tokens, int) else max_new_tokens[name] for name in variants}
    if none := [n for n in limits.values() if n < 1]:
        raise ValueError(f"max_new_tokens is a number from 1 on, not {none[0]}.")
    stops = {name: stop if callable(stop) else stop[name] for name in variants}
    found: dict[str, list] = {name: [None] * len(prompts) for name in variants}
    pick = _picker(temperature, seed, model.device)
    longest = {(name, i): len(prompts[i]) + len(suffix) + limits[name]
               for name, suffixes in variants.items() for i, suffix in enumerate(suffixes) if suffix is not None}
    for tokens in set(longest.values()):
        model.check_length(tokens)
    alone = {key for key, tokens in longest.items() if model.support.trajectory != "fast" or not model.packs(tokens)}
    for name, i in tqdm(sorted(alone), desc="decode", leave=False, disable=not progress or not alone):
        found[name][i] = _plain(model, prompts[i], variants[name][i], stops[name], limits[name], pick)
    batched = longest.keys() - alone
    together = sorted({i for _, i in batched})
    groups = [[together[k] for k in group] for group in tree_batches([prompts[i] for i in together], batch_tokens)]
    for group in tqdm(groups, desc="decode", leave=False, disable=not progress):
        rows = [prompts[i] for i in group]
        kept, seen = _read(model, rows) if memory is None else _read_on(model, rows, [names[i] for i in group], memory)
        for name, suffixes in variants.items():
            some = [r for r, i in enumerate(group) if (name, i) in batched]
            if not some:
                continue
            layers = [(k[some], v[some]) for k, v in kept] if len(some) < len(group) else kept
            out = _continue(model, layers, seen[some], [suffixes[group[r]] for r in some], stops[name], limits[name], pick)
            for r, continuation in zip(some, out):
                found[name][group[r]] = continuation
    return found
