"""The table of the four claims, read for figures, reports and LaTeX: its lines, and what they are called.

>>> frame, _ = read_table("runs/quick/tables", "claims")
>>> for line in lines(frame):
...     print(line.title, of_line(frame, line, "in_domain")["verdict"].tolist())
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from interp.results.names import INSERTED_TRACES
from interp.results.queries import pick
from interp.results.tables import ESTIMATE_COLUMNS
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED
from interp.stats.crossed import CLAIM, verdict
from interp.stats.intervals import Estimate
from interp.system.limits import SMALLEST

#: Columns of the table.
COLUMNS = (
    "step",
    "split",
    "claim",
    "statistic",
    "readout",
    "subset",
    "margin",
    "verdict",
    "before",
    "after",
    "low_90",
    "high_90",
    *ESTIMATE_COLUMNS,
)
#: The claims, as reported.
CLAIMS = {
    "a": "Training improves the prompt action.",
    "b": "The advantage of the trace does not widen.",
    "c": "Later checkpoints rely more on the prompt.",
    "d": "Masked action supervision generalises better.",
}
VERDICTS = (SUPPORTED, CONTRADICTED, OPEN)
#: The prompt action by free decoding where the traces of earlier turns are left out.
FREE_NO_TRACES = "free_no_history_traces"
#: Readouts of both actions, the primary one first, and what else is read: their names.
READOUTS = {
    "choice_sum": "forced choice",
    "choice_mean": "forced choice, per token",
    "free": "free decoding",
    FREE_NO_TRACES: "free decoding, no traces in the history",
    "elicited": "elicited, free decoding",
    "elicited_choice": "elicited, forced choice",
    "games": "whole games",
    "admissible": "admissibility",
}
_READOUTS = {**INSERTED_TRACES, **READOUTS, "own_traces": "own traces"}
STATISTICS = {
    "gain_prompt": "prompt action",
    "gain_cot": "CoT action",
    "gap": "gap (CoT − prompt)",
    "headroom_gap": "headroom gap",
    "revision_own": "own trace revises the action",
    "revision_conflict": "conflicting trace revises the action",
    "follow": "conflicting trace is followed",
    "prompt_reliance": "prompt reliance",
    "direct": "direct effect, nats",
    "via_cot": "via-CoT effect, nats",
    "indirect": "indirect effect, nats",
    "kappa": "agreement of both actions (κ)",
    "area_action": "own trace is needed (early answering)",
}
#: The same in two words, the second of conflicting traces being their kind; or of a readout.
SHORT = {
    "revision_own": ("revised:", "own trace"),
    "revision_conflict": ("revised:", ""),
    "prompt_reliance": ("prompt", "reliance"),
    "own_traces": ("reliance,", "own traces"),
    "kappa": ("agree-", "ment κ"),
    "area_action": ("early", "answers"),
}
#: Readouts that read pairs.
OF_PAIRS = ("pairs", "own_traces")
#: Fewer decisions or games, and fewer pairs, than these are said to be few.
FEW, FEW_PAIRS = 100, 20


class Line(NamedTuple):
    """A statistic by one readout."""

    claim: str
    statistic: str
    readout: str

    @property
    def title(self) -> str:
        """What it is called."""
        name = STATISTICS[self.statistic]
        readout = _READOUTS.get(self.readout, "")
        return f"{name}, {readout}" if readout else name

    @property
    def short(self) -> tuple[str, str]:
        """Two words for one that claim (c) rests on, above one another."""
        first, second = SHORT.get(self.readout) or SHORT[self.statistic]
        return first, second or INSERTED_TRACES.get(self.readout, self.readout)

    @property
    def unit(self) -> str:
        """What is counted."""
        return {"games": "games", **dict.fromkeys(OF_PAIRS, "pairs")}.get(self.readout, "decisions")


#: What claims (a) to (c) are read off, each statistic with its readouts; of conflicting traces every kind.
_SHOWN = (
    ("a", "gain_prompt", ("choice_sum", "free", "elicited_choice", "elicited", "games")),
    ("b", "gap", ("choice_sum", "free", "games")),
    ("b", "headroom_gap", ("choice_sum", "free")),
    ("c", "revision_own", ("free",)),
    ("c", "revision_conflict", ()),
    ("c", "prompt_reliance", ("pairs", "own_traces")),
    ("c", "kappa", ("free",)),
    ("c", "area_action", ("cut",)),
)


def lines(frame: pd.DataFrame) -> list[Line]:
    """The lines that claims (a) to (c) are read off, of those that the table has."""
    there = set(zip(frame["statistic"], frame["readout"], strict=True))
    found = []
    for claim, statistic, readouts in _SHOWN:
        kinds = readouts or tuple(pick(frame, statistic=statistic)["readout"].unique())
        found += [Line(claim, statistic, kind) for kind in kinds if (statistic, kind) in there]
    return found


def of_line(frame: pd.DataFrame, line: Line, split: str, subset: str = "all") -> pd.DataFrame:
    """A line's rows in a split, a row for each checkpoint."""
    rows = pick(frame, split=split, statistic=line.statistic, readout=line.readout, subset=subset)
    return rows.sort_values("step", kind="stable")


def few(row: pd.Series) -> bool:
    """Whether a row is read off few decisions, games or pairs."""
    return bool(row["n"] < (FEW_PAIRS if row["readout"] in OF_PAIRS else FEW))


def ranges(steps: Sequence[int], every: Sequence[int]) -> str:
    """Some of the checkpoints in words: `25 to 350`, `60, 150`, or `all`; every: all of them, in order."""
    if list(steps) == list(every):
        return "all" if len(every) > 1 else str(every[0])
    runs: list[list[int]] = []
    for step in steps:
        if runs and every.index(step) == every.index(runs[-1][-1]) + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(words)


def masked(frame: pd.DataFrame, margin: float = SMALLEST) -> Iterator[dict]:
    """Rows of claim (d): the masked condition's differences to none and to the random mask, by checkpoint.

    Args:
        frame: table `masking`. Checkpoints that lack one of both have no rows.
        margin: a gain that would matter.
    """
    names = dict(difference="masked_minus_none", control="masked_minus_random")
    for step, rows in pick(frame, **CLAIM).groupby("step"):
        by_contrast = {name: pick(rows, contrast=name) for name in names}
        if not all(len(row) == 1 for row in by_contrast.values()):
            continue
        numbers = {name: dict(row[list(ESTIMATE_COLUMNS)].iloc[0]) for name, row in by_contrast.items()}
        difference, control = (Estimate(**each) for each in numbers.values())
        judged = verdict(difference, control, margin)
        for name, statistic in names.items():
            where = dict(step=step, split=CLAIM["split"], claim="d", statistic=statistic, readout="free")
            yield where | dict(subset="all", margin=margin, verdict=judged) | numbers[name]
