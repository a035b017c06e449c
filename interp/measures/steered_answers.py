"""Steering any text: a direction added to the residual stream, and what that does to one answer or two.

Every direction and strength is a cell of one packed sweep (see `interp.engine.sweeps`), so that hundreds of
them cost about as much as reading the prompts.

>>> texts = ["You take the mug 1. Next I put the", "You take the pen 1. Next I put the"]
>>> result = steer_answers(model, texts, {"probe": direction}, layer=1, answers=(" mug", " pen"))
>>> result.effect.shape                                  # [direction, alpha, prompt], in nats
>>> result.plot()                                        # against alpha, a line for each kind

`interp.steer` decodes an agent's actions under steering; here nothing is decoded, and the answers are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from interp.engine.capturing import capture
from interp.engine.cells import Cell, Run, held_bytes
from interp.engine.loops import Plain
from interp.engine.positions import WITH_TRACES, At, readings
from interp.engine.sweeps import Packed
from interp.measures.pairs import Answer, answers_after
from interp.measures.steering import Directions, check_strengths, unit_directions
from interp.models.devices import halved, most_held
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.models.whole import length_batches
from interp.prompts.text import AnyPrompt, Readable, read_texts
from interp.results.shown import Plotted, counted, labelled

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False, repr=False)
class SteeredAnswers(Plotted):
    """What steering along every direction does to the answers after each prompt."""

    picture: ClassVar[str] = "steered_answers"
    layer: int
    norm: float
    """The residual's mean norm where it is steered, alpha's unit."""
    kinds: tuple[str, ...]
    """Of each direction, those of a kind one after the other."""
    alphas: tuple[float, ...]
    base: Float[np.ndarray, "prompt"]
    """Unsteered: the first answer's log-probability less the second's, or the one answer's, in nats."""
    effect: Float[np.ndarray, "direction alpha prompt"]
    """What that changes by, in nats."""
    path: str = "packed"
    """`packed`, or `plain loop` with the reason."""

    def summary(self) -> str:
        directions, alphas, prompts = self.effect.shape
        parts = [counted(directions, "direction"), counted(alphas, "alpha"), counted(prompts, "prompt")]
        return f"{', '.join(parts)}, layer {self.layer}; {self.path}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each direction (`direction` counts those of its kind), alpha and prompt, in nats."""
        direction, alpha, prompt = np.indices(self.effect.shape).reshape(3, -1)
        own = np.array([self.kinds[:k].count(kind) for k, kind in enumerate(self.kinds)])
        places = dict(
            layer=self.layer,
            kind=np.array(self.kinds, dtype=object)[direction],
            direction=own[direction],
            alpha=np.array(self.alphas)[alpha],
            prompt=prompt,
        )
        return pd.DataFrame({**places, "base": self.base[prompt], "effect": self.effect.ravel()})

    def to_xarray(self) -> xarray.Dataset:
        """The effects over the named axes direction, alpha, prompt.

        Raises:
            ImportError: xarray is not installed.
        """
        variables: dict = dict(effect=(("direction", "alpha", "prompt"), self.effect))
        variables |= dict(base=(("prompt",), self.base), kind=(("direction",), list(self.kinds)))
        about = dict(layer=self.layer, norm=self.norm, path=self.path)
        return labelled(variables, dict(alpha=list(self.alphas)), about)


