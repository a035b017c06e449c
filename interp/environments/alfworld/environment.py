"""ALFWorld as an environment: recorded episodes, commands, and games, generated or official."""

from __future__ import annotations

from itertools import islice

import numpy as np

from interp.environments.alfworld.commands import parse, swap_candidates, task_of
from interp.environments.alfworld.engine import Household
from interp.environments.alfworld.scenes import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    TEST_SCENES,
    Game,
    games,
    official_games,
)
from interp.environments.alfworld.traces import PHRASES
from interp.environments.base import Environment
from interp.tasks.episodes import CORPUS


def _types(split: str) -> tuple[str, ...]:
    return IN_DOMAIN if split == "in_domain" else OUT_OF_DOMAIN


def generated(split: str, n: int, seed: int) -> list[Game]:
    """The first `n` generated games of a split, none of the recorded episodes' (another stream)."""
    return list(islice(games(f"online_{split}", _types(split), TEST_SCENES, seed), n))


def official(split: str, n: int, seed: int) -> list[Game]:
    """`n` of ALFWorld's own valid_seen games of a split, from $ALFWORLD_DATA."""
    games = [g for g in official_games("valid_seen") if g.task_type in _types(split)]
    order = np.random.default_rng(seed).permutation(len(games))
    return [games[i] for i in order[:n]]


ALFWORLD = Environment(
    "alfworld",
    decisions=CORPUS,
    parse=parse,
    swap_candidates=swap_candidates,
    phrases=PHRASES,
    task=task_of,
    live=Household,
    games=generated,
    official=official,
    needs=("alfworld", "make figures without ENGINE=0 installs it"),
)
