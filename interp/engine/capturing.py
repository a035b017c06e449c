"""Activations at the prompt boundary, sliced inside the hook, kept on the device and copied once a pass.

An episode's prompts extend one another, so one pass over the longest reads every step's boundary.

>>> acts = capture(model, prompts, sites=["resid_post"], at="boundary")
>>> acts.values.shape                       # [decision, site, layer, d_model]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from tqdm import tqdm

from interp.engine.packing import WORTH, ancestors, merge
from interp.models.devices import fetched, halved, pass_tokens, sent
from interp.models.finite import not_finite
from interp.models.hooks import only
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import batches, padded
from interp.prompts.format import Prompt

#: Most tokens of a tree, whose mask has the square of them, and of a pass on a CPU.
TREE = 8192


@dataclass(frozen=True)
class Activations:
    """Captured activations: `values` Float[Tensor, "decision site layer width"] in float32, and what they are of.

    `paths` says how each decision was read: `trajectory` (with others that it extends or that extend it, in one row),
    `shared prefix` (packed after what its episode's prompts begin with), or `plain` (by itself).
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
            home = next(
                (c for c in chains if prompts[index].ids[: len(prompts[c[-1]].ids)] == prompts[c[-1]].ids),
                None,
            )
            if home and not model.stands_alone(len(prompts[index].ids)):
                home.append(index)
            else:
                chains.append([index])
        ends = [prompts[chain[-1]].ids for chain in chains]
        trees = model.support.trajectory == "fast" and model.packs(max(map(len, ends)))
        if (
            trees
            and len(chains) > 1
            and len(merge(ends)[0]) <= min(WORTH * sum(map(len, ends)), batch_tokens, TREE)
        ):
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
            by_width = {
                w: [layer for layer, own in zip(layers, found) if own == w] for w in dict.fromkeys(found)
            }
            listed = ", ".join(f"{w} in layers {', '.join(map(str, where))}" for w, where in by_width.items())
            raise ValueError(
                f"{site} differs in width between layers ({listed}): capture the layers of each width by themselves (layers=)."
            )
    if len({found[0] for found in widths.values()}) > 1:
        listed = ", ".join(f"{site} {found[0]}" for site, found in widths.items())
        raise ValueError(f"The sites differ in width ({listed}): capture each width by itself.")
    return widths[sites[0]][0]


def _read(
    model, wanted: Sequence[tuple[str, int]], width: int, row: Sequence[int], token: Sequence[int], **inputs
) -> torch.Tensor:
    """One pass: the wanted (site, layer) at each (row, token), [decision, wanted, width] in float32 on the
    model's device.
    """
    held = torch.empty(len(row), len(wanted), width, device=model.device)
    where = sent(torch.tensor([row, token]), model.device)

    def keep(number):
        def hook(tensor):
            at = where.to(tensor.device)  # where layers lie on several
            held[:, number] = tensor[at[0], at[1]]

        return hook

    edits = {key: keep(number) for number, key in enumerate(wanted)}
    with only(model.blocks, 0, max(layer for _, layer in wanted), model.layout), model.hooks(edits):
        model.inner(**model.uncached, **inputs)
    return held


def _passes(
    model,
    prompts: Sequence[Prompt],
    wanted: Sequence[tuple[str, int]],
    width: int,
    rows: list[list[int]],
    trees: list[list[int]],
    batch_tokens: int,
    progress: bool,
) -> Iterator[tuple[list[int], Callable[[], torch.Tensor]]]:
    """The decisions that each pass reads, and what gives their activations on the CPU."""

    def tree(members):
        tokens, parents, nodes = merge([prompts[i].ids for i in members])
        seen = ancestors(parents).to(model.device)
        depth = seen.sum(1)[None] - 1
        held = _read(
            model,
            wanted,
            width,
            [0] * len(members),
            [path[-1] for path in nodes],
            input_ids=sent(torch.tensor([tokens]), model.device),
            position_ids=depth,
            attention_mask=model.mask(seen[None], depth, depth),
        )
        return members, fetched(held)

    def batch(numbers):
        # Padding is on the right, where no earlier token looks: the causal mask alone is exact.
        ids, _ = padded([prompts[rows[r][-1]].ids for r in numbers], model.device)
        members = [(number, i) for number, r in enumerate(numbers) for i in rows[r]]
        decisions = [i for _, i in members]
        held = _read(
            model,
            wanted,
            width,
            [number for number, _ in members],
            [prompts[i].boundary for i in decisions],
            input_ids=ids,
        )
        return decisions, fetched(held)

    together = batches(model, [len(prompts[row[-1]].ids) for row in rows], batch_tokens)
    work = chain(halved(trees, tree), halved(together, batch))
    yield from tqdm(work, desc="capture", total=len(trees) + len(together), leave=False, disable=not progress)


@measured
@torch.inference_mode()
def capture(
    model,
    prompts: Sequence[Prompt],
    sites: Sequence[str] = ("resid_post",),
    at: str = "boundary",
    *,
    layers: Sequence[int] | None = None,
    trajectory: bool = True,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Activations:
    """Read sites at one position of each prompt, computing no logits and no layer above the last one asked for.

    layers: every layer where None. trajectory: read an episode's prompts together where their ids allow it; the result is
    the same, and says which path each decision took. batch_tokens: most tokens in one pass, padding included
    (None: by the GPU's free memory, 8,192 on a CPU; a pass that does not fit the GPU is halved). Raises
    ValueError for an empty list, another position, a layer that is not there, or sites or layers of different
    widths.
    """
    if not prompts:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    if at != "boundary":
        raise ValueError(f"Activations can be captured at the boundary, not at {at!r}.")
    names, depths = (
        every_layer(sites),
        tuple(range(model.n_layers)) if layers is None else tuple(int(layer) for layer in layers),
    )
    if not depths or not set(depths) <= set(range(model.n_layers)) or len(set(depths)) < len(depths):
        raise ValueError(f"layers must be different ones of 0 to {model.n_layers - 1}, not {list(depths)}.")
    width = common_width(model, names, depths)
    model.check_ids(p.ids for p in prompts)
    longest = max(len(p.ids) for p in prompts)
    model.check_length(longest)
    batch_tokens = pass_tokens(model, longest, TREE) if batch_tokens is None else batch_tokens
    # All there will be, before the first pass: what is kept between a pass's own tensors would scatter them over the memory.
    values = torch.empty(len(prompts), len(names), len(depths), width)
    rows, trees = (
        _plan(model, prompts, batch_tokens) if trajectory else ([[i] for i in range(len(prompts))], [])
    )
    wanted = [(name, layer) for name in names for layer in depths]

    def place(decisions: list[int], held: Callable[[], torch.Tensor]) -> None:
        values[decisions] = held().view(-1, *values.shape[1:])

    started = None
    for read in _passes(model, prompts, wanted, width, rows, trees, batch_tokens, progress):
        if started:
            place(*started)  # what the pass before read, while the GPU is at this one
        started = read
    place(*started)
    if not values.isfinite().all():
        decision, site, layer = (int(i) for i in (~values.isfinite()).nonzero()[0][:3])
        raise ValueError(
            not_finite(
                f"The activations of {model.architecture}",
                model.dtype,
                f"first {names[site]} of layer {depths[layer]} at prompt {decision}",
            )
        )
    paths = ["plain"] * len(prompts)
    for way, groups in (("shared prefix", trees), ("trajectory", [row for row in rows if len(row) > 1])):
        for i in chain.from_iterable(groups):
            paths[i] = way
    return Activations(
        values,
        tuple(names),
        depths,
        tuple(p.hash for p in prompts),
        model.weights_hash,
        str(model.dtype),
        tuple(paths),
    )
