"""Elicit the prompt action: one small tuning, prompt to action, of a copy of any model (docs/methods.md 2.4).

A model that was taught to write a trace first may know the action at the boundary and not say it there. A
short low-rank tuning on a few decisions teaches the form; what the tuned copy does at decisions of other
episodes is the elicited prompt action.

>>> elicited = elicit(model, prompts)                        # prompts of decisions with recorded actions
>>> decode(elicited.model, others, mode="prompt")
>>> elicited.held_out.mean(axis=1), elicited.kept            # nats of an action by round, and the round kept

Model and copy are held at once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.hooked import HookedModel
from interp.prompts.format import Prompt
from interp.stats.intervals import integer_codes
from interp.training.recipes import Elicitation
from interp.training.trainer import adapted


@dataclass(frozen=True)
class Elicited:
    """A tuned copy of a model, and how its tuning went."""

    model: HookedModel
    """The copy."""
    held_out: Float[np.ndarray, "round decision"]
    """Nats of each held-out decision's recorded action, before the tuning and after each round."""
    episodes: tuple[str, ...]
    """Episode of each held-out decision."""
    kept: int
    """The round whose weights the copy has (0: untuned), the one with the fewest nats."""


class _Example(NamedTuple):
    """Ids of a prompt with the opened action tag, and of the recorded action with what closes it."""

    prompt: list[int]
    action: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.action)


def elicit(
    model: HookedModel, prompts: Sequence[Prompt], recipe: Elicitation = Elicitation(), seed: int = 0
) -> Elicited:
    """Tune a copy of a model to write the recorded action right at the boundary; the model stays as it is.

    The loss is on the action's tokens. The same prompts, recipe and seed give every model the same examples
    in the same order. The weights kept are those of the round with the fewest nats on the held-out decisions.

    Args:
        model: whose prompt action is elicited; its own weights are copied and frozen.
        prompts: of decisions with recorded actions, at which the model is not read afterwards.
        recipe: how to tune; its number of decisions is the caller's to keep.
        seed: of the held-out episodes, the order, and the update's initial weights.

    Raises:
        ValueError: the prompts are of fewer than two episodes, or one is longer than the model's context.

    Source: Greenblatt et al. 2024 (arXiv 2405.19550, password-locked models).
    """
    learnt, held = parted(prompts, recipe.held_out, seed)
    training, testing = ([_example(prompts[i]) for i in rows] for rows in (learnt, held))
    for example in (*training, *testing):
        model.check_length(example.length)
    tuned, updates = _adapted(model, recipe, seed)
    digest = json.dumps([asdict(recipe), seed, [prompt.hash for prompt in prompts]])
    tuned.weights_hash = f"{model.weights_hash}-elicited-{hashlib.sha256(digest.encode()).hexdigest()[:16]}"
    optimiser = torch.optim.AdamW(updates, lr=recipe.lr, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    curve = [_nats(tuned, testing, recipe.batch_tokens)]
    kept, best = 0, _copies(updates)
    for number in range(1, recipe.rounds + 1):
        order = rng.permutation(len(training))
        for start in range(0, len(order), recipe.batch):
            _step(tuned, optimiser, [training[i] for i in order[start : start + recipe.batch]], recipe)
        curve.append(_nats(tuned, testing, recipe.batch_tokens))
        if curve[-1].mean() < curve[kept].mean():
            kept, best = number, _copies(updates)
        elif number - kept >= recipe.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(updates, best, strict=True):
            parameter.copy_(value)
            parameter.requires_grad_(False)
    return Elicited(tuned, np.stack(curve), tuple(prompts[i].episode for i in held), kept)


def parted(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the prompts to tune on, and of those held out: whole episodes, drawn by seed.

    At least `share` of the prompts are held out. Raises ValueError for fewer than two episodes.
    """
    codes, episodes = integer_codes(prompt.episode for prompt in prompts)
    if len(episodes) < 2:
        raise ValueError(
            f"The {len(prompts)} decisions to tune on are of {len(episodes)} episode: the tuning is stopped "
            "by other episodes than it reads, so give decisions of two or more."
        )
    order = np.random.default_rng(seed).permutation(len(episodes))
    sizes = np.bincount(codes)[order]
    most = len(episodes) - 1  # one stays to be tuned on
    n = min(int(np.searchsorted(np.cumsum(sizes), share * len(prompts))) + 1, most)
    held = np.isin(codes, order[:n])
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def _example(prompt: Prompt) -> _Example:
    fmt = prompt.format
    return _Example([*prompt.ids, *fmt.mode_prefix("prompt")], fmt.action_ids(prompt.decision.reference))


def _adapted(
    model: HookedModel, recipe: Elicitation, seed: int
) -> tuple[HookedModel, list[torch.nn.Parameter]]:
    """A copy with low-rank updates of its blocks' linear maps, and the updates, which alone are trained."""
    hf: Any = copy.deepcopy(model.hf)
    if hasattr(hf, "merge_and_unload"):
        hf = hf.merge_and_unload()
    with torch.random.fork_rng(devices=[]):
        tuned = HookedModel(adapted(hf, recipe.rank, seed), model.tokenizer, model.step)
    updates = [parameter for name, parameter in tuned.hf.named_parameters() if "lora_" in name]
    for parameter in updates:
        parameter.requires_grad_(True)
    return tuned, updates


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _step(
    model: HookedModel, optimiser: torch.optim.Optimizer, examples: Sequence[_Example], recipe: Elicitation
) -> None:
    """One optimiser step on the mean loss of the examples' action tokens."""
    tokens = sum(len(example.action) for example in examples)
    optimiser.zero_grad()
    with torch.inference_mode(False), torch.enable_grad():
        for rows in _packs(examples, recipe.batch_tokens):
            losses = _losses(model, [examples[i] for i in rows])
            (torch.stack([loss.sum() for loss in losses]).sum() / tokens).backward()
    optimiser.step()


def _nats(model: HookedModel, examples: Sequence[_Example], budget: int) -> Float[np.ndarray, " decision"]:
    """-log p of each example's action, in nats."""
    nats = np.zeros(len(examples))
    with torch.no_grad():
        for rows in _packs(examples, budget):
            nats[rows] = [float(loss.sum()) for loss in _losses(model, [examples[i] for i in rows])]
    return nats


def _packs(examples: Sequence[_Example], budget: int) -> Iterator[list[int]]:
    """Indices of examples that are read in one pass: of about one length, padded within the budget."""
    pack: list[int] = []
    for i in np.argsort([example.length for example in examples], kind="stable").tolist():
        if pack and (len(pack) + 1) * examples[i].length > budget:
            yield pack
            pack = []
        pack.append(i)
    yield pack


def _losses(model: HookedModel, examples: Sequence[_Example]) -> list[Float[Tensor, " token"]]:
    """-log p of each token of the examples' actions, in one pass padded on the right."""
    ids = torch.zeros((len(examples), max(example.length for example in examples)), dtype=torch.long)
    for row, example in zip(ids, examples, strict=True):
        row[: example.length] = torch.tensor([*example.prompt, *example.action])
    hidden = model.whole(ids.to(model.device))
    losses = []
    for row, example in zip(hidden, examples, strict=True):
        before = row[len(example.prompt) - 1 : example.length - 1]
        action = torch.tensor(example.action, device=model.device)
        losses.append(torch.nn.functional.cross_entropy(model.logits(before), action, reduction="none"))
    return losses
