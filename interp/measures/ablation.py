"""Ablation: an activation replaced by zero, a mean, another prompt's or your own, or without a direction.

Every site, layer and position is a cell of one packed sweep (see `interp.engine.sweeps`), so that all of
them cost about as much as reading the prompts.

>>> texts = ["You take the mug 1. Next I put the", "You take the pen 1. Next I put the"]
>>> result = ablate(model, texts, sites=["attn_out", "mlp_out"], how="mean", answers=(" mug", " pen"))
>>> result.effect.shape                                  # [prompt, site, layer], in nats
>>> ablate(model, prompts, how="direction", direction=direction).kl.shape

Resampling keeps what is usual at a place and is the fairest; zero and mean leave the distribution that the
model knows (Zhang & Nanda 2023, 2309.16042).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from interp.engine.cells import Run, held_bytes
from interp.engine.loops import Plain
from interp.engine.positions import readings
from interp.engine.sweeps import Packed
from interp.measures.pairs import Answer, answers_after
from interp.measures.patching import Held, cells_of, columns_of, rows_of
from interp.measures.sweep import cell_columns, within
from interp.models.devices import fetched, halved, most_held, sent
from interp.models.hooked import HookedModel
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import length_batches
from interp.prompts.text import AnyPrompt, Readable, decoded, read_texts, tokenizer_of
from interp.results.shown import Plotted, counted, labelled

if TYPE_CHECKING:
    import xarray

How = Literal["zero", "mean", "resample", "direction", "donors"]
#: What activations of each (site, layer) are replaced by: for each prompt, and each position in order.
Donors = Mapping[tuple[str, int], Float[Tensor, "prompt *position width"]]
#: Activations of one prompt at each (site, layer).
Values = dict[tuple[str, int], Float[Tensor, "position width"]]


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Plotted):
    """What ablating each site of each layer does to what follows each prompt.

    NaN where a layer lacks a head, or a prompt a position.
    """

    picture: ClassVar[str] = "ablation"
    sites: tuple[str, ...]
    """`z` has one for each head, `z.0`, `z.1`, ..."""
    how: str
    base: Float[np.ndarray, "prompt"]
    """Unablated: the first answer's log-probability less the second's, or the one answer's, in nats (NaN
    without answers)."""
    effect: Float[np.ndarray, "prompt site layer *position"]
    """What that changes by, in nats; negative where the ablated activation speaks for the first answer."""
    kl: Float[np.ndarray, "prompt site layer *position"]
    """KL(unablated || ablated) of the next token, in nats: of the token at which the answers part."""
    path: str = "packed"
    """`packed`, or `plain loop` with the reason."""
    texts: tuple[tuple[str, ...], ...] = ()
    """For `at="all"` the text of each prompt's tokens."""

    def summary(self) -> str:
        prompts, sites, layers, *positions = self.kl.shape
        parts = [counted(prompts, "prompt"), counted(sites, "site"), counted(layers, "layer")]
        parts += [counted(n, "position") for n in positions]
        return f"{', '.join(parts)}, {self.how}; {self.path}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each prompt, site, layer and position: `effect` and `kl`, in nats."""
        columns = cell_columns(self.kl.shape, "prompt", self.sites, self.texts)
        frame = pd.DataFrame({**columns, "effect": self.effect.ravel(), "kl": self.kl.ravel()})
        return within(frame, "prompt", self.texts)

    def to_xarray(self) -> xarray.Dataset:
        """The effects over the named axes prompt, site, layer, position.

        Raises:
            ImportError: xarray is not installed.
        """
        axes = ("prompt", "site", "layer", "position")[: self.kl.ndim]
        variables: dict = dict(effect=(axes, self.effect), kl=(axes, self.kl), base=(("prompt",), self.base))
        return labelled(variables, dict(site=list(self.sites)), dict(how=self.how, path=self.path))


