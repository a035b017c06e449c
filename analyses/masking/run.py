"""Does leaving action tokens unsupervised help, and where does the gain land? (docs/methods.md 8)

Conditions of training are compared over games and seeds. They are folders
`CONDITIONS/<condition>/seed-<s>/checkpoint-N`, named as in `interp.training.supervision`: trained here from a
corpus and a base checkpoint, or one's own (`--series CONDITIONS`). Every condition's training of one seed
reads the same batches in the same order, and masks nest: what k = .1 leaves unsupervised, k = .3 leaves too.

What is predicted, written before the study was run. The claim (reported, never verified): with the actions of
k = .3 of the examples unsupervised, their tags kept, agents do better out of domain.
- Primary outcome: `acc_cot` out of domain, the CoT action's agreement with the expert on recorded decisions;
  k = .3 against k = 0, and against the random mask of equal share, both paired over games and seeds. Whole
  games (`success_cot`) are secondary: a small agent's success out of domain may be too near 0 to fall or
  rise.
- Supported: both intervals lie above 0. It must be better than k = 0 *and* better than masking as many other
  tokens.
- A gain of at least .05 excluded: one of them lies below .05. Either it does not help by an amount that would
  matter, or masking any tokens helps as much, and the story about actions is wrong. Anything else is open.
- If the gain moves as the story has it (action supervision teaches a way from the prompt to the action past
  the trace), k = .3 has, at equal or better `acc_cot`: a lower `acc_prompt` and so a larger `gap`, less
  prompt reliance, and follows conflicting traces more often; more so for larger k (the slope). Unmoved, or
  moved as far by the random mask, that mechanism is not what helps, whatever success does.
- In domain no gain is predicted. `action_only` bounds what actions alone teach: no better than k = 0 with its
trace. Contrasts beside these are described, not tested: intervals are not corrected for their number.
"""

from __future__ import annotations

import time

import pandas as pd
from tqdm import tqdm

from interp.checkpoints.headers import hash_files
from interp.results.tables import write_table
from interp.tasks.episodes import base_episodes
from interp.training.supervision import Supervision

from ..provenance import made_by
from ..registry import Instrument
from .compare import compare, items, primary, selection
from .config import Config
from .measure import measure


def train(config: Config) -> None:
    """Train what is not trained yet; an interrupted training goes on from its last checkpoint."""
    from interp.training.trainer import train_condition

    episodes, base = config.recorded.get("train"), base_episodes(config.recorded)
    if not episodes:
        where = config.file or f"The environment {config.env.name!r}"
        raise ValueError(f"{where} has no episodes of the split 'train' to train on.")
    made = dict(corpus=hash_files([config.file]) if config.file else config.env.name)
    for condition, seed in (bar := tqdm(config.mine(config.jobs), desc="train")):
        bar.set_postfix_str(f"{condition}, seed {seed}")
        recipe = config.tuning if config.lora else config.recipe
        train_condition(
            config.start,
            episodes,
            Supervision.named(condition),
            recipe,
            config.folder / condition / f"seed-{seed}",
            seed=seed,
            style=config.style,
            system=config.system,
            options=config.format_options(),
            base_episodes=base,
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
        chosen, why = selection(frame, config.seed)
        verdict = primary(rows)
        provenance = dict(
            made_by("masking", config, started),
            seed=config.seed,
            verdict=verdict,
            selection=why,
            weights={key: value for each in made.values() for key, value in each["weights"].items()},
        )
        write_table(config.run / "tables", "masking", pd.DataFrame(rows), provenance)
        if chosen:
            write_table(config.run / "tables", "masking_selection", pd.DataFrame(chosen), provenance)
        print(f"{config.run / 'tables' / 'masking.csv'}: the claim is {verdict}; {why}")


INSTRUMENT = Instrument("masking", Config, run)
