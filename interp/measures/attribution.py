"""Attribution patching: what patching each site, layer and position would do, to first order.

The effect of replacing an activation is estimated as its gradient times its change, for all cells from one
pass. It is only as good as its correlation with true patching, so use it to choose where to patch, and report
`stats.correlation` beside it.

>>> screen = attribute(model, clean, corrupt)                  # a Sweep, as from patch(..., at="all")
>>> at_span(screen, clean, "history").denoise                  # [pair, site, layer]: summed over the span

Nanda 2023 (Attribution patching), Syed et al. 2023 (2310.10348).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.engine.packing import Tree, grow, read_trees, tree_rows
from interp.measures.pairs import Align, Answers, Pair, pairs_of, token_texts
from interp.measures.patching import Sweep, columns_of, effects, rows_of, warn_dropped
from interp.models.caches import Layers, layers_of
from interp.models.devices import fetched, graph_tokens, halved, sent
from interp.models.hooked import HookedModel
from interp.models.site_names import every_layer
from interp.models.turns import measured
from interp.models.whole import length_batches, padded
from interp.prompts.text import AnyPrompt, Readable

#: A site of a layer.
Key = tuple[str, int]
#: Two continuations of a prompt, and how many tokens of each are scored.
Continuations = tuple[Sequence[Sequence[int]], Sequence[int]]


class Term(NamedTuple):
    """Activations at each site and layer, and gradients with respect to them."""

    activations: list[Float[Tensor, "token _"]]
    gradients: list[Float[Tensor, "token _"]]


#: For each pair of actions the difference of their log-probabilities in nats, on the model's device, and the
#: terms whose gradient x change adds up.
Gradients = tuple[Float[Tensor, " mode"], list[list[Term]]]


def _keeping(seen: dict[Key, Tensor], keys: Sequence[Key]) -> dict[Key, Callable[[Tensor], Tensor | None]]:
    """Hooks that put the activation at each key into `seen`; the graph starts before the first block."""

    def keep(key: Key) -> Callable[[Tensor], Tensor | None]:
        def hook(tensor: Tensor) -> Tensor | None:
            if key != ("resid_pre", 0):
                seen[key] = tensor
                return None
            seen[key] = tensor.detach().requires_grad_()
            return seen[key]

        return hook

    return {key: keep(key) for key in dict.fromkeys([("resid_pre", 0), *keys])}


def _keys(model: HookedModel, sites: Sequence[str]) -> list[Key]:
    return [(site, layer) for site in sites for layer in range(model.n_layers)]


def gradients(
    model: HookedModel, ids: Sequence[int], actions: Sequence[Continuations], sites: Sequence[str]
) -> Gradients:
    """A pass over a prompt and the actions after it, and one back for each pair of actions.

    Activations and gradients are in order of site, then layer. actions: one pair of continuations for each
    mode.
    """
    cache, keys = model.new_cache(), _keys(model, sites)
    seen: dict[Key, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        with model.hooks(_keeping(seen, keys)):
            whole = sent(torch.tensor([list(ids)]), model.device)
            output = model.inner(input_ids=whole, past_key_values=cache, use_cache=True)
        last, prompt = output.last_hidden_state[0, -1:], layers_of(cache)
        differences = []
        for both, scored in actions:
            logp = []
            for continuation, n in zip(both, scored):
                tail = sent(torch.tensor([list(continuation)]), model.device)
                output = model.inner(input_ids=tail, past_key_values=model.new_cache(prompt), use_cache=True)
                hidden = torch.cat([last, output.last_hidden_state[0, :-1]])[-n:]
                logp.append(model.logits(hidden).log_softmax(-1).gather(1, tail[0, -n:, None]).sum())
            differences.append(logp[0] - logp[1])
        kept = [seen[key] for key in keys]
        by_difference = [
            torch.autograd.grad(d, kept, retain_graph=d is not differences[-1], materialize_grads=True)
            for d in differences
        ]
    activations = [each.detach()[0].float() for each in kept]
    terms = [[Term(activations, [g[0].float() for g in each])] for each in by_difference]
    return torch.stack(differences).detach(), terms


def packed_gradients(
    model: HookedModel, runs: Sequence[tuple[Sequence[int], Sequence[Continuations]]], sites: Sequence[str]
) -> list[Gradients]:
    """As `gradients`, of many prompts with their actions: a pass over all, one over their trees, and back."""
    keys, lengths = _keys(model, sites), torch.tensor([len(ids) for ids, _ in runs])
    trees = [
        grow(
            [[ids[-1], *tail] for both, _ in actions for tail in both],
            [n for _, scored in actions for n in scored],
        )
        for ids, actions in runs
    ]
    seen: dict[Key, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        cache = model.new_cache()
        with model.hooks(_keeping(seen, keys)):
            prompts = padded([ids for ids, _ in runs], model.device)
            output = model.inner(input_ids=prompts, past_key_values=cache, use_cache=True)
        hidden = output.last_hidden_state
        last = sent(lengths - 1, hidden.device)
        hidden = hidden[torch.arange(len(runs), device=hidden.device), last][:, None]  # the trees' roots
        if max(map(len, trees)) > 1:
            hidden = torch.cat([hidden, _behind(model, layers_of(cache), lengths, trees)], 1)
        roots = torch.zeros(1, len(runs), dtype=torch.long)
        logp = read_trees(model, hidden, trees, roots)[:, 0].unflatten(1, (-1, 2))
        differences = logp[..., 0] - logp[..., 1]  # [prompt, mode]
        kept, modes = [seen[key] for key in keys], differences.shape[1]
        by_mode = [
            torch.autograd.grad(
                differences[:, m].sum(), kept, retain_graph=m < modes - 1, materialize_grads=True
            )
            for m in range(modes)
        ]
    found = []
    for r, n in enumerate(lengths.tolist()):
        activations = [tensor.detach()[r, :n].float() for tensor in kept]
        terms = [[Term(activations, [g[r, :n].float() for g in grads])] for grads in by_mode]
        found.append((differences[r].detach(), terms))
    return found


def _behind(
    model: HookedModel, prompts: Layers, lengths: Int[Tensor, " prompt"], trees: Sequence[Tree]
) -> Float[Tensor, "prompt node d_model"]:
    """Final hidden states of each prompt's tree but for its root, which is the prompt's last token."""
    width = int(lengths.max())
    ids, at, visible = tree_rows(trees, lengths.tolist(), first=1)
    before = (torch.arange(width) < lengths[:, None])[:, None].expand(-1, ids.shape[1], -1)
    ids, at, visible = (sent(each, model.device) for each in (ids, at, torch.cat([before, visible], 2)))
    hidden, _ = model.packed(prompts, ids, at, visible, torch.arange(width, device=model.device)[None])
    return hidden


def whole_gradients(
    model: HookedModel, ids: Sequence[int], actions: Sequence[Continuations], sites: Sequence[str]
) -> Gradients:
    """As `gradients`, with a pass over the whole sequence and one back for each continuation: a term each."""
    keys, n_tokens = _keys(model, sites), len(ids)
    differences, terms = [], []
    for both, scored in actions:
        difference, own = torch.zeros((), device=model.device), []
        for sign, continuation, n in zip((1, -1), both, scored):
            seen: dict[Key, Tensor] = {}
            whole = sent(torch.tensor([[*ids, *continuation]]), model.device)
            with torch.inference_mode(False), torch.enable_grad():
                with model.hooks(_keeping(seen, keys)):
                    hidden = model.whole(whole)[0, -n - 1 : -1]
                logp = sign * model.logits(hidden).log_softmax(-1).gather(1, whole[0, -n:, None]).sum()
                kept = [seen[key] for key in keys]
                grads = torch.autograd.grad(logp, kept, materialize_grads=True)
            difference = difference + logp.detach()
            activations = [each.detach()[0, :n_tokens].float() for each in kept]
            own.append(Term(activations, [g[0, :n_tokens].float() for g in grads]))
        differences.append(difference)
        terms.append(own)
    return torch.stack(differences), terms


@measured
def attribute_modes(
    model: HookedModel,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre",),
    modes: Sequence[str] = ("prompt", "cot"),
    minimum: float = 1.0,
    progress: bool = False,
    *,
    answers: Answers | None = None,
    align: Align | None = None,
) -> dict[str, Sweep]:
    """As `attribute`, reading each action in several modes, each prompt read once for all of them."""
    pairs = pairs_of(model.tokenizer, clean, corrupt, answers, align)
    names = every_layer(sites)
    labels = rows_of(model, names)
    longest = max(len(pair.clean.ids) for pair in pairs)
    base = np.empty((2, len(modes), len(pairs)))
    moved = np.full((2, len(modes), len(pairs), len(labels), model.n_layers, longest), np.nan)
    every = tqdm(
        _runs(model, pairs, names, modes), "attribute", len(pairs), leave=False, disable=not progress
    )
    # The numbers of all pairs are awaited at the end.
    waiting = [(index, *_moved(model, pairs[index], runs, names, labels)) for index, runs in every]
    there = np.array([columns_of(model, row, layer) is not None for row, layer in _grid(model, labels)])
    there = there.reshape(len(labels), model.n_layers)
    for index, values, sums in waiting:
        base[..., index] = values().numpy()
        own = moved[:, :, index]
        for position, column in zip(pairs[index].align, np.moveaxis(sums().numpy(), -1, 0)):
            own[:, :, there, position] = column
    patched = moved + base[..., None, None, None]
    tokens = tuple(map(token_texts, pairs))
    sweeps = {}
    for m, mode in enumerate(modes):
        sweep = effects("difference", labels, base[:, m], patched[:, m], minimum, "first order")
        sweeps[mode] = replace(sweep, tokens=tokens)
    return sweeps


def _runs(
    model: HookedModel, pairs: Sequence[Pair], sites: Sequence[str], modes: Sequence[str]
) -> Iterator[tuple[int, Sequence[Gradients]]]:
    """Each pair's index and the gradients of its two runs, for the action in each mode."""
    packed: list[int] = []
    inputs = []
    for index, pair in enumerate(pairs):
        actions = [[pair.continuations(prompt, mode) for mode in modes] for prompt in pair.prompts]
        inputs.append([(prompt.ids, each) for prompt, each in zip(pair.prompts, actions)])
        tails = max(len(tail) for each in actions for both, _ in each for tail in both)
        longest = max(len(prompt.ids) for prompt in pair.prompts) + tails
        model.check_length(longest)
        if not model.path(longest):
            packed.append(index)
            continue
        read = whole_gradients if model.rereads(longest) else gradients
        yield index, [read(model, ids, each, sites) for ids, each in inputs[index]]
    lengths = [2 * max(len(ids) for ids, _ in inputs[i]) for i in packed]
    batches = length_batches(lengths, graph_tokens(model))

    def read_batch(batch: list[int]) -> tuple[list[int], list[Gradients]]:
        members = [packed[k] for k in batch]
        return members, packed_gradients(model, [run for i in members for run in inputs[i]], sites)

    for members, found in halved(batches, read_batch):
        yield from zip(members, zip(found[::2], found[1::2]))


