"""The command line: `python -m analyses` lists what there is, `python -m analyses NAME --help` says how."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from typing import NoReturn

from interp.results.shown import Incomplete
from interp.system.paths import PROGRAM
from interp.system.processes import end_with_parent, leave, stop_on_signals

from .chains import run_chains
from .command import configured, told
from .registry import find, listed


def _listing() -> str:
    lines = [f"usage: {PROGRAM} NAME [options]      ({PROGRAM} NAME --help)", ""]
    return "\n".join(lines + [f"  {name:<14} {each.summary}" for name, each in listed().items()])


def run(argv: list[str]) -> int:
    """Run one analysis, or all; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_listing())
        return 0
    name, rest = argv[0], argv[1:]
    instrument = find(name)
    config = configured(instrument.config, rest, name)
    parts = getattr(config, "processes", 1)
    if parts > 1:
        alone = [name, *rest, "--processes", "1", "--part"]
        if status := run_chains([[[*alone, str(part), str(parts)]] for part in range(parts)]):
            return status
    status = instrument.run(config)
    return status if isinstance(status, int) else 0


def chain(commands: str) -> int:
    """Run command lines, a JSON list of lists of words, until one fails; ends when the parent does."""
    end_with_parent()
    for command in json.loads(commands):
        sys.argv[1:] = command  # what the table's provenance says it was made by
        if status := main():
            return status
    return 0


def main() -> int:
    """Run, and turn what goes wrong into one sentence; INTERP_DEBUG=1 shows where instead."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", Incomplete)  # tables say how many there are
    try:
        return run(sys.argv[1:])
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
        left_out = getattr(error, "left_out", False)
        print(
            f"{'left out' if left_out else 'error'}: {told(error, ' '.join(sys.argv[1:2]))}", file=sys.stderr
        )
        return 0 if left_out else 1


def script() -> NoReturn:
    """The installed console script; modules of the working directory, such as one's own task, come last."""
    sys.path.append(os.getcwd())
    stop_on_signals()
    leave(main())


if __name__ == "__main__":
    stop_on_signals()
    leave(main())
