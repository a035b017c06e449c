"""Where each site is in each block of a model: found by trial on a few tokens, and proven by sums.

What a block adds to the residual stream is a sum of fixed multiples of what some of its submodules give.
Which ones, and the multiples, are fitted, and hold only where the sum comes out to the last bits of float32
(`find_hook_points`). Nothing is looked up by a model's name: names only tell attention from MLP where both
read the same stream.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from interp.models.hooks import Blocks, HookPoint, HookPoints
from interp.models.inner import of_layer
from interp.models.outputs import Layout, entries_of, first_of

#: Names of submodules that mix tokens, and of those among them that attend by heads.
_MIXER = re.compile(r"attn|attention|mixer|mamba|conv|temporal|recurrent|delta|ssm", re.I)
_ATTENTION = re.compile(r"attn|attention", re.I)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_q_heads")
_HEAD_WIDTHS = ("v_head_dim", "head_dim", "head_size", "attention_head_size")
#: How deep in a block submodules are tried, and how many of them a block may add up.
_DEPTH, _PARTS = 3, 4
#: Submodules and the multiples of what they give that are in a sum, in the order in which they run.
Parts = tuple[tuple[str, float], ...]


@dataclass
class _Trial:
    """What went through one block, and through its submodules in the order in which they gave it."""

    call: tuple[tuple, dict[str, Any]] = ((), {})
    entering: Tensor | None = None
    leaving: Tensor | None = None
    layout: Layout | None = None  # of what the block gives, None for a bare tensor
    further: list[Tensor] = field(default_factory=list)  # what the block gives beside the stream
    inputs: dict[str, Tensor] = field(default_factory=dict)
    gives: dict[str, Tensor] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        """Whether a tensor entered the block and one left it."""
        return self.entering is not None and self.leaving is not None

    @property
    def pre(self) -> Tensor:
        """The stream before the block."""
        assert self.entering is not None
        return self.entering

    @property
    def post(self) -> Tensor:
        """The stream after the block."""
        assert self.leaving is not None
        return self.leaving

    def call_values(self) -> list[Any]:
        """The arguments of the block's call."""
        args, kwargs = self.call
        return [*args, *kwargs.values()]

    def could_be_stream(self, tensor: Tensor) -> bool:
        """Whether a tensor is as large as the stream, in its dtype."""
        return tensor.numel() == self.pre.numel() and tensor.dtype == self.pre.dtype

    def terms(self, parts: Parts) -> list[Tensor]:
        """What the parts give, times their multiples, in the stream's shape."""
        given = [(self.gives[path].reshape(self.pre.shape), scale) for path, scale in parts]
        return [tensor if scale == 1 else tensor * scale for tensor, scale in given]


def _first_tensor(values: Iterable[Any]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor)), None)


def _watch(block: torch.nn.Module, trial: _Trial) -> list[RemovableHandle]:
    """Hooks that record a block's pass into `trial`."""

    def entering(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            tensor = _first_tensor([*args, *kwargs.values()])
            if tensor is None:
                return
            if name:
                trial.inputs[name] = tensor.clone()
            else:
                trial.call = (args, dict(kwargs))
                trial.entering = tensor.clone()

        return hook

    def leaving(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple, output: Any) -> None:
            tensor = first_of(output)
            if tensor is None:
                return
            if name:
                trial.gives[name] = tensor.clone()
                trial.times[name] = trial.times.get(name, 0) + 1
            else:
                trial.leaving, trial.layout = tensor.clone(), Layout.of(output)
                entries = [entry for entry in entries_of(output) if isinstance(entry, Tensor)]
                trial.further = [entry for entry in entries if entry is not tensor]

        return hook

    handles = []
    for name, module in block.named_modules():
        if name.count(".") < _DEPTH:
            handles.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leaving(name)))
    return handles


