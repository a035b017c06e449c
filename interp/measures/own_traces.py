"""Effects of the prompt through the model's own traces, the prompt's choice of the trace included.

With keys and values exchanged (`interp.measures.reliance`) given traces are held, so both prompts need one
length, and which trace a prompt leads to is left out. Here each prompt draws its own traces, and every trace
is read again after both prompts: the natural direct and indirect effects (Pearl 2001; Vig et al. 2020).

>>> effects = own_trace_effects(model, clean, corrupt)
>>> effects.direct.mean(), effects.indirect.mean(), effects.total.mean()           # nats
>>> effects.total - effects.indirect                   # the direct effect, after the other prompt's traces
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.engine.decoding import LIMITS, format_of
from interp.engine.reading import Memory, memory_of
from interp.engine.scoring import score_each
from interp.measures.conflicts import SAMPLES, resample
from interp.measures.pairs import check_differ, check_number, reference_actions
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.prompts.format import Prompt
from interp.results.shown import Plotted, counted, warn_incomplete
from interp.stats.changes import part_share

EFFECTS = ("direct", "indirect", "total")


@dataclass(frozen=True, eq=False, repr=False)
class OwnTraceEffects(Plotted):
    """Effects on log p(clean action) - log p(corrupt action), in nats, of the pairs that were kept."""

    picture: ClassVar[str] = "own_traces"
    direct: Float[np.ndarray, "pair"]
    """The clean prompt's traces after the clean prompt, minus the same traces after the corrupt one."""
    indirect: Float[np.ndarray, "pair"]
    """After the clean prompt its own traces, minus the corrupt prompt's."""
    total: Float[np.ndarray, "pair"]
    """Each prompt with its own traces: clean minus corrupt."""
    kept: Int[np.ndarray, "pair"]
    """Indices of the pairs."""
    dropped: int
    """Pairs left out."""
    samples: int
    """Traces drawn from each prompt."""
    unclosed: int
    """Of all that were drawn, those that open no action; they are left out of the means."""

    @property
    def interaction(self) -> Float[np.ndarray, "pair"]:
        """What prompt and traces do together beyond the sum of each."""
        return self.total - self.direct - self.indirect

    @property
    def prompt_reliance(self) -> float:
        """direct / (direct + indirect), of the means over pairs; NaN where `part_share` is not defined."""
        if not len(self.kept):
            return float("nan")
        return float(part_share(np.array([self.direct.mean(), self.indirect.mean()])))

    def summary(self) -> str:
        pairs = f"{counted(len(self.kept), 'pair')}, {self.dropped} dropped"
        drawn = f"{counted(self.samples, 'trace')} of each prompt, {self.unclosed} unclosed"
        if not len(self.kept):
            return f"{pairs}; {drawn}"
        effects = f"direct {self.direct.mean():.2f}, indirect {self.indirect.mean():.2f} nats"
        return f"{pairs}, {effects}, prompt reliance {self.prompt_reliance:.2f}; {drawn}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each kept pair: the effects and their interaction, in nats."""
        names = (*EFFECTS, "interaction")
        return pd.DataFrame(dict(pair=self.kept, **{name: getattr(self, name) for name in names}))


