"""Attention and gradient shares: which spans the action's tokens attend to, and on which its loss depends.

A share means nothing without the span's share of the tokens, so each comes with it. The first position draws
attention whatever it says, so each comes once more without that position.

>>> result = shares(model, prompts)
>>> result.of("attention", metric="ratio").mean(1)      # [decision, span]: attention per token, uniform = 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm import tqdm

from interp.models.devices import sent
from interp.models.hooked import HookedModel, Layers, layers_of
from interp.models.hooks import patterns
from interp.models.turns import measured
from interp.prompts.format import SPANS, Prompt
from interp.results.shown import Plotted, counted, labelled

if TYPE_CHECKING:
    import xarray

DEFINITIONS = ("attention", "gradient_value", "gradient_resid")
#: Over all tokens, or with the first position left out and the rest renormalised.
VERSIONS = ("all", "sink_free")
METRICS = ("share", "token_share", "ratio")
#: A text; ids as decoded up to the opened action; None for the action tag right at the boundary.
Trace = str | Sequence[int] | None


@dataclass(frozen=True, eq=False, repr=False)
class Shares(Plotted):
    """Shares of each span, and its shares of the tokens.

    Definitions, for action tokens t, heads h and context tokens i, with L_t = -log p(token t) in nats and
    each layer's shares summing to 1 over SPANS:

    - `attention`: attention mass from the action's tokens, mean over tokens and heads.
    - `gradient_value`: sum over t and h of |alpha_{t,i} * dL_t/dv_i|_2, where alpha is the attention of the
      position that predicts token t (one before it: L_t depends on no later one) and v_i the value that head
      h reads, which grouped heads share; the derivative is the total one, through every path.
    - `gradient_resid`: |dL_action/d resid_pre_i|_2, where L_action is the sum of L_t.

    `token_share` is what uniform attention would give: the span's share of the tokens that the same positions
    can see (in
    a sliding layer those less than a window away), mean over positions; for `gradient_resid` its share of the
    tokens that can reach L_action at all. Shares are NaN where there is nothing to share out: an action so
    certain that every gradient is 0.
    """

    picture: ClassVar[str] = "shares"
    share: Float[np.ndarray, "definition version decision layer span"]
    token_share: Float[np.ndarray, "definition version decision layer span"]
    prompts: tuple[str, ...]
    """The prompts' hashes."""
    weights_hash: str
    dtype: str

    def of(
        self, definition: str, version: str = "all", metric: str = "share"
    ) -> Float[np.ndarray, "decision layer span"]:
        """One definition and version: `share`, `token_share`, or `ratio` (NaN for spans without tokens).

        Raises:
            ValueError: for an unknown name.
        """
        choices = {"definition": DEFINITIONS, "version": VERSIONS, "metric": METRICS}
        for (kind, names), name in zip(choices.items(), (definition, version, metric)):
            if name not in names:
                raise ValueError(f"There is no {kind} {name!r}: give one of {', '.join(names)}.")
        index = DEFINITIONS.index(definition), VERSIONS.index(version)
        share, tokens = self.share[index], self.token_share[index]
        if metric == "ratio":
            return _ratio(share, tokens)
        return share if metric == "share" else tokens

    def summary(self) -> str:
        _, _, decisions, layers, spans = self.share.shape
        shape = [counted(decisions, "decision"), counted(layers, "layer"), counted(spans, "span")]
        return f"{', '.join(shape)}; {', '.join(DEFINITIONS)}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each definition, version, decision, layer and span: `share`, `token_share`, `ratio`."""
        names = ("definition", "version", "decision", "layer", "span")
        columns = dict(zip(names, np.indices(self.share.shape).reshape(len(names), -1)))
        for name, texts in zip(("definition", "version", "span"), (DEFINITIONS, VERSIONS, SPANS)):
            columns[name] = np.array(texts, dtype=object)[columns[name]]
        share, tokens = self.share.ravel(), self.token_share.ravel()
        numbers = dict(share=share, token_share=tokens, ratio=_ratio(share, tokens))
        return pd.DataFrame({**columns, **numbers})

    def to_xarray(self) -> xarray.Dataset:
        """The shares over the named axes definition, version, decision, layer, span.

        Raises:
            ImportError: xarray is not installed.
        """
        axes = ("definition", "version", "decision", "layer", "span")
        variables = dict(share=(axes, self.share), token_share=(axes, self.token_share))
        coordinates: dict = dict(definition=list(DEFINITIONS), version=list(VERSIONS), span=list(SPANS))
        coordinates["prompt"] = ("decision", list(self.prompts))
        return labelled(variables, coordinates, dict(weights_hash=self.weights_hash, dtype=self.dtype))


