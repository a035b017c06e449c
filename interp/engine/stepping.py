"""Steps of one token for the rows of a batch, recorded once as a CUDA graph and replayed.

A step of decoding is hundreds of kernels, most of which take longer to launch than to run. A graph launches
them all at once, over the tensors that it was recorded with: from one step to the next numbers may change,
but no shape and nothing that Python decides. A graph lives no longer than its batch, since weights are
swapped in place. Where a model's step cannot be recorded, or comes out otherwise than a plain one, steps are
launched as before, and `model.unrecorded` says why.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from interp.engine.reading import Rows
from interp.models.caches import Layers, layers_of
from interp.models.hooked import Mask
from interp.system.sentences import first_line

#: Devices on which steps are recorded.
DEVICES = ("cuda",)
#: Steps to come from which recording pays, and from which recording again pays when rows have ended.
LEAST, AGAIN = 8, 64
#: Most slots of rows of one length: without a mask, attention divides a long row among more processors.
LONGEST = 2**15
#: Methods that read a tensor's numbers, which a recorded step cannot.
READS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
_recording = threading.Lock()
#: The last graph recorded for each stream, whose memory the next one takes over.
_last: dict[torch.cuda.Stream, torch.cuda.CUDAGraph] = {}
#: Graphs whose capture failed: torch's allocator goes on asking them.
_failed: list[torch.cuda.CUDAGraph] = []


class _Unread(TorchFunctionMode):
    """Raises where a tensor's numbers are read: in a capture, torch would not quite get over that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS:
            raise RuntimeError(f"it reads numbers of a tensor on the CPU, by {name}")
        return func(*args, **(kwargs or {}))


class Step:
    """One token of each row, by kernels that are the same at every step.

    `ids` [row, 1] are read, `hidden` [row, 1, d_model] are the final states, and `slot` goes on by one.
    """

    def __init__(self, rows: Rows):
        number, slots = rows.at.shape
        device = rows.model.device
        used = torch.arange(slots, device=device) < rows.used
        counted = used if rows.counts is None else rows.counts & used
        self.model = rows.model
        self.ids = torch.zeros(number, 1, dtype=torch.long, device=device)
        self.slot = torch.full((1,), rows.used, device=device)
        self.hidden = torch.empty(0)  # of no step yet
        self.graph: torch.cuda.CUDAGraph | None = None
        self._at = rows.at
        self._visible = counted.expand(number, slots)[:, None].contiguous()
        self._cache = DynamicCache()
        self._cache.layers = [layer.numbered(slots, self.slot) for layer in rows.layers]

    def launch(self) -> None:
        """Take the step kernel by kernel."""
        self._visible.index_fill_(2, self.slot, True)
        at = self._at.index_select(1, self.slot)
        self.hidden = self.model.inner(
            input_ids=self.ids,
            position_ids=at,
            attention_mask=_aligned(self.model.mask(self._visible, at, self._at)),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self.slot += 1

    def tried(self) -> Float[Tensor, "row 1 d_model"]:
        """Final states of the step, which is left to be taken again."""
        with _Unread():
            self.launch()
        self.slot -= 1
        return self.hidden

    def take(self) -> Float[Tensor, "row 1 d_model"]:
        """Final states of the step, replayed where it was recorded."""
        if self.graph is None:
            self.launch()
        else:
            self.graph.replay()
        return self.hidden


def _aligned(mask: Mask) -> Mask:
    """A mask whose rows are a multiple of 8 numbers apart: any other is copied by every layer to be so."""
    if isinstance(mask, dict):
        return {kind: _spaced(each) for kind, each in mask.items()}
    return _spaced(mask)


def _spaced(mask: Float[Tensor, "row 1 1 key"]) -> Float[Tensor, "row 1 1 key"]:
    keys = mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, -keys % 8))[..., :keys]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream on which steps are recorded: libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


def record(step: Step) -> Float[Tensor, "row 1 d_model"]:
    """Record a step's kernels; gives its final states as it was launched once before."""
    device = step.model.device
    if device.type != "cuda":
        return step.tried()
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    with _recording:
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                launched = step.tried()
                step.graph = _captured(step, main)
        finally:
            main.wait_stream(side)
    return launched


