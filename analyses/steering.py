"""Steering along the probe's direction, against random, unembedding and shuffled ones (docs/methods.md 7)."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, get_args

import numpy as np

from analyses.probes import boundary_layers, labelled
from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.stats.intervals import cluster_bootstrap
from interp.system.choices import RANDOM, Position
from interp.system.limits import Limits, Sample


@dataclass
class Config(Study):
    """The two most common targets of a checkpoint's own actions: the second's decisions are pushed towards the first's."""

    steered: Sample = 0
    """Decisions to steer, in-domain (0: 24 quick, 60 full; at most half of them, the others give the direction)."""
    alphas: Annotated[tuple[float, ...], Limits(-1000, 1000)] = (0.0, 0.25, 0.5, 1.0)
    """Strengths, in units of the residual's mean norm at the boundary."""
    per_decision: Annotated[int, Limits(0, RANDOM)] = 5
    """Of the random directions, how many each decision is steered along; the next decision takes the next ones (0: all)."""
    positions: tuple[Position, ...] = get_args(Position)
    """Which tokens are steered."""
    layer: Annotated[int, Limits(-1)] = -1
    """Block whose output is steered (-1: the middle one)."""

    def check(self) -> None:
        """Raises as `Study.check` does, and for a block that the model does not have."""
        super().check()
        if self.revisions:
            return  # what is on a hub is read when it is fetched
        from interp.checkpoints.checks import configuration

        read = configuration(
            self.checkpoint_series.checkpoint(self.steps[0]), self.trust_remote_code
        ).get_text_config()
        if self.layer >= read.num_hidden_layers:
            raise ValueError(
                f"--layer is {self.layer}, but the model's blocks are 0 to {read.num_hidden_layers - 1}."
            )


def directions(
    config: Config, step: int, split: str, n: int, layer: int
) -> tuple[str, str, dict[str, np.ndarray]]:
    """The two classes, and the directions from the second to the first, of the decisions whose episodes are not steered.

    Raises ValueError where those decisions are not of two classes.
    """
    from interp.probing.directions import (
        orthogonal_directions,
        parting_token,
        probe_direction,
        shuffled_direction,
        unembedding_direction,
    )

    prompts, model = config.prompts(split), config.model(step)
    episodes = {p.decision.episode for p in prompts[:n]}
    kept, labels = labelled(config, step, split, "eventual_target")
    rows = [(i, label) for i, label in zip(kept, labels) if prompts[i].decision.episode not in episodes]
    common = Counter(label for _, label in rows).most_common(2)
    if len(common) < 2:
        raise ValueError(
            f"The {len(rows)} decisions with an action whose episodes are not steered have not two targets to tell apart."
        )
    (a, _), (b, _) = common
    acts, names = (
        boundary_layers(config, step, split)[[i for i, _ in rows], layer + 1],
        [label for _, label in rows],
    )
    said = config.decoded(step, split, "cot")
    first, second = (
        Counter(said[i].action for i, label in rows if label == c).most_common(1)[0][0] for c in (a, b)
    )
    w = probe_direction(acts, names, a, b)
    return (
        a,
        b,
        dict(
            probe=w,
            orthogonal=orthogonal_directions(w, RANDOM, config.seed),
            shuffled=shuffled_direction(acts, names, a, b, seed=config.seed),
            unembedding=unembedding_direction(model, parting_token(config.format, first, second)),
        ),
    )


def run(config: Config) -> None:
    """Steer, then count; one position at one checkpoint is one resumable stage."""
    from interp.measures.steering import METRICS, steer

    started, rows, skipped, made = time.time(), [], {}, {}
    split = config.parts[0]
    prompts = config.prompts(split)
    n = min(config.number(config.steered, 24, 60), len(prompts) // 2)
    if not n:
        raise NotApplicable("There is one decision only, which cannot both give a direction and be steered.")
    groups = np.array([p.decision.episode for p in prompts[:n]])
    steps = config.steps if config.size == "full" else sorted({config.steps[0], config.steps[-1]})
    for step, position in config.cells("steering", config.positions, steps):
        model = config.model(step)
        layer = (model.n_layers - 1) // 2 if config.layer < 0 else config.layer
        inputs = dict(
            config.inputs(step, split),
            n=n,
            alphas=config.alphas,
            position=position,
            layer=layer,
            limits=config.limits,
            per_decision=config.per_decision,
        )

        def compute():
            try:
                a, b, given = directions(config, step, split, n, layer)
            except (
                ValueError
            ) as problem:  # nothing parsed, or always the same: said in the provenance, the others go on
                return dict(skipped=str(problem))
            found = steer(
                model,
                prompts[:n],
                given,
                layer,
                target=a,
                position=position,
                alphas=config.alphas,
                classify=config.env.classes["target"],
                parser=config.parse,
                per_decision=config.per_decision or None,
                unsteered=config.decoded(step, split, "cot")[:n],
                max_new_tokens=config.limits["cot"],
            )
            columns = [
                dict(
                    direction=c.kind,
                    alpha=c.alpha,
                    **{m: [x.tolist() for x in found.column(c.kind, c.alpha, m)] for m in METRICS},
                )
                for c in found.cells
            ]
            return dict(
                skipped="",
                columns=columns,
                made=dict(
                    target=a,
                    source=b,
                    norm=found.norm,
                    resample=float(found.resample.mean()),
                    path=found.path,
                ),
            )

        found = config.stage(f"steering/{step}-{position}", inputs, compute)
        if found["skipped"]:
            skipped[str(step)] = found["skipped"]
            continue
        made[f"{step} {position}"] = found["made"]
        for cell in found["columns"]:
            for metric in METRICS:
                values, decision = cell[metric]
                estimate = (
                    cluster_bootstrap(np.array(values), groups[decision], seed=config.seed).row()
                    if values
                    else dict(value=np.nan, low=np.nan, high=np.nan, n=0, n_groups=0)
                )
                place = dict(
                    step=step,
                    split=split,
                    position=position,
                    direction=cell["direction"],
                    alpha=cell["alpha"],
                    metric=metric,
                )
                rows.append(place | estimate)
    if not rows:
        raise NotApplicable(f"No checkpoint has a direction to steer along: {next(iter(skipped.values()))}")
    config.write(
        "steering",
        rows,
        started,
        layer=layer,
        directions=RANDOM,
        per_decision=config.per_decision or RANDOM,
        made=made,
        skipped=skipped,
    )


INSTRUMENT = Instrument("steering", Config, run)
