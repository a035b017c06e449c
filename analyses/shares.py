"""Attention and gradient shares: what the action's tokens attend to and depend on, after the agent's own trace (docs/methods.md 6)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.prompts.format import SPANS
from interp.stats.intervals import cluster_bootstrap
from interp.system.limits import Sample

#: From means of a span's share and token share; the ratio is one of means, since a decision may lack the span.
READINGS = (lambda m: m[..., 0], lambda m: m[..., 1], lambda m: m[..., 0] / m[..., 1])


@dataclass
class Config(Study):
    """Every checkpoint's own traces and actions, on the first decisions of each split, averaged over layers."""

    decisions_read: Sample = 0
    """Decisions of each split (0: 24 quick, 100 full)."""


def run(config: Config) -> None:
    """Read and tabulate; one checkpoint and split is one resumable stage."""
    from interp.measures.shares import DEFINITIONS, METRICS, VERSIONS, shares

    started, rows, skipped = time.time(), [], {}
    n = config.number(config.decisions_read, 24, 100)
    for step, split in config.cells("shares"):
        prompts, own = config.prompts(split)[:n], config.decoded(step, split, "cot")[:n]
        inputs = dict(config.inputs(step, split), n=n, limits=config.limits, generator=config.generator)

        def compute():
            traces = {
                i: config.format.decoded_prefix(s.ids) for i, s in enumerate(own) if s.action is not None
            }
            index = [i for i, trace in traces.items() if trace]
            if not index:
                return dict(index=[], share=[], token_share=[])
            found = shares(
                config.model(step),
                [prompts[i] for i in index],
                [traces[i] for i in index],
                [own[i].action for i in index],
            )
            return dict(
                index=index,
                share=found.share.mean(3).tolist(),
                token_share=found.token_share.mean(3).tolist(),
            )

        found = config.stage(f"shares/{step}-{split}", inputs, compute)
        if not found["index"]:
            skipped[f"{step} {split}"] = "no decision of this checkpoint parsed"
            continue
        both = np.stack(
            [found["share"], found["token_share"]], -1
        )  # [definition, version, decision, span, (share, token share)]
        groups = np.array([prompts[i].decision.episode for i in found["index"]])
        for d, definition in enumerate(DEFINITIONS):
            known = np.isfinite(both[d]).all((0, 2, 3))
            if not known.all():
                skipped[f"{step} {split} {definition}"] = (
                    f"{int((~known).sum())} decisions have no gradient: their action is certain"
                )
            for (v, version), (s, span) in ((a, b) for a in enumerate(VERSIONS) for b in enumerate(SPANS)):
                columns = both[d, v, known, s]
                if not columns[:, 1].any():
                    continue
                for metric, function in zip(METRICS, READINGS):
                    estimate = cluster_bootstrap(columns, groups[known], function, seed=config.seed)
                    rows.append(
                        dict(
                            step=step,
                            split=split,
                            span=span,
                            definition=definition,
                            version=version,
                            metric=metric,
                            **estimate.row(),
                        )
                    )
    if not rows:
        raise NotApplicable(f"No share could be computed: {next(iter(skipped.values()))}.")
    config.write("shares", rows, started, skipped=skipped)


INSTRUMENT = Instrument("shares", Config, run, in_all=(1, 4))
