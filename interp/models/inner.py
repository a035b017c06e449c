"""The language model inside what transformers loads: a decoder, alone or in a multimodal wrapper."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import dispatch_model
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
)

from interp.system.sentences import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    LanguageModel = PreTrainedModel
else:  # an adapter's wrapper has the same methods, but is no PreTrainedModel
    LanguageModel = torch.nn.Module

Result = TypeVar("Result")
#: What transformers calls a list of blocks, where a decoder has several lists of one length.
_LISTS = ("layers", "h", "blocks", "block", "layer")
_AUTO = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
)


def auto_class(config: PreTrainedConfig) -> Any:
    """transformers' auto class that builds a configuration's language model, with its multimodal wrapper.

    Where several do, the one that the configuration's `architectures` names; None where there is none.
    """
    candidates = [(mapping[type(config)], auto) for mapping, auto in _AUTO if type(config) in mapping]
    architectures = config.architectures or ()
    named = [auto for kind, auto in candidates if getattr(kind, "__name__", "") in architectures]
    return next(iter([*named, *(auto for _, auto in candidates)]), None)


def kept_wide(hf: LanguageModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Name -> weight that transformers keeps in float32 when it loads in `dtype`: mostly routers."""
    plan = hf._get_dtype_plan(dtype) if hasattr(hf, "_get_dtype_plan") else {}
    patterns = [pattern.replace("*", ".*") for pattern in plan]
    state = hf.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if any(re.search(pattern, name) for pattern in patterns)}


def empty(kind: Any, config: PreTrainedConfig, dtype: torch.dtype, **options: Any) -> LanguageModel:
    """A module of `kind`, a model's class or an auto class, whose weights are in the dtypes of a loaded one.

    `hf.to(dtype)` would also narrow what is kept in float32, and the frequencies of rotary embeddings.
    """
    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    hf = build(config, dtype=dtype, **options)
    for tensor in kept_wide(hf, dtype).values():
        tensor.data = tensor.data.float()
    return hf


def in_dtype(hf: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """A model with the same weights, as transformers would load them in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        twin = empty(type(hf), copy.deepcopy(hf.config), dtype)
    twin.load_state_dict(hf.state_dict())
    return laid_out(twin, hf)


def laid_out(hf: LanguageModel, other: LanguageModel) -> LanguageModel:
    """A model on the devices that `other`, a model of the same architecture, lies on."""
    places = getattr(other, "hf_device_map", None) or {}
    if len(set(places.values())) > 1:
        return dispatch_model(hf, places)
    return moved(hf, next(other.parameters()).device)


def moved(hf: LanguageModel, device: torch.device) -> LanguageModel:
    """The model on a device (transformers types its own `to` for a device's name alone)."""
    torch.nn.Module.to(hf, device)
    return hf


def unwrapped(hf: Any) -> Any:
    """The module itself, where `torch.compile` or a trainer's parallel wrapper stands around it."""
    while True:
        if hasattr(hf, "_orig_mod"):
            hf = hf._orig_mod
        elif isinstance(hf, (DataParallel, DistributedDataParallel)):
            hf = hf.module
        else:
            return hf


def check_not_compiled(hf: torch.nn.Module) -> None:
    """Raise ValueError where a part of a model is compiled, whose submodules no hook would see."""
    for name, module in hf.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            raise ValueError(
                f"{name or type(hf).__name__} is compiled by torch.compile, and hooks do not see into "
                "compiled code: wrap the model before it is compiled, or torch.compile(hf) as a whole, "
                "which is undone here."
            )


def text_config(hf: LanguageModel) -> PreTrainedConfig:
    """The configuration of the language model: the wrapper's text section, or all of it.

    Raises NotImplementedError where a model reads its prompt with an encoder, or has no layers of text.
    """
    refused = f"{type(hf).__name__} is not supported:"
    config = getattr(hf, "config", None)
    if config is None:
        raise NotImplementedError(f"{refused} it is no model of transformers, it has no configuration.")
    try:
        config = config.get_text_config()
    except ValueError as error:
        raise NotImplementedError(
            f"{refused} its configuration names several language models ({error})."
        ) from error
    if getattr(hf.config, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"{refused} an encoder reads the prompt, so there is no boundary in the decoder."
        )
    if not getattr(config, "num_hidden_layers", None):
        raise NotImplementedError(f"{refused} its configuration names no num_hidden_layers.")
    return config


def _list_of_blocks(module: torch.nn.Module, counts: set[int | None]) -> torch.nn.ModuleList | None:
    """A module's one child that is a list of as many blocks as `counts` allows."""
    lists: Mapping[str, torch.nn.ModuleList] = {
        name: child
        for name, child in module.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) in counts
    }
    if len(lists) > 1:
        lists = {name: child for name, child in lists.items() if name in _LISTS}
    return next(iter(lists.values())) if len(lists) == 1 else None


def decoder(hf: LanguageModel, config: PreTrainedConfig) -> tuple[torch.nn.Module, torch.nn.ModuleList]:
    """The module that turns token ids into final hidden states, and its list of blocks.

    Raises NotImplementedError where no module has one list of `num_hidden_layers` blocks (or of `num_layers`,
    where a block holds several attentions, which the former counts).
    """
    counts = {config.num_hidden_layers, getattr(config, "num_layers", None)}
    named = [hf.get_decoder()] if hasattr(hf, "get_decoder") else []
    nested = [m for m in hf.modules() if getattr(m, "config", None) is config]
    readers = [
        m
        for m in [*named, getattr(hf, "base_model", hf), *nested]
        if isinstance(m, torch.nn.Module) and "input_ids" in inspect.signature(type(m).forward).parameters
    ]
    one_level_down = [(module, child) for module in readers[:1] for child in module.children()]
    for module, holder in [*((module, module) for module in readers), *one_level_down]:
        blocks = _list_of_blocks(holder, counts)
        if blocks is not None:
            return module, blocks
    raise NotImplementedError(
        f"{type(hf).__name__} is not supported: it has no one list of {config.num_hidden_layers} blocks."
    )


def of_layer(config: PreTrainedConfig, layer: int) -> PreTrainedConfig:
    """The configuration of one layer, where some of its numbers differ between layers."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def largest(config: PreTrainedConfig, name: str) -> int | None:
    """A number of the configuration, the largest of any layer (None where there is none)."""
    layers = range(config.num_hidden_layers if getattr(config, "is_heterogeneous", False) else 1)
    values = (getattr(of_layer(config, layer), name, None) for layer in layers)
    return max((value for value in values if value), default=None)


def tried(hf: LanguageModel, run: Callable[[], Result]) -> Result:
    """What a trial of a model gives; the sentences of its own errors begin with its architecture."""
    architecture, dtype = type(hf).__name__, next(hf.parameters()).dtype
    try:
        return run()
    except (NotImplementedError, ValueError) as error:
        if "not finite" in str(error) or str(error).startswith(architecture):
            raise
        raise NotImplementedError(f"{architecture} is not supported: {error}") from error
    except Exception as error:  # anything that a model's own code may raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        narrow = [name for name, tensor in kept_wide(hf, dtype).items() if tensor.dtype != torch.float32]
        if narrow:
            raise ValueError(
                f"{architecture} fails on a few tokens ({reason}): transformers keeps {narrow[0]!r} in "
                f"float32, and here it is {str(dtype).removeprefix('torch.')}. Load the model with "
                "from_pretrained(..., dtype=...) in place of hf.to(...), which narrows every weight."
            ) from error
        raise NotImplementedError(
            f"{architecture} is not supported: a plain pass over a few tokens fails ({reason})."
        ) from error
