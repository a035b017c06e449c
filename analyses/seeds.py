"""Several trainings of one recipe together: tables joined, and readings over episodes and seeds.

python -m analyses seeds --runs runs/seed-*
python -m analyses seeds --trainings runs/series/conditions/action_mask_0/seed-* --size quick --run runs/seeds

What `claims` kept of single decisions in each run (`tables/readings.parquet`) is read; no model is loaded for
finished runs. Joined tables are written to `joined/`, the table of all seeds to `tables/seeds.csv`.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import lazy_loader as lazy

from interp.results.tables import read_table, write_table
from interp.results.wording import listed
from interp.system import limits
from interp.system.limits import Existing, Folder
from interp.system.paths import PROGRAM

from .all import Config as Everything
from .all import run as run_everything
from .partial import differences
from .registry import Instrument
from .storing import check_room, give_back, to_store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from interp.results.readings import Readings
    from interp.stats.changes import Change
    from interp.stats.trainings import OverTrainings

    from .claims import Statistic
else:
    pd = lazy.load("pandas")

#: Options that say how finished runs are put together; all others are those of studies.
_OWN = ("runs", "trainings", "run", "margin", "seed")
#: What a run's provenance says of how it was made, whichever checkpoints it read.
_SETTINGS = ("config", "versions", "seed", "device", "dtype", "format", "corpus", "environment", "judge")
_SEED = re.compile(r"seed-(\d+)")


@dataclass
class Config(Everything):
    """Finished runs of several trainings, or their folders, which `all` studies first, one after the other.

    The options below are those of `all`, for `--trainings`.
    """

    runs: Annotated[tuple[Path, ...], Existing()] = ()
    """Folders of finished runs (of `all`, or of `claims`), one of each training."""
    trainings: Annotated[tuple[Path, ...], Existing()] = ()
    """Folders of checkpoint series, one of each training; each is studied in a folder of its name below
    --run."""
    run: Annotated[Path, Folder()] = field(default=Path("runs/seeds"))
    """Folder for the tables and the figure."""

    def check(self) -> None:
        """Raise the sentence of what cannot be studied, before a model is loaded."""
        limits.check(self)
        if bool(self.runs) == bool(self.trainings):
            raise ValueError(
                "Give the folders of finished runs (--runs), or those of the trainings (--trainings)."
            )
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if self.runs and (others := [name for name in given if name not in _OWN]):
            raise ValueError(
                f"--{others[0]} is an option of a study, and --runs are finished ones: give it with "
                "--trainings."
            )
        if "series" in given:
            raise ValueError("--series names one training: give the folders of all with --trainings.")
        names = [training.resolve().name for training in self.trainings]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"--trainings has two folders of the name {twice[0]!r}: rename one.")
        for training in self.trainings:
            self.study(training).check()
        stored = [to_store(self.study(training), "all") for training in self.trainings]
        if stored:
            check_room(self, sum(stored) if self.keep_activations == "all" else max(stored))

    def study(self, training: Path) -> Everything:
        """What `all` is told of one training."""
        shared = {each.name: getattr(self, each.name) for each in fields(Everything)}
        return replace(Everything(**shared), series=training, run=self.run / training.resolve().name)


class Source(NamedTuple):
    """A finished run of one training."""

    seed: str
    folder: Path
    readings: Readings
    made: dict


def sources(folders: Sequence[Path]) -> list[Source]:
    """The runs, each named by its training's seed, or where those are not known by its folder.

    Raises:
        FileNotFoundError: a run has no readings; the sentence says how it gets them.
        ValueError: two runs are of one seed, or cannot be compared; the sentence names what differs.
    """
    from interp.results.readings import read_readings

    read = []
    for folder in folders:
        try:
            read.append((folder, *read_readings(folder / "tables")))
        except FileNotFoundError as missing:
            raise FileNotFoundError(
                f"{folder} has no readings of single decisions ({missing}): run `{PROGRAM} claims --run "
                f"{folder}` with the options of its study."
            ) from missing
    seeds = [str(made.get("training_seed")) for *_, made in read]
    if "None" in seeds or len(set(seeds)) < len(seeds):
        names = [folder.resolve().name for folder, *_ in read]
        numbered = [_SEED.fullmatch(name) for name in names]
        seeds = [match[1] if match else name for match, name in zip(numbered, names, strict=True)]
    if twice := [name for name in seeds if seeds.count(name) > 1]:
        raise ValueError(
            f"Two of the runs are of the seed {twice[0]}, and their folders have one name: give each "
            "training once, in a folder of its own name."
        )
    runs = [Source(seed, *each) for seed, each in zip(seeds, read, strict=True)]
    for other in runs[1:]:
        if found := _differ(runs[0], other):
            raise ValueError(
                f"{other.folder} cannot be put together with {runs[0].folder}: {'; '.join(found)}."
            )
    return runs


def _differ(first: Source, other: Source) -> list[str]:
    """In what two runs differ that trainings of one recipe have in common."""
    found = _steps_differ(first.made, other.made) + differences(first.made, other.made, [])
    conditions = [each.made.get("training_condition") for each in (first, other)]
    if None not in conditions and conditions[0] != conditions[1]:
        found.append(f"its training's condition is {conditions[1]} and not {conditions[0]}")
    if found:
        return found
    for key, frame in first.readings.items():
        step, split, readout = key
        if readout != "free":
            continue
        ids, others = set(frame.index), set(other.readings.get(key, frame.iloc[:0]).index)
        if ids != others:
            return [
                f"it read {len(others)} decisions of {split} at checkpoint {step}, of which "
                f"{len(ids & others)} are among the {len(ids)} there"
            ]
    return []


def _steps_differ(made: dict, other: dict) -> list[str]:
    steps, others = (sorted(map(int, each["weights"])) for each in (made, other))
    missing, more = sorted({*steps} - {*others}), sorted({*others} - {*steps})
    found = [f"it lacks checkpoint {listed(map(str, missing))}"] if missing else []
    return found + ([f"it alone has checkpoint {listed(map(str, more))}"] if more else [])


def joined(runs: Sequence[Source]) -> Iterator[tuple[str, pd.DataFrame, dict]]:
    """Every table that all runs have: its name, its rows with a column `seed` first, and its sources.

    Raises ValueError where a table was made otherwise in one of the runs.
    """
    tables = [{path.stem for path in (each.folder / "tables").glob("*.csv")} for each in runs]
    for name in sorted(set.intersection(*tables)):
        read = [read_table(each.folder / "tables", name) for each in runs]
        if not all("weights" in made and "config" in made for _, made in read):
            continue  # no table of a study
        for each, (_, made) in zip(runs[1:], read[1:], strict=True):
            first = read[0][1]
            if found := _steps_differ(first, made) + differences(first, made, []):
                raise ValueError(
                    f"The table {name} of {each.folder} cannot be joined to that of {runs[0].folder}: "
                    f"{'; '.join(found)}."
                )
        frames = []
        for each, (frame, _) in zip(runs, read, strict=True):
            frame = frame.rename(columns=dict(seed="seed_of_run"))
            frame.insert(0, "seed", each.seed)
            frames.append(frame)
        told = {each.seed: _told(each, made) for each, (_, made) in zip(runs, read, strict=True)}
        yield name, pd.concat(frames, ignore_index=True), told


def _told(source: Source, made: dict) -> dict:
    """What a provenance says of one of its sources."""
    said = {key: made.get(key) for key in ("command", "written", "series_notes", "weights")}
    said["condition"] = source.made.get("training_condition")
    return dict(run=str(source.folder), series=made["config"].get("series")) | said


def _study(runs: Sequence[Source]) -> dict:
    """What all runs have in common: their settings, and for each split a hash of the ids of its decisions."""
    first = runs[0]
    base = min(step for step, *_ in first.readings)
    ids = {
        split: hashlib.sha256("\n".join(sorted(frame.index)).encode()).hexdigest()[:16]
        for (step, split, readout), frame in first.readings.items()
        if (step, readout) == (base, "free")
    }
    return {key: first.made.get(key) for key in _SETTINGS} | dict(decisions=ids, identity={})


def readings_over(runs: Sequence[Source], margin: float, seed: int) -> Iterator[dict]:
    """Rows of every statistic's level, and of its change since the base: of each training, and their mean."""
    from .claims import STATISTICS

    cells = list(dict.fromkeys(key for each in runs for key in each.readings))
    base = min(step for step, *_ in cells)
    for step, split, readout in cells:
        read = (*STATISTICS, *_parses()) if readout == "free" else STATISTICS
        there = [each for each in runs if (step, split, readout) in each.readings]
        later = {each.seed: each.readings[step, split, readout] for each in there}
        earlier = {
            each.seed: each.readings[base, split, readout]
            for each in there
            if (base, split, readout) in each.readings and step != base
        }
        for statistic in read:
            if statistic.name == "kappa" or (readout, statistic.name) == ("admissible", "headroom_gap"):
                continue
            key = dict(step=step, split=split, claim=statistic.claim, statistic=statistic.name)
            key |= dict(readout=readout)
            yield from (key | row for row in _levels(statistic, later, seed))
            pairs = _paired(statistic, earlier, later)
            yield from (key | row for row in _changes(statistic, pairs, readout, margin, seed))


