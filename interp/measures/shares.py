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
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from tqdm import tqdm

from interp.models.devices import graph_tokens, halved, sent
from interp.models.hooked import HookedModel, Layers, layers_of
from interp.models.hooks import patterns
from interp.models.turns import measured
from interp.models.whole import length_batches, padded
from interp.prompts.format import SPANS, Prompt
from interp.results.shown import Plotted, counted, labelled

if TYPE_CHECKING:
    import xarray

DEFINITIONS = ("attention", "gradient_value", "gradient_resid")
#: Over all tokens, or with the first position left out and the rest renormalised.
VERSIONS = ("all", "sink_free")
METRICS = ("share", "token_share", "ratio")
#: Most tokens of a batch on a CPU, whose cache holds what a pass back works on.
READ = 1024
#: Least share of a batch's largest n that any of its rows has.
ALIKE = 0.8
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


class _Rows:
    """Sequences as rows: what comes before the token that predicts the first of a row's last n, and the rest.

    Both are padded on the right: a row's keys are those of `before`, then those of its `tail`.

    Args:
        rows: ids of each, and its n.
    """

    def __init__(self, model: HookedModel, rows: Sequence[tuple[Sequence[int], int]]):
        starts = [len(ids) - n - 1 for ids, n in rows]
        self.before = padded([ids[:start] for (ids, _), start in zip(rows, starts)], model.device)
        self.tail = padded([ids[start:] for (ids, _), start in zip(rows, starts)], model.device)
        width, slots = self.before.shape[1], self.tail.shape[1]
        self.tokens = [np.r_[:start, width : width + n + 1] for start, (_, n) in zip(starts, rows)]
        """Of each row, which keys are those of its tokens."""
        n, start = torch.tensor([n for _, n in rows])[:, None], torch.tensor(starts)[:, None]
        # Padding stands where the row ends, since there may be no position beyond.
        at = start + torch.minimum(torch.arange(slots), n)
        sees = (torch.arange(width) < start)[:, None].expand(-1, slots, -1)
        own = torch.ones(slots, slots, dtype=torch.bool).tril().expand(len(rows), -1, -1)
        self.at, self.visible = sent(at, model.device), sent(torch.cat([sees, own], 2), model.device)
        self.predicts = sent(torch.arange(slots - 1) < n, model.device)
        """Which slots of the tails, but for the last, predict one of the last n."""

    def after(self, model: HookedModel, before: Layers) -> tuple[Float[Tensor, "row slot d_model"], Layers]:
        """Final hidden states, keys and values of the tails, after the keys and values of what is before."""
        keys_at = torch.arange(self.before.shape[1], device=model.device)[None]
        return model.packed(before, self.tail, self.at, self.visible, keys_at)


@dataclass(frozen=True)
class _Gradients:
    """A pass over rows and back."""

    before: Layers
    """Keys and values of the tokens before the one that predicts the first of the last n."""
    hidden: Float[Tensor, "row slot d_model"]
    """The final hidden states of the tails."""
    values: list[Float[Tensor, "row kv_head n key"]]
    """|dL_t/dv| in each layer, 0 beyond a row's n."""
    resid: Float[Tensor, "layer row key"]
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


def _gradients(model: HookedModel, rows: _Rows) -> _Gradients:
    """A pass over rows, and one back for the t-th of the last n tokens of all of them.

    What comes before the token that predicts the first of them acts through its keys and values alone, so of
    its last block nothing else runs. No row depends on another: of the sum of their losses each has the
    gradient of its own.
    """
    cache = model.new_cache()
    n = rows.predicts.shape[1]
    with torch.inference_mode(False), torch.enable_grad():
        row, slot = rows.predicts.nonzero(as_tuple=True)
        with _streams(model) as resid_before:
            model.fill(cache, rows.before)
        before = layers_of(cache)
        with _streams(model) as resid_tail:
            hidden, layers = rows.after(model, before)
        logp = model.logits(hidden[row, slot]).log_softmax(-1)
        loss = -logp.gather(1, rows.tail[row, slot + 1][:, None])[:, 0]
        values = [value for both in zip(before, layers) for _, value in both]
        streams = [each[layer] for layer in range(model.n_layers) for each in (resid_before, resid_tail)]
        by_token: list[list[Tensor]] = []
        total: list[Tensor] = []
        for t in range(n):  # one pass back for each token, since alpha differs from token to token
            of_token = (slot == t).to(loss.dtype)
            grads = torch.autograd.grad(loss, [*values, *streams], of_token, retain_graph=t + 1 < n)
            by_token.append(_norms(grads[: len(values)]))
            resid = [grad.float() for grad in grads[len(values) :]]
            total = [a + b for a, b in zip(total, resid)] if total else resid
    return _Gradients(
        [(k.detach(), v.detach()) for k, v in before],
        hidden.detach(),
        [torch.stack(each, 2) for each in zip(*by_token)],
        torch.stack([norms.to(model.device) for norms in _norms(total)]),
    )


def _norms(grads: Sequence[Float[Tensor, "row *head _ width"]]) -> list[Float[Tensor, "row *head key"]]:
    """Norms in each layer, of gradients at what comes before and at the tail, layer by layer."""
    norms = [grad.float().norm(dim=-1) for grad in grads]
    return [torch.cat(both, -1) for both in zip(norms[::2], norms[1::2])]


