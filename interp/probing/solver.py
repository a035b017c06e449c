"""Many multinomial logistic regressions at once: a batched L-BFGS in torch, on the CPU or a GPU.

>>> weights, bias, unconverged = fit_logistic([layer_0, layer_1], [code, code], (0.01, 0.1, 1.0))

It exists beside scikit-learn's because it fits all layers, folds and penalties of a probe together, many
times faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TOLERANCE, MAX_ITER = 1e-4, 1000
#: Pairs of steps and gradient changes that L-BFGS keeps.
HISTORY = 8
#: Single precision does not get further than this; double precision always has the last word.
COARSE = 5e-5
#: From this gradient on, features are scaled by their curvature there, though never below this share of the
#: power of a feature.
ROUGH, FLAT = 0.03, 0.01


def fit_logistic(
    features: Sequence[Float[np.ndarray, "_ _"]],
    code: Sequence[Int[np.ndarray, "_"]],
    grid: Sequence[float] | Sequence[Sequence[float]] | Float[np.ndarray, "problem C"],
    tolerance: float = TOLERANCE,
    device: str | torch.device = "cpu",
) -> tuple[Float[np.ndarray, "problem C feature class"], Float[np.ndarray, "problem C 1 class"], int]:
    """Fit multinomial logistic regressions with an L2 penalty: every problem at each of its C, in one batch.

    An optimum is that of scikit-learn's LogisticRegression fitted on the classes among the problem's rows
    (for two classes, of its softmax form: its binary form at 2 C). It is reached in few steps because the
    solver sees every feature scaled by the root of its approximate curvature, which works best on orthogonal
    features: at first as in Boehning's bound (1992), later as measured. Most steps are in single precision,
    the last ones in double.

    Args:
        features: [row, feature] of each problem; problems may differ in both.
        code: the class of each row of each problem, from 0.
        grid: inverse penalties, the same for all problems or a row for each.
        tolerance: largest gradient entry, in the features scaled as at first, at which a fit stops.

    Returns:
        Weights, bias (minus infinity for classes that a problem lacks), and the number of unconverged fits.

    Raises:
        ValueError: for lengths that differ, no rows, and C not above 0.
    """
    rows = [len(y) for y in code]
    if not len(features) or [len(x) for x in features] != rows or not all(rows):
        raise ValueError("Every problem needs rows and a class for each, equally many and at least one.")
    if not len(np.ravel(grid)) or np.min(grid) <= 0:
        raise ValueError(f"The grid must hold positive inverse penalties, not {grid}.")
    x = _padded(features).to(device)
    label = pad_sequence([torch.from_numpy(np.asarray(y)) for y in code], batch_first=True).to(device)
    n = torch.tensor(rows, device=device, dtype=torch.float64)[:, None]
    weight = (torch.arange(max(rows), device=device) < n) / n  # padded rows weigh nothing
    share = torch.zeros(len(rows), int(label.max()) + 1, device=device, dtype=torch.float64)
    share.scatter_add_(1, label, weight)
    present = share > 0
    c = torch.as_tensor(np.array(grid, dtype=float), device=device).expand(len(rows), -1)
    # The last feature is the bias, which is not penalised.
    penalised = torch.arange(x.shape[2], device=device) < x.shape[2] - 1
    penalty = (1 / (c * n))[:, :, None, None] * penalised
    power = (x**2 * weight[:, :, None]).sum(1) / present.sum(1, keepdim=True)
    bound = (power[:, None, None] + penalty).sqrt()
    v = torch.zeros(*c.shape, share.shape[1], x.shape[2], device=device, dtype=torch.float64)
    v[..., -1] = torch.where(present, share.log(), 0)[:, None] * bound[..., -1]  # the classes' frequencies
    mask = torch.where(present, 0.0, -torch.inf)
    first = _Problems(x, label, weight, mask, bound, penalty / bound**2, torch.ones_like(bound)).to(
        torch.float32
    )
    v, _ = _lbfgs(first, v.float(), max(tolerance, ROUGH))
    w, floor = v / bound, FLAT * power[:, None, None]
    root = (torch.maximum(first.curvature(v), floor) + penalty).sqrt()
    problems = _Problems(x, label, weight, mask, root, penalty / root**2, root / bound)
    v, _ = _lbfgs(problems.to(torch.float32), (w * root).float(), max(0.9 * tolerance, COARSE))
    v, unconverged = _lbfgs(problems.to(torch.float64), v.double(), tolerance)
    weights = (v / root).transpose(2, 3).cpu().numpy()
    bias = np.where(present.cpu().numpy()[:, None, None], weights[:, :, -1:], -np.inf)
    return weights[:, :, :-1], bias, unconverged


def problem_bytes(shape: tuple[int, ...], columns: int) -> int:
    """Memory that a problem of (rows, features) takes with `columns` = C times classes.

    L-BFGS keeps 2 HISTORY gradients.
    """
    rows, width = shape
    return 8 * (2 * rows * width + 2 * HISTORY * columns * width + 4 * columns * rows)


def _padded(features: Sequence[Float[np.ndarray, "_ _"]]) -> Float[Tensor, "problem row feature"]:
    """Features of all problems with zeros beyond their own, and a last feature of ones for the bias."""
    most, widest = max(len(rows) for rows in features), max(rows.shape[1] for rows in features)
    x = torch.zeros(len(features), most, widest + 1, dtype=torch.float64)
    for problem, rows in enumerate(features):
        x[problem, : len(rows), : rows.shape[1]] = torch.from_numpy(np.ascontiguousarray(rows))
        x[problem, : len(rows), -1] = 1
    return x


@dataclass(frozen=True)
class _Problems:
    """Losses and gradients of a batch of problems, each at several penalties.

    The solver sees weights times `root`; their gradient times `measure` is what must become small.
    """

    x: Float[Tensor, "problem row feature"]
    label: Int[Tensor, "problem row"]
    weight: Float[Tensor, "problem row"]
    mask: Float[Tensor, "problem class"]
    root: Float[Tensor, "problem C _ feature"]
    shrink: Float[Tensor, "problem C _ feature"]
    measure: Float[Tensor, "problem C _ feature"]

    def to(self, dtype: torch.dtype) -> _Problems:
        floats = (self.weight, self.mask, self.root, self.shrink, self.measure)
        return _Problems(self.x.to(dtype), self.label, *(part.to(dtype) for part in floats))

    def keep(self, problems: Int[Tensor, "kept"], slots: Int[Tensor, "kept slot"]) -> _Problems:
        """The problems at these indices, each at these of its penalties."""
        shared = (part[problems] for part in (self.x, self.label, self.weight, self.mask))
        own = (part[problems[:, None], slots] for part in (self.root, self.shrink, self.measure))
        return _Problems(*shared, *own)

    def _logits(self, v: Float[Tensor, "problem C class feature"]) -> Float[Tensor, "problem C class row"]:
        products = (v / self.root).flatten(1, 2) @ self.x.mT
        return products.unflatten(1, v.shape[1:3]) + self.mask[:, None, :, None]

    def curvature(
        self, v: Float[Tensor, "problem C class feature"]
    ) -> Float[Tensor, "problem C class feature"]:
        """Diagonal of the loss's second derivative by the unscaled weights, at scaled weights `v`."""
        p = self._logits(v).softmax(2)
        spread = p * (1 - p) * self.weight[:, None, None]
        return (spread.flatten(1, 2) @ self.x**2).unflatten(1, v.shape[1:3])

    def __call__(
        self, v: Float[Tensor, "problem C class feature"]
    ) -> tuple[Float[Tensor, "problem C"], Float[Tensor, "problem C class feature"]]:
        """Loss and gradient at scaled weights `v`."""
        logit = self._logits(v)
        logit -= logit.amax(2, keepdim=True)
        label = self.label[:, None, None].expand(-1, v.shape[1], -1, -1)
        label_logit = logit.gather(2, label)
        logit.exp_()
        total = logit.sum(2, keepdim=True)
        weight = self.weight[:, None, None].expand_as(label_logit)
        loss = ((total.log() - label_logit) * weight).sum((2, 3))
        logit *= weight / total
        logit.scatter_add_(2, label, -weight)
        shrunk = self.shrink * v
        gradient = (logit.flatten(1, 2) @ self.x).unflatten(1, v.shape[1:3])
        return loss + 0.5 * (shrunk * v).sum((2, 3)), gradient.div_(self.root) + shrunk

    def steepness(self, gradient: Float[Tensor, "problem C class feature"]) -> Float[Tensor, "problem C"]:
        """The largest entry of each fit's gradient, in the features scaled as at first."""
        return (gradient * self.measure).abs().amax((2, 3))


