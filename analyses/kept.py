"""What the stages of a run keep of a checkpoint and a split, looked up without computing anything.

>>> cell = Cell(config, 110, "in_domain", decisions)
>>> cell.kept_of_split("decoded")                    # None where no analysis has decoded it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from interp.results.records import newest_record
from interp.tasks.episodes import Decision

from .study import Study


class Cell(NamedTuple):
    """A checkpoint and a split of the study."""

    config: Study
    step: int
    split: str
    decisions: dict[str, Decision]
    """Of the split, by id."""

    @property
    def ids(self) -> list[str]:
        """Of the decisions that were drawn, in order."""
        return [prompt.decision.id for prompt in self.config.prompts(self.split)]

    def kept(self, name: str, **inputs: object) -> Any:
        """What a stage last kept of this checkpoint and of these inputs; None where it kept nothing."""
        wanted = json.loads(json.dumps(self.config.inputs(self.step) | inputs, default=str))
        record = newest_record(self.config.run / "partial", name, wanted)
        return record and record["value"]

    def kept_of_split(self, name: str, part: str = "") -> Any:
        """The same of a stage that reads this split's decisions and is named for both, and for a part."""
        inputs = self.config.inputs(self.step, self.split)
        return self.kept("-".join(filter(None, (f"{name}/{self.step}", self.split, part))), **inputs)


def cells(config: Study, name: str) -> Iterator[Cell]:
    """Every checkpoint and split of a study, with their progress."""
    decisions = {s: {d.id: d for e in config.episodes[s] for d in e.decisions()} for s in config.parts}
    for step, split in config.cells(name):
        yield Cell(config, step, split, decisions[split])
