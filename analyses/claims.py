"""The four claims at every checkpoint, paired with the base on the same decisions (docs/methods.md 0).

What the run's other analyses kept of single decisions is read, and no model runs. What is not on record is
left out: `behaviour` has both actions and forced choice, `online` whole games, `conflict`, `reliance`,
`own_traces` and `early` what claim (c) rests on, and a masking study's table claim (d).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from interp.checkpoints.contents import training_notes
from interp.results.claims import COLUMNS, FREE_NO_TRACES, masked
from interp.results.names import NO_TRACES
from interp.results.readings import NAME as READINGS
from interp.results.readings import write_readings
from interp.results.tables import read_table, write_table
from interp.results.wording import listed
from interp.stats.changes import Change, change, equivalent, part_share, sided
from interp.stats.intervals import OfMeans, headroom_share, kappa_of_means, labellings
from interp.system.choices import ARGUING
from interp.system.limits import SMALLEST, Margin
from interp.system.paths import PROGRAM

from .both_modes import differ, gap, is_admissible, labels, side_by_side
from .kept import Cell, cells
from .registry import Instrument
from .remedies import NotApplicable
from .study import Study

#: Kinds of stages that are read.
STAGES = ("decoded", "choices", "elicited", "online", "conflict", "reliance", "own_traces", "early")


@dataclass
class Config(Study):
    """The options that the run's other analyses were given; the first checkpoint is the base."""

    margin: Margin = SMALLEST
    """Change of the gap that would matter: claim (b) is supported where a larger one is excluded."""
    masking: Path | None = None
    """Folder of the tables of a masking study, for claim (d) (none: this run's tables)."""

    @property
    def reads(self) -> list[Path]:
        """What the table is made from, beside checkpoints and decisions."""
        return [
            *(self.run / "partial" / kind for kind in STAGES),
            self.masking_table,
            self.run / "tables" / f"{READINGS}.parquet",  # what it writes beside the table
        ]

    @property
    def masking_table(self) -> Path:
        """The masking study's table, which need not be there."""
        return (self.masking or self.run / "tables") / "masking.csv"


#: Readings of single decisions by their ids, a frame for each readout. Columns: `episode`; of both modes
#: whether they are right (`prompt`, `cot`), their actions (`action_prompt`, `action_cot`; None: unparsed) and
#: whether both parsed (`parsed`); of other readouts their own.
Records = dict[str, pd.DataFrame]


def decoded(cell: Cell) -> Records:
    """Both decoded actions, and whether the environment admits them where it lists all that it does."""
    modes = cell.kept_of_split("decoded")
    if not modes:
        return {}
    env = cell.config.env
    decisions = [cell.decisions[name] for name in cell.ids]
    prompt, cot = ([each["action"] or None for each in modes[mode]] for mode in ("prompt", "cot"))
    listed_all = np.array([env.closed_actions and len(d.admissible) > 0 for d in decisions], dtype=bool)
    admissible = side_by_side(decisions, prompt, cot, is_admissible)[listed_all]
    readouts = dict(
        free=side_by_side(decisions, prompt, cot, env.is_correct),
        admissible=admissible.drop(columns=["action_prompt", "action_cot"]),
    )
    if bare := cell.kept_of_split("decoded", NO_TRACES):
        actions = (each["action"] or None for each in bare)
        readouts[FREE_NO_TRACES] = _prompt_alone(cell, dict(zip(cell.ids, actions, strict=True)))
    return readouts


def choices(cell: Cell) -> Records:
    """Forced choice in both modes, by summed and by per-token log-probability."""
    rows = cell.kept_of_split("choices") or ()
    decisions = [cell.decisions[row["decision"]] for row in rows]
    readouts = {}
    for column, readout in enumerate(("choice_sum", "choice_mean")):
        best = [
            {mode: row["candidates"][np.argmax(logp, axis=0)[column]] for mode, logp in row["logp"].items()}
            for row in rows
        ]
        prompt, cot = ([each.get(mode) for each in best] for mode in ("prompt", "cot"))
        readouts[readout] = side_by_side(decisions, prompt, cot, cell.config.env.is_correct)
    return readouts


def elicited(cell: Cell) -> Records:
    """The prompt action after the elicitation, by free decoding and by forced choice."""
    stored = cell.kept_of_split("elicited")
    if not stored:
        return {}
    free = dict(zip(stored["decisions"], stored["actions"], strict=True))
    return dict(
        elicited=_prompt_alone(cell, free), elicited_choice=_prompt_alone(cell, dict(stored["chosen"]))
    )


def _prompt_alone(cell: Cell, actions: Mapping[str, str | None]) -> pd.DataFrame:
    """Whether a prompt action is right that has no CoT action beside it, by the decision's id."""
    decisions = [cell.decisions[name] for name in actions]
    acts = list(actions.values())
    frame = side_by_side(decisions, acts, [None] * len(acts), cell.config.env.is_correct)
    parsed = [action is not None for action in acts]
    return frame[["episode", "prompt"]].assign(parsed=parsed)


