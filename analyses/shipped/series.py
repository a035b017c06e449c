"""Train the checkpoint series: tokenizer, base on a broad mixture, then chain-of-thought fine-tuning."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from interp.checkpoints.headers import hash_files
from interp.prompts.format import PromptFormat
from interp.results.tables import write_json
from interp.system import limits
from interp.system.limits import Folder
from interp.tasks.episodes import CORPUS, Episode, load_corpus
from interp.training.recipes import Recipe

from ..fields import Device
from ..registry import Instrument


@dataclass
class Config:
    """The defaults retrain the shipped series."""

    work: Annotated[Path, Folder()] = Path("runs/series")
    """Folder of the trainer's own checkpoints; training resumes from them."""
    out: Annotated[Path, Folder()] = Path("runs/series/shipped")
    """Folder of the finished series, in half precision and without optimiser states."""
    corpus: Path = CORPUS
    """Recorded episodes."""
    recipe: Recipe = field(default_factory=Recipe)
    """Sizes, steps and seeds."""
    device: Device = "auto"
    """auto, cpu or cuda."""

    def check(self) -> None:
        """Raises ValueError as `limits.check`, and for checkpoints and heads that the recipe cannot have."""
        limits.check(self)
        if (last := max(self.recipe.checkpoints)) > self.recipe.cot_steps:
            raise ValueError(
                f"--recipe.checkpoints has {last:,}, but the training takes {self.recipe.cot_steps:,} steps."
            )
        if self.recipe.hidden % self.recipe.heads:
            raise ValueError(
                f"--recipe.heads is {self.recipe.heads}, which does not divide --recipe.hidden "
                f"{self.recipe.hidden}."
            )


def texts(corpus: dict[str, list[Episode]]) -> list[str]:
    """What the tokenizer is fitted on: the base mixture's texts, never a test one."""
    found = []
    for split in ("base", "base_aimless"):
        for episode in corpus.get(split, ()):
            found += [
                t["content"] if t["role"] == "user" else f"{t['trace']} {t['action']}"
                for t in episode.messages()
            ]
    return found


def export(source: Path, out: Path) -> None:
    """Copy a checkpoint for shipping: half-precision weights, configuration, tokenizer, what made it."""
    from safetensors.torch import load_file

    from interp.checkpoints.weights import save

    out.mkdir(parents=True, exist_ok=True)
    save({k: v.half() for k, v in load_file(source / "model.safetensors").items()}, out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)
    config = json.loads((source / "config.json").read_text())
    write_json(
        out / "config.json", config | dict(use_cache=True, dtype="float16")
    )  # the trainer turns the cache off
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "training.json"):
        if (source / name).exists():
            shutil.copy(source / name, out / name)


def run(config: Config) -> None:
    """Fit, pretrain, fine-tune and export; each part is skipped where it is finished."""
    from interp.training.trainer import base_mixture, build_model, fit_tokenizer, train

    recipe, corpus = config.recipe, load_corpus(config.corpus)
    missing = [split for split in ("base", "train") if split not in corpus]
    if missing:
        raise ValueError(
            f"{config.corpus} has no episodes of the split {missing[0]!r} to train on: it has "
            f"{', '.join(sorted(corpus))}."
        )
    tokenizer = fit_tokenizer(texts(corpus), recipe.vocabulary)
    fmt = PromptFormat(tokenizer)
    mixture = base_mixture(fmt, [*corpus["base"], *corpus.get("base_aimless", ())], recipe.seed)
    provenance = dict(
        corpus=hash_files([Path(config.corpus)]),
        base_episodes=len(mixture),
        train_episodes=len(corpus["train"]),
    )
    base = config.work / "base" / f"checkpoint-{recipe.base_steps}"
    if not (base / "training.json").exists():
        train(
            build_model(recipe, tokenizer),
            tokenizer,
            mixture,
            recipe,
            config.work / "base",
            steps=recipe.base_steps,
            lr=recipe.base_lr,
            keep=range(0, recipe.base_steps, 400),
            seed=recipe.seed,
            provenance=dict(provenance, stage="base"),
            device=config.device,
        )
    sequences = [fmt.sequence(e) for e in corpus["train"]]
    rng = np.random.default_rng(recipe.seed)
    share = round(len(sequences) * recipe.replay / (1 - recipe.replay))
    sequences += [mixture[i] for i in rng.choice(len(mixture), share, replace=False)]
    cot = config.work / f"cot-replay{recipe.replay:g}"
    if not (cot / f"checkpoint-{recipe.cot_steps}" / "training.json").exists():
        from transformers import AutoModelForCausalLM

        train(
            AutoModelForCausalLM.from_pretrained(base),
            tokenizer,
            sequences,
            recipe,
            cot,
            steps=recipe.cot_steps,
            lr=recipe.cot_lr,
            keep=recipe.checkpoints,
            seed=recipe.seed + 1,
            provenance=dict(provenance, stage="cot", replayed=share),
            device=config.device,
        )
    write_json(cot / "series.json", dict(provenance, recipe=asdict(recipe), replayed=share))
    for step in recipe.checkpoints:
        export(base if step == 0 else cot / f"checkpoint-{step}", config.out / f"checkpoint-{step}")
    print(f"{config.out}: checkpoints {', '.join(map(str, recipe.checkpoints))}")


INSTRUMENT = Instrument("series", Config, run)
