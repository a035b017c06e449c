"""Write the traces of a recorded corpus of ALFWorld again at another level of leak; nothing is played.

Training and test episodes get the level that is asked for. The base's episodes are spread over all levels,
the same whatever is asked for, so that one base can be trained further at any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from interp.environments.alfworld.traces import LEAKS, Leak, rewritten
from interp.tasks.episodes import CORPUS, Episode, load_episodes, save_episodes
from interp.training.supervision import lot

from ..registry import Instrument


@dataclass
class Config:
    """By default the shipped corpus, which is at the level `class`; its traces then name nothing."""

    out: Path
    """File to write."""
    leak: Leak = "subgoal"
    """What traces name: the thing to act on, its kind, or nothing (docs/methods.md 8.3)."""
    corpus: Path = CORPUS
    """Recorded episodes."""


def retraced(episodes: Iterable[Episode], leak: Leak) -> list[Episode]:
    """Episodes with their traces written again at a level of leak; the base's are spread over all levels."""
    made = []
    for each in episodes:
        spread = LEAKS[int(lot(each.id, 0) * len(LEAKS))]
        made.append(rewritten(each, spread if each.split.startswith("base") else leak))
    return made


def run(config: Config) -> None:
    """Rewrite every episode, and save them all at once."""
    recorded = load_episodes(config.corpus)
    episodes = [each for each in recorded if isinstance(each, Episode)]
    if len(episodes) < len(recorded):
        raise ValueError(
            f"{config.corpus} holds single decisions: traces are written again from what whole episodes saw."
        )
    path = save_episodes(config.out, retraced(episodes, config.leak))
    print(f"{path}: {len(episodes)} episodes with traces of the level {config.leak}")


INSTRUMENT = Instrument("retrace", Config, run)
