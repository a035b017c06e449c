"""Decisions as partitions: what is written is what is read, and memory does not grow with their number."""

import json
import subprocess
import sys
from itertools import groupby

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from interp.results import decisions
from interp.results.decisions import COLUMNS, read_decisions, records, write_decisions, write_records
from interp.system.paths import ROOT
from tests.decision_rows import decision_rows

#: Writes a run's partitions, table or page, or queries the partitions; prints seconds and peak memory.
SCRIPT = """
import json, resource, sys, time
import tests.big_decisions as big
started = time.time()
found = getattr(big, sys.argv[1])(sys.argv[2], int(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(dict(found=found, seconds=time.time() - started, peak=peak)))
"""


def measured(what, folder, rows):
    command = [sys.executable, "-c", SCRIPT, what, str(folder), str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cells(rows):
    for (split, checkpoint), each in groupby(
        sorted(rows, key=lambda row: (row["split"], row["checkpoint"])),
        key=lambda row: (row["split"], row["checkpoint"]),
    ):
        yield split, checkpoint, each


def test_partitions_hold_what_the_table_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(decisions, "GROUP", 5)
    monkeypatch.setattr(decisions, "PART", 10)
    rows = decision_rows(12)
    folder, n = write_records(tmp_path, cells(rows), dict(seed=0))
    assert n == len(rows) == 72
    parts = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    assert parts[:2] == [f"split=in_domain/checkpoint=0/part-{number}.parquet" for number in range(2)]
    made = json.loads((folder / "_records.json").read_text())
    assert sorted(made["parts"]) == parts and made["rows"] == 72 and made["seed"] == 0
    assert all(pq.ParquetFile(folder / part).metadata.row_group(0).num_rows <= 5 for part in parts)
    write_decisions(tmp_path / "tables", rows, {})
    table, _ = read_decisions(tmp_path / "tables")
    key = ["decision", "checkpoint", "mode"]
    read = records(tmp_path).to_table().to_pandas(types_mapper=decisions._NULLABLE.get)
    a, b = (frame.sort_values(key, ignore_index=True)[list(COLUMNS)] for frame in (table, read))
    plain = [name for name in COLUMNS if name not in ("conflicts", "probes", "lens", "patching", "attribution", "spans", "candidates", "candidates_logp")]  # fmt: skip
    pd.testing.assert_frame_equal(a[plain], b[plain], check_dtype=False)
    assert [each["span"] for each in b["spans"][0]] == [each["span"] for each in a["spans"][0]]


def test_partitions_are_replaced_whole_and_one_that_fails_leaves_the_old(tmp_path):
    rows = decision_rows(4)
    write_records(tmp_path, cells(rows), {})
    write_records(tmp_path, cells([row for row in rows if row["checkpoint"] == 0]), {})
    assert set(records(tmp_path).to_table(columns=["checkpoint"])["checkpoint"].to_pylist()) == {0}

    def stops():
        yield "in_domain", 110, rows[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, stops(), {})
    assert set(records(tmp_path).to_table(columns=["checkpoint"])["checkpoint"].to_pylist()) == {0}
    assert [path.name for path in tmp_path.iterdir()] == ["records"]
    with pytest.raises(ValueError, match="may hold no"):
        write_records(tmp_path, [("x/../../out", 0, rows)], {})
    with pytest.raises(FileNotFoundError, match="No records in .*: run `python -m analyses records"):
        records(tmp_path / "none")


def test_other_programs_read_the_partitions(tmp_path):
    rows = decision_rows(6)
    write_records(tmp_path, cells(rows), {})
    want = sum(bool(row["is_correct"]) for row in rows if row["checkpoint"] == 110 and row["mode"] == "cot")
    here = (pc.field("checkpoint") == 110) & (pc.field("mode") == "cot") & pc.field("is_correct")
    assert records(tmp_path).count_rows(filter=here) == want > 0
    pattern = f"{tmp_path}/records/**/*.parquet"
    polars = pytest.importorskip("polars")
    frame = polars.scan_parquet(pattern, hive_partitioning=True)
    right = polars.col("is_correct") & (polars.col("checkpoint") == 110) & (polars.col("mode") == "cot")
    assert frame.filter(right).select(polars.len()).collect().item() == want
    duckdb = pytest.importorskip("duckdb")
    query = f"select count(*) from read_parquet('{pattern}', hive_partitioning = true) where checkpoint = 110"
    assert duckdb.sql(f"{query} and mode = 'cot' and is_correct").fetchall() == [(want,)]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Tenfold rows: all that is held is a group of them, and of the page what its list shows."""
    few, many = 20_000, 200_000
    for what, most in (("write", 60), ("query", 80), ("table_and_page", 350)):
        small, large = (measured(what, tmp_path / str(n), n) for n in (few, many))
        assert large["found"] == 10 * small["found"] > 0
        assert large["peak"] - small["peak"] < most, (what, small, large)
