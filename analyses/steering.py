"""Steering along the probe's direction, against random, unembedding and shuffled ones (docs/methods.md 7)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, get_args

import numpy as np

from interp.system.choices import RANDOM, Position
from interp.system.limits import Limits, Sample

from .boundary import boundary_layers
from .labels import labelled
from .registry import Instrument
from .remedies import LABELLED, NotApplicable
from .rows import attempted, mean_row
from .study import Study


@dataclass
class Config(Study):
    """Push decisions of a checkpoint's second most common target towards its most common one."""

    steered: Sample = 0
    """Decisions to steer, in-domain (0: 24 quick, 60 full; at most half: the others give the direction)."""
    alphas: Annotated[tuple[float, ...], Limits(-1000, 1000)] = (0.0, 0.25, 0.5, 1.0)
    """Strengths, in units of the residual's mean norm at the boundary."""
    per_decision: Annotated[int, Limits(0, RANDOM)] = 5
    """Random directions for each decision; the next decision takes the next ones (0: all)."""
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
    """The two classes, and directions from the second to the first, from episodes that are not steered.

    Raises ValueError where their decisions are not of two classes.
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
            f"The {len(rows)} decisions with an action whose episodes are not steered have not two targets "
            "to tell apart."
        )
    (a, _), (b, _) = common
    acts = boundary_layers(config, step, split)[[i for i, _ in rows], layer + 1]
    names = [label for _, label in rows]
    own = config.decoded(step, split, "cot")
    first, second = (
        Counter(own[i].action for i, label in rows if label == c).most_common(1)[0][0] for c in (a, b)
    )
    along = probe_direction(acts, names, a, b)
    by_kind = dict(
        probe=along,
        orthogonal=orthogonal_directions(along, RANDOM, config.seed),
        shuffled=shuffled_direction(acts, names, a, b, seed=config.seed),
        unembedding=unembedding_direction(model, parting_token(config.format, first, second)),
    )
    return a, b, by_kind


def run(config: Config) -> None:
    """Steer, then count; one position at one checkpoint is one resumable stage."""
    started, rows, skipped, made = time.time(), [], {}, {}
    split = config.parts[0]
    prompts = config.prompts(split)
    n = min(config.number(config.steered, 24, 60), len(prompts) // 2)
    if not n:
        raise NotApplicable(
            "There is one decision only, which cannot both give a direction and be steered",
            "Give more decisions.",
        )
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
            **config.stored_as,
        )

        stored = config.stage(
            f"steering/{step}-{position}",
            inputs,
            lambda: attempted(lambda: _steered(config, step, split, position, n, layer)),
        )
        if stored["skipped"]:
            skipped[str(step)] = stored["skipped"]
            continue
        made[f"{step} {position}"] = stored["made"]
        key = dict(step=step, split=split, position=position)
        rows += [key | row for row in _rows(stored["columns"], groups, config.seed)]
    if not rows:
        raise NotApplicable(
            f"No checkpoint has a direction to steer along: {next(iter(skipped.values()))}", LABELLED
        )
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


def _rows(columns: list[dict], groups: np.ndarray, seed: int) -> Iterator[dict]:
    """A row for each metric of each direction and alpha."""
    from interp.measures.steering import METRICS

    for cell in columns:
        for metric in METRICS:
            values, decision = cell[metric]
            named = dict(direction=cell["direction"], alpha=cell["alpha"], metric=metric)
            yield named | mean_row(np.array(values), groups[decision], seed)


def _steered(config: Config, step: int, split: str, position: str, n: int, layer: int) -> dict:
    """What steering of the first `n` decisions changes, by direction and strength."""
    from interp.measures.steering import METRICS, steer

    target, source, by_kind = directions(config, step, split, n, layer)
    result = steer(
        config.model(step),
        config.prompts(split)[:n],
        by_kind,
        layer,
        target=target,
        position=position,
        alphas=config.alphas,
        classify=config.env.classes["target"],
        parser=config.parse,
        per_decision=config.per_decision or None,
        unsteered=config.decoded(step, split, "cot")[:n],
        max_new_tokens=config.limits["cot"],
    )
    columns = []
    for cell in result.cells:
        metrics = {m: [x.tolist() for x in result.column(cell.kind, cell.alpha, m)] for m in METRICS}
        columns.append(dict(direction=cell.kind, alpha=cell.alpha, **metrics))
    made = dict(
        target=target,
        source=source,
        norm=result.norm,
        resample=float(result.resample.mean()),
        path=result.path,
    )
    return dict(columns=columns, made=made)


INSTRUMENT = Instrument("steering", Config, run)
