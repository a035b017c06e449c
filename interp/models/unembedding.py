"""From final hidden states to logits: the head, a constant and a soft cap where that is all, else the model's own way.

What a model does to its final states is not looked up by its name: the simple rule must give the model's own logits on a few
tokens, but for rounding; where it does not, the model's own forward is run over given final states.
"""

from __future__ import annotations

import torch


class Unembedding:
    """A model's logits for given final hidden states, found and proven on the tokens `ids` [1, token].

    `plain`: a head that is a plain matrix, of which a part of the vocabulary can be computed; `width`: of the vocabulary.
    Raises NotImplementedError where the model's logits are not one row for each token's final state.
    """

    def __init__(self, hf, inner, ids: torch.Tensor):
        self.hf, self.inner = hf, inner
        self.head = hf.get_output_embeddings() if hasattr(hf, "get_output_embeddings") else None
        self.cap, self.scale, self.own = (
            getattr(hf.config.get_text_config(), "final_logit_softcapping", None),
            1.0,
            False,
        )
        whole, hidden = self._pass(ids)
        self.width = whole.shape[-1]
        if not whole.isfinite().all():
            return  # which is said by a check of its own
        if not self._simple(whole, hidden):
            self.own = True
            if not _same(self(hidden[:, 2:]), whole[:, 2:]):
                raise NotImplementedError("its logits are not made of each token's final hidden state alone")

    @torch.inference_mode()
    def _pass(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's own logits, in float32, and the final hidden states that they are made of."""
        outputs: list = []
        handle = self.inner.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            whole = self.hf(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        if len(outputs) != 1 or not hasattr(outputs[0], "last_hidden_state"):
            raise NotImplementedError(
                "its decoder does not run once in a plain pass, from token ids to final hidden states"
            )
        self.output, hidden = type(outputs[0]), outputs[0].last_hidden_state
        if whole.shape[:-1] != hidden.shape[:-1] or hidden.shape[:2] != ids.shape:
            raise NotImplementedError(
                f"it gives logits of shape {list(whole.shape)} for {ids.shape[1]} tokens, not one row for each"
            )
        alone = self.inner(input_ids=ids, use_cache=False).last_hidden_state
        off = (alone - hidden).abs().max().item()
        if (
            not off <= 64 * torch.finfo(hidden.dtype).eps * hidden.abs().max().item()
            and hidden.isfinite().all()
        ):
            raise NotImplementedError(
                "its language model gives other final states inside the whole than by itself"
            )
        return whole.float(), hidden

    def _simple(self, whole: torch.Tensor, hidden: torch.Tensor) -> bool:
        """Whether the head, a constant and the configuration's soft cap give the model's logits; sets the constant."""
        shape = tuple(getattr(getattr(self.head, "weight", None), "shape", ()))
        if shape != (self.width, hidden.shape[-1]):
            return False
        with torch.inference_mode():
            bare, kept = self.head(self._for_head(hidden)).float().to(whole.device), self.cap
            target, linear = (
                (whole, whole == whole)
                if not kept
                else ((whole / kept).atanh() * kept, whole.abs() < 0.9 * kept)
            )
            fit = (
                ((target * bare)[linear].sum() / (bare * bare)[linear].sum()).item()
                if bare[linear].any()
                else 1.0
            )
            for scale in [1.0, *self._constants(fit)]:
                self.scale = scale
                if _same(self(hidden), whole, self.head.weight.dtype):
                    return True
        self.scale = 1.0
        return False

    def _constants(self, fit: float) -> list[float]:
        """Numbers of the configuration, or one over them, that a fitted constant may be."""
        numbers = [
            v
            for v in self.hf.config.get_text_config().to_dict().values()
            if isinstance(v, (int, float)) and v
        ]
        return (
            sorted(
                {c for v in numbers for c in (v, 1 / v) if abs(c / fit - 1) < 0.01},
                key=lambda c: abs(c - fit),
            )
            if fit
            else []
        )

    def _for_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final states as the head takes them: on its device, and of its dtype where a model keeps its stream in float32."""
        weight = self.head.weight
        return (
            hidden.to(weight)
            if weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
            else hidden.to(weight.device)
        )

    @property
    def plain(self) -> bool:
        return type(self.head) is torch.nn.Linear and not self.own

    def __call__(self, hidden: torch.Tensor, tokens: slice = slice(None)) -> torch.Tensor:
        """Logits [..., token of the vocabulary] in float32."""
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

    def _through(self, hidden: torch.Tensor) -> torch.Tensor:
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


def _same(logits: torch.Tensor, whole: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Are they the same but for a handful of roundings in `dtype`, of each number and of the largest?"""
    unit = torch.finfo(dtype).eps / 2
    bound = (
        8 * unit * whole.abs()
        + 4 * unit * whole.abs().amax(-1, keepdim=True) * (dtype != torch.float32)
        + 1e-6 * whole.abs().max()
    )
    return bool(((logits - whole).abs() <= bound).all())