@measured
def own_trace_effects(
    model: HookedModel,
    clean: Sequence[Prompt],
    corrupt: Sequence[Prompt],
    samples: int = SAMPLES,
    minimum: float | None = None,
    seed: int = 0,
    max_new_tokens: int = LIMITS["cot"],
    progress: bool = False,
) -> OwnTraceEffects:
    """Natural direct, natural indirect and total effect of the prompt, with traces drawn at temperature 1.

    Both prompts of a pair draw by the same random numbers, which depend on the seed and the decision alone: a
    trace that does not depend on the prompt is then the same after both, and adds no noise. The actions told
    apart are the reference actions of the two decisions, closing tag included.

    Args:
        clean, corrupt: prompts in pairs, of any lengths (`interp.make_pairs` gives some).
        samples: traces drawn from each prompt.
        minimum: pairs whose total effect is below it, in nats, are dropped, with a warning. None keeps all:
            the total of few traces is noisy, and means over pairs that came out large are too large.
        seed: of the draws.
        max_new_tokens: most tokens of a trace and its action. Traces that open no action within them are left
            out, and pairs without any on one side dropped, with a warning.

    Raises:
        ValueError: for lists that are not pairs, pairs of one action, and no traces.
    """
    check_number(clean, corrupt)
    if samples < 1:
        raise ValueError(f"Effects need at least one trace of each prompt: samples is {samples}.")
    n, prompts = len(clean), [*clean, *corrupt]
    fmt = format_of(model, prompts)
    actions = [list(reference_actions(*pair)) for pair in zip(clean, corrupt)]
    for one, other in actions:
        check_differ(fmt.tokenizer, one, other)
    seeds, memory = [_seed_of(seed, each) for each in clean], memory_of(model, [p.ids for p in prompts])
    drawn = resample(model, prompts, str, samples, seeds * 2, max_new_tokens, progress, memory, range(2 * n))
    traces = [[prefix for each in own if (prefix := fmt.decoded_prefix(each.ids))] for own in drawn]
    usable = [i for i in range(n) if traces[i] and traces[n + i]]
    effects = _effects(
        model,
        [(prompts[i], prompts[n + i]) for i in usable],
        [(traces[i], traces[n + i]) for i in usable],
        [actions[i] for i in usable],
        memory,
        [*usable, *(n + i for i in usable)],
    )
    large = np.flatnonzero(effects[:, 2] >= (-np.inf if minimum is None else minimum))
    kept = np.array(usable, dtype=int)[large]
    unclosed = len(prompts) * samples - sum(map(len, traces))
    _warn_left_out(unclosed, len(prompts) * samples, n - len(usable), n)
    if minimum is not None and len(kept) < len(usable):
        warn_incomplete(
            f"{len(usable) - len(kept)} of {n} pairs are dropped: exchanging the prompt with its traces "
            f"moves the action by less than {minimum:g} nats. Choose pairs whose actions the model "
            "tells apart, or lower minimum."
        )
    direct, indirect, total = effects[large].T
    return OwnTraceEffects(direct, indirect, total, kept, n - len(kept), samples, unclosed)


def _effects(
    model: HookedModel,
    pairs: Sequence[tuple[Prompt, Prompt]],
    traces: Sequence[tuple[list[list[int]], list[list[int]]]],
    actions: Sequence[list[list[int]]],
    memory: Memory | None,
    names: Sequence[int],
) -> Float[np.ndarray, "pair 3"]:
    """Direct, indirect and total effect of each pair, every trace of both read after both prompts.

    traces: ids as they were decoded up to the opened action, of the clean prompt and of the corrupt one.
    memory, names: as `score_each` has them; of the clean prompts, then of the corrupt ones.
    """
    prefixes = [
        [clean.format.action_prefix(trace) for both in own for trace in both]
        for (clean, _), own in zip(pairs, traces)
    ]
    runs = [[pair[side].ids for pair in pairs] for side in (0, 1)]
    logp = score_each(model, [*runs[0], *runs[1]], prefixes * 2, [*actions, *actions], memory, names)
    differences = [(each[:, 0] - each[:, 1]).double().numpy() for each in logp]
    effects = np.empty((len(pairs), 3))
    for k, (clean_traces, _) in enumerate(traces):
        after_clean, after_corrupt = differences[k], differences[len(pairs) + k]
        own = slice(len(clean_traces))
        other = slice(len(clean_traces), None)
        effects[k] = after_clean[own].mean() - np.array(
            [after_corrupt[own].mean(), after_clean[other].mean(), after_corrupt[other].mean()]
        )
    return effects


def _seed_of(seed: int, prompt: Prompt) -> int:
    """A number that depends on the seed and on the decision alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt.decision.id}".encode()).digest()[:7], "big")


def _warn_left_out(unclosed: int, drawn: int, lost: int, pairs: int) -> None:
    if unclosed:
        whole = f", and with them {lost} of {pairs} pairs" if lost else ""
        warn_incomplete(
            f"{unclosed} of {drawn} drawn traces open no action and are left out{whole}: raise "
            "max_new_tokens, or give the style that the model was trained in."
        )
