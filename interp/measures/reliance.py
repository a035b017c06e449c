"""Prompt reliance: how much of the action's dependence on the prompt goes around the trace.

The action's tokens read the context only through the keys and values of earlier tokens, so swapping a span's
is an exact path intervention (mediation analysis as in Vig et al. 2020, on the cache).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from interp.engine.packing import Tree, grow, plain_score, read_trees, score_whole
from interp.engine.reading import read_prompts
from interp.measures.pairs import check_pairs, continuations, reference_actions
from interp.models.caches import Layers, layers_of
from interp.models.devices import activation_bytes, fetched, halved, most_held, sent, token_bytes
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.models.whole import length_batches
from interp.prompts.format import Prompt
from interp.results.shown import Plotted, counted, warn_incomplete
from interp.stats.changes import part_share

#: How far a log-probability may be from a plain pass's, in its own size, for rounding alone.
ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
#: path -> whose prompt the action sees, and the trace it sees: read after whose prompt, and whose text
PATHS = {
    "unswapped": ("clean", ("clean", "clean")),
    "direct": ("corrupt", ("clean", "clean")),
    "via_cot": ("clean", ("corrupt", "corrupt")),
    "total": ("corrupt", ("corrupt", "corrupt")),
    "via_text": ("clean", ("clean", "corrupt")),
    "via_state": ("clean", ("corrupt", "clean")),
}
EFFECTS = tuple(PATHS)[1:]
TRACES = tuple(dict.fromkeys(trace for _, trace in PATHS.values()))
#: Ids of `clean` and `corrupt`, of equal lengths.
Both = Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False, repr=False)
class Reliance(Plotted):
    """Effects on log p(clean action) - log p(corrupt action), in nats, of the pairs that were kept."""

    picture: ClassVar[str] = "reliance"
    direct: Float[np.ndarray, "pair"]
    """The prompt's keys and values swapped, the trace's held."""
    via_cot: Float[np.ndarray, "pair"]
    """The trace's swapped, the prompt's held."""
    total: Float[np.ndarray, "pair"]
    """Both swapped."""
    via_text: Float[np.ndarray, "pair"]
    """The trace has the other one's words, but was read after its own prompt."""
    via_state: Float[np.ndarray, "pair"]
    """The trace keeps its words, but was read after the other prompt."""
    kept: Int[np.ndarray, "pair"]
    """Indices of the pairs."""
    dropped: int
    """Pairs left out."""
    path: str = "packed"
    """`packed`, or `plain loop` with the reason."""

    @property
    def interaction(self) -> Float[np.ndarray, "pair"]:
        """What both swaps do beyond the sum of each."""
        return self.total - self.direct - self.via_cot

    @property
    def prompt_reliance(self) -> float:
        """direct / (direct + via_cot), of the means over pairs; NaN where `part_share` is not defined."""
        if not len(self.kept):
            return float("nan")
        return float(part_share(np.array([self.direct.mean(), self.via_cot.mean()])))

    def summary(self) -> str:
        pairs = f"{counted(len(self.kept), 'pair')}, {self.dropped} dropped"
        return f"{pairs}, prompt reliance {self.prompt_reliance:.2f}; {self.path}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each kept pair: the effects and their interaction, in nats."""
        names = (*EFFECTS, "interaction")
        return pd.DataFrame(dict(pair=self.kept, **{name: getattr(self, name) for name in names}))


@dataclass(frozen=True)
class Swap:
    """What a pair's paths are made of: ids of both prompts, both traces, and the actions after them.

    scored: how many last tokens of each action count.
    """

    prompts: Both
    traces: Both
    actions: Sequence[Sequence[int]]
    scored: Sequence[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prompts["clean"]) + len(self.traces["clean"]) + max(map(len, self.actions))

    @property
    def slots(self) -> int:
        """Tokens after the prompts, in all paths together, at most."""
        return len(TRACES) * len(self.traces["clean"]) + len(PATHS) * sum(map(len, self.actions))


class _Slots(NamedTuple):
    """The tokens after a pair's prompts: each trace after each prompt, then each path's tree of actions."""

    ids: Int[Tensor, " slot"]
    at: Int[Tensor, " slot"]
    reads: Int[Tensor, " slot"]
    """The prompt that each slot sees: 0 the clean one, 1 the corrupt one."""
    visible: Bool[Tensor, "slot slot"]
    roots: list[int]
    """Where the tree of each path begins."""


