"""One prompt and its continuations, run once; then any number of patched cells of it, each exact.

Nothing before a patched position, and nothing below a patched layer, changes. So a cell is only the tokens
from its position on, from its layer on: cells lie side by side after the unpatched keys and values, join
the pass at their own layer with the unpatched states, and are read together. `Plain` is the reference
implementation, one forward pass for each cell and continuation, and serves the models for which packing is
not exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.engine.packing import Tree, divergence, grow, read_last, read_targets
from interp.models import hooks
from interp.models.caches import Layers, layers_of
from interp.models.hooked import HookedModel
from interp.models.inner import largest

#: Most packed tokens in a pass on a CPU and on a GPU: more would only look at each other's masked keys.
PASS = (512, 4096)
#: Cells of more slots than this are rows of a batch, each seeing its own slots alone; shorter ones share
#: one row, where the prefix is not copied for each.
LONG = 64
#: A row of a pass, the slots that are replaced in it, which part of their width, and by what.
Replacement = tuple[int, Tensor | list[int], slice, Tensor]
#: Replacements at each site and layer.
Replacements = Mapping[tuple[str, int], Sequence[Replacement]]


@dataclass(frozen=True)
class Cell:
    """One intervention: the activation at a site of a layer replaced at `positions` by `values`.

    Values with a continuation axis depend on what follows the prompt (`Plain` alone takes them). `columns`
    is the part of the site's width that is replaced (one head's, for `z`).
    """

    site: str
    layer: int
    positions: tuple[int, ...]
    values: Float[Tensor, "*continuation position width"]
    columns: slice


class Packed:
    """A prompt with continuations after it: the unpatched run, kept, and cells of it in packed passes.

    `values[site, layer]` [position, width] are the unpatched activations, `base` [continuation] the unpatched
    log-probabilities in nats, `layers` the prompt's keys and values but for its last token.

    Args:
        continuations: ids that follow it.
        scored: how many last tokens of each continuation are scored.
        sites: read at `positions` of every layer.
        positions: in the prompt; cells are at these.
        prefix: keys and values of the prompt's first tokens, if they were read before.
        budget: bytes that one pass may take, beside the model and the unpatched run.
        compared: continuations where the next-token distribution before the first scored token is compared,
            too.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: HookedModel,
        ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        scored: Sequence[int],
        sites: Sequence[str] = (),
        positions: Sequence[int] = (),
        prefix: Layers = (),
        budget: int = 256 * 2**20,
        compared: Sequence[int] = (),
    ):
        self.model, self.budget = model, budget
        self.tree: Tree = grow([[ids[-1], *c] for c in continuations], scored)
        model.check_length(len(ids) + max(map(len, continuations)))
        model.check_ids([ids, *continuations])
        last = len(ids) - 1
        self.first = min(positions, default=last)
        # Slots are the prompt from `first` on and the tree, whose root is the prompt's last token.
        self.root = last - self.first
        self.tokens = torch.tensor([*ids[self.first : -1], *self.tree.tokens])
        self.at = torch.cat([torch.arange(self.first, last), self.tree.depths + last])
        self.visible = self._visible()
        self.values, self.states, self.final, layers = self._run(ids, sites, positions, prefix)
        self.layers = [(keys[:, :, :last], values[:, :, :last]) for keys, values in layers]
        self.base = read_targets(model, self.final[None, self.root :], self.tree)[0]
        first_target = {owner: node for owner, node, _ in reversed(self.tree.targets)}
        self.compared = [first_target[number] for number in compared]
        #: log-probabilities [compared, token] of the unpatched run
        self.heads: Tensor | None = None
        if self.compared:
            self.heads = model.logits(self.final[self.root :][self.compared]).log_softmax(-1)

    def _visible(self) -> Bool[Tensor, "slot slot"]:
        """The slots that each slot sees."""
        visible = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        visible[: self.root, : self.root] = torch.ones(self.root, self.root, dtype=torch.bool).tril()
        visible[self.root :, : self.root] = True
        visible[self.root :, self.root :] = self.tree.visible
        return visible

    def _run(
        self, ids: Sequence[int], sites: Sequence[str], positions: Sequence[int], prefix: Layers
    ) -> tuple[
        dict[tuple[str, int], Float[Tensor, "position _"]],
        list[Float[Tensor, "slot _"]],
        Float[Tensor, "slot d_model"],
        Layers,
    ]:
        """The unpatched run: activations, the stream before each block, final states, and keys and values.

        The prompt and its first continuation are one sequence and need no mask; the other branches are
        packed after them.
        """
        model = self.model
        prefix = [(keys[:, :, : self.first], values[:, :, : self.first]) for keys, values in prefix]
        start = prefix[0][0].shape[2] if prefix else 0
        parents = self.tree.parents
        branch = next((node for node, parent in enumerate(parents) if parent != node - 1), len(self.tree))
        line = self.root + branch
        kept = _Kept(sites, model.n_layers)
        cache = model.new_cache(prefix)
        sequence = torch.tensor(
            [[*ids[start : self.first], *self.tokens[:line].tolist()]], device=model.device
        )
        at = torch.tensor(list(positions), dtype=torch.long, device=model.device) - start
        with model.hooks(kept.edits(at, self.first - start)):
            output = model.inner(input_ids=sequence, past_key_values=cache, use_cache=True)
        hidden = [output.last_hidden_state[0, self.first - start :]]
        layers = layers_of(cache)
        if line < len(self.tokens):
            index = torch.arange(line, len(self.tokens))
            prompt = torch.ones(len(index), self.first, dtype=torch.bool)
            sees_line = torch.cat([prompt, self.visible[line:, :line]], 1)
            with model.hooks(kept.edits(None, 0)):
                hidden.append(self._forward(layers, index, sees_line, self.visible[line:, line:])[0])
        states = [torch.cat(parts) for parts in kept.states]
        return kept.values, states, torch.cat(hidden), layers

    def _forward(
        self,
        prefix: Layers,
        index: Int[Tensor, " slot"],
        sees_prefix: Bool[Tensor, "slot prefix_key"],
        visible: Bool[Tensor, "slot slot"],
        rows: int = 1,
    ) -> Float[Tensor, "row slot d_model"]:
        """Final states of packed slots, which hold the tokens `index` of the unpatched run."""
        device = self.model.device
        keys = sees_prefix.shape[1]
        hidden, _ = self.model.packed(
            [(k[:, :, :keys], v[:, :, :keys]) for k, v in prefix],
            self.tokens[index].to(device).expand(rows, -1),
            self.at[index].to(device)[None],
            torch.cat([sees_prefix, visible], 1).to(device)[None],
            torch.arange(keys, device=device)[None],
        )
        return hidden

    def _slots(self) -> int:
        """How many packed tokens a pass may have: what a block makes of them, and masks, fit the budget."""
        config, item = self.model.config, self.model.dtype.itemsize
        inner = largest(config, "intermediate_size") or 4 * self.model.d_model
        eager = config._attn_implementation == "eager"
        each_key = 2 + item * (1 + 2 * self.model.n_heads * eager)  # bytes for each slot and key
        each_slot = item * (4 * inner + 12 * self.model.d_model) + each_key * (len(self.tokens) + self.first)
        # The largest n with each_key * n^2 + each_slot * n within the budget.
        fits = ((each_slot**2 + 4 * each_key * self.budget) ** 0.5 - each_slot) / (2 * each_key)
        return max(1, min(int(fits), PASS[self.model.device.type == "cuda"]))

    def _offset(self, cell: Cell) -> int:
        """The slot of a cell's first position, from which on something changes."""
        return min(cell.positions) - self.first

    def patched(
        self, cells: Sequence[Cell], progress: bool = False
    ) -> Float[Tensor, "cell continuation_and_compared"]:
        """Log-probabilities of every continuation with each cell's activation replaced, in nats.

        After them, for each of `compared`, KL(unpatched || patched) of the next token.
        """
        out = torch.empty(len(cells), self.tree.width + len(self.compared))
        # The longest of a layer first.
        order = sorted(range(len(cells)), key=lambda i: (cells[i].layer, min(cells[i].positions)))
        ordered = [cells[i] for i in order]
        slots = self._slots()
        start = 0
        with tqdm(total=len(cells), desc="cells", leave=False, disable=not progress) as bar:
            while start < len(order):
                end, total = self._end_of_pass(ordered, start, slots)
                long = len(self.tokens) - self._offset(ordered[start]) > LONG
                run = self._rows if long else self._chunk
                try:
                    out[order[start:end]] = run(ordered[start:end])
                except torch.OutOfMemoryError:
                    if end - start == 1:
                        raise
                    torch.cuda.empty_cache()
                    slots = total // 2
                    continue
                bar.update(end - start)
                start = end
        return out

    def _end_of_pass(self, cells: Sequence[Cell], start: int, slots: int) -> tuple[int, int]:
        """Where the pass ends that begins with a cell, and its slots; rows of long cells are of one layer."""
        longest = len(self.tokens) - self._offset(cells[start])
        end, total = start + 1, longest
        while end < len(cells):
            length = longest if longest > LONG else len(self.tokens) - self._offset(cells[end])
            if total + length > slots or (longest > LONG and cells[end].layer != cells[start].layer):
                break
            total += length
            end += 1
        return end, total

    @torch.inference_mode()
    def _rows(self, cells: Sequence[Cell]) -> Float[Tensor, "cell continuation_and_compared"]:
        """As `patched`, for cells of one layer in one pass, a row each: from the first one's position on."""
        offset, layer = self._offset(cells[0]), cells[0].layer
        index = torch.arange(offset, len(self.tokens))
        replacements = defaultdict(list)
        for row, cell in enumerate(cells):
            slots = torch.tensor(cell.positions, device=self.model.device) - self.first - offset
            replacements[cell.site, layer].append((row, slots, cell.columns, cell.values))
        counts = [0] * layer + [len(index)] * (self.model.n_layers - layer)
        sees_prefix = torch.ones(len(index), offset + self.first, dtype=torch.bool)
        visible = self.visible[offset:, offset:]
        with self._patching(index, counts, replacements):
            hidden = self._forward(self.layers, index, sees_prefix, visible, len(cells))
        return self._read(hidden[:, -len(self.tree) :])

    @torch.inference_mode()
    def _chunk(self, cells: Sequence[Cell]) -> Float[Tensor, "cell continuation_and_compared"]:
        """As `patched`, for cells that fit one pass, side by side in one row.

        A slot is a token of a cell. The slots that a block has to touch are packed in the order of the
        layers at which they join the pass.
        """
        size, depth, device = len(self.tokens), self.model.n_layers, self.model.device
        offsets = torch.tensor([self._offset(cell) for cell in cells])
        lengths = size - offsets
        ends = lengths.cumsum(0)
        owner = torch.repeat_interleave(torch.arange(len(cells)), lengths)  # slot -> cell
        index = torch.cat([torch.arange(offset, size) for offset in offsets.tolist()])  # slot -> token
        join = self._joins(cells, owner, index > offsets[owner])
        order = join.argsort(stable=True)[: int((join < depth).sum())]  # packed slot -> slot
        counts = torch.searchsorted(join[order], torch.arange(depth), right=True).tolist()
        packed_slot = order.new_zeros(len(index)).index_put_((order,), torch.arange(len(order)))
        replacements = defaultdict(list)
        for cell, start in zip(cells, (ends - lengths - offsets).tolist()):
            slots = packed_slot[torch.tensor(cell.positions) - self.first + start].to(device)
            replacements[cell.site, cell.layer].append((0, slots, cell.columns, cell.values))
        hidden = self.final[index.to(device)]  # what no block had to touch is as in the unpatched run
        hidden[order.to(device)] = self._packed(index[order], owner[order], offsets, counts, replacements)
        nodes = ends[:, None] + torch.arange(-len(self.tree), 0)
        return self._read(hidden[nodes.to(device)])

    def _joins(
        self, cells: Sequence[Cell], owner: Int[Tensor, " slot"], later: Bool[Tensor, " slot"]
    ) -> Int[Tensor, " slot"]:
        """The layer at which each slot joins.

        After a patched token the first change is in its keys and values: of its own layer for resid_pre,
        else of the next. later: slots after a cell's first position.
        """
        next_layer = torch.tensor([c.site != "resid_pre" and len(c.positions) == 1 for c in cells])
        layer = torch.tensor([cell.layer for cell in cells])
        return layer[owner] + (next_layer[owner] & later)

    def _packed(
        self,
        index: Int[Tensor, " slot"],
        owner: Int[Tensor, " slot"],
        offsets: Int[Tensor, " cell"],
        counts: Sequence[int],
        replacements: Replacements,
    ) -> Float[Tensor, "slot d_model"]:
        """Final states of packed slots of several cells, each after the prompt up to its first position."""
        prefix = offsets + self.first
        sees_prefix = torch.arange(int(prefix.max())) < prefix[owner, None]
        same_cell = owner[:, None] == owner[None]
        visible = same_cell & self.visible[index[:, None], index[None]]
        with self._patching(index, counts, replacements):
            return self._forward(self.layers, index, sees_prefix, visible)[0]

    @contextmanager
    def _patching(
        self, index: Int[Tensor, " slot"], counts: Sequence[int], replacements: Replacements
    ) -> Iterator[None]:
        """A pass whose slots join at a layer of their own with the unpatched states, and are patched."""
        tokens = index.to(self.model.device)

        def enter(layer: int, start: int, end: int) -> Tensor:
            return self.states[layer][tokens[start:end]]

        edits = {key: _replacing(parts) for key, parts in replacements.items()}
        with (
            hooks.joining(self.model.blocks, counts, enter, len(index), self.model.layout),
            self.model.hooks(edits),
        ):
            yield

    def _read(
        self, hidden: Float[Tensor, "cell node d_model"]
    ) -> Float[Tensor, "cell continuation_and_compared"]:
        logp = read_targets(self.model, hidden, self.tree)
        if self.heads is None:
            return logp
        return torch.cat([logp, divergence(self.model, hidden[:, self.compared], self.heads)], 1)


