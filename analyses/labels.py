"""What probes predict: a class of the recorded action, or of the action that a checkpoint goes on to take."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Int

from interp.system.limits import Known

from .study import Study


def label_parts(label: str) -> tuple[str, str]:
    """Whose action a label is of, and which class of it; raises ValueError for a label that is neither."""
    whose, _, part = label.partition("_")
    if whose not in ("eventual", "reference") or not re.fullmatch(r"[\w-]+", part):
        raise ValueError(
            f"There is no label {label!a}: labels are eventual_CLASS, of the checkpoint's own action, and "
            "reference_CLASS, of the recorded one, such as eventual_target."
        )
    return whose, part


Labels = Annotated[tuple[str, ...], Known(label_parts)]


def check_labels(config: Study) -> None:
    """Raise ValueError for a label of a configuration that names no class, and where there is no label."""
    if not config.labels:
        raise ValueError("--labels names no label: give one or more, such as eventual_target.")
    for label in config.labels:
        named_class(config, label)


def named_class(config: Study, label: str) -> tuple[str, Callable[[str], str]]:
    """Whose action a label is of, and what names its class.

    Raises ValueError for a class that the environment does not have.
    """
    whose, part = label_parts(label)
    if part not in config.env.classes:
        raise ValueError(
            f"The environment {config.env.name!r} names no class {part!r} of an action: it has "
            f"{', '.join(config.env.classes)}."
        )
    return whose, config.env.classes[part]


def labelled(config: Study, step: int, split: str, label: str) -> tuple[Int[np.ndarray, "_"], list[str]]:
    """Indices of the study's decisions that have a label, and the labels."""
    whose, name = named_class(config, label)
    if whose == "eventual":
        return with_names([s.action for s in config.decoded(step, split, "cot")], name)
    return with_names([p.decision.reference for p in config.prompts(split)], name)


def with_names(
    actions: Sequence[str | None], name: Callable[[str], str]
) -> tuple[Int[np.ndarray, "_"], list[str]]:
    """Indices of the actions that there are, and their classes."""
    kept = [(i, name(action)) for i, action in enumerate(actions) if action is not None]
    return np.array([i for i, _ in kept], dtype=int), [each for _, each in kept]
