"""Many multinomial logistic regressions at once: a batched L-BFGS in torch, on the CPU or a GPU.

>>> weights, bias, unconverged = fit_logistic([layer_0, layer_1], [code, code], (0.01, 0.1, 1.0))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.utils.rnn import pad_sequence

TOLERANCE, MAX_ITER = 1e-4, 1000
#: Pairs of steps and gradient changes that L-BFGS keeps.
HISTORY = 8
#: Single precision does not get further than this; double precision always has the last word.
COARSE = 5e-5
#: From this gradient on, features are scaled by their curvature there, though never below this share of the power of a feature.
ROUGH, FLAT = 0.03, 0.01


def fit_logistic(
    features: Sequence[Float[np.ndarray, "row feature"]],
    code: Sequence[Int[np.ndarray, "row"]],
    grid: Sequence[float] | Float[np.ndarray, "problem C"],
    tolerance: float = TOLERANCE,
    device: str | torch.device = "cpu",
) -> tuple[Float[np.ndarray, "problem C feature class"], Float[np.ndarray, "problem C 1 class"], int]:
    """Multinomial logistic regressions with an L2 penalty: every problem at each of its C, all in one batch.

    An optimum is that of scikit-learn's LogisticRegression fitted on the classes among the problem's rows (for two classes, of
    its softmax form: its binary form at 2 C). It is reached in few steps because the solver sees every feature scaled by the
    root of its approximate curvature, which works best on orthogonal features: at first as in Boehning's bound (1992), later as
    measured. Most steps are taken in single precision, the last ones in double.

    features, code: rows and their classes, from 0, of each problem; problems may differ in both axes.
    grid: inverse penalties, the same for all problems or a row for each.
    tolerance: largest gradient entry, in the features scaled as at first, at which a fit stops.
    Returns weights (0 beyond a problem's own features), bias (minus infinity for classes that the problem's rows lack) and the
    number of fits that did not reach the tolerance. Raises ValueError for lengths that differ, no rows, and C not above 0.
    """
    if (
        not len(features)
        or [len(x) for x in features] != [len(y) for y in code]
        or not all(len(y) for y in code)
    ):
        raise ValueError(
            "Every problem needs rows and a class for each: features and code must be of equal lengths above 0."
        )
    if not len(np.ravel(grid)) or np.min(grid) <= 0:
        raise ValueError(f"The grid must hold positive inverse penalties, not {grid}.")
    rows, widths = [len(y) for y in code], [x.shape[1] for x in features]
    x = torch.zeros(len(rows), max(rows), max(widths) + 1, dtype=torch.float64)
    for problem, each in enumerate(features):
        x[problem, : rows[problem], : widths[problem]] = torch.from_numpy(np.ascontiguousarray(each))
        x[problem, : rows[problem], -1] = 1
    x, n = x.to(device), torch.tensor(rows, device=device, dtype=torch.float64)[:, None]
    label = pad_sequence([torch.from_numpy(np.asarray(y)) for y in code], batch_first=True).to(device)
    weight = (torch.arange(max(rows), device=device) < n) / n  # padded rows weigh nothing
    share = torch.zeros(len(rows), int(label.max()) + 1, device=device, dtype=torch.float64).scatter_add_(
        1, label, weight
    )
    present = share > 0
    c = torch.as_tensor(np.array(grid, dtype=float), device=device).expand(len(rows), -1)
    penalty = (1 / (c * n))[:, :, None, None] * (torch.arange(x.shape[2], device=device) < x.shape[2] - 1)
    power = (x**2 * weight[:, :, None]).sum(1) / present.sum(1, keepdim=True)
    root = (power[:, None, None] + penalty).sqrt()
    v = torch.zeros(*c.shape, share.shape[1], x.shape[2], device=device, dtype=torch.float64)
    v[..., -1] = (
        torch.where(present, share.log(), 0)[:, None] * root[..., -1]
    )  # from the frequencies of the classes
    mask, bound = torch.where(present, 0.0, -torch.inf), root
    problem = _Problem(x, label, weight, mask, root, penalty / root**2, torch.ones_like(root)).to(
        torch.float32
    )
    v, _ = _lbfgs(problem, v.float(), max(tolerance, ROUGH))
    w, floor = v / root, FLAT * power[:, None, None]
    root = (torch.maximum(problem.curvature(v), floor) + penalty).sqrt()
    v, problem = w * root, _Problem(x, label, weight, mask, root, penalty / root**2, root / bound)
    for dtype, until in ((torch.float32, max(0.9 * tolerance, COARSE)), (torch.float64, tolerance)):
        v, left = _lbfgs(problem.to(dtype), v.to(dtype), until)
    w = (v / root).transpose(2, 3).cpu().numpy()
    bias = np.where(present.cpu().numpy()[:, None, None], w[:, :, -1:], -np.inf)
    return w[:, :, :-1], bias, left


def problem_bytes(shape: tuple[int, int], columns: int) -> int:
    """Memory that a problem of (rows, features) takes with `columns` = C times classes: L-BFGS keeps 2 HISTORY gradients."""
    rows, width = shape
    return 8 * (2 * rows * width + 2 * HISTORY * columns * width + 4 * columns * rows)


class _Problem:
    """Losses and gradients of a batch of problems, each at several penalties that share the products with its features.

    A weight times `root` is what the solver sees; its gradient times `measure` is what must become small.
    """

    def __init__(self, x, label, weight, mask, root, shrink, measure):
        self.parts = x, label, weight, mask, root, shrink, measure

    def to(self, dtype):
        return _Problem(*(each.to(dtype) if each.is_floating_point() else each for each in self.parts))

    def keep(self, problems, slots):
        """The problems at these indices, each at the penalties [problem, C] left of it."""
        x, label, weight, mask, *own = self.parts
        shared = (each[problems] for each in (x, label, weight, mask))
        return _Problem(*shared, *(each[problems[:, None], slots] for each in own))

    def curvature(self, v):
        """Diagonal of the loss's second derivative by the unscaled weights, at scaled weights `v`."""
        x, _, weight, mask, root, *_ = self.parts
        p = (((v / root).flatten(1, 2) @ x.mT).unflatten(1, v.shape[1:3]) + mask[:, None, :, None]).softmax(2)
        return ((p * (1 - p) * weight[:, None, None]).flatten(1, 2) @ x**2).unflatten(1, v.shape[1:3])

    def __call__(self, v):
        """Loss [problem, C] and gradient at scaled weights `v` [problem, C, class, feature]."""
        x, label, weight, mask, root, shrink, _ = self.parts
        logit = ((v / root).flatten(1, 2) @ x.transpose(1, 2)).unflatten(1, v.shape[1:3]) + mask[
            :, None, :, None
        ]
        logit -= logit.amax(2, keepdim=True)
        label = label[:, None, None].expand(-1, v.shape[1], -1, -1)
        of_label = logit.gather(2, label)
        logit.exp_()
        total = logit.sum(2, keepdim=True)
        weight = weight[:, None, None].expand_as(of_label)
        loss = ((total.log() - of_label) * weight).sum((2, 3))
        logit *= weight / total
        logit.scatter_add_(2, label, -weight)
        shrunk = shrink * v
        return loss + 0.5 * (shrunk * v).sum((2, 3)), (logit.flatten(1, 2) @ x).unflatten(
            1, v.shape[1:3]
        ).div_(root) + shrunk