@dataclass
class _Search:
    """The fits that still run: where each stands, its line search, and its history of steps.

    `slots`: the index of each fit's penalty. `pairs`: the last HISTORY steps, then as many gradient changes.
    `along`:
    their products with the gradient. `inverse`, `inner`, `diagonal`: the matrices of compact L-BFGS.
    """

    slots: Int[Tensor, "problem C"]
    v: Float[Tensor, "problem C class feature"]
    value: Float[Tensor, "problem C"]
    gradient: Float[Tensor, "problem C class feature"]
    direction: Float[Tensor, "problem C class feature"]
    length: Float[Tensor, "problem C"]
    gamma: Float[Tensor, "problem C"]
    slope: Float[Tensor, "problem C"]
    pairs: Float[Tensor, "problem C pair weight"]
    along: Float[Tensor, "problem C pair 1"]
    inverse: Float[Tensor, "problem C step step"]
    inner: Float[Tensor, "problem C step step"]
    diagonal: Float[Tensor, "problem C step 1"]

    def keep(self, problems: Int[Tensor, "kept"], slots: Int[Tensor, "kept slot"]) -> _Search:
        """The fits of these problems at these of their penalties."""
        return _Search(*(getattr(self, each.name)[problems[:, None], slots] for each in fields(self)))

    def step(self, problems: _Problems, at: int) -> None:
        """Try a step of each fit; take it where the loss falls enough, else shorten the next one.

        at: where in the history the step is kept.
        """
        slack = 10 * torch.finfo(self.v.dtype).eps
        step = self.length[:, :, None, None] * self.direction
        value, gradient = problems(self.v + step)
        good = value <= self.value + 1e-4 * self.length * self.slope + slack * (1 + self.value.abs())
        taken = good[:, :, None, None]
        step, change = torch.where(taken, step, 0), torch.where(taken, gradient - self.gradient, 0)
        self.along[:, :, at, 0] = torch.where(good, self.length * self.slope, 0)
        self.along[:, :, HISTORY + at, 0] = (change * self.gradient).sum((2, 3))
        self.v = self.v + step
        self.gradient = self.gradient + change
        self.value = torch.where(good, value, self.value)
        self.length = torch.where(good, 1.0, 0.3 * self.length)
        self._remember(step.flatten(2), change.flatten(2), at)
        self.direction = torch.where(taken, self._newton(), self.direction)
        self.slope = (self.gradient * self.direction).sum((2, 3))

    def _remember(
        self, step: Float[Tensor, "problem C weight"], change: Float[Tensor, "problem C weight"], at: int
    ) -> None:
        """Put a step and its change of the gradient into the history; a pair of zeros changes nothing.

        Source: Byrd, Nocedal & Schnabel 1994 (compact L-BFGS), with the inverse of its triangle kept up.
        """
        self.pairs[:, :, at], self.pairs[:, :, HISTORY + at] = step, change
        new = (change[:, :, None] @ self.pairs.mT).mT
        self.along += new
        curvature = new[:, :, at, 0]
        safe = torch.where(curvature > 0, curvature, 1)
        self.inverse[:, :, at], self.inverse[..., at] = 0, 0
        self.inverse[..., at] = -(self.inverse @ new[:, :, :HISTORY])[..., 0] / safe[:, :, None]
        self.inverse[:, :, at, at] = 1 / safe
        self.inner[:, :, at], self.inner[..., at] = new[:, :, HISTORY:, 0], new[:, :, HISTORY:, 0]
        self.diagonal[:, :, at, 0] = curvature
        power = self.inner[:, :, at, at].clamp_min(1e-30)
        self.gamma = torch.where(curvature > 0, curvature / power, self.gamma)

    def _newton(self) -> Float[Tensor, "problem C class feature"]:
        """The next direction: minus the approximate inverse second derivative times the gradient."""
        scale = self.gamma[:, :, None, None]
        solved = self.inverse @ self.along[:, :, :HISTORY]
        rest = self.diagonal * solved + scale * (self.inner @ solved - self.along[:, :, HISTORY:])
        mix = torch.cat([self.inverse.mT @ rest, -scale * solved], 2)
        product = scale[..., 0] * self.gradient.flatten(2) + (mix.mT @ self.pairs)[:, :, 0]
        return -product.unflatten(2, self.v.shape[2:])


