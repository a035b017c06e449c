"""Attribution patching: what patching each site, layer and position would do, to first order, from one pass and one pass back.

The effect of replacing an activation is estimated as its gradient times what it would change by, for all cells at once. It is
only as good as its correlation with true patching, so use it to choose where to patch, and report `stats.correlation` beside it.

>>> screen = attribute(model, clean, corrupt)                  # a Sweep, as from patch(..., at="all")
>>> at_span(screen, clean, "history").denoise                  # [pair, site, layer]: the sum over the span's positions

Nanda 2023 (Attribution patching), Syed et al. 2023 (2310.10348).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from interp.measures.pairs import check_pairs
from interp.measures.patching import Sweep, columns_of, continuations, effects, positions_of, rows_of
from interp.models.hooked import layers_of
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.prompts.format import Prompt


def _keeping(seen: dict, keys: Sequence[tuple[str, int]]) -> dict:
    """Hooks that put the activation at each key into `seen`; the graph starts before the first block."""

    def keep(key):
        def hook(tensor):
            seen[key] = tensor.detach().requires_grad_() if key == ("resid_pre", 0) else tensor
            return seen[key] if key == ("resid_pre", 0) else None

        return hook

    return {key: keep(key) for key in dict.fromkeys([("resid_pre", 0), *keys])}


def gradients(model, ids: Sequence[int], actions: Sequence[tuple], sites: Sequence[str]):
    """A pass over a prompt and the actions after it, and one back for each pair of actions.

    actions: for each reading, the two continuations of the prompt and how many of their tokens are scored. Returns the differences of
    the two log-probabilities [reading], in nats, and for each reading its terms: the activations at each site and layer, [token, width]
    in that order, and the gradients with respect to them; gradient x change is summed over terms.
    """
    cache, seen = model.new_cache(), {}
    keys = [(site, layer) for site in sites for layer in range(model.n_layers)]
    with torch.inference_mode(False), torch.enable_grad():
        with model.hooks(_keeping(seen, keys)):
            last = model.inner(
                input_ids=torch.tensor([list(ids)], device=model.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0, -1:]
        prompt, differences = layers_of(cache), []
        for both, scored in actions:
            logp = []
            for continuation, n in zip(both, scored):
                behind = torch.tensor([list(continuation)], device=model.device)
                hidden = model.inner(
                    input_ids=behind, past_key_values=model.new_cache(prompt), use_cache=True
                ).last_hidden_state[0]
                hidden = torch.cat([last, hidden[:-1]])[-n:]
                logp.append(model.logits(hidden).log_softmax(-1).gather(1, behind[0, -n:, None]).sum())
            differences.append(logp[0] - logp[1])
        found = [
            torch.autograd.grad(
                d, [seen[key] for key in keys], retain_graph=d is not differences[-1], materialize_grads=True
            )
            for d in differences
        ]
    activations = [seen[key].detach()[0].float() for key in keys]
    return [d.item() for d in differences], [[(activations, [g[0].float() for g in of])] for of in found]


def whole_gradients(model, ids: Sequence[int], actions: Sequence[tuple], sites: Sequence[str]):
    """As `gradients`, with a pass over the whole sequence and one back for each continuation: a term each."""
    keys = [(site, layer) for site in sites for layer in range(model.n_layers)]
    differences, terms = [], []
    for both, scored in actions:
        difference, own = 0.0, []
        for sign, continuation, n in zip((1, -1), both, scored):
            seen, whole = {}, torch.tensor([[*ids, *continuation]], device=model.device)
            with torch.inference_mode(False), torch.enable_grad():
                with model.hooks(_keeping(seen, keys)):
                    hidden = model.whole(whole)[0, -n - 1 : -1]
                logp = sign * model.logits(hidden).log_softmax(-1).gather(1, whole[0, -n:, None]).sum()
                found = torch.autograd.grad(logp, [seen[key] for key in keys], materialize_grads=True)
            difference += logp.item()
            own.append(
                (
                    [seen[key].detach()[0, : len(ids)].float() for key in keys],
                    [g[0, : len(ids)].float() for g in found],
                )
            )
        differences.append(difference)
        terms.append(own)
    return differences, terms


@measured
def attribute_modes(
    model,
    clean: Sequence[Prompt],
    corrupt: Sequence[Prompt],
    sites: Sequence[str] = ("resid_pre",),
    modes: Sequence[Literal["prompt", "cot"]] = ("prompt", "cot"),
    minimum: float = 1.0,
    progress: bool = False,
) -> dict[str, Sweep]:
    """As `attribute`, reading each action in several modes, each prompt read once for all of them."""
    check_pairs(clean, corrupt)
    names = every_layer(sites)
    labels = rows_of(model, names)
    parts = [
        (number, names.index(row.partition(".")[0]), layer, columns)
        for number, row in enumerate(labels)
        for layer in range(model.n_layers)
        if (columns := columns_of(model, row, layer)) is not None
    ]
    base = np.empty((2, len(modes), len(clean)))
    moved = np.full(
        (2, len(modes), len(clean), len(labels), model.n_layers, max(len(p.ids) for p in clean)), np.nan
    )
    for index, pair in enumerate(
        tqdm(list(zip(clean, corrupt)), desc="attribute", leave=False, disable=not progress)
    ):
        actions = [
            [
                continuations(*pair, p.format.action_prefix(None if mode == "prompt" else p.decision.trace))
                for mode in modes
            ]
            for p in pair
        ]
        longest = len(pair[0].ids) + max(len(tail) for of in actions for both, _ in of for tail in both)
        read = whole_gradients if model.rereads(longest) else gradients
        runs = [read(model, p.ids, of, names) for p, of in zip(pair, actions)]
        for r, (own, other) in enumerate((runs, runs[::-1])):
            base[r, :, index] = own[0]
            for m in range(len(modes)):
                # [token, width] of each site and layer
                change = [
                    sum(g[k] * (b[k] - a[k]) for (a, g), (b, _) in zip(own[1][m], other[1][m]))
                    for k in range(len(names) * model.n_layers)
                ]
                for row, site, layer, columns in parts:
                    moved[r, m, index, row, layer, : len(pair[0].ids)] = (
                        change[site * model.n_layers + layer][:, columns].sum(-1).cpu().numpy()
                    )
    return {
        mode: effects(
            "difference",
            labels,
            *base[:, m],
            *(moved[:, m] + base[:, m, :, None, None, None]),
            minimum,
            "first order",
        )
        for m, mode in enumerate(modes)
    }


def attribute(
    model,
    clean: Sequence[Prompt],
    corrupt: Sequence[Prompt],
    sites: Sequence[str] = ("resid_pre",),
    mode: Literal["prompt", "cot"] = "prompt",
    minimum: float = 1.0,
    progress: bool = False,
) -> Sweep:
    """Estimate what `patch(..., at="all")` gives, on the summed difference: gradient x (donor's activation - own), over the same denominator.

    Arguments, axes and what is dropped as in `interp.patch`; `path` says `first order`. Estimates at a set of positions add up
    (`at_span`). Raises ValueError for lists that are not pairs, and NotImplementedError for a site that the model does not have.
    """
    return attribute_modes(model, clean, corrupt, sites, [mode], minimum, progress)[mode]


def at_span(screen: Sweep, clean: Sequence[Prompt], at: str) -> Sweep:
    """The estimates of `patch(..., at=at)`: those of the positions added up (NaN where a prompt lacks the span)."""

    def total(values):
        found = [
            [values[i][..., list(place)].sum(-1) for place in positions_of(p, at)]
            for i, p in enumerate(clean)
        ]
        return np.stack([of[0] if of else np.full(values.shape[1:3], np.nan) for of in found])

    return replace(
        screen, denoise=total(screen.denoise), noise=total(screen.noise), moved=total(screen.moved)
    )
