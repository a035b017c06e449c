"""Which attention kernels passes may use on a GPU: torch's own choice less cuDNN's, which plans every new
shape anew.

A plan takes about 0.1 s, and packs and decoding meet a new shape at nearly every pass. torch keeps one switch
for the whole process, so it is off while any thread is inside, and as it was before when the last one has
left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

_lock = threading.Lock()
_inside = 0
_before = True


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Attend without cuDNN: by flash attention, memory-efficient attention or plain products, as torch
    chooses.
    """
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
