"""Activation patching at the prompt boundary, every layer and checkpoint, both directions (METHODS 4)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from analyses.study import NotApplicable, Study
from interp.pairs import make_pairs
from interp.patching import patch_modes
from interp.stats import cluster_bootstrap


@dataclass
class Config(Study):
    """Counterfactual pairs by symmetric renaming, the same pairs at every checkpoint."""

    pairs: int = 0
    """Pairs (0: 30 quick, 60 full)."""
    sites: tuple[str, ...] = ("resid_pre",)
    """Sites to patch."""
    modes: tuple[str, ...] = ("prompt", "cot")
    """Where the action is read: right behind the boundary, or behind the trace."""


def run(config: Config) -> None:
    """Sweep, then average over pairs with intervals that resample episodes."""
    started, rows, paths = time.time(), [], set()
    split = config.parts[0]
    step = config.steps[0]
    config.model(step)
    decisions = [d for e in config.episodes[split] for d in e.decisions()]
    clean, corrupt, dropped = make_pairs(config.format, decisions, config.number(config.pairs, 30, 60), config.seed)
    if not clean:
        raise NotApplicable(f"No decision has a counterfactual twin ({dict(dropped)}), so there is nothing to patch.")
    for step, _ in config.cells("patching", [split]):
        inputs = dict(config.inputs(step), pairs=config.digest([*clean, *corrupt]), sites=config.sites, modes=config.modes)

        def compute():
            sweeps = patch_modes(config.model(step), clean, corrupt, config.sites, modes=config.modes)
            return {mode: dict(sites=s.sites, path=s.path, denoise=np.nan_to_num(s.denoise, nan=-1e9).tolist(),
                               noise=np.nan_to_num(s.noise, nan=-1e9).tolist()) for mode, s in sweeps.items()}

        found = config.stage(f"patching/{step}", inputs, compute)
        for mode in config.modes:
            paths.add(found[mode]["path"])
            for direction in ("denoise", "noise"):
                values = np.array(found[mode][direction])
                kept = values[:, 0, 0] > -1e8
                groups = [p.decision.episode for p, k in zip(clean, kept) if k]
                for s, site in enumerate(found[mode]["sites"]):
                    for layer in range(values.shape[2]):
                        estimate = (cluster_bootstrap(values[kept, s, layer], groups, seed=config.seed).row() if kept.any()
                                    else dict(value=np.nan, low=np.nan, high=np.nan, n=0, n_groups=0))
                        rows.append(dict(step=step, mode=mode, layer=layer, site=site, direction=direction, **estimate,
                                         n_dropped=int((~kept).sum())))
    config.write("patching", rows, started, [*clean, *corrupt], pairs=len(clean), not_paired=dict(dropped), path=sorted(paths))
