"""Prompt reliance: how much of the action's dependence on the prompt goes around the trace, by swapping keys and values.

The action's tokens read the context only through the keys and values of earlier tokens, so swapping a span's is an exact
path intervention (mediation analysis as in Vig et al. 2020, on the cache).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from interp.engine.packing import grow, plain_score, read_asked, score_whole, shared
from interp.measures.pairs import check_pairs
from interp.measures.patching import continuations
from interp.models.hooked import layers_of
from interp.models.turns import measured
from interp.prompts.format import Prompt

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


@dataclass(frozen=True)
class Reliance:
    """Effects on log p(clean action) - log p(corrupt action), in nats, each Float[ndarray, "pair"].

    `direct`: the prompt's keys and values swapped, the trace's held. `via_cot`: the trace's swapped, the prompt's held.
    `total`: both. The trace's part is split once more: `via_text`, the trace says what the other one says but was read
    after its own prompt, and `via_state`, it keeps its words but was read after the other prompt.
    Pairs whose total is below `minimum` are in `dropped` and left out of the arrays; `kept` are their indices. `path` is
    `packed`, or `plain loop` with the reason.
    """

    direct: np.ndarray
    via_cot: np.ndarray
    total: np.ndarray
    via_text: np.ndarray
    via_state: np.ndarray
    kept: np.ndarray
    dropped: int
    path: str = "packed"

    @property
    def interaction(self) -> np.ndarray:
        return self.total - self.direct - self.via_cot

    @property
    def prompt_reliance(self) -> float:
        """direct / (direct + via_cot), of the means over pairs (NaN without pairs)."""
        if not len(self.kept):
            return float("nan")
        return float(self.direct.mean() / (self.direct.mean() + self.via_cot.mean()))


@torch.inference_mode()
def packed_paths(
    model, prompts: dict[str, Sequence[int]], traces: dict[str, Sequence[int]], actions, scored
) -> torch.Tensor:
    """Log-probabilities of the actions in each path, [path, action] in nats: every trace and action in one packed pass.

    prompts, traces: ids of `clean` and `corrupt`, of equal lengths; actions: continuations of the trace.
    """
    tree, n, t = grow(actions, scored), len(prompts["clean"]), len(traces["clean"])
    model.check_length(n + t + max(map(len, actions)))
    once = min(shared(prompts["clean"], prompts["corrupt"]), n - 1)
    start = layers_of(model.read(prompts["clean"][:once]))
    runs = [layers_of(model.read(ids[once:], model.new_cache(start))) for ids in prompts.values()]
    prefix = [tuple(torch.cat(both, 2) for both in zip(*layer)) for layer in zip(*runs)]
    span = {run: slice(i * n, (i + 1) * n) for i, run in enumerate(prompts)}
    size = len(TRACES) * t + len(PATHS) * len(tree)
    behind, within = torch.zeros(size, 2 * n, dtype=torch.bool), torch.zeros(size, size, dtype=torch.bool)
    place = {trace: slice(i * t, (i + 1) * t) for i, trace in enumerate(TRACES)}
    for (run, _), slots in place.items():
        behind[slots, span[run]] = True
        within[slots, slots] = torch.ones(t, t, dtype=torch.bool).tril()
    for i, (run, trace) in enumerate(PATHS.values()):
        slots = slice(len(TRACES) * t + i * len(tree), len(TRACES) * t + (i + 1) * len(tree))
        behind[slots, span[run]] = True
        within[slots, place[trace]] = True
        within[slots, slots] = tree.visible
    ids = torch.tensor([i for _, text in TRACES for i in traces[text]] + tree.tokens * len(PATHS))
    at = torch.cat([torch.arange(n, n + t).repeat(len(TRACES)), (tree.depths + n + t).repeat(len(PATHS))])
    hidden, _ = model.packed(
        prefix,
        *(x.to(model.device) for x in (ids, at, torch.cat([behind, within], 1), torch.arange(n).repeat(2))),
    )
    return read_asked(model, hidden[0, len(TRACES) * t :].view(len(PATHS), len(tree), -1), tree)


@torch.inference_mode()
def plain_paths(
    model, prompts: dict[str, Sequence[int]], traces: dict[str, Sequence[int]], actions, scored
) -> torch.Tensor:
    """The slow twin of `packed_paths`: each trace read by itself, a cache spliced for each path, each action read by itself."""
    return _spliced_paths(model, prompts, traces, [], actions, scored)


def _spliced_paths(model, prompts, traces, read_on: Sequence[int], actions, scored) -> torch.Tensor:
    """As `plain_paths`, each trace read with `read_on` following it, whose own keys and values are dropped."""
    n, end = len(prompts["clean"]), len(prompts["clean"]) + len(traces["clean"])
    runs = {}
    for run, text in TRACES:
        layers = layers_of(model.read([*prompts[run], *traces[text], *read_on]))
        runs[run, text] = [(keys[:, :, :end], values[:, :, :end]) for keys, values in layers]
    found = []
    for run, trace in PATHS.values():
        layers = [
            tuple(torch.cat([own[:, :, :n], other[:, :, n:]], 2) for own, other in zip(*both))
            for both in zip(runs[run, run], runs[trace])
        ]
        found.append(plain_score(model, model.new_cache(layers), actions, scored))
    return torch.stack(found)


@torch.inference_mode()
def whole_paths(
    model, prompts: dict[str, Sequence[int]], traces: dict[str, Sequence[int]], actions, scored
) -> torch.Tensor:
    """As `plain_paths`, where keys and values depend on the length of the whole: those of passes that go on to the end of each action.

    Raises NotImplementedError where the paths without a splice are not those of plain passes all the same.
    """
    found = torch.cat(
        [_spliced_paths(model, prompts, traces, action, [action], [n]) for action, n in zip(actions, scored)],
        1,
    )
    for path in ("unswapped", "total"):
        run = PATHS[path][0]
        plain = score_whole(model, [*prompts[run], *traces[run]], actions, scored)
        off = (found[list(PATHS).index(path)] - plain).abs().max().item()
        if not off < ROUNDING[model.dtype] * max(1.0, plain.abs().max().item()):
            raise NotImplementedError(
                f"{model.architecture} is not supported for prompt reliance with sequences of this length: without a swap its "
                f"keys and values give a log-probability that is off by {off:.2g} nats from a plain pass."
            )
    return found


@measured
def prompt_reliance(
    model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], minimum: float = 1.0, progress: bool = False
) -> Reliance:
    """Direct, via-CoT and total effect of the counterfactual prompt on the action after the trace.

    clean, corrupt: prompts in pairs, token for token, with the reference trace and action of each (`interp.make_pairs`).
    Raises ValueError for lists that are not pairs, and NotImplementedError for a model whose keys and values cannot be swapped.
    """
    check_pairs(clean, corrupt)
    if model.support.mediation == "refused":
        raise NotImplementedError(
            f"{model.architecture} is not supported for prompt reliance: {model.support.reason}, so none can be swapped."
        )
    paths = []
    effects = np.empty((len(clean), len(EFFECTS)))
    for index, pair in enumerate(
        tqdm(list(zip(clean, corrupt)), desc="mediate", leave=False, disable=not progress)
    ):
        prompts, tails = {}, {}
        for run, prompt in zip(("clean", "corrupt"), pair):
            prompts[run], tails[run] = prompt.ids, prompt.format.with_trace(prompt.decision.trace)
        actions, scored = continuations(*pair, tails["clean"][-1:])
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
    return Reliance(
        **{name: values[kept] for name, values in named.items()},
        kept=kept,
        dropped=len(clean) - len(kept),
        path=next(filter(None, paths), "packed"),
    )
