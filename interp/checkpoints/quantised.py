"""Quantised weights: loaded as transformers loads them, where the package that they need is there.

>>> check_quantised(Path("config.json"), {"quant_method": "gptq"})
ImportError: config.json has a quantization_config (gptq), and reading it needs ...
"""

from __future__ import annotations

import copy
import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from interp.system.sentences import first_line

#: method -> the packages it needs, by the names they are installed by; fp8 and mxfp4 come with transformers,
#: the rest say theirs.
PACKAGES = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed-tensors",),
    "fbgemm_fp8": ("fbgemm-gpu",),
    "torchao": ("torchao",),
    "quanto": ("optimum-quanto",),
    "hqq": ("hqq",),
    "eetq": ("eetq",),
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
}
#: Methods that are dequantised as they are loaded: their kernels would be fetched from a hub.
DEQUANTISED = ("fp8", "mxfp4")
#: What every module has of its own: hooks (accelerate's as well), children, its state.
OF_MODULES = frozenset(torch.nn.Module().__dict__) | {"_hf_hook", "_old_forward", "forward"}
OTHERWISE = (
    "or save the model dequantised (model.dequantize(), then save_pretrained), or give the weights that it "
    "was quantised from"
)


def method(config: object) -> str:
    """How a quantization_config says that weights are quantised, empty where they are not."""
    if not config:
        return ""
    if not isinstance(config, Mapping):
        named = getattr(config, "quant_method", config)
        return str(getattr(named, "value", named))
    bits = (
        "bitsandbytes"
        if config.get("load_in_4bit") or config.get("load_in_8bit")
        else "a method that it does not name"
    )
    return str(config.get("quant_method") or bits)


def batch_dependent(config: object) -> bool:
    """Whether a row's result depends on the rows beside it: 8-bit bitsandbytes keeps every feature apart in
    which any row has an outlier.
    """
    given = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "quant_method") else {}
    return method(config) == "bitsandbytes" and bool(given.get("load_in_8bit") or given.get("_load_in_8bit"))


def check_quantised(file: Path, config: object) -> None:
    """Raise ImportError naming the packages that quantised weights need, ValueError for an unknown method."""
    name = method(config)
    if not name:
        return
    if name not in {*PACKAGES, *AUTO_QUANTIZER_MAPPING}:
        raise ValueError(
            f"{file} has a quantization_config ({name}) that transformers does not read: "
            f"{OTHERWISE.removeprefix('or ')}."
        )
    if missing := [p for p in PACKAGES.get(name, ()) if not _installed(p)]:
        raise ImportError(
            f"{file} has a quantization_config ({name}), and reading it needs {' and '.join(missing)}: `pip "
            f"install {' '.join(missing)}`, {OTHERWISE}."
        )


def check_leftover(file: Path, config: object) -> None:
    """Raise ValueError for a quantization_config beside plain numbers, unless its method quantises those."""
    kind = config.get("linear_class") if isinstance(config, Mapping) else getattr(config, "linear_class", "")
    if kind != "autobitlinear":
        raise ValueError(
            f"{file} has a quantization_config ({method(config)}), but the weights beside it are "
            "plain numbers: remove the field (a merge of an adapter may have left it there)."
        )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def kept_quantised(config: PretrainedConfig) -> str:
    """The method by which a model computes with quantised weights, "" for plain numbers."""
    name = method(getattr(config, "quantization_config", None))
    return "" if name in DEQUANTISED else name


def loading(config: PretrainedConfig) -> PretrainedConfig:
    """A configuration by which transformers dequantises what it should not compute with."""
    # bitsandbytes warns of a cast at every product
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = copy.deepcopy(config)
    if method(getattr(config, "quantization_config", None)) in DEQUANTISED:
        config.quantization_config = {**config.quantization_config, "dequantize": True}
    return config


def check_computes(hf: PreTrainedModel, path: object) -> None:
    """Raise ValueError where quantised weights do not compute as their configuration says."""
    ids = torch.arange(4, device=next(hf.parameters()).device)[None]
    try:
        with torch.inference_mode():
            finite = hf(input_ids=ids, use_cache=False).logits.isfinite().all()
    except (AssertionError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"The weights of {path} are not quantised as its config.json says ({first_line(error)})."
        ) from error
    if not finite:
        raise ValueError(f"The quantised weights of {path} give numbers that are not finite.")


def adopt(hf: PreTrainedModel, other: PreTrainedModel) -> None:
    """Put another quantised model's tensors into a module in place of its own.

    Scales and packed numbers are no plain copies, and a layer may keep what it made of them.
    """
    for own, new in zip(hf.modules(), other.modules(), strict=True):
        own._parameters, own._buffers = new._parameters, new._buffers
        if not new._modules:
            made = {name: value for name, value in new.__dict__.items() if name not in OF_MODULES}
            own.__dict__.update(made)
