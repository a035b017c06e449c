r"""The headline numbers as LaTeX macros, so that a manuscript copies none by hand.

>>> print(numbers_tex(study))          # \newcommand{\accCotLast}{0.81} ...

Each number has macros of the same beginning: the value (`\accCotLast`), its 95 % interval
(`\accCotLastInterval`), how many decisions, games or pairs it is of (`\accCotLastN`) and its checkpoint
(`\accCotLastStep`); out of domain they begin with `\accCotLastOut`. What the report judges are changes since
the base (`\gainPromptFreeChange`), which have their verdict as well (`\gainPromptFreeChangeVerdict`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import pandas as pd

from interp.plots.caption import count
from interp.plots.latex import escape
from interp.report.behaviour import studied
from interp.report.study import UNREADABLE, Read
from interp.results.claims import lines, of_line
from interp.results.estimates import ends, estimate
from interp.results.headline import READINGS, headline
from interp.results.queries import pick, splits_of
from interp.results.wording import WHERE

_OUT = {"in_domain": "", "out_of_domain": "Out"}
_DIGITS = dict(zip("0123456789", "Zero One Two Three Four Five Six Seven Eight Nine".split(), strict=True))


class Macro(NamedTuple):
    """One number."""

    name: str
    """Letters only."""
    text: str
    """Plain text, as the report prints it."""
    about: str
    """What it is."""


def numbers_tex(study: Read) -> str:
    """`numbers.tex`: a macro for every headline number that the study's tables have."""
    written = [
        "% Made from the tables of a run by `python -m analyses`; made again, it is overwritten.",
        "% Value, ...Interval (95 %), ...N and ...Step have one beginning; ...Out is out of domain.",
    ]
    about = ""
    for macro in macros(study):
        if macro.about != about:
            about = macro.about
            written += ["", f"% {escape(about)}"]
        written.append(rf"\newcommand{{\{macro.name}}}{{{escape(macro.text)}}}")
    return "\n".join([*written, ""])


def macros(study: Read) -> list[Macro]:
    """Every headline number, as the report prints it; none of tables that hold something else."""
    found: list[Macro] = []
    for part in (_sizes, _readings, _changes):
        with suppress(*UNREADABLE):
            found += list(part(study))
    return found


def _readings(study: Read) -> Iterator[Macro]:
    """Both ends of the readings that sum up a study."""
    rows = headline(study.tables)
    for metric, title in READINGS.items():
        for split in splits_of(rows):
            both = ends(pick(rows, metric=metric, split=split))
            if both is None:
                continue
            for end, row in zip(("First", "Last"), both, strict=True):
                name = f"{letters(metric)}{end}{_OUT[split]}"
                about = f"{title}, {WHERE[split]}, {end.lower()} checkpoint"
                yield from _number(name, row, about)


def _sizes(study: Read) -> Iterator[Macro]:
    """What the study is of."""
    found = studied(study)
    if found is None:
        return
    about = "What was studied"
    yield Macro("studyEnvironment", found.environment, about)
    yield Macro("studyCheckpoints", str(found.checkpoints), about)
    for split, (decisions, _, episodes) in zip(study.splits("behaviour"), found.sizes, strict=True):
        yield Macro(f"studyDecisions{_OUT[split]}", f"{decisions:,}", about)
        yield Macro(f"studyEpisodes{_OUT[split]}", f"{episodes:,}", about)


def _changes(study: Read) -> Iterator[Macro]:
    """The changes that the claims are judged by, at the last checkpoint that has them."""
    frame = study.tables.get("claims")
    if frame is None:
        return
    masked = pick(frame, claim="d")
    for line in lines(frame):
        for split in splits_of(frame):
            name = f"{letters(line.statistic)}{_capital(letters(line.readout))}Change{_OUT[split]}"
            title = f"Claim ({line.claim}): {line.title}, {WHERE[split]}, change since the base"
            yield from _change(name, of_line(frame, line, split), title)
    for statistic, rows in masked.groupby("statistic", sort=False):
        title = f"Claim (d): {str(statistic).replace('_', ' ')}, out-of-domain"
        yield from _change(letters(str(statistic)), rows.sort_values("step"), title)


def _change(name: str, rows: pd.DataFrame, about: str) -> Iterator[Macro]:
    read = rows.dropna(subset="value")
    if len(read):
        last = read.iloc[-1]
        yield from _number(name, last, about, signed=True)
        yield Macro(f"{name}Verdict", str(last["verdict"]), about)


def _number(name: str, row: Mapping, about: str, signed: bool = False) -> Iterator[Macro]:
    value, _, interval = estimate(row, signed).partition(" ")
    yield Macro(name, value, about)
    yield Macro(f"{name}Interval", interval, about)
    yield Macro(f"{name}N", count(row), about)
    yield Macro(f"{name}Step", str(int(row["step"])), about)


def letters(name: str) -> str:
    """A name of a table as part of a macro's, which are letters only: `choice_cot_sum` is `choiceCotSum`."""
    words = [word for word in "".join(_DIGITS.get(c, c) for c in name).split("_") if word]
    kept = ["".join(c for c in word if c.isascii() and c.isalpha()) for word in words]
    return "".join(word if not i else _capital(word) for i, word in enumerate(kept))


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
