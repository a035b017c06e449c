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

from .progress import display

#: Run with -P and this process's search path, so that the working directory does not come first.
_CHILD = f"""import json, sys
sys.path[:] = json.loads(sys.argv[2])
from {__package__}.__main__ import chain, leave
leave(chain(sys.argv[1], sys.argv[3]))"""


def run_chains(chains: Sequence[Sequence[Sequence[str]]], together: bool = False) -> int:
    """Run chains of command lines (lists of words) at the same time; the exit status.

    Each process goes through a chain in its order, and then through what the others have not begun, from
    their ends.

    Args:
        together: show the progress of them all in one display, and what they print above it.
    """
    environment = {"TQDM_POSITION": "{number}"}
    if len(chains) > 1:
        share = max(1, (os.cpu_count() or 1) // len(chains))
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
    child, path = [sys.executable, "-P", "-c", _CHILD], json.dumps(sys.path)
    with tempfile.TemporaryDirectory(prefix="interp-chains-") as folder:
        processes = [[*child, json.dumps(order), path, folder] for order in orders(chains)]
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


def orders(chains: Sequence[Sequence[Sequence[str]]]) -> list[list[tuple[str, Sequence[str]]]]:
    """For each chain the commands to try in turn, each with a name that says which one it is."""
    named = [
        [(f"{number}-{place}", command) for place, command in enumerate(commands)]
        for number, commands in enumerate(chains)
    ]
    return [own + [each for other in named if other is not own for each in reversed(other)] for own in named]


def taken(folder: Path, name: str) -> bool:
    """Whether a command is this process's to run: the first to ask has it."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _above(line: str, stream: TextIO) -> None:
    """Print a line above the progress display."""
    tqdm.write(line, file=stream, end="")
