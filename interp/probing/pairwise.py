"""One action against another within one admissible set: probes of two classes.

>>> results = pairwise(acts, chosen, rejected, episodes, prompts=texts)
>>> results["go to desk", "take pen"].to_frame()

Not supported: actions whose labels differ in words but not in kind (name them alike first), a ranking over
pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from interp.probing.inputs import Acts, Names, ProbeSet, checked_set
from interp.probing.probes import ProbeOptions, ProbeResult, probe
from interp.stats.intervals import Groups
from interp.system.options import takes_fields

#: Two actions, in alphabetical order.
Pair = tuple[str, str]


@takes_fields(ProbeOptions)
def pairwise(
    acts: Acts,
    chosen: Names,
    rejected: Sequence[Iterable[str] | str],
    groups: Groups,
    *,
    pairs: Sequence[Sequence[str]] | None = None,
    episodes: int = 10,
    most: int | None = None,
    prompts: Names | None = None,
    previous: Names | None = None,
    types: Names | None = None,
    random_acts: Acts | None = None,
    options: ProbeOptions = ProbeOptions(),
) -> dict[Pair, ProbeResult]:
    """Probe which of two actions is taken, where both are admissible and one of the two is taken.

    Which actions are admissible cannot tell the classes apart in such decisions, as it can among all.

    Args:
        acts: as in `probe`.
        chosen: the action of each decision, or its class.
        rejected: the admissible actions not taken (or a single one) at each decision, named in the same way;
            one that equals the chosen action is passed over.
        groups: the episode.
        pairs: pairs of actions; by default all in which each action is taken in at least `episodes` episodes,
            the most common first.
        most: at most so many pairs.
        prompts, previous, types, random_acts, options: as in `probe`, whose options may also be given as
            keywords.

    Returns:
        For each pair what `probe` returns; its `n` counts the pair's decisions.

    Raises:
        ValueError: for lengths that differ, no such pair, a named pair that never splits a decision, and as
            `probe`.
    """
    data = checked_set("the set", acts, chosen, groups, prompts, previous, types, random_acts)
    if len(rejected) != len(data.acts):
        raise ValueError(
            f"acts have {len(data.acts)} decisions but rejected has {len(rejected)}: "
            "give the actions not taken for each."
        )
    rows = _rows(data, rejected)
    results = {}
    for pair in _named(data, rows, pairs, episodes)[:most]:
        own = data.rows(np.array(rows[pair]))
        results[pair] = probe(**own.columns(), options=options)
    return results


def _pair(actions: Iterable[str]) -> Pair:
    a, b = sorted(actions)
    return a, b


def _rows(data: ProbeSet, rejected: Sequence[Iterable[str] | str]) -> dict[Pair, list[int]]:
    """The decisions at which one of two actions is taken over the other."""
    rows: dict[Pair, list[int]] = {}
    for i, (action, others) in enumerate(zip(data.labels.tolist(), rejected, strict=True)):
        for other in {others} if isinstance(others, str) else set(others):
            if other != action:
                rows.setdefault(_pair((action, other)), []).append(i)
    return rows


def _named(
    data: ProbeSet, rows: Mapping[Pair, list[int]], pairs: Sequence[Sequence[str]] | None, episodes: int
) -> list[Pair]:
    """The pairs to probe."""
    if pairs is not None:
        named = [_pair(pair) for pair in pairs]
        missing = [pair for pair in named if pair not in rows]
        if missing:
            raise ValueError(
                f"{missing[0]} are never both admissible where one of the two is taken "
                f"({len(missing)} such pairs)."
            )
        return named

    def fewest_episodes(pair: Pair) -> int:
        taken = Counter(action for action, _ in {(data.labels[i], data.groups[i]) for i in rows[pair]})
        return min(taken[action] for action in pair)

    named = [pair for pair in rows if fewest_episodes(pair) >= episodes]
    if not named:
        raise ValueError(
            f"No two actions are each taken over the other in at least {episodes} episodes: "
            "lower episodes or join actions."
        )
    return sorted(named, key=lambda pair: (-len(rows[pair]), pair))
