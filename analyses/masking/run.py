"""Does leaving action tokens unsupervised help, and where does the gain land? Conditions of training, compared over games and seeds (docs/methods.md 8).

Conditions are folders `CONDITIONS/<condition>/seed-<s>/checkpoint-N`, with names as in `interp.training.supervision`: trained here from a corpus and a base
checkpoint, or one's own (`--series CONDITIONS`). Every condition's training of one seed reads the same batches in the same order, and masks
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

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from tqdm import tqdm

from analyses.masking.compare import compare, items, primary, selection
from analyses.masking.measure import INSTRUMENTS, measure
from analyses.provenance import made_by
from analyses.registry import Instrument
from analyses.study import Study
from interp.checkpoints.contents import SERIES
from interp.checkpoints.headers import hash_files
from interp.results.tables import write_table
from interp.system import limits
from interp.system.limits import Count, Folder, Known, Limits, Several, StepLimit, Workers
from interp.training.recipes import Recipe, Tuning
from interp.training.supervision import Supervision

CONDITIONS = (
    "action_mask_0",
    "action_mask_0.1",
    "action_mask_0.3",
    "action_mask_0.5",
    "action_mask_0.7",
    "random_mask_0.3",
    "action_only",
)


@dataclass
class Config(Study):
    """The defaults train the small agent's conditions from the shipped base, measure and compare them; each part goes on from where it was."""

    run: Annotated[Path, Folder()] = Path("runs/masking")
    """Folder for everything the run writes; conditions trained here are in its `conditions`."""
    stages: tuple[Literal["train", "measure", "compare"], ...] = ("train", "measure", "compare")
    """What is done. With conditions of one's own (`--series`) nothing is trained."""
    conditions: Annotated[tuple[str, ...], Known(Supervision.named)] = CONDITIONS
    """Conditions that are trained."""
    seeds: Annotated[int, Limits(1, 1000)] = 3
    """Trainings of each condition."""
    more: Annotated[tuple[str, ...], Known(Supervision.named), Several(none=True)] = (
        "action_mask_0",
        "action_mask_0.3",
        "random_mask_0.3",
    )
    """Conditions that the claim rests on."""
    more_seeds: Annotated[int, Limits(1, 1000)] = 5
    """Trainings of those."""
    recipe: Recipe = field(default_factory=Recipe)
    """Full fine-tuning of the base (`cot_steps`, `cot_lr` and batches; the base's own numbers are not read)."""
    lora: bool = False
    """Train low-rank updates instead, as `tuning` says."""
    tuning: Tuning = field(default_factory=Tuning)
    """Low-rank fine-tuning of the base."""
    part: tuple[int, int] = (0, 1)
    """Which of how many parts of the trainings this process trains and measures (`--part 0 2` and `--part 1 2` at the same time); the
    tables are written by a last run without it."""
    processes: Workers = 1
    """Processes of this machine that train and measure side by side, a part each."""
    instruments: Annotated[tuple[Literal[tuple(INSTRUMENTS)], ...], Several(none=True)] = tuple(INSTRUMENTS)
    """What reads every training's last checkpoint; prompt reliance reads every checkpoint that all trainings have."""
    pairs: Count = 40
    """Counterfactual pairs of each split, for prompt reliance."""
    patched: Count = 20
    """Of these, pairs that are patched."""
    conflicts: Count = 100
    """Decisions of each split that another state's trace is put in at."""
    games: int = 0
    """In-domain games that each training plays (0: none); half as many out of domain."""
    step_limit: StepLimit = 30
    """Steps after which a game is lost."""
    workers: Workers = 2
    """Processes that the games are played in."""

    def check(self) -> None:
        """Raise the sentence of what cannot be trained or measured: conditions are no series, so only the fields are looked at."""
        limits.check(self)
        self.format_options()
        self.mine(self.jobs)
        if self.processes > 1 and self.part != (0, 1):
            raise ValueError(f"--processes {self.processes} makes the parts itself: leave out --part.")
        if self.base and not self.base.exists():
            raise FileNotFoundError(f"--base: there is no folder {self.base}.")

    @property
    def own(self) -> bool:
        """Whether the conditions were trained elsewhere."""
        return self.series != SERIES

    @property
    def folder(self) -> Path:
        """The folder of the conditions."""
        return self.series if self.own else self.run / "conditions"

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(condition, seed) that are trained, every condition's first seed before any second."""
        seeds = {
            condition: self.more_seeds if condition in self.more else self.seeds
            for condition in self.conditions
        }
        return [
            (condition, seed)
            for seed in range(max(seeds.values(), default=0))
            for condition in self.conditions
            if seed < seeds[condition]
        ]

    def mine(self, every: Sequence) -> list:
        """What is this process's part; raises ValueError for a part that is none."""
        i, n = self.part
        if not 0 <= i < n:
            raise ValueError(
                f"--part is a number from 0 on and how many parts there are, such as 0 2 and 1 2, not {i} {n}."
            )
        return list(every[i::n])

    @cached_property
    def start(self) -> Path:
        """The base checkpoint that conditions are trained from."""
        from interp.checkpoints.series import CheckpointSeries

        return Path(self.base or CheckpointSeries.discover(SERIES).path(0))


def train(config: Config) -> None:
    """Train what is not trained yet, one folder after the other; a training that was interrupted goes on from its last checkpoint."""
    from interp.training.trainer import train_condition

    named = config._named or config.env
    items = named.recorded(config._file).get("train")
    if not items:
        raise ValueError(
            f"{config._file or f'The environment {named.name!r}'} has no episodes of the split 'train' to train on."
        )
    made = dict(corpus=hash_files([config._file]) if config._file else named.name)
    for condition, seed in (bar := tqdm(config.mine(config.jobs), desc="train")):
        bar.set_postfix_str(f"{condition}, seed {seed}")
        recipe = config.tuning if config.lora else config.recipe
        train_condition(
            config.start,
            items,
            Supervision.named(condition),
            recipe,
            config.folder / condition / f"seed-{seed}",
            seed=seed,
            style=config.style,
            system=config.system,
            options=config.format_options(),
            provenance=made,
            device=config.device,
        )


def run(config: Config) -> None:
    """Train, measure and compare, as far as `stages` says."""
    started = time.time()
    if "train" in config.stages and not config.own:
        train(config)
    if "measure" in config.stages:
        measure(config)
    if "compare" in config.stages and config.part[1] == 1:
        frame, made = items(config.run / "tables")
        rows = compare(frame, config.seed)
        (chosen, why), said = selection(frame, config.seed), primary(rows)
        provenance = dict(
            made_by("masking", config, started),
            seed=config.seed,
            verdict=said,
            selection=why,
            weights={key: value for of in made.values() for key, value in of["weights"].items()},
        )
        write_table(config.run / "tables", "masking", pd.DataFrame(rows), provenance)
        if chosen:
            write_table(config.run / "tables", "masking_selection", pd.DataFrame(chosen), provenance)
        print(f"{config.run / 'tables' / 'masking.csv'}: the claim is {said}; {why}")


INSTRUMENT = Instrument("masking", Config, run)
