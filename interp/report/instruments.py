"""What a report says of the instruments: how far they can be trusted, what the prompt predicts, and what the action depends on."""

from __future__ import annotations

import pandas as pd

from interp.plots.captions import side
from interp.plots.captions_traces import widest
from interp.plots.calibration import AGENTS, INSTRUMENTS, NEAR, grown, verdicts
from interp.plots.patching import PLACES
from interp.report.words import WHERE, Read, by_split, escaped, grouped, listed, paragraph, steps, told
from interp.results.names import CONTROLS, LABELS, STYLE
from interp.results.queries import label_of, pick, splits_of, with_places

_CONTROLS = ("the commonest action", "the previous one", "the prompt's words", "its length")
#: What an interval says: above, below, or across what it is compared with.
_BITS = {1: "the activations save bits", -1: "the activations cost more bits than the shorter of the other two",
         0: "the activations neither save nor cost bits for sure"}
_WAYS = {1: "more of it goes around the trace", -1: "more of it goes through the trace", 0: "neither way is the larger for sure"}
_FOLLOWED = {1: "it follows such a trace more often than not", -1: "it does not follow such a trace more often than not",
             0: "it follows such a trace about half of the time"}
_REMOVED = {1: "a wrong trace changes the action more often than none does", -1: "no trace changes the action more often than a wrong one does",
            0: "the two are not told apart"}
_DIRECTIONS = {"probe": "the probe's direction", "unembedding": "the unembedding row", "orthogonal": "random directions"}


