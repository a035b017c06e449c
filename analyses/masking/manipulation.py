"""The check of the manipulation: what the tokens that a mask leaves out weigh in the training.

Where actions are certain given their trace, their loss is near zero, and a mask of them removes nothing: the
study then says nothing about the claim (docs/methods.md 8.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.tasks.episodes import Decision, Episode

from ..rows import mean_row
from ..study import Study

if TYPE_CHECKING:
    from interp.training.parts import PartLosses


def read(study: Study, step: int, items: Sequence[Episode | Decision]) -> list[dict]:
    """Rows of each part's loss, in nats a token, and of its share of the gradient, at one checkpoint.

    items: of the training split; every token of the agent's is read as if it were supervised.
    """

    def compute() -> list[dict]:
        from interp.training.parts import part_losses
        from interp.training.supervision import written

        sequences = [(item, each) for item in items for each in written(study.format, item)]
        losses = part_losses(study.model(step).hf, [each for _, each in sequences])
        episodes = [item.id if isinstance(item, Episode) else item.episode for item, _ in sequences]
        return _rows(losses, episodes, study.seed)

    inputs = dict(study.inputs(step), format=study.format.hash, items=[item.id for item in items])
    rows: list[dict] = study.stage(f"masking/{step}-parts", inputs, compute)
    return rows


def _rows(losses: PartLosses, episodes: Sequence[str], seed: int) -> list[dict]:
    rows = []
    for metric in ("nll", "gradient_share"):
        for part, values in getattr(losses, metric).items():
            known = ~np.isnan(values)
            groups = [name for name, there in zip(episodes, known, strict=True) if there]
            rows.append(dict(part=part, metric=metric, **mean_row(values[known], groups, seed)))
    return rows
