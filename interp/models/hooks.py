"""Hooks: read or replace an activation at a named site while the model runs once, or fail loudly.

Site names and their meaning are TransformerLens's: `resid_pre`, `resid_mid`, `resid_post` (residual stream before a
block, between attention and MLP, after the block), `attn_out`, `mlp_out` (what each adds), `z` (heads' outputs before
the output projection, heads concatenated). Where each is in a model is found by trial (`interp.models.sites`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from interp.models.outputs import Layout, first_of, mapped, replaced

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
Edit = Callable[[torch.Tensor], "torch.Tensor | None"]


@dataclass(frozen=True)
class HookPoint:
    """Where a site of one block is, and how many numbers it has.

    `in`: what enters a submodule. `out`: the sum of `scales` times what the submodules give, in the order in which they run.
    `mid`: the block's input and that sum. copies: the axis of a stream that is kept in several copies, which stand side by side.
    """

    paths: tuple[str, ...]
    side: Literal["in", "out", "mid"]
    width: int
    scales: tuple[float, ...] = (1.0,)
    copies: int | None = None


#: site -> its place in each layer, None where a layer does not have it
HookPoints = Mapping[str, Sequence[HookPoint | None]]
#: why a layer may lack a site
_LACKS = {
    "resid_pre": "no one [batch, token, width] residual stream passes through that layer's block",
    "resid_post": "no one [batch, token, width] residual stream passes through that layer's block",
    "resid_mid": "its attention and MLP read the same residual stream, so nothing lies between",
    "attn_out": "what that block adds to the residual stream before its MLP is no fixed multiple of what its submodules give",
    "mlp_out": "what that block adds to the residual stream after its attention is no fixed multiple of what its submodules give",
    "z": "that layer has no output projection of attention heads",
}


def _has(block, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


def hook_point(hook_points: HookPoints, site: str, layer: int) -> HookPoint:
    """A site's place in one layer; raises NotImplementedError, which says why, where the layer does not have it."""
    place = hook_points[site][layer] if site in hook_points else None
    if place is None:
        raise NotImplementedError(f"This model has no {site} at layer {layer}: {_LACKS[site]}.")
    return place


def _entering(change: Edit):
    """A hook on what enters a module, its first tensor: `change` of it replaces it."""

    def hook(module, args, kwargs):
        name = None if args else next(k for k, v in kwargs.items() if isinstance(v, torch.Tensor))
        new = change(args[0] if args else kwargs[name])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    return hook


def _leaving(change: Edit):
    """A hook on the hidden states that a module gives, bare or first of several: `change` replaces them."""

    def hook(module, args, output):
        new = change(first_of(output))
        return None if new is None else replaced(output, new)

    return hook


def _side_by_side(edit: Edit, axis: int) -> Edit:
    """An edit of a stream's copies as one activation [batch, token, copies * width]."""

    def changed(tensor):
        moved = tensor.movedim(axis, 2)
        flat = moved.flatten(2)
        new = edit(flat)
        if new is None and torch.is_grad_enabled():
            new = flat  # what was read must lie on the way to what follows
        return None if new is None else new.unflatten(2, moved.shape[2:]).movedim(2, axis)

    return changed


def _register(block, place: HookPoint, edit: Edit) -> list:
    """The hooks of one site of a block; an edit of a sum is made by what the last of its terms gives."""
    *earlier, last = [block.get_submodule(path) for path in place.paths]
    if place.copies is not None:
        edit = _side_by_side(edit, place.copies)
    if place.side == "in":
        return [last.register_forward_pre_hook(_entering(edit), with_kwargs=True)]
    if place.paths == ("",):
        return [last.register_forward_hook(_leaving(edit))]
    terms, shape, scale = [], [], place.scales[-1]

    def enter(tensor):
        shape[:] = tensor.shape
        terms[:] = [tensor] if place.side == "mid" else []

    def shaped(tensor):  # some blocks hand on rows without their batch
        return tensor if list(tensor.shape) == shape else tensor.reshape(shape)

    def term(scale):
        return lambda tensor: terms.append(shaped(tensor) if scale == 1 else shaped(tensor) * scale)

    def end(tensor):
        rest = sum(terms[1:], terms[0]) if terms else None
        term(scale)(tensor)
        whole = terms[-1] if rest is None else rest + terms[-1]
        new = edit(whole)
        if new is not None:
            changed = new / scale if rest is None else shaped(tensor) + (new - whole) / scale
        elif (
            whole is not tensor and torch.is_grad_enabled()
        ):  # what was read must lie on the way to what follows
            changed = (whole if rest is None else whole - rest) / scale
        else:
            return None
        return changed.reshape(tensor.shape)

    return [
        block.register_forward_pre_hook(_entering(enter), with_kwargs=True),
        *(module.register_forward_hook(_leaving(term(s))) for module, s in zip(earlier, place.scales)),
        last.register_forward_hook(_leaving(end)),
    ]


