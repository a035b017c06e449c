"""Prompt action against CoT action on recorded states (docs/methods.md 2).

Accuracy, gap, agreement, revision, forced choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analyses.registry import Instrument
from analyses.study import Study
from interp.stats.intervals import cluster_bootstrap, headroom_gap, kappa, mcnemar
from interp.system.limits import Sample
from interp.tasks.episodes import Decision


@dataclass
class Config(Study):
    """Both modes at every checkpoint, on the expert's states."""

    choices: Sample = 0
    """Decisions of each split read by forced choice too (0: 40 quick, 100 full)."""


def measure(
    said: dict, decisions: list[Decision], right: Callable[[Decision, str], bool], seed: int
) -> list[dict]:
    """Rows of metrics from both modes' decodings of the same decisions.

    `right` judges actions; one that did not parse is wrong.
    """
    groups = [d.episode for d in decisions]
    action = {mode: np.array([s.action or "" for s in words]) for mode, words in said.items()}
    right = {
        mode: np.array([a != "" and right(d, a) for d, a in zip(decisions, of.tolist())])
        for mode, of in action.items()
    }
    revised = action["cot"] != action["prompt"]
    columns = {f"acc_{m}": r for m, r in right.items()}
    columns |= {f"parse_{m}": a != "" for m, a in action.items()}
    columns["gap"] = right["cot"].astype(float) - right["prompt"]
    columns["agreement"] = ~revised
    columns["revision"] = revised
    columns["revision_helpful"] = revised & right["cot"] & ~right["prompt"]
    columns["revision_harmful"] = revised & right["prompt"] & ~right["cot"]
    columns["revision_neutral"] = revised & (right["cot"] == right["prompt"])
    rows = [dict(metric=name, **cluster_bootstrap(c, groups, seed=seed).row()) for name, c in columns.items()]
    rows.append(
        dict(
            metric="headroom_gap",
            **headroom_gap(
                right["prompt"].astype(float), right["cot"].astype(float), groups, seed=seed
            ).row(),
        )
    )
    rows.append(dict(metric="kappa", **kappa(action["prompt"], action["cot"], groups, seed=seed).row()))
    p = mcnemar(right["prompt"], right["cot"])
    rows.append(
        dict(
            metric="mcnemar_p", value=p, low=np.nan, high=np.nan, n=len(decisions), n_groups=len(set(groups))
        )
    )
    return rows


def forced(study: Config, step: int, split: str, n: int) -> list[dict]:
    """Which candidate each reading prefers.

    Readings are summed and per-token log-probabilities, at the boundary and after the own trace.
    """
    from interp.engine.decoding import choose

    model = study.model(step)
    rows = []
    for prompt, words, candidates in list(
        zip(study.prompts(split), study.decoded(step, split, "cot"), study.candidates(step, split))
    )[:n]:
        if not candidates:
            continue
        row = dict(episode=prompt.decision.episode, choice_cot_sum=False, choice_cot_mean=False)
        own = prompt.format.decoded_prefix(words.ids)
        readings = (
            dict(prompt=None) if own is None else dict(prompt=None, cot=own)
        )  # a trace that never closed can be followed by no action
        for mode, found in zip(readings, choose(model, prompt, candidates, list(readings.values()))):
            for kind, index in zip(("sum", "mean"), found.argmax(0).tolist()):
                row[f"choice_{mode}_{kind}"] = study.env.is_correct(prompt.decision, candidates[index])
        rows.append(row)
    return rows


def run(config: Config) -> None:
    """Decode, choose and tabulate every checkpoint and split."""
    started, rows = time.time(), []
    n = config.number(config.choices, 40, 100)
    for step, split in config.cells("behaviour"):
        decisions = [p.decision for p in config.prompts(split)]
        said = {mode: config.decoded(step, split, mode) for mode in ("prompt", "cot", "empty_think")}
        found = measure(said, decisions, config.env.is_correct, config.seed)
        inputs = dict(
            config.inputs(step, split),
            n=n,
            limits=config.limits,
            judge=config.env.judge,
            closed_actions=config.env.closed_actions,
        )
        choices = config.stage(f"choices/{step}-{split}", inputs, lambda: forced(config, step, split, n))
        for metric in (
            ("choice_prompt_sum", "choice_prompt_mean", "choice_cot_sum", "choice_cot_mean")
            if choices
            else ()
        ):
            values = np.array([r[metric] for r in choices], dtype=bool)
            found.append(
                dict(
                    metric=metric,
                    **cluster_bootstrap(values, [r["episode"] for r in choices], seed=config.seed).row(),
                )
            )
        rows += [dict(step=step, split=split, **row) for row in found]
    config.write("behaviour", rows, started, judge=config.env.judge)


INSTRUMENT = Instrument("behaviour", Config, run, in_all=(0, 0))
