"""Bits to send the action, given the boundary's activations, the text, or neither (docs/methods.md 3.5)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from interp.stats.intervals import cluster_bootstrap
from interp.system.choices import SHARES, check_shares
from interp.system.limits import Draws, Limits

from .boundary import boundary_layers, texts
from .labels import Labels, check_labels, labelled
from .registry import Instrument
from .remedies import LABELLED, NotApplicable
from .rows import attempted
from .study import Study


@dataclass
class Config(Study):
    """Online codes; the layer is chosen inside the decisions already sent."""

    labels: Labels = ("eventual_target",)
    """Which action and class of it, as in `probes`."""
    shares: Annotated[tuple[float, ...], Limits(0, 1)] = SHARES
    """Where blocks end, as shares of the decisions; each is sent with probes of those before."""
    draws: Draws = 1000
    """Bootstrap resamples."""

    def check(self) -> None:
        """Raises as `Study.check`, for labels that name no class, and for shares that do not rise to 1."""
        super().check()
        check_labels(self)
        check_shares(self.shares)


def run(config: Config) -> None:
    """Code and tabulate; a checkpoint, split and label is one resumable stage."""
    started, rows, skipped = time.time(), [], {}
    words = {split: texts(config.prompts(split)) for split in config.parts}
    for step, split in config.cells("mdl"):
        for label in config.labels:
            kept, names = labelled(config, step, split, label)
            groups = [config.prompts(split)[i].decision.episode for i in kept]
            text = [words[split][i] for i in kept]

            def compute() -> dict:
                from interp.probing.mdl import mdl

                acts = boundary_layers(config, step, split)[kept]
                code = mdl(
                    acts,
                    names,
                    groups,
                    prompts=text,
                    shares=config.shares,
                    seed=config.seed,
                    draws=config.draws,
                )
                bits = {predictor: each.tolist() for predictor, each in code.of_decision.items()}
                return dict(bits=bits, n_classes=code.n_classes)

            stored = config.stage(
                f"mdl/{step}-{split}-{label}",
                dict(config.inputs(step, split), label=label, names=names, shares=config.shares)
                | config.stored_as,
                lambda: attempted(compute),
            )
            if stored["skipped"]:
                skipped[f"{step} {split} {label}"] = stored["skipped"]
                continue
            key = dict(step=step, split=split, label=label)
            rows += [key | row for row in _rows(config, stored, groups)]
    if not rows:
        raise NotApplicable(f"Nothing could be coded: {next(iter(skipped.values()))}", LABELLED)
    config.write("mdl", rows, started, skipped=skipped)


def _rows(config: Config, stored: dict, groups: list[str]) -> Iterator[dict]:
    """Bits and compression of each predictor, and what activations save over the shorter other code."""
    bits = {predictor: np.array(each) for predictor, each in stored["bits"].items()}
    uniform = np.log2(stored["n_classes"])
    options = dict(groups=groups, draws=config.draws, seed=config.seed)
    for predictor, each in bits.items():
        yield dict(predictor=predictor, metric="bits", **cluster_bootstrap(each, **options).row())
        ratio = cluster_bootstrap(each, function=lambda mean: uniform / mean[..., 0], **options)
        yield dict(predictor=predictor, metric="compression", **ratio.row())
    best = min((p for p in bits if p != "probe"), key=lambda p: bits[p].sum())
    saved = cluster_bootstrap(bits[best] - bits["probe"], **options)
    yield dict(predictor="gain", metric="bits", **saved.row())


INSTRUMENT = Instrument("mdl", Config, run, in_all=(0, 3))
