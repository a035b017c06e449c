"""What the fields of a configuration may be, and the sentence for one that is not, before anything is read.

>>> @dataclass
... class Config:
...     pairs: Annotated[int, Limits(1, 10_000)] = 12
>>> check(Config(pairs=-1))
ValueError: --pairs is a number from 1 to 10,000, not -1.

A number without limits of its own may be 0 to a million. Of several values none may be given twice, and there
has to be one where the default has some.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Limits:
    """The least and the greatest number, both included; of a field of several numbers, each of them."""

    low: float = 0
    high: float = 1_000_000

    def check(self, flag: str, value: object) -> None:
        if isinstance(value, int | float) and not self.low <= value <= self.high:  # which nan is not either
            raise ValueError(
                f"{flag} is a number from {_number(self.low)} to {_number(self.high)}, not {_number(value)}."
            )


@dataclass(frozen=True)
class Known:
    """A name that a function of the library reads; what it raises is said of the flag."""

    read: Callable[[str], object]

    def check(self, flag: str, value: object) -> None:
        try:
            self.read(str(value))
        except (ImportError, ValueError) as error:
            kind = ImportError if isinstance(error, ImportError) else ValueError
            raise kind(f"{flag}: {error}") from error


class Existing:
    """A file or folder that is read."""

    def check(self, flag: str, value: object) -> None:
        if value is not None and not Path(str(value)).exists():
            raise FileNotFoundError(f"{flag}: there is no file or folder {value}.")


class Folder:
    """A folder that is written to, made where it is missing."""

    def check(self, flag: str, value: object) -> None:
        if value is None:
            return
        folder = Path(str(value)).absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{flag} {value}: {folder} is a file, and should be a folder.")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            why = f"nothing can be written in {folder} ({error.strerror})"
            raise PermissionError(f"{flag} {value}: {why}.") from error


@dataclass(frozen=True)
class Several:
    """Of a field of several values: may one be given twice, may there be none where the default has some?"""

    twice: bool = False
    none: bool = False


#: A seed, as numpy takes it.
Seed = Annotated[int, Limits(0, 2**32 - 1)]
#: How many of something that there has to be.
Count = Annotated[int, Limits(1)]
#: How many decisions, pairs or games are read (0: as many as the study's size says).
Sample = Annotated[int, Limits(0, 100_000)]
#: Steps of checkpoints.
Steps = Annotated[tuple[int, ...], Limits(0, 10**9)]
#: Tokens that a decoding may take.
Tokens = Annotated[int, Limits(1, 100_000)]
#: Bootstrap resamples.
Draws = Annotated[int, Limits(10, 1_000_000)]
#: Outer folds of a probe.
Folds = Annotated[int, Limits(2, 100)]
#: Processes that work side by side.
Workers = Annotated[int, Limits(1, 64)]
#: The same, where 0 stands for a number that depends on the machine.
AnyWorkers = Annotated[int, Limits(0, 64)]
#: A change, as a share, that would matter.
Margin = Annotated[float, Limits(0.001, 1)]
#: The least difference of a share that matters, where no other is given.
SMALLEST = 0.05
#: Steps after which a game is lost.
StepLimit = Annotated[int, Limits(1, 10_000)]


def check(config: object, flag: str = "--") -> None:
    """Raise the sentence of a configuration's first field that is not what its type and its limits say.

    Fields that are configurations themselves are checked as well. flag: what stands before a field's name on
    the command line. Raises ValueError, OSError and ImportError.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(cast(Any, config)):
        value, name = getattr(config, field.name), f"{flag}{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        else:
            _check(name, hints[field.name], value, field.default)


def _check(flag: str, hint: object, value: object, default: object) -> None:
    rules, choices = list(_metadata(hint)), list(_choices(hint))
    if isinstance(value, tuple) and Ellipsis in _arguments(hint):
        allowed = next((rule for rule in rules if isinstance(rule, Several)), Several())
        _check_several(flag, value, default, allowed)
    limits = [rule for rule in rules if hasattr(rule, "check")]
    if not any(isinstance(rule, Limits) for rule in limits):
        limits.append(Limits())
    for each in value if isinstance(value, tuple) else (value,):
        if choices and each not in choices:
            raise ValueError(f"{flag} is one of {', '.join(map(str, choices))}, not {_shown(each)}.")
        _check_text(flag, each)
        for rule in limits:
            rule.check(flag, each)


def _check_several(flag: str, value: tuple, default: object, allowed: Several) -> None:
    twice = [each for each in value if value.count(each) > 1]
    if twice and not allowed.twice:
        raise ValueError(f"{flag} has {_shown(twice[0])} twice: give each value once.")
    if not value and default and not allowed.none:
        raise ValueError(f"{flag} needs at least one value.")


def _check_text(flag: str, text: object) -> None:
    try:
        str(text).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{flag} holds a character that is no text ({str(text)[error.start]!a}).") from error


def _metadata(hint: Any) -> Iterator:
    """What is annotated to a type and to the types in it."""
    if get_origin(hint) is Annotated:
        yield from hint.__metadata__
    for inner in _arguments(hint):
        if get_origin(inner) is Annotated:
            yield from _metadata(inner)


def _arguments(hint: Any) -> tuple:
    """The types in a type, what is annotated to it taken off."""
    while get_origin(hint) is Annotated:
        hint = hint.__origin__
    return () if get_origin(hint) is Literal else get_args(hint)


def _choices(hint: Any) -> Iterator:
    while get_origin(hint) is Annotated:
        hint = hint.__origin__
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    for inner in _arguments(hint):
        yield from _choices(inner)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or not math.isfinite(value) else f"{value:g}"


def _shown(value: object) -> str:
    return ascii(value) if isinstance(value, str) else str(value)