@measured
def ablate(
    model: HookedModel,
    prompts: Readable | Iterable[Readable],
    sites: Sequence[str] = ("attn_out", "mlp_out"),
    how: How = "mean",
    at: str | int | Sequence[int] = "boundary",
    *,
    answers: Sequence[Answer] = (),
    direction: Sequence[float] | Float[np.ndarray, "d_model"] | None = None,
    donors: Donors | None = None,
    seed: int = 0,
    budget: float | None = None,
    progress: bool = False,
) -> Ablation:
    """Ablate each site of each layer at chosen positions of each prompt.

    Args:
        prompts: prompts of a format, texts, or lists of token ids.
        how: `zero`; the `mean` over all that is ablated at that site and layer; `resample`, the activation at
            the same place in another of the prompts (at a random place of it where several positions are
            ablated); `direction`, the activation without its component along `direction`; or `donors`, values
            of your own.
        at: as in `interp.patch`: `boundary`, a span, the whole `prompt`, an index or several, together; or
            `all`, every position by itself.
        answers: one or two, for all prompts: texts, or token ids. Without any, `kl` alone is read. Those of
            an agent's prompt are actions, read after the opened tag.
        direction: of the site's width, for `how="direction"`.
        donors: for `how="donors"`: (site, layer) -> a row for each prompt, or each of its positions; other
            layers are NaN.
        seed: of what is resampled.
        budget: MiB that one packed pass may take (None: as in `interp.patch`).

    Raises:
        ValueError: for no prompt, another way or position, a mean or a resampling of a single prompt, and
            answers that differ in no token.
        NotImplementedError: for a site that the model does not have.
    """
    given = read_texts(model.tokenizer, prompts)
    unit = _check(given, how, direction, donors)
    names = every_layer(sites if donors is None else list(dict.fromkeys(site for site, _ in donors)))
    replacing = _Replacing(how, unit, seed, donors)
    ablating = _Ablating(model, given, names, at, answers, donors, budget)
    batches = ablating.batches()
    if how in ("mean", "resample"):
        for batch, runs in tqdm(ablating.runs(batches), desc="read", leave=False, disable=not progress):
            for r, index in enumerate(batch):
                replacing.add(index, ablating.own(runs, r, index))
    for batch, runs in tqdm(ablating.runs(batches), desc="ablate", leave=False, disable=not progress):
        ablating.ablate(batch, runs, replacing, progress)
    return ablating.result(how)


