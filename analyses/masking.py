"""Does leaving action tokens unsupervised help, and where does the gain land? Arms of training, compared over games and seeds (METHODS 8).

Arms are folders `ARMS/<arm>/seed-<s>/checkpoint-N`, with names as in `interp.supervision`: trained here from a corpus and a base
checkpoint, or one's own (`--series ARMS`). Every arm's training of one seed reads the same batches in the same order, and masks
nest: what k = .1 leaves unsupervised k = .3 leaves too.

What is predicted, written before the study was run. The claim (reported, never verified): with the actions of k = .3 of the
examples unsupervised, their tags kept, agents do better out of domain.
- Primary outcome: `acc_cot` out of domain, the CoT action's agreement with the expert on recorded decisions; k = .3 against k = 0, and
  against the random mask of equal share, both paired over games and seeds. Whole games (`success_cot`) are secondary: a small agent's
  success out of domain may be too near 0 to fall or rise.
- Supported: both intervals lie above 0. It must be better than k = 0 *and* better than masking as many other tokens.
- Refuted: one of them lies below .05. Either it does not help by an amount that would matter, or masking any tokens helps as much, and
  the story about actions is wrong. Anything else is open, and is said to be.
- If the gain moves as the story has it (action supervision teaches a way from the prompt to the action past the trace), k = .3 has, at
  equal or better `acc_cot`: a lower `acc_prompt` and so a larger `gap`, less prompt reliance, and follows conflicting traces more often;
  more so for larger k (the slope). Unmoved, or moved as far by the random mask, that mechanism is refuted, whatever success does.
- In domain no gain is predicted. `action_only` bounds what actions alone teach: no better than k = 0 with its trace.
Contrasts beside these are described, not tested: intervals are not corrected for their number.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm import tqdm

from analyses.study import Study, made_by
from interp.arms import Outcomes, contrast, outcomes, slope_weights, verdict
from interp.engines import engines
from interp.headers import hash_files
from interp.rollout import play
from interp.series import SERIES, CheckpointSeries
from interp.stats import Estimate
from interp.supervision import Supervision
from interp.tables import ESTIMATE_COLUMNS, read_table, write_table
from interp.training import Recipe, Tuning, train_arm

ARMS = ("action_mask_0", "action_mask_0.1", "action_mask_0.3", "action_mask_0.5", "action_mask_0.7", "random_mask_0.3", "action_only")
#: What an outcome is of; every other column of their table is a metric.
KEYS = ("arm", "seed", "step", "split", "game")
PRIMARY = dict(metric="acc_cot", split="out_of_domain", arm="action_mask_0.3")


@dataclass
class Config(Study):
    """The defaults train the small agent's arms from the shipped base, measure and compare them; each part goes on from where it was."""

    run: Path = Path("runs/masking")
    """Folder for everything the run writes; arms trained here are in its `arms`."""
    stages: tuple[Literal["train", "measure", "compare"], ...] = ("train", "measure", "compare")
    """What is done. With arms of one's own (`--series`) nothing is trained."""
    arms: tuple[str, ...] = ARMS
    """Arms that are trained."""
    seeds: int = 3
    """Trainings of each arm."""
    more: tuple[str, ...] = ("action_mask_0", "action_mask_0.3", "random_mask_0.3")
    """Arms that the claim rests on."""
    more_seeds: int = 5
    """Trainings of those."""
    recipe: Recipe = field(default_factory=Recipe)
    """Full fine-tuning of the base (`cot_steps`, `cot_lr` and batches; the base's own numbers are not read)."""
    lora: bool = False
    """Train low-rank updates instead, as `tuning` says."""
    tuning: Tuning = field(default_factory=Tuning)
    """Low-rank fine-tuning of the base."""
    games: int = 0
    """In-domain games that each training plays (0: none); half as many out of domain."""
    step_limit: int = 30
    """Steps after which a game is lost."""
    workers: int = 2
    """Processes that the games are played in."""

    @property
    def own(self) -> bool:
        """Whether the arms were trained elsewhere."""
        return self.series != SERIES

    @property
    def folder(self) -> Path:
        """The folder of the arms."""
        return self.series if self.own else self.run / "arms"

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(arm, seed) that are trained, every arm's first seed before any second."""
        seeds = {arm: self.more_seeds if arm in self.more else self.seeds for arm in self.arms}
        return [(arm, seed) for seed in range(max(seeds.values(), default=0)) for arm in self.arms if seed < seeds[arm]]

    @cached_property
    def start(self) -> Path:
        """The base checkpoint that arms are trained from."""
        return Path(self.base or CheckpointSeries.discover(SERIES).path(0))


