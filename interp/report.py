"""Figures on disk: interactive HTML, SVG and PDF from one browser, and a page of them all.

>>> save_html({"behaviour": figure}, "figures")
>>> save_static({"behaviour": figure}, "figures")
"""

from __future__ import annotations

import html
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
import plotly.offline

from interp.style import TOP
from interp.tables import write_text


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


def save_html(figures: dict[str, go.Figure], out: str | Path) -> list[Path]:
    """Write each figure as `<out>/<name>.html`, with plotly.js once beside them, so that the pages work offline.

    Args:
        figures: figure per name.
        out: folder to write to.
    """
    out = Path(out)
    script = plotly.offline.get_plotlyjs()
    paths = [out / "plotly.min.js"]
    if not paths[0].exists() or paths[0].read_text(encoding="utf-8") != script:
        write_text(paths[0], script)
    for name, figure in figures.items():
        settings = {
            "displaylogo": False,
            "modeBarButtonsToRemove": ["sendChartToCloud"],  # results stay on the reader's machine
            "toImageButtonOptions": {"format": "svg", "filename": name},
        }
        page = _below_toolbar(figure).to_html(include_plotlyjs="directory", div_id=name, config=settings)
        page = page.replace("<head>", f"<head><title>{name}</title>", 1)
        paths.append(write_text(out / f"{name}.html", page))
    return paths


def save_static(
    figures: dict[str, go.Figure], out: str | Path, formats: tuple[str, ...] = ("svg", "pdf")
) -> list[Path]:
    """Write each figure as `<out>/<name>.<format>` with one browser for all; print a line and write none without one.

    Args:
        figures: figure per name.
        out: folder to write to.
        formats: any of svg, pdf, png.

    Raises:
        RuntimeError: the browser was there and a figure could not be rendered.
    """
    try:
        import kaleido
        from choreographer.errors import BrowserClosedError, BrowserDepsError, BrowserFailedError, ChromeNotFoundError
    except ImportError:
        print("No SVG or PDF written: the package kaleido is missing; install it (`pip install kaleido`).")
        return []
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    # Rendered beside the old files and moved over them, so that a reader never sees half a figure.
    with tempfile.TemporaryDirectory(dir=out, prefix=".static-") as scratch:
        jobs = [
            {"fig": _numbered(figure, name), "path": str(Path(scratch) / f"{name}.{suffix}")}
            for name, figure in figures.items()
            for suffix in formats
        ]
        try:
            errors = kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False})
        except (BrowserClosedError, BrowserDepsError, BrowserFailedError, ChromeNotFoundError):
            print("No SVG or PDF written: no working Chromium or Chrome found (Debian: `apt-get install chromium`).")
            return []
        if errors:
            raise RuntimeError(f"{len(errors)} of {len(jobs)} static figures could not be rendered: {errors[0]}")
        for job in jobs:
            source = Path(job["path"])
            source.write_bytes(_without_chance(source.read_bytes(), source.stem))
            os.replace(source, out / source.name)
    return [out / Path(job["path"]).name for job in jobs]


def _below_toolbar(figure: go.Figure) -> go.Figure:
    """Copy of a figure with room above its legends for the toolbar, which only the interactive page has."""
    figure = go.Figure(figure)
    top, height = figure.layout.margin.t, figure.layout.height
    if height is not None:  # what is drawn keeps its size
        figure.update_layout(height=height + _TOOLBAR)
    return figure.update_layout(margin_t=(TOP if top is None else top) + _TOOLBAR)


def _numbered(figure: go.Figure, name: str) -> go.Figure:
    """Copy of a figure whose traces carry fixed ids in place of random ones."""
    figure = go.Figure(figure)
    for number, trace in enumerate(figure.data):
        trace.uid = f"{name}-{number:03d}"
    return figure


def _without_chance(content: bytes, name: str) -> bytes:
    """Replace the random part of an SVG's ids by the figure's name, and a PDF's dates by a fixed one."""
    for unique in set(re.findall(rb'id="(?:top)?defs-(\w+)"', content)):
        content = content.replace(unique, name.encode())
    return re.sub(rb"/(Creation|Mod)Date \(D:\d{14}", rb"/\1Date (D:20000101000000", content)


def save_index(entries: list[Entry], tables: str | Path, out: str | Path, static: bool) -> Path:
    """Write `<out>/index.html`: every figure in reading order with its caption, its table and its provenance.

    Args:
        entries: figures in reading order, drawn or not.
        tables: folder of the tables, linked from the page by relative path.
        out: folder of the figures.
        static: whether this run's SVGs are in `out`; else the page frames the interactive figures.
    """
    out, tables = Path(out), Path(tables)
    link = Path(os.path.relpath(tables.resolve(), out.resolve())).as_posix()
    parts = [_HEAD]
    number = 0
    for entry in entries:
        parts.append(f'<section id="{entry.name}-figure">\n<h2>{entry.title}</h2>')
        if not entry.drawn:
            parts.append(f'<p class="missing">{html.escape(entry.caption)}</p>\n</section>')
            continue
        number += 1
        csv, record = f"{link}/{entry.table}.csv", f"{link}/{entry.table}.json"
        links = [f'<a href="{entry.name}.html">interactive</a>']
        if static:
            svg = (out / f"{entry.name}.svg").read_text(encoding="utf-8")
            parts.append(f'<div class="figure">{_scalable(svg)}</div>')
            links += [f'<a href="{entry.name}.{suffix}">{suffix.upper()}</a>' for suffix in ("svg", "pdf")]
        else:
            parts.append(f'<iframe src="{entry.name}.html" title="{entry.title}"></iframe>')
        links += [f'<a href="{csv}">table (CSV)</a>', f'<a href="{record}">provenance (JSON)</a>']
        parts.append(f'<p class="caption"><b>Figure {number}.</b> {entry.caption}</p>')
        parts.append(f'<p class="links">{" · ".join(links)}</p>')
        short = describe(entry.provenance)
        parts.append(f'<p class="provenance">{html.escape(short)}</p>' if short else "")
        parts.append("</section>")
    return write_text(out / "index.html", "\n".join([*parts, "</body>", "</html>", ""]))


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


_TOOLBAR = 28  # px
_FIRST = ("date", "command", "model", "versions")
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Where CoT training gains land: figures</title>
<style>
body { font: 16px/1.5 Arial, Helvetica, "Liberation Sans", sans-serif; color: #222;
  max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 2.2em 0 .4em; }
.figure svg { width: 100%; height: auto; display: block; }
iframe { width: 100%; height: 650px; border: 0; }
.caption { margin: .4em 0; }
.links, .provenance { margin: .2em 0; font-size: .85em; color: #555; overflow-wrap: anywhere; }
.missing { color: #8a4b00; }
</style>
</head>
<body>
<h1>Where do chain-of-thought training gains land?</h1>
<p>Blue is the prompt's side, vermilion the trace's side.
Numbers in brackets are 95 % intervals from a cluster bootstrap.</p>"""
