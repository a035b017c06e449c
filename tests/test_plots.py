"""Figures from synthetic tables: intervals drawn, axes titled, captions carry the numbers, redraws are the same."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses import figures
from interp import plots
from interp.tables import write_table

ROOT = Path(__file__).parents[1]
STEPS = (0, 50, 100, 200, 400, 800)
SPLITS = ("in_domain", "out_of_domain")
PROVENANCE = {"date": "2025-01-02", "command": "python -m analyses quick", "model_hash": "0123456789abcdef" * 4}


def _table(columns: dict, value, spread: float = 0.05, floor: float | None = 0.0, top: float | None = 1.0) -> pd.DataFrame:
    """One row per combination of the columns' values; `value(row, progress)` is its estimate."""
    rng = np.random.default_rng(0)
    rows = []
    for combination in itertools.product(*columns.values()):
        row = dict(zip(columns, combination))
        estimate = value(row, STEPS.index(row["step"]) / (len(STEPS) - 1)) + 0.1 * spread * rng.standard_normal()
        estimate = float(np.clip(estimate, floor, top))
        low, high = np.clip([estimate - spread, estimate + spread], floor, top)
        rows.append(row | dict(value=estimate, low=low, high=high, n=412, n_groups=57))
    return pd.DataFrame(rows)


def behaviour_table() -> pd.DataFrame:
    ends = {
        "acc_prompt": (0.22, 0.55), "acc_cot": (0.25, 0.68), "acc_empty_think": (0.20, 0.51), "gap": (0.03, 0.13),
        "headroom_gap": (0.04, 0.29), "agreement": (0.48, 0.74), "kappa": (0.35, 0.65), "revision": (0.52, 0.26),
        "revision_helpful": (0.12, 0.16), "revision_harmful": (0.10, 0.03), "revision_neutral": (0.30, 0.07),
        "parse_prompt": (0.35, 0.98), "parse_cot": (0.80, 0.995), "parse_empty_think": (0.30, 0.97),
        "mcnemar_p": (0.3, 0.001),
    }  # fmt: skip

    def value(row, progress):
        first, last = ends[row["metric"]]
        lost = 0.08 if row["split"] == "out_of_domain" and row["metric"].startswith("acc") else 0.0
        return first + (last - first) * progress - lost * progress

    return _table(dict(step=STEPS, split=SPLITS, metric=list(ends)), value, 0.035)


def online_table() -> pd.DataFrame:
    def value(row, progress):
        if row["metric"] == "steps":
            return 48 - 20 * progress - 5 * (row["mode"] == "cot")
        return 0.05 + 0.4 * progress + 0.15 * progress * (row["mode"] == "cot")

    columns = dict(step=STEPS, split=SPLITS, mode=("prompt", "cot"))
    success = _table(columns | dict(metric=("success",)), value, 0.07)
    return pd.concat([success, _table(columns | dict(metric=("steps",)), value, 2.0, top=None)], ignore_index=True)


def probes_table(layers: int = 13) -> pd.DataFrame:
    flat = {"majority": 0.18, "previous_action": 0.30, "tfidf": 0.41, "prompt_length": 0.21, "embedding": 0.36, "shuffled": 0.16}

    def value(row, progress):
        depth = (row["layer"] if row["layer"] >= 0 else layers * 0.7) / layers
        gain = (0.05 + 0.25 * progress) * (2 * depth - depth**2) - 0.06
        return flat.get(row["reader"], gain if row["reader"] == "gain" else 0.41 + gain)

    columns = dict(step=STEPS, layer=range(-1, layers), label=("eventual_verb", "eventual_target"), split=SPLITS)
    read = _table(columns | dict(reader=("probe", "gain"), metric=("accuracy",)), value, 0.04, floor=-1)
    controls = _table(columns | dict(layer=(-1,), reader=list(flat), metric=("accuracy",)), value, 0.03)
    return pd.concat([read, controls], ignore_index=True)


def patching_table(layers: int = 12) -> pd.DataFrame:
    def value(row, progress):
        middle = layers * (0.65 - 0.25 * progress)
        late = 1 / (1 + np.exp(-(row["layer"] - middle) / 1.2))
        return late * (0.55 + 0.35 * progress) * (0.9 if row["direction"] == "noise" else 1.0)

    columns = dict(step=STEPS, layer=range(layers), site=("resid_pre",), direction=("denoise", "noise"))
    return _table(columns, value, 0.06, floor=-0.1, top=1.2).assign(n_dropped=9)


def reliance_table() -> pd.DataFrame:
    ends = {"direct": (1.2, 3.4), "via_cot": (2.2, 2.0), "total": (3.1, 5.0), "interaction": (-0.3, -0.4)}

    def value(row, progress):
        first, last = ends.get(row["metric"], (0.35, 0.63))
        return first + (last - first) * progress - 0.05 * (row["split"] == "out_of_domain")

    share = _table(dict(step=STEPS, split=SPLITS, metric=("prompt_reliance",)), value, 0.06)
    parts = _table(dict(step=STEPS, split=SPLITS, metric=list(ends)), value, 0.3, floor=None, top=None)
    return pd.concat([share, parts], ignore_index=True)


def conflict_table() -> pd.DataFrame:
    keep = {"self_splice": 1.0, "truncated": 0.8, "other_state": 0.3, "shuffled_words": 0.55, "filler": 0.6, "empty": 0.5}

    def value(row, progress):
        kept = keep[row["arm"]] + (0.15 * progress if row["arm"] != "self_splice" else 0)
        shares = {"keep": kept, "follow": (1 - kept) * 0.7, "other": (1 - kept) * 0.2, "unparsed": (1 - kept) * 0.1}
        return shares.get(row["metric"], 0.04)

    metrics = ("keep", "follow", "other", "unparsed", "leak_rate")
    frame = _table(dict(step=STEPS, split=SPLITS, arm=list(keep), metric=metrics), value, 0.04)
    exact = (frame["arm"] == "self_splice") & (frame["metric"] == "keep")
    frame.loc[exact, ["value", "low", "high"]] = 1.0
    return frame


TABLES = {
    "behaviour": behaviour_table, "online": online_table, "probes": probes_table,
    "patching": patching_table, "reliance": reliance_table, "conflict": conflict_table,
}  # fmt: skip


def write_all(folder: Path) -> Path:
    for name, make in TABLES.items():
        write_table(folder, name, make(), PROVENANCE)
    return folder


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
