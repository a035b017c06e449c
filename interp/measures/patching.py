"""Activation patching, exact: at the boundary, a span, the whole prompt, or every layer and position.

>>> sweep = patch(model, clean, corrupt, at="history", metrics=("difference", "kl"))
>>> sweep.denoise.shape, sweep.of("kl").denoise.shape          # [pair, site, layer] each
>>> sanity(model, clean, corrupt)                              # Sanity(self_patch=4e-06, everything=2e-06)
>>> patch(model, "Take a mug. Put the", "Take a pen. Put the", at="all", answers=(" mug", " pen"))

A whole sweep costs about as much as reading the two prompts (see `interp.engine.sweeps`). Practice:
Heimersheim & Nanda 2024 (2404.15255), Zhang & Nanda 2023 (2309.16042).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from interp.engine.sweeps import Cell, Packed, Plain
from interp.measures.pairs import Align, Answers, Pair, PairedPositions, pairs_of, token_texts
from interp.measures.sweep import METRICS as METRICS
from interp.measures.sweep import Sweep as Sweep
from interp.models.hooked import HookedModel
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.prompts.format import SPANS, Prompt
from interp.prompts.text import TEXT, AnyPrompt, Readable, shared
from interp.results.shown import warn_incomplete

BUDGET = 256  # MiB
#: The first three as sums over continuations, in the order in which `_continuations_of` lists them.
_SIGNS = {"difference": (1, -1), "logit_diff": (1, -1), "logp": (1,)}
_OTHER = {"clean": "corrupt", "corrupt": "clean"}
#: The positions of one cell.
Positions = tuple[int, ...]


def _continuations_of(
    pair: Pair, prompt: AnyPrompt, mode: str, metrics: Sequence[str]
) -> tuple[list[list[int]], list[int]]:
    """The continuations of a prompt that the metrics need, and how many tokens of each.

    Those of further metrics begin the first two, so they cost no pass.
    """
    whole, counts = pair.continuations(prompt, mode)
    tails, scored = list(whole), list(counts)
    if "logit_diff" in metrics:
        tails += [tail[: len(tail) - n + 1] for tail, n in zip(whole, counts)]
        scored += [1, 1]
    if "logp" in metrics:
        tails.append(whole[0])
        scored.append(len(pair.answers[0]))
    return tails, scored


def _values(
    scores: Float[Tensor, "*rest column"], metrics: Sequence[str], modes: int
) -> Float[np.ndarray, "metric *rest mode"]:
    """Scores as values of each metric, in the order of METRICS."""
    columns = scores.double().numpy()
    linear = [metric for metric in _SIGNS if metric in metrics]
    width = sum(len(_SIGNS[metric]) for metric in linear)
    by_mode = columns[..., : modes * width].reshape(*columns.shape[:-1], modes, width)
    values, start = [], 0
    for metric in linear:
        signs = _SIGNS[metric]
        values.append(by_mode[..., start : start + len(signs)] @ np.array(signs))
        start += len(signs)
    if "kl" in metrics:
        values.append(columns[..., modes * width :])
    return np.stack(values)


def rows_of(model: HookedModel, sites: Sequence[str]) -> list[str]:
    """The rows of a sweep: each site, and of `z` each head (`z.0`, ...), as many as any layer has."""
    heads = [f"z.{head}" for head in range(model.n_heads)]
    return [row for site in sites for row in (heads if site == "z" else [site])]


def columns_of(model: HookedModel, row: str, layer: int) -> slice | None:
    """The columns of its site that a row of a sweep is in one layer; None where the layer lacks the head."""
    site, _, head = row.partition(".")
    if not head:
        return slice(None)
    heads = model.heads[layer]
    size = model.width(site, layer) // heads
    return slice(int(head) * size, (int(head) + 1) * size) if int(head) < heads else None


def cells_of(
    model: HookedModel,
    sites: Sequence[str],
    values: Mapping[tuple[str, int], Float[Tensor, "*continuation position width"]],
    positions: Sequence[Positions],
    donors: Sequence[Positions] = (),
    held: Sequence[int] = (),
) -> list[Cell]:
    """A cell for each row of the sweep, layer that has it and a value, and positions, in that order.

    Args:
        values: of the donor run, at its positions `held` (those of all cells where not given).
        donors: the donor's positions of each cell (the same ones where not given).
    """
    donors = donors or positions
    index = {p: i for i, p in enumerate(held or sorted({p for cell in donors for p in cell}))}
    cells = []
    for row, layer in itertools.product(rows_of(model, sites), range(model.n_layers)):
        site, columns = row.partition(".")[0], columns_of(model, row, layer)
        if columns is None or (site, layer) not in values:
            continue
        for cell, donor in zip(positions, donors):
            replacement = values[site, layer][..., [index[p] for p in donor], :][..., columns]
            cells.append(Cell(site, layer, cell, replacement, columns))
    return cells


@measured
def patch_modes(
    model: HookedModel,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre",),
    at: Sequence[str | int | tuple[int, ...]] = ("boundary",),
    modes: Sequence[str] = ("prompt", "cot"),
    minimum: float = 1.0,
    budget: float = BUDGET,
    progress: bool = False,
    metrics: Sequence[str] = ("difference",),
    *,
    answers: Answers | None = None,
    align: Align | None = None,
) -> dict[tuple[str | int | tuple[int, ...], str], Sweep]:
    """As `patch`, at several positions and in several modes at once: (at, mode) -> Sweep."""
    pairs = pairs_of(model.tokenizer, clean, corrupt, answers, align)
    _check_choices(pairs, at, modes, metrics)
    patching = _Patching(model, pairs, every_layer(sites), at, modes, minimum, budget, metrics)
    numbers = tqdm(range(len(pairs)), desc="patch", leave=False, disable=not progress)
    for index in numbers:
        patching.pair(index, progress)
    return patching.sweeps()


def _check_choices(
    pairs: Sequence[Pair],
    at: Sequence[str | int | tuple[int, ...]],
    modes: Sequence[str],
    metrics: Sequence[str],
) -> None:
    plain = next((pair.clean for pair in pairs if not isinstance(pair.clean, Prompt)), None)
    for positions in at:
        names = (
            ("all", "prompt", "last", "boundary", TEXT) if plain else ("all", "prompt", "last", *SPANS[:5])
        )
        if isinstance(positions, str) and positions not in names:
            spans = "" if plain else f", at another span ({', '.join(SPANS[:4])})"
            raise ValueError(
                f"Patching is done at 'boundary'{spans}, at the whole 'prompt', at 'all' positions one by "
                f"one, or at indices, not at {positions!r}."
            )
    if plain and "cot" in modes:
        raise ValueError(f"Plain text ({plain.name}) has no trace: its answers are read in mode 'prompt'.")
    wrong = [mode for mode in modes if mode not in ("prompt", "cot")]
    if wrong or not modes:
        raise ValueError(
            f"The action is read in mode 'prompt' or 'cot', not in mode {wrong[0] if wrong else modes!r}."
        )
    wrong = [metric for metric in metrics if metric not in METRICS]
    if wrong:
        raise ValueError(f"There is no metric {wrong[0]!r}: the metrics are {', '.join(METRICS)}.")


class _Patching:
    """The sweeps of all pairs, as they are filled.

    `base` [run, metric, mode, pair]: unpatched values of the clean runs, then of the corrupt ones.
    `patched[at]`, with axes row, layer and position more: what became of them.
    """

    def __init__(
        self,
        model: HookedModel,
        pairs: Sequence[Pair],
        sites: Sequence[str],
        at: Sequence[str | int | tuple[int, ...]],
        modes: Sequence[str],
        minimum: float,
        budget: float,
        metrics: Sequence[str],
    ) -> None:
        self.model, self.pairs, self.sites, self.at = model, pairs, sites, at
        self.modes, self.minimum, self.budget = modes, minimum, int(budget * 2**20)
        self.metrics = [m for m in METRICS if m == "difference" or m in metrics]
        self.labels = rows_of(model, sites)
        layers = range(model.n_layers)
        self.there: Bool[np.ndarray, "row layer"] = np.array(
            [[columns_of(model, row, layer) is not None for layer in layers] for row in self.labels]
        )
        self.kind, self.path = _kind(model, pairs, modes)
        self.base = np.empty((2, len(self.metrics), len(modes), len(pairs)))
        longest = max(len(pair.clean.ids) for pair in pairs)
        grid = (len(self.labels), model.n_layers)
        self.patched = {
            a: np.full((*self.base.shape, *grid, longest if a == "all" else 1), np.nan) for a in at
        }

    def pair(self, index: int, progress: bool) -> None:
        """Sweep one pair, in both directions."""
        pair = self.pairs[index]
        alike = shared(*(p.ids for p in pair.prompts))
        positions = {a: pair.positions(a) for a in self.at}
        # Up to the first token that differs both runs are the same, so there is nothing to replace there.
        changed = {a: [_changed(cell, alike) for cell in cells] for a, cells in positions.items()}
        held = {
            run: sorted({p for cells in changed.values() for cell in cells for p in cell[r]})
            for r, run in enumerate(_OTHER)
        }
        runs = self._runs(pair, held, min([alike, *held["clean"], *held["corrupt"]]))
        for r, (run, donor) in enumerate(_OTHER.items()):
            apart = torch.empty(0)
            own, other = runs[run].heads, runs[donor].heads
            if own is not None and other is not None:
                apart = (own.exp() * (own - other)).sum(-1).cpu()
            self.base[r, ..., index] = self._values(torch.cat([runs[run].base, apart]))
        gaps = [_gap(metric, *self.base[:, i, :, index]) for i, metric in enumerate(self.metrics)]
        if not any((gap >= self.minimum).any() for gap in gaps):
            return  # dropped anyway
        for r, (run, donor) in enumerate(_OTHER.items()):
            nothing = torch.zeros(len(self.modes) if "kl" in self.metrics else 0)
            still = self._values(torch.cat([runs[run].base, nothing]))
            for a in self.at:
                # the position axis of `all` is the clean prompt's
                places = [cell[0][0] for cell in positions[a]] if a == "all" else [0] * len(positions[a])
                patched = self.patched[a][r, :, :, index]
                patched[..., places] = still[..., None, None, None]
                live = [i for i, cell in enumerate(changed[a]) if cell[0]]
                if live:
                    cells = cells_of(
                        self.model,
                        self.sites,
                        runs[donor].values,
                        [changed[a][i][r] for i in live],
                        [changed[a][i][1 - r] for i in live],
                        held[donor],
                    )
                    values = self._values(runs[run].patched(cells, progress and a == "all"))
                    grid = np.full((*self.base.shape[1:3], *self.there.shape, len(live)), np.nan)
                    by_cell = np.moveaxis(values, -1, 1)
                    grid[:, :, self.there] = by_cell.reshape(*self.base.shape[1:3], -1, len(live))
                    patched[..., [places[i] for i in live]] = grid

    def _values(self, scores: Float[Tensor, "*rest column"]) -> Float[np.ndarray, "metric *rest mode"]:
        return _values(scores, self.metrics, len(self.modes))

    def _runs(self, pair: Pair, held: Mapping[str, Sequence[int]], start: int) -> dict[str, Packed | Plain]:
        """The unpatched runs of a pair, whose first `start` tokens are the same; kept at positions `held`."""
        prefix: list[tuple[Tensor, Tensor]] = []
        runs = {}
        for run, prompt in zip(_OTHER, pair.prompts):
            tails: list[list[int]] = []
            scored: list[int] = []
            for mode in self.modes:
                more, counts = _continuations_of(pair, prompt, mode, self.metrics)
                tails += more
                scored += counts
            each = len(tails) // len(self.modes)
            compared = range(0, len(tails), each) if "kl" in self.metrics else ()
            kept = (self.sites, held[run], prefix, self.budget, list(compared))
            runs[run] = self.kind(self.model, prompt.ids, tails, scored, *kept)
            prefix = [(k[:, :, :start], v[:, :, :start]) for k, v in runs[run].layers]
        return runs

    def sweeps(self) -> dict[tuple[str | int | tuple[int, ...], str], Sweep]:
        """(at, mode) -> Sweep."""
        sweeps: dict[tuple[str | int | tuple[int, ...], str], Sweep] = {}
        for a, (m, mode) in itertools.product(self.at, enumerate(self.modes)):
            kept = slice(None) if a == "all" else 0
            tokens = tuple(map(token_texts, self.pairs)) if a == "all" else ()
            by_metric: dict[str, Sweep] = {}
            for i, metric in enumerate(self.metrics):
                base, patched = self.base[:, i, m], self.patched[a][:, i, m][..., kept]
                each = effects(metric, self.labels, base, patched, self.minimum, self.path)
                by_metric[metric] = replace(each, tokens=tokens)
            sweeps[a, mode] = replace(by_metric.pop("difference"), effects=by_metric)
        return sweeps


def _changed(cell: PairedPositions, alike: int) -> PairedPositions:
    """The positions of a cell at which the runs differ: not where both are the same up to there."""
    differs = [(p, q) for p, q in zip(*cell) if p != q or p >= alike]
    return tuple(p for p, _ in differs), tuple(q for _, q in differs)


def _kind(
    model: HookedModel, pairs: Sequence[Pair], modes: Sequence[str]
) -> tuple[type[Packed] | type[Plain], str]:
    """How pairs are swept, and its name: packed where that is exact for the longest of their sequences."""
    longest = 0
    for pair in pairs:
        for prompt, mode in itertools.product(pair.prompts, modes):
            tails, _ = pair.continuations(prompt, mode)
            longest = max(longest, len(prompt.ids) + max(map(len, tails)))
    model.check_length(longest)
    path = model.path(longest)
    return (Plain, path) if path else (Packed, "packed")


def _gap(
    metric: str, clean: Float[np.ndarray, "any"], corrupt: Float[np.ndarray, "any"]
) -> Float[np.ndarray, "any"]:
    """What a metric's effects are divided by (the smaller of two for `kl`)."""
    return np.minimum(clean, corrupt) if metric == "kl" else clean - corrupt


