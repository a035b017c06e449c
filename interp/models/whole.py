"""Sequences read whole, each in a plain pass: the reference for every faster path.

It is the only exact path for models that keep a state in place of keys and values of each token, and for
sequences beyond a length at which what came before changes. Sequences are batched where that changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.devices import sent

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

#: Where a model's forward takes and gives its cache.
_CACHES = ("past_key_values", "cache_params", "state")


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "row token"]:
    """Ids of ragged rows, padded with token 0 on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return sent(ids, device)


def length_batches(lengths: Sequence[int], batch_tokens: int, alike: float = 0.0) -> list[list[int]]:
    """Indices in batches of similar lengths, each at most `batch_tokens` with its padding (longest first).

    alike: a batch's shortest has at least this share of its longest.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens and lengths[i] >= alike * longest:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def batches(model: HookedModel, lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """As `length_batches`; rows whose states depend on the whole length are with equal lengths only."""
    kinds = defaultdict(list)
    for i, n in enumerate(lengths):
        kinds[n if model.stands_alone(n) else 0].append(i)
    return [
        [members[i] for i in batch]
        for members in kinds.values()
        for batch in length_batches([lengths[i] for i in members], batch_tokens)
    ]


class Growing:
    """One sequence to which tokens are added: read on in the model's own cache if that is exact.

    anew: whether a sequence of one length must be read again to have another (None: the model's `anew`).
    """

    def __init__(self, model: HookedModel, anew: Callable[[int, int], bool] | None = None):
        self.model = model
        self.ids: list[int] = []
        self.cache: dict[str, Any] = {}
        self.anew = model.anew if anew is None else anew
        self.stepped = False

    def add(self, ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
        """Final hidden states of the added tokens."""
        length = len(self.ids)
        self.ids += ids
        if self.cache and not self.anew(length, len(self.ids)):
            self.stepped = True
            unread = list(ids)
        else:
            self.cache = {}
            unread = self.ids
        # Some models that keep states alone fail where they are to keep them, so a cache is asked for only
        # if needed.
        goes_on = not self.anew(len(self.ids), len(self.ids) + 1)
        output = self.model.inner(
            input_ids=torch.tensor([unread], device=self.model.device),
            **self.cache,
            **(self.model.cached if goes_on else self.model.uncached),
        )
        self.cache = {name: output[name] for name in _CACHES if name in output and output[name] is not None}
        return output.last_hidden_state[0, -len(ids) :]
