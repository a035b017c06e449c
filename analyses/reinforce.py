"""Go on from a supervised checkpoint by reinforcement learning (GRPO, with TRL) in a live environment: a series of the same shape.

    python -m analyses reinforce --start interp/data/series/checkpoint-2000 --work runs/rl/mask-0.3 --recipe.action_mask 0.3
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from analyses.study import Device, EnvironmentName, StyleName
from interp.environments.base import find
from interp.checkpoints.headers import hash_files
from interp.system.limits import Existing, Folder, Workers
from interp.prompts.format import PromptFormat
from interp.training.reinforcement import Reinforcement, reinforce
from interp.checkpoints.series import SERIES


@dataclass
class Config:
    """The defaults take about 20 seconds a step on two CPU cores; on a GPU `--recipe.vllm` samples with vLLM."""

    start: Annotated[Path, Existing()] = SERIES / "checkpoint-2000"
    """Checkpoint to go on from, its weights whole."""
    work: Annotated[Path, Folder()] = Path("runs/rl")
    """Folder of the series; training resumes from its last checkpoint, and a copy of the start is checkpoint 0."""
    environment: EnvironmentName = "alfworld"
    """Whose games are played: a name, or one of your own as MODULE:NAME, whose code is run."""
    style: StyleName = "tags"
    """Prompt style (see interp.prompts.styles.STYLES)."""
    system: str = ""
    """System prompt of games that bring none."""
    recipe: Reinforcement = field(default_factory=Reinforcement)
    """Steps, games, rewards, masks and seeds."""
    workers: Workers = 2
    """Processes that the games are played in."""
    device: Device = "auto"
    """auto, cpu or cuda."""


def run(config: Config) -> None:
    """Train; what was trained stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (config.start / "config.json").exists():
        raise FileNotFoundError(f"There is no checkpoint at {config.start}: give a folder with config.json and whole weights.")
    tokenizer = AutoTokenizer.from_pretrained(config.start)
    model = AutoModelForCausalLM.from_pretrained(config.start, dtype=torch.float32)
    fmt = PromptFormat(tokenizer, config.style, config.system)
    begin = config.work / "checkpoint-0"
    if not begin.exists():
        model.save_pretrained(begin)
        tokenizer.save_pretrained(begin)
    made = dict(start=str(config.start), start_weights=hash_files(sorted(config.start.glob("*.safetensors"))), style=config.style, system=config.system, stage="rl")
    folder = reinforce(model, tokenizer, config.work, find(config.environment), config.recipe, fmt=fmt, provenance=made, workers=config.workers,
                       device=config.device)
    print(f"{folder}: study it with\n  python -m analyses all --environment {config.environment} --series {folder} --run {folder}-study")
