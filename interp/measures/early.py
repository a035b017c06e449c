"""Early answering: how much of the trace does the action need?

The action after a part of the trace is compared with the one after the whole. Lanham et al. 2023
(2307.13702), on the action itself and on the distribution over the admissible actions. Each cut has a
control, full stops of the same length, since a cut trace could act through its tokens rather than its words.

>>> result = early_answers(model, prompts, decode(model, prompts, "cot"))
>>> result.area().mean(), result.area("filler").mean()           # 0: the action needs nothing of the trace
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.engine.decoding import Completion, format_of, parse_completion, preferences
from interp.engine.generation import continue_each
from interp.measures.conflicts import complete, filler, warn_left_out
from interp.measures.rewriting import sentences
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.prompts.format import Prompt
from interp.results.shown import Plotted, counted


@dataclass(frozen=True, eq=False, repr=False)
class EarlyAnswers(Plotted):
    """What is done after a part of the own trace, at the decisions that wrote one."""

    picture: ClassVar[str] = "early_answers"
    index: Int[np.ndarray, "decision"]
    """Into the prompts."""
    share: list[Float[np.ndarray, "_"]]
    """For each decision the parts of its sentences that were kept, from 0 to 1."""
    same: list[Bool[np.ndarray, "_"]]
    """Whether the action is the one after the whole trace."""
    distance: list[Float[np.ndarray, "_"]]
    """Total variation between the distributions over the admissible actions (empty where not read)."""
    filler: list[Bool[np.ndarray, "_"]]
    """Whether the action after full stops of each part's length is the one after the whole trace."""
    sentences: list[int] = field(default_factory=list)
    """How many sentences each decision's trace has."""

    def area(self, what: str = "action") -> Float[np.ndarray, "decision"]:
        """Area over the curve of each decision, 0 (the trace is not needed) to 1.

        what: of the `action`, the `distribution`, or the action after `filler`.
        """
        if what == "distribution":
            height = self.distance
        elif what in ("action", "filler"):
            height = [(~same).astype(float) for same in (self.same if what == "action" else self.filler)]
        else:
            raise ValueError(
                f"The area is that of the 'action', of the 'distribution' or of 'filler', not of {what!r}."
            )
        return np.array(
            [np.trapezoid(h, share) if len(h) else np.nan for h, share in zip(height, self.share)]
        )

    def curve(self, shares: Sequence[float]) -> Bool[np.ndarray, "decision share"]:
        """`same` at given shares of the trace: after as many whole sentences as fit in."""
        last = [[np.flatnonzero(own <= share + 1e-9)[-1] for share in shares] for own in self.share]
        values = np.array([same[cuts] for same, cuts in zip(self.same, last)], dtype=bool)
        return values.reshape(len(self.same), len(shares))

    def summary(self) -> str:
        area = f", area {self.area().mean():.2f} (filler {self.area('filler').mean():.2f})"
        return f"{counted(len(self.index), 'decision')}{area if len(self.index) else ''}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each part of each decision's trace: its `share`, `same`, `filler` and `distance`."""
        rows = []
        for k, decision in enumerate(self.index):
            read = self.distance[k] if len(self.distance[k]) else np.full(len(self.share[k]), np.nan)
            rows += [
                dict(decision=int(decision), share=share, same=same, filler=filler, distance=distance)
                for share, same, filler, distance in zip(self.share[k], self.same[k], self.filler[k], read)
            ]
        return pd.DataFrame(rows, columns=["decision", "share", "same", "filler", "distance"])


@dataclass(frozen=True)
class _Cuts:
    """The parts of one trace: their shares of its sentences, and what is read after the prompt for each.

    The first part is no trace at all, the action tag right at the boundary; `fillers` has none for it.
    """

    sentences: int
    share: Float[np.ndarray, "part"]
    prefixes: list[list[int]]
    fillers: list[list[int]]


def _cuts(prompt: Prompt, completion: Completion, points: int) -> _Cuts:
    fmt, parts = prompt.format, sentences(completion.trace or "")
    kept = np.unique(np.linspace(0, len(parts), min(points, len(parts) + 1)).round().astype(int))
    texts = [" ".join(parts[:k]) for k in kept]
    prefixes = [fmt.action_prefix(text or None) for text in texts[:-1]]
    prefixes.append(fmt.action_prefix(fmt.decoded_prefix(completion.ids)))  # the whole trace, to the id
    return _Cuts(len(parts), kept / len(parts), prefixes, [filler(fmt, text) for text in texts[1:]])


def _variants(cuts: Mapping[int, _Cuts], n: int, points: int) -> dict[str, list[list[int] | None]]:
    """What is read after each prompt for each part, `trace0`, `filler0`, ... (None: no such part)."""
    variants: dict[str, list[list[int] | None]] = {}
    for p in range(points):
        variants[f"trace{p}"] = [None] * n
        variants[f"filler{p}"] = [None] * n
        for i, cut in cuts.items():
            if p < len(cut.prefixes):
                variants[f"trace{p}"][i] = cut.prefixes[p]
            if p < len(cut.fillers):
                variants[f"filler{p}"][i] = cut.fillers[p]
    return variants


@measured
def early_answers(
    model: HookedModel,
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
    """Cut each decision's own trace after some of its sentences, and decode the action.

    No sentence at all is the action tag right at the boundary, as in mode `prompt`: an empty trace may not
    parse. The same is done after as many full stops. Decisions without a trace or an action are left out,
    with a warning.

    Args:
        decoded: the model's own decoding of each prompt in mode `cot`; those without a trace or an action are
            left out.
        points: most parts at which a trace is cut, the empty and the whole one included, evenly over its
            sentences.
        choices: decisions whose distribution is read as well, the first ones (all where None).
        candidates: for each prompt, the actions that it is a distribution over; the admissible ones where
            None.

    Raises:
        ValueError: for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"A curve needs the empty and the whole trace, so at least 2 points, not {points}.")
    index = complete(prompts, decoded)
    warn_left_out(len(index), len(prompts))
    if not index:
        return EarlyAnswers(np.array([], dtype=int), [], [], [], [])
    cuts = {i: _cuts(prompts[i], decoded[i], points) for i in index}
    variants = _variants(cuts, len(prompts), points)
    fmt, ids = format_of(model, prompts), [p.ids for p in prompts]
    out = continue_each(model, ids, variants, fmt.ended("prompt"), max_new_tokens, progress=progress)

    def unchanged(variant: str, i: int) -> bool:
        return parse_completion(fmt, out[variant][i].ids, "prompt", parser).action == decoded[i].action

    same = [[unchanged(f"trace{p}", i) for p in range(len(cut.prefixes))] for i, cut in cuts.items()]
    after_filler = [[unchanged(f"filler{p}", i) for p in range(len(cut.fillers))] for i, cut in cuts.items()]
    names = {i: prompts[i].decision.admissible if candidates is None else candidates[i] for i in index}
    chosen = [i for i in index[:choices] if names[i]]
    likely = preferences(
        model, [prompts[i] for i in chosen], [names[i] for i in chosen], [cuts[i].prefixes for i in chosen]
    )
    distance = {i: abs(each - each[-1]).sum(-1) / 2 for i, each in zip(chosen, likely)}
    return EarlyAnswers(
        index=np.array(index),
        share=[cut.share for cut in cuts.values()],
        same=[np.array(flags) for flags in same],
        distance=[distance.get(i, np.array([])) for i in index],
        filler=[np.array([flags[0], *filled]) for flags, filled in zip(same, after_filler)],
        sentences=[cut.sentences for cut in cuts.values()],
    )
