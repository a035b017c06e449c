"""What each instrument reads on agents whose answer is known, and the exact checks there and on a series.

The agents are those of `interp.training.organisms`. A reading is held against what the agent's construction
says it should be; where it differs, it stays in the table. A second table holds the verdicts on the claims
against those that are right of the series of `interp.training.taught`, forwards and backwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from interp.checkpoints.contents import SERIES
from interp.results.claims import COLUMNS
from interp.results.tables import write_table
from interp.system.limits import SMALLEST, Count, Existing, Folder, Limits, Margin, Several
from interp.tasks.episodes import CORPUS
from interp.training.organisms import ORGANISMS, expected, grow
from interp.training.taught import TAUGHT, grow_taught, taught_decisions

from .claims import Records
from .fields import Device
from .provenance import made_by
from .registry import Instrument
from .study import Study

#: Columns of the second table; the verdict, and the right one by construction.
VERDICT_COLUMNS = (
    "agent",
    "seed",
    "backwards",
    "truth",
    *(name for name in COLUMNS if name not in ("step", "split")),
)


@dataclass
class Config:
    """The organisms, grown where they are not shipped, and a series for the exact checks."""

    run: Annotated[Path, Folder()] = Path("runs/calibration")
    """Folder for everything the run writes: grown organisms, partial results, the table."""
    organisms: tuple[Literal[tuple(ORGANISMS)], ...] = tuple(ORGANISMS)
    """Which agents."""
    taught: Annotated[tuple[Literal[tuple(TAUGHT)], ...], Several(none=True)] = tuple(TAUGHT)
    """Which series, for the verdicts on the claims."""
    claimed: Count = 1000
    """Decisions of each of these series; a fifth of them are paired."""
    margin: Margin = SMALLEST
    """Change of the gap that would matter."""
    seeds: Annotated[tuple[int, ...], Limits(0, 10_000)] = (0,)
    """Seeds of their training; each but 0 is grown here, in about 2 minutes an organism."""
    decisions: Count = 300
    """Decisions that each instrument reads; shares and steering read a fifth of them."""
    series: Annotated[Path, Existing()] = SERIES
    """A series whose every checkpoint takes the exact checks too."""
    corpus: Annotated[Path, Existing()] = CORPUS
    """Recorded episodes of that series."""
    checks: Count = 20
    """Its decisions that are spliced, and its pairs that are patched."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto (float32 on the CPU, bfloat16 on a GPU), float32, bfloat16 or float16."""


def run(config: Config) -> None:
    """Grow, read and tabulate; an organism of one seed, and a checkpoint, are resumable stages."""
    from interp.engine.decoding import decode

    from . import calibration_readings as read

    started, rows, weights, reused = time.time(), [], {}, 0.0
    where = dict(run=config.run, device=config.device, dtype=config.dtype)

    def add(agent: str, seed: int, readings: list[dict], truth: dict) -> None:
        for row in readings:
            low, high = truth[row["instrument"]] or (np.nan, np.nan)
            key = dict(agent=agent, seed=seed, instrument=row["instrument"], truth_low=low, truth_high=high)
            rows.append(key | row)

    for name, seed in tqdm([(o, s) for s in config.seeds for o in config.organisms], desc="calibration"):
        folder = grow(name, config.run / "organisms", seed, device=config.device)
        # 32 tokens are more than their traces take, and their context is short.
        study = Study(series=folder, trace_tokens=32, **where)
        [step] = study.steps
        inputs = dict(study.inputs(step), n=config.decisions, organism=name, of=seed, alpha=read.ALPHA)
        arguments = study.model(step), study.format, name, config.decisions, seed
        stage, truth = f"calibration/{name}-{seed}", expected(name) | dict(competence=(1.0, 1.0))
        add(name, seed, study.stage(f"{stage}-competence", inputs, lambda: read.competent(*arguments)), truth)
        add(name, seed, study.stage(stage, inputs, lambda: read.readings(*arguments)), truth)
        weights[f"{name} {seed}"] = study.checkpoint_series.weights_hash(step)
        reused += sum(study._reused.values())
    claims = []
    for name, seed in [(name, seed) for seed in config.seeds for name in config.taught]:
        folder = grow_taught(name, config.run / "organisms", seed, device=config.device)
        study = Study(series=folder, trace_tokens=32, **where)
        claims += [dict(row, seed=seed) for row in _verdicts(config, study, name, seed)]
        weights |= {f"{name} {seed} {s}": study.checkpoint_series.weights_hash(s) for s in study.steps}
        reused += sum(study._reused.values())
    study = Study(
        series=config.series, corpus=config.corpus, decisions=config.checks, splits=("in_domain",), **where
    )
    for step in tqdm(study.steps, desc="exact checks"):
        model = study.model(step)

        def compute() -> list[dict]:
            clean, corrupt, _ = study.pairs_of("in_domain", config.checks)
            prompts = study.prompts("in_domain")
            own = decode(model, prompts, "cot", parser=study.parse)
            return read.estimated(read.exact(model, prompts, own, clean, corrupt, study.parse), 0)

        inputs = dict(study.inputs(step, "in_domain"), n=config.checks)
        checks = study.stage(f"calibration/checkpoint-{step}", inputs, compute)
        add(f"checkpoint-{step}", 0, checks, expected("reasoner"))  # whose exact checks are every agent's
        weights[f"checkpoint-{step}"] = study.checkpoint_series.weights_hash(step)
    made = dict(
        made_by("calibration", config, started),
        seeds=config.seeds,
        weights=weights,
        seconds_reused=dict(calibration=round(reused, 1)),
    )
    write_table(config.run / "tables", "calibration", pd.DataFrame(rows), made)
    if claims:
        frame = pd.DataFrame(claims)[list(VERDICT_COLUMNS)]
        write_table(config.run / "tables", "calibration_claims", frame, made)


def _verdicts(config: Config, study: Study, name: str, seed: int) -> Iterator[dict]:
    """The verdicts on a taught series, forwards and backwards; each checkpoint is a resumable stage."""
    from .calibration_claims import judged, of_json, records, to_json

    decisions = taught_decisions(config.claimed, seed)

    def read(step: int) -> Records:
        inputs = dict(study.inputs(step), n=config.claimed, organism=name, of=seed)
        arguments = study.model(step), study.format, decisions, config.claimed // 5, seed
        stage = f"calibration/{name}-{seed}-{step}"
        return of_json(study.stage(stage, inputs, lambda: to_json(records(*arguments))))

    base, trained = (read(step) for step in study.steps)
    for backwards in (False, True):
        yield from judged(name, base, trained, config.margin, seed, backwards)


INSTRUMENT = Instrument("calibration", Config, run)
