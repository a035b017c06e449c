"""What a report lists as looked for and not found, only where the table says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from interp.plots.behaviour import READABLE
from interp.plots.environments import ENVIRONMENTS
from interp.plots.masking import MECHANISM, moves
from interp.plots.patching import boundary
from interp.plots.probes import cells_above
from interp.plots.traces import steered
from interp.report.behaviour import series
from interp.report.study import Read
from interp.results.condition_rows import claimed, one
from interp.results.estimates import ends, estimate, side
from interp.results.names import LABELS, STYLE
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE, listed

#: Effects of patching and shares of changed actions below which nothing is said to be moved.
SMALL = 0.05
#: Share of cells whose 95 % interval lies above 0 where there is nothing.
_BY_CHANCE = 0.025


class Null(NamedTuple):
    """Something looked for and not found."""

    kind: str
    """Which of the template's words are said."""
    of: str
    """Of what, where there are several of a kind."""
    where: str
    """Split; empty where it is over all."""
    numbers: tuple
    """What the words need, estimates as text."""


def nulls(study: Read) -> dict[tuple[str, str], list[Null]] | None:
    """Every null, those of a kind together; None where nothing was looked for in vain."""
    by: dict[tuple[str, str], list[Null]] = {}
    for of in (_behaviour, _probes, _causes, _traces, _masking, _elsewhere):
        for null in of(study):
            by.setdefault((null.kind, null.of), []).append(null)
    return by or None


def _behaviour(study: Read) -> Iterator[Null]:
    for metric in ("acc_cot", "acc_prompt"):
        for change in study.changes("behaviour", metric=metric):
            if change.moved in ("level", "down"):
                yield Null("gain", STYLE[metric][0], change.where, (change.first, change.last, change.moved))
    for table, of_whom in (("online", "games"), ("online_official", "of ALFWorld's own games")):
        for split in study.splits(table):
            rows = study.rows(table, metric="success", mode="cot", split=split)
            both = ends(rows)
            if both and both.moved in ("level", "down"):
                first = "" if (rows["value"] == 0).all() else estimate(both.first)
                yield Null("games", of_whom, WHERE[split], (first, estimate(both.last), int(both.last["n"])))
    for metric in ("parse_prompt", "parse_empty_think"):
        for split in study.splits("behaviour"):
            of = study.ends("behaviour", metric=metric, split=split)
            if of is not None and of.last["value"] < READABLE:
                yield Null("parse", STYLE[metric][0], WHERE[split], (estimate(of.last),))


def _probes(study: Read) -> Iterator[Null]:
    rows = study.rows("probes")
    for label in rows["label"].unique() if len(rows) else ():
        name = LABELS.get(label, label.replace("pairwise ", "choice between ").replace(" / ", " and "))
        for split in study.splits("probes"):
            clear, cells = cells_above(rows, label=label, split=split)
            if cells and clear <= _BY_CHANCE * cells:
                of = study.ends(
                    "probes", label=label, split=split, layer=-1, predictor="gain", metric="accuracy"
                )
                gain = estimate(of.last, signed=True) if of else ""
                at = study.checkpoints({int(of.last["step"])}) if of else ""
                yield Null("probe", name, WHERE[split], (clear, cells, gain, at))
    for split in study.splits("mdl"):
        gains = study.rows("mdl", metric="bits", predictor="gain", split=split)
        both = ends(gains)
        if both and not (gains["low"] > 0).any():
            yield Null("bits", "", WHERE[split], (estimate(both.last, signed=True),))


def _causes(study: Read) -> Iterator[Null]:
    top = boundary(study.rows("patching"))
    if top is not None and abs(top["value"]) < SMALL:
        yield Null("boundary", "", "", (estimate(top),))
    for mode, what in (("prompt", "at the boundary"), ("cot", "after the trace")):
        of = study.ends("patching", mode=mode, metric="attribution_pearson", direction="denoise")
        if of is not None and side(of.last) <= 0:
            yield Null("screen", what, "", (estimate(of.last),))
    for split in study.splits("reliance"):
        of = study.ends("reliance", metric="via_state", split=split)
        if of is not None and side(of.last) <= 0:
            yield Null("state", "", WHERE[split], (estimate(of.last),))
    top = steered(rows) if len(rows := study.rows("steering")) else None
    if top is not None and top["value"] < SMALL:
        yield Null("steering", "", "", (estimate(top),))


def _traces(study: Read) -> Iterator[Null]:
    for definition, what in (("attention", "attention"), ("gradient_value", "gradient")):
        for change in study.changes(
            "shares", span="cot", version="sink_free", metric="ratio", definition=definition
        ):
            if change.moved == "level":
                yield Null("share", what, change.where, (change.first, change.last))
    for split in study.splits("conflict"):
        of = study.ends("conflict", inserted_trace="other_state", metric="keep", split=split)
        if of is not None and side(of.last, 0.5) < 0:
            yield Null("keep", "", WHERE[split], (estimate(of.last),))


def _masking(study: Read) -> Iterator[Null]:
    frame = study.tables.get("masking")
    condition = claimed(frame) if frame is not None else None
    if condition is None:
        return
    for split in splits_of(frame):
        for contrast, of in (("difference", "k = 0"), ("control", "masking as many other tokens")):
            row = one(frame, metric="acc_cot", split=split, condition=condition.name, contrast=contrast)
            if row is not None and side(row) <= 0:
                yield Null(
                    "masking", f"({condition.title}) over {of}", WHERE[split], (estimate(row, signed=True),)
                )
        still = [
            f"{MECHANISM[metric]} {estimate(row, signed=True)}"
            for metric, (kind, row) in moves(frame, condition, split).items()
            if kind <= 0
        ]
        if still:
            yield Null("still", condition.title, WHERE[split], (listed(still),))


def _elsewhere(study: Read) -> Iterator[Null]:
    for name, rows in series(study).items():
        if name not in ENVIRONMENTS.values():
            continue  # whose own page lists them
        for split in splits_of(rows):
            won, gain, parse = (
                ends(pick(rows, split=split, metric=metric))
                for metric in ("success_cot", "probe_gain", "parse_cot")
            )
            never = (pick(rows, split=split, metric="success_cot")["value"] == 0).all()
            lost = (estimate(won.last), int(won.last["n"])) if won and never else None
            no_gain = estimate(gain.last, signed=True) if gain is not None and side(gain.last) <= 0 else ""
            rare = estimate(parse.last) if parse is not None and parse.last["value"] < READABLE else ""
            if lost or no_gain or rare:
                yield Null("series", name, WHERE[split], (lost, no_gain, rare))
