"""Grow the calibration's agents from their recipes and export them as they are shipped, in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from interp.system.limits import Folder
from interp.training.organisms import ORGANISMS, RECIPE, SHIPPED, grow
from interp.training.taught import TAUGHT, grow_taught

from ..fields import Device
from ..registry import Instrument
from .series import export


@dataclass
class Config:
    """The defaults grow the shipped ones again."""

    work: Annotated[Path, Folder()] = Path("runs/organisms")
    """Folder of the trainer's own checkpoints; what is there is kept."""
    out: Annotated[Path, Folder()] = SHIPPED
    """Folder of the finished agents."""
    device: Device = "auto"
    """auto, cpu or cuda."""


def run(config: Config) -> None:
    """Grow and export each organism and each taught series of seed 0."""
    for name in ORGANISMS:
        folder = grow(name, config.work, device=config.device, shipped=False)
        export(
            folder / f"checkpoint-{RECIPE.cot_steps}", config.out / name / f"checkpoint-{RECIPE.cot_steps}"
        )
    for name in TAUGHT:
        folder = grow_taught(name, config.work, device=config.device, shipped=False)
        for step in (0, TAUGHT[name].steps):
            export(folder / f"checkpoint-{step}", config.out / name / f"checkpoint-{step}")
    print(f"{config.out}: {', '.join([*ORGANISMS, *TAUGHT])}")


INSTRUMENT = Instrument("organisms", Config, run)
