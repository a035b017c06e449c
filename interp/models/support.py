"""What of a model is exact and by which path: tried in float32 against plain passes, around every length that its configuration names.

A model's rules may change with length: a window, a chunk, rotary factors that are others beyond a length. So the trial is
made on a few tokens, and again across each length that the configuration names once a sequence goes beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from interp.models import hooks
from interp.models.whole import Growing
from interp.system.sentences import first_line

#: Names of a configuration that may be lengths in tokens, and those of them that are none.
_LENGTH = re.compile(
    r"position|window|length|context|chunk|seq|scale|scaling|floor|top_?k|block|keep|stride|local|limit"
)
_NONE = re.compile(r"^num_|^n_|feed_forward|theta|head|_dim$|_id$|expert|group_topk|rank")
#: Trials up to this many multiplications are made at once, those of longer sequences when one is first read.
CHEAP = {"cpu": 3e9, "cuda": 3e11}
#: How far a path may be from a plain pass, in plain passes' own rounding error: two orders for its other order of summation.
TIMES = 100
#: Tokens before the first trial's branches.
BASE = 6
#: A pack holds so many times the tokens of its longest sequence, and so many more, at most.
MOST, PACKED = 3, 4096
_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Support:
    """Which path serves a model: `fast` (packed), `plain loop` (one forward pass for each cell) or `refused`, and why.

    tried: the lengths, in tokens, that the trial crossed; those of long sequences are tried when one is first read.
    """

    capture: str
    trajectory: str
    patch: str
    mediation: str
    reason: str = ""
    tried: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Crossing:
    """What is exact for sequences of some length, against one plain pass over each.

    `causal`: a token's states are the same whatever follows it; `continued`: a pass may go on from kept keys and values;
    `packed`: several may, side by side, and join in mid-model; `error`: what the model raised when it was packed.
    """

    causal: bool
    continued: bool
    packed: bool
    error: str = ""


def named_lengths(config) -> list[int]:
    """The lengths in tokens that a configuration names, in order: windows, chunks, contexts, scales."""
    found: set[int] = set()

    def walk(values):
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value)
            elif _LENGTH.search(str(name)) and not _NONE.search(str(name)):
                every = value if isinstance(value, (list, tuple)) else [value]
                found.update(
                    int(v)
                    for v in every
                    if isinstance(v, (int, float))
                    and not isinstance(v, bool)
                    and 2 <= v < 2**31
                    and v == int(v)
                )

    walk(config.to_dict())
    return sorted(found)


def forget_lengths(module: torch.nn.Module) -> None:
    """Let no pass depend on the one before: dynamic rotary frequencies remember the longest sequence that they have seen."""

    def forget(rotary, *args):
        for name in [n for n in vars(rotary) if n.endswith("max_seq_len_cached")]:
            setattr(rotary, name, rotary.original_max_seq_len)
        for name, start in list(rotary.named_buffers()):
            if name.endswith("original_inv_freq"):
                setattr(rotary, name.replace("original_inv_freq", "inv_freq"), start.clone())

    for rotary in module.modules():
        if hasattr(rotary, "max_seq_len_cached") and "dynamic" in str(getattr(rotary, "rope_type", "")):
            rotary.register_forward_pre_hook(forget)


def why_keyless(model) -> str:
    """Why a model keeps no ordinary keys and values, which can be cut, swapped and shared (empty where it does)."""
    strange = [
        t for t in model.layer_types if t not in ("full_attention", "sliding_attention", "chunked_attention")
    ]
    if strange:
        return f"it has layers of {strange[0]!r}, whose cache is not keys and values of each token alone"
    if {"sliding_attention", "chunked_attention"} & set(model.layer_types) and not model.window:
        return "it has sliding layers, but its configuration names no sliding_window"
    cache = model.new_cache()
    try:
        model._probe(past_key_values=cache, use_cache=True)
        lengths = {layer.keys.shape[2] for layer in cache.layers if layer.keys is not None}
    except Exception as error:  # whatever a model makes of a cache that is not its own
        return f"it does not fill an ordinary cache ({type(error).__name__}: {first_line(error)})"
    if cache.layers and len(cache.layers) != model.n_layers:
        return f"its {model.n_layers} blocks keep keys and values of {len(cache.layers)} layers, not each block its own"
    return "" if cache.layers and lengths == {6} else "its layers do not keep keys and values of every token"


@contextmanager
def in_float32(model) -> Iterator[None]:
    """Run a model of a narrow dtype in float32 on the weights that it has, one block of which is widened at a time."""
    narrow: dict[int, list] = {}

    def widen(module, *args):
        tensors = [t for t in (*module.parameters(), *module.buffers()) if t.dtype in _NARROW]
        narrow.setdefault(id(module), []).extend((t, t.data) for t in tensors)
        for tensor in tensors:
            tensor.data = tensor.data.float()

    def narrowed(module, *args):
        for tensor, data in narrow.pop(id(module), []):
            tensor.data = data

    inside = {id(m) for block in model.blocks for m in block.modules()}
    outside = [m for m in model.inner.modules() if id(m) not in inside]
    with ExitStack() as stack:
        for module in outside:
            if isinstance(module, torch.nn.Embedding):  # wide: what it gives is widened instead
                handle = module.register_forward_hook(lambda module, args, output: output.float())
                stack.callback(handle.remove)
            elif not list(module.children()):
                stack.callback(narrowed, module)
                widen(module)
        for block in model.blocks:
            stack.callback(narrowed, block)
            stack.callback(block.register_forward_pre_hook(widen).remove)
            stack.callback(block.register_forward_hook(narrowed).remove)
        model.wide = True
        stack.callback(setattr, model, "wide", False)
        yield


def _kept(model) -> list[int]:
    """The layers in which lengths are tried: the first two of each type, and the last, which ends a reading."""
    types = model.layer_types
    return sorted({model.n_layers - 1, *(i for i, kind in enumerate(types) if types[:i].count(kind) < 2)})


@contextmanager
def _skipping(model, kept: list[int]) -> Iterator[None]:
    """Pass over the blocks that are not kept."""
    with ExitStack() as stack:
        first = 0
        for layer in [*kept, model.n_layers]:
            stack.enter_context(
                hooks.only(list(model.blocks)[first:layer], 1, 0, model.layout)
            )  # none of them
            first = layer + 1
        yield


def _tokens(model, n: int) -> list[int]:
    return [(31 * i * i + 7 * i + 1) % model.config.vocab_size for i in range(n)]


def _apart(found: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest difference of a token's states [..., token, width], in units of that token's largest."""
    return ((found - plain).abs().amax(-1) / plain.abs().amax(-1)).max().item()


