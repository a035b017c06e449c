"""Activations at the prompt boundary, sliced inside the hook before any copy.

>>> acts = capture(model, prompts, sites=["resid_post"], at="boundary")
>>> acts.values.shape                       # [decision, site, layer, d_model]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from interp.generation import length_batches, padded
from interp.hooks import every_layer
from interp.prompts import Prompt


@dataclass(frozen=True)
class Activations:
    """Captured activations: `values` Float[Tensor, "decision site layer d_model"] in float32, and what they are of."""

    values: torch.Tensor
    sites: tuple[str, ...]
    prompts: tuple[str, ...]
    weights_hash: str
    dtype: str

    def __len__(self) -> int:
        return len(self.values)


@torch.inference_mode()
def capture(model, prompts: Sequence[Prompt], sites: Sequence[str] = ("resid_post",), at: str = "boundary",
            batch_tokens: int = 16384, progress: bool = False) -> Activations:
    """Read sites of every layer at one position of each prompt.

    `at` is `"boundary"`. Raises ValueError for an empty list, another position, or a site whose width is not d_model.
    """
    if not prompts:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    if at != "boundary":
        raise ValueError(f"Activations can be captured at the boundary, not at {at!r}.")
    names = every_layer(sites)
    values = torch.empty(len(prompts), len(names), model.n_layers, model.d_model)
    groups = length_batches([len(p.ids) for p in prompts], batch_tokens)
    for group in tqdm(groups, desc="capture", leave=False, disable=not progress):
        rows = torch.arange(len(group), device=model.device)
        last = torch.tensor([prompts[i].boundary for i in group], device=model.device)
        model.check_length(len(prompts[group[0]].ids))
        # Padding is on the right, where no earlier token looks: the causal mask alone is exact.
        ids, _ = padded([prompts[i].ids for i in group], model.device)

        def keep(s, layer):
            def read(tensor):
                if tensor.shape[-1] != model.d_model:
                    raise ValueError(f"Site {names[s]!r} is {tensor.shape[-1]} wide, not d_model = {model.d_model}: capture it alone.")
                values[group, s, layer] = tensor[rows, last].float().cpu()
            return read

        with model.taps({(name, layer): keep(s, layer) for s, name in enumerate(names) for layer in range(model.n_layers)}):
            model.inner(input_ids=ids, use_cache=False)
    return Activations(values, tuple(names), tuple(p.hash for p in prompts), model.weights_hash, str(model.dtype))