def _parses() -> list[Statistic]:
    """Whether each mode's action parses, told beside the claims: an action that does not is never right."""
    from .claims import Statistic

    def parses(action: str) -> Callable[[pd.DataFrame], np.ndarray]:
        return lambda frame: frame[action].notna().to_numpy(dtype=float)

    actions = {mode: f"action_{mode}" for mode in ("prompt", "cot")}
    return [
        Statistic("b", f"parse_{mode}", (action,), parses(action), most=1) for mode, action in actions.items()
    ]


def _has(statistic: Statistic, frame: pd.DataFrame) -> bool:
    return {*statistic.needs} <= {*frame.columns} and len(frame) > 0


def _levels(statistic: Statistic, frames: dict[str, pd.DataFrame], seed: int) -> Iterator[dict]:
    """Rows of a statistic as it is at a checkpoint."""
    from interp.stats.trainings import over_trainings

    from .rows import mean_row

    read = {name: frame for name, frame in frames.items() if _has(statistic, frame)}
    if not read:
        return
    columns = {name: statistic.columns(frame) for name, frame in read.items()}
    groups = [frame["episode"].tolist() for frame in read.values()]
    is_rate = statistic.most == 1
    bounds = (0.0, 1.0) if is_rate else (-1.0, 1.0) if statistic.most else (-float("inf"), float("inf"))
    pooled = over_trainings(
        list(columns.values()), groups, statistic.function, statistic.most, bounds, seed=seed
    )
    yield _row(pooled) | dict(quantity="level", after=pooled.value)
    for (name, each), episodes in zip(columns.items(), groups, strict=True):
        own = mean_row(each.astype(bool) if is_rate else each, episodes, seed, function=statistic.function)
        yield dict(seed=name, quantity="level", seeds=1, interval="episodes", after=own["value"]) | own


