"""Many continuations of one prefix in a single forward pass, exactly.

The prefix is read once and its keys and values kept. The continuations lie side by side after it as a tree: what
several of them begin with is there once, every token sees the prefix and its own ancestors, position ids repeat.
Logits are computed only where a token is scored. The slow twin reads each continuation by itself (`plain_score`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from interp.models.hooked import layers_of
from interp.models.turns import measured
from interp.models.whole import batches, padded

#: A tree is read in packs where it has at most this share of the tokens that its sequences have: those need no mask.
WORTH = 0.7


@dataclass(frozen=True)
class Tree:
    """Continuations merged where they begin alike: a token and a parent (-1: none) for each node, parents first.

    asked: (continuation, node, token) for each scored token: its log-probability is read at `node`, the token before it.
    """

    tokens: list[int]
    parents: list[int]
    asked: list[tuple[int, int, int]]
    width: int

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> torch.Tensor:
        """Tokens above each node."""
        return self.visible.sum(1) - 1

    @cached_property
    def visible(self) -> torch.Tensor:
        """Bool[Tensor, "node node"]: the nodes that each node sees."""
        return ancestors(self.parents)


def ancestors(parents: Sequence[int]) -> torch.Tensor:
    """Bool[Tensor, "node node"]: each node's ancestors, and itself."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def grow(continuations: Sequence[Sequence[int]], scored: Sequence[int]) -> Tree:
    """Merge continuations into a tree; the last `scored[i]` tokens of each are scored.

    A last token is scored but never read, since nothing follows it. Raises ValueError where a scored token has none
    before it.
    """
    if any(n >= len(c) for c, n in zip(continuations, scored)):
        raise ValueError(
            "Every scored token needs one before it in its continuation: open each with the last unscored token."
        )
    tokens, parents, nodes = merge([c[:-1] for c in continuations])
    asked = [
        (number, nodes[number][i - 1] if i else -1, int(tail[i]))
        for number, (tail, n) in enumerate(zip(continuations, scored))
        for i in range(len(tail) - n, len(tail))
    ]
    return Tree(tokens, parents, asked, len(continuations))


def merge(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Sequences merged where they begin alike: token and parent of each node, parents first, and the nodes of each sequence."""
    tokens, parents, known, nodes = [], [], {}, []
    for sequence in sequences:
        path = [-1]
        for token in sequence:
            if (path[-1], token) not in known:
                known[path[-1], token] = len(tokens)
                tokens.append(int(token))
                parents.append(path[-1])
            path.append(known[path[-1], token])
        nodes.append(path[1:])
    return tokens, parents, nodes


def read_asked(model, hidden: torch.Tensor, tree: Tree) -> torch.Tensor:
    """Summed log-probabilities of each continuation's scored tokens, [copy, continuation] in nats, on the CPU.

    hidden: final hidden states [copy, node, d_model] of copies of the same tree.
    """
    owner, node, token = (torch.tensor(column, device=hidden.device) for column in zip(*tree.asked))
    rows, place = node.unique(return_inverse=True)
    copies = torch.arange(len(hidden), device=hidden.device)[:, None]
    logp = model.log_probability(
        hidden[:, rows].flatten(0, 1), (copies * len(rows) + place).flatten(), token.repeat(len(hidden))
    )
    return (
        torch.zeros(len(hidden), tree.width, device=hidden.device)
        .index_add_(1, owner, logp.view(len(hidden), -1))
        .cpu()
    )


def divergence(model, hidden: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """KL(base || next-token distribution) after final hidden states [copy, node, d_model], [copy, node] in nats, on the CPU.

    base: log-probabilities [node, token]. The copies' vocabulary is unembedded in tiles, as in `HookedModel.log_probability`.
    """
    (rows, tile), found = model.tiling, []
    for part in hidden.split(max(1, rows // len(base))):
        cross, norm = 0.0, []
        for start in range(0, base.shape[1], tile):
            logits, logp = model.logits(part, slice(start, start + tile)), base[:, start : start + tile]
            cross = cross + (logp.exp() * (logp - logits)).sum(-1)
            norm.append(logits.logsumexp(-1))
        found.append(cross + torch.stack(norm).logsumexp(0))
    return torch.cat(found).cpu()


def read_last(model, hidden: torch.Tensor, ids: torch.Tensor, n: int) -> torch.Tensor:
    """Summed log-probability of the last `n` of `ids` [token], in nats, from their final hidden states [token, d_model]."""
    first = len(ids) - n
    return model.logits(hidden[first - 1 : -1]).log_softmax(-1).gather(1, ids[first:, None]).sum().cpu()


@measured
@torch.inference_mode()
def score(model, cache, continuations: Sequence[Sequence[int]], scored: Sequence[int]) -> torch.Tensor:
    """Log-probability of the last `scored[i]` tokens of each continuation of what `cache` (of `model.read`) holds, [continuation] in nats.

    The cache is left as it was. A model that packing is not exact for reads each continuation by itself, from its beginning where
    what is kept cannot be gone on with.
    """
    tree, prefix = grow(continuations, scored), len(cache.ids)
    longest = prefix + max(map(len, continuations))
    model.check_length(longest)
    model.check_ids(continuations)
    if model.rereads(longest):
        return score_whole(model, cache.ids, continuations, scored)
    if not model.packs(longest):
        return plain_score(model, cache, continuations, scored)
    layers = layers_of(cache) or model.empty()
    at, behind = tree.depths + prefix, torch.ones(len(tree), prefix, dtype=torch.bool)
    hidden, _ = model.packed(
        layers,
        *(
            t.to(model.device)
            for t in (
                torch.tensor(tree.tokens),
                at,
                torch.cat([behind, tree.visible], 1),
                torch.arange(prefix),
            )
        ),
    )
    return read_asked(model, hidden, tree)[0]


@torch.inference_mode()
def plain_score(model, cache, continuations: Sequence[Sequence[int]], scored: Sequence[int]) -> torch.Tensor:
    """The slow twin of `score`: one forward pass for each continuation."""
    found = torch.zeros(len(continuations))
    for number, (tail, n) in enumerate(zip(continuations, scored)):
        ids = torch.tensor([list(tail)], device=model.device)
        hidden = model.inner(
            input_ids=ids, past_key_values=model.fork(cache), use_cache=True
        ).last_hidden_state[0]
        found[number] = read_last(model, hidden, ids[0], n)
    return found


@torch.inference_mode()
def score_whole(
    model,
    before: Sequence[int],
    continuations: Sequence[Sequence[int]],
    scored: Sequence[int],
    batch_tokens: int = 8192,
) -> torch.Tensor:
    """As `score`, of what follows the ids `before`: each continuation is read from the very beginning."""
    rows = [[*before, *c] for c in continuations]
    found = torch.zeros(len(rows))
    for batch in batches(model, list(map(len, rows)), batch_tokens):
        ids, _ = padded([rows[i] for i in batch], model.device)
        hidden = model.whole(ids)
        for r, i in enumerate(batch):
            length = len(rows[i])
            found[i] = read_last(model, hidden[r, :length], ids[r, :length], scored[i])
    return found
