"""Command lines side by side: chains of them, in processes that end with this one."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout
from tqdm import tqdm

from interp.system.processes import cores, how_it_ended, side_by_side

from .progress import display, end, has_ended, reached

#: Run with -P and this process's search path, so that the working directory does not come first.
_CHILD = f"""import json, sys
sys.path[:] = json.loads(sys.argv[2])
from {__package__}.__main__ import chain, leave
leave(chain(sys.argv[1], *sys.argv[3:]))"""
#: Part of a GPU's memory that all processes together take; the rest is their contexts'.
SHARED = 0.9
#: What is there when a command has failed.
FAILED = "failed"
#: A command line's words.
Command = Sequence[str]
#: A command with a name that says which one it is.
Named = tuple[str, Command]


def run_chains(
    chains: Sequence[Sequence[Command]],
    then: Sequence[Command] = (),
    together: bool = False,
    processes: int = 0,
    gpu: str = "",
) -> int:
    """Run chains of command lines (lists of words) at the same time; the exit status.

    Each process goes through a chain in its order, and then through what the others have not begun, from
    their ends.

    Args:
        then: what is run, by whoever is free, when all chains have ended well.
        together: show the progress of them all in one display, and what they print above it; who finds
            nothing left to begin reads cells of what others are at.
        processes: at least as many as there are chains; those beyond them begin at the chains' ends.
        gpu: the device that they share, of whose memory each takes its part at most.
    """
    environment, n = {"TQDM_POSITION": "{number}"}, max(len(chains), processes)
    if n > 1:
        share = max(1, cores() // n)
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
    child, path = [sys.executable, "-P", "-c", _CHILD], json.dumps(sys.path)
    last = [(f"then-{place}", command) for place, command in enumerate(then)]
    with tempfile.TemporaryDirectory(prefix="interp-chains-") as folder:
        commands = [[*child, json.dumps([order, last]), path, folder] for order in orders(chains, n)]
        if gpu:
            commands = [[*command, str(SHARED / n), gpu] for command in commands]
        if together:
            with display(sum(map(len, [*chains, then])), Path(folder)) as told:
                statuses = side_by_side(commands, environment | told, _above)
        else:
            statuses = side_by_side(commands, environment)
    for number, status in enumerate(statuses):
        if status < 0:
            own = chains[number] if number < len(chains) else [each for chain in chains for each in chain]
            names = ", ".join(command[0] for command in own)
            print(
                f"error: the process of {names} {how_it_ended(status)}; finished stages are kept, and the "
                "same command goes on from them.",
                file=sys.stderr,
            )
    return max((128 - status if status < 0 else status for status in statuses), default=0)


def orders(chains: Sequence[Sequence[Command]], n: int) -> list[list[Named]]:
    """For each of `n` processes the commands to try in turn."""
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


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether a command is this process's to run, as the first that asks; that it has ended is noted."""
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        mine = not (folder / name).exists()
        (folder / name).touch()
        yield mine
        if mine:
            end(folder, name)
    finally:
        lock.release()


def fail(commands: Sequence[Named], name: str, folder: Path) -> None:
    """Note that a command has failed: nobody begins what follows it in its chain, nor what follows all."""
    (folder / FAILED).touch()
    for other, _ in commands:
        if other.partition("-")[0] == name.partition("-")[0]:
            with claimed(folder, other):
                pass


def all_ended(commands: Sequence[Named], folder: Path) -> bool:
    """Whether commands have ended well, after waiting for those that other processes are at."""
    for name, _ in commands:
        with FileLock(folder / f"{name}.lock"):
            pass
        if not has_ended(folder, name):  # its process is gone
            return False
    return not (folder / FAILED).exists()


def help_along(commands: Sequence[Named], folder: Path) -> None:
    """Read cells of the analyses that other processes are at, each from its end, until those are there.

    What goes wrong is left to who comes to that cell.
    """
    from .cluster.units import Unit
    from .cluster.worker import Worker

    worker = Worker()
    for name, words in commands:
        if has_ended(folder, name):
            continue
        command = tuple(words)
        cells = worker.do(Unit(command, "list")).cells
        for index, cell in reversed(list(enumerate(cells))):
            at = reached(words[0])
            if has_ended(folder, name) or at >= index or (at >= 0 and cells[at][0] == cell[0]):
                break
            worker.do(Unit(command, "cell", cell))


def _above(line: str, stream: TextIO) -> None:
    """Print a line above the progress display."""
    tqdm.write(line, file=stream, end="")
