"""Child processes that end with the one that started them, however that ends, and what is said of their end.

>>> # the two scripts call `end_with_parent` first
>>> statuses = side_by_side([["python", "one.py"], ["python", "two.py"]])
>>> [how_it_ended(status) for status in statuses if status]
['ended with exit status 2', 'ended with exit status 2']
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO, Any, NoReturn, TextIO

#: Seconds that children have to end by themselves after an interrupt, and then after being asked to.
PATIENCE = (1.0, 3.0)
_PR_SET_PDEATHSIG = 1


def cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def own_cores() -> int:
    """Cores that are this process's own, where OMP_NUM_THREADS says how many others leave it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), max(1, int(given))) if given.isdecimal() else cores()


class Stopped(KeyboardInterrupt):
    """A signal asks this process to end, which it does as after an interrupt, with this exit `status`."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.status = 128 + number


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise `Stopped`, so that all is closed; ignored ones (nohup) stay so."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what ends must not be interrupted
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


def leave(status: int) -> NoReturn:
    """End this process with an exit status; without taking Python down, which takes seconds with torch.

    What is to be run at the end is run, unless a signal has stopped the process; no thread is waited for, be
    it at reading or hashing weights. Output that cannot be written is an error, which is said.
    """
    if status <= 128:
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # what reads the output has ended
            status = status or 128 + signal.SIGPIPE
        except OSError as error:
            status = status or 1
            with contextlib.suppress(OSError, ValueError, AttributeError):
                print(f"error: the output cannot be written ({error.strerror or error}).", file=sys.stderr)
                sys.stderr.flush()
        except (ValueError, AttributeError):  # closed, or never open
            pass
    os._exit(status)


def end_with_parent() -> None:
    """Let this process, a child of `side_by_side` or a worker of `multiprocessing`, end when its parent has.

    A child's standard input is a pipe from its parent, which closes however the parent ends; a worker has
    such a pipe already. A thread waits for that. On Linux the kernel also kills a child, be Python busy or
    not.
    """
    worker = multiprocessing.parent_process()
    if worker is not None:
        _end_after(worker.join)
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _end_after(lambda: os.read(0, 1))


def _end_after(wait: Callable[[], object]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def side_by_side(
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str] = {},
    write: Callable[[str, TextIO], None] | None = None,
) -> list[int]:
    """Run commands at the same time; returns their statuses (minus a signal's number where one ended it).

    environment: variables beside this process's own; {number} in a value stands for the command's place.
    write: is given each line that one prints, and the stream that it is for; they print themselves otherwise.
    An interrupt of this process, and `Stopped`, end all of them within seconds. Each should call
    `end_with_parent` before it does anything long.
    """
    running: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    piped: dict[str, Any] = dict(stdin=subprocess.PIPE)
    if write:
        piped |= dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        for number, command in enumerate(commands):
            own = {name: value.format(number=number) for name, value in environment.items()}
            process = subprocess.Popen(command, env={**os.environ, **own}, **piped)
            running.append(process)
            if write:
                readers.append(_reader(process.stdout, sys.stdout, write))
                readers.append(_reader(process.stderr, sys.stderr, write))
        return [process.wait() for process in running]
    finally:
        _end(running)
        for reader in readers:
            reader.join(PATIENCE[0])


def _reader(lines: IO[str] | None, stream: TextIO, write: Callable[[str, TextIO], None]) -> threading.Thread:
    """A thread that hands on what a process prints, line by line."""

    def read() -> None:
        for line in lines or ():
            with contextlib.suppress(OSError):  # a terminal that was closed
                write(line, stream)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader


def _end(running: Sequence[subprocess.Popen]) -> None:
    """Wait for children that the terminal has interrupted as well; interrupt, then kill, those that go on."""
    for number, seconds in zip((signal.SIGINT, signal.SIGKILL), PATIENCE, strict=True):
        _wait(running, seconds)
        for process in running:
            process.send_signal(number)  # does nothing to one that has ended
    for process in running:
        process.wait()
        if process.stdin:
            process.stdin.close()


def _wait(running: Sequence[subprocess.Popen], seconds: float) -> None:
    """Until all have ended, or this long for all of them together."""
    started = time.monotonic()
    for process in running:
        try:
            process.wait(max(0.0, started + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            return


def how_it_ended(status: int) -> str:
    """What is said of a process with this exit status (minus a signal's number where one ended it)."""
    if status >= 0:
        return f"ended with exit status {status}"
    reason = ", as the system does where memory runs out" if -status == signal.SIGKILL else ""
    return f"was ended by signal {-status} ({signal.Signals(-status).name}){reason}"
