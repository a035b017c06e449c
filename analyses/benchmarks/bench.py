"""Compare the engine with TransformerLens, nnsight and pyvene: the same works, on one machine, in one run."""

from __future__ import annotations

from analyses.benchmarks.settings import Config
from analyses.registry import Instrument


def run(config: Config) -> None:
    """Measure everything, or the works that are asked for, and write the table."""
    from analyses.benchmarks.works import run_works

    run_works(config)


INSTRUMENT = Instrument("bench", Config, run)
