"""One display of analyses that run side by side: each tells in a file how far it is, one bar shows them all.

>>> with display(3, folder) as environment:  # given to each process
...     side_by_side(commands, environment, tqdm.write)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
#: Environment variable with the file that a process tells its progress in.
VARIABLE = "INTERP_PROGRESS"
#: Seconds between two looks at the files.
_EVERY = 0.5


def displayed() -> bool:
    """Whether this process is part of one display."""
    return VARIABLE in os.environ


def tracked(items: Sequence[Item], name: str) -> Iterator[Item]:
    """The items of an analysis, with a progress bar of its own, or as part of one display."""
    file = os.environ.get(VARIABLE)
    if not file:
        yield from tqdm(items, desc=name)
        return
    for done, item in enumerate(items):
        new = Path(file).with_name(f"new-{os.getpid()}")
        new.write_text(json.dumps([name, done, len(items)]))
        new.replace(file)  # which others read at any time
        yield item


def reached(name: str) -> int:
    """The index of the item that an analysis is at in another process of this display; -1: it is at none."""
    return next((at for told, at, _ in _told(Path(os.environ[VARIABLE]).parent) if told == name), -1)


def end(folder: Path, name: str) -> None:
    """Note that an analysis of this process, which a name of its own stands for, has ended."""
    (folder / f"{name}.ended").touch()
    if displayed():
        Path(os.environ[VARIABLE]).unlink(missing_ok=True)


def has_ended(folder: Path, name: str) -> bool:
    """Whether that was noted."""
    return (folder / f"{name}.ended").exists()


def _told(folder: Path) -> list[tuple[str, int, int]]:
    """What each process has told last: an analysis, which of its items it is at, and how many there are."""
    found = []
    for path in sorted(folder.glob("at-*")):
        with suppress(OSError, ValueError):  # replaced just now
            found.append(json.loads(path.read_text()))
    return found


@contextmanager
def display(total: int, folder: Path) -> Iterator[dict[str, str]]:
    """A bar over so many analyses, none where stderr is no terminal; yields variables for their processes.

    In the variables {number} stands for a process's place. folder: where they tell how far they are.
    """
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    ended = threading.Event()
    with tqdm(total=total, desc="all", disable=None, bar_format=form, dynamic_ncols=True) as bar:

        def watch() -> None:
            while not ended.wait(_EVERY):
                parts, bar.n = position(total, folder)
                bar.set_postfix_str(", ".join(parts))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield {VARIABLE: f"{folder}/at-{{number}}", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        finally:
            ended.set()
            watcher.join()


def position(total: int, folder: Path) -> tuple[list[str], float]:
    """What each process is at (`probes 3/8`), and how many analyses are done, parts of one counted in."""
    told = _told(folder)
    done = len(list(folder.glob("*.ended"))) + sum(at / of for _, at, of in told)
    return [f"{name} {at + 1}/{of}" for name, at, of in told], min(done, total)
