"""The report: one page of sections, each with what the tables say in words before its figures, the same bytes from the same tables.

>>> save_index(entries, read("figures/tables", "figures", names), "figures/tables", "figures", static=True)
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from interp.report.sections import SECTIONS, Section
from interp.report.words import UNREADABLE, Block, Cells, Items, Missing, Read, href, unreadable
from interp.results.tables import write_text


class Entry(NamedTuple):
    """One figure's place on the page."""

    name: str
    """Name of the figure's files, without suffix."""
    title: str
    """Heading on the page."""
    table: str
    """Name of the table that it is drawn from."""
    caption: str
    """HTML under the figure; where there is no figure, the sentence that says why."""
    drawn: bool
    """False where the table is missing or lacks the rows needed."""
    provenance: dict
    """The table's provenance."""
    tabular: bool = False
    """Whether the figure is a table, and numbered among tables."""


def save_index(entries: list[Entry], study: Read, tables: str | Path, out: str | Path, static: bool, notes: Sequence[str] = ()) -> Path:
    """Write `<out>/index.html`: the sections that have something to say, with their figures, numbered, captioned, and linked to their tables.

    Args:
        entries: figures, drawn or not, each named by one of the SECTIONS.
        study: what the sections' words are made from.
        tables: folder of the tables, linked from the page by relative path.
        out: folder of the figures.
        static: whether this run's SVGs are in `out`; else the page frames the interactive figures.
        notes: sentences above all sections, as plain text.
    """
    out, by_name = Path(out), {entry.name: entry for entry in entries}
    link = href(tables, out)
    numbers = dict(Figure=count(1), Table=count(1))
    contents, parts = [], []
    for section in SECTIONS:
        found = [by_name[name] for name in section.figures if name in by_name]
        lead = _lead(section, study)
        if not lead and not found:
            continue
        contents.append(f'<li><a href="#{section.name}">{section.title}</a></li>')
        parts.append(f'<section id="{section.name}">\n<h2>{section.title}</h2>')
        parts += [_block(block, numbers["Table"]) for block in lead]
        parts += [_figure(entry, link, out, static, numbers["Table" if entry.tabular else "Figure"]) for entry in found]
        parts.append("</section>")
    nav = "\n".join(['<nav aria-label="Contents">', "<ol>", *contents, "</ol>", "</nav>"])
    return write_text(out / "index.html", "\n".join([_HEAD, *(_missing(note) for note in notes), nav, *parts, "</body>", "</html>", ""]))


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


def _lead(section: Section, study: Read) -> list[Block]:
    """What a section says; where its tables hold other columns, names or kinds of values than it reads, that it says nothing."""
    try:
        return section.lead(study)
    except UNREADABLE as problem:
        return [Missing(f"Nothing is said here: the tables hold something else than this section reads ({unreadable(problem)}).")]


def _missing(text: str) -> str:
    return f'<p class="missing">{html.escape(text)}</p>'


