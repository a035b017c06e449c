"""Bits that it takes to send the action to someone who has the boundary's activations, or the text, or neither (docs/methods.md 3.5)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from analyses.probes import Labels, boundary_layers, check_labels, labelled, texts
from analyses.registry import Instrument
from analyses.study import NotApplicable, Study
from interp.stats.intervals import cluster_bootstrap
from interp.system.choices import SHARES, check_shares
from interp.system.limits import Draws, Limits


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
        """Raises as `Study.check` does, and for labels that name no class and shares that do not rise to 1."""
        super().check()
        check_labels(self)
        check_shares(self.shares)


def run(config: Config) -> None:
    """Code and tabulate; a checkpoint, split and label is one resumable stage."""
    from interp.probing.mdl import mdl

    started, rows, skipped = time.time(), [], {}
    words = {split: texts(config, split) for split in config.parts}
    for step, split in config.cells("mdl"):
        for label in config.labels:
            kept, names = labelled(config, step, split, label)
            groups = [config.prompts(split)[i].decision.episode for i in kept]

            def compute():
                try:
                    found = mdl(
                        boundary_layers(config, step, split)[kept],
                        names,
                        groups,
                        prompts=[words[split][i] for i in kept],
                        shares=config.shares,
                        seed=config.seed,
                        draws=config.draws,
                    )
                except ValueError as problem:  # too few decisions or one class
                    return dict(bits={}, skipped=str(problem))
                return dict(
                    bits={predictor: each.tolist() for predictor, each in found.of_decision.items()},
                    n_classes=found.n_classes,
                    skipped="",
                )

            found = config.stage(
                f"mdl/{step}-{split}-{label}",
                dict(config.inputs(step, split), label=label, names=names, shares=config.shares),
                compute,
            )
            if found["skipped"]:
                skipped[f"{step} {split} {label}"] = found["skipped"]
                continue
            bits, uniform = (
                {predictor: np.array(each) for predictor, each in found["bits"].items()},
                np.log2(found["n_classes"]),
            )
            place = dict(step=step, split=split, label=label)
            given = dict(groups=groups, draws=config.draws, seed=config.seed)
            for predictor, each in bits.items():
                rows.append(
                    dict(place, predictor=predictor, metric="bits", **cluster_bootstrap(each, **given).row())
                )
                ratio = cluster_bootstrap(each, function=lambda mean: uniform / mean[..., 0], **given)
                rows.append(dict(place, predictor=predictor, metric="compression", **ratio.row()))
            best = min(
                (predictor for predictor in bits if predictor != "probe"),
                key=lambda predictor: bits[predictor].sum(),
            )
            rows.append(
                dict(
                    place,
                    predictor="gain",
                    metric="bits",
                    **cluster_bootstrap(bits[best] - bits["probe"], **given).row(),
                )
            )
    if not rows:
        raise NotApplicable(f"Nothing could be coded: {next(iter(skipped.values()))}")
    config.write("mdl", rows, started, skipped=skipped)


INSTRUMENT = Instrument("mdl", Config, run, in_all=(0, 3))
