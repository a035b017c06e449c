"""Attention and gradient shares: which spans the action's tokens attend to, and on which its loss depends.

A share means nothing without the span's share of the tokens, so each comes with it; and since the first position draws attention
whatever it says, each comes once more without that position.

>>> found = shares(model, prompts)
>>> found.of("attention", metric="ratio").mean(1)              # [decision, span]: attention per token, 1 where it is uniform
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from interp.models.hooked import layers_of
from interp.models.hooks import patterns
from interp.models.turns import measured
from interp.prompts.format import SPANS, Prompt

DEFINITIONS = ("attention", "gradient_value", "gradient_resid")
#: Over all tokens, or with the first position left out and the rest renormalised.
VERSIONS = ("all", "sink_free")
METRICS = ("share", "token_share", "ratio")


@dataclass(frozen=True)
class Shares:
    """Shares of each span, and its shares of the tokens: both Float[ndarray, "definition version decision layer span"].

    Definitions, for action tokens t, heads h and context tokens i, with L_t = -log p(token t) in nats and each layer's shares
    summing to 1 over SPANS:

    - `attention`: attention mass from the action's tokens, mean over tokens and heads.
    - `gradient_value`: sum over t and h of |alpha_{t,i} * dL_t/dv_i|_2, where alpha is the attention of the position that predicts
      token t (one before it: L_t depends on no later one) and v_i the value that head h reads, which grouped heads share; the
      derivative is the total one, through every path.
    - `gradient_resid`: |dL_action/d resid_pre_i|_2, where L_action is the sum of L_t.

    `token_share` is what a uniform reader would give: the span's share of the tokens that the same positions can see (in a
    sliding layer those less than a window away), mean over positions; for `gradient_resid` its share of the tokens that can reach
    L_action at all. Shares are NaN where there is nothing to share out: an action so certain that every gradient is 0.
    `prompts` are the prompts' hashes.
    """

    share: np.ndarray
    token_share: np.ndarray
    prompts: tuple[str, ...]
    weights_hash: str
    dtype: str

    def of(
        self, definition: str, version: str = "all", metric: str = "share"
    ) -> Float[np.ndarray, "decision layer span"]:
        """One definition and version: `share`, `token_share`, or `ratio` of the two (NaN for spans without tokens).

        Raises ValueError for a name that is not known.
        """
        for kind, name, known in (
            ("definition", definition, DEFINITIONS),
            ("version", version, VERSIONS),
            ("metric", metric, METRICS),
        ):
            if name not in known:
                raise ValueError(f"There is no {kind} {name!r}: give one of {', '.join(known)}.")
        share, tokens = (
            a[DEFINITIONS.index(definition), VERSIONS.index(version)] for a in (self.share, self.token_share)
        )
        if metric == "ratio":
            return np.divide(share, tokens, out=np.full_like(share, np.nan), where=tokens > 0)
        return share if metric == "share" else tokens


def sequence(prompt: Prompt, trace: str | Sequence[int] | None, action: str) -> tuple[list[int], np.ndarray]:
    """Ids of a prompt with a trace and an action after it, and the span of each token.

    trace: as in `PromptFormat.action_prefix`. The span `cot` holds the trace's tags too, `action` what closes it.
    Raises ValueError for no action, or a trace whose ids do not end with the opened action tag.
    """
    fmt, tag = prompt.format, prompt.format.style.open_action.strip()
    if not action:
        raise ValueError(
            f"Decision {prompt.decision.id} has no action, so nothing reads its spans: give it one, or leave it out."
        )
    tail = fmt.action_prefix(trace)
    if not fmt.text(tail).rstrip().endswith(tag):
        raise ValueError(
            f"The trace of decision {prompt.decision.id} does not end with {tag!r}: give a text, or the ids up to the opened "
            "action (PromptFormat.decoded_prefix)."
        )
    opened = next(n for n in range(1, len(tail) + 1) if tag in fmt.text(tail[-n:]))
    said = fmt.action_ids(action)
    spans = [
        *prompt.spans,
        *["cot"] * (len(tail) - opened),
        *["action_tag"] * opened,
        *["action"] * len(said),
    ]
    return [*prompt.ids, *tail, *said], np.array(spans)


def _gradients(model, ids: Sequence[int], n: int):
    """A pass over one sequence and back, for the last `n` of its tokens.

    Returns the keys and values of each layer, the final hidden states [n, d_model] that predict the tokens, |dL_t/dv| for each
    layer [t, kv_head, token], and |dL_action/d resid_pre| [layer, token].
    """
    cache, resid = model.new_cache(), [None] * model.n_layers

    def keep(layer):
        def hook(tensor):
            resid[layer] = (
                tensor if layer else tensor.detach().requires_grad_()
            )  # the weights want no gradient: the graph starts here
            return None if layer else resid[layer]

        return hook

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        model.hooks({("resid_pre", i): keep(i) for i in range(model.n_layers)}),
    ):
        whole = torch.tensor([ids], device=model.device)
        hidden = model.inner(input_ids=whole, past_key_values=cache, use_cache=True).last_hidden_state[
            0, -n - 1 : -1
        ]
        loss = -model.logits(hidden).log_softmax(-1).gather(1, whole[0, -n:, None])[:, 0]
        layers = layers_of(cache)
        values, total = [[] for _ in layers], [0] * len(layers)
        for t in range(n):  # one pass back for each token, since alpha differs from token to token
            found = torch.autograd.grad(loss[t], [*(v for _, v in layers), *resid], retain_graph=t + 1 < n)
            for layer in range(model.n_layers):
                values[layer].append(found[layer][0].float().norm(dim=-1))
                total[layer] = total[layer] + found[model.n_layers + layer][0].float()
    return (
        [tuple(t.detach() for t in layer) for layer in layers],
        hidden.detach(),
        [torch.stack(v) for v in values],
        np.stack([g.norm(dim=-1).cpu().numpy() for g in total]),
    )


@torch.inference_mode()
def _patterns(model, layers, ids: Sequence[int], rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Final hidden states [row, d_model] and attention patterns, each layer [head, row, token], of a sequence's last `rows` positions.

    layers: keys and values of the whole sequence. Only the rows attend eagerly, so no square pattern is ever held.
    """
    start, found = len(ids) - rows, [None] * len(layers)
    tail, at = (torch.tensor(list(x), device=model.device) for x in (ids[start:], range(start, len(ids))))
    keys_at = torch.arange(start, device=model.device)
    visible = torch.cat([keys_at, at])[None] <= at[:, None]
    with patterns(
        model.hf, model.blocks, lambda layer, pattern: found.__setitem__(layer, pattern[0].float())
    ):
        hidden, _ = model.packed(
            [tuple(t[:, :, :start] for t in layer) for layer in layers], tail, at, visible, keys_at
        )
    return hidden[0], found