def _slots(swap: Swap, tree: Tree) -> _Slots:
    n, t, nodes = len(swap.prompts["clean"]), len(swap.traces["clean"]), len(tree)
    size = len(TRACES) * t + len(PATHS) * nodes
    reads, visible = torch.zeros(size, dtype=torch.long), torch.zeros(size, size, dtype=torch.bool)
    numbers = {run: number for number, run in enumerate(swap.prompts)}
    slots_of = {trace: slice(i * t, (i + 1) * t) for i, trace in enumerate(TRACES)}
    for (run, _), slots in slots_of.items():
        reads[slots] = numbers[run]
        visible[slots, slots] = torch.ones(t, t, dtype=torch.bool).tril()
    roots = [len(TRACES) * t + i * nodes for i in range(len(PATHS))]
    for first, (run, trace) in zip(roots, PATHS.values()):
        slots = slice(first, first + nodes)
        reads[slots] = numbers[run]
        visible[slots, slots_of[trace]] = True
        visible[slots, slots] = tree.visible
    ids = torch.tensor([i for _, text in TRACES for i in swap.traces[text]] + tree.tokens * len(PATHS))
    trace_at, tree_at = torch.arange(n, n + t).repeat(len(TRACES)), (tree.depths + n + t).repeat(len(PATHS))
    return _Slots(ids, torch.cat([trace_at, tree_at]), reads, visible, roots)


@torch.inference_mode()
def packed_paths(model: HookedModel, swaps: Sequence[Swap]) -> Float[Tensor, "pair path action"]:
    """Log-probabilities of the actions in each path, in nats: all pairs, traces and actions in one pass.

    They are on the model's device.
    """
    for swap in swaps:
        model.check_length(swap.longest)
    trees = [grow(swap.actions, swap.scored) for swap in swaps]
    slots = [_slots(swap, tree) for swap, tree in zip(swaps, trees)]
    lengths = torch.tensor([len(swap.prompts["clean"]) for swap in swaps])
    width, size, n = int(lengths.max()), max(len(each.ids) for each in slots), len(swaps)
    layers, _ = read_prompts(model, [swap.prompts[run] for run in ("clean", "corrupt") for swap in swaps])
    both = [(torch.cat([k[:n], k[n:]], 2), torch.cat([v[:n], v[n:]], 2)) for k, v in layers]
    visible = torch.eye(size, dtype=torch.bool).repeat(n, 1, 1)  # what pads a row sees itself
    for row, each in enumerate(slots):
        visible[row, : len(each.ids), : len(each.ids)] = each.visible
    device = model.device
    ids, at, reads = (
        sent(pad_sequence(list(parts), batch_first=True), device) for parts in list(zip(*slots))[:3]
    )
    keys_at = torch.arange(width, device=device).repeat(2)
    of_prompt = torch.arange(2, device=device).repeat_interleave(width)
    before = (of_prompt == reads[..., None]) & (keys_at < sent(lengths, device)[:, None, None])
    hidden, _ = model.packed(
        both, ids, at, torch.cat([before, sent(visible, device)], 2), keys_at.expand(n, -1)
    )
    return read_trees(model, hidden, trees, torch.tensor([each.roots for each in slots]).T)


@torch.inference_mode()
def plain_paths(model: HookedModel, swap: Swap) -> Float[Tensor, "path action"]:
    """The reference implementation of `packed_paths`: a spliced cache for each path and action."""
    return _spliced_paths(model, swap, [], swap.actions, swap.scored)


def _spliced_paths(
    model: HookedModel,
    swap: Swap,
    read_on: Sequence[int],
    actions: Sequence[Sequence[int]],
    scored: Sequence[int],
) -> Float[Tensor, "path action"]:
    """As `plain_paths`, each trace read with `read_on` after it, whose own keys and values are dropped."""
    n = len(swap.prompts["clean"])
    end = n + len(swap.traces["clean"])
    runs: dict[tuple[str, str], Layers] = {}
    for run, text in TRACES:
        layers = layers_of(model.read([*swap.prompts[run], *swap.traces[text], *read_on]))
        runs[run, text] = [(keys[:, :, :end], values[:, :, :end]) for keys, values in layers]

    def spliced(own: Tensor, other: Tensor) -> Tensor:
        return torch.cat([own[:, :, :n], other[:, :, n:]], 2)

    scores = []
    for run, trace in PATHS.values():
        both = zip(runs[run, run], runs[trace])
        layers = [(spliced(own[0], other[0]), spliced(own[1], other[1])) for own, other in both]
        scores.append(plain_score(model, model.new_cache(layers), actions, scored))
    return torch.stack(scores)


