"""Many continuations of one prefix in a single forward pass, exactly.

The prefix is read once; the continuations lie side by side behind it, each seeing the prefix and itself (a
block-diagonal causal mask, position ids repeated). Logits are computed only where a token is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Cells = Mapping[tuple[str, int], tuple[Sequence[int], torch.Tensor]]


def _layout(segments: Sequence[Sequence[int]], prefix: int, device, dtype):
    """ids [1, slot], positions [1, slot], additive mask [1, 1, slot, prefix + slot], first slot of each segment."""
    lengths = torch.tensor([len(s) for s in segments])
    owner = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    slot = torch.arange(len(owner))
    visible = (owner[:, None] == owner[None, :]) & (slot[:, None] >= slot[None, :])
    mask = torch.zeros(1, 1, len(owner), prefix + len(owner), dtype=dtype)
    mask[0, 0, :, prefix:].masked_fill_(~visible, torch.finfo(dtype).min)  # additive: a boolean mask is wrong under eager
    ids = torch.tensor([i for s in segments for i in s])[None]
    positions = (prefix + slot - starts[owner])[None]
    return ids.to(device), positions.to(device), mask.to(device), starts.tolist()


@torch.inference_mode()
def score(model, cache, segments: Sequence[Sequence[int]], scored: Sequence[int], cells: Cells | None = None) -> torch.Tensor:
    """Log-probability of the last `scored[i]` tokens of each segment after the prefix in `cache`: [row, segment], in nats.

    `cache` may hold several rows (prefixes of one length): every segment is scored after each. `cells` replaces
    activations: {(site, layer): (segment of each cell, values [cell, width])}, always at a segment's first token.
    The cache is given back as it came. Raises ValueError where a scored token has none before it in its segment.
    """
    if any(n >= len(s) for s, n in zip(segments, scored)):
        raise ValueError("Every scored token needs one before it in its segment: open each segment with the last unscored token.")
    prefix = cache.get_seq_length()
    rows = cache.layers[0].keys.shape[0] if prefix else 1
    ids, positions, mask, starts = _layout(segments, prefix, model.device, model.dtype)
    model.check_length(prefix + max(map(len, segments)))

    def replace(at, values):
        slots = torch.tensor([starts[i] for i in at], device=model.device)

        def edit(tensor):
            tensor = tensor.clone()
            tensor[:, slots] = values.to(tensor)
            return tensor
        return edit

    with model.taps({key: replace(*cell) for key, cell in (cells or {}).items()}):
        hidden = model.inner(input_ids=ids.expand(rows, -1), position_ids=positions.expand(rows, -1), attention_mask=mask.expand(rows, -1, -1, -1),
                             past_key_values=cache, use_cache=True).last_hidden_state
    cache.crop(-ids.shape[1])
    wanted = [(i, start + len(s) - n + j) for i, (s, n, start) in enumerate(zip(segments, scored, starts)) for j in range(n)]
    owner = torch.tensor([i for i, _ in wanted], device=model.device)
    slots = torch.tensor([slot for _, slot in wanted], device=model.device)
    logp = model.logits(hidden[:, slots - 1]).log_softmax(-1)
    picked = logp.gather(-1, ids[0, slots][None, :, None].expand(rows, -1, 1))[..., 0]
    return torch.zeros(rows, len(segments), device=model.device).index_add_(1, owner, picked).cpu()
