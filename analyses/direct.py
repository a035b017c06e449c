"""Direct action: act at once where the prompt action is confident, think elsewhere (docs/methods.md 2.7).

What `behaviour` kept of single decisions is read, and no model runs, except for `--probe` and `--games`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from interp.results.wording import listed
from interp.stats.intervals import OfMeans, cross_fitted
from interp.stats.routing import Ways, as_good, at_share, folds_of, oracle, threshold_as_good
from interp.system.limits import AnyWorkers, Folds, Sample, StepLimit
from interp.system.paths import PROGRAM
from interp.system.processes import own_cores

from .both_modes import same
from .kept import Cell, cells
from .online import played_games
from .probes import boundary_layers
from .registry import Instrument
from .remedies import NotApplicable
from .rows import mean_row
from .study import Study

#: Shares of the decisions that act at once.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
#: How a threshold is set: for a share of the decisions, or where acting at once costs no accuracy.
SHARE, AS_GOOD = "share", "as_good"
#: C of the boundary probe's penalty, the best chosen inside the training folds.
GRID = (0.001, 0.01, 0.1, 1.0)


@dataclass
class Config(Study):
    """The options that `behaviour` was given: its decisions, checkpoints and forced choices are read."""

    folds: Folds = 5
    """Folds of whole episodes; a threshold is set on the others."""
    probe: bool = False
    """Also route by a probe of the boundary's activations, of whether the trace changes the action."""
    games: Sample = 0
    """Games that the last checkpoint plays routed, half as many out of domain (0: none)."""
    step_limit: StepLimit = 30
    """Steps after which a game is lost."""
    workers: AnyWorkers = 0
    """Processes that the games are played in (0: 2, or 1 where one core is this process's own)."""

    @property
    def reads(self) -> list[Path]:
        """What the table is made from, beside checkpoints and decisions."""
        return [self.run / "partial" / kind for kind in ("decoded", "choices")]


class Decided(NamedTuple):
    """What a checkpoint does at the decisions of a split that were read by forced choice."""

    ids: list[str]
    episodes: list[str]
    ways: Ways
    margin: np.ndarray
    """Log-probability of the likeliest action minus that of the next, right at the boundary, in nats."""
    unchanged: np.ndarray
    """Whether the action after the trace is the likeliest one."""


def decided(cell: Cell) -> Decided | None:
    """What `behaviour` kept; None where it kept no forced choice among two actions or more."""
    modes = cell.kept_of_split("decoded")
    rows = [row for row in cell.kept_of_split("choices") or () if len(row["candidates"]) > 1]
    if not modes or not rows:
        return None
    config = cell.config
    thought = dict(zip(cell.ids, modes["cot"], strict=True))
    right, tokens, margins, unchanged = [], [], [], []
    for row in rows:
        decision, completion = cell.decisions[row["decision"]], thought[row["decision"]]
        summed = np.array(row["logp"]["prompt"])[:, 0]
        second, first = np.argsort(summed, kind="stable")[-2:]
        at_once, after = row["candidates"][first], completion["action"] or None
        margins.append(summed[first] - summed[second])
        unchanged.append(same(after, at_once))
        right.append([a is not None and config.env.is_correct(decision, a) for a in (at_once, after)])
        tokens.append([len(config.format.action_ids(at_once)), len(completion["ids"])])
    ids = [row["decision"] for row in rows]
    return Decided(
        ids,
        [cell.decisions[name].episode for name in ids],
        Ways(np.array(right, dtype=bool), np.array(tokens)),
        np.array(margins),
        np.array(unchanged, dtype=bool),
    )


