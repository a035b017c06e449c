"""Count what the engine asks of a GPU, on a CPU: passes, tokens, masks, kernels and waits of each work.

The model is tiny and random: counts, not times, and the same on every machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from interp.system.limits import Folder

from ..provenance import made_by
from ..registry import Instrument


@dataclass
class Config:
    """Where the counts go."""

    out: Annotated[Path, Folder()] = Path("figures/tables")
    """Folder of the table."""


def run(config: Config) -> None:
    """Count every work, and write the table `engine_counts`."""
    from interp.results.tables import write_table

    from .counted_works import count_works

    started = time.time()
    frame, waits = count_works()
    write_table(
        config.out, "engine_counts", frame, made_by("engine_counts", config, started) | dict(waits=waits)
    )


INSTRUMENT = Instrument("engine_counts", Config, run)
