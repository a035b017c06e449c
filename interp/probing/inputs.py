"""What the probes take, checked once: an error names the set, the argument and the decision at fault.

>>> data = checked_set("the first set", acts, labels, groups)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from interp.stats.intervals import Groups, cluster_codes

#: Activations [decision, layer, d_model] as an array, a tensor of any dtype and device or a list of them, or
#: an object whose `.values` is [decision, site, layer, d_model] with one site. `layered` checks them.
Acts = object
#: A name (label, text, previous action) of each decision, as a list or an array.
Names = Collection[object]
#: One name of each decision, as a column of objects.
Column = Shaped[np.ndarray, "decision"]


@dataclass(frozen=True)
class ProbeSet:
    """Decisions with what a probe takes of each; None for what was not given."""

    acts: Float[np.ndarray, "decision layer d_model"]
    labels: Column
    groups: Column
    prompts: Column | None = None
    previous: Column | None = None
    types: Column | None = None
    random_acts: Float[np.ndarray, "decision layer d_random"] | None = None

    def columns(self) -> dict[str, Any]:
        """What is held, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def rows(self, rows: Int[np.ndarray, "_"]) -> ProbeSet:
        """Some of the decisions."""
        held = {name: column for name, column in self.columns().items() if column is not None}
        return ProbeSet(**{name: column[rows] for name, column in held.items()})


def numbers(acts: object, name: str = "acts") -> Float[np.ndarray, "..."]:
    """An array in double precision of an array, a list, or a tensor of any dtype and device.

    Raises:
        ValueError: for what holds no real numbers.
    """
    try:
        if isinstance(acts, list | tuple) and any(
            isinstance(each, list | tuple) or hasattr(each, "detach") for each in acts
        ):
            values = np.array([numbers(each, name) for each in acts])
        elif hasattr(acts, "detach"):
            tensor = acts.detach()
            dense = tensor.dequantize() if tensor.is_quantized else tensor
            values = dense.cpu().numpy() if dense.is_complex() else dense.to("cpu").double().numpy()
        else:
            values = np.asarray(acts)
        if values.dtype.kind not in "biufO":
            raise TypeError(f"they are of dtype {values.dtype}")
        return values.astype(float)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} are no array of real numbers: {error}") from error


def layered(
    acts: Acts, argument: str = "acts", name: str = "the set"
) -> Float[np.ndarray, "decision layer d_model"]:
    """Activations in double precision.

    Raises:
        ValueError: for several sites, another shape, no decisions, and values that are not finite.
    """
    what = f"{argument} of {name}"
    raw = acts.values if hasattr(acts, "values") and not callable(acts.values) else acts
    values = numbers(raw, what)
    if values.ndim == 4:
        if values.shape[1] != 1:
            raise ValueError(f"{what} hold {values.shape[1]} sites: a probe reads one, so select it first.")
        values = values[:, 0]
    if values.ndim != 3 or len(values) == 0:
        raise ValueError(
            f"{what} must be [decision, layer, d_model] with decisions, not of shape {values.shape}."
        )
    bad = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(bad):
        decision, layer = bad[0]
        raise ValueError(
            f"{what} are not finite at decision {decision}, layer {layer} ({len(bad)} such places)."
        )
    return values


def checked_groups(groups: Groups | None, name: str) -> list:
    """The episode of each decision.

    Raises:
        ValueError: where they are not given, and where `stats.cluster_codes` does.
    """
    if groups is None:
        raise ValueError(
            f"groups of {name} are missing: give the episode of each decision, since decisions of one "
            "episode are alike (range(len(acts)) where each is an episode of its own)."
        )
    codes, names = cluster_codes(groups)
    return [names[code] for code in codes]


