"""What a measurement would ask of a GPU, counted on a CPU: passes, tokens, masks, kernels and waits.

>>> with counting(model) as counts:
...     sweep = interp.patch(model, clean, corrupt, minimum=-1e9)
>>> counts.passes, counts.fetches, counts.waits              # the last: what waited, and where -> number
(3, 2, Counter())

The CPU plays both machines. A tensor of the model, one that is made on or sent to `model.device`, and every
result of an operation on such a tensor is marked, and calls its device `cpu:0`; all others are on `cpu`.
Copies between the two are real ones. Where numbers of a marked tensor are read, or others' numbers are
brought to one, `interp.models.devices.fetched` and `sent` are the proper ways: pinned copies, which a GPU
makes while it goes on. They are counted as `fetches`, each awaited once, and `sends`. All others are `waits`,
for which its queue runs empty. An operation on tensors of both machines, which a GPU refuses, is an error
here, too: so no mark is lost unseen.

Not seen are the waits of kernels and libraries themselves, those for memory, and what anything takes of time.
A kernel is an operation of torch that is no view, which a GPU may split or join. Masks are those of
`HookedModel.mask`, not the ones that a model makes itself. Code takes a CPU's paths: what only a GPU does
(recorded steps, a pass ahead of what is read) is not done.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from interp.models import devices
from interp.models.hooked import HookedModel

#: What tensors of the model's device call their device.
DEVICE = torch.device("cpu", 0)
#: What a marked tensor has in its `__dict__`.
_MARK = "_on_device"
#: Functions that give a marked tensor's numbers to the CPU.
_READS = ("cpu", "numpy", "tolist", "__array__")
#: Functions that make a tensor of numbers on the CPU, on a device.
_MAKES = ("tensor", "as_tensor", "new_tensor", "asarray")
#: Operations that launch nothing, though they are no views.
_FREE = ("empty", "_unsafe_view", "_local_scalar_dense", "resize_")


@dataclass
class Counts:
    """What was counted so far."""

    passes: int = 0
    """Calls of the decoder."""
    tokens: int = 0
    """Rows x slots that entered them."""
    padding: int = 0
    """How many of these are padding: token 0 at the end of a row, or at a position 0 that was given."""
    blocks: int = 0
    """Blocks that ran, those passed over left out."""
    block_tokens: int = 0
    """Rows x slots that entered them."""
    mask_bytes: int = 0
    """Bytes of the attention masks that were made."""
    unembedded: int = 0
    """Final states that were unembedded, parts of the vocabulary counted as parts of one."""
    kernels: int = 0
    """Operations on the device that compute or copy."""
    fetches: int = 0
    """Copies to the CPU by `fetched`."""
    sends: int = 0
    """Copies to the device by `sent`."""
    waits: Counter[str] = field(default_factory=Counter)
    """Other reads and copies: what waited, and where -> number."""


def is_marked(value: object) -> bool:
    """Whether a value is a tensor that is on the device."""
    return isinstance(value, Tensor) and _MARK in value.__dict__


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _mark(value: Any) -> Any:
    for tensor in _tensors(value):
        tensor.__dict__[_MARK] = True
    return value


def _named_device(args: Sequence, kwargs: Mapping) -> torch.device | None:
    """The device that a call names, itself or by a tensor there."""
    for value in (kwargs.get("device"), kwargs.get("other"), *args):
        if isinstance(value, torch.device):
            return value
        if isinstance(value, Tensor):
            return DEVICE if is_marked(value) else torch.device("cpu")
        if isinstance(value, str):
            return torch.device(value)
    return None


def _frame() -> FrameType:
    """The innermost frame that is neither torch's nor this module's."""
    outside = (str(Path(torch.__file__).parent), __file__)
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(outside) and frame.f_back is not None:
        frame = frame.f_back
    return frame


class _Operations(TorchDispatchMode):
    """Counts kernels, and operations whose result the CPU needs, while `running` is set."""

    def __init__(self, counts: Counts, wait: Callable[[str], None]):
        super().__init__()
        self.counts, self.wait = counts, wait
        self.running = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.running:
            return func(*args, **kwargs)
        with self:  # in inference mode torch hands over operations that are made of others
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        name = func.overloadpacket.__name__
        if _is_needed(func, name, args):
            self.wait(name)
        if not func.is_view and not name.startswith(_FREE) and "empty" not in name:
            self.counts.kernels += 1
        return func(*args, **kwargs)


def _of_cpu(index: object) -> bool:
    """Whether an index is of numbers that the CPU has."""
    if isinstance(index, Tensor):
        return not is_marked(index) and index.ndim > 0
    return isinstance(index, (list, np.ndarray))


def _is_needed(func: Any, name: str, args: Sequence) -> bool:
    """Whether the CPU has to know the shape or the value that an operation gives."""
    if name in ("index", "index_put_"):
        by_mask = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return by_mask and (name == "index" or args[2].numel() > 1)
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class _Machines(TorchFunctionMode):
    """Keeps apart what is on the device and on the CPU, and counts what goes from one to the other."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts
        self.operations = _Operations(counts, self.wait)
        self.counted = True

    def wait(self, what: str) -> None:
        """Count a copy between the machines."""
        if not self.counted:
            return
        frame = _frame()
        code = frame.f_code
        if code.co_filename == devices.__file__:
            fetching = code.co_qualname.startswith(devices.fetched.__name__)
            self.counts.fetches += fetching
            self.counts.sends += not fetching
        else:
            file = "/".join(Path(code.co_filename).parts[-3:])
            self.counts.waits[f"{what} at {file}:{frame.f_lineno}"] += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self.counted:
            return func(*args, **kwargs)
        if name == "__get__" and getattr(func.__self__, "__name__", "") == "device":
            return DEVICE if is_marked(args[0]) else func(*args, **kwargs)
        if name in _READS and is_marked(args[0]):
            self.wait(name)
            return func(args[0].clone(), *args[1:], **kwargs)
        if name in ("to", "type_as") and isinstance(args[0], Tensor):
            return self._moved(func, args, kwargs)
        if name in _MAKES:
            return self._made(func, name, args, kwargs)
        return self._run(func, name, args, kwargs)

    def _moved(self, func: Any, args: Sequence, kwargs: Mapping) -> Tensor:
        """A tensor on a device, or in a dtype."""
        tensor, here = args[0], is_marked(args[0])
        named = _named_device(args[1:], kwargs)
        there = here if named is None else named == DEVICE
        if here == there:
            return self._run(func, "to", args, kwargs)
        self.wait("to")
        result = func(tensor.clone(), *args[1:], **kwargs)
        return _mark(result) if there else result

    def _made(self, func: Any, name: str, args: Sequence, kwargs: Mapping) -> Tensor:
        """A tensor of numbers that the CPU has."""
        named = kwargs.get("device")
        there = is_marked(args[0]) if named is None else torch.device(named) == DEVICE
        made = func(*args, **kwargs)
        if there and made.numel():
            self.wait(name)
        return _mark(made) if there else made

    def _run(self, func: Any, name: str, args: Sequence, kwargs: Mapping) -> Any:
        """Any other operation: on the device where one of its tensors is, or its result is to be."""
        given = [*_tensors(args), *_tensors(kwargs)]
        marked = [is_marked(tensor) for tensor in given]
        named = kwargs.get("device")
        there = any(marked) or (named is not None and torch.device(named) == DEVICE)
        if not there:
            return func(*args, **kwargs)
        if name in ("__getitem__", "__setitem__", "copy_"):
            self._check_sides(name, args)
        elif any(not own and tensor.ndim for own, tensor in zip(marked, given)):
            raise RuntimeError(f"{name} takes tensors of the device and of the CPU, which a GPU refuses.")
        before, self.operations.running = self.operations.running, True
        try:
            result = func(*args, **kwargs)
        finally:
            self.operations.running = before
        if isinstance(result, Iterator):
            return iter([_mark(each) for each in result])
        return _mark(result)

    def _check_sides(self, name: str, args: Sequence) -> None:
        """Count what an index or an assignment brings from one machine to the other."""
        here, *others = args
        if name != "copy_":
            given = others.pop(0)
            for index in given if isinstance(given, tuple) else (given,):
                if is_marked(here) and _of_cpu(index):
                    self.wait("index")
                elif not is_marked(here) and is_marked(index):
                    raise RuntimeError("A tensor of the CPU is indexed by one of the device.")
        if others and isinstance(others[0], Tensor) and is_marked(others[0]) != is_marked(here):
            self.wait(name)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing."""
        self.counted = False
        try:
            yield
        finally:
            self.counted = True


def _padding(ids: Tensor, at: Tensor | None) -> int:
    """Slots that are padding."""
    if ids.shape[1] == 1:
        return 0
    padded = ids.flip(1).cumsum(1).flip(1) == 0
    if at is not None:
        padded = padded | ((ids == 0) & (at == 0))
    return int(padded.sum())


def _first(args: Sequence, kwargs: Mapping) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


@contextmanager
def counting(model: HookedModel) -> Iterator[Counts]:
    """Count what is done with a model on a CPU.

    What is tried once for a model is counted, too: run a work once before it is counted. Its blocks have an
    `input_layernorm`, as Llama's.

    Raises:
        ValueError: the model is not on a CPU.
    """
    if model.device.type != "cpu":
        raise ValueError(f"Counts are taken on a CPU, and the model is on {model.device}.")
    counts = Counts()
    machines = _Machines(counts)

    def enter(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        with machines.paused():
            ids = _first(args, kwargs)
            counts.passes += 1
            counts.tokens += ids.numel()
            counts.padding += _padding(ids, kwargs.get("position_ids"))

    def block(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        with machines.paused():
            counts.blocks += 1
            counts.block_tokens += _first(args, kwargs).shape[:-1].numel()

    numbers = 0

    def masked(*args: Any, **kwargs: Any) -> Any:
        made = mask(*args, **kwargs)
        counts.mask_bytes += sum(t.numel() * t.element_size() for t in _tensors([made]))
        return made

    def unembedded(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal numbers
        made = logits(*args, **kwargs)
        numbers += made.numel()
        counts.unembedded = numbers // model.unembedding.width
        return made

    own = [*model.hf.parameters(), *model.hf.buffers()]
    mask, logits = model.mask, model.logits
    handles = [model.inner.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        each.input_layernorm.register_forward_pre_hook(block, with_kwargs=True) for each in model.blocks
    ]
    _mark([own, list(model._empty.values())])
    model.mask, model.logits = masked, unembedded
    try:
        with machines.operations, machines:
            yield counts
    finally:
        del model.mask, model.logits
        for handle in handles:
            handle.remove()
        for tensor in own:
            tensor.__dict__.pop(_MARK, None)
