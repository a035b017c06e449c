"""Logit lens: what the residual stream says next after each layer, read by the model's last norm and head.

It needs no training. Unlike a probe it shows what is written in the directions that the head reads, so a
layer where it says nothing may know the answer all the same.

>>> result = lens(model, "You take the mug 1. Next I put the", answers=[" mug", " pen"])
>>> result.logp.shape                                   # [token, layer, answer], in nats
>>> lens(model, prompts, at="action_tag", answers=["go to shelf 1", "take mug 1 from shelf 1"])

nostalgebraist 2020 (Interpreting GPT: the logit lens); Belrose et al. 2023 (2303.08112) for what it misses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from interp.engine.capturing import capture
from interp.engine.positions import At, Trace
from interp.measures.pairs import answer_tokens
from interp.models.hooked import HookedModel
from interp.models.hooks import only
from interp.models.turns import measured
from interp.prompts.text import AnyPrompt, Readable, decoded, read_texts
from interp.results.shown import Plotted, counted

#: Rows that are unembedded at once.
ROWS = 256


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Plotted):
    """What each layer's residual stream says next at each token that was read.

    `layers` begins with -1, the embedding (`resid_pre` of layer 0).
    """

    picture: ClassVar[str] = "lens"
    layers: tuple[int, ...]
    decision: Int[np.ndarray, "token"]
    """Of each row."""
    position: Int[np.ndarray, "token"]
    tokens: Int[np.ndarray, "token layer top"]
    """The likeliest next tokens' ids."""
    texts: tuple[str, ...]
    """The text of each id in `tokens`, flat."""
    probability: Float[np.ndarray, "token layer top"]
    answers: tuple[tuple[str, ...], ...]
    """The first token of each answer, as text, for each prompt."""
    logp: Float[np.ndarray, "token layer answer"]
    """log p of each answer's first token, in nats."""
    rank: Int[np.ndarray, "token layer answer"]
    """How many tokens are likelier."""

    def summary(self) -> str:
        tokens, layers, top = self.tokens.shape
        shape = f"{counted(tokens, 'token')}, {counted(layers, 'layer')}, top {top}"
        return f"{shape}, {counted(self.logp.shape[-1], 'answer')}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each token, layer, and likeliest next token (`read` is `top`) or followed one (`answer`).

        `text` is that token, `rank` how many are likelier, `probability` its own.
        """
        texts = np.array(self.texts, dtype=object).reshape(self.tokens.shape)
        top = np.broadcast_to(np.arange(self.tokens.shape[-1]), self.tokens.shape)
        answers = np.array(self.answers, dtype=object).reshape(len(self.answers), -1)[self.decision]
        followed = np.broadcast_to(answers[:, None], self.logp.shape)
        read = dict(top=(texts, top, self.probability), answer=(followed, self.rank, np.exp(self.logp)))
        return pd.concat([self._rows(name, *each) for name, each in read.items()], ignore_index=True)

    def _rows(
        self,
        read: str,
        texts: Shaped[np.ndarray, "token layer each"],
        rank: Int[np.ndarray, "token layer each"],
        probability: Float[np.ndarray, "token layer each"],
    ) -> pd.DataFrame:
        token, layer, _ = np.indices(texts.shape).reshape(3, -1)
        places = dict(decision=self.decision[token], position=self.position[token])
        places["layer"] = np.array(self.layers)[layer]
        values = dict(text=texts.ravel(), rank=rank.ravel(), probability=probability.ravel())
        return pd.DataFrame({**places, "read": read, **values})


@torch.inference_mode()
def final_states(model: HookedModel, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What the decoder makes of a residual stream after its last block: its last norm, as it applies it."""
    last = model.n_layers - 1
    rows = stream.to(model.device, model.dtype)[None]
    ids = torch.zeros(1, len(stream), dtype=torch.long, device=model.device)
    edits = {("resid_post", last): lambda tensor: rows.to(tensor)}
    with only(model.blocks, model.n_layers, model.n_layers, model.layout), model.hooks(edits):
        return model.whole(ids)[0]


