"""Units given to the workers of a Ray cluster until all have ended.

A worker that is lost is replaced, and its unit is given to another. What is finished lies in the run's
folder, so that a driver that ends leaves all of it, and two drivers of one folder share the work.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .mirror import Mirror
from .options import Spread
from .units import Command, Plan, Result, Unit
from .worker import Worker

#: Seconds until the driver looks again at what another process is computing.
_AGAIN = 0.2
#: How many of a worker's losses in a row without a unit done end the study.
_HOPELESS = 20


def spread(
    chains: Sequence[Sequence[Command]],
    then: Sequence[Sequence[Command]],
    options: Spread,
    copy: tuple[Path, str] | None = None,
) -> int:
    """Do all units of a `Plan` of these command lines; the exit status.

    What fails is told when all else has ended.

    Args:
        copy: a run's folder and the URL of its `Mirror`, where machines share no folder.
    """
    plan = Plan(chains, then)
    with _cluster(options) as (actor, most):
        _Driver(plan, partial(actor.remote, copy, options.gpus_per_worker), most).run()
    if copy:
        Mirror(*copy).pull()
    for sentence in plan.failures:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if plan.failures else 0


class _Driver:
    """The workers of one plan, each in a numbered place, where another follows it when it is lost."""

    def __init__(self, plan: Plan, start: Callable[[], Any], places: int):
        self.plan, self.start = plan, start
        self.idle = list(reversed(range(places)))
        self.workers: dict[int, Any] = {}
        self.running: dict[Any, tuple[int, Unit]] = {}
        self.lost = 0
        self.bar = tqdm(total=plan.left, desc="units", disable=None, dynamic_ncols=True)

    def run(self) -> None:
        """Until no unit is left."""
        import ray

        while self._give() or self.running:
            ended, _ = ray.wait(list(self.running), num_returns=1)
            for reference in ended:
                place, unit = self.running.pop(reference)
                self.idle.append(place)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayActorError:
                    del self.workers[place]
                    self._lose(unit)
                else:
                    self._end(unit, result)
        self.bar.close()

    def _give(self) -> bool:
        """Give units to idle workers, as long as there are both; whether one was given."""
        given = False
        while self.idle and (unit := self.plan.take(self.idle[-1])):
            place = self.idle.pop()
            if place not in self.workers:
                self.workers[place] = self.start()
            reference = self.workers[place].do.remote(unit, self.plan.ahead(place))
            self.running[reference] = place, unit
            given = True
        return given

    def _end(self, unit: Unit, result: Result) -> None:
        self.plan.ended(unit, result)
        if result.said:
            tqdm.write(result.said.rstrip("\n"), file=sys.stderr)
        if result.status == "left out":
            tqdm.write(f"left out: {result.sentence}", file=sys.stderr)
        if result.status == "busy":
            time.sleep(_AGAIN)
            return
        self.lost = 0
        self.bar.total = self.bar.n + 1 + self.plan.left
        self.bar.set_postfix_str(unit.name)
        self.bar.update()

    def _lose(self, unit: Unit) -> None:
        """Go on without a worker that has ended."""
        self.plan.lost(unit)
        self.lost += 1
        tqdm.write(f"a worker ended while it was at {unit.name}", file=sys.stderr)
        if self.lost >= _HOPELESS:
            raise OSError(
                f"{self.lost} workers of the cluster ended in a row, and no unit with them: see Ray's logs "
                "(/tmp/ray/session_latest/logs on their machines). Finished stages are kept."
            )


@contextmanager
def _cluster(options: Spread) -> Iterator[tuple[Any, int]]:
    """The class of this study's workers, and how many there may be; what was started here ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as a process of --executor local
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = options.executor if options.executor.startswith("ray://") else None
    here = address is None and "RAY_ADDRESS" not in os.environ
    own: dict[str, Any] = dict(include_dashboard=False) if here else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ray.init(address=address, log_to_driver=False, logging_level="error", **own)
    for number, handler in handlers.items():  # in place of Ray's own, which end without a word
        signal.signal(number, handler)
    try:
        there = ray.cluster_resources()
        most = _room(options, there)
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        environment = {"PYTHONPATH": path, "TQDM_DISABLE": "1"}
        yield (
            ray.remote(Worker).options(
                num_cpus=options.cpus_per_worker,
                num_gpus=options.gpus_per_worker,
                runtime_env={"env_vars": environment},
            ),
            most,
        )
    finally:
        ray.shutdown()


def _room(options: Spread, there: dict[str, float]) -> int:
    """How many workers a cluster has room for, at most as many as are wanted.

    Raises ValueError where there is room for none.
    """
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    room = int(cpus / options.cpus_per_worker)
    if options.gpus_per_worker:
        room = min(room, int(gpus / options.gpus_per_worker))
    if not room:
        raise ValueError(
            f"No worker fits: it needs {options.cpus_per_worker:g} cores and {options.gpus_per_worker:g} "
            f"GPUs (--cpus_per_worker, --gpus_per_worker), and the cluster has {cpus:g} and {gpus:g}."
        )
    if gpus and not options.gpus_per_worker:
        print(f"The cluster's {gpus:g} GPUs are not used: give --gpus_per_worker.", file=sys.stderr)
    return min(room, options.cluster_workers or room)
