"""The reference implementation of sweeps: a pass over prompt and continuation for each patched cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from interp.engine.cells import Cell, Run, replacing
from interp.engine.packing import read_last
from interp.models import hooks
from interp.models.hooked import HookedModel


class Plain:
    """As `interp.engine.sweeps.Packed`; `values[site, layer]` is a list, [position, width] of each run.

    Where a token's activations depend on the length of the whole, they have an axis of continuations before.
    """

    def __init__(
        self, model: HookedModel, runs: Sequence[Run], sites: Sequence[str] = (), budget: int | None = None
    ):
        self.model, self.runs = model, runs
        each = [self._unpatched(run, sites) for run in runs]
        self.values = {key: [values[key] for values in each] for key in (each[0] if each else ())}
        scores = [self._score(run) for run in runs]
        self.base = torch.stack([logp for logp, _ in scores])
        heads = [each for _, each in scores if each is not None]
        self.heads: Float[Tensor, "run compared token"] | None = torch.stack(heads) if heads else None

    def at_once(self, cells: Sequence[Cell]) -> bool:
        """As `Packed.at_once`: never, since a cell takes passes of its own."""
        return False

    def _unpatched(self, run: Run, sites: Sequence[str]) -> dict[tuple[str, int], Tensor]:
        """A run's activations at its positions."""
        self.model.check_ids([run.ids, *run.continuations])
        longest = len(run.ids) + max(map(len, run.continuations))
        if not sites or not self.model.stands_alone(longest):
            return self._read(run.ids, sites, list(run.positions))
        # What a token's activations are depends on the length of the whole.
        each = [self._read([*run.ids, *tail], sites, list(run.positions)) for tail in run.continuations]
        return {key: torch.stack([values[key] for values in each]) for key in each[0]}

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
        self, run: Run, edits: Sequence[hooks.Edits] = ()
    ) -> tuple[Float[Tensor, " continuation"], Float[Tensor, "compared token"] | None]:
        """Log-probabilities, in nats, and the next-token distributions that are compared.

        edits: hooks for the pass over each continuation.
        """
        logp = torch.empty(len(run.continuations))
        heads: dict[int, Tensor] = {}
        for number, (tail, n) in enumerate(zip(run.continuations, run.scored)):
            ids = torch.tensor([[*run.ids, *tail]], device=self.model.device)
            with self.model.hooks(edits[number] if edits else {}):
                hidden = self.model.whole(ids)[0]
            logp[number] = read_last(self.model, hidden, ids[0], n)
            if number in run.compared:
                heads[number] = self.model.logits(hidden[len(hidden) - n - 1]).log_softmax(-1)
        return logp, torch.stack([heads[number] for number in run.compared]) if heads else None

    def _edits(self, cell: Cell, r: int) -> list[hooks.Edits]:
        """The hook of a cell in the pass over each continuation of a run, perhaps with values of its own."""
        positions = torch.tensor(cell.positions[r], dtype=torch.long, device=self.model.device)
        if not len(positions):
            return [{} for _ in self.runs[r].continuations]
        first_row, values = torch.zeros_like(positions), cell.values[r]
        each = values if values.ndim == 3 else [values] * len(self.runs[r].continuations)
        return [
            {
                (cell.site, cell.layer): replacing(
                    [(first_row, positions, cell.columns, own[: len(positions)])]
                )
            }
            for own in each
        ]

    def patched(
        self, cells: Sequence[Cell], runs: Sequence[int] | None = None, progress: bool = False
    ) -> Float[Tensor, "run cell continuation_and_compared"]:
        """As `Packed.patched`."""
        runs = range(len(self.runs)) if runs is None else runs
        rows = []
        with tqdm(total=len(runs) * len(cells), desc="cells", leave=False, disable=not progress) as bar:
            for r in runs:
                for cell in cells:
                    logp, heads = self._score(self.runs[r], self._edits(cell, r))
                    if heads is not None and self.heads is not None:
                        base = self.heads[r]
                        logp = torch.cat([logp, (base.exp() * (base - heads)).sum(-1).cpu()])
                    rows.append(logp)
                    bar.update()
        return torch.stack(rows).view(len(runs), len(cells), -1)
