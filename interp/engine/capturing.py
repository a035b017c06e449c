"""Activations at chosen tokens, sliced inside the hook, kept on the device and copied once a pass.

The prompt boundary is the usual one. An episode's prompts extend one another, so one pass over the longest
reads every step's boundary.

>>> acts = capture(model, prompts, sites=["resid_post"], at="boundary")
>>> acts.values.shape                       # [decision, site, layer, d_model]
>>> text = capture(model, "You see a mug 1 and a pen 1.", at="all")
>>> text["resid_post", 2].shape             # [token, d_model]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.engine.activations import Activations as Activations
from interp.engine.packing import WORTH, ancestors, merge
from interp.engine.positions import At, Reading, Trace, is_single, readings
from interp.engine.reading import Rows
from interp.models.caches import Layers, PassingLayer, layers_of
from interp.models.devices import fetched, halved, pass_tokens, sent
from interp.models.finite import not_finite
from interp.models.hooked import HookedModel
from interp.models.hooks import Edit, joining, only
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import batches, padded
from interp.prompts.text import Readable, read_texts

#: Most tokens of a tree, whose mask has the square of them.
TREE = 8192
#: Tokens to each kept one from which on the last block runs at the kept ones alone.
FEW = 8
#: Most tokens of rows that are read in one pass on a CPU, whose cache holds their activations.
READ = 2048


def _chains(model: HookedModel, wanted: Sequence[Reading], members: Sequence[int]) -> list[list[int]]:
    """Sequences of an episode, the shortest first, in rows where each is a prefix of the next."""
    chains: list[list[int]] = []
    for index in members:
        ids = wanted[index].ids
        ends = (wanted[chain[-1]].ids for chain in chains)
        extended = next((c for c, end in enumerate(ends) if ids[: len(end)] == end), None)
        if extended is None or model.stands_alone(len(ids)):
            chains.append([index])
        else:
            chains[extended].append(index)
    return chains


def _plan(
    model: HookedModel, wanted: Sequence[Reading], batch_tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences that share a row (each a prefix of the row's last), and those that share a packed tree."""
    episodes: dict[str, list[int]] = defaultdict(list)
    kept = (i for i, reading in enumerate(wanted) if reading.positions)
    for index in sorted(kept, key=lambda i: len(wanted[i].ids)):
        episodes[wanted[index].episode].append(index)
    rows: list[list[int]] = []
    trees: list[list[int]] = []
    for members in episodes.values():
        chains = _chains(model, wanted, members)
        ends = [wanted[chain[-1]].ids for chain in chains]
        packs = model.support.trajectory == "fast" and model.packs(max(map(len, ends)))
        most = min(WORTH * sum(map(len, ends)), batch_tokens, TREE)
        if packs and len(chains) > 1 and len(merge(ends)[0]) <= most:
            trees.append(members)
        else:
            rows += chains
    return rows, trees


def common_width(model: HookedModel, sites: Sequence[str], layers: Sequence[int]) -> int:
    """The one width of some sites in some layers.

    Raises ValueError where they differ, NotImplementedError for a site that a layer does not have.
    """
    first_widths = {}
    for site in sites:
        by_width: dict[int, list[int]] = {}
        for layer in layers:
            by_width.setdefault(model.width(site, layer), []).append(layer)
        if len(by_width) > 1:
            listed = ", ".join(f"{w} in layers {', '.join(map(str, some))}" for w, some in by_width.items())
            raise ValueError(
                f"{site} differs in width between layers ({listed}): capture the layers of each width by "
                "themselves (layers=)."
            )
        first_widths[site] = next(iter(by_width))
    if len(set(first_widths.values())) > 1:
        listed = ", ".join(f"{site} {width}" for site, width in first_widths.items())
        raise ValueError(f"The sites differ in width ({listed}): capture each width by itself.")
    return first_widths[sites[0]]


