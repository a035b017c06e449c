"""Linear probes of the eventual action at the prompt boundary, with their controls (docs/methods.md 3)."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import lazy_loader as lazy
import numpy as np

from interp.prompts.format import Prompt
from interp.prompts.text import shared
from interp.results.tables import ESTIMATE_COLUMNS
from interp.system.limits import Draws, Folds, Known, Limits
from interp.tasks.actions import verb

from .registry import Instrument
from .remedies import LABELLED, NotApplicable
from .rows import attempted
from .study import Study

if TYPE_CHECKING:
    import pandas as pd

    from interp.models.hooked import HookedModel
    from interp.probing.probes import ProbeResult
else:
    pd = lazy.load("pandas")

ORDER = [
    "step",
    "layer",
    "label",
    "split",
    "predictor",
    "metric",
    *ESTIMATE_COLUMNS,
]
#: What a checkpoint with all controls is read with beside the probe and its text controls.
ALL = dict(
    metrics=("accuracy", "log_loss", "macro_f1", "auroc"), predictors=("logistic", "lda", "mean_difference")
)


def label_parts(label: str) -> tuple[str, str]:
    """Whose action a label is of, and which class of it; raises ValueError for a label that is neither."""
    whose, _, part = label.partition("_")
    if whose not in ("eventual", "reference") or not re.fullmatch(r"[\w-]+", part):
        raise ValueError(
            f"There is no label {label!a}: labels are eventual_CLASS, of the checkpoint's own action, and "
            "reference_CLASS, of the recorded one, such as eventual_target."
        )
    return whose, part


Labels = Annotated[tuple[str, ...], Known(label_parts)]


@dataclass
class Config(Study):
    """Decode the action before one reasoning token exists."""

    labels: Labels = ("eventual_target", "eventual_verb", "reference_target")
    """Which action (eventual: the checkpoint's own CoT action; reference: the expert's), and its class."""
    folds: Folds = 5
    """Outer folds, grouped by episode."""
    draws: Draws = 1000
    """Bootstrap resamples."""
    controls: Literal["auto", "all", "ends", "few"] = "auto"
    """Checkpoints that also get the randomly initialised model, the control task with selectivity, LDA, mean
    difference, macro-F1 and AUROC: all, the first and the last (`ends`), or none (auto: all full, ends
    quick)."""
    pairs: Annotated[int, Limits(-1, 1000)] = -1
    """Most common pairs of verbs to tell apart where both are admissible (-1: 0 quick, 4 full)."""

    def check(self) -> None:
        """Raises as `Study.check` does, and for labels that name no class."""
        super().check()
        check_labels(self)


def boundary_layers(config: Study, step: int, split: str) -> np.ndarray:
    """Boundary activations [decision, layer, d_model]: the embedding output, then each block's; stored."""
    return _layers(config, config.model(step), f"checkpoint-{step}", split)


def random_layers(config: Study, split: str) -> np.ndarray:
    """The same of a model of the series' architecture with random weights, drawn with the study's seed."""
    from interp.models.untrained import random_twin

    return _layers(config, random_twin(config.model(config.steps[0]), config.seed), "random", split)


def _layers(config: Study, model: HookedModel, name: str, split: str) -> np.ndarray:
    import torch

    from interp.engine.store import stored_capture

    pre, post = stored_capture(
        config.run / "activations" / name / split, model, config.prompts(split)
    ).values.unbind(1)
    return torch.cat([pre[:, :1], post], 1).numpy()


def check_labels(config: Study) -> None:
    """Raise ValueError for a label of a configuration that names no class, and where there is no label."""
    if not config.labels:
        raise ValueError("--labels names no label: give one or more, such as eventual_target.")
    for label in config.labels:
        named_class(config, label)


