"""Whole games in the environment, in both modes, the same games at every checkpoint (docs/methods.md 2.6)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.prompts.format import Mode
from interp.rollouts.workers import Engines, engines
from interp.system.limits import Sample, StepLimit, Workers

from .decodings import generator
from .progress import displayed
from .registry import Instrument
from .remedies import PLAYABLE, NotApplicable
from .rows import mean_row
from .study import Study

if TYPE_CHECKING:
    from interp.rollouts.play import Routing


@dataclass
class Config(Study):
    """Unseen games; of ALFWorld generated ones, or with `official` its own, from $ALFWORLD_DATA."""

    games: Sample = 0
    """In-domain games (0: 20 quick, 60 full); half as many out of domain, where games are longer."""
    online_checkpoints: Sample = 0
    """Checkpoints that play, evenly chosen with first and last (0: 4 quick, all full)."""
    step_limit: StepLimit = 30
    """Steps after which a game is lost."""
    workers: Workers = 2
    """Processes that the games are played in."""


def run(config: Config) -> None:
    """Play, batched over games; a checkpoint's games are one resumable stage for each mode."""
    started, rows, env, truncated, steps = time.time(), [], config.env, 0, 0
    if reason := env.unplayable():
        raise NotApplicable(f"{reason[0].upper()}{reason[1:]}", PLAYABLE)
    chosen = config.spread(config.number(config.online_checkpoints, 4, len(config.steps)))
    with engines(env.live, config.workers) as pool:
        for step, split in config.cells("online", steps=chosen):
            for mode in ("prompt", "cot"):
                results = played_games(config, step, split, mode, pool, config.number(config.games, 20, 60))
                truncated += sum(game["truncated"] for game in results)
                steps += sum(game["steps"] for game in results)
                rows += _rows(config, results, dict(step=step, split=split, mode=mode))
    extra = {}
    if config.truncate != "none":
        extra["truncation"] = dict(policy=config.truncate, decisions=steps, truncated=truncated)
    games = "generated" if env.name == "alfworld" else env.name
    config.write(
        "online_official" if config.official else "online",
        rows,
        started,
        games="ALFWorld's valid_seen" if config.official else games,
        **extra,
    )


def played_games(
    config: Config,
    step: int,
    split: str,
    mode: Mode,
    pool: Engines,
    count: int,
    routing: Routing | None = None,
) -> list[dict]:
    """Games that a checkpoint plays in one mode, or routed; a resumable stage.

    Args:
        count: in-domain games; half as many are played out of domain.
        routing: which steps are played at once.
    """
    from interp.rollouts.play import play

    n = count if split == "in_domain" else (count + 1) // 2
    inputs = dict(
        config.inputs(step),
        format=config.format.hash,
        mode=mode,
        n=n,
        limit=config.step_limit,
        tokens=config.limits[mode],
        official=config.official,
        generator=config.generator,
    )
    if config.env.source:
        inputs["environment"] = config.env.source
    if routing:
        inputs["routing"] = asdict(routing)

    def compute() -> list[dict]:
        with generator(config, step) as engine:
            results = play(
                config.model(step),
                config.format,
                config.env,
                config.pick_games(split, n, config.seed),
                mode,
                pool,
                step_limit=config.step_limit,
                max_new_tokens=config.limits,
                progress=not displayed(),
                routing=routing,
                engine=engine,
            )
        return [asdict(result) for result in results]

    kind = f"{mode}-routed" if routing else mode
    return config.stage(f"online/{step}-{split}-{kind}", inputs, compute)


def _rows(config: Config, results: list[dict], key: dict) -> Iterator[dict]:
    """A row for each metric of some games."""
    columns = dict(success="won", steps="steps", tokens="tokens", unparsed="unparsed")
    if config.env.graded:
        columns["score"] = "score"
    names = [game["game"] for game in results]
    for metric, field in columns.items():
        values = np.array([game[field] for game in results])
        yield dict(key, metric=metric, **mean_row(values, names, config.seed))


INSTRUMENT = Instrument("online", Config, run, in_all=(1, 0))
