"""What a sweep is made of: prompts with what follows them, and interventions in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from interp.models import hooks
from interp.models.devices import token_bytes
from interp.models.hooked import HookedModel

#: What is replaced at a site of a layer: rows and slots of a pass, columns of the site's width, and by what.
Replacement = tuple[Int[Tensor, " slot"], Int[Tensor, " slot"], slice, Float[Tensor, "slot width"]]


@dataclass(frozen=True)
class Run:
    """A prompt, and what may follow it.

    positions: in the prompt; cells are at these. scored: how many last tokens of each continuation are.
    compared: continuations where the next-token distribution before the first scored token is compared, too.
    """

    ids: Sequence[int]
    continuations: Sequence[Sequence[int]]
    scored: Sequence[int]
    positions: Sequence[int] = ()
    compared: Sequence[int] = ()


@dataclass(frozen=True)
class Cell:
    """One intervention in each run: the activation at a site of a layer replaced at positions by values.

    positions: of each run, none where nothing is replaced. values: of each run [position, width], padded on
    the right where they are one tensor; with a continuation axis before where they depend on what follows the
    prompt (`Plain` alone takes them). columns: the part of the site's width that is replaced (one head's, for
    `z`).
    """

    site: str
    layer: int
    positions: Sequence[tuple[int, ...]]
    values: Float[Tensor, "run position width"] | Sequence[Float[Tensor, "*continuation position width"]]
    columns: slice


def replacing(parts: Sequence[Replacement]) -> hooks.Edit:
    """An edit that puts values into some slots of some rows."""

    def edit(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        for rows, slots, columns, values in parts:
            tensor[rows.to(tensor.device), slots.to(tensor.device), columns] = values.to(tensor)
        return tensor

    return edit


def held_bytes(model: HookedModel, runs: Sequence[Run], sites: Sequence[str]) -> list[int]:
    """Bytes that each unpatched run takes: keys and values, states of its slots, activations, and masks."""
    item = model.dtype.itemsize
    each_token = token_bytes(model)
    found = []
    for run in runs:
        longest = len(run.ids) + max(map(len, run.continuations))
        slots = longest - min(run.positions, default=len(run.ids) - 1)
        states = item * model.n_layers * model.d_model * (slots + len(run.positions) * len(sites))
        found.append(longest * each_token + states + (2 + item) * slots * longest)
    return found
