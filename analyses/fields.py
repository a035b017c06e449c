"""Fields of several configurations, each with what it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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


@dataclass
class Storing:
    """What is kept on disk of the activations that analyses read."""

    keep_activations: Literal["none", "boundary", "all"] = "all"
    """Which stored activations stay when the analyses that read them have ended: none; boundary, those of the
    studied decisions at every checkpoint; or also those of probes' fitting decisions and random weights."""
    activation_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision in which activations are stored; half of it takes half the disk, and rounds what probes
    read."""

    @property
    def stored_as(self) -> dict[str, str]:
        """What a stage that reads stored activations says of their precision; nothing where it is whole."""
        return {} if self.activation_dtype == "float32" else dict(activation_dtype=self.activation_dtype)
