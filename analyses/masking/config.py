"""What the masking study trains, measures and compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from interp.checkpoints.contents import SERIES
from interp.system import limits
from interp.system.limits import Count, Folder, Known, Limits, Several, StepLimit, Workers
from interp.training.recipes import Recipe, Tuning
from interp.training.supervision import Supervision

from ..cluster.options import Trainings, jobs
from ..study import Study

#: What reads a training, in the order in which it does.
Instruments = Literal["reliance", "patching", "conflict", "probes"]
#: Outer folds of the boundary probe.
FOLDS = 5
CONDITIONS = (
    "action_mask_0",
    "action_mask_0.1",
    "action_mask_0.3",
    "action_mask_0.5",
    "action_mask_0.7",
    "random_mask_0.3",
    "action_only",
)


@dataclass
class Config(Trainings, Study):
    """By default the small agent's conditions are trained from the shipped base, measured and compared.

    Each part goes on from where it was.
    """

    run: Annotated[Path, Folder()] = Path("runs/masking")
    """Folder for everything the run writes; conditions trained here are in its `conditions`."""
    stages: tuple[Literal["train", "measure", "compare"], ...] = ("train", "measure", "compare")
    """What is done. With conditions of one's own (`--series`) nothing is trained."""
    conditions: Annotated[tuple[str, ...], Known(Supervision.named)] = CONDITIONS
    """Conditions that are trained."""
    seeds: Annotated[int, Limits(1, 1000)] = 3
    """Trainings of each condition."""
    more: Annotated[tuple[str, ...], Known(Supervision.named), Several(none=True)] = (
        "action_mask_0",
        "action_mask_0.3",
        "random_mask_0.3",
    )
    """Conditions that the claim rests on."""
    more_seeds: Annotated[int, Limits(1, 1000)] = 5
    """Trainings of those."""
    recipe: Recipe = field(default_factory=Recipe)
    """Full fine-tuning of the base (`cot_steps`, `cot_lr` and batches; not the base's own numbers)."""
    lora: bool = False
    """Train low-rank updates instead, as `tuning` says."""
    tuning: Tuning = field(default_factory=Tuning)
    """Low-rank fine-tuning of the base."""
    instruments: Annotated[tuple[Instruments, ...], Several(none=True)] = get_args(Instruments)
    """What reads each training's last checkpoint; prompt reliance reads all that every training has."""
    pairs: Count = 40
    """Counterfactual pairs of each split, for prompt reliance."""
    patched: Count = 20
    """Of these, pairs that are patched."""
    conflicts: Count = 100
    """Decisions of each split that another state's trace is put in at."""
    checked: Annotated[int, Limits(0, 100_000)] = 12
    """Training episodes on which the loss and the gradient of each part of a turn are read, at every
    checkpoint (0: none)."""
    games: int = 0
    """In-domain games that each training plays (0: none); half as many out of domain."""
    step_limit: StepLimit = 30
    """Steps after which a game is lost."""
    workers: Workers = 2
    """Processes that the games are played in."""

    def check(self) -> None:
        """Raise the sentence of what cannot be trained or measured; conditions are no series to check."""
        limits.check(self)
        self.format_options()
        self.check_parts()
        if self.device_map != "none":
            raise ValueError(
                "--device_map is for models that are read, and a training has one GPU: leave it out."
            )
        if self.base and not self.base.exists():
            raise FileNotFoundError(f"--base: there is no folder {self.base}.")

    @property
    def own(self) -> bool:
        """Whether the conditions were trained elsewhere."""
        return self.series != SERIES

    @property
    def folder(self) -> Path:
        """The folder of the conditions."""
        return self.series if self.own else self.run / "conditions"

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(condition, seed) that are trained."""
        return jobs(self.conditions, self.seeds, self.more, self.more_seeds)

    @cached_property
    def start(self) -> Path:
        """The base checkpoint that conditions are trained from."""
        from interp.checkpoints.series import CheckpointSeries

        return Path(self.base or CheckpointSeries.discover(SERIES).path(0))
