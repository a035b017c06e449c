"""The four claims' verdicts on series whose answer is known, from the same comparison as a study's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from interp.engine.decoding import choose_each, decode
from interp.measures.conflicts import conflict
from interp.measures.own_traces import own_trace_effects
from interp.measures.pairs import make_pairs
from interp.measures.reliance import prompt_reliance
from interp.models.hooked import HookedModel
from interp.prompts.format import PromptFormat
from interp.tasks.episodes import Decision
from interp.training.taught import expected_verdicts, swap_candidates

from .both_modes import side_by_side
from .claims import Records, compared


def is_reference(decision: Decision, action: str) -> bool:
    """Whether an action is the recorded one."""
    return action == decision.reference


def records(
    model: HookedModel, fmt: PromptFormat, decisions: Sequence[Decision], pairs: int, seed: int = 0
) -> Records:
    """What the claims are read from at one checkpoint: both actions, conflicting traces, effects of pairs.

    Args:
        pairs: how many of the decisions are paired.
        seed: of the draws and of the pairs.
    """
    prompts = [fmt.prompt(decision) for decision in decisions]
    at_once, own = decode(model, prompts, "prompt"), decode(model, prompts, "cot")
    prefixes = [fmt.decoded_prefix(completion.ids) for completion in own]
    kept = [i for i, prefix in enumerate(prefixes) if prefix]
    listed = [decisions[i].admissible for i in kept]
    chosen = choose_each(model, [prompts[i] for i in kept], listed, [(None, prefixes[i]) for i in kept])
    best = [
        [names[int(k)] for k in logp[..., 0].argmax(1)] for names, logp in zip(listed, chosen, strict=True)
    ]
    other = conflict(model, prompts, own, ["other_state"], seed=seed)["other_state"]
    return dict(
        choice_sum=side_by_side(
            [decisions[i] for i in kept], [a for a, _ in best], [b for _, b in best], is_reference
        ),
        free=side_by_side(decisions, [c.action for c in at_once], [c.action for c in own], is_reference),
        other_state=pd.DataFrame(
            dict(
                episode=[decisions[i].episode for i in other.index],
                revised=~other.keep,
                followed=other.follow,
                parsed=~other.unparsed,
            ),
            index=[decisions[i].id for i in other.index],
        ),
        **effects_of_pairs(model, fmt, decisions, pairs, seed),
    )


def effects_of_pairs(
    model: HookedModel, fmt: PromptFormat, decisions: Sequence[Decision], pairs: int, seed: int
) -> Records:
    """Direct and indirect effects with the given traces (`pairs`) and with own ones (`own_traces`)."""
    clean, corrupt, _ = make_pairs(fmt, decisions, pairs, seed, swap_candidates)
    given, own = prompt_reliance(model, clean, corrupt), own_trace_effects(model, clean, corrupt, seed=seed)

    def frame(kept: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
        episodes = [clean[i].decision.episode for i in kept]
        names = [f"{clean[i].decision.id} {corrupt[i].decision.reference}" for i in kept]
        return pd.DataFrame(dict(episode=episodes, **columns), index=names)

    return dict(
        pairs=frame(given.kept, direct=given.direct, via_cot=given.via_cot),
        own_traces=frame(own.kept, direct=own.direct, indirect=own.indirect),
    )


def to_json(read: Records) -> dict[str, dict]:
    """Records as they are kept on disk."""
    return {name: frame.reset_index(names="id").to_dict("list") for name, frame in read.items()}


def of_json(stored: dict[str, dict]) -> Records:
    """Records as they were kept."""
    return {name: pd.DataFrame(columns).set_index("id") for name, columns in stored.items()}


def judged(
    name: str, base: Records, trained: Records, margin: float, seed: int, backwards: bool = False
) -> Iterator[dict]:
    """The verdicts on a series whose answer is known, each beside the right one.

    backwards: the trained checkpoint is taken for the base.
    """
    truth = expected_verdicts(name, backwards)
    both = (trained, base) if backwards else (base, trained)
    for row in compared(*both, margin, seed):
        if row["statistic"] in truth and row["subset"] == "all":
            yield dict(agent=name, backwards=backwards, truth=truth[row["statistic"]]) | row
