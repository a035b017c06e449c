"""Prompts read once: their keys and values, from which any number of continuations go on.

Prompts that share little are rows of a batch, read without a mask; of those that extend one another the
longest alone is read. Where more of them is shared (the history of one episode), they are a tree, read
after their common beginning in packs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.engine.packing import WORTH, ancestors, merge
from interp.models.caches import Kept, Layers, RoomyLayer, layers_of, with_room, zeros_like_layers
from interp.models.devices import halved, most_held, pass_tokens, sent, token_bytes
from interp.models.hooked import HookedModel, Mask
from interp.models.whole import length_batches, padded
from interp.prompts.text import shared

#: Tokens of a tree of prompts that are read in one pass, whose mask has the square of them.
PACK = 2048
#: Tokens of plain rows that are read in one pass on a CPU.
READ = 2048
#: Most bytes of keys and values of prompts that are kept on a CPU because they are read again.
REMEMBERED = 2**30
#: Share of the tokens of prompts up to which their tree sets the order that they are continued in.
LEFT = 0.5
#: name -> ids read so far, and for each layer their keys and values [head, token, width]
Memory = dict[Hashable, tuple[tuple[int, ...], list[tuple[Tensor, Tensor]]]]


class Rows:
    """The rows of a batch that are still read: their cache, which of its keys count, and each position.

    Args:
        layers: keys and values, of whose first slots those in `seen` count; slots beyond are overwritten.
        seen: on the CPU.
        lengths: tokens of each row that are read next, padded on the right.
        new: tokens that may follow them.
    """

    def __init__(
        self,
        model: HookedModel,
        layers: Layers,
        seen: Bool[Tensor, "row slot"],
        lengths: Sequence[int],
        new: int,
    ):
        extra = max(lengths)
        read = torch.arange(extra) < torch.tensor(lengths)[:, None]
        counts = torch.cat([seen, read, torch.ones(len(seen), new, dtype=torch.bool)], 1)
        self.model = model
        self.used = seen.shape[1]
        most = model.context or counts.shape[1]  # of a row that has ended, and waits for others
        self.at = sent(counts.cumsum(1).clamp(max=most) - 1, model.device)
        #: None where every slot counts: then no pass needs a mask, and none repeats keys for grouped heads
        self.counts = None if counts.all() else sent(counts, model.device)
        self.step: Tensor | None = None
        self.layers = [
            RoomyLayer(
                with_room(keys, self.used, extra + new), with_room(values, self.used, extra + new), self.used
            )
            for keys, values in layers
        ]
        self.cache = DynamicCache()
        self.cache.layers = list(self.layers)

    def forward(self, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row token d_model"]:
        """Final hidden states of new tokens; each sees the keys that count and the new ones up to itself."""
        start = self.used
        self.used += ids.shape[1]
        at = self.at[:, start : self.used]
        mask = None if self.counts is None else self._mask(self.counts, at, start)
        return self.model.inner(
            input_ids=ids, position_ids=at, attention_mask=mask, past_key_values=self.cache, use_cache=True
        ).last_hidden_state

    def _mask(self, counts: Bool[Tensor, "row slot"], at: Int[Tensor, "row token"], start: int) -> Mask:
        new = self.used - start
        keys_at = self.at[:, : self.used]
        if new > 1:
            visible = counts[:, None, : self.used].repeat(1, new, 1)
            visible[:, :, start:] &= torch.ones(new, new, dtype=torch.bool, device=counts.device).tril()
            return self.model.mask(visible, at, keys_at)
        if set(self.model.layer_types) != {"full_attention"}:
            return self.model.mask(counts[:, None, : self.used], at, keys_at)
        if self.step is None:  # one mask for all steps, of which each sees more
            mask = self.model.mask(counts[:, None], at, self.at)
            assert isinstance(mask, Tensor)
            self.step = mask
        return self.step[..., : self.used]

    def skip(self, tokens: int) -> None:
        """Count tokens whose keys and values were written to the layers' buffers."""
        self.used += tokens
        for layer in self.layers:
            layer.skip(tokens)

    def keep(self, alive: Int[Tensor, " kept"]) -> None:
        """Drop the rows that have ended."""
        self.at = self.at[alive]
        self.counts = None if self.counts is None else self.counts[alive]
        self.step = None if self.step is None else self.step[alive]
        for layer in self.layers:
            layer.select(alive)


