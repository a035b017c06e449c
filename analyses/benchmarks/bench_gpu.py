"""Time the engine on a GPU against plain forwards and `generate`, at real models' shapes with random weights.

`seconds` is a call whose shapes have been seen before, `cold_seconds` the first one. Without a GPU
`--models tiny` tries the works; its seconds say nothing.
"""

from __future__ import annotations

from ..registry import Instrument
from .gpu_settings import Config


def run(config: Config) -> None:
    """Time every work that is asked for, and write the table `bench_gpu` anew with each row."""
    from .gpu_table import run_works

    run_works(config)


INSTRUMENT = Instrument("bench_gpu", Config, run)
