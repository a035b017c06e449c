"""The benchmark's works on a GPU, timed, and their table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from interp.models.hooked import pick_device
from interp.results.tables import write_table

from ..provenance import made_by
from .gpu_settings import Config
from .gpu_works import Bench, Work

COLUMNS = (
    "work",
    "model",
    "tokens",
    "seconds",
    "cold_seconds",
    "baseline",
    "baseline_seconds",
    "ratio",
    "difference",
    "unit",
    "peak_gib",
    "device",
)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call, with all that it has the GPU do, and what it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, value


def median(call: Callable[[], Any], config: Config, device: torch.device) -> tuple[float, Any]:
    """The median seconds of a call, repeated as far as the budget goes, and what it gave last."""
    seconds, value = [], None
    while len(seconds) < config.repeats and (not seconds or sum(seconds) + seconds[-1] < config.budget):
        took, value = timed(call, device)
        seconds.append(took)
    return float(np.median(seconds)), value


def measure(work: Work, bench: Bench, name: str) -> Iterator[dict]:
    """The rows of one work: ours cold and warm, then each baseline, once untimed and then timed."""
    config, device = bench.config, bench.device
    cold, value = timed(work.ours, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds, value = median(work.ours, config, device)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if device.type == "cuda" else float("nan")
    row = dict(
        work=work.name,
        model=bench.shape,
        tokens=work.tokens,
        seconds=seconds,
        cold_seconds=cold,
        peak_gib=peak,
        device=name,
    )
    for baseline in work.baselines:
        baseline.call()
        took, other = median(baseline.call, config, device)
        difference = baseline.difference(value, other) if baseline.difference else float("nan")
        took *= baseline.scale
        yield dict(
            row,
            baseline=baseline.name,
            baseline_seconds=took,
            ratio=took / seconds,
            difference=difference,
            unit=baseline.unit if baseline.difference else "",
        )


def run_works(config: Config) -> pd.DataFrame:
    """Time every work that is asked for, and write the table `bench_gpu` anew with each row."""
    started, rows = time.time(), []
    device = pick_device(config.device)
    if device.type == "cpu" and set(config.models) != {"tiny"}:
        raise ValueError(
            "There is no GPU to time: bench_gpu needs one; on a CPU `--models tiny` alone tries its works."
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    for shape in config.models:
        began = time.perf_counter()
        bench = Bench(config, shape)
        # The first use of a device is slow.
        interp.decode(bench.model, bench.prompts(1, 40), "prompt", max_new_tokens=2)
        bench.forward([bench.draw(40)])
        print(f"{shape} made in {time.perf_counter() - began:.1f} s", flush=True)
        for work in bench.works():
            try:
                for row in measure(work, bench, name):
                    rows.append(row)
                    cells = (
                        f"{c}={row[c]:.4g}" if isinstance(row[c], float) else str(row[c])
                        for c in COLUMNS[:-1]
                    )
                    print("  ".join(cells), flush=True)
                    frame = pd.DataFrame(rows, columns=COLUMNS)
                    made = made_by("bench_gpu", config, started) | dict(device=name)
                    write_table(config.out, "bench_gpu", frame, made)
            except torch.OutOfMemoryError:
                print(
                    f"{work.name} of {work.tokens} tokens is left out: the GPU's memory is too small.",
                    flush=True,
                )
        del bench
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return pd.DataFrame(rows, columns=COLUMNS)
