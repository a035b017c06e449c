"""What an analysis was made from: where settings, files and code are the same, nothing is loaded again.

>>> keep(config, "behaviour")
>>> if (kept := unchanged(config, "behaviour")):
...     print(kept.tables, kept.said)

Files are the same while their size and time are, as `make` has it; where they are not, stages are looked up
by the content of what they read (`analyses.study.Study.stage`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from interp.environments.base import find
from interp.results.records import read_record, write_record
from interp.system.paths import ROOT

from .provenance import versions

if TYPE_CHECKING:
    from interp.checkpoints.contents import Checkpoint

    from .study import Study


class Kept(NamedTuple):
    """What an analysis left."""

    tables: list[Path]
    figures: list[Path]
    """Those of them that are there."""
    said: list[str]
    """What it had to say of them."""


def keep(config: Study, name: str, figures: Sequence[Path] = ()) -> None:
    """Remember that an analysis has written its tables, and that figures of them are drawn."""
    if config.revisions or config.official or not config.written:
        return
    record = dict(
        key=_key(config, name),
        files={str(path.resolve()): _state(path) for path in _files(config)},
        tables={str(path): _hash(path) for path in config.written},
        figures=list(map(str, figures)),
        said=config.said,
    )
    write_record(_path(config, name), record)


def unchanged(config: Study, name: str) -> Kept | None:
    """What an analysis left that would leave the same again; None where it would not, or is not known to."""
    path = _path(config, name)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None
    tables = [Path(table) for table in record["tables"]]
    same = (
        record["key"] == _key(config, name)
        and all(_state(Path(file)) == state for file, state in record["files"].items())
        and all(_hash(table) == record["tables"][str(table)] for table in tables)
    )
    figures = [Path(figure) for figure in record["figures"] if Path(figure).exists()]
    return Kept(tables, figures or _usual(config, tables), record["said"]) if same else None


def _usual(config: Study, tables: Sequence[Path]) -> list[Path]:
    """The figures that `all` has drawn of tables, by their usual names; none where one is older."""
    figures = {table: config.run / f"{table.stem}.html" for table in tables}
    there = all(figure.exists() for figure in figures.values())
    newer = there and all(figure.stat().st_mtime >= t.stat().st_mtime for t, figure in figures.items())
    return list(figures.values()) if newer else []


def _path(config: Study, name: str) -> Path:
    return config.run / "partial" / "made" / f"{name}.json"


def _key(config: Study, name: str) -> str:
    settings = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    settings.pop("store_decoded", None)  # with which `all` runs what is then asked for by itself
    own = find(config.environment).source if ":" in config.environment else ""
    parts = json.dumps([name, settings, own, _code(), versions()], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _code() -> str:
    """Hash of names, sizes and times of the toolkit's own modules."""
    folders = [folder for name in ("interp", "analyses") if (folder := ROOT / name).is_dir()]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    states = [[str(path.relative_to(ROOT)), _state(path)] for path in paths]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


def _files(config: Study) -> set[Path]:
    """The files and folders that checkpoints, decisions and what other analyses left are read from."""
    read = {Path(config.series), *(path for path in (config.file, config.tools) if path)}
    read.update(getattr(config, "reads", ()))  # what other analyses left
    for step in config.steps:
        checkpoint: Checkpoint | None = config.checkpoint_series.checkpoint(step)
        while checkpoint:
            read |= {checkpoint.path, checkpoint.home, *checkpoint.files}
            checkpoint = checkpoint.base
    folders = [path for path in read if path.is_dir()]
    return read | {path for folder in folders for path in folder.iterdir() if path.is_file()}


def _state(path: Path) -> list[int]:
    """Size and time of a file or folder; of none, nothing."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [0 if path.is_dir() else status.st_size, status.st_mtime_ns]


def _hash(table: Path) -> str:
    """Content hash of a table and its provenance; "" where either is missing."""
    try:
        parts = [path.read_bytes() for path in (table, table.with_suffix(".json"))]
    except OSError:
        return ""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
