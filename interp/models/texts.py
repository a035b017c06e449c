"""A model and plain text: tokens, logits, a cache of activations and a continuation, one text at a time.

>>> logits, cache = model.run_with_cache("You take the mug 1.", ["resid_post", "z"])
>>> cache["resid_post", 2].shape                        # [1, token, d_model], as in TransformerLens
>>> model.generate("You take the mug 1. Next I", max_new_tokens=8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.hooks import PassEdit
from interp.models.site_names import parse_key, parse_site, tl_name
from interp.models.whole import Growing
from interp.prompts.text import Readable, read_texts

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel


class SiteCache(dict[str, Tensor]):
    """Activations [1, token, width] by TransformerLens's names; `cache["resid_post", 3]` does as well."""

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        site, layer = parse_key(key)
        name = key if layer is None else tl_name(site, layer)
        if name not in self:
            raise KeyError(f"{key} was not read: there are {', '.join(self)}.")
        return super().__getitem__(str(name))

    def __repr__(self) -> str:
        shape = list(next(iter(self.values())).shape) if self else []
        return f"SiteCache({len(self)} hooks, {next(iter(self), 'none')} {shape})"


def one_text(model: HookedModel, text: Readable) -> list[int]:
    """The ids of one text; raises ValueError for several."""
    read = read_texts(model.tokenizer, text)
    if len(read) != 1:
        raise ValueError(f"One text at a time is read here, not {len(read)}.")
    ids = list(read[0].ids)
    model.check_ids([ids])
    model.check_length(len(ids))
    return ids


@torch.inference_mode()
def logits_of(model: HookedModel, text: Readable) -> Float[Tensor, "1 token vocabulary"]:
    """Logits at every token of a text, in float32."""
    hidden = model.whole(torch.tensor([one_text(model, text)], device=model.device))
    return model.logits(hidden)


@torch.inference_mode()
def run_with_cache(
    model: HookedModel, text: Readable, sites: Sequence[str] | None = None
) -> tuple[Float[Tensor, "1 token vocabulary"], SiteCache]:
    """Logits at every token of a text, and activations at sites: all layers of each, or one layer's by name.

    sites: all that the model has in every layer where None.
    """
    cache = SiteCache()

    def keeping(name: str) -> Callable[[Tensor], None]:
        return lambda tensor: cache.update({name: tensor.clone()})

    wanted: list[tuple[str, int]] = []
    for name in (
        [site for site in model.hook_points if None not in model.hook_points[site]]
        if sites is None
        else sites
    ):
        site, layer = parse_site(name)
        wanted += [(site, each) for each in (range(model.n_layers) if layer is None else [layer])]
    with model.hooks({key: keeping(tl_name(*key)) for key in dict.fromkeys(wanted)}):
        logits = logits_of(model, text)
    return logits, cache


@torch.inference_mode()
def generate(
    model: HookedModel,
    text: Readable,
    max_new_tokens: int = 32,
    hooks: Mapping[str | tuple[str, int], PassEdit] | None = None,
) -> list[int]:
    """Ids that follow a text, greedily, up to a token that ends the model's turn.

    hooks: run on each pass (see `HookedModel.hooks`).
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is a number from 1 on, not {max_new_tokens}.")
    ids = one_text(model, text)
    model.check_length(len(ids) + max_new_tokens)
    ends = {*stop_tokens(model), getattr(model.tokenizer, "eos_token_id", None)}
    sequence, out = Growing(model), list[int]()
    with model.hooks(hooks or {}, passes="any"), model.attending():
        hidden = sequence.add(ids)
        while True:
            out.append(int(model.logits(hidden[-1]).argmax()))
            if out[-1] in ends or len(out) == max_new_tokens:
                return out
            hidden = sequence.add(out[-1:])


def stop_tokens(model: HookedModel) -> list[int]:
    """Ids at which a model's own generation configuration ends a turn (none without one)."""
    named = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    if named is None:
        return []
    return [int(i) for i in (named if isinstance(named, (list, tuple)) else [named])]
