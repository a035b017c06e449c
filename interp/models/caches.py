"""Keys and values that passes keep, and cache layers that hand them to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.models.devices import sent

#: Keys or values of a layer, [row, head, token, width]; heads and width may differ between layers.
Kept = Float[Tensor, "_ _ _ _"]
#: Keys and values of each layer.
Layers = Sequence[tuple[Kept, Kept]]


class PrefixCache(DynamicCache):
    """A cache that keeps every key, and the tokens' `ids`.

    A config-aware cache drops the keys outside a sliding window.
    """

    def __init__(self, layers: Layers = (), ids: Sequence[int] = ()):
        super().__init__()
        self.ids = list(ids)
        for index, (keys, values) in enumerate(layers):
            self.update(keys, values, index)


def filled_layers(cache: DynamicCache) -> list[tuple[Kept | None, Kept | None]]:
    """The keys and values of each layer of a cache, None in a layer that no pass has filled."""
    layers: Sequence[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def layers_of(cache: DynamicCache) -> Layers:
    """The keys and values in a cache (no layers where it is empty)."""
    layers: Sequence[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


class AppendingLayer(DynamicLayer):
    """A cache layer that shows new keys and values after those it holds, and keeps only `new` ones."""

    def __init__(self, keys: Kept, values: Kept):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._held = (keys, values)
        self.new = (keys[:, :, :0], values[:, :, :0])  # of a block that is passed over

    def update(self, key_states: Kept, value_states: Kept, *args: Any, **kwargs: Any) -> tuple[Kept, Kept]:
        self.new = (key_states, value_states)
        keys, values = self._held
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


class CacheFilled(Exception):
    """The last layer's keys and values are there, and nothing else of the pass is wanted."""


class LastLayer(DynamicLayer):
    """The last layer's cache in a pass that runs for its keys and values alone: it ends the pass."""

    def update(self, key_states: Kept, value_states: Kept, *args: Any, **kwargs: Any) -> tuple[Kept, Kept]:
        super().update(key_states, value_states)
        raise CacheFilled


class PassingLayer(DynamicLayer):
    """A layer's cache in a pass that keeps none of its keys and values."""

    def update(self, key_states: Kept, value_states: Kept, *args: Any, **kwargs: Any) -> tuple[Kept, Kept]:
        return key_states, value_states


class RoomyLayer(DynamicLayer):
    """A cache layer over buffers with room for what comes, so that a new token copies no old one."""

    def __init__(self, keys: Kept, values: Kept, used: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._used = used
        self._buffers = (keys, values)
        self._show()

    def _show(self) -> tuple[Kept, Kept]:
        keys, values = (buffer[:, :, : self._used] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def update(self, key_states: Kept, value_states: Kept, *args: Any, **kwargs: Any) -> tuple[Kept, Kept]:
        end = self._used + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, self._used : end] = new
        self._used = end
        return self._show()

    def skip(self, tokens: int) -> None:
        """Count tokens that were written to the buffers."""
        self._used += tokens
        self._show()

    def numbered(self, slots: int, slot: Int[Tensor, "1"]) -> NumberedLayer:
        """A layer over the first slots of the same buffers, of which those that come are cleared."""
        keys, values = (buffer[:, :, :slots] for buffer in self._buffers)
        for tensor in (keys, values):
            tensor[:, :, self._used :] = 0
        return NumberedLayer(keys, values, slot)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with some of the rows."""
        keys, values = self._buffers
        self._buffers = (keys[rows.to(keys.device)], values[rows.to(values.device)])
        self._show()


class NumberedLayer(DynamicLayer):
    """A cache layer that shows all its slots in every pass, and writes a token to the one named by `slot`."""

    def __init__(self, keys: Kept, values: Kept, slot: Int[Tensor, "1"]):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._buffers = (keys, values)
        self._slot = slot

    def update(self, key_states: Kept, value_states: Kept, *args: Any, **kwargs: Any) -> tuple[Kept, Kept]:
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer.index_copy_(2, self._slot, new)
        return self._buffers


def with_room(tensor: Kept, used: int, room: int) -> Kept:
    """Keys or values with at least `room` slots beyond the used ones; the same tensor where it has them."""
    if tensor.shape[2] >= used + room:
        return tensor
    return torch.cat([tensor[:, :, :used], tensor.new_empty(*tensor.shape[:2], room, tensor.shape[3])], 2)


def zeros_like_layers(layers: Layers, rows: int, slots: int) -> Layers:
    """Zero keys and values of so many rows and slots, in layers like the given ones."""

    def zeros(tensor: Kept) -> Kept:
        return tensor.new_zeros(rows, tensor.shape[1], slots, tensor.shape[3])

    return [(zeros(keys), zeros(values)) for keys, values in layers]


def selected(layers: Layers, rows: Sequence[int]) -> Layers:
    """Copies of some rows' keys and values."""
    index = sent(torch.tensor(rows), layers[0][0].device)
    return [(keys[index.to(keys.device)], values[index.to(values.device)]) for keys, values in layers]
