"""Linear probes of the eventual action at the prompt boundary, every layer and checkpoint, with their controls (docs/methods.md 3)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd

from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.system.limits import Draws, Folds, Known, Limits
from interp.tasks.actions import verb

ORDER = ["step", "layer", "label", "split", "predictor", "metric", "value", "low", "high", "n", "n_groups"]
#: What a checkpoint with all controls is read with beside the probe and its text controls.
ALL = dict(
    metrics=("accuracy", "log_loss", "macro_f1", "auroc"), predictors=("logistic", "lda", "mean_difference")
)


def label_parts(label: str) -> tuple[str, str]:
    """Whose action a label is of, and which class of it; raises ValueError for a label that is neither."""
    whose, _, part = label.partition("_")
    if whose not in ("eventual", "reference") or not re.fullmatch(r"[\w-]+", part):
        raise ValueError(
            f"There is no label {label!a}: labels are eventual_CLASS, of the checkpoint's own action, and reference_CLASS, "
            "of the recorded one, such as eventual_target."
        )
    return whose, part


Labels = Annotated[tuple[str, ...], Known(label_parts)]


@dataclass
class Config(Study):
    """Decode the action before one reasoning token exists."""

    labels: Labels = ("eventual_target", "eventual_verb", "reference_target")
    """Which action (eventual: the checkpoint's own CoT action; reference: the expert's) and which class of it."""
    folds: Folds = 5
    """Outer folds, grouped by episode."""
    draws: Draws = 1000
    """Bootstrap resamples."""
    controls: Literal["auto", "all", "ends", "few"] = "auto"
    """Checkpoints that also get the randomly initialised model, the control task with selectivity, LDA, mean difference, macro-F1 and
    AUROC: all, the first and the last (`ends`), or none (auto: all full, ends quick)."""
    pairs: Annotated[int, Limits(-1, 1000)] = -1
    """Most common pairs of verbs to tell apart among decisions at which both are admissible, with all controls (-1: 0 quick, 4 full)."""

    def check(self) -> None:
        """Raises as `Study.check` does, and for labels that name no class."""
        super().check()
        check_labels(self)


def boundary_layers(config: Study, step: int, split: str) -> np.ndarray:
    """Boundary activations [decision, layer, d_model]: the embedding output, then after each block; stored and reused."""
    return _layers(config, config.model(step), f"checkpoint-{step}", split)


def random_layers(config: Study, split: str) -> np.ndarray:
    """The same of a model of the series' architecture with random weights, drawn with the study's seed."""
    from interp.models.hooked import random_twin

    return _layers(config, random_twin(config.model(config.steps[0]), config.seed), "random", split)


def _layers(config: Study, model, name: str, split: str) -> np.ndarray:
    import torch

    from interp.engine.store import stored_capture

    pre, post = stored_capture(
        config.run / "activations" / name / split, model, config.prompts(split)
    ).values.unbind(1)
    return torch.cat([pre[:, :1], post], 1).numpy()


def check_labels(config: Study) -> None:
    """Raises ValueError for the first of a configuration's labels that names no class, and where there is none."""
    if not config.labels:
        raise ValueError("--labels names no label: give one or more, such as eventual_target.")
    for label in config.labels:
        named_class(config, label)


def named_class(config: Study, label: str) -> tuple[str, Callable[[str], str]]:
    """Whose action a label is of, and what names its class; raises ValueError for a class that the environment does not have."""
    whose, part = label_parts(label)
    if part not in config.env.classes:
        raise ValueError(
            f"The environment {config.env.name!r} names no class {part!r} of an action: it has {', '.join(config.env.classes)}."
        )
    return whose, config.env.classes[part]


def labelled(config: Study, step: int, split: str, label: str) -> tuple[np.ndarray, list[str]]:
    """Indices of the decisions that have a label, and the labels."""
    whose, name = named_class(config, label)
    prompts = config.prompts(split)
    actions = (
        [s.action for s in config.decoded(step, split, "cot")]
        if whose == "eventual"
        else [p.decision.reference for p in prompts]
    )
    kept = np.array([i for i, a in enumerate(actions) if a is not None], dtype=int)
    return kept, [name(actions[i]) for i in kept]


def texts(config: Study, split: str) -> list[str]:
    """The prompts of a split as text."""
    return [p.format.tokenizer.decode(p.ids) for p in config.prompts(split)]


