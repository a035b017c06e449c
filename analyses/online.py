"""Whole games in the engine, in both modes, the same games at every checkpoint (METHODS 2, online)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from analyses.study import Study
from interp.alfworld.rollout import engines, play
from interp.alfworld.scenes import IN_DOMAIN, OUT_OF_DOMAIN, TEST_SCENES, games, official_games
from interp.stats import cluster_bootstrap


@dataclass
class Config(Study):
    """Unseen games: generated ones, or ALFWorld's own valid_seen where $ALFWORLD_DATA holds them and `official` is set."""

    games: int = 0
    """In-domain games (0: 20 quick, 60 full); half as many out of domain, where games are longer."""
    online_checkpoints: int = 0
    """Checkpoints that play, evenly chosen with first and last (0: 4 quick, all full)."""
    step_limit: int = 30
    """Steps after which a game is lost."""
    workers: int = 2
    """Engine processes."""


def pick(split: str, n: int, seed: int, official: bool) -> list:
    """The first `n` games of a split; generated ones are none of the recorded episodes' (another stream)."""
    types = IN_DOMAIN if split == "in_domain" else OUT_OF_DOMAIN
    if official:
        found = [g for g in official_games("valid_seen") if g.task_type in types]
        order = np.random.default_rng(seed).permutation(len(found))
        return [found[i] for i in order[:n]]
    return list(islice(games(f"online_{split}", types, TEST_SCENES, seed), n))


def run(config: Config) -> None:
    """Play, batched over games; a checkpoint's games are one resumable stage for each mode."""
    started, rows = time.time(), []
    count, players = config.number(config.games, 20, 60), config.number(config.online_checkpoints, 4, len(config.steps))
    chosen = sorted({config.steps[round(i)] for i in np.linspace(0, len(config.steps) - 1, min(players, len(config.steps)))})
    with engines(config.workers) as pool:
        for step, split in config.cells("online", steps=chosen):
            n = count if split == "in_domain" else (count + 1) // 2
            for mode in ("prompt", "cot"):
                inputs = dict(config.inputs(step), format=config.format.hash, mode=mode, n=n, limit=config.step_limit, tokens=config.limits[mode], official=config.official)
                results = config.stage(f"online/{step}-{split}-{mode}", inputs, lambda: [asdict(r) for r in play(
                    config.model(step), config.format, pick(split, n, config.seed, config.official), mode, pool,
                    step_limit=config.step_limit, max_new_tokens=config.limits, progress=True)])
                names = [r["game"] for r in results]
                for metric, values in dict(success=[r["won"] for r in results], steps=[r["steps"] for r in results],
                                           unparsed=[r["unparsed"] for r in results]).items():
                    estimate = cluster_bootstrap(np.array(values), names, seed=config.seed)
                    rows.append(dict(step=step, split=split, mode=mode, metric=metric, **estimate.row()))
    config.write("online_official" if config.official else "online", rows, started, games="ALFWorld's valid_seen" if config.official else "generated")
