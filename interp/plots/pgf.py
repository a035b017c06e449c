r"""Figures as pgfplots source, for those who edit in LaTeX: lines with their bands and whiskers.

>>> save({"behaviour": figure}, "paper/figures", Look("icml", columns=1))  # then \input{behaviour.pgf}

The document loads `pgfplots` with its library `groupplots`. A source has the figure's own numbers, axes,
colours and markers, and the document's fonts. Heatmaps, bars, tables and rows of estimates have none: their
PDF is as good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots.drawn import as_text
from interp.plots.latex import escape
from interp.plots.look import Look
from interp.results.tables import write_text

#: Markers and dashes as pgfplots calls them.
_MARKS = {
    "circle": "*",
    "circle-open": "o",
    "square": "square*",
    "square-open": "square",
    "diamond": "diamond*",
    "triangle-up": "triangle*",
    "triangle-down": "triangle*, mark options={rotate=180}",
    "x": "x",
    "star": "star",
    "line-ew": "-",
}
#: Panels below each other in a column, above which they stand in two.
_TALL = 4
_DASHES = {"dash": "dashed", "dot": "dotted", "dashdot": "dashdotted"}


def save(figures: dict[str, go.Figure], out: str | Path, look: Look) -> list[Path]:
    """Write `<out>/<name>.pgf` of each figure that is all lines; the others are named on the way.

    Args:
        figures: figure per name.
        out: folder to write to.
        look: what they were drawn for.
    """
    lines = {name: figure for name, figure in figures.items() if _is_lines(figure)}
    if others := [name for name in figures if name not in lines]:
        print(f"No pgfplots source of {', '.join(others)}: only figures of lines have one.")
    return [write_text(Path(out) / f"{name}.pgf", source(figure, look)) for name, figure in lines.items()]


def source(figure: go.Figure, look: Look) -> str:
    """The `tikzpicture` of a figure of lines.

    Args:
        figure: of `interp.plots`.
        look: what it was drawn for.

    Raises:
        ValueError: for a figure that has something else than lines.
    """
    if not _is_lines(figure):
        raise ValueError("Only figures of lines have a pgfplots source; take the PDF.")
    panels: dict[str, list[go.Scatter]] = {}
    for trace in figure.data:
        panels.setdefault(f"{trace.xaxis or 'x'} {trace.yaxis or 'y'}", []).append(trace)
    across = 1 if look.narrow and len(panels) <= _TALL else min(2, len(panels))
    width, height = look.inches / across - 0.65, 1.05 if look.narrow else 1.4
    columns = 1 if look.narrow else 2
    titled = any(figure.layout[f"xaxis{axes.split()[0][1:]}"].title.text for axes in list(panels)[:-across])
    apart = 0.55 + 0.22 * titled + 0.13 * math.ceil(_most_named(list(panels.values())) / columns)
    colours = sorted({_colour(trace) for trace in figure.data})
    body = [f"\\definecolor{{c{colour}}}{{HTML}}{{{colour}}}%" for colour in colours]
    body += [
        "\\begin{tikzpicture}[font=\\footnotesize]\\begin{groupplot}[",
        f"  group style={{group size={across} by {-(-len(panels) // across)},",
        f"    horizontal sep=0.6in, vertical sep={apart:.2f}in}},",
        f"  scale only axis, width={width:.3f}in, height={height:.2f}in, grid=major,",
        "  grid style={black!10}, every axis plot/.append style={mark size=1.2pt, line width=0.8pt},",
        f"  unbounded coords=jump, xlabel style={{text width={width + 0.55:.2f}in, align=center}},",
        f"  legend columns={columns},",
        "  legend style={draw=none, fill=none, at={(0,1.22)}, anchor=south west, font=\\scriptsize},",
        "  legend cell align=left, title style={at={(0,1)}, anchor=south west}]",
    ]
    names = (figure.layout.meta or {}).get("panels", {})
    legends: set[str] = set()
    for axes, traces in panels.items():
        body += _panel(figure, axes.split(), traces, names.get(axes.replace(" ", ""), ""), legends)
    note = "; ".join(str(note.text) for note in figure.layout.annotations if note.name == "n")
    under = "\\end{groupplot}" + (
        "\\node[anchor=north west, font=\\scriptsize, yshift=-2pt, align=left, "
        f"text width={look.inches - 0.1:.2f}in] at (current bounding box.south west) {{{_text(note)}}};"
        if note
        else ""
    )
    return "\n".join([*body, under, "\\end{tikzpicture}%", ""])


def _most_named(panels: Sequence[Sequence[go.Scatter]]) -> int:
    """How many series the longest legend has that stands above a panel other than the first."""
    named: set[str] = set()
    counts = []
    for traces in panels:
        new = {trace.name for trace in traces if trace.showlegend is not False and trace.name} - named
        counts.append(len(new))
        named |= new
    return max(counts[1:], default=0)


def _is_lines(figure: go.Figure) -> bool:
    """Whether all is lines or points whose values and whiskers go upwards, on plain axes."""
    upwards = all(isinstance(trace, go.Scatter) and trace.error_x.array is None for trace in figure.data)
    named = any(axis.ticktext is not None for axis in figure.select_yaxes())
    scaled = any(axis.type == "log" for axis in (*figure.select_xaxes(), *figure.select_yaxes()))
    return bool(figure.data) and upwards and not named and not scaled


def _panel(
    figure: go.Figure, axes: Sequence[str], traces: Sequence[go.Scatter], name: str, legends: set[str]
) -> list[str]:
    """One panel's axes and lines; a series has its name in the first panel that shows it."""
    across, upwards = (figure.layout[f"{axis[0]}axis{axis[1:]}"] for axis in axes)
    settings = [f"title={{{_text(name)}}}"]
    if across.title.text:
        settings.append(f"xlabel={{{_text(across.title.text)}}}")
    if across.tickvals is not None and across.ticktext is not None:
        texts = ",".join(f"{{{_text(text)}}}" for text in across.ticktext)
        settings.append(f"xtick={{{','.join(map(str, across.tickvals))}}}, xticklabels={{{texts}}}")
    for side, axis in (("x", across), ("y", upwards)):
        if axis.range:
            settings.append(f"{side}min={axis.range[0]:.6g}, {side}max={axis.range[1]:.6g}")
    lines = [f"\\nextgroupplot[{', '.join(settings)}]"]
    for trace in traces:
        x, y = _column(trace.x), _column(trace.y)
        if trace.fill == "toself":
            lines += [_band(trace, x[part], y[part]) for part in _runs(x, y)]
            continue
        lines.append(_line(trace, x, y))
        if trace.showlegend is not False and trace.name and trace.name not in legends:
            legends.add(trace.name)
            lines.append(f"\\addlegendentry{{{_text(trace.name)}}}")
    return lines


