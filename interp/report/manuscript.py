"""A manuscript's skeleton: pages of a venue's size with a run's figures, tables, numbers and methods.

>>> text = main_tex(study, drawn, look, run="runs/full")
>>> text.splitlines()[2]
'\\\\documentclass[10pt]{article}'

It is written in the plain article class, so that it compiles everywhere; figures and tables have the venue's
widths, and can be copied into its own style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from interp.plots.latex import code, escape
from interp.plots.look import INCHES, Look, Venue
from interp.report.methods import Methods
from interp.report.numbers import macros
from interp.report.page import TITLE
from interp.report.sections import SECTIONS, tables
from interp.report.study import Read
from interp.system.paths import PROGRAM


class Page(NamedTuple):
    """A venue's page."""

    paper: str
    """As `geometry` calls it."""
    height: float
    """Inches of its text."""


PAGES: dict[Venue, Page] = {
    "plain": Page("letterpaper", 9),
    "neurips": Page("letterpaper", 9),
    "iclr": Page("letterpaper", 9),
    "icml": Page("letterpaper", 9),
    "acl": Page("a4paper", 9.7),
}
#: Figures of the text, by name; the others are the appendix's.
MAIN = ("overview", "claims", "behaviour", "online", "probes", "reliance", "conflict", "masking_success")
#: Those of them that are as wide as the page.
WIDE = ("overview", "claims")
#: Tables of the text: section -> name.
TABLES = {"answer": "summary", "masking": "masking_table"}
#: Macros of the abstract: beginning, and what it is.
_MOVED = {
    "accCot": "the CoT action's agreement with the expert",
    "accPrompt": "the prompt action's",
    "gap": "the gap between them",
}


class Drawn(NamedTuple):
    """A figure of the manuscript."""

    name: str
    section: str
    caption: str
    """Plain text."""
    numbers: bool
    """Whether `tables/<name>.tex` has its numbers."""
    tabular: bool
    """Whether it is a table, and nothing else."""


def main_tex(study: Read, drawn: Sequence[Drawn], look: Look, run: str) -> str:
    """`main.tex`: the figures of MAIN by section of the report, and an appendix of the others.

    Args:
        study: the run's tables.
        drawn: figures in reading order, also those that a browser was missing for.
        look: of which the venue is read.
        run: folder of the run, which a comment names.
    """
    column, width = INCHES[look.venue]
    figures = [each for each in drawn if not each.tabular]
    written = [*(table.name for table in tables(study)), *(each.name for each in drawn if each.numbers)]
    sections = []
    for section in SECTIONS:
        main = [each for each in figures if each.section == section.name and each.name in MAIN]
        beside = [name for name in written if name == TABLES.get(section.name)]
        if main or beside:
            sections.append(section._asdict() | dict(figures=main, tables=beside))
    return (
        _environment()
        .get_template("manuscript.tex")
        .render(
            program=PROGRAM,
            run=run,
            title=TITLE,
            columns=1 if column == width else 2,
            width=width,
            gap=round(width - 2 * column, 3) if column != width else 0.25,
            wide=WIDE,
            abstract=_abstract(study),
            sections=sections,
            further=[each for each in figures if each.name not in MAIN],
            numbers=[name for name in written if name not in TABLES.values()],
            **PAGES[look.venue]._asdict(),
        )
    )


def methods_tex(made: Methods) -> str:
    """`methods.tex`: the appendix that says how the numbers were made."""
    there = {table.name: bool(table.rows) for table in (made.checkpoints, made.sizes, made.options)}
    return _environment().get_template("methods.tex").render(m=made, has=there)


def _abstract(study: Read) -> list[str]:
    """A sentence of macros for each split, in LaTeX, on what moved."""
    names = {macro.name for macro in macros(study)}
    sentences = []
    for where, out in (("In-domain", ""), ("Out of domain", "Out")):
        parts = []
        for metric, what in _MOVED.items():
            first, last = f"{metric}First{out}", f"{metric}Last{out}"
            if {first, last} <= names:
                ends = (rf"\{end}{{}}~\{end}Interval{{}}" for end in (first, last))
                parts.append(f"{what} goes from {' to '.join(ends)} ($n = \\{last}N$)")
        if parts:
            sentences.append(f"{where}, {'; '.join(parts)}.")
    return sentences


def _environment() -> Environment:
    """The templates, with marks that LaTeX has no use for; texts are escaped by `tex`, hashes by `code`."""
    environment = Environment(
        loader=PackageLoader("interp.report"),
        block_start_string="((*",
        block_end_string="*))",
        variable_start_string="(((",
        variable_end_string=")))",
        comment_start_string="((=",
        comment_end_string="=))",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"tex": escape, "code": code}
    return environment
