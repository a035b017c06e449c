"""The language model inside what transformers loads: a causal model's decoder, or the one nested in a multimodal wrapper."""

from __future__ import annotations

import copy
import inspect
import re

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

#: What transformers calls a list of blocks, where a decoder has several lists of one length.
_LISTS = ("layers", "h", "blocks", "block", "layer")
_AUTO = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
)


def auto_class(config):
    """transformers' class that builds a configuration's language model, its multimodal wrapper with it; None where there is none.

    Where several do, the one that the configuration's `architectures` names.
    """
    several = [(mapping[type(config)], auto) for mapping, auto in _AUTO if type(config) in mapping]
    named = [auto for kind, auto in several if getattr(kind, "__name__", "") in (config.architectures or ())]
    return next(iter([*named, *(auto for _, auto in several)]), None)


def kept_wide(hf, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Name -> weight of those that transformers keeps in float32 where it loads a model in `dtype`: routers, mostly."""
    plan = hf._get_dtype_plan(dtype) if hasattr(hf, "_get_dtype_plan") else {}
    patterns = [pattern.replace("*", ".*") for pattern in plan]
    state = hf.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if any(re.search(pattern, name) for pattern in patterns)}


def empty(kind, config, dtype: torch.dtype, **options):
    """A module of `kind`, a model's class or an auto class, whose weights are in the dtypes of a loaded one.

    `hf.to(dtype)` is not that: it narrows what is kept in float32, and the frequencies of rotary embeddings.
    """
    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    hf = build(config, dtype=dtype, **options)
    for tensor in kept_wide(hf, dtype).values():
        tensor.data = tensor.data.float()
    return hf


def in_dtype(hf, dtype: torch.dtype):
    """A model with the same weights, as transformers would load them in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        twin = empty(type(hf), copy.deepcopy(hf.config), dtype)
    twin.load_state_dict(hf.state_dict())
    return twin.to(next(hf.parameters()).device)


def unwrapped(hf):
    """The module itself, where `torch.compile` or a trainer's parallel wrapper stands around it."""
    while True:
        if hasattr(hf, "_orig_mod"):
            hf = hf._orig_mod
        elif isinstance(hf, (DataParallel, DistributedDataParallel)):
            hf = hf.module
        else:
            return hf


def check_not_compiled(hf) -> None:
    """Raise ValueError where a part of a model is compiled, whose submodules no hook would see."""
    compiled = (
        n for n, m in hf.named_modules() if hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None)
    )
    if (name := next(compiled, None)) is not None:
        raise ValueError(
            f"{name or type(hf).__name__} is compiled by torch.compile, and hooks do not see into compiled code: "
            "wrap the model before it is compiled, or torch.compile(hf) as a whole, which is undone here."
        )


def text_config(hf):
    """The configuration of the language model: the wrapper's text section, or all of it.

    Raises NotImplementedError where a model reads its prompt with an encoder, or has no layers of text.
    """
    name = type(hf).__name__
    config = getattr(hf, "config", None)
    if config is None:
        raise NotImplementedError(
            f"{name} is not supported: it is no model of transformers, it has no configuration."
        )
    try:
        config = config.get_text_config()
    except ValueError as error:
        raise NotImplementedError(
            f"{name} is not supported: its configuration names several language models ({error})."
        ) from error
    if getattr(hf.config, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"{name} is not supported: an encoder reads the prompt, so there is no boundary in the decoder."
        )
    if not getattr(config, "num_hidden_layers", None):
        raise NotImplementedError(f"{name} is not supported: its configuration names no num_hidden_layers.")
    return config


def decoder(hf, config):
    """The module that turns token ids into final hidden states, and its list of blocks.

    Raises NotImplementedError, naming the architecture, where no module has one list of `num_hidden_layers` blocks (or of
    `num_layers`, where a block holds several attentions, which the former counts).
    """
    counts = {config.num_hidden_layers, getattr(config, "num_layers", None)}

    def blocks_of(lists: dict[str, torch.nn.Module]) -> torch.nn.ModuleList | None:
        lists = {n: m for n, m in lists.items() if isinstance(m, torch.nn.ModuleList) and len(m) in counts}
        if len(lists) > 1:
            lists = {n: m for n, m in lists.items() if n in _LISTS}
        return next(iter(lists.values())) if len(lists) == 1 else None

    named = [hf.get_decoder()] if hasattr(hf, "get_decoder") else []
    nested = [m for m in hf.modules() if getattr(m, "config", None) is config]
    readers = [
        m
        for m in [*named, getattr(hf, "base_model", hf), *nested]
        if isinstance(m, torch.nn.Module) and "input_ids" in inspect.signature(type(m).forward).parameters
    ]
    for module in readers:
        if (blocks := blocks_of(dict(module.named_children()))) is not None:
            return module, blocks
    for module in readers[:1]:  # a decoder whose blocks are one level down
        for child in module.children():
            if (blocks := blocks_of(dict(child.named_children()))) is not None:
                return module, blocks
    raise NotImplementedError(
        f"{type(hf).__name__} is not supported: it has no one list of {config.num_hidden_layers} blocks."
    )


def of_layer(config, layer: int):
    """The configuration of one layer, where some of its numbers differ between layers."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def largest(config, name: str) -> int | None:
    """A number of the configuration, the largest of any layer (None where there is none)."""
    layers = range(config.num_hidden_layers if getattr(config, "is_heterogeneous", False) else 1)
    return max((n for layer in layers if (n := getattr(of_layer(config, layer), name, None))), default=None)