def _grid(model: HookedModel, labels: Sequence[str]) -> list[tuple[str, int]]:
    """Each row of a sweep in each layer."""
    return list(itertools.product(labels, range(model.n_layers)))


def _moved(
    model: HookedModel, pair: Pair, runs: Sequence[Gradients], sites: Sequence[str], labels: Sequence[str]
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """What gives a pair's differences [run, mode] and what patching adds [run, mode, cell, position].

    Cells are the rows of the sweep in the layers that have them.
    """
    clean, corrupt = runs
    at, donors = (
        sent(torch.tensor(list(own), dtype=torch.long), model.device)
        for own in (pair.align.keys(), pair.align.values())
    )

    def summed(own: Gradients, other: Gradients, at: Tensor, donors: Tensor) -> Tensor:
        by_mode = [_change(*terms, at, donors) for terms in zip(own[1], other[1])]
        return torch.stack([_sums(model, sites, labels, change) for change in by_mode])

    moved = torch.stack([summed(clean, corrupt, at, donors), summed(corrupt, clean, donors, at)])
    return fetched(torch.stack([clean[0], corrupt[0]])), fetched(moved)


def _change(
    own: Sequence[Term],
    other: Sequence[Term],
    at: Int[Tensor, " position"],
    donors: Int[Tensor, " position"],
) -> list[Float[Tensor, "position _"]]:
    """Gradient x (donor's activation - own), of each site and layer, at positions that correspond."""

    def change(a: Tensor, g: Tensor, b: Tensor) -> Tensor:
        here, there = at.to(a.device), donors.to(a.device)
        return g[here] * (b[there] - a[here])

    by_term = [
        [change(*each) for each in zip(term.activations, term.gradients, donor.activations)]
        for term, donor in zip(own, other)
    ]
    return [torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] for parts in zip(*by_term)]


