"""Activation patching at the prompt boundary, exact, one forward for all cells of a pair and direction.

Nothing before a patched position changes, so the prompt before the boundary is read once, and every cell (one site of
one layer) is a short continuation behind it (see `interp.packing`). Practice: Heimersheim & Nanda 2024 (2404.15255),
Zhang & Nanda 2023 (2309.16042).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from interp.capturing import capture
from interp.decoding import closing
from interp.hooks import every_layer
from interp.packing import score
from interp.pairs import check_pairs
from interp.prompts import Prompt


@dataclass(frozen=True)
class Sweep:
    """Normalised effects of a sweep, 0 = nothing, 1 = the whole difference, NaN where a pair was dropped.

    `denoise` and `noise` are Float[ndarray, "pair site layer"]; `clean` and `corrupt` [pair] are the unpatched
    differences log p(clean action) - log p(corrupt action), in nats, over the whole action.
    """

    sites: tuple[str, ...]
    clean: np.ndarray
    corrupt: np.ndarray
    denoise: np.ndarray
    noise: np.ndarray

    @property
    def dropped(self) -> int:
        """Pairs whose clean and corrupt runs differ too little to divide by."""
        return int(np.isnan(self.denoise[:, 0, 0]).sum())


def continuations(clean: Prompt, corrupt: Prompt, lead: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """The two reference actions of a pair behind `lead`, and how many of their tokens are scored."""
    actions = [[*p.format.encode(p.decision.reference), closing(p.format)] for p in (clean, corrupt)]
    return [[*lead, *a] for a in actions], [len(a) for a in actions]


def patch(model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], sites: Sequence[str] = ("resid_pre",), at: str = "boundary",
          mode: Literal["prompt", "cot"] = "prompt", minimum: float = 1.0, progress: bool = False) -> Sweep:
    """Patch each site of each layer at the boundary, in both directions.

    clean, corrupt: prompts in pairs, token for token (`interp.make_pairs`); their decisions' reference actions are compared.
    The action is read right behind the boundary (`prompt`), or behind the reference trace of the patched run (`cot`).
    denoise = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt), noise = (LD_clean - LD_patched) / (same); pairs whose
    denominator is below `minimum` nats are NaN. Raises ValueError for lists that are not pairs, or another position.
    """
    check_pairs(clean, corrupt)
    if at != "boundary":
        raise ValueError(f"Patching is done at the boundary, not at {at!r}.")
    if mode not in ("prompt", "cot"):
        raise ValueError(f"The action is read in mode 'prompt' or 'cot', not in mode {mode!r}.")
    names = every_layer(sites)
    prompts = {"clean": clean, "corrupt": corrupt}
    acts = {run: capture(model, prompts[run], names).values for run in prompts}
    shape = (len(clean), len(names), model.n_layers)
    cells = [(s, layer) for s in range(len(names)) for layer in range(model.n_layers)]
    base = {run: np.empty(len(clean)) for run in prompts}
    patched = {run: np.empty(shape) for run in prompts}
    for index in tqdm(range(len(clean)), desc="patch", leave=False, disable=not progress):
        for run, donor in (("clean", "corrupt"), ("corrupt", "clean")):
            prompt = prompts[run][index]
            tail = prompt.format.opening("prompt") if mode == "prompt" else prompt.format.with_trace(prompt.decision.trace)
            both, counts = continuations(clean[index], corrupt[index], [prompt.ids[-1], *tail])
            edits = {}  # segment 0 and 1 are the unpatched actions; then two for each cell
            for number, (s, layer) in enumerate(cells):
                value = acts[donor][index, s, layer]
                edits[names[s], layer] = ([2 + 2 * number, 3 + 2 * number], torch.stack([value, value]))
            logp = score(model, model.read(prompt.ids[:-1]), both * (1 + len(cells)), counts * (1 + len(cells)), edits)[0]
            difference = (logp[0::2] - logp[1::2]).double().numpy()
            base[run][index] = difference[0]
            patched[run][index] = difference[1:].reshape(shape[1:])
    gap = base["clean"] - base["corrupt"]
    gap = np.where(gap >= minimum, gap, np.nan)[:, None, None]
    return Sweep(tuple(names), base["clean"], base["corrupt"], (patched["corrupt"] - base["corrupt"][:, None, None]) / gap,
                 (base["clean"][:, None, None] - patched["clean"]) / gap)
