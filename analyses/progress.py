"""One display of analyses that run side by side: each tells in a file how far it is, one bar shows them all.

>>> with display([["behaviour", "probes"], ["patching"]]) as environment:  # given to each process
...     side_by_side(commands, environment, tqdm.write)
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        Path(file).write_text(json.dumps([name, done, len(items)]))
        yield item


@contextmanager
def display(chains: Sequence[Sequence[str]]) -> Iterator[dict[str, str]]:
    """A bar over chains of analyses, none where stderr is no terminal; yields variables for their processes.

    In the variables {number} stands for a chain's place.
    """
    total = sum(map(len, chains))
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    ended = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="interp-progress-") as folder,
        tqdm(total=total, desc="all", disable=None, bar_format=form, dynamic_ncols=True) as bar,
    ):

        def watch() -> None:
            while not ended.wait(_EVERY):
                parts, bar.n = position(chains, Path(folder))
                bar.set_postfix_str(", ".join(parts))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield {VARIABLE: f"{folder}/{{number}}", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        finally:
            ended.set()
            watcher.join()


def position(chains: Sequence[Sequence[str]], folder: Path) -> tuple[list[str], float]:
    """What each chain is at (`probes 3/8`), and how many analyses are done, parts of one counted in."""
    parts, done = [], 0.0
    for number, chain in enumerate(chains):
        try:
            name, at, of = json.loads((folder / str(number)).read_text())
        except (OSError, ValueError):  # not begun, or about to be written
            continue
        parts.append(f"{name} {at + 1}/{of}")
        # What is not of its own chain is begun when that one has ended.
        done += (chain.index(name) if name in chain else len(chain)) + at / of
    return parts, min(done, sum(map(len, chains)))
