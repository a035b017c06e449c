"""Which units of work a study has, in which order they may be done, and which a free worker is given.

>>> plan = Plan([[("behaviour",)]], [[("claims",)]])
>>> unit = plan.take("a")
>>> unit.kind, plan.take("b")
('list', None)
>>> plan.ended(unit, Result("done", cells=[(0, "in_domain"), (20, "in_domain")]))
>>> plan.take("a").cell, plan.take("b").cell
((0, 'in_domain'), (20, 'in_domain'))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..stages import Cell, Shard

#: How often a unit may be lost with the worker that had it before it is given up.
LOSSES = 5
#: What becomes of a unit. left out: the decisions do not allow the analysis; busy: another process is at
#: what it needs; split: it needs shards that are units of their own.
Status = Literal["done", "left out", "failed", "busy", "split"]
#: A command line's words.
Command = tuple[str, ...]


class Unit(NamedTuple):
    """What a worker does at a time."""

    command: Command
    kind: Literal["list", "cell", "shard", "whole"]
    """Which cells an analysis has; all that it keeps of one cell; a shard of one of the cell's stages; the
    analysis from what is kept, with its table (and any other command)."""
    cell: Cell | None = None
    shard: Shard | None = None

    @property
    def name(self) -> str:
        """As it is told of."""
        where = f" {self.cell[0]} {self.cell[1]}" if self.cell else ""
        which = f", shard {self.shard[1]}" if self.shard else ""
        return f"{self.command[0]}{where}{which}"


@dataclass(frozen=True)
class Result:
    """What became of a unit."""

    status: Status
    sentence: str = ""
    """Why it was left out, or failed."""
    cells: Sequence[Cell] = ()
    """Of a list; none where the table was made already."""
    shards: Sequence[Shard] = ()
    """That a cell is to be split into."""
    said: str = ""
    """What it printed."""
    seconds: float = 0.0


@dataclass
class _Command:
    """Where an analysis is."""

    todo: list[Cell] | None = None
    """Cells that nobody has been given, None before they are listed."""
    split: dict[Cell, list[Shard]] = field(default_factory=dict)
    """Cells that wait for shards, and the shards that nobody has been given."""
    shards: Counter[Cell] = field(default_factory=Counter)
    """Shards of those cells that have not ended."""
    failed: set[Cell] = field(default_factory=set)
    """Cells of which a shard has failed."""
    unread: Counter[int] = field(default_factory=Counter)
    """Cells of each checkpoint that have not ended, well or not."""
    broken: bool = False
    """Whether one has failed: the others are read, and the table is not made."""
    state: Literal["waiting", "running", "ended", "failed"] = "waiting"
    """Of the list at first, and of the whole when all cells are read."""


class Plan:
    """The units that are left, and those that workers are at.

    Args:
        chains: command lines of analyses, as `all` runs them. At a checkpoint an analysis waits for those
            before it in its chain, which leave what it reads; checkpoints and chains are independent.
        then: groups of command lines that are done whole, a group when all before it has ended.
    """

    def __init__(self, chains: Sequence[Sequence[Command]], then: Sequence[Sequence[Command]] = ()):
        self.chains = [[(command, _Command()) for command in chain] for chain in chains if chain]
        self.groups = [[(command, _Command()) for command in group] for group in then if group]
        self.given: dict[Unit, Hashable] = {}
        self.losses: Counter[Unit] = Counter()
        self.failures: list[str] = []
        self.put_off: set[Unit] = set()
        self._at: dict[Hashable, int] = {}

    def take(self, worker: Hashable) -> Unit | None:
        """The unit for a free worker; None where there is none now.

        Preferred are cells of the checkpoint that the worker holds, then of one that no other holds.
        """
        ready = list(dict.fromkeys(self._ready()))
        fresh = [unit for unit in ready if unit not in self.put_off]
        if not fresh:
            fresh, self.put_off = ready, set()
        if not fresh:
            return None
        unit = min(fresh, key=lambda unit: self._distance(worker, unit))
        self.given[unit] = worker
        if unit.cell:
            self._at[worker] = unit.cell[0]
        state = self._state(unit.command)
        if unit.cell and unit.shard:
            state.split[unit.cell].remove(unit.shard)
        elif unit.cell and state.todo is not None:
            state.todo.remove(unit.cell)
        else:
            state.state = "running"
        return unit

    def ahead(self, worker: Hashable) -> int | None:
        """The checkpoint that a worker probably reads after the one it holds."""
        here, held = self._at.get(worker), set(self._at.values())
        left = {cell[0] for _, state in self._commands() for cell in state.todo or ()}
        if here in left:
            return None
        return min(left - held, default=None)

    def ended(self, unit: Unit, result: Result) -> None:
        """Note what became of a unit that a worker had."""
        del self.given[unit]
        state = self._state(unit.command)
        if result.status == "busy":
            self.put_off.add(unit)
            self._back(unit)
            return
        if result.status == "failed":
            self.failures.append(f"{unit.name}: {result.sentence}")
        if unit.cell and unit.shard:
            _shard_ended(state, unit.cell, result.status == "failed")
        elif unit.cell and result.status == "split":
            state.split[unit.cell] = list(result.shards)
            state.shards[unit.cell] = len(result.shards)
        elif unit.cell:
            _cell_ended(state, unit.cell, result.status == "failed")
        elif unit.kind == "list" and result.status == "done":
            state.todo, state.state = list(result.cells), "waiting"
            state.unread.update(step for step, _ in result.cells)
        else:
            state.state = "failed" if result.status == "failed" else "ended"

    def lost(self, unit: Unit) -> None:
        """Take back a unit whose worker has ended; one that is lost too often is given up."""
        worker = self.given.pop(unit)
        self._at.pop(worker, None)
        self.losses[unit] += 1
        if self.losses[unit] < LOSSES:
            self._back(unit)
            return
        why = f"its worker ended {LOSSES} times while it was at it (out of memory?)"
        self.given[unit] = worker
        self.ended(unit, Result("failed", why))

    @property
    def left(self) -> int:
        """Units that have not ended, as far as they are known."""
        left = len(self.given)
        for _, state in self._commands():
            if state.state == "waiting":
                left += 1 + (state.todo is None) + len(state.todo or ())
                left += sum(1 + len(shards) for shards in state.split.values())
        return left

    def _back(self, unit: Unit) -> None:
        state = self._state(unit.command)
        if unit.cell and unit.shard:
            state.split[unit.cell].append(unit.shard)
        elif unit.cell and state.todo is not None:
            state.todo.insert(0, unit.cell)
        else:
            state.state = "waiting"

    def _ready(self) -> Iterator[Unit]:
        """The units that may be done now, in the order in which they are best done."""
        for chain in self.chains:
            before: list[_Command] = []
            for command, state in chain:
                yield from self._of(command, state, before)
                before.append(state)
        if any(state.state in ("waiting", "running") for chain in self.chains for _, state in chain):
            return
        for group in self.groups:
            waiting = [command for command, state in group if state.state == "waiting"]
            yield from (Unit(command, "whole") for command in waiting)
            if any(state.state in ("waiting", "running") for _, state in group):
                return

    def _of(self, command: Command, state: _Command, before: Sequence[_Command]) -> Iterator[Unit]:
        """The units of one analysis that may be done now."""
        if state.state != "waiting":
            return
        if state.todo is None:
            yield Unit(command, "list")
            return
        for cell, shards in state.split.items():
            yield from (Unit(command, "shard", cell, each) for each in shards[:1])
        for cell in state.todo:
            if all(_past(each, cell[0]) for each in before):
                yield Unit(command, "cell", cell)
        if not state.unread.total() and not state.broken:
            yield Unit(command, "whole")

    def _distance(self, worker: Hashable, unit: Unit) -> int:
        """How far a unit is from what a worker holds; the first of the nearest is taken."""
        if unit.cell is None:
            return 1  # lists open cells, wholes close a table
        if unit.cell[0] == self._at.get(worker):
            return 0
        held = {step for other, step in self._at.items() if other != worker}
        return 3 if unit.cell[0] in held else 2

    def _commands(self) -> Iterator[tuple[Command, _Command]]:
        for group in (*self.chains, *self.groups):
            yield from group

    def _state(self, command: Command) -> _Command:
        return next(state for each, state in self._commands() if each == command)


def _shard_ended(state: _Command, cell: Cell, failed: bool) -> None:
    """A cell whose shards have ended is read; where one has failed it has failed, and no other is begun."""
    state.shards[cell] -= 1
    if failed:
        state.failed.add(cell)
        state.shards[cell] -= len(state.split[cell])
        state.split[cell].clear()
    if state.shards[cell] or state.todo is None:
        return
    del state.split[cell]
    if cell in state.failed:
        _cell_ended(state, cell, True)
    else:
        state.todo.insert(0, cell)


def _cell_ended(state: _Command, cell: Cell, failed: bool) -> None:
    state.unread[cell[0]] -= 1
    state.broken |= failed
    if state.broken and not state.unread.total():
        state.state = "failed"


def _past(state: _Command, step: int) -> bool:
    """Whether an analysis has read all its cells of a checkpoint, or never will."""
    if state.state in ("ended", "failed"):
        return True
    return state.todo is not None and not state.unread[step]
