"""Numbers that are not finite: which model, in which dtype, and where they begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

#: Tokens of the short trial, from all over the vocabulary.
TOKENS = 16


def _advice(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        return f"float16 ends at {largest:,.0f}: load the checkpoint in bfloat16 or float32."
    return (
        "No other dtype of the same weights mends that: the checkpoint is damaged, or its training diverged."
    )


def not_finite(what: str, dtype: torch.dtype, where: str) -> str:
    """The sentence for numbers that are not finite."""
    return f"{what} are not finite in {str(dtype).removeprefix('torch.')}, {where}. {_advice(dtype)}"


def check_cast(name: object, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Raise ValueError naming the first tensor of a wider dtype that float16 does not hold."""
    if dtype != torch.float16:
        return
    for weight, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dtype == dtype or not tensor.numel():
            continue
        largest = tensor.abs().max()
        if largest > torch.finfo(dtype).max:
            where = f"first {weight!r}, which holds {largest:.3g}"
            raise ValueError(not_finite(f"The weights of {name}", dtype, where))


def check_parameters(hf: torch.nn.Module, name: object) -> None:
    """Raise ValueError naming the first weight that is not finite."""
    for weight, tensor in hf.named_parameters():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if not tensor.sum().isfinite() and not tensor.isfinite().all():  # the sum is cheap, and may overflow
            raise ValueError(not_finite(f"The weights of {name}", tensor.dtype, f"first in {weight!r}"))


def _all_finite(output: Any) -> bool:
    tensors = output if isinstance(output, (tuple, list)) else [output]
    return all(
        bool(t.isfinite().all()) for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()
    )


def check_trial(model: HookedModel, name: object) -> None:
    """Raise ValueError where a few tokens' logits are not finite, naming the first such submodule."""
    tokens = min(TOKENS, model.context or TOKENS)
    spread = torch.arange(tokens, device=model.device) * max(1, model.vocabulary // tokens) + 1
    ids = spread[None] % model.vocabulary
    with torch.inference_mode():
        if model.hf(input_ids=ids, use_cache=False).logits.isfinite().all():
            return
    check_parameters(model.hf, name)
    first: list[str] = []

    def leaving(path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            if not first and not _all_finite(output):
                first.append(path)

        return hook

    handles = [module.register_forward_hook(leaving(path)) for path, module in model.hf.named_modules()]
    try:
        with torch.inference_mode():
            model.hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    source = f"what {first[0]!r} gives" if first and first[0] else "its logits"
    where = f"on a trial of {tokens} tokens: they begin in {source}"
    raise ValueError(not_finite(f"The numbers of {name}", model.dtype, where))