def _record(blocks: Blocks, run: Callable[[], object]) -> list[_Trial]:
    """One pass, and what went through each block."""
    trials = [_Trial() for _ in blocks]
    handles = [handle for block, trial in zip(blocks, trials) for handle in _watch(block, trial)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for trial in trials:
        if trial.ran:  # a block's input comes from where the block before it lies
            trial.entering = trial.pre.to(trial.post.device)
    return trials


def _widened(value: Any) -> Any:
    """A value with its floating tensors in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_widened(v) for v in value)
    return value


def _in_float32(block: torch.nn.Module, trial: _Trial, drawn: bool = False) -> _Trial:
    """The same pass of a float32 copy of the block, whose sums come out to more bits.

    drawn: of weights drawn at random.
    """
    twin = copy.deepcopy(block).float()
    if drawn:
        generator = torch.Generator(trial.pre.device).manual_seed(0)
        for parameter in twin.parameters():
            parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    args, kwargs = trial.call
    stream = _first_tensor(trial.call_values())

    def given(value: Any) -> Any:
        return _widened(trial.pre if value is stream else value)

    def run() -> None:
        twin(*map(given, args), **{name: given(value) for name, value in kwargs.items()})

    return _record([twin], run)[0]


def _bits_agree(total: Tensor, terms: Sequence[Tensor]) -> bool:
    """Is `total` the sum of the terms in some order, bit for bit (but for one number in a hundred)?"""
    return any(
        (sum(order[1:], order[0]) == total).float().mean().item() > 0.99
        for order in itertools.permutations(terms)
    )


def _adds_up(total: Tensor, terms: Sequence[Tensor]) -> bool:
    """Is `total` the sum of the terms but for rounding, of half a unit in each product and each sum?

    Narrower dtypes than float32, where that would let a small wrong part pass, must come out bit for bit.
    """
    if total.dtype not in (torch.float32, torch.float64):
        return _bits_agree(total, terms)
    unit = torch.finfo(total.dtype).eps / 2
    wide = [t.double() for t in terms]
    bound = (2 * len(terms) + 1) * unit * sum(t.abs() for t in wide)
    return bool(((total.double() - sum(wide)).abs() <= bound).all())


def _of_stream(trial: _Trial) -> dict[str, Tensor]:
    """What submodules give once, as large as the stream and in its shape, each under its shallowest name."""
    names = list(trial.gives)
    distinct: dict[str, Tensor] = {}
    for name in sorted(names, key=lambda name: (name.count("."), names.index(name))):
        tensor = trial.gives[name]
        if tensor.shape[-1:] != trial.pre.shape[-1:] or trial.times[name] != 1:
            continue
        if not trial.could_be_stream(tensor):
            continue
        tensor = tensor.reshape(trial.pre.shape)
        if not any(torch.equal(tensor, other) for other in distinct.values()):
            distinct[name] = tensor
    return {name: distinct[name] for name in names if name in distinct}


def _fits(trial: _Trial, total: Tensor, candidates: Mapping[str, Tensor]) -> list[Parts]:
    """The smallest subsets of the candidates whose multiples may add up to `total` - the block's input."""
    change = total - trial.pre
    if not change.any():
        return []
    names = [
        name
        for name, tensor in candidates.items()
        if tensor.abs().max() > 0 and not torch.equal(tensor, trial.pre) and not torch.equal(tensor, total)
    ]
    relative = trial.pre.double().norm() / change.double().norm().clamp(min=1e-300)
    rounding = 16 * torch.finfo(total.dtype).eps * relative.item()
    columns = torch.stack([candidates[n].double().flatten() for n in names] + [change.double().flatten()], 1)
    unit_columns = columns / columns.norm(dim=0).clamp(min=1e-300)
    gram = unit_columns.T @ unit_columns
    fits: list[Parts] = []
    for size in range(1, min(_PARTS, len(names)) + 1):
        subsets = torch.tensor(list(itertools.combinations(range(len(names)), size)))
        ridge = 1e-13 * torch.eye(size, dtype=gram.dtype, device=gram.device)
        within = gram[subsets[:, :, None], subsets[:, None, :]] + ridge
        onto = gram[subsets, -1]
        weights = torch.linalg.solve(within, onto)
        residual = 1 - 2 * (weights * onto).sum(1) + torch.einsum("si,sij,sj->s", weights, within, weights)
        for i in (residual.abs() < max(1e-9, rounding**2)).nonzero()[:, 0].tolist():
            exact = torch.linalg.lstsq(columns[:, subsets[i]], columns[:, -1]).solution
            scales = [1.0 if abs(scale - 1) < 1e-5 else scale for scale in exact.tolist()]
            fits.append(tuple(zip((names[p] for p in subsets[i]), scales)))
        if fits:
            break
    return fits


def _parts(trial: _Trial, total: Tensor, candidates: Mapping[str, Tensor]) -> Parts | None:
    """The submodules that make `total` of the block's input."""
    for parts in _fits(trial, total, candidates):
        if _adds_up(total, [trial.pre, *trial.terms(parts)]):
            return parts
    return None


def _streams_read(trial: _Trial) -> Iterator[Tensor]:
    """What submodules read that may be the stream, in its shape."""
    for tensor in trial.inputs.values():
        if trial.could_be_stream(tensor):
            yield tensor.reshape(trial.pre.shape)


def _before_mid(trial: _Trial, parts: Parts) -> Parts | None:
    """The parts that are in the stream when the next part reads it (None: all read the block's input)."""
    inputs = list(_streams_read(trial))
    for size in range(1, len(parts)):
        for first in itertools.combinations(parts, size):
            terms = [trial.pre, *trial.terms(first)]
            if any(_adds_up(tensor, terms) for tensor in inputs):
                return first
    return None


def _mid_alone(trial: _Trial) -> Parts | None:
    """The submodules before the middle of a block of which the whole does not add up."""
    earlier = {name: tensor for name, tensor in _of_stream(trial).items() if _MIXER.search(name)}
    if not earlier:
        return None
    for mid in _streams_read(trial):
        parts = None if torch.equal(mid, trial.pre) else _parts(trial, mid, earlier)
        if parts is not None:
            return parts
    return None


def _positive_numbers(owners: Sequence[Any], names: Sequence[str]) -> list[int]:
    numbers = (getattr(owner, name, None) for owner in owners for name in names)
    return [n for n in numbers if isinstance(n, int) and n > 0]


def _heads(module: torch.nn.Module, config: PreTrainedConfig, width: int) -> int:
    """Heads of an attention module whose output projection reads `width` numbers (0: unknown)."""
    counts = _positive_numbers((module, config), _HEADS)
    widths = _positive_numbers((module, config), _HEAD_WIDTHS)
    if not any(getattr(config, name, None) for name in _HEAD_WIDTHS):
        widths += [config.hidden_size // n for n in counts[:1]]
    return next((n for n in counts for w in widths if n * w == width), 0)


def _may_project(block: torch.nn.Module, trial: _Trial, name: str) -> bool:
    """Whether a submodule is a leaf with a weight matrix within an attention module, and runs once."""
    parent, _, _ = name.rpartition(".")
    module = block.get_submodule(name)
    return (
        bool(parent)
        and "linear" not in parent
        and _ATTENTION.search(parent + type(block.get_submodule(parent)).__name__) is not None
        and not any(module.children())
        and trial.times[name] == 1
        and name in trial.inputs
        and getattr(getattr(module, "weight", None), "ndim", 0) >= 2
    )


def _projection(
    block: torch.nn.Module, config: PreTrainedConfig, trial: _Trial, attention: Parts
) -> tuple[str, int] | None:
    """The output projection of a block's attention, and how many heads it reads."""
    paths = [path for path, _ in attention]
    ends = [trial.gives[path] for path in paths]
    ends += [trial.inputs[path] for path in paths if path in trial.inputs]
    ends += [t for name, t in trial.gives.items() if _ATTENTION.search(name) and "." not in name]
    for name in reversed(list(trial.gives)):
        if not _may_project(block, trial, name):
            continue
        given = trial.gives[name]
        alike = [end for end in ends if end.numel() == given.numel() and end.dtype == given.dtype]
        if not any(torch.equal(end.flatten(), given.flatten()) for end in alike):
            continue
        parent, _, _ = name.rpartition(".")
        heads = _heads(block.get_submodule(parent), config, trial.inputs[name].shape[-1])
        if heads:
            return name, heads
    return None


@dataclass(frozen=True)
class _Block:
    """What is proven of a block: the parts before and after its middle, z's projection and heads."""

    attention: Parts
    mlp: Parts
    mid: bool
    z: tuple[str, int] | None


def _prove(block: torch.nn.Module, config: PreTrainedConfig, trial: _Trial) -> _Block:
    parts = _parts(trial, trial.post, _of_stream(trial))
    if parts is None:
        first = _mid_alone(trial) or ()
        return _Block(first, (), bool(first), _projection(block, config, trial, first))
    before_mid = _before_mid(trial, parts)
    attention = before_mid or tuple(part for part in parts if _MIXER.search(part[0]))
    if len(parts) == 2 and not before_mid and len(attention) != 1:
        attention = parts[:1]
    mlp = tuple(part for part in parts if part not in attention)
    z = _projection(block, config, trial, attention)
    return _Block(attention, mlp, before_mid is not None, z)


def _holds(trial: _Trial, proven: _Block) -> bool:
    """Does what was proven of another block of the same kind come out here, in the model's own dtype?"""
    if not proven.attention or not proven.mlp:
        return False
    parts = (*proven.attention, *proven.mlp)
    if any(path not in trial.gives for path, _ in parts):
        return False
    return _adds_up(trial.post, [trial.pre, *trial.terms(parts)])


def find_hook_points(
    blocks: Blocks, config: PreTrainedConfig, run: Callable[[], object]
) -> tuple[HookPoints, tuple[int, ...], Layout | None]:
    """Where each site of each block is, its heads (0: no z), and the layout of what it gives (None: bare).

    The proof, in every block: resid_post = resid_pre + attn_out + mlp_out, and resid_mid = resid_pre +
    attn_out is what a submodule reads; `z` is what the attention's output projection reads. A model whose
    attention and MLP read the same stream has no resid_mid; a block that does not add up has neither of
    attn_out and mlp_out. A model narrower than float32 is held to the bits of its own sums, or to those of
    a float32 copy of the block.

    Args:
        run: runs the model on a few tokens of one row.

    Raises:
        NotImplementedError: blocks hand on two streams.
    """
    with torch.no_grad():
        trials = _record(blocks, run)
        _check_one_stream(trials)
        kinds: dict[tuple, _Block] = {}
        proven = [
            _prove_once(block, of_layer(config, layer), trial, kinds)
            for layer, (block, trial) in enumerate(zip(blocks, trials))
        ]
    rows: dict[str, list[HookPoint | None]] = {}
    for layer, (trial, parts) in enumerate(zip(trials, proven)):
        for site, point in _points_of(trial, parts).items():
            rows.setdefault(site, [None] * len(trials))[layer] = point
    heads = tuple(parts.z[1] if parts and parts.z else 0 for parts in proven)
    layout = next((trial.layout for trial in trials if trial.leaving is not None), None)
    return {site: tuple(row) for site, row in rows.items()}, heads, layout


def _check_one_stream(trials: Sequence[_Trial]) -> None:
    """Raise NotImplementedError where a block changes two streams and hands both on."""
    for layer, (trial, following) in enumerate(itertools.zip_longest(trials, trials[1:])):
        if not trial.ran:
            continue
        taken = _alike(trial.pre, trial.call_values())
        new = [
            t
            for t in _alike(trial.post, trial.further)
            if not any(torch.equal(t, old.to(t.device)) for old in taken)
        ]
        if following is not None:
            passed = _alike(trial.post, following.call_values())
            new = [t for t in new if any(t is other for other in passed)]
        if len(taken) > 1 and new:
            raise NotImplementedError(
                f"block {layer} changes two residual streams and hands both on, as reversible layers do, "
                "so no one stream [batch, token, width] holds what later blocks read of a token"
            )


def _alike(stream: Tensor, values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values that have the shape and dtype of a stream."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    return [t for t in tensors if t.shape == stream.shape and t.dtype == stream.dtype]


def _prove_once(
    block: torch.nn.Module, config: PreTrainedConfig, trial: _Trial, kinds: dict[tuple, _Block]
) -> _Block | None:
    """What is proven of a block, taken from one of the same kind in `kinds` where that holds here."""
    if not trial.ran or trial.pre.shape != trial.post.shape or trial.pre.ndim != 3:
        return None
    modules = tuple((name, type(module)) for name, module in block.named_modules())
    kind = (modules, tuple(t.shape for t in trial.inputs.values()))
    if kind in kinds and _holds(trial, kinds[kind]):
        return kinds[kind]
    # A block that leaves the stream as it is shows nothing of what it adds; its code does, on other weights.
    unchanged = torch.equal(trial.pre, trial.post)
    if unchanged or trial.pre.dtype not in (torch.float32, torch.float64):
        try:
            trial = _in_float32(block, trial, drawn=unchanged)
        except Exception:  # a block that cannot be copied or widened is judged by its own bits
            pass
    kinds[kind] = _prove(block, config, trial)
    return kinds[kind]


def _points_of(trial: _Trial, proven: _Block | None) -> dict[str, HookPoint]:
    """The hook points of one block."""
    if not trial.ran or trial.pre.shape != trial.post.shape or trial.pre.ndim not in (3, 4):
        return {}
    # Of one row: [1, token, width], [1, token, copy, width] or [copy, 1, token, width].
    copies = None
    if trial.pre.ndim == 4:
        copies = 2 if trial.pre.shape[0] == 1 else 0
    width = trial.pre.shape[-1] * (1 if copies is None else trial.pre.shape[copies])
    points = {
        "resid_pre": HookPoint(("",), "in", width, copies=copies),
        "resid_post": HookPoint(("",), "out", width, copies=copies),
    }
    if proven is None:
        return points
    for site, parts in (("attn_out", proven.attention), ("mlp_out", proven.mlp)):
        if parts:
            paths, scales = zip(*parts)
            points[site] = HookPoint(paths, "out", width, scales)
    if proven.mid:
        points["resid_mid"] = replace(points["attn_out"], kind="mid")
    if proven.z:
        path, _ = proven.z
        points["z"] = HookPoint((path,), "in", trial.inputs[path].shape[-1])
    return points