def _ratio(
    share: Float[np.ndarray, "*cell"], tokens: Float[np.ndarray, "*cell"]
) -> Float[np.ndarray, "*cell"]:
    return np.divide(share, tokens, out=np.full_like(share, np.nan), where=tokens > 0)


def sequence(prompt: Prompt, trace: Trace, action: str) -> tuple[list[int], Shaped[np.ndarray, "token"]]:
    """Ids of a prompt with a trace and an action after it, and the span of each token.

    The span `cot` holds the trace's tags too, `action` what closes it.

    Raises:
        ValueError: for no action, or a trace whose ids do not end with the opened action tag.
    """
    fmt, tag = prompt.format, prompt.format.style.open_action.strip()
    if not action:
        raise ValueError(
            f"Decision {prompt.decision.id} has no action, so nothing reads its spans: "
            "give it one, or leave it out."
        )
    tail = fmt.action_prefix(trace)
    if not fmt.text(tail).rstrip().endswith(tag):
        raise ValueError(
            f"The trace of decision {prompt.decision.id} does not end with {tag!r}: give a text, or the ids "
            "up to the opened action (PromptFormat.decoded_prefix)."
        )
    opened = next(n for n in range(1, len(tail) + 1) if tag in fmt.text(tail[-n:]))
    acted = fmt.action_ids(action)
    cot, action_tag = ["cot"] * (len(tail) - opened), ["action_tag"] * opened
    spans = [*prompt.spans, *cot, *action_tag, *["action"] * len(acted)]
    return [*prompt.ids, *tail, *acted], np.array(spans)


@dataclass(frozen=True)
class _Gradients:
    """A pass over one sequence and back."""

    before: Layers
    """Keys and values of the tokens before the one that predicts the first of the last n."""
    hidden: Float[Tensor, "n d_model"]
    """The final hidden states that predict the last n tokens."""
    values: list[Float[Tensor, "n kv_head token"]]
    """|dL_t/dv| in each layer."""
    resid: Float[np.ndarray, "layer token"]
    """|dL_action/d resid_pre|."""


@contextmanager
def _streams(model: HookedModel) -> Iterator[dict[int, Tensor]]:
    """What enters each block in one pass, which a graph begins with: the weights want no gradient."""
    resid: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], Tensor | None]:
        def hook(tensor: Tensor) -> Tensor | None:
            resid[layer] = tensor if layer else tensor.detach().requires_grad_()
            return None if layer else resid[layer]

        return hook

    with model.hooks({("resid_pre", layer): keep(layer) for layer in range(model.n_layers)}):
        yield resid


def _after(
    model: HookedModel, before: Layers, tail: Int[Tensor, " row"], start: int
) -> tuple[Float[Tensor, "row d_model"], Layers]:
    """Final hidden states, keys and values of the last tokens of a sequence, the first of them at `start`."""
    at = torch.arange(start, start + len(tail), device=model.device)
    keys_at = torch.arange(start, device=model.device)
    visible = torch.cat([keys_at, at])[None] <= at[:, None]
    hidden, layers = model.packed(before, tail[None], at[None], visible[None], keys_at[None])
    return hidden[0], layers


