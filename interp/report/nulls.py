"""What a report lists as looked for and not found: each with its number and interval, and only where the table says so."""

from __future__ import annotations

from collections.abc import Iterator

from interp.results.arm_rows import claimed, one
from interp.plots.captions import side
from interp.plots.environments import ENVIRONMENTS
from interp.plots.masking import MECHANISM
from interp.report.behaviour import READABLE, series
from interp.report.instruments import above, boundary, steered
from interp.report.masking import moves
from interp.report.words import WHERE, Items, Read, ends, escaped, listed, told
from interp.results.names import LABELS
from interp.results.queries import pick, splits_of

#: Effects of patching and shares of changed actions below which nothing is said to be moved.
SMALL = 0.05
#: Share of cells whose 95 % interval lies above 0 where there is nothing.
_BY_CHANCE = 0.025


def nulls(study: Read) -> list:
    """The list, with what it is; empty where nothing was looked for in vain."""
    by: dict[str, list[str]] = {}
    for of in (_behaviour, _probes, _patching, _traces, _steering, _masking, _elsewhere):
        for what, split, text in of(study):
            by.setdefault(what, []).append(f"{WHERE[split]}, {text}" if split else text)
    lead = ("What was looked for and not found. An interval that covers 0 is no proof that there is nothing: it says how large an effect "
            "could have been missed.")
    return [lead, Items([f"<b>{what}</b>: {'; '.join(texts)}." for what, texts in by.items()])] if by else []


def _behaviour(study: Read) -> Iterator[tuple[str, str, str]]:
    for metric, what in (("acc_cot", "CoT action"), ("acc_prompt", "prompt action")):
        for split in study.splits("behaviour"):
            of = study.ends("behaviour", metric=metric, split=split)
            if of is not None and of.moved in ("level", "down"):
                fall = ", a fall" if of.moved == "down" else ""
                yield f"A gain of the {what}", split, f"{told(of.first)} at the first checkpoint, {told(of.last)} at the last{fall}"
    for table, of_whom in (("online", ""), ("online_official", " of ALFWorld's own")):
        for split in study.splits(table):
            rows = study.rows(table, metric="success", mode="cot", split=split)
            if len(rows) and (of := ends(rows)).moved in ("level", "down"):
                won = "none won at any checkpoint" if (rows["value"] == 0).all() else f"a share of {told(of.first)} at the first checkpoint"
                yield f"More games{of_whom} won with the trace", split, f"{won}, {told(of.last)} at the last, of {int(of.last['n'])} games"
    for metric, what in (("parse_prompt", "prompt action"), ("parse_empty_think", "action behind an empty trace")):
        for split in study.splits("behaviour"):
            of = study.ends("behaviour", metric=metric, split=split)
            if of is not None and of.last["value"] < READABLE:
                yield f"A reading of the {what}, which parses too rarely at the last checkpoint", split, f"on {told(of.last)} of the decisions"


def _probes(study: Read) -> Iterator[tuple[str, str, str]]:
    rows = study.rows("probes")
    for label in rows["label"].unique() if len(rows) else ():
        pair = label.removeprefix("pairwise ").replace(" / ", " and ")
        name = f"choice between {pair}" if label.startswith("pairwise ") else LABELS.get(label, label)
        for split in study.splits("probes"):
            clear, cells = above(study, label=label, split=split)
            if cells and clear <= _BY_CHANCE * cells:
                of = study.ends("probes", label=label, split=split, layer=-1, reader="gain", metric="accuracy")
                last = f", {told(of.last, signed=True)} at the last checkpoint" if of is not None else ""
                yield (f"A gain of the boundary probe over its controls, for the {escaped(name)}", split,
                       f"an interval above 0 in {clear or 'none'} of {cells} cells of layer and checkpoint{last}")
    for split in study.splits("mdl"):
        gains = study.rows("mdl", metric="bits", reader="gain", split=split)
        if len(gains) and not (gains["low"] > 0).any():
            last = told(ends(gains).last, signed=True)
            yield "Bits saved by the activations", split, f"none for sure at any checkpoint, {last} a decision at the last"


