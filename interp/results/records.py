"""One JSON object a file, with its own hash: what is damaged is told apart from what was written.

>>> write_record("runs/quick/partial/decoded/0-in_domain.json", {"seconds": 1.5, "value": [1, 2]})
>>> read_record("runs/quick/partial/decoded/0-in_domain.json")["value"]
[1, 2]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.results.tables import write_json


def content_hash(content: Mapping, name: str = "") -> str:
    """Hash of a JSON object's content and of the name that it is kept under."""
    return hashlib.sha256(json.dumps([name, content], sort_keys=True).encode()).hexdigest()[:16]


def write_record(path: str | Path, content: Mapping) -> Path:
    """Write a JSON object and its hash, atomically; `sha256` is no key of it."""
    plain = json.loads(json.dumps(content))
    return write_json(path, dict(plain, sha256=content_hash(plain, Path(path).name)))


def read_record(path: str | Path) -> dict:
    """What was written; raises ValueError, naming the file, where it is not that any more."""
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error})") from error
    if not isinstance(record, dict) or record.pop("sha256", None) != content_hash(record, path.name):
        raise ValueError(f"{path} is damaged, its hash is not the one in it")
    return record


def newest_record(folder: str | Path, name: str, inputs: Mapping[str, Any]) -> dict | None:
    """The record `<name>-<key>.json` below a folder that was written last, of those made from these inputs.

    inputs: what the record's own `inputs` hold, among others; as JSON has them. None where there is no such
    record; damaged ones are passed over.
    """
    paths = [path for path in Path(folder).glob(f"{name}-{'[0-9a-f]' * 16}.json")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            record = read_record(path)
        except ValueError:
            continue
        made = record.get("inputs", {})
        if all(key in made and made[key] == value for key, value in inputs.items()):
            return record
    return None
