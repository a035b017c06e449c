"""Whole games in the environment, in both modes, the same games at every checkpoint (docs/methods.md 2.6)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np

from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.rollouts.workers import engines
from interp.stats.intervals import cluster_bootstrap
from interp.system.limits import Sample, StepLimit, Workers


@dataclass
class Config(Study):
    """Unseen games of the environment: in ALFWorld generated ones, or its own valid_seen where $ALFWORLD_DATA holds them and `official` is set."""

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
    from interp.rollouts.play import play

    started, rows, env, truncated, played = time.time(), [], config.env, 0, 0
    if reason := env.unplayable():
        raise NotApplicable(f"{reason[0].upper()}{reason[1:]}.")
    pick, count, players = (
        config.pick_games,
        config.number(config.games, 20, 60),
        config.number(config.online_checkpoints, 4, len(config.steps)),
    )
    chosen = sorted(
        {
            config.steps[round(i)]
            for i in np.linspace(0, len(config.steps) - 1, min(players, len(config.steps)))
        }
    )
    own = dict(environment=env.source) if env.source else {}
    with engines(env.live, config.workers) as pool:
        for step, split in config.cells("online", steps=chosen):
            n = count if split == "in_domain" else (count + 1) // 2
            for mode in ("prompt", "cot"):
                inputs = dict(
                    config.inputs(step),
                    format=config.format.hash,
                    mode=mode,
                    n=n,
                    limit=config.step_limit,
                    tokens=config.limits[mode],
                    official=config.official,
                    **own,
                )
                results = config.stage(
                    f"online/{step}-{split}-{mode}",
                    inputs,
                    lambda: [
                        asdict(r)
                        for r in play(
                            config.model(step),
                            config.format,
                            env,
                            pick(split, n, config.seed),
                            mode,
                            pool,
                            step_limit=config.step_limit,
                            max_new_tokens=config.limits,
                            progress=True,
                        )
                    ],
                )
                names = [r["game"] for r in results]
                columns = dict(
                    success=[r["won"] for r in results],
                    steps=[r["steps"] for r in results],
                    unparsed=[r["unparsed"] for r in results],
                )
                if env.graded:
                    columns["score"] = [r["score"] for r in results]
                for metric, values in columns.items():
                    estimate = cluster_bootstrap(np.array(values), names, seed=config.seed)
                    rows.append(dict(step=step, split=split, mode=mode, metric=metric, **estimate.row()))
                if config.truncate != "none":
                    truncated, played = (
                        truncated + sum(r["truncated"] for r in results),
                        played + sum(r["steps"] for r in results),
                    )
    about = (
        {}
        if config.truncate == "none"
        else dict(truncation=dict(policy=config.truncate, decisions=played, truncated=truncated))
    )
    config.write(
        "online_official" if config.official else "online",
        rows,
        started,
        games="ALFWorld's valid_seen"
        if config.official
        else "generated"
        if env.name == "alfworld"
        else env.name,
        **about,
    )


INSTRUMENT = Instrument("online", Config, run, in_all=(1, 0))
