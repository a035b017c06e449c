"""Linear probes of the action at the prompt boundary, with their controls (docs/methods.md 3)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import lazy_loader as lazy
import numpy as np

from interp.prompts.text import shared
from interp.results.tables import ESTIMATE_COLUMNS
from interp.system.limits import Draws, Folds, Limits, Sample
from interp.tasks.actions import verb

from .boundary import (
    TRAIN,
    Decisions,
    Split,
    boundary_layers,
    held_out_decisions,
    random_layers,
    stored_bytes,
    training_decisions,
)
from .decodings import completions, decode_prompts
from .labels import Labels, check_labels, labelled, named_class, with_names
from .registry import Instrument
from .remedies import LABELLED, NotApplicable
from .rows import attempted, mean_row
from .shards import by_shards
from .study import Study

if TYPE_CHECKING:
    import pandas as pd

    from interp.probing.probes import Controls, ProbeResult
else:
    pd = lazy.load("pandas")

ORDER = [
    "step",
    "layer",
    "label",
    "fitted_on",
    "split",
    "predictor",
    "metric",
    *ESTIMATE_COLUMNS,
]
#: What a checkpoint with all controls is read with beside the probe and its text controls.
ALL = dict(
    metrics=("accuracy", "log_loss", "macro_f1", "auroc"), predictors=("logistic", "lda", "mean_difference")
)
#: What a label's probe was fitted on: the training split, or folds of the decisions that it is tested on.
FOLDS = "folds"


@dataclass
class Config(Study):
    """Decode the action before one reasoning token exists."""

    labels: Labels = ("reference_target", "eventual_target", "eventual_verb")
    """Which action (reference: the expert's, the same at every checkpoint; eventual: the checkpoint's own CoT
    action), and its class."""
    fit_decisions: Sample = 0
    """Decisions of the corpus's training split that probes are fitted on, drawn as whole episodes (0: 1,500
    quick, 4,000 full). Without such a split the tested decisions are cross-fitted."""
    test_decisions: Sample = 0
    """Decisions of each split that probes of the reference action are tested on (0: the study's quick, all
    full)."""
    decode_fit: bool = False
    """Decode the training decisions at every checkpoint, so that probes of the eventual action are fitted on
    them as well; else these are cross-fitted on the study's decisions."""
    folds: Folds = 5
    """Outer folds, grouped by episode, of what is cross-fitted."""
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

    @cached_property
    def read(self) -> dict[str, Decisions]:
        """What is tested, by split, and TRAIN: what is fitted on, where the corpus has a training split."""
        train = training_decisions(self, self.number(self.fit_decisions, 1500, 4000))
        every = self.size == "full" and train is not None
        most = self.test_decisions or (10**6 if every else 0)
        tested = {split: held_out_decisions(self, split, most) for split in self.parts}
        return tested | ({TRAIN: train} if train else {})

    @cached_property
    def same_controls(self) -> dict[str, Controls]:
        """What the controls of a label gave at an earlier checkpoint, where they are the same at all."""
        return {}


@dataclass
class Notes:
    """What is said of a run in the table's provenance."""

    without_action: dict[str, int] = field(default_factory=dict)
    """Decisions without a label."""
    without_control_task: dict[str, str] = field(default_factory=dict)
    """Why a label has no control task."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why nothing was fitted."""


def run(config: Config) -> None:
    """Capture, probe and tabulate; a checkpoint's label is one resumable stage."""
    started, rows, notes = time.time(), [], Notes()
    which = config.controls if config.controls != "auto" else "all" if config.size == "full" else "ends"
    controlled = {"all": config.steps, "ends": [config.steps[0], config.steps[-1]], "few": []}[which]
    read = config.read
    drawn = (
        {name: random_layers(config, name, each.prompts) for name, each in read.items()} if controlled else {}
    )
    for step, _ in config.cells("probes", config.parts[:1]):
        more = step in controlled
        splits = {
            name: Split(
                each, boundary_layers(config, step, name, each.prompts), drawn[name] if more else None
            )
            for name, each in read.items()
        }
        common = dict(
            config.inputs(step, config.parts[0]),
            folds=config.folds,
            draws=config.draws,
            all_controls=more,
            intervals="expanded",
            **config.stored_as,
        )
        for stage in _stages(config, step, splits, config.same_controls, notes):
            stored = config.stage(
                f"probes/{step}-{stage.name}",
                common | stage.inputs,
                lambda: attempted(stage.compute),
            )
            if stored["skipped"]:
                notes.skipped[f"{step} {stage.name}"] = stored["skipped"]
            else:
                rows += stored["rows"]
        rows += _lens_rows(config, step, splits)
    if all(row["predictor"] == "lens" for row in rows):
        raise NotApplicable(f"No probe could be fitted: {next(iter(notes.skipped.values()))}", LABELLED)
    _write(config, rows, started, read, list(controlled), notes)


