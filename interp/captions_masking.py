"""Captions of the masking study's figures: what was found, with intervals, seeds and games, and nulls said as such."""

from __future__ import annotations

import html

import pandas as pd

from interp.arm_rows import LOOKS, PREDICTED, Arm, arms_of, at_last, claimed, named, number, one
from interp.captions import _estimate, _join
from interp.plots_masking import MECHANISM
from interp.style import SPLITS, pick, splits_of

_K = "k is the share of examples whose action tokens are left unsupervised"
_CONTROLS = ("a random mask leaves as many tokens of the trace unsupervised instead, in the same examples", "an arm with one part only supervises that part")


def success(frame: pd.DataFrame) -> str:
    """The verdict on the claim, and the primary outcome of every arm and its differences to k = 0."""
    arm = claimed(frame)
    kinds = {each.kind for each in arms_of(frame)}
    lead = (f"Share of recorded decisions in which the CoT action agrees with the expert{', and of games won (bottom)' if _has(frame, 'success_cot') else ''}, "
            f"by arm of training: {_join([_K, *(text for kind, text in zip(('random_mask', 'only'), _CONTROLS) if kind in kinds)], '; ')}. "
            "Dots: single trainings; dotted line: k = 0.")
    lines = [_claim(frame)]
    for name, rows in _by_split(frame):
        for metric, word in (("acc_cot", "CoT action right"), ("success_cot", "games won with CoT")):
            if _has(rows, metric):
                lines.append(f"{name}, {word}: {_levels(rows, metric)}. {_against(rows, metric, arm)} {_size(rows, metric)}")
    return _paragraph(lead, lines, frame)


def dose(frame: pd.DataFrame) -> str:
    """Slopes of both modes' accuracy in k, and the share that was chosen."""
    lead = f"Accuracy of both modes against k: {_K}. Hollow: the random mask of an equal share, drawn beside its k."
    lines = []
    for name, rows in _by_split(frame):
        told = [f"{word} {_found(one(rows, metric=metric, contrast='slope'))}" for metric, word in (("acc_cot", "CoT action"), ("acc_prompt", "prompt action"))
                if one(rows, metric=metric, contrast="slope") is not None]
        lines.append(f"{name}, slope per unit of k (from no action masked to all): {_join(told) or 'not to be told from these arms'}. {_size(rows, 'acc_cot')}")
    if frame.attrs.get("selection"):
        lines.append(f"Chosen on these games: {frame.attrs['selection']}.")
    return _paragraph(lead, lines, frame)


def gap(frame: pd.DataFrame) -> str:
    """The gap of every arm, and its differences to k = 0."""
    lead = f"The gap between CoT and prompt action, by arm (top), and each arm's difference to k = 0, paired over games and seeds (bottom); {_K}."
    lines = []
    for name, rows in _by_split(frame):
        slope = one(rows, metric="gap", contrast="slope")
        told = f" Slope per unit of k: {_found(slope)}." if slope is not None else ""
        lines.append(f"{name}: {_levels(rows, 'gap')}. {_against(rows, 'gap', claimed(frame))}{told} {_size(rows, 'gap')}")
    return _paragraph(lead, lines, frame)


def reliance(frame: pd.DataFrame) -> str:
    """Prompt reliance of every arm at the last checkpoint, from the base's, and its differences to k = 0."""
    lead = f"Prompt reliance over checkpoints, every arm beside k = 0 (black); bands: each arm's own interval, which pairing narrows in the differences told here. {_K[0].upper()}{_K[1:]}."
    lines = []
    for name, rows in _by_split(frame):
        rows = pick(rows, metric="prompt_reliance")
        if rows.empty:
            continue
        first, last = int(rows["step"].min()), int(rows["step"].max())
        base = one(rows[rows["step"] == first], contrast="level")
        start = f"from {_estimate(base)} at step {first} " if first != last and base is not None else ""
        lines.append(f"{name}, {start}to step {last}: {_levels(rows, 'prompt_reliance')}. {_against(rows, 'prompt_reliance', claimed(frame))} "
                     f"{_size(rows, 'prompt_reliance')}")
    return _paragraph(lead, lines, frame)


