"""Go on from a supervised checkpoint by reinforcement learning (GRPO, with TRL) in a live environment.

It writes a series of the same shape.

python -m analyses reinforce --start interp/data/series/checkpoint-2000 --work runs/rl --recipe.steps 24
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from interp.checkpoints.contents import SERIES, training_notes
from interp.checkpoints.headers import hash_files
from interp.environments.base import find
from interp.prompts.format import PromptFormat
from interp.system import limits
from interp.system.limits import Existing, Folder, Workers
from interp.system.paths import PROGRAM
from interp.training.recipes import Reinforcement

from .fields import Device, EnvironmentName
from .prompting import Prompting
from .registry import Instrument


@dataclass
class Config(Prompting):
    """By default about 20 seconds a step on two CPU cores; on a GPU `--recipe.vllm` samples with vLLM."""

    start: Annotated[Path, Existing()] = SERIES / "checkpoint-2000"
    """Checkpoint to go on from, its weights whole."""
    work: Annotated[Path, Folder()] = Path("runs/rl")
    """Folder of the series; checkpoint 0 is a copy of the start, and training resumes from the last one."""
    environment: EnvironmentName = "alfworld"
    """Whose games are played: a name, or one of your own as MODULE:NAME, whose code is run."""
    recipe: Reinforcement = field(default_factory=Reinforcement)
    """Steps, games, rewards, masks and seeds."""
    workers: Workers = 2
    """Processes that the games are played in."""
    device: Device = "auto"
    """auto, cpu or cuda."""

    def check(self) -> None:
        """Raises as `limits.check` does, and for tools and template variables that cannot be read."""
        limits.check(self)
        self.format_options()


def run(config: Config) -> None:
    """Train; what was trained stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from interp.training.reinforcement import reinforce

    if not (config.start / "config.json").exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {config.start}: give a folder with config.json and whole weights."
        )
    tokenizer = AutoTokenizer.from_pretrained(config.start)
    model = AutoModelForCausalLM.from_pretrained(
        config.start, dtype=torch.bfloat16 if config.recipe.half else torch.float32
    )
    told = training_notes(config.start)
    style, system = config.style or told.get("style", "tags"), config.system or told.get("system", "")
    fmt = PromptFormat(tokenizer, style, system, **config.format_options())
    begin = config.work / "checkpoint-0"
    if not begin.exists():
        model.save_pretrained(begin)
        tokenizer.save_pretrained(begin)
    made = dict(
        start=str(config.start),
        start_weights=hash_files(sorted(config.start.glob("*.safetensors"))),
        style=style,
        system=system,
        prompts=config.prompting_flags(),
        format=fmt.hash,
        stage="rl",
    )
    folder = reinforce(
        model,
        tokenizer,
        config.work,
        find(config.environment),
        config.recipe,
        fmt=fmt,
        provenance=made,
        workers=config.workers,
        device=config.device,
    )
    flags = shlex.join(
        [
            "--environment",
            config.environment,
            "--series",
            str(folder),
            "--run",
            f"{folder}-study",
            *config.prompting_flags(),
        ]
    )
    print(f"{folder}: study it with\n  {PROGRAM} all {flags}")


INSTRUMENT = Instrument("reinforce", Config, run)
