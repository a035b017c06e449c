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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from interp.engine.packing import WORTH, ancestors, merge
from interp.models.devices import fetched, halved, pass_tokens, sent
from interp.models.finite import not_finite
from interp.models.hooked import HookedModel
from interp.models.hooks import Edit, only
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import batches, padded
from interp.prompts.format import Prompt

#: Most tokens of a tree, whose mask has the square of them, and of a pass on a CPU.
TREE = 8192


@dataclass(frozen=True)
class Activations:
    """Captured activations in float32, and what they are of.

    `paths` says how each decision was read: `trajectory` (with others that it extends or that extend it, in
    one row), `shared prefix` (packed after what its episode's prompts begin with), or `plain` (by itself).
    """

    values: Float[Tensor, "decision site layer width"]
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    prompts: tuple[str, ...]
    weights_hash: str
    dtype: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


def _chains(model: HookedModel, prompts: Sequence[Prompt], members: Sequence[int]) -> list[list[int]]:
    """Decisions of an episode, the shortest first, in rows where each is a prefix of the next."""
    chains: list[list[int]] = []
    for index in members:
        ids = prompts[index].ids
        ends = (prompts[chain[-1]].ids for chain in chains)
        extended = next((c for c, end in enumerate(ends) if ids[: len(end)] == end), None)
        if extended is None or model.stands_alone(len(ids)):
            chains.append([index])
        else:
            chains[extended].append(index)
    return chains


def _plan(
    model: HookedModel, prompts: Sequence[Prompt], batch_tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Decisions that share a row (each a prefix of the row's last), and those that share a packed tree."""
    episodes: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids)):
        episodes[prompts[index].decision.episode].append(index)
    rows: list[list[int]] = []
    trees: list[list[int]] = []
    for members in episodes.values():
        chains = _chains(model, prompts, members)
        ends = [prompts[chain[-1]].ids for chain in chains]
        packs = model.support.trajectory == "fast" and model.packs(max(map(len, ends)))
        most = min(WORTH * sum(map(len, ends)), batch_tokens, TREE)
        if packs and len(chains) > 1 and len(merge(ends)[0]) <= most:
            trees.append(members)
        else:
            rows += chains
    return rows, trees


def common_width(model: HookedModel, sites: Sequence[str], layers: Sequence[int]) -> int:
    """The one width of some sites in some layers.

    Raises ValueError where they differ, NotImplementedError for a site that a layer does not have.
    """
    first_widths = {}
    for site in sites:
        by_width: dict[int, list[int]] = {}
        for layer in layers:
            by_width.setdefault(model.width(site, layer), []).append(layer)
        if len(by_width) > 1:
            listed = ", ".join(f"{w} in layers {', '.join(map(str, some))}" for w, some in by_width.items())
            raise ValueError(
                f"{site} differs in width between layers ({listed}): capture the layers of each width by "
                "themselves (layers=)."
            )
        first_widths[site] = next(iter(by_width))
    if len(set(first_widths.values())) > 1:
        listed = ", ".join(f"{site} {width}" for site, width in first_widths.items())
        raise ValueError(f"The sites differ in width ({listed}): capture each width by itself.")
    return first_widths[sites[0]]


def _read(
    model: HookedModel,
    wanted: Sequence[tuple[str, int]],
    width: int,
    row: Sequence[int],
    token: Sequence[int],
    **inputs: Any,
) -> Float[Tensor, "decision wanted width"]:
    """One pass: the wanted (site, layer) at each (row, token), in float32 on the model's device."""
    held = torch.empty(len(row), len(wanted), width, device=model.device)
    index = sent(torch.tensor([row, token]), model.device)

    def keep(number: int) -> Edit:
        def hook(tensor: Tensor) -> None:
            rows, tokens = index.to(tensor.device)  # where layers lie on several
            held[:, number] = tensor[rows, tokens]

        return hook

    edits = {key: keep(number) for number, key in enumerate(wanted)}
    with only(model.blocks, 0, max(layer for _, layer in wanted), model.layout), model.hooks(edits):
        model.inner(**model.uncached, **inputs)
    return held


