"""Numbers that are not finite: which model, in which dtype, and where they begin."""

from __future__ import annotations

import torch

#: Tokens of the short trial, from all over the vocabulary.
TOKENS = 16


def _advice(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        return f"float16 ends at {largest:,.0f}: load the checkpoint in bfloat16 or float32."
    return "No other dtype of the same weights mends that: the checkpoint is damaged, or its training diverged."


def check_parameters(hf, name: str) -> None:
    """Raise ValueError naming the first weight that is not finite."""
    for weight, tensor in hf.named_parameters():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.sum().isfinite() and not tensor.isfinite().all():
            dtype = tensor.dtype
            raise ValueError(f"The weights of {name} are not finite in {str(dtype).removeprefix('torch.')}, first in {weight!r}. "
                             f"{_advice(dtype)}")


def check_trial(model, name: str) -> None:
    """Raise ValueError where a few tokens' logits are not finite, naming the first submodule that gives such numbers."""
    tokens = min(TOKENS, model.context or TOKENS)
    ids = (torch.arange(tokens, device=model.device) * max(1, model.vocabulary // tokens) + 1)[None] % model.vocabulary
    with torch.inference_mode():
        if model.hf(input_ids=ids, use_cache=False).logits.isfinite().all():
            return
    check_parameters(model.hf, name)
    first: list[str] = []

    def leaving(path):
        def hook(module, args, output):
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if not first and any(isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all() for t in tensors):
                first.append(path)
        return hook

    handles = [module.register_forward_hook(leaving(path)) for path, module in model.hf.named_modules()]
    try:
        with torch.inference_mode():
            model.hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    begin = f"they begin in what {first[0]!r} gives" if first and first[0] else "they begin in its logits"
    raise ValueError(f"The numbers of {name} are not finite in {str(model.dtype).removeprefix('torch.')} on a trial of {tokens} tokens: "
                     f"{begin}. {_advice(model.dtype)}")
