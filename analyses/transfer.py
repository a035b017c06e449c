"""Probes trained at one checkpoint and read at every other, in-domain and from in-domain to out-of-domain (docs/methods.md 3.6)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from analyses.probes import Labels, boundary_layers, check_labels, labelled
from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.system.limits import Draws, Folds

ORDER = [
    "train_step",
    "test_step",
    "split",
    "label",
    "layer",
    "predictor",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "n_groups",
]


@dataclass
class Config(Study):
    """Does what a probe reads at one checkpoint stay where it is? Layer and C are chosen at the training step, without test labels."""

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
    from interp.probing.transfer import transfer

    started, rows, skipped = time.time(), [], {}
    for label in config.labels:
        sets = []
        for split in config.parts:
            labels = {}
            for step in config.steps:
                names = np.full(len(config.prompts(split)), None, dtype=object)
                kept, of = labelled(config, step, split, label)
                names[kept] = of
                labels[step] = names.tolist()
            sets.append((labels, [p.decision.episode for p in config.prompts(split)]))
        # A checkpoint whose actions rarely parse has too few labels for every fold; it is said, and the others go on.
        labels, episodes = sets[0]
        known = {
            step: len({e for e, name in zip(episodes, labels[step]) if name is not None})
            for step in config.steps
        }
        steps = [step for step in config.steps if known[step] >= 4 * config.folds]
        skipped |= {
            f"{step} {label}": f"{n} episodes have a label, {4 * config.folds} are needed"
            for step, n in known.items()
            if step not in steps
        }

        def compute():
            given = [
                (
                    {step: boundary_layers(config, step, split) for step in steps},
                    {step: of[step] for step in steps},
                    names,
                )
                for split, (of, names) in zip(config.parts, sets)
            ]
            try:
                found = transfer(
                    *given[0],
                    test=given[1] if len(given) > 1 else None,
                    folds=config.folds,
                    seed=config.seed,
                    draws=config.draws,
                )
            except ValueError as problem:  # too few decisions with an action at some step
                return dict(rows=[], skipped=str(problem))
            return dict(rows=found.table().to_dict("records"), skipped="")

        inputs = dict(
            steps=[[config.inputs(step, split) for step in steps] for split in config.parts],
            labels=[of for of, _ in sets],
            folds=config.folds,
            draws=config.draws,
        )
        if not steps:
            continue
        found = config.stage(f"transfer/{label}", inputs, compute)
        rows += [dict(row, label=label) for row in found["rows"]]
        if found["skipped"]:
            skipped[label] = found["skipped"]
    if not rows:
        raise NotApplicable(f"No probe could be transferred: {next(iter(skipped.values()))}")
    config.write("transfer", [{k: r[k] for k in ORDER} for r in rows], started, skipped=skipped)


INSTRUMENT = Instrument("transfer", Config, run, in_all=(0, 2))
