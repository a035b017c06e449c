"""Which attention kernels passes may use on a GPU: torch's own choice without cuDNN's.

cuDNN plans every new shape in about 0.1 s, and packs and decoding meet a new shape at nearly every pass.
torch keeps one switch for the whole process, so it is off while any thread is inside, and is restored when
the last one has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

Options = ParamSpec("Options")
Result = TypeVar("Result")
_lock = threading.Lock()
_inside = 0
_before = True


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Attend without cuDNN: by flash attention, memory-efficient attention or plain products."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = cudnn_sdp_enabled()
            enable_cudnn_sdp(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                enable_cudnn_sdp(_before)


def passing(
    method: Callable[Concatenate[HookedModel, Options], Result],
) -> Callable[Concatenate[HookedModel, Options], Result]:
    """A method of a HookedModel that runs passes (see `HookedModel.attending`)."""

    @wraps(method)
    def inside(model: HookedModel, *args: Options.args, **kwargs: Options.kwargs) -> Result:
        with model.attending():
            return method(model, *args, **kwargs)

    return cast("Callable[Concatenate[HookedModel, Options], Result]", inside)
