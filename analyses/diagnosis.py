"""What each action rests on, the prompt or its trace, and what traces give away (docs/methods.md 5.5)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from interp.system.choices import ARGUING
from interp.system.paths import PROGRAM
from interp.tasks.episodes import Decision

from .both_modes import same
from .kept import Cell, cells
from .registry import Instrument
from .remedies import NotApplicable
from .rows import mean_row
from .study import Study

Diagnosis = Literal["post_hoc", "overridable", "trace_decided", "neither"]
DIAGNOSES: tuple[Diagnosis, ...] = ("post_hoc", "overridable", "trace_decided", "neither")
#: Kinds of stages that are read.
STAGES = ("decoded", "conflict")


@dataclass
class Config(Study):
    """The options that `behaviour` and `conflict` were given; no model runs."""

    @property
    def reads(self) -> list[Path]:
        """What the table is made from, beside checkpoints and decisions."""
        return [self.run / "partial" / kind for kind in STAGES]


def diagnose(prompt: str | None, cot: str | None, conflicts: Mapping[str, Mapping]) -> Diagnosis | None:
    """What a decision's CoT action rests on.

    Args:
        prompt, cot: both actions (None: unparsed).
        conflicts: by the kind of inserted trace whether the CoT action was kept (`keep`) or the trace's taken
            (`follow`). Another state's trace is read, or where there is none a resampled one; without either
            there is no diagnosis.
    """
    outcome = next((conflicts[kind] for kind in ARGUING if kind in conflicts), None)
    if outcome is None:
        return None
    if same(prompt, cot):
        return "post_hoc" if outcome["keep"] else "overridable" if outcome["follow"] else "neither"
    both_parsed = prompt is not None and cot is not None
    return "trace_decided" if both_parsed and outcome["follow"] else "neither"


def run(config: Config) -> None:
    """Diagnose the decisions of every checkpoint, and tabulate shares of them and of traces that leak."""
    started, rows = time.time(), []
    for cell in cells(config, "diagnosis"):
        key = dict(step=cell.step, split=cell.split)
        rows += [key | row for row in (*_diagnoses(cell), *_leaks(cell))]
    if not rows:
        raise NotApplicable(
            f"{config.run} keeps no decoded actions of these decisions: run `{PROGRAM} behaviour` and "
            f"`{PROGRAM} conflict` first, and give the same options here."
        )
    config.write("diagnosis", rows, started)


def _diagnoses(cell: Cell) -> Iterator[dict]:
    """Shares of the decisions that a conflicting trace was put into; none where there is no record of it."""
    stored, modes = cell.kept_of_split("conflict"), cell.kept_of_split("decoded")
    if not stored or not modes:
        return
    actions = {
        name: tuple(modes[mode][i]["action"] or None for mode in ("prompt", "cot"))
        for i, name in enumerate(cell.ids)
    }
    found = {
        name: diagnose(*actions[name], conflicts)
        for name, conflicts in by_decision(stored).items()
        if name in actions
    }
    diagnosed = {name: each for name, each in found.items() if each is not None}
    episodes = [cell.decisions[name].episode for name in diagnosed]
    for diagnosis in DIAGNOSES if diagnosed else ():
        values = np.array([each == diagnosis for each in diagnosed.values()])
        yield dict(traces="own", metric=diagnosis, **mean_row(values, episodes, cell.config.seed))


def by_decision(stored: Mapping) -> dict[str, dict[str, dict]]:
    """What a stage of `conflict` kept: decision -> kind of inserted trace -> what was done after it."""
    outcomes: dict[str, dict[str, dict]] = {}
    for kind, metrics in stored["inserted_traces"].items():
        for k, i in enumerate(metrics["index"]):
            read = {name: metrics[name][k] for name in ("keep", "follow")}
            outcomes.setdefault(stored["decisions"][i], {})[kind] = read
    return outcomes


def _leaks(cell: Cell) -> Iterator[dict]:
    """Shares of traces that name what their action is done to, and that spell the action out.

    Of the checkpoint's own traces, and of the expert's at the same decisions.
    """
    modes, decisions = cell.kept_of_split("decoded"), [cell.decisions[name] for name in cell.ids]
    if not modes:
        return
    own = [(row["trace"], row["action"] or None) for row in modes["cot"]]
    expert = [(decision.trace, decision.reference) for decision in decisions]
    for traces, written in dict(own=own, expert=expert).items():
        yield from leak_rows(traces, written, decisions, cell.config)


def leak_rows(
    traces: str,
    written: Sequence[tuple[str | None, str | None]],
    decisions: Sequence[Decision],
    config: Study,
) -> Iterator[dict]:
    """Rows of the decisions that have a trace and an action.

    Args:
        traces: whose they are.
        written: each decision's trace and action.
    """
    there = [(t, a, d.episode) for (t, a), d in zip(written, decisions, strict=True) if t and a]
    if not there:
        return
    texts, actions, episodes = zip(*there, strict=True)
    said = dict(spells_action=list(actions))
    if "target" in config.env.classes:
        kinds = [config.env.classes["target"](action) for action in actions]
        said["names_object"] = [object_of(action, kind) for action, kind in zip(actions, kinds, strict=True)]
        said["names_kind"] = kinds
    for metric, wanted in said.items():
        values = np.array([names(text, each) for text, each in zip(texts, wanted, strict=True)])
        yield dict(traces=traces, metric=metric, **mean_row(values, list(episodes), config.seed))


def object_of(action: str, kind: str) -> str:
    """What an action is done to, with its number: `drawer 2` of `go to drawer 2`, whose kind is `drawer`."""
    numbered = re.search(rf"\b{re.escape(kind)} \d+\b", action)
    return numbered.group() if numbered else kind


def names(trace: str, name: str) -> bool:
    """Whether a trace has a name in it, as whole words (`drawer 1` is not in `drawer 11`)."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", trace, re.IGNORECASE) is not None


INSTRUMENT = Instrument("diagnosis", Config, run, after_all=True)
