"""Probes trained at one checkpoint and read at every other, in and out of domain (docs/methods.md 3.6)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from interp.results.tables import ESTIMATE_COLUMNS
from interp.system.limits import Draws, Folds

from .boundary import boundary_layers
from .labels import Labels, check_labels, labelled
from .registry import Instrument
from .remedies import LABELLED, NotApplicable
from .rows import attempted
from .study import Study

ORDER = [
    "train_step",
    "test_step",
    "split",
    "label",
    "layer",
    "predictor",
    "metric",
    *ESTIMATE_COLUMNS,
]


@dataclass
class Config(Study):
    """Probes at other checkpoints; layer and C are chosen at the training step, without test labels."""

    labels: Labels = ("eventual_target",)
    """Which action and class of it, as in `probes`; each checkpoint is read for its own."""
    folds: Folds = 5
    """Outer folds, grouped by episode."""
    draws: Draws = 1000
    """Bootstrap resamples."""

    def check(self) -> None:
        """Raises as `Study.check` does, and for labels that name no class."""
        super().check()
        check_labels(self)


def run(config: Config) -> None:
    """Capture, transfer and tabulate; a label is one resumable stage."""
    started, rows, skipped = time.time(), [], {}
    for step, split in config.cells("transfer"):
        boundary_layers(config, step, split)  # captured here, read by every label
    for label in config.labels:
        labels = {split: _labels(config, split, label) for split in config.parts}
        # A checkpoint whose actions rarely parse has too few labels for every fold; the others go on.
        need, trained = 4 * config.folds, config.parts[0]
        episodes = [prompt.decision.episode for prompt in config.prompts(trained)]
        steps = []
        for step, names in labels[trained].items():
            n = len({episode for episode, name in zip(episodes, names, strict=True) if name is not None})
            if n >= need:
                steps.append(step)
            else:
                skipped[f"{step} {label}"] = f"{n} episodes have a label, {need} are needed"
        if not steps:
            continue
        inputs = dict(
            steps=[[config.inputs(step, split) for step in steps] for split in config.parts],
            labels=list(labels.values()),
            folds=config.folds,
            draws=config.draws,
            **config.stored_as,
        )
        stored = config.stage(
            f"transfer/{label}", inputs, lambda: attempted(lambda: _transferred(config, labels, steps))
        )
        if stored["skipped"]:
            skipped[label] = stored["skipped"]
        else:
            rows += [dict(row, label=label) for row in stored["rows"]]
    if not rows:
        raise NotApplicable(f"No probe could be transferred: {next(iter(skipped.values()))}", LABELLED)
    config.write("transfer", [{k: r[k] for k in ORDER} for r in rows], started, skipped=skipped)


def _labels(config: Config, split: str, label: str) -> dict[int, list[str | None]]:
    """Each checkpoint's labels of all decisions; None where one has none."""
    by_step = {}
    for step in config.steps:
        names = np.full(len(config.prompts(split)), None, dtype=object)
        kept, classes = labelled(config, step, split, label)
        names[kept] = classes
        by_step[step] = names.tolist()
    return by_step


def _transferred(config: Config, labels: dict[str, dict[int, list]], steps: list[int]) -> dict:
    """Every checkpoint's probe at every other, trained on the first split and tested on both."""
    from interp.probing.transfer import transfer

    train, *test = (
        (
            {step: boundary_layers(config, step, split) for step in steps},
            {step: names[step] for step in steps},
            [prompt.decision.episode for prompt in config.prompts(split)],
        )
        for split, names in labels.items()
    )
    result = transfer(
        *train,
        test=test[0] if test else None,
        folds=config.folds,
        seed=config.seed,
        draws=config.draws,
    )
    return dict(rows=result.to_frame().to_dict("records"))


INSTRUMENT = Instrument("transfer", Config, run, in_all=(0, 2))
