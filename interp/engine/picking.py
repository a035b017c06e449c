"""How a token is picked: the likeliest one, or one that is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.outputs import Pick
from interp.models.devices import sent


def greedy(logits: Float[Tensor, "row vocabulary"], rows: Sequence[int], step: int) -> Int[Tensor, " row"]:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def picker(temperature: float, uniform: Float[Tensor, "continuation token"]) -> Pick:
    """The likeliest token at temperature 0, else one drawn from the tempered distribution.

    uniform: numbers from 0 to 1; what is drawn does not depend on the batch that a row is in.
    """
    if temperature == 0:
        return greedy

    def draw(logits: Float[Tensor, "row vocabulary"], rows: Sequence[int], step: int) -> Int[Tensor, " row"]:
        mass = (logits / temperature).double().softmax(-1).cumsum(-1)
        at = sent(uniform[list(rows), step], logits.device)[:, None] * mass[:, -1:]
        return torch.searchsorted(mass, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    return draw


def uniform_numbers(
    temperature: float, seed: int | Sequence[int], prompts: int, limits: Mapping[str, int]
) -> dict[str, Float[Tensor, "prompt token"]]:
    """For each variant, numbers from 0 to 1 to draw by, none where nothing is drawn."""
    if temperature < 0:
        raise ValueError(f"A temperature is 0 (greedy) or above, not {temperature}.")
    seeds, rows = (list(seed), 1) if isinstance(seed, Sequence) else ([seed], prompts)
    if len(seeds) * rows != prompts:
        raise ValueError(f"There are {len(seeds)} seeds for {prompts} prompts: give one, or one for each.")
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    most = max(limits.values(), default=0) if temperature else 0
    uniform = {}
    for name, limit in limits.items():
        drawn = limit if temperature else 0
        parts = [torch.rand(rows, drawn, generator=each, dtype=torch.float64) for each in generators]
        uniform[name] = torch.nn.functional.pad(torch.cat(parts), (0, most - drawn))
    return uniform