def cross(model, start: int) -> Crossing:
    """Try sequences of `start` tokens and three more, two ways of ending, by each path against plain passes.

    In float32, whatever the dtype: an error of logic is then far above the rounding, which is measured, too, on two plain
    passes of the same rows in another shape. Long sequences go through some blocks of each kind alone: the rules are the
    same. Where those cannot run without the others, they go through all.
    """
    nothing = [] if model.keyless else model.empty()
    if start <= BASE:
        return _wide(model, start, nothing)
    try:
        with _skipping(model, _kept(model)):
            return _wide(model, start, nothing)
    except Unsteady:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError):
        return _wide(model, start, nothing)


def _wide(model, start: int, nothing: list) -> Crossing:
    """As `_cross`, in float32 where the weights can be widened."""
    if model.dtype not in _NARROW:
        return _cross(model, start, TIMES, nothing)
    try:
        with in_float32(model):
            return _cross(model, start, TIMES, nothing)
    except Unsteady:
        raise
    except (RuntimeError, TypeError, ValueError):  # quantised weights
        # beside an error of that dtype a hundredfold one would hide anything
        return _cross(model, start, 4, nothing)


@torch.inference_mode()
def _cross(model, start: int, times: float, nothing: list) -> Crossing:
    tokens = _tokens(model, start + 3)
    tails = [tokens[start:], [(t + 3) % model.config.vocab_size for t in tokens[start:]]]
    rows = torch.tensor([[*tokens[:start], *tail] for tail in tails], device=model.device)
    plain = torch.cat([model.whole(row[None]) for row in rows])
    if not plain.isfinite().all():
        raise ValueError(
            f"The numbers of {model.architecture} are not finite: its final hidden states of {start + 3} tokens in "
            f"{str(plain.dtype).removeprefix('torch.')} hold NaN or infinity."
        )
    least = torch.finfo(plain.dtype).eps * model.n_layers**0.5
    rounding = max(_apart(model.whole(rows), plain), least)
    if rounding > TIMES * least:  # beside what a model draws at random anything would pass
        _check_steady(model, rows[:1], plain[:1], TIMES * least)

    def same(found, wanted):
        return (
            found.shape == wanted.shape and _apart(found, wanted) < times * rounding
        )  # not where numbers are not finite

    causal = same(model.whole(rows[:1, :start]), plain[:1, :start])
    if model.keyless:
        return Crossing(causal, False, False)
    try:
        cache = model.read(tokens[:start])
        layers = [
            (layer.keys, layer.values) if layer.keys is not None else none
            for layer, none in zip(cache.layers, nothing)
        ]
        cache = model.new_cache(layers, cache.ids)
        ends = [
            model.inner(
                input_ids=row[None, start:], past_key_values=model.fork(cache), use_cache=True
            ).last_hidden_state
            for row in rows
        ]
        continued = same(torch.cat(ends), plain[:, start:])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return Crossing(causal, False, False, str(error))
    try:
        return Crossing(
            causal,
            continued,
            all(same(found, plain[:, start:]) for found in _packed(model, cache, start, tails)),
        )
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return Crossing(causal, continued, False, str(error))


