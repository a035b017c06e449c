"""Along the trace: the eventual action decoded from the boundary to the action tag (docs/methods.md 3.7)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Float

from interp.prompts.format import Prompt
from interp.results.tables import ESTIMATE_COLUMNS
from interp.system.limits import Draws, Folds, Limits, Sample

from .labels import Labels, check_labels, labelled, named_class
from .registry import Instrument
from .remedies import LABELLED, NotApplicable
from .rows import attempted, mean_row
from .study import Study

if TYPE_CHECKING:
    from interp.engine.decoding import Completion
    from interp.engine.positions import Reading

#: The position of prompt mode: the opened action right at the boundary.
WITHOUT = "action tag, no trace"
#: Predictors of a probe's table that are kept.
PREDICTORS = ("probe", "gain", "tfidf", "majority", "previous_action")


@dataclass
class Config(Study):
    """Probe the residual stream at points of the checkpoint's own traces."""

    labels: Labels = ("eventual_target",)
    """Which action and class of it, as in `probes`."""
    points: Annotated[int, Limits(0, 50)] = 0
    """Parts of equal length that a trace is read after (0: 4 quick, 10 full), beside the boundary, the opened
    action, and the action opened without a trace."""
    span_checkpoints: Sample = 0
    """Checkpoints, evenly spread (0: the first and the last quick, all full)."""
    folds: Folds = 5
    """Outer folds, grouped by episode."""
    draws: Draws = 1000
    """Bootstrap resamples."""

    def check(self) -> None:
        """Raises as `Study.check`, and for labels that name no class."""
        super().check()
        check_labels(self)


def run(config: Config) -> None:
    """Capture, probe each point and tabulate; a checkpoint, split and label is one resumable stage."""
    started, rows, skipped = time.time(), [], {}
    points = config.number(config.points, 4, 10)
    steps = config.spread(config.number(config.span_checkpoints, 2, len(config.steps)))
    for step, split in config.cells("along the trace", config.parts[:1], steps):
        for label in config.labels:
            kept, names = _with_traces(config, step, split, label)
            inputs = dict(
                config.inputs(step, split),
                label=label,
                points=points,
                folds=config.folds,
                draws=config.draws,
                limits=config.limits,
            )
            stored = config.stage(
                f"along_trace/{step}-{split}-{label}",
                inputs,
                lambda: attempted(
                    lambda: dict(rows=_probed(config, step, split, label, kept, names, points))
                ),
            )
            if stored["skipped"]:
                skipped[f"{step} {split} {label}"] = stored["skipped"]
                continue
            rows += [dict(step=step, split=split, label=label, **row) for row in stored["rows"]]
    if not rows:
        raise NotApplicable(f"No trace could be read along: {next(iter(skipped.values()))}", LABELLED)
    config.write("along_trace", rows, started, skipped=skipped)


def _with_traces(config: Config, step: int, split: str, label: str) -> tuple[np.ndarray, list[str]]:
    """The decisions that have a label and a closed trace, and their labels."""
    completions = config.decoded(step, split, "cot")
    kept, names = labelled(config, step, split, label)
    has_trace = [bool((completions[i].trace or "").strip()) for i in kept]
    return kept[has_trace], [name for name, there in zip(names, has_trace) if there]


@dataclass(frozen=True)
class Point:
    """A token that is read of every decision."""

    position: str
    share: float
    """Of the trace: 0 at the boundary, 1 at its end, more after it; below 0 where no trace is written."""
    acts: Float[np.ndarray, "decision layer d_model"]
    texts: list[str]
    """The text up to there, the prompt's included."""
    traces: list[str]
    """The same without the prompt."""


def _probed(
    config: Config, step: int, split: str, label: str, kept: np.ndarray, names: list[str], points: int
) -> list[dict]:
    """Rows of every point: what the probe reads there, what the text up to there says, and who named it."""
    from interp.probing.probes import probe

    prompts = [config.prompts(split)[i] for i in kept]
    completions = [config.decoded(step, split, "cot")[i] for i in kept]
    groups = [prompt.decision.episode for prompt in prompts]
    name_of = named_class(config, label)[1]
    written = [name_of(completion.action or "") for completion in completions]
    rows = []
    for point in _points(config, step, prompts, completions, points):
        result = probe(
            point.acts,
            names,
            groups,
            prompts=point.texts,
            previous=[prompt.decision.previous for prompt in prompts],
            folds=config.folds,
            seed=config.seed,
            draws=config.draws,
            metrics=("accuracy",),
        )
        table = result.to_frame()
        nested = table[
            (table["layer"] == -1) | table["predictor"].isin(("majority", "tfidf", "previous_action"))
        ]
        key = dict(position=point.position, share=point.share)
        for predictor in PREDICTORS:
            chosen = nested[nested["predictor"] == predictor].head(1)
            rows += [key | dict(predictor=predictor, **_estimate(row)) for row in chosen.to_dict("records")]
        named = np.array([bool(a) and a in trace for a, trace in zip(written, point.traces)])
        rows.append(key | dict(predictor="named", **mean_row(named, groups, config.seed)))
    return rows


def _points(
    config: Config, step: int, prompts: list[Prompt], completions: list[Completion], points: int
) -> Iterator[Point]:
    """The action tag right at the boundary, as in prompt mode; then the points of the own trace."""
    from interp.engine.capturing import capture

    model = config.model(step)
    tag = capture(model, prompts, ["resid_post"], "action_tag").values[:, 0].numpy()
    opened = [p.format.text(p.format.action_prefix(None)) for p in prompts]
    texts = [p.format.text([*p.ids, *p.format.action_prefix(None)]) for p in prompts]
    yield Point(WITHOUT, -0.1, tag, texts, opened)
    sequences, places = points_of(prompts, completions, points)
    acts = capture(model, prompts, ["resid_post"], places, traces=completions)
    values = acts.values[:, 0].numpy().reshape(len(prompts), -1, *acts.values.shape[2:])
    for point, share in enumerate([0.0, *(k / points for k in range(1, points + 1)), 1.1]):
        position = "boundary" if not share else "action tag" if share > 1 else f"{share:.0%} of the trace"
        until = [where[point] + 1 for where in places]
        texts = [p.format.text(ids[:end]) for p, ids, end in zip(prompts, sequences, until)]
        traces = [p.format.text(ids[len(p.ids) : end]) for p, ids, end in zip(prompts, sequences, until)]
        yield Point(position, share, values[:, point], texts, traces)


def _estimate(row: dict) -> dict:
    return {column: None if row[column] != row[column] else row[column] for column in ESTIMATE_COLUMNS}


def points_of(
    prompts: Sequence[Prompt], completions: Sequence[Completion], points: int
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Each prompt with its trace and the opened action, and the tokens of it that are read.

    They are the boundary, the last token of each of `points` parts of the trace, and the last token of the
    opened action.
    """
    from interp.engine.positions import readings

    traces: list[Reading] = readings(prompts, "trace", completions)
    places = []
    for prompt, reading in zip(prompts, traces):
        ends = np.linspace(0, len(reading.positions), points + 1).round().astype(int)
        inside = [reading.positions[max(end, 1) - 1] for _, end in pairwise(ends.tolist())]
        places.append([prompt.boundary, *inside, len(reading.ids) - 1])
    return [reading.ids for reading in traces], places


INSTRUMENT = Instrument("along_trace", Config, run)