def train(config: Config) -> None:
    """Train what is not trained yet, one folder after the other; a training that was interrupted goes on from its last checkpoint."""
    named = config._named or config.env
    items = named.recorded(config._file).get("train")
    if not items:
        raise ValueError(f"{config._file or f'The environment {named.name!r}'} has no episodes of the split 'train' to train on.")
    made = dict(corpus=hash_files([config._file]) if config._file else named.name)
    for arm, seed in (bar := tqdm(config.jobs, desc="train")):
        bar.set_postfix_str(f"{arm}, seed {seed}")
        recipe = config.tuning if config.lora else config.recipe
        train_arm(config.start, items, Supervision.named(arm), recipe, config.folder / arm / f"seed-{seed}", seed=seed, style=config.style,
                  system=config.system, provenance=made, device=config.device)


def trainings(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """(arm, seed, folder) of every training below a folder of arms.

    Raises FileNotFoundError where there is none, and ValueError for a folder whose name is no arm's or no seed's.
    """
    found = sorted(folder.glob("*/seed-*/"))
    if not found:
        raise FileNotFoundError(f"There are no arms in {folder}: a training's checkpoints are in {folder}/ARM/seed-S/checkpoint-N.")
    for path in found:
        number = path.name.removeprefix("seed-")
        if not number.isdigit():
            raise ValueError(f"{path} is no seed's folder: it is called seed-S, S a number.")
        yield Supervision.named(path.parent.name).name, int(number), path


def measure(config: Config) -> None:
    """Decode every training's checkpoints in both modes, and play games, into two tables of outcomes: a row for each decision, or game."""
    decided, played, weights, started = [], [], {}, time.time()
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Study)} | dict(base=config.start if config.lora else config.base)
    studies = {(arm, seed): Study(**shared | dict(series=folder)) for arm, seed, folder in trainings(config.folder)}
    last = {key: study.steps[-1] for key, study in studies.items()}
    if not config.checkpoints and len(set(last.values())) > 1:
        (a, s), (b, t) = min(last, key=last.get), max(last, key=last.get)
        raise ValueError(f"Arms are compared at one step, but {a} of seed {s} ends at {last[a, s]} and {b} of seed {t} at {last[b, t]}: "
                         "name a step with --checkpoints.")
    for arm, seed in tqdm(list(studies), desc="measure"):
        study = studies.pop((arm, seed))  # and its model with it
        for step in config.checkpoints or study.steps[-1:]:
            key = dict(arm=arm, seed=seed, step=step)
            weights[f"{arm} {seed} {step}"] = study.checkpoint_series.weights_hash(step)
            for split in study.parts:
                decided += [dict(key, split=split, **row) for row in answers(study, step, split)]
                played += [dict(key, split=split, **row) for row in play_games(config, study, step, split)]
    made = dict(made_by("masking", config, started), seed=config.seed, weights=weights)
    for name, rows in (("masking_decisions", decided), ("masking_games", played)):
        if rows:
            write_table(config.run / "tables", name, pd.DataFrame(rows), made)


def answers(study: Study, step: int, split: str) -> list[dict]:
    """Whether each decision is answered rightly (`Environment.right`), and at all, with and without a trace."""
    said = {mode: study.decoded(step, split, mode) for mode in ("cot", "prompt")}
    return [dict(game=p.decision.episode, **{f"acc_{m}": int(bool(said[m][i].action) and study.env.right(p.decision, said[m][i].action)) for m in said},
                 **{f"parse_{m}": int(said[m][i].action is not None) for m in said}) for i, p in enumerate(study.prompts(split))]


