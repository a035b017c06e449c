"""Activations at the prompt boundary, sliced inside the hook before any copy.

An episode's prompts extend one another, so one pass over the longest reads every step's boundary.

>>> acts = capture(model, prompts, sites=["resid_post"], at="boundary")
>>> acts.values.shape                       # [decision, site, layer, d_model]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from interp.models.finite import not_finite
from interp.models.hooks import only
from interp.engine.packing import ancestors, merge
from interp.prompts.format import Prompt
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import batches, padded

#: A tree of prompts is read in one packed pass where it has at most this share of the tokens that its prompts have.
WORTH = 0.7


@dataclass(frozen=True)
class Activations:
    """Captured activations: `values` Float[Tensor, "decision site layer width"] in float32, and what they are of.

    `paths` says how each decision was read: `trajectory` (with others that it extends or that extend it, in one row),
    `shared prefix` (packed behind what its episode's prompts begin with), or `plain` (by itself).
    """

    values: torch.Tensor
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    prompts: tuple[str, ...]
    weights_hash: str
    dtype: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


def _plan(model, prompts: Sequence[Prompt], batch_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Decisions that share a row (each a prefix of the row's last), and decisions that share a packed tree."""
    episodes, rows, packed = defaultdict(list), [], []
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids)):
        episodes[prompts[index].decision.episode].append(index)
    for members in episodes.values():
        chains: list[list[int]] = []
        for index in members:
            home = next((c for c in chains if prompts[index].ids[:len(prompts[c[-1]].ids)] == prompts[c[-1]].ids), None)
            if home and not model.stands_alone(len(prompts[index].ids)):
                home.append(index)
            else:
                chains.append([index])
        ends = [prompts[chain[-1]].ids for chain in chains]
        trees = model.support.trajectory == "fast" and model.packs(max(map(len, ends)))
        if trees and len(chains) > 1 and len(merge(ends)[0]) <= min(WORTH * sum(map(len, ends)), batch_tokens):
            packed.append(members)
        else:
            rows += chains
    return rows, packed


def common_width(model, sites: Sequence[str], layers: Sequence[int]) -> int:
    """The one width of some sites in some layers.

    Raises ValueError where they differ, NotImplementedError for a site that a layer does not have.
    """
    widths = {site: [model.width(site, layer) for layer in layers] for site in sites}
    for site, found in widths.items():
        if len(set(found)) > 1:
            by_width = {w: [layer for layer, own in zip(layers, found) if own == w] for w in dict.fromkeys(found)}
            listed = ", ".join(f"{w} in layers {', '.join(map(str, where))}" for w, where in by_width.items())
            raise ValueError(f"{site} differs in width between layers ({listed}): capture the layers of each width by themselves (layers=).")
    if len({found[0] for found in widths.values()}) > 1:
        listed = ", ".join(f"{site} {found[0]}" for site, found in widths.items())
        raise ValueError(f"The sites differ in width ({listed}): capture each width by itself.")
    return widths[sites[0]][0]


@measured
@torch.inference_mode()
def capture(model, prompts: Sequence[Prompt], sites: Sequence[str] = ("resid_post",), at: str = "boundary", *, layers: Sequence[int] | None = None,
            trajectory: bool = True, batch_tokens: int = 8192, progress: bool = False) -> Activations:
    """Read sites at one position of each prompt, computing no logits and no layer above the last one asked for.

    layers: every layer where None. trajectory: read an episode's prompts together where their ids allow it; the result is
    the same, and says which path each decision took. batch_tokens: most tokens in one pass, padding included.
    Raises ValueError for an empty list, another position, a layer that is not there, or sites or layers of different widths.
    """
    if not prompts:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    if at != "boundary":
        raise ValueError(f"Activations can be captured at the boundary, not at {at!r}.")
    names, wanted = every_layer(sites), tuple(range(model.n_layers)) if layers is None else tuple(int(layer) for layer in layers)
    if not wanted or not set(wanted) <= set(range(model.n_layers)) or len(set(wanted)) < len(wanted):
        raise ValueError(f"layers must be different ones of 0 to {model.n_layers - 1}, not {list(wanted)}.")
    width = common_width(model, names, wanted)
    model.check_ids(p.ids for p in prompts)
    # All there will be, before the first pass: what is kept between a pass's own tensors would scatter them over the memory.
    values = torch.empty(len(prompts), len(names), len(wanted), width)
    rows, trees = _plan(model, prompts, batch_tokens) if trajectory else ([[i] for i in range(len(prompts))], [])
    paths = ["plain"] * len(prompts)

    def read(decisions, row, token, **inputs):
        """One pass; decision i's boundary is at (row[i], token[i])."""
        row, token = (torch.tensor(x, device=model.device) for x in (row, token))

        def keep(*place):
            def tap(tensor):
                values[(decisions, *place)] = tensor[row, token].float().cpu()
            return tap

        with only(model.blocks, 0, max(wanted), model.outputs), model.taps({(name, layer): keep(s, i) for s, name in enumerate(names) for i, layer in enumerate(wanted)}):
            model.inner(**model.uncached, **inputs)

    lengths = [len(prompts[row[-1]].ids) for row in rows]
    for members in tqdm(trees, desc="capture", leave=False, disable=not progress):
        tokens, parents, nodes = merge([prompts[i].ids for i in members])
        seen = ancestors(parents).to(model.device)
        depth = seen.sum(1)[None] - 1
        model.check_length(max(len(prompts[i].ids) for i in members))
        read(members, [0] * len(members), [path[-1] for path in nodes], input_ids=torch.tensor([tokens], device=model.device),
             position_ids=depth, attention_mask=model.mask(seen[None], depth, depth))
        for i in members:
            paths[i] = "shared prefix"
    for length in lengths:
        model.check_length(length)
    for batch in tqdm(batches(model, lengths, batch_tokens), desc="capture", leave=False, disable=not progress):
        # Padding is on the right, where no earlier token looks: the causal mask alone is exact.
        ids, _ = padded([prompts[rows[r][-1]].ids for r in batch], model.device)
        members = [(number, i) for number, r in enumerate(batch) for i in rows[r]]
        read([i for _, i in members], [number for number, _ in members], [prompts[i].boundary for _, i in members], input_ids=ids)
        for r in batch:
            for i in rows[r] if len(rows[r]) > 1 else ():
                paths[i] = "trajectory"
    if not values.isfinite().all():
        decision, site, layer = (int(i) for i in (~values.isfinite()).nonzero()[0][:3])
        raise ValueError(not_finite(f"The activations of {model.architecture}", model.dtype,
                                    f"first {names[site]} of layer {wanted[layer]} at prompt {decision}"))
    return Activations(values, tuple(names), wanted, tuple(p.hash for p in prompts), model.weights_hash, str(model.dtype), tuple(paths))
