"""Tables drawn as figures, for pages and slides; a paper has them in LaTeX.

>>> draw_table({"split": ["in domain"], "decisions": ["400"]}, [2, 1])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import plotly.graph_objects as go

from interp.plots.look import SMALL, current

_LINE, _PAD, _MARGIN, _CHARACTER = 18, 16, 4, 7.2  # units


def draw_table(
    columns: Mapping[str, Sequence[str]],
    widths: Sequence[float],
    align: Sequence[str] = ("left",),
    fills: Sequence[str] = ("white",),
) -> go.Figure:
    """A table as wide as the figure, and as high as its longest cells need.

    Args:
        columns: cells of each column by its heading.
        widths: of the columns, in relation to each other.
        align: of each column; the last one holds for the rest.
        fills: of each row; the last one holds for the rest.
    """
    room = current().width - 2 * _MARGIN
    wide = [room * width / sum(widths) - _PAD for width in widths]

    def lines(cells: Sequence[str]) -> int:
        return max(
            len(wrap(cell.replace("<br>", "\n"), max(1, int(width / _CHARACTER)), break_long_words=False))
            + cell.count("<br>")
            for cell, width in zip(cells, wide, strict=True)
        )

    rows = list(zip(*columns.values(), strict=True))
    counts = [lines(cells) for cells in (list(columns), *rows)]
    heights = [_LINE * count + (8 if count == 1 else 16) for count in counts]
    count = len(rows)
    look = dict(align=list(align), font_size=SMALL, line_color="#CCCCCC")
    shades = [*fills, *[fills[-1]] * count][:count]
    header = dict(values=list(columns), fill_color="#EEEEEE", height=heights[0]) | look
    cells = dict(values=list(columns.values()), fill_color=[shades], height=_LINE + 8) | look
    fig = go.Figure(go.Table(columnwidth=list(widths), header=header, cells=cells))
    margin = dict(l=_MARGIN, r=_MARGIN, t=_MARGIN, b=_MARGIN)
    return fig.update_layout(height=sum(heights) + 2 * _MARGIN, margin=margin)