class _Ablating:
    """The effects of all prompts, as they are filled."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Sequence[AnyPrompt],
        sites: Sequence[str],
        at: str | int | Sequence[int],
        answers: Sequence[Answer],
        donors: Donors | None,
        budget: float | None,
    ) -> None:
        if at in ("trace", "action_tag"):
            raise ValueError(f"Ablation is done in the prompt, not at {at!r}.")
        self.model, self.prompts, self.sites = model, prompts, sites
        self.budget = None if budget is None else int(budget * 2**20)
        self.alone = at == "all"  # every position by itself
        self.signs = np.array([1, -1][: len(answers)])
        found = readings(prompts, "all" if at == "prompt" else at)
        self.positions = [sorted({*reading.positions}) for reading in found]
        #: prompts that have a position
        self.read = [index for index, held in enumerate(self.positions) if held]
        if not self.read:
            raise ValueError(f"None of the {len(prompts)} prompts has a token at {at!r}.")
        self.tails = [answers_after(model.tokenizer, prompt, answers) for prompt in prompts]
        longest = max(len(p.ids) + max(map(len, both)) for p, (both, _) in zip(prompts, self.tails))
        model.check_length(longest)
        self.path = model.path(longest)
        self.labels = rows_of(model, sites)
        self.there = [
            columns_of(model, row, layer) is not None
            and (donors is None or (row.partition(".")[0], layer) in donors)
            for row in self.labels
            for layer in range(model.n_layers)
        ]
        width = max(len(p.ids) for p in prompts) if self.alone else 1
        grid = (len(prompts), len(self.labels), model.n_layers, width)
        self.effect, self.kl = np.full(grid, np.nan), np.full(grid, np.nan)
        self.base = np.full(len(prompts), np.nan)

    def batches(self) -> list[list[int]]:
        """Prompts that are ablated together, of similar lengths: as many as are held at once."""
        held = held_bytes(self.model, [self._run(index) for index in self.read], self.sites)
        return [[self.read[k] for k in batch] for batch in length_batches(held, most_held(self.model))]

    def _run(self, index: int) -> Run:
        return Run(self.prompts[index].ids, *self.tails[index], self.positions[index], [0])

    def runs(self, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], Packed | Plain]]:
        """The unablated runs of each batch of prompts, which is halved where it does not fit the GPU."""
        kind = Plain if self.path else Packed

        def run(batch: list[int]) -> tuple[list[int], Packed | Plain]:
            return batch, kind(self.model, [self._run(index) for index in batch], self.sites, self.budget)

        return halved(batches, run)

    def own(self, runs: Packed | Plain, r: int, index: int) -> Values:
        """A prompt's own activations, which is run `r` of a batch."""
        n = len(self.positions[index])
        return {key: held[r][..., :n, :] for key, held in runs.values.items()}

    def ablate(
        self, batch: Sequence[int], runs: Packed | Plain, replacing: _Replacing, progress: bool
    ) -> None:
        """Fill in what every cell of some prompts does."""
        values = [replacing.values(index, self.own(runs, r, index)) for r, index in enumerate(batch)]
        held: Held = {key: _stacked([each[key] for each in values]) for key in values[0]}
        places = [self._places(index) for index in batch]
        most = max(map(len, places))
        taken = [[*each, *[()] * (most - len(each))] for each in places]
        at = [
            [tuple(self.positions[i][k] for k in each[p]) for i, each in zip(batch, taken)]
            for p in range(most)
        ]
        cells = cells_of(
            self.model, self.sites, held, at, [list(each) for each in zip(*taken)], range(len(batch))
        )
        scores = runs.patched(cells, progress=progress and self.alone).double().numpy()
        by_cell = scores.reshape(len(batch), sum(self.there), most, -1)
        base = runs.base.double().numpy()
        for r, index in enumerate(batch):
            slots = self.positions[index] if self.alone else [0]
            if len(self.signs):
                self.base[index] = base[r] @ self.signs
            for number, cell in zip(np.flatnonzero(self.there), by_cell[r, :, : len(slots)]):
                row, layer = divmod(int(number), self.model.n_layers)
                self.kl[index, row, layer, slots] = cell[:, -1]
                if len(self.signs):
                    moved = cell[:, : len(self.signs)] @ self.signs - self.base[index]
                    self.effect[index, row, layer, slots] = moved

    def _places(self, index: int) -> list[tuple[int, ...]]:
        """Which of a prompt's positions each cell replaces, counted from 0."""
        held = range(len(self.positions[index]))
        return [(k,) for k in held] if self.alone else [tuple(held)]

    def result(self, how: str) -> Ablation:
        """The effects, without an axis of positions where all are ablated together."""
        effect, kl = (self.effect, self.kl) if self.alone else (self.effect[..., 0], self.kl[..., 0])
        texts = tuple(decoded(tokenizer_of(p), p.ids) for p in self.prompts) if self.alone else ()
        return Ablation(tuple(self.labels), how, self.base, effect, kl, self.path or "packed", texts)


