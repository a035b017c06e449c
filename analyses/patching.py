"""Activation patching at the boundary, the spans and the whole prompt, every layer, both directions, four metrics (docs/methods.md 4.1).

Beside it the first-order estimates of the same effects, and how well they go with them (`interp.measures.attribution`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import numpy as np

from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.models.site_names import every_layer
from interp.stats.intervals import cluster_bootstrap, correlation
from interp.system.choices import Metric
from interp.system.limits import Known, Sample, Several

if TYPE_CHECKING:
    from interp.measures.patching import Sweep

DIRECTIONS = ("denoise", "noise")
SPANS = ("task", "history", "observation", "prompt")
METRICS = get_args(Metric)


def site(name: str) -> None:
    """Raise ValueError for a site that cannot be patched at every layer."""
    every_layer([name])


@dataclass
class Config(Study):
    """Counterfactual pairs by symmetric renaming, the same pairs at every checkpoint."""

    pairs: Sample = 0
    """Pairs patched at the boundary (0: 30 quick, 60 full)."""
    sites: Annotated[tuple[str, ...], Known(site)] = ("resid_pre",)
    """Sites to patch."""
    modes: tuple[Literal["prompt", "cot"], ...] = ("prompt", "cot")
    """Where the action is read: right after the boundary, or after the trace."""
    metrics: Annotated[tuple[Metric, ...], Several(none=True)] = METRICS
    """What effects are measured on (see interp.measures.patching.Sweep), beside the summed difference."""
    spans: Annotated[tuple[Literal["template", *SPANS], ...], Several(none=True)] = SPANS
    """Where else all positions are patched together, each cell a pass over most of the prompt; the screen estimates the same."""
    span_pairs: Sample = 0
    """Pairs patched at the spans, the first of them all (0: 12 quick, all full)."""
    span_checkpoints: Sample = 0
    """Checkpoints patched at the spans, evenly chosen with first and last (0: 2 quick, all full)."""


def _stored(sweep: Sweep) -> dict[str, list]:
    return {
        direction: np.nan_to_num(getattr(sweep, direction), nan=-1e9).tolist() for direction in DIRECTIONS
    }


def _read(stored: dict) -> dict[str, np.ndarray]:
    found = {direction: np.array(stored[direction]) for direction in DIRECTIONS}
    return {direction: np.where(values > -1e8, values, np.nan) for direction, values in found.items()}


def run(config: Config) -> None:
    """Sweep, then average over pairs with intervals that resample episodes."""
    from interp.measures.attribution import at_span, attribute_modes
    from interp.measures.patching import patch_modes

    started, rows, paths, small = time.time(), [], set(), {}
    split = config.parts[0]
    clean, corrupt, dropped = config.pairs_of(split, config.number(config.pairs, 30, 60))
    if not clean:
        raise NotApplicable(
            f"No decision has a counterfactual twin ({dropped}), so there is nothing to patch."
        )
    few = min(len(clean), config.number(config.span_pairs, 12, len(clean)))
    wanted = (
        min(len(config.steps), config.number(config.span_checkpoints, 2, len(config.steps)))
        if config.spans
        else 0
    )
    spanned = {config.steps[round(i)] for i in np.linspace(0, len(config.steps) - 1, wanted)}
    episodes, metrics = (
        [p.decision.episode for p in clean],
        [m for m in METRICS if m == "difference" or m in config.metrics],
    )
    for step, _ in config.cells("patching", [split]):
        inputs = dict(
            config.inputs(step),
            pairs=config.digest([*clean, *corrupt]),
            sites=config.sites,
            modes=config.modes,
            metrics=metrics,
        )

        def sweep(n, at):
            sweeps = patch_modes(
                config.model(step), clean[:n], corrupt[:n], config.sites, at, config.modes, metrics=metrics
            )
            return {
                f"{place} {mode}": dict(
                    sites=s.sites, path=s.path, metrics={m: _stored(s.of(m)) for m in metrics}
                )
                for (place, mode), s in sweeps.items()
            }

        def screen():
            found = attribute_modes(
                config.model(step), clean[:few], corrupt[:few], config.sites, config.modes
            )
            return {
                f"{place} {mode}": _stored(at_span(s, clean[:few], place))
                for mode, s in found.items()
                for place in ("boundary", *config.spans)
            }

        found, estimated = (
            config.stage(f"patching/{step}", inputs, lambda: sweep(len(clean), ["boundary"])),
            {},
        )
        if step in spanned:
            more = dict(inputs, spans=config.spans, pairs=config.digest([*clean[:few], *corrupt[:few]]))
            found |= config.stage(f"patching/{step}-spans", more, lambda: sweep(few, config.spans))
            estimated = config.stage(f"patching/{step}-attribution", dict(more, metrics=()), screen)
        cells: dict[tuple[str, str], list] = {}
        for key, of in found.items():
            at, mode = key.split()
            paths.add(of["path"])
            values = {m: _read(v) for m, v in of["metrics"].items()} | (
                {"attribution": _read(estimated[key])} if key in estimated else {}
            )
            for metric, direction in ((m, d) for m in values for d in DIRECTIONS):
                value = values[metric][direction]
                kept = np.isfinite(value[:, 0, 0])
                if at == "boundary" and metric != "attribution":
                    small.setdefault(mode, {}).setdefault(metric, {})[str(step)] = int((~kept).sum())
                for s, site in enumerate(of["sites"]):
                    for layer in range(value.shape[2]):
                        rows.append(
                            dict(
                                step=step,
                                mode=mode,
                                layer=layer,
                                site=site,
                                direction=direction,
                                at=at,
                                metric=metric,
                                **_mean(
                                    value[kept, s, layer],
                                    [e for e, k in zip(episodes, kept) if k],
                                    config.seed,
                                ),
                                n_dropped=int((~kept).sum()),
                            )
                        )
            if key in estimated and at != "prompt":  # which is the spans once more
                for direction in DIRECTIONS:
                    cells.setdefault((mode, direction), []).append(
                        (values["attribution"][direction], values["difference"][direction][:few])
                    )
        for (mode, direction), sides in cells.items():
            for s, site in enumerate(next(iter(found.values()))["sites"]):
                x, y = (np.concatenate([side[:, s] for side in of], axis=1) for of in zip(*sides))
                for kind in ("pearson", "spearman"):
                    estimate = correlation(x, y, episodes[:few], kind, seed=config.seed)
                    rows.append(
                        dict(
                            step=step,
                            mode=mode,
                            layer=-1,
                            site=site,
                            direction=direction,
                            at="spans",
                            metric=f"attribution_{kind}",
                            **estimate.row(),
                            n_dropped=few - estimate.n,
                        )
                    )
    lacking = {
        at: sum(not len(p.positions(at)) for p in clean[:few]) for at in config.spans if at != "prompt"
    }
    config.write(
        "patching",
        rows,
        started,
        [*clean, *corrupt],
        pairs=len(clean),
        not_paired=dropped,
        path=sorted(paths),
        small_denominator=small,
        span_pairs=few,
        lacking_span=lacking,
        minimum=1.0,
    )


def _mean(values: np.ndarray, groups: list[str], seed: int) -> dict:
    if not len(values):
        return dict(value=np.nan, low=np.nan, high=np.nan, n=0, n_groups=0)
    return cluster_bootstrap(values, groups, seed=seed).row()


INSTRUMENT = Instrument("patching", Config, run, in_all=(1, 1))
