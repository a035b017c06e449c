"""Counts what makes the CPU wait for a GPU, on a machine without one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import interp

#: Methods that read a tensor's numbers, for which the CPU waits until the GPU has computed them.
WAITS = ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
OURS = str(Path(interp.__file__).parent)


@contextmanager
def waits() -> Iterator[Counter]:
    """Calls by the toolkit's own code, (module, method) -> number; not what transformers or tests do
    themselves."""
    counts: Counter = Counter()
    originals = {name: getattr(torch.Tensor, name) for name in WAITS}

    def counted(name):
        def method(tensor, *args, **kwargs):
            where = sys._getframe(1).f_code.co_filename
            if where.startswith(OURS):
                counts[Path(where).stem, name] += 1
            return originals[name](tensor, *args, **kwargs)

        return method

    try:
        for name in WAITS:
            setattr(torch.Tensor, name, counted(name))
        yield counts
    finally:
        for name, method in originals.items():
            setattr(torch.Tensor, name, method)
