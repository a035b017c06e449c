"""What a report says of the instruments: how far they can be trusted, what the prompt predicts, what the action depends on, and masking."""

from __future__ import annotations

import pandas as pd

from interp.arm_rows import PREDICTED, at_last, claimed, number, one
from interp.captions_masking import _claim, _range
from interp.captions_traces import widest
from interp.plots_calibration import AGENTS, INSTRUMENTS, NEAR, grown, verdicts
from interp.plots_masking import MECHANISM
from interp.plots_patching import PLACES
from interp.report_words import WHERE, Read, by_split, escaped, grouped, listed, side, steps, told
from interp.style import CONTROLS, LABELS, STYLE, label_of, pick, splits_of


def trusted(study: Read) -> list[str]:
    """Lead on the calibration: which instruments are right on every agent, which are not, and what is decodable but not used."""
    rows = study.rows("calibration")
    if rows.empty:
        return []
    rows, failed = grown(study.tables["calibration"])
    rows = rows[rows["agent"].isin(AGENTS) & rows["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    right, wrong = (rows[verdict == kind].groupby("instrument").size() for kind in ("right", "misread"))
    good = [name for key, name in INSTRUMENTS.items() if right.get(key, 0) and not wrong.get(key, 0)]
    bad = [f"{name} ({wrong[key]} of {wrong[key] + right.get(key, 0)} readings wrong)" for key, name in INSTRUMENTS.items() if wrong.get(key, 0)]
    said = ["Before an instrument says something of an agent, it has to be right where the answer is known. So tiny agents were trained whose answer is known "
            "because they are built that way: their action is settled by the prompt alone, or picked in the trace, or a known mixture of both, and every "
            f"instrument reads them. Of {right.sum() + wrong.sum()} readings that the construction decides, {right.sum()} lie within {NEAR:g} of it."]
    said += [f"<b>Right on every agent</b> where the construction decides: {listed(good)}."] if good else []
    said += [f"<b>Wrong on some</b>: {listed(bad)}. Where these are shown below they describe, and are no measure."] if bad else []
    found = {i: rows[(rows["instrument"] == i) & (rows["agent"] == "post_hoc")]["value"].mean() for i in ("auroc", "boundary_patch", "steering")}
    if found["auroc"] > 0.9 and abs(found["boundary_patch"]) < NEAR:
        said.append(f"<b>Decodable is not used.</b> The agent whose prompt decides gives its action away at the boundary (AUROC {found['auroc']:.2f}), and patching "
                    f"that very place gives {found['boundary_patch']:z.2f} of the difference back: its action is read from earlier tokens. A probe says what is there, a patch what is used.")
    said += [f"Left out, because training did not make them what they were built to be: {listed(f'{AGENTS[r.agent]}, seed {r.seed}' for r in failed.itertuples())}."] if len(failed) else []
    return said


def predicted(study: Read) -> list[str]:
    """Lead on probes: the gain over controls, codelengths, transfer."""
    rows, said = study.rows("probes", metric="accuracy"), []
    if len(rows):
        label = label_of(rows)
        if text := by_split(f"its gain over the best control that reads no activation ({listed(_CONTROLS)})", study, "probes",
                            label=label, metric="accuracy", layer=-1, reader="gain"):
            accuracy = by_split("the probe's accuracy", study, "probes", label=label, metric="accuracy", layer=-1, reader="probe")
            said.append(f"<b>Probes</b> {steps(rows)}. A linear probe reads the {escaped(LABELS.get(label, label))} at the prompt boundary, before any word of the trace. "
                        f"{accuracy} {text} {_above(study)} {_text_and_random(study, label)}")
    if text := _bits(study):
        said.append(text)
    drops = study.rows("transfer", reader="drop")
    drops = drops[drops["train_step"] != drops["test_step"]] if len(drops) else drops
    if len(drops):
        parts = [f"{WHERE[split]} in {int((of['low'] > 0).sum())} of {len(of)} pairs of checkpoints" for split in splits_of(drops) for of in [pick(drops, split=split)]]
        said.append(f"<b>From one checkpoint to another.</b> A probe of one checkpoint loses accuracy at another one, by an interval above 0, {listed(parts)}.")
    return said


def above(study: Read, **where) -> tuple[int, int]:
    """How many of the probes' cells (layer, checkpoint) have a gain whose interval lies above 0, and of how many."""
    cells = study.rows("probes", reader="gain", metric="accuracy", **where)
    cells = cells[cells["layer"] >= 0] if len(cells) else cells
    return int((cells["low"] > 0).sum()), len(cells)


def _above(study: Read) -> str:
    label = label_of(study.tables["probes"])
    parts = [f"{WHERE[split]} {clear} of {cells}" for split in study.splits("probes") for clear, cells in [above(study, label=label, split=split)] if cells]
    return f"Cells (layer, checkpoint) whose gain has an interval above 0: {listed(parts)}." if parts else ""


def _text_and_random(study: Read, label: str) -> str:
    """What the best control and the untrained network reach at the last checkpoint, in the first split."""
    rows = study.rows("probes", label=label, metric="accuracy")
    rows = pick(rows, split=splits_of(rows)[0])
    last = pick(rows, step=rows["step"].max())
    controls = last[last["reader"].isin(CONTROLS)].drop_duplicates("reader")
    parts = [f"{STYLE[best['reader']][0]} reaches {told(best)}" for best in [controls.loc[controls["value"].idxmax()]]] if len(controls) else []
    random = pick(last, reader="random_model", layer=-1)
    parts += [f"the same probe of an untrained network of this shape {told(random.iloc[0])}"] if len(random) else []
    return f"At the last checkpoint, {WHERE[rows['split'].iloc[0]]}, {' and '.join(parts)}." if parts else ""


def _bits(study: Read) -> str:
    rows = study.rows("mdl", metric="bits", reader="gain")
    if rows.empty:
        return ""
    rows = pick(rows, label=label_of(rows))
    words, parts = {1: "the activations save bits", -1: "the activations cost more bits than the shorter of the other two", 0: "the activations neither save nor cost bits for sure"}, {}
    for split in splits_of(rows):
        last = rows[(rows["split"] == split) & (rows["step"] == rows["step"].max())].iloc[0]
        parts[split] = words[side(last)], f"saved: {told(last, signed=True)} a decision"
    return f"<b>Codelength.</b> The actions to come are sent with the boundary's activations, or with the prompt's words or class frequencies; at the last checkpoint {grouped(parts)}."


def depends(study: Read) -> list[str]:
    """Lead on patching, reliance, conflicting traces, early answering, shares and steering."""
    said = [_patching(study), _reliance(study), _conflict(study), _removal(study), _early(study), _shares(study), _steering(study)]
    return [text for text in said if text]


def boundary(study: Read) -> pd.Series | None:
    """The largest effect, up or down, of patching the boundary alone, over layers, checkpoints, modes and directions."""
    rows = study.rows("patching")
    if rows.empty:
        return None
    rows = rows[(rows["at"] == "boundary") & (rows["metric"] == "difference")] if {"at", "metric"} <= set(rows) else rows
    return rows.loc[rows["value"].abs().idxmax()] if len(rows) else None


def _patching(study: Read) -> str:
    top = boundary(study)
    if top is None:
        return ""
    said = [f"<b>Patching</b> {steps(study.rows('patching'))}: states of a run on a twin prompt, in which two names are swapped, are copied into the run on the prompt itself. "
            f"At the boundary alone the largest effect at any layer and checkpoint is {told(top)} of the difference between the two actions "
            f"(layer {int(top['layer'])}, step {int(top['step'])})."]
    rows = study.rows("patching", mode="prompt", metric="difference", direction="denoise")
    rows = rows[rows["at"].isin(("task", "history", "observation"))] if "at" in rows else rows[:0]
    tops = [at.loc[at["value"].idxmax()] for step in sorted({rows["step"].min(), rows["step"].max()}) for at in [pick(rows, step=step)]] if len(rows) else []
    parts = [f"the {PLACES[top['at']][0]} at step {int(top['step'])} ({told(top)}, layer {int(top['layer'])})" for top in tops]
    said += [f"Of whole spans, read right behind the prompt, the one that gives most back is {listed(parts)}."] if parts else []
    return " ".join(said)


def _reliance(study: Read) -> str:
    rows = study.rows("reliance", metric="prompt_reliance")
    if rows.empty:
        return ""
    said = [f"<b>Prompt reliance</b> {steps(rows)}, the share of the prompt's effect that goes to the action directly and not through the trace:",
            by_split("prompt reliance", study, "reliance", metric="prompt_reliance")]
    ways, parts = {-1: "more of it goes through the trace", 1: "more of it goes around the trace", 0: "neither way is the larger for sure"}, {}
    for split in study.splits("reliance"):
        last = {m: study.ends("reliance", metric=m, split=split) for m in ("prompt_reliance", "via_cot", "via_text", "via_state")}
        if None not in last.values():
            through, text, state = (told(last[m].last) for m in ("via_cot", "via_text", "via_state"))
            parts[split] = ways[side(last["prompt_reliance"].last, 0.5)], f"of {through} nats through it its text alone carries {text} and its hidden state alone {state}"
    said += [f"At the last checkpoint {grouped(parts)}."] if parts else []
    return " ".join(said)


def followed(study: Read) -> str:
    """Sentences on how often the agent follows another state's trace, over checkpoints and in words at the last."""
    words = {1: "it follows such a trace more often than not", -1: "it does not follow such a trace more often than not", 0: "it follows such a trace about half of the time"}
    found = {split: of.last for split in study.splits("conflict") if (of := study.ends("conflict", arm="other_state", metric="follow", split=split)) is not None}
    said = by_split("the share of decisions on which it takes that trace's action", study, "conflict", arm="other_state", metric="follow")
    in_words = {words[side(row, 0.5)] for row in found.values()}
    return f"{said} At the last checkpoint {in_words.pop()}." if len(in_words) == 1 else said


def _conflict(study: Read) -> str:
    rows = study.rows("conflict", arm="other_state")
    if rows.empty:
        return ""
    said = [f"<b>Conflicting traces</b> {steps(rows)}: behind its own prompt the agent is given the trace of another state, which argues for another action.",
            followed(study), by_split("the share on which it keeps its own", study, "conflict", arm="other_state", metric="keep")]
    splice = study.rows("conflict", arm="self_splice", metric="keep")["value"]
    if len(splice):
        said.append("Its own trace put back reproduces its action on every decision, as it must." if (splice == 1).all() else
                    f"CHECK FAILED: its own trace put back reproduces its action on {splice.min():.3f} of the decisions at worst, so these readings are not to be trusted.")
    return " ".join(said)


def _removal(study: Read) -> str:
    words, parts = {1: "a wrong trace changes the action more often than none does", -1: "no trace changes the action more often than a wrong one does",
                    0: "the two are not told apart"}, {}
    for split in study.splits("conflict"):
        last = {m: study.ends("conflict", arm="filler", split=split, metric=f"flip_{m}_parsed") for m in ("removed", "substituted", "difference")}
        if None not in last.values():
            parts[split] = words[side(last["difference"].last)], f"{told(last['removed'].last)} of the decisions behind full stops, {told(last['substituted'].last)} behind another state's trace"
    return f"<b>Removed or replaced.</b> The own trace is taken away (full stops of its length) or replaced by another state's; at the last checkpoint, where both actions parse, {grouped(parts)}." if parts else ""


def _early(study: Read) -> str:
    rows = study.rows("early")
    if rows.empty:
        return ""
    said = [f"<b>Early answering</b> {steps(rows)}: the trace is cut short.", by_split("the share of decisions with the same action without any of it", study, "early", metric="same_0"),
            by_split("the share after half of it", study, "early", metric="same_50"),
            by_split("the area over the curve (0: the trace is not needed, 1: all of it is)", study, "early", metric="area_action")]
    return " ".join(text for text in said if text)


def _shares(study: Read) -> str:
    where = dict(span="cot", version="sink_free", metric="ratio")
    rows = study.rows("shares", **where)
    if rows.empty:
        return ""
    said = [by_split(f"the trace's share of the {word} over its share of the tokens", study, "shares", definition=definition, **where)
            for definition, word in (("attention", "action's attention"), ("gradient_value", "action's gradient"))]
    return f"<b>Shares</b> {steps(rows)}, which describe and do not measure reliance: {' '.join(text for text in said if text)}"


def _steering(study: Read) -> str:
    rows, said = study.rows("steering"), []
    if rows.empty:
        return ""
    if (top := steered(study)) is not None:
        said.append(f"At the boundary the largest share of actions that any direction, strength and checkpoint changes is {told(top)}.")
    cot = pick(rows, position="cot", step=rows["step"].max())
    alpha = widest(cot)
    found = {(d, m): pick(cot, direction=d, metric=m, alpha=alpha) for d in ("probe", "orthogonal", "unembedding") for m in ("flip", "to_target")}
    found = {key: of.iloc[0] for key, of in found.items() if len(of)}
    if {("probe", "flip"), ("orthogonal", "flip")} <= set(found):
        probe, random = found["probe", "flip"], found["orthogonal", "flip"]
        verdict = "more than" if probe["low"] > random["high"] else "fewer than" if probe["high"] < random["low"] else "not told apart from"
        said.append(f"During the trace, at the last checkpoint and alpha {alpha:g}, the probe's direction changes {told(probe)} of the actions, {verdict} random directions, which change {told(random)}.")
        targets = [f"{name} {told(found[d, 'to_target'])}" for d, name in (("probe", "the probe's direction"), ("unembedding", "the unembedding row"), ("orthogonal", "random directions"))
                   if (d, "to_target") in found]
        said.append(f"Changes to the action that is aimed at: {listed(targets)}." if targets else "")
    return f"<b>Steering</b> {steps(rows)}: {' '.join(text for text in said if text)}"


def steered(study: Read) -> pd.Series | None:
    """The largest share of actions that steering at the boundary changes, over directions, strengths and checkpoints."""
    rows = study.rows("steering", position="boundary", metric="flip")
    return rows.loc[rows["value"].idxmax()] if len(rows) else None


def masked(study: Read) -> list[str]:
    """Lead on masking: the verdict on the claim, which predicted readings moved, the choice of k, and what the study could have found."""
    frame, said = study.tables.get("masking"), []
    if frame is not None:
        arm = claimed(frame)
        said.append(f"<b>The claim.</b> Leaving the action's tokens unsupervised in a share k of the training examples is reported to help out of domain. What would support and what "
                    f"would refute it was written down before the study was run: k = .3 must be better than k = 0, and better than masking as many other tokens. {escaped(_claim(frame))}")
        if arm is not None:
            said += [text for split in splits_of(frame) if (text := _mechanism(frame, arm, split))]
    rows = study.rows("masking_selection")
    if len(rows):
        row = rows[rows["chosen"].astype(bool)].iloc[0]
        why = "no other share is better by an interval above 0, corrected for their number" if row["share"] == 0 else (
            f"its difference to k = 0 is {told(row, signed=True)}, corrected for the number of shares, and no better one is told apart from it")
        said.append(f"<b>Choosing k.</b> On these decisions k = {number(row['share'])} is chosen: {why}.")
    power = study.rows("masking_power")
    if len(power):
        said += [] if frame is not None else ["No trainings are compared here: there is no table of the study itself. What its analysis would find was simulated."]
        found, null = pick(power, what="above", contrast="difference"), power[power["world"].isna() | (power["world"] == "null")]
        parts = [f"an effect of {number(effect)} in " + listed(f"{_range(pick(found, world='action', effect=effect, seeds=seeds))} with {seeds} seeds" for seeds in sorted(found["seeds"].unique()))
                 for effect in sorted(pick(found, world="action")["effect"].unique())]
        said.append(f"<b>What could be found.</b> In {int(power['n'].min()):,} simulated studies of each kind the analysis finds {'; '.join(parts)}; "
                    f"where there is none it finds one in {_range(pick(null, what='above', contrast='difference'))}.")
    return said


def moves(frame: pd.DataFrame, arm, split: str) -> dict[str, tuple[int, pd.Series]]:
    """Of each reading that is predicted to move: 1 where the claimed arm's difference to k = 0 moved there, -1 where to the other side, else 0; and its row."""
    found = {}
    for metric in MECHANISM:
        row = one(frame, metric=metric, split=split, arm=arm.name, contrast="difference")
        if (metric, split) in PREDICTED and metric != "acc_cot" and row is not None:
            found[metric] = (side(row) * PREDICTED[metric, split], row)
    return found


def _mechanism(frame: pd.DataFrame, arm, split: str) -> str:
    """How many of the predicted readings moved, each with its difference to k = 0."""
    found = moves(frame, arm, split)
    if not found:
        return ""
    kinds = {1: "moved as predicted", -1: "moved the other way", 0: "not shown to move"}
    parts = [f"{text}: {listed(f'{MECHANISM[m]} {told(row, signed=True)}' for m, (kind, row) in found.items() if kind == which) or 'none'}" for which, text in kinds.items()]
    slope = one(frame, metric="acc_cot", split=split, contrast="slope")
    more = f" Per unit of k the CoT action's agreement changes by {told(slope, signed=True)}." if slope is not None else ""
    levels = at_last(frame, metric="success_cot", split=split, contrast="difference", arm=arm.name)
    more += f" Games won with the trace: {told(levels.iloc[0], signed=True)} to k = 0." if len(levels) else ""
    return f"<b>Where it lands, {WHERE[split]}.</b> {arm.title} less k = 0, at the last checkpoint; {'; '.join(parts)}.{more}"


_CONTROLS = ("the commonest action", "the previous one", "the prompt's words", "its length")