def _check(
    prompts: Sequence[AnyPrompt],
    how: str,
    direction: Sequence[float] | Float[np.ndarray, "d_model"] | None,
    donors: Donors | None,
) -> Float[Tensor, " d_model"] | None:
    """The direction at length 1; raises ValueError for what cannot be ablated."""
    if not prompts:
        raise ValueError("There is nothing to ablate: the list of prompts is empty.")
    if how not in get_args(How):
        raise ValueError(f"Activations are ablated by {', '.join(get_args(How))}, not by {how!r}.")
    if how in ("mean", "resample") and len(prompts) < 2:
        raise ValueError(f"how={how!r} needs other prompts to take activations from: give at least two.")
    if (how == "direction") != (direction is not None):
        raise ValueError("`direction` belongs to how='direction', which needs it.")
    if (how == "donors") != bool(donors):
        raise ValueError("`donors` belongs to how='donors', which needs it.")
    if direction is None:
        return None
    vector = torch.as_tensor(np.asarray(direction, dtype=np.float32))
    if vector.ndim != 1 or not vector.isfinite().all() or not vector.norm() > 0:
        raise ValueError("`direction` is one vector of finite numbers, not all of them 0.")
    return vector / vector.norm()


def _stacked(values: list[Tensor]) -> Float[Tensor, "run position width"] | list[Tensor]:
    """Values of several prompts as one tensor, padded on the right, if they are [position, width]."""
    return pad_sequence(values, batch_first=True) if values[0].ndim == 2 else values


class _Replacing:
    """What takes the place of a prompt's activations, by the way of ablation."""

    def __init__(
        self, how: str, unit: Float[Tensor, " d_model"] | None, seed: int, given: Donors | None
    ) -> None:
        self.how, self.unit, self.seed, self.given = how, unit, seed, given or {}
        #: What gives each donor's activations, on the CPU.
        self.donors: dict[int, dict[tuple[str, int], Callable[[], Tensor]]] = {}
        self.sums: dict[tuple[str, int], Float[Tensor, " width"]] = {}
        self.rows = 0

    def add(self, index: int, values: Values) -> None:
        """Take in what others' activations are replaced by: their sum, or each of them."""
        if self.how == "resample":
            self.donors[index] = {key: fetched(value) for key, value in values.items()}
            return
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0) + value.flatten(0, -2).double().sum(0)
        self.rows += next(iter(values.values())).flatten(0, -2).shape[0]

    def values(self, index: int, own: Values) -> Values:
        """In place of a prompt's own."""
        if self.how == "zero":
            return {key: torch.zeros_like(value) for key, value in own.items()}
        if self.how == "direction":
            return {key: self._without(key, value) for key, value in own.items()}
        if self.how == "mean":
            return {
                key: (self.sums[key] / self.rows).to(value).expand_as(value) for key, value in own.items()
            }
        if self.how == "donors":
            return {key: self._given(key, index, own[key]) for key in self.given}
        return self._resampled(index, own)

    def _given(
        self, key: tuple[str, int], index: int, own: Float[Tensor, "position width"]
    ) -> Float[Tensor, "position width"]:
        donor = torch.as_tensor(self.given[key])
        row = donor[index] if len(donor) > index else donor[:0]
        row = row[None] if row.ndim == own.ndim - 1 else row
        if row.shape != own.shape:
            raise ValueError(
                f"The donors of {key[0]} of layer {key[1]} are {list(donor.shape)}; prompt {index} needs "
                f"{list(own.shape)} [position, width]."
            )
        return row.to(own)

    def _without(self, key: tuple[str, int], value: Float[Tensor, "position width"]) -> Tensor:
        assert self.unit is not None
        if value.shape[-1] != len(self.unit):
            raise ValueError(
                f"The direction has {len(self.unit)} numbers, but {key[0]} has {value.shape[-1]}."
            )
        unit = self.unit.to(value)
        return value - (value @ unit)[..., None] * unit

    def _resampled(self, index: int, own: Values) -> Values:
        generator = np.random.default_rng([self.seed, index])
        others = [i for i in self.donors if i != index]
        fetching = self.donors[others[generator.integers(len(others))]]
        donor = {key: get() for key, get in fetching.items()}
        rows, available = (next(iter(values.values())).shape[-2] for values in (own, donor))
        chosen = (
            list(range(rows)) if rows == available == 1 else generator.integers(available, size=rows).tolist()
        )
        return {
            key: sent(donor[key][..., chosen, :], value.device).to(value.dtype) for key, value in own.items()
        }
