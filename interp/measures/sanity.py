"""What patching must give whatever the model: a run patched with itself, and with all of the other run.

>>> sanity(model, clean, corrupt)                              # Sanity(self_patch=4e-06, everything=2e-06)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp.engine.cells import Run
from interp.measures.pairs import pairs_of
from interp.measures.patching import cells_of, kind_of
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.prompts.format import Prompt


@dataclass(frozen=True)
class Sanity:
    """What must come out 0 but for rounding, in nats."""

    self_patch: float
    """The largest change of an action's log-probability where a run is patched with itself."""
    everything: float
    """The largest distance from the other run's difference where the whole prompt is replaced by the other's.

    That is at resid_pre of layer 0, and the action is read right after it (an effect of 1).
    """


@measured
def sanity(
    model: HookedModel, clean: Sequence[Prompt], corrupt: Sequence[Prompt], budget: float | None = None
) -> Sanity:
    """Patch each run of each pair with itself at every layer, and with everything of the other run.

    No pair is left out, however little its runs differ.

    Args:
        clean, corrupt, budget: as in `patch`.

    Raises:
        ValueError: for lists that are not pairs.
    """
    pairs = pairs_of(model.tokenizer, clean, corrupt)
    kind = kind_of(model, pairs, ["prompt"])[0]
    moved, off = 0.0, 0.0
    for pair in pairs:
        every = tuple(range(len(pair.clean.ids)))
        runs = [Run(p.ids, *pair.continuations(p, "prompt"), every) for p in pair.prompts]
        both = kind(model, runs, ["resid_pre"], None if budget is None else int(budget * 2**20))
        places = [[every, every]], [[every, every]]
        own = both.patched(cells_of(model, ["resid_pre"], both.values, *places, [0, 1]))
        moved = max(moved, (own - both.base[:, None]).abs().max().item())
        other = cells_of(model, ["resid_pre"], both.values, *places, [1, 0])[:1]
        whole, aim = both.patched(other)[:, 0].double(), both.base.flip(0).double()
        off = max(off, ((whole[:, 0] - whole[:, 1]) - (aim[:, 0] - aim[:, 1])).abs().max().item())
    return Sanity(moved, off)
