"""How long a study would take, and how much disk: from units that were measured, to any number of workers."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import lazy_loader as lazy

from interp.results.records import read_record, write_record
from interp.results.tables import write_table
from interp.system.limits import Folder, Limits, Seed
from interp.system.paths import PROGRAM

from ..provenance import made_by
from ..registry import Instrument
from .units import Command, Plan, Result, Unit

if TYPE_CHECKING:
    import pandas as pd

    from ..all import Config as All
    from .worker import Worker
else:
    pd = lazy.load("pandas")

#: Seconds that the driver takes to give a unit and to hear of its end (.63 ms with Ray 2.60 on two cores).
DISPATCH = 0.001
#: Spread of a unit's time about what was measured: standard deviation of its logarithm.
STRAGGLE = 0.3
#: Bytes of a parameter, as checkpoints keep them.
BYTES = 2
#: Power of the number of parameters with which activations grow: a model's width times its depth.
WIDTH = 0.5


@dataclass(frozen=True)
class Measured:
    """The cells of one checkpoint of an analysis, as they were measured."""

    name: str
    chain: int
    cells: int
    """Of a checkpoint."""
    checkpoints: int
    """That it reads, of those of the study."""
    seconds: float
    """Of a cell, on average."""
    by_decision: float = 0.0
    """Of these, seconds of stages that shards of decisions share."""


@dataclass(frozen=True)
class Workload:
    """What was measured, and how large the study is."""

    analyses: list[Measured]
    checkpoints: int
    decisions: int
    """Of the larger split."""
    parameters: float
    bytes: float
    """That one checkpoint leaves on disk."""
    shard: int = 0
    """Decisions of a shard (0: cells are whole)."""

    @property
    def shards(self) -> int:
        """Of a stage that goes decision by decision, in each cell."""
        return -(-self.decisions // self.shard) if self.shard else 1


@dataclass
class Config:
    """Scales what `all --dry_run` measured to another model, series and cluster."""

    run: Annotated[Path, Folder()] = Path("runs/quick")
    """Folder of a run that `all --dry_run` has measured."""
    parameters: Annotated[float, Limits(0, 1e13)] = 0
    """Of the model (0: of the measured one); time grows with them."""
    tokens: Annotated[float, Limits(0.001, 1000)] = 1
    """How many times as long prompts and traces are; time grows with it."""
    decisions: Annotated[int, Limits(0, 10**9)] = 0
    """Of a split (0: as measured)."""
    shard: Annotated[int, Limits(0, 10**9)] = 0
    """Decisions of a shard (0: as measured)."""
    checkpoints: Annotated[int, Limits(0, 100_000)] = 0
    """Of each series (0: as measured)."""
    seeds: Annotated[int, Limits(1, 10_000)] = 1
    """Series that are studied: trainings, environments and conditions, times each other."""
    speed: Annotated[float, Limits(1e-6, 1e6)] = 1
    """How many times as many operations a worker does in a second as the one that was measured."""
    workers: tuple[int, ...] = (1, 8, 64, 256, 1000)
    """Numbers of workers."""
    read: Annotated[float, Limits(1e-3, 1e4)] = 2.0
    """GB of weights that a worker reads in a second."""
    seed: Seed = 0
    """Of the units' spread."""
    out: Annotated[Path | None, Folder()] = None
    """Folder for the table `plan` (none: it is printed alone)."""


