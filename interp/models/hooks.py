"""Hooks: read or replace an activation at a named site while the model runs once, or fail loudly.

Site names and their meaning are TransformerLens's: `resid_pre`, `resid_mid`, `resid_post` (residual stream
before a block, between attention and MLP, after the block), `attn_out`, `mlp_out` (what each adds), `z`
(heads' outputs before the output projection, heads concatenated). Where each is in a model is found by
trial (`interp.models.sites`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from interp.models.inner import LanguageModel
from interp.models.outputs import Layout, first_of, mapped, replaced

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
Edit = Callable[[Tensor], Tensor | None]
Edits = Mapping[tuple[str, int], Edit]


class Where(NamedTuple):
    """Which tokens an activation is of."""

    prompt: Int[Tensor, " row"]
    """Of each row of the pass, counted from 0 in the order in which prompts were given."""
    position: Int[Tensor, "row token"]
    """Of each token in its sequence; -1 for padding."""


#: An edit that runs in every pass, and is told which tokens it is given.
PassEdit = Callable[[Tensor, Where], Tensor | None]
Blocks = torch.nn.ModuleList | Sequence[torch.nn.Module]


@dataclass(frozen=True)
class HookPoint:
    """Where a site of one block is, and how many numbers it has.

    kind: `in` is what enters a submodule, `out` the sum of `scales` times what the submodules give, in the
    order in which they run, and `mid` the block's input and that sum. copies: the axis of a stream that is
    kept in several copies, which then stand side by side.
    """

    paths: tuple[str, ...]
    kind: Literal["in", "out", "mid"]
    width: int
    scales: tuple[float, ...] = (1.0,)
    copies: int | None = None


#: site -> its hook point in each layer, None where a layer does not have it
HookPoints = Mapping[str, Sequence[HookPoint | None]]
_NO_STREAM = "no one [batch, token, width] residual stream passes through that layer's block"
#: why a layer may lack a site
_LACKS = {
    "resid_pre": _NO_STREAM,
    "resid_post": _NO_STREAM,
    "resid_mid": "its attention and MLP read the same residual stream, so nothing lies between",
    "attn_out": "what that block adds to the residual stream before its MLP is no fixed multiple of what its "
    "submodules give",
    "mlp_out": "what that block adds to the residual stream after its attention is no fixed multiple of what "
    "its submodules give",
    "z": "that layer has no output projection of attention heads",
}


def hook_point(hook_points: HookPoints, site: str, layer: int) -> HookPoint:
    """A site's hook point in one layer; raises NotImplementedError, with the reason, where there is none."""
    point = hook_points[site][layer] if site in hook_points else None
    if point is None:
        raise NotImplementedError(f"This model has no {site} at layer {layer}: {_LACKS[site]}.")
    return point


def _first_tensor(args: tuple, kwargs: Mapping[str, Any]) -> tuple[str | None, Tensor]:
    """The hidden states among a module's arguments, and their name (None: the first positional one)."""
    if args:
        return None, args[0]
    return next((name, value) for name, value in kwargs.items() if isinstance(value, Tensor))


def _on_entering(module: torch.nn.Module, change: Edit) -> RemovableHandle:
    """Hook what enters a module: `change` of its first tensor replaces it."""

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        name, hidden = _first_tensor(args, kwargs)
        new = change(hidden)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_leaving(module: torch.nn.Module, change: Edit) -> RemovableHandle:
    """Hook the hidden states that a module gives, bare or first of several: `change` replaces them."""

    def hook(module: torch.nn.Module, args: tuple, output: Any) -> Any:
        hidden = first_of(output)
        new = None if hidden is None else change(hidden)
        return None if new is None else replaced(output, new)

    return module.register_forward_hook(hook)


def _side_by_side(edit: Edit, axis: int) -> Edit:
    """An edit of a stream's copies as one activation [batch, token, copies * width]."""

    def changed(tensor: Tensor) -> Tensor | None:
        moved = tensor.movedim(axis, 2)
        flat = moved.flatten(2)
        new = edit(flat)
        if new is None and torch.is_grad_enabled():
            new = flat  # what was read must lie on the way to what follows
        return None if new is None else new.unflatten(2, moved.shape[2:]).movedim(2, axis)

    return changed


