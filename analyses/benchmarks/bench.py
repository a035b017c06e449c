"""Compare the engine with TransformerLens, nnsight and pyvene: the same works, on one machine, in one run."""

from __future__ import annotations

from ..registry import Instrument
from .settings import Config


def run(config: Config) -> None:
    """Measure everything, or the works that are asked for, and write the table."""
    from .works import run_works

    run_works(config)


INSTRUMENT = Instrument("bench", Config, run)
