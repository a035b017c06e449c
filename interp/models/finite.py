"""Numbers that are not finite: which model, in which dtype, and where they begin."""

from __future__ import annotations

from collections.abc import Mapping

import torch

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
    """Raise ValueError naming the first tensor that float16 does not hold, of those that a checkpoint keeps in a wider dtype."""
    largest = torch.finfo(dtype).max
    for weight, tensor in state.items() if dtype == torch.float16 else ():
        if (
            tensor.is_floating_point()
            and tensor.dtype != dtype
            and tensor.numel()
            and tensor.abs().max() > largest
        ):
            raise ValueError(
                not_finite(
                    f"The weights of {name}", dtype, f"first {weight!r}, which holds {tensor.abs().max():.3g}"
                )
            )


def check_parameters(hf, name: str) -> None:
    """Raise ValueError naming the first weight that is not finite."""
    for weight, tensor in hf.named_parameters():
        if (
            tensor.is_floating_point()
            and not tensor.is_meta
            and not tensor.sum().isfinite()
            and not tensor.isfinite().all()
        ):
            raise ValueError(not_finite(f"The weights of {name}", tensor.dtype, f"first in {weight!r}"))


def check_trial(model, name: str) -> None:
    """Raise ValueError where a few tokens' logits are not finite, naming the first submodule that gives such numbers."""
    tokens = min(TOKENS, model.context or TOKENS)
    ids = (torch.arange(tokens, device=model.device) * max(1, model.vocabulary // tokens) + 1)[
        None
    ] % model.vocabulary
    with torch.inference_mode():
        if model.hf(input_ids=ids, use_cache=False).logits.isfinite().all():
            return
    check_parameters(model.hf, name)
    first: list[str] = []

    def leaving(path):
        def hook(module, args, output):
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if not first and any(
                isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all()
                for t in tensors
            ):
                first.append(path)

        return hook

    handles = [module.register_forward_hook(leaving(path)) for path, module in model.hf.named_modules()]
    try:
        with torch.inference_mode():
            model.hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    begin = f"what {first[0]!r} gives" if first and first[0] else "its logits"
    raise ValueError(
        not_finite(
            f"The numbers of {name}", model.dtype, f"on a trial of {tokens} tokens: they begin in {begin}"
        )
    )