def _search(
    start: Float[Tensor, "problem C class feature"],
    value: Float[Tensor, "problem C"],
    gradient: Float[Tensor, "problem C class feature"],
) -> _Search:
    """Every fit at its start, about to go down the gradient."""
    size = start.shape
    one = torch.ones_like(value)
    return _Search(
        slots=torch.arange(size[1], device=start.device).expand(size[:2]),
        v=start,
        value=value,
        gradient=gradient,
        direction=-gradient,
        length=one,
        gamma=one,
        slope=-(gradient**2).sum((2, 3)),
        pairs=start.new_zeros(*size[:2], 2 * HISTORY, size[2] * size[3]),
        along=start.new_zeros(*size[:2], 2 * HISTORY, 1),
        inverse=start.new_zeros(*size[:2], HISTORY, HISTORY),
        inner=start.new_zeros(*size[:2], HISTORY, HISTORY),
        diagonal=start.new_zeros(*size[:2], HISTORY, 1),
    )


def _lbfgs(
    problems: _Problems, start: Float[Tensor, "problem C class feature"], tolerance: float
) -> tuple[Float[Tensor, "problem C class feature"], int]:
    """Minimise from `start`; returns the weights and the number of fits that did not reach the tolerance.

    Every fit has a line search of its own, and leaves the batch when its gradient is small.
    """
    value, gradient = problems(start)
    if problems.steepness(gradient).amax() <= tolerance:
        return start, 0
    search = _search(start, value, gradient)
    weights, running = start.clone(), 0
    where = torch.arange(len(start), device=start.device)
    for iteration in range(MAX_ITER):
        done = (problems.steepness(search.gradient) <= tolerance) | (search.length < 1e-8)
        running = int((~done).sum())
        if running <= 0.75 * done.numel():
            weights[where[:, None], search.slots] = search.v
            if not running:
                break
            kept = (~done).any(1).nonzero()[:, 0]
            most = int((~done).sum(1).max())
            slots = done[kept].to(torch.int8).argsort(dim=1, stable=True)[:, :most]
            search, problems, where = search.keep(kept, slots), problems.keep(kept, slots), where[kept]
        search.step(problems, iteration % HISTORY)
    return weights, running