def _keeping(held: Float[Tensor, "kept key width"], number: int, at: Int[Tensor, "2 kept"]) -> Edit:
    """A hook that keeps an activation at each (row, token) as that of one key."""

    def hook(tensor: Tensor) -> None:
        rows, tokens = at.to(tensor.device)  # where layers lie on several
        held[:, number] = tensor[rows, tokens]

    return hook


def _read(
    model: HookedModel,
    keys: Sequence[tuple[str, int]],
    width: int,
    row: Sequence[int],
    token: Sequence[int],
    **inputs: Any,
) -> Float[Tensor, "kept key width"]:
    """One pass: each (site, layer) at each (row, token), in float32 on the model's device."""
    held = torch.empty(len(row), len(keys), width, device=model.device)
    index = sent(torch.tensor([row, token]), model.device)
    edits = {key: _keeping(held, number, index) for number, key in enumerate(keys)}
    with only(model.blocks, 0, max(layer for _, layer in keys), model.layout), model.hooks(edits):
        model.inner(**model.uncached, **inputs)
    return held


def _read_few(
    model: HookedModel,
    keys: Sequence[tuple[str, int]],
    width: int,
    row: Sequence[int],
    token: Sequence[int],
    input_ids: Int[Tensor, "row token"],
) -> Float[Tensor, "kept key width"]:
    """As `_read` of rows without a mask, with the last block at the kept tokens alone.

    Of all others that block gives keys and values, which the kept ones see.
    """
    held = torch.empty(len(row), len(keys), width, device=model.device)
    last, index = model.n_layers - 1, sent(torch.tensor([row, token]), model.device)
    entering: list[Tensor] = []

    def enter(tensor: Tensor) -> None:
        rows, tokens = index.to(tensor.device)
        entering.append(tensor[rows, tokens])

    edits = {key: _keeping(held, number, index) for number, key in enumerate(keys) if key[1] < last}
    cache = model.new_cache()
    cache.layers += [PassingLayer() for _ in range(last)]
    with model.hooks(edits | {("resid_pre", last): enter}):
        model.fill(cache, input_ids)
    # The kept tokens once more, each row's side by side, as they enter the last block.
    seen: Counter[int] = Counter()
    slots = []
    for r in row:
        slots.append(seen[r])
        seen[r] += 1
    many = max(slots) + 1
    place = sent(torch.tensor([row, slots]), model.device)
    at = torch.zeros(len(input_ids), many, dtype=torch.long, device=model.device)
    at[place[0], place[1]] = index[1]
    stream = entering[0].new_zeros(len(input_ids), many, entering[0].shape[1])
    stream[place.to(stream.device)[0], place.to(stream.device)[1]] = entering[0]
    keys_at = torch.arange(input_ids.shape[1], device=model.device)
    own = torch.eye(many, dtype=torch.bool, device=model.device).expand(len(input_ids), -1, -1)
    visible = torch.cat([keys_at < at[..., None], own], 2)
    prefix = [*model.empty()[:-1], layers_of(cache)[-1]]
    edits = {key: _keeping(held, number, place) for number, key in enumerate(keys) if key[1] == last}
    joined = joining(model.blocks, [0] * last + [many], lambda *_: stream, many, model.layout)
    with joined, model.hooks(edits):
        model.packed(prefix, input_ids.gather(1, at), at, visible, keys_at[None])
    return held


@torch.inference_mode()
def at_ends(
    model: HookedModel,
    rows: Sequence[Sequence[int]],
    layers: Layers,
    seen: Bool[Tensor, "row slot"],
    sites: Sequence[str],
) -> Float[Tensor, "row site layer width"]:
    """Sites at the last token of rows of which keys and values are there, on the CPU.

    That token alone is read again, in one pass. `capture` reads the rows whole, and is the reference.

    Args:
        rows: ids of each.
        layers: keys and values of each row; the slot after those in `seen` is written to where there is one.
        seen: which slots count; on the CPU.
    """
    names, depths = every_layer(sites), range(model.n_layers)
    keys = [(name, layer) for name in names for layer in depths]
    held = torch.empty(len(rows), len(keys), common_width(model, names, depths), device=model.device)
    first = sent(torch.tensor([list(range(len(rows))), [0] * len(rows)]), model.device)
    edits = {key: _keeping(held, number, first) for number, key in enumerate(keys)}
    before = seen & (seen.cumsum(1) < seen.sum(1, keepdim=True))
    last = sent(torch.tensor([[row[-1]] for row in rows]), model.device)
    with model.hooks(edits):
        Rows(model, layers, before, [1] * len(rows), 0).forward(last)
    return held.view(len(rows), len(names), len(depths), -1).cpu()


