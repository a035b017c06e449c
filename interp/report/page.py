"""The report: one page of sections with their figures, the same bytes from the same tables.

>>> save_index(entries, study, "figures/tables", "figures", ("svg", "html"))

Texts are jinja2 templates beside this module, filled with numbers and verdicts; every value is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from interp.plots.caption import Caption
from interp.report.behaviour import SMOLLM2
from interp.report.masking import BESIDE as MASKED
from interp.report.sections import SECTIONS, Section
from interp.report.study import UNREADABLE, Read, href, unreadable
from interp.report.viewer import PAGE
from interp.results.tables import write_text
from interp.results.wording import listed

_FIRST = ("date", "command", "model", "versions")
#: Rows that a figure's numbers may have to be shown unfolded.
_FEW_ROWS = 12
TITLE = "Where do chain-of-thought training gains land?"
#: Pages of comparisons of training conditions, by the name of their folder.
COMPARED = {
    "conditions": "Conditions of training",
    "smollm2_conditions": "SmolLM2-135M: conditions of training",
}
#: Titles of the pages of studies beside the main one, by the name of their folder.
TITLES = {
    "smollm2": SMOLLM2,
    "environments": "Environments side by side",
    **COMPARED,
    **{name: f"Masked action supervision: {title}" for name, title in MASKED.items()},
}
#: Files of a page's folder, and below it, that it links to.
BESIDE = {
    PAGE: "Decisions one by one",
    **{f"{name}/index.html": title for name, title in COMPARED.items()},
    "numbers.tex": "Numbers (LaTeX)",
}
_FORMATS = {"html": "interactive", "svg": "SVG", "pdf": "PDF", "png": "PNG"}


@dataclass(frozen=True)
class Entry:
    """One figure's place on the page."""

    name: str
    """Name of the figure's files, without suffix."""
    title: str
    table: str
    """Name of the table that it is drawn from."""
    section: str
    provenance: dict
    caption: Caption | None = None
    """None where there is no figure."""
    problem: str = ""
    """Why there is none."""
    tabular: bool = False
    """Whether the figure is a table, and numbered among tables."""
    latex: bool = False
    """Whether `<name>.tex` is beside it, its numbers as a table for a paper."""
    data: bool = False
    """Whether `<name>.csv` is beside it, the points that are drawn."""

    @property
    def alt(self) -> str:
        """What the figure shows, for those who do not see it: its title and its message."""
        message = self.caption.message if self.caption else ""
        return f"{self.title}{'' if self.title.endswith('?') else '.'} {message}".strip()


def save_index(
    entries: Sequence[Entry],
    study: Read,
    tables: str | Path,
    out: str | Path,
    formats: Collection[str],
    notes: Sequence[str] = (),
) -> Path:
    """Write `<out>/index.html`: sections with numbered, captioned figures, linked to their tables.

    It links to the decision viewer and to `numbers.tex` where `out` has them.

    Args:
        entries: figures, drawn or not, in reading order.
        study: what the sections' words are made from.
        tables: folder of the tables, linked from the page by relative path.
        out: folder of the figures.
        formats: of the figures' files in `out` that the page shows or links: html, svg, pdf. Without svg the
            page frames the interactive figures.
        notes: sentences above all sections, as plain text.
    """
    out = Path(out)
    environment = _environment()
    parts = []
    for section in _in_order(study, dict.fromkeys(entry.section for entry in entries)):
        lead = said(section, study, environment)
        mine = [entry for entry in entries if entry.section == section.name]
        figures = [
            environment.get_template("figure.html").render(_shown(entry, formats), link=href(tables, out))
            for entry in mine
        ]
        if lead or figures:
            parts.append(section._asdict() | dict(lead=lead, figures=[Markup(figure) for figure in figures]))
    page = environment.get_template("page.html").render(
        title=TITLES.get(Path(tables).resolve().parent.name, TITLE),
        sections=parts,
        notes=notes,
        links=_links(out),
    )
    return write_text(out / "index.html", page)


def _in_order(study: Read, named: Iterable[str]) -> list[Section]:
    """The sections in reading order: verdicts first where there are any, figures' own before the nulls."""
    known = {section.name for section in SECTIONS}
    others = [
        Section(name, name.capitalize(), name.capitalize(), lambda study: None)
        for name in named
        if name not in known
    ]
    at = [section.name for section in SECTIONS].index("nulls")
    verdicts, results, rest = SECTIONS[:1], SECTIONS[1:at], SECTIONS[at:]
    judged = study.any("claims", "masking")
    return [*(verdicts if judged else ()), *results, *others, *(() if judged else verdicts), *rest]


def _links(out: Path) -> list[tuple[str, str]]:
    """Other pages and files of this folder that the page links to: link, text."""
    above = out.resolve().parent / "index.html"
    found = [("../index.html", "Main report")] if out.resolve().name in TITLES and above.exists() else []
    return found + [(name, text) for name, text in BESIDE.items() if (out / name).exists()]


def said(section: Section, study: Read, environment: Environment | None = None) -> Markup:
    """What a section says, as HTML; where its tables hold something else, that it says nothing."""
    environment = environment or _environment()
    try:
        data = section.data(study)
        return (
            Markup(environment.get_template(f"{section.name}.html").render(d=data, study=study))
            if data
            else Markup("")
        )
    except UNREADABLE as problem:
        return Markup(environment.get_template("unread.html").render(problem=unreadable(problem)))


def describe(provenance: dict) -> str:
    """One line of a provenance record: its plain values and its flat groups, hashes shortened to 12 digits.

    Args:
        provenance: as read beside the table.
    """
    items = []
    for key in sorted(provenance, key=lambda key: (key not in _FIRST, str(key))):
        value = provenance[key]
        if isinstance(value, dict):
            value = " ".join(f"{k} {_short(v)}" for k, v in value.items() if not isinstance(v, (dict, list)))
        elif isinstance(value, list):
            value = " ".join(_short(v) for v in value if not isinstance(v, (dict, list)))
        if value not in (None, ""):
            items.append(f"{key}: {_short(value)}")
    return " · ".join(items)


def _environment() -> Environment:
    """The templates, which count figures and tables from 1 and escape what they are filled with."""
    environment = Environment(
        loader=PackageLoader("interp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counters = dict(Figure=count(1), Table=count(1))
    environment.globals["FORMATS"] = _FORMATS
    environment.globals["next_number"] = lambda kind: next(counters[kind])
    environment.filters |= {"listed": listed, "cap": lambda text: text[:1].upper() + text[1:]}
    return environment


def _shown(entry: Entry, formats: Collection[str]) -> dict:
    """What the template of a figure is filled with."""
    numbers = entry.caption.numbers if entry.caption else None
    return dict(entry=entry, formats=formats, made=describe(entry.provenance), few=_FEW_ROWS, numbers=numbers)


def _short(value: object) -> str:
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{8,}\b", r"\1", str(value))
    return text if len(text) <= 160 else text[:157] + "..."
