"""Figures on disk: interactive HTML, SVG and PDF from one browser, captions from the numbers, and a page of them all.

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

import pandas as pd
import plotly.graph_objects as go
import plotly.offline

from interp.plots import ARMS, CONTROLS, LABELS, SPLITS, STYLE
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
        page = figure.to_html(include_plotlyjs="directory", div_id=name, config=settings)
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


# Captions: what the table says, in numbers.

_INTERVALS = "Bands and whiskers: 95 % intervals, cluster bootstrap."


def caption_behaviour(frame: pd.DataFrame) -> str:
    """Accuracy of both modes, gap and headroom gap at the first and last checkpoint, per split."""
    lead = "Accuracy against the reference action (top), and the gap between the modes (bottom)."
    lines = []
    for name, rows in _by_split(frame):
        changes = [_change(rows, metric, word) for metric, word in _ACCURACIES.items()]
        last = _last(rows, "mcnemar_p")
        test = f" McNemar's test at step {int(last['step'])}: p = {last['value']:.2g}." if last is not None else ""
        lines.append(f"{name}: {_join(changes)}; {_verdict(rows, 'gap')}.{test} {_size(rows)}")
    return _paragraph(lead, lines)


def caption_parse(frame: pd.DataFrame) -> str:
    """Lowest parse rate of each mode and where it is reached."""
    lead = "Share of decisions whose decoded text parses to an action; where it is low, accuracy says little."
    lines = []
    for name, rows in _by_split(frame):
        lows = []
        for metric in ("parse_prompt", "parse_cot", "parse_empty_think"):
            of = rows[rows["metric"] == metric].dropna(subset="value")
            if len(of):
                worst = of.loc[of["value"].idxmin()]
                lows.append(f"{STYLE[metric][0]} {_estimate(worst)} at step {int(worst['step'])}")
        lines.append(f"{name}, lowest: {_join(lows)}. {_size(rows)}")
    return _paragraph(lead, lines)


def caption_revision(frame: pd.DataFrame) -> str:
    """Revision rate and its parts at the first and last checkpoint, and agreement."""
    lead = "How often the trace changes the action, split by effect (top); agreement of the two modes (bottom)."
    words = {"revision": "revision", "revision_helpful": "helpful", "revision_harmful": "harmful"}
    words |= {"revision_neutral": "neutral", "agreement": "agreement", "kappa": "Cohen's κ"}
    lines = [
        f"{name}: {_join([_change(rows, metric, word) for metric, word in words.items()])}. {_size(rows)}"
        for name, rows in _by_split(frame)
    ]
    return _paragraph(lead + " Each whisker belongs to the part whose upper edge it stands on.", lines)


def caption_online(frame: pd.DataFrame) -> str:
    """Success per mode at the first and last checkpoint, per split."""
    success = frame[frame["metric"] == "success"].assign(metric=lambda table: table["mode"])
    words = {"cot": "success with CoT", "prompt": "with the prompt action alone"}
    lines = [
        f"{name}: {_join([_change(rows, mode, word) for mode, word in words.items()])}. {_size(rows, 'games')}"
        for name, rows in _by_split(success)
    ]
    return _paragraph("Success in the environment, both modes on the same games.", lines)


def caption_probes(frame: pd.DataFrame, label: str = "eventual_target", split: str = "in_domain") -> str:
    """Nested probe's accuracy, best control and gain at the first and last checkpoint; the best cell of the map."""
    rows = frame[(frame["label"] == label) & (frame["split"] == split) & (frame["metric"] == "accuracy")]
    lead = f"Linear probe at the prompt boundary for the {LABELS.get(label, label)}, {SPLITS[split].lower()}."
    nested = rows[rows["layer"] == -1].assign(metric=lambda table: table["reader"])
    words = {"probe": "Accuracy of the probe with nested layer choice", "gain": "gain over the best control"}
    text = [_join([_change(nested, reader, word) for reader, word in words.items()]) + "."]
    at_end = rows[rows["step"] == rows["step"].max()]
    controls = at_end[at_end["reader"].isin(CONTROLS)].sort_values("layer").drop_duplicates("reader")
    if len(controls):
        best = controls.loc[controls["value"].idxmax()]
        name = STYLE[best["reader"]][0]
        text.append(f"Best control at step {int(best['step'])}: {name}, {_estimate(best)}.")
    cells = rows[(rows["reader"] == "gain") & (rows["layer"] >= 0)].dropna(subset="value")
    if len(cells):
        top = cells.loc[cells["value"].idxmax()]
        clear = int((cells["low"] > 0).sum())
        text.append(
            f"Largest gain on the map: {_estimate(top, signed=True)} at layer {int(top['layer'])}, step "
            f"{int(top['step'])}, picked as the maximum; {clear} of {len(cells)} cells have an interval above 0, "
            "without correction over layers."
        )
    return _paragraph(lead, [" ".join(text) + " " + _size(rows)])


def caption_patching(frame: pd.DataFrame, site: str = "resid_pre") -> str:
    """Layer with the largest effect at the first and last checkpoint, per direction, and the pairs dropped."""
    rows = frame[frame["site"] == site].dropna(subset="value")
    lead = f"Effect of patching {site} (0 = nothing changes, 1 = the other run's action in full)."
    lines = []
    for direction, of in rows.groupby("direction", sort=True):
        parts = []
        for step in sorted({of["step"].min(), of["step"].max()}):
            at = of[of["step"] == step]
            top = at.loc[at["value"].idxmax()]
            parts.append(f"{_estimate(top)} at layer {int(top['layer'])}, step {int(step)}")
        lines.append(f"Largest {direction} effect: {_join(parts, ' and ')}. {_size(of, 'pairs')}")
    if "n_dropped" in rows and len(rows):
        low, high = int(rows["n_dropped"].min()), int(rows["n_dropped"].max())
        count = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"Pairs dropped for a small denominator: {count} per checkpoint.")
    return _paragraph(lead, lines)


