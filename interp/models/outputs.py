"""How a module gives its hidden states: bare, or first of several things.

Those are a tuple, a list, a named tuple, a mapping or a dataclass, such as
transformers' ModelOutput, and stay what they are.

>>> first_of((hidden, weights)) is hidden
True
>>> layout = Layout.of(block(hidden))   # None where it gives a bare tensor
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


def _named(output: Any) -> dict[str, Any] | None:
    """The entries of an output whose entries have names (None for a tensor, a tuple or a list)."""
    if hasattr(output, "_asdict"):
        return output._asdict()
    if dataclasses.is_dataclass(output):  # ModelOutput too, whose keys leave out what is None
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output) if f.init}
    return dict(output) if isinstance(output, Mapping) else None


def entries_of(output: Any) -> list[Any]:
    """What a module gives, one thing after the other."""
    named = _named(output)
    if named is not None:
        return list(named.values())
    return list(output) if isinstance(output, (tuple, list)) else [output]


@dataclass(frozen=True)
class Layout:
    """The type of an output of several things, their number and names, and the index of its hidden states."""

    kind: type
    count: int
    names: tuple[str, ...] | None = None
    hidden_at: int = 0

    @classmethod
    def of(cls, output: Any) -> Layout | None:
        """The layout of an output, None for a bare tensor and for what has no tensor as its hidden states.

        Hidden states are the first entry of a tuple, a list or a named tuple, and the first entry of a
        mapping or a dataclass that is not None.
        """
        named, entries = _named(output), entries_of(output)
        if isinstance(output, torch.Tensor) or not entries:
            return None
        hidden_at = 0
        if not isinstance(output, (tuple, list)):
            hidden_at = next((i for i, entry in enumerate(entries) if entry is not None), 0)
        if not isinstance(entries[hidden_at], torch.Tensor):
            return None
        return cls(type(output), len(entries), None if named is None else tuple(named), hidden_at)

    def filled(self, entries: Sequence[Any]) -> Any:
        """An output of this layout with these entries."""
        if self.names is not None:
            return self.kind(**dict(zip(self.names, entries, strict=True)))
        return self.kind(entries)

    def around(self, hidden: torch.Tensor) -> Any:
        """An output with these hidden states, and None for everything else."""
        entries: list[Any] = [None] * self.count
        entries[self.hidden_at] = hidden
        return self.filled(entries)


def first_of(output: Any) -> torch.Tensor | None:
    """The hidden states that a module gives, None where it gives none."""
    if isinstance(output, torch.Tensor):
        return output
    layout = Layout.of(output)
    return None if layout is None else entries_of(output)[layout.hidden_at]


def replaced(output: Any, hidden: torch.Tensor) -> Any:
    """The same output with other hidden states."""
    layout = Layout.of(output)
    if layout is None:
        return hidden
    entries = entries_of(output)
    entries[layout.hidden_at] = hidden
    return layout.filled(entries)


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A value with `change` made to each tensor in it, within its tuples and lists too."""
    if isinstance(value, (tuple, list)):
        entries = [mapped(entry, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return change(value) if isinstance(value, torch.Tensor) else value
