"""Every instrument in turn, two chains at once, then what reads all that they kept, and the page."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from interp.system.limits import SMALLEST, Known, Margin, Sample
from interp.system.processes import cores

from .chains import run_chains
from .cluster import options
from .cluster.mirror import reachable
from .fields import places
from .registry import Instrument, chains, check_in_all, closing, find
from .remedies import PLAYABLE
from .storing import PROBES, READ_OWN
from .study import Study

#: Part of a GPU's memory that the models of processes side by side may take, at 4 bytes a parameter.
SMALL = 0.05
#: Cores for each of the processes that share a GPU, and most of them.
CORES, MOST = 2, 8


@dataclass
class Config(options.Spread, Study):
    """Every analysis, then the figures."""

    skip: Annotated[tuple[str, ...], Known(check_in_all)] = ()
    """Analyses to leave out."""
    choices: Sample = 0
    """Decisions read by forced choice (0, here and below: as each analysis' --help says)."""
    pairs: Sample = 0
    """Counterfactual pairs, for patching, for prompt reliance and for effects through own traces."""
    conflicts: Sample = 0
    """Decisions whose traces are replaced, or cut."""
    decisions_read: Sample = 0
    """Decisions whose attention and gradient shares are read."""
    games: Sample = 0
    """Games played in domain."""
    online_checkpoints: Sample = 0
    """Checkpoints that play."""
    margin: Margin = SMALLEST
    """Change of the gap that would matter for the claims."""
    store: Annotated[str, Known(reachable)] = ""
    """Where a cluster's machines that share no folder exchange stages and tables, as fsspec has it
    (s3://BUCKET/RUN, gs://...)."""
    dry_run: bool = False
    """Do the first checkpoint alone, and say how long all would take, and how much disk."""

    @cached_property
    def gpu(self) -> str:
        """The GPU that models lie on; "" where they lie on none."""
        if self.device == "cpu":  # said without torch, which takes seconds to import
            return ""
        from interp.models.hooked import pick_device

        device = pick_device(self.device)
        return str(device) if device.type != "cpu" else ""

    def processes(self, chains: int) -> int:
        """How many work side by side: as many as there are chains, and more on a GPU with room for models.

        One on one core, and on GPUs that so many models would fill.
        """
        if cores() == 1 or places(self):  # over all GPUs
            return 1
        if not self.gpu:
            return chains
        import torch

        parameters = self.checkpoint_series.table()["parameters"]
        if parameters.isna().any():
            return 1
        room = SMALL * torch.cuda.get_device_properties(self.gpu).total_memory // (4 * parameters.max())
        return int(min(max(chains, cores() // CORES), MOST, room)) if room >= chains else 1

    def commands(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The command lines of analyses."""
        return [(name, *self.arguments(find(name).config)) for name in names]

    def arguments(self, analysis: type[Study]) -> list[str]:
        """The given options that an analysis knows, as they are written on its command line."""
        found, known = [], {field.name for field in dataclasses.fields(analysis)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "store_decoded":
                value = value or not {PROBES, *READ_OWN} <= set(self.skip)
            if field.name not in known or value == field.default or field.name == "keep_activations":
                continue  # what is stored is given back when all have ended
            words = [] if value is True else map(str, value if isinstance(value, tuple) else [value])
            found += [f"--{field.name}", *words]
        return found


def _import_page() -> None:
    """Import what draws the page; what goes wrong is said where it is drawn."""
    with suppress(Exception):
        importlib.import_module("interp.report.page")


def run(config: Config) -> int:
    """Run what is not left out, then draw; the exit status."""
    from . import figures

    left_out = set(config.skip)
    if (reason := config.env.unplayable()) and "online" not in left_out:
        print(f"left out: online: {reason[0].upper()}{reason[1:]}. {PLAYABLE}", file=sys.stderr)
        left_out.add("online")
    parts = [[name for name in chain if name not in left_out] for chain in chains(config.size == "quick")]
    processes = 0 if config.spreads else config.processes(len(parts))
    if processes == 1:
        parts = [[name for part in parts for name in part]]
    first = [config.commands(part) for part in parts if part]
    then = config.commands([name for name in closing() if name not in left_out])
    if config.dry_run:
        from .cluster import plan

        measured, as_it_is = plan.measure(config, first), plan.Config(config.run)
        print("\n".join(plan.told(measured, as_it_is, plan.simulated(measured, as_it_is))))
        return 0
    if config.spreads:
        from .cluster.driver import spread

        status = spread(first, [then], config, (config.run, config.store) if config.store else None)
    else:
        if not first:
            first, then, processes = [then], [], 1
        gpu = config.gpu if processes > 1 else ""
        threading.Thread(target=_import_page, daemon=True).start()  # while the others work
        status = run_chains(first, then, True, processes, gpu)
    if not status:
        figures.run(figures.Config(config.run / "tables", config.run))
    return status


INSTRUMENT = Instrument("all", Config, run)
