"""Activation patching, exact: at the boundary, a span, the whole prompt, or every layer and position.

>>> sweep = patch(model, clean, corrupt, at="history", metrics=("difference", "kl"))
>>> sweep.denoise.shape, sweep.of("kl").denoise.shape          # [pair, site, layer] each
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

from interp.engine.cells import Cell, Run, held_bytes
from interp.engine.loops import Plain
from interp.engine.sweeps import Packed
from interp.measures.pairs import Align, Answers, Pair, PairedPositions, pairs_of, token_texts
from interp.measures.sweep import METRICS as METRICS
from interp.measures.sweep import Sweep as Sweep
from interp.measures.sweep import effects as effects
from interp.measures.sweep import gap_of
from interp.models.devices import fetched, halved, most_held, sent
from interp.models.hooked import HookedModel
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import length_batches
from interp.prompts.format import SPANS, Prompt
from interp.prompts.text import TEXT, AnyPrompt, Readable, shared
from interp.results.shown import warn_incomplete

#: The place that stands after the prompt (in mode `cot`, after the reference trace).
TAG = "action_tag"
#: The first three as sums over continuations, in the order in which `_continuations_of` lists them.
_SIGNS = {"difference": (1, -1), "logit_diff": (1, -1), "logp": (1,)}
#: The positions of one cell.
Positions = tuple[int, ...]
#: Activations at each (site, layer), of each run, at the positions that it holds.
Held = Mapping[tuple[str, int], Float[Tensor, "run position width"] | list[Tensor]]


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
    values: Held,
    positions: Sequence[Sequence[Positions]],
    taken: Sequence[Sequence[Sequence[int]]],
    donors: Sequence[int],
) -> list[Cell]:
    """A cell for each row of the sweep, layer that has it and a value, and place, in that order.

    Args:
        values: of each run, at the positions that it holds.
        positions: of each place in each run.
        taken: for each of those positions, which of the donor's held positions its value is of.
        donors: the run that each run's values come from.
    """
    cells = []
    by_site = _taken(values, taken, donors)
    for row, layer in itertools.product(rows_of(model, sites), range(model.n_layers)):
        site, columns = row.partition(".")[0], columns_of(model, row, layer)
        if columns is None or (site, layer) not in values:
            continue
        for own, replacements in zip(positions, by_site[site, layer]):
            if isinstance(replacements, Tensor):
                cells.append(Cell(site, layer, own, replacements[..., columns], columns))
            else:
                cells.append(Cell(site, layer, own, [each[..., columns] for each in replacements], columns))
    return cells


def _taken(
    values: Held, taken: Sequence[Sequence[Sequence[int]]], donors: Sequence[int]
) -> dict[tuple[str, int], Sequence[Float[Tensor, "run position width"] | list[Tensor]]]:
    """For each place, the donors' values at the positions that are taken, padded on the right."""
    most = max(len(index) for place in taken for index in place)
    padded = torch.tensor([[[*index, *[0] * (most - len(index))] for index in place] for place in taken])
    device = next((held.device for held in values.values() if isinstance(held, Tensor)), torch.device("cpu"))
    index = sent(padded, device).transpose(0, 1)  # [run, place, position]
    rows = sent(torch.tensor(donors), device)[:, None, None]

    def of_places(held: Tensor | list[Tensor]) -> Sequence[Tensor | list[Tensor]]:
        if isinstance(held, Tensor):
            return held[rows.to(held.device), index.to(held.device)].unbind(1)
        return [[held[d][..., list(own), :] for d, own in zip(donors, place)] for place in taken]

    return {key: of_places(held) for key, held in values.items()}


@measured
def patch_modes(
    model: HookedModel,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre",),
    at: Sequence[str | int | tuple[int, ...]] = ("boundary",),
    modes: Sequence[str] = ("prompt", "cot"),
    minimum: float = 1.0,
    budget: float | None = None,
    progress: bool = False,
    metrics: Sequence[str] = ("difference",),
    *,
    answers: Answers | None = None,
    align: Align | None = None,
) -> dict[tuple[str | int | tuple[int, ...], str], Sweep]:
    """As `patch`, at several positions and in several modes at once: (at, mode) -> Sweep."""
    pairs = pairs_of(model.tokenizer, clean, corrupt, answers, align)
    _check_choices(pairs, at, modes, metrics)

    def swept(
        of: Sequence[Pair], at: Sequence[str | int | tuple[int, ...]], modes: Sequence[str]
    ) -> dict[tuple[str | int | tuple[int, ...], str], Sweep]:
        patching = _Patching(model, of, every_layer(sites), at, modes, minimum, budget, metrics)
        with tqdm(total=len(of), desc="patch", leave=False, disable=not progress) as bar:
            for number in halved(patching.batches(), lambda batch: patching.sweep(batch, progress)):
                bar.update(number)
        return patching.sweeps()

    in_prompt = [each for each in at if each != TAG]
    sweeps = swept(pairs, in_prompt, modes) if in_prompt else {}
    for mode in modes if TAG in at else ():  # the tag stands after the prompt, in each mode elsewhere
        opened = [pair.opened(mode) for pair in pairs]
        sweeps[TAG, mode] = swept(opened, ["boundary"], ["prompt"])["boundary", "prompt"]
    return sweeps


