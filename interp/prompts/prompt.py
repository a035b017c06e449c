"""One decision as the model reads it, made by `PromptFormat.prompt`.

>>> prompts[0].positions("task"), prompts[0].boundary
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from interp.prompts.spans import SPANS
from interp.tasks.episodes import Decision

if TYPE_CHECKING:
    from interp.prompts.format import PromptFormat


@dataclass(frozen=True)
class Prompt:
    """One decision as the model reads it: `ids` [token], one span name for each, and the boundary's index.

    `decision` holds the messages that are in it; `dropped` of the agent's turns, with their answers, were
    left out.
    """

    ids: tuple[int, ...]
    spans: tuple[str, ...]
    decision: Decision
    format: PromptFormat
    dropped: int = 0

    def __repr__(self) -> str:
        return f"Prompt({len(self.ids)} tokens, boundary {self.boundary}, decision {self.decision.id[:60]!r})"

    @property
    def boundary(self) -> int:
        """Index of the last prompt token."""
        return len(self.ids) - 1

    @property
    def episode(self) -> str:
        """The episode that its decision is of: its prompts extend one another."""
        return self.decision.episode

    @property
    def name(self) -> str:
        """What sentences call it."""
        return f"decision {self.decision.id}"

    @cached_property
    def hash(self) -> str:
        """Content hash of ids and spans."""
        return hashlib.sha256(json.dumps([self.ids, self.spans]).encode()).hexdigest()[:16]

    def positions(self, span: str) -> Int[np.ndarray, "position"]:
        """Token indices of one span."""
        if span not in SPANS:
            raise ValueError(f"There is no span {span!r}: the spans are {', '.join(SPANS)}.")
        return np.flatnonzero(np.array(self.spans) == span)