def _gradients(model: HookedModel, ids: Int[Tensor, " token"], n: int) -> _Gradients:
    """A pass over one sequence, and one back for each of its last `n` tokens.

    What comes before the token that predicts the first of them acts through its keys and values alone, so of
    its last block nothing else runs.
    """
    start, cache = len(ids) - n - 1, model.new_cache()
    with torch.inference_mode(False), torch.enable_grad():
        with _streams(model) as resid_before:
            model.fill(cache, ids[None, :start])
        before = layers_of(cache)
        with _streams(model) as resid_tail:
            hidden, layers = _after(model, before, ids[start:], start)
        loss = -model.logits(hidden[:-1]).log_softmax(-1).gather(1, ids[-n:, None])[:, 0]
        inputs = [
            *(values for both in zip(before, layers) for _, values in both),
            *(resid[layer] for layer in range(model.n_layers) for resid in (resid_before, resid_tail)),
        ]
        norms: list[list[Tensor]] = [[] for _ in layers]
        total: list[Tensor] = []
        for t in range(n):  # one pass back for each token, since alpha differs from token to token
            grads = torch.autograd.grad(loss[t], inputs, retain_graph=t + 1 < n)
            whole = [torch.cat(pair, -2)[0].float() for pair in zip(grads[::2], grads[1::2])]
            for own, grad in zip(norms, whole):
                own.append(grad.norm(dim=-1))
            resid = whole[len(norms) :]
            total = [a + b for a, b in zip(total, resid)] if total else resid
    return _Gradients(
        [(k.detach(), v.detach()) for k, v in before],
        hidden[:-1].detach(),
        [torch.stack(each) for each in norms],
        np.stack([grad.norm(dim=-1).cpu().numpy() for grad in total]),
    )


@torch.inference_mode()
def _patterns(
    model: HookedModel, before: Layers, tail: Int[Tensor, " row"], start: int
) -> tuple[Float[Tensor, "row d_model"], list[Float[Tensor, "head row token"]]]:
    """Final hidden states and each layer's attention pattern of a sequence's last tokens.

    Only these attend eagerly, so no square pattern is ever held. Arguments as `_after` has them.
    """
    by_layer: dict[int, Tensor] = {}
    with patterns(model.hf, model.blocks, lambda layer, each: by_layer.__setitem__(layer, each[0].float())):
        hidden, _ = _after(model, before, tail, start)
    return hidden, [by_layer[layer] for layer in range(len(before))]