def _n_pairs(config: Config) -> int:
    return config.pairs if config.pairs >= 0 else config.number(0, 0, 4)


def _write(
    config: Config,
    rows: list[dict],
    started: float,
    read: Mapping[str, Decisions],
    controlled: list[int],
    notes: Notes,
) -> None:
    """Write the table, and say how precise the headline is."""
    for what, why in list(notes.without_control_task.items())[:1]:
        config.say(
            f"probes: {len(notes.without_control_task)} probes have no control task and no selectivity, and "
            f"all their other controls (first {what}: {why})"
        )
    headline: dict[str, float] = {}
    for row in rows:
        nested = (row["predictor"], row["layer"], row["metric"]) == ("gain", -1, "accuracy")
        if nested and row["low"] is not None:
            key = f"{row['label']} {row['split']}"
            error = round((row["high"] - row["low"]) / (2 * 1.96), 4)
            headline[key] = max(error, headline.get(key, 0.0))
    config.write(
        "probes",
        [{k: r[k] for k in ORDER} for r in rows],
        started,
        without_action={k: v for k, v in notes.without_action.items() if v},
        skipped=notes.skipped,
        all_controls=controlled,
        without_control_task=notes.without_control_task,
        decisions_read={
            name: dict(decisions=len(each.prompts), episodes=len({p.decision.episode for p in each.prompts}))
            for name, each in read.items()
        },
        fit_activations_bytes=stored_bytes(config, TRAIN),
        gain_standard_error=headline,
    )


class Stage(NamedTuple):
    """One resumable computation of rows."""

    name: str
    inputs: dict
    """What it reads beside what all of a checkpoint's stages read."""
    compute: Callable[[], dict]
    """`rows` of its table, and of a label's probe what it predicted for each decision."""


def _stages(
    config: Config, step: int, splits: dict[str, Split], controls: dict[str, Controls], notes: Notes
) -> Iterator[Stage]:
    """A checkpoint's labels, then its pairs of verbs.

    `controls`: what a label's controls gave at an earlier checkpoint, where they are the same at all.
    """
    more = splits[config.parts[0]].random_acts is not None
    options = dict(folds=config.folds, seed=config.seed, draws=config.draws, **(ALL if more else {}))
    for label in config.labels:
        whose, _ = named_class(config, label)
        fitted = TRAIN in splits and (whose == "reference" or config.decode_fit)
        names = [*([TRAIN] if fitted else []), *config.parts]
        sets, ids = {}, []
        for name in names:
            kept, classes, considered = _labels(config, step, splits[name].decisions, label)
            notes.without_action[f"{step} {name} {label}"] = considered - len(kept)
            sets[name] = splits[name].arguments(kept, classes)
            if name != TRAIN:
                ids += [splits[name].decisions.prompts[i].decision.id for i in kept]
        if reason := _no_control_task([*sets.values()], config.seed):
            notes.without_control_task[f"{step} {label}"] = reason
            sets = {name: each | dict(types=None) for name, each in sets.items()}
        train = sets.pop(TRAIN, None)
        test = config.inputs(step, config.parts[1]) if len(sets) > 1 else None
        read = {name: config.digest(splits[name].decisions.prompts) for name in names}
        inputs = dict(label=label, test=test, read=read, limits=config.limits if config.decode_fit else None)
        compute = partial(_probed, [*sets.values()], ids, step, label, options, train)
        if whose == "reference":
            compute = partial(compute, controls=controls)
        yield Stage(label, inputs, compute)
    if n_pairs := _n_pairs(config):
        first = splits[config.parts[0]]
        yield Stage("pairwise", dict(pairs=n_pairs), lambda: _pairs(config, step, first, n_pairs, options))


def _labels(config: Config, step: int, decisions: Decisions, label: str) -> tuple[np.ndarray, list[str], int]:
    """Indices of the decisions that have a label, the labels, and of how many decisions."""
    whose, name = named_class(config, label)
    if whose == "reference":
        actions: list = [prompt.decision.reference for prompt in decisions.prompts]
    elif decisions.split == TRAIN:
        actions = _training_actions(config, step, decisions)
    else:
        kept, names = labelled(config, step, decisions.split, label)
        return decisions.drawn[kept], names, len(decisions.drawn)
    return *with_names(actions, name), len(actions)


def _training_actions(config: Config, step: int, decisions: Decisions) -> list[str | None]:
    """What a checkpoint does at the training decisions after its own trace."""
    rows = by_shards(
        config,
        f"fitting/{step}",
        dict(
            config.inputs(step),
            prompts=config.digest(decisions.prompts),
            parser=f"{config.parse.__module__} {config.env.source}".rstrip(),
            limits=config.limits,
            generator=config.generator,
        ),
        len(decisions.prompts),
        lambda part: decode_prompts(config, step, decisions.prompts[part], ["cot"])["cot"],
    )
    return [completion.action for completion in completions(rows)]