def _patching(study: Read) -> Iterator[tuple[str, str, str]]:
    top = boundary(study)
    if top is not None and abs(top["value"]) < SMALL:
        yield ("An effect of the boundary token on the action", "",
               f"patching it gives back {told(top)} of the difference at most, at any layer, checkpoint and direction")
    for mode, what in (("prompt", "right behind the prompt"), ("cot", "behind the trace")):
        of = study.ends("patching", mode=mode, metric="attribution_pearson", direction="denoise")
        if of is not None and side(of.last) <= 0:
            yield (f"First-order attribution as a stand-in for patching, {what}", "",
                   f"its correlation with true effects is {told(of.last)} at the last checkpoint")
    for split in study.splits("reliance"):
        of = study.ends("reliance", metric="via_state", split=split)
        if of is not None and side(of.last) <= 0:
            yield "What the trace's hidden state carries beside its words", split, f"{told(of.last)} nats at the last checkpoint"


def _traces(study: Read) -> Iterator[tuple[str, str, str]]:
    for definition, what in (("attention", "attention"), ("gradient_value", "gradient")):
        for split in study.splits("shares"):
            of = study.ends("shares", span="cot", version="sink_free", metric="ratio", definition=definition, split=split)
            if of is not None and of.moved == "level":
                yield (f"A change of the trace's share of the action's {what}", split,
                       f"{told(of.first)} times its share of the tokens at the first checkpoint, {told(of.last)} at the last")
    for split in study.splits("conflict"):
        of = study.ends("conflict", arm="other_state", metric="keep", split=split)
        if of is not None and side(of.last, 0.5) < 0:
            yield ("An agent that keeps to its prompt against another state's trace", split,
                   f"it does on {told(of.last)} of the decisions at the last checkpoint")


def _steering(study: Read) -> Iterator[tuple[str, str, str]]:
    top = steered(study)
    if top is not None and top["value"] < SMALL:
        yield "Steering at the boundary", "", f"no direction, strength or checkpoint changes more than {told(top)} of the actions"


def _masking(study: Read) -> Iterator[tuple[str, str, str]]:
    frame = study.tables.get("masking")
    arm = claimed(frame) if frame is not None else None
    if arm is None:
        return
    for split in splits_of(frame):
        for contrast, of in (("difference", "k = 0"), ("control", "masking as many other tokens")):
            row = one(frame, metric="acc_cot", split=split, arm=arm.name, contrast=contrast)
            if row is not None and side(row) <= 0:
                yield (f"A gain of masking actions ({arm.title}) over {of}", split,
                       f"{told(row, signed=True)} in the CoT action's agreement with the expert")
        still = [f"{MECHANISM[metric]} {told(row, signed=True)}" for metric, (kind, row) in moves(frame, arm, split).items() if kind <= 0]
        if still:
            yield f"What {arm.title} was predicted to move against k = 0", split, listed(still)


def _elsewhere(study: Read) -> Iterator[tuple[str, str, str]]:
    for name, rows in series(study).items():
        if name not in ENVIRONMENTS.values():
            continue  # whose own page lists them
        for split in splits_of(rows):
            said = []
            won = pick(rows, split=split, metric="success_cot")
            if len(won) and (won["value"] == 0).all():
                said.append(f"no game won at any checkpoint, {told(ends(won).last)} of {int(won['n'].max())} at the last")
            gain = ends(pick(rows, split=split, metric="probe_gain").dropna(subset="value"))
            if gain is not None and side(gain.last) <= 0:
                said.append(f"the boundary probe's gain is {told(gain.last, signed=True)} at the last checkpoint")
            parse = ends(pick(rows, split=split, metric="parse_cot"))
            if parse is not None and parse.last["value"] < READABLE:
                said.append(f"the CoT action parses on {told(parse.last)} of the decisions at the last checkpoint")
            if said:
                yield name, split, ", ".join(said)
