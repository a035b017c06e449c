"""Captured activations, and the forms in which other libraries take them.

>>> acts = capture(model, prompts, sites=["resid_post"])
>>> acts.to_xarray().sel(site="resid_post", layer=1).dims
('decision', 'd_model')
>>> acts.to_cache()["resid_post", 1].shape          # TransformerLens: [decision, position, d_model]
torch.Size([6, 1, 32])
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from interp.models.site_names import parse_key, tl_name
from interp.results.shown import Shown, counted, labelled

if TYPE_CHECKING:
    import xarray
    from datasets import Dataset
    from transformer_lens import ActivationCache

    from interp.models.hooked import HookedModel


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Shown):
    """Captured activations in float32, and what they are of.

    `paths` says how each decision was read: `trajectory` (with others that it extends or that extend it, in
    one row), `shared prefix` (packed after what its episode's prompts begin with), or `plain` (by itself).
    """

    values: Float[Tensor, "row site layer width"]
    """A row for each decision, or for each token of each decision where several were captured."""
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    prompts: tuple[str, ...]
    weights_hash: str
    dtype: str
    paths: tuple[str, ...]
    positions: tuple[int, ...] = ()
    """The token of each row."""
    offsets: tuple[int, ...] = ()
    """Decision i has the rows from offsets[i] up to offsets[i + 1] (empty where each has one)."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def decisions(self) -> Int[np.ndarray, "row"]:
        """The decision of each row."""
        counts = np.diff(self.offsets) if self.offsets else np.ones(len(self.prompts), dtype=int)
        return np.repeat(np.arange(len(self.prompts)), counts)

    def rows(self, decision: int) -> Float[Tensor, "token site layer width"]:
        """The rows of one decision."""
        decision = range(len(self.prompts))[decision]
        start, end = self.offsets[decision : decision + 2] if self.offsets else (decision, decision + 1)
        return self.values[start:end]

    def __getitem__(self, key: str | tuple[str, int]) -> Float[Tensor, "row width"]:
        """The rows at a site of a layer: `acts["resid_post", 3]`, or `acts["blocks.3.hook_resid_post"]`.

        Raises KeyError for one that was not captured.
        """
        site, layer = parse_key(key)
        if site not in self.sites or layer not in self.layers:
            raise KeyError(
                f"{site} of layer {layer} was not captured: there are {', '.join(self.sites)} of layers "
                f"{', '.join(map(str, self.layers))}."
            )
        return self.values[:, self.sites.index(site), self.layers.index(layer)]

    def summary(self) -> str:
        sites = f"{counted(len(self.sites), 'site')} ({', '.join(self.sites)})"
        shape = [counted(len(self), "decision"), sites, counted(len(self.layers), "layer")]
        if self.offsets:
            shape.insert(1, counted(len(self.values), "token"))
        return f"{', '.join(shape)}, width {self.values.shape[-1]}"

    def numpy(self) -> Float[np.ndarray, "row site layer width"]:
        """The values as an array, which shares their memory."""
        return self.values.numpy()

    def to_frame(self) -> pd.DataFrame:
        """A row for each vector: `decision`, `prompt` (a hash), `position`, `site`, `layer`, `0`, `1`, ..."""
        rows, sites, layers = np.indices(self.values.shape[:3]).reshape(3, -1)
        names = {name: column[rows] for name, column in self._places().items()}
        names["site"] = np.array(self.sites, dtype=object)[sites]
        names["layer"] = np.array(self.layers)[layers]
        numbers = self.numpy().reshape(len(rows), -1)
        return pd.concat([pd.DataFrame(names), pd.DataFrame(numbers)], axis=1)

    def _places(self) -> dict[str, Shaped[np.ndarray, "row"]]:
        """The decision, its prompt's hash and, where it is known, the token of each row."""
        prompts = np.array(self.prompts, dtype=object)[self.decisions]
        places: dict = dict(decision=self.decisions, prompt=prompts)
        return places | (dict(position=np.array(self.positions)) if self.positions else {})

    def glance(self) -> pd.DataFrame:
        """The norm of each site's vectors by layer, mean and largest over the rows."""
        norms = self.values.norm(dim=-1)
        rows = [
            dict(
                site=site,
                layer=layer,
                mean_norm=float(norms[:, i, k].mean()),
                largest_norm=float(norms[:, i, k].max()),
            )
            for i, site in enumerate(self.sites)
            for k, layer in enumerate(self.layers)
        ]
        return pd.DataFrame(rows)

    def to_xarray(self) -> xarray.DataArray:
        """The values with named axes: decision, site, layer, d_model.

        Where several tokens of a decision were captured the first axis is `row`, with the coordinates
        `decision` and `position`.

        Raises:
            ImportError: xarray is not installed.
        """
        first = "row" if self.offsets else "decision"
        coordinates: dict = {name: (first, column) for name, column in self._places().items()}
        coordinates |= dict(site=list(self.sites), layer=list(self.layers))
        axes = (first, "site", "layer", "d_model")
        array = labelled(dict(activation=(axes, self.numpy())), coordinates, {})["activation"]
        return array.assign_attrs(weights_hash=self.weights_hash, dtype=self.dtype)

    def to_cache(self, model: HookedModel | None = None) -> ActivationCache:
        """TransformerLens' ActivationCache: its batch is the rows, and its one position the captured token.

        Args:
            model: what was captured from. With it the cache's own methods work (`logit_attrs`, ...), and `z`
                is [row, 1, head, d_head]; without it `z` keeps its heads side by side.
        """
        from transformer_lens import ActivationCache

        tensors = dict(self._by_hook())
        if model is not None:
            for layer in self.layers if "z" in self.sites else ():
                name = tl_name("z", layer)
                tensors[name] = tensors[name].unflatten(-1, (model.heads[layer], -1))
        return ActivationCache(tensors, None if model is None else model.bridge)

    def to_dataset(self) -> Dataset:
        """A Hugging Face Dataset: `decision`, `prompt`, perhaps `position`, and a column for each hook.

        Raises:
            ImportError: datasets is not installed.
        """
        try:
            from datasets import Dataset
        except ImportError:
            raise ImportError(
                "A Dataset needs the package datasets: install it (`pip install datasets`), or take "
                "`to_frame()`."
            ) from None
        columns = {name: tensor[:, 0].numpy() for name, tensor in self._by_hook()}
        places = {name: column.tolist() for name, column in self._places().items()}
        return Dataset.from_dict({**places, **columns})

    def _by_hook(self) -> Iterator[tuple[str, Float[Tensor, "row 1 width"]]]:
        for i, site in enumerate(self.sites):
            for k, layer in enumerate(self.layers):
                yield tl_name(site, layer), self.values[:, i, k, None]
