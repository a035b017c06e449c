"""Directions in the residual stream to steer along: a probe's, and the baselines that it is held against.

>>> w = probe_direction(acts, labels, "shelf", "drawer")
>>> baselines = orthogonal_directions(w), shuffled_direction(acts, labels, "shelf", "drawer"), unembedding_direction(model, token)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from interp.probing.inputs import numbers
from interp.probing.solver import fit_logistic
from interp.system.choices import RANDOM


def unit(direction: np.ndarray, why: str) -> np.ndarray:
    """Vectors [..., d_model] at length 1; raises ValueError, which says `why`, for one that is zero or not finite."""
    norm = np.linalg.norm(direction, axis=-1, keepdims=True)
    if not (np.isfinite(norm) & (norm > 0)).all():
        raise ValueError(f"A direction must be finite and not zero, but {why}.")
    return direction / norm


def probe_direction(
    acts: Float[np.ndarray, "decision d_model"],
    labels: Sequence[str],
    a: str,
    b: str,
    method: Literal["mean", "logistic"] = "mean",
    C: float = 0.1,
) -> Float[np.ndarray, "d_model"]:
    """Unit vector from class b to class a: the difference of their means, or the weights of a logistic regression.

    acts: the steered layer's residual stream at the boundary. labels: the class of each decision; only a's and b's are
    read. C: inverse penalty of the regression, which reads standardised features; its weights are given back unscaled.
    Raises ValueError for lengths that differ, another method, a class without decisions, and a zero direction.
    Source: Marks & Tegmark 2023 (difference of means).
    """
    acts, labels = numbers(acts), np.asarray(labels)
    if acts.ndim != 2 or len(acts) != len(labels):
        raise ValueError(
            f"acts must be [decision, d_model] with a label for each decision, not {acts.shape} with {len(labels)} labels."
        )
    if method not in ("mean", "logistic"):
        raise ValueError(f"There is no method {method!r} for a direction: use mean or logistic.")
    first, second = acts[labels == a], acts[labels == b]
    if a == b or not len(first) or not len(second):
        raise ValueError(
            f"A direction needs decisions of two classes, but {len(first)} are of {a!r} and {len(second)} of {b!r}."
        )
    if method == "mean":
        return unit(first.mean(0) - second.mean(0), f"{a!r} and {b!r} have the same mean")
    rows = np.concatenate([first, second])
    scale = rows.std(0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(rows.mean(0))), scale, np.inf)
    weights, _, _ = fit_logistic(
        [(rows - rows.mean(0)) / scale], [np.repeat([0, 1], [len(first), len(second)])], (C,)
    )
    return unit(
        (weights[0][0, :, 0] - weights[0][0, :, 1]) / scale, f"{a!r} and {b!r} have the same activations"
    )


def shuffled_direction(
    acts: Float[np.ndarray, "decision d_model"],
    labels: Sequence[str],
    a: str,
    b: str,
    method: Literal["mean", "logistic"] = "mean",
    seed: int = 0,
) -> Float[np.ndarray, "d_model"]:
    """As `probe_direction`, with the labels of the decisions of a and b permuted among them."""
    labels = np.array(labels)
    of_both = np.flatnonzero((labels == a) | (labels == b))
    labels[of_both] = np.random.default_rng(seed).permutation(labels[of_both])
    return probe_direction(acts, labels, a, b, method)


def orthogonal_directions(
    direction: Float[np.ndarray, "d_model"], n: int = RANDOM, seed: int = 0
) -> Float[np.ndarray, "n d_model"]:
    """Random unit vectors, each orthogonal to `direction`; raises ValueError for a zero direction or fewer than two dimensions."""
    w = unit(np.asarray(direction, dtype=float), "the one to be orthogonal to is not")
    if w.ndim != 1 or len(w) < 2:
        raise ValueError(
            f"Orthogonal directions need one direction of at least two dimensions, not one of shape {w.shape}."
        )
    drawn = np.random.default_rng(seed).standard_normal((n, len(w)))
    drawn -= np.outer(drawn @ w, w)
    return unit(drawn - np.outer(drawn @ w, w), "a drawn one is not")


def parting_token(fmt, a: str, b: str) -> int:
    """The token of action a where it first parts from action b; raises ValueError where they are the same."""
    first, second = fmt.action_ids(a), fmt.action_ids(b)
    found = next((x for x, y in zip(first, [*second, None]) if x != y), None)
    if found is None:
        raise ValueError(f"The actions {a!r} and {b!r} do not part: they have the same tokens.")
    return found


def unembedding_direction(model, token: int) -> Float[np.ndarray, "d_model"]:
    """The unembedding row of one token, as a unit vector."""
    return unit(
        model.hf.get_output_embeddings().weight[token].double().cpu().numpy(),
        f"the unembedding row of token {token} is zero",
    )
