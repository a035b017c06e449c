"""One action against another within one admissible set: probes of two classes.

>>> found = pairwise(acts, chosen, rejected, episodes, prompts=texts)
>>> found["go to desk", "take pen"].table()

Not supported: actions whose labels differ in words but not in kind (name them alike first), a ranking over pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

from interp.probing.inputs import checked_set
from interp.probing.probes import ProbeResult, probe


def pairwise(
    acts: Float[np.ndarray, "decision layer d_model"],
    chosen: Sequence[str],
    rejected: Sequence[Sequence[str] | str],
    groups: Sequence[Hashable],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    episodes: int = 10,
    most: int | None = None,
    prompts: Sequence[str] | None = None,
    previous: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    random_acts: Float[np.ndarray, "decision layer d_random"] | None = None,
    **options,
) -> dict[tuple[str, str], ProbeResult]:
    """Probe which of two actions is taken, over the decisions at which both are admissible and one of the two is taken.

    Which actions are on offer cannot tell the classes apart in such decisions, as it can among all.

    acts: as in `probe`. chosen: the action of each decision, or its class. rejected: the admissible actions not taken (or a
    single one) at each decision, named in the same way; one that equals the chosen action is passed over. groups: the episode.
    pairs: pairs of actions; by default all in which each action is taken in at least `episodes` episodes, the most common first;
    `most`: at most so many of them.
    prompts, previous, types, random_acts and options: of `probe`, for each decision.
    Returns for each pair, its actions in alphabetical order, what `probe` returns; its `n` counts the pair's decisions.
    Raises ValueError for lengths that differ, no such pair, a named pair that never splits a decision, and what `probe` raises.
    """
    data = checked_set("the set", acts, chosen, groups, prompts, previous, types, random_acts)
    if len(rejected) != len(data["acts"]):
        raise ValueError(
            f"acts have {len(data['acts'])} decisions but rejected has {len(rejected)}: give the actions not taken for each."
        )
    rows: dict[tuple[str, str], list[int]] = {}
    for i, (action, others) in enumerate(zip(data["labels"].tolist(), rejected, strict=True)):
        for other in {others} if isinstance(others, str) else set(others):
            if other != action:
                rows.setdefault(tuple(sorted((action, other))), []).append(i)
    if pairs is None:
        counts = {
            pair: Counter(action for action, _ in {(data["labels"][i], data["groups"][i]) for i in at})
            for pair, at in rows.items()
        }
        named = [pair for pair in rows if min(counts[pair][action] for action in pair) >= episodes]
        if not named:
            raise ValueError(
                f"No two actions are each taken over the other in at least {episodes} episodes: lower episodes or join actions."
            )
        named.sort(key=lambda pair: (-len(rows[pair]), pair))
    else:
        named = [tuple(sorted(pair)) for pair in pairs]
        missing = [pair for pair in named if pair not in rows]
        if missing:
            raise ValueError(
                f"{missing[0]} are never both admissible where one of the two is taken ({len(missing)} such pairs)."
            )
    found = {}
    for pair in named[:most]:
        at = np.array(rows[pair])
        own = {name: None if data[name] is None else data[name][at] for name in data}
        for_pair = {name: own[name] for name in ("prompts", "previous", "types", "random_acts")}
        found[pair] = probe(own["acts"], own["labels"], own["groups"], **for_pair, **options)
    return found
