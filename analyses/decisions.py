"""Decisions one by one: what the analyses of a run keep of each, as one table and a page to look through.

`tables/decisions.parquet` has a row for each decision, checkpoint and mode (its columns are those of
`interp.results.decisions.COLUMNS`), and `decisions.html` shows them. Both are of what is on record: no model
runs, and what no analysis kept is null.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.prompts.format import MODES, Prompt
from interp.results.names import NO_TRACES
from interp.system.choices import ARGUING
from interp.system.paths import PROGRAM
from interp.tasks.episodes import Decision

from .both_modes import same
from .diagnosis import diagnose
from .early import SHARES
from .kept import Cell, cells
from .labels import Labels
from .registry import Instrument
from .remedies import NotApplicable
from .study import Study

if TYPE_CHECKING:
    from interp.report.viewer import Page


@dataclass
class Config(Study):
    """The options that the run's other analyses were given, since decisions and checkpoints are theirs."""

    labels: Labels = ("reference_target", "eventual_target", "eventual_verb")
    """Which probes' predictions are shown, where they are on record."""


#: (decision, mode, columns of COLUMNS).
Part = tuple[str, str, dict[str, Any]]


def decoded(cell: Cell) -> Iterator[Part]:
    """What was decoded in each mode."""
    for mode, completions in (cell.kept_of_split("decoded") or {}).items():
        for decision, each in zip(cell.ids, completions, strict=True):
            yield decision, mode, _acted(cell, decision, each)


def no_traces(cell: Cell) -> Iterator[Part]:
    """The prompt action where the traces of earlier turns are left out."""
    if kept := cell.kept_of_split("decoded", NO_TRACES):
        for decision, completion in zip(cell.ids, kept, strict=True):
            yield decision, NO_TRACES, _acted(cell, decision, completion)


def _acted(cell: Cell, decision: str, completion: dict) -> dict[str, Any]:
    """Columns of one decoding."""
    action, config = completion["action"] or None, cell.config
    return dict(
        action=action,
        parsed=action is not None,
        is_correct=action is not None and bool(config.env.is_correct(cell.decisions[decision], action)),
        trace=completion["trace"],
        completion=config.format.text(completion["ids"]),
    )


def choices(cell: Cell) -> Iterator[Part]:
    """Forced choice in each mode."""
    for row in cell.kept_of_split("choices") or ():
        for mode, logp in row["logp"].items():
            summed, per_token = np.array(logp).T
            order = np.argsort(-summed, kind="stable")
            columns = dict(
                candidates=[row["candidates"][i] for i in order],
                candidates_logp=summed[order].tolist(),
                choice=row["candidates"][order[0]],
                choice_per_token=row["candidates"][per_token.argmax()],
            )
            yield row["decision"], mode, columns


def conflicts(cell: Cell) -> Iterator[Part]:
    """What was done after each inserted trace."""
    stored = cell.kept_of_split("conflict")
    if not stored:
        return
    by_decision: dict[str, list[dict]] = defaultdict(list)
    for kind, metrics in stored["inserted_traces"].items():
        texts = stored["texts"][kind]
        for k, i in enumerate(metrics["index"]):
            outcome = dict(inserted_trace=kind, leaked=metrics["leak_rate"][k])
            outcome |= {name: metrics[name][k] for name in ("keep", "follow", "logp_trace")}
            outcome |= {name: each[k] for name, each in texts.items()}
            by_decision[stored["decisions"][i]].append(outcome)
    for decision, outcomes in by_decision.items():
        kept = [outcome["keep"] for outcome in outcomes if outcome["inserted_trace"] in ARGUING]
        yield decision, "cot", dict(conflicts=outcomes, flipped=not all(kept) if kept else None)


def early(cell: Cell) -> Iterator[Part]:
    """How much of its trace an action needs."""
    stored = cell.kept_of_split("early")
    if not stored:
        return
    ids = cell.ids
    for k, i in enumerate(stored["index"]):
        areas = {name: stored[name][k] for name in ("area_action", "area_distribution", "area_filler")}
        same = {f"same_{share * 100:.0f}": stored["same"][k][s] for s, share in enumerate(SHARES)}
        yield ids[i], "cot", areas | same


def probes(cell: Cell) -> Iterator[Part]:
    """What the probes predicted at each layer, of the decisions that were drawn."""
    config, ids = cell.config, set(cell.ids)
    by_decision: dict[str, list[dict]] = defaultdict(list)
    for label in config.labels:
        inputs = config.inputs(cell.step, config.parts[0])
        stored = cell.kept(f"probes/{cell.step}-{label}", **inputs, label=label)
        if not stored or stored["skipped"]:
            continue
        read = stored["predicted"]
        for k, decision in enumerate(read["decision"]):
            predicted = [layer[k] for layer in read["layers"]]
            by_decision[decision].append(dict(label=label, truth=read["label"][k], predicted=predicted))
    for decision, predictions in by_decision.items():
        if decision in ids:
            yield decision, "cot", dict(probes=predictions)


