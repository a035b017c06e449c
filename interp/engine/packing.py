"""Many continuations of one prefix in a single forward pass, exactly.

The prefix is read once and its keys and values kept. The continuations lie side by side after it as a tree:
what several of them begin with is there once, every token sees the prefix and its own ancestors, position
ids repeat. Logits are computed only where a token is scored. The reference implementation reads each
continuation by itself (`plain_score`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.models.caches import PrefixCache, layers_of
from interp.models.devices import fetched, sent
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.models.unembedding import log_probability, tiling
from interp.models.whole import batches, padded

#: A tree is read in packs where it has at most this share of its sequences' tokens: sequences need no mask.
WORTH = 0.7


class Scored(NamedTuple):
    """The nodes after which tokens are scored, and of each such token its place in them, id, continuation."""

    nodes: Int[Tensor, " node"]
    place: Int[Tensor, " target"]
    token: Int[Tensor, " target"]
    continuation: Int[Tensor, " target"]


@dataclass(frozen=True)
class Tree:
    """Continuations merged where they begin alike: token and parent (-1: none) of each node, parents first.

    targets: (continuation, node, token) for each scored token, whose log-probability is read at `node`, the
    token before it. width: continuations.
    """

    tokens: list[int]
    parents: list[int]
    targets: list[tuple[int, int, int]]
    width: int

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> Int[Tensor, " node"]:
        """Tokens above each node."""
        return self.visible.sum(1) - 1

    @cached_property
    def visible(self) -> Bool[Tensor, "node node"]:
        """The nodes that each node sees."""
        return ancestors(self.parents)

    @cached_property
    def scored(self) -> Scored:
        """The targets, each node once."""
        continuation, node, token = (torch.tensor(column) for column in zip(*self.targets))
        nodes, place = node.unique(return_inverse=True)
        return Scored(nodes, place, token, continuation)


def ancestors(parents: Sequence[int]) -> Bool[Tensor, "node node"]:
    """Each node's ancestors, and itself."""
    seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return torch.from_numpy(seen)


def grow(continuations: Sequence[Sequence[int]], scored: Sequence[int]) -> Tree:
    """Merge continuations into a tree; the last `scored[i]` tokens of each are scored.

    A last token is scored but never read, since nothing follows it. Raises ValueError where a scored token
    has none before it.
    """
    if any(n >= len(c) for c, n in zip(continuations, scored)):
        raise ValueError(
            "Every scored token needs one before it in its continuation: open each with the last unscored "
            "token."
        )
    tokens, parents, nodes = merge([c[:-1] for c in continuations])
    targets = [
        (number, nodes[number][i - 1] if i else -1, int(tail[i]))
        for number, (tail, n) in enumerate(zip(continuations, scored))
        for i in range(len(tail) - n, len(tail))
    ]
    return Tree(tokens, parents, targets, len(continuations))


