"""All continuations of many prompts scored in a few passes: a row for each prompt, and a tree after it.

The prompts' keys and values are read together (`interp.engine.reading`). What follows a prompt is a tree, in
which each beginning is there once. Trees of similar sizes are the rows of one packed pass, padded to the
largest. The reference implementation reads one prompt at a time (`score_alone`), or each continuation by
itself (`interp.engine.packing.plain_score`).

>>> prompt = prompts[0]
>>> actions = [fmt.action_ids(name) for name in prompt.decision.admissible]
>>> scores = score_each(model, [prompt.ids], [[fmt.action_prefix(None)]], [actions])
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.engine.packing import Tree, grow, read_trees, score, score_whole, tree_rows
from interp.engine.reading import Memory, read_on, read_prompts, tree_batches
from interp.models.caches import Layers, PrefixCache
from interp.models.devices import fetched, halved, most_held, pass_tokens, sent, token_bytes
from interp.models.hooked import HookedModel
from interp.models.whole import length_batches

#: Most tokens of one tree, whose mask has the square of them.
TREE = 512
#: Most tokens of the trees of one pass on a CPU, and the least share that the smallest has of the largest's.
TREES, ALIKE = 2048, 0.5
Ids = Sequence[int]


class _Part(NamedTuple):
    """Some of a prompt's continuations, which are every prefix with every ending."""

    prompt: int
    members: slice


@dataclass(frozen=True)
class _Row:
    """Ids that are read first, and the tree of a part."""

    part: _Part
    ids: Ids
    tree: Tree


#: The parts that one pass scores, and what waits for the sums [part, continuation].
_Pass = tuple[list[_Part], Callable[[], Tensor]]


def _grow(prefixes: Sequence[Ids], endings: Sequence[Ids]) -> Tree:
    """The tree of every prefix with every ending, of which the endings are scored."""
    continuations = [[*prefix, *ending] for prefix in prefixes for ending in endings]
    return grow(continuations, [len(ending) for ending in endings] * len(prefixes))


def _rows(prompt: int, ids: Ids, prefixes: Sequence[Ids], endings: Sequence[Ids]) -> Iterator[_Row]:
    """The rows of a prompt: as many prefixes as a tree has room for; one that is too large is read first."""
    nodes = len(_grow([prefixes[0][-1:]], endings))
    for own in parts_of([len(prefix) - 1 + nodes for prefix in prefixes]):
        first, last = own.start * len(endings), prefixes[own][-1]
        if len(last) - 1 + nodes <= TREE:
            tree = _grow(prefixes[own], endings)
            yield _Row(_Part(prompt, slice(first, first + tree.width)), ids, tree)
            continue
        for some in parts_of([1 + len(ending) for ending in endings]):
            part = _Part(prompt, slice(first + some.start, first + some.stop))
            yield _Row(part, [*ids, *last[:-1]], _grow([last[-1:]], endings[some]))


def parts_of(lengths: Sequence[int]) -> list[slice]:
    """Slices of sequences that have at most TREE tokens together, or are one alone."""
    starts, held = [0], 0
    for number, length in enumerate(lengths):
        if held and held + length > TREE:
            starts.append(number)
            held = 0
        held += length
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(lengths)])]


