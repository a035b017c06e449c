"""Captions of the masking study's figures: what was found, with intervals, seeds and games, and nulls said as such."""

from __future__ import annotations

import html

import pandas as pd

from interp.results.arm_rows import PREDICTED, Arm, arms_of, at_last, claimed, named, number, one
from interp.stats.crossed import CLAIM, SMALLEST
from interp.plots.captions import _estimate, _join, side
from interp.plots.masking import MECHANISM
from interp.results.names import SPLITS
from interp.results.queries import pick, splits_of

_SHARE = "share of examples whose action tokens are left unsupervised"
_K = f"k is the {_SHARE}"
_CONTROLS = ("a random mask leaves as many tokens of the trace unsupervised instead, in the same examples",
             "an arm with one part only supervises that part")


def success(frame: pd.DataFrame) -> str:
    """The verdict on the claim, and the primary outcome of every arm and its differences to k = 0."""
    arm = claimed(frame)
    kinds = {each.kind for each in arms_of(frame)}
    told = [text for kind, text in zip(("random_mask", "only"), _CONTROLS) if kind in kinds]
    lead = ("Share of recorded decisions in which the CoT action agrees with the expert, by arm of training (top): "
            f"{_join([_K, *told], '; ')}. ")
    if _has(frame, "acc_cot", "difference"):
        lead += ("Below, differences to k = 0 and to the random mask, paired over games and seeds; "
                 f"dashed: {number(SMALLEST)}, the least that would matter. ")
    lead += "Bottom: share of games won. " if _has(frame, "success_cot") else ""
    lead += "Dots: single trainings; dotted line: k = 0; arrows: off the axis."
    lines = [_claim(frame)]
    for name, rows in _by_split(frame):
        for metric, word in (("acc_cot", "CoT action right"), ("success_cot", "games won with CoT")):
            if _has(rows, metric):
                lines.append(f"{name}, {word}: {_levels(rows, metric, arm)}. {_against(rows, metric, arm)} {_size(rows, metric)}")
    return _paragraph(lead, lines, frame)


def dose(frame: pd.DataFrame) -> str:
    """Slopes of both modes' accuracy in k, and the share that was chosen."""
    lead = f"Accuracy of both modes against k, the {_SHARE}. Hollow: the random mask of an equal share, drawn beside its k."
    lines = []
    words = (("acc_cot", "CoT action"), ("acc_prompt", "prompt action"))
    for name, rows in _by_split(frame):
        found = [(word, one(rows, metric=metric, contrast="slope")) for metric, word in words]
        told = _join([f"{word} {_found(row)}" for word, row in found if row is not None]) or "not to be told from these arms"
        lines.append(f"{name}, slope per unit of k (from no action masked to all): {told}. {_size(rows, 'acc_cot')}")
    if frame.attrs.get("selection"):
        lines.append(f"On these games {frame.attrs['selection'].replace('acc_cot', 'CoT accuracy')}.")
    return _paragraph(lead, lines, frame)


def gap(frame: pd.DataFrame) -> str:
    """The gap of every arm, and its differences to k = 0."""
    lead = ("The gap between CoT and prompt action, by arm (top), and its difference to k = 0 and to the random mask, paired over games "
            f"and seeds (bottom); {_K}; arrows: off the axis.")
    arm, lines = claimed(frame), []
    for name, rows in _by_split(frame):
        slope = one(rows, metric="gap", contrast="slope")
        told = f" Slope per unit of k: {_found(slope)}." if slope is not None else ""
        lines.append(f"{name}: {_levels(rows, 'gap', arm)}. {_against(rows, 'gap', arm)}{told} {_size(rows, 'gap')}")
    return _paragraph(lead, lines, frame)


