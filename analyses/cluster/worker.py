"""A unit of a study, done in this process: one model stays loaded, and settings are read once."""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from interp.results.shown import Incomplete

from .. import resident, stages
from ..command import check_values, configured, told
from ..registry import find
from ..running import run_analysis
from ..unchanged import unchanged
from .mirror import Mirror
from .units import Command, Result, Status, Unit

if TYPE_CHECKING:
    from ..study import Study


class Worker:
    """Does units, and keeps from one to the next what they share.

    Args:
        copy: a run's folder and the URL of its `Mirror`, where machines share no folder.
        gpus: how many this worker has; of one that it shares it takes no more memory than its part.
    """

    def __init__(self, copy: tuple[Path, str] | None = None, gpus: float = 0.0) -> None:
        self.mirror = Mirror(*copy) if copy else None
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        warnings.simplefilter("ignore", Incomplete)  # tables say how many there are
        if 0 < gpus < 1:
            resident.share_gpu(gpus)
        resident.keep()
        self.studies: dict[Command, Study] = {}

    def do(self, unit: Unit, ahead: int | None = None) -> Result:
        """A unit, and what it printed.

        ahead: the checkpoint that this worker probably reads next.
        """
        started, printed = time.time(), io.StringIO()
        sys.argv[1:] = unit.command  # what the table's provenance says it was made by
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                if self.mirror:
                    self.mirror.pull()
                result = self._do(unit, ahead)
                if self.mirror:
                    self.mirror.push()
            except Exception as error:
                if os.environ.get("INTERP_DEBUG"):
                    raise
                status: Status = "left out" if getattr(error, "left_out", False) else "failed"
                result = Result(status, told(error, unit.command[0]))
        return replace(result, said=printed.getvalue(), seconds=round(time.time() - started, 2))

    def _do(self, unit: Unit, ahead: int | None) -> Result:
        try:
            if unit.kind == "whole":
                name, *rest = unit.command
                config = configured(find(name).config, rest, name)
                if status := run_analysis(name, config, draw=False):
                    raise ValueError(f"it ended with the exit status {status}")
                return Result("done")
            study = self._study(unit.command)
            if unit.kind == "list" and unchanged(study, unit.command[0]):
                return Result("done")
            study.unit = stages.Unit(unit.cell, ahead, unit.shard)
            with suppress(stages.CellRead):
                find(unit.command[0]).run(study)
        except stages.Cells as found:
            return Result("done", cells=found.args[0])
        except stages.Shards as missing:
            return Result("split", shards=missing.args[0])
        except stages.Busy:
            return Result("busy")
        return Result("done")

    def by_decision(self, command: Command) -> list[float]:
        """Seconds of an analysis' stages that shards of decisions share."""
        return self.studies[command].by_decision

    def _study(self, command: Command) -> Study:
        """The study of a command line, with the prompts and pairs that it made for earlier units."""
        if command not in self.studies:
            name, *rest = command
            study = configured(find(name).config, rest, name)
            check_values(study)
            self.studies[command] = study
        return self.studies[command]
