"""A command line read into a configuration, and what went wrong, as a short line of plain text."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from interp.system.paths import PROGRAM, ROOT

Configuration = TypeVar("Configuration")
#: Most characters of an error that are shown, and how many of them are its end.
MOST, END = 1000, 200
#: Errors with a sentence of their own.
MENDABLE = (ValueError, OSError, NotImplementedError, ImportError)


def configured(kind: type[Configuration], arguments: Sequence[str], name: str) -> Configuration:
    """A dataclass from its command line.

    Raises ValueError for what cannot be parsed; `--help` is printed, and ends the program.
    """
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config = tyro.cli(kind, args=arguments, prog=f"{PROGRAM} {name}")
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(f"{unboxed(printed.getvalue())} See `{PROGRAM} {name} --help`.") from end
    _check_empty(config, arguments)
    return config


def check_values(config: object) -> None:
    """Raise what a configuration's `check` raises, or `interp.system.limits.check` where it has none."""
    from interp.system.limits import check

    getattr(config, "check", lambda: check(config))()


def _check_empty(config: Any, arguments: Sequence[str]) -> None:
    """Raise ValueError for a file or folder given as an empty text, which would mean the current folder."""
    flag, empty = "", set()
    for word in arguments:
        if word.startswith("--"):
            flag = word.partition("=")[0]
        if word in ("", f"{flag}="):
            empty.add(flag.removeprefix("--").replace("-", "_"))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in empty and Path() in (value if isinstance(value, tuple) else (value,)):
            raise ValueError(f"--{field.name} is empty: name a file or folder (the current folder is `.`).")


def unboxed(text: str) -> str:
    """The first part of what tyro draws a box around, as one sentence."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(("╭", "╰")):
            continue
        line = line.strip("│ ")
        if line and not line.strip("-"):  # without boxes the title is above a rule, the text between two
            if "-" in lines:
                break
            lines = ["-"]
            continue
        if line and not line.strip("─"):
            break
        lines.append(line)
    return f"{' '.join(line for line in lines if line not in ('', '-')).rstrip('.')}."


def sentence(text: str) -> str:
    """A text on one line, cut where it is long, its control characters escaped."""
    if len(text) > MOST:
        text = f"{text[: MOST - END]} [... {len(text) - MOST:,} characters ...] {text[-END:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def told(error: Exception, name: str) -> str:
    """What is said of an error: its own sentence where a user can mend it, else what failed, and where."""
    if isinstance(error, MENDABLE) and str(error).strip():
        return sentence(str(error))
    if isinstance(error, KeyError) and error.args and " " in str(error.args[0]):  # not a bare key
        return sentence(str(error.args[0]))
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "OutOfMemory" in words or "can't allocate memory" in words:
        return sentence(f"{name} ran out of memory; finished stages are kept ({words})")
    whose = f"a defect of this program or of code of yours that it runs ({_place(error)})"
    return sentence(f"{name} failed, which is {whose}: {words}. INTERP_DEBUG=1 shows where.")


def _place(error: Exception) -> str:
    """Line and file of this program where an error arose, and of the code that it called there."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = f"{os.sep}site-packages{os.sep}"
    below = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    own = [frame for frame in below if installed not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (own[-1:] + frames[-1:])]
    return ", in ".join(dict.fromkeys(places))