def _paired(
    statistic: Statistic, earlier: dict[str, pd.DataFrame], later: dict[str, pd.DataFrame]
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Of each training the decisions that the base and the checkpoint both have."""
    pairs = {}
    for name, before in earlier.items():
        ids = later[name].index.intersection(before.index, sort=False)
        both = before.loc[ids], later[name].loc[ids]
        if all(_has(statistic, frame) for frame in both):
            pairs[name] = both
    return pairs


def _changes(
    statistic: Statistic,
    pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]],
    readout: str,
    margin: float,
    seed: int,
) -> Iterator[dict]:
    """Rows of a statistic's change since the base, with the verdicts that `claims` gives."""
    import numpy as np

    from interp.stats.changes import Change, difference
    from interp.stats.trainings import over_trainings

    from .claims import TOLD, changed

    if not pairs:
        return
    judge = statistic.judge if readout not in TOLD else None
    own: dict[str, Change] = {name: changed(statistic, *both, seed) for name, both in pairs.items()}
    read = {name: tuple(map(statistic.columns, both)) for name, both in pairs.items()}
    function = statistic.function
    if function:
        function = difference(function, next(iter(read.values()))[0].shape[1])
    columns = [
        np.hstack(both) if function else np.subtract(*reversed(both), dtype=float) for both in read.values()
    ]
    groups = [before["episode"].tolist() for before, _ in pairs.values()]
    bounds = (-statistic.most, statistic.most) if statistic.most else (-np.inf, np.inf)
    pooled = over_trainings(columns, groups, function, statistic.most, bounds, seed=seed)
    ends = (float(np.mean([getattr(each, name) for each in own.values()])) for name in ("before", "after"))
    moved = Change(
        *ends, pooled.value, pooled.low, pooled.high, pooled.low_90, pooled.high_90, pooled.n, pooled.n_groups
    )
    verdict = judge(moved, margin) if judge else ""
    about = dict(quantity="change", margin=margin)
    yield _row(pooled) | about | dict(verdict=verdict, before=moved.before, after=moved.after)
    for name, each in own.items():
        verdict = judge(each, margin) if judge else ""
        yield dict(seed=name, seeds=1, interval="episodes", verdict=verdict) | about | asdict(each)


def _row(pooled: OverTrainings) -> dict:
    """The columns of the mean over trainings."""
    from interp.results.trainings import MEAN

    names = ("seeds", "value", "low", "high", "low_90", "high_90", "n", "n_groups")
    return dict(seed=MEAN, interval=pooled.over) | {name: getattr(pooled, name) for name in names}


def run(config: Config) -> int:
    """Study the trainings where that is asked for, then join, tabulate and draw; the exit status."""
    from interp.results.trainings import COLUMNS
    from interp.stats.trainings import EPISODES, FEWEST

    from .figures import draw_own
    from .provenance import made_by

    started, folders = time.time(), list(config.runs)
    for training in config.trainings:
        study = config.study(training)
        print(f"{training}: studied in {study.run}")
        if status := run_everything(study):
            print(f"error: the study of {training} ended with {status}.", file=sys.stderr)
            return status
        give_back(study)
        folders.append(study.run)
    if config.dry_run:  # of each training a plan, and no table
        return 0
    runs = sources(folders)
    told = {each.seed: _told(each, each.made) for each in runs}
    made = made_by("seeds", config, started)
    about = made | dict(sources=told, study=_study(runs))
    names = []
    for name, frame, parts in joined(runs):
        names.append(name)
        write_table(config.run / "joined", name, frame, made | dict(sources=parts))
    frame = pd.DataFrame(readings_over(runs, config.margin, config.seed)).reindex(columns=list(COLUMNS))
    table = write_table(config.run / "tables", "seeds", frame, about | dict(joined=names))
    print(f"{len(runs)} trainings; {len(names)} tables joined in {config.run / 'joined'}: {listed(names)}")
    if len(runs) < FEWEST:
        print(
            f"With fewer than {FEWEST} seeds the intervals are over {EPISODES} alone: they say nothing of "
            "other trainings.",
            file=sys.stderr,
        )
    print(f"table: {table}")
    print(f"figure: {', '.join(map(str, draw_own(table, config.run)))}")
    return 0


INSTRUMENT = Instrument("seeds", Config, run)
