"""Functions whose options are one dataclass, and may also be given one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

Result = TypeVar("Result")


def takes_fields(options: type) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let a function that takes `options=` also be called with fields of that dataclass as keywords.

    >>> probe(acts, labels, groups, folds=3)      # as with options=ProbeOptions(folds=3)
    """
    names = {each.name for each in fields(options)}

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def call(*args: object, **kwargs: Any) -> Result:
            single = {name: kwargs.pop(name) for name in names & kwargs.keys()}
            if single:
                kwargs["options"] = replace(kwargs.get("options") or options(), **single)
            return function(*args, **kwargs)

        return call

    return decorate
