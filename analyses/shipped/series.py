"""Train the checkpoint series: tokenizer, base on a broad mixture, then chain-of-thought training."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from interp.checkpoints.headers import hash_files
from interp.prompts.format import PromptFormat
from interp.results.tables import write_json
from interp.system import limits
from interp.system.limits import Folder, Known, Limits, Several
from interp.tasks.episodes import CORPUS, Episode, base_episodes, load_corpus
from interp.training.recipes import Recipe
from interp.training.supervision import Supervision

from ..cluster.options import Trainings, jobs
from ..fields import Device
from ..registry import Instrument
from ..stages import alone

#: Conditions of the chain-of-thought training: pure, two that keep prompt mode alive, and no traces at all.
CONDITIONS = ("action_mask_0", "trace_dropout_0.15", "replay_0.1", "prompt_only")


@dataclass
class Config(Trainings):
    """The defaults train every condition and seed again, and export the series that is shipped.

    Conditions start from one base and are folders `WORK/conditions/CONDITION/seed-S`, as the masking study
    measures and compares them: `masking --series WORK/conditions`.
    """

    work: Annotated[Path, Folder()] = Path("runs/series")
    """Folder of the trainer's own checkpoints; training resumes from them."""
    out: Annotated[Path, Folder()] = Path("runs/series/shipped")
    """Folder of the exported series, in half precision and without optimiser states."""
    corpus: Path = CORPUS
    """Recorded episodes."""
    conditions: Annotated[tuple[str, ...], Known(Supervision.named)] = CONDITIONS
    """Conditions that are trained."""
    seeds: Annotated[int, Limits(1, 1000)] = 3
    """Trainings of each condition."""
    more: Annotated[tuple[str, ...], Known(Supervision.named), Several(none=True)] = CONDITIONS[:2]
    """Conditions that the claims rest on."""
    more_seeds: Annotated[int, Limits(1, 1000)] = 5
    """Trainings of those."""
    shipped: Annotated[str, Known(Supervision.named)] = "trace_dropout_0.15"
    """The condition whose first seed is exported."""
    recipe: Recipe = field(default_factory=Recipe)
    """Sizes and steps; its seed is the base's."""
    device: Device = "auto"
    """auto, cpu or cuda."""

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(condition, seed) that are trained, the shipped condition's first of each seed."""
        order = sorted(self.conditions, key=lambda name: name != self.shipped)
        return jobs(order, self.seeds, self.more, self.more_seeds)

    def check(self) -> None:
        """Raises ValueError as `limits.check`, and for checkpoints and heads that the recipe cannot have."""
        limits.check(self)
        self.check_parts()
        if (last := max(self.recipe.checkpoints)) > self.recipe.cot_steps:
            raise ValueError(
                f"--recipe.checkpoints has {last:,}, but the training takes {self.recipe.cot_steps:,} steps."
            )
        if self.recipe.hidden % self.recipe.heads:
            raise ValueError(
                f"--recipe.heads is {self.recipe.heads}, which does not divide --recipe.hidden "
                f"{self.recipe.hidden}."
            )
        if self.shipped not in self.conditions:
            raise ValueError(f"--shipped is {self.shipped}, which is none of --conditions.")


def texts(corpus: dict[str, list[Episode]]) -> list[str]:
    """What the tokenizer is fitted on: the base mixture's texts, never a test one."""
    return [
        t["content"] if t["role"] == "user" else f"{t['trace']} {t['action']}"
        for episode in base_episodes(corpus)
        for t in episode.messages()
    ]


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


def base_of(config: Config, corpus: dict[str, list[Episode]]) -> Path:
    """The base's checkpoint, trained where it is not there."""
    from interp.training.trainer import base_mixture, build_model, fit_tokenizer, train

    recipe = config.recipe
    base = config.work / "base" / f"checkpoint-{recipe.base_steps}"
    if (base / "training.json").exists():
        return base
    tokenizer = fit_tokenizer(texts(corpus), recipe.vocabulary)
    mixture = base_mixture(PromptFormat(tokenizer), base_episodes(corpus), recipe.seed)
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
        provenance=dict(corpus=hash_files([config.corpus]), stage="base", episodes=len(mixture)),
        device=config.device,
    )
    return base


def run(config: Config) -> None:
    """Train the base, then the conditions, and export one; each part is skipped where it is finished."""
    from interp.training.trainer import train_condition

    corpus = load_corpus(config.corpus)
    missing = [split for split in ("base", "train") if split not in corpus]
    if missing:
        raise ValueError(
            f"{config.corpus} has no episodes of the split {missing[0]!r} to train on: it has "
            f"{', '.join(sorted(corpus))}."
        )
    with alone(config.work / "base" / "training"):  # other parts wait for it
        base = base_of(config, corpus)
    for name, seed in tqdm(config.mine(config.jobs), desc="train"):
        folder = train_condition(
            base,
            corpus["train"],
            Supervision.named(name),
            config.recipe,
            config.work / "conditions" / name / f"seed-{seed}",
            seed=seed,
            base_episodes=base_episodes(corpus),
            provenance=dict(corpus=hash_files([config.corpus])),
            device=config.device,
        )
        if (name, seed) == (config.shipped, 0):
            for step in config.recipe.checkpoints:
                export(folder / f"checkpoint-{step}", config.out / f"checkpoint-{step}")
            print(f"{config.out}: checkpoints {', '.join(map(str, config.recipe.checkpoints))}")


INSTRUMENT = Instrument("series", Config, run)
