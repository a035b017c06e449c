"""Activation patching, exact: at the prompt boundary, at a span, at the whole prompt, or on the full layer x position grid.

>>> sweep = patch(model, clean, corrupt, at="history", metrics=("difference", "kl"))
>>> sweep.denoise.shape, sweep.of("kl").denoise.shape          # [pair, site, layer] each
>>> sanity(model, clean, corrupt)                              # Sanity(self_patch=4e-06, everything=2e-06)

A whole sweep costs about as much as reading the two prompts (see `interp.engine.sweeps`). Practice: Heimersheim & Nanda 2024
(2404.15255), Zhang & Nanda 2023 (2309.16042).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from interp.engine.packing import shared
from interp.engine.sweeps import Cell, Packed, Plain
from interp.measures.pairs import check_pairs
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.prompts.format import SPANS, Prompt
from interp.system.choices import Metric

BUDGET = 256  # MiB
METRICS: tuple[Metric, ...] = get_args(Metric)
#: The first three as sums over continuations, in the order in which `_asked` lists them.
_SIGNS = {"difference": (1, -1), "logit_diff": (1, -1), "logp": (1,)}
_OTHER = {"clean": "corrupt", "corrupt": "clean"}


@dataclass(frozen=True)
class Sweep:
    """Normalised effects of a sweep, 0 = nothing, 1 = the whole difference, NaN where a pair was dropped or has
    no difference.

    `denoise` and `noise` are Float[ndarray, "pair site layer"], with a last axis `position` for `at="all"` (NaN beyond a
    prompt's end); `clean` and `corrupt` [pair] are the unpatched differences log p(clean action) - log p(corrupt action),
    in nats, over the whole action. `moved` is the numerator of `denoise`, in nats, even where the denominator is 0.
    `z` has one site for each head, `z.0`, `z.1`, ... (NaN in a layer of fewer heads). `path` is `packed`, or `plain loop`
    with the reason. `effects` holds the same for each further metric that was asked for (`of`):

    - `logit_diff`: the difference of the two actions' first differing tokens alone, for screening.
    - `logp`: log p(clean action) alone, of all its tokens, in place of the difference, which moves too when the other action falls.
    - `kl`: KL(patched run as it was || patched) of the next token where the actions part, divided by KL(that run || the run the
      activations come from): 0 = nothing moved, 1 = moved as far as the other run is away, be it in another direction. There
      `corrupt` is KL(corrupt || clean), which denoise is divided by, and `clean` KL(clean || corrupt), by which noise is.

    A pair is dropped from a metric where what it is divided by (for `kl`, either) is below the minimum.
    """

    sites: tuple[str, ...]
    clean: np.ndarray
    corrupt: np.ndarray
    denoise: np.ndarray
    noise: np.ndarray
    moved: np.ndarray
    path: str = "packed"
    effects: Mapping[str, Sweep] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Pairs whose clean and corrupt runs differ too little to divide by, or that lack the span."""
        return int(np.isnan(self.denoise.reshape(len(self.denoise), -1)).all(1).sum())

    def of(self, metric: str) -> Sweep:
        """The sweep on one metric; raises ValueError for one that was not asked for."""
        if metric != "difference" and metric not in self.effects:
            raise ValueError(
                f"This sweep holds no metric {metric!r}: ask `patch` for it (metrics={METRICS})."
            )
        return self if metric == "difference" else self.effects[metric]


def continuations(clean: Prompt, corrupt: Prompt, lead: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """The two reference actions of a pair after `lead`, and how many of their tokens decide between them.

    What both actions begin with is equally likely in both, so their difference starts where they part.
    """
    actions = [p.format.action_ids(p.decision.reference) for p in (clean, corrupt)]
    alike = shared(*actions)
    return [[*lead, *a] for a in actions], [len(a) - alike for a in actions]


def _asked(
    pair: tuple[Prompt, Prompt], lead: Sequence[int], metrics: Sequence[str]
) -> tuple[list[list[int]], list[int]]:
    """The continuations that the metrics read, and how many tokens of each: beginnings of one another, so they cost no pass."""
    whole, counts = continuations(*pair, lead)
    tails, scored = list(whole), list(counts)
    if "logit_diff" in metrics:
        tails, scored = [*tails, *(t[: len(t) - n + 1] for t, n in zip(whole, counts))], [*scored, 1, 1]
    if "logp" in metrics:
        tails, scored = [*tails, whole[0]], [*scored, len(whole[0]) - len(lead)]
    return tails, scored


def _values(scores: torch.Tensor, metrics: Sequence[str], modes: int) -> np.ndarray:
    """Scores [..., column] as values [metric, ..., mode], in the order of METRICS."""
    scores, start, found = scores.double().numpy(), 0, []
    linear = [m for m in _SIGNS if m in metrics]
    width = sum(len(_SIGNS[m]) for m in linear)
    by_mode = scores[..., : modes * width].reshape(*scores.shape[:-1], modes, width)
    for metric in linear:
        signs = _SIGNS[metric]
        found.append(by_mode[..., start : start + len(signs)] @ np.array(signs))
        start += len(signs)
    return np.stack([*found, scores[..., modes * width :]] if "kl" in metrics else found)


def positions_of(prompt: Prompt, at: str) -> list[tuple[int, ...]]:
    """The positions of each cell: one at a time for `all`, else together (none where the prompt lacks the span)."""
    if at == "all":
        return [(i,) for i in range(len(prompt.ids))]
    found = tuple(range(len(prompt.ids))) if at == "prompt" else tuple(int(i) for i in prompt.positions(at))
    return [found] if found else []


def rows_of(model, sites: Sequence[str]) -> list[str]:
    """The rows of a sweep: each site, and of `z` each head (`z.0`, ...), as many as any layer has."""
    return [
        row for site in sites for row in ([f"z.{h}" for h in range(model.n_heads)] if site == "z" else [site])
    ]


def columns_of(model, row: str, layer: int) -> slice | None:
    """The part of its site that a row of a sweep is in one layer: a head's, by that layer's own width; None where it has fewer heads."""
    site, _, head = row.partition(".")
    if not head:
        return slice(None)
    width, heads = model.width(site, layer), model.heads[layer]
    size = width // heads
    return slice(int(head) * size, (int(head) + 1) * size) if int(head) < heads else None


def _cells(model, names, values, positions, held: Sequence[int] = ()) -> list[Cell]:
    """A cell for each row of the sweep, layer that has it and place, in that order.

    values: of the positions `held` (those of all cells where not given).
    """
    where = {p: i for i, p in enumerate(held or sorted({p for place in positions for p in place}))}
    cells = []
    for row, layer in itertools.product(rows_of(model, names), range(model.n_layers)):
        site, columns = row.partition(".")[0], columns_of(model, row, layer)
        if columns is not None:
            cells += [
                Cell(
                    site,
                    layer,
                    place,
                    values[site, layer][..., [where[p] for p in place], :][..., columns],
                    columns,
                )
                for place in positions
            ]
    return cells


@measured
def patch_modes(
    model,
    clean: Sequence[Prompt],
    corrupt: Sequence[Prompt],
    sites: Sequence[str] = ("resid_pre",),
    at: Sequence[str] = ("boundary",),
    modes: Sequence[Literal["prompt", "cot"]] = ("prompt", "cot"),
    minimum: float = 1.0,
    budget: float = BUDGET,
    progress: bool = False,
    metrics: Sequence[str] = ("difference",),
) -> dict[tuple[str, str], Sweep]:
    """As `patch`, at several places and reading the action in several modes, each prompt read once for all: (at, mode) -> Sweep."""
    check_pairs(clean, corrupt)
    for place in at:
        if place not in ("all", "prompt", *SPANS[:5]):
            raise ValueError(
                f"Patching is done at 'boundary', at another span ({', '.join(SPANS[:4])}), at the whole 'prompt', or at "
                f"'all' positions one by one, not at {place!r}."
            )
    wrong = [mode for mode in modes if mode not in ("prompt", "cot")]
    if wrong or not modes:
        raise ValueError(
            f"The action is read in mode 'prompt' or 'cot', not in mode {wrong[0] if wrong else modes!r}."
        )
    wrong = [metric for metric in metrics if metric not in METRICS]
    if wrong:
        raise ValueError(f"There is no metric {wrong[0]!r}: the metrics are {', '.join(METRICS)}.")
    metrics = [m for m in METRICS if m == "difference" or m in metrics]
    names = every_layer(sites)
    labels = rows_of(model, names)
    there = np.array(
        [[columns_of(model, row, layer) is not None for layer in range(model.n_layers)] for row in labels]
    )
    longest = max(len(p.ids) for p in clean)
    kind, path = _kind(model, clean, corrupt, modes)
    base = np.empty((2, len(metrics), len(modes), len(clean)))  # of the clean runs, and of the corrupt ones
    patched = {
        a: np.full((*base.shape, len(labels), model.n_layers, longest if a == "all" else 1), np.nan)
        for a in at
    }
    for index, pair in enumerate(
        tqdm(list(zip(clean, corrupt)), desc="patch", leave=False, disable=not progress)
    ):
        alike = shared(*(p.ids for p in pair))
        places = {a: positions_of(pair[0], a) for a in at}
        # Up to the first token that differs both runs are the same, so there is nothing to replace there.
        changed = {
            a: [tuple(p for p in place if p >= alike) for place in found] for a, found in places.items()
        }
        flat = sorted({p for found in changed.values() for place in found for p in place})
        start = min([alike, *flat])
        prefix, runs = [], {}
        for run, prompt in zip(_OTHER, pair):
            asked = [
                _asked(
                    pair,
                    prompt.format.action_prefix(None if mode == "prompt" else prompt.decision.trace),
                    metrics,
                )
                for mode in modes
            ]
            tails, scored = [t for both, _ in asked for t in both], [n for _, counts in asked for n in counts]
            compared = [m * len(tails) // len(modes) for m in range(len(modes))] if "kl" in metrics else []
            runs[run] = kind(
                model, prompt.ids, tails, scored, names, flat, prefix, int(budget * 2**20), compared
            )
            prefix = [
                (k[:, :, :start], v[:, :, :start]) for k, v in runs[run].layers
            ]  # the other run begins alike
        for r, (run, donor) in enumerate(_OTHER.items()):
            apart = (
                (runs[run].heads.exp() * (runs[run].heads - runs[donor].heads)).sum(-1).cpu()
                if "kl" in metrics
                else torch.empty(0)
            )
            base[r, ..., index] = _values(torch.cat([runs[run].base, apart]), metrics, len(modes))
        if not any(
            (_gap(metric, *base[:, i, :, index]) >= minimum).any() for i, metric in enumerate(metrics)
        ):
            continue  # dropped anyway
        for r, (run, donor) in enumerate(_OTHER.items()):
            still = _values(torch.cat([runs[run].base, torch.zeros(len(compared))]), metrics, len(modes))
            for a in at:
                patched[a][r, :, :, index, ..., : len(places[a])] = still[..., None, None, None]
                live = [i for i, place in enumerate(changed[a]) if place]
                if live:
                    cells = _cells(model, names, runs[donor].values, [changed[a][i] for i in live], flat)
                    found = _values(runs[run].patched(cells, progress and a == "all"), metrics, len(modes))
                    grid = np.full((*base.shape[1:3], *there.shape, len(live)), np.nan)
                    grid[:, :, there] = np.moveaxis(found, -1, 1).reshape(*base.shape[1:3], -1, len(live))
                    patched[a][r, :, :, index][..., live] = grid
    found = {}
    for a in at:
        for m, mode in enumerate(modes):
            kept = slice(None) if a == "all" else 0
            by_metric = {
                metric: effects(
                    metric, labels, *base[:, i, m], *patched[a][:, i, m][..., kept], minimum, path
                )
                for i, metric in enumerate(metrics)
            }
            found[a, mode] = replace(by_metric.pop("difference"), effects=by_metric)
    return found


def _kind(
    model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], modes: Sequence[str]
) -> tuple[type, str]:
    """How pairs are swept, and its name: packed where that is exact for the longest of their sequences."""
    longest = 0
    for pair in zip(clean, corrupt):
        for prompt in pair:
            for mode in modes:
                tails, _ = continuations(
                    *pair, prompt.format.action_prefix(None if mode == "prompt" else prompt.decision.trace)
                )
                longest = max(longest, len(prompt.ids) + max(map(len, tails)))
    model.check_length(longest)
    path = model.path(longest)
    return (Plain, path) if path else (Packed, "packed")


def _gap(metric: str, clean: np.ndarray, corrupt: np.ndarray) -> np.ndarray:
    """What a metric's effects are divided by (the smaller of two for `kl`)."""
    return np.minimum(clean, corrupt) if metric == "kl" else clean - corrupt


def effects(metric: str, labels, clean, corrupt, noised, denoised, minimum, path) -> Sweep:
    gap = _gap(metric, clean, corrupt)
    moved = (denoised.T, noised.T) if metric == "kl" else (denoised.T - corrupt, clean - noised.T)
    over = (corrupt, clean) if metric == "kl" else (gap, gap)
    denoise, noise = ((m / np.where((gap >= minimum) & (o != 0), o, np.nan)).T for m, o in zip(moved, over))
    return Sweep(tuple(labels), clean, corrupt, denoise, noise, moved[0].T, path)


def patch(
    model,
    clean: Sequence[Prompt],
    corrupt: Sequence[Prompt],
    sites: Sequence[str] = ("resid_pre",),
    at: str = "boundary",
    mode: Literal["prompt", "cot"] = "prompt",
    minimum: float = 1.0,
    budget: float = BUDGET,
    progress: bool = False,
    metrics: Sequence[str] = ("difference",),
) -> Sweep:
    """Patch each site of each layer in both directions, and read off the action.

    clean, corrupt: prompts in pairs, token for token (`interp.make_pairs`, or your own); their decisions' reference actions are
    compared. sites: any of `interp.models.site_names.SITES`; `z` is patched head by head. at: `boundary`; another span, or the whole
    `prompt`, all of whose positions are replaced together; or `all`, every position by itself. The action is read right
    after the boundary (`prompt`), or after the reference trace of the patched run (`cot`).
    denoise = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt), noise = (LD_clean - LD_patched) / (same); pairs whose
    denominator is below `minimum` nats are NaN. budget: MiB that one packed pass may take (on a GPU that runs out all the same,
    passes are halved). metrics: further ones of METRICS, from the same passes (see `Sweep`). Raises ValueError for lists that are
    not pairs, another position or metric, and NotImplementedError for a site that the model does not have.
    """
    return patch_modes(model, clean, corrupt, sites, [at], [mode], minimum, budget, progress, metrics)[
        at, mode
    ]


@dataclass(frozen=True)
class Sanity:
    """What must come out, in nats, 0 but for rounding: `self_patch`, the largest change of an action's log-probability where a run is
    patched with itself; `everything`, the largest distance from the other run's difference where all of a prompt is replaced by the
    other's at resid_pre of layer 0 and the action is read right after it (an effect of 1)."""

    self_patch: float
    everything: float


@measured
def sanity(model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], budget: float = BUDGET) -> Sanity:
    """Patch each run of each pair with itself, at every layer, and with everything of the other run, at the whole prompt.

    clean, corrupt, budget: as in `patch`. No pair is left out, however little its runs differ. Raises ValueError for lists that are
    not pairs.
    """
    check_pairs(clean, corrupt)
    kind, moved, off = _kind(model, clean, corrupt, ["prompt"])[0], 0.0, 0.0
    for pair in zip(clean, corrupt):
        every = tuple(range(len(pair[0].ids)))
        runs = [
            kind(
                model,
                p.ids,
                *continuations(*pair, p.format.action_prefix(None)),
                ["resid_pre"],
                every,
                budget=int(budget * 2**20),
            )
            for p in pair
        ]
        for run, donor in zip(runs, runs[::-1]):
            own = run.patched(_cells(model, ["resid_pre"], run.values, [every]))
            moved = max(moved, (own - run.base).abs().max().item())
            whole = run.patched(_cells(model, ["resid_pre"], donor.values, [every])[:1])[0].double()
            aim = donor.base.double()
            off = max(off, abs((whole[0] - whole[1]) - (aim[0] - aim[1])).item())
    return Sanity(moved, off)
