"""The generated parts of the README and of the documentation, from the committed tables.

A page marks a part with `<!-- NAME -->` and `<!-- end NAME -->`: a table of `analyses.pages.tables`, or a
text, `analyses/pages/templates/NAME.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from interp.system.paths import ROOT

from .pages.tables import TABLES
from .pages.texts import TEMPLATES, text
from .registry import Instrument


def pages() -> list[Path]:
    """The README and every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def made(name: str) -> str:
    """A part by its name; raises ValueError for one that is neither a table nor a text."""
    if name in TABLES:
        return TABLES[name]()
    if (TEMPLATES / f"{name}.md").exists():
        return text(name)
    known = ", ".join([*TABLES, *sorted(path.stem for path in TEMPLATES.glob("*.md"))])
    raise ValueError(f"A page has a part {name!r}: there are {known}.")


def filled(page: str) -> str:
    """A page with what stands between each pair of marks made anew.

    Raises ValueError for a part that is ended and not begun, or that is not known.
    """
    for name in re.findall(r"<!-- end ([\w-]+) -->", page):
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, begun, rest = page.partition(begin)
        if not begun:
            raise ValueError(f"A page has {end} and does not begin that part with {begin.strip()}.")
        page = f"{before}{begin}{made(name)}\n{end}{rest.partition(end)[2]}"
    return page


@dataclass
class Config:
    """It takes no options."""


def run(config: Config) -> None:
    """Write the generated parts of every page."""
    for page in pages():
        page.write_text(filled(page.read_text()))


INSTRUMENT = Instrument("readme", Config, run)