def games(cell: Cell) -> Records:
    """Whole games won in both modes; one that an unparsed action ended is lost."""
    played = {
        mode: cell.kept(f"online/{cell.step}-{cell.split}-{mode}", official=cell.config.official)
        for mode in ("prompt", "cot")
    }
    by_game: dict[str, dict[str, dict]] = {}
    for mode, results in played.items():
        for game in results or ():
            by_game.setdefault(game["game"], {})[mode] = game
    rows = {
        name: dict(
            episode=name,
            prompt=both["prompt"]["won"],
            cot=both["cot"]["won"],
            parsed=not (both["prompt"]["unparsed"] or both["cot"]["unparsed"]),
        )
        for name, both in by_game.items()
        if len(both) == len(played)
    }
    return dict(games=_frame(rows))


def conflicts(cell: Cell) -> Records:
    """What was done after each trace that argues for another action, by the kind of trace."""
    stored = cell.kept_of_split("conflict")
    if not stored:
        return {}
    records = {}
    for kind, metrics in stored["inserted_traces"].items():
        if kind not in ARGUING or not metrics["index"]:
            continue
        names = [stored["decisions"][i] for i in metrics["index"]]
        rows = {
            name: dict(
                episode=cell.decisions[name].episode, revised=not keep, followed=follow, parsed=not unparsed
            )
            for name, keep, follow, unparsed in zip(
                names, metrics["keep"], metrics["follow"], metrics["unparsed"], strict=True
            )
        }
        records[kind] = _frame(rows)
    return records


def reliance(cell: Cell) -> Records:
    """Direct and via-CoT effects of the pairs, in nats."""
    from interp.measures.reliance import EFFECTS

    stored = cell.kept(f"reliance/{cell.step}-{cell.split}")
    return dict(pairs=_of_pairs(cell, stored, EFFECTS, ("direct", "via_cot"))) if stored else {}


def own_traces(cell: Cell) -> Records:
    """Direct and indirect effects of the pairs through the checkpoint's own traces, in nats."""
    from interp.measures.own_traces import EFFECTS

    stored = cell.kept(f"own_traces/{cell.step}-{cell.split}")
    return dict(own_traces=_of_pairs(cell, stored, EFFECTS, ("direct", "indirect"))) if stored else {}


