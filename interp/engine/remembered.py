"""Keys and values that conversations keep from call to call: of what was read, and of what was then written.

A game's next prompt is its last one, what the agent wrote, and what it saw then. Ids are compared: what comes
out as other tokens is read again, and so is all of a prompt that keeps less than half.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.engine.reading import Memory, read_prompts
from interp.models.caches import Layers, zeros_like_layers
from interp.models.devices import SHARE, free_for, token_bytes
from interp.models.hooked import HookedModel
from interp.prompts.text import shared

#: Bytes of keys and values that a memory holds at most on a CPU; what is beyond is read again. (On a GPU: a
#: part of what is free.)
HELD = 2**31


class Recalled(NamedTuple):
    """Keys and values of prompts side by side, which of their slots count, and what of each is unread."""

    layers: Layers
    seen: Bool[Tensor, "row slot"]
    unread: list[Sequence[int]]


def recalled(
    model: HookedModel,
    rows: Sequence[Sequence[int]],
    names: Sequence[Hashable],
    memory: Memory,
    room: int,
) -> Recalled:
    """What a memory holds of prompts.

    Those of which it holds less than half are read anew, since prompts are read faster without a mask.

    Args:
        names: of each prompt in `memory`.
        room: slots beyond, after what is unread.
    """
    kept = [shared(memory[name][0], row) if name in memory else 0 for row, name in zip(rows, names)]
    anew = [r for r, row in enumerate(rows) if 2 * kept[r] < len(row)]
    if len(anew) == len(rows):
        layers, seen = read_prompts(model, rows, room)
        return Recalled(layers, seen, [()] * len(rows))
    sources = {r: memory[name][1] for r, name in enumerate(names) if name in memory}
    if anew:
        layers, _ = read_prompts(model, [rows[r] for r in anew])
        for k, r in enumerate(anew):
            sources[r] = [(keys[k], values[k]) for keys, values in layers]
            kept[r] = len(rows[r])
    unread = [row[n:] for row, n in zip(rows, kept)]
    width = max(kept)
    one_row = [(keys[None], values[None]) for keys, values in sources[0]]
    layers = zeros_like_layers(one_row, len(rows), width + max(map(len, unread)) + room)
    for r, n in enumerate(kept):
        for whole, part in zip(layers, sources[r]):
            for one, other in zip(whole, part):
                one[r, :, :n] = other[:, :n]
    return Recalled(layers, torch.arange(width) < torch.tensor(kept)[:, None], unread)


class Remembering:
    """Takes the keys and values of a batch's continuations into a memory, as far as it has room.

    Args:
        names: of each continuation in `memory`.
        rows: ids of each one's prompt, and of its suffix.
        before: what was recalled of the prompts.
        suffixes: ids of each that were read after what was recalled.
    """

    def __init__(
        self,
        model: HookedModel,
        memory: Memory,
        names: Sequence[Hashable],
        rows: Sequence[Sequence[int]],
        before: Recalled,
        suffixes: Sequence[Sequence[int]],
    ):
        self.memory, self.names, self.rows = memory, names, rows
        self._read = list(map(len, suffixes))
        self._width = before.seen.shape[1]
        self._begun = before.seen.sum(1).tolist()
        for name in names:
            memory.pop(name, None)
        held = sum(len(ids) for ids, _ in memory.values())
        each = token_bytes(model)
        most = HELD if model.device.type != "cuda" else int(SHARE / 2 * (free_for(model) + held * each))
        self._room = most // each - held

    def take(self, layers: Layers, written: Iterable[tuple[int, int, Sequence[int]]]) -> None:
        """Keep what a batch's buffers hold of some rows.

        written: the row of each in the running batch, its continuation, and the ids that it wrote.
        """
        start = self._width + max(self._read)
        fed = layers[0][0].shape[2] - start
        for r, i, new in written:
            ids = (*self.rows[i], *new[:fed])
            spans = (
                (0, self._begun[i]),
                (self._width, self._width + self._read[i]),
                (start, start + min(fed, len(new))),
            )
            if len(ids) > self._room:
                continue
            self._room -= len(ids)

            def whole(tensor: Tensor, r: int = r, spans: Iterable[tuple[int, int]] = spans) -> Tensor:
                return torch.cat([tensor[r, :, a:b] for a, b in spans], 1)

            self.memory[self.names[i]] = ids, [(whole(keys), whole(values)) for keys, values in layers]
