"""Prompt reliance: how much of the action's dependence on the prompt goes around the trace, by swapping keys and values.

The action's tokens read the context only through the keys and values of earlier tokens, so swapping a span's is an exact
path intervention (mediation analysis as in Vig et al. 2020, on the cache).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from interp.packing import score
from interp.pairs import check_pairs
from interp.patching import continuations
from interp.prompts import Prompt

#: prompt's keys and values from, trace's from
ARMS = (("clean", "clean"), ("corrupt", "clean"), ("clean", "corrupt"), ("corrupt", "corrupt"))


@dataclass(frozen=True)
class Reliance:
    """Effects on log p(clean action) - log p(corrupt action), in nats, each Float[ndarray, "pair"].

    `direct`: the prompt's keys and values swapped, the trace's held. `via_cot`: the trace's swapped, the prompt's held.
    `total`: both. Pairs whose total is below `minimum` are in `dropped` and left out of the arrays; `kept` are their indices.
    """

    direct: np.ndarray
    via_cot: np.ndarray
    total: np.ndarray
    kept: np.ndarray
    dropped: int

    @property
    def interaction(self) -> np.ndarray:
        return self.total - self.direct - self.via_cot

    @property
    def prompt_reliance(self) -> float:
        """direct / (direct + via_cot), of the means over pairs (NaN without pairs)."""
        if not len(self.kept):
            return float("nan")
        return float(self.direct.mean() / (self.direct.mean() + self.via_cot.mean()))


def spliced_cache(model, runs: dict, boundary: int):
    """One cache with a row for each arm: keys and values up to `boundary` (included) from one run, the rest from another."""
    cache = model.new_cache()
    for layer in range(model.n_layers):
        parts = []
        for kind in ("keys", "values"):
            tensors = {name: getattr(run.layers[layer], kind) for name, run in runs.items()}
            parts.append(torch.cat([torch.cat([tensors[p][:, :, :boundary + 1], tensors[t][:, :, boundary + 1:]], 2) for p, t in ARMS]))
        cache.update(*parts, layer)
    return cache


def prompt_reliance(model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], minimum: float = 1.0, progress: bool = False) -> Reliance:
    """Direct, via-CoT and total effect of the counterfactual prompt on the action behind the trace.

    clean, corrupt: prompts in pairs, token for token, with the reference trace and action of each (`interp.make_pairs`).
    Raises ValueError for lists that are not pairs.
    """
    check_pairs(clean, corrupt)
    effects = np.empty((len(clean), 3))
    for index, pair in enumerate(tqdm(list(zip(clean, corrupt)), desc="mediate", leave=False, disable=not progress)):
        runs = {}
        for run, prompt in zip(("clean", "corrupt"), pair):
            tail = prompt.format.with_trace(prompt.decision.trace)
            runs[run] = model.read([*prompt.ids, *tail[:-1]])
        both, counts = continuations(*pair, tail[-1:])
        logp = score(model, spliced_cache(model, runs, pair[0].boundary), both, counts)
        difference = (logp[:, 0] - logp[:, 1]).double().numpy()
        effects[index] = difference[0] - difference[1:]
    direct, via, total = effects.T
    kept = np.flatnonzero(total >= minimum)
    return Reliance(direct[kept], via[kept], total[kept], kept, len(clean) - len(kept))
