"""Write the traces of a recorded corpus of ALFWorld again at another level of leak; nothing is played.

Training and test episodes get the level that is asked for. The base's episodes are spread over all levels,
the same whatever is asked for, so that one base can be trained further at any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interp.environments.alfworld.traces import LEAKS, rewritten
from interp.tasks.episodes import CORPUS, Episode, load_episodes, save_episodes
from interp.training.supervision import lot

from ..registry import Instrument


@dataclass
class Config:
    """By default the shipped corpus, whose traces then name nothing."""

    out: Path
    """File to write."""
    leak: Literal["full", "class", "subgoal"] = "subgoal"
    """What traces name: the thing to act on, its kind, or nothing (docs/methods.md 8.3)."""
    corpus: Path = CORPUS
    """Recorded episodes."""


def run(config: Config) -> None:
    """Rewrite every episode, and save them all at once."""
    episodes = load_episodes(config.corpus)
    if not all(isinstance(each, Episode) for each in episodes):
        raise ValueError(
            f"{config.corpus} holds single decisions: traces are written again from what whole episodes saw."
        )
    spread = {each.id: LEAKS[int(lot(each.id, 0) * len(LEAKS))] for each in episodes}
    path = save_episodes(
        config.out,
        [
            rewritten(each, spread[each.id] if each.split.startswith("base") else config.leak)
            for each in episodes
            if isinstance(each, Episode)
        ],
    )
    print(f"{path}: {len(episodes)} episodes with traces of the level {config.leak}")


INSTRUMENT = Instrument("retrace", Config, run)
