"""What runs a study's units: the options that the commands have in common which can be spread."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from interp.system.limits import Known, Limits, Workers

#: What is said where Ray is not installed.
MISSING = "Ray is not installed: pip install 'interp-agents[ray]'."


def executor(name: str) -> None:
    """Raise the sentence of an executor that there is not."""
    if name != "local" and name != "ray" and not name.startswith("ray://"):
        raise ValueError(f"there is no executor {name!r}: it is local, ray or ray://HOST:PORT.")
    if name != "local" and not importlib.util.find_spec("ray"):
        raise ImportError(MISSING)


@dataclass
class Spread:
    """Where units of work are done."""

    executor: Annotated[str, Known(executor)] = "local"
    """local: processes of this machine. ray: the cluster in $RAY_ADDRESS, or workers on this machine where
    there is none. ray://HOST:PORT: a cluster elsewhere. docs/cluster.md has more."""
    cluster_workers: Annotated[int, Limits(0, 10_000)] = 0
    """Workers of a cluster (0: as many as its cores and GPUs allow)."""
    cpus_per_worker: Annotated[float, Limits(0.01, 1024)] = 1.0
    """Cores of a worker."""
    gpus_per_worker: Annotated[float, Limits(0, 64)] = 0.0
    """GPUs of a worker; a part (0.25) lets workers share one."""

    @property
    def spreads(self) -> bool:
        """Whether a cluster does the work."""
        return self.executor != "local"


@dataclass
class Trainings(Spread):
    """Trainings of conditions and seeds, each of which can be another process's."""

    part: tuple[int, int] = (0, 1)
    """Which of how many parts of the trainings this process is for (`--part 0 2` and `--part 1 2` at the same
    time); what is made of them all is made by a last run without it."""
    processes: Workers = 1
    """Processes of this machine that work side by side, a part each."""

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(condition, seed) of all trainings, in order."""
        raise NotImplementedError

    def mine(self, every: Sequence) -> list:
        """What is this process's part; raises ValueError for a part that is none."""
        i, n = self.part
        if not 0 <= i < n:
            raise ValueError(
                f"--part is a number from 0 on and how many parts there are, as in 0 2 and 1 2, not {i} {n}."
            )
        return list(every[i::n])

    def check_parts(self) -> None:
        """Raises ValueError for a part that is none, and for one beside processes that make them."""
        self.mine(())
        if self.part != (0, 1) and (self.processes > 1 or self.spreads):
            flag = "--executor" if self.spreads else f"--processes {self.processes}"
            raise ValueError(f"{flag} makes the parts itself: leave out --part.")


def jobs(
    conditions: Sequence[str], seeds: int, more: Sequence[str], more_seeds: int
) -> list[tuple[str, int]]:
    """(condition, seed), every condition's first seed before any second.

    Args:
        seeds: of a condition, `more_seeds` of one that is among `more`.
    """
    of = {name: more_seeds if name in more else seeds for name in conditions}
    return [
        (name, seed) for seed in range(max(of.values(), default=0)) for name in conditions if seed < of[name]
    ]
