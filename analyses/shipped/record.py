"""Play and record a corpus of episodes: the same file from the same seed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from interp.environments.alfworld.traces import Leak
from interp.environments.base import find
from interp.environments.recording import Sizes, record
from interp.system.limits import Seed, Workers
from interp.tasks.episodes import save_episodes

from ..registry import Instrument
from .retrace import retraced

#: environment -> the module with `SIZES`, of the shipped corpus, `plan(sizes, seed)`, a list of jobs, and
#: `episodes(job)`.
RECORDERS = {
    "alfworld": "interp.environments.alfworld.record",
    "twc": "interp.environments.textworldexpress.twc",
    "cookingworld": "interp.environments.textworldexpress.cookingworld",
    "scienceworld": "interp.environments.scienceworld.record",
}


@dataclass
class Config:
    """The defaults regenerate the shipped corpus."""

    environment: Literal["alfworld", "twc", "cookingworld", "scienceworld"] = "alfworld"
    """Whose games are played."""
    out: Path | None = None
    """File to write (none: the environment's shipped corpus; CookingWorld has none)."""
    sizes: Sizes = field(default_factory=Sizes)
    """Games for each split."""
    leak: Leak = "class"
    """What ALFWorld's traces name: the thing to act on, its kind, or nothing (docs/methods.md 8.3)."""
    official: int = 0
    """Instead, episodes of so many of ALFWorld's own train games and of valid_seen, from $ALFWORLD_DATA."""
    seed: Seed = 0
    """Seed of scenes, placements, noise and phrasings."""
    workers: Workers = 2
    """Engine processes; the file does not depend on how many."""


def run(config: Config) -> None:
    """Play, then write the whole file at once."""
    environment = find(config.environment)
    if reason := environment.unplayable():
        raise ValueError(f"Nothing can be recorded: {reason}.")
    if config.official and config.environment != "alfworld":
        raise ValueError(
            f"The environment {config.environment!r} has no official games: leave out --official."
        )
    if config.official and config.out is None:
        raise ValueError(
            "Give --out: the shipped corpus holds generated games, and ALFWorld's own are not shipped."
        )
    if config.out is None and not isinstance(environment.decisions, Path):
        raise ValueError(
            f"Give --out: the environment {config.environment!r} has no shipped corpus; study what is "
            "recorded with --corpus."
        )
    recorder = importlib.import_module(RECORDERS[config.environment])
    jobs = (
        recorder.plan_official(config.official, config.seed)
        if config.official
        else recorder.plan(config.sizes.filled(recorder.SIZES), config.seed)
    )
    episodes, report = record(
        jobs,
        recorder.episodes,
        config.seed,
        config.workers,
        lambda jobs, n: tqdm(jobs, total=n, desc="games"),
    )
    if config.environment == "alfworld":
        episodes = retraced(episodes, config.leak)
    path = save_episodes(config.out or environment.decisions, episodes)
    print(
        f"{path}: {report['episodes']} episodes of {report['games']} games; "
        f"dropped {report['dropped'] or 'none'}"
    )


INSTRUMENT = Instrument("record", Config, run)
