"""Attention and gradient shares: what an action attends to and depends on (docs/methods.md 6).

The action is read after the agent's own trace.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from interp.prompts.format import SPANS
from interp.system.limits import Sample

from .registry import Instrument
from .remedies import PARSES, NotApplicable
from .rows import mean_row
from .shards import by_shards
from .study import Study

#: Of means of a span's share and token share. The ratio is one of means, since a decision may lack the span.
READINGS = (lambda m: m[..., 0], lambda m: m[..., 1], lambda m: m[..., 0] / m[..., 1])


@dataclass
class Config(Study):
    """Each checkpoint's own traces and actions on the first decisions of each split, averaged over layers."""

    decisions_read: Sample = 0
    """Decisions of each split (0: 24 quick, 100 full)."""


def run(config: Config) -> None:
    """Read and tabulate; one checkpoint and split is one resumable stage."""
    from interp.measures.shares import DEFINITIONS

    started, rows, skipped = time.time(), [], {}
    n = config.number(config.decisions_read, 24, 100)
    for step, split in config.cells("shares"):
        inputs = dict(config.inputs(step, split), n=n, limits=config.limits, generator=config.generator)
        stored = by_shards(
            config,
            f"shares/{step}-{split}",
            inputs,
            min(n, len(config.prompts(split))),
            lambda part: _read(config, step, split, part),
        )
        if not stored["index"]:
            skipped[f"{step} {split}"] = "no decision of this checkpoint parsed"
            continue
        groups = np.array([config.prompts(split)[i].decision.episode for i in stored["index"]])
        # [definition, version, decision, span, (share, token share)]
        both = np.moveaxis(np.stack([stored["share"], stored["token_share"]], -1), 0, 2)
        for definition, values in zip(DEFINITIONS, both, strict=True):
            finite = np.isfinite(values).all((0, 2, 3))
            if not finite.all():
                skipped[f"{step} {split} {definition}"] = (
                    f"{int((~finite).sum())} decisions have no gradient: their action is certain"
                )
            for row in _rows(values[:, finite], groups[finite], config.seed):
                rows.append(dict(step=step, split=split, span=row.pop("span"), definition=definition, **row))
    if not rows:
        raise NotApplicable(f"No share could be computed: {next(iter(skipped.values()))}", PARSES)
    config.write("shares", rows, started, skipped=skipped)


def _read(config: Config, step: int, split: str, part: slice) -> dict:
    """Shares over layers of the decisions that parsed with a trace, of a part: decision first."""
    from interp.measures.shares import shares

    prompts, own = config.prompts(split)[part], config.decoded(step, split, "cot")[part]
    parsed = [i for i, each in enumerate(own) if each.action is not None]
    traces = {i: config.format.decoded_prefix(own[i].ids) for i in parsed}
    index = [i for i, trace in traces.items() if trace]
    if not index:
        return dict(index=[], share=[], token_share=[])
    result = shares(
        config.model(step),
        [prompts[i] for i in index],
        [traces[i] for i in index],
        [own[i].action for i in index],
    )
    share, token_share = (
        np.moveaxis(each.mean(3), 2, 0).tolist() for each in (result.share, result.token_share)
    )
    return dict(index=[i + part.start for i in index], share=share, token_share=token_share)


def _rows(values: np.ndarray, groups: np.ndarray, seed: int) -> Iterator[dict]:
    """A row for each version, span and metric; values: [version, decision, span, (share, token share)]."""
    from interp.measures.shares import METRICS, VERSIONS

    for (v, version), (s, span) in product(enumerate(VERSIONS), enumerate(SPANS)):
        columns = values[v, :, s]
        if not columns[:, 1].any():
            continue
        for metric, function in zip(METRICS, READINGS, strict=True):
            row = mean_row(columns, groups, seed, function=function)
            yield dict(span=span, version=version, metric=metric, **row)


INSTRUMENT = Instrument("shares", Config, run, in_all=(1, 5))
