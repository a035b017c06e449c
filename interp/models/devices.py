"""Between the CPU and a GPU: tensors sent and fetched without a wait, and how many tokens a pass may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from interp.models.inner import largest

#: Most tokens of a pass on a GPU, which fewer keep busy; and the part of its free memory that a pass may
#: take.
MOST, SHARE = 65_536, 0.5
Result = TypeVar("Result")


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device; the GPU does not end what it is at before it takes it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetched(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy a tensor to the CPU; what is returned waits for the copy and gives it, and may be called
    later.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return host

    return wait


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that torch holds and does not use."""
    return (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )


def pass_tokens(model, longest: int, on_cpu: int) -> int:
    """Most tokens of one pass with padding: by what is free on a GPU, `on_cpu` on a CPU.

    longest: tokens of the longest row.
    """
    if model.device.type != "cuda":
        return on_cpu
    item, config = model.dtype.itemsize, model.config
    inner = largest(config, "intermediate_size") or 4 * model.d_model
    scores = model.n_heads * longest * (item + 4) if config._attn_implementation == "eager" else 0
    each = item * (4 * inner + 12 * model.d_model) + scores
    return min(MOST, int(SHARE * free_bytes(model.device) / each))


def halved(batches: Sequence[list], run: Callable[[list], Result]) -> Iterator[Result]:
    """What `run` gives for each batch, in order; one that does not fit the GPU's memory is run as two halves."""
    waiting = list(batches)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            result = run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            yield result
            continue
        torch.cuda.empty_cache()
        half = len(batch) // 2
        waiting += [batch[half:], batch[:half]]
