"""Names and numbers that a caller chooses from, checked without torch, whose import takes seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

#: Traces that are put in place of the own one; see `interp.measures.conflicts`.
Inserted = Literal[
    "self_splice",
    "truncated",
    "other_state",
    "resampled",
    "mistake",
    "paraphrase",
    "shuffled_words",
    "filler",
    "empty",
]
#: Inserted traces that were written for another action than the own one.
ARGUING: tuple[Inserted, ...] = ("other_state", "resampled")
#: What an effect of patching can be measured on; see `interp.measures.patching.Sweep`.
Metric = Literal["difference", "logit_diff", "logp", "kl"]
#: Which tokens are steered; see `interp.measures.steering`.
Position = Literal["boundary", "cot", "action", "everywhere"]
#: Random directions that the probe's is held against; see `interp.probing.directions`.
RANDOM = 20
#: Where the blocks of online coding end, as shares of the decisions: each reader is fitted on twice as much
#: as the one before.
SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)


def check_device(name: str) -> None:
    """Raise ValueError for what is no device's name.

    `interp.models.hooked.pick_device` looks for the device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"There is no device {name!r}: use auto, cpu, cuda or cuda:N.")


def check_shares(shares: Sequence[float]) -> None:
    """Raises ValueError for ends of blocks that do not rise from above 0 to 1."""
    if not len(shares) or shares[-1] != 1 or min(np.diff([0.0, *shares])) <= 0:
        raise ValueError(f"shares must rise from above 0 to 1, not be {tuple(shares)}.")
