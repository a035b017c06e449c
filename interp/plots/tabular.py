"""Tables drawn as figures, for pages and slides; a paper has them in LaTeX.

>>> draw_table({"split": ["in domain"], "decisions": ["400"]}, [2, 1])
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.plots.look import SMALL, current
from interp.plots.wide import text_width, wrapped

_LINE, _PAD, _MARGIN = 18, 18, 4  # units


def draw_table(
    columns: Mapping[str, Sequence[str]],
    widths: Sequence[float],
    align: Sequence[str] = ("left",),
    fills: Sequence[str] = ("white",),
) -> go.Figure:
    """A table as wide as the figure, and as high as its longest cells need.

    Args:
        columns: cells of each column by its heading.
        widths: of the columns, in relation to each other; each is at least as wide as its longest word.
        align: of each column; the last one holds for the rest.
        fills: of each row; the last one holds for the rest.
    """
    wide = _divided(columns, widths, current().width - 2 * _MARGIN)

    def lines(cells: Sequence[str]) -> int:
        return max(len(wrapped(cell, width - _PAD)) for cell, width in zip(cells, wide, strict=True))

    rows = list(zip(*columns.values(), strict=True))
    counts = [lines(cells) for cells in (list(columns), *rows)]
    heights = [_LINE * count + (8 if count == 1 else 16) for count in counts]
    count = len(rows)
    look = dict(align=list(align), font_size=SMALL, line_color="#CCCCCC")
    shades = [*fills, *[fills[-1]] * count][:count]
    header = dict(values=list(columns), fill_color="#EEEEEE", height=heights[0]) | look
    cells = dict(values=list(columns.values()), fill_color=[shades], height=_LINE + 8) | look
    fig = go.Figure(go.Table(columnwidth=wide, header=header, cells=cells))
    margin = dict(l=_MARGIN, r=_MARGIN, t=_MARGIN, b=_MARGIN)
    return fig.update_layout(height=sum(heights) + 2 * _MARGIN, margin=margin)


def _divided(columns: Mapping[str, Sequence[str]], widths: Sequence[float], room: float) -> list[float]:
    """Units of each column: its longest word, and a share of the rest by which it comes nearer its width."""
    least = [
        max(text_width(word) for cell in (head, *cells) for word in re.split(r" |<br>", cell)) + _PAD
        for head, cells in columns.items()
    ]
    wanted = [room * width / sum(widths) for width in widths]
    more = [max(0.0, want - word) for want, word in zip(wanted, least, strict=True)]
    rest = max(0.0, room - sum(least)) / max(1.0, sum(more))
    return [word + rest * extra for word, extra in zip(least, more, strict=True)]
