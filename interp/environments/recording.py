"""A plan of games played in worker processes: the same episodes whatever the number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields, replace

from interp.system.processes import end_with_parent
from interp.tasks.episodes import Episode


@dataclass(frozen=True)
class Sizes:
    """Games for each split of a corpus (None: as many as the shipped corpus was played from)."""

    base: int | None = None
    base_out_of_domain: int | None = None
    train: int | None = None
    test: int | None = None

    def filled(self, default: Sizes) -> Sizes:
        """These sizes, and the default's where none is given."""
        return replace(
            default, **{f.name: given for f in fields(self) if (given := getattr(self, f.name)) is not None}
        )


def bare(episode: Episode) -> Episode:
    """The episode without its admissible actions."""
    return replace(episode, steps=tuple(replace(step, admissible=()) for step in episode.steps))


def _is_kept(episode: Episode) -> bool:
    """Experts win, aimless play does not, and other play has steps."""
    if episode.kind == "expert":
        return episode.won
    if episode.kind == "aimless":
        return not episode.won
    return bool(episode.steps)


def record(
    jobs: Sequence,
    episodes: Callable[[object], list[Episode]],
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[Iterable, int], Iterable] = lambda jobs, total: jobs,
) -> tuple[list[Episode], dict]:
    """Play a plan; returns the episodes kept and what was dropped.

    episodes: plays one job, in a process that imports it. progress: wraps the results as they come, given
    their number. Dropped and counted: an expert's episode that was not won, an aimless one that happened to
    reach its goal, and one without steps.
    """
    kept: list[Episode] = []
    dropped: dict[str, int] = {}
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
            for played in progress(pool.map(episodes, jobs, chunksize=8), len(jobs)):
                for episode in played:
                    if _is_kept(episode):
                        kept.append(episode)
                    else:
                        dropped[episode.split] = dropped.get(episode.split, 0) + 1
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "A worker process, which plays the games, was ended, as the system does where memory runs out; "
            "nothing was recorded."
        ) from error
    return kept, dict(seed=seed, games=len(jobs), episodes=len(kept), dropped=dropped)
