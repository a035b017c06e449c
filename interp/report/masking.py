"""What a report says of the masking study: the verdict on the claim, which predicted readings moved, the choice of k, and its power."""

from __future__ import annotations

import pandas as pd

from interp.results.arm_rows import PAPER, PREDICTED, Arm, at_last, claimed, named, number, one
from interp.plots.captions import side
from interp.plots.captions_masking import _claim, _range
from interp.plots.masking import MECHANISM
from interp.report.behaviour import READABLE
from interp.report.words import WHERE, Block, Cells, Read, escaped, listed, told
from interp.results.queries import pick, splits_of

#: Arms of other trainings that may stand beside the study's, and what was trained.
BESIDE = {"masking_smollm2": "Low-rank updates of SmolLM2-135M-Instruct", "reinforcement": "Reinforcement learning from two of these trainings"}
_KINDS = {1: "moved as predicted", -1: "moved the other way", 0: "not shown to move"}


def masked(study: Read) -> list[Block]:
    """Lead of the section."""
    frame, said = study.tables.get("masking"), []
    if frame is not None:
        said.append(
            "<b>The claim.</b> Leaving the action's tokens unsupervised in a share k of the training examples is reported to help out of "
            "domain. What would support and what would refute it was written down before the study was run: k = .3 must be better than "
            f"k = 0, and better than masking as many other tokens. {verdict(study)}")
        if frame["seeds"].max() == 1:
            said.append("Each arm was trained once: the intervals here hold for other games, not for other trainings, so this is an illustration.")
        if (arm := claimed(frame)) is not None:
            said += [text for split in splits_of(frame) if (text := _mechanism(frame, arm, split))]
    for _, row in study.rows("masking_selection", chosen=True).iterrows():
        why = "no other share is better by an interval above 0, corrected for their number" if row["share"] == 0 else (
            f"the smallest share from which the best is not told apart; its difference to k = 0 is {told(row, signed=True)}, corrected for the "
            "number of shares")
        said.append(f"<b>Choosing k.</b> On these decisions k = {number(row['share'])} is chosen: {why}.")
    said += [table] if (table := _side_by_side(study)) else []
    power = study.rows("masking_power")
    if len(power):
        said += [] if frame is not None else [
            "No trainings are compared here: there is no table of the study itself. What its analysis would find was simulated."]
        said.append(_power(power))
    return said


def verdict(study: Read) -> str:
    """Sentence on the claim; empty without the study's table."""
    return escaped(_claim(study.tables["masking"])) if "masking" in study.tables else ""


def moves(frame: pd.DataFrame, arm: Arm, split: str) -> dict[str, tuple[int, pd.Series]]:
    """The readings that are predicted to move with an arm: 1 where its difference to k = 0 did, -1 where the other way, else 0; and its row."""
    found = {}
    for metric in MECHANISM:
        row = one(frame, metric=metric, split=split, arm=arm.name, contrast="difference")
        if (metric, split) in PREDICTED and metric != "acc_cot" and row is not None:
            found[metric] = (side(row) * PREDICTED[metric, split], row)
    return found


def _mechanism(frame: pd.DataFrame, arm: Arm, split: str) -> str:
    """Which of the predicted readings moved, and how what is gained goes with k."""
    found = moves(frame, arm, split)
    if not found:
        return ""
    parts = []
    for kind, text in _KINDS.items():
        these = [f"{MECHANISM[metric]} {told(row, signed=True)}" for metric, (moved, row) in found.items() if moved == kind]
        parts.append(f"{text}: {listed(these) or 'none'}")
    right = [metric for metric, (moved, _) in found.items() if moved == 1]
    controls = {metric: row for metric in right if (row := one(frame, metric=metric, split=split, arm=arm.name, contrast="control")) is not None}
    if controls:
        further = [f"{MECHANISM[m]} {told(row, signed=True)}" for m, row in controls.items() if side(row) * PREDICTED[m, split] > 0]
        parts.append(f"of what moved as predicted, moved further than by masking as many other tokens: {listed(further) or 'none'}")
    text = f"<b>Where it lands, {WHERE[split]}.</b> {arm.title} less k = 0, at the last checkpoint; {'; '.join(parts)}."
    parse = at_last(frame, metric="parse_prompt", split=split, contrast="level").sort_values("value")
    if len(parse) and parse["value"].iloc[0] < READABLE:
        rarest = parse.iloc[0]
        text += (f" Without a trace the action parses on {told(rarest)} of the decisions where it is rarest ({named(rarest['arm']).title}): too rarely "
                 "for the prompt action's accuracy, or the gap, to say what the prompt alone predicts.")
    slope = one(frame, metric="acc_cot", split=split, contrast="slope")
    games = one(frame, metric="success_cot", split=split, contrast="difference", arm=arm.name)
    text += f" Per unit of k the CoT action's agreement changes by {told(slope, signed=True)}." if slope is not None else ""
    return text + (f" Games won with the trace: {told(games, signed=True)} to k = 0." if games is not None else "")


def _side_by_side(study: Read) -> Cells | None:
    """The claimed arm's difference to k = 0 in this study and in those of other trainings beside it; None where there are none."""
    other = {title: study.beside[name] for name, title in BESIDE.items() if name in study.beside}
    found = {f'<a href="{of.link}">{title}</a>': of.tables["masking"] for title, of in other.items() if "masking" in of.tables}
    here = {"this study": study.tables["masking"]} if "masking" in study.tables else {}
    lines, metrics = [], [metric for metric, *_ in PAPER if any((frame["metric"] == metric).any() for frame in found.values())]
    for title, frame in (here | found).items():
        arm = claimed(frame)
        for split in splits_of(frame) if arm is not None else ():
            rows = [one(frame, metric=metric, split=split, arm=arm.name, contrast="difference") for metric in metrics]
            seeds = {int(row["seeds"]) for row in rows if row is not None}
            if seeds:
                lines.append([title, arm.title, WHERE[split], str(max(seeds)), *("–" if row is None else told(row, signed=True) for row in rows)])
    if not lines or lines[-1][0] in here:
        return None
    text = ("The arm of the claim less k = 0 at the last checkpoint, in other trainings as well, with 95 % intervals over games and seeds. Of one seed "
            "they are over games alone and hold for no other training: an illustration. Dash: not measured.")
    return Cells(text, ["trainings", "arm", "split", "seeds", *(MECHANISM[metric] for metric in metrics)], lines)


def _power(rows: pd.DataFrame) -> str:
    """What the analysis finds of planted effects, and where there is none."""
    found = pick(rows, what="above", contrast="difference")
    null = found[found["world"].isna() | (found["world"] == "null")]  # the word is read from a CSV as no value
    planted, parts = pick(found, world="action"), []
    for effect, of in planted.groupby("effect"):
        parts.append(f"an effect of {number(effect)} in " + listed(f"{_range(each)} with {seeds} seeds" for seeds, each in of.groupby("seeds")))
    return (f"<b>What could be found.</b> In {int(rows['n'].min()):,} simulated studies of each kind the analysis finds {'; '.join(parts)}; where "
            f"there is none it finds one in {_range(null)}.")