def probed(config: Config, cell: Cell, there: Decided) -> np.ndarray | None:
    """Held-out probability that the trace does not change the action, of each decision; a resumable stage.

    None where it always does or never does.
    """

    def compute() -> list[float]:
        from interp.probing.baselines import choose_layer
        from interp.probing.logistic import Fitter, grouped_splits, standardised
        from interp.stats.intervals import cluster_codes

        acts = boundary_layers(config, cell.step, cell.split)
        place = {decision: i for i, decision in enumerate(cell.ids)}
        acts = acts[[place[decision] for decision in there.ids]]
        groups, _ = cluster_codes(there.episodes)
        splits = grouped_splits(groups, config.folds, config.seed)
        fitter = Fitter(there.unchanged.astype(int), groups, 2, splits, config.seed)
        layers = range(acts.shape[1])
        cells = [("probe", layer, standardised(acts[:, layer])) for layer in layers]
        nested, _ = choose_layer(fitter, "probe", layers, fitter.nested(cells, GRID))
        return nested[:, 1].tolist()

    if there.unchanged.all() or not there.unchanged.any():
        return None
    inputs = dict(
        config.inputs(cell.step, cell.split),
        folds=config.folds,
        decisions_read=there.ids,
        unchanged=there.unchanged.tolist(),
        **config.stored_as,
    )
    return np.array(config.stage(f"direct/{cell.step}-{cell.split}-probe", inputs, compute))


def _over_random(mean: np.ndarray) -> np.ndarray:
    """A router's accuracy minus that of a random one of its rate; means of score, at once, and both ways."""
    rate = mean[..., 1]
    return mean[..., 0] - rate * mean[..., 2] - (1 - rate) * mean[..., 3]


def _saved(mean: np.ndarray) -> np.ndarray:
    """The share of the tokens that a router saves; means of its tokens and of thinking's."""
    return 1 - mean[..., 0] / mean[..., 1]


#: Metric -> its columns, and the function of their means.
Columns = dict[str, tuple[np.ndarray, OfMeans | None]]


def _metrics(ways: Ways, at_once: np.ndarray) -> Columns:
    """What a router does: accuracy and tokens, its rate, and what it gains and saves."""
    score, tokens = ways.routed(at_once)
    right = ways.right.astype(float)
    whole = bool(np.isin(at_once, (0, 1)).all())  # not a random one's chances
    columns: Columns = dict(
        accuracy=(score.astype(bool) if whole else score, None),
        tokens=(tokens, None),
        at_once=(at_once.astype(bool) if whole else at_once, None),
        accuracy_minus_thinking=(score - right[:, 1], None),
        tokens_saved=(np.stack([tokens, ways.tokens[:, 1]], axis=1), _saved),
    )
    if whole and 0 < at_once.mean() < 1:
        columns["over_random"] = np.stack([score, at_once, *right.T], axis=1), _over_random
    return columns


def routed(there: Decided, confidences: dict[str, np.ndarray], folds: int, seed: int) -> Iterator[dict]:
    """Rows of one checkpoint and split: every router at every share, and where it is as good as thinking.

    Args:
        confidences: by router, a number for each decision.
        folds: of whole episodes; thresholds are set on the others.
        seed: of folds and resamples.
    """
    parts = folds_of(there.episodes, folds, seed)
    n, widen = len(there.ids), cross_fitted(folds)
    routers: list[tuple[str, str, float, np.ndarray]] = []
    for share in SHARES:
        routers += [
            (name, SHARE, share, at_share(confidence, share, parts))
            for name, confidence in confidences.items()
        ]
        routers.append(("random", SHARE, share, np.full(n, share)))
        routers.append(("oracle", SHARE, share, oracle(there.ways, share)))
    for name, confidence in confidences.items():
        at_once = as_good(confidence, there.ways, parts)
        routers.append((name, AS_GOOD, float(at_once.mean()), at_once))
    for name, rule, share, at_once in routers:
        key = dict(router=name, rule=rule, share=share)
        factor = widen if name in confidences else 1.0
        for metric, (values, function) in _metrics(there.ways, at_once).items():
            row = mean_row(values, there.episodes, seed, function=function, widen=factor)
            yield dict(key, metric=metric, **row)


