"""From final hidden states to logits: the head, a constant and a soft cap, or else the model's own way.

What a model does to its final states is not looked up by its name. The simple rule must give the model's
own logits on a few tokens, but for rounding; where it does not, the model's own forward runs over given
final states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.inner import LanguageModel

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel

#: Hidden states and entries of the vocabulary that are unembedded at once.
ROWS, TILE = 512, 4096
#: Logits that are held at once on a GPU.
ON_GPU = 2**26


class Unembedding:
    """A model's logits for given final hidden states, by a rule that is proven on the tokens `ids`.

    `width` is the number of logits of a token. Raises NotImplementedError where the model's logits are not
    one row for each token's final state.
    """

    def __init__(self, hf: LanguageModel, inner: torch.nn.Module, ids: Int[Tensor, "1 token"]):
        self.hf, self.inner = hf, inner
        self.head: Any = hf.get_output_embeddings() if hasattr(hf, "get_output_embeddings") else None
        self.cap: float | None = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
        self.scale = 1.0
        self.own = False
        logits, hidden = self._pass(ids)
        self.width = logits.shape[-1]
        if not logits.isfinite().all():
            return  # a check of its own says so
        if not self._simple(logits, hidden):
            self.own = True
            if not _same(self(hidden[:, 2:]), logits[:, 2:]):
                raise NotImplementedError("its logits are not made of each token's final hidden state alone")

    @torch.inference_mode()
    def _pass(
        self, ids: Int[Tensor, "1 token"]
    ) -> tuple[Float[Tensor, "1 token vocabulary"], Float[Tensor, "1 token d_model"]]:
        """The model's own logits, in float32, and the final hidden states that they are made of."""
        outputs: list[Any] = []
        handle = self.inner.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            logits = self.hf(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        if len(outputs) != 1 or not hasattr(outputs[0], "last_hidden_state"):
            raise NotImplementedError(
                "its decoder does not run once in a plain pass, from token ids to final hidden states"
            )
        self.output = type(outputs[0])
        hidden = outputs[0].last_hidden_state
        if logits.shape[:-1] != hidden.shape[:-1] or hidden.shape[:2] != ids.shape:
            raise NotImplementedError(
                f"it gives logits of shape {list(logits.shape)} for {ids.shape[1]} tokens, not a row for each"
            )
        alone = self.inner(input_ids=ids, use_cache=False).last_hidden_state
        difference = (alone - hidden).abs().max().item()
        rounding = 64 * torch.finfo(hidden.dtype).eps * hidden.abs().max().item()
        if not difference <= rounding and hidden.isfinite().all():
            raise NotImplementedError(
                "its language model gives other final states inside the whole than by itself"
            )
        return logits.float(), hidden

    def _simple(
        self, logits: Float[Tensor, "1 token vocabulary"], hidden: Float[Tensor, "1 token d_model"]
    ) -> bool:
        """Whether head, constant and soft cap give the model's logits; sets the constant."""
        shape = tuple(getattr(getattr(self.head, "weight", None), "shape", ()))
        if shape != (self.width, hidden.shape[-1]):
            return False
        with torch.inference_mode():
            bare = self.head(self._for_head(hidden)).float().to(logits.device)
            if self.cap:
                target = (logits / self.cap).atanh() * self.cap
                linear = logits.abs() < 0.9 * self.cap  # near the cap, atanh has no bits left
            else:
                target = logits
                linear = logits == logits
            fit = 1.0
            if bare[linear].any():
                fit = ((target * bare)[linear].sum() / (bare * bare)[linear].sum()).item()
            for scale in [1.0, *self._constants(fit)]:
                self.scale = scale
                if _same(self(hidden), logits, self.head.weight.dtype):
                    return True
        self.scale = 1.0
        return False

    def _constants(self, fit: float) -> list[float]:
        """The configuration's numbers, or one over them, that a fitted constant may be; the nearest first."""
        if not fit:
            return []
        values = self.hf.config.get_text_config().to_dict().values()
        numbers = [float(v) for v in values if isinstance(v, (int, float)) and v]
        near = {c for v in numbers for c in (v, 1 / v) if abs(c / fit - 1) < 0.01}
        return sorted(near, key=lambda c: abs(c - fit))

    def _for_head(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Final states on the head's device, in its dtype where a model keeps its stream in float32."""
        weight = self.head.weight
        plain_dtype = weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
        return hidden.to(weight) if plain_dtype else hidden.to(weight.device)

    @property
    def plain(self) -> bool:
        """Whether the head is a plain matrix, of which a part of the vocabulary can be computed."""
        return type(self.head) is torch.nn.Linear and not self.own

    def __call__(
        self, hidden: Float[Tensor, "*rows d_model"], tokens: slice = slice(None)
    ) -> Float[Tensor, "*rows vocabulary"]:
        """Logits in float32, of the part `tokens` of the vocabulary."""
        if self.own:
            return self._through(hidden)[..., tokens]
        hidden = self._for_head(hidden)
        if tokens == slice(None) or not self.plain:
            logits = self.head(hidden).float()[..., tokens]
        else:
            bias = None if self.head.bias is None else self.head.bias[tokens]
            logits = torch.nn.functional.linear(hidden, self.head.weight[tokens], bias).float()
        if self.scale != 1:
            logits = logits * self.scale
        return (logits / self.cap).tanh() * self.cap if self.cap else logits

    def _through(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocabulary"]:
        """The model's own forward, with these final states in place of its decoder's."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        before = self.inner.__dict__.get("forward")
        self.inner.forward = lambda *args, **kwargs: self.output(last_hidden_state=rows)
        try:
            ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
            logits = self.hf(input_ids=ids, use_cache=False).logits.float()
        finally:
            if before is None:
                del self.inner.forward
            else:
                self.inner.forward = before
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])  # of no state, too


def _same(
    logits: Float[Tensor, "*rows vocabulary"],
    own: Float[Tensor, "*rows vocabulary"],
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Are they the same but for a handful of roundings in `dtype`, of each number and of the largest?"""
    unit = torch.finfo(dtype).eps / 2
    bound = (
        8 * unit * own.abs()
        + 4 * unit * own.abs().amax(-1, keepdim=True) * (dtype != torch.float32)
        + 1e-6 * own.abs().max()
    )
    return bool(((logits - own).abs() <= bound).all())


def tiling(model: HookedModel) -> tuple[int, int]:
    """Hidden states and entries of the vocabulary to unembed at once.

    That is the whole vocabulary on a GPU, and where the head is no plain matrix.
    """
    width = model.unembedding.width
    if model.device.type == "cuda":  # few launches count for more than what fits a cache
        return max(1, ON_GPU // width), width
    return (ROWS, TILE) if model.unembedding.plain else (max(1, ROWS * TILE // width), width)


def log_probability(
    model: HookedModel,
    hidden: Float[Tensor, "row d_model"],
    row: Int[Tensor, " scored"],
    token: Int[Tensor, " scored"],
) -> Float[Tensor, " scored"]:
    """log p(token) after the final hidden state hidden[row] for each (row, token), in nats.

    The vocabulary is unembedded in tiles, so that no row of it is ever held in full.
    """
    step, tile = tiling(model)
    picked = torch.zeros(len(row), device=hidden.device)
    norms: list[Tensor] = []
    for first in range(0, len(hidden), step):
        part = hidden[first : first + step]
        in_part = (row >= first) & (row < first + step)
        own_row = (row - first).clamp(0, len(part) - 1)
        sums: list[Tensor] = []
        for start in range(0, model.unembedding.width, tile):
            logits = model.logits(part, slice(start, start + tile))
            in_tile = in_part & (token >= start) & (token < start + tile)
            value = logits[own_row, (token - start).clamp(0, logits.shape[-1] - 1)]
            # no list of indices, for which the CPU would wait
            picked = torch.where(in_tile, value, picked)
            sums.append(logits.logsumexp(-1))
        norms.append(torch.stack(sums).logsumexp(0))
    return picked - torch.cat(norms)[row]