def _score_rows(
    model: HookedModel,
    rows: Sequence[_Row],
    kept_bytes: int,
    memory: Memory | None,
    names: Sequence[Hashable],
) -> list[_Pass]:
    """Read a batch of rows, and score them in passes over trees of similar sizes.

    kept_bytes: of a token's keys and values. memory, names: as `score_each` has them.
    """
    rows = sorted(rows, key=lambda row: -len(row.tree))
    ids = [row.ids for row in rows]
    if memory is None:
        layers, seen = read_prompts(model, ids)
    else:
        layers, seen = read_on(model, ids, [names[row.part.prompt] for row in rows], memory)
    sizes = [len(row.tree) for row in rows]
    width = seen.shape[1] + sizes[0]
    slot_bytes = kept_bytes + (2 + model.dtype.itemsize) * width  # and masks
    most = min(pass_tokens(model, width, TREES), most_held(model) // slot_bytes)
    passes: list[_Pass] = []
    for batch in length_batches(sizes, most, ALIKE):
        own = slice(batch[0], batch[-1] + 1)
        kept = [(keys[own], values[own]) for keys, values in layers]
        sums = _score_pass(model, kept, seen[own], rows[own])
        passes.append(([row.part for row in rows[own]], fetched(sums)))
    return passes


def _score_pass(
    model: HookedModel, layers: Layers, seen: Bool[Tensor, "row slot"], rows: Sequence[_Row]
) -> Float[Tensor, "row continuation"]:
    """Score the continuations of all rows in one packed pass.

    layers, seen: of what is read first. A slot that pads a tree sees that and itself.
    """
    trees = [row.tree for row in rows]
    before = int(seen.any(0).nonzero().max()) + 1
    ids, at, visible = tree_rows(trees, [len(row.ids) for row in rows])
    sees_ids = sent(seen[:, None, :before], model.device).expand(-1, ids.shape[1], -1)
    hidden, _ = model.packed(
        [(keys[:, :, :before], values[:, :, :before]) for keys, values in layers],
        sent(ids, model.device),
        sent(at, model.device),
        torch.cat([sees_ids, sent(visible, model.device)], 2),
        sent(seen[:, :before].cumsum(1) - 1, model.device),
    )
    return read_trees(model, hidden, trees, torch.zeros(1, len(rows), dtype=torch.long))[:, 0]


@torch.inference_mode()
def score_each(
    model: HookedModel,
    prompts: Sequence[Ids],
    prefixes: Sequence[Sequence[Ids]],
    endings: Sequence[Sequence[Ids]],
    memory: Memory | None = None,
    names: Sequence[Hashable] = (),
) -> list[Float[Tensor, "prefix ending"]]:
    """Log-probability of each ending after each prefix after its prompt, in nats, for many prompts at once.

    Args:
        prefixes: ids that follow each prompt, each of at least one token, which are not scored.
        endings: ids that follow each prefix of each prompt; at least one for a prompt.
        memory, names: keys and values kept from earlier calls under the prompts' names, brought up to date.

    Raises:
        ValueError: a sequence is longer than the model's context, or an id is none of the model's.
    """
    model.check_ids(ids for rows in (prompts, *prefixes, *endings) for ids in rows)
    lengths = [
        len(ids) + max(map(len, before), default=0) + max(map(len, after))
        for ids, before, after in zip(prompts, prefixes, endings)
    ]
    for tokens in set(lengths):
        model.check_length(tokens)
    alone = {tokens for tokens in set(lengths) if model.path(tokens) or model.rereads(tokens)}
    sums = [torch.zeros(len(before), len(after)) for before, after in zip(prefixes, endings)]
    together: list[int] = []
    for i, each in enumerate(zip(prompts, prefixes, endings)):
        if lengths[i] in alone:
            sums[i] = score_alone(model, *each)
        elif len(prefixes[i]):
            together.append(i)
    kept_bytes = token_bytes(model)
    most = most_held(model) // kept_bytes

    def run(group: list[int]) -> list[_Pass]:
        """A prompt of several rows may be more than a batch."""
        rows = [row for i in group for row in _rows(i, prompts[i], prefixes[i], endings[i])]
        batches = tree_batches([row.ids for row in rows], most)
        return [
            each
            for batch in batches
            for each in _score_rows(model, [rows[k] for k in batch], kept_bytes, memory, names)
        ]

    groups = [[together[k] for k in group] for group in tree_batches([prompts[i] for i in together], most)]
    passes = [each for group in halved(groups, run) for each in group]  # none of which was waited for
    for parts, scores in passes:
        for part, found in zip(parts, scores()):
            members = sums[part.prompt].view(-1)[part.members]
            members[:] = found[: len(members)]
    return sums


@torch.inference_mode()
def score_alone(
    model: HookedModel, prompt: Ids, prefixes: Sequence[Ids], endings: Sequence[Ids]
) -> Float[Tensor, "prefix ending"]:
    """As `score_each` for one prompt, of which each prefix is read by itself; exact for every model."""
    scored = [len(ending) for ending in endings]
    sums = torch.zeros(len(prefixes), len(endings))
    cache: PrefixCache | None = None
    for p, prefix in enumerate(prefixes):
        if model.rereads(len(prompt) + len(prefix) + max(scored)):
            sums[p] = score_whole(model, [*prompt, *prefix], endings, scored)
            continue
        cache = model.read(prompt) if cache is None else cache
        read = model.read(prefix[:-1], model.fork(cache))
        for part in parts_of([1 + n for n in scored]):
            continuations = [[prefix[-1], *ending] for ending in endings[part]]
            sums[p, part] = score(model, read, continuations, scored[part])
    return sums
