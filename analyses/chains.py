"""Command lines side by side: chains of them, each chain in a process that ends with this one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from interp.system.processes import how_it_ended, side_by_side

from .progress import display

#: Run with -P and this process's search path, so that the working directory does not come first.
_CHILD = f"""import json, sys
sys.path[:] = json.loads(sys.argv[2])
from {__package__}.__main__ import chain, leave
leave(chain(sys.argv[1]))"""


def run_chains(chains: Sequence[Sequence[Sequence[str]]], together: bool = False) -> int:
    """Run chains of command lines (lists of words) at the same time, each in its order; the exit status.

    together: show the progress of them all in one display, and what they print above it.
    """
    environment = {"TQDM_POSITION": "{number}"}
    if len(chains) > 1:
        share = max(1, (os.cpu_count() or 1) // len(chains))
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
    child, path = [sys.executable, "-P", "-c", _CHILD], json.dumps(sys.path)
    processes = [[*child, json.dumps(commands), path] for commands in chains]
    if together:
        with display([[command[0] for command in commands] for commands in chains]) as told:
            statuses = side_by_side(processes, environment | told, _above)
    else:
        statuses = side_by_side(processes, environment)
    for commands, status in zip(chains, statuses, strict=True):
        if status < 0:
            names = ", ".join(command[0] for command in commands)
            print(
                f"error: the process of {names} {how_it_ended(status)}; finished stages are kept, and the "
                "same command goes on from them.",
                file=sys.stderr,
            )
    return max((128 - status if status < 0 else status for status in statuses), default=0)


def _above(line: str, stream: TextIO) -> None:
    """Print a line above the progress display."""
    tqdm.write(line, file=stream, end="")
