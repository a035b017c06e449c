"""Games in worker processes: each worker plays those it is sent, and knows no model."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from interp.environments.base import Live, View
from interp.system.processes import end_with_parent, how_it_ended

#: Seconds that all workers together have to end the step that they play.
PATIENCE = 3.0
MAKES = "What makes the games cannot be {reason}: let it be a class or function of a module."


def _serve(pipe: Connection) -> None:
    """A worker: is sent what makes a game, then plays until its pipe closes or its parent ends."""
    end_with_parent()
    playing: dict[int, Live] = {}
    try:
        live = _imported(pipe)
        while True:
            orders = pipe.recv()
            views = {}
            for slot, (order, what) in orders.items():
                if order == "reset" and slot not in playing:
                    playing[slot] = live()
                views[slot] = getattr(playing[slot], order)(what)
            pipe.send(views)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass
    except Exception as error:  # tell the parent why, rather than die silently
        pipe.send(_sendable(error))


def _imported(pipe: Connection) -> Callable[[], Live]:
    """What makes a game, as a worker is sent it."""
    try:
        return pipe.recv()
    except (AttributeError, ImportError) as error:
        raise ImportError(MAKES.format(reason=f"imported in a worker process ({error})")) from error


def _sendable(error: Exception) -> Exception:
    """The error, or its words where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


class Engines:
    """Workers; `send` gives each slot ("reset", game) or ("step", action), and returns what each slot sees.

    live: makes a game's object; it is pickled, so a class or function of a module. Raises ValueError where it
    is not, and for no workers.
    """

    def __init__(self, live: Callable[[], Live], workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"Games are played in 1 worker process or more, not {workers}.")
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            for worker in range(workers):
                self._send(worker, live)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            self.close()
            raise ValueError(MAKES.format(reason=f"sent to a worker process ({error})")) from error
        except BaseException:
            self.close()
            raise

    def send(self, orders: Mapping[int, tuple[str, object]]) -> dict[int, View]:
        """Play one order for each slot.

        Raises what a worker raised, and ChildProcessError for one that ended.
        """
        workers = range(len(self._pipes))
        shares = [{s: o for s, o in orders.items() if s % len(workers) == worker} for worker in workers]
        busy = [worker for worker, share in enumerate(shares) if share]
        for worker in busy:
            self._send(worker, shares[worker])
        views: dict[int, View] = {}
        for worker in busy:
            views.update(self._answer(worker))
        return views

    def _send(self, worker: int, what: object) -> None:
        try:
            self._pipes[worker].send(what)
        except ConnectionError:
            self._answer(worker)  # which says why, where the worker did

    def _answer(self, worker: int) -> dict[int, View]:
        """What a worker sends; raises what it raised, and ChildProcessError where it has ended."""
        try:
            answer = self._pipes[worker].recv()
        except (EOFError, ConnectionError) as error:
            process = self._processes[worker]
            process.join(timeout=5)
            how = "closed its pipe" if process.exitcode is None else how_it_ended(process.exitcode)
            which = f"Worker process {worker + 1} of {len(self._processes)}, which plays the games,"
            raise ChildProcessError(f"{which} {how}.") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        until = time.monotonic() + PATIENCE
        for process in self._processes:
            process.join(timeout=max(0.0, until - time.monotonic()))
        for process in self._processes:
            process.kill()  # does nothing to one that has ended
            process.join()


@contextmanager
def engines(live: Callable[[], Live], workers: int = 2) -> Iterator[Engines]:
    """Workers that end with the block, however it ends; `live` makes a game's object and can be pickled."""
    pool = Engines(live, workers)
    try:
        yield pool
    finally:
        pool.close()