def merge(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Sequences merged where they begin alike: token and parent of each node, and each sequence's nodes."""
    tokens: list[int] = []
    parents: list[int] = []
    paths: list[list[int]] = []
    children: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        node = -1
        path = []
        for token in sequence:
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(int(token))
                parents.append(node)
            node = children[node, token]
            path.append(node)
        paths.append(path)
    return tokens, parents, paths


def tree_rows(
    trees: Sequence[Tree], starts: Sequence[int], first: int = 0
) -> tuple[Int[Tensor, "row slot"], Int[Tensor, "row slot"], Bool[Tensor, "row slot slot"]]:
    """Token and position of each node of trees, a row each, and the nodes that each sees, on the CPU.

    A slot that pads a row sees itself, so that it attends to something.

    Args:
        starts: the position of each tree's node `first`.
        first: nodes before it are left out (1: the root, which was read with what is before it).
    """
    slots = max(map(len, trees)) - first
    ids = torch.zeros(len(trees), slots, dtype=torch.long)
    at = torch.tensor(starts)[:, None].repeat(1, slots)
    visible = torch.eye(slots, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        nodes = len(tree) - first
        ids[row, :nodes] = torch.tensor(tree.tokens[first:], dtype=torch.long)
        at[row, :nodes] += tree.depths[first:] - first
        visible[row, :nodes, :nodes] = tree.visible[first:, first:]
    return ids, at, visible


def read_trees(
    model: HookedModel,
    hidden: Float[Tensor, "row slot d_model"],
    trees: Sequence[Tree],
    roots: Int[Tensor, "column row"],
) -> Float[Tensor, "row column continuation"]:
    """Summed log-probabilities of each continuation's scored tokens, in nats, in copies of each row's tree.

    Zero where a row has fewer continuations than another.

    Args:
        hidden: final hidden states.
        trees: of each row.
        roots: the slot in which each copy begins; on the CPU.
    """
    columns, width = len(roots), max(tree.width for tree in trees)
    column = torch.arange(columns)[:, None]
    states, places, tokens, owners = [], [], [], []
    count = 0
    for row, tree in enumerate(trees):
        scored = tree.scored
        states.append((row * hidden.shape[1] + roots[:, row, None] + scored.nodes).flatten())
        places.append((count + column * len(scored.nodes) + scored.place).flatten())
        tokens.append(scored.token.repeat(columns))
        owners.append(((row * columns + column) * width + scored.continuation).flatten())
        count += columns * len(scored.nodes)
    state, place, token, owner = (
        sent(torch.cat(parts), hidden.device) for parts in (states, places, tokens, owners)
    )
    logp = log_probability(model, hidden.flatten(0, 1)[state], place, token)
    sums = torch.zeros(len(trees) * columns * width, device=hidden.device)
    return sums.index_add_(0, owner, logp).view(len(trees), columns, width)


def divergence(
    model: HookedModel, hidden: Float[Tensor, "copy node d_model"], base: Float[Tensor, "node token"]
) -> Float[Tensor, "copy node"]:
    """KL(base || next-token distribution) after final hidden states, in nats.

    base: log-probabilities. The copies' vocabulary is unembedded in tiles, as in
    `HookedModel.log_probability`.
    """
    rows, tile = tiling(model)
    parts: list[Tensor] = []
    for part in hidden.split(max(1, rows // len(base))):
        cross = torch.zeros(part.shape[:2], device=part.device)
        norms: list[Tensor] = []
        for start in range(0, base.shape[1], tile):
            logits = model.logits(part, slice(start, start + tile))
            logp = base[:, start : start + tile]
            cross = cross + (logp.exp() * (logp - logits)).sum(-1)
            norms.append(logits.logsumexp(-1))
        parts.append(cross + torch.stack(norms).logsumexp(0))
    return torch.cat(parts)


def read_last(
    model: HookedModel, hidden: Float[Tensor, "token d_model"], ids: Int[Tensor, " token"], n: int
) -> Float[Tensor, ""]:
    """Summed log-probability of the last `n` of `ids`, in nats, from their final hidden states."""
    first = len(ids) - n
    return model.logits(hidden[first - 1 : -1]).log_softmax(-1).gather(1, ids[first:, None]).sum().cpu()


@measured
@torch.inference_mode()
def score(
    model: HookedModel, cache: PrefixCache, continuations: Sequence[Sequence[int]], scored: Sequence[int]
) -> Float[Tensor, " continuation"]:
    """Log-probability of the last `scored[i]` tokens of each continuation of what `cache` holds, in nats.

    A model that packing is not exact for reads each continuation by itself, from its beginning where it
    cannot go on from the cache, which is left as it was.
    """
    tree = grow(continuations, scored)
    prefix = len(cache.ids)
    longest = prefix + max(map(len, continuations))
    model.check_length(longest)
    model.check_ids(continuations)
    if model.rereads(longest):
        return score_whole(model, cache.ids, continuations, scored)
    if not model.packs(longest):
        return plain_score(model, cache, continuations, scored)
    sees_prefix = torch.ones(len(tree), prefix, dtype=torch.bool)
    hidden, _ = model.packed(
        layers_of(cache) or model.empty(),
        sent(torch.tensor([tree.tokens]), model.device),
        sent((tree.depths + prefix)[None], model.device),
        sent(torch.cat([sees_prefix, tree.visible], 1)[None], model.device),
        torch.arange(prefix, device=model.device)[None],
    )
    logp = read_trees(model, hidden, [tree], torch.zeros(1, 1, dtype=torch.long))
    return fetched(logp[0, 0])()


@torch.inference_mode()
def plain_score(
    model: HookedModel, cache: PrefixCache, continuations: Sequence[Sequence[int]], scored: Sequence[int]
) -> Float[Tensor, " continuation"]:
    """The reference implementation of `score`: one forward pass for each continuation."""
    logp = torch.zeros(len(continuations))
    for number, (tail, n) in enumerate(zip(continuations, scored)):
        ids = torch.tensor([list(tail)], device=model.device)
        output = model.inner(input_ids=ids, past_key_values=model.fork(cache), use_cache=True)
        logp[number] = read_last(model, output.last_hidden_state[0], ids[0], n)
    return logp


@torch.inference_mode()
def score_whole(
    model: HookedModel,
    before: Sequence[int],
    continuations: Sequence[Sequence[int]],
    scored: Sequence[int],
    batch_tokens: int = 8192,
) -> Float[Tensor, " continuation"]:
    """As `score`, of what follows the ids `before`: each continuation is read from the very beginning."""
    rows = [[*before, *continuation] for continuation in continuations]
    logp = torch.zeros(len(rows))
    for batch in batches(model, list(map(len, rows)), batch_tokens):
        ids = padded([rows[i] for i in batch], model.device)
        hidden = model.whole(ids)
        for r, i in enumerate(batch):
            length = len(rows[i])
            logp[i] = read_last(model, hidden[r, :length], ids[r, :length], scored[i])
    return logp