def checked_set(
    name: str,
    acts: Acts,
    labels: Names,
    groups: Groups | None,
    prompts: Names | None = None,
    previous: Names | None = None,
    types: Names | None = None,
    random_acts: Acts | None = None,
) -> ProbeSet:
    """One set as arrays over the same decisions.

    Raises:
        ValueError: as `layered` does, and for lengths that differ, labels, prompts and types that are not
            strings, and random_acts on another layer axis.
    """
    values = layered(acts, "acts", name)
    random_values = None
    if random_acts is not None:
        random_values = layered(random_acts, "random_acts", name)
        if random_values.shape[:2] != values.shape[:2]:
            raise ValueError(
                f"random_acts of {name} are [decision, layer] = {random_values.shape[:2]} but acts are "
                f"{values.shape[:2]}: read the same decisions and layers off the random model."
            )
    given: dict[str, Iterable[object] | None] = {
        "labels": labels,
        "groups": checked_groups(groups, name),
        "prompts": prompts,
        "previous": previous,
        "types": types,
    }
    columns: dict[str, Any] = {}
    for argument, column in given.items():
        if column is None:
            continue
        entries = list(column)
        if len(entries) != len(values):
            raise ValueError(
                f"acts of {name} have {len(values)} decisions but {argument} has {len(entries)}: "
                "give one for each."
            )
        if argument in ("labels", "prompts", "types"):
            _check_strings(f"{argument} of {name}", entries)
        # The extra None keeps numpy from turning groups that are tuples into a second axis.
        columns[argument] = np.array([*entries, None], dtype=object)[:-1]
    return ProbeSet(acts=values, random_acts=random_values, **columns)


def _check_strings(what: str, entries: Sequence[object]) -> None:
    wrong = [i for i, value in enumerate(entries) if not isinstance(value, str)]
    if wrong:
        first = f"decision {wrong[0]} has {entries[wrong[0]]!r}"
        raise ValueError(f"{what} must be strings; {first} ({len(wrong)} such).")


def joined_sets(first: ProbeSet, second: ProbeSet | None = None) -> ProbeSet:
    """The decisions of one set, or of two after each other.

    Raises:
        ValueError: for sets that differ in [layer, d_model] or in what they hold, and for episodes in both.
    """
    if second is None:
        return first
    columns, more = first.columns(), second.columns()
    for argument in ("prompts", "previous", "types", "random_acts"):
        if (columns[argument] is None) != (more[argument] is None):
            raise ValueError(f"{argument} is given for one set only: give it for both or for neither.")
    for argument in ("acts", "random_acts"):
        if columns[argument] is not None and columns[argument].shape[1:] != more[argument].shape[1:]:
            shapes = f"{columns[argument].shape[1:]} and {more[argument].shape[1:]}"
            raise ValueError(f"The sets differ in [layer, d_model] of {argument}: {shapes}.")
    check_apart(first.groups.tolist(), second.groups.tolist())
    held = {name: column for name, column in columns.items() if column is not None}
    return ProbeSet(**{name: np.concatenate([column, more[name]]) for name, column in held.items()})


def check_apart(first: Collection, second: Collection) -> None:
    """Raise ValueError for episodes in both sets."""
    shared = set(first) & set(second)
    if shared:
        raise ValueError(
            f"{len(shared)} episodes (one is {min(shared, key=str)!r}) are in both sets: share none."
        )


def checked_penalties(C: Sequence[float]) -> tuple[float, ...]:
    """Inverse penalties in rising order; raises ValueError for none, and for one not above 0."""
    grid = tuple(sorted(float(c) for c in C))
    if not grid or grid[0] <= 0:
        raise ValueError(f"C must hold positive inverse penalties, not {tuple(C)}.")
    return grid


def check_folds(n_groups: int, folds: int, seed: int = 0) -> None:
    """Raise ValueError where the episodes do not allow the folds, and for a seed below 0."""
    if seed < 0:
        raise ValueError(f"seed is a number from 0 on, not {seed}.")
    if folds < 2 or n_groups < max(folds, 4):
        raise ValueError(
            f"{n_groups} episodes do not allow {folds} folds: "
            "need folds >= 2 and at least max(folds, 4) episodes."
        )