def _block(block: Block, numbers) -> str:
    """A paragraph, a list, a numbered table, or why there is none."""
    if isinstance(block, Items):
        return "\n".join(["<ul>", *(f"<li>{item}</li>" for item in block.items), "</ul>"])
    if isinstance(block, Cells):
        head = "".join(f'<th scope="col">{cell}</th>' for cell in block.heads)
        rows = [f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in block.rows]
        caption = f"<caption><b>Table {next(numbers)}.</b> {block.caption}</caption>"
        return "\n".join(['<div class="scroll"><table>', caption, f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody></table></div>"])
    return _missing(block.text) if isinstance(block, Missing) else f"<p>{block}</p>"


def _figure(entry: Entry, link: str, out: Path, static: bool, numbers) -> str:
    """A figure under its heading, with caption, links and provenance; or the sentence that says why there is none."""
    parts = [f'<figure id="{entry.name}-figure">\n<h3>{entry.title}</h3>']
    if not entry.drawn:
        return "\n".join([*parts, f"{_missing(entry.caption)}\n</figure>"])
    links = [f'<a href="{entry.name}.html">interactive</a>']
    if static:
        svg = (out / f"{entry.name}.svg").read_text(encoding="utf-8")
        parts.append(f'<div class="drawing">{_scalable(svg)}</div>')
        links += [f'<a href="{entry.name}.{suffix}">{suffix.upper()}</a>' for suffix in ("svg", "pdf")]
    else:
        parts.append(f'<iframe src="{entry.name}.html" title="{html.escape(entry.title)}"></iframe>')
    links += [f'<a href="{link}/{entry.table}.csv">table (CSV)</a>', f'<a href="{link}/{entry.table}.json">provenance (JSON)</a>']
    parts.append(f'<figcaption><b>{"Table" if entry.tabular else "Figure"} {next(numbers)}.</b> {entry.caption}</figcaption>')
    parts.append(f'<p class="links">{" · ".join(links)}</p>')
    if short := describe(entry.provenance):
        parts.append(f'<details class="provenance"><summary>What made it</summary><p>{html.escape(short)}</p></details>')
    return "\n".join([*parts, "</figure>"])


def _short(value) -> str:
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{8,}\b", r"\1", str(value))
    return text if len(text) <= 160 else text[:157] + "..."


def _scalable(svg: str) -> str:
    """SVG that shrinks with the page: its size moved into a viewBox where it has none."""
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    size = [re.search(rf'\b{side}="([\d.]+)"', head).group(1) for side in ("width", "height")]
    if "viewBox" not in head:
        head += f' viewBox="0 0 {size[0]} {size[1]}"'
    return re.sub(r'\sheight="[\d.]+"', "", head, count=1) + ">" + rest


_FIRST = ("date", "command", "model", "versions")
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Where do chain-of-thought training gains land?</title>
<style>
body { font: 16px/1.55 Arial, Helvetica, "Liberation Sans", sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; line-height: 1.25; margin: 0 0 .6em; }
h2 { font-size: 1.35em; margin: 2.4em 0 .5em; padding-top: .5em; border-top: 2px solid #222; }
h3 { font-size: 1.05em; margin: 0 0 .4em; }
p, li { max-width: 52em; }
p { margin: .7em 0; }
li { margin: .35em 0; }
nav { background: #f4f6f8; padding: .4em 1em; }
nav ol { columns: 2; column-gap: 2em; margin: .5em 0; }
nav li { break-inside: avoid; margin: .15em 0; }
a { color: #0072b2; }
figure { margin: 2.2em 0; }
.drawing svg { width: 100%; height: auto; display: block; }
iframe { width: 100%; height: 650px; border: 0; }
figcaption, .links, .provenance, .note { font-size: .85em; }
figcaption { line-height: 1.45; margin: .4em 0; color: #333; }
.links, .provenance { margin: .3em 0; color: #555; overflow-wrap: anywhere; }
.missing { color: #8a4b00; }
.scroll { overflow-x: auto; margin: 1.4em 0; }
table { border-collapse: collapse; font-size: .85em; line-height: 1.35; width: 100%; }
caption { text-align: left; margin-bottom: .5em; }
th, td { padding: .35em .8em .35em 0; text-align: left; vertical-align: top; font-weight: normal; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
thead th { border-bottom: 1px solid #222; border-top: 1px solid #222; font-weight: bold; vertical-align: bottom; }
@media (max-width: 700px) { nav ol { columns: 1; } }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; }
  h2, h3 { break-after: avoid; }
  .drawing, tr, figcaption { break-inside: avoid; }
  .drawing { break-after: avoid; }
  .links, .provenance { display: none; }
  a { color: inherit; text-decoration: none; }
}
</style>
</head>
<body>
<h1>Where do chain-of-thought training gains land?</h1>
<p class="note">Every number here is made from the stored tables, and so are the words that say which way it goes.
In figures blue is the prompt's side, vermilion the trace's side. Numbers in brackets are 95 % intervals.</p>"""
