"""Fields of several configurations, each with what it may be."""

from __future__ import annotations

from typing import Annotated

from interp.environments.base import find
from interp.system.choices import check_device
from interp.system.limits import Known


def environment(name: str) -> None:
    """Raise the sentence of an environment that cannot be had ("auto": as the decisions say)."""
    if name != "auto":
        find(name)


def device(name: str) -> None:
    """Raise ValueError for a device that this machine does not have."""
    check_device(name)
    if name not in ("auto", "cpu"):
        from interp.models.hooked import pick_device

        pick_device(name)


#: Fields of several configurations, with what they may be.
Device = Annotated[str, Known(device)]
EnvironmentName = Annotated[str, Known(environment)]
