"""An untrained model of the same configuration: the control for what training put into activations."""

from __future__ import annotations

import copy
import hashlib
import json

import torch

from interp.models import inner
from interp.models.hooked import HookedModel


def random_twin(model: HookedModel, seed: int = 0) -> HookedModel:
    """A model of the same configuration and tokenizer with the weights of an untrained model.

    seed: of the draw, which is made on the CPU in float32 and then moved, so that every device gets the same
    weights; torch's own generator is left as it was. `weights_hash` names configuration and seed.
    """
    # An adapter draws nothing: it starts at 0.
    hf: inner.LanguageModel = getattr(model.hf, "get_base_model", lambda: model.hf)()
    config = copy.deepcopy(hf.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = inner.laid_out(inner.in_dtype(type(hf)(config), model.dtype), hf)
    # without where it was read from
    settings = {name: str(value) for name, value in config.to_dict().items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return HookedModel(drawn, model.tokenizer, weights_hash=f"random-{seed}-{digest}")
