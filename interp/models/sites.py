"""Where each site is in each block of a model: found by trial on a few tokens, and proven by sums.

What a block adds to the residual stream is a sum of fixed multiples of what some of its submodules give. Which ones, and
the multiples, are fitted, and hold only where the sum comes out to the last bits of float32 (`find_hook_points`). Nothing is
looked up by a model's name: names only tell attention from MLP where both read the same stream.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from interp.models.hooks import HookPoint, HookPoints
from interp.models.inner import of_layer
from interp.models.outputs import Layout, entries_of, first_of

#: Names of submodules that mix tokens, and of those among them that attend by heads.
_MIXER = re.compile(r"attn|attention|mixer|mamba|conv|temporal|recurrent|delta|ssm", re.I)
_ATTENTION = re.compile(r"attn|attention", re.I)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_q_heads")
_HEAD_WIDTHS = ("v_head_dim", "head_dim", "head_size", "attention_head_size")
#: How deep in a block submodules are tried, and how many of them a block may add up.
_DEPTH, _PARTS = 3, 4


@dataclass
class _Trial:
    """What went through one block: its input and output, and those of its submodules, in the order in which they gave it."""

    call: tuple[tuple, dict] = ((), {})
    pre: torch.Tensor | None = None
    post: torch.Tensor | None = None
    layout: Layout | None = None  # of what the block gives, None for a bare tensor
    further: list[torch.Tensor] = field(default_factory=list)  # what the block gives beside the stream
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    gives: dict[str, torch.Tensor] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)


def first_tensor(values: Sequence) -> torch.Tensor | None:
    """The first tensor of some arguments or outputs."""
    return next((v for v in values if isinstance(v, torch.Tensor)), None)


def _watch(block, trial: _Trial) -> list:
    """Hooks that record a block's pass into `trial`."""

    def entering(name):
        def hook(module, args, kwargs):
            tensor = first_tensor([*args, *kwargs.values()])
            if tensor is None:
                return
            if not name:
                trial.call, trial.pre = (args, dict(kwargs)), tensor.clone()
            else:
                trial.inputs[name] = tensor.clone()

        return hook

    def leaving(name):
        def hook(module, args, output):
            tensor = first_of(output)
            if tensor is None:
                return
            if not name:
                trial.post, trial.layout = tensor.clone(), Layout.of(output)
                trial.further = [
                    t for t in entries_of(output) if isinstance(t, torch.Tensor) and t is not tensor
                ]
            else:
                trial.gives[name] = tensor.clone()
                trial.times[name] = trial.times.get(name, 0) + 1

        return hook

    handles = []
    for name, module in block.named_modules():
        if name.count(".") < _DEPTH:
            handles.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leaving(name)))
    return handles