def _in_order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Indices of rows in the order of their ids, where a row stands right before those that it begins."""
    return sorted(range(len(rows)), key=lambda i: tuple(rows[i]))


def tree_batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` with padding, rows that begin alike next to each other."""
    batches: list[list[int]] = []
    longest = 0
    for i in _in_order(rows):
        longest = max(longest, len(rows[i]))
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = len(rows[i])
        batches[-1].append(i)
    return batches


def prompt_batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` with padding: of similar lengths, which pads least.

    Where rows share so much that half or less is left to read, they are in the order of `tree_batches`.
    """
    lengths = list(map(len, rows))
    _, _, nodes = _trunks(rows)
    if nodes <= LEFT * sum(lengths):
        return tree_batches(rows, batch_tokens)
    return length_batches(lengths, batch_tokens)


def _packs(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in the order of their ids, in packs of at most `PACK` tokens where each beginning counts once."""
    packs: list[list[int]] = []
    size = PACK
    last: Sequence[int] = ()
    for i in _in_order(rows):
        size += len(rows[i]) - shared(last, rows[i])
        if size > PACK:
            packs.append([])
            size = len(rows[i])
        packs[-1].append(i)
        last = rows[i]
    return packs


def _trunks(rows: Sequence[Sequence[int]]) -> tuple[list[int], list[int], int]:
    """Rows that begin no other, the one of them that each row begins or is, and the tree's tokens."""
    home = [0] * len(rows)
    nodes = 0
    after: int | None = None
    for i in reversed(_in_order(rows)):
        begins = 0 if after is None else shared(rows[i], rows[after])
        home[i] = i if after is None or begins < len(rows[i]) else home[after]
        nodes += len(rows[i]) - begins
        after = i
    return sorted(set(home)), home, nodes


def _key_work(model: HookedModel) -> float:
    """What a token's attention to one key takes, as a share of what its products with weights take."""
    weights = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    return 2 * model.n_heads * model.empty()[0][0].shape[3] / weights


def read_prompts(
    model: HookedModel, rows: Sequence[Sequence[int]], room: int = 0
) -> tuple[Layers, Bool[Tensor, "row slot"]]:
    """Keys and values of a batch of prompts, and which of their slots count (on the CPU).

    Each beginning is read once where that is less work than plain rows, which need no mask. room: slots
    beyond.
    """
    trunks, home, nodes = _trunks(rows)
    lengths = list(map(len, rows))
    slots = max(lengths) + room
    each_key = _key_work(model)
    in_rows = sum(len(rows[i]) * (1 + each_key * len(rows[i]) / 2) for i in trunks)
    plain = WORTH * in_rows <= nodes * (1 + each_key * min(nodes, PACK))
    layers = _read_plain(model, rows, trunks, home, slots) if plain else _read_tree(model, rows, slots)
    return layers, torch.arange(slots - room) < torch.tensor(lengths)[:, None]


def _tensors(layers: Layers, others: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Kept, Tensor]]:
    """Keys with keys and values with values, of two lists of layers."""
    for layer, other in zip(layers, others):
        yield from zip(layer, other)


def _read_plain(
    model: HookedModel, rows: Sequence[Sequence[int]], trunks: Sequence[int], home: Sequence[int], slots: int
) -> Layers:
    """Keys and values of plain rows, those of the `trunks`: a row that begins one of them has the same."""
    lengths = [len(rows[i]) for i in trunks]
    layers: Layers = []

    def read(batch: list[int]) -> tuple[list[int], Layers]:
        ids = padded([rows[trunks[k]] for k in batch], model.device)
        return batch, model.read_rows(ids)

    for batch, new in halved(length_batches(lengths, pass_tokens(model, max(lengths), READ)), read):
        layers = layers or zeros_like_layers(new, len(rows), slots)
        index = {trunks[k]: row for row, k in enumerate(batch)}
        members = [i for i, trunk in enumerate(home) if trunk in index]
        into = sent(torch.tensor(members), model.device)
        source = sent(torch.tensor([index[home[i]] for i in members]), model.device)
        for whole, part in _tensors(layers, new):
            whole[into.to(part.device), :, : part.shape[2]] = part[source.to(part.device)]
    return layers


def _read_tree(model: HookedModel, rows: Sequence[Sequence[int]], slots: int) -> Layers:
    """Keys and values of a tree of rows, each beginning read once, in packs after what all have in common."""
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    start = min(shared(first, last), len(first) - 1)
    prefix = layers_of(model.read(first[:start])) or model.empty()
    layers = zeros_like_layers(prefix, len(rows), slots)
    for whole, part in _tensors(layers, prefix):
        whole[:, :, :start] = part
    for pack in _packs([row[start:] for row in rows]):
        tokens, parents, paths = merge([rows[i][start:] for i in pack])
        seen = ancestors(parents)
        sees_prefix = torch.ones(len(tokens), start, dtype=torch.bool)
        _, new = model.packed(
            prefix,
            sent(torch.tensor([tokens]), model.device),
            sent((seen.sum(1) - 1 + start)[None], model.device),
            sent(torch.cat([sees_prefix, seen], 1)[None], model.device),
            sent(torch.arange(start)[None], model.device),
        )
        for i, path in zip(pack, paths):
            nodes = sent(torch.tensor(path, dtype=torch.long), model.device)
            for whole, part in _tensors(layers, new):
                whole[i, :, start : len(rows[i])] = part[0][:, nodes.to(part.device)]
    return layers


def memory_of(model: HookedModel, rows: Sequence[Sequence[int]]) -> Memory | None:
    """A memory for prompts that are continued several times; None where there is no room for all of them."""
    room = REMEMBERED if model.device.type != "cuda" else most_held(model)
    return {} if sum(map(len, rows)) * token_bytes(model) <= room else None


def read_on(
    model: HookedModel,
    rows: Sequence[Sequence[int]],
    names: Sequence[Hashable],
    memory: Memory,
    room: int = 0,
) -> tuple[Layers, Bool[Tensor, "row slot"]]:
    """As `read_prompts`, but of each row only what follows its common prefix with what `memory` holds.

    names: of each row in `memory`, which is brought up to date.
    """
    kept = [shared(memory[name][0] if name in memory else (), row) for row, name in zip(rows, names)]
    all_kept = kept == list(map(len, rows))
    if not all_kept:  # each row has a token to read
        kept = [min(n, len(row) - 1) for n, row in zip(kept, rows)]
    if not any(kept):
        layers, seen = read_prompts(model, rows, room)
        for r, (row, name) in enumerate(zip(rows, names)):
            end = len(row)  # copied, or all the room would be kept with it
            own = [(keys[r, :, :end].clone(), values[r, :, :end].clone()) for keys, values in layers]
            memory[name] = (tuple(row), own)
        return layers, seen
    width = max(kept)
    new = [len(row) - n for row, n in zip(rows, kept)]
    _, example = next(memory[name] for name, n in zip(names, kept) if n)
    one_row = [(keys[None], values[None]) for keys, values in example]
    layers = zeros_like_layers(one_row, len(rows), width + max(new) + room)
    for r, (name, n) in enumerate(zip(names, kept)):
        if n:
            for whole, part in _tensors(layers, memory[name][1]):
                whole[r, :, :n] = part[:, :n]
    seen = torch.arange(width) < torch.tensor(kept)[:, None]
    if all_kept:
        return layers, seen
    unread = padded([row[n:] for row, n in zip(rows, kept)], model.device)
    Rows(model, layers, seen, new, 0).forward(unread)

    def joined(tensor: Kept, r: int) -> Float[Tensor, "head token width"]:
        """What was kept of a row, and what was read now."""
        return torch.cat([tensor[r, :, : kept[r]], tensor[r, :, width : width + new[r]]], 1)

    for r, (row, name) in enumerate(zip(rows, names)):
        memory[name] = (tuple(row), [(joined(k, r), joined(v, r)) for k, v in layers])
    return layers, torch.cat([seen, torch.arange(max(new)) < torch.tensor(new)[:, None]], 1)
