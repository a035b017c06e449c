"""Early answering: how much of the trace does the action need? The action after i of the trace's n sentences against the one after all.

Lanham et al. 2023 (2307.13702), on the action itself and on the distribution over the admissible actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.conflicts import complete, sentences
from interp.decoding import Said, choose, said
from interp.generation import continue_each
from interp.prompts import Prompt


@dataclass(frozen=True)
class EarlyAnswers:
    """What is done after a part of the own trace, at the decisions that wrote one (`index` into the prompts).

    For each decision: `share`, the parts of its sentences that were kept, from 0 to 1; `same`, whether the action is the one
    behind the whole trace; `distance`, the total variation between the two distributions over the admissible actions (empty
    where there are none).
    """

    index: np.ndarray
    share: list[np.ndarray]
    same: list[np.ndarray]
    distance: list[np.ndarray]

    def area(self, what: str = "action") -> np.ndarray:
        """Area over the curve of each decision, 0 (the trace is not needed) to 1: of `same`, or of the `distribution`."""
        if what not in ("action", "distribution"):
            raise ValueError(f"The area is that of the 'action' or of the 'distribution', not of {what!r}.")
        height = [~s for s in self.same] if what == "action" else self.distance
        return np.array([np.trapezoid(h.astype(float), s) if len(h) else np.nan for h, s in zip(height, self.share)])

    def curve(self, shares: Sequence[float]) -> np.ndarray:
        """`same` [decision, share] at given shares of the trace: after as many whole sentences as fit in."""
        last = [[np.flatnonzero(own <= share + 1e-9)[-1] for share in shares] for own in self.share]
        return np.array([s[where] for s, where in zip(self.same, last)], dtype=bool).reshape(len(self.same), len(shares))


def early_answers(model, prompts: Sequence[Prompt], decoded: Sequence[Said], *, parser: Callable[[str], str | None] = str, points: int = 6,
                  max_new_tokens: int = 24, progress: bool = False) -> EarlyAnswers:
    """Cut each decision's own trace after some of its sentences, and decode the action.

    decoded: the model's own decoding of each prompt in mode `cot`; those without a trace or an action are left out. points:
    most parts at which a trace is cut, the empty and the whole one included, evenly spaced over its sentences.
    Raises ValueError for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"A curve needs the empty and the whole trace, so at least 2 points, not {points}.")
    index = complete(prompts, decoded)
    cuts, traces = {}, {}
    for i in index:
        parts = sentences(decoded[i].trace)
        kept = np.unique(np.linspace(0, len(parts), min(points, len(parts) + 1)).round().astype(int))
        cuts[i] = kept / len(parts)
        traces[i] = [*(" ".join(parts[:k]) for k in kept[:-1]), prompts[i].format.lead_ids(decoded[i].ids)]  # the whole one to the id
    if not index:
        return EarlyAnswers(np.array([], dtype=int), [], [], [])
    variants = {str(p): [prompts[i].format.tail(traces[i][p]) if i in traces and p < len(traces[i]) else None for i in range(len(prompts))]
                for p in range(points)}
    out = continue_each(model, [p.ids for p in prompts], variants, prompts[0].format.ended("prompt"), max_new_tokens, progress=progress)
    same, distance = [], []
    for i in index:
        words = [said(prompts[i].format, out[str(p)][i].ids, "prompt", parser) for p in range(len(traces[i]))]
        same.append(np.array([w.action == decoded[i].action for w in words]))
        candidates = prompts[i].decision.admissible
        if candidates:
            logp = choose(model, prompts[i], candidates, traces[i])[..., 0].double()
            likely = logp.softmax(-1).numpy()
            distance.append(abs(likely - likely[-1]).sum(-1) / 2)
        else:
            distance.append(np.array([]))
    return EarlyAnswers(np.array(index), [cuts[i] for i in index], same, distance)