def reliance(frame: pd.DataFrame) -> str:
    """Prompt reliance of every arm at the last checkpoint, from the base's, and its differences to k = 0."""
    lead = (f"Prompt reliance over checkpoints, every arm beside k = 0 (black); {_K}. Bands: the interval of each arm by itself; "
            "the differences told here are paired over games and seeds.")
    arm, lines = claimed(frame), []
    for name, rows in _by_split(frame):
        rows = pick(rows, metric="prompt_reliance")
        if rows.empty:
            continue
        first, last = int(rows["step"].min()), int(rows["step"].max())
        base = one(rows[rows["step"] == first], contrast="level")
        start = f"from {_estimate(base)} at step {first} " if first == 0 < last and base is not None else ""
        lines.append(f"{name}, {start}to step {last}: {_levels(rows, 'prompt_reliance', arm)}. {_against(rows, 'prompt_reliance', arm)} "
                     f"{_size(rows, 'prompt_reliance')}")
    return _paragraph(lead, lines, frame)


def mechanism(frame: pd.DataFrame) -> str:
    """Which predicted readings moved as predicted, against k = 0 and against the random mask, and what else moved."""
    arm = claimed(frame)
    lead = (f"Where a gain of {arm.title} landed: its differences to k = 0 and to its random mask in every reading, last checkpoint. "
            "Shaded: the side predicted before the study. Did action supervision teach a way from the prompt to the action past the trace, "
            "then without it the prompt action would be right less often, prompt reliance would be less, and another state's trace would "
            "be followed more often; and more so than under the random mask.")
    lines = []
    for name, rows in _by_split(frame):
        split, rows = rows["split"].iloc[0], pick(rows, arm=arm.name)
        predicted = [metric for metric in MECHANISM if (metric, split) in PREDICTED]
        told = [_moved(rows, metric, PREDICTED[metric, split]) for metric in predicted]
        others = {metric: one(rows, metric=metric, contrast="difference") for metric in MECHANISM if metric not in predicted}
        others = {metric: row for metric, row in others.items() if row is not None}
        apart = [metric for metric, row in others.items() if row["low"] > 0 or row["high"] < 0]
        same = [MECHANISM[metric] for metric in others if metric not in apart]
        text = f"{name}, predicted: {_join(told, '; ') or 'nothing that was measured'}."
        text += f" Moved beside these: {_join([_differences(rows, metric) for metric in apart], '; ')}." if apart else ""
        text += f" Not told apart from k = 0: {_join(same)}." if same else ""
        lines.append(f"{text} {_size(rows[rows['metric'].isin(MECHANISM)], None)}")
    last = frame[(frame["arm"] == arm.name) & frame["contrast"].isin(["difference", "control"]) & frame["metric"].isin(MECHANISM)]
    if (last[["low", "high"]].abs() > 1).any(axis=None):
        lines.append("Intervals beyond 1 leave the axis; the table has their ends.")
    return _paragraph(lead, lines, frame)


def power(frame: pd.DataFrame) -> str:
    """How often planted effects are found and nulls mistaken, as ranges over the sizes simulated."""
    frame = frame.assign(world=frame["world"].fillna("null"))
    studies, seeds = int(frame["n"].min()), sorted(frame["seeds"].unique())
    lead = (f"What the analysis finds in simulated studies ({studies:,} of each kind). Top: shares in which the interval of k = .3 less "
            "k = 0 lies above 0, and in which the claim is supported, for planted differences in success. Bottom: shares of wrong finds "
            "where nothing was planted (null) and where the random mask helps as much (any mask); dotted line: 2.5 %, what an interval of "
            "95 % allows on one side. "
            "Seed SD: between trainings of an arm, in log-odds.")
    lines = []
    for number_of in seeds:
        rows = pick(frame, seeds=number_of)

        def share(**where):
            return _range(pick(rows, **where))

        null = dict(world="null", contrast="difference")
        told = [f"an effect of {number(effect)} is found in {share(world='action', effect=effect, contrast='difference', what='above')} "
                f"and supports the claim in {share(world='action', effect=effect, contrast='verdict', what='supported')}"
                for effect in sorted(frame.loc[frame["world"] == "action", "effect"].unique())]
        told += [f"without one, k = .3 lies above k = 0 in {share(**null, what='above')} and below it in {share(**null, what='below')}",
                 f"where any mask helps the claim is supported in {share(world='any_mask', contrast='verdict', what='supported')}",
                 f"intervals over games alone would find the null above 0 in {share(world='null', contrast='games_only', what='above')}"]
        lines.append(f"{number_of} seeds: {_join(told, '; ')}.")
    lines.append("Shares range over games and seed SDs. Whiskers: 95 % intervals (Wilson).")
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines])


