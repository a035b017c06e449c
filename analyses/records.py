"""Records: the decisions of a run as parquet partitions, for DuckDB, polars and pyarrow, never held whole.

`records/split=SPLIT/checkpoint=STEP/part-N.parquet` have the columns of `tables/decisions.parquet`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from .decisions import About, kept_rows, nothing_kept
from .decisions import Config as Decisions
from .kept import cells
from .registry import Instrument


@dataclass
class Config(Decisions):
    """The options that the run's other analyses were given, since decisions and checkpoints are theirs."""


def run(config: Config) -> None:
    """Write what is on record, a checkpoint and split at a time."""
    from interp.results.decisions import write_records

    if not (config.run / "partial").exists():
        raise nothing_kept(config)
    started, about = time.time(), About(config)

    def partitions() -> Iterator[tuple[str, int, Iterator[dict]]]:
        for cell in cells(config, "records"):
            by_decision = ((about(cell.split, decision), rows) for decision, rows in kept_rows(cell))
            yield cell.split, cell.step, (known | row for known, rows in by_decision for row in rows)

    made = config.provenance("records", started, parser=config.parse.__module__)
    folder, n = write_records(config.run, partitions(), made)
    print(f"{n:,} rows in {folder}, by split and checkpoint")


INSTRUMENT = Instrument("records", Config, run)