def lens(cell: Cell) -> Iterator[Part]:
    """The logit lens of the eventual and the recorded action, read with the probes."""
    config = cell.config
    by_decision: dict[str, list[dict]] = defaultdict(list)
    for row in cell.kept(f"probes/{cell.step}-lens", **config.inputs(cell.step, config.parts[0])) or ():
        by_decision[row.pop("decision")].append(row)
    for decision, rows in by_decision.items():
        if decision in cell.decisions:
            yield decision, "cot", dict(lens=rows)


def reliance(cell: Cell) -> Iterator[Part]:
    """What the twin's prompt and trace do to the action."""
    from interp.measures.reliance import EFFECTS

    stored = cell.kept(f"reliance/{cell.step}-{cell.split}")
    if not stored:
        return
    for pair, effects in zip(stored["kept"], stored["effects"], strict=True):
        decision, twin = stored["pairs"][pair]
        yield decision, "cot", dict(zip(EFFECTS, effects, strict=True), twin=twin)


def patching(cell: Cell) -> Iterator[Part]:
    """Effects of patching at each place, of the pairs of the first split."""
    if cell.split != cell.config.parts[0]:
        return
    by_row: dict[tuple[str, str], list[dict]] = defaultdict(list)
    twins = {}
    for name in (f"patching/{cell.step}", f"patching/{cell.step}-spans"):
        for place, sweep in (cell.kept(name) or {}).items():
            at, mode = place.split()
            for pair, (decision, twin) in enumerate(sweep["pairs"]):
                twins[decision] = twin
                by_row[decision, mode] += _effects(sweep, pair, at)
    for (decision, mode), effects in by_row.items():
        yield decision, mode, dict(patching=effects or None, twin=twins[decision])


def attribution(cell: Cell) -> Iterator[Part]:
    """First-order estimates over the tokens of the first pairs, at the first and the last checkpoint."""
    if cell.split != cell.config.parts[0]:
        return
    by_row: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in (cell.kept(f"patching/{cell.step}-attribution") or {}).get("tokens", ()):
        by_row[row.pop("decision"), row.pop("mode")].append(row)
    for (decision, mode), rows in by_row.items():
        yield decision, mode, dict(attribution=rows)


def _effects(sweep: dict, pair: int, at: str) -> Iterator[dict]:
    """One pair's effects at a place that its metric keeps."""
    for metric, by_direction in sweep["metrics"].items():
        for direction, effects in by_direction.items():
            for site, effect in zip(sweep["sites"], effects[pair], strict=True):
                if np.isfinite(effect).all():
                    yield dict(at=at, site=site, direction=direction, metric=metric, effect=effect)


#: What each analysis keeps, in the order in which it is put together.
READERS: tuple[Callable[[Cell], Iterable[Part]], ...] = (
    decoded,
    no_traces,
    choices,
    conflicts,
    early,
    probes,
    lens,
    reliance,
    patching,
    attribution,
)


def kept_rows(cell: Cell) -> Iterator[tuple[Decision, list[dict]]]:
    """What is on record of a checkpoint and a split: a row for each mode, by decision, in recorded order.

    Rows lack what is the same at every checkpoint (`about`).
    """
    table: dict[tuple[str, str], dict] = defaultdict(dict)
    for read in READERS:
        for name, mode, columns in read(cell):
            table[name, mode] |= columns
    there = {name for name, _ in table}
    for decision in cell.decisions.values():
        if decision.id not in there:
            continue
        modes = {mode: table[key] for mode in (*MODES, NO_TRACES) if (key := (decision.id, mode)) in table}
        differ, flipped = _differ(modes), modes.get("cot", {}).get("flipped")
        flags = dict(actions_differ=differ, flipped=flipped, diagnosis=_diagnosis(modes))
        rows = []
        for mode, columns in modes.items():
            told = flags if mode in MODES else {}
            ranks = _ranks(columns, decision.reference)
            rows.append(dict(checkpoint=cell.step, mode=mode) | columns | ranks | told)
        yield decision, rows


class About:
    """The columns that hold for all rows of a decision, of the decisions of a study."""

    def __init__(self, config: Study):
        self.config = config
        self._drawn = {s: {p.decision.id: p for p in config.prompts(s)} for s in config.parts}

    def __call__(self, split: str, decision: Decision) -> dict:
        prompt = self._drawn[split].get(decision.id) or self.config.format.prompt(decision)
        return dict(_about(decision, prompt), split=split)


def nothing_kept(config: Study) -> NotApplicable:
    """What is raised where a run keeps nothing of the decisions that are asked for."""
    return NotApplicable(
        f"{config.run} keeps nothing of these decisions at these checkpoints: run `{PROGRAM} "
        "behaviour` first, and give the same options here (its command is in tables/behaviour.json)."
    )