def _captured(step: Step, main: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A step's kernels as a graph, without the clearing of caches that `torch.cuda.graph` begins with.

    main: where it is replayed, in turn with the one that it shares memory with.
    """
    last = _last.pop(main, None)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.inference_mode(False):  # torch keeps its random seed in a tensor that is made here
            # thread_local: other threads may go on with the GPU
            graph.capture_begin(last.pool() if last else None, capture_error_mode="thread_local")
        try:
            step.launch()
        finally:
            graph.capture_end()
    except BaseException:
        _failed.append(graph)
        # torch's generator takes itself to be captured for good; a copy of it draws the same numbers
        generator = torch.cuda.default_generators[step.slot.device.index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    _last[main] = graph
    return graph


def _difference(
    replayed: Float[Tensor, "row 1 d_model"],
    launched: Float[Tensor, "row 1 d_model"],
    plain: Float[Tensor, "row 1 d_model"],
) -> float:
    """How far a replayed step is off, in units of a row's largest number.

    The worst row against the same kernels launched, or the median row against the plain step, whose kernels
    round otherwise.
    """

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return ((one - other).float().abs().amax(-1) / other.float().abs().amax(-1)).flatten()

    return float(torch.maximum(apart(replayed, launched).max(), apart(launched, plain).median()))


class Steps:
    """The next tokens of the rows of a batch, one after the other, recorded where that is exact and pays.

    recording: whether they may be.
    """

    def __init__(self, rows: Rows, recording: bool = True):
        self.rows = rows
        self._recording = recording
        self._step: Step | None = None
        self._replayed = 0

    def forward(self, ids: Int[Tensor, "row 1"], left: int) -> Float[Tensor, "row 1 d_model"]:
        """Final hidden states of the rows' next tokens; `left`: most steps to come, with this one."""
        if self._step is None:
            return self._first(ids) if self._pays(left) else self.rows.forward(ids)
        self._step.ids.copy_(ids)
        self._replayed += 1
        return self._step.take()

    def drops(self, left: int) -> bool:
        """Whether rows that have ended are to be dropped where at most so many steps are to come."""
        return self._step is None or left >= AGAIN

    def layers(self) -> Layers:
        """Keys and values of all tokens up to now, with those of rows that have ended."""
        self.rows.skip(self._replayed)
        self._replayed = 0
        return layers_of(self.rows.cache)

    def keep(self, alive: Int[Tensor, " kept"]) -> None:
        """Drop the rows that have ended."""
        self.rows.skip(self._replayed)
        self._step, self._replayed = None, 0
        self.rows.keep(alive)

    def _pays(self, left: int) -> bool:
        """Whether to record: steps on one GPU without hooks, which a replayed step would not run."""
        model, rows = self.rows.model, self.rows
        return (
            self._recording
            and left >= LEAST
            and model.device.type in DEVICES
            and not model.unrecorded
            and (rows.counts is not None or rows.at.shape[1] <= LONGEST)
            and all(parameter.device == model.device for parameter in model.hf.parameters())
            and not any(m._forward_hooks or m._forward_pre_hooks for m in model.inner.modules())
        )

    def _first(self, ids: Int[Tensor, "row 1"]) -> Float[Tensor, "row 1 d_model"]:
        """Record a step, and compare it with the plain one, which is the last to write keys and values."""
        model, step = self.rows.model, Step(self.rows)
        step.ids.copy_(ids)
        try:
            launched = record(step)
            replayed = step.take()
        except torch.OutOfMemoryError:
            self._recording = False  # of this batch
            return self.rows.forward(ids)
        except Exception as error:  # whatever a model or torch makes of it
            cause = error.__context__ or error
            model.unrecorded = f"its step cannot be recorded ({type(cause).__name__}: {first_line(cause)})"
            return self.rows.forward(ids)
        plain = self.rows.forward(ids)
        difference = _difference(replayed, launched, plain)
        if difference <= max(1e-4, 16 * torch.finfo(plain.dtype).eps):
            self._step = step
        else:
            model.unrecorded = f"a recorded step differs by {difference:.2g} of its largest number"
        return plain