@torch.inference_mode()
def _mass(
    model: HookedModel, rows: _Rows, gradients: _Gradients
) -> tuple[Float[Tensor, "row slot d_model"], Float[Tensor, "definition layer row key"]]:
    """Final hidden states of the tails that attend eagerly, and what each key gets by each definition.

    Only these attend eagerly, so no square pattern is ever held.
    """
    by_layer: dict[int, Tensor] = {}
    share = rows.predicts / rows.predicts.sum(1, keepdim=True)

    def keep(layer: int, pattern: Float[Tensor, "row head slot key"]) -> None:
        alpha, gradient = pattern.float(), gradients.values[layer]
        # The last n tokens are one slot after what predicts them.
        attention = torch.einsum("rsk,rs->rk", alpha[:, :, 1:].mean(1), share.to(alpha.device))
        # Heads that read one and the same value lie side by side.
        grouped = alpha[:, :, :-1].unflatten(1, (gradient.shape[1], -1)).sum(2)
        by_layer[layer] = torch.stack([attention, (grouped * gradient).sum((1, 2))]).to(model.device)

    with patterns(model.hf, model.blocks, keep):
        hidden, _ = rows.after(model, gradients.before)
    both = torch.stack([by_layer[layer] for layer in range(model.n_layers)], 1)
    return hidden, torch.cat([both, gradients.resid[None]])


def _check_eager(
    model: HookedModel,
    rows: _Rows,
    eager: Float[Tensor, "row slot d_model"],
    plain: Float[Tensor, "row slot d_model"],
) -> None:
    """Raise NotImplementedError where the final states of a row's own tokens are others when it is eager."""

    def largest(states: Tensor) -> Float[Tensor, " row"]:
        return states[:, :-1].abs().amax(-1).masked_fill(~rows.predicts, 0).amax(1)

    off = (largest(eager - plain) / largest(plain)).max().item()
    if not off < (1e-3 if model.dtype == torch.float32 else 0.1):
        raise NotImplementedError(
            f"{model.architecture} is not supported: attending eagerly it computes something else than as "
            f"loaded (final states are off by {off:.2g} of their largest): the patterns would not be its own."
        )


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


def _masses(
    model: HookedModel, rows: Sequence[tuple[Sequence[int], int]]
) -> list[Float[np.ndarray, "definition layer _"]]:
    """What each token of each sequence gets from its last n by each definition, read as rows of one batch."""
    for ids, n in rows:
        model.check_length(len(ids))
        if len(ids) < n + 2:
            raise ValueError(
                f"A sequence of {len(ids)} tokens has none before that which predicts the first of its last "
                f"{n}."
            )
    with torch.inference_mode(False):
        batch = _Rows(model, rows)
    gradients = _gradients(model, batch)
    eager, mass = _mass(model, batch, gradients)
    _check_eager(model, batch, eager, gradients.hidden)
    whole = mass.cpu().numpy().astype(float)
    return [whole[:, :, r, tokens] for r, tokens in enumerate(batch.tokens)]


def _even(model: HookedModel, tokens: int, n: int) -> Float[np.ndarray, "definition layer token"]:
    """What each token of a sequence would get from uniform attention of its last n."""
    end = tokens
    even = [
        _uniform(_seen(model, end, range(end - n, end))),
        _uniform(_seen(model, end, range(end - n - 1, end - 1))),
        _reach(model, end, end - n - 1, end - 2).astype(float),
    ]
    return np.stack(even)


def token_mass(
    model: HookedModel, ids: Sequence[int], n: int
) -> tuple[Float[np.ndarray, "definition layer token"], Float[np.ndarray, "definition layer token"]]:
    """What each token of one sequence gets from its last `n` by each definition, and from uniform attention.

    Raises:
        ValueError: where less than two tokens come before them.
        NotImplementedError: where eager attention is not this model's.
    """
    (mass,) = _masses(model, [(ids, n)])
    return mass, _even(model, len(ids), n)


def _batches(model: HookedModel, rows: Sequence[tuple[Sequence[int], int]]) -> list[list[int]]:
    """Indices of rows of similar n and length: a batch goes back as often as its largest n says."""
    most, counts = graph_tokens(model), [n for _, n in rows]
    if model.device.type != "cuda":
        most = min(most, READ)
    return [
        [members[i] for i in batch]
        for members in length_batches(counts, max(counts) * len(counts), ALIKE)
        for batch in length_batches([len(rows[i][0]) for i in members], most)
    ]


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

    Decisions are read as rows of batches: in one pass over their sequences, one back for the t-th token of
    all their actions, and a short eager one.

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
    rows = [(ids, int((spans == "action").sum())) for ids, spans in sequences]
    found: dict[int, Float[np.ndarray, "definition layer token"]] = {}
    with tqdm(total=len(rows), desc="shares", leave=False, disable=not progress) as bar:
        for batch, masses in halved(
            _batches(model, rows), lambda batch: (batch, _masses(model, [rows[i] for i in batch]))
        ):
            found.update(zip(batch, masses))
            bar.update(len(batch))
    share = [by_span(found[i], spans) for i, (_, spans) in enumerate(sequences)]
    token_share = [by_span(_even(model, len(ids), n), spans) for (ids, n), (_, spans) in zip(rows, sequences)]
    hashes = tuple(p.hash for p in prompts)
    return Shares(np.stack(share, 2), np.stack(token_share, 2), hashes, model.weights_hash, str(model.dtype))
