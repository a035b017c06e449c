"""What a report reads of the instruments: how far they can be trusted, what the prompt predicts, and what the action depends on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from interp.plots.calibration import AGENTS, INSTRUMENTS, NEAR, grown, verdicts
from interp.plots.patching import PLACES, best_spans, boundary
from interp.plots.probes import best_control, cells_above, pairs_that_drop
from interp.plots.traces import against_random, splice_fails, steered, widest
from interp.report.study import Change, Read, Verdict, together
from interp.results.estimates import ends, estimate, side
from interp.results.headline import headline
from interp.results.names import LABELS, STYLE
from interp.results.queries import label_of, pick, splits_of
from interp.results.wording import WHERE

_DIRECTIONS = {"probe": "the probe's direction", "unembedding": "the unembedding row", "orthogonal": "random directions"}
_AGAINST_OTHER = dict(arm="other_state", metric="follow")


@dataclass(frozen=True)
class Trusted:
    """What the calibration says."""

    right: int
    decided: int
    near: float
    good: list[str]
    """Instruments right on every agent where the construction decides."""
    bad: list[tuple[str, int, int]]
    """Instruments wrong on some: name, readings wrong, and of how many."""
    decodable: tuple[float, float] | None
    """AUROC at the boundary of the agent whose prompt decides and what patching there gives, where the one is high and the other near 0."""
    left_out: list[tuple[str, str]]
    """Agents and seeds that did not learn their construction."""


def trusted(study: Read) -> Trusted | None:
    """Which instruments are right on every agent, which are not, and what is decodable but not used."""
    if study.rows("calibration").empty:
        return None
    rows, failed = grown(study.tables["calibration"])
    rows = rows[rows["agent"].isin(AGENTS) & rows["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    right, wrong = (rows[verdict == kind].groupby("instrument").size().to_dict() for kind in ("right", "misread"))
    good = [name for key, name in INSTRUMENTS.items() if key in right and key not in wrong]
    bad = [(name, wrong[key], wrong[key] + right.get(key, 0)) for key, name in INSTRUMENTS.items() if key in wrong]
    of = pick(rows, agent="post_hoc").groupby("instrument")["value"].mean()
    decodable = of.get("auroc", 0) > 0.9 and abs(of.get("boundary_patch", 1)) < NEAR
    left = [(AGENTS[row.agent], str(row.seed)) for row in failed.itertuples()]
    right, wrong = sum(right.values()), sum(wrong.values())
    return Trusted(right, right + wrong, NEAR, good, bad, (of["auroc"], of["boundary_patch"]) if decodable else None, left)


@dataclass(frozen=True)
class Probes:
    """What the probes say, of the label that is shown."""

    label: str
    accuracy: list[Change]
    gain: list[Change]
    cells: list[tuple[str, int, int]]
    """Split, cells whose gain has an interval above 0, and of how many."""
    where: str
    """Split of the numbers that follow, of the last checkpoint."""
    control: tuple[str, str] | None
    """The best control that reads no activation, and its accuracy."""
    random: str
    """Accuracy of the same probe of an untrained network."""


def probes(study: Read) -> Probes | None:
    """The probe's accuracy and gain at both ends, and what it is compared with."""
    rows = study.rows("probes", metric="accuracy")
    if rows.empty:
        return None
    label, splits = label_of(rows), splits_of(rows)
    rows = pick(rows, label=label)
    cells = {split: cells_above(rows, split=split) for split in splits}
    last = pick(rows, split=splits[0], step=rows["step"].max())
    best, random = best_control(last), pick(last, reader="random_model", layer=-1)
    nested = dict(label=label, metric="accuracy", layer=-1)
    return Probes(
        LABELS.get(label, label), study.changes("probes", reader="probe", **nested), study.changes("probes", reader="gain", **nested),
        [(WHERE[split], *counts) for split, counts in cells.items() if counts[1]], WHERE[splits[0]],
        None if best is None else (STYLE[best["reader"]][0], estimate(best)), estimate(random.iloc[0]) if len(random) else "",
    )  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """What the section on the boundary says."""

    probes: Probes | None
    bits: list[Verdict]
    transfer: list[tuple[str, int, int]]


def predicted(study: Read) -> Predicted | None:
    """Probes, codelengths and transfer."""
    rows = study.rows("mdl", metric="bits", reader="gain")
    rows = pick(rows, label=label_of(rows)) if len(rows) else rows
    last = {split: ends(pick(rows, split=split)).last for split in splits_of(rows)}
    bits = together({split: (side(row), dict(saved=estimate(row, signed=True))) for split, row in last.items()})
    drops = study.rows("transfer", reader="drop")
    transfer = [(WHERE[split], *pairs_that_drop(drops, split)) for split in splits_of(drops)]
    found = Predicted(probes(study), bits, transfer)
    return found if found.probes or bits or transfer else None


@dataclass(frozen=True)
class Top:
    """An estimate picked as the largest, and where it is."""

    value: str
    layer: int
    step: int
    place: str = ""


def edge(study: Read) -> Top | None:
    """The largest effect of patching the boundary alone."""
    row = boundary(study.rows("patching"))
    return None if row is None else Top(estimate(row), int(row["layer"]), int(row["step"]))