def _sums(
    model: HookedModel,
    sites: Sequence[str],
    labels: Sequence[str],
    change: Sequence[Float[Tensor, "position _"]],
) -> Float[Tensor, "cell position"]:
    """The change added up over each row's columns, in the layers that have them."""
    sums = []
    for row, layer in _grid(model, labels):
        columns = columns_of(model, row, layer)
        if columns is not None:
            own = change[sites.index(row.partition(".")[0]) * model.n_layers + layer]
            sums.append(own[:, columns].sum(-1).to(model.device))
    return torch.stack(sums)


def attribute(
    model: HookedModel,
    clean: Readable | Iterable[Readable],
    corrupt: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre",),
    mode: str = "prompt",
    minimum: float = 1.0,
    progress: bool = False,
    *,
    answers: Answers | None = None,
    align: Align | None = None,
) -> Sweep:
    """Estimate what `patch(..., at="all")` gives on the difference: gradient x (donor's activation - own).

    Arguments, axes, denominator and what is dropped are those of `interp.patch`; `path` is `first order`.
    Estimates at a set of positions add up (`at_span`).

    Raises:
        ValueError: for lists that are not pairs.
        NotImplementedError: for a site that the model does not have.
    """
    sweep = attribute_modes(
        model, clean, corrupt, sites, [mode], minimum, progress, answers=answers, align=align
    )[mode]
    warn_dropped(sweep, minimum)
    return sweep


def at_span(screen: Sweep, clean: Sequence[AnyPrompt], at: str) -> Sweep:
    """The estimates of `patch(..., at=at)`: its positions added up (NaN where the span is missing)."""

    def total(values: Float[np.ndarray, "pair site layer position"]) -> Float[np.ndarray, "pair site layer"]:
        sums = np.full(values.shape[:3], np.nan)
        for i, prompt in enumerate(clean):
            positions = range(len(prompt.ids)) if at == "prompt" else prompt.positions(at)
            if len(positions):
                sums[i] = values[i][..., list(positions)].sum(-1)
        return sums

    denoise, noise, moved = (total(values) for values in (screen.denoise, screen.noise, screen.moved))
    return replace(screen, denoise=denoise, noise=noise, moved=moved, tokens=())
