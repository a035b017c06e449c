"""What each part of the agent's turns weighs in a training: its loss, and its share of the gradient.

It is the check of a manipulation (docs/methods.md 8.4). Where the loss of the action's tokens is near zero,
leaving them unsupervised removes nothing, and a study of such a mask says nothing about the claim.

>>> read = part_losses(model.hf, [each for e in episodes for each in written(fmt, e)])
>>> read.nll["action"].mean(), read.gradient_share["action"].mean()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.results.shown import Shown, counted
from interp.training.supervision import ACTION, COT, TAG, Written

PARTS = {"tag": TAG, "cot": COT, "action": ACTION}


@dataclass(frozen=True, eq=False, repr=False)
class PartLosses(Shown):
    """By the part's name, `tag`, `cot` or `action`; NaN where a sequence has none of it."""

    nll: dict[str, Float[np.ndarray, "sequence"]]
    """Mean negative log-likelihood of its tokens, in nats."""
    gradient_share: dict[str, Float[np.ndarray, "sequence"]]
    """Its gradient along the whole one, over the whole one's squared norm; the parts' shares sum to 1."""

    def summary(self) -> str:
        n = len(self.nll["action"])
        loss, share = (np.nanmean(each["action"]) for each in (self.nll, self.gradient_share))
        return f"{counted(n, 'sequence')}, action {loss:.3f} nats a token, {share:.0%} of the gradient"

    def to_frame(self) -> pd.DataFrame:
        """A row for each sequence and part."""
        rows = [
            dict(sequence=i, part=part, nll=self.nll[part][i], gradient_share=self.gradient_share[part][i])
            for i in range(len(self.nll["action"]))
            for part in PARTS
        ]
        return pd.DataFrame(rows)


@contextmanager
def _trainable(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The model's parameters, with gradients for as long as the context lasts."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield list(model.parameters())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def part_losses(model: PreTrainedModel, sequences: Sequence[Written]) -> PartLosses:
    """The loss of each part's tokens, and its share of the gradient, on sequences that are all supervised.

    Args:
        model: a checkpoint; its weights stay as they are.
        sequences: from `interp.training.supervision.written`, each read by itself.

    Raises:
        ValueError: for a sequence without a token of the agent's.
    """
    nll, shares = ({part: np.full(len(sequences), np.nan) for part in PARTS} for _ in range(2))
    with _trainable(model) as parameters:
        for i, sequence in enumerate(sequences):
            losses = _sums(model, sequence)
            gradients = {
                part: torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                for part, (loss, _) in losses.items()
            }
            whole = [
                sum(each for each in of_parameter if each is not None)
                for of_parameter in zip(*gradients.values(), strict=True)
            ]
            squared = sum(float((each * each).sum()) for each in whole if isinstance(each, Tensor))
            for part, (loss, tokens) in losses.items():
                along = sum(
                    float((own * each).sum())
                    for own, each in zip(gradients[part], whole, strict=True)
                    if own is not None and isinstance(each, Tensor)
                )
                nll[part][i] = loss.item() / tokens
                shares[part][i] = along / squared if squared else np.nan
    return PartLosses(nll, shares)


def _sums(model: PreTrainedModel, sequence: Written) -> dict[str, tuple[Tensor, int]]:
    """Summed loss and number of tokens of each part that a sequence has."""
    parts = torch.tensor(sequence.parts[1:], device=model.device)
    if not (parts > 0).any():
        raise ValueError("A training sequence has no token of the agent's, so it has no loss.")
    ids = torch.tensor([sequence.ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    each = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
    return {
        name: (each[parts == part].sum(), int((parts == part).sum()))
        for name, part in PARTS.items()
        if (parts == part).any()
    }
