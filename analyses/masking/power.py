"""What the masking study's intervals find in simulated outcomes of crossed seeds and games; no model.

A game is won with a probability whose log-odds are the sum of the game's own (SD `game_sd`), what a seed's
order of the data does to all conditions (`order_sd`), what each training is worth by itself (`training_sd`),
what a condition does to a game (`condition_sd`), and the condition's effect, which grows up to k = 0.3 and
stays. Worlds: `null`, no condition does anything; `action`, the action mask helps; `any_mask`, the random
mask helps as much. An effect is given as the difference in success that it makes.

The primary outcome is read on recorded decisions, several of a game, each right with the game's probability:
`--decisions 2 --games 200 --rate 0.55 --effects 0.02 0.05 --table masking_power_offline`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit
from tqdm import tqdm

from interp.results.tables import write_table
from interp.stats.crossed import crossed, slope_weights
from interp.stats.intervals import wilson
from interp.system import limits
from interp.system.limits import SMALLEST, Count, Draws, Folder, Limits, Seed

from ..provenance import made_by
from ..registry import Instrument

#: Conditions of the study: their shares k; the last is the random mask.
SHARES = {
    "action_mask_0": 0.0,
    "action_mask_0.1": 0.1,
    "action_mask_0.3": 0.3,
    "action_mask_0.5": 0.5,
    "action_mask_0.7": 0.7,
}
CONDITIONS = (*SHARES, "random_mask_0.3")
BEST = 0.3
WORLDS = ("null", "action", "any_mask")


@dataclass
class Config:
    """Studies that are simulated, and how large they are."""

    run: Annotated[Path, Folder()] = Path("figures")
    """Folder whose `tables` the table goes to."""
    studies: Count = 1000
    """Simulated studies of each kind."""
    seeds: Annotated[tuple[int, ...], Limits(1, 1000)] = (3, 5)
    """Trainings of a condition."""
    games: Annotated[tuple[int, ...], Limits(1, 100_000)] = (60, 100)
    """Games of a split."""
    decisions: Count = 1
    """Decisions of each game (1: the game is won or lost)."""
    effects: Annotated[tuple[float, ...], Limits(-0.99, 0.99)] = (0.1, 0.2)
    """Differences in success that are planted."""
    training_sd: Annotated[tuple[float, ...], Limits(0, 10)] = (0.1, 0.3)
    """SD between trainings of a condition, in log-odds: 0.1 is .02 in success, 0.3 is .05."""
    rate: Annotated[float, Limits(0.01, 0.99)] = 0.3
    """Success without a mask."""
    game_sd: Annotated[float, Limits(0, 10)] = 1.5
    """SD between games, in log-odds."""
    condition_sd: Annotated[float, Limits(0, 10)] = 0.5
    """SD of what a condition does to a game beside its effect, in log-odds."""
    order_sd: Annotated[float, Limits(0, 10)] = 0.2
    """SD of what a seed does to all conditions, in log-odds."""
    draws: Draws = 1000
    """Bootstrap resamples."""
    seed: Seed = 0
    """Seed of everything drawn."""
    table: Literal["masking_power", "masking_power_offline"] = "masking_power"
    """The table's name: of whole games, or of recorded decisions."""

    def check(self) -> None:
        """Raises ValueError for what `limits.check` refuses, and for an effect that leads to no rate."""
        limits.check(self)
        for effect in self.effects:
            if not 0 < self.rate + effect < 1:
                raise ValueError(
                    f"--effects has {effect:g}, which at --rate {self.rate:g} leads to no rate "
                    "between 0 and 1."
                )


