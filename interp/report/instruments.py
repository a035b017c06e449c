"""What a report reads of the instruments: how far they can be trusted, and what they say in short."""

from __future__ import annotations

from dataclasses import dataclass

from interp.plots.calibration import AGENTS, INSTRUMENTS, NEAR, grown, verdicts
from interp.plots.patching import boundary
from interp.report.study import Change, Read, Verdict, together
from interp.results.estimates import ends, estimate, side
from interp.results.headline import headline
from interp.results.queries import label_of, pick, splits_of

_AGAINST_OTHER = dict(inserted_trace="other_state", metric="follow")


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
    """The prompt-driven agent's boundary AUROC and patching effect, if high and near 0."""
    left_out: list[tuple[str, str]]
    """Agents and seeds that did not learn their construction."""


def trusted(study: Read) -> Trusted | None:
    """Which instruments are right on every agent, which are not, and what is decodable but not used."""
    if study.rows("calibration").empty:
        return None
    rows, failed = grown(study.tables["calibration"])
    rows = rows[rows["agent"].isin(AGENTS) & rows["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    right, wrong = (
        rows[verdict == kind].groupby("instrument").size().to_dict() for kind in ("right", "misread")
    )
    good = [name for key, name in INSTRUMENTS.items() if key in right and key not in wrong]
    bad = [
        (name, wrong[key], wrong[key] + right.get(key, 0))
        for key, name in INSTRUMENTS.items()
        if key in wrong
    ]
    means = pick(rows, agent="post_hoc").groupby("instrument")["value"].mean()
    decodable = means.get("auroc", 0) > 0.9 and abs(means.get("boundary_patch", 1)) < NEAR
    left_out = [(AGENTS[row.agent], str(row.seed)) for row in failed.itertuples()]
    return Trusted(
        right=sum(right.values()),
        decided=sum(right.values()) + sum(wrong.values()),
        near=NEAR,
        good=good,
        bad=bad,
        decodable=(means["auroc"], means["boundary_patch"]) if decodable else None,
        left_out=left_out,
    )


@dataclass(frozen=True)
class Followed:
    """How often another state's trace is followed, and the side of a half on which the last intervals lie."""

    changes: list[Change]
    side: int | None


def followed(study: Read) -> Followed:
    """How often the agent follows another state's trace."""
    last = [
        of.last
        for split in study.splits("conflict")
        if (of := study.ends("conflict", split=split, **_AGAINST_OTHER))
    ]
    sides = {side(row, 0.5) for row in last}
    return Followed(study.changes("conflict", **_AGAINST_OTHER), sides.pop() if len(sides) == 1 else None)


@dataclass(frozen=True)
class Before:
    """What the boundary says of the action, and what patching it gives."""

    what: str
    """Which action the probe is of."""
    gain: list[Verdict]
    at: str
    """Which checkpoint the gain is of: the study's last one, unless that has no probe."""
    edge: str
    """The largest effect of patching the boundary alone; empty where it was not patched."""


def before(study: Read) -> Before | None:
    """The probe's gain at the last checkpoint that has one, and the largest effect at the boundary."""
    rows = pick(headline(study.tables), metric="probe_gain")
    last = {split: both.last for split in splits_of(rows) if (both := ends(pick(rows, split=split)))}
    gain = together(
        {split: (side(row), dict(gain=estimate(row, signed=True))) for split, row in last.items()}
    )
    top = boundary(study.rows("patching"))
    steps = {int(row["step"]) for row in last.values()}
    if not gain and top is None:
        return None
    label = label_of(study.tables["probes"]) if gain else ""
    what = "the recorded action" if label.startswith("reference_") else "the action to come"
    return Before(what, gain, study.checkpoints(steps), "" if top is None else estimate(top))
