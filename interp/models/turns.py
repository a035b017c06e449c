"""Whose turn it is with a model: one thread at a time measures it or swaps its weights."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

Options = ParamSpec("Options")
Result = TypeVar("Result")


class _Lock:
    """A lock that its thread may take again, and any thread may release, when it closes a generator.

    Threads take it in the order in which they ask.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: threading.Thread | None = None
        self._held = 0
        self._waiting: deque[object] = deque()

    def __enter__(self) -> None:
        own = threading.current_thread()
        with self._changed:
            if self._owner is not own:
                self._wait()
            self._owner = own
            self._held += 1

    def _wait(self) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            while self._owner is not None or self._waiting[0] is not ticket:
                if self._owner is not None and not self._owner.is_alive():
                    raise ValueError(
                        "A thread that is over left a pass of this model hooked: close the generator, or "
                        "leave the block, that hooks it."
                    )
                self._changed.wait(1.0)
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._held -= 1
            if not self._held:
                self._owner = None
                self._changed.notify_all()


class Turns:
    """The lock of one model: other threads wait, and what would disturb a measurement is refused."""

    def __init__(self) -> None:
        self._lock = _Lock()
        self._measuring = 0
        self._hooked = 0

    def __deepcopy__(self, memo: dict) -> Turns:
        return Turns()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Hold the lock for passes that are no measurement."""
        with self._lock:
            yield

    @contextmanager
    def hooking(self, hooks: AbstractContextManager) -> Iterator[None]:
        """Hold the lock while a pass is hooked."""
        with self._lock:
            self._hooked += 1
            try:
                with hooks:
                    yield
            finally:
                self._hooked -= 1

    @contextmanager
    def measuring(self, model: HookedModel, name: str) -> Iterator[None]:
        """One measurement, which may call others.

        Raises ValueError inside a hooked pass, and for a model in training mode.
        """
        with self._lock:
            if self._hooked:
                raise ValueError(
                    f"{name} was called while a pass of the same model is hooked: call it when that pass is "
                    "over."
                )
            if training := [key for key, module in model.hf.named_modules() if module.training]:
                raise ValueError(
                    f"The model is in training mode ({training[0] or model.architecture}), where dropout and "
                    f"checkpointing change what it computes: call model.hf.eval() before {name}."
                )
            self._measuring += 1
            try:
                with model.attending():
                    yield
            finally:
                self._measuring -= 1

    @contextmanager
    def swapping(self) -> Iterator[None]:
        """The weights are changed; raises ValueError during a measurement or a hooked pass."""
        with self._lock:
            if self._measuring or self._hooked:
                raise ValueError(
                    "The weights were to be swapped in the midst of a measurement of the same model: "
                    "swap them when it is over."
                )
            yield


_TURNS: WeakKeyDictionary[torch.nn.Module, Turns] = WeakKeyDictionary()


def turns_of(hf: torch.nn.Module) -> Turns:
    """The lock of a transformers model, one for all that is wrapped around it."""
    return _TURNS.setdefault(hf, Turns())


def measured(
    function: Callable[Concatenate[HookedModel, Options], Result],
) -> Callable[Concatenate[HookedModel, Options], Result]:
    """A public measurement, whose first argument is the model: it takes its turn with it."""

    @wraps(function)
    def in_turn(model: HookedModel, *args: Options.args, **kwargs: Options.kwargs) -> Result:
        with model.turns.measuring(model, function.__name__):
            return function(model, *args, **kwargs)

    return cast("Callable[Concatenate[HookedModel, Options], Result]", in_turn)
