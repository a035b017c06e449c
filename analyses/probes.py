"""Linear probes of the eventual action at the prompt boundary, every layer and checkpoint (METHODS 3)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from analyses.study import NotApplicable, Study
from interp.probes import probe
from interp.store import stored_capture


@dataclass
class Config(Study):
    """Decode the action before one reasoning token exists."""

    labels: tuple[str, ...] = ("eventual_target", "eventual_verb", "reference_target")
    """Which action (eventual: the checkpoint's own CoT action; reference: the expert's) and which class of it."""
    folds: int = 5
    """Outer folds, grouped by episode."""
    draws: int = 1000
    """Bootstrap resamples."""
    metrics: tuple[Literal["accuracy", "log_loss", "macro_f1", "auroc"], ...] = ("accuracy", "log_loss")
    """Scores of every reader."""
    readers: tuple[Literal["logistic", "lda", "mean_difference"], ...] = ("logistic",)
    """What reads each layer: always the logistic probe, and perhaps others."""
    control_task: bool = False
    """Also fit a random label for each task type and previous action, and report selectivity."""


def boundary_layers(config: Study, step: int, split: str) -> np.ndarray:
    """Boundary activations [decision, layer, d_model]: the embedding output, then after each block; stored and reused."""
    acts = stored_capture(config.run / "activations" / f"checkpoint-{step}" / split, config.model(step), config.prompts(split))
    pre, post = acts.values.unbind(1)
    return torch.cat([pre[:, :1], post], 1).numpy()


def labelled(config: Study, step: int, split: str, label: str) -> tuple[np.ndarray, list[str]]:
    """Indices of the decisions that have a label, and the labels."""
    which, _, part = label.partition("_")
    name = config.env.classes.get(part)
    if name is None:
        raise ValueError(f"The environment {config.env.name!r} names no class {part!r} of an action: it has {', '.join(config.env.classes)}.")
    prompts = config.prompts(split)
    actions = ([s.action for s in config.decoded(step, split, "cot")] if which == "eventual" else [p.decision.reference for p in prompts])
    kept = np.array([i for i, a in enumerate(actions) if a is not None], dtype=int)
    return kept, [name(actions[i]) for i in kept]


def run(config: Config) -> None:
    """Capture, probe and tabulate; a checkpoint's label is one resumable stage."""
    started, rows, dropped, skipped = time.time(), [], {}, {}
    prompts = {s: config.prompts(s) for s in config.parts}
    texts = {s: [p.format.tokenizer.decode(p.ids) for p in prompts[s]] for s in config.parts}
    for step, _ in config.cells("probes", config.parts[:1]):
        acts = {s: boundary_layers(config, step, s) for s in config.parts}
        for label in config.labels:
            sets = {}
            for split in config.parts:
                kept, names = labelled(config, step, split, label)
                dropped[f"{step} {split} {label}"] = len(prompts[split]) - len(kept)
                decisions = [prompts[split][i].decision for i in kept]
                sets[split] = (acts[split][kept], names, [d.episode for d in decisions], [texts[split][i] for i in kept],
                               [d.previous for d in decisions],
                               [f"{d.task_type} {d.previous}" for d in decisions] if config.control_task else None)
            first, second = sets[config.parts[0]], sets[config.parts[1]] if len(config.parts) > 1 else None
            inputs = dict(config.inputs(step, config.parts[0]), label=label, folds=config.folds, draws=config.draws,
                          test=config.inputs(step, config.parts[1]) if second else None)
            options = dict(metrics=config.metrics, readers=config.readers)
            if (config.metrics, config.readers, config.control_task) != (Config.metrics, Config.readers, Config.control_task):
                inputs |= options | dict(control_task=config.control_task)  # what was computed without them stays valid

            def compute():
                try:
                    found = probe(first[0], first[1], first[2], prompts=first[3], previous=first[4], types=first[5], test=second,
                                  folds=config.folds, seed=config.seed, draws=config.draws, **options)
                except ValueError as problem:  # too few decisions or one class: said in the provenance, the others go on
                    return dict(rows=[], skipped=str(problem))
                return dict(rows=found.table().assign(step=step, label=label).replace({np.nan: None}).to_dict("records"), skipped="")

            found = config.stage(f"probes/{step}-{label}", inputs, compute)
            rows += found["rows"]
            if found["skipped"]:
                skipped[f"{step} {label}"] = found["skipped"]
    order = ["step", "layer", "label", "split", "reader", "metric", "value", "low", "high", "n", "n_groups"]
    if not rows:
        raise NotApplicable(f"No probe could be fitted: {next(iter(skipped.values()))}")
    config.write("probes", [{k: r[k] for k in order} for r in rows], started, without_action={k: v for k, v in dropped.items() if v},
                 skipped=skipped)