def games(config: Config, thresholds: dict[str, float]) -> Iterator[dict]:
    """Rows of whole games of the last checkpoint: at once, thinking, routed by margin, and at random.

    Args:
        thresholds: of each split, in nats.
    """
    from interp.rollouts.play import Routing
    from interp.rollouts.workers import engines

    step, finite = config.steps[-1], {s: t for s, t in thresholds.items() if np.isfinite(t)}
    with engines(config.env.live, config.workers or min(2, own_cores())) as pool:
        for split, threshold in finite.items():
            plain = {
                name: played_games(config, step, split, mode, pool, config.games)
                for name, mode in (("at_once", "prompt"), ("thinking", "cot"))
            }
            margin = played_games(config, step, split, "cot", pool, config.games, Routing(threshold))
            decided_at = sum(game["steps"] + game["unparsed"] for game in margin)
            rate = sum(game["at_once"] for game in margin) / max(1, decided_at)
            random = played_games(
                config, step, split, "cot", pool, config.games, Routing(share=rate, seed=config.seed)
            )
            by_router = plain | dict(margin=margin, random=random)
            for row in _of_games(by_router, config.seed):
                yield dict(step=step, split=split, where="games", rule=AS_GOOD, share=rate) | row


def _of_games(by_router: dict[str, list[dict]], seed: int) -> Iterator[dict]:
    """Rows of the routers' games, the same ones in the same order."""
    names = [game["game"] for game in by_router["thinking"]]

    def column(router: str, field: str) -> np.ndarray:
        return np.array([game[field] for game in by_router[router]])

    thinking = column("thinking", "won").astype(float), column("thinking", "tokens")
    for router in by_router:
        won, tokens = column(router, "won"), column(router, "tokens")
        columns: Columns = dict(
            success=(won, None),
            tokens=(tokens, None),
            steps=(column(router, "steps"), None),
            success_minus_thinking=(won - thinking[0], None),
            tokens_saved=(np.stack([tokens, thinking[1]], axis=1), _saved),
        )
        if router == "margin":
            columns["over_random"] = won - column("random", "won").astype(float), None
        for metric, (values, function) in columns.items():
            yield dict(router=router, metric=metric, **mean_row(values, names, seed, function=function))


def run(config: Config) -> None:
    """Route what is on record, play where games are asked for, and tabulate."""
    started, rows = time.time(), []
    thresholds: dict[str, float] = {}
    few: list[str] = []  # of too few episodes
    for cell in cells(config, "direct"):
        there = decided(cell)
        if there is None:
            continue
        if len(set(there.episodes)) < config.folds:
            few.append(f"checkpoint {cell.step} {cell.split}")
            continue
        confidences = dict(margin=there.margin)
        if config.probe and (probability := probed(config, cell, there)) is not None:
            confidences["probe"] = probability
        key = dict(step=cell.step, split=cell.split, where="decisions")
        rows += [key | row for row in routed(there, confidences, config.folds, config.seed)]
        if cell.step == config.steps[-1]:
            thresholds[cell.split] = threshold_as_good(there.margin, there.ways)
    if not rows:
        raise NotApplicable(_why_not(config, few))
    if few:
        config.say(f"left out: direct: {_few_episodes(config, few)}")
    if config.games and (reason := config.env.unplayable()):
        config.say(f"left out: direct: its games: {reason}.")
    elif config.games:
        rows += games(config, thresholds)
    nats = {split: t if np.isfinite(t) else None for split, t in thresholds.items()}
    config.write("direct", rows, started, judge=config.env.judge, thresholds=nats)


def _few_episodes(config: Config, few: Sequence[str]) -> str:
    return (
        f"{listed(few)} {'has' if len(few) == 1 else 'have'} forced choices of fewer episodes than there are "
        f"folds ({config.folds}): give fewer (--folds), or more decisions (--choices of `behaviour`)."
    )


def _why_not(config: Config, few: Sequence[str]) -> str:
    if few:
        return _few_episodes(config, few)
    return (
        f"{config.run} keeps no forced choice among two actions or more: run `{PROGRAM} behaviour` first, "
        "and give the same options here (its command is in tables/behaviour.json); where an environment "
        "lists no actions there is none."
    )


INSTRUMENT = Instrument("direct", Config, run, after_all=True)