class _Kept:
    """What is kept of the unpatched run: activations at the sites, and the stream before each block."""

    def __init__(self, sites: Sequence[str], n_layers: int):
        self.sites = sites
        self.values: dict[tuple[str, int], Tensor] = {}
        self.states: list[list[Tensor]] = [[] for _ in range(n_layers)]

    def edits(self, positions: Int[Tensor, " position"] | None, first: int) -> hooks.Edits:
        """Hooks that keep the stream from token `first` on, and the sites at positions (None: at none)."""

        def reading(site: str, layer: int) -> hooks.Edit:
            def read(tensor: Tensor) -> None:
                if site == "resid_pre":
                    self.states[layer].append(tensor[0, first:].clone())
                if site in self.sites and positions is not None:
                    self.values[site, layer] = tensor[0, positions].clone()

            return read

        sites = dict.fromkeys(["resid_pre", *self.sites])
        return {(site, layer): reading(site, layer) for site in sites for layer in range(len(self.states))}


def _replacing(parts: Sequence[Replacement]) -> hooks.Edit:
    def edit(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        for row, slots, columns, values in parts:
            tensor[row, slots, columns] = values.to(tensor)
        return tensor

    return edit


def _edit_of(cell: Cell | None, continuation: int) -> hooks.Edits:
    """The hook of a cell in the pass over a continuation, which may have values of its own."""
    if cell is None:
        return {}
    values = cell.values[continuation] if cell.values.ndim == 3 else cell.values
    return {(cell.site, cell.layer): _replacing([(0, list(cell.positions), cell.columns, values)])}


class Plain:
    """The reference implementation of `Packed`: a pass over prompt and continuation for each cell."""

    def __init__(
        self,
        model: HookedModel,
        ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        scored: Sequence[int],
        sites: Sequence[str] = (),
        positions: Sequence[int] = (),
        prefix: Layers = (),
        budget: int = 0,
        compared: Sequence[int] = (),
    ):
        self.model, self.ids = model, list(ids)
        self.continuations, self.scored, self.compared = continuations, scored, list(compared)
        model.check_ids([self.ids, *continuations])
        self.values = self._read(self.ids, sites, list(positions))
        if sites and model.stands_alone(len(self.ids) + max(map(len, continuations))):
            # What a token's activations are depends on the length of the whole.
            each = [self._read([*self.ids, *tail], sites, list(positions)) for tail in continuations]
            self.values = {key: torch.stack([values[key] for values in each]) for key in self.values}
        self.base, self.heads = self._score()
        self.layers: Layers = []

    @torch.inference_mode()
    def _read(
        self, ids: Sequence[int], sites: Sequence[str], positions: list[int]
    ) -> dict[tuple[str, int], Float[Tensor, "position _"]]:
        """The activations in a pass over some ids."""
        values: dict[tuple[str, int], Tensor] = {}

        def reading(key: tuple[str, int]) -> Callable[[Tensor], None]:
            return lambda tensor: values.update({key: tensor[0, positions].clone()})

        keys = [(site, layer) for site in sites for layer in range(self.model.n_layers)]
        with self.model.hooks({key: reading(key) for key in keys}):
            self.model.whole(torch.tensor([list(ids)], device=self.model.device))
        return values

    @torch.inference_mode()
    def _score(
        self, cell: Cell | None = None
    ) -> tuple[Float[Tensor, " continuation"], Float[Tensor, "compared vocabulary"] | None]:
        """Log-probabilities, in nats, and the next-token distributions that are compared."""
        logp = torch.empty(len(self.continuations))
        heads: dict[int, Tensor] = {}
        for number, (tail, n) in enumerate(zip(self.continuations, self.scored)):
            ids = torch.tensor([[*self.ids, *tail]], device=self.model.device)
            with self.model.hooks(_edit_of(cell, number)):
                hidden = self.model.whole(ids)[0]
            logp[number] = read_last(self.model, hidden, ids[0], n)
            if number in self.compared:
                heads[number] = self.model.logits(hidden[len(hidden) - n - 1]).log_softmax(-1)
        return logp, torch.stack([heads[number] for number in self.compared]) if heads else None

    def patched(
        self, cells: Sequence[Cell], progress: bool = False
    ) -> Float[Tensor, "cell continuation_and_compared"]:
        """As `Packed.patched`."""
        rows = []
        for cell in tqdm(cells, desc="cells", leave=False, disable=not progress):
            row, heads = self._score(cell)
            if heads is not None and self.heads is not None:
                row = torch.cat([row, (self.heads.exp() * (self.heads - heads)).sum(-1).cpu()])
            rows.append(row)
        return torch.stack(rows)