@contextmanager
def attached(blocks, hook_points: HookPoints, edits: Mapping[tuple[str, int], Edit]):
    """Run each edit on the activation at its (site, layer) [batch, token, width]; a returned tensor replaces it.

    For exactly one forward pass: raises RuntimeError naming the site when a hook did not fire, or fired twice, and
    NotImplementedError for a site that this model does not have.
    """
    fired, handles = dict.fromkeys(edits, 0), []

    def counted(key):
        def edit(tensor):
            fired[key] += 1
            if fired[key] > 1:
                raise RuntimeError(
                    f"The hook at blocks.{key[1]}.hook_{key[0]} fired twice: run one forward pass inside `hooks`."
                )
            return edits[key](tensor)

        return edit

    try:
        # resid_mid hangs on the same submodule as attn_out, whose edit it must see.
        for site, layer in sorted(edits, key=lambda key: key[0] == "resid_mid"):
            handles += _register(blocks[layer], hook_point(hook_points, site, layer), counted((site, layer)))
        yield
        silent = [key for key, count in fired.items() if count != 1]
        if silent:
            raise RuntimeError(f"The hook at blocks.{silent[0][1]}.hook_{silent[0][0]} did not fire.")
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patterns(hf, blocks, keep: Callable[[int, torch.Tensor], None]):
    """Attend eagerly, and hand each layer's attention pattern [batch, head, query, key] to `keep`; for one forward pass.

    The model attends again as it did before when the pass is over, or has failed. Raises NotImplementedError, naming the
    architecture, where a block has no one attention module or gives no pattern whose rows sum to 1.
    """
    name, before, seen, handles = type(hf).__name__, hf.config._attn_implementation, [], []

    def leaving(layer):
        def hook(module, args, output):
            pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if pattern is None:
                raise NotImplementedError(
                    f"{name} gives no attention pattern at layer {layer}, even where it is asked to attend eagerly."
                )
            if (pattern.float().sum(-1) - 1).abs().max() > (1e-3 if pattern.dtype == torch.float32 else 0.05):
                raise NotImplementedError(
                    f"{name} attends to more than its tokens: rows of the pattern at layer {layer} do not sum to 1."
                )
            seen.append(layer)
            keep(layer, pattern)

        return hook

    try:
        for layer, block in enumerate(blocks):
            found = [path for path in _ATTENTION if _has(block, path)]
            if len(found) != 1:
                raise NotImplementedError(
                    f"{name} has no one attention module at layer {layer} (tried {', '.join(_ATTENTION)})."
                )
            handles.append(block.get_submodule(found[0]).register_forward_hook(leaving(layer)))
        hf.set_attn_implementation("eager")
        yield
        if seen != list(range(len(blocks))):
            raise RuntimeError(
                f"The layers that attended are {seen}, not each once, in order: run one forward pass inside `patterns`."
            )
    finally:
        for handle in handles:
            handle.remove()
        hf.set_attn_implementation(before)


@contextmanager
def only(blocks, first: int, last: int, layout: Layout | None = None):
    """Pass over the blocks below `first` and above `last`: they give back what they are given.

    layout: of what a block of this model gives (None: a bare tensor).
    """

    def same(*args, **kwargs):
        hidden = next(v for v in [*args, *kwargs.values()] if isinstance(v, torch.Tensor))
        return hidden if layout is None else layout.around(hidden)

    skipped = [block for layer, block in enumerate(blocks) if not first <= layer <= last]
    try:
        for block in skipped:
            block.forward = same
        yield
    finally:
        for block in skipped:
            del block.forward


@contextmanager
def joining(
    blocks,
    counts,
    enter: Callable[[int, int, int], torch.Tensor],
    slots: int,
    layout: Layout | None = None,
):
    """Run block l on the first counts[l] of the packed `slots` only; those that join at l start from `enter(l, from, to)`.

    counts never falls and ends at `slots`; blocks whose count is 0 are passed over. enter gives
    [to - from, d_model], the same for every row. layout: as in `only`.
    """
    first = next(layer for layer, count in enumerate(counts) if count)

    def narrowed(value, n):
        if n == slots:
            return value
        if value.ndim == 4 and value.shape[-2] == slots:  # a mask [1, 1, slot, prefix + slot]
            return value[..., :n, : value.shape[-1] - slots + n]
        axis = next(
            (a for a in (1, 0) if value.ndim > a and value.shape[a] == slots), None
        )  # positions, rotations
        return value if axis is None else value.narrow(axis, 0, n)

    def hook(layer):
        before, n = counts[layer - 1] if layer > first else 0, counts[layer]

        def enlarge(module, args, kwargs):
            name = None if args else next(k for k, v in kwargs.items() if isinstance(v, torch.Tensor))
            hidden = args[0] if args else kwargs[name]
            if n > before:
                new = enter(layer, before, n).expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :before], new], 1) if before else new
            others = {k: mapped(v, partial(narrowed, n=n)) for k, v in kwargs.items() if k != name}
            if args:
                return (hidden, *(mapped(v, partial(narrowed, n=n)) for v in args[1:])), others
            return (), {**others, name: hidden}

        return module_hooks.append(blocks[layer].register_forward_pre_hook(enlarge, with_kwargs=True))

    module_hooks: list = []
    try:
        for layer in range(first, len(blocks)):
            hook(layer)
        with only(blocks, first, len(blocks) - 1, layout):
            yield
    finally:
        for handle in module_hooks:
            handle.remove()