def _lbfgs(problem, start, tolerance):
    """Minimise from `start`; every fit has a line search of its own, and leaves the batch when its gradient is small."""
    found, where, size, left = start.clone(), torch.arange(len(start), device=start.device), start.shape, 0
    slots, slack = (
        torch.arange(size[1], device=start.device).expand(size[:2]),
        10 * torch.finfo(start.dtype).eps,
    )
    v, (value, gradient) = start, problem(start)
    if (gradient * problem.parts[-1]).abs().amax() <= tolerance:
        return start, 0
    direction, length, gamma, slope = (
        -gradient,
        torch.ones_like(value),
        torch.ones_like(value),
        -(gradient**2).sum((2, 3)),
    )
    pairs = v.new_zeros(*size[:2], 2 * HISTORY, size[2] * size[3])
    along = v.new_zeros(*size[:2], 2 * HISTORY, 1)
    inverse, inner, diagonal = (v.new_zeros(*size[:2], HISTORY, k) for k in (HISTORY, HISTORY, 1))
    for iteration in range(MAX_ITER):
        done = ((gradient * problem.parts[-1]).abs().amax((2, 3)) <= tolerance) | (length < 1e-8)
        left = int((~done).sum())
        if left <= 0.75 * done.numel():
            found[where[:, None], slots] = v
            if not left:
                break
            kept = (~done).any(1).nonzero()[:, 0]
            chosen = done[kept].to(torch.int8).argsort(dim=1, stable=True)[:, : int((~done).sum(1).max())]
            state = (
                slots,
                v,
                value,
                gradient,
                direction,
                length,
                gamma,
                slope,
                pairs,
                along,
                inverse,
                inner,
                diagonal,
            )
            (
                slots,
                v,
                value,
                gradient,
                direction,
                length,
                gamma,
                slope,
                pairs,
                along,
                inverse,
                inner,
                diagonal,
            ) = (each[kept[:, None], chosen] for each in state)
            where, problem = where[kept], problem.keep(kept, chosen)
        step = length[:, :, None, None] * direction
        new_value, new_gradient = problem(v + step)
        good = new_value <= value + 1e-4 * length * slope + slack * (1 + value.abs())
        step, change = (
            torch.where(good[:, :, None, None], each, 0) for each in (step, new_gradient - gradient)
        )
        at = iteration % HISTORY
        along[:, :, at, 0], along[:, :, HISTORY + at, 0] = (
            torch.where(good, length * slope, 0),
            (change * gradient).sum((2, 3)),
        )
        v, gradient, value = v + step, gradient + change, torch.where(good, new_value, value)
        length = torch.where(good, 1.0, 0.3 * length)
        # Compact L-BFGS (Byrd, Nocedal & Schnabel 1994) with the inverse of its triangle kept up; a pair of zeros changes nothing.
        pairs[:, :, at], pairs[:, :, HISTORY + at] = step.flatten(2), change.flatten(2)
        new = (change.flatten(2)[:, :, None] @ pairs.mT).mT
        along += new
        curvature = new[:, :, at, 0]
        safe = torch.where(curvature > 0, curvature, 1)
        inverse[:, :, at], inverse[..., at] = 0, 0
        inverse[..., at] = -(inverse @ new[:, :, :HISTORY])[..., 0] / safe[:, :, None]
        inverse[:, :, at, at] = 1 / safe
        inner[:, :, at], inner[..., at] = new[:, :, HISTORY:, 0], new[:, :, HISTORY:, 0]
        diagonal[:, :, at, 0] = curvature
        gamma = torch.where(curvature > 0, curvature / inner[:, :, at, at].clamp_min(1e-30), gamma)
        scale = gamma[:, :, None, None]
        solved = inverse @ along[:, :, :HISTORY]
        of_steps = inverse.mT @ (diagonal * solved + scale * (inner @ solved - along[:, :, HISTORY:]))
        mix = torch.cat([of_steps, -scale * solved], 2)
        newer = -(scale[..., 0] * gradient.flatten(2) + (mix.mT @ pairs)[:, :, 0]).unflatten(2, size[2:])
        direction = torch.where(good[:, :, None, None], newer, direction)
        slope = (gradient * direction).sum((2, 3))
    return found, left
