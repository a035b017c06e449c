"""What a run's folder remembers of a checkpoint: hashes of its files when a result of it was kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import transformers

from interp.checkpoints.headers import hash_files
from interp.checkpoints.identity import hash_text
from interp.checkpoints.series import Source
from interp.results.records import read_record, write_record
from interp.results.wording import listed

from .provenance import FILES


def keep(run: Path, step: int, source: Source, identity: Mapping[str, str]) -> None:
    """Keep a checkpoint's hashes in a run's folder, where it has none of it or others."""
    path, now = _path(run, step, source), _with_training(source, identity)
    if _kept(path).get("identity") != now:
        write_record(
            path,
            dict(
                checkpoint=_name(source),
                date=time.strftime("%Y-%m-%d"),
                transformers=transformers.__version__,
                identity=now,
            ),
        )


def changed(run: Path, step: int, source: Source, identity: Mapping[str, str]) -> str:
    """A sentence on what of a checkpoint changed since the run's folder keeps its hashes."""
    path, now = _path(run, step, source), _with_training(source, identity)
    then = _kept(path)
    if not then:
        return ""
    differ = [FILES.get(part, part) for part in now if then["identity"].get(part, now[part]) != now[part]]
    if not differ:
        return ""
    release = f" (with transformers {then['transformers']}; now {transformers.__version__})"
    release = release if then["transformers"] != transformers.__version__ else ""
    return (
        f"The checkpoint {_name(source)} is not what it was when {run} read it on {then['date']}{release}: "
        f"its {listed(differ)} changed. What is computed from now on is of the new files, and tables in "
        f"{run / 'tables'} that are not made again are of the old ones."
    )


def _kept(path: Path) -> dict:
    """What is kept in a file; nothing where it is not there, or is damaged, which is said."""
    try:
        return read_record(path) if path.exists() else {}
    except ValueError as damage:
        print(f"{damage}: what the checkpoint holds is noted anew.", file=sys.stderr)
        path.unlink()
        return {}


def _name(source: Source) -> str:
    return str(source.resolve()) if isinstance(source, Path) else "@".join(source)


def _path(run: Path, step: int, source: Source) -> Path:
    return run / "partial" / "first_use" / f"{step}-{hash_text(_name(source))}.json"


def _with_training(source: Source, identity: Mapping[str, str]) -> dict[str, str]:
    """The hashes, with that of what the trainer wrote of style and system prompt."""
    file = source / "training.json" if isinstance(source, Path) else None
    return dict(identity, training=hash_files([file]) if file and file.exists() else "")
