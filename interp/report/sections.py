"""The report's sections: what each reads; the words are in `templates/<name>.html`.

>>> for section in SECTIONS:
...     print(section.title, section.data(study))
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from interp.report import behaviour, claims, instruments, masking, nulls
from interp.report.behaviour import Games
from interp.report.study import UNREADABLE, Change, Read, Table
from interp.results.headline import READINGS, headline
from interp.results.wording import WHERE


class Section(NamedTuple):
    """One section of the report; its figures are those registered with its name."""

    name: str
    """Its id on the page, and its template."""
    title: str
    short: str
    """The same in a word or two, for the contents."""
    data: Callable[[Read], object]
    """What the template is filled with; None where its tables are missing."""


@dataclass(frozen=True)
class Answer:
    """The findings in short."""

    behaviour: Behaviour | None
    games: list[Games]
    reliance: list[Change]
    followed: instruments.Followed
    before: instruments.Before | None
    beside: list[tuple[str, Change]]
    side_by_side: bool
    """Whether the page is of several environments."""
    summary: Table | None


class Behaviour(NamedTuple):
    """What the study is of, and how both actions change."""

    studied: behaviour.Studied
    moves: list[behaviour.Moves]


@dataclass(frozen=True)
class Elsewhere:
    """Other series: their readings, and their pages."""

    table: Table
    pages: dict[str, str]
    """Study -> link."""


@dataclass(frozen=True)
class Limits:
    """What decides which limits are told."""

    tables: frozenset[str]
    series: str
    """Folder of the series that was studied; empty where none was."""
    of_a_series: bool
    generated: bool
    """Whether ALFWorld's decisions are of generated games."""
    step_limit: int | None
    fewest: tuple[str, str, int] | None
    """The headline reading on the fewest episodes: name, split, how many."""


def answer(study: Read) -> Answer:
    """The findings with their numbers, and a table of the headline readings."""
    studied = behaviour.studied(study)
    return Answer(
        Behaviour(studied, behaviour.moves(study)) if studied else None,
        behaviour.games(study),
        study.changes("reliance", metric="prompt_reliance"),
        instruments.followed(study),
        instruments.before(study),
        behaviour.beside(study, "in_domain"),
        "environments" in study.tables,
        behaviour.summary(study),
    )


def elsewhere(study: Read) -> Elsewhere | None:
    """Other series side by side; None where there are none."""
    table = behaviour.side_by_side(study)
    pages = {name: other.link for name, other in study.beside.items() if name in ("smollm2", "environments")}
    return Elsewhere(table, pages) if table else None


def limits(study: Read) -> Limits:
    """What the study cannot say."""
    made = study.made("behaviour")
    config = made.get("config") or {}
    limit = (study.made(study.games).get("config") or {}).get("step_limit")
    rows = headline(study.tables)
    rows = rows[rows["metric"].isin(READINGS)]
    few = rows.loc[rows["n_groups"].idxmin()] if len(rows) else None
    return Limits(
        frozenset(study.tables),
        str(config.get("series", "")),
        bool(made),
        (made.get("environment") or {}).get("name") == "alfworld" and not config.get("official"),
        None if limit is None else int(limit),
        None if few is None else (READINGS[few["metric"]], WHERE[few["split"]], int(few["n_groups"])),
    )


def _captions(study: Read) -> None:
    """Nothing: what the section says stands below its figures."""


SECTIONS = (
    Section("claims", "The four claims", "Claims", claims.claims),
    Section("answer", "The readings in short", "In short", answer),
    Section("better", "Does the agent get better, and where?", "Gains", _captions),
    Section("predicted", "Is the action in the prompt already?", "Prediction", _captions),
    Section("depends", "What does the action depend on?", "Causes", _captions),
    Section("masking", "Does masking action supervision move the gain?", "Masking", masking.masked),
    Section("elsewhere", "Does it hold elsewhere?", "Elsewhere", elsewhere),
    Section("trusted", "Can the instruments be trusted?", "Calibration", instruments.trusted),
    Section("nulls", "Nulls", "Nulls", nulls.nulls),
    Section("limits", "Limits", "Limits", limits),
    Section("question", "The question", "Question", lambda study: True),
    Section("measured", "How it is measured", "Words", lambda study: study),
)


def tables(study: Read) -> list[Table]:
    """The tables of the sections' words, for a paper; without those whose tables hold something else."""
    found = []
    for make in (behaviour.summary, behaviour.side_by_side, masking.side_by_side):
        with suppress(*UNREADABLE):
            found.append(make(study))
    return [table for table in found if table]
