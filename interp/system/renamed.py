"""Names of the release before, which still work for one release and say what they are called now.

>>> @renamed_keywords(partners="swap_candidates")
... def make_pairs(fmt, decisions, n, swap_candidates=None): ...
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def renamed_keywords(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments by their old names, with a DeprecationWarning.

    Args:
        renamed: old name -> name of today.

    Raises:
        TypeError: when the function is called with both names of one argument.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in renamed.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"{function.__qualname__} was given {old!r} and {new!r}: they are one argument."
                    )
                _warn(f"The argument {old!r} of {function.__qualname__}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_attributes(**renamed: str) -> Callable[[C], C]:
    """Let objects of a class be asked for attributes by their old names, with a DeprecationWarning.

    Args:
        renamed: old name -> name of today.
    """

    def decorate(cls: C) -> C:
        for old, new in renamed.items():
            setattr(cls, old, property(_attribute(cls.__qualname__, old, new)))
        return cls

    return decorate


def renamed_fields(**renamed: str) -> Callable[[C], C]:
    """As `renamed_attributes`, for a dataclass, which is also made with the old names.

    Args:
        renamed: old name -> name of today.
    """

    def decorate(cls: C) -> C:
        init: Callable[..., None] = vars(cls)["__init__"]
        setattr(cls, "__init__", renamed_keywords(**renamed)(init))  # noqa: B010
        return renamed_attributes(**renamed)(cls)

    return decorate


def _attribute(owner: str, old: str, new: str) -> Callable[[object], object]:
    def get(self: object) -> object:
        _warn(f"{owner}.{old}", new)
        return getattr(self, new)

    return get


def _warn(what: str, new: str) -> None:
    warnings.warn(f"{what} is called {new!r} now.", DeprecationWarning, stacklevel=3)