def run(config: Config) -> None:
    """Put together what is on record, and write the table and its page; one checkpoint is held at a time."""
    from interp.report.viewer import Page
    from interp.results.decisions import write_decisions

    started = time.time()
    if not (config.run / "partial").exists():
        raise nothing_kept(config)
    with (
        tempfile.TemporaryDirectory(dir=config.run, prefix=".decisions-") as scratch,
        Page(config.run) as page,
    ):
        kept = _by_cell(config, Path(scratch))
        if not any(map(os.path.getsize, kept.values())):
            raise nothing_kept(config)
        made = config.provenance("decisions", started, parser=config.parse.__module__)
        path = write_decisions(config.run / "tables", _shown(config, kept, page), made)
        print(f"{page.rows:,} rows in {path}; to look through them open {page.save(made)}")


def _by_cell(config: Config, folder: Path) -> dict[tuple[str, int], Path]:
    """A file for each split and checkpoint, a line for each decision: its id and its rows."""
    files = {}
    for cell in cells(config, "decisions"):
        files[cell.split, cell.step] = folder / f"{cell.split}-{cell.step}.jsonl"
        with open(files[cell.split, cell.step], "w", encoding="utf-8") as lines:
            for decision, rows in kept_rows(cell):
                lines.write(json.dumps([decision.id, rows]) + "\n")
    return files


def _shown(config: Config, kept: dict[tuple[str, int], Path], page: Page) -> Iterator[dict]:
    """All rows, those of a decision next to one another, which the page is given as well."""
    about = About(config)
    for split in config.parts:
        decisions = [d for e in config.episodes[split] for d in e.decisions()]
        with contextlib.ExitStack() as stack:
            files = [open(kept[split, step], encoding="utf-8") for step in config.steps]
            for file in files:
                stack.enter_context(file)
            heads = [next(map(json.loads, file), None) for file in files]
            for decision in decisions:
                rows = []
                for place, file in enumerate(files):
                    if (head := heads[place]) and head[0] == decision.id:
                        rows += head[1]
                        heads[place] = next(map(json.loads, file), None)
                if rows:
                    known = about(split, decision)
                    rows = [known | row for row in rows]
                    page.add(rows)
                    yield from rows


def _about(decision: Decision, prompt: Prompt) -> dict:
    """The columns that hold for all of a decision's rows."""
    texts = pieces(prompt)
    ends = np.cumsum([len(text) for _, text in texts]).tolist()
    starts = [0, *ends[:-1]]
    return dict(
        decision=decision.id,
        episode=decision.episode,
        step=decision.step,
        task=decision.task,
        task_type=decision.task_type,
        reference=decision.reference,
        n_admissible=len(decision.admissible),
        prompt="".join(text for _, text in texts),
        spans=[
            dict(span=span, start=start, end=end)
            for (span, _), start, end in zip(texts, starts, ends, strict=True)
        ],
    )


def pieces(prompt: Prompt) -> list[tuple[str, str]]:
    """(span, text) of a prompt, in order; a text is read after the one before it: its spaces depend on it."""
    texts, before = [], []
    for span, tokens in groupby(zip(prompt.spans, prompt.ids, strict=True), key=lambda token: token[0]):
        ids = [i for _, i in tokens]
        known = len(prompt.format.text(before)) if before else 0
        texts.append((span, prompt.format.text([*before, *ids])[known:]))
        before = ids
    return texts


def _differ(modes: dict[str, dict]) -> bool | None:
    """Whether the prompt and the CoT action differ, as one that did not parse does from any.

    None where one of them was not decoded.
    """
    if any("parsed" not in modes.get(mode, {}) for mode in ("prompt", "cot")):
        return None
    return not same(modes["prompt"]["action"], modes["cot"]["action"])


def _diagnosis(modes: dict[str, dict]) -> str | None:
    """What the CoT action rests on; None where one mode was not decoded, or no conflicting trace put in."""
    if any("parsed" not in modes.get(mode, {}) for mode in ("prompt", "cot")):
        return None
    outcomes = {each["inserted_trace"]: each for each in modes["cot"].get("conflicts") or ()}
    return diagnose(modes["prompt"]["action"], modes["cot"]["action"], outcomes)


def _ranks(columns: dict, reference: str) -> dict[str, int]:
    """Ranks of the recorded and of the decoded action among the candidates that hold them."""
    rank = {name: k for k, name in enumerate(columns.get("candidates", ()), 1)}
    named = dict(reference_rank=reference, action_rank=columns.get("action"))
    return {column: rank[action] for column, action in named.items() if action in rank}


INSTRUMENT = Instrument("decisions", Config, run, after_all=True)
