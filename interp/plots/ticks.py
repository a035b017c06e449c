"""Ticks of value axes whose labels keep apart, and do not reach into the next panel.

>>> axis = go.layout.XAxis(range=[-0.21, 0.21])
>>> ticks_within(axis, 180, (5, 5)).tickvals
(-0.1, 0.0, 0.1)
>>> ticks_within(go.layout.XAxis(range=[-0.21, 0.21]), 110, (5, 5)).tickvals
(-0.1, 0.1)
"""

from __future__ import annotations

import math

import plotly.graph_objects as go

from interp.plots.wide import text_width

#: Least units between two labels.
_APART = 14
_STEPS = (1, 2, 5)


def ticks_within(axis: go.layout.XAxis, width: float, over: tuple[float, float]) -> go.layout.XAxis:
    """Give a linear axis its ticks: as many as keep apart, each with a label that has its place.

    Where that is one, there are two, not so round.

    Args:
        axis: one whose range is known and whose ticks are not; another one is left as it is.
        width: of its panel, in units.
        over: units by which a label may reach out of the panel, left and right.
    """
    if not axis.range or axis.tickvals is not None or axis.type not in (None, "-", "linear"):
        return axis
    low, high = (float(end) for end in axis.range)
    unit = width / (high - low)
    power = math.floor(math.log10(high - low)) - 2
    ends: list[float] = []
    for step in (digit * 10.0**exponent for exponent in range(power, power + 5) for digit in _STEPS):
        every = [round(step * k, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
        wide = {at: text_width(f"{at:g}") for at in every}
        held = [
            at
            for at in every
            if (at - low) * unit + over[0] >= wide[at] / 2 and (high - at) * unit + over[1] >= wide[at] / 2
        ]
        if step * unit >= max(wide.values(), default=0) + _APART:
            break
        if len(held) > 1 and (held[-1] - held[0]) * unit >= max(wide.values()) + _APART:
            ends = [held[0], held[-1]]
    return axis.update(
        tickvals=held if len(held) > 1 else ends or held, tickformat=axis.tickformat or "~g", tickangle=0
    )