def _of_pairs(cell: Cell, stored: Mapping, effects: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """What a stage kept of its pairs: a row for each, of the effects that are named.

    effects: names of all that it kept, in order.
    """
    rows = {}
    for pair, values in zip(stored["kept"], stored["effects"], strict=True):
        decision, twin = stored["pairs"][pair]
        read = dict(zip(effects, values, strict=True))
        rows[f"{decision} {twin}"] = dict(
            episode=cell.decisions[decision].episode, **{name: read[name] for name in names}
        )
    return _frame(rows)


def early(cell: Cell) -> Records:
    """How much of its own trace an action needs."""
    stored = cell.kept_of_split("early")
    if not stored:
        return {}
    areas, ids = np.array(stored["area_action"], dtype=float), cell.ids
    rows = {
        ids[i]: dict(episode=cell.decisions[ids[i]].episode, area_action=float(area))
        for i, area in zip(stored["index"], areas, strict=True)
        if np.isfinite(area)
    }
    return dict(cut=_frame(rows))


def _frame(rows: Mapping[str, dict]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index")


#: What is read of what the analyses kept, by its name.
READERS: dict[str, Callable[[Cell], Records]] = {
    "decoded actions": decoded,
    "forced choice": choices,
    "whole games": games,
    "conflicting traces": conflicts,
    "prompt reliance": reliance,
    "effects through own traces": own_traces,
    "early answering": early,
    "elicited prompt action": elicited,
}


def _rises(moved: Change, margin: float) -> str:
    return sided(moved)


def _falls(moved: Change, margin: float) -> str:
    return sided(moved, predicted=-1)


class Statistic(NamedTuple):
    """Something that a claim is about."""

    claim: str
    name: str
    needs: tuple[str, ...]
    """Columns of a readout's records without which it is not read."""
    columns: Callable[[pd.DataFrame], np.ndarray]
    """Numbers of each decision."""
    judge: Callable[[Change, float], str] | None = None
    """Change and margin to a verdict; None where the statistic is told beside others."""
    function: OfMeans | None = None
    """Of the columns' means; their mean where nothing is given."""
    most: float | None = None
    """By how much one decision can change."""


_MODES, _ACTIONS = ("prompt", "cot"), ("action_prompt", "action_cot")


def _labels(frame: pd.DataFrame) -> np.ndarray:
    return labellings(*labels(frame))


def _column(name: str) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda frame: frame[name].to_numpy(dtype=float)


def _pair(*names: str) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda frame: frame[list(names)].to_numpy(dtype=float)


#: In the order of the table.
STATISTICS = (
    Statistic("a", "gain_prompt", ("prompt",), _column("prompt"), _rises, most=1),
    Statistic("b", "gain_cot", ("cot",), _column("cot"), most=1),
    Statistic("b", "gap", _MODES, gap, equivalent, most=2),
    Statistic("b", "headroom_gap", _MODES, _pair("prompt", "cot"), equivalent, headroom_share),
    Statistic("c", "revision_own", _ACTIONS, differ, _falls, most=1),
    Statistic("c", "kappa", _ACTIONS, _labels, _rises, kappa_of_means),
    Statistic("c", "revision_conflict", ("revised",), _column("revised"), _falls, most=1),
    Statistic("c", "follow", ("followed",), _column("followed"), most=1),
    *(
        Statistic("c", "prompt_reliance", ("direct", via), _pair("direct", via), _rises, part_share)
        for via in ("via_cot", "indirect")
    ),
    *(Statistic("c", name, (name,), _column(name)) for name in ("direct", "via_cot", "indirect")),
    Statistic("c", "area_action", ("area_action",), _column("area_action"), _falls),
)
#: Readouts that are told beside the claims, without a verdict: what can be admitted without being right, and
#: the prompt action at prompts that no other readout has.
TOLD = ("admissible", FREE_NO_TRACES)


def compared(base: Records, later: Records, margin: float = SMALLEST, seed: int = 0) -> Iterator[dict]:
    """Every statistic's change between two checkpoints, on the decisions that both have, with its verdict.

    Rows of all decisions, and of those where both modes parse at both checkpoints (`subset`).

    Args:
        base, later: records of each readout.
        margin: of equivalence.
        seed: of the resamples.
    """
    for readout in (name for name in later if name in base):
        ids = later[readout].index.intersection(base[readout].index, sort=False)
        before, after = base[readout].loc[ids], later[readout].loc[ids]
        subsets = dict(all=np.ones(len(ids), dtype=bool))
        if "parsed" in before and "parsed" in after:
            subsets["parsed"] = (before["parsed"].astype(bool) & after["parsed"].astype(bool)).to_numpy()
        for statistic in STATISTICS:
            if not {*statistic.needs} <= {*before.columns} & {*after.columns}:
                continue
            if readout == "admissible" and statistic.name == "headroom_gap":
                continue
            for subset, among in subsets.items():
                key = dict(claim=statistic.claim, statistic=statistic.name, readout=readout, subset=subset)
                judged = statistic.judge if readout not in TOLD else None
                moved = changed(statistic, before[among], after[among], seed)
                verdict = judged(moved, margin) if judged else ""
                yield key | dict(margin=margin, verdict=verdict) | asdict(moved)


def changed(statistic: Statistic, before: pd.DataFrame, after: pd.DataFrame, seed: int) -> Change:
    """A statistic's change from some decisions' records to later ones of the same decisions."""
    if before.empty:
        return Change(*[np.nan] * 7, 0, 0)
    both = statistic.columns(before), statistic.columns(after)
    groups = before["episode"].tolist()
    return change(*both, groups, statistic.function, statistic.most, seed=seed)


def run(config: Config) -> None:
    """Compare every later checkpoint with the first, add the masking study's claim, and write the table."""
    started, rows, base, readings = time.time(), [], {}, {}
    there: dict[str, set[bool]] = {name: set() for name in READERS}
    if len(config.steps) < 2:
        raise NotApplicable(
            "A claim is about a change, and one checkpoint is studied",
            "Give the series of a training (--series), or two of its checkpoints (--checkpoints).",
        )
    for cell in cells(config, "claims"):
        first, records = cell.step == config.steps[0], {}
        for name, read in READERS.items():
            kept = {readout: frame for readout, frame in read(cell).items() if len(frame)}
            there[name] |= {first} if kept else set()
            records |= kept
        readings |= {(cell.step, cell.split, readout): frame for readout, frame in records.items()}
        if first:
            base[cell.split] = records
            continue
        key = dict(step=cell.step, split=cell.split)
        rows += [key | row for row in compared(base[cell.split], records, config.margin, config.seed)]
    if not rows:
        raise NotApplicable(
            f"{config.run} keeps no decisions of the base and of a later checkpoint: run `{PROGRAM} "
            "behaviour` first, and give the same options here (its command is in tables/behaviour.json)."
        )
    left_out = [name for name, where in there.items() if len(where) < 2]
    if left_out:
        config.say(
            f"left out: claims: {listed(left_out)}, of which the base or every later checkpoint has "
            "no record."
        )
    if config.masking_table.exists():
        table, _ = read_table(config.masking_table.parent, "masking")
        rows += masked(table, config.margin)
    made = config.provenance("claims", started, base=config.steps[0], margin=config.margin, left_out=left_out)
    frame = pd.DataFrame(rows)[list(COLUMNS)]
    config.written.append(write_table(config.run / "tables", "claims", frame, made))
    write_readings(config.run / "tables", readings, made | _training(config))


def _training(config: Config) -> dict[str, object]:
    """The seed and the condition that the last checkpoint's trainer noted; None where it noted none."""
    path = config.checkpoint_series.path(config.steps[-1])
    notes = training_notes(path) if isinstance(path, Path) else {}
    recipe = notes.get("recipe")
    seed = recipe.get("seed") if isinstance(recipe, dict) else None
    return dict(training_seed=seed, training_condition=notes.get("condition"))


INSTRUMENT = Instrument("claims", Config, run, after_all=True)
