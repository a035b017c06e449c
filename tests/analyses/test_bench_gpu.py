"""The GPU's benchmark runs on a tiny shape without a GPU, and what it compares is the same."""

import pytest

from analyses.benchmarks import gpu_settings, gpu_table, gpu_works
from interp.results.tables import read_table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    config = gpu_settings.Config(
        out=folder,
        models=("tiny",),
        lengths=(32,),
        repeats=1,
        pairs=3,
        captured=3,
        decoded=4,
        new_tokens=3,
        choices=2,
        sampled=2,
        device="cpu",
        rivals=False,
    )
    gpu_works.LONGEST, kept = {**gpu_works.LONGEST, "grid": 16}, gpu_works.LONGEST
    gpu_table.run_works(config)
    gpu_works.LONGEST = kept
    return read_table(folder, "bench_gpu")[0]


def test_every_work_is_timed_against_its_baselines(table):
    assert tuple(table.columns) == gpu_table.COLUMNS
    assert len(table.work.unique()) == len(gpu_settings.ROWS) and set(table.device) == {"cpu"}
    assert (table[["seconds", "cold_seconds", "baseline_seconds"]] > 0).all().all()


def test_ours_and_the_baselines_agree(table):
    compared = table.dropna(subset=["difference"])
    assert set(compared.unit) == {"nats", "relative", "rows that differ"}
    assert len(compared) == 9 and compared.difference.max() < 1e-3
