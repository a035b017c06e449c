"""Command lines side by side: chains of them, in processes that end with this one."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from interp.system.processes import how_it_ended, side_by_side

from .progress import display, has_ended, reached
from .registry import find

#: Run with -P and this process's search path, so that the working directory does not come first.
_CHILD = f"""import json, sys
sys.path[:] = json.loads(sys.argv[2])
from {__package__}.__main__ import chain, leave
leave(chain(sys.argv[1], *sys.argv[3:]))"""


def run_chains(
    chains: Sequence[Sequence[Sequence[str]]], together: bool = False, processes: int = 0, gpu: bool = False
) -> int:
    """Run chains of command lines (lists of words) at the same time; the exit status.

    Each process goes through a chain in its order, and then through what the others have not begun, from
    their ends.

    Args:
        together: show the progress of them all in one display, and what they print above it; who finds
            nothing left to begin reads cells of what others are at.
        processes: at least as many as there are chains; those beyond them begin at the chains' ends.
        gpu: they share a GPU, of whose memory each takes its part at most.
    """
    environment, n = {"TQDM_POSITION": "{number}"}, max(len(chains), processes)
    if n > 1:
        share = max(1, (os.cpu_count() or 1) // n)
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
    child, path = [sys.executable, "-P", "-c", _CHILD], json.dumps(sys.path)
    with tempfile.TemporaryDirectory(prefix="interp-chains-") as folder:
        commands = [[*child, json.dumps(order), path, folder] for order in orders(chains, n)]
        if gpu:
            commands = [[*command, str(1 / n)] for command in commands]
        if together:
            with display(sum(map(len, chains)), Path(folder)) as told:
                statuses = side_by_side(commands, environment | told, _above)
        else:
            statuses = side_by_side(commands, environment)
    for number, status in enumerate(statuses):
        if status < 0:
            names = ", ".join(command[0] for command in chains[number % len(chains)])
            print(
                f"error: the process of {names} {how_it_ended(status)}; finished stages are kept, and the "
                "same command goes on from them.",
                file=sys.stderr,
            )
    return max((128 - status if status < 0 else status for status in statuses), default=0)


def orders(chains: Sequence[Sequence[Sequence[str]]], n: int) -> list[list[tuple[str, Sequence[str]]]]:
    """For each of `n` processes the commands to try in turn, each with a name that says which one it is."""
    named = [
        [(f"{number}-{place}", command) for place, command in enumerate(commands)]
        for number, commands in enumerate(chains)
    ]
    found = []
    for process in range(n):
        own = named[process] if process < len(named) else []
        others = [named[(process + i) % len(named)] for i in range(len(named))]
        found.append(own + [each for other in others if other is not own for each in reversed(other)])
    return found


def taken(folder: Path, name: str) -> bool:
    """Whether a command is this process's to run: the first to ask has it."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def help_along(commands: Sequence[tuple[str, Sequence[str]]], folder: Path) -> None:
    """Read cells of the analyses that other processes are at, each from its end, until those are there.

    What goes wrong is left to who comes to that cell.
    """
    from .cluster.units import Unit
    from .cluster.worker import Worker

    worker = Worker()
    for name, words in commands:
        if has_ended(folder, name) or not find(words[0]).in_all:  # others read no model
            continue
        command = tuple(words)
        cells = worker.do(Unit(command, "list")).cells
        for index, cell in reversed(list(enumerate(cells))):
            if has_ended(folder, name) or reached(words[0]) >= index:
                break
            worker.do(Unit(command, "cell", cell))


def _above(line: str, stream: TextIO) -> None:
    """Print a line above the progress display."""
    tqdm.write(line, file=stream, end="")
