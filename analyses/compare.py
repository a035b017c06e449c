"""Compare two runs: what differs, with intervals paired by decision where both have a table of decisions.

python -m analyses compare runs/first runs/second
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import lazy_loader as lazy
import numpy as np
import tyro

from interp.stats.intervals import cluster_bootstrap
from interp.system.limits import Draws, Existing, Folder, Seed
from interp.system.paths import PROGRAM

from .registry import Instrument

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")

#: Columns of a table of decisions that say which decision it is, or that are no reading.
_NO_READING = ("step", "checkpoint", "n_admissible", "reference_rank", "action_rank")
#: Readings by the names that tables have for them.
_NAMES = {"is_correct": "acc", "parsed": "parse", "actions_differ": "revision"}
COLUMNS = ("step", "step_a", "split", "metric", "paired", "a", "b", "value", "low", "high", "n", "n_groups")


@dataclass
class Config:
    """Differences, second run minus first, at the checkpoints that both have, else at the last of each."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, Path], Existing()]]
    """The folders of the first and the second run."""
    run: Annotated[Path, Folder()] = Path("runs/compare")
    """Folder for the table and the figure."""
    draws: Draws = 2000
    """Bootstrap resamples of episodes."""
    seed: Seed = 0
    """Seed of the resamples."""


def readings(folder: Path) -> pd.DataFrame | None:
    """A run's readings of single decisions; None where it has no table of them.

    Columns step, split, metric, decision, episode, prompt, value. Raises ValueError for a table that cannot
    be read.
    """
    from interp.results.decisions import read_decisions

    path = folder / "tables" / "decisions.parquet"
    if not path.exists():
        return None
    try:
        frame, _ = read_decisions(folder / "tables")
        parts = list(_columns(frame))
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no table of decisions ({error}).") from error
    return pd.concat(parts, ignore_index=True)


def _columns(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    keys = ["checkpoint", "split", "decision", "episode", "prompt"]
    correct = {}
    for mode, group in frame.groupby("mode"):
        of = group[keys].rename(columns=dict(checkpoint="step"))
        for name in group.select_dtypes(["bool", "boolean", "number"]).columns.difference(_NO_READING):
            metric = _NAMES.get(name, name)
            if metric in ("acc", "parse") or mode != "cot":
                metric = f"{metric}_{mode}"
            values = group[name].astype("Float64").astype(float)
            if values.notna().any():
                yield of.assign(metric=metric, value=values).dropna(subset="value")
        correct[mode] = group.set_index(keys)["is_correct"].astype("Float64").astype(float)
    if {"cot", "prompt"} <= set(correct):
        gap = (correct["cot"] - correct["prompt"]).dropna().rename("value").reset_index()
        yield gap.rename(columns=dict(checkpoint="step")).assign(metric="gap")


def paired(first: pd.DataFrame, second: pd.DataFrame, draws: int, seed: int) -> Iterator[dict]:
    """Differences of two runs' readings, of the decisions that both have, resampling episodes."""
    second, steps = _matched(first, second)
    keys = ["step", "split", "metric", "decision"]
    both = first.merge(second.drop(columns="episode"), on=keys, suffixes=("_a", "_b"))
    for (step, split, metric), group in both.groupby(["step", "split", "metric"], sort=True):
        difference = (group["value_b"] - group["value_a"]).to_numpy()
        estimate = cluster_bootstrap(difference, group["episode"].tolist(), draws=draws, seed=seed)
        place = dict(step=steps[step], step_a=step, split=split, metric=metric, paired=True)
        yield place | dict(a=group["value_a"].mean(), b=group["value_b"].mean()) | estimate.row()


def unpaired(first: pd.DataFrame, second: pd.DataFrame) -> Iterator[dict]:
    """Differences of estimates; intervals are put together as if they were independent (square and add).

    Source: Newcombe 1998, Zou & Donner 2008.
    """
    second, steps = _matched(first, second)
    both = first.merge(second, on=["step", "split", "metric"], suffixes=("_a", "_b"))
    for row in both.dropna(subset=["value_a", "value_b"]).to_dict("records"):
        value = row["value_b"] - row["value_a"]
        below = np.hypot(row["value_b"] - row["low_b"], row["high_a"] - row["value_a"])
        above = np.hypot(row["high_b"] - row["value_b"], row["value_a"] - row["low_a"])
        yield dict(
            step=steps[row["step"]],
            step_a=row["step"],
            split=row["split"],
            metric=row["metric"],
            paired=False,
            a=row["value_a"],
            b=row["value_b"],
            value=value,
            low=value - below,
            high=value + above,
            n=min(row["n_a"], row["n_b"]),
            n_groups=min(row["n_groups_a"], row["n_groups_b"]),
        )


def _matched(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, int]]:
    """The second run's rows under the first one's steps, and which those are: equal ones, else the last."""
    shared = set(first["step"]) & set(second["step"])
    if shared:
        return second[second["step"].isin(shared)], {step: step for step in shared}
    last = {first["step"].max(): second["step"].max()}
    ((ours, theirs),) = last.items()
    return second[second["step"] == theirs].assign(step=ours), last


