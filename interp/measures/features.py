"""Features of a sparse autoencoder as sites: read at any token, and ablated one at a time.

>>> sae = sae_lens.SAE.from_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")    # the extra `sae`
>>> read = features(model, sae, texts, at="all")
>>> ablate_features(model, sae, texts, read.strongest(5), answers=(" Mary", " John")).effect.shape

What the autoencoder does not explain stays in the activation: only a feature's own part is taken out
(Marks et al. 2024, 2403.19647).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.capturing import capture
from interp.engine.positions import At, Trace
from interp.measures.ablation import ablate
from interp.measures.pairs import Answer
from interp.models.hooked import HookedModel
from interp.models.site_names import one_layer
from interp.prompts.text import Readable, read_texts
from interp.results.shown import Shown, counted


class Autoencoder(Protocol):
    """What is asked of an autoencoder; those of sae_lens have it."""

    cfg: object

    def encode(self, x: Tensor) -> Tensor:
        """Features [row, feature] of activations [row, width]."""

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Activations of features."""


@dataclass(frozen=True, eq=False, repr=False)
class Features(Shown):
    """Features at each token that was read."""

    site: str
    layer: int
    values: Float[np.ndarray, "token feature"]
    decision: Int[np.ndarray, "token"]
    position: Int[np.ndarray, "token"]

    def strongest(self, n: int = 10) -> list[int]:
        """The features with the largest mean over tokens."""
        return np.argsort(-self.values.mean(0), kind="stable")[:n].tolist()

    def summary(self) -> str:
        tokens, features = self.values.shape
        return (
            f"{counted(tokens, 'token')}, {counted(features, 'feature')} of {self.site}, layer {self.layer}"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each token's features that are not 0: `decision`, `position`, `feature`, `value`."""
        token, feature = np.nonzero(self.values)
        places = dict(decision=self.decision[token], position=self.position[token], feature=feature)
        return pd.DataFrame({**places, "value": self.values[token, feature]})


@dataclass(frozen=True, eq=False, repr=False)
class FeatureAblation(Shown):
    """What taking out each feature does to what follows each prompt (see `interp.Ablation`)."""

    numbers: tuple[int, ...]
    base: Float[np.ndarray, "prompt"]
    effect: Float[np.ndarray, "prompt feature"]
    kl: Float[np.ndarray, "prompt feature"]

    def summary(self) -> str:
        return f"{counted(len(self.base), 'prompt')}, {counted(len(self.numbers), 'feature')}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each prompt and feature: `effect` and `kl`, in nats."""
        prompt, feature = np.indices(self.kl.shape).reshape(2, -1)
        columns = dict(prompt=prompt, feature=np.array(self.numbers)[feature])
        return pd.DataFrame({**columns, "effect": self.effect.ravel(), "kl": self.kl.ravel()})


def hook_of(sae: Autoencoder) -> tuple[str, int]:
    """The site and layer that an autoencoder was trained on; raises ValueError where it does not say."""
    places = [getattr(sae.cfg, "metadata", None), sae.cfg]
    name = next((name for place in places if (name := getattr(place, "hook_name", None))), None)
    if name is None:
        raise ValueError("The autoencoder does not say which site it is of (cfg.metadata.hook_name).")
    return one_layer(str(name))


@torch.inference_mode()
def features(
    model: HookedModel,
    sae: Autoencoder,
    prompts: Readable | Iterable[Readable],
    at: At = "boundary",
    *,
    traces: Sequence[Trace] | None = None,
) -> Features:
    """Encode the activations at an autoencoder's site.

    Args:
        prompts, at, traces: as in `interp.capture`.

    Raises:
        ValueError: as `interp.capture` does, and for an autoencoder that names no site.
    """
    site, layer = hook_of(sae)
    acts = capture(model, prompts, [site], at, layers=[layer], traces=traces)
    values = sae.encode(acts[site, layer].to(model.device)).float().cpu().numpy()
    return Features(site, layer, values, acts.decisions, np.array(acts.positions))


@torch.inference_mode()
def ablate_features(
    model: HookedModel,
    sae: Autoencoder,
    prompts: Readable | Iterable[Readable],
    numbers: Sequence[int],
    *,
    answers: Sequence[Answer] = (),
) -> FeatureAblation:
    """Take single features out of the activation at each prompt's boundary.

    Args:
        numbers: of the features.
        answers: as in `interp.ablate`.

    Raises:
        ValueError: as `interp.ablate` does, and for no feature or one that is not there.
    """
    site, layer = hook_of(sae)
    given = read_texts(model.tokenizer, prompts)
    acts = capture(model, given, [site], layers=[layer])[site, layer].to(model.device)
    codes = sae.encode(acts)
    count = codes.shape[-1]
    if not len(numbers) or (wrong := [n for n in numbers if not 0 <= n < count]):
        raise ValueError(
            f"The autoencoder has the features 0 to {count - 1}, not {wrong[0] if len(numbers) else 'none'}."
        )
    whole = sae.decode(codes)
    effects, kls, base = [], [], np.empty(0)
    for number in numbers:
        without = codes.clone()
        without[:, number] = 0
        donor = acts - (whole - sae.decode(without))
        result = ablate(model, given, how="donors", donors={(site, layer): donor}, answers=answers)
        effects.append(result.effect[:, 0, layer])
        kls.append(result.kl[:, 0, layer])
        base = result.base
    return FeatureAblation(tuple(numbers), base, np.stack(effects, 1), np.stack(kls, 1))