@dataclass(frozen=True)
class _Passes:
    """The passes of a capture: each gives the sequences that it reads, and their kept rows on the CPU."""

    model: HookedModel
    wanted: Sequence[Reading]
    keys: Sequence[tuple[str, int]]
    width: int

    def tree(self, members: list[int]) -> tuple[list[int], Callable[[], Tensor]]:
        """Read the sequences of an episode as a packed tree."""
        model = self.model
        tokens, parents, paths = merge([self.wanted[i].ids for i in members])
        seen = sent(ancestors(parents), model.device)
        depth = seen.sum(1)[None] - 1
        slots = [path[p] for i, path in zip(members, paths) for p in self.wanted[i].positions]
        held = _read(
            model,
            self.keys,
            self.width,
            [0] * len(slots),
            slots,
            input_ids=sent(torch.tensor([tokens]), model.device),
            position_ids=depth,
            attention_mask=model.mask(seen[None], depth, depth),
        )
        return members, fetched(held)

    def batch(self, rows: list[list[int]]) -> tuple[list[int], Callable[[], Tensor]]:
        """Read rows of sequences, each a prefix of its row's last."""
        # Padding is on the right, where no earlier token looks: the causal mask alone is exact.
        ids = padded([self.wanted[row[-1]].ids for row in rows], self.model.device)
        kept = [(number, p) for number, row in enumerate(rows) for i in row for p in self.wanted[i].positions]
        most = max(Counter(number for number, _ in kept).values())
        read = _read_few if self._few(len(rows) * most, ids) else _read
        held = read(
            self.model,
            self.keys,
            self.width,
            [number for number, _ in kept],
            [position for _, position in kept],
            input_ids=ids,
        )
        return [i for row in rows for i in row], fetched(held)

    def _few(self, kept: int, ids: Tensor) -> bool:
        """Whether the last block is read, exactly, at few of the tokens; kept: in a row the most in any."""
        model = self.model
        last = max(layer for _, layer in self.keys) == model.n_layers - 1
        return last and FEW * kept <= ids.numel() and not model.path(ids.shape[1])

    def run(
        self, rows: list[list[int]], trees: list[list[int]], batch_tokens: int, progress: bool
    ) -> Iterator[tuple[list[int], Callable[[], Tensor]]]:
        """Read all rows and trees."""
        lengths = [len(self.wanted[row[-1]].ids) for row in rows]
        together = [[rows[r] for r in batch] for batch in batches(self.model, lengths, batch_tokens)]
        work = chain(halved(trees, self.tree), halved(together, self.batch))
        total = len(trees) + len(together)
        yield from tqdm(work, desc="capture", total=total, leave=False, disable=not progress)