def compared(config: Config) -> pd.DataFrame:
    """The differences of both runs; raises ValueError where they have no reading in common."""
    from interp.results.headline import headline
    from interp.results.tables import read_table

    first, second = (readings(folder) for folder in config.runs)
    rows: list[dict] = []
    if first is not None and second is not None:
        rows += paired(first, second, config.draws, config.seed)
        both = first.merge(second, on=["step", "split", "metric", "decision"], suffixes=("_a", "_b"))
        others = both[both["prompt_a"] != both["prompt_b"]]["decision"].nunique()
        if others:
            print(f"{others} decisions have other prompts in the second run.", file=sys.stderr)
    for folder, frame in zip(config.runs, (first, second), strict=True):
        if frame is None:
            print(
                f"No paired intervals: {folder} has no table of decisions; `{PROGRAM} decisions --run "
                f"{folder}` with the options of its study makes one.",
                file=sys.stderr,
            )
    frames = []
    for folder in config.runs:
        names = ("behaviour", "online", "reliance", "conflict", "probes")
        there = [name for name in names if (folder / "tables" / f"{name}.csv").exists()]
        frames.append(headline({name: read_table(folder / "tables", name)[0] for name in there}))
    done = {(row["step"], row["split"], row["metric"]) for row in rows}
    rows += (row for row in unpaired(*frames) if (row["step"], row["split"], row["metric"]) not in done)
    if not rows:
        raise ValueError(f"{config.runs[0]} and {config.runs[1]} have no reading in common.")
    frame = pd.DataFrame(rows)[list(COLUMNS)]
    return frame.sort_values(["step", "split", "metric"], kind="stable", ignore_index=True)


def run(config: Config) -> None:
    """Compare, write, draw, and print what differs at the last checkpoint."""
    from interp.results.estimates import estimate
    from interp.results.tables import write_table

    from .figures import draw_own
    from .provenance import made_by

    started, frame = time.time(), compared(config)
    names = [str(folder) for folder in config.runs]
    made = made_by("compare", config, started) | dict(runs=names)
    table = write_table(config.run / "tables", "compare", frame, made)
    last = frame[frame["step"] == frame["step"].max()]
    differs = last[(last["low"] > 0) | (last["high"] < 0)]
    steps = f"checkpoint {last['step_a'].iloc[0]} of {names[0]} and {last['step'].iloc[0]} of {names[1]}"
    print(f"{len(differs)} of {len(last)} readings differ at {steps}; 1 in 20 does where nothing differs.")
    for row in differs.to_dict("records"):
        how = "" if row["paired"] else ", not paired"
        print(
            f"  {row['metric']} {row['split']}: {row['a']:.2f} to {row['b']:.2f}, "
            f"{estimate(row, signed=True)}{how} (n = {row['n']})"
        )
    print(f"table: {table}")
    print(f"figure: {', '.join(map(str, draw_own(table, config.run)))}")


INSTRUMENT = Instrument("compare", Config, run)
