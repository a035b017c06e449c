"""Whose turn it is with a model: one thread measures it or swaps its weights at a time, and nobody in the midst of a pass."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from weakref import WeakKeyDictionary


class _Lock:
    """A lock that its thread may take again and any thread may give back, as one does that closes another's generator.

    Threads have it in the order in which they ask.
    """

    def __init__(self):
        self._changed, self._owner, self._held, self._waiting = threading.Condition(), None, 0, deque()

    def __enter__(self):
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
                        "A thread that is over left a pass of this model tapped: close the generator, or leave "
                        "the block, that hooks it."
                    )
                self._changed.wait(1.0)
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def __exit__(self, *error):
        with self._changed:
            self._held -= 1
            if not self._held:
                self._owner = None
                self._changed.notify_all()


class Turns:
    """The lock of one model: other threads wait, and what would reach into one's own measurement is refused."""

    def __init__(self):
        self._lock = _Lock()
        self._measuring, self._tapped = 0, 0

    def __deepcopy__(self, memo) -> Turns:
        return Turns()

    def __reduce__(self):
        return Turns, ()

    @contextmanager
    def trying(self):
        """Hold the lock for passes that are no measurement."""
        with self._lock:
            yield

    @contextmanager
    def hooking(self, hooks):
        """Hold the lock while a pass is tapped."""
        with self._lock:
            self._tapped += 1
            try:
                with hooks:
                    yield
            finally:
                self._tapped -= 1

    @contextmanager
    def measuring(self, model, name: str):
        """One measurement, which may call others; raises ValueError inside a tapped pass, and for a model in training mode."""
        with self._lock:
            if self._tapped:
                raise ValueError(
                    f"{name} was called while a pass of the same model is tapped: call it when that pass is over."
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
    def swapping(self):
        """The weights are changed; raises ValueError in the midst of a measurement or a tapped pass."""
        with self._lock:
            if self._measuring or self._tapped:
                raise ValueError(
                    "The weights were to be swapped in the midst of a measurement of the same model: swap them when it is over."
                )
            yield


_TURNS: WeakKeyDictionary = WeakKeyDictionary()


def turns_of(hf) -> Turns:
    """The lock of a transformers model, one for all that is wrapped around it."""
    return _TURNS.setdefault(hf, Turns())


def measured(function: Callable) -> Callable:
    """A public measurement, whose first argument is the model: it has its turn with it."""

    @wraps(function)
    def alone(model, *args, **kwargs):
        with model.turns.measuring(model, function.__name__):
            return function(model, *args, **kwargs)

    return alone
