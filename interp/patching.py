"""Activation patching, exact: at the prompt boundary, at a span, or on the full layer x position grid.

A whole sweep costs about as much as reading the two prompts (see `interp.sweeps`). Practice: Heimersheim & Nanda 2024
(2404.15255), Zhang & Nanda 2023 (2309.16042).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from interp.hooks import every_layer
from interp.packing import shared
from interp.pairs import check_pairs
from interp.prompts import SPANS, Prompt
from interp.sweeps import Cell, Packed, Plain

BUDGET = 256  # MiB


@dataclass(frozen=True)
class Sweep:
    """Normalised effects of a sweep, 0 = nothing, 1 = the whole difference, NaN where a pair was dropped.

    `denoise` and `noise` are Float[ndarray, "pair site layer"], with a last axis `position` for `at="all"` (NaN beyond a
    prompt's end); `clean` and `corrupt` [pair] are the unpatched differences log p(clean action) - log p(corrupt action),
    in nats, over the whole action. `z` has one site for each head, `z.0`, `z.1`, ... `path` is `packed`, or `plain loop`
    with the reason.
    """

    sites: tuple[str, ...]
    clean: np.ndarray
    corrupt: np.ndarray
    denoise: np.ndarray
    noise: np.ndarray
    path: str = "packed"

    @property
    def dropped(self) -> int:
        """Pairs whose clean and corrupt runs differ too little to divide by, or that lack the span."""
        return int(np.isnan(self.denoise.reshape(len(self.denoise), -1)).all(1).sum())


def continuations(clean: Prompt, corrupt: Prompt, lead: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """The two reference actions of a pair behind `lead`, and how many of their tokens decide between them.

    What both actions begin with is equally likely in both, so their difference starts where they part.
    """
    actions = [p.format.action_ids(p.decision.reference) for p in (clean, corrupt)]
    shared = next(i for i, (a, b) in enumerate(zip(*actions)) if a != b)
    return [[*lead, *a] for a in actions], [len(a) - shared for a in actions]


def _places(prompt: Prompt, at: str) -> list[tuple[int, ...]]:
    """The positions of each cell: one at a time for `all`, else together (none where the prompt lacks the span)."""
    if at == "all":
        return [(i,) for i in range(len(prompt.ids))]
    found = tuple(int(i) for i in prompt.positions(at))
    return [found] if found else []


def _cells(model, names, values, positions) -> list[Cell]:
    """A cell for each site (each head of `z`), layer and place, in that order."""
    where = {p: i for i, p in enumerate(sorted({p for place in positions for p in place}))}
    width = values["z", 0].shape[-1] // model.n_heads if "z" in names else 0
    heads = [slice(h * width, (h + 1) * width) for h in range(model.n_heads)]
    parts = [(name, columns) for name in names for columns in (heads if name == "z" else [slice(None)])]
    return [Cell(name, layer, place, values[name, layer][[where[p] for p in place]][:, columns], columns)
            for name, columns in parts for layer in range(model.n_layers) for place in positions]


def patch_modes(model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], sites: Sequence[str] = ("resid_pre",), at: str = "boundary",
                modes: Sequence[Literal["prompt", "cot"]] = ("prompt", "cot"), minimum: float = 1.0, budget: float = BUDGET,
                progress: bool = False) -> dict[str, Sweep]:
    """As `patch`, reading each action in several modes, each prompt read once for all of them."""
    check_pairs(clean, corrupt)
    if at != "all" and at not in SPANS:
        raise ValueError(f"Patching is done at 'boundary', at another span ({', '.join(SPANS[:4])}), or at 'all' positions, not at {at!r}.")
    wrong = [mode for mode in modes if mode not in ("prompt", "cot")]
    if wrong or not modes:
        raise ValueError(f"The action is read in mode 'prompt' or 'cot', not in mode {wrong[0] if wrong else modes!r}.")
    names = every_layer(sites)
    labels = [label for name in names for label in ([f"z.{h}" for h in range(model.n_heads)] if name == "z" else [name])]
    kind = Packed if model.support.patch == "fast" else Plain
    width = max(len(p.ids) for p in clean) if at == "all" else 1
    shape = (len(modes), len(clean), len(labels), model.n_layers, width)
    base = {run: np.empty(shape[:2]) for run in ("clean", "corrupt")}
    patched = {run: np.full(shape, np.nan) for run in ("clean", "corrupt")}
    for index, pair in enumerate(tqdm(list(zip(clean, corrupt)), desc="patch", leave=False, disable=not progress)):
        prompts = dict(zip(("clean", "corrupt"), pair))
        places = _places(pair[0], at)
        flat = sorted({p for place in places for p in place})
        start = min([shared(*(p.ids for p in pair)), *flat])
        prefix, runs = [], {}
        for run, prompt in prompts.items():
            found = [continuations(*pair, prompt.format.tail(None if mode == "prompt" else prompt.decision.trace)) for mode in modes]
            tails, scored = [t for both, _ in found for t in both], [n for _, counts in found for n in counts]
            runs[run] = kind(model, prompt.ids, tails, scored, names, flat, prefix, int(budget * 2**20))
            prefix = [(k[:, :, :start], v[:, :, :start]) for k, v in runs[run].layers]  # the other run begins alike
            base[run][:, index] = runs[run].base.double().view(-1, 2).numpy() @ [1, -1]
        for run, donor in (("clean", "corrupt"), ("corrupt", "clean")):
            if places:
                logp = runs[run].patched(_cells(model, names, runs[donor].values, places), progress and at == "all")
                difference = logp.double().view(len(labels), model.n_layers, len(places), len(modes), 2).numpy() @ [1, -1]
                patched[run][:, index, ..., :len(places)] = np.moveaxis(difference, -1, 0)
    path = "packed" if kind is Packed else f"plain loop: {model.support.reason}"
    return {mode: _effects(labels, *(d[m] for d in (base["clean"], base["corrupt"], patched["clean"], patched["corrupt"])), minimum, at, path)
            for m, mode in enumerate(modes)}


def _effects(labels, clean, corrupt, noised, denoised, minimum, at, path) -> Sweep:
    gap = np.where(clean - corrupt >= minimum, clean - corrupt, np.nan)[:, None, None, None]
    denoise, noise = (denoised - corrupt[:, None, None, None]) / gap, (clean[:, None, None, None] - noised) / gap
    if at != "all":
        denoise, noise = denoise[..., 0], noise[..., 0]
    return Sweep(tuple(labels), clean, corrupt, denoise, noise, path)


def patch(model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], sites: Sequence[str] = ("resid_pre",), at: str = "boundary",
          mode: Literal["prompt", "cot"] = "prompt", minimum: float = 1.0, budget: float = BUDGET, progress: bool = False) -> Sweep:
    """Patch each site of each layer in both directions, and read off the action.

    clean, corrupt: prompts in pairs, token for token (`interp.make_pairs`); their decisions' reference actions are compared.
    sites: any of `interp.hooks.SITES`; `z` is patched head by head. at: `boundary`; another span, all of whose positions are
    replaced together; or `all`, every position by itself. The action is read right behind the boundary (`prompt`), or
    behind the reference trace of the patched run (`cot`).
    denoise = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt), noise = (LD_clean - LD_patched) / (same); pairs whose
    denominator is below `minimum` nats are NaN. budget: MiB that one packed pass may take (on a GPU that runs out all the
    same, passes are halved). Raises ValueError for lists that are not pairs, or another position, and NotImplementedError
    for a site that the model does not have.
    """
    return patch_modes(model, clean, corrupt, sites, at, [mode], minimum, budget, progress)[mode]
