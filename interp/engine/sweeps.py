"""One prompt and its continuations, run once; then any number of patched cells of it, each exact.

Nothing before a patched position, and nothing below a patched layer, changes. So a cell is only the tokens from its
position on, from its layer on: cells lie side by side after the unpatched keys and values, join the pass at their own
layer with the unpatched states, and are read off together. `Plain` is the slow twin, one forward pass for each cell and
continuation, and serves the models for which packing is not exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from interp.engine.packing import Tree, divergence, grow, read_asked, read_last
from interp.models import hooks
from interp.models.hooked import Layers, layers_of
from interp.models.inner import largest

#: Most packed tokens in a pass on a CPU and on a GPU: more would only look at each other's masked keys.
PASS = (512, 4096)
#: Cells of more slots than this are read as rows of a batch, each seeing its own slots alone; shorter ones share one row,
#: where the prefix is not copied for each.
LONG = 64


@dataclass(frozen=True)
class Cell:
    """One intervention: the activation at a site of a layer replaced at `positions` by `values` [position, width].

    `values` are [continuation, position, width] where they depend on what follows the prompt (`Plain` alone). `columns` is the part of the site's width that is replaced (one head's, for `z`).
    """

    site: str
    layer: int
    positions: tuple[int, ...]
    values: torch.Tensor
    columns: slice


class Packed:
    """A prompt with continuations after it: the unpatched run, kept, and cells of it in packed passes.

    ids: the prompt; `continuations` follow it, the last `scored[i]` tokens of each scored; sites: read at `positions` of every
    layer into `values[site, layer]` [position, width]; prefix: keys and values of the prompt's first tokens, if known.
    budget: bytes that one pass may take, beside the model and the unpatched run. compared: continuations where the whole next-token
    distribution before the first scored token is kept, in `heads` (log-probabilities [compared, token]), and compared in `patched`.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model,
        ids: Sequence[int],
        continuations,
        scored,
        sites=(),
        positions: Sequence[int] = (),
        prefix: Layers = (),
        budget: int = 256 * 2**20,
        compared: Sequence[int] = (),
    ):
        self.model, self.budget, self.positions = model, budget, list(positions)
        self.tree: Tree = grow([[ids[-1], *c] for c in continuations], scored)
        model.check_length(len(ids) + max(map(len, continuations)))
        model.check_ids([ids, *continuations])
        self.first = min(positions, default=len(ids) - 1)
        known = prefix[0][0].shape[2] if prefix else 0
        if known > self.first:
            prefix, known = [(k[:, :, : self.first], v[:, :, : self.first]) for k, v in prefix], self.first
        chain = (
            len(ids) - 1 - self.first
        )  # slots: the prompt from `first` on, its last token the root of the tree
        self.tokens = torch.tensor([*ids[self.first : -1], *self.tree.tokens])
        self.at = torch.cat([torch.arange(self.first, len(ids) - 1), self.tree.depths + len(ids) - 1])
        self.visible = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        self.visible[:chain, :chain] = torch.ones(chain, chain, dtype=torch.bool).tril()
        self.visible[chain:, :chain] = True
        self.visible[chain:, chain:] = self.tree.visible
        # The prompt and its first continuation are one sequence and need no mask; the other branches are packed after them.
        line = chain + next(
            (node for node, parent in enumerate(self.tree.parents) if parent != node - 1), len(self.tree)
        )
        cache, values, states = (
            model.new_cache(prefix),
            defaultdict(list),
            [[] for _ in range(model.n_layers)],
        )
        wanted = [
            (site, layer) for site in dict.fromkeys(["resid_pre", *sites]) for layer in range(model.n_layers)
        ]

        def keep(key, kept, slots):
            def read(tensor):
                if key[0] == "resid_pre":
                    states[key[1]].append(tensor[0, slots].clone())
                if key[0] in sites:
                    values[key].append(tensor[0, kept].clone())

            return read

        kept = torch.tensor(self.positions, dtype=torch.long, device=model.device) - known
        with model.hooks({key: keep(key, kept, slice(self.first - known, None)) for key in wanted}):
            sequence = torch.tensor(
                [[*ids[known : self.first], *self.tokens[:line].tolist()]], device=model.device
            )
            hidden = [
                model.inner(input_ids=sequence, past_key_values=cache, use_cache=True).last_hidden_state[
                    0, self.first - known :
                ]
            ]
        layers = layers_of(cache)
        if line < len(self.tokens):
            index = torch.arange(line, len(self.tokens))
            behind = torch.cat(
                [torch.ones(len(index), self.first, dtype=torch.bool), self.visible[line:, :line]], 1
            )
            with model.hooks({key: keep(key, slice(0), slice(None)) for key in wanted}):
                hidden.append(self._forward(layers, index, behind, self.visible[line:, line:])[0][0])
        self.values = {key: torch.cat(parts) for key, parts in values.items()}
        self.states = [torch.cat(parts) for parts in states]
        self.final = torch.cat(hidden)
        self.layers = [(k[:, :, : len(ids) - 1], v[:, :, : len(ids) - 1]) for k, v in layers]
        self.base = read_asked(model, self.final[None, chain:], self.tree)[0]
        self.compared = [
            next(node for owner, node, _ in self.tree.asked if owner == number) for number in compared
        ]
        self.heads = (
            model.logits(self.final[chain:][self.compared]).log_softmax(-1) if self.compared else None
        )

    def _forward(self, prefix, index, behind, within, rows=1):
        device = self.model.device
        keys = behind.shape[1]
        return self.model.packed(
            [(k[:, :, :keys], v[:, :, :keys]) for k, v in prefix],
            self.tokens[index].to(device),
            self.at[index].to(device),
            torch.cat([behind, within], 1).to(device),
            torch.arange(keys, device=device),
            rows,
        )

    def _slots(self) -> int:
        """How many packed tokens a pass may have: what a block makes of each and their masks fit the budget."""
        config, item = self.model.config, self.model.dtype.itemsize
        inner = largest(config, "intermediate_size") or 4 * self.model.d_model
        keys = 2 + item * (
            1 + 2 * self.model.n_heads * (config._attn_implementation == "eager")
        )  # bytes for each slot and key
        linear = item * (4 * inner + 12 * self.model.d_model) + keys * (len(self.tokens) + self.first)
        fits = ((linear**2 + 4 * keys * self.budget) ** 0.5 - linear) / (2 * keys)
        return max(1, min(int(fits), PASS[self.model.device.type == "cuda"]))

    def patched(self, cells: Sequence[Cell], progress: bool = False) -> torch.Tensor:
        """Log-probabilities of every continuation with each cell's activation replaced, [cell, continuation] in nats.

        After them, for each of `compared`, KL(unpatched || patched) of the next token.
        """
        found, slots = torch.empty(len(cells), self.tree.width + len(self.compared)), self._slots()
        order = sorted(
            range(len(cells)), key=lambda i: (cells[i].layer, min(cells[i].positions))
        )  # the longest of a layer first
        lengths = [len(self.tokens) - min(cells[i].positions) + self.first for i in order]
        start = 0
        with tqdm(total=len(cells), desc="cells", leave=False, disable=not progress) as bar:
            while start < len(order):
                end, total, long = start + 1, lengths[start], lengths[start] > LONG
                while end < len(order) and total + (more := lengths[start if long else end]) <= slots:
                    if long and cells[order[end]].layer != cells[order[start]].layer:
                        break
                    total, end = total + more, end + 1
                try:
                    found[order[start:end]] = (self._rows if long else self._chunk)(
                        [cells[i] for i in order[start:end]]
                    )
                except torch.OutOfMemoryError:
                    if end - start == 1:
                        raise
                    torch.cuda.empty_cache()
                    slots = total // 2
                    continue
                bar.update(end - start)
                start = end
        return found

    @torch.inference_mode()
    def _rows(self, cells: Sequence[Cell]) -> torch.Tensor:
        """As `patched`, for cells of one layer in one pass, a row each: from the first one's position and that layer on."""
        offset, layer = min(cells[0].positions) - self.first, cells[0].layer
        index = torch.arange(offset, len(self.tokens))
        edits = defaultdict(list)
        for row, cell in enumerate(cells):
            edits[cell.site, layer].append(
                (
                    row,
                    torch.tensor(cell.positions, device=self.model.device) - self.first - offset,
                    cell.columns,
                    cell.values,
                )
            )
        counts = [0] * layer + [len(index)] * (self.model.n_layers - layer)
        with hooks.joining(
            self.model.blocks,
            counts,
            lambda layer, a, b: self.states[layer][offset + a : offset + b],
            len(index),
            self.model.layout,
        ):
            with self.model.hooks({key: _replace(parts) for key, parts in edits.items()}):
                hidden, _ = self._forward(
                    self.layers,
                    index,
                    torch.ones(len(index), offset + self.first, dtype=torch.bool),
                    self.visible[offset:, offset:],
                    len(cells),
                )
        return self._read(hidden[:, -len(self.tree) :])

    @torch.inference_mode()
    def _chunk(self, cells: Sequence[Cell]) -> torch.Tensor:
        """As `patched`, for cells that fit one pass, side by side in one row."""
        size, depth, device = len(self.tokens), self.model.n_layers, self.model.device
        offsets = torch.tensor([min(cell.positions) for cell in cells]) - self.first
        lengths = size - offsets
        owner = torch.repeat_interleave(torch.arange(len(cells)), lengths)
        index = torch.cat(
            [torch.arange(offset, size) for offset in offsets.tolist()]
        )  # of each slot, in the unpatched run
        # After a patched token the first change is in its keys and values: of its own layer for resid_pre, else of the next.
        late = torch.tensor([cell.site != "resid_pre" and len(cell.positions) == 1 for cell in cells])
        join = torch.tensor([cell.layer for cell in cells])[owner] + (late[owner] & (index > offsets[owner]))
        order = join.argsort(stable=True)[: int((join < depth).sum())]
        counts = torch.searchsorted(join[order], torch.arange(depth), right=True).tolist()
        place = order.new_zeros(len(index)).index_put_(
            (order,), torch.arange(len(order))
        )  # slot -> packed slot
        behind = torch.arange(int(offsets.max()) + self.first) < (offsets + self.first)[owner[order], None]
        within = (owner[order, None] == owner[None, order]) & self.visible[
            index[order, None], index[None, order]
        ]
        edits = defaultdict(list)
        for cell, offset, start in zip(cells, offsets.tolist(), (lengths.cumsum(0) - lengths).tolist()):
            slots = place[torch.tensor(cell.positions) - self.first - offset + start].to(device)
            edits[cell.site, cell.layer].append((0, slots, cell.columns, cell.values))
        base = index[order].to(device)
        with hooks.joining(
            self.model.blocks,
            counts,
            lambda layer, a, b: self.states[layer][base[a:b]],
            len(order),
            self.model.layout,
        ):
            with self.model.hooks({key: _replace(parts) for key, parts in edits.items()}):
                packed, _ = self._forward(self.layers, index[order], behind, within)
        hidden = self.final[index.to(device)]  # what no block had to touch is as in the unpatched run
        hidden[order.to(device)] = packed[0]
        nodes = lengths.cumsum(0)[:, None] + torch.arange(-len(self.tree), 0)
        return self._read(hidden[nodes.to(device)])

    def _read(self, hidden: torch.Tensor) -> torch.Tensor:
        found = read_asked(self.model, hidden, self.tree)
        return (
            torch.cat([found, divergence(self.model, hidden[:, self.compared], self.heads)], 1)
            if self.compared
            else found
        )


