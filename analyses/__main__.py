"""The command line: `python -m analyses` lists what there is, `python -m analyses NAME --help` says how."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from interp.results.shown import Incomplete
from interp.system.paths import PROGRAM
from interp.system.processes import end_with_parent, leave, stop_on_signals

from . import resident
from .chains import Named, all_ended, claimed, fail, help_along, run_chains
from .cluster.options import Trainings
from .command import configured, told
from .progress import displayed
from .registry import find, listed
from .running import run_analysis


def _listing() -> str:
    lines = [f"usage: {PROGRAM} NAME [options]      ({PROGRAM} NAME --help)", ""]
    return "\n".join(lines + [f"  {name:<14} {each.summary}" for name, each in listed().items()])


def run(argv: list[str], draw: bool = True) -> int:
    """Run one analysis, or all; returns the exit status.

    draw: draw the figures of the table that it writes, and say where both are.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_listing())
        return 0
    name, rest = argv[0], argv[1:]
    config = configured(find(name).config, rest, name)
    trainings = isinstance(config, Trainings)
    return run_analysis(name, config, draw, (lambda: _in_parts(config, name, rest)) if trainings else None)


def _in_parts(config: Trainings, name: str, rest: Sequence[str]) -> int:
    """Trainings side by side, in processes of this machine or on a cluster; the exit status."""
    parts = len(config.jobs) if config.spreads else config.processes
    if parts == 1 or config.part != (0, 1):
        return 0
    alone = (name, *rest, "--executor", "local", "--processes", "1", "--part")
    commands = [(*alone, str(part), str(parts)) for part in range(parts)]
    if not config.spreads:
        return run_chains([[command] for command in commands])
    from .cluster.driver import spread

    return spread([], [commands], config)


def chain(commands: str, folder: str, part: str = "", gpu: str = "") -> int:
    """Run the command lines that no other process has taken, until one fails; ends when the parent does.

    Args:
        commands: two JSON lists of names and lists of words: those of all chains, this process's own first,
            and what follows when they have ended.
        folder: where processes note what they have taken.
        part: of the memory of the device `gpu`, which this process may take.
    """
    end_with_parent()
    if part:
        resident.share_gpu(float(part), gpu)
    first, then = json.loads(commands)
    notes = Path(folder)
    try:
        if status := _in_turn(first, notes):
            return status
        if displayed():
            help_along(first, notes)
        return _in_turn(then, notes) if then and all_ended(first, notes) else 0
    except KeyboardInterrupt as stop:  # while it helped or waited
        return getattr(stop, "status", 130)


def _in_turn(commands: Sequence[Named], notes: Path) -> int:
    """Run those of some commands that nobody has taken, until one fails."""
    for name, command in commands:
        with claimed(notes, name) as mine:
            if not mine:
                continue
            sys.argv[1:] = command  # what the table's provenance says it was made by
            status = main(draw=False)  # which is done for all of them together
            if status:
                fail(commands, name, notes)  # before anyone sees that it has ended
        if status:
            return status
    return 0


def main(draw: bool = True) -> int:
    """Run, and turn what goes wrong into one sentence; INTERP_DEBUG=1 shows where instead."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", Incomplete)  # tables say how many there are
    try:
        return run(sys.argv[1:], draw)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # a terminal that was closed
            print(
                "\nstopped; finished stages are kept, and the same command goes on from them", file=sys.stderr
            )
        return getattr(stop, "status", 130)
    except BrokenPipeError:  # what reads the output has ended, as `head` does
        return 128 + signal.SIGPIPE
    except Exception as error:
        if os.environ.get("INTERP_DEBUG"):
            raise
        name = " ".join(sys.argv[1:2])
        left_out = getattr(error, "left_out", False)
        print(f"{f'left out: {name}' if left_out else 'error'}: {told(error, name)}", file=sys.stderr)
        return 0 if left_out else 1


def script() -> NoReturn:
    """The installed console script; modules of the working directory, such as one's own task, come last."""
    sys.path.append(os.getcwd())
    stop_on_signals()
    leave(main())


if __name__ == "__main__":
    stop_on_signals()
    leave(main())