class Unsteady(ValueError):
    """A model gives other numbers each time it reads the same tokens."""


def _check_steady(model, row: torch.Tensor, plain: torch.Tensor, most: float) -> None:
    """Raise Unsteady where a second pass over the same row gives final states further off than `most`.

    row: ids [1, token]; plain: final states of the first pass [1, token, d_model]; most: in units of each
    token's largest number.
    """
    off = _apart(model.whole(row), plain)
    if off > most:
        raise Unsteady(
            f"{model.architecture} gives other numbers each time it reads the same {row.shape[1]} tokens: "
            f"its final hidden states differ by {off:.2g} of their largest number. It draws something at "
            "random in every pass, so no measurement of it could be made again."
        )


def _packed(model, cache, start: int, tails: list[list[int]]) -> Iterator[torch.Tensor]:
    """Final states [branch, token, d_model] of two packed branches, and of both joining in mid-model."""
    at = torch.arange(start, start + 3, device=model.device).repeat(2)
    seen = torch.block_diag(*[torch.ones(3, 3).tril()] * 2).bool()
    visible = torch.cat([torch.ones(6, start, dtype=torch.bool), seen], 1).to(model.device)
    entering, middle = {}, (model.n_layers - 1) // 2
    branches = torch.tensor(tails, device=model.device).flatten()
    arguments = (
        [(layer.keys, layer.values) for layer in cache.layers],
        branches,
        at,
        visible,
        torch.arange(start, device=model.device),
    )
    if start > BASE:
        yield model.packed(*arguments)[0][0].view(2, 3, -1)
        return
    with model.hooks(
        {
            ("resid_pre", i): lambda tensor, i=i: entering.__setitem__(i, tensor[0].clone())
            for i in range(model.n_layers)
        }
    ):
        yield model.packed(*arguments)[0][0].view(2, 3, -1)
    counts = (
        [0] * middle + [3] * (model.n_layers > 1) + [6] * (model.n_layers - middle - (model.n_layers > 1))
    )
    with hooks.joining(
        model.blocks, counts, lambda layer, a, b: entering[layer][a:b], 6, model.layout
    ):  # one branch, then the other
        yield model.packed(*arguments)[0][0].view(2, 3, -1)


def judge(model) -> Support:
    """Which path is exact: tried on a few tokens, and across the lengths that the configuration names where that is cheap."""
    found = model.crossing(BASE)
    if model.keyless:
        return Support("fast", "plain loop", "plain loop", "refused", model.keyless)
    if not found.packed:
        reason = (
            f"it does not take a mask and positions of one's own ({found.error})"
            if found.error
            else "packed tokens do not come out as in a plain pass"
        )
        return Support(
            "fast", "plain loop", "plain loop", "plain loop" if found.continued else "refused", reason
        )
    cost = 16 * sum(p.numel() for p in model.hf.parameters()) * len(_kept(model)) / model.n_layers
    most = CHEAP["cuda" if model.device.type == "cuda" else "cpu"] / cost
    tried = tuple(n for n in model.lengths if n < most)
    by_place = [n for n in tried if not model.crossing(n - 4).packed]
    if by_place:
        return Support(
            "fast",
            "plain loop",
            "plain loop",
            "plain loop",
            "packed tokens do not come out as in a plain pass where a pack "
            f"goes beyond {by_place[0]} tokens, which its configuration names",
            tried,
        )
    wrong = [n for n in tried if not model.crossing(n - 1).packed]
    reason = (
        f"sequences of more than {wrong[0]} tokens, which its configuration names, are read whole"
        if wrong
        else ""
    )
    return Support("fast", "fast", "fast", "fast", reason, tried)


@torch.inference_mode()
def steps(model, start: int) -> bool:
    """Whether `start` tokens, read whole, are gone on from token by token in the model's own cache exactly."""

    def run():
        tokens = _tokens(model, start + 3)
        rows = torch.tensor([tokens], device=model.device)
        plain = model.whole(rows)
        rounding = max(
            _apart(model.whole(rows.expand(2, -1)), plain.expand(2, -1, -1)),
            torch.finfo(plain.dtype).eps * model.n_layers**0.5,
        )
        growing = Growing(model, anew=lambda known, total: False)
        growing.add(tokens[:start])
        found = torch.cat([growing.add([token]) for token in tokens[start:]])
        return growing.stepped and _apart(found, plain[0, start:]) < TIMES * rounding

    try:
        if model.dtype in _NARROW:
            with in_float32(model):
                return run()
        return run()
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return False