def run(config: Config) -> None:
    """Capture, probe and tabulate; a checkpoint's label is one resumable stage."""
    from interp.probing.probes import probe

    started, rows, dropped, skipped = time.time(), [], {}, {}
    prompts, words = ({s: of(config, s) for s in config.parts} for of in (lambda c, s: c.prompts(s), texts))
    which = config.controls if config.controls != "auto" else "all" if config.size == "full" else "ends"
    controlled = {"all": config.steps, "ends": [config.steps[0], config.steps[-1]], "few": []}[which]
    n_pairs = config.pairs if config.pairs >= 0 else config.number(0, 0, 4)
    drawn = {s: random_layers(config, s) for s in config.parts} if controlled else {}
    for step, _ in config.cells("probes", config.parts[:1]):
        acts, more = {s: boundary_layers(config, step, s) for s in config.parts}, step in controlled
        sets: dict[str, dict[str, tuple]] = {}
        for label in config.labels:
            for split in config.parts:
                kept, names = labelled(config, step, split, label)
                dropped[f"{step} {split} {label}"] = len(prompts[split]) - len(kept)
                decisions = [prompts[split][i].decision for i in kept]
                types = [f"{d.task_type} {d.previous}" for d in decisions] if more else None
                sets.setdefault(label, {})[split] = (
                    acts[split][kept],
                    names,
                    [d.episode for d in decisions],
                    [words[split][i] for i in kept],
                    [d.previous for d in decisions],
                    types,
                    drawn[split][kept] if more else None,
                )

        def stage(name, found, **inputs):
            given = dict(
                config.inputs(step, config.parts[0]),
                folds=config.folds,
                draws=config.draws,
                all_controls=more,
                intervals="expanded",
                **inputs,
            )

            def compute():
                try:
                    return dict(rows=found(), skipped="")
                except (
                    ValueError
                ) as problem:  # too few decisions or one class: said in the provenance, the others go on
                    return dict(rows=[], skipped=str(problem))

            value = config.stage(f"probes/{step}-{name}", given, compute)
            rows.extend(value["rows"])
            if value["skipped"]:
                skipped[f"{step} {name}"] = value["skipped"]

        options = dict(folds=config.folds, seed=config.seed, draws=config.draws, **(ALL if more else {}))
        for label, of in sets.items():
            first, *second = (of[s] for s in config.parts)

            def found(first=first, second=second, label=label):
                acts, names, groups, text, previous, types, random_acts = first
                result = probe(
                    acts,
                    names,
                    groups,
                    prompts=text,
                    previous=previous,
                    types=types,
                    random_acts=random_acts,
                    test=second[0] if second else None,
                    **options,
                )
                return table(result, step, label)

            stage(label, found, label=label, test=config.inputs(step, config.parts[1]) if second else None)
        if n_pairs:
            stage(
                "pairwise",
                lambda: _pairs(config, step, acts[config.parts[0]], words[config.parts[0]], n_pairs, options),
                pairs=n_pairs,
            )
    if not rows:
        raise NotApplicable(f"No probe could be fitted: {next(iter(skipped.values()))}")
    config.write(
        "probes",
        [{k: r[k] for k in ORDER} for r in rows],
        started,
        without_action={k: v for k, v in dropped.items() if v},
        skipped=skipped,
        all_controls=list(controlled),
    )


def table(result, step: int, label: str) -> list[dict]:
    """Rows of a probe, and of predictor `gain_p` the p-value of each layer's gain, corrected over layers."""
    frame = result.table()
    size = frame.set_index("split")[["n", "n_groups"]].groupby(level=0).first()
    p = [
        dict(
            layer=row["layer"],
            split=row["split"],
            predictor="gain_p",
            metric=row["metric"],
            value=row["p"],
            low=None,
            high=None,
            **size.loc[row["split"]].astype(int).to_dict(),
        )
        for row in result.layer_p
    ]
    return (
        pd.concat([frame, pd.DataFrame(p)])
        .assign(step=step, label=label)
        .astype(object)
        .replace({np.nan: None})
        .to_dict("records")
    )


def _pairs(
    config: Config, step: int, acts: np.ndarray, words: list[str], n_pairs: int, options: dict
) -> list[dict]:
    """Rows of the most common pairs of verbs, of decisions at which both are admissible; the label names the pair."""
    from interp.probing.pairwise import pairwise

    split = config.parts[0]
    kept, names = labelled(config, step, split, "eventual_verb")
    decisions = [config.prompts(split)[i].decision for i in kept]
    rejected = [
        sorted({verb(action) for action in d.admissible} - {name}) for d, name in zip(decisions, names)
    ]
    given = dict(prompts=[words[i] for i in kept], previous=[d.previous for d in decisions])
    groups = [d.episode for d in decisions]
    rows = []
    for pair, result in pairwise(
        acts[kept], names, rejected, groups, most=n_pairs, **given, **options
    ).items():
        rows += table(result, step, f"pairwise {' / '.join(pair)}")
    return rows


INSTRUMENT = Instrument("probes", Config, run, in_all=(0, 1))
