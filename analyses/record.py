"""Play and record a corpus of episodes: the same file from the same seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from interp.alfworld.record import Sizes, plan, plan_official, record
from interp.tasks import CORPUS, save_episodes


@dataclass
class Config:
    """The defaults regenerate the shipped corpus."""

    out: Path = CORPUS
    """File to write."""
    sizes: Sizes = field(default_factory=Sizes)
    """Games for each split."""
    official: int = 0
    """Instead, the expert's episodes of this many of ALFWorld's own train games, and of all of valid_seen, from $ALFWORLD_DATA."""
    seed: int = 0
    """Seed of scenes, placements, noise and phrasings."""
    workers: int = 2
    """Engine processes; the file does not depend on how many."""


def run(config: Config) -> None:
    """Play, then write the whole file at once."""
    if config.official and config.out == CORPUS:
        raise ValueError("Give --out: the shipped corpus holds generated games, and ALFWorld's own are not shipped.")
    jobs = plan_official(config.official, config.seed) if config.official else plan(config.sizes, config.seed)
    episodes, report = record(jobs, config.seed, config.workers, lambda jobs, n: tqdm(jobs, total=n, desc="games"))
    path = save_episodes(config.out, episodes)
    print(f"{path}: {report['episodes']} episodes of {report['games']} games; dropped {report['dropped'] or 'none'}")
