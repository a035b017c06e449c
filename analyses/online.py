"""Whole games in the environment, in both modes, the same games at every checkpoint (docs/methods.md 2.6)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from interp.prompts.format import Mode
from interp.rollouts.workers import Engines, engines
from interp.system.limits import AnyWorkers, Sample, StepLimit
from interp.system.processes import own_cores

from .decodings import generator
from .progress import displayed
from .registry import Instrument
from .remedies import PLAYABLE, NotApplicable
from .rows import mean_row
from .study import Study

if TYPE_CHECKING:
    from interp.rollouts.play import Routing

#: Both modes in the order of the table's rows.
BOTH: tuple[Mode, ...] = ("prompt", "cot")
#: Checkpoint, split and mode -> the games that were played and are not kept yet.
Played = dict[tuple[int, str, str], list[dict]]


@dataclass
class Config(Study):
    """Unseen games; of ALFWorld generated ones, or with `official` its own, from $ALFWORLD_DATA."""

    games: Sample = 0
    """In-domain games (0: 20 quick, 60 full); half as many out of domain, where games are longer."""
    online_checkpoints: Sample = 0
    """Checkpoints that play, evenly chosen with first and last (0: 4 quick, all full)."""
    step_limit: StepLimit = 30
    """Steps after which a game is lost."""
    workers: AnyWorkers = 0
    """Processes that the games are played in (0: 2, or 1 where one core is this process's own)."""


def run(config: Config) -> None:
    """Play, all games of a checkpoint side by side; those of a split and a mode are one resumable stage."""
    started, rows, env, truncated, steps = time.time(), [], config.env, 0, 0
    if reason := env.unplayable():
        raise NotApplicable(f"{reason[0].upper()}{reason[1:]}", PLAYABLE)
    chosen = config.spread(config.number(config.online_checkpoints, 4, len(config.steps)))
    count, played = config.number(config.games, 20, 60), Played()
    with engines(env.live, config.workers or min(2, own_cores())) as pool:
        for step, split in config.cells("online", steps=chosen):
            for mode in BOTH:
                results = played_games(config, step, split, mode, pool, count, played=played)
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
    played: Played | None = None,
) -> list[dict]:
    """Games that a checkpoint plays in one mode, or routed; a resumable stage.

    Args:
        count: in-domain games; half as many are played out of domain.
        routing: which steps are played at once.
        played: where games are held that were played beside others; then all that the checkpoint has not
            played are, in each mode and split.
    """
    wanted = (step, split, mode)
    held: Played = {} if played is None else played

    def inputs(split: str, mode: Mode) -> dict:
        return _inputs(config, step, mode, _number(split, count), routing)

    def compute() -> list[dict]:
        if wanted not in held:
            groups = [(split, mode)]
            if played is not None:
                groups = [
                    (part, each)
                    for each in reversed(BOTH)  # the longer games first
                    for part in _beside(config, split, count)
                    if (part, each) == (split, mode)  # which may be there, and damaged
                    or not config.kept(f"online/{step}-{part}-{each}", inputs(part, each), compute)
                ]
            for group, results in _play(config, step, groups, count, pool, routing).items():
                held[(step, *group)] = results
        return held.pop(wanted)

    kind = f"{mode}-routed" if routing else mode
    return config.stage(f"online/{step}-{split}-{kind}", inputs(split, mode), compute)


def _beside(config: Config, split: str, count: int) -> Sequence[str]:
    """The splits whose games are played beside a split's: all, unless a unit has one or they share names."""
    if config.unit:
        return [split]
    games = {part: config.pick_games(part, _number(part, count), config.seed) for part in config.parts}
    names = [str(game) for each in games.values() for game in each]
    return config.parts if len(set(names)) == len(names) else [split]


def _number(split: str, count: int) -> int:
    """Games of a split."""
    return count if split == "in_domain" else (count + 1) // 2


def _inputs(config: Config, step: int, mode: Mode, n: int, routing: Routing | None) -> dict:
    """What games are played from."""
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
    return inputs


def _play(
    config: Config,
    step: int,
    groups: Sequence[tuple[str, Mode]],
    count: int,
    pool: Engines,
    routing: Routing | None,
) -> dict[tuple[str, Mode], list[dict]]:
    """The games of splits in a mode each, all side by side."""
    from interp.rollouts.play import play

    games = {split: config.pick_games(split, _number(split, count), config.seed) for split, _ in groups}
    with generator(config, step) as engine:
        results = play(
            config.model(step),
            config.format,
            config.env,
            [game for split, _ in groups for game in games[split]],
            [mode for split, mode in groups for _ in games[split]],
            pool,
            step_limit=config.step_limit,
            max_new_tokens=config.limits,
            progress=not displayed(),
            routing=routing,
            engine=engine,
        )
    rows = map(asdict, results)
    return {group: list(islice(rows, len(games[group[0]]))) for group in groups}


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
