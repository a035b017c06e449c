"""Tokens a second of `interp.training.trainer.train`, against a bare PyTorch loop over the same batches."""

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

from interp.checkpoints.contents import SERIES
from interp.prompts.format import PromptFormat
from interp.results.tables import write_table
from interp.system.limits import Count, Existing, Folder, Known, Limits
from interp.tasks.episodes import CORPUS, Episode, load_corpus
from interp.training.recipes import Recipe
from interp.training.supervision import Supervision, supervised

from ..fields import Device
from ..provenance import made_by
from ..registry import Instrument

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def bare(model: PreTrainedModel, data: _Batches, steps: int, lr: float, device: str = "cpu") -> None:
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

    The trainer's time holds its start and the saving of its last checkpoint. On the CPU these are seconds of
    computing, of all threads, which other work on the machine does not stretch.
    """
    import torch
    from transformers import AutoTokenizer

    from interp.checkpoints.series import CheckpointSeries

    started = time.time()
    torch.set_num_threads(config.threads)
    series = CheckpointSeries.discover(SERIES)
    fmt = PromptFormat(AutoTokenizer.from_pretrained(series.path(series.steps[0])))
    episodes = load_corpus(config.corpus)["train"][: config.episodes]
    rows = [
        _condition(config, fmt, episodes, condition) for condition in tqdm(config.conditions, desc="pace")
    ]
    frame = pd.DataFrame(rows)
    made = dict(
        made_by("pace", config, started),
        recipe=json.loads(json.dumps(dataclasses.asdict(config.recipe))),
        device=config.device,
        threads=config.threads,
        machine=platform.machine(),
    )
    write_table(config.out, "pace", frame, made)
    print(frame.to_string(index=False))
    return frame


def _condition(config: Config, fmt: PromptFormat, episodes: list[Episode], condition: str) -> dict:
    """The row of one training condition."""
    from interp.training.trainer import _Batches, batches, build_model, train

    recipe, tokenizer = config.recipe, fmt.tokenizer
    clock = time.process_time if config.device == "cpu" else time.perf_counter
    sequences, _ = supervised(fmt, episodes, Supervision.named(condition), recipe.seed)
    plan = batches(sequences, recipe, config.steps, recipe.seed)
    data = _Batches(sequences, plan, tokenizer.pad_token_id)
    trained, bared = [], []  # seconds
    for _ in range(config.repeats):
        with tempfile.TemporaryDirectory() as folder:
            model, begun = build_model(recipe, tokenizer), clock()
            train(
                model,
                tokenizer,
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
            trained.append(clock() - begun)
        model, begun = build_model(recipe, tokenizer), clock()
        bare(model, data, config.steps, recipe.cot_lr, config.device)
        bared.append(clock() - begun)
    tokens = sum(len(sequences[i][0]) for batch in plan for i in batch)
    ours, other = float(np.median(trained)), float(np.median(bared))
    return dict(
        condition=condition,
        tokens=tokens,
        steps=config.steps,
        tokens_per_second=tokens / ours,
        bare_tokens_per_second=tokens / other,
        ratio=other / ours,
        lowest=min(bared) / max(trained),
        highest=max(bared) / min(trained),
    )


INSTRUMENT = Instrument("pace", Config, run)
