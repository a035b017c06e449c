"""Activation patching at the boundary, the action tag, the spans and the whole prompt (docs/methods.md 4.1).

Every layer, both directions, four metrics; beside it first-order estimates of the same effects
(`interp.measures.attribution`) and their correlation with the true ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from interp.models.site_names import every_layer
from interp.prompts.format import Prompt
from interp.stats.intervals import correlation
from interp.system.choices import Metric
from interp.system.limits import Known, Sample, Several

from .registry import Instrument
from .remedies import EXCHANGED, NotApplicable
from .rows import mean_row, twins
from .study import Study

if TYPE_CHECKING:
    from interp.measures.patching import Sweep

DIRECTIONS = ("denoise", "noise")
SPANS = ("task", "history", "observation", "prompt")
#: Places of one token, patched in all pairs.
ALONE = ("boundary", "action_tag")
METRICS = get_args(Metric)
#: Pairs whose estimates are kept by token, at the first and the last checkpoint, and tokens kept of each.
PAIRS_BY_TOKEN, TOKENS = 20, 20


def site(name: str) -> None:
    """Raise ValueError for a site that cannot be patched at every layer."""
    every_layer([name])


@dataclass
class Config(Study):
    """Counterfactual pairs by symmetric renaming, the same pairs at every checkpoint."""

    pairs: Sample = 0
    """Pairs patched at the boundary and at the action tag (0: 30 quick, 60 full)."""
    sites: Annotated[tuple[str, ...], Known(site)] = ("resid_pre",)
    """Sites to patch."""
    modes: tuple[Literal["prompt", "cot"], ...] = ("prompt", "cot")
    """Where the action is read: right after the boundary, or after the trace."""
    metrics: Annotated[tuple[Metric, ...], Several(none=True)] = METRICS
    """What effects are measured on (see interp.measures.patching.Sweep), beside the summed difference."""
    spans: Annotated[tuple[Literal["template", *SPANS], ...], Several(none=True)] = SPANS
    """Spans whose positions are patched together, each cell a pass over most of the prompt."""
    span_pairs: Sample = 0
    """Pairs patched at the spans, the first of them all (0: 12 quick, all full)."""
    span_checkpoints: Sample = 0
    """Checkpoints patched at the spans, evenly chosen with first and last (0: 2 quick, all full)."""


@dataclass(frozen=True)
class Pairs:
    """Decisions and their twins with two names swapped."""

    clean: list[Prompt]
    corrupt: list[Prompt]

    def first(self, n: int) -> Pairs:
        """The first `n` pairs."""
        return Pairs(self.clean[:n], self.corrupt[:n])

    @property
    def episodes(self) -> list[str]:
        """The cluster of each pair."""
        return [prompt.decision.episode for prompt in self.clean]

    @property
    def both(self) -> list[Prompt]:
        """All prompts."""
        return [*self.clean, *self.corrupt]


#: Effects of one direction, [pair, site, layer].
Effects = Float[np.ndarray, "pair site layer"]
#: Where and in which mode -> metric -> direction -> effects.
Swept = dict[tuple[str, str], dict[str, dict[str, Effects]]]
#: Where, in which mode, metric and direction -> the pairs that every checkpoint keeps.
Common = dict[tuple[str, str, str, str], Bool[np.ndarray, "pair"]]


def run(config: Config) -> None:
    """Sweep, then average over the pairs that every checkpoint keeps, with intervals by episode."""
    started, split, rows = time.time(), config.parts[0], []
    clean, corrupt, dropped = config.pairs_of(split, config.number(config.pairs, 30, 60))
    if not clean:
        raise NotApplicable(f"No decision has a counterfactual twin ({dropped})", EXCHANGED)
    pairs = Pairs(clean, corrupt)
    few = pairs.first(config.number(config.span_pairs, 12, len(clean)))
    with_spans = config.spread(config.number(config.span_checkpoints, 2, len(config.steps)))
    paths: set[str] = set()
    small: dict[str, dict[str, dict[str, int]]] = {}
    by_step: dict[int, Swept] = {}
    for step, _ in config.cells("patching", [split]):
        sweeps = _stages(config, step, pairs, few if config.spans and step in with_spans else None)
        swept = {place: sweep["metrics"] for place, sweep in sweeps.items()}
        sites = next(iter(sweeps.values()))["sites"]
        paths |= {sweep["path"] for sweep in sweeps.values()}
        for (at, mode), metrics in swept.items():
            for metric, by_direction in metrics.items():
                if at == "boundary" and metric != "attribution":
                    lost = int(np.isnan(by_direction["noise"][:, 0, 0]).sum())
                    small.setdefault(mode, {}).setdefault(metric, {})[str(step)] = lost
        by_step[step] = swept
    common = _common(by_step.values())
    for step, swept in by_step.items():
        rows += _effects(config, step, swept, common, sites, pairs.episodes)
        rows += _correlations(config, step, swept, sites, few.episodes)
    lacking = {
        at: sum(not len(prompt.positions(at)) for prompt in few.clean)
        for at in config.spans
        if at != "prompt"
    }
    config.write(
        "patching",
        rows,
        started,
        pairs.both,
        pairs=len(clean),
        not_paired=dropped,
        path=sorted(paths),
        small_denominator=small,
        span_pairs=len(few.clean),
        lacking_span=lacking,
        minimum=1.0,
    )


def _stages(config: Config, step: int, pairs: Pairs, few: Pairs | None) -> dict[tuple[str, str], dict]:
    """A checkpoint's sweeps by place and mode, each with its sites, path and metrics; `few`: pairs of the
    spans.

    The places of one token, the spans and the first-order estimates are one resumable stage each.
    """
    metrics = [metric for metric in METRICS if metric == "difference" or metric in config.metrics]
    inputs = dict(
        config.inputs(step),
        pairs=config.digest(pairs.both),
        sites=config.sites,
        modes=config.modes,
        metrics=metrics,
        places=ALONE,
    )
    stored = config.stage(f"patching/{step}", inputs, lambda: _sweep(config, step, pairs, ALONE, metrics))
    estimated = {}
    if few:
        inputs |= dict(spans=config.spans, pairs=config.digest(few.both))
        stored |= config.stage(
            f"patching/{step}-spans", inputs, lambda: _sweep(config, step, few, config.spans, metrics)
        )
        by_token = PAIRS_BY_TOKEN if step in (config.steps[0], config.steps[-1]) else 0
        estimated = config.stage(
            f"patching/{step}-attribution",
            dict(inputs, metrics=(), by_token=by_token),
            lambda: _screen(config, step, few, by_token),
        )
    sweeps = {}
    for key, sweep in stored.items():
        at, mode = key.split()
        effects = sweep["metrics"] | ({"attribution": estimated[key]} if key in estimated else {})
        arrays = {
            metric: {direction: np.array(each[direction], dtype=float) for direction in DIRECTIONS}
            for metric, each in effects.items()
        }
        sweeps[at, mode] = dict(sweep, metrics=arrays)
    return sweeps


def _sweep(config: Config, step: int, pairs: Pairs, at: Sequence[str], metrics: list[str]) -> dict[str, dict]:
    """True effects, by `place mode`."""
    from interp.measures.patching import patch_modes

    model = config.model(step)
    sweeps = patch_modes(model, pairs.clean, pairs.corrupt, config.sites, at, config.modes, metrics=metrics)
    return {
        f"{place} {mode}": dict(
            sites=sweep.sites,
            path=sweep.path,
            pairs=twins(pairs.clean, pairs.corrupt),
            metrics={metric: _stored(sweep.of(metric)) for metric in metrics},
        )
        for (place, mode), sweep in sweeps.items()
    }


def _screen(config: Config, step: int, pairs: Pairs, by_token: int) -> dict[str, Any]:
    """First-order estimates of the effects, by `place mode`, and of the first pairs by token."""
    from interp.measures.attribution import at_span, attribute_modes

    model = config.model(step)
    sweeps = attribute_modes(model, pairs.clean, pairs.corrupt, config.sites, config.modes)
    estimates: dict[str, Any] = {
        f"{place} {mode}": _stored(at_span(sweep, pairs.clean, place))
        for mode, sweep in sweeps.items()
        for place in ("boundary", *config.spans)
    }
    first = pairs.first(by_token).clean
    tokens = [dict(row, mode=mode) for mode, sweep in sweeps.items() for row in _by_token(sweep, first)]
    return estimates | dict(tokens=tokens)


def _by_token(sweep: Sweep, clean: Sequence[Prompt]) -> Iterator[dict]:
    """Estimates of the first pairs by layer, at the tokens where they are largest (heads are left out)."""
    for (pair, prompt), (s, site), direction in product(enumerate(clean), enumerate(sweep.sites), DIRECTIONS):
        grid = getattr(sweep, direction)[pair, s, :, : len(prompt.ids)]
        if "." in site or not np.isfinite(grid).all():
            continue
        largest = np.abs(grid).max(0)
        for position in sorted(np.argsort(-largest, kind="stable")[:TOKENS].tolist()):
            if largest[position]:
                yield dict(
                    decision=prompt.decision.id,
                    site=site,
                    direction=direction,
                    position=position,
                    token=sweep.tokens[pair][position],
                    effect=grid[:, position].round(4).tolist(),
                )


def _stored(sweep: Sweep) -> dict[str, list]:
    return {direction: np.asarray(getattr(sweep, direction)).tolist() for direction in DIRECTIONS}


def _kept(effects: Effects) -> Bool[np.ndarray, "pair"]:
    """The pairs that have effects: they have the span, and the runs differ by the minimum."""
    return np.isfinite(effects[:, 0, 0])


def _common(by_step: Iterable[Swept]) -> Common:
    """The pairs that are kept at every checkpoint at which a place is swept."""
    common: Common = {}
    for swept in by_step:
        for (at, mode), metrics in swept.items():
            for metric, direction in product(metrics, DIRECTIONS):
                key, kept = (at, mode, metric, direction), _kept(metrics[metric][direction])
                common[key] = common[key] & kept if key in common else kept
    return common


def _effects(
    config: Config, step: int, swept: Swept, common: Common, sites: list[str], episodes: list[str]
) -> Iterator[dict]:
    """A row for each mean over the common pairs, beside that over all that this checkpoint keeps."""
    for (at, mode), metrics in swept.items():
        for metric, direction in product(metrics, DIRECTIONS):
            values = metrics[metric][direction]
            own, kept = _kept(values), np.flatnonzero(common[at, mode, metric, direction])
            groups = [episodes[pair] for pair in kept]
            for (s, site), layer in product(enumerate(sites), range(values.shape[2])):
                yield dict(
                    step=step,
                    mode=mode,
                    layer=layer,
                    site=site,
                    direction=direction,
                    at=at,
                    metric=metric,
                    **mean_row(values[kept, s, layer], groups, config.seed),
                    n_dropped=len(values) - len(kept),
                    value_own=values[own, s, layer].mean() if own.any() else np.nan,
                    n_own=int(own.sum()),
                )


def _correlations(
    config: Config, step: int, swept: Swept, sites: list[str], episodes: list[str]
) -> Iterator[dict]:
    """A row for each correlation of estimated and true effects; the whole prompt is the spans once more."""
    screened = {
        place: metrics
        for place, metrics in swept.items()
        if "attribution" in metrics and place[0] != "prompt"
    }
    few = len(episodes)
    for mode in dict.fromkeys(mode for _, mode in screened):
        here = [metrics for (_, its_mode), metrics in screened.items() if its_mode == mode]
        for direction, (s, site), kind in product(DIRECTIONS, enumerate(sites), ("pearson", "spearman")):
            estimated, true = (
                np.concatenate([metrics[name][direction][:few, s] for metrics in here], axis=1)
                for name in ("attribution", "difference")
            )
            estimate = correlation(estimated, true, episodes, kind, seed=config.seed)
            yield dict(
                step=step,
                mode=mode,
                layer=-1,
                site=site,
                direction=direction,
                at="spans",
                metric=f"attribution_{kind}",
                **estimate.row(),
                n_dropped=few - estimate.n,
                value_own=estimate.value,
                n_own=estimate.n,
            )


INSTRUMENT = Instrument("patching", Config, run, in_all=(1, 1))
