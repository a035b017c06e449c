"""The tensors of a checkpoint: as they are stored, dequantised from GGUF, or an adapter's merged into its base. A pickle is never opened."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from interp.checkpoints import Checkpoint, first_line
from interp.headers import Header, damaged, gguf_header, header, headers
from interp.inner import auto_class


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors in a full or sharded checkpoint's files, under the files' names."""
    headers(checkpoint)
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        try:
            found.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise damaged(file, error) from error
    return found


@contextmanager
def _quiet():
    """No progress bars of transformers, and no warnings of adapters about what is checked here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def pretrained(checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool = False, **options):
    """transformers' own reading of a checkpoint that is no adapter (GGUF dequantised), and its report of names."""
    if checkpoint.kind == "gguf":
        options["gguf_file"] = checkpoint.path.name
        if not checkpoint.embedded:
            options.setdefault("config", AutoConfig.from_pretrained(checkpoint.home, local_files_only=True))
    folder = checkpoint.path.parent if checkpoint.kind == "gguf" else checkpoint.path
    with _quiet():
        own = dict(trust_remote_code=trust_remote_code, local_files_only=True)
        kind = None if checkpoint.kind == "gguf" else auto_class(AutoConfig.from_pretrained(folder, **own))
        return (kind or AutoModelForCausalLM).from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True,
                                                              **own, **options)


def dequantised(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A GGUF file's weights as plain numbers, under transformers' names."""
    options, kind = dict(ignore_mismatched_sizes=True), gguf_header(checkpoint.path)[0].get("general.architecture")
    if kind == "llama" and not checkpoint.embedded and (config := AutoConfig.from_pretrained(checkpoint.home, local_files_only=True)).model_type == "mistral":
        options["config"] = LlamaConfig(**config.to_dict() | dict(model_type="llama"))  # so llama.cpp keeps Mistral's weights
    try:
        hf, report = pretrained(checkpoint, dtype, **options)
    except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"transformers cannot read {checkpoint.path} ({first_line(error)}).") from error
    found = [f"{n!r} is missing" for n in sorted(report["missing_keys"])]
    found += [f"{n!r} is of shape {list(own)}, not {list(wanted)}" for n, own, wanted in sorted(report["mismatched_keys"])]
    if found:
        beside = " A config.json beside the file would be read instead of its metadata." * checkpoint.embedded
        raise ValueError(f"The weights of {checkpoint.path} do not fit the model: {found[0]} "
                         f"({len(found)} of {len(hf.state_dict())} tensors).{beside}")
    return hf.state_dict()


def merged(checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool = False) -> dict[str, torch.Tensor]:
    """The weights of an adapter's base with the adapter merged into them by peft, in `dtype`.

    Raises ValueError, naming the adapter's file, where it does not fit the base or is not finite.
    """
    from peft import PeftModel, get_peft_model_state_dict

    file = checkpoint.files[1]
    names = set(header(file))
    hf = pretrained(checkpoint.base, dtype, trust_remote_code)[0]
    try:
        with _quiet():
            adapted = PeftModel.from_pretrained(hf, str(checkpoint.path), torch_device="cpu")
            wanted, known = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)), set(adapted.state_dict())
            if odd := sorted(wanted - names) or sorted(names - wanted - known):
                raise ValueError(f"{odd[0]!r} is {'missing' if odd[0] in wanted else 'no part of it'}")
            return adapted.merge_and_unload(safe_merge=True).state_dict()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = next((line.strip(" \t.") for line in str(error).splitlines() if "size mismatch" in line), first_line(error))
        raise ValueError(f"The adapter {file} cannot be merged into its base {checkpoint.base.path} ({reason}): it is damaged, "
                         "or was trained on another base.") from error


def adapter_misfits(entries: Header, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What of a low-rank adapter's header does not fit a base of these shapes, in words; nothing for what only peft can tell."""
    found = []
    for name, (_, shape) in entries.items():
        plain = name.removeprefix("base_model.model.")
        part = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?", plain)
        if part and part[1] + ".weight" in shapes:
            weight, outer = shapes[part[1] + ".weight"], shape[1] if part[2].endswith("A") else shape[0]
            if outer not in weight:
                found.append(f"{name!r} is of shape {list(shape)}, the base's {part[1]}.weight of {list(weight)}")
        elif part and not any(s.startswith(part[1] + ".") for s in shapes):
            found.append(f"{name!r} belongs to {part[1]}, which the base does not have")
        elif not part and plain in shapes and shapes[plain] != shape:
            found.append(f"{name!r} is of shape {list(shape)}, the base's of {list(shapes[plain])}")
    return found
