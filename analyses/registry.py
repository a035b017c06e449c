"""Every command of `python -m analyses`: a module of this package with an `INSTRUMENT` is one.

>>> INSTRUMENT = Instrument("early", Config, run, in_all=(1, 3))      # the last line of analyses/early.py

A new instrument is that module, and a module of `interp.plots` with its figure.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import analyses

_DECLARED = re.compile(r'^INSTRUMENT = Instrument\("(\w+)"', re.MULTILINE)


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
    after_all: bool = False
    """Whether `all` runs it when its chains have ended, since it reads what they kept."""

    @property
    def summary(self) -> str:
        """The first line of its module's docstring."""
        return (sys.modules[self.run.__module__].__doc__ or "").strip().splitlines()[0]


def _modules() -> dict[str, str]:
    """Name of an instrument -> its module, told from the sources: some modules of this package need torch."""
    names = {}
    for module in pkgutil.walk_packages(analyses.__path__, "analyses."):
        file = Path(module.module_finder.path) / f"{module.name.rpartition('.')[2]}.py"
        if not module.ispkg and (declared := _DECLARED.search(file.read_text(encoding="utf-8"))):
            names[declared.group(1)] = module.name
    return names


def find(name: str) -> Instrument:
    """The instrument of a name; raises ValueError with the names that there are."""
    modules = _modules()
    if name not in modules:
        raise ValueError(f"There is no analysis {name!r}: there are {', '.join(instruments())}.")
    return _instrument(modules[name])


def _instrument(module: str) -> Instrument:
    return importlib.import_module(module).INSTRUMENT


def instruments() -> dict[str, Instrument]:
    """Every instrument by name: those that `all` runs in its order, then the others by name."""
    every = map(_instrument, _modules().values())

    def place(each: Instrument) -> tuple:
        return each.in_all is None, not each.after_all, each.in_all or (), each.name

    return {each.name: each for each in sorted(every, key=place)}


def chains() -> list[list[str]]:
    """The names of what `all` runs: chains that may run side by side, each in its order."""
    by_chain: dict[int, list[str]] = {}
    for name, each in instruments().items():
        if each.in_all:
            by_chain.setdefault(each.in_all[0], []).append(name)
    return list(by_chain.values())


def closing() -> list[str]:
    """The names of what `all` runs when its chains have ended."""
    return [name for name, each in instruments().items() if each.after_all]


def check_in_all(name: str) -> None:
    """Raises ValueError for what is no part of `all`."""
    names = [each for chain in [*chains(), closing()] for each in chain]
    if name not in names:
        raise ValueError(f"{name!r} is no part of `all`, which runs {', '.join(names)}.")