def selection(frame: pd.DataFrame) -> str:
    """Which share is chosen, and every share's difference."""
    row = frame[frame["chosen"].astype(bool)].iloc[0]
    others = frame[frame["share"] > 0].sort_values("share")
    told = _join([f"{named(r['arm']).title} {_estimate(r, signed=True)} ({int(r['seeds'])} seeds)" for _, r in others.iterrows()])
    reason = "no share is better with an interval above 0"
    if row["share"]:
        reason = "the smallest of those better with an interval above 0 from which the best is not told apart"
    lines = [f"{SPLITS[row['split']]}: {told}. Chosen: k = {number(row['share'])}, {reason}. n = {int(others['n_groups'].iloc[0])} games.",
             "Whiskers: 95 % intervals over games and seeds, simultaneous for all shares. The greatest of several differences is too large "
             "on average: measure it again on other games."]
    lead = "Choosing k: each share's difference to k = 0 in how often the CoT action is right."
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines])


def table(frame: pd.DataFrame) -> str:
    """What the table's numbers are, and where its LaTeX is."""
    arm, split = claimed(frame), SPLITS[splits_of(frame)[-1]].lower()
    less = f", and differences of {arm.title} in the last rows, paired over games and seeds" if arm else ""
    lead = f"Arms of training at the last checkpoint{less}. Gap, reliance and follows trace (another state's) are {split}."
    return _paragraph(lead, [], frame) + ' <a href="masking_table.tex">LaTeX</a> (booktabs).'


def _claim(frame) -> str:
    """Sentence on the verdict: the two contrasts that it rests on."""
    verdict = str(frame.attrs.get("verdict") or "none: its provenance has no verdict")
    if verdict.startswith("none"):
        return f"The claim that masking actions helps out of domain is not judged{verdict.removeprefix('none')}."
    rests = [one(frame, **CLAIM, contrast=contrast) for contrast in ("difference", "control")]
    pairs = zip(("k = 0", "the random mask"), rests)
    told = [f"less {of}: {_found(row)}, {int(row['seeds'])} seeds" for of, row in pairs if row is not None]
    below = [row is not None and row["high"] < SMALLEST for row in rests]
    least = f"wholly below {number(SMALLEST)}, the least that would matter"
    means = {"supported": "both lie above 0", "refuted": f"not both lie above 0, and {'both lie' if all(below) else 'one lies'} {least}",
             "open": f"neither do both lie above 0, nor does one lie {least}"}
    return f"The claim that masking actions (k = .3) helps out of domain is {verdict}: {_join(told, '; ')}; {means.get(verdict, verdict)}."


def _levels(rows, metric, arm: Arm | None) -> str:
    """Levels at the last checkpoint, of k = 0, the claimed arm and the controls; the table has them all."""
    found = at_last(rows, metric=metric, contrast="level").set_index("arm")
    shown = [each for each in arms_of(rows) if each.name in found.index and (each.kind != "action_mask" or each == arm)]
    return _join([f"{each.title}: {_estimate(found.loc[each.name])}" for each in shown])


