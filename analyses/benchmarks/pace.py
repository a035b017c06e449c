"""How fast `interp.training.trainer.train` is, in tokens a second, against a bare PyTorch loop that does the same steps on the same batches."""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from tqdm import tqdm

from analyses.provenance import made_by
from analyses.registry import Instrument
from analyses.study import Device
from interp.checkpoints.contents import SERIES
from interp.prompts.format import PromptFormat
from interp.results.tables import write_table
from interp.system.limits import Count, Existing, Folder, Known, Limits
from interp.tasks.episodes import CORPUS, load_corpus
from interp.training.recipes import Recipe
from interp.training.supervision import Supervision, supervised

if TYPE_CHECKING:
    from interp.training.trainer import _Batches

CONDITIONS = ("action_mask_0", "action_mask_0.3", "random_mask_0.3", "action_only")


@dataclass
class Config:
    """What is trained, and for how long; by default the shipped agent's shape on its corpus."""

    out: Annotated[Path, Folder()] = Path("figures/tables")
    """Folder of the table."""
    conditions: Annotated[tuple[str, ...], Known(Supervision.named)] = CONDITIONS
    """Conditions that are timed."""
    corpus: Annotated[Path, Existing()] = CORPUS
    """Recorded episodes."""
    episodes: Count = 400
    """How many of its training episodes."""
    steps: Count = 30
    """Optimiser steps of a timed run."""
    repeats: Count = 3
    """Runs of either kind, in turns; the medians are compared."""
    threads: Annotated[int, Limits(1, 1024)] = 1
    """CPU threads."""
    recipe: Recipe = field(default_factory=Recipe)
    """Sizes and batches."""
    device: Device = "cpu"
    """cpu or cuda."""


def bare(model, data: _Batches, steps: int, lr: float, device: str = "cpu") -> None:
    """Train as `train` does, with nothing around it: no logs, no checkpoints, no resuming."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [dict(params=matrices, weight_decay=0.05), dict(params=others, weight_decay=0.0)]
    optimiser = torch.optim.AdamW(groups, lr, (0.9, 0.98), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimiser, max(1, steps // 20), steps)
    model.to(device).train()
    for i in range(steps):
        batch = {name: value.to(device) for name, value in data[i].items()}
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()


def run(config: Config) -> pd.DataFrame:
    """Time both in turns, in one process, and write the table `pace`.

    The trainer's time holds its start and the saving of its last checkpoint. On the CPU these are seconds of computing, of all
    threads, which other work on the machine does not stretch.
    """
    import torch
    from transformers import AutoTokenizer

    from interp.checkpoints.series import CheckpointSeries
    from interp.training.trainer import _Batches, batches, build_model, train

    started, recipe, clock = (
        time.time(),
        config.recipe,
        time.process_time if config.device == "cpu" else time.perf_counter,
    )
    torch.set_num_threads(config.threads)
    series = CheckpointSeries.discover(SERIES)
    fmt = PromptFormat(AutoTokenizer.from_pretrained(series.path(series.steps[0])))
    episodes, rows = load_corpus(config.corpus)["train"][: config.episodes], []
    for condition in tqdm(config.conditions, desc="pace"):
        sequences, _ = supervised(fmt, episodes, Supervision.named(condition), recipe.seed)
        plan = batches(sequences, recipe, config.steps, recipe.seed)
        tokens = sum(len(sequences[i][0]) for batch in plan for i in batch)
        data, seconds = _Batches(sequences, plan, fmt.tokenizer.pad_token_id), dict(train=[], bare=[])
        for _ in range(config.repeats):
            with tempfile.TemporaryDirectory() as folder:
                model, begun = build_model(recipe, fmt.tokenizer), clock()
                train(
                    model,
                    fmt.tokenizer,
                    sequences,
                    recipe,
                    folder,
                    steps=config.steps,
                    lr=recipe.cot_lr,
                    keep=(),
                    seed=0,
                    device=config.device,
                    plan=plan,
                )
                seconds["train"].append(clock() - begun)
            model, begun = build_model(recipe, fmt.tokenizer), clock()
            bare(model, data, config.steps, recipe.cot_lr, config.device)
            seconds["bare"].append(clock() - begun)
        median = {name: float(np.median(found)) for name, found in seconds.items()}
        rows.append(
            dict(
                condition=condition,
                tokens=tokens,
                steps=config.steps,
                tokens_per_second=tokens / median["train"],
                bare_tokens_per_second=tokens / median["bare"],
                ratio=median["bare"] / median["train"],
                lowest=min(seconds["bare"]) / max(seconds["train"]),
                highest=max(seconds["bare"]) / min(seconds["train"]),
            )
        )
    frame = pd.DataFrame(rows)
    write_table(
        config.out,
        "pace",
        frame,
        dict(
            made_by("pace", config, started),
            recipe=json.loads(json.dumps(dataclasses.asdict(recipe))),
            device=config.device,
            threads=config.threads,
            machine=platform.machine(),
        ),
    )
    print(frame.to_string(index=False))
    return frame


INSTRUMENT = Instrument("pace", Config, run)
