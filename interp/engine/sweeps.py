"""Prompts and their continuations, run once; then any number of patched cells of them, each exact.

Nothing before a patched position, and nothing below a patched layer, changes. So a cell is only the tokens
from its position on, from its layer on: cells lie side by side after the unpatched keys and values, join
the pass at their own layer with the unpatched states, and are read together. Each prompt of a batch is a row
of such a pass. `interp.engine.loops.Plain` is the reference implementation, one forward pass for each prompt,
cell and continuation, and serves the models for which packing is not exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from interp.engine.cells import Cell, Replacement, Run, replacing
from interp.engine.packing import Tree, divergence, grow, read_trees
from interp.engine.reading import read_prompts
from interp.models import hooks
from interp.models.caches import Layers, selected
from interp.models.devices import SHARE, activation_bytes, fetched, free_for, sent
from interp.models.hooked import HookedModel

#: Most packed tokens of a row on a CPU and on a GPU: more would only look at each other's masked keys.
PASS = (512, 4096)
#: Most packed tokens of all rows that a GPU reads without a question.
SMALL = 8192
#: Cells of more slots than this are rows of a batch, each seeing its own slots alone; shorter ones share
#: one row, where the prefix is not copied for each.
LONG = 64
#: Bytes that one pass may take on a CPU, beside the model and the unpatched runs.
BUDGET = 256 * 2**20


class Packed:
    """A batch of prompts with as many continuations each: the unpatched runs, kept, and cells of them.

    `values[site, layer]` [run, position, width] are the unpatched activations (a run of fewer positions is
    padded on the right), `base` [run, continuation] the unpatched log-probabilities in nats, `heads` [run,
    compared, token] the unpatched next-token log-probabilities (None where none are compared).

    Args:
        sites: read at each run's positions, in every layer.
        budget: bytes that one pass may take, beside the model and the unpatched runs (None: `BUDGET` on a
            CPU, by free memory on a GPU).
    """

    @torch.inference_mode()
    def __init__(
        self, model: HookedModel, runs: Sequence[Run], sites: Sequence[str] = (), budget: int | None = None
    ):
        self.model, self.runs, self.budget = model, runs, budget
        self.most = PASS[model.device.type == "cuda"]
        for run in runs:
            model.check_length(len(run.ids) + max(map(len, run.continuations)))
            model.check_ids([run.ids, *run.continuations])
        self.trees = [grow([[run.ids[-1], *c] for c in run.continuations], run.scored) for run in runs]
        #: Of each run, the first position at which something is patched.
        self.first = [min(run.positions, default=len(run.ids) - 1) for run in runs]
        # A run's slots are its prompt from there on and the tree, whose root is the prompt's last token.
        # Behind them come slots that pad it, at least one.
        self.roots = [len(run.ids) - 1 - first for run, first in zip(runs, self.first)]
        self.sizes = torch.tensor([root + len(tree) for root, tree in zip(self.roots, self.trees)])
        self.padding = int(self.sizes.max())
        self.tokens, self.at, self.visible = (sent(t, model.device) for t in self._slots_of_runs())
        self.first_at = sent(torch.tensor(self.first), model.device)
        self.compared = [_compared(run, tree) for run, tree in zip(runs, self.trees)]
        self.values: dict[tuple[str, int], Float[Tensor, "run position width"]] = {}
        self.states: list[Float[Tensor, "run slot d_model"]] = []
        #: Keys and values of the runs that were patched last.
        self._chosen: tuple[tuple[int, ...], Layers] = (), ()
        self._read(sites)

    def _slots_of_runs(
        self,
    ) -> tuple[Int[Tensor, "run slot"], Int[Tensor, "run slot"], Bool[Tensor, "run slot slot"]]:
        """Token and position of each slot, and the slots that each sees; one that pads sees itself."""
        n, slots = len(self.runs), self.padding + 1
        tokens, at = torch.zeros(n, slots, dtype=torch.long), torch.zeros(n, slots, dtype=torch.long)
        visible = torch.eye(slots, dtype=torch.bool).repeat(n, 1, 1)
        for r, (run, tree, first, root) in enumerate(zip(self.runs, self.trees, self.first, self.roots)):
            size, last = root + len(tree), first + root
            tokens[r, :size] = torch.tensor([*run.ids[first:-1], *tree.tokens])
            at[r, :size] = torch.cat([torch.arange(first, last), tree.depths + last])
            visible[r, :root, :root] = torch.ones(root, root, dtype=torch.bool).tril()
            visible[r, root:size, :root] = True
            visible[r, root:size, root:size] = tree.visible
        return tokens, at, visible

    def _read(self, sites: Sequence[str]) -> None:
        """The unpatched runs: keys and values before the slots, then activations and states of the slots."""
        model, slots = self.model, self.padding + 1
        before = [run.ids[:first] for run, first in zip(self.runs, self.first)]
        width = max(self.first)
        if width:
            layers, _ = read_prompts(model, before)
        else:
            n = len(before)
            layers = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in model.empty()]
        keys = torch.arange(width, device=model.device)
        sees_prefix = (keys < self.first_at[:, None])[:, None].expand(-1, slots, -1)
        with model.hooks(self._keeping(sites)):
            self.final, new = model.packed(
                layers,
                self.tokens,
                self.at,
                torch.cat([sees_prefix, self.visible], 2),
                keys.expand(len(self.runs), -1),
            )
        most = max(self.roots)
        if most:  # a cell may see the prompt's tokens from the first patched one on, too
            layers = [
                (torch.cat([k, a[:, :, :most]], 2), torch.cat([v, b[:, :, :most]], 2))
                for (k, v), (a, b) in zip(layers, new)
            ]
        self.layers = layers
        self.width = width
        self.keys_at = torch.cat([keys.expand(len(self.runs), -1), self.at[:, :most]], 1)
        every, roots = list(range(len(self.runs))), torch.tensor([self.roots])
        self._base = fetched(read_trees(model, self.final, self.trees, roots)[:, 0])
        #: log-probabilities [run, compared, token] of the unpatched runs
        self.heads: Tensor | None = None
        if self.compared[0]:
            states = self._before_compared(self.final, every, roots)[:, 0]
            self.heads = model.logits(states).log_softmax(-1)

    @property
    def base(self) -> Float[Tensor, "run continuation"]:
        """Unpatched log-probabilities, in nats, on the CPU."""
        return self._base()

    def _keeping(self, sites: Sequence[str]) -> hooks.Edits:
        """Hooks that keep the stream before each block, and the sites at each run's positions."""
        places = pad_sequence(
            [
                torch.tensor(run.positions, dtype=torch.long) - first
                for run, first in zip(self.runs, self.first)
            ],
            batch_first=True,
        )
        places = sent(places, self.model.device)
        rows = torch.arange(len(places), device=self.model.device)[:, None]

        def reading(site: str, layer: int) -> hooks.Edit:
            def read(tensor: Tensor) -> None:
                if site == "resid_pre":
                    self.states.append(tensor.clone())
                if site in sites:
                    self.values[site, layer] = tensor[rows.to(tensor.device), places.to(tensor.device)]

            return read

        names = dict.fromkeys(["resid_pre", *sites])
        return {(site, layer): reading(site, layer) for site in names for layer in range(self.model.n_layers)}

    # cells

    def at_once(self, cells: Sequence[Cell]) -> bool:
        """Whether a GPU reads cells of all runs sooner than it is known which runs are worth it."""
        if self.model.device.type != "cuda":
            return False
        every = range(len(self.runs))
        longest = [self._length(cell, every) for cell in cells]
        return max(longest, default=0) <= LONG and len(every) * sum(longest) <= SMALL

    def _start(self, cell: Cell, run: int) -> int:
        """The slot of a run at which a cell begins: its tree's first where nothing is replaced."""
        return min(cell.positions[run]) - self.first[run] if cell.positions[run] else self.roots[run]

    def _length(self, cell: Cell, runs: Sequence[int]) -> int:
        """Slots of a cell, those of the run where it has most."""
        return max(int(self.sizes[r]) - self._start(cell, r) for r in runs)

    def _slots(self, rows: int) -> int:
        """How many packed tokens each row may have: what a block makes of them, and masks, fit the budget."""
        model, config, item = self.model, self.model.config, self.model.dtype.itemsize
        budget = self.budget
        if budget is None:
            budget = int(SHARE * free_for(model)) if model.device.type == "cuda" else BUDGET
        eager = config._attn_implementation == "eager"
        each_key = 2 + item * (1 + 2 * model.n_heads * eager)  # bytes for each slot and key
        each_slot = activation_bytes(model) + each_key * self.keys_at.shape[1]
        # The largest n with each_key * n^2 + each_slot * n within a row's budget.
        fits = ((each_slot**2 + 4 * each_key * budget / rows) ** 0.5 - each_slot) / (2 * each_key)
        return max(1, min(int(fits), self.most))

    def patched(
        self, cells: Sequence[Cell], runs: Sequence[int] | None = None, progress: bool = False
    ) -> Float[Tensor, "run cell continuation_and_compared"]:
        """Log-probabilities of every continuation with each cell's activation replaced, in nats.

        After them, for each of `compared`, KL(unpatched || patched) of the next token.

        Args:
            runs: indices of those that are patched (None: all).
        """
        runs = list(range(len(self.runs))) if runs is None else list(runs)
        out = torch.empty(len(runs), len(cells), self.trees[0].width + len(self.compared[0]))
        # The longest of a layer first.
        order = sorted(
            range(len(cells)), key=lambda i: (cells[i].layer, min(self._start(cells[i], r) for r in runs))
        )
        ordered = [cells[i] for i in order]
        waiting: list[tuple[list[int], Callable[[], Tensor]]] = []
        start = 0
        with tqdm(total=len(cells), desc="cells", leave=False, disable=not progress) as bar:
            while start < len(order):
                end, long = self._end_of_pass(ordered, start, runs)
                found = self._fitting(ordered[start:end], runs, long)
                waiting.append((order[start:end], fetched(found)))
                bar.update(end - start)
                start = end
        for group, fetch in waiting:
            out[:, group] = fetch()
        return out

    def _end_of_pass(self, cells: Sequence[Cell], start: int, runs: Sequence[int]) -> tuple[int, bool]:
        """Where the pass ends that begins with a cell, and whether its cells are rows (then of one layer)."""
        slots = self._slots(len(runs))
        total = longest = self._length(cells[start], runs)
        end = start + 1
        while end < len(cells):
            length = longest if longest > LONG else self._length(cells[end], runs)
            if total + length > slots or (longest > LONG and cells[end].layer != cells[start].layer):
                break
            total += length
            end += 1
        return end, longest > LONG

    def _fitting(
        self, cells: Sequence[Cell], runs: Sequence[int], long: bool
    ) -> Float[Tensor, "run cell continuation_and_compared"]:
        """As `patched`, in one pass; in halves, from now on in smaller passes, where memory is too small."""
        try:
            if not long:
                return self._pass([[cell] * len(runs) for cell in cells], runs)
            rows = [r for r in runs for _ in cells]
            found = self._pass([[cell for _ in runs for cell in cells]], rows)
            return found.view(len(runs), len(cells), -1)
        except torch.OutOfMemoryError:
            if len(cells) == len(runs) == 1:
                raise
        torch.cuda.empty_cache()
        if len(cells) > 1:
            half = len(cells) // 2
            self.most = max(1, sum(self._length(cell, runs) for cell in cells) // 2)
            return torch.cat([self._fitting(part, runs, long) for part in (cells[:half], cells[half:])], 1)
        half = len(runs) // 2
        return torch.cat([self._fitting(cells, part, long) for part in (runs[:half], runs[half:])])

    @torch.inference_mode()
    def _pass(
        self, columns: Sequence[Sequence[Cell]], runs: Sequence[int]
    ) -> Float[Tensor, "row column continuation_and_compared"]:
        """As `patched`, of cells side by side: a row is of one run, a column of one layer in every row.

        A slot is a token of a cell. The slots that a block has to touch are packed in the order of the
        layers at which they join the pass.
        """
        depth, device = self.model.n_layers, self.model.device
        starts = torch.tensor([[self._start(c, r) for c, r in zip(column, runs)] for column in columns])
        sizes = self.sizes[list(runs)]
        lengths = (sizes - starts).amax(1)
        begins = lengths.cumsum(0) - lengths  # column -> its first slot
        owner = torch.repeat_interleave(torch.arange(len(columns)), lengths)  # slot -> column
        within = torch.arange(len(owner)) - begins[owner]
        index = starts.T[:, owner] + within  # slot of each row -> slot of its run
        index = torch.where(index < sizes[:, None], index, self.padding)
        join = self._joins(columns, runs)[owner, (within > 0).long()]
        order = join.argsort(stable=True)[: int((join < depth).sum())]  # packed slot -> slot
        counts = torch.searchsorted(join[order], torch.arange(depth), right=True).tolist()
        packed_slot = order.new_zeros(len(owner)).index_put_((order,), torch.arange(len(order)))
        parts = self._replacements(columns, runs, packed_slot, begins[:, None] - starts)
        rows, all_slots = sent(torch.tensor(runs), device)[:, None], sent(index, device)
        slots, reach = sent(index[:, order], device), sent(starts.T[:, owner[order]], device)
        hidden = self.final[rows, all_slots]  # what no block had to touch is as in the unpatched run
        with self._patching(rows, slots, counts, parts):
            hidden[:, sent(order, device)] = self._forward(runs, slots, sent(owner[order], device), reach)
        roots = begins[:, None] - starts + torch.tensor([self.roots[r] for r in runs])
        logp = read_trees(self.model, hidden, [self.trees[r] for r in runs], roots)
        if self.heads is None:
            return logp
        states = self._before_compared(hidden, runs, roots)
        moved = [divergence(self.model, part, self.heads[r]) for r, part in zip(runs, states)]
        return torch.cat([logp, torch.stack(moved)], 2)

    def _joins(self, columns: Sequence[Sequence[Cell]], runs: Sequence[int]) -> Int[Tensor, "column 2"]:
        """The layer at which the first slot of each column joins, and that at which its others do.

        After a patched token the first change is in its keys and values: of its own layer for resid_pre,
        else of the next.
        """
        joins = []
        for column in columns:
            layer = column[0].layer
            next_layer = all(
                cell.site != "resid_pre" and len(cell.positions[r]) < 2 for cell, r in zip(column, runs)
            )
            joins.append([layer, layer + next_layer])
        return torch.tensor(joins)

    def _replacements(
        self,
        columns: Sequence[Sequence[Cell]],
        runs: Sequence[int],
        packed_slot: Int[Tensor, " slot"],
        begins: Int[Tensor, "column row"],
    ) -> dict[tuple[str, int], list[Replacement]]:
        """What is replaced at each site and layer. begins: the slot where a run's first slot would lie."""
        cells: list[tuple[Cell, list[int]]] = []
        rows: list[int] = []
        slots: list[int] = []
        for column, begin in zip(columns, begins.tolist()):
            by_cell: dict[int, list[int]] = defaultdict(list)
            for i, (cell, r) in enumerate(zip(column, runs)):
                if cell.positions[r]:
                    by_cell[id(cell)].append(i)
            for members in by_cell.values():
                cell = column[members[0]]
                cells.append((cell, [runs[i] for i in members]))
                for i in members:
                    places = cell.positions[runs[i]]
                    rows += [i] * len(places)
                    slots += [begin[i] - self.first[runs[i]] + p for p in places]
        device = self.model.device
        row, slot = sent(torch.tensor(rows), device), sent(packed_slot[slots], device)
        found: dict[tuple[str, int], list[Replacement]] = defaultdict(list)
        start = 0
        for cell, members in cells:
            values = self._values_of(cell, members)
            part = slice(start, start + len(values))
            found[cell.site, cell.layer].append((row[part], slot[part], cell.columns, values))
            start += len(values)
        return found

    def _values_of(self, cell: Cell, runs: Sequence[int]) -> Float[Tensor, "slot width"]:
        """A cell's values in some runs, one run after the other."""
        counts = {len(cell.positions[r]) for r in runs}
        if isinstance(cell.values, Tensor) and counts == {cell.values.shape[1]}:
            if list(runs) == list(range(len(self.runs))):
                return cell.values.flatten(0, 1)
            return cell.values[sent(torch.tensor(runs), cell.values.device)].flatten(0, 1)
        return torch.cat([cell.values[r][: len(cell.positions[r])] for r in runs])

    def _forward(
        self,
        runs: Sequence[int],
        slots: Int[Tensor, "row slot"],
        owner: Int[Tensor, " slot"],
        reach: Int[Tensor, "row slot"],
    ) -> Float[Tensor, "row slot d_model"]:
        """Final states of packed slots, each after its run's prompt up to its cell's first position.

        reach: how many of the run's slots lie before the cell's first.
        """
        rows = sent(torch.tensor(runs), self.model.device)
        keys, later = (torch.arange(n, device=slots.device) for n in (self.width, max(self.roots)))
        before = (keys < self.first_at[rows, None])[:, None].expand(-1, slots.shape[1], -1)
        own = self.visible[rows[:, None, None], slots[:, :, None], slots[:, None]]
        visible = torch.cat([before, later < reach[..., None], own & (owner[:, None] == owner)], 2)
        hidden, _ = self.model.packed(
            self._layers_of(runs),
            self.tokens[rows[:, None], slots],
            self.at[rows[:, None], slots],
            visible,
            self.keys_at[rows],
        )
        return hidden

    def _layers_of(self, runs: Sequence[int]) -> Layers:
        """Keys and values of the runs of a pass's rows: of one where all rows are of one run."""
        wanted = tuple(runs[:1] if len(set(runs)) == 1 else runs)
        if wanted == tuple(range(len(self.runs))):
            return self.layers
        if self._chosen[0] != wanted:
            self._chosen = wanted, selected(self.layers, wanted)
        return self._chosen[1]

    @contextmanager
    def _patching(
        self,
        rows: Int[Tensor, "row 1"],
        slots: Int[Tensor, "row slot"],
        counts: Sequence[int],
        replacements: Mapping[tuple[str, int], Sequence[Replacement]],
    ) -> Iterator[None]:
        """A pass whose slots join at a layer of their own with the unpatched states, and are patched."""

        def enter(layer: int, start: int, end: int) -> Tensor:
            states = self.states[layer]
            return states[rows.to(states.device), slots[:, start:end].to(states.device)]

        edits = {key: replacing(parts) for key, parts in replacements.items()}
        with (
            hooks.joining(self.model.blocks, counts, enter, slots.shape[1], self.model.layout),
            self.model.hooks(edits),
        ):
            yield

    # readings

    def _before_compared(
        self, hidden: Float[Tensor, "row slot d_model"], runs: Sequence[int], roots: Int[Tensor, "column row"]
    ) -> Float[Tensor, "row column compared d_model"]:
        """Final states before each next token that is compared."""
        nodes = torch.tensor([self.compared[r] for r in runs])
        slots = sent(roots.T[..., None] + nodes[:, None], hidden.device)
        return hidden[torch.arange(len(runs), device=hidden.device)[:, None, None], slots]


def _compared(run: Run, tree: Tree) -> list[int]:
    """The nodes whose next token is compared."""
    first_target = {owner: node for owner, node, _ in reversed(tree.targets)}
    return [first_target[number] for number in run.compared]
