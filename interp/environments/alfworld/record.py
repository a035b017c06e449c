"""Record the corpus: expert, noisy and aimless episodes played in the engine, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from interp.environments.alfworld import expert, traces
from interp.environments.alfworld.commands import task_of
from interp.environments.alfworld.engine import Household
from interp.environments.alfworld.scenes import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    TEST_SCENES,
    TRAIN_SCENES,
    Game,
    games,
    official_games,
)
from interp.environments.recording import Sizes, bare
from interp.tasks.episodes import Episode, Step

STEP_LIMIT = 50  # ALFWorld's own
NOISE = 1 / 3  # of the actions in a noisy expert episode
#: Games that the shipped corpus was played from.
SIZES = Sizes(base=600, base_out_of_domain=80, train=2400, test=200)


def play(house: Household, game: Game, which: str, seed: str) -> Episode:
    """Play one episode: `expert`, `noisy` (a third of the actions at random) or `aimless` (all at random).

    A wrong action is chosen before the trace is written, so the trace argues for the action that follows it.
    """
    rng = random.Random(seed)
    view = house.reset(game)
    start, belief = view.text, expert.Belief.start(game, view.text)
    steps: list[Step] = []
    limit = rng.randint(8, 20) if which == "aimless" else STEP_LIMIT
    while not view.won and len(steps) < limit:
        wanted = expert.act(belief, view.admissible)
        if wanted is None:
            break
        wrong = which == "aimless" or which == "noisy" and rng.random() < NOISE
        options = [
            c
            for c in view.admissible
            if c != wanted and c.split()[0] not in ("help", "look", "inventory", "examine")
        ]
        command = rng.choice(options) if wrong and options else wanted
        trace = traces.write(belief, command, rng)
        after = house.step(command)
        steps.append(Step(trace, command, after.text, wanted, view.admissible))
        belief.update(command, after.text)
        view = after
    return Episode(
        f"{game.id}/{which}{seed.rsplit('/', 1)[-1]}",
        game.split,
        game.task_type,
        game.scene,
        task_of(start),
        start,
        tuple(steps),
        view.won,
        which,
    )


def episodes(job: tuple[Game, tuple[str, ...], bool]) -> list[Episode]:
    """A job's episodes: its game, played in each of its ways, with its admissible commands or without."""
    game, kinds, keep_admissible = job
    house = Household()
    played = [play(house, game, which, f"{game.id}/{i}") for i, which in enumerate(kinds)]
    house.close()
    return played if keep_admissible else [bare(e) for e in played]


def plan(sizes: Sizes, seed: int) -> list[tuple[Game, tuple[str, ...], bool]]:
    """Which games are played how; test games keep their admissible commands."""

    def take(
        split: str,
        types: Sequence[str],
        scenes: Sequence[int],
        n: int | None,
        kinds: tuple[str, ...],
        keep: bool = False,
    ) -> list[tuple[Game, tuple[str, ...], bool]]:
        return [(g, kinds, keep) for g in islice(games(split, types, scenes, seed), n)]

    return (
        take("base", IN_DOMAIN, TRAIN_SCENES, sizes.base, ("noisy", "noisy", "aimless"))
        + take("base_aimless", OUT_OF_DOMAIN, TRAIN_SCENES, sizes.base_out_of_domain, ("aimless", "aimless"))
        + take("train", IN_DOMAIN, TRAIN_SCENES, sizes.train, ("expert",))
        + take("test_in_domain", IN_DOMAIN, TEST_SCENES, sizes.test, ("expert",), True)
        + take("test_out_of_domain", OUT_OF_DOMAIN, TEST_SCENES, sizes.test, ("expert",), True)
    )


def plan_official(train: int, seed: int) -> list[tuple[Game, tuple[str, ...], bool]]:
    """Official games from $ALFWORLD_DATA: `train` of its train games, and all of valid_seen, by task type."""
    pool = [g for g in official_games("train") if g.task_type in IN_DOMAIN]
    random.Random(seed).shuffle(pool)
    test = [
        replace(g, split="test_in_domain" if g.task_type in IN_DOMAIN else "test_out_of_domain")
        for g in official_games("valid_seen")
    ]
    jobs: list[tuple[Game, tuple[str, ...], bool]] = [(g, ("expert",), True) for g in test]
    return jobs + [(g, ("expert",), False) for g in pool[:train]]
