"""Games in worker processes: each worker plays those it is sent, and knows no model."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from interp.environments import Live, View


def _serve(pipe, live: Callable[[], Live]) -> None:
    """A worker: plays the games it is sent until its pipe closes."""
    playing: dict[int, Live] = {}
    try:
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
        pipe.send(error)


class Engines:
    """Workers; `send` gives each slot ("reset", game) or ("step", action), and returns what each slot sees."""

    def __init__(self, live: Callable[[], Live], workers: int = 2):
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, live), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def send(self, orders: dict[int, tuple[str, object]]) -> dict[int, View]:
        """Play one order for each slot; raises what a worker raised."""
        shares = [{s: o for s, o in orders.items() if s % len(self._pipes) == w} for w in range(len(self._pipes))]
        for pipe, share in zip(self._pipes, shares):
            if share:
                pipe.send(share)
        views: dict[int, View] = {}
        for pipe, share in zip(self._pipes, shares):
            if share:
                answer = pipe.recv()
                if isinstance(answer, Exception):
                    raise answer
                views.update(answer)
        return views

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


@contextmanager
def engines(live: Callable[[], Live], workers: int = 2) -> Iterator[Engines]:
    """Workers that end with the block, however it ends; `live` makes a game's object and can be pickled."""
    pool = Engines(live, workers)
    try:
        yield pool
    finally:
        pool.close()