def log_odds(rate: float, sd: float) -> float:
    """The mean log-odds whose games, normal with this SD, are won at `rate`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return brentq(lambda m: expit(m + sd * nodes) @ weights / weights.sum() - rate, -20, 20)


def outcomes(
    config: Config, world: str, effect: float, seeds: int, games: int, training_sd: float
) -> np.ndarray:
    """Shares of right decisions, or wins, 0 or 1, [study, condition, seed, game].

    Of equal sizes all worlds use the same random numbers.
    """
    rng = np.random.default_rng([config.seed, seeds, games, round(1000 * training_sd)])
    sd = np.sqrt(config.game_sd**2 + config.condition_sd**2 + config.order_sd**2 + training_sd**2)
    planted = log_odds(config.rate + effect, sd) - log_odds(config.rate, sd)
    helped = [
        (min(SHARES[condition] / BEST, 1) if condition in SHARES else world == "any_mask") * (world != "null")
        for condition in CONDITIONS
    ]
    n = config.studies, len(CONDITIONS), seeds, games
    parts = (
        (config.game_sd, (n[0], 1, 1, games)),
        (config.order_sd, (n[0], 1, seeds, 1)),
        (training_sd, (*n[:3], 1)),
        (config.condition_sd, (*n[:2], 1, games)),
    )
    odds = log_odds(config.rate, sd) + planted * np.array(helped).reshape(1, -1, 1, 1)
    for scale, shape in parts:
        odds = odds + rng.normal(0, scale, shape)
    right = expit(odds)
    if config.decisions == 1:
        return (rng.random(n) < right).astype(float)
    return rng.binomial(config.decisions, right) / config.decisions


def intervals(values: np.ndarray, weights: dict[str, float], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Ends of each study's interval of a contrast of its conditions, in lots that fit a small memory."""
    summed = np.tensordot(values, [weights.get(condition, 0.0) for condition in CONDITIONS], (1, 0))
    ends = [crossed(summed[i : i + 20], config.draws, config.seed) for i in range(0, len(summed), 20)]
    return tuple(np.concatenate(end) for end in zip(*ends, strict=True))


def power(config: Config) -> pd.DataFrame:
    """Shares of studies, each with its Wilson interval.

    Column `what`: `above` and `below`, a contrast's interval lies above, or below, 0; `covers`, it holds the
    true value; `supported` and `excluded`, what `interp.stats.crossed.verdict` says (a gain of at least the
    margin is excluded). Column `contrast`: `difference` of k = 0.3 and k = 0, `control` of k = 0.3 and the
    random mask, `slope` in k, `games_only`: the difference by a bootstrap over games alone, of the means over
    seeds. Column `half_width`: half of an interval, on average.
    """
    rows, (zero, best) = [], ("action_mask_0", "action_mask_0.3")
    contrasts = dict(
        difference={best: 1, zero: -1}, control={best: 1, CONDITIONS[-1]: -1}, slope=slope_weights(SHARES)
    )
    planted = [("null", 0.0), *product(WORLDS[1:], config.effects)]
    for (world, effect), seeds, games, training_sd in tqdm(
        list(product(planted, config.seeds, config.games, config.training_sd)), desc="power"
    ):
        values = outcomes(config, world, effect, seeds, games, training_sd)
        truth = dict(difference=effect, control=effect * (world == "action"), games_only=effect)
        found = {name: intervals(values, weights, config) for name, weights in contrasts.items()}
        found["games_only"] = intervals(values.mean(axis=2, keepdims=True), contrasts["difference"], config)
        hits = {}
        for name, (low, high) in found.items():
            hits |= {(name, "above"): low > 0, (name, "below"): high < 0}
            if name in truth:
                hits[name, "covers"] = (low <= truth[name]) & (truth[name] <= high)
        (low, high), (over, under) = found["difference"], found["control"]
        supported = (low > 0) & (over > 0)
        hits |= {
            ("verdict", "supported"): supported,
            ("verdict", "excluded"): ~supported & ((high < SMALLEST) | (under < SMALLEST)),
        }
        width = {name: float((high - low).mean() / 2) for name, (low, high) in found.items()}
        for (name, what), hit in hits.items():
            low, high = wilson(int(hit.sum()), len(hit))
            rows.append(
                dict(
                    world=world,
                    effect=effect,
                    seeds=seeds,
                    games=games,
                    training_sd=training_sd,
                    contrast=name,
                    what=what,
                    half_width=width.get(name, np.nan),
                    value=hit.mean(),
                    low=low,
                    high=high,
                    n=len(hit),
                    n_groups=len(hit),
                )
            )
    return pd.DataFrame(rows)


def run(config: Config) -> None:
    """Simulate and write the table."""
    started, frame = time.time(), power(config)
    made = dict(made_by("masking_power", config, started), seed=config.seed, device="cpu")
    write_table(config.run / "tables", config.table, frame, made)
    kinds = ["world", "effect", "seeds", "games", "training_sd"]
    print(frame.pivot_table(index=kinds, columns=["contrast", "what"], values="value").round(3).to_string())


INSTRUMENT = Instrument("masking_power", Config, run)