@measured
@torch.inference_mode()
def lens(
    model: HookedModel,
    prompts: Readable | Iterable[Readable],
    at: At = "boundary",
    *,
    answers: Sequence[str | int] | Sequence[Sequence[str | int]] = (),
    traces: Sequence[Trace] | None = None,
    top: int = 5,
    progress: bool = False,
) -> Lens:
    """Read the residual stream before the first layer and after every one through the last norm and the head.

    Args:
        prompts: prompts of a format, texts, or lists of token ids.
        at, traces: the tokens that are read, as in `interp.capture`.
        answers: texts or token ids for all prompts, or as many for each prompt; the first token of each is
            followed. An action of a decision is taken as it stands after the opened tag.
        top: likeliest tokens of each layer.

    Raises:
        ValueError: for what `interp.capture` refuses, answers that begin with the same token, and less than
            one token.
        NotImplementedError: the model has no residual stream of one width after each layer.
    """
    given = read_texts(model.tokenizer, prompts)
    if not 1 <= top <= model.vocabulary:
        raise ValueError(f"The lens shows 1 to {model.vocabulary} tokens of each layer, not {top}.")
    followed = _followed(model, given, answers)
    post = capture(model, given, ["resid_post"], at, traces=traces, progress=progress)
    pre = capture(model, given, ["resid_pre"], at, traces=traces, layers=[0], progress=progress)
    stream = torch.cat([pre.values[:, 0], post.values[:, 0]], 1)
    index = torch.tensor([followed[i] for i in post.decisions], dtype=torch.long)
    ids, probability, logp, rank = read_stream(model, stream, index, top)
    return Lens(
        (-1, *post.layers),
        post.decisions,
        np.array(post.positions),
        ids,
        decoded(model.tokenizer, ids.flatten().tolist()),
        probability,
        tuple(decoded(model.tokenizer, own) for own in followed),
        logp,
        rank,
    )


@measured
@torch.inference_mode()
def read_stream(
    model: HookedModel,
    stream: Float[Tensor, "token layer d_model"],
    followed: Int[Tensor, "token answer"],
    top: int = 1,
) -> tuple[
    Int[np.ndarray, "token layer top"],
    Float[np.ndarray, "token layer top"],
    Float[np.ndarray, "token layer answer"],
    Int[np.ndarray, "token layer answer"],
]:
    """The lens on residual streams that were captured, each with tokens that are followed.

    That is the likeliest tokens and their probabilities, the log-probability of each followed token in nats,
    and how many are likelier.
    """
    rows, index = stream.flatten(0, 1), followed.repeat_interleave(stream.shape[1], 0).to(model.device)
    tokens, probability, logp, rank = [], [], [], []
    for start in range(0, len(rows), ROWS):
        scores = model.logits(final_states(model, rows[start : start + ROWS])).float().log_softmax(-1)
        likeliest = scores.topk(top, dim=-1)
        own = scores.gather(1, index[start : start + ROWS])
        tokens.append(likeliest.indices.cpu())
        probability.append(likeliest.values.exp().cpu())
        logp.append(own.cpu())
        likelier = [(scores > one[:, None]).sum(1) for one in own.T]
        rank.append(torch.stack(likelier, 1).cpu() if likelier else own.long().cpu())
    ids, likely, own_logp, own_rank = (
        torch.cat(each).unflatten(0, stream.shape[:2]).numpy() for each in (tokens, probability, logp, rank)
    )
    return ids, likely, own_logp, own_rank


def _followed(
    model: HookedModel,
    prompts: Sequence[AnyPrompt],
    answers: Sequence[str | int] | Sequence[Sequence[str | int]],
) -> list[list[int]]:
    """The first token of each answer, for each prompt."""
    alike = all(isinstance(answer, (str, int)) for answer in answers)
    each: list[Any] = [answers] * len(prompts) if alike else list(answers)
    if len(each) != len(prompts) or len({len(own) for own in each}) > 1:
        raise ValueError(
            f"answers= takes texts or token ids, or a list of as many for each of the {len(prompts)} prompts."
        )
    followed = [
        [answer_tokens(model.tokenizer, prompt, answer)[0] for answer in own]
        for prompt, own in zip(prompts, each)
    ]
    for own, tokens in zip(each, followed):
        if len({*tokens}) < len(tokens):
            raise ValueError(
                f"The answers {', '.join(map(repr, own))} do not all begin with a token of their own, so the "
                "lens cannot tell them apart."
            )
    return followed
