"""Tables and their provenance: one CSV and one JSON of the same name, written together.

>>> write_table("runs/quick/tables", "behaviour", frame, {"seed": 0})
>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd

#: Columns every measurement table ends with: estimate, 95 % interval, decisions (or games, or pairs), clusters.
ESTIMATE_COLUMNS = ("value", "low", "high", "n", "n_groups")


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of either."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value) -> Path:
    """Write `value` as indented JSON with sorted keys, atomically."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_table(folder: str | Path, name: str, frame: pd.DataFrame, provenance: dict) -> Path:
    """Write `frame` to `<folder>/<name>.csv` and `provenance` to `<folder>/<name>.json`; returns the CSV's path.

    Floats keep six significant digits, so that equal runs give equal bytes.
    """
    folder = Path(folder)
    write_json(folder / f"{name}.json", provenance)
    return write_text(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g"))


def read_table(folder: str | Path, name: str) -> tuple[pd.DataFrame, dict]:
    """Read a table and its provenance.

    Raises FileNotFoundError with the analysis to run when the table is not there.
    """
    folder = Path(folder)
    path = folder / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"No table {name}.csv in {folder}: run `python -m analyses {name}` first.")
    return pd.read_csv(path), json.loads((folder / f"{name}.json").read_text())
