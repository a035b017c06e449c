"""Have tables that were edited by hand read as they are now: their provenance gets the hash of what is there.

python -m analyses seal --tables runs/quick/tables --names behaviour
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from interp.results.tables import seal_table

from .registry import Instrument


@dataclass
class Config:
    """A table that is not as it was written is refused; this says that it was edited by intent."""

    tables: Path
    """Folder of the tables (CSV and JSON)."""
    names: tuple[str, ...] = ()
    """Which of them, without suffix; all when empty."""


def run(config: Config) -> None:
    """Seal each table; one that cannot be read stops it."""
    names = config.names or sorted(path.stem for path in config.tables.glob("*.csv"))
    if not names:
        raise FileNotFoundError(f"There is no table to seal in {config.tables}.")
    for name in names:
        print(f"{seal_table(config.tables, name)}: sealed")


INSTRUMENT = Instrument("seal", Config, run)