def effects(
    metric: str,
    labels: Sequence[str],
    base: Sequence[Float[np.ndarray, "pair"]] | Float[np.ndarray, "2 pair"],
    patched: Sequence[Float[np.ndarray, "pair *cell"]] | Float[np.ndarray, "2 pair *cell"],
    minimum: float,
    path: str,
) -> Sweep:
    """Normalise patched values of the clean and the corrupt runs by the unpatched ones, in nats."""
    (clean, corrupt), (noised, denoised) = base, patched
    gap = _gap(metric, clean, corrupt)
    if metric == "kl":
        moved, over = (denoised.T, noised.T), (corrupt, clean)
    else:
        moved, over = (denoised.T - corrupt, clean - noised.T), (gap, gap)
    denoise, noise = ((m / np.where((gap >= minimum) & (o != 0), o, np.nan)).T for m, o in zip(moved, over))
    return Sweep(tuple(labels), clean, corrupt, denoise, noise, moved[0].T, path)


def patch(
    model: HookedModel,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre",),
    at: str | int | Sequence[int] = "boundary",
    mode: str = "prompt",
    minimum: float = 1.0,
    budget: float = BUDGET,
    progress: bool = False,
    metrics: Sequence[str] = ("difference",),
    *,
    answers: Answers | None = None,
    align: Align | None = None,
) -> Sweep:
    """Patch each site of each layer in both directions, and read off the action, or one of two answers.

    denoise = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt), noise = (LD_clean - LD_patched) / (same),
    where LD is log p(clean answer) - log p(corrupt answer).

    Args:
        clean, corrupt: prompts in pairs, token for token (`interp.make_pairs`, or your own), or texts, or
            lists of token ids.
        sites: any of `interp.models.site_names.SITES`; `z` is patched head by head.
        at: `boundary` (or `last`); another span, or the whole `prompt`, all of whose positions are replaced
            together; an index or several, replaced together; or `all`, every position by itself.
        mode: the action is read right after the boundary (`prompt`), or after the reference trace of the
            patched run (`cot`).
        minimum: pairs whose denominator is below it, in nats, are NaN, with a warning.
        budget: MiB that one packed pass may take (on a GPU that runs out all the same, passes are halved).
        metrics: further ones of METRICS, from the same passes (`Sweep`).
        answers: the clean and the corrupt answer, texts or token ids, or two for each pair; the decisions'
            reference actions where None.
        align: for prompts of different lengths, which position of the clean one corresponds to which of the
            corrupt one; the position axis of `all` is then the clean prompt's.

    Raises:
        ValueError: for lists that are not pairs, and another position, mode or metric.
        NotImplementedError: for a site that the model does not have.
    """
    place = at if isinstance(at, (str, int)) else tuple(at)
    sweeps = patch_modes(
        model,
        clean,
        corrupt,
        sites,
        [place],
        [mode],
        minimum,
        budget,
        progress,
        metrics,
        answers=answers,
        align=align,
    )
    warn_dropped(sweeps[place, mode], minimum)
    return sweeps[place, mode]