def _seen(model, tokens: int, rows: range) -> Bool[np.ndarray, "layer row token"]:
    """Which tokens each position can see."""
    at, keys_at = np.array(rows)[:, None], np.arange(tokens)
    causal = keys_at <= at
    near = {
        "sliding_attention": lambda: at - keys_at < model.window,
        "chunked_attention": lambda: at // model.window == keys_at // model.window,
    }
    return np.stack([causal & near[kind]() if kind in near else causal for kind in model.layer_types])


def _reach(model, tokens: int, first: int, last: int) -> Bool[np.ndarray, "layer token"]:
    """From where in the residual stream before each layer the final states at `first` to `last` can be reached."""
    found = np.zeros((model.n_layers, tokens), dtype=bool)
    for layer in reversed(range(model.n_layers)):
        kind = model.layer_types[layer]
        first = (
            max(0, first - model.window + 1)
            if kind == "sliding_attention"
            else first // model.window * model.window
            if kind == "chunked_attention"
            else 0
        )
        found[layer, first : last + 1] = True
    return found


def _uniform(seen: Bool[np.ndarray, "layer row token"]) -> Float[np.ndarray, "layer token"]:
    return (seen / seen.sum(-1, keepdims=True)).mean(1)


def token_mass(model, ids: Sequence[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """What each token of one sequence gets from its last `n` by each definition, and would get from a uniform reader.

    Both Float[ndarray, "definition layer token"]. Raises NotImplementedError where eager attention is not this model's.
    """
    model.check_length(len(ids))
    layers, hidden, values, resid = _gradients(model, ids, n)
    eager, patterns_of = _patterns(model, layers, ids, n + 1)
    off = (eager[:-1] - hidden).abs().max().item() / hidden.abs().max().item()
    if not off < (1e-3 if model.dtype == torch.float32 else 0.1):
        raise NotImplementedError(
            f"{model.architecture} is not supported: attending eagerly it computes something else than as loaded "
            f"(final states are off by {off:.2g} of their largest), so the patterns would not be its own."
        )
    attention, value = [], []
    for alpha, gradient in zip(patterns_of, values):
        attention.append(alpha[:, 1:].mean((0, 1)))
        group = alpha.shape[0] // gradient.shape[1]  # heads that read one and the same value
        value.append((alpha[:, :-1].transpose(0, 1) * gradient.repeat_interleave(group, 1)).sum((0, 1)))
    attention, value = (torch.stack([m.cpu() for m in masses]).numpy() for masses in (attention, value))
    end = len(ids)
    even = [
        _uniform(_seen(model, end, range(end - n, end))),
        _uniform(_seen(model, end, range(end - n - 1, end - 1))),
        _reach(model, end, end - n - 1, end - 2).astype(float),
    ]
    return np.stack([attention, value, resid]).astype(float), np.stack(even)


def by_span(
    mass: Float[np.ndarray, "definition layer token"], spans: np.ndarray
) -> Float[np.ndarray, "definition version layer span"]:
    """Each span's share of a mass over tokens, with and without the first position."""
    member = (spans[:, None] == np.array(SPANS)).astype(float)
    with np.errstate(invalid="ignore"):
        return np.stack(
            [
                mass[..., first:] @ member[first:] / mass[..., first:].sum(-1, keepdims=True)
                for first in range(len(VERSIONS))
            ],
            1,
        )


@measured
def shares(
    model,
    prompts: Sequence[Prompt],
    traces: Sequence[str | Sequence[int] | None] | None = None,
    actions: Sequence[str] | None = None,
    progress: bool = False,
) -> Shares:
    """Attention and gradient shares of every span, at each decision, after its trace and for its action.

    traces: one for each prompt, as in `sequence`; the decisions' reference traces where None. actions: the reference actions where
    None. One pass over the sequence, one back for each action token, and a short eager one.
    Raises ValueError for an empty list, lists of other lengths, and what `sequence` raises; NotImplementedError, naming the
    architecture, where the patterns would not be exact.
    """
    if not prompts:
        raise ValueError("There are no shares to compute: the list of prompts is empty.")
    traces = [p.decision.trace for p in prompts] if traces is None else traces
    actions = [p.decision.reference for p in prompts] if actions is None else actions
    for name, given in (("traces", traces), ("actions", actions)):
        if len(given) != len(prompts):
            raise ValueError(f"There are {len(prompts)} prompts but {len(given)} {name}: give one for each.")
    if model.support.mediation != "fast":
        raise NotImplementedError(
            f"{model.architecture} is not supported for shares: {model.support.reason}."
        )
    sequences = [sequence(*given) for given in zip(prompts, traces, actions)]
    longest = max(len(ids) for ids, _ in sequences)
    model.check_length(longest)
    if path := model.path(longest):
        raise NotImplementedError(
            f"{model.architecture} is not supported for shares: {path.removeprefix('plain loop: ')}."
        )
    found = []
    for ids, spans in tqdm(sequences, desc="shares", leave=False, disable=not progress):
        found.append(
            [by_span(mass, spans) for mass in token_mass(model, ids, int((spans == "action").sum()))]
        )
    share, token_share = (np.stack(side, 2) for side in zip(*found))
    return Shares(share, token_share, tuple(p.hash for p in prompts), model.weights_hash, str(model.dtype))
