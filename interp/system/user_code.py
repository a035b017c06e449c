"""Code that a user brings: what its sources are, and calls of it whose faults are one sentence.

>>> parse = guarded("my_task:TASK", "parser", task.parse, (str, type(None)))
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from interp.system.sentences import one_line
from interp.system.sources import OURS, imports

#: Seconds that one call may take.
SECONDS = 10.0


class _TooLong(BaseException):
    """Not an Exception, so that `except Exception` in a user's code lets it pass."""


@contextmanager
def time_limit(seconds: float, sentence: str) -> Iterator[None]:
    """Raise ValueError(sentence) where a block takes longer than `seconds`.

    No limit outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise ValueError(sentence) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def guarded(environment: str, what: str, function: Callable, returns: tuple[type, ...]) -> Callable:
    """A user's function, whose exceptions, endless calls and wrong results are a ValueError naming it."""

    @functools.wraps(function)
    def call(*given: object) -> object:
        owner = f"The {what} of the environment {environment!r}"
        on = f" on {str(given[0])[:80]!r}" if given else ""
        with time_limit(SECONDS, f"{owner} takes longer than {SECONDS:g} seconds{on}."):
            try:
                value = function(*given)
            except Exception as error:
                raise ValueError(f"{owner} raises {type(error).__name__}{on}: {one_line(error)}.") from error
        if not isinstance(value, returns):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in returns)
            raise ValueError(f"{owner} returns a {type(value).__name__}{on}, and should return {names}.")
        return value

    return call


def import_named(name: str, module: str) -> ModuleType:
    """Import a module that was named, which runs its code.

    name: what was written. Raises ImportError with what the module raised, and ValueError where it takes too
    long.
    """
    seconds = 12 * SECONDS
    too_long = (
        f"The module {module} of the environment {name!r} takes longer than {seconds:g} seconds to import."
    )
    with time_limit(seconds, too_long):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                raise ImportError(
                    f"The environment {name!r} cannot be imported ({error}): run where "
                    f"{module.split('.')[0]}.py is, or put its folder on PYTHONPATH."
                ) from error
            raise ImportError(
                f"The environment {name!r} needs the module {error.name!r}, which is not installed: "
                f"its {module} imports it."
            ) from error
        except (Exception, SystemExit) as error:
            raise ImportError(
                f"The environment {name!r} cannot be imported: its module {module} raises "
                f"{type(error).__name__} ({one_line(error)})."
            ) from error


def hash_sources(module: ModuleType) -> str:
    """Content hash of a module and of all that it imports, in turn, from the folder that it was loaded from.

    Imports that are written as such are followed, in functions too; files that a module reads and modules
    that it finds by a name made at run time are not.
    """
    sources = {name: path.read_bytes() for name, path in _sources(module).items()}
    if len(sources) == 1:
        return hashlib.sha256(*sources.values()).hexdigest()[:16]
    parts = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(sources.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _sources(module: ModuleType) -> dict[str, Path]:
    """Module name -> file, of a module and of those of its folder that it imports."""
    file, name = Path(str(module.__file__)), module.__name__
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    installed = root.name in ("site-packages", "dist-packages")  # where its neighbours are everyone's
    files, waiting = {name: file}, _imports(file, name)
    while waiting:
        parts = waiting.pop().split(".")
        if parts[0] in OURS or installed and parts[0] != name.split(".")[0]:
            continue
        for n in range(1, len(parts) + 1):
            part = ".".join(parts[:n])
            at = root.joinpath(*parts[:n])
            path = next((p for p in (at / "__init__.py", at.with_name(f"{at.name}.py")) if p.is_file()), None)
            if path and part not in files:
                files[part] = path
                waiting += _imports(path, part)
    return files


def _imports(path: Path, name: str) -> list[str]:
    """Names of modules, or of things in them, that a file imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # no Python source
        return []
    return imports(tree, name, path.name == "__init__.py")
