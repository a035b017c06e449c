"""Between the CPU and a GPU: tensors sent and fetched without a wait, and how many tokens a pass may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from interp.models.inner import largest
from interp.system.choices import check_device

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

#: Most tokens of a pass on a GPU, which fewer keep busy; and the part of its free memory that a pass may
#: take.
MOST, SHARE = 65_536, 0.5
#: Bytes of keys, values and states that are held together on a CPU: more would only be padded further.
HELD = 2**27
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Result = TypeVar("Result")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one; raises ValueError for a device this machine does not have."""
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"Device {name!r} was asked for, but torch sees no GPU on this machine: use --device cpu."
        )
    device = torch.device(name)
    gpus = torch.cuda.device_count()
    if device.index is not None and device.index >= gpus:
        raise ValueError(
            f"Device {name!r} was asked for, but torch sees {gpus} GPUs, which are counted from 0."
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU and bfloat16 on a GPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"There is no dtype {name!r}: use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device, copied to a GPU without waiting for what runs there."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetched(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy a tensor to the CPU; the function returned waits for the copy and gives it."""
    if tensor.device.type != "cuda":
        return lambda: tensor.cpu()  # called here, which is how counts of copies know it
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return host

    return wait


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take, or that torch holds for it and does not use.

    A process that shares a GPU takes its share at most (`torch.cuda.set_per_process_memory_fraction`).
    """
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free, max(0, share - held)) + held - torch.cuda.memory_allocated(device)


def free_for(model: HookedModel) -> int:
    """The `free_bytes` of a model's GPU; of several the fewest."""
    return min(map(free_bytes, {parameter.device for parameter in model.hf.parameters()}))


def token_bytes(model: HookedModel) -> int:
    """Bytes of a token's keys and values, in all layers (at most, where not every layer keeps them)."""
    if model.support.patch != "fast":
        return 2 * model.dtype.itemsize * model.d_model * model.n_layers
    return sum(t.shape[1] * t.shape[3] * t.element_size() for layer in model.empty() for t in layer)


def activation_bytes(model: HookedModel) -> int:
    """About the bytes that a block makes of a token while it runs."""
    inner = largest(model.config, "intermediate_size") or 4 * model.d_model
    return model.dtype.itemsize * (4 * inner + 12 * model.d_model)


def most_held(model: HookedModel) -> int:
    """Bytes of keys, values and states to hold at once, if as much is left to work with them."""
    return int(SHARE / 2 * free_for(model)) if model.device.type == "cuda" else HELD


def graph_tokens(model: HookedModel) -> int:
    """Most tokens of one pass that is gone back through, padding included: what its blocks make is held."""
    return most_held(model) // (activation_bytes(model) * model.n_layers)


def pass_tokens(model: HookedModel, longest: int, on_cpu: int) -> int:
    """Most tokens of one pass, padding included: by free memory on a GPU, `on_cpu` on a CPU."""
    if model.device.type != "cuda":
        return on_cpu
    item, config = model.dtype.itemsize, model.config
    scores = model.n_heads * longest * (item + 4) if config._attn_implementation == "eager" else 0
    return min(MOST, int(SHARE * free_for(model) / (activation_bytes(model) + scores)))


def halved(batches: Sequence[list], run: Callable[[list], Result]) -> Iterator[Result]:
    """What `run` gives for each batch, in order; a batch that does not fit the GPU's memory is halved."""
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