def _replace(parts):
    def edit(tensor):
        tensor = tensor.clone()
        for row, slots, columns, values in parts:
            tensor[row, slots, columns] = values.to(tensor)
        return tensor

    return edit


def _edits(cell: Cell | None, continuation: int) -> dict:
    """The one hook of a cell in the pass over a continuation, whose own values it takes where there are some for each."""
    if cell is None:
        return {}
    values = cell.values[continuation] if cell.values.ndim == 3 else cell.values
    return {(cell.site, cell.layer): _replace([(0, list(cell.positions), cell.columns, values)])}


class Plain:
    """The slow twin of `Packed`: one forward pass over prompt and continuation for each cell and continuation."""

    def __init__(
        self, model, ids, continuations, scored, sites=(), positions=(), prefix=(), budget=0, compared=()
    ):
        self.model, self.ids, self.continuations, self.scored, self.compared = (
            model,
            list(ids),
            continuations,
            scored,
            list(compared),
        )
        self.values = {}
        model.check_ids([self.ids, *continuations])

        def keep(key):
            return lambda tensor: self.values.__setitem__(key, tensor[0, list(positions)].clone())

        with (
            torch.inference_mode(),
            model.hooks({(s, layer): keep((s, layer)) for s in sites for layer in range(model.n_layers)}),
        ):
            model.whole(torch.tensor([self.ids], device=model.device))
        if sites and model.stands_alone(len(self.ids) + max(map(len, continuations))):
            self.values = self._values(sites, list(positions))
        self.base, self.heads = self._score()
        self.layers: Layers = []

    @torch.inference_mode()
    def _values(self, sites, positions) -> dict[tuple[str, int], torch.Tensor]:
        """The activations [continuation, position, width] in a pass over each whole sequence, where a token's depend on its length."""
        found = defaultdict(list)

        def keep(key):
            return lambda tensor: found[key].append(tensor[0, positions].clone())

        for tail in self.continuations:
            with self.model.hooks(
                {(s, layer): keep((s, layer)) for s in sites for layer in range(self.model.n_layers)}
            ):
                self.model.whole(torch.tensor([[*self.ids, *tail]], device=self.model.device))
        return {key: torch.stack(parts) for key, parts in found.items()}

    @torch.inference_mode()
    def _score(self, cell: Cell | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        found, heads = torch.empty(len(self.continuations)), {}
        for number, (tail, n) in enumerate(zip(self.continuations, self.scored)):
            ids = torch.tensor([[*self.ids, *tail]], device=self.model.device)
            with self.model.hooks(_edits(cell, number)):
                hidden = self.model.whole(ids)[0]
            found[number] = read_last(self.model, hidden, ids[0], n)
            if number in self.compared:
                heads[number] = self.model.logits(hidden[len(hidden) - n - 1]).log_softmax(-1)
        return found, torch.stack([heads[number] for number in self.compared]) if heads else None

    def patched(self, cells: Sequence[Cell], progress: bool = False) -> torch.Tensor:
        """As `Packed.patched`."""
        found = []
        for cell in tqdm(cells, desc="cells", leave=False, disable=not progress):
            logp, heads = self._score(cell)
            found.append(
                torch.cat([logp, (self.heads.exp() * (self.heads - heads)).sum(-1).cpu()])
                if self.compared
                else logp
            )
        return torch.stack(found)