def _line(trace: go.Scatter, x: np.ndarray, y: np.ndarray) -> str:
    """A line with its markers, and whiskers where it has some."""
    mark = _MARKS.get(str(trace.marker.symbol), "*") if "markers" in (trace.mode or "") else "none"
    look = [f"c{_colour(trace)}", f"mark={mark}", _DASHES.get(str(trace.line.dash), "solid")]
    if "lines" not in (trace.mode or "lines"):
        look.append("only marks")
    error = trace.error_y
    known = np.isfinite(y)
    if not known.any():  # it stands in the legend alone
        return f"\\addlegendimage{{{', '.join(look)}}}"
    if error.array is None:
        points = " ".join(f"({a:.6g},{b:.6g})" for a, b in zip(x, y, strict=True))  # nan: a break
        return f"\\addplot[{', '.join(look)}] coordinates {{{points}}};"
    above, below = np.nan_to_num(_column(error.array)), np.nan_to_num(_column(error.arrayminus))
    look.append("error bars/.cd, y dir=both, y explicit")
    numbers = np.stack([x, y, above, below], axis=1)
    points = " ".join(f"({a:.6g},{b:.6g}) += (0,{c:.6g}) -= (0,{d:.6g})" for a, b, c, d in numbers)
    return f"\\addplot[{', '.join(look)}] coordinates {{{points}}};"


def _band(trace: go.Scatter, x: np.ndarray, y: np.ndarray) -> str:
    """An interval as a closed area."""
    points = " ".join(f"({a:.6g},{b:.6g})" for a, b in zip(x, y, strict=True))
    look = f"draw=none, fill=c{_colour(trace)}, fill opacity=0.17, forget plot"
    return f"\\addplot[{look}] coordinates {{{points}}} --cycle;"


def _runs(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The parts of an outline between its breaks."""
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]


def _column(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _colour(trace: go.Scatter) -> str:
    """Six hexadecimal digits: of a band those of its fill."""
    if trace.fillcolor:
        parts = re.findall(r"\d+", trace.fillcolor)[:3]
        return "".join(f"{int(part):02X}" for part in parts)
    return str(trace.line.color or trace.marker.color or "#000000").lstrip("#").upper()


def _text(label: object) -> str:
    """A label in LaTeX."""
    return escape(as_text(label))