@measured
@torch.inference_mode()
def capture(
    model: HookedModel,
    prompts: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_post",),
    at: At = "boundary",
    *,
    traces: Sequence[Trace] | None = None,
    layers: Sequence[int] | None = None,
    trajectory: bool = True,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Activations:
    """Read sites at chosen tokens of each prompt, with no logits and no layer above the last one named.

    Args:
        prompts: prompts of a format, texts, or lists of token ids.
        at: `boundary` (or `last`), `action_tag`, `trace` (every token of it), `all`, a span, an index, a list
            of indices, or a list of them for each prompt (see `interp.engine.positions.readings`).
        traces: what follows each prompt, for `trace`, `action_tag` and indices that count on into it:
            completions of `decode`, or texts.
        trajectory: read an episode's prompts together where their ids allow it; the values are the same.
        batch_tokens: most tokens in one pass, padding included (None: by the GPU's free memory, on a CPU
            2,048 and for a tree 8,192; a pass that does not fit the GPU is halved).

    Raises:
        ValueError: an empty list, a position or layer that is not there, or sites or layers of different
            widths.
    """
    wanted = _wanted(model, prompts, at, traces)
    names = every_layer(sites)
    depths = _depths(model, layers)
    width = common_width(model, names, depths)
    longest = max(len(reading.ids) for reading in wanted)
    tree_tokens, row_tokens = (batch_tokens or pass_tokens(model, longest, most) for most in (TREE, READ))
    starts = np.cumsum([0, *(len(reading.positions) for reading in wanted)])
    # All there will be, before the first pass: kept between a pass's own tensors it would scatter over the
    # memory.
    values = torch.empty(int(starts[-1]), len(names), len(depths), width)
    alone = [[i] for i, reading in enumerate(wanted) if reading.positions]
    rows, trees = _plan(model, wanted, tree_tokens) if trajectory else (alone, [])
    passes = _Passes(model, wanted, [(name, layer) for name in names for layer in depths], width)
    before = None
    for read in chain(passes.run(rows, trees, row_tokens, progress), [None]):
        if before is not None:
            members, held = before  # what the pass before read, while the GPU is at this one
            into = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
            values[torch.from_numpy(into)] = held().view(-1, *values.shape[1:])
        before = read
    check_finite(model, values, names, depths, np.repeat(np.arange(len(wanted)), np.diff(starts)))
    return Activations(
        values,
        tuple(names),
        depths,
        tuple(reading.hash for reading in wanted),
        model.weights_hash,
        str(model.dtype),
        _paths(len(wanted), rows, trees),
        tuple(p for reading in wanted for p in reading.positions),
        () if is_single(at) else tuple(starts.tolist()),
    )


def _wanted(
    model: HookedModel, prompts: Readable | Iterable[Readable], at: At, traces: Sequence[Trace] | None
) -> list[Reading]:
    """What is read; raises ValueError for nothing, and for what the model cannot read."""
    given = read_texts(model.tokenizer, prompts)
    if not given:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    wanted = readings(given, at, traces)
    if not any(reading.positions for reading in wanted):
        raise ValueError(f"None of the {len(wanted)} prompts has a token at {at!r}.")
    model.check_ids(reading.ids for reading in wanted)
    model.check_length(max(len(reading.ids) for reading in wanted))
    return wanted


def _paths(n: int, rows: Sequence[Sequence[int]], trees: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """How each of `n` sequences was read."""
    paths = ["plain"] * n
    for i in chain.from_iterable(trees):
        paths[i] = "shared prefix"
    for i in chain.from_iterable(row for row in rows if len(row) > 1):
        paths[i] = "trajectory"
    return tuple(paths)


def _depths(model: HookedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for; raises ValueError for one that is not there or named twice, and for none."""
    depths = tuple(range(model.n_layers)) if layers is None else tuple(int(layer) for layer in layers)
    if not depths or not set(depths) <= set(range(model.n_layers)) or len(set(depths)) < len(depths):
        raise ValueError(f"layers must be different ones of 0 to {model.n_layers - 1}, not {list(depths)}.")
    return depths


def check_finite(
    model: HookedModel,
    values: Float[Tensor, "row site layer width"],
    sites: Sequence[str],
    layers: Sequence[int],
    owners: Int[np.ndarray, "row"],
) -> None:
    """Raise ValueError naming the first activation that is not finite; owners: the prompt of each row."""
    if values.sum().isfinite():  # read once; a sum that overflows alone is looked into
        return
    finite = values.isfinite()
    if not finite.all():
        row, site, layer, _ = (~finite).nonzero()[0].tolist()
        where = f"first {sites[site]} of layer {layers[layer]} at prompt {owners[row]}"
        raise ValueError(not_finite(f"The activations of {model.architecture}", model.dtype, where))
