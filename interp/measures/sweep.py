"""The effects of a sweep of patches, over pairs, sites, layers and perhaps positions.

>>> sweep = patch(model, clean, corrupt, metrics=("difference", "kl"), minimum=0)
>>> sweep.to_frame().columns.tolist()
['metric', 'pair', 'site', 'layer', 'denoise', 'noise', 'moved']
>>> sweep.plot()                                     # lines by layer; a heatmap layer x token for at="all"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from interp.results.shown import Plotted, counted, labelled
from interp.system.choices import Metric

if TYPE_CHECKING:
    import xarray

METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Plotted):
    """Normalised effects of a sweep: 0 = nothing, 1 = the whole difference, NaN where a pair was dropped.

    `effects` holds the same for each further metric that was asked for (`of`):

    - `logit_diff`: the difference of the two actions' first differing tokens alone, for screening.
    - `logp`: log p(clean action) alone, of all its tokens. The difference moves too when the other action
      falls.
    - `kl`: KL(patched run as it was || patched) of the next token where the actions part, divided by KL(that
      run || the run the activations come from): 0 = nothing moved, 1 = moved as far as the other run is away,
      be it in another direction. There `corrupt` is KL(corrupt || clean), which denoise is divided by, and
      `clean` KL(clean || corrupt), by which noise is.

    A pair is dropped from a metric where what it is divided by (for `kl`, either) is below the minimum.
    """

    picture: ClassVar[str] = "sweep"
    sites: tuple[str, ...]
    """`z` has one for each head, `z.0`, `z.1`, ... (NaN in a layer of fewer heads)."""
    clean: Float[np.ndarray, "pair"]
    """log p(clean action) - log p(corrupt action) of the unpatched clean runs, whole actions, in nats."""
    corrupt: Float[np.ndarray, "pair"]
    """The same of the corrupt runs."""
    denoise: Float[np.ndarray, "pair site layer *position"]
    """Clean activations in the corrupt run; `position` is there for `at="all"` (NaN beyond the end)."""
    noise: Float[np.ndarray, "pair site layer *position"]
    """Corrupt activations in the clean run."""
    moved: Float[np.ndarray, "pair site layer *position"]
    """The numerator of `denoise`, in nats, even where the denominator is 0."""
    path: str = "packed"
    """`packed`, or `plain loop` with the reason."""
    effects: Mapping[str, Sweep] = field(default_factory=dict)
    tokens: tuple[tuple[str, ...], ...] = ()
    """For `at="all"` the text of each pair's tokens, both where clean and corrupt differ."""

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

    def summary(self) -> str:
        pairs, _, layers, *positions = self.denoise.shape
        parts = [counted(pairs, "pair"), f"{counted(len(self.sites), 'site')}", counted(layers, "layer")]
        parts += [counted(n, "position") for n in positions]
        if self.effects:
            parts.append(f"metrics difference, {', '.join(self.effects)}")
        return f"{', '.join([*parts, f'{self.dropped} dropped'])}; {self.path}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each metric, pair, site, layer and position: `denoise`, `noise`, and `moved` in nats."""
        tables = [self._cells("difference"), *(each._cells(name) for name, each in self.effects.items())]
        return pd.concat(tables, ignore_index=True)

    def _cells(self, metric: str) -> pd.DataFrame:
        columns = cell_columns(self.denoise.shape, "pair", self.sites, self.tokens)
        effects = {name: getattr(self, name).ravel() for name in ("denoise", "noise", "moved")}
        return within(pd.DataFrame({"metric": metric, **columns, **effects}), "pair", self.tokens)

    def to_xarray(self) -> xarray.Dataset:
        """The effects over the named axes pair, site, layer, position; of another metric, those of `of`.

        Raises:
            ImportError: xarray is not installed.
        """
        axes = ("pair", "site", "layer", "position")[: self.denoise.ndim]
        variables: dict = {name: (axes, getattr(self, name)) for name in ("denoise", "noise", "moved")}
        variables |= {name: (("pair",), getattr(self, name)) for name in ("clean", "corrupt")}
        coordinates: dict = dict(site=list(self.sites))
        if self.tokens:
            coordinates["token"] = (("pair", "position"), _padded(self.tokens).astype(str))
        return labelled(variables, coordinates, dict(path=self.path))


def gap_of(
    metric: str, clean: Float[np.ndarray, "any"], corrupt: Float[np.ndarray, "any"]
) -> Float[np.ndarray, "any"]:
    """What a metric's effects are divided by (the smaller of two for `kl`), in nats."""
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
    gap = gap_of(metric, clean, corrupt)
    if metric == "kl":
        moved, over = (denoised.T, noised.T), (corrupt, clean)
    else:
        moved, over = (denoised.T - corrupt, clean - noised.T), (gap, gap)
    denoise, noise = ((m / np.where((gap >= minimum) & (o != 0), o, np.nan)).T for m, o in zip(moved, over))
    return Sweep(tuple(labels), clean, corrupt, denoise, noise, moved[0].T, path)


def cell_columns(
    shape: Sequence[int], first: str, sites: Sequence[str], tokens: Sequence[Sequence[str]]
) -> dict[str, Shaped[np.ndarray, "cell"]]:
    """Where each cell of an array [pair or prompt, site, layer, *position] is, in the array's order.

    first: what the first axis is called. tokens: of each of it, where they are known.
    """
    index = np.indices(shape).reshape(len(shape), -1)
    columns = dict(zip((first, "site", "layer", "position"), index))
    columns["site"] = np.array(sites, dtype=object)[columns["site"]]
    if tokens:
        columns["token"] = _padded(tokens)[columns[first], columns["position"]]
    return columns


def within(frame: pd.DataFrame, first: str, tokens: Sequence[Sequence[str]]) -> pd.DataFrame:
    """The cells of positions that are there: a shorter prompt has fewer."""
    if not tokens:
        return frame
    lengths = np.array([len(each) for each in tokens])
    return frame[frame["position"] < lengths[frame[first]]].reset_index(drop=True)


def _padded(tokens: Sequence[Sequence[str]]) -> Shaped[np.ndarray, "first position"]:
    width = max(map(len, tokens))
    return np.array([[*each, *[""] * (width - len(each))] for each in tokens], dtype=object)