def measure(config: All, chains: Sequence[Sequence[Command]]) -> Workload:
    """Do all cells of the first checkpoint here, and keep how long they take; their results are kept, too."""
    from .worker import Worker

    worker, found, before = Worker(), [], _size(config.run)
    for number, chain in enumerate(chains):
        for command in chain:
            listed = worker.do(Unit(command, "list"))
            if listed.status != "done":
                print(f"not measured: {command[0]}: {listed.sentence}")
                continue
            steps = {step for step, _ in listed.cells}
            cells = [cell for cell in listed.cells if cell[0] == min(steps)]
            did = [result for cell in cells for result in _all_of(worker, Unit(command, "cell", cell))]
            if problem := next((each for each in did if each.status == "failed"), None):
                raise ValueError(f"{command[0]}: {problem.sentence}")
            whole, apart = (
                round(sum(each) / max(1, len(cells)), 2)
                for each in ([result.seconds for result in did], worker.by_decision(command))
            )
            found.append(Measured(command[0], number, len(cells), len(steps), whole, min(apart, whole)))
    study = Workload(
        found,
        len(config.steps),
        max(len(config.prompts(split)) for split in config.parts),
        float(config.checkpoint_series.table()["parameters"].max()),
        _size(config.run) - before,
        config.shard,
    )
    write_record(_file(config.run), asdict(study))
    return study


def _all_of(worker: Worker, unit: Unit) -> Iterator[Result]:
    """What becomes of a cell and of the shards that it is split into, one after another."""
    result = worker.do(unit)
    while result.status == "split":
        yield result
        yield from (worker.do(unit._replace(kind="shard", shard=each)) for each in result.shards)
        result = worker.do(unit)
    yield result


def _size(run: Path) -> int:
    """Bytes of what a run has computed."""
    folders = (run / "partial", run / "activations")
    return sum(path.stat().st_size for each in folders for path in each.rglob("*") if path.is_file())


def _file(run: Path) -> Path:
    return run / "partial" / "measured" / "study.json"


def scaled(study: Workload, config: Config) -> Workload:
    """The study of another size: time grows with parameters, tokens and decisions."""
    parameters = config.parameters or study.parameters
    decisions = config.decisions or study.decisions
    checkpoints = config.checkpoints or study.checkpoints
    more = parameters / study.parameters * config.tokens * decisions / study.decisions / config.speed
    analyses = [
        replace(
            each,
            seconds=each.seconds * more,
            by_decision=each.by_decision * more,
            checkpoints=round(each.checkpoints / study.checkpoints * checkpoints),
        )
        for each in study.analyses
    ]
    size = study.bytes * decisions / study.decisions * (parameters / study.parameters) ** WIDTH
    return Workload(analyses, checkpoints, decisions, parameters, size, config.shard or study.shard)


@dataclass(frozen=True)
class Simulated:
    """One study on a number of workers."""

    workers: int
    hours: float
    """Until its last cell."""
    computing: float
    """Share of the workers' time in which they compute."""
    loading: float
    """Share in which they read weights."""
    driver: float
    """Share of the time in which the driver is busy."""


def simulate(study: Workload, workers: int, load: float, seed: int = 0) -> Simulated:
    """A study's cells given to workers by its `Plan`, each with a random time about its own.

    Args:
        load: seconds that a worker takes to read a checkpoint.
    """
    draw = random.Random(seed)
    by_chain: dict[int, list[Command]] = {}
    for each in study.analyses:
        by_chain.setdefault(each.chain, []).append((each.name,))
    of = {each.name: each for each in study.analyses}
    plan, now, free = Plan(list(by_chain.values())), 0.0, 0.0
    idle, running, held = list(range(workers)), [], dict[int, int]()
    computing = loading = busy = 0.0
    split: set[Unit] = set()
    while True:
        while idle and (unit := plan.take(idle[-1])):
            worker, seconds = idle.pop(), 0.0
            free = max(free, now) + DISPATCH  # one driver, one unit at a time
            busy += DISPATCH
            if unit.cell:
                seconds = _seconds(study, of[unit.command[0]], unit, unit in split)
                seconds *= draw.lognormvariate(-(STRAGGLE**2) / 2, STRAGGLE)
                computing += seconds
                if held.get(worker) != unit.cell[0]:
                    held[worker], seconds = unit.cell[0], seconds + load
                    loading += load
            heapq.heappush(running, (free + seconds, worker, unit))
        if not running:
            break
        now, worker, unit = heapq.heappop(running)
        idle.append(worker)
        cells = _cells(of[unit.command[0]]) if unit.kind == "list" else ()
        result = Result("done", cells=cells)
        if unit.kind == "cell" and unit not in split and _splits(study, of[unit.command[0]]):
            split.add(unit)
            result = Result("split", shards=[("by decision", k) for k in range(study.shards)])
        plan.ended(unit, result)
    whole = max(now * workers, 1e-12)
    return Simulated(workers, now / 3600, computing / whole, loading / whole, busy / max(now, 1e-12))


