"""Prompt action against CoT action on recorded states (docs/methods.md 2).

Accuracy, gap, agreement, revision, forced choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.prompts.format import Mode
from interp.stats.intervals import headroom_gap, kappa, mcnemar
from interp.system.limits import Sample
from interp.tasks.episodes import Decision

from .registry import Instrument
from .rows import mean_row
from .study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from interp.engine.decoding import Completion

#: What forced choice reads.
CHOICES = ("choice_prompt_sum", "choice_prompt_mean", "choice_cot_sum", "choice_cot_mean")


@dataclass
class Config(Study):
    """Both modes at every checkpoint, on the expert's states."""

    choices: Sample = 0
    """Decisions of each split read by forced choice too (0: 40 quick, 100 full)."""


def measure(
    completions: dict[Mode, list[Completion]],
    decisions: list[Decision],
    is_correct: Callable[[Decision, str], bool],
    seed: int,
) -> list[dict]:
    """Rows of metrics from the modes' decodings of the same decisions.

    `is_correct` judges actions; one that did not parse is wrong.
    """
    groups = [d.episode for d in decisions]
    action = {
        mode: np.array([completion.action or "" for completion in each]) for mode, each in completions.items()
    }
    right = {
        mode: np.array([a != "" and is_correct(d, a) for d, a in zip(decisions, each.tolist(), strict=True)])
        for mode, each in action.items()
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
    rows = [dict(metric=name, **mean_row(values, groups, seed)) for name, values in columns.items()]
    headroom = headroom_gap(right["prompt"].astype(float), right["cot"].astype(float), groups, seed=seed)
    rows.append(dict(metric="headroom_gap", **headroom.row()))
    rows.append(dict(metric="kappa", **kappa(action["prompt"], action["cot"], groups, seed=seed).row()))
    p = mcnemar(right["prompt"], right["cot"])
    size = dict(n=len(decisions), n_groups=len(set(groups)))
    rows.append(dict(metric="mcnemar_p", value=p, low=np.nan, high=np.nan, **size))
    return rows


def forced(study: Config, step: int, split: str, n: int) -> list[dict]:
    """Which candidate each reading prefers.

    Readings are summed and per-token log-probabilities, at the boundary and after the own trace; `logp` keeps
    both for each candidate, in nats.
    """
    from interp.engine.decoding import choose_each

    model = study.model(step)
    decoded, every = study.decoded(step, split, "cot"), study.candidates(step, split)
    decisions = [each for each in list(zip(study.prompts(split), decoded, every, strict=True))[:n] if each[2]]
    readings: list[dict[str, list[int] | None]] = []
    for prompt, completion, _ in decisions:
        own = prompt.format.decoded_prefix(completion.ids)
        # A trace that never closed can be followed by no action.
        readings.append(dict(prompt=None) if own is None else dict(prompt=None, cot=own))
    prompts, _, candidates = zip(*decisions, strict=True) if decisions else ((), (), ())
    chosen = choose_each(model, prompts, candidates, [list(each.values()) for each in readings])
    return [
        _choice_row(study, prompt.decision, names, dict(zip(modes, logp, strict=True)))
        for prompt, names, modes, logp in zip(prompts, candidates, readings, chosen, strict=True)
    ]


def _choice_row(
    study: Config, decision: Decision, candidates: Sequence[str], logp: dict[str, Tensor]
) -> dict:
    """The row of one decision, by the log-probabilities [candidate, 2] of each reading."""
    row = dict(episode=decision.episode, choice_cot_sum=False, choice_cot_mean=False)
    for mode, each in logp.items():
        for kind, index in zip(("sum", "mean"), each.argmax(0).tolist(), strict=True):
            row[f"choice_{mode}_{kind}"] = study.env.is_correct(decision, candidates[index])
    kept = {mode: each.tolist() for mode, each in logp.items()}
    return row | dict(decision=decision.id, candidates=list(candidates), logp=kept)


def run(config: Config) -> None:
    """Decode, choose and tabulate every checkpoint and split."""
    started, rows = time.time(), []
    n = config.number(config.choices, 40, 100)
    for step, split in config.cells("behaviour"):
        decisions = [p.decision for p in config.prompts(split)]
        completions = {mode: config.decoded(step, split, mode) for mode in ("prompt", "cot", "empty_think")}
        measured = measure(completions, decisions, config.env.is_correct, config.seed)
        inputs = dict(
            config.inputs(step, split),
            n=n,
            limits=config.limits,
            judge=config.env.judge,
            closed_actions=config.env.closed_actions,
        )
        choices = config.stage(f"choices/{step}-{split}", inputs, lambda: forced(config, step, split, n))
        for metric in CHOICES if choices else ():
            values = np.array([row[metric] for row in choices], dtype=bool)
            episodes = [row["episode"] for row in choices]
            measured.append(dict(metric=metric, **mean_row(values, episodes, config.seed)))
        rows += [dict(step=step, split=split, **row) for row in measured]
    config.write("behaviour", rows, started, judge=config.env.judge)


INSTRUMENT = Instrument("behaviour", Config, run, in_all=(0, 0))
