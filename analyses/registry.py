"""Every command of `python -m analyses`: a module of this package with an `INSTRUMENT` is one.

>>> INSTRUMENT = Instrument("early", Config, run, in_all=(1, 4))      # the last line of analyses/early.py

A new instrument is that module, and a module of `interp.plots` with its figure.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The last statement of an instrument's module: its name, and its place in `all` where it has one.
_DECLARED = re.compile(
    r'^INSTRUMENT = Instrument\(\s*"(\w+)",[^()]*?(?:in_all=\(([\d, ]+)\),?\s*)?'
    r"(full_only=True)?(after_all=True)?,?\s*\)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Instrument:
    """One command."""

    name: str
    """What it is called on the command line."""
    config: type
    """The dataclass that its options are read into."""
    run: Callable[[Any], Any]
    """Does it, given a `config`."""
    in_all: tuple[int, int] | None = None
    """Which of the chains of `all` it is part of, and its place there; None where it is part of none."""
    full_only: bool = False
    """Whether `all` leaves it out of a quick study."""
    after_all: bool = False
    """Whether `all` runs it when its chains have ended, since it reads what they kept."""


@dataclass(frozen=True)
class Listed:
    """What a module's source says of its command."""

    module: str
    summary: str
    """The first line of the module's docstring."""
    in_all: tuple[int, ...] | None
    """As `Instrument.in_all`."""
    full_only: bool
    """As `Instrument.full_only`."""
    after_all: bool
    """As `Instrument.after_all`."""


def listed() -> dict[str, Listed]:
    """Every command by name: those that `all` runs in its order, then the others by name.

    They are read from the sources, since importing them all takes seconds.
    """
    package = importlib.import_module(__package__)
    commands = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        path = Path(module.module_finder.path) / f"{module.name.rpartition('.')[2]}.py"
        source = "" if module.ispkg else path.read_text(encoding="utf-8")
        if declared := _DECLARED.search(source):
            name, place, full_only, after_all = declared.groups()
            in_all = tuple(map(int, place.split(","))) if place else None
            summary = source.partition('"""')[2].partition("\n")[0].removesuffix('"""')
            commands[name] = Listed(module.name, summary, in_all, bool(full_only), bool(after_all))

    def place(name: str) -> tuple:
        each = commands[name]
        return each.in_all is None, not each.after_all, each.in_all or (), name

    return {name: commands[name] for name in sorted(commands, key=place)}


def find(name: str) -> Instrument:
    """The instrument of a name; raises ValueError with the names that there are."""
    commands = listed()
    if name not in commands:
        raise ValueError(f"There is no analysis {name!r}: there are {', '.join(commands)}.")
    return importlib.import_module(commands[name].module).INSTRUMENT


def chains(quick: bool = False) -> list[list[str]]:
    """The names of what `all` runs: chains that may run side by side, each in its order.

    quick: of a quick study, not of a full one.
    """
    by_chain: dict[int, list[str]] = {}
    for name, each in listed().items():
        if each.in_all and not (quick and each.full_only):
            by_chain.setdefault(each.in_all[0], []).append(name)
    return list(by_chain.values())


def closing() -> list[str]:
    """The names of what `all` runs when its chains have ended."""
    return [name for name, each in listed().items() if each.after_all]


def check_in_all(name: str) -> None:
    """Raises ValueError for what is no part of `all`."""
    names = [each for chain in [*chains(), closing()] for each in chain]
    if name not in names:
        raise ValueError(f"{name!r} is no part of `all`, which runs {', '.join(names)}.")