def _lens(config: Config, step: int, splits: dict[str, Split]) -> list[dict]:
    """The logit lens of each decision's eventual and reference action at the boundary, by layer.

    Of an action its telling token is followed; its rank is 1 where no token of the vocabulary is likelier.
    """
    import torch

    from interp.measures.lens import read_stream

    model, ids_of, rows = config.model(step), cache(config.format.action_ids), []
    for split in config.parts:
        prompts, acts = config.prompts(split), splits[split].acts[splits[split].decisions.drawn]
        actions = [
            dict(eventual=completion.action, reference=prompt.decision.reference)
            for completion, prompt in zip(config.decoded(step, split, "cot"), prompts, strict=True)
        ]
        tokens = []
        for prompt, both in zip(prompts, actions, strict=True):
            named = {*prompt.decision.admissible, *both.values()} - {None}
            candidates = {action: ids_of(action) for action in named}
            tokens.append([_telling_token(a or both["reference"], candidates) for a in both.values()])
        _, _, logp, rank = read_stream(model, torch.from_numpy(acts), torch.tensor(tokens))
        for i, (prompt, both) in enumerate(zip(prompts, actions, strict=True)):
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


def _lens_rows(config: Config, step: int, splits: dict[str, Split]) -> Iterator[dict]:
    """How often the telling token is the likeliest of all at each layer, and its mean reciprocal rank."""
    test = config.inputs(step, config.parts[1]) if len(config.parts) > 1 else None
    inputs = dict(config.inputs(step, config.parts[0]), test=test, **config.stored_as)
    stored = config.stage(f"probes/{step}-lens", inputs, lambda: _lens(config, step, splits))
    where = {p.decision.id: (s, p.decision.episode) for s in config.parts for p in config.prompts(s)}
    by_split: dict[tuple[str, str], list[dict]] = {}
    for row in stored:
        by_split.setdefault((row["whose"], where[row["decision"]][0]), []).append(row)
    for (whose, split), rows in by_split.items():
        rank = np.array([row["rank"] for row in rows])
        episodes = [where[row["decision"]][1] for row in rows]
        key = dict(step=step, label=f"{whose}_token", fitted_on="nothing", split=split, predictor="lens")
        for layer, ranks in enumerate(rank.T):
            for metric, values in (("accuracy", ranks == 1), ("reciprocal_rank", 1 / ranks)):
                yield key | dict(layer=layer, metric=metric, **mean_row(values, episodes, config.seed))


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
    sets: list[dict[str, Any]],
    ids: list[str],
    step: int,
    label: str,
    options: dict[str, Any],
    train: dict[str, Any] | None = None,
    controls: dict[str, Controls] | None = None,
) -> dict:
    """A label's probe, fitted on `train` or cross-fitted on the first set, and tested on the second, if any.

    ids: of the decisions of all sets. controls: by label, of earlier checkpoints, to which these are added.
    """
    from interp.probing.probes import probe

    first, *second = sets
    result = probe(
        **first,
        test=tuple(second[0].values()) if second else None,
        train=tuple(train.values()) if train else None,
        controls=controls.get(label) if controls is not None else None,
        **options,
    )
    if controls is not None:
        controls[label] = result.controls
    layers = [result.predicted["probe", layer].tolist() for layer in result.layers]
    labels = [name for each in sets for name in each["labels"]]
    predicted = dict(decision=ids, label=labels, layers=layers)
    return dict(rows=table(result, step, label, TRAIN if train else FOLDS), predicted=predicted)


def table(result: ProbeResult, step: int, label: str, fitted_on: str) -> list[dict]:
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
        .assign(step=step, label=label, fitted_on=fitted_on)
        .astype(object)
        .replace({np.nan: None})
        .to_dict("records")
    )


def _pairs(config: Config, step: int, first: Split, n_pairs: int, options: dict[str, Any]) -> dict:
    """Rows of the most common pairs of verbs, of decisions at which both are admissible."""
    from interp.probing.pairwise import pairwise

    split = config.parts[0]
    kept, names = labelled(config, step, split, "eventual_verb")
    kept = first.decisions.drawn[kept]
    decisions = [first.decisions.prompts[i].decision for i in kept]
    rejected = [
        sorted({verb(action) for action in d.admissible} - {name}) for d, name in zip(decisions, names)
    ]
    by_pair = pairwise(
        first.acts[kept],
        names,
        rejected,
        [d.episode for d in decisions],
        most=n_pairs,
        prompts=[first.decisions.texts[i] for i in kept],
        previous=[d.previous for d in decisions],
        **options,
    )
    named = {f"pairwise {' / '.join(pair)}": result for pair, result in by_pair.items()}
    return dict(rows=[row for name, result in named.items() for row in table(result, step, name, FOLDS)])


INSTRUMENT = Instrument("probes", Config, run, in_all=(0, 1))
