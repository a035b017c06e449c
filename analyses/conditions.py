"""Training conditions side by side, each by all its trainings: the runs of `seeds` as one small table.

python -m analyses conditions --runs runs/study/action_mask_0 runs/study/trace_dropout_0.15

No model is loaded. The conditions must start from the same weights and be read at the same decisions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import lazy_loader as lazy

from interp.results.tables import read_table, write_table
from interp.results.wording import WHERE, listed
from interp.system import limits
from interp.system.limits import Existing, Folder
from interp.system.paths import PROGRAM

from .partial import differences
from .registry import Instrument

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")

#: Statistics that claims (a) to (c) rest on, and their readouts: their means over trainings are kept.
_ACTIONS = ("gain_prompt", "gain_cot", "gap", "headroom_gap", "revision_own")
KEPT = {(statistic, readout) for statistic in _ACTIONS for readout in ("free", "choice_sum")}
KEPT |= {("prompt_reliance", "pairs"), ("prompt_reliance", "own_traces")}
#: Whether a trace ends in an action, of which the level is kept.
PARSES = "parse_cot"
#: Of these the last checkpoint's level in each single training is kept as well.
OF_EACH = {("gain_prompt", "free"), ("gain_cot", "free")}


@dataclass
class Config:
    """Finished runs of `seeds`, one of each condition of training."""

    runs: Annotated[tuple[Path, ...], Existing()] = ()
    """Their folders, in the order that the figure has."""
    run: Annotated[Path, Folder()] = field(default=Path("runs/conditions"))
    """Folder for the table and the figure."""

    def check(self) -> None:
        """Raise the sentence of what cannot be compared."""
        limits.check(self)
        if len(self.runs) < 2:
            raise ValueError(
                "Give the folders of two or more runs of `seeds`, one of each condition (--runs)."
            )


class Source(NamedTuple):
    """A condition's run of `seeds`."""

    condition: str
    folder: Path
    table: pd.DataFrame
    made: dict

    @property
    def weights(self) -> list[dict]:
        """Of each training the hash of every checkpoint's weights."""
        return [training["weights"] for training in self.made["sources"].values()]


def sources(folders: Sequence[Path]) -> list[Source]:
    """The runs, each named by what its trainings say of their condition, or else by its folder.

    Raises:
        FileNotFoundError: a run has no table `seeds`; the sentence says how it gets one.
        ValueError: a run is a file, its table is no table of `seeds`, two runs are of one condition, or
            they cannot be compared; the sentence names what differs.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is a file: give the folder of a run of `seeds`.")
        try:
            table, made = read_table(folder / "tables", "seeds")
        except FileNotFoundError as missing:
            raise FileNotFoundError(
                f"{folder} has no table of several trainings ({missing}): run `{PROGRAM} seeds --runs "
                f"{folder}/seed-* --run {folder}`."
            ) from missing
        if not _whole(table, made):
            raise ValueError(
                f"{folder / 'tables' / 'seeds.csv'} is no whole table of `seeds`: it or its provenance lacks "
                "columns, the mean over trainings, or the weights of each. Make it again with "
                f"`{PROGRAM} seeds`."
            )
        told = [training.get("condition") for training in made["sources"].values()]
        condition = str(next(filter(None, told), folder.resolve().name))
        runs.append(Source(condition, folder, table, made))
    names = [each.condition for each in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"Two of the runs are of the condition {twice[0]}: give all its trainings to `seeds` at once."
        )
    for other in runs[1:]:
        if found := _differ(runs[0], other):
            raise ValueError(f"{other.folder} cannot be compared with {runs[0].folder}: {'; '.join(found)}.")
    return runs


def _whole(table: pd.DataFrame, made: dict) -> bool:
    """Whether a table and its provenance have what conditions are compared by."""
    from interp.results.trainings import COLUMNS, MEAN

    trainings = made.get("sources")
    if not {*COLUMNS} <= {*table} or not (table["seed"] == MEAN).any():
        return False
    if not isinstance(trainings, dict) or not trainings:
        return False
    return all(isinstance(each, dict) and each.get("weights") for each in trainings.values())


def _differ(first: Source, other: Source) -> list[str]:
    """In what the runs of two conditions differ that has to be the same."""
    steps, others = (sorted({int(step) for each in run.weights for step in each}) for run in (first, other))
    if steps != others:
        return [f"it has the checkpoints {listed(map(str, others))}, and the other {listed(map(str, steps))}"]
    bases = {each[str(steps[0])] for run in (first, other) for each in run.weights}
    if len(bases) > 1:
        return [f"its trainings start from another base: the weights of checkpoint {steps[0]} differ"]
    settings, now = (run.made.get("study") or {} for run in (first, other))
    if settings and now:
        if found := differences(settings, now, []):
            return found
        if settings["decisions"] != now["decisions"]:
            return ["it read other decisions"]
    counts, others_counts = _counts(first.table), _counts(other.table)
    if counts != others_counts:
        where = next(key for key in (counts | others_counts) if counts.get(key) != others_counts.get(key))
        return [
            f"it read other decisions: at checkpoint {where[0]} {WHERE.get(where[1], where[1])} "
            f"{others_counts.get(where, 0)} of them, and the other {counts.get(where, 0)}"
        ]
    return []


def _counts(table: pd.DataFrame) -> dict[tuple[int, str], int]:
    """How many decisions each training read, by checkpoint and split."""
    from interp.results.queries import pick
    from interp.results.trainings import MEAN

    rows = pick(table, statistic="gain_prompt", readout="free", quantity="level")
    rows = rows[rows["seed"] != MEAN]
    return {key: int(n.max()) for key, n in rows.groupby(["step", "split"])["n"]}


def kept(runs: Sequence[Source]) -> Iterator[pd.DataFrame]:
    """Of each condition the rows of the table, with a column `condition` first."""
    from interp.results.trainings import MEAN

    for each in runs:
        table = each.table
        read = pd.MultiIndex.from_frame(table[["statistic", "readout"]])
        mean, level = table["seed"] == MEAN, table["quantity"] == "level"
        of_mean = mean & (read.isin(list(KEPT)) | (table["statistic"] == PARSES) & level)
        of_each = ~mean & level & read.isin(list(OF_EACH)) & (table["step"] == table["step"].max())
        rows = table[of_mean | of_each]
        rows.insert(0, "condition", each.condition)
        yield rows


def run(config: Config) -> int:
    """Join, tabulate and draw; the exit status."""
    from .figures import draw_own
    from .provenance import made_by

    started = time.time()
    runs = sources(config.runs)
    made = made_by("conditions", config, started)
    told = {
        each.condition: {key: each.made.get(key) for key in ("command", "written", "sources")}
        for each in runs
    }
    made |= dict(conditions=told, study=runs[0].made.get("study"))
    frame = pd.concat(kept(runs), ignore_index=True)
    table = write_table(config.run / "tables", "conditions", frame, made)
    print(f"{len(runs)} conditions: {listed(told)}")
    print(f"table: {table}")
    print(f"figure: {', '.join(map(str, draw_own(table, config.run)))}")
    return 0


INSTRUMENT = Instrument("conditions", Config, run)
