"""Sequences read whole, each in a plain pass: the reference for every faster path, and the only exact one for some models.

So are served the models that keep a state in place of keys and values of each token, and sequences beyond a length at
which what came before changes. They are batched where that changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from interp.models.devices import sent

#: Where a model's forward takes and gives its cache.
_CACHES = ("past_key_values", "cache_params", "state")


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and validity [row, token] of ragged rows, padded with token 0 on the right."""
    width = max(map(len, rows))
    ids, valid = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.bool),
    )
    for i, row in enumerate(rows):
        ids[i, : len(row)], valid[i, : len(row)] = torch.tensor(row), True
    return sent(ids, device), sent(valid, device)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of about equal lengths, each at most `batch_tokens` with its padding (longest first)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= batch_tokens:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def batches(model, lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """As `length_batches`, where rows whose tokens depend on the length of the whole are only with rows of that very length."""
    kinds = defaultdict(list)
    for i, n in enumerate(lengths):
        kinds[n if model.stands_alone(n) else 0].append(i)
    return [
        [members[i] for i in batch]
        for members in kinds.values()
        for batch in length_batches([lengths[i] for i in members], batch_tokens)
    ]


class Growing:
    """One sequence by itself, to which tokens are added: read on from the model's own cache where that is exact, else from its beginning.

    anew: whether a sequence of so many tokens must be read again to have so many (the model says where None).
    """

    def __init__(self, model, anew: Callable[[int, int], bool] | None = None):
        self.model, self.ids, self.cache = model, [], {}
        self.anew = model.anew if anew is None else anew
        self.stepped = False

    def add(self, ids: Sequence[int]) -> torch.Tensor:
        """Final hidden states [token, d_model] of the added tokens."""
        known = len(self.ids)
        self.ids += ids
        if self.cache and not self.anew(known, len(self.ids)):
            self.stepped, new = True, list(ids)
        else:
            self.cache, new = {}, self.ids
        goes_on = not self.anew(
            len(self.ids), len(self.ids) + 1
        )  # some models of states alone fail where they are to keep them
        asked = self.model.cached if goes_on else self.model.uncached
        output = self.model.inner(
            input_ids=torch.tensor([new], device=self.model.device), **self.cache, **asked
        )
        self.cache = {name: output[name] for name in _CACHES if name in output and output[name] is not None}
        return output.last_hidden_state[0, -len(ids) :]
