"""What the probes' functions take, checked once: a sentence that names the set, the argument and the decision at fault.

>>> data = checked_set("the first set", acts, labels, groups)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from interp.stats.intervals import cluster_codes

#: What a set holds for each decision, in the order in which a test set gives it.
COLUMNS = ("labels", "groups", "prompts", "previous", "types", "random_acts")


def numbers(acts, name: str = "acts") -> np.ndarray:
    """An array in double precision of an array, a tensor of any dtype and device (quantised, or with a gradient), or a list of them.

    Raises ValueError for what holds no real numbers.
    """
    try:
        if isinstance(acts, list | tuple) and any(
            isinstance(each, list | tuple) or hasattr(each, "detach") for each in acts
        ):
            values = np.array([numbers(each, name) for each in acts])
        elif hasattr(acts, "detach"):
            dense = acts.detach().dequantize() if acts.is_quantized else acts.detach()
            values = dense.cpu().numpy() if dense.is_complex() else dense.to("cpu").double().numpy()
        else:
            values = np.asarray(acts)
        if values.dtype.kind not in "biufO":
            raise TypeError(f"they are of dtype {values.dtype}")
        return values.astype(float)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} are no array of real numbers: {error}") from error


def layered(
    acts, argument: str = "acts", name: str = "the set"
) -> Float[np.ndarray, "decision layer d_model"]:
    """Activations in double precision, of an array or of an object whose `.values` is [decision, site, layer, d_model], one site.

    Raises ValueError for several sites, another shape, no decisions, and values that are not finite.
    """
    values = numbers(
        acts.values if hasattr(acts, "values") and not callable(acts.values) else acts,
        f"{argument} of {name}",
    )
    if values.ndim == 4:
        if values.shape[1] != 1:
            raise ValueError(
                f"{argument} of {name} hold {values.shape[1]} sites: a probe reads one, so select it first."
            )
        values = values[:, 0]
    if values.ndim != 3 or len(values) == 0:
        raise ValueError(
            f"{argument} of {name} must be [decision, layer, d_model] with decisions, not of shape {values.shape}."
        )
    bad = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(bad):
        raise ValueError(
            f"{argument} of {name} are not finite at decision {bad[0][0]}, layer {bad[0][1]} ({len(bad)} such places)."
        )
    return values


def checked_groups(groups: Sequence | None, name: str) -> list:
    """The episode of each decision; raises ValueError where they are not given, and as `stats.cluster_codes` does."""
    if groups is None:
        raise ValueError(
            f"groups of {name} are missing: give the episode of each decision, since decisions of one episode are alike "
            "(range(len(acts)) where each is an episode of its own)."
        )
    codes, names = cluster_codes(groups)
    return [names[code] for code in codes]


def checked_set(name: str, acts, *columns: Sequence | None) -> dict[str, np.ndarray | None]:
    """One set as arrays over the same decisions; `columns` as in COLUMNS, those not given None.

    Raises ValueError as `layered` does, and for lengths that differ, labels, prompts and types that are not strings, and random_acts on
    another layer axis.
    """
    values = layered(acts, "acts", name)
    given = dict.fromkeys(COLUMNS) | dict(zip(COLUMNS, columns, strict=False))
    random_acts = given.pop("random_acts")
    if random_acts is not None:
        random_acts = layered(random_acts, "random_acts", name)
        if random_acts.shape[:2] != values.shape[:2]:
            raise ValueError(
                f"random_acts of {name} are [decision, layer] = {random_acts.shape[:2]} but acts are {values.shape[:2]}: "
                "read the same decisions and layers off the random model."
            )
    lists = {argument: None if column is None else list(column) for argument, column in given.items()}
    lists["groups"] = checked_groups(given["groups"], name)
    for argument, column in lists.items():
        if column is not None and len(column) != len(values):
            raise ValueError(
                f"acts of {name} have {len(values)} decisions but {argument} has {len(column)}: give one for each."
            )
        wrong = [
            i
            for i, value in enumerate(column or [])
            if argument in ("labels", "prompts", "types") and not isinstance(value, str)
        ]
        if wrong:
            first = f"decision {wrong[0]} has {column[wrong[0]]!r}"
            raise ValueError(f"{argument} of {name} must be strings; {first} ({len(wrong)} such).")
    # The extra None keeps numpy from turning groups that are tuples into a second axis.
    arrays = {
        key: None if column is None else np.array([*column, None], dtype=object)[:-1]
        for key, column in lists.items()
    }
    return {"acts": values, **arrays, "random_acts": random_acts}


def joined_sets(sets: Sequence[dict[str, np.ndarray | None]]) -> dict[str, np.ndarray | None]:
    """The decisions of one set, or of two after each other.

    Raises ValueError for sets that differ in [layer, d_model] or in what they hold, and for episodes in both.
    """
    if len(sets) == 1:
        return dict(sets[0])
    first, second = sets
    for argument in ("prompts", "previous", "types", "random_acts"):
        if (first[argument] is None) != (second[argument] is None):
            raise ValueError(f"{argument} is given for one set only: give it for both or for neither.")
    for argument in ("acts", "random_acts"):
        if first[argument] is not None and first[argument].shape[1:] != second[argument].shape[1:]:
            shapes = f"{first[argument].shape[1:]} and {second[argument].shape[1:]}"
            raise ValueError(f"The sets differ in [layer, d_model] of {argument}: {shapes}.")
    shared = set(first["groups"].tolist()) & set(second["groups"].tolist())
    if shared:
        raise ValueError(
            f"{len(shared)} episodes (one is {min(shared, key=str)!r}) are in both sets: share none."
        )
    return {
        name: None if first[name] is None else np.concatenate([first[name], second[name]]) for name in first
    }


def check_folds(n_groups: int, folds: int, seed: int = 0) -> None:
    """Raises ValueError where the episodes do not allow the folds, and for a seed below 0."""
    if seed < 0:
        raise ValueError(f"seed is a number from 0 on, not {seed}.")
    if folds < 2 or n_groups < max(folds, 4):
        raise ValueError(
            f"{n_groups} episodes do not allow {folds} folds: need folds >= 2 and at least max(folds, 4) episodes."
        )
