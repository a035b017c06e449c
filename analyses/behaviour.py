"""Prompt action against CoT action on recorded states (docs/methods.md 2).

Accuracy, gap, agreement, revision, admissibility, forced choice, and the prompt action where the history has
no traces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.prompts.format import MODES
from interp.results.names import NO_TRACES, PARSED
from interp.stats.intervals import headroom_gap, kappa, mcnemar
from interp.system.limits import Sample
from interp.tasks.episodes import Decision

from .both_modes import differ, gap, is_admissible, labels, right, side_by_side
from .decodings import without_history_traces
from .registry import Instrument
from .rows import mean_row
from .shards import by_shards
from .study import Study

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from interp.engine.decoding import Completion

#: Decisions of each split that a quick study reads by forced choice; a full one reads all.
QUICK = 40


@dataclass
class Config(Study):
    """Both modes at every checkpoint, on the expert's states."""

    choices: Sample = 0
    """Decisions of each split read by forced choice too (0: 40 quick, all that are drawn full)."""


def measure(
    completions: Mapping[str, Sequence[Completion]],
    decisions: Sequence[Decision],
    is_correct: Callable[[Decision, str], bool],
    seed: int,
    closed_actions: bool = True,
) -> list[dict]:
    """Rows of metrics from the modes' decodings of the same decisions.

    An action that did not parse is wrong and agrees with nothing. Metrics that end in `_parsed` are over the
    decisions at which the prompt and the CoT action both parse.

    Args:
        completions: of each mode, among them `prompt` and `cot`; `NO_TRACES` is told with its difference from
            prompt mode.
        decisions: what was decoded.
        is_correct: judges actions that parsed.
        seed: of the resamples.
        closed_actions: whether a decision's `admissible` are all the actions there are, so that the share of
            parsed actions among them is told.
    """
    actions = {mode: [completion.action or None for completion in each] for mode, each in completions.items()}
    both = side_by_side(decisions, actions["prompt"], actions["cot"], is_correct)
    rows = [*_of_both(both, seed)]
    for row in _of_both(both[both["parsed"]], seed):
        rows.append(dict(row, metric=row["metric"] + PARSED))
    p = mcnemar(both["prompt"].to_numpy(), both["cot"].to_numpy())
    size = dict(n=len(decisions), n_groups=both["episode"].nunique())
    rows.append(dict(metric="mcnemar_p", value=p, low=np.nan, high=np.nan, **size))
    correct = dict(prompt=both["prompt"].to_numpy(), cot=both["cot"].to_numpy())
    for mode, each in actions.items():
        if mode not in correct:
            correct[mode] = right(decisions, each, is_correct)
            rows.append(_mean(f"acc_{mode}", decisions, correct[mode], seed))
        rows.append(_mean(f"parse_{mode}", decisions, np.array([a is not None for a in each]), seed))
    if NO_TRACES in actions:
        moved = correct[NO_TRACES].astype(float) - correct["prompt"]
        rows.append(_mean(f"{NO_TRACES}_difference", decisions, moved, seed))
    if closed_actions and any(decision.admissible for decision in decisions):
        rows += [_admissible(mode, decisions, each, seed) for mode, each in actions.items()]
    return rows


def _mean(metric: str, decisions: Sequence[Decision], values: np.ndarray, seed: int) -> dict:
    return dict(metric=metric, **mean_row(values, [decision.episode for decision in decisions], seed))


def _of_both(both: pd.DataFrame, seed: int) -> Iterator[dict]:
    """What two actions of the same decisions say together."""
    prompt, cot = both["prompt"].to_numpy(dtype=bool), both["cot"].to_numpy(dtype=bool)
    revised, episodes = differ(both), both["episode"].tolist()
    columns = dict(
        acc_prompt=prompt,
        acc_cot=cot,
        gap=gap(both),
        agreement=~revised,
        revision=revised,
        revision_helpful=revised & cot & ~prompt,
        revision_harmful=revised & prompt & ~cot,
        revision_neutral=revised & (cot == prompt),
    )
    for metric, values in columns.items():
        yield dict(metric=metric, **mean_row(values, episodes, seed))
    if both.empty:
        headroom = agreed = mean_row(np.array([]), [], seed)
    else:
        headroom = headroom_gap(prompt.astype(float), cot.astype(float), episodes, seed=seed).row()
        agreed = kappa(*labels(both), episodes, seed=seed).row()
    yield dict(metric="headroom_gap", **headroom)
    yield dict(metric="kappa", **agreed)


def _admissible(mode: str, decisions: Sequence[Decision], actions: Sequence[str | None], seed: int) -> dict:
    """The share of a mode's parsed actions that are admissible, where those are listed."""
    listed = [(d, a) for d, a in zip(decisions, actions, strict=True) if d.admissible and a is not None]
    there = np.array([is_admissible(decision, action) for decision, action in listed], dtype=bool)
    return _mean(f"admissible_{mode}", [decision for decision, _ in listed], there, seed)


def forced(study: Config, step: int, split: str, part: slice) -> list[dict]:
    """Which candidate each reading prefers.

    Readings are summed and per-token log-probabilities, at the boundary and after the own trace; `logp` keeps
    both for each candidate, in nats.
    """
    from interp.engine.decoding import choose_each

    model = study.model(step)
    decoded, every = study.decoded(step, split, "cot"), study.candidates(step, split)
    read = list(zip(study.prompts(split), decoded, every, strict=True))[part]
    decisions = [each for each in read if each[2]]
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


def chosen(study: Config, step: int, split: str) -> list[dict]:
    """What `forced` gives for as many decisions of a split as are read, once for all analyses."""
    n = study.number(study.choices, QUICK, len(study.prompts(split)))
    inputs = dict(
        study.inputs(step, split),
        n=n,
        limits=study.limits,
        judge=study.env.judge,
        closed_actions=study.env.closed_actions,
    )
    return by_shards(
        study,
        f"choices/{step}-{split}",
        inputs,
        min(n, len(study.prompts(split))),
        lambda part: forced(study, step, split, part),
    )


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


def _of_choices(choices: Sequence[dict], seed: int) -> Iterator[dict]:
    """Both modes' accuracy by forced choice, and its gap; nothing where no decision lists actions."""
    episodes = [row["episode"] for row in choices]
    for kind in ("sum", "mean") if choices else ():
        prompt, cot = (
            np.array([row[f"choice_{mode}_{kind}"] for row in choices], dtype=bool)
            for mode in ("prompt", "cot")
        )
        for name, values in (("prompt", prompt), ("cot", cot), ("gap", cot.astype(float) - prompt)):
            yield dict(metric=f"choice_{name}_{kind}", **mean_row(values, episodes, seed))


def run(config: Config) -> None:
    """Decode, choose and tabulate every checkpoint and split."""
    started, rows, env = time.time(), [], config.env
    for step, split in config.cells("behaviour"):
        decisions = [p.decision for p in config.prompts(split)]
        completions: dict[str, Sequence[Completion]] = {m: config.decoded(step, split, m) for m in MODES}
        if bare := without_history_traces(config, step, split):
            completions[NO_TRACES] = bare
        measured = measure(completions, decisions, env.is_correct, config.seed, env.closed_actions)
        measured += _of_choices(chosen(config, step, split), config.seed)
        rows += [dict(step=step, split=split, **row) for row in measured]
    config.write("behaviour", rows, started, judge=env.judge)


INSTRUMENT = Instrument("behaviour", Config, run, in_all=(0, 0))