@torch.inference_mode()
def whole_paths(model: HookedModel, swap: Swap) -> Float[Tensor, "path action"]:
    """As `plain_paths`, with keys and values of passes to each action's end, where they depend on the length.

    Raises:
        NotImplementedError: where the paths without a splice are not those of plain passes all the same.
    """
    each = zip(swap.actions, swap.scored)
    scores = torch.cat([_spliced_paths(model, swap, action, [action], [n]) for action, n in each], 1)
    for path in ("unswapped", "total"):
        run = PATHS[path][0]
        plain = score_whole(model, [*swap.prompts[run], *swap.traces[run]], swap.actions, swap.scored)
        off = (scores[list(PATHS).index(path)] - plain).abs().max().item()
        if not off < ROUNDING[model.dtype] * max(1.0, plain.abs().max().item()):
            raise NotImplementedError(
                f"{model.architecture} is not supported for prompt reliance with sequences of this length: "
                "without a swap its keys and values give a log-probability that is "
                f"off by {off:.2g} nats from a plain pass."
            )
    return scores


@measured
def prompt_reliance(
    model: HookedModel,
    clean: Sequence[Prompt],
    corrupt: Sequence[Prompt],
    minimum: float = 1.0,
    progress: bool = False,
) -> Reliance:
    """Direct, via-CoT and total effect of the counterfactual prompt on the action after the trace.

    Args:
        clean, corrupt: prompts in pairs, token for token, with the reference trace and action of each
            (`interp.make_pairs`).
        minimum: pairs whose total effect is below it, in nats, are dropped, with a warning.

    Raises:
        ValueError: for lists that are not pairs.
        NotImplementedError: for a model whose keys and values cannot be swapped.
    """
    check_pairs(clean, corrupt)
    if model.support.mediation == "refused":
        raise NotImplementedError(
            f"{model.architecture} is not supported for prompt reliance: {model.support.reason}, "
            "so none can be swapped."
        )
    swaps = [_swap(*pair) for pair in zip(clean, corrupt)]
    paths = [model.path(swap.longest) for swap in swaps]
    logp = torch.empty(len(swaps), len(PATHS), 2)
    with tqdm(total=len(swaps), desc="mediate", leave=False, disable=not progress) as bar:
        for index in (i for i, path in enumerate(paths) if path):
            read = whole_paths if model.rereads(swaps[index].longest) else plain_paths
            logp[index] = read(model, swaps[index])
            bar.update()
        packed = [i for i, path in enumerate(paths) if not path]
        batches = length_batches([_held_bytes(model, swaps[i]) for i in packed], most_held(model))

        def run(batch: list[int]) -> tuple[list[int], Callable[[], Tensor]]:
            members = [packed[k] for k in batch]
            return members, fetched(packed_paths(model, [swaps[i] for i in members]))

        waiting = []
        for members, scores in halved(batches, run):
            waiting.append((members, scores))
            bar.update(len(members))
    for members, scores in waiting:
        logp[members] = scores()
    difference = (logp[..., 0] - logp[..., 1]).double().numpy()
    effects = difference[:, :1] - difference[:, 1:]
    named = dict(zip(EFFECTS, effects.T))
    kept = np.flatnonzero(named["total"] >= minimum)
    _warn_dropped(len(clean) - len(kept), len(clean), minimum)
    return Reliance(
        **{name: values[kept] for name, values in named.items()},
        kept=kept,
        dropped=len(clean) - len(kept),
        path=next(filter(None, paths), "packed"),
    )


def _swap(clean: Prompt, corrupt: Prompt) -> Swap:
    """A pair's ids; the trace ends before the last token that opens the action."""
    prompts, tails = {}, {}
    for run, prompt in (("clean", clean), ("corrupt", corrupt)):
        prompts[run], tails[run] = prompt.ids, prompt.format.with_trace(prompt.decision.trace)
    actions, scored = continuations(reference_actions(clean, corrupt), tails["clean"][-1:])
    return Swap(prompts, {run: tail[:-1] for run, tail in tails.items()}, actions, scored)


def _held_bytes(model: HookedModel, swap: Swap) -> int:
    """About the bytes that a pair takes: keys and values of both prompts, and what is read after them."""
    prompts = 2 * len(swap.prompts["clean"])
    masks = (2 + model.dtype.itemsize) * (prompts + swap.slots)
    return prompts * token_bytes(model) + swap.slots * (activation_bytes(model) + masks)


def _warn_dropped(dropped: int, pairs: int, minimum: float) -> None:
    if dropped:
        warn_incomplete(
            f"{dropped} of {pairs} pairs are dropped: swapping prompt and trace moves the action by less "
            f"than {minimum:g} nats. Choose pairs whose actions the model tells apart, or lower minimum."
        )
