"""What claims are read off, decision by decision: `readings.parquet`, which runs are put together from.

>>> cells, made = read_readings("runs/quick/tables")
>>> cells[110, "in_domain", "free"]["cot"].mean()

A row is a decision (a pair, a game) at a checkpoint by one readout. No model is needed to read it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from interp.results.tables import inside, read_sealed, write_sealed

NAME = "readings"
#: (checkpoint, split, readout) -> a row for each decision, by its id.
Readings = dict[tuple[int, str, str], pd.DataFrame]
_TEXT, _FLAG, _NUMBER = pa.string(), pa.bool_(), pa.float64()
#: Column -> its type. What a readout does not have is null.
COLUMNS: dict[str, pa.DataType] = {
    "step": pa.int64(),
    "split": _TEXT,
    "readout": _TEXT,
    "decision": _TEXT,
    "episode": _TEXT,
    "prompt": _FLAG,
    "cot": _FLAG,
    "action_prompt": _TEXT,
    "action_cot": _TEXT,
    "parsed": _FLAG,
    "revised": _FLAG,
    "followed": _FLAG,
    "direct": _NUMBER,
    "via_cot": _NUMBER,
    "indirect": _NUMBER,
    "area_action": _NUMBER,
}
_SCHEMA = pa.schema(list(COLUMNS.items()))
_KEYS = ("step", "split", "readout")


def write_readings(
    folder: str | Path, cells: Mapping[tuple[int, str, str], pd.DataFrame], made: dict
) -> Path:
    """Write `<folder>/readings.parquet` and its sealed provenance beside it; returns the path.

    Args:
        cells: (checkpoint, split, readout) -> a row for each decision by its id, with columns of COLUMNS.
        made: the provenance.
    """
    content, rows, columns = io.BytesIO(), 0, {}
    with pq.ParquetWriter(content, _SCHEMA, compression="zstd") as writer:
        for (step, split, readout), frame in cells.items():
            columns[readout] = [name for name in COLUMNS if name in frame]
            named = frame.assign(step=step, split=split, readout=readout, decision=frame.index)
            arrays = [
                pa.array(named[name], kind, from_pandas=True) if name in named else pa.nulls(len(named), kind)
                for name, kind in COLUMNS.items()
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
            rows += len(frame)
    path = inside(folder, f"{NAME}.parquet")
    return write_sealed(path, content.getvalue(), made | dict(columns=columns), rows)


def read_readings(folder: str | Path) -> tuple[Readings, dict]:
    """The cells and their provenance; raises as `interp.results.tables.read_sealed`."""
    content, made = read_sealed(inside(folder, f"{NAME}.parquet"))
    table, cells = pd.read_parquet(io.BytesIO(content)), {}
    for key, rows in table.groupby(list(_KEYS), sort=False):
        step, split, readout = key
        frame = rows.set_index("decision")[made["columns"][readout]]
        flags = {name: bool for name in frame if COLUMNS[name] == _FLAG}
        cells[int(step), str(split), str(readout)] = frame.astype(flags)
    return cells, made