def _against(rows, metric, arm: Arm | None) -> str:
    """Which arms differ from k = 0, and how the claimed arm differs from its control."""
    found = at_last(rows, metric=metric, contrast="difference").dropna(subset=["low", "high"])
    if found.empty:
        return "Nothing to compare with k = 0."
    apart = found[(found["low"] > 0) | (found["high"] < 0)].set_index("arm")
    told = [f"{each.title}: {_estimate(apart.loc[each.name], signed=True)}" for each in arms_of(rows) if each.name in apart.index]
    text = f"Less k = 0, intervals that exclude 0: {_join(told)}" if told else f"No arm is told apart from k = 0 ({len(found)} compared)"
    mine = {contrast: one(rows, metric=metric, contrast=contrast, arm=arm.name) if arm else None for contrast in ("difference", "control")}
    if mine["difference"] is not None and arm.name not in apart.index:
        text += f"; {arm.title} less k = 0: {_found(mine['difference'])}"
    return text + (f"; {arm.title} less its random mask: {_found(mine['control'])}." if mine["control"] is not None else ".")


def _differences(rows, metric) -> str:
    """One reading's differences: `gap +0.07 [..] to k = 0, +0.05 [..] to the random mask`; empty where there are none."""
    found = [one(rows, metric=metric, contrast=contrast) for contrast in ("difference", "control")]
    told = [f"{_estimate(row, signed=True)} to {of}" for of, row in zip(("k = 0", "the random mask"), found) if row is not None]
    return f"{MECHANISM[metric]} {_join(told)}" if told else ""


def _moved(rows, metric, predicted) -> str:
    """One reading's differences, and whether they lie on the side that was predicted."""
    if not (told := _differences(rows, metric)):
        return ""
    found = [one(rows, metric=metric, contrast=contrast) for contrast in ("difference", "control")]
    zero, control = (None if row is None or pd.isna(row["low"]) else predicted * side(row) for row in found)
    if zero is None:
        return told
    if zero > 0:
        against = {None: "", 1: ", and more than the random mask", 0: ", but not told apart from the random mask",
                   -1: ", but less than the random mask"}
        return f"{told} (as predicted{against[control]})"
    return f"{told} ({'not shown to move' if zero == 0 else 'moved to the other side'})"


def _found(row) -> str:
    """A difference or slope with its interval, and that it covers 0 where it does."""
    return _estimate(row, signed=True) + (" (covers 0)" if row["low"] <= 0 <= row["high"] else "")


def _has(frame, metric, contrast="level") -> bool:
    return bool(len(pick(frame, metric=metric, contrast=contrast)))


def _by_split(frame):
    """(name, rows) of each split, which keep what the frame's provenance says."""
    return [(SPLITS[split], pick(frame, split=split)) for split in splits_of(frame)]


def _size(rows, metric) -> str:
    """`n = 62 games, 3 to 5 seeds.`, of levels and differences."""
    rows = rows[rows["contrast"].isin(["level", "difference", "control"])]
    rows = rows if metric is None else at_last(rows, metric=metric)
    return f"n = {_span(rows['n_groups'])} games, {_span(rows['seeds'])} seed{'' if rows['seeds'].max() == 1 else 's'}."


def _span(values) -> str:
    return f"{int(values.min())}" if values.min() == values.max() else f"{int(values.min())} to {int(values.max())}"


def _range(rows) -> str:
    """Shares of studies in %, lowest to highest."""
    ends = rows["value"].min(), rows["value"].max()
    low, high = (f"{100 * value:.{0 if 0.095 <= value < 0.985 or value == 1 else 1}f}" for value in ends)
    return f"{low} to {high} %" if low != high else f"{low} %"


def _paragraph(lead, lines, frame) -> str:
    alone = (pick(frame, contrast="level")["seeds"] == 1).any()
    last = ["Intervals: 95 %, over games and seeds, not corrected for their number."]
    last += ["Of one seed they are over games alone and say nothing of other seeds."] * bool(alone)
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines, " ".join(last)])