def _record(blocks, run: Callable[[], object]) -> list[_Trial]:
    """One pass, and what went through each block."""
    trials = [_Trial() for _ in blocks]
    handles = [handle for block, trial in zip(blocks, trials) for handle in _watch(block, trial)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return trials


def _widened(value):
    """A value with its floating tensors in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_widened(v) for v in value)
    return value


def _in_float32(block, trial: _Trial, drawn: bool = False) -> _Trial:
    """The same pass of a float32 copy of the block, whose sums come out to more bits; `drawn`: of weights drawn at random."""
    twin, found = copy.deepcopy(block).float(), _Trial()
    generator = torch.Generator(trial.pre.device).manual_seed(0)
    for parameter in twin.parameters() if drawn else ():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    args, kwargs = trial.call
    tensor = first_tensor([*args, *kwargs.values()])
    args = [_widened(trial.pre if a is tensor else a) for a in args]
    kwargs = {k: _widened(trial.pre if v is tensor else v) for k, v in kwargs.items()}
    handles = _watch(twin, found)
    try:
        twin(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _bits_agree(total: torch.Tensor, terms: Sequence[torch.Tensor]) -> bool:
    """Is `total` the sum of the terms, added in some order in their own dtype, bit for bit (but for one number in a hundred)?"""
    return any(
        (sum(order[1:], order[0]) == total).float().mean().item() > 0.99
        for order in itertools.permutations(terms)
    )


def _adds_up(total: torch.Tensor, terms: Sequence[torch.Tensor]) -> bool:
    """Is `total` the sum of the terms but for rounding, each product and each sum rounding by at most half a unit?

    Narrower dtypes than float32, where that would let a small wrong part pass, must come out bit for bit.
    """
    if total.dtype not in (torch.float32, torch.float64):
        return _bits_agree(total, terms)
    unit = torch.finfo(total.dtype).eps / 2
    wide = [t.double() for t in terms]
    bound = (2 * len(terms) + 1) * unit * sum(t.abs() for t in wide)
    return bool(((total.double() - sum(wide)).abs() <= bound).all())


def _of_stream(trial: _Trial, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the tensors that are as large as the residual stream, in its shape, each once, under its shallowest name."""
    width, found = trial.pre.shape[-1], {}
    for name in sorted(tensors, key=lambda n: (n.count("."), list(tensors).index(n))):
        tensor = tensors[name]
        if tensor.shape[-1:] != (width,) or tensor.numel() != trial.pre.numel() or trial.times.get(name) != 1:
            continue
        tensor = tensor.reshape(trial.pre.shape)
        if tensor.dtype == trial.pre.dtype and not any(
            torch.equal(tensor, other) for other in found.values()
        ):
            found[name] = tensor
    return {name: found[name] for name in tensors if name in found}


def _fits(
    trial: _Trial, total: torch.Tensor, candidates: dict[str, torch.Tensor]
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The smallest subsets of the candidates whose multiples may add up to `total` - the block's input, and those multiples."""
    change = total - trial.pre
    if not change.any():
        return []
    names = [
        n
        for n, t in candidates.items()
        if t.abs().max() > 0 and not any(torch.equal(t, whole) for whole in (trial.pre, total))
    ]
    rounding = (
        16
        * torch.finfo(total.dtype).eps
        * (trial.pre.double().norm() / change.double().norm().clamp(min=1e-300)).item()
    )
    columns = torch.stack([candidates[n].double().flatten() for n in names] + [change.double().flatten()], 1)
    scale = columns.norm(dim=0).clamp(min=1e-300)
    gram = (columns / scale).T @ (columns / scale)
    found = []
    for size in range(1, min(_PARTS, len(names)) + 1):
        subsets = torch.tensor(list(itertools.combinations(range(len(names)), size)))
        inner = gram[subsets[:, :, None], subsets[:, None, :]] + 1e-13 * torch.eye(
            size, dtype=gram.dtype, device=gram.device
        )
        onto = gram[subsets, -1]
        weights = torch.linalg.solve(inner, onto)
        off = 1 - 2 * (weights * onto).sum(1) + torch.einsum("si,sij,sj->s", weights, inner, weights)
        for i in (off.abs() < max(1e-9, rounding**2)).nonzero()[:, 0].tolist():
            picked = subsets[i]
            exact = torch.linalg.lstsq(columns[:, picked], columns[:, -1]).solution
            found.append(
                (
                    tuple(names[p] for p in picked),
                    tuple(1.0 if abs(w - 1) < 1e-5 else w for w in exact.tolist()),
                )
            )
        if found:
            break
    return found


def _terms(trial: _Trial, paths: Sequence[str], scales: Sequence[float]) -> list[torch.Tensor]:
    return [
        trial.gives[p].reshape(trial.pre.shape) * s if s != 1 else trial.gives[p].reshape(trial.pre.shape)
        for p, s in zip(paths, scales)
    ]


Parts = tuple[tuple[str, float], ...]


def _parts(trial: _Trial) -> Parts | None:
    """The submodules that a block adds to the stream, with their multiples, in the order in which they run."""
    for paths, scales in _fits(trial, trial.post, _of_stream(trial, trial.gives)):
        if _adds_up(trial.post, [trial.pre, *_terms(trial, paths, scales)]):
            return tuple(zip(paths, scales))
    return None


def _before_mid(trial: _Trial, parts: Parts) -> Parts | None:
    """Those of the parts that are in the stream when the next part reads it (None where all read the block's input)."""
    inputs = [
        t.reshape(trial.pre.shape)
        for t in trial.inputs.values()
        if t.numel() == trial.pre.numel() and t.dtype == trial.pre.dtype
    ]
    for size in range(1, len(parts)):
        for some in itertools.combinations(parts, size):
            terms = [trial.pre, *_terms(trial, *zip(*some))]
            if any(_adds_up(tensor, terms) for tensor in inputs):
                return some
    return None


def _mid_alone(trial: _Trial) -> Parts | None:
    """The submodules before the middle of a block of which the whole does not add up."""
    for name, tensor in trial.inputs.items():
        if tensor.numel() != trial.pre.numel() or tensor.dtype != trial.pre.dtype:
            continue
        mid = tensor.reshape(trial.pre.shape)
        if torch.equal(mid, trial.pre):
            continue
        earlier = {n: t for n, t in _of_stream(trial, trial.gives).items() if _MIXER.search(n)}
        for paths, scales in _fits(trial, mid, earlier) if earlier else ():
            if _adds_up(mid, [trial.pre, *_terms(trial, paths, scales)]):
                return tuple(zip(paths, scales))
    return None


def _heads(module, config, width: int) -> int:
    """Heads of an attention module whose output projection reads `width` numbers; 0 where that cannot be told."""
    counts = [getattr(o, n, None) for o in (module, config) for n in _HEADS]
    widths = [getattr(o, n, None) for o in (module, config) for n in _HEAD_WIDTHS]
    counts, widths = ([n for n in some if isinstance(n, int) and n > 0] for some in (counts, widths))
    if not any(hasattr(config, n) and getattr(config, n) for n in _HEAD_WIDTHS):
        widths += [config.hidden_size // n for n in counts[:1]]
    return next((n for n in counts for w in widths if n * w == width), 0)


def _projection(block, config, trial: _Trial, attention: Parts) -> tuple[str, int] | None:
    """The output projection of a block's attention, and how many heads it reads."""
    ends = [trial.gives[p] for p, _ in attention] + [
        trial.inputs[p] for p, _ in attention if p in trial.inputs
    ]
    ends += [t for n, t in trial.gives.items() if _ATTENTION.search(n) and "." not in n]
    for name in reversed(list(trial.gives)):
        parent, _, _ = name.rpartition(".")
        module = block.get_submodule(name)
        kind = parent + type(block.get_submodule(parent)).__name__
        if (
            not parent
            or not _ATTENTION.search(kind)
            or "linear" in parent
            or any(module.children())
            or trial.times[name] != 1
        ):
            continue
        if name not in trial.inputs or getattr(getattr(module, "weight", None), "ndim", 0) < 2:
            continue
        same = [
            e for e in ends if e.numel() == trial.gives[name].numel() and e.dtype == trial.gives[name].dtype
        ]
        if not any(torch.equal(e.flatten(), trial.gives[name].flatten()) for e in same):
            continue
        heads = _heads(block.get_submodule(parent), config, trial.inputs[name].shape[-1])
        if heads:
            return name, heads
    return None


@dataclass(frozen=True)
class _Block:
    """What of one block is proven: the parts before and after its middle, whether there is a middle, z's projection and heads."""

    attention: Parts
    mlp: Parts
    mid: bool
    z: tuple[str, int] | None


def _prove(block, config, trial: _Trial) -> _Block:
    parts = _parts(trial)
    if parts is None:
        first = _mid_alone(trial) or ()
        return _Block(first, (), bool(first), _projection(block, config, trial, first))
    first = _before_mid(trial, parts)
    attention = first or tuple(p for p in parts if _MIXER.search(p[0]))
    if len(parts) == 2 and not first and len(attention) != 1:
        attention = parts[:1]
    rest = tuple(p for p in parts if p not in attention)
    return _Block(attention, rest, first is not None, _projection(block, config, trial, attention))


def _holds(trial: _Trial, known: _Block) -> bool:
    """Does what was proven of another block of the same kind come out here, in the model's own dtype?"""
    if not known.attention or not known.mlp:
        return False
    every = [*known.attention, *known.mlp]
    if any(path not in trial.gives for path, _ in every):
        return False
    return _adds_up(trial.post, [trial.pre, *_terms(trial, *zip(*every))])


def find_hook_points(
    blocks, config, run: Callable[[], object]
) -> tuple[HookPoints, tuple[int, ...], Layout | None]:
    """Where each site of each block is, its heads (0: no z), and the layout of what it gives (None: bare).

    The proof, in every block: resid_post = resid_pre + attn_out + mlp_out, and resid_mid = resid_pre + attn_out is what a
    submodule reads; `z` is what the attention's output projection reads. A model whose attention and MLP read the same stream
    has no resid_mid; a block that does not add up has neither of attn_out and mlp_out. A model narrower than float32
    is held to the bits of its own sums, or a float32 copy of the block to its.
    run: runs the model on a few tokens of one row.

    Raises NotImplementedError where blocks hand on two streams.
    """
    with torch.no_grad():
        trials = _record(blocks, run)
        _check_one_stream(trials)
        proven: list[_Block | None] = []
        kinds: dict[tuple, _Block] = {}
        for layer, (block, trial) in enumerate(zip(blocks, trials)):
            proven.append(_one(block, of_layer(config, layer), trial, kinds))
    hook_points = _hook_points(trials, proven)
    heads = tuple(b.z[1] if b and b.z else 0 for b in proven)
    return hook_points, heads, next((t.layout for t in trials if t.post is not None), None)


def _check_one_stream(trials: Sequence[_Trial]) -> None:
    """Raise NotImplementedError where a block changes two streams and hands both on."""
    for layer, (trial, following) in enumerate(itertools.zip_longest(trials, trials[1:])):
        if trial.pre is None or trial.post is None:
            continue
        taken = _alike(trial.pre, [*trial.call[0], *trial.call[1].values()])
        new = [t for t in _alike(trial.post, trial.further) if not any(torch.equal(t, old) for old in taken)]
        if following is not None:
            passed = _alike(trial.post, [*following.call[0], *following.call[1].values()])
            new = [t for t in new if any(t is other for other in passed)]
        if len(taken) > 1 and new:
            raise NotImplementedError(
                f"block {layer} changes two residual streams and hands both on, as reversible layers do, "
                "so no one stream [batch, token, width] holds what later blocks read of a token"
            )


def _alike(stream: torch.Tensor, values: Sequence) -> list[torch.Tensor]:
    """The tensors among some values that have the shape and dtype of a stream."""
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    return [t for t in tensors if t.shape == stream.shape and t.dtype == stream.dtype]


def _one(block, config, trial: _Trial, kinds: dict[tuple, _Block]) -> _Block | None:
    if trial.pre is None or trial.post is None or trial.pre.shape != trial.post.shape or trial.pre.ndim != 3:
        return None
    kind = tuple((name, type(module)) for name, module in block.named_modules())
    shapes = tuple(t.shape for t in trial.inputs.values())
    known = kinds.get((kind, shapes))
    if known and _holds(trial, known):
        return known
    unchanged = torch.equal(
        trial.pre, trial.post
    )  # such a block shows nothing of what it adds: its code does on other weights
    if unchanged or trial.pre.dtype not in (torch.float32, torch.float64):
        try:
            trial = _in_float32(block, trial, drawn=unchanged)
        except Exception:  # a block that cannot be copied or widened is judged by its own bits
            pass
    kinds[kind, shapes] = found = _prove(block, config, trial)
    return found


def _hook_points(trials: Sequence[_Trial], proven: Sequence[_Block | None]) -> HookPoints:
    rows: dict[str, list[HookPoint | None]] = {}
    for layer, (trial, block) in enumerate(zip(trials, proven)):
        here: dict[str, HookPoint] = {}
        if (
            trial.pre is not None
            and trial.post is not None
            and trial.pre.shape == trial.post.shape
            and trial.pre.ndim in (3, 4)
        ):
            # Of one row: [1, token, width], [1, token, copy, width] or [copy, 1, token, width].
            copies = None if trial.pre.ndim == 3 else 2 if trial.pre.shape[0] == 1 else 0
            width = trial.pre.shape[-1] * (1 if copies is None else trial.pre.shape[copies])
            here |= {
                site: HookPoint(("",), side, width, copies=copies)
                for site, side in (("resid_pre", "in"), ("resid_post", "out"))
            }
            for site, parts in (("attn_out", block.attention), ("mlp_out", block.mlp)) if block else ():
                if parts:
                    paths, scales = zip(*parts)
                    here[site] = HookPoint(paths, "out", width, scales)
            if block and block.mid:
                here["resid_mid"] = replace(here["attn_out"], side="mid")
            if block and block.z:
                here["z"] = HookPoint((block.z[0],), "in", trial.inputs[block.z[0]].shape[-1])
        for site, place in here.items():
            rows.setdefault(site, [None] * len(trials))[layer] = place
    return {site: tuple(row) for site, row in rows.items()}