def _seen(model: HookedModel, tokens: int, rows: range) -> Bool[np.ndarray, "layer row token"]:
    """Which tokens each position can see."""
    at, keys_at = np.array(rows)[:, None], np.arange(tokens)
    causal = keys_at <= at
    masks = {}
    if model.window:
        masks["sliding_attention"] = causal & (at - keys_at < model.window)
        masks["chunked_attention"] = causal & (at // model.window == keys_at // model.window)
    return np.stack([masks.get(kind, causal) for kind in model.layer_types])


def _reach(model: HookedModel, tokens: int, first: int, last: int) -> Bool[np.ndarray, "layer token"]:
    """Where in the residual stream before each layer the final states at `first` to `last` can be reached."""
    reached = np.zeros((model.n_layers, tokens), dtype=bool)
    for layer in reversed(range(model.n_layers)):
        kind, window = model.layer_types[layer], model.window or tokens
        if kind == "sliding_attention":
            first = max(0, first - window + 1)
        elif kind == "chunked_attention":
            first = first // window * window
        else:
            first = 0
        reached[layer, first : last + 1] = True
    return reached


def _uniform(seen: Bool[np.ndarray, "layer row token"]) -> Float[np.ndarray, "layer token"]:
    return (seen / seen.sum(-1, keepdims=True)).mean(1)


def token_mass(
    model: HookedModel, ids: Sequence[int], n: int
) -> tuple[Float[np.ndarray, "definition layer token"], Float[np.ndarray, "definition layer token"]]:
    """What each token of one sequence gets from its last `n` by each definition, and from uniform attention.

    Raises:
        ValueError: where less than two tokens come before them.
        NotImplementedError: where eager attention is not this model's.
    """
    model.check_length(len(ids))
    if len(ids) < n + 2:
        raise ValueError(
            f"A sequence of {len(ids)} tokens has none before that which predicts the first of its last {n}."
        )
    with torch.inference_mode(False):
        whole = sent(torch.tensor(list(ids)), model.device)
    gradients = _gradients(model, whole, n)
    hidden, start = gradients.hidden, len(ids) - n - 1
    eager, by_layer = _patterns(model, gradients.before, whole[start:], start)
    off = (eager[:-1] - hidden).abs().max().item() / hidden.abs().max().item()
    if not off < (1e-3 if model.dtype == torch.float32 else 0.1):
        raise NotImplementedError(
            f"{model.architecture} is not supported: attending eagerly it computes something else than as "
            f"loaded (final states are off by {off:.2g} of their largest): the patterns would not be its own."
        )
    attention, value = [], []
    for alpha, gradient in zip(by_layer, gradients.values):
        attention.append(alpha[:, 1:].mean((0, 1)).cpu().numpy())
        group = alpha.shape[0] // gradient.shape[1]  # heads that read one and the same value
        weighted = alpha[:, :-1].transpose(0, 1) * gradient.repeat_interleave(group, 1)
        value.append(weighted.sum((0, 1)).cpu().numpy())
    end = len(ids)
    even = [
        _uniform(_seen(model, end, range(end - n, end))),
        _uniform(_seen(model, end, range(end - n - 1, end - 1))),
        _reach(model, end, end - n - 1, end - 2).astype(float),
    ]
    return np.stack([np.stack(attention), np.stack(value), gradients.resid]).astype(float), np.stack(even)


def by_span(
    mass: Float[np.ndarray, "definition layer token"], spans: Shaped[np.ndarray, "token"]
) -> Float[np.ndarray, "definition version layer span"]:
    """Each span's share of a mass over tokens, with and without the first position."""
    member = (spans[:, None] == np.array(SPANS)).astype(float)
    versions = []
    with np.errstate(invalid="ignore"):
        for first in range(len(VERSIONS)):
            kept = mass[..., first:]
            versions.append(kept @ member[first:] / kept.sum(-1, keepdims=True))
    return np.stack(versions, 1)


@measured
def shares(
    model: HookedModel,
    prompts: Sequence[Prompt],
    traces: Sequence[Trace] | None = None,
    actions: Sequence[str] | None = None,
    progress: bool = False,
) -> Shares:
    """Attention and gradient shares of every span, at each decision, after its trace and for its action.

    It takes one pass over the sequence, one back for each action token, and a short eager one.

    Args:
        traces: one for each prompt; the decisions' reference traces where None.
        actions: the reference actions where None.

    Raises:
        ValueError: for an empty list, lists of other lengths, and as `sequence` does.
        NotImplementedError: naming the architecture, where the patterns would not be exact.
    """
    if not prompts:
        raise ValueError("There are no shares to compute: the list of prompts is empty.")
    traces = [p.decision.trace for p in prompts] if traces is None else traces
    actions = [p.decision.reference for p in prompts] if actions is None else actions
    for name, each in (("traces", traces), ("actions", actions)):
        if len(each) != len(prompts):
            raise ValueError(f"There are {len(prompts)} prompts but {len(each)} {name}: give one for each.")
    if model.support.mediation != "fast":
        raise NotImplementedError(
            f"{model.architecture} is not supported for shares: {model.support.reason}."
        )
    sequences = [sequence(*each) for each in zip(prompts, traces, actions)]
    longest = max(len(ids) for ids, _ in sequences)
    model.check_length(longest)
    if path := model.path(longest):
        raise NotImplementedError(
            f"{model.architecture} is not supported for shares: {path.removeprefix('plain loop: ')}."
        )
    share, token_share = [], []
    for ids, spans in tqdm(sequences, desc="shares", leave=False, disable=not progress):
        mass, even = token_mass(model, ids, int((spans == "action").sum()))
        share.append(by_span(mass, spans))
        token_share.append(by_span(even, spans))
    hashes = tuple(p.hash for p in prompts)
    return Shares(np.stack(share, 2), np.stack(token_share, 2), hashes, model.weights_hash, str(model.dtype))