def mechanism(frame: pd.DataFrame) -> str:
    """Which predicted readings moved as predicted, against k = 0 and against the random mask, and what else moved."""
    arm = claimed(frame)
    lead = (f"Where a gain of {arm.title} landed: its differences to k = 0 and to its random mask in every reading, at the last checkpoint. "
            "Shaded: the side predicted before the study. ")
    lead += ("Were the gain moved past the prompt's own way to the action, the prompt action would be right less often, prompt reliance would fall, and "
             "another state's trace would be followed more often; and more so than under the random mask.")
    lines = []
    for name, rows in _by_split(frame):
        split, rows = rows["split"].iloc[0], pick(rows, arm=arm.name)
        told = [_moved(rows, metric, PREDICTED.get((metric, split))) for metric in MECHANISM]
        size = _size(rows[rows["metric"].isin(MECHANISM)], None)
        lines.append(f"{name}: {_join(told, '; ')}. {size}")
    return _paragraph(lead, lines, frame)


def power(frame: pd.DataFrame) -> str:
    """How often planted effects are found and nulls mistaken, as ranges over the sizes simulated."""
    frame = frame.assign(world=frame["world"].fillna("null"))
    studies, seeds = int(frame["n"].min()), sorted(frame["seeds"].unique())
    lead = (f"What the analysis finds in simulated studies ({studies:,} of each kind). Top: shares in which the interval of k = .3 less k = 0 lies above 0, "
            "and in which the claim is supported, for planted differences in success. Bottom: shares of wrong finds where nothing was planted (null) and "
            "where the random mask helps as much (any mask); dotted line: 2.5 %, what an interval of 95 % allows on one side. "
            "Seed SD: between trainings of an arm, in log-odds.")
    lines = []
    for number_of in seeds:
        rows = pick(frame, seeds=number_of)
        told = [f"an effect of {number(effect)} is found in {_range(pick(rows, world='action', effect=effect, contrast='difference', what='above'))} "
                f"and supports the claim in {_range(pick(rows, world='action', effect=effect, contrast='verdict', what='supported'))}"
                for effect in sorted(frame.loc[frame["world"] == "action", "effect"].unique())]
        null = pick(rows, world="null", contrast="difference")
        told.append(f"without one, k = .3 lies above k = 0 in {_range(pick(null, what='above'))} and below it in {_range(pick(null, what='below'))}")
        told.append(f"where any mask helps the claim is supported in {_range(pick(rows, world='any_mask', contrast='verdict', what='supported'))}")
        told.append(f"intervals over games alone would find the null above 0 in {_range(pick(rows, world='null', contrast='games_only', what='above'))}")
        lines.append(f"{number_of} seeds: {_join(told, '; ')}.")
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines, "Shares range over games and seed SDs. Whiskers: 95 % intervals (Wilson)."])


def selection(frame: pd.DataFrame) -> str:
    """Which share is chosen, and every share's difference."""
    row = frame[frame["chosen"].astype(bool)].iloc[0]
    others = frame[frame["share"] > 0].sort_values("share")
    told = _join([f"{named(r['arm']).title} {_estimate(r, signed=True)} ({int(r['seeds'])} seeds)" for _, r in others.iterrows()])
    reason = "no share is better with an interval above 0" if row["share"] == 0 else "the smallest share above 0 from which the best is not told apart"
    lines = [f"{SPLITS[row['split']]}: {told}. Chosen: k = {number(row['share'])}, {reason}. n = {int(others['n_groups'].iloc[0])} games.",
             "Whiskers: 95 % intervals over games and seeds, simultaneous for all shares. The greatest of several differences is too large on average: "
             "measure it again on other games."]
    lead = "Choosing k: each share's difference to k = 0 in how often the CoT action is right."
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines])


def table(frame: pd.DataFrame) -> str:
    """What the table's numbers are, and where its LaTeX is."""
    splits = splits_of(frame)
    lead = (f"Arms of training at the last checkpoint, and differences of {claimed(frame).title} in the last rows. " if claimed(frame) else
            "Arms of training at the last checkpoint. ") + f"Columns with one split are {SPLITS[splits[-1]].lower()}; follows trace: another state's."
    return _paragraph(lead, [], frame) + ' <a href="masking_table.tex">LaTeX</a> (booktabs).'


def _claim(frame) -> str:
    """Sentence on the verdict: the two contrasts that it rests on."""
    verdict = str(frame.attrs.get("verdict") or "none: its provenance has no verdict")
    if verdict.startswith("none"):
        return f"The claim that masking actions helps out of domain is not judged{verdict.removeprefix('none')}."
    rests = [one(frame, metric="acc_cot", split="out_of_domain", arm="action_mask_0.3", contrast=contrast) for contrast in ("difference", "control")]
    told = [f"less {of} {_found(row)}, {int(row['seeds'])} seeds" for of, row in zip(("k = 0", "the random mask"), rests) if row is not None]
    means = {"supported": "both lie above 0", "refuted": "one lies below .05, an amount that would matter", "open": "they neither both lie above 0 nor does one lie below .05"}
    return f"The claim that masking actions (k = .3) helps out of domain is {verdict}: {_join(told, '; ')}; {means.get(verdict, verdict)}."


