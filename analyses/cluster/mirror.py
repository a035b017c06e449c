"""A run's stages and tables in a store that machines share which share no folder: anything fsspec reaches.

>>> mirror = Mirror(Path("runs/quick"), "s3://bucket/quick")
>>> mirror.pull(), mirror.push()                  # numbers of files
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import fsspec

#: What changes from time to time, and is of one machine.
_OWN = ("made", "first_use", "measured")


def reachable(url: str) -> None:
    """Raise ValueError for what fsspec cannot reach."""
    if url:
        try:
            fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as problem:
            raise ValueError(f"{url} cannot be reached ({problem}).") from problem


class Mirror:
    """A run's folder here, and its copy elsewhere.

    Stages are named by what they were made from, so that a name that is there needs no look inside.
    Activations stay on the machine that captured them.

    Args:
        run: the folder.
        url: of the copy, as fsspec has it (`s3://...`, `gs://...`, `file://...`).
    """

    def __init__(self, run: Path, url: str):
        self.run = run
        self.system, self.root = fsspec.core.url_to_fs(url.rstrip("/"))

    def pull(self) -> int:
        """Fetch what is there and not here; the number of files."""
        missing = self._there() - self._here()
        for name in sorted(missing):
            path = self.run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{uuid.uuid4().hex}.part")
            self.system.get_file(f"{self.root}/{name}", str(aside))
            os.replace(aside, path)
        return len(missing)

    def push(self) -> int:
        """Send what is here and not there; the number of files."""
        missing = self._here() - self._there()
        for name in sorted(missing):
            target = f"{self.root}/{name}"
            self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.system.put_file(str(self.run / name), target)
        return len(missing)

    def _here(self) -> set[str]:
        return {
            name
            for path in self.run.rglob("*.*")
            if (name := path.relative_to(self.run).as_posix()) and _of_run(name)
        }

    def _there(self) -> set[str]:
        if not self.system.exists(self.root):
            return set()
        start = len(self.root.rstrip("/")) + 1
        return {name for path in self.system.find(self.root) if _of_run(name := path[start:])}


def _of_run(name: str) -> bool:
    """Whether a file is a stage or a table, and under the run's folder."""
    parts = name.split("/")
    if any(part in ("", "..") or part.startswith(".") for part in parts):
        return False
    if parts[0] == "tables":
        return True
    return parts[0] == "partial" and len(parts) > 2 and parts[1] not in _OWN and name.endswith(".json")