@measured
def steer_answers(
    model: HookedModel,
    prompts: Readable | Iterable[Readable],
    directions: Directions,
    layer: int,
    at: At = "boundary",
    *,
    answers: Sequence[Answer],
    alphas: Sequence[float] = (-1.0, -0.5, 0.5, 1.0),
    budget: float | None = None,
    progress: bool = False,
) -> SteeredAnswers:
    """Add alpha * norm * direction to `resid_post` of one layer, and read the answers after each prompt.

    Args:
        prompts: prompts of a format, texts, or lists of token ids.
        directions: kind -> vectors [direction, d_model] (or one vector), of any length: they are made unit
            vectors.
        at: `boundary`, a span, the whole `prompt`, an index, several, or several of each prompt; all of a
            prompt's are steered together.
        answers: one or two, for all prompts: texts, or token ids. Those of an agent's prompt are actions,
            read after the opened tag.
        alphas: in units of the mean norm of the residual at these positions of these prompts.
        budget: MiB that one packed pass may take (None: as in `interp.patch`).

    Raises:
        ValueError: for no prompt, an unknown layer or position, a prompt without such a position, alphas that
            are not finite, directions that are zero or of another width, and answers that differ in no token.
    """
    given = read_texts(model.tokenizer, prompts)
    if not given:
        raise ValueError("There is nothing to steer: the list of prompts is empty.")
    if not len(answers):
        raise ValueError("Steering is read on answers=: give one answer or two.")
    check_strengths(model, layer, alphas)
    units = unit_directions(directions, model.d_model)
    tails = [answers_after(model.tokenizer, prompt, answers) for prompt in given]
    positions = _positions(given, at)
    runs = [Run(p.ids, *tail, held) for p, tail, held in zip(given, tails, positions)]
    norms = capture(model, given, ["resid_post"], positions, layers=[layer]).values.float().norm(dim=-1)
    strengths = tuple(float(alpha) for alpha in dict.fromkeys(alphas))
    added = torch.from_numpy(np.concatenate(list(units.values())))[:, None]
    added = added * float(norms.mean()) * torch.tensor(strengths, dtype=added.dtype)[:, None]
    base, scores, path = _read(model, runs, layer, added.flatten(0, 1), budget, progress)
    signs = np.array([1, -1][: len(answers)])
    unsteered = base @ signs
    effect = (scores @ signs - unsteered[:, None]).T.reshape(*added.shape[:2], len(given))
    kinds = tuple(kind for kind, vectors in units.items() for _ in vectors)
    return SteeredAnswers(int(layer), float(norms.mean()), kinds, strengths, unsteered, effect, path)


def _positions(prompts: Sequence[AnyPrompt], at: At) -> list[tuple[int, ...]]:
    """The positions of each prompt that are steered together."""
    if isinstance(at, str) and at in (*WITH_TRACES, "all"):
        raise ValueError(
            f"A prompt is steered at 'boundary', a span, the whole 'prompt', an index or several together, "
            f"not at {at!r}."
        )
    positions = [
        tuple(sorted({*each.positions})) for each in readings(prompts, "all" if at == "prompt" else at)
    ]
    if lacking := [prompt.name for prompt, held in zip(prompts, positions) if not held]:
        raise ValueError(f"{lacking[0]} has no token at {at!r}, so there is nothing to steer.")
    return positions


def _read(
    model: HookedModel,
    runs: Sequence[Run],
    layer: int,
    added: Float[Tensor, "cell d_model"],
    budget: float | None,
    progress: bool,
) -> tuple[Float[np.ndarray, "prompt answer"], Float[np.ndarray, "prompt cell answer"], str]:
    """Log-probabilities, unsteered and with each vector added at a run's positions, and the path."""
    longest = max(len(run.ids) + max(map(len, run.continuations)) for run in runs)
    model.check_length(longest)
    path = model.path(longest)
    kind, most = (Plain if path else Packed), None if budget is None else int(budget * 2**20)
    width = len(runs[0].continuations)
    base, scores = np.empty((len(runs), width)), np.empty((len(runs), len(added), width))

    def unsteered(batch: list[int]) -> tuple[list[int], Packed | Plain]:
        return batch, kind(model, [runs[i] for i in batch], ["resid_post"], most)

    batches = length_batches(held_bytes(model, runs, ["resid_post"]), most_held(model))
    for batch, held in tqdm(halved(batches, unsteered), desc="steer", leave=False, disable=not progress):
        base[batch] = held.base.double().numpy()
        own = held.values["resid_post", layer]
        at = [runs[i].positions for i in batch]
        at_once = max(1, most_held(model) // (model.dtype.itemsize * model.d_model * sum(map(len, at))))
        for start in range(0, len(added), at_once):
            vectors = added[start : start + at_once]
            cells = [Cell("resid_post", layer, at, _moved(own, each), slice(None)) for each in vectors]
            scores[batch, start : start + at_once] = held.patched(cells, progress=progress).double().numpy()
    return base, scores, path or "packed"


def _moved(
    own: Tensor | Sequence[Tensor], vector: Float[Tensor, " d_model"]
) -> Float[Tensor, "run position d_model"] | list[Tensor]:
    """Activations of each run with a vector added."""
    return own + vector.to(own) if isinstance(own, Tensor) else [each + vector.to(each) for each in own]
