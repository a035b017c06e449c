"""Stages that go decision by decision, in shards that different workers compute and one of them joins.

A shard is a stage of its own (`partial/shards`), so that what was finished of a cell stays; both executors
cut alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from . import stages

if TYPE_CHECKING:
    from .study import Study


def by_shards(study: Study, name: str, inputs: dict, n: int, compute: Callable[[slice], Any]) -> Any:
    """A stage of `n` decisions or pairs, which is computed in shards where it has more than one (`--shard`).

    A cluster's unit does not compute them all: `stages.Shards` lists those that are missing, or the unit's
    own is computed, and `stages.CellRead` ends it.

    Args:
        name, inputs: as `Study.stage` has them.
        compute: of a part of the decisions, JSON that `joined` joins.
    """
    size = study.shard or max(n, 1)
    parts = [slice(start, min(n, start + size)) for start in range(0, n, size)]
    if len(parts) < 2:
        return study.stage(name, inputs, _of(study, compute, slice(0, n)))

    def shard(k: int) -> tuple[str, dict, Callable[[], Any]]:
        made = dict(inputs, part=[parts[k].start, parts[k].stop])
        return f"shards/{name.replace('/', '-')}-{k}", made, _of(study, compute, parts[k])

    unit = study.unit
    if unit and unit.shard and unit.shard[0] == name:
        study.stage(*shard(unit.shard[1]))
        raise stages.CellRead
    whole = wraps(compute)(lambda: joined([study.stage(*shard(k)) for k in range(len(parts))]))
    if unit and not study.kept(name, inputs, whole):
        missing = [(name, k) for k in range(len(parts)) if not study.kept(*shard(k))]
        if len(missing) > 1:
            raise stages.Shards(missing)
    return study.stage(name, inputs, whole)


def _of(study: Study, compute: Callable[[slice], Any], part: slice) -> Callable[[], Any]:
    """The computation of one part, in the name of its module, which the study notes the time of."""

    def timed() -> Any:
        started = time.time()
        value = compute(part)
        study.by_decision.append(time.time() - started)
        return value

    return wraps(compute)(timed)


def joined(values: Sequence[Any]) -> Any:
    """What shards give as one: lists one after another, numbers added, mappings by their keys.

    >>> joined([{"rows": [1, 2], "left_out": 1}, {"rows": [3], "left_out": 0}])
    {'rows': [1, 2, 3], 'left_out': 1}
    """
    first = values[0]
    if isinstance(first, dict):
        return {key: joined([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [each for value in values for each in value]
    return sum(values)