def _levels(rows, metric) -> str:
    """Every arm's level at the last checkpoint with its seeds."""
    found = at_last(rows, metric=metric, contrast="level").set_index("arm")
    return _join([f"{arm.title} {_estimate(found.loc[arm.name])} ({_seeds(found.loc[arm.name])})" for arm in arms_of(rows) if arm.name in found.index])


def _against(rows, metric, arm: Arm | None) -> str:
    """Which arms differ from k = 0, and how the claimed arm differs from its control."""
    found = at_last(rows, metric=metric, contrast="difference").dropna(subset=["low", "high"])
    if found.empty:
        return "Nothing to compare with k = 0."
    apart = found[(found["low"] > 0) | (found["high"] < 0)]
    order = sorted(apart.iterrows(), key=lambda pair: (list(LOOKS).index(named(pair[1]["arm"]).kind), named(pair[1]["arm"]).share))
    told = [f"{named(row['arm']).title} {_estimate(row, signed=True)}" for _, row in order]
    text = f"Less k = 0, intervals that exclude 0: {_join(told)}" if told else f"No arm is told apart from k = 0 ({len(found)} compared)"
    row = found[found["arm"] == arm.name].iloc[0] if arm and (found["arm"] == arm.name).any() else None
    if row is not None and not (apart["arm"] == arm.name).any():
        text += f"; {arm.title} {_found(row)}"
    control = one(rows, metric=metric, contrast="control", arm=arm.name) if arm else None
    return text + (f"; {arm.title} less its random mask {_found(control)}." if control is not None else ".")


def _moved(rows, metric, side) -> str:
    """One reading's differences, and where a side was predicted whether it moved there."""
    found = [one(rows, metric=metric, contrast=contrast) for contrast in ("difference", "control")]
    told = _join([f"{_estimate(row, signed=True)} to {of}" for of, row in zip(("k = 0", "the random mask"), found) if row is not None])
    if not told:
        return ""
    if side is None:
        return f"{MECHANISM[metric]} {told}"
    there = [None if row is None or pd.isna(row["low"]) else side * row["value"] > 0 and (row["low"] > 0 or row["high"] < 0) for row in found]
    wrong = [row is not None and side * row["value"] < 0 and (row["low"] > 0 or row["high"] < 0) for row in found]
    if wrong[0]:
        said = "moved to the other side"
    elif there == [True, True]:
        said = "as predicted, and more than the random mask"
    elif there[0] and there[1] is None:
        said = "as predicted against k = 0; no random mask to compare"
    elif there[0]:
        said = "as predicted against k = 0, but not told apart from the random mask" if not wrong[1] else "as predicted against k = 0, but less than the random mask"
    else:
        said = "not shown to move" if there[0] is not None else "no interval against k = 0"
    return f"{MECHANISM[metric]} {told} ({said})"


def _found(row) -> str:
    """A difference or slope with its interval, and that it covers 0 where it does."""
    return _estimate(row, signed=True) + (" (covers 0)" if row["low"] <= 0 <= row["high"] else "")


def _has(frame, metric) -> bool:
    return bool(len(pick(frame, metric=metric, contrast="level")))


def _by_split(frame):
    """(name, rows) of each split, which keep what the frame's provenance says."""
    return [(SPLITS[split], pick(frame, split=split)) for split in splits_of(frame)]


def _seeds(row) -> str:
    return f"{int(row['seeds'])} seed{'' if row['seeds'] == 1 else 's'}"


def _size(rows, metric) -> str:
    """`n = 62 games`, as a range where metrics differ."""
    rows = rows[rows["contrast"] != "training"]
    games = (rows if metric is None else at_last(rows, metric=metric))["n_groups"]
    return f"n = {int(games.min())} games." if games.min() == games.max() else f"n = {int(games.min())} to {int(games.max())} games."


def _range(rows) -> str:
    """Shares of studies in %, lowest to highest."""
    low, high = (f"{100 * value:.0f}" if value >= 0.095 else f"{100 * value:.1f}" for value in (rows["value"].min(), rows["value"].max()))
    return f"{low} to {high} %" if low != high else f"{low} %"


def _paragraph(lead, lines, frame) -> str:
    alone = (pick(frame, contrast="level")["seeds"] == 1).any()
    last = "Intervals: 95 %, over games and seeds, not corrected for their number." + " Of one seed they are over games alone and say nothing of other seeds." * bool(alone)
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines, last])
