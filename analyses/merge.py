"""Write one checkpoint of a series as a model folder of its own: whole weights, tokenizer and format.

An adapter is merged into what it was trained on. A training can start from such a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from interp.checkpoints.contents import training_notes
from interp.results.tables import write_json
from interp.system.limits import Existing, Folder

from .fields import Device
from .registry import Instrument


@dataclass
class Config:
    """Which checkpoint, and where to."""

    series: Annotated[Path, Existing()]
    """Folder of the checkpoints."""
    step: int
    """Which of them."""
    out: Annotated[Path, Folder()]
    """Folder to write."""
    base: Annotated[Path | None, Existing()] = None
    """What adapters were trained on, where they do not name it."""
    device: Device = "cpu"
    """Where weights are merged: auto, cpu or cuda."""


def run(config: Config) -> None:
    """Load, merge and save."""
    from interp.checkpoints.series import CheckpointSeries

    if (config.out / "config.json").exists():
        raise ValueError(f"--out: {config.out} holds a model already: give another folder, or remove it.")
    series = CheckpointSeries.discover(config.series, base=config.base)
    model = series.load(config.step, config.device)
    model.hf.save_pretrained(config.out)
    model.tokenizer.save_pretrained(config.out)
    notes = training_notes(series.path(config.step))
    merged = dict(merged_from=str(series.path(config.step)), weights=series.weights_hash(config.step))
    write_json(config.out / "training.json", {**notes, **merged})
    print(f"{config.out}: checkpoint {config.step} of {config.series}")


INSTRUMENT = Instrument("merge", Config, run)