def named_class(config: Study, label: str) -> tuple[str, Callable[[str], str]]:
    """Whose action a label is of, and what names its class.

    Raises ValueError for a class that the environment does not have.
    """
    whose, part = label_parts(label)
    if part not in config.env.classes:
        raise ValueError(
            f"The environment {config.env.name!r} names no class {part!r} of an action: it has "
            f"{', '.join(config.env.classes)}."
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


@dataclass
class Split:
    """What probes read of a split at one checkpoint, every decision in order."""

    prompts: list[Prompt]
    acts: np.ndarray
    """[decision, layer, d_model]."""
    texts: list[str]
    random_acts: np.ndarray | None
    """The same as `acts`, of random weights; None where not all controls are read."""

    def arguments(self, kept: np.ndarray, names: list[str]) -> dict[str, Any]:
        """Arguments of `probe` for the decisions that have a label."""
        decisions = [self.prompts[i].decision for i in kept]
        controlled = self.random_acts is not None
        return dict(
            acts=self.acts[kept],
            labels=names,
            groups=[d.episode for d in decisions],
            prompts=[self.texts[i] for i in kept],
            previous=[d.previous for d in decisions],
            types=[f"{d.task_type} {d.previous}" for d in decisions] if controlled else None,
            random_acts=self.random_acts[kept] if self.random_acts is not None else None,
        )


def run(config: Config) -> None:
    """Capture, probe and tabulate; a checkpoint's label is one resumable stage."""
    started, rows, skipped = time.time(), [], {}
    dropped: dict[str, int] = {}
    untasked: dict[str, str] = {}
    which = config.controls if config.controls != "auto" else "all" if config.size == "full" else "ends"
    controlled = {"all": config.steps, "ends": [config.steps[0], config.steps[-1]], "few": []}[which]
    n_pairs = config.pairs if config.pairs >= 0 else config.number(0, 0, 4)
    words = {split: texts(config, split) for split in config.parts}
    drawn = {split: random_layers(config, split) for split in config.parts} if controlled else {}
    for step, _ in config.cells("probes", config.parts[:1]):
        more = step in controlled
        splits = {
            split: Split(
                config.prompts(split),
                boundary_layers(config, step, split),
                words[split],
                drawn[split] if more else None,
            )
            for split in config.parts
        }
        options = dict(folds=config.folds, seed=config.seed, draws=config.draws, **(ALL if more else {}))
        common = dict(
            config.inputs(step, config.parts[0]),
            folds=config.folds,
            draws=config.draws,
            all_controls=more,
            intervals="expanded",
        )
        for stage in _stages(config, step, splits, n_pairs, options, dropped, untasked):
            name, compute = stage.name, stage.compute
            stored = config.stage(
                f"probes/{step}-{name}",
                common | stage.inputs,
                lambda: attempted(compute),
            )
            if stored["skipped"]:
                skipped[f"{step} {name}"] = stored["skipped"]
            else:
                rows += stored["rows"]
        test = config.inputs(step, config.parts[1]) if len(splits) > 1 else None
        inputs = dict(config.inputs(step, config.parts[0]), test=test)
        config.stage(f"probes/{step}-lens", inputs, lambda: _lens(config, step, splits))
    if not rows:
        raise NotApplicable(f"No probe could be fitted: {next(iter(skipped.values()))}", LABELLED)
    for what, why in list(untasked.items())[:1]:
        config.say(
            f"probes: {len(untasked)} probes have no control task and no selectivity, and all their other "
            f"controls (first {what}: {why})"
        )
    config.write(
        "probes",
        [{k: r[k] for k in ORDER} for r in rows],
        started,
        without_action={k: v for k, v in dropped.items() if v},
        skipped=skipped,
        all_controls=list(controlled),
        without_control_task=untasked,
    )


class Stage(NamedTuple):
    """One resumable computation of rows."""

    name: str
    inputs: dict
    """What it reads beside what all of a checkpoint's stages read."""
    compute: Callable[[], dict]
    """`rows` of its table, and of a label's probe what it predicted for each decision."""


def _stages(
    config: Config,
    step: int,
    splits: dict[str, Split],
    n_pairs: int,
    options: dict[str, Any],
    dropped: dict[str, int],
    untasked: dict[str, str],
) -> Iterator[Stage]:
    """A checkpoint's labels, then its pairs of verbs.

    `dropped` counts decisions without a label, `untasked` says why a label has no control task.
    """
    for label in config.labels:
        sets, ids = [], []
        for split, each in splits.items():
            kept, names = labelled(config, step, split, label)
            dropped[f"{step} {split} {label}"] = len(each.prompts) - len(kept)
            sets.append(each.arguments(kept, names))
            ids += [each.prompts[i].decision.id for i in kept]
        if reason := _no_control_task(sets, config.seed):
            untasked[f"{step} {label}"] = reason
            sets = [each | dict(types=None) for each in sets]
        test = config.inputs(step, config.parts[1]) if len(sets) > 1 else None
        inputs = dict(label=label, test=test)
        compute = partial(_probed, sets, ids, step, label, options)
        yield Stage(label, inputs, compute)
    if n_pairs:
        first = splits[config.parts[0]]
        yield Stage("pairwise", dict(pairs=n_pairs), lambda: _pairs(config, step, first, n_pairs, options))


def _lens(config: Config, step: int, splits: dict[str, Split]) -> list[dict]:
    """The logit lens of each decision's eventual and reference action at the boundary, by layer.

    Of an action its telling token is followed; its rank is 1 where no token of the vocabulary is likelier.
    """
    import torch

    from interp.measures.lens import read_stream

    model, ids_of, rows = config.model(step), cache(config.format.action_ids), []
    for split, each in splits.items():
        actions = [
            dict(eventual=completion.action, reference=prompt.decision.reference)
            for completion, prompt in zip(config.decoded(step, split, "cot"), each.prompts, strict=True)
        ]
        tokens = []
        for prompt, both in zip(each.prompts, actions, strict=True):
            named = {*prompt.decision.admissible, *both.values()} - {None}
            candidates = {action: ids_of(action) for action in named}
            tokens.append([_telling_token(a or both["reference"], candidates) for a in both.values()])
        _, _, logp, rank = read_stream(model, torch.from_numpy(each.acts), torch.tensor(tokens))
        for i, (prompt, both) in enumerate(zip(each.prompts, actions, strict=True)):
            for k, (whose, action) in enumerate(both.items()):
                if action is None:
                    continue
                rows.append(
                    dict(
                        decision=prompt.decision.id,
                        whose=whose,
                        token=prompt.format.text([tokens[i][k]]),
                        rank=(rank[i, :, k] + 1).tolist(),
                        probability=np.exp(logp[i, :, k].astype(float)).round(6).tolist(),
                    )
                )
    return rows


def _telling_token(action: str, candidates: Mapping[str, Sequence[int]]) -> int:
    """The token of an action that rules out the most other candidates, of those alike up to there.

    candidates: action -> its ids.
    """
    ids = candidates[action]
    parting = Counter(shared(ids, other) for name, other in candidates.items() if name != action)
    return ids[min(parting, key=lambda place: (-parting[place], place), default=0)]


def _no_control_task(sets: list[dict[str, Any]], seed: int) -> str:
    """Why a label's prompt types allow no control task; "" where they do, or none is read."""
    from interp.probing.baselines import control_labels

    labels = sets[0]["labels"]
    if sets[0]["types"] is None or not labels:
        return ""
    types = [each for one in sets for each in one["types"]]
    try:
        control_labels(types, np.unique(labels, return_inverse=True)[1], seed)
    except ValueError as problem:
        return str(problem)
    return ""


def _probed(
    sets: list[dict[str, Any]], ids: list[str], step: int, label: str, options: dict[str, Any]
) -> dict:
    """A label's probe, cross-fitted on the first split and tested on the second, if any.

    ids: of the decisions of all sets.
    """
    from interp.probing.probes import probe

    first, *second = sets
    test = tuple(second[0].values()) if second else None
    result = probe(**first, test=test, **options)
    layers = [result.predicted["probe", layer].tolist() for layer in result.layers]
    labels = [name for each in sets for name in each["labels"]]
    predicted = dict(decision=ids, label=labels, layers=layers)
    return dict(rows=table(result, step, label), predicted=predicted)


def table(result: ProbeResult, step: int, label: str) -> list[dict]:
    """Rows of a probe, and of predictor `gain_p` the p-value of each layer's gain, corrected over layers."""
    frame = result.to_frame()
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


def _pairs(config: Config, step: int, first: Split, n_pairs: int, options: dict[str, Any]) -> dict:
    """Rows of the most common pairs of verbs, of decisions at which both are admissible."""
    from interp.probing.pairwise import pairwise

    split = config.parts[0]
    kept, names = labelled(config, step, split, "eventual_verb")
    decisions = [first.prompts[i].decision for i in kept]
    rejected = [
        sorted({verb(action) for action in d.admissible} - {name}) for d, name in zip(decisions, names)
    ]
    by_pair = pairwise(
        first.acts[kept],
        names,
        rejected,
        [d.episode for d in decisions],
        most=n_pairs,
        prompts=[first.texts[i] for i in kept],
        previous=[d.previous for d in decisions],
        **options,
    )
    named = {f"pairwise {' / '.join(pair)}": result for pair, result in by_pair.items()}
    return dict(rows=[row for name, result in named.items() for row in table(result, step, name)])


INSTRUMENT = Instrument("probes", Config, run, in_all=(0, 1))
