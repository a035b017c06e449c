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
from typing import TYPE_CHECKING, NoReturn

from interp.results.shown import Incomplete
from interp.system.paths import PROGRAM
from interp.system.processes import end_with_parent, leave, stop_on_signals

from .chains import run_chains, taken
from .command import check_values, configured, told
from .registry import find, listed
from .unchanged import keep, unchanged

if TYPE_CHECKING:
    from .study import Study


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
    instrument = find(name)
    config = configured(instrument.config, rest, name)
    writes = hasattr(config, "written")  # a table of a study
    if writes and (kept := unchanged(config, name)):
        for sentence in kept.said:
            print(sentence, file=sys.stderr)
        print(f"{name}: made already of the same checkpoints, decisions, settings and code")
        _show(kept.tables, kept.figures or (_drawn(config, kept.tables) if draw else []))
        return 0
    check_values(config)
    if writes:
        from .storing import check_room, give_back, to_store

        check_room(config, to_store(config, name))
    parts = getattr(config, "processes", 1)
    if parts > 1:
        alone = [name, *rest, "--processes", "1", "--part"]
        if status := run_chains([[[*alone, str(part), str(parts)]] for part in range(parts)]):
            return status
    status = instrument.run(config)
    if writes and not status:
        give_back(config)
        figures = _drawn(config, config.written) if draw else []
        keep(config, name, figures)
        _show(config.written, figures)
    return status if isinstance(status, int) else 0


def _drawn(config: Study, tables: Sequence[Path]) -> list[Path]:
    """The figures of tables, drawn now."""
    from .figures import draw_own

    return [path for table in tables for path in draw_own(table, config.run)]


def _show(tables: Sequence[Path], figures: Sequence[Path]) -> None:
    """Say where tables and figures are."""
    for what, paths in (("table", tables), ("figure", figures)):
        if paths:
            print(f"{what}: {', '.join(map(str, paths))}")


def chain(commands: str, folder: str) -> int:
    """Run the command lines that no other process has taken, until one fails; ends when the parent does.

    Args:
        commands: a JSON list of names and lists of words, those of this process's own chain first.
        folder: where processes note what they have taken.
    """
    end_with_parent()
    order = json.loads(commands)
    for name, command in order:
        if not taken(Path(folder), name):
            continue
        sys.argv[1:] = command  # what the table's provenance says it was made by
        if status := main(draw=False):  # which is done for all of them together
            for rest, _ in order:  # what follows a failure is begun by nobody
                if rest.partition("-")[0] == name.partition("-")[0]:
                    taken(Path(folder), rest)
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
