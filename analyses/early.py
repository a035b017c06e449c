"""Early answering: how much of its own trace an action needs (docs/methods.md 5.4)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from interp.system.limits import Limits, Sample

from .registry import Instrument
from .remedies import PARSES, NotApplicable
from .rows import mean_row
from .shards import by_shards
from .study import Study

SHARES = (0.0, 0.25, 0.5, 0.75)
#: Traces of as many sentences or more are taken together.
MOST = 6


@dataclass
class Config(Study):
    """The own trace cut after some of its sentences, at every checkpoint."""

    conflicts: Sample = 0
    """Decisions of each split (0: 40 quick, 200 full)."""
    points: Annotated[int, Limits(2, 100)] = 5
    """Most parts at which a trace is cut; none of it (the tag at the boundary) and the whole are two."""
    choices: Sample = 0
    """Decisions whose distribution over the admissible actions is read (0: a quarter of them)."""


def run(config: Config) -> None:
    """Cut, decode, choose and tabulate; one checkpoint and split is one resumable stage."""
    from interp.measures.conflicts import complete
    from interp.measures.early import early_answers

    started, rows, skipped = time.time(), [], {}
    n = config.number(config.conflicts, 40, 200)
    choices = config.choices or -(-n // 4)
    for step, split in config.cells("early"):
        prompts, own = config.prompts(split)[:n], config.decoded(step, split, "cot")[:n]

        def compute(part: slice) -> dict[str, list]:
            before = len(complete(prompts[: part.start], own[: part.start]))
            early = early_answers(
                config.model(step),
                prompts[part],
                own[part],
                parser=config.parse,
                points=config.points,
                choices=max(0, choices - before),
                candidates=config.candidates(step, split)[part],
                max_new_tokens=config.action_tokens,
            )
            return dict(
                index=(early.index + part.start).tolist(),
                area_action=early.area().tolist(),
                area_distribution=early.area("distribution").tolist(),
                area_filler=early.area("filler").tolist(),
                same=early.curve(SHARES).tolist(),
                sentences=early.sentences,
            )

        inputs = dict(
            config.inputs(step, split),
            n=n,
            points=config.points,
            choices=choices,
            limits=config.limits,
            closed_actions=config.env.closed_actions,
        )
        stored = by_shards(config, f"early/{step}-{split}", inputs, len(prompts), compute)
        if not stored["index"]:
            skipped[f"{step} {split}"] = "no decision of this checkpoint has a trace and an action"
            continue
        areas = ("area_action", "area_distribution", "area_filler")
        columns = {metric: np.array(stored[metric], dtype=float) for metric in areas}
        columns["area_difference"] = columns["area_filler"] - columns["area_action"]
        same = np.array(stored["same"], dtype=bool)
        columns |= {f"same_{share * 100:.0f}": same[:, k] for k, share in enumerate(SHARES)}
        columns |= by_sentences(columns, np.array(stored["sentences"]))
        for metric, values in columns.items():
            finite = np.flatnonzero(~np.isnan(values))
            episodes = [prompts[stored["index"][i]].decision.episode for i in finite]
            if episodes:
                row = mean_row(values[finite], episodes, config.seed)
                rows.append(dict(step=step, split=split, metric=metric, **row))
    if not rows:
        raise NotApplicable(f"No trace could be cut: {next(iter(skipped.values()))}", PARSES)
    config.write("early", rows, started, skipped=skipped)


def by_sentences(columns: dict[str, np.ndarray], sentences: np.ndarray) -> dict[str, np.ndarray]:
    """The areas of traces of each length, NaN at all other decisions.

    Args:
        columns: metric -> value of each decision.
        sentences: of each decision's trace.
    """
    length, by_length = np.minimum(sentences, MOST), {}
    for number in np.unique(length).tolist():
        words = f"{number}_or_more" if number == MOST else str(number)
        for area in ("area_action", "area_distribution"):
            values = np.where(length == number, columns[area], np.nan)
            by_length[f"{area}_sentences_{words}"] = values
    return by_length


INSTRUMENT = Instrument("early", Config, run, in_all=(1, 4))
