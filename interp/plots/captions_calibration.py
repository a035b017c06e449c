"""Caption of the calibration figure: how many readings are right, and which are not, by name."""

from __future__ import annotations

import pandas as pd

from interp.plots.captions import _paragraph
from interp.plots.calibration import AGENTS, INSTRUMENTS, NEAR, grown, verdicts

#: Exact checks: what they say, and how far from it the worst of the agents is.
EXACT = {
    "self_splice": "the own trace spliced back reproduces the action on {:.6g} of the decisions at worst",
    "self_patch": "patching a run with itself changes at most {:.1g} nats",
    "patch_everything": "patching everything is at most {:.1g} nats from the other run",
}


def calibration(frame: pd.DataFrame) -> str:
    """How many readings are where the construction puts them, the misreadings with their values, and the exact checks."""
    frame, failed = grown(frame)
    rows = frame[frame["agent"].isin(AGENTS) & frame["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    decided, wrong = rows[verdict != "open"], rows[verdict == "misread"]
    means = wrong.groupby(["instrument", "agent"], sort=False)[["value", "truth_low", "truth_high"]].mean()
    order = {name: i for i, name in enumerate(INSTRUMENTS)}
    named = [f"{INSTRUMENTS[i]} on {AGENTS[a]} ({r['value']:.2f} against {allowed(r)})"
             for (i, a), r in sorted(means.iterrows(), key=lambda item: order[item[0][0]])]
    lead = "What each instrument reads (points) on agents trained so that the answer is known (grey)."
    text = f"{len(decided) - len(wrong)} of {len(decided)} readings whose answer the construction decides lie within {NEAR:g} of it."
    seeds = rows["seed"].nunique()
    size = f"At most {seeds} training seed{'s' if seeds > 1 else ''} of each agent, {int(rows['n'].min())} to {int(rows['n'].max())} decisions or pairs an instrument."
    lines = [text, f"Misread: {'; '.join(named)}." if named else "", size]
    lines += [f"Left out: {AGENTS[row.agent]}, seed {row.seed}, has not learned its construction (it answers {row.value:.2f} "
              f"[{row.low:.2f}, {row.high:.2f}] of its decisions as built)." for row in failed.itertuples()]
    return _paragraph(lead, [*filter(None, lines), *_exact(frame)])


def allowed(row) -> str:
    """What the construction allows, in words: one number, or a range."""
    low, high = f"{row['truth_low']:.2f}", f"{row['truth_high']:.2f}"
    return low if low == high else f"{low} to {high}"


def _exact(frame: pd.DataFrame) -> list[str]:
    rows = frame[frame["instrument"].isin(EXACT)]
    if rows.empty:
        return []
    by = rows.groupby("instrument")["value"]
    worst = {name: by.min()[name] if name == "self_splice" else by.max()[name] for name in EXACT if name in by.groups}
    return [f"Exact checks on these agents and every checkpoint of the series: {'; '.join(EXACT[name].format(value) for name, value in worst.items())}."]
