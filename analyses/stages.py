"""Stages on disk: each is computed by one process at a time, and what is there is never computed again."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from interp.results.records import read_record, write_record
from interp.results.tables import inside

#: A checkpoint and a split.
Cell = tuple[int, str]
#: A stage's name, and which of its shards.
Shard = tuple[str, int]


class Unit(NamedTuple):
    """What of a study a cluster's worker reads at a time."""

    cell: Cell | None = None
    """None: none, only which cells there are is asked."""
    ahead: int | None = None
    """The checkpoint that this worker reads next, if that is known."""
    shard: Shard | None = None
    """Of the cell, the one shard that is read."""


class Busy(Exception):
    """Another process computes what is needed here."""


class Cells(Exception):
    """An analysis has come to its cells; `args[0]` lists them."""


class CellRead(Exception):
    """An analysis has kept all that it reads of the unit's cell, or its shard of it."""


class Shards(Exception):
    """A stage of the unit's cell has shards that are missing; `args[0]` lists them."""


def of_unit(every: Sequence[Cell], unit: Unit) -> Iterator[Cell]:
    """The unit's cell, where the analysis has it; what follows the cells is not a unit's to do.

    Raises:
        Cells: no cell was asked for.
        CellRead: after the one that was.
    """
    if unit.cell is None:
        raise Cells(list(every))
    if unit.cell in every:
        yield unit.cell
    raise CellRead


def place(run: Path, name: str, made: Mapping[str, Any]) -> Path:
    """The file of a stage; raises ValueError for a name that leads out of the run's folder.

    Args:
        made: what it is made from, as JSON has it.
    """
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    return inside(run / "partial", f"{name}-{key}.json")


def found(
    path: Path, made: Mapping[str, Any], compute: Callable[[], object], wait: bool = True
) -> tuple[dict, bool]:
    """`value` and `seconds` of a stage, and whether it was computed now.

    Args:
        made: what it is made from, which is kept with it.
        wait: for another process that is computing it; raises Busy otherwise.
    """
    if record := _kept(path):
        return record, False
    with alone(path, wait):
        if record := _kept(path):  # what the other process has computed
            return record, False
        started = time.time()
        value = compute()
        write_record(path, dict(seconds=round(time.time() - started, 2), inputs=made, value=value))
        return read_record(path), True  # the same order and types whether it was there or not


def _kept(path: Path) -> dict | None:
    """A stage that is there; a damaged one is named, and is not."""
    try:
        return read_record(path) if path.exists() else None
    except ValueError as damage:
        print(f"{damage}: it is computed again.", file=sys.stderr)
        return None


@contextmanager
def alone(path: Path, wait: bool = True) -> Iterator[None]:
    """While this process alone computes a stage: a lock that its end releases, however it ends.

    Args:
        wait: for another that holds it; raises Busy otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout as held:
        raise Busy(f"{path} is computed by another process.") from held
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # those that wait find the stage, or compute it
        lock.release()