@dataclass(frozen=True)
class Depends:
    """What the section on causes says; what was not measured is empty."""

    edge: Top | None
    spans: list[Top]
    reliance: list[Change]
    ways: list[Verdict]
    followed: Followed
    keep: list[Change]
    spliced: str | None
    """Empty where the own trace put back reproduces every action, None where that was not tried, else the lowest share."""
    removed: list[Verdict]
    early: dict[str, list[Change]]
    shares: dict[str, list[Change]]
    steering: Steering | None


@dataclass(frozen=True)
class Followed:
    """How often another state's trace is followed: at both ends, and the side of a half on which the last interval lies, if it is one."""

    changes: list[Change]
    side: int | None


@dataclass(frozen=True)
class Steering:
    """What steering changes: the most at the boundary; during the trace at the last checkpoint the probe's direction against random ones."""

    boundary: str
    side: int | None
    alpha: str
    probe: str
    random: str
    targets: list[tuple[str, str]]


def depends(study: Read) -> Depends | None:
    """Patching, reliance, conflicting traces, early answering, shares and steering; None where there are none."""
    splice = study.rows("conflict", arm="self_splice", metric="keep")
    worst = splice_fails(splice) if len(splice) else None
    tops = best_spans(study.rows("patching")) if "patching" in study.tables else []
    share = dict(span="cot", version="sink_free", metric="ratio")
    found = Depends(
        edge=edge(study),
        spans=[Top(estimate(row), int(row["layer"]), int(row["step"]), PLACES[row["at"]][0]) for row in tops],
        reliance=study.changes("reliance", metric="prompt_reliance"),
        ways=_ways(study),
        followed=followed(study),
        keep=study.changes("conflict", arm="other_state", metric="keep"),
        spliced=None if splice.empty else f"{worst:.3f}" if worst is not None else "",
        removed=_removed(study),
        early={metric: study.changes("early", metric=metric) for metric in ("same_0", "same_50", "area_action")},
        shares={name: study.changes("shares", definition=name, **share) for name in ("attention", "gradient_value")},
        steering=_steering(study),
    )  # fmt: skip
    empty = Depends(None, [], [], [], Followed([], None), [], None, [], dict.fromkeys(found.early, []), dict.fromkeys(found.shares, []), None)
    return found if found != empty else None


def followed(study: Read) -> Followed:
    """How often the agent follows another state's trace."""
    last = [of.last for split in study.splits("conflict") if (of := study.ends("conflict", split=split, **_AGAINST_OTHER))]
    sides = {side(row, 0.5) for row in last}
    return Followed(study.changes("conflict", **_AGAINST_OTHER), sides.pop() if len(sides) == 1 else None)


def _ways(study: Read) -> list[Verdict]:
    """Which way the larger part of the prompt's effect goes at the last checkpoint, and what of it goes through the trace."""
    found = {}
    for split in study.splits("reliance"):
        of = {metric: study.ends("reliance", metric=metric, split=split) for metric in ("prompt_reliance", "via_cot", "via_text", "via_state")}
        if None not in of.values():
            numbers = {metric: estimate(each.last) for metric, each in of.items()}
            found[split] = side(of["prompt_reliance"].last, 0.5), numbers
    return together(found)


def _removed(study: Read) -> list[Verdict]:
    """A removed against a wrong trace at the last checkpoint, where both actions parse."""
    found = {}
    for split in study.splits("conflict"):
        of = {name: study.ends("conflict", arm="filler", split=split, metric=f"flip_{name}_parsed") for name in ("removed", "substituted", "difference")}
        if None not in of.values():
            found[split] = side(of["difference"].last), {name: estimate(each.last) for name, each in of.items()}
    return together(found)


def _steering(study: Read) -> Steering | None:
    rows = study.rows("steering")
    if rows.empty:
        return None
    top, found = steered(rows), against_random(rows)
    cot = pick(rows, position="cot", step=rows["step"].max())
    at = pick(cot, alpha=widest(cot), metric="to_target")
    targets = [(name, estimate(of.iloc[0])) for direction, name in _DIRECTIONS.items() if len(of := pick(at, direction=direction))]
    told = (found[0], f"{found[1]['alpha']:g}", estimate(found[1]), estimate(found[2])) if found else (None, "", "", "")
    return Steering("" if top is None else estimate(top), *told, targets)


@dataclass(frozen=True)
class Before:
    """What the boundary says of the action to come, and what patching it gives."""

    gain: list[Verdict]
    edge: Top | None


def before(study: Read) -> Before | None:
    """The probe's gain at the last checkpoint, of the headline's label, and the largest effect of patching the boundary."""
    rows = pick(headline(study.tables), metric="probe_gain")
    last = {split: ends(pick(rows, split=split)).last for split in splits_of(rows)}
    gain = together({split: (side(row), dict(gain=estimate(row, signed=True))) for split, row in last.items()})
    found = Before(gain, edge(study))
    return found if gain or found.edge else None


def probed_labels(rows: pd.DataFrame) -> dict[str, str]:
    """Labels that were probed, as they are called in a sentence."""
    def name(label: str) -> str:
        pair = label.removeprefix("pairwise ").replace(" / ", " and ")
        return f"choice between {pair}" if label.startswith("pairwise ") else LABELS.get(label, label)

    return {label: name(label) for label in rows["label"].unique()} if len(rows) else {}
