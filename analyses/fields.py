"""Fields of several configurations, each with what it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from interp.environments.base import find
from interp.models.site_names import SITES, parse_site
from interp.system.choices import check_device
from interp.system.limits import Known, Limits

if TYPE_CHECKING:
    from .study import Study


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


def site(name: str) -> None:
    """Raise ValueError for what is no site, or is a site of one layer."""
    if parse_site(name)[1] is not None:
        raise ValueError(f"{name!r} names a layer: name the site alone, and layers by --activation_layers.")


#: Fields of several configurations, with what they may be.
Device = Annotated[str, Known(device)]
EnvironmentName = Annotated[str, Known(environment)]


@dataclass
class Placing:
    """Over which devices a study's model is laid."""

    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = "none"
    """Lay the layers of a model that is too large for one GPU over all that this process, or a cluster's
    worker (--gpus_per_worker 2), sees: evenly (auto, balanced), with less on the first, or in turn."""


def places(study: Study) -> str | None:
    """accelerate's device map of a study's model; raises ValueError beside what knows one device only."""
    if study.device_map == "none":
        return None
    if study.device not in ("auto", "cuda"):
        raise ValueError(f"--device_map lays the model over every GPU: leave out --device {study.device}.")
    if study.generator == "vllm":
        raise ValueError("--device_map: vLLM reads a checkpoint on one GPU: leave out --generator vllm.")
    return study.device_map


@dataclass
class Storing:
    """What is kept on disk of the activations that analyses read."""

    keep_activations: Literal["none", "boundary", "all"] = "all"
    """Which stored activations stay when the analyses that read them have ended: none; boundary, those of the
    studied decisions at every checkpoint; or also those of probes' fitting decisions and random weights."""
    activation_sites: Annotated[tuple[str, ...], Known(site)] = ("resid_pre", "resid_post")
    """Which sites are stored: of resid_pre, resid_mid, resid_post, attn_out, mlp_out and z. Analyses read the
    same whatever is stored, and capture again what is not."""
    activation_layers: Annotated[tuple[int, ...], Limits(0, 10_000)] = ()
    """Which layers are stored, counted from 0; all when empty."""
    activation_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision in which activations are stored; half of it takes half the disk, and rounds what probes
    read."""
    store_decoded: bool = False
    """Store activations as prompts are read to decode them, which spares probes reading them again (`all`
    does where it probes)."""

    @property
    def stored_sites(self) -> tuple[str, ...]:
        """The sites that are stored, by their one name each, in the order of `SITES`."""
        named = {parse_site(name)[0] for name in self.activation_sites}
        return tuple(each for each in SITES if each in named)

    def stored_layers(self, n: int) -> list[int]:
        """The layers that are stored of a model's `n`; raises ValueError for one that is not there."""
        if missing := [layer for layer in self.activation_layers if layer >= n]:
            raise ValueError(
                f"--activation_layers: there is no layer {missing[0]}: the model's layers are 0 to {n - 1}."
            )
        return sorted(self.activation_layers) or list(range(n))

    @property
    def stored_as(self) -> dict[str, str]:
        """What a stage that reads stored activations says of their precision; nothing where it is whole."""
        return {} if self.activation_dtype == "float32" else dict(activation_dtype=self.activation_dtype)
