"""How often the verdicts on the four claims are right: simulated studies, no model (docs/methods.md 0).

>>> frame = rates(studies=200, sizes=[(100, 50)])
>>> null = frame[(frame["change"] == 0) & (frame["reading"] == "prompt action")]
>>> bool(null["supported"].max() < 0.05)
True

A decision's four outcomes (prompt and CoT action, at the base and later) are latent normals cut at the rate
that each is to have. They share what an episode and what a decision is like, so that decisions of one episode
depend on each other, and a decision that the base gets right is mostly got right later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import norm

from interp.results.claims import VERDICTS
from interp.stats.changes import INNER, OUTER, Change, equivalent, sided
from interp.stats.intervals import OfMeans, bootstrap_weights, expanded_tail
from interp.system.limits import SMALLEST

#: Rates of the prompt and the CoT action at the base.
BASE = (0.3, 0.5)
#: Shares of the latent variance that an episode and a decision have, the rest being each outcome's own.
EPISODE, DECISION = 0.2, 0.4
#: Decisions and episodes: of forced choice and of decoding in a study of full size, and all of a split.
SIZES = ((100, 50), (400, 200), (1800, 200))
#: True changes of the prompt action's rate, and of the gap.
GAINS, WIDENINGS = (0.0, 0.05, 0.10), (0.0, -SMALLEST, SMALLEST, 0.10)
#: The prompt action's gain where the gap is read.
RISE = 0.1


def outcomes(
    studies: int, n: int, episodes: int, prompt: float, gap: float, seed: int
) -> Bool[np.ndarray, "study episode decision outcome"]:
    """Whether the prompt action and the CoT action are right, at the base, then later.

    Args:
        prompt, gap: true changes of the prompt action's rate and of the gap.
    """
    rng = np.random.default_rng([seed, n, episodes])
    shape = studies, episodes, n // episodes
    later = BASE[0] + prompt, BASE[1] + prompt + gap
    shared = np.sqrt(EPISODE) * rng.standard_normal((*shape[:2], 1, 1))
    shared = shared + np.sqrt(DECISION) * rng.standard_normal((*shape, 1))
    own = np.sqrt(1 - EPISODE - DECISION) * rng.standard_normal((*shape, 4))
    return shared + own < norm.ppf([*BASE, *later])


def changes(columns: Float[np.ndarray, "study episode decision k"], function: OfMeans) -> list[Change]:
    """Each study's change, as `interp.stats.changes.change` estimates it where decisions differ.

    Args:
        function: from means [..., k] of the columns to the change [...].
    """
    _, episodes, each, _ = columns.shape
    weights = bootstrap_weights(range(episodes)).T.astype(float)
    by_episode = np.moveaxis(columns.mean(axis=2), -1, 0)
    drawn = function(np.moveaxis(by_episode @ weights / episodes, 0, -1))
    tails = [expanded_tail(episodes, level) for level in (OUTER, INNER)]
    ends = np.quantile(drawn, [end for tail in tails for end in (tail, 1 - tail)], axis=1)
    values = function(columns.mean(axis=(1, 2)))
    return [
        Change(np.nan, np.nan, *map(float, numbers), episodes * each, episodes)
        for numbers in zip(values, *ends, strict=True)
    ]


def rates(studies: int = 1000, sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> pd.DataFrame:
    """Shares of studies with each verdict, by reading, true change, decisions and episodes."""
    rows = []
    for n, episodes in sizes:
        for gain in GAINS:
            right = outcomes(studies, n, episodes, gain, 0.0, seed)
            moved = changes((right[..., 2:3] - right[..., :1].astype(float)), lambda mean: mean[..., 0])
            rows.append(dict(reading="prompt action", change=gain) | _shares(map(sided, moved), n, episodes))
        for gap in WIDENINGS:
            right = outcomes(studies, n, episodes, RISE, gap, seed)
            gaps = right[..., 1::2] - right[..., ::2].astype(float)
            moved = changes(gaps[..., 1:] - gaps[..., :1], lambda mean: mean[..., 0])
            said = (equivalent(each, SMALLEST) for each in moved)
            rows.append(dict(reading="gap", change=gap) | _shares(said, n, episodes))
    return pd.DataFrame(rows)


def _shares(said: Iterable[str], n: int, episodes: int) -> dict:
    words = list(said)
    return dict(n=n, episodes=episodes) | {word: words.count(word) / len(words) for word in VERDICTS}