def _splits(study: Workload, each: Measured) -> bool:
    """Whether an analysis' cells are split into shards."""
    return study.shards > 1 and each.by_decision > 0


def _seconds(study: Workload, each: Measured, unit: Unit, joins: bool) -> float:
    """What a unit computes: a cell that is split has nothing before its shards, and the rest after them."""
    if unit.kind == "shard":
        return each.by_decision / study.shards
    if not _splits(study, each):
        return each.seconds
    return each.seconds - each.by_decision if joins else 0.0


def _cells(each: Measured) -> list[tuple[int, str]]:
    return [(step, str(split)) for step in range(each.checkpoints) for split in range(each.cells)]


def simulated(study: Workload, config: Config) -> list[Simulated]:
    """All series on each number of workers, which they share alike."""
    load = study.parameters * BYTES / (config.read * 1e9)
    found = []
    for workers in config.workers:
        each = simulate(study, max(1, workers // config.seeds), load, config.seed)
        rounds = max(1.0, config.seeds / workers)  # fewer workers than series: one after another
        found.append(replace(each, workers=workers, hours=each.hours * rounds))
    return found


def sizes(study: Workload, config: Config) -> list[str]:
    """Units, hours and bytes of all series, in lines."""
    cut = {each.name: study.shards if _splits(study, each) else 0 for each in study.analyses}
    units = sum(each.checkpoints * each.cells * (1 + cut[each.name]) for each in study.analyses)
    hours = sum(each.checkpoints * each.cells * each.seconds for each in study.analyses) / 3600
    chains = sorted({each.chain for each in study.analyses})
    together = sum(
        max(each.cells * max(1, cut[each.name]) for each in study.analyses if each.chain == chain)
        for chain in chains
    )
    return [
        f"{config.seeds:,} series of {study.checkpoints:,} checkpoints, {study.decisions:,} decisions a "
        f"split, {study.parameters:.3g} parameters:",
        f"{units * config.seeds:,} units of {len(study.analyses)} analyses, "
        f"{hours * config.seeds:,.1f} hours of a worker, "
        f"{study.bytes * study.checkpoints * config.seeds / 1e9:,.2f} GB on disk;",
        f"at most {together * study.checkpoints * config.seeds:,} units can be given at once.",
    ]


def told(study: Workload, config: Config, found: Sequence[Simulated]) -> list[str]:
    """The plan in lines; found: what `simulated` gives of it."""
    lines = [*sizes(study, config), "workers      hours  computing  reading weights  driver busy"]
    for each in found:
        lines.append(
            f"{each.workers:7,} {each.hours:10,.1f} {each.computing:9.0%} {each.loading:15.0%} "
            f"{each.driver:12.1%}"
        )
    return lines


def run(config: Config) -> None:
    """Print the plan, and write its table where one is asked for."""
    started = time.time()
    path = _file(config.run)
    if not path.exists():
        raise FileNotFoundError(
            f"{config.run} was not measured: `{PROGRAM} all --dry_run --run {config.run}` does its first "
            "checkpoint, and keeps how long that takes."
        )
    kept = read_record(path)
    study = Workload(**{**kept, "analyses": [Measured(**each) for each in kept["analyses"]]})
    study = scaled(study, config)
    found = simulated(study, config)
    print("\n".join(told(study, config, found)))
    if config.out:
        rows = pd.DataFrame([asdict(each) for each in found])
        made = dict(made_by("plan", config, started), sizes=sizes(study, config))
        write_table(config.out, "plan", rows, made)


INSTRUMENT = Instrument("plan", Config, run)