def play_games(config: Config, study: Study, step: int, split: str) -> list[dict]:
    """Whether each game is won, with and without a trace; none where no games are asked for."""
    if not config.games:
        return []
    if reason := study.env.unplayable():
        raise ValueError(f"No games can be played: {reason}. Leave out --games.")
    n, won = config.games if split == "in_domain" else (config.games + 1) // 2, {}
    games = study.pick_games(split, n, study.seed)
    for mode in ("cot", "prompt"):
        def compute():
            with engines(study.env.live, config.workers) as pool:
                found = play(study.model(step), study.format, study.env, games, mode, pool, step_limit=config.step_limit,
                             max_new_tokens=study.limits)
            return [int(r.won) for r in found]

        inputs = dict(study.inputs(step), format=study.format.hash, mode=mode, n=n, limit=config.step_limit, tokens=study.limits[mode],
                      official=study.official, environment=study.env.source)
        won[mode] = study.stage(f"masking/{step}-{split}-{mode}", inputs, compute)
    return [dict(game=str(game), success_cot=a, success_prompt=b) for game, a, b in zip(games, won["cot"], won["prompt"], strict=True)]


def contrasts(arms: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(contrast, arm, weights) that these arms allow.

    They are each arm's `level`, its `difference` to k = 0, an action mask's `control` (it less the random mask of its share), and the
    `slope` in k.
    """
    known = {arm: Supervision.named(arm) for arm in arms}
    zero, dose = Supervision().name, {arm: s.action_mask for arm, s in known.items() if arm == f"action_mask_{s.action_mask:g}"}
    for arm, supervision in known.items():
        yield "level", arm, {arm: 1}
        if arm != zero and zero in known:
            yield "difference", arm, {arm: 1, zero: -1}
        if supervision.control_of in known:
            yield "control", supervision.control_of, {supervision.control_of: 1, arm: -1}
    if len(dose) > 1:
        yield "slope", "", slope_weights(dose)


def compare(frame: pd.DataFrame, seed: int = 0) -> list[dict]:
    """Rows of every contrast of every metric, for each checkpoint and split, from a table of outcomes; the gap is made here.

    frame: columns KEYS and metrics, a row for each training's decision or game. Raises what `interp.arms.outcomes` raises.
    """
    rows = []
    if {"acc_cot", "acc_prompt"} <= set(frame.columns):
        frame = frame.assign(gap=frame.acc_cot - frame.acc_prompt)
    for metric in [c for c in frame.columns if c not in KEYS]:
        for (step, split), group in frame.dropna(subset=[metric]).groupby(["step", "split"], sort=True):
            found = outcomes(group.rename(columns={metric: "value"})[["arm", "seed", "game", "value"]])
            rows += [dict(step=step, split=split, metric=metric) | row for row in compared(found, seed)]
    return rows


def compared(found: Outcomes, seed: int) -> list[dict]:
    """Rows of every contrast of one metric; contrasts whose arms share no seed are left out."""
    rows = []
    for name, arm, weights in contrasts(found.arms):
        if found.of(weights).shape[1]:
            estimate, n = contrast(found, weights, seed=seed)
            rows.append(dict(contrast=name, arm=arm, seeds=n, **estimate.row()))
    return rows


def primary(rows: list[dict]) -> str:
    """The verdict on the claim, or why there is none."""
    found = {r["contrast"]: Estimate(*(r[c] for c in ESTIMATE_COLUMNS)) for r in rows if all(r[k] == v for k, v in PRIMARY.items())}
    if missing := [c for c in ("difference", "control") if c not in found]:
        return f"none: there is no {missing[0]} of {PRIMARY['arm']} {PRIMARY['split'].replace('_', ' ')}"
    return verdict(found["difference"], found["control"])


def run(config: Config) -> None:
    """Train, measure and compare, as far as `stages` says."""
    started, rows = time.time(), []
    if "train" in config.stages and not config.own:
        train(config)
    if "measure" in config.stages:
        measure(config)
    if "compare" in config.stages:
        made = {}
        for name in ("masking_decisions", "masking_games"):
            if name == "masking_decisions" or (config.run / "tables" / f"{name}.csv").exists():
                frame, made[name] = read_table(config.run / "tables", name)
                rows += compare(frame, config.seed)
        last = max(r["step"] for r in rows)
        said = primary([r for r in rows if r["step"] == last])
        write_table(config.run / "tables", "masking", pd.DataFrame(rows),
                    dict(made_by("masking", config, started), seed=config.seed, verdict=said, weights=made["masking_decisions"]["weights"]))
        print(f"{config.run / 'tables' / 'masking.csv'}: the claim is {said}")