def _check_choices(
    pairs: Sequence[Pair],
    at: Sequence[str | int | tuple[int, ...]],
    modes: Sequence[str],
    metrics: Sequence[str],
) -> None:
    plain = next((pair.clean for pair in pairs if not isinstance(pair.clean, Prompt)), None)
    for positions in at:
        names = (
            ("all", "prompt", "last", "boundary", TEXT)
            if plain
            else ("all", "prompt", "last", TAG, *SPANS[:5])
        )
        if isinstance(positions, str) and positions not in names:
            spans = "" if plain else f", at {TAG!r}, at another span ({', '.join(SPANS[:4])})"
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
        budget: float | None,
        metrics: Sequence[str],
    ) -> None:
        self.model, self.pairs, self.sites, self.at = model, pairs, sites, at
        self.modes, self.minimum = modes, minimum
        self.budget = None if budget is None else int(budget * 2**20)
        self.metrics = [m for m in METRICS if m == "difference" or m in metrics]
        self.labels = rows_of(model, sites)
        layers = range(model.n_layers)
        self.there: Bool[np.ndarray, "row layer"] = np.array(
            [[columns_of(model, row, layer) is not None for layer in layers] for row in self.labels]
        )
        self.kind, self.path = kind_of(model, pairs, modes)
        self.places = [_places(pair, at) for pair in pairs]
        self.base = np.empty((2, len(self.metrics), len(modes), len(pairs)))
        longest = max(len(pair.clean.ids) for pair in pairs)
        grid = (len(self.labels), model.n_layers)
        self.patched = {
            a: np.full((*self.base.shape, *grid, longest if a == "all" else 1), np.nan) for a in at
        }

    def batches(self) -> list[list[int]]:
        """Pairs that are swept together, of similar lengths: as many as are held at once."""
        runs = [self._run(i, r) for i in range(len(self.pairs)) for r in range(2)]
        held = held_bytes(self.model, runs, self.sites)
        each = [2 * max(held[2 * i : 2 * i + 2]) for i in range(len(self.pairs))]
        return length_batches(each, most_held(self.model))

    def _run(self, index: int, r: int) -> Run:
        """A prompt of a pair, with what is read after it."""
        pair = self.pairs[index]
        tails: list[list[int]] = []
        scored: list[int] = []
        for mode in self.modes:
            more, counts = _continuations_of(pair, pair.prompts[r], mode, self.metrics)
            tails += more
            scored += counts
        each = len(tails) // len(self.modes)
        compared = range(0, len(tails), each) if "kl" in self.metrics else ()
        held = self.places[index].held[r]
        return Run(pair.prompts[r].ids, tails, scored, held, list(compared))

    def sweep(self, batch: Sequence[int], progress: bool) -> int:
        """Sweep some pairs in both directions, in one batch of runs; gives the number of pairs."""
        runs = self.kind(
            self.model, [self._run(i, r) for r in range(2) for i in batch], self.sites, self.budget
        )
        cells = {a: self._cells(a, batch, runs) for a in self.at}
        found = {a: runs.patched(each) for a, each in cells.items() if each and runs.at_once(each)}
        alive = self._unpatched(batch, runs)
        rows = [r * len(batch) + k for r in range(2) for k in alive]
        for a, each in cells.items():
            if not each or not alive:
                self._fill(a, batch, alive, None)
                continue
            scores = found[a][rows] if a in found else runs.patched(each, rows, progress and a == "all")
            self._fill(a, batch, alive, self._values(scores))
        return len(batch)

    def _cells(
        self, a: str | int | tuple[int, ...], batch: Sequence[int], runs: Packed | Plain
    ) -> list[Cell]:
        """The cells of one of `at` in all runs of a batch, for each row, layer and place."""
        n, places = len(batch), [self.places[i] for i in batch]
        count = _most(places, a)
        positions: list[list[Positions]] = [[] for _ in range(count)]
        taken: list[list[list[int]]] = [[] for _ in range(count)]
        for r in range(2):
            for each in places:
                index = {p: k for k, p in enumerate(each.held[1 - r])}
                for place in range(count):
                    pair = each.changed[a][place] if place < len(each.changed[a]) else ((), ())
                    positions[place].append(pair[r])
                    taken[place].append([index[p] for p in pair[1 - r]])
        live = [place for place, each in enumerate(positions) if any(each)]
        if not live:
            return []
        donors = [*range(n, 2 * n), *range(n)]
        chosen = [positions[place] for place in live], [taken[place] for place in live]
        return cells_of(self.model, self.sites, runs.values, *chosen, donors)

    def _unpatched(self, batch: Sequence[int], runs: Packed | Plain) -> list[int]:
        """Fill in the unpatched values; which pairs of the batch are told apart by some metric."""
        n, base = len(batch), runs.base
        if runs.heads is not None:
            own, other = runs.heads, runs.heads.roll(n, 0)
            apart = torch.stack([(a.exp() * (a - b)).sum(-1) for a, b in zip(own, other)])
            base = torch.cat([base, fetched(apart)()], 1)
        values = self._values(base)  # [metric, run, mode]
        self.base[..., batch] = values.reshape(len(self.metrics), 2, n, -1).transpose(1, 0, 3, 2)
        alive = []
        for k, index in enumerate(batch):
            gaps = [gap_of(metric, *self.base[:, i, :, index]) for i, metric in enumerate(self.metrics)]
            if any((gap >= self.minimum).any() for gap in gaps):
                alive.append(k)
        return alive

    def _fill(
        self,
        a: str | int | tuple[int, ...],
        batch: Sequence[int],
        alive: Sequence[int],
        values: Float[np.ndarray, "metric run cell mode"] | None,
    ) -> None:
        """Fill in the values of cells: those of a place where nothing differs are the unpatched ones."""
        places = [self.places[i] for i in batch]
        some = [
            any(len(e.changed[a]) > p and e.changed[a][p][0] for e in places) for p in range(_most(places, a))
        ]
        column = np.cumsum(some) - 1  # place -> its column among those with cells
        still = self.base[..., batch]
        still[:, [i for i, metric in enumerate(self.metrics) if metric == "kl"]] = 0
        for r, (j, k) in itertools.product(range(2), enumerate(alive)):
            index, own = batch[k], places[k]
            patched = self.patched[a][r, :, :, index]
            # the position axis of `all` is the clean prompt's
            at = [cell[0][0] for cell in own.cells[a]] if a == "all" else [0] * len(own.cells[a])
            patched[..., at] = still[r, :, :, k][..., None, None, None]
            live = [p for p, cell in enumerate(own.changed[a]) if cell[0]]
            if values is None or not live:
                continue
            by_cell = np.moveaxis(values[:, r * len(alive) + j], -1, 1)  # [metric, mode, cell]
            grid = np.full((*by_cell.shape[:2], *self.there.shape, len(live)), np.nan)
            each = by_cell.reshape(*by_cell.shape[:2], self.there.sum(), -1)
            grid[:, :, self.there] = each[..., column[live]]
            patched[..., [at[p] for p in live]] = grid

    def _values(self, scores: Float[Tensor, "*rest column"]) -> Float[np.ndarray, "metric *rest mode"]:
        return _values(scores, self.metrics, len(self.modes))

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


