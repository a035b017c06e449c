"""Early answering: how much of the trace does the action need? The action after i of the trace's n sentences against the one after all.

Lanham et al. 2023 (2307.13702), on the action itself and on the distribution over the admissible actions; beside each cut, full
stops of the same length, since what a cut trace does could be the work of its tokens rather than of its words.

>>> found = early_answers(model, prompts, decode(model, prompts, "cot"))
>>> found.area().mean(), found.area("filler").mean()           # 0: the action needs nothing of the trace
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.engine.decoding import Completion, format_of, parse_completion, preferences
from interp.engine.generation import continue_each
from interp.measures.conflicts import complete, filler, sentences
from interp.models.turns import measured
from interp.prompts.format import Prompt


@dataclass(frozen=True)
class EarlyAnswers:
    """What is done after a part of the own trace, at the decisions that wrote one (`index` into the prompts).

    For each decision: `share`, the parts of its sentences that were kept, from 0 to 1; `same`, whether the action is the one
    after the whole trace; `distance`, the total variation between the two distributions over the admissible actions (empty
    where there are none, or they were not read); `filler`, whether the action after full stops of each part's length is the one
    after the whole trace (full stops of the whole trace's length at share 1).
    """

    index: np.ndarray
    share: list[np.ndarray]
    same: list[np.ndarray]
    distance: list[np.ndarray]
    filler: list[np.ndarray]

    def area(self, what: str = "action") -> np.ndarray:
        """Area over the curve of each decision, 0 (the trace is not needed) to 1: of the `action`, the `distribution`, or the action after `filler`."""
        if what not in ("action", "distribution", "filler"):
            raise ValueError(
                f"The area is that of the 'action', of the 'distribution' or of 'filler', not of {what!r}."
            )
        height = (
            self.distance
            if what == "distribution"
            else [~s for s in (self.same if what == "action" else self.filler)]
        )
        return np.array(
            [np.trapezoid(h.astype(float), s) if len(h) else np.nan for h, s in zip(height, self.share)]
        )

    def curve(self, shares: Sequence[float]) -> np.ndarray:
        """`same` [decision, share] at given shares of the trace: after as many whole sentences as fit in."""
        last = [[np.flatnonzero(own <= share + 1e-9)[-1] for share in shares] for own in self.share]
        return np.array([s[where] for s, where in zip(self.same, last)], dtype=bool).reshape(
            len(self.same), len(shares)
        )


@measured
def early_answers(
    model,
    prompts: Sequence[Prompt],
    decoded: Sequence[Completion],
    *,
    parser: Callable[[str], str | None] = str,
    points: int = 5,
    choices: int | None = None,
    candidates: Sequence[Sequence[str]] | None = None,
    max_new_tokens: int = 24,
    progress: bool = False,
) -> EarlyAnswers:
    """Cut each decision's own trace after some of its sentences, and decode the action; the same after as many full stops.

    decoded: the model's own decoding of each prompt in mode `cot`; those without a trace or an action are left out. points:
    most parts at which a trace is cut, the empty and the whole one included, evenly spaced over its sentences. choices: decisions
    whose distribution is read as well, the first ones (all where None). candidates: for each prompt, the actions that it is a
    distribution over; the admissible ones where None.
    Raises ValueError for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"A curve needs the empty and the whole trace, so at least 2 points, not {points}.")
    index = complete(prompts, decoded)
    candidates = [p.decision.admissible for p in prompts] if candidates is None else candidates
    cuts, leads, dots = {}, {}, {}
    for i in index:
        fmt, parts = prompts[i].format, sentences(decoded[i].trace)
        kept = np.unique(np.linspace(0, len(parts), min(points, len(parts) + 1)).round().astype(int))
        cuts[i] = kept / len(parts)
        leads[i] = [
            fmt.action_prefix(trace)
            for trace in (*(" ".join(parts[:k]) for k in kept[:-1]), fmt.decoded_prefix(decoded[i].ids))
        ]  # the whole one to the id
        dots[i] = [
            filler(fmt, " ".join(parts[:k])) for k in kept[1:]
        ]  # none for no sentence: that is the empty trace
    if not index:
        return EarlyAnswers(np.array([], dtype=int), [], [], [], [])
    variants = {
        f"{kind}{p}": [of[i][p] if i in of and p < len(of[i]) else None for i in range(len(prompts))]
        for kind, of in (("trace", leads), ("filler", dots))
        for p in range(points)
    }
    ending = format_of(model, prompts)
    out = continue_each(
        model, [p.ids for p in prompts], variants, ending.ended("prompt"), max_new_tokens, progress=progress
    )
    same, distance, filled = [], [], []
    for k, i in enumerate(index):
        kept, dotted = (
            [
                parse_completion(ending, out[f"{kind}{p}"][i].ids, "prompt", parser).action
                == decoded[i].action
                for p in range(len(of[i]))
            ]
            for kind, of in (("trace", leads), ("filler", dots))
        )
        same.append(np.array(kept))
        filled.append(np.array([kept[0], *dotted]))
        if candidates[i] and (choices is None or k < choices):
            likely = preferences(model, prompts[i], candidates[i], leads[i])
            distance.append(abs(likely - likely[-1]).sum(-1) / 2)
        else:
            distance.append(np.array([]))
    return EarlyAnswers(np.array(index), [cuts[i] for i in index], same, distance, filled)
