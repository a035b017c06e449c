"""Modules by the names that they had before the packages, importable for one release."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Name below `interp` before -> now.
MOVED = {
    "actions": "tasks.actions",
    "adapters": "checkpoints.adapters",
    "alfworld": "environments.alfworld",
    "architecture": "checkpoints.differences",
    "architectures": "models.architectures",
    "arm_panels": "plots.condition_panels",
    "arm_rows": "results.condition_rows",
    "arms": "stats.crossed",
    "attribution": "measures.attribution",
    "bfcl": "environments.bfcl.environment",
    "bfcl_calls": "environments.bfcl.calls",
    "bfcl_scoring": "environments.bfcl.scoring",
    "capturing": "engine.capturing",
    "checks": "checkpoints.checks",
    "conflicts": "measures.conflicts",
    "conversions": "checkpoints.conversions",
    "cookingworld_record": "environments.textworldexpress.cookingworld",
    "decoding": "engine.decoding",
    "directions": "probing.directions",
    "early": "measures.early",
    "encoding": "prompts.encoding",
    "engines": "rollouts.workers",
    "files": "checkpoints.files",
    "finite": "models.finite",
    "folders": "checkpoints.folders",
    "generation": "engine.generation",
    "headers": "checkpoints.headers",
    "headline": "results.headline",
    "hooks": "models.hooks",
    "identity": "checkpoints.identity",
    "inner": "models.inner",
    "java": "environments.java",
    "json_files": "system.json_files",
    "json_lines": "tasks.json_lines",
    "limits": "system.limits",
    "logistic": "probing.logistic",
    "mdl": "probing.mdl",
    "mediation": "measures.reliance",
    "names": "checkpoints.names",
    "notes": "checkpoints.notes",
    "organisms": "training.organisms",
    "packing": "engine.packing",
    "pairs": "measures.pairs",
    "pairwise": "probing.pairwise",
    "patching": "measures.patching",
    "phrases": "environments.phrases",
    "placing": "prompts.placing",
    "probe_inputs": "probing.inputs",
    "probes": "probing.probes",
    "processes": "system.processes",
    "quantised": "checkpoints.quantised",
    "readers": "probing.baselines",
    "recording": "environments.recording",
    "records": "results.records",
    "reinforcement": "training.reinforcement",
    "rendering": "prompts.rendering",
    "rollout": "rollouts.play",
    "rows": "tasks.rows",
    "scienceworld": "environments.scienceworld.environment",
    "scienceworld_record": "environments.scienceworld.record",
    "scores": "probing.metrics",
    "series": "checkpoints.series",
    "shares": "measures.shares",
    "sites": "models.sites",
    "solver": "probing.solver",
    "steering": "measures.steering",
    "store": "engine.store",
    "style": "plots.theme",
    "styles": "prompts.styles",
    "supervision": "training.supervision",
    "support": "models.support",
    "sweeps": "engine.sweeps",
    "tables": "results.tables",
    "templates": "prompts.templates",
    "tex": "plots.latex",
    "textworldexpress": "environments.textworldexpress.environment",
    "transfer": "probing.transfer",
    "turns": "models.turns",
    "twc_record": "environments.textworldexpress.twc",
    "unembedding": "models.unembedding",
    "unpacking": "system.unpacking",
    "user_code": "system.user_code",
    "vllm": "engine.vllm_backend",
    "weights": "checkpoints.weights",
    "whole": "models.whole",
}


class Moved(MetaPathFinder, Loader):
    """Finds `interp.series` at `interp.checkpoints.series`, with a DeprecationWarning that says so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that has moved; None for any other."""
        top, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if top == "interp" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in its place."""
        name = module.__name__.partition(".")[2]
        now = f"interp.{MOVED[name]}"
        warnings.warn(f"interp.{name} is now {now}.", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(now)
