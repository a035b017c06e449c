"""What continuations are made of: ids up to where they end, and how likely their suffixes were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.devices import fetched, sent
from interp.models.hooked import HookedModel
from interp.models.unembedding import log_probability

#: Whether the ids generated so far are at their end.
Stop = Callable[[Sequence[int]], bool]
#: logits [row, vocabulary], the continuation of each row, tokens picked before -> token of each row
Pick = Callable[[Tensor, Sequence[int], int], Tensor]


@dataclass(frozen=True)
class Continuation:
    """Generated `ids`, and the suffix's log-probability per token after its first, in nats."""

    ids: tuple[int, ...]
    logp: float


class Output:
    """The ids of each continuation of a batch, and which of them are over."""

    def __init__(self, ids: list[list[int]], stops: Sequence[Stop], limits: Sequence[int]):
        self.ids = ids
        self.over: set[int] = set()
        self._stops = stops
        self._most = [len(each) + limit for each, limit in zip(ids, limits)]

    def add(self, owner: Sequence[int], tokens: Sequence[int]) -> None:
        """Add the tokens of some continuations, but those that are over."""
        for i, token in zip(owner, tokens):
            if i not in self.over:
                self.ids[i].append(token)
                if self._stops[i](self.ids[i]) or len(self.ids[i]) == self._most[i]:
                    self.over.add(i)


def suffix_logp(
    model: HookedModel,
    hidden: Float[Tensor, "row token d_model"],
    ids: Int[Tensor, "row token"],
    spans: Sequence[tuple[int, int, int]],
) -> Callable[[], Float[Tensor, " continuation"]]:
    """What gives the mean log-probability of each suffix after its first token, in nats, on the CPU.

    spans: the row of each suffix, and its first token and its end in what is read.
    """
    tokens = [(i, row, t) for i, (row, start, end) in enumerate(spans) for t in range(start + 1, end)]
    counts = [max(1, end - start - 1) for _, start, end in spans]
    total = torch.zeros(len(spans), device=model.device)
    if tokens:
        owner, row, token = sent(torch.tensor(tokens).T.contiguous(), model.device)
        index = torch.arange(len(tokens), device=model.device)
        total.index_add_(0, owner, log_probability(model, hidden[row, token - 1], index, ids[row, token]))
    return fetched(total / sent(torch.tensor(counts), model.device))