class _Sum:
    """An edit of a sum of what several submodules give, made in what the last one gives."""

    def __init__(self, point: HookPoint, edit: Edit):
        self.point, self.edit = point, edit
        self.terms: list[Tensor] = []
        self.shape = torch.Size()

    def start(self, stream: Tensor) -> None:
        """Take the block's input, the first term of a `mid`."""
        self.shape = stream.shape
        self.terms = [stream] if self.point.kind == "mid" else []

    def _shaped(self, tensor: Tensor) -> Tensor:
        """A term in the stream's shape: some blocks hand on rows without their batch."""
        return tensor if tensor.shape == self.shape else tensor.reshape(self.shape)

    def add(self, scale: float, tensor: Tensor) -> None:
        """Take a term."""
        shaped = self._shaped(tensor)
        self.terms.append(shaped if scale == 1 else shaped * scale)

    def end(self, tensor: Tensor) -> Tensor | None:
        """Edit the sum: what the last submodule must give for it to be the edited one."""
        scale = self.point.scales[-1]
        rest = sum(self.terms[1:], self.terms[0]) if self.terms else None
        self.add(scale, tensor)
        whole = self.terms[-1] if rest is None else rest + self.terms[-1]
        new = self.edit(whole)
        if new is not None:
            changed = new / scale if rest is None else self._shaped(tensor) + (new - whole) / scale
        elif whole is not tensor and torch.is_grad_enabled():
            # What was read must lie on the way to what follows.
            changed = (whole if rest is None else whole - rest) / scale
        else:
            return None
        return changed.reshape(tensor.shape)


def _register(block: torch.nn.Module, point: HookPoint, edit: Edit) -> list[RemovableHandle]:
    """The hooks of one site of a block."""
    *earlier, last = [block.get_submodule(path) for path in point.paths]
    if point.copies is not None:
        edit = _side_by_side(edit, point.copies)
    if point.kind == "in":
        return [_on_entering(last, edit)]
    if point.paths == ("",):
        return [_on_leaving(last, edit)]
    total = _Sum(point, edit)
    return [
        _on_entering(block, total.start),
        *(_on_leaving(module, partial(total.add, scale)) for module, scale in zip(earlier, point.scales)),
        _on_leaving(last, total.end),
    ]


@contextmanager
def attached(blocks: Blocks, hook_points: HookPoints, edits: Edits) -> Iterator[None]:
    """Run each edit on the activation [batch, token, width] at its (site, layer); a tensor replaces it.

    For exactly one forward pass: raises RuntimeError naming the site when a hook did not fire, or fired
    twice, and NotImplementedError for a site that this model does not have.
    """
    fired = dict.fromkeys(edits, 0)
    handles: list[RemovableHandle] = []

    def counted(key: tuple[str, int]) -> Edit:
        def edit(tensor: Tensor) -> Tensor | None:
            fired[key] += 1
            if fired[key] > 1:
                raise RuntimeError(
                    f"The hook at blocks.{key[1]}.hook_{key[0]} fired twice: run one forward pass inside "
                    "`hooks`."
                )
            return edits[key](tensor)

        return edit

    try:
        # resid_mid hangs on the same submodule as attn_out, whose edit it must see.
        for site, layer in sorted(edits, key=lambda key: key[0] == "resid_mid"):
            handles += _register(blocks[layer], hook_point(hook_points, site, layer), counted((site, layer)))
        yield
        for (site, layer), count in fired.items():
            if count != 1:
                raise RuntimeError(f"The hook at blocks.{layer}.hook_{site} did not fire.")
    finally:
        _remove(handles)