def trusted(study: Read) -> list[str]:
    """Lead on the calibration: which instruments are right on every agent, which are not, and what is decodable but not used."""
    rows = study.rows("calibration")
    if rows.empty:
        return []
    rows, failed = grown(study.tables["calibration"])
    rows = rows[rows["agent"].isin(AGENTS) & rows["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    right, wrong = (rows[verdict == kind].groupby("instrument").size().to_dict() for kind in ("right", "misread"))
    good = [name for key, name in INSTRUMENTS.items() if key in right and key not in wrong]
    bad = [f"{name} ({wrong[key]} of {wrong[key] + right.get(key, 0)} readings wrong)" for key, name in INSTRUMENTS.items() if key in wrong]
    said = ["Before an instrument says something of an agent, it has to be right where the answer is known. So tiny agents were trained whose "
            "answer is known because they are built that way: their action is settled by the prompt alone, or picked in the trace, or a known "
            f"mixture of both, and every instrument reads them. Of {sum(right.values()) + sum(wrong.values())} readings that the construction "
            f"decides, {sum(right.values())} lie within {NEAR:g} of it."]
    said += [f"<b>Right on every agent</b> where the construction decides: {listed(good)}."] if good else []
    said += [f"<b>Wrong on some</b>: {listed(bad)}. Where these are shown below they describe, and are no measure."] if bad else []
    of = pick(rows, agent="post_hoc").groupby("instrument")["value"].mean()
    if of.get("auroc", 0) > 0.9 and abs(of.get("boundary_patch", 1)) < NEAR:
        said.append(
            f"<b>Decodable is not used.</b> The agent whose prompt decides gives its action away at the boundary (AUROC {of['auroc']:.2f}), and "
            f"patching that very place gives {of['boundary_patch']:z.2f} of the difference back: its action is read from earlier tokens. A probe "
            "says what is there, a patch what is used.")
    if len(failed):
        names = listed(f"{AGENTS[row.agent]}, seed {escaped(row.seed)}" for row in failed.itertuples())
        said.append(f"Left out, because training did not make them what they were built to be: {names}.")
    return said


def predicted(study: Read) -> list[str]:
    """Lead on probes: the gain over controls, codelengths, transfer."""
    return [text for text in (_probes(study), _bits(study), _transfer(study)) if text]


def _probes(study: Read) -> str:
    rows = study.rows("probes", metric="accuracy")
    if rows.empty:
        return ""
    label = label_of(rows)
    of = dict(label=label, metric="accuracy", layer=-1)
    cells = [f"{WHERE[split]} {clear} of {count}" for split in splits_of(rows) for clear, count in [above(study, label=label, split=split)] if count]
    return paragraph(
        f"<b>Probes</b> {steps(rows)}. A linear probe reads the {escaped(LABELS.get(label, label))} at the prompt boundary, before any word of the "
        "trace.",
        by_split("the probe's accuracy", study, "probes", reader="probe", **of),
        by_split(f"its gain over the best control that reads no activation ({listed(_CONTROLS)})", study, "probes", reader="gain", **of),
        f"Cells (layer, checkpoint) whose gain has an interval above 0: {listed(cells)}." if cells else "",
        _text_and_random(pick(rows, label=label)))


def above(study: Read, **where) -> tuple[int, int]:
    """How many of the probes' cells (layer, checkpoint) have a gain whose interval lies above 0, and of how many."""
    cells = study.rows("probes", reader="gain", metric="accuracy", **where)
    cells = cells[cells["layer"] >= 0] if len(cells) else cells
    return int((cells["low"] > 0).sum()), len(cells)


def _text_and_random(rows: pd.DataFrame) -> str:
    """What the best control and the untrained network reach at the last checkpoint, in the first split."""
    split = splits_of(rows)[0]
    last = pick(rows, split=split, step=rows["step"].max())
    controls, random = last[last["reader"].isin(CONTROLS)].drop_duplicates("reader"), pick(last, reader="random_model", layer=-1)
    best = controls.loc[controls["value"].idxmax()] if len(controls) else None
    parts = [f"{STYLE[best['reader']][0]} reaches {told(best)}"] if best is not None else []
    parts += [f"the same probe of an untrained network of this shape {told(random.iloc[0])}"] if len(random) else []
    return f"At the last checkpoint, {WHERE[split]}, {listed(parts)}." if parts else ""


def _bits(study: Read) -> str:
    rows = study.rows("mdl", metric="bits", reader="gain")
    if rows.empty:
        return ""
    rows, parts = pick(rows, label=label_of(rows)), {}
    for split in splits_of(rows):
        last = pick(rows, split=split, step=rows["step"].max()).iloc[0]
        parts[split] = _BITS[side(last)], f"saved: {told(last, signed=True)} a decision"
    return ("<b>Codelength.</b> The actions to come are sent with the boundary's activations, or with the prompt's words or class frequencies; at "
            f"the last checkpoint {grouped(parts)}.")


def _transfer(study: Read) -> str:
    rows = study.rows("transfer", reader="drop")
    rows = rows[rows["train_step"] != rows["test_step"]] if len(rows) else rows
    parts = []
    for split in splits_of(rows):
        of = pick(rows, split=split)
        parts.append(f"{WHERE[split]} in {int((of['low'] > 0).sum())} of {len(of)} pairs of checkpoints")
    return ("<b>From one checkpoint to another.</b> A probe of one checkpoint loses accuracy at another one, by an interval above 0, "
            f"{listed(parts)}.") if parts else ""


def depends(study: Read) -> list[str]:
    """Lead on patching, reliance, conflicting traces, early answering, shares and steering."""
    return [text for of in (_patching, _reliance, _conflict, _removal, _early, _shares, _steering) if (text := of(study))]


def boundary(study: Read) -> pd.Series | None:
    """The largest effect, up or down, of patching the boundary alone, over layers, checkpoints, modes and directions."""
    rows = pick(with_places(study.rows("patching")), at="boundary", metric="difference")
    return rows.loc[rows["value"].abs().idxmax()] if len(rows) else None


def _patching(study: Read) -> str:
    top = boundary(study)
    if top is None:
        return ""
    rows, tops = study.rows("patching", mode="prompt", metric="difference", direction="denoise"), []
    spans = rows[rows["at"].isin(("task", "history", "observation"))] if "at" in rows else rows[:0]
    for step in sorted({spans["step"].min(), spans["step"].max()}) if len(spans) else ():
        of = pick(spans, step=step)
        best = of.loc[of["value"].idxmax()]
        tops.append(f"the {PLACES[best['at']][0]} at step {int(step)} ({told(best)}, layer {int(best['layer'])})")
    return paragraph(
        f"<b>Patching</b> {steps(study.rows('patching'))}. States of a run on a twin prompt, in which two names are swapped, are copied into the run "
        f"on the prompt itself. At the boundary alone the largest effect at any layer and checkpoint is {told(top)} of the difference between the "
        f"two actions (layer {int(top['layer'])}, step {int(top['step'])}).",
        f"Of whole spans, read right behind the prompt, the one that gives most back is {listed(tops)}." if tops else "")


def _reliance(study: Read) -> str:
    rows, parts = study.rows("reliance", metric="prompt_reliance"), {}
    if rows.empty:
        return ""
    for split in splits_of(rows):
        last = {m: study.ends("reliance", metric=m, split=split) for m in ("prompt_reliance", "via_cot", "via_text", "via_state")}
        if None not in last.values():
            through, text, state = (told(last[m].last) for m in ("via_cot", "via_text", "via_state"))
            parts[split] = (_WAYS[side(last["prompt_reliance"].last, 0.5)],
                            f"of {through} nats through it its text alone carries {text} and its hidden state alone {state}")
    return paragraph(
        f"<b>Prompt reliance</b> {steps(rows)}, the share of the prompt's effect that goes to the action directly and not through the trace.",
        by_split("prompt reliance", study, "reliance", metric="prompt_reliance"), f"At the last checkpoint {grouped(parts)}." if parts else "")


def followed(study: Read) -> str:
    """Sentences on how often the agent follows another state's trace, over checkpoints and in words at the last."""
    where = dict(arm="other_state", metric="follow")
    found = [of.last for split in study.splits("conflict") if (of := study.ends("conflict", split=split, **where))]
    said = {_FOLLOWED[side(row, 0.5)] for row in found}
    return paragraph(by_split("the share of decisions on which it takes that trace's action", study, "conflict", **where),
                     f"At the last checkpoint {said.pop()}." if len(said) == 1 else "")


def _conflict(study: Read) -> str:
    rows, splice = study.rows("conflict", arm="other_state"), study.rows("conflict", arm="self_splice", metric="keep")["value"]
    if rows.empty:
        return ""
    check = "Its own trace put back reproduces its action on every decision, as it must." if (splice == 1).all() else (
        f"CHECK FAILED: its own trace put back reproduces its action on {splice.min():.3f} of the decisions at worst, so these readings are not to "
        "be trusted.")
    return paragraph(
        f"<b>Conflicting traces</b> {steps(rows)}. Behind its own prompt the agent is given the trace of another state, which argues for another "
        "action.",
        followed(study), by_split("the share on which it keeps its own", study, "conflict", arm="other_state", metric="keep"),
        check if len(splice) else "")


def _removal(study: Read) -> str:
    parts = {}
    for split in study.splits("conflict"):
        last = {m: study.ends("conflict", arm="filler", split=split, metric=f"flip_{m}_parsed") for m in ("removed", "substituted", "difference")}
        if None not in last.values():
            removed, replaced = (told(last[m].last) for m in ("removed", "substituted"))
            parts[split] = (_REMOVED[side(last["difference"].last)],
                            f"{removed} of the decisions behind full stops, {replaced} behind another state's trace")
    return ("<b>Removed or replaced.</b> The own trace is taken away (full stops of its length) or replaced by another state's; at the last "
            f"checkpoint, where both actions parse, {grouped(parts)}.") if parts else ""


def _early(study: Read) -> str:
    rows = study.rows("early")
    words = {"same_0": "the share of decisions with the same action without any of it", "same_50": "the share after half of it",
             "area_action": "the area over the curve (0: the trace is not needed, 1: all of it is)"}
    return paragraph(f"<b>Early answering</b> {steps(rows)}. The trace is cut short.",
                     *(by_split(word, study, "early", metric=metric) for metric, word in words.items())) if len(rows) else ""


def _shares(study: Read) -> str:
    where = dict(span="cot", version="sink_free", metric="ratio")
    rows, words = study.rows("shares", **where), {"attention": "action's attention", "gradient_value": "action's gradient"}
    return paragraph(f"<b>Shares</b> {steps(rows)}, which describe and do not measure reliance.", *(
        by_split(f"the trace's share of the {word} over its share of the tokens", study, "shares", definition=definition, **where)
        for definition, word in words.items())) if len(rows) else ""


def _steering(study: Read) -> str:
    rows, said = study.rows("steering"), []
    if rows.empty:
        return ""
    if (top := steered(study)) is not None:
        said.append(f"At the boundary the largest share of actions that any direction, strength and checkpoint changes is {told(top)}.")
    cot = pick(rows, position="cot", step=rows["step"].max())
    at = pick(cot, alpha=widest(cot))
    found = {(direction, metric): of.iloc[0] for direction in _DIRECTIONS for metric in ("flip", "to_target")
             if len(of := pick(at, direction=direction, metric=metric))}
    if ("probe", "flip") in found and ("orthogonal", "flip") in found:
        probe, random = found["probe", "flip"], found["orthogonal", "flip"]
        verdict = "more than" if probe["low"] > random["high"] else "fewer than" if probe["high"] < random["low"] else "not told apart from"
        said.append(f"During the trace, at the last checkpoint and alpha {probe['alpha']:g}, the probe's direction changes {told(probe)} of the "
                    f"actions, {verdict} random directions, which change {told(random)}.")
    targets = [f"{name} {told(found[direction, 'to_target'])}" for direction, name in _DIRECTIONS.items() if (direction, "to_target") in found]
    said.append(f"Changes to the action that is aimed at, during the trace: {listed(targets)}." if targets else "")
    return paragraph(f"<b>Steering</b> {steps(rows)}.", *said)


def steered(study: Read) -> pd.Series | None:
    """The largest share of actions that steering at the boundary changes, over directions, strengths and checkpoints."""
    rows = study.rows("steering", position="boundary", metric="flip")
    return rows.loc[rows["value"].idxmax()] if len(rows) else None
