"""Directions in the residual stream to steer along: a probe's, and the baselines that it is held against.

>>> w = probe_direction(acts, labels, "shelf", "drawer")
>>> shuffled = shuffled_direction(acts, labels, "shelf", "drawer")
>>> baselines = orthogonal_directions(w), shuffled, unembedding_direction(model, token)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

from interp.probing.inputs import Acts, Names, numbers
from interp.probing.logistic import scaling
from interp.probing.solver import fit_logistic
from interp.system.choices import RANDOM


@runtime_checkable
class TokenisesActions(Protocol):
    """What tokenises actions, as `PromptFormat` does."""

    def action_ids(self, action: str) -> list[int]: ...


@runtime_checkable
class Unembeds(Protocol):
    """What wraps a transformers model in `hf`, as `HookedModel` does."""

    hf: Any  # transformers types its models' outputs in part


def unit(direction: Float[np.ndarray, "*rest d_model"], why: str) -> Float[np.ndarray, "*rest d_model"]:
    """Vectors at length 1.

    Raises:
        ValueError: which says `why`, for one that is zero or not finite.
    """
    norm = np.linalg.norm(direction, axis=-1, keepdims=True)
    if not (np.isfinite(norm) & (norm > 0)).all():
        raise ValueError(f"A direction must be finite and not zero, but {why}.")
    return direction / norm


def probe_direction(
    acts: Acts, labels: Names, a: str, b: str, method: str = "mean", C: float = 0.1
) -> Float[np.ndarray, "d_model"]:
    """Unit vector from class b to class a: the difference of means, or the weights of a regression.

    Args:
        acts: the steered layer's residual stream at the boundary, [decision, d_model].
        labels: the class of each decision; only a's and b's count.
        method: `mean` or `logistic`.
        C: inverse penalty of the regression on standardised features; its weights are given back unscaled.

    Raises:
        ValueError: for lengths that differ, another method, a class without decisions, and a zero direction.

    Source: Marks & Tegmark 2023 (difference of means).
    """
    values, classes = numbers(acts), np.asarray(labels)
    if values.ndim != 2 or len(values) != len(classes):
        raise ValueError(
            "acts must be [decision, d_model] with a label for each decision, "
            f"not {values.shape} with {len(classes)} labels."
        )
    if method not in ("mean", "logistic"):
        raise ValueError(f"There is no method {method!r} for a direction: use mean or logistic.")
    first, second = values[classes == a], values[classes == b]
    if a == b or not len(first) or not len(second):
        raise ValueError(
            "A direction needs decisions of two classes, "
            f"but {len(first)} are of {a!r} and {len(second)} of {b!r}."
        )
    if method == "mean":
        return unit(first.mean(0) - second.mean(0), f"{a!r} and {b!r} have the same mean")
    rows, code = np.concatenate([first, second]), np.repeat([0, 1], [len(first), len(second)])
    mean, scale = scaling(rows)
    weights, _, _ = fit_logistic([(rows - mean) / scale], [code], (C,))
    difference = weights[0][0, :, 0] - weights[0][0, :, 1]
    return unit(difference / scale, f"{a!r} and {b!r} have the same activations")


def shuffled_direction(
    acts: Acts, labels: Names, a: str, b: str, method: str = "mean", seed: int = 0
) -> Float[np.ndarray, "d_model"]:
    """As `probe_direction`, with the labels of the decisions of a and b permuted among them."""
    classes: Shaped[np.ndarray, "decision"] = np.array(labels)
    of_both = np.flatnonzero((classes == a) | (classes == b))
    classes[of_both] = np.random.default_rng(seed).permutation(classes[of_both])
    return probe_direction(acts, classes, a, b, method)


def orthogonal_directions(
    direction: Float[np.ndarray, "..."] | Sequence[float], n: int = RANDOM, seed: int = 0
) -> Float[np.ndarray, "n d_model"]:
    """Random unit vectors, each orthogonal to `direction` [d_model].

    Raises:
        ValueError: for a zero direction or fewer than two dimensions.
    """
    w = unit(np.asarray(direction, dtype=float), "the one to be orthogonal to is not")
    if w.ndim != 1 or len(w) < 2:
        raise ValueError(
            f"Orthogonal directions need one direction of at least two dimensions, not of shape {w.shape}."
        )
    drawn = np.random.default_rng(seed).standard_normal((n, len(w)))
    drawn -= np.outer(drawn @ w, w)
    return unit(drawn - np.outer(drawn @ w, w), "a drawn one is not")


def parting_token(fmt: TokenisesActions, a: str, b: str) -> int:
    """The token of action a where it first parts from action b.

    Raises:
        ValueError: where they are the same.
    """
    for token, other in zip(fmt.action_ids(a), [*fmt.action_ids(b), None]):
        if token != other:
            return token
    raise ValueError(f"The actions {a!r} and {b!r} do not part: they have the same tokens.")


def unembedding_direction(model: Unembeds, token: int) -> Float[np.ndarray, "d_model"]:
    """The unembedding row of one token, as a unit vector."""
    row = model.hf.get_output_embeddings().weight[token]
    return unit(row.double().cpu().numpy(), f"the unembedding row of token {token} is zero")
