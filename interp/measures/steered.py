"""What steering did: every kind of direction at every strength, and how often the action changed.

>>> result.to_frame().groupby(["kind", "alpha"]).flip.mean()
>>> result.plot()                                                       # against alpha
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Num, Shaped

from interp.results.shown import Plotted, Shown, counted

METRICS = ("flip", "flip_parsed", "to_target", "parse")
Actions = list[list[str | None]]  # [direction][decision]


@dataclass(frozen=True, eq=False, repr=False)
class Steered(Shown):
    """One kind of direction at one alpha.

    Of a kind of which each decision is steered along m directions only, row k holds direction (m * i + k) mod
    their number at decision i.
    """

    kind: str
    alpha: float
    action: Actions
    """What was done (None: unparsed)."""
    flip: Bool[np.ndarray, "direction decision"]
    """It is not the unsteered action."""
    parsed: Bool[np.ndarray, "direction decision"]
    """It is an action."""
    judged: Bool[np.ndarray, "direction decision"]
    """It is an action, and the unsteered text is one as well."""
    to_target: Bool[np.ndarray, "direction decision"]
    """It is of the target class, and the unsteered one is not."""

    def summary(self) -> str:
        directions, decisions = self.flip.shape
        shape = f"{counted(directions, 'direction')}, {counted(decisions, 'decision')}"
        return f"{self.kind}, alpha {self.alpha:g}, {shape}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each direction and decision."""
        direction, decision = np.indices(self.flip.shape).reshape(2, -1)
        names = ("flip", "parsed", "judged", "to_target")
        columns = {name: getattr(self, name).ravel() for name in names}
        actions = [action for each in self.action for action in each]
        places = dict(kind=self.kind, alpha=self.alpha, direction=direction, decision=decision)
        return pd.DataFrame({**places, "action": actions, **columns})


@dataclass(frozen=True, eq=False, repr=False)
class Steering(Plotted):
    """Every kind and alpha at one position and layer."""

    picture: ClassVar[str] = "steering"
    position: str
    mode: str
    layer: int
    norm: float
    """The residual's mean norm at the layer, alpha's unit."""
    target: str
    path: str
    """`batched`, or `plain loop` with the reason why the model is served by that one."""
    unsteered: list[str | None]
    """The plain decoding's actions [decision]."""
    resample: Bool[np.ndarray, "decision"]
    """Where alpha 0 gives another one (nowhere, but for rounding in bfloat16)."""
    cells: tuple[Steered, ...]

    def column(
        self, kind: str, alpha: float, metric: str
    ) -> tuple[Shaped[np.ndarray, "row"], Int[np.ndarray, "row"]]:
        """One metric of one cell, and the decision of each row, the directions of a kind one after the other.

        `flip` over all decisions and `flip_parsed` over those whose two texts both parse are differences to
        the alpha 0 resample rate, row by row; `to_target` and `parse` are as counted.

        Raises:
            ValueError: for a cell or metric that is not there.
        """
        cell = next((c for c in self.cells if (c.kind, c.alpha) == (kind, alpha)), None)
        if cell is None or metric not in METRICS:
            raise ValueError(
                f"There is no {metric!r} of {kind!r} at alpha {alpha}: the metrics are {', '.join(METRICS)}, "
                f"the cells {', '.join(f'{c.kind} {c.alpha:g}' for c in self.cells)}."
            )
        by_metric = {"to_target": cell.to_target, "parse": cell.parsed}
        values: Num[np.ndarray, "direction decision"] = by_metric.get(metric, cell.flip)
        if metric.startswith("flip") and self.resample.any():
            values = values.astype(float) - self.resample
        row, decision = np.nonzero(cell.judged if metric == "flip_parsed" else np.ones_like(cell.judged))
        return values[row, decision], decision

    def summary(self) -> str:
        kinds = ", ".join(dict.fromkeys(cell.kind for cell in self.cells))
        alphas = ", ".join(f"{alpha:g}" for alpha in dict.fromkeys(cell.alpha for cell in self.cells))
        where = f"{self.position}, layer {self.layer}, towards {self.target!r}"
        decisions = counted(len(self.unsteered), "decision")
        return f"{decisions}, {where}; directions {kinds}; alphas {alphas}; {self.path}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each kind, alpha, direction and decision: what was done, and what that is.

        `resampled`: whether alpha 0 gives another action there, which flips are held against.
        """
        cells = pd.concat([cell.to_frame() for cell in self.cells], ignore_index=True)
        cells["resampled"] = self.resample[cells["decision"]]
        for name in ("layer", "mode", "position"):
            cells.insert(0, name, getattr(self, name))
        return cells