@dataclass(frozen=True)
class _Passes:
    """The passes of a capture: each gives the decisions that it reads, and their activations on the CPU."""

    model: HookedModel
    prompts: Sequence[Prompt]
    wanted: Sequence[tuple[str, int]]
    width: int

    def tree(self, members: list[int]) -> tuple[list[int], Callable[[], Tensor]]:
        """Read the decisions of an episode as a packed tree."""
        model = self.model
        tokens, parents, paths = merge([self.prompts[i].ids for i in members])
        seen = ancestors(parents).to(model.device)
        depth = seen.sum(1)[None] - 1
        held = _read(
            model,
            self.wanted,
            self.width,
            [0] * len(members),
            [path[-1] for path in paths],
            input_ids=sent(torch.tensor([tokens]), model.device),
            position_ids=depth,
            attention_mask=model.mask(seen[None], depth, depth),
        )
        return members, fetched(held)

    def batch(self, rows: list[list[int]]) -> tuple[list[int], Callable[[], Tensor]]:
        """Read rows of decisions, each a prefix of its row's last."""
        # Padding is on the right, where no earlier token looks: the causal mask alone is exact.
        ids = padded([self.prompts[row[-1]].ids for row in rows], self.model.device)
        decisions = [i for row in rows for i in row]
        held = _read(
            self.model,
            self.wanted,
            self.width,
            [number for number, row in enumerate(rows) for _ in row],
            [self.prompts[i].boundary for i in decisions],
            input_ids=ids,
        )
        return decisions, fetched(held)

    def run(
        self, rows: list[list[int]], trees: list[list[int]], batch_tokens: int, progress: bool
    ) -> Iterator[tuple[list[int], Callable[[], Tensor]]]:
        """Read all rows and trees."""
        lengths = [len(self.prompts[row[-1]].ids) for row in rows]
        together = [[rows[r] for r in batch] for batch in batches(self.model, lengths, batch_tokens)]
        work = chain(halved(trees, self.tree), halved(together, self.batch))
        total = len(trees) + len(together)
        yield from tqdm(work, desc="capture", total=total, leave=False, disable=not progress)


@measured
@torch.inference_mode()
def capture(
    model: HookedModel,
    prompts: Sequence[Prompt],
    sites: Sequence[str] = ("resid_post",),
    at: str = "boundary",
    *,
    layers: Sequence[int] | None = None,
    trajectory: bool = True,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Activations:
    """Read sites at one position of each prompt, with no logits and no layer above the last one named.

    Args:
        trajectory: read an episode's prompts together where their ids allow it; the values are the same.
        batch_tokens: most tokens in one pass, padding included (None: by the GPU's free memory, 8,192 on a
            CPU; a pass that does not fit the GPU is halved).

    Raises:
        ValueError: an empty list, another position, a layer that is not there, or sites or layers of
            different widths.
    """
    if not prompts:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    if at != "boundary":
        raise ValueError(f"Activations can be captured at the boundary, not at {at!r}.")
    names = every_layer(sites)
    depths = _depths(model, layers)
    width = common_width(model, names, depths)
    model.check_ids(p.ids for p in prompts)
    longest = max(len(p.ids) for p in prompts)
    model.check_length(longest)
    batch_tokens = pass_tokens(model, longest, TREE) if batch_tokens is None else batch_tokens
    # All there will be, before the first pass: kept between a pass's own tensors it would scatter over the
    # memory.
    values = torch.empty(len(prompts), len(names), len(depths), width)
    rows: list[list[int]] = [[i] for i in range(len(prompts))]
    trees: list[list[int]] = []
    if trajectory:
        rows, trees = _plan(model, prompts, batch_tokens)
    passes = _Passes(model, prompts, [(name, layer) for name in names for layer in depths], width)
    before = None
    for read in chain(passes.run(rows, trees, batch_tokens, progress), [None]):
        if before is not None:
            decisions, held = before  # what the pass before read, while the GPU is at this one
            values[decisions] = held().view(-1, *values.shape[1:])
        before = read
    _check_finite(model, values, names, depths)
    paths = ["plain"] * len(prompts)
    for i in chain.from_iterable(trees):
        paths[i] = "shared prefix"
    for i in chain.from_iterable(row for row in rows if len(row) > 1):
        paths[i] = "trajectory"
    hashes = tuple(p.hash for p in prompts)
    return Activations(
        values, tuple(names), depths, hashes, model.weights_hash, str(model.dtype), tuple(paths)
    )


def _depths(model: HookedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for; raises ValueError for one that is not there or named twice, and for none."""
    depths = tuple(range(model.n_layers)) if layers is None else tuple(int(layer) for layer in layers)
    if not depths or not set(depths) <= set(range(model.n_layers)) or len(set(depths)) < len(depths):
        raise ValueError(f"layers must be different ones of 0 to {model.n_layers - 1}, not {list(depths)}.")
    return depths


def _check_finite(
    model: HookedModel,
    values: Float[Tensor, "decision site layer width"],
    sites: Sequence[str],
    layers: Sequence[int],
) -> None:
    """Raise ValueError naming the first activation that is not finite."""
    finite = values.isfinite()
    if not finite.all():
        decision, site, layer, _ = (~finite).nonzero()[0].tolist()
        where = f"first {sites[site]} of layer {layers[layer]} at prompt {decision}"
        raise ValueError(not_finite(f"The activations of {model.architecture}", model.dtype, where))