def caption_reliance(frame: pd.DataFrame) -> str:
    """Prompt reliance and its parts at the first and last checkpoint, per split."""
    lead = (
        "Prompt reliance: the share of the effect on the action that goes directly from the prompt (top); the effects "
        "it is made of, as differences of summed log-probability in nats (bottom)."
    )
    words = {"prompt_reliance": "prompt reliance", "direct": "direct", "via_cot": "via CoT"}
    words |= {"total": "total", "interaction": "interaction"}
    lines = [
        f"{name}: {_join([_change(rows, metric, word) for metric, word in words.items()])}; "
        f"{_overlap(rows, 'prompt_reliance')}. {_size(rows, 'pairs')}"
        for name, rows in _by_split(frame)
    ]
    return _paragraph(lead, lines)


def caption_conflict(frame: pd.DataFrame) -> str:
    """Keep and follow per arm at the last checkpoint, per split, and whether self-splice reproduces every action."""
    lead = "The agent's own prompt with an inserted trace: keep, follow and other action per arm."
    lines = []
    for name, rows in _by_split(frame):
        arms = []
        for arm in ARMS:
            of = rows[rows["arm"] == arm]
            ends = {metric: _last(of, metric) for metric in ("keep", "follow")}
            words = [f"{metric} {_estimate(row)}" for metric, row in ends.items() if row is not None]
            if words:
                arms.append(f"{ARMS[arm]} {_join(words)}")
        lines.append(f"{name}, step {int(rows['step'].max())}: {'; '.join(arms)}. {_size(rows)}")
    splice = frame[(frame["arm"] == "self_splice") & (frame["metric"] == "keep")]["value"]
    if len(splice):
        failed = f"failed: keep falls to {splice.min():.3f}"
        verdict = "passed: keep = 1 at every checkpoint" if (splice == 1).all() else failed
        lines.append(f"Self-splice check {verdict}.")
    leak = frame[frame["metric"] == "leak_rate"].dropna(subset="value")
    if len(leak):
        worst = leak.loc[leak["value"].idxmax()]
        lines.append(f"Highest leak rate of action mentions: {_estimate(worst)} ({ARMS[worst['arm']]}).")
    return _paragraph(lead, lines)


def _by_split(frame):
    return [(SPLITS[split], frame[frame["split"] == split]) for split in SPLITS if (frame["split"] == split).any()]


def _ends(rows, metric):
    of = rows[rows["metric"] == metric].dropna(subset="value").sort_values("step")
    return of.iloc[[0, -1]] if len(of) else of


def _last(rows, metric):
    of = _ends(rows, metric)
    return of.iloc[-1] if len(of) else None


def _estimate(row, signed=False) -> str:
    """Value with its interval: `0.42 [0.38, 0.46]`."""
    form = "{:+.2f}" if signed else "{:.2f}"
    value, low, high = (form.format(row[name]).replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if pd.notna(row["low"]) and pd.notna(row["high"]) else f"{value} (no interval)"


def _change(rows, metric, word) -> str:
    """`word 0.2 [..] at step 0 to 0.5 [..] at step 800`; empty where the table lacks the metric."""
    of = _ends(rows, metric)
    if of.empty:
        return ""
    first, last = of.iloc[0], of.iloc[-1]
    if first["step"] == last["step"]:
        return f"{word} {_estimate(last)} at step {int(last['step'])}"
    return f"{word} {_estimate(first)} at step {int(first['step'])} to {_estimate(last)} at step {int(last['step'])}"


def _verdict(rows, metric) -> str:
    last = _last(rows, metric)
    if last is None or pd.isna(last["low"]):
        return "no interval for the last gap"
    covers = last["low"] <= 0 <= last["high"]
    return f"the last gap's interval {'covers' if covers else 'excludes'} 0"


def _overlap(rows, metric) -> str:
    of = _ends(rows, metric)
    if of.empty or of["step"].nunique() < 2 or of[["low", "high"]].isna().any(axis=None):
        return "no change to judge"
    apart = of["low"].max() > of["high"].min()
    return f"the intervals of the first and last prompt reliance {'do not overlap' if apart else 'overlap'}"


def _size(rows, unit="decisions") -> str:
    """`n = 400 decisions in 60 clusters per point`, as ranges where points differ."""
    spans = []
    for column in ("n", "n_groups"):
        low, high = rows[column].min(), rows[column].max()
        spans.append("?" if pd.isna(low) else f"{int(low)}" if low == high else f"{int(low)} to {int(high)}")
    return f"n = {spans[0]} {unit} in {spans[1]} {'clusters' if unit == 'pairs' else 'episodes'} per point."


def _join(words, by=", ") -> str:
    return by.join(word for word in words if word)


def _paragraph(lead, lines) -> str:
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines, _INTERVALS])


_ACCURACIES = {
    "acc_cot": "CoT action",
    "acc_prompt": "prompt action",
    "acc_empty_think": "empty-think action",
    "gap": "gap",
    "headroom_gap": "headroom gap",
}
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
iframe { width: 100%; height: 620px; border: 0; }
.caption { margin: .4em 0; }
.links, .provenance { margin: .2em 0; font-size: .85em; color: #555; overflow-wrap: anywhere; }
.missing { color: #8a4b00; }
</style>
</head>
<body>
<h1>Where do chain-of-thought training gains land?</h1>
<p>Blue is the prompt's side, vermilion the trace's side.
Numbers in brackets are 95 % intervals from a cluster bootstrap.</p>"""
