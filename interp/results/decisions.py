"""Decisions of a run as one tidy table, `decisions.parquet`: a row for each decision, checkpoint and mode.

>>> frame, made = read_decisions("runs/quick/tables")
>>> wrong = frame[(frame["mode"] == "cot") & ~frame["is_correct"]]
>>> wrong.groupby("checkpoint").size()

Very many are written as partitions, which are queried without being held (`records`):

>>> records("runs/quick").count_rows(filter=ds.field("checkpoint") == 110)
12
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from interp.results.names import NO_TRACES
from interp.results.tables import content_digest, inside, read_sealed, write_json, write_sealed, written
from interp.system.paths import PROGRAM

NAME = "decisions"
#: The run's folder of partitions, and what it says of them.
RECORDS, ABOUT = "records", "_records.json"
#: Columns that partitions are by, which are in their folders' names alone.
BY = ("split", "checkpoint")
#: Rows of a row group, which are held at a time, and of a file.
GROUP, PART = 4096, 262_144
_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_WHERE = [("span", _TEXT), ("start", pa.int64()), ("end", pa.int64())]
_CONFLICT = [
    ("inserted_trace", _TEXT),
    ("inserted", _TEXT),
    ("argued", _TEXT),
    ("action", _TEXT),
    ("keep", pa.bool_()),
    ("follow", pa.bool_()),
    ("leaked", pa.bool_()),
    ("logp_trace", pa.float64()),
]
_PROBE = [("label", _TEXT), ("truth", _TEXT), ("predicted", _TEXTS)]
_EFFECT = pa.list_(pa.float64())
_LENS = [("whose", _TEXT), ("token", _TEXT), ("rank", pa.list_(pa.int64())), ("probability", _EFFECT)]
_ESTIMATED = [
    ("site", _TEXT),
    ("direction", _TEXT),
    ("position", pa.int64()),
    ("token", _TEXT),
    ("effect", _EFFECT),
]
_PATCHED = [
    ("at", _TEXT),
    ("site", _TEXT),
    ("direction", _TEXT),
    ("metric", _TEXT),
    ("effect", _EFFECT),
]
#: Column -> its type, and what it holds. What no analysis of the run kept is null.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "decision": (_TEXT, "its id, `EPISODE#STEP`"),
    "episode": (_TEXT, "its episode"),
    "step": (pa.int64(), "its step in the episode"),
    "split": (_TEXT, "in_domain or out_of_domain"),
    "task": (_TEXT, "the task in the prompt's words"),
    "task_type": (_TEXT, "the kind of task"),
    "checkpoint": (pa.int64(), "training step"),
    "mode": (_TEXT, f"prompt, cot, empty_think, or {NO_TRACES} (`prompt` still has them)"),
    "action": (_TEXT, "the decoded action; null where it did not parse"),
    "parsed": (pa.bool_(), "whether it parsed"),
    "is_correct": (pa.bool_(), "whether it is right; one that did not parse is wrong"),
    "reference": (_TEXT, "the recorded action"),
    "n_admissible": (pa.int64(), "actions that the decision lists"),
    "trace": (_TEXT, "the decoded trace (cot)"),
    "completion": (_TEXT, "all that was decoded, tags included"),
    "actions_differ": (pa.bool_(), "whether the prompt and the CoT action differ, or one does not parse"),
    "flipped": (pa.bool_(), "whether a trace that argues for another action changed the CoT action"),
    "diagnosis": (_TEXT, "what the CoT action rests on: post_hoc, overridable, trace_decided or neither"),
    "choice": (_TEXT, "forced choice, by summed log-probability"),
    "choice_per_token": (_TEXT, "forced choice, by log-probability per token"),
    "candidates": (_TEXTS, "what forced choice is among, the likeliest first"),
    "candidates_logp": (pa.list_(pa.float64()), "their summed log-probabilities, in nats"),
    "reference_rank": (pa.int64(), "rank of the recorded action among the candidates (1: likeliest)"),
    "action_rank": (pa.int64(), "rank of the decoded action among the candidates"),
    "area_action": (pa.float64(), "early answering: 0, the action does not need the trace, to 1 (cot)"),
    "area_distribution": (pa.float64(), "the same on the distribution over candidates"),
    "area_filler": (pa.float64(), "the same after full stops of equal length"),
    "same_0": (pa.bool_(), "the same action without the trace"),
    "same_25": (pa.bool_(), "after a quarter of it"),
    "same_50": (pa.bool_(), "after half of it"),
    "same_75": (pa.bool_(), "after three quarters of it"),
    "twin": (_TEXT, "the action that is right for its twin, two names exchanged"),
    "direct": (pa.float64(), "effect of the twin's prompt past the trace, in nats (cot)"),
    "via_cot": (pa.float64(), "effect of the twin's trace, in nats"),
    "total": (pa.float64(), "effect of both, in nats"),
    "via_text": (pa.float64(), "effect of the trace's words, in nats"),
    "via_state": (pa.float64(), "effect of the trace's hidden state, in nats"),
    "conflicts": (pa.list_(pa.struct(_CONFLICT)), "inserted traces and what was done after each (cot)"),
    "probes": (pa.list_(pa.struct(_PROBE)), "held-out predictions of the boundary probes by layer (cot)"),
    "lens": (
        pa.list_(pa.struct(_LENS)),
        "logit lens at the boundary by layer: rank and probability of the token of the eventual and of the "
        "recorded action that rules out the most other actions (cot)",
    ),
    "patching": (pa.list_(pa.struct(_PATCHED)), "effects of patching by layer, for each place"),
    "attribution": (
        pa.list_(pa.struct(_ESTIMATED)),
        "first-order estimates of patching by layer, at the tokens where they are largest",
    ),
    "prompt": (_TEXT, "the prompt up to the boundary"),
    "spans": (pa.list_(pa.struct(_WHERE)), "its spans, in characters"),
}
_SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
#: What a nullable column is in pandas.
_NULLABLE = {pa.bool_(): pd.BooleanDtype(), pa.int64(): pd.Int64Dtype()}


#: The types of the table, and what pandas reads of them.
_TABLE = pa.Schema.from_pandas(
    _SCHEMA.empty_table().to_pandas(types_mapper=_NULLABLE.get), preserve_index=False
).metadata


def write_decisions(folder: str | Path, rows: Iterable[dict], provenance: dict) -> Path:
    """Write rows to `<folder>/decisions.parquet` and their sealed provenance beside it; returns the path.

    Args:
        rows: columns of COLUMNS by name; a column that a row lacks is null. No more than GROUP are held.
    """
    path = inside(folder, f"{NAME}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{os.getpid()}.rows")
    n = 0
    try:
        with pq.ParquetWriter(whole, _SCHEMA.with_metadata(_TABLE), compression="zstd") as writer:
            for table in _groups(rows):
                writer.write_table(table.replace_schema_metadata(_TABLE))
                n += len(table)
        return write_sealed(path, whole, provenance, n)
    finally:
        whole.unlink(missing_ok=True)


def _groups(rows: Iterable[dict]) -> Iterator[pa.Table]:
    """Rows as tables of GROUP; a number that is none is null."""
    waiting = iter(rows)
    while group := list(islice(waiting, GROUP)):
        frame = pa.Table.from_pylist(group, _SCHEMA).to_pandas(types_mapper=_NULLABLE.get)
        yield pa.Table.from_pandas(frame, _SCHEMA, preserve_index=False).replace_schema_metadata()


def write_records(
    run: str | Path, cells: Iterable[tuple[str, int, Iterable[dict]]], provenance: dict
) -> tuple[Path, int]:
    """Write `<run>/records/split=SPLIT/checkpoint=STEP/part-N.parquet`; returns the folder, and its rows.

    Those that were there are replaced when all are written. What made them, and each file's hash, are in
    `_records.json` of the folder, which readers of partitions pass over.

    Args:
        run: folder of the run.
        cells: split, checkpoint and rows of each; as those of `write_decisions`, and held like them.
        provenance: what made them.
    """
    folder, made = Path(run) / RECORDS, Path(run) / f".{RECORDS}.{os.getpid()}"
    parts, n = {}, 0
    try:
        for split, checkpoint, rows in cells:
            place = inside(made, f"split={split}/checkpoint={int(checkpoint)}")
            for path, count in _parts(place, rows):
                name = path.relative_to(made).as_posix()
                parts[name] = dict(rows=count, sha256=content_digest(path))
                n += count
        write_json(made / ABOUT, dict(provenance, parts=parts, rows=n))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder, n


def _parts(place: Path, rows: Iterable[dict]) -> Iterator[tuple[Path, int]]:
    """Write one cell's files, of PART rows or fewer; each path and its rows."""
    groups = _groups(rows)
    for number, part in enumerate(iter(lambda: next(groups, None), None)):
        path, count = place / f"part-{number}.parquet", 0
        schema = part.drop_columns(list(BY)).schema
        with written(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while part is not None:
                writer.write_table(part.drop_columns(list(BY)))
                count += len(part)
                part = next(groups, None) if count < PART else None
        yield path, count


def records(run: str | Path) -> ds.Dataset:
    """The partitions of a run as a dataset, of which nothing is read yet.

    Raises FileNotFoundError where the run has none.
    """
    folder = Path(run) / RECORDS
    if not (folder / ABOUT).exists():
        raise FileNotFoundError(f"No records in {run}: run `{PROGRAM} records --run {run}` first.")
    kinds = [(name, COLUMNS[name][0]) for name in BY]
    return ds.dataset(folder, format="parquet", partitioning=ds.partitioning(pa.schema(kinds), flavor="hive"))


def read_decisions(folder: str | Path) -> tuple[pd.DataFrame, dict]:
    """The table and its provenance; raises as `interp.results.tables.read_sealed`."""
    content, provenance = read_sealed(inside(folder, f"{NAME}.parquet"))
    return pd.read_parquet(io.BytesIO(content)), provenance
