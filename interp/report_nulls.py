"""What a report lists as looked for and not found: each with its number and interval, and only where the table says so."""

from __future__ import annotations

from collections.abc import Iterator

from interp.arm_rows import claimed, one
from interp.plots_environments import ENVIRONMENTS
from interp.plots_masking import MECHANISM
from interp.report_behaviour import READABLE, series
from interp.report_instruments import above, boundary, moves, steered
from interp.report_words import WHERE, Items, Read, ends, escaped, listed, side, told
from interp.style import LABELS, pick, splits_of

#: Effects of patching and shares of changed actions below which nothing is said to be moved.
SMALL = 0.05
#: Share of cells whose 95 % interval lies above 0 where there is nothing.
_BY_CHANCE = 0.025


def nulls(study: Read) -> list:
    """The list, with what it is; empty where nothing was looked for in vain."""
    found = [*_behaviour(study), *_probes(study), *_patching(study), *_traces(study), *_steering(study), *_masking(study), *_elsewhere(study)]
    lead = ("What was looked for and not found. An interval that covers 0, or two that overlap, are no proof that there is nothing: they say how large an effect "
            "could have been missed.")
    return [lead, Items([f"<b>{what}</b>: {text}." for what, text in found])] if found else []


def _behaviour(study: Read) -> Iterator[tuple[str, str]]:
    for split in study.splits("behaviour"):
        for metric, what in (("acc_cot", "gain of the CoT action"), ("acc_prompt", "gain of the prompt action")):
            of = study.ends("behaviour", metric=metric, split=split)
            if of is not None and of.moved in ("level", "down"):
                yield f"A {what}, {WHERE[split]}", f"{told(of.first)} at step {int(of.first['step'])}, {told(of.last)} at step {int(of.last['step'])}{', a fall' if of.moved == 'down' else ''}"
    for table, of_whom in (("online", ""), ("online_official", " of ALFWorld's own")):
        for split in study.splits(table):
            rows = study.rows(table, metric="success", mode="cot", split=split)
            if len(rows) and (of := ends(rows)).moved in ("level", "down"):
                won = "none won at any checkpoint" if (rows["value"] == 0).all() else f"a share of {told(of.first)} at the first checkpoint"
                yield f"More games{of_whom} won with the trace, {WHERE[split]}", f"{won}, {told(of.last)} at the last, of {int(of.last['n'])} games"
    for metric, what in (("parse_prompt", "prompt action"), ("parse_empty_think", "action behind an empty trace")):
        for split in study.splits("behaviour"):
            of = study.ends("behaviour", metric=metric, split=split)
            if of is not None and of.last["value"] < READABLE:
                yield f"A reading of the {what}, {WHERE[split]}", f"it parses on {told(of.last)} of the decisions at the last checkpoint, so what it would choose is not known"


def _probes(study: Read) -> Iterator[tuple[str, str]]:
    rows = study.rows("probes")
    for label in rows["label"].unique() if len(rows) else ():
        for split in study.splits("probes"):
            clear, cells = above(study, label=label, split=split)
            if cells and clear <= _BY_CHANCE * cells:
                of = study.ends("probes", label=label, split=split, layer=-1, reader="gain", metric="accuracy")
                last = f"; at the last checkpoint, the layer chosen inside the training folds, {told(of.last, signed=True)}" if of is not None else ""
                yield (f"A linear probe that reads the {escaped(LABELS.get(label, label))} better than the prompt's words do, {WHERE[split]}",
                       f"{clear or 'none'} of {cells} cells (layer, checkpoint) has a gain whose interval lies above 0{last}")
    for split in study.splits("mdl"):
        gains = study.rows("mdl", metric="bits", reader="gain", split=split)
        if len(gains) and not (gains["low"] > 0).any():
            of = ends(gains)
            yield f"Bits saved by the activations, {WHERE[split]}", f"none for sure at any checkpoint, {told(of.last, signed=True)} a decision at the last"


def _patching(study: Read) -> Iterator[tuple[str, str]]:
    top = boundary(study)
    if top is not None and abs(top["value"]) < SMALL:
        yield "An effect of the boundary token on the action", f"patching it gives back {told(top)} of the difference at most, at any layer, checkpoint and direction"
    for mode, what in (("prompt", "right behind the prompt"), ("cot", "behind the trace")):
        of = study.ends("patching", mode=mode, metric="attribution_pearson", direction="denoise")
        if of is not None and side(of.last) <= 0:
            yield f"First-order attribution as a stand-in for patching, {what}", f"its correlation with true effects is {told(of.last)} at the last checkpoint"
    for split in study.splits("reliance"):
        of = study.ends("reliance", metric="via_state", split=split)
        if of is not None and side(of.last) <= 0:
            yield f"What the trace's hidden state carries beside its words, {WHERE[split]}", f"{told(of.last)} nats at the last checkpoint"


def _traces(study: Read) -> Iterator[tuple[str, str]]:
    for definition, what in (("attention", "attention"), ("gradient_value", "gradient")):
        for split in study.splits("shares"):
            of = study.ends("shares", span="cot", version="sink_free", metric="ratio", definition=definition, split=split)
            if of is not None and of.moved == "level":
                yield f"A change of the trace's share of the action's {what}, {WHERE[split]}", f"{told(of.first)} times its share of the tokens at the first checkpoint, {told(of.last)} at the last"
    for split in study.splits("conflict"):
        of = study.ends("conflict", arm="other_state", metric="keep", split=split)
        if of is not None and of.last["high"] < 0.5:
            yield f"An agent that keeps to its prompt against another state's trace, {WHERE[split]}", f"it does on {told(of.last)} of the decisions at the last checkpoint"


def _steering(study: Read) -> Iterator[tuple[str, str]]:
    top = steered(study)
    if top is not None and top["value"] < SMALL:
        yield "Steering at the boundary", f"no direction, strength or checkpoint changes more than {told(top)} of the actions"


def _masking(study: Read) -> Iterator[tuple[str, str]]:
    frame = study.tables.get("masking")
    arm = claimed(frame) if frame is not None else None
    if arm is None:
        return
    for split in splits_of(frame):
        for contrast, of in (("difference", "k = 0"), ("control", "masking as many other tokens")):
            row = one(frame, metric="acc_cot", split=split, arm=arm.name, contrast=contrast)
            if row is not None and side(row) <= 0:
                yield f"A gain of masking actions ({arm.title}) over {of}, {WHERE[split]}", f"{told(row, signed=True)} in the CoT action's agreement with the expert"
        still = [f"{MECHANISM[metric]} {told(row, signed=True)}" for metric, (kind, row) in moves(frame, arm, split).items() if kind <= 0]
        if still:
            yield f"The predicted move of {arm.title} against k = 0, {WHERE[split]}", listed(still)


def _elsewhere(study: Read) -> Iterator[tuple[str, str]]:
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
                yield f"{name}, {WHERE[split]}", "; ".join(said)
