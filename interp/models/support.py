"""What of a model is exact and by which path: tried in float32 against plain passes.

A model's rules may change with length: a window, a chunk, rotary factors that are others beyond a length.
So the trial is made on a few tokens, and again across each length that the configuration names once a
sequence goes beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from interp.models import hooks
from interp.models.caches import Layers, PrefixCache, filled_layers, layers_of
from interp.models.whole import Growing
from interp.system.sentences import first_line

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

#: Names of a configuration that may be lengths in tokens, and those of them that are none.
_LENGTH = re.compile(
    r"position|window|length|context|chunk|seq|scale|scaling|floor|top_?k|block|keep|stride|local|limit"
)
_NONE = re.compile(r"^num_|^n_|feed_forward|theta|head|_dim$|_id$|expert|group_topk|rank")
#: Trials up to this many multiplications are made at once, those of longer sequences when one is first read.
CHEAP = {"cpu": 3e9, "cuda": 3e11}
#: How far a path may be from a plain pass, in plain passes' own rounding error: it sums in another order.
TIMES = 100.0
#: Tokens before the first trial's branches.
BASE = 6
#: A pack holds at most MOST times the tokens of its longest sequence, and PACKED more.
MOST, PACKED = 3, 4096
_NARROW = (torch.float16, torch.bfloat16)
_SLIDING = {"sliding_attention", "chunked_attention"}
#: What a model may raise where a path is not for it.
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Support:
    """Which path serves a model, and why: `fast` (packed), `plain loop` (a pass for each cell) or `refused`.

    tried: the lengths, in tokens, that the trial crossed; those of long sequences are tried when one is
    first read.
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

    `causal`: a token's states are the same whatever follows it; `continued`: a pass may go on from kept
    keys and values; `packed`: several may, side by side, and join in mid-model; `error`: what the model
    raised when packed.
    """

    causal: bool
    continued: bool
    packed: bool
    error: str = ""


def _is_length(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 2 <= value < 2**31 and value == int(value)


def named_lengths(config: PreTrainedConfig) -> list[int]:
    """The lengths in tokens that a configuration names, in order: windows, chunks, contexts, scales."""
    lengths: set[int] = set()

    def walk(values: Mapping[Any, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value)
            elif _LENGTH.search(str(name)) and not _NONE.search(str(name)):
                entries = value if isinstance(value, (list, tuple)) else [value]
                lengths.update(int(entry) for entry in entries if _is_length(entry))

    walk(config.to_dict())
    return sorted(lengths)


def forget_lengths(module: torch.nn.Module) -> None:
    """Let no pass depend on the one before: dynamic rotary frequencies remember the longest sequence seen."""

    def forget(rotary: Any, *args: Any) -> None:
        for name in [n for n in vars(rotary) if n.endswith("max_seq_len_cached")]:
            setattr(rotary, name, rotary.original_max_seq_len)
        for name, start in list(rotary.named_buffers()):
            if name.endswith("original_inv_freq"):
                setattr(rotary, name.replace("original_inv_freq", "inv_freq"), start.clone())

    for rotary in module.modules():
        if hasattr(rotary, "max_seq_len_cached") and "dynamic" in str(getattr(rotary, "rope_type", "")):
            rotary.register_forward_pre_hook(forget)


def why_keyless(model: HookedModel) -> str:
    """Why a model keeps no ordinary keys and values, which can be cut and shared (empty where it does)."""
    for kind in model.layer_types:
        if kind != "full_attention" and kind not in _SLIDING:
            return f"it has layers of {kind!r}, whose cache is not keys and values of each token alone"
    if _SLIDING & set(model.layer_types) and not model.window:
        return "it has sliding layers, but its configuration names no sliding_window"
    cache = PrefixCache()
    try:
        model.probe(past_key_values=cache, use_cache=True)
        lengths = {keys.shape[2] for keys, _ in filled_layers(cache) if keys is not None}
    except Exception as error:  # whatever a model makes of a cache that is not its own
        return f"it does not fill an ordinary cache ({type(error).__name__}: {first_line(error)})"
    if cache.layers and len(cache.layers) != model.n_layers:
        blocks, kept = model.n_layers, len(cache.layers)
        return f"its {blocks} blocks keep keys and values of {kept} layers, not each block its own"
    return "" if cache.layers and lengths == {6} else "its layers do not keep keys and values of every token"


@contextmanager
def in_float32(model: HookedModel) -> Iterator[None]:
    """Run a model of a narrow dtype in float32 on its own weights, widened a block at a time."""
    narrow: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def widen(module: torch.nn.Module, *args: Any) -> None:
        tensors = [t for t in (*module.parameters(), *module.buffers()) if t.dtype in _NARROW]
        narrow.setdefault(id(module), []).extend((t, t.data) for t in tensors)
        for tensor in tensors:
            tensor.data = tensor.data.float()

    def restore(module: torch.nn.Module, *args: Any) -> None:
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
                stack.callback(restore, module)
                widen(module)
        for block in model.blocks:
            stack.callback(restore, block)
            stack.callback(block.register_forward_pre_hook(widen).remove)
            stack.callback(block.register_forward_hook(restore).remove)
        model.wide = True
        stack.callback(setattr, model, "wide", False)
        yield


def _tried_layers(model: HookedModel) -> list[int]:
    """The layers in which lengths are tried: two of each type, and the last, which ends a reading."""
    types = model.layer_types
    return sorted({model.n_layers - 1, *(i for i, kind in enumerate(types) if types[:i].count(kind) < 2)})


@contextmanager
def _skipping(model: HookedModel, layers: Sequence[int]) -> Iterator[None]:
    """Pass over all blocks but those of some layers."""
    with ExitStack() as stack:
        first = 0
        for layer in [*layers, model.n_layers]:
            skipped = list(model.blocks)[first:layer]
            stack.enter_context(hooks.only(skipped, 1, 0, model.layout))  # none of them
            first = layer + 1
        yield


def _tokens(model: HookedModel, n: int) -> list[int]:
    return [(31 * i * i + 7 * i + 1) % model.config.vocab_size for i in range(n)]


def _apart(states: Float[Tensor, "*row token d_model"], plain: Float[Tensor, "*row token d_model"]) -> float:
    """The largest difference of a token's states, in units of that token's largest number."""
    return ((states - plain).abs().amax(-1) / plain.abs().amax(-1)).max().item()


def _rounding_unit(model: HookedModel, states: Tensor) -> float:
    """The least rounding error to expect of final states, in units of their largest number."""
    return torch.finfo(states.dtype).eps * model.n_layers**0.5


def cross(model: HookedModel, start: int) -> Crossing:
    """Try sequences of `start` tokens and three more, two ways of ending, by each path against plain passes.

    In float32, whatever the dtype: an error of logic is then far above the rounding, which is measured,
    too, on two plain passes of the same rows in another shape. Long sequences go through some blocks of
    each kind alone, since the rules are the same. Where those cannot run without the others, they go
    through all.
    """
    no_tokens: Layers = [] if model.keyless else model.empty()
    if start <= BASE:
        return _wide(model, start, no_tokens)
    try:
        with _skipping(model, _tried_layers(model)):
            return _wide(model, start, no_tokens)
    except Unsteady:
        raise
    except (*_REFUSALS, LookupError):
        return _wide(model, start, no_tokens)


def _wide(model: HookedModel, start: int, no_tokens: Layers) -> Crossing:
    """As `_cross`, in float32 where the weights can be widened."""
    if model.dtype not in _NARROW:
        return _cross(model, start, TIMES, no_tokens)
    try:
        with in_float32(model):
            return _cross(model, start, TIMES, no_tokens)
    except Unsteady:
        raise
    except (RuntimeError, TypeError, ValueError):  # quantised weights
        # Beside an error of that dtype a hundredfold one would hide anything.
        return _cross(model, start, 4.0, no_tokens)


@torch.inference_mode()
def _cross(model: HookedModel, start: int, times: float, no_tokens: Layers) -> Crossing:
    """Try it in the dtype that the model has now; what is further off than `times` the rounding is not exact.

    no_tokens: a prefix of no tokens, which stands for the layers that are passed over.
    """
    tokens = _tokens(model, start + 3)
    tails = [tokens[start:], [(t + 3) % model.config.vocab_size for t in tokens[start:]]]
    rows = torch.tensor([[*tokens[:start], *tail] for tail in tails], device=model.device)
    plain = torch.cat([model.whole(row[None]) for row in rows])
    if not plain.isfinite().all():
        raise ValueError(
            f"The numbers of {model.architecture} are not finite: its final hidden states of {start + 3} "
            f"tokens in {str(plain.dtype).removeprefix('torch.')} hold NaN or infinity."
        )
    least = _rounding_unit(model, plain)
    rounding = max(_apart(model.whole(rows), plain), least)
    if rounding > TIMES * least:  # beside what a model draws at random anything would pass
        _check_steady(model, rows[:1], plain[:1], TIMES * least)

    def same(states: Tensor, reference: Tensor) -> bool:
        # not where numbers are not finite
        return states.shape == reference.shape and _apart(states, reference) < times * rounding

    causal = same(model.whole(rows[:1, :start]), plain[:1, :start])
    if model.keyless:
        return Crossing(causal, False, False)
    try:
        cache = _read(model, tokens[:start], no_tokens)
        ends = [
            model.inner(input_ids=row[None, start:], past_key_values=model.fork(cache), use_cache=True)
            for row in rows
        ]
        continued = same(torch.cat([end.last_hidden_state for end in ends]), plain[:, start:])
    except (*_REFUSALS, IndexError) as error:
        return Crossing(causal, False, False, str(error))
    try:
        packed = all(same(states, plain[:, start:]) for states in _packed(model, cache, start, tails))
    except _REFUSALS as error:
        return Crossing(causal, continued, False, str(error))
    return Crossing(causal, continued, packed)


def _read(model: HookedModel, tokens: Sequence[int], no_tokens: Layers) -> PrefixCache:
    """Keys and values of some tokens; of layers that are passed over, which fill none, those of no tokens."""
    cache = model.read(tokens)
    layers = [
        empty if keys is None or values is None else (keys, values)
        for (keys, values), empty in zip(filled_layers(cache), no_tokens)
    ]
    return PrefixCache(layers, cache.ids)


class Unsteady(ValueError):
    """A model gives other numbers each time it reads the same tokens."""


def _check_steady(
    model: HookedModel, row: Int[Tensor, "1 token"], plain: Float[Tensor, "1 token d_model"], most: float
) -> None:
    """Raise Unsteady where a second pass over a row gives final states further off than `most`.

    plain: final states of the first pass; most: in units of each token's largest number.
    """
    difference = _apart(model.whole(row), plain)
    if difference > most:
        raise Unsteady(
            f"{model.architecture} gives other numbers each time it reads the same {row.shape[1]} tokens: "
            f"its final hidden states differ by {difference:.2g} of their largest number. It draws something "
            "at random in every pass, so no measurement of it could be made again."
        )


def _packed(
    model: HookedModel, cache: PrefixCache, start: int, tails: Sequence[Sequence[int]]
) -> Iterator[Float[Tensor, "branch token d_model"]]:
    """Final states of two packed branches, in rows of either order, and of both joining in mid-model."""
    branches = torch.tensor([[*tails[0], *tails[1]], [*tails[1], *tails[0]]], device=model.device)
    at = torch.arange(start, start + 3, device=model.device).repeat(2)[None]
    own = torch.block_diag(*[torch.ones(3, 3).tril()] * 2).bool()
    visible = torch.cat([torch.ones(6, start, dtype=torch.bool), own], 1).to(model.device)[None]
    keys_at = torch.arange(start, device=model.device)[None]

    def run(rows: int) -> Tensor:
        hidden, _ = model.packed(layers_of(cache), branches[:rows], at, visible, keys_at)
        return hidden.view(rows, 2, 3, -1)

    one_row, (first, second) = run(1)[0], run(2)
    yield one_row
    yield first
    yield second.flip(0)
    if start > BASE:
        return
    entering: dict[int, Tensor] = {}

    def keep(layer: int) -> hooks.Edit:
        return lambda tensor: entering.update({layer: tensor[0].clone()})

    with model.hooks({("resid_pre", layer): keep(layer) for layer in range(model.n_layers)}):
        run(1)
    middle = (model.n_layers - 1) // 2
    one_branch = [3] if model.n_layers > 1 else []  # one branch, then the other
    counts = [0] * middle + one_branch + [6] * (model.n_layers - middle - len(one_branch))
    with hooks.joining(model.blocks, counts, lambda layer, a, b: entering[layer][a:b], 6, model.layout):
        yield run(1)[0]


def judge(model: HookedModel) -> Support:
    """Which path is exact, tried on a few tokens, and across the lengths that the configuration names."""
    base = model.crossing(BASE)
    if model.keyless:
        return Support("fast", "plain loop", "plain loop", "refused", model.keyless)
    if not base.packed:
        reason = "packed tokens do not come out as in a plain pass"
        if base.error:
            reason = f"it does not take a mask and positions of one's own ({base.error})"
        mediation = "plain loop" if base.continued else "refused"
        return Support("fast", "plain loop", "plain loop", mediation, reason)
    parameters = sum(p.numel() for p in model.hf.parameters())
    cost_of_token = 16 * parameters * len(_tried_layers(model)) / model.n_layers
    most = CHEAP["cuda" if model.device.type == "cuda" else "cpu"] / cost_of_token
    tried = tuple(n for n in model.lengths if n < most)
    not_beyond = [n for n in tried if not model.crossing(n - 4).packed]
    if not_beyond:
        reason = (
            "packed tokens do not come out as in a plain pass where a pack "
            f"goes beyond {not_beyond[0]} tokens, which its configuration names"
        )
        return Support("fast", "plain loop", "plain loop", "plain loop", reason, tried)
    read_whole = [n for n in tried if not model.crossing(n - 1).packed]
    reason = ""
    if read_whole:
        reason = (
            f"sequences of more than {read_whole[0]} tokens, which its configuration names, are read whole"
        )
    return Support("fast", "fast", "fast", "fast", reason, tried)


@torch.inference_mode()
def steps(model: HookedModel, start: int) -> bool:
    """Whether `start` tokens, read whole, go on token by token in the model's own cache exactly."""

    def run() -> bool:
        tokens = _tokens(model, start + 3)
        rows = torch.tensor([tokens], device=model.device)
        plain = model.whole(rows)
        twice = model.whole(rows.expand(2, -1))
        rounding = max(_apart(twice, plain.expand(2, -1, -1)), _rounding_unit(model, plain))
        growing = Growing(model, anew=lambda length, total: False)
        growing.add(tokens[:start])
        states = torch.cat([growing.add([token]) for token in tokens[start:]])
        return growing.stepped and _apart(states, plain[0, start:]) < TIMES * rounding

    try:
        if model.dtype in _NARROW:
            with in_float32(model):
                return run()
        return run()
    except (*_REFUSALS, LookupError):
        return False