def warn_dropped(sweep: Sweep, minimum: float) -> None:
    """Warn of a sweep's dropped pairs, with the reason and the remedy."""
    if not sweep.dropped:
        return
    close = int((sweep.clean - sweep.corrupt < minimum).sum())
    reasons = []
    if close:
        reasons.append(
            f"{close} because the clean run prefers the clean action by less than {minimum:g} nats more than "
            "the corrupt run does (choose pairs that the model tells apart, or lower minimum)"
        )
    if sweep.dropped > close:
        reasons.append(f"{sweep.dropped - close} because the prompt has no such span (patch at another one)")
    warn_incomplete(f"{sweep.dropped} of {len(sweep.clean)} pairs are dropped (NaN): {'; '.join(reasons)}.")


@dataclass(frozen=True)
class Sanity:
    """What must come out 0 but for rounding, in nats."""

    self_patch: float
    """The largest change of an action's log-probability where a run is patched with itself."""
    everything: float
    """The largest distance from the other run's difference where the whole prompt is replaced by the other's.

    That is at resid_pre of layer 0, and the action is read right after it (an effect of 1).
    """


@measured
def sanity(
    model: HookedModel, clean: Sequence[Prompt], corrupt: Sequence[Prompt], budget: float = BUDGET
) -> Sanity:
    """Patch each run of each pair with itself at every layer, and with everything of the other run.

    No pair is left out, however little its runs differ.

    Args:
        clean, corrupt, budget: as in `patch`.

    Raises:
        ValueError: for lists that are not pairs.
    """
    pairs = pairs_of(model.tokenizer, clean, corrupt)
    kind = _kind(model, pairs, ["prompt"])[0]
    moved, off = 0.0, 0.0
    for pair in pairs:
        every = tuple(range(len(pair.clean.ids)))
        runs = []
        for prompt in pair.prompts:
            tails, scored = pair.continuations(prompt, "prompt")
            runs.append(
                kind(model, prompt.ids, tails, scored, ["resid_pre"], every, budget=int(budget * 2**20))
            )
        for run, donor in zip(runs, runs[::-1]):
            own = run.patched(cells_of(model, ["resid_pre"], run.values, [every]))
            moved = max(moved, (own - run.base).abs().max().item())
            whole = run.patched(cells_of(model, ["resid_pre"], donor.values, [every])[:1])[0].double()
            aim = donor.base.double()
            off = max(off, abs((whole[0] - whole[1]) - (aim[0] - aim[1])).item())
    return Sanity(moved, off)
