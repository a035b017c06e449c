"""Prompt reliance: how much of the action's dependence on the prompt goes around the trace.

The action's tokens read the context only through the keys and values of earlier tokens, so swapping a span's
is an exact path intervention (mediation analysis as in Vig et al. 2020, on the cache).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.engine.packing import grow, plain_score, read_targets, score_whole
from interp.measures.pairs import check_pairs, continuations, reference_actions
from interp.models.hooked import HookedModel, Layers, layers_of
from interp.models.turns import measured
from interp.prompts.format import Prompt
from interp.prompts.text import shared
from interp.results.shown import Plotted, counted, warn_incomplete

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
        """direct / (direct + via_cot), of the means over pairs (NaN without pairs)."""
        if not len(self.kept):
            return float("nan")
        return float(self.direct.mean() / (self.direct.mean() + self.via_cot.mean()))

    def summary(self) -> str:
        pairs = f"{counted(len(self.kept), 'pair')}, {self.dropped} dropped"
        return f"{pairs}, prompt reliance {self.prompt_reliance:.2f}; {self.path}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each kept pair: the effects and their interaction, in nats."""
        names = (*EFFECTS, "interaction")
        return pd.DataFrame(dict(pair=self.kept, **{name: getattr(self, name) for name in names}))


@torch.inference_mode()
def packed_paths(
    model: HookedModel,
    prompts: Both,
    traces: Both,
    actions: Sequence[Sequence[int]],
    scored: Sequence[int],
) -> Float[Tensor, "path action"]:
    """Log-probabilities of the actions in each path, in nats: every trace and action in one packed pass.

    Args:
        actions: continuations of the trace, of whose tokens the last `scored` count.
    """
    tree, n, t = grow(actions, scored), len(prompts["clean"]), len(traces["clean"])
    model.check_length(n + t + max(map(len, actions)))
    once = min(shared(prompts["clean"], prompts["corrupt"]), n - 1)
    start = layers_of(model.read(prompts["clean"][:once]))
    runs = [layers_of(model.read(ids[once:], model.new_cache(start))) for ids in prompts.values()]
    prefix = [(torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2)) for a, b in zip(*runs, strict=True)]
    span = {run: slice(i * n, (i + 1) * n) for i, run in enumerate(prompts)}
    size = len(TRACES) * t + len(PATHS) * len(tree)
    before, within = torch.zeros(size, 2 * n, dtype=torch.bool), torch.zeros(size, size, dtype=torch.bool)
    slots_of = {trace: slice(i * t, (i + 1) * t) for i, trace in enumerate(TRACES)}
    for (run, _), slots in slots_of.items():
        before[slots, span[run]] = True
        within[slots, slots] = torch.ones(t, t, dtype=torch.bool).tril()
    for i, (run, trace) in enumerate(PATHS.values()):
        first = len(TRACES) * t + i * len(tree)
        slots = slice(first, first + len(tree))
        before[slots, span[run]] = True
        within[slots, slots_of[trace]] = True
        within[slots, slots] = tree.visible
    ids = torch.tensor([i for _, text in TRACES for i in traces[text]] + tree.tokens * len(PATHS))
    trace_at, tree_at = torch.arange(n, n + t).repeat(len(TRACES)), (tree.depths + n + t).repeat(len(PATHS))
    at, visible = torch.cat([trace_at, tree_at]), torch.cat([before, within], 1)
    prefix_at = torch.arange(n).repeat(2)
    ids, at, visible, prefix_at = (each.to(model.device) for each in (ids, at, visible, prefix_at))
    hidden, _ = model.packed(prefix, ids[None], at[None], visible[None], prefix_at[None])
    return read_targets(model, hidden[0, len(TRACES) * t :].view(len(PATHS), len(tree), -1), tree)


@torch.inference_mode()
def plain_paths(
    model: HookedModel,
    prompts: Both,
    traces: Both,
    actions: Sequence[Sequence[int]],
    scored: Sequence[int],
) -> Float[Tensor, "path action"]:
    """The reference implementation of `packed_paths`: a spliced cache for each path and action."""
    return _spliced_paths(model, prompts, traces, [], actions, scored)


def _spliced_paths(
    model: HookedModel,
    prompts: Both,
    traces: Both,
    read_on: Sequence[int],
    actions: Sequence[Sequence[int]],
    scored: Sequence[int],
) -> Float[Tensor, "path action"]:
    """As `plain_paths`, each trace read with `read_on` after it, whose own keys and values are dropped."""
    n, end = len(prompts["clean"]), len(prompts["clean"]) + len(traces["clean"])
    runs: dict[tuple[str, str], Layers] = {}
    for run, text in TRACES:
        layers = layers_of(model.read([*prompts[run], *traces[text], *read_on]))
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
def whole_paths(
    model: HookedModel,
    prompts: Both,
    traces: Both,
    actions: Sequence[Sequence[int]],
    scored: Sequence[int],
) -> Float[Tensor, "path action"]:
    """As `plain_paths`, with keys and values of passes to each action's end, where they depend on the length.

    Raises:
        NotImplementedError: where the paths without a splice are not those of plain passes all the same.
    """
    scores = torch.cat(
        [_spliced_paths(model, prompts, traces, action, [action], [n]) for action, n in zip(actions, scored)],
        1,
    )
    for path in ("unswapped", "total"):
        run = PATHS[path][0]
        plain = score_whole(model, [*prompts[run], *traces[run]], actions, scored)
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
    paths = []
    effects = np.empty((len(clean), len(EFFECTS)))
    numbered = tqdm(list(zip(clean, corrupt)), desc="mediate", leave=False, disable=not progress)
    for index, (first, second) in enumerate(numbered):
        prompts, tails = {}, {}
        for run, prompt in (("clean", first), ("corrupt", second)):
            prompts[run], tails[run] = prompt.ids, prompt.format.with_trace(prompt.decision.trace)
        actions, scored = continuations(reference_actions(first, second), tails["clean"][-1:])
        longest = len(prompts["clean"]) + len(tails["clean"]) - 1 + max(map(len, actions))
        model.check_length(longest)
        path = model.path(longest)
        if not path:
            read = packed_paths
        elif model.rereads(longest):
            read = whole_paths
        else:
            read = plain_paths
        paths.append(path)
        logp = read(model, prompts, {run: tail[:-1] for run, tail in tails.items()}, actions, scored)
        difference = (logp[:, 0] - logp[:, 1]).double().numpy()
        effects[index] = difference[0] - difference[1:]
    named = dict(zip(EFFECTS, effects.T))
    kept = np.flatnonzero(named["total"] >= minimum)
    _warn_dropped(len(clean) - len(kept), len(clean), minimum)
    return Reliance(
        **{name: values[kept] for name, values in named.items()},
        kept=kept,
        dropped=len(clean) - len(kept),
        path=next(filter(None, paths), "packed"),
    )


def _warn_dropped(dropped: int, pairs: int, minimum: float) -> None:
    if dropped:
        warn_incomplete(
            f"{dropped} of {pairs} pairs are dropped: swapping prompt and trace moves the action by less "
            f"than {minimum:g} nats. Choose pairs whose actions the model tells apart, or lower minimum."
        )