@dataclass(frozen=True)
class _Places:
    """Where a pair is patched, for each of `at`.

    `cells`: the positions of each place; `changed`: those of them at which the runs differ; `held`: the
    positions of the clean run, then of the corrupt one, whose activations are read.
    """

    cells: Mapping[str | int | tuple[int, ...], list[PairedPositions]]
    changed: Mapping[str | int | tuple[int, ...], list[PairedPositions]]
    held: tuple[list[int], list[int]]


def _places(pair: Pair, at: Sequence[str | int | tuple[int, ...]]) -> _Places:
    alike = shared(*(p.ids for p in pair.prompts))
    cells = {a: pair.positions(a) for a in at}
    # Up to the first token that differs both runs are the same, so there is nothing to replace there.
    changed = {a: [_changed(cell, alike) for cell in each] for a, each in cells.items()}
    clean, corrupt = (
        sorted({p for each in changed.values() for cell in each for p in cell[r]}) for r in range(2)
    )
    return _Places(cells, changed, (clean, corrupt))


def _most(places: Sequence[_Places], a: str | int | tuple[int, ...]) -> int:
    return max(len(each.changed[a]) for each in places)


def _changed(cell: PairedPositions, alike: int) -> PairedPositions:
    """The positions of a cell at which the runs differ: not where both are the same up to there."""
    differs = [(p, q) for p, q in zip(*cell) if p != q or p >= alike]
    return tuple(p for p, _ in differs), tuple(q for _, q in differs)


def kind_of(
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


def patch(
    model: HookedModel,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre",),
    at: str | int | Sequence[int] = "boundary",
    mode: str = "prompt",
    minimum: float = 1.0,
    budget: float | None = None,
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
        at: `boundary` (or `last`); `action_tag`, the last token of the opened action, off which the action is
            read; another span, or the whole `prompt`, all of whose positions are replaced together; an index
            or several, replaced together; or `all`, every position by itself.
        mode: the action is read right after the boundary (`prompt`), or after the reference trace of the
            patched run (`cot`).
        minimum: pairs whose denominator is below it, in nats, are NaN, with a warning.
        budget: MiB that one packed pass may take (None: 256 on a CPU, by free memory on a GPU, where passes
            are halved should it run out).
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
