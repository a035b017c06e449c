"""The prompt and the CoT action of the same decisions side by side, as `behaviour` and `claims` read them.

An action that did not parse (None) is a class of its own: it is never right and agrees with nothing, not even
with another one.

>>> two = [Decision([dict(role="user", content="Go.")], "look", ["look"], episode=name) for name in "ab"]
>>> differ(side_by_side(two, prompt=["look", None], cot=["look", None], judge=is_admissible)).tolist()
[False, True]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import lazy_loader as lazy
import numpy as np
from jaxtyping import Bool, Float

from interp.tasks.episodes import Decision

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")  # half a second, which a bad flag need not wait for


def same(prompt: str | None, cot: str | None) -> bool:
    """Whether two actions agree."""
    return prompt is not None and prompt == cot


def is_admissible(decision: Decision, action: str) -> bool:
    """Whether an action is among those that are listed."""
    return action in decision.admissible


def right(
    decisions: Sequence[Decision], actions: Sequence[str | None], judge: Callable[[Decision, str], bool]
) -> Bool[np.ndarray, " decision"]:
    """Whether each action is right, which an unparsed one (None) never is; `judge` is not asked of those."""
    judged = [a is not None and bool(judge(d, a)) for d, a in zip(decisions, actions, strict=True)]
    return np.array(judged, dtype=bool)


def side_by_side(
    decisions: Sequence[Decision],
    prompt: Sequence[str | None],
    cot: Sequence[str | None],
    judge: Callable[[Decision, str], bool],
) -> pd.DataFrame:
    """A row for each decision, by its id.

    Args:
        decisions: what both actions were taken at.
        prompt, cot: the actions (None: unparsed).
        judge: whether an action is right at a decision; asked of parsed ones only.

    Returns:
        Columns `episode`; whether each action is right (`prompt`, `cot`); the actions (`action_prompt`,
        `action_cot`); whether both parsed (`parsed`).
    """
    rows = [
        dict(
            episode=decision.episode,
            prompt=right_prompt,
            cot=right_cot,
            action_prompt=a,
            action_cot=b,
            parsed=a is not None and b is not None,
        )
        for decision, a, b, right_prompt, right_cot in zip(
            decisions, prompt, cot, right(decisions, prompt, judge), right(decisions, cot, judge), strict=True
        )
    ]
    return pd.DataFrame(rows, index=[decision.id for decision in decisions])


def differ(both: pd.DataFrame) -> Bool[np.ndarray, " decision"]:
    """Where the trace changed the action."""
    agree = [same(a, b) for a, b in zip(both["action_prompt"], both["action_cot"], strict=True)]
    return ~np.array(agree, dtype=bool)


def labels(both: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The prompt and the CoT actions as labels for kappa; those that did not parse have one in each mode."""
    prompt, cot = both["action_prompt"], both["action_cot"]
    return prompt.fillna("unparsed: prompt").tolist(), cot.fillna("unparsed: CoT").tolist()


def gap(both: pd.DataFrame) -> Float[np.ndarray, " decision"]:
    """The CoT action's score minus the prompt action's."""
    return both["cot"].to_numpy(dtype=float) - both["prompt"].to_numpy(dtype=float)