@contextmanager
def attached_to_all(
    decoder: torch.nn.Module,
    blocks: Blocks,
    hook_points: HookPoints,
    edits: Mapping[tuple[str, int], PassEdit],
) -> Iterator[None]:
    """As `attached`, for any number of passes: each edit is told which tokens it is given.

    decoder: the module whose passes are counted.
    """
    where: list[Where] = []

    def begin(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        where[:] = [_where(args, kwargs)]

    def told(key: tuple[str, int]) -> Edit:
        return lambda tensor: edits[key](tensor, where[0])

    handles = [decoder.register_forward_pre_hook(begin, with_kwargs=True)]
    try:
        for site, layer in sorted(edits, key=lambda key: key[0] == "resid_mid"):
            handles += _register(blocks[layer], hook_point(hook_points, site, layer), told((site, layer)))
        yield
    finally:
        _remove(handles)


def _where(args: tuple, kwargs: Mapping[str, Any]) -> Where:
    """The tokens of a pass, from what the decoder is called with."""
    given = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs_embeds"))
    assert given is not None
    rows, tokens = given.shape[:2]
    position = kwargs.get("position_ids")
    if position is None:
        cache = kwargs.get("past_key_values")
        start = cache.get_seq_length() if isinstance(cache, Cache) else 0
        position = torch.arange(start, start + tokens, device=given.device)[None]
    return Where(torch.arange(rows, device=given.device), position.expand(rows, -1))


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _attention_of(block: torch.nn.Module, layer: int, name: str) -> torch.nn.Module:
    """A block's one attention module; raises NotImplementedError where there is none."""
    modules = dict(block.named_modules())
    attentions = [modules[path] for path in _ATTENTION if path in modules]
    if len(attentions) != 1:
        raise NotImplementedError(
            f"{name} has no one attention module at layer {layer} (tried {', '.join(_ATTENTION)})."
        )
    return attentions[0]


@contextmanager
def patterns(
    hf: LanguageModel,
    blocks: Blocks,
    keep: Callable[[int, Float[Tensor, "batch head query key"]], None],
) -> Iterator[None]:
    """Attend eagerly, and hand each layer's attention pattern to `keep`; for one forward pass.

    The model attends again as it did before when the pass is over, or has failed. Raises
    NotImplementedError, naming the architecture, where a block has no one attention module or gives no
    pattern whose rows sum to 1.
    """
    name, before = type(hf).__name__, hf.config._attn_implementation
    attended: list[int] = []
    handles: list[RemovableHandle] = []

    def leaving(layer: int, module: torch.nn.Module, args: tuple, output: Any) -> None:
        pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if pattern is None:
            raise NotImplementedError(
                f"{name} gives no attention pattern at layer {layer}, even where it attends eagerly."
            )
        if (pattern.float().sum(-1) - 1).abs().max() > (1e-3 if pattern.dtype == torch.float32 else 0.05):
            raise NotImplementedError(
                f"{name} attends to more than its tokens: rows of the pattern at layer {layer} do not sum to "
                "1."
            )
        attended.append(layer)
        keep(layer, pattern)

    try:
        for layer, block in enumerate(blocks):
            attention = _attention_of(block, layer, name)
            handles.append(attention.register_forward_hook(partial(leaving, layer)))
        hf.set_attn_implementation("eager")
        yield
        if attended != list(range(len(blocks))):
            raise RuntimeError(
                f"The layers that attended are {attended}, not each once, in order: run one forward pass "
                "inside `patterns`."
            )
    finally:
        _remove(handles)
        hf.set_attn_implementation(before)


@contextmanager
def only(blocks: Blocks, first: int, last: int, layout: Layout | None = None) -> Iterator[None]:
    """Pass over the blocks below `first` and above `last`: they give back what they are given.

    layout: of what a block of this model gives (None: a bare tensor).
    """

    def same(*args: Any, **kwargs: Any) -> Any:
        hidden = next(v for v in [*args, *kwargs.values()] if isinstance(v, Tensor))
        return hidden if layout is None else layout.around(hidden)

    skipped = [block for layer, block in enumerate(blocks) if not first <= layer <= last]
    try:
        for block in skipped:
            block.forward = same
        yield
    finally:
        for block in skipped:
            del block.forward


def _narrowed(value: Tensor, slots: int, n: int) -> Tensor:
    """What belongs to the first `n` of the packed slots, of a mask, positions or rotations."""
    if n == slots:
        return value
    if value.ndim == 4 and value.shape[-2] == slots:  # a mask [1, 1, slot, prefix + slot]
        return value[..., :n, : value.shape[-1] - slots + n]
    axis = next((a for a in (1, 0) if value.ndim > a and value.shape[a] == slots), None)
    return value if axis is None else value.narrow(axis, 0, n)


@contextmanager
def joining(
    blocks: Blocks,
    counts: Sequence[int],
    enter: Callable[[int, int, int], Float[Tensor, "new d_model"]],
    slots: int,
    layout: Layout | None = None,
) -> Iterator[None]:
    """Run each block on the first of the packed `slots` only, which join the pass at a layer of their own.

    Args:
        counts: slots that each block runs on; never falls and ends at `slots`. Blocks whose count is 0 are
            passed over.
        enter: from (layer, first, last + 1) to the states with which slots join, the same for every row.
    """
    first = next(layer for layer, count in enumerate(counts) if count)
    handles: list[RemovableHandle] = []

    def enlarge(
        layer: int, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict]:
        before, n = counts[layer - 1] if layer > first else 0, counts[layer]
        name, hidden = _first_tensor(args, kwargs)
        if n > before:
            new = enter(layer, before, n).expand(len(hidden), -1, -1)
            hidden = torch.cat([hidden[:, :before], new], 1) if before else new
        narrow = partial(_narrowed, slots=slots, n=n)
        others = {k: mapped(v, narrow) for k, v in kwargs.items() if k != name}
        if name is None:
            return (hidden, *(mapped(v, narrow) for v in args[1:])), others
        return (), {**others, name: hidden}

    try:
        for layer in range(first, len(blocks)):
            hook = partial(enlarge, layer)
            handles.append(blocks[layer].register_forward_pre_hook(hook, with_kwargs=True))
        with only(blocks, first, len(blocks) - 1, layout):
            yield
    finally:
        _remove(handles)
