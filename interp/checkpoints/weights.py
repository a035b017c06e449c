"""A checkpoint's tensors: as stored, dequantised, or an adapter's merged into its base."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from interp.checkpoints.contents import Checkpoint
from interp.checkpoints.headers import Header, damaged, gguf_header, headers
from interp.checkpoints.names import VALUE_HEADS, in_base, own_names
from interp.checkpoints.quantised import check_computes, kept_quantised, loading, method
from interp.models.inner import auto_class, kept_wide
from interp.system.sentences import first_line

#: Attention that a package computes: whether it is there.
FLASH = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}


def tensors(checkpoint: Checkpoint, wanted: Set[str] = frozenset()) -> dict[str, torch.Tensor]:
    """The tensors in a checkpoint's files, by the files' names.

    wanted: names to use instead where only a wrapper's prefix differs (`interp.checkpoints.names`).
    """
    names = own_names(headers(checkpoint), wanted)
    state: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        try:
            state.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise damaged(file, error) from error
    return {names[name]: tensor for name, tensor in state.items()}


def ignored(hf: PreTrainedModel, name: str) -> bool:
    """Whether a tensor of this name is ignored: older releases' tables that are computed now, value heads."""
    older = (r"rotary_emb\.inv_freq$", r"masked_bias$", *(hf._keys_to_ignore_on_load_unexpected or ()))
    return any(re.search(p, name) for p in older) or bool(VALUE_HEADS.match(name))


def complete(report: Mapping, hf: PreTrainedModel) -> bool:
    """Whether transformers found every tensor of a model, under any release's names, and no other."""
    return (
        not report["missing_keys"]
        and not report["mismatched_keys"]
        and all(ignored(hf, n) for n in report["unexpected_keys"])
    )


def misfits(
    shapes: Mapping[str, Sequence[int]], hf: PreTrainedModel, rows: Mapping[str, int] = {}
) -> list[str]:
    """What of named shapes does not fit a module, in words: missing, of another shape, or extra.

    rows: of the embeddings that are to have another number of them, by name.
    """

    expected = {n: (rows.get(n, len(t)), *t.shape[1:]) if t.ndim else () for n, t in hf.state_dict().items()}
    missing = [f"{n!r} is missing" for n, _ in hf.named_parameters() if n not in shapes]
    other = [
        f"{n!r} is of shape {list(s)}, not {list(expected[n])}"
        for n, s in shapes.items()
        if n in expected and tuple(s) != expected[n]
    ]
    extra = [f"{n!r} is extra" for n in shapes if n not in expected and not ignored(hf, n)]
    return missing + other + extra


def embeddings(hf: PreTrainedModel) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The modules that embed and unembed."""
    return hf.get_input_embeddings(), hf.get_output_embeddings()


def embedding_rows(hf: PreTrainedModel) -> int:
    """Tokens that a model embeds."""
    return int(cast(torch.Tensor, hf.get_input_embeddings().weight).shape[0])


def embedding_names(hf: PreTrainedModel) -> list[str]:
    """The names of the modules that embed and unembed."""
    names = {id(module): name for name, module in hf.named_modules()}
    return [names[id(module)] for module in embeddings(hf)]


def fill(hf: PreTrainedModel, state: dict[str, torch.Tensor], config: PretrainedConfig, path: object) -> None:
    """Copy a checkpoint's tensors into a module in place, once all of them are known to fit.

    config: the checkpoint's own; its vocabulary becomes the module's, and what it ties is filled in at both
    ends. Raises ValueError, naming `path` and the tensor.
    """
    text = config.get_text_config()
    embed, unembed = (f"{name}.weight" for name in embedding_names(hf))
    if tied(config) and embed in state:
        state.setdefault(unembed, state[embed])
    own, primary = hf.state_dict(keep_vars=True), {id(p): n for n, p in hf.named_parameters()}
    rows = {
        n: text.vocab_size
        for n in (embed, unembed, unembed.replace(".weight", ".bias"))
        if n in own and len(own[n]) != text.vocab_size
    }
    if misfitting := misfits({n: t.shape for n, t in state.items()}, hf, rows):
        raise ValueError(
            f"The weights of {path} do not fit the model: {misfitting[0]} ({len(misfitting)} of {len(own)} "
            "tensors)."
        )
    pairs = [(primary.get(id(tensor), name), name) for name, tensor in own.items()] + [
        (embed, unembed)
    ] * tied(config)
    for first, name in pairs:
        if first != name and name in state and not torch.equal(state[name], state[first]):
            raise ValueError(
                f"The weights of {path} hold two different tensors {first!r} and {name!r}, which its "
                "config.json ties: set tie_word_embeddings to false there."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in rows and len(tensor) != rows[name]:
                tensor.data = tensor.data.new_empty((rows[name], *tensor.shape[1:]))
            if name in state:
                tensor.copy_(state[name])
    if rows:
        embedding, unembedding = embeddings(hf)
        embedding.num_embeddings = unembedding.out_features = text.vocab_size
        hf.config.get_text_config().vocab_size = text.vocab_size


def tied(config: PretrainedConfig) -> bool:
    """Whether a model unembeds with its embedding, by its text configuration or else by the whole one."""
    whole = getattr(config, "tie_word_embeddings", False)
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", whole))


def guard(hf: PreTrainedModel, path: object) -> None:
    """Make a module refuse tokens of the series' tokenizer that its checkpoint does not embed."""

    def check(module: torch.nn.Module, inputs: tuple) -> None:
        ids = inputs[0]
        if (beyond := ids[ids >= cast(torch.Tensor, module.weight).shape[0]]).numel():
            raise ValueError(
                f"Token {beyond.flatten()[0].item()} of the series' tokenizer was added by the trainer, and "
                f"the checkpoint of {path} that is read does not embed it: leave this checkpoint out, or the "
                "text that holds the token."
            )

    if not hasattr(hf, "_guard"):
        vars(hf)["_guard"] = embeddings(hf)[0].register_forward_pre_hook(check)


@contextmanager
def quiet() -> Iterator[None]:
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


def save(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; where that fails, raises OSError naming it and leaves nothing behind."""
    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        path.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def unwritten(path: Path, error: Exception) -> OSError:
    """What is raised where weights cannot be written."""
    return OSError(
        f"{path} cannot be written ({first_line(error)}): make room on its disk, or name another folder."
    )


def read_configuration(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """A folder's configuration; attention from a package that is not installed becomes torch's own."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    if not FLASH.get(config._attn_implementation, lambda: True)():
        config._attn_implementation = None
    return config


def pretrained(
    checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool = False, **options: Any
) -> tuple[PreTrainedModel, Mapping]:
    """A checkpoint that is no adapter as transformers reads it, and its report of names."""
    if checkpoint.kind == "gguf":
        options["gguf_file"] = checkpoint.path.name
        if not checkpoint.embedded:
            options.setdefault("config", AutoConfig.from_pretrained(checkpoint.home, local_files_only=True))
    folder = checkpoint.path.parent if checkpoint.kind == "gguf" else checkpoint.path
    with quiet():
        own, kind = dict(trust_remote_code=trust_remote_code, local_files_only=True), None
        if checkpoint.kind != "gguf":
            config = options.setdefault("config", read_configuration(folder, trust_remote_code))
            kind = auto_class(config)
        read = (kind or AutoModelForCausalLM).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **own, **options
        )
        return cast(tuple[PreTrainedModel, Mapping], read)


def placed(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool,
    device_map: str | dict,
) -> PreTrainedModel:
    """A checkpoint (an adapter's base) as transformers lays it out on devices and quantises it.

    Raises ValueError or ImportError, naming the folder, where transformers cannot read it.
    """
    base = checkpoint
    while base.base is not None:
        base = base.base
    try:
        hf, report = pretrained(
            base,
            dtype,
            trust_remote_code,
            device_map=device_map,
            config=loading(config),
            ignore_mismatched_sizes=True,
        )
    except ImportError as error:
        raise ImportError(f"{base.path} cannot be read ({first_line(error)}).") from error
    except (ValueError, RuntimeError, NotImplementedError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"transformers cannot read {base.path} ({first_line(error)}).") from error
    if method(getattr(config, "quantization_config", None)):
        if odd := [n for n in sorted(report["missing_keys"]) if n in dict(hf.named_parameters())]:
            raise ValueError(
                f"The weights of {base.path} do not fit the model: {odd[0]!r} is missing ({len(odd)} "
                "tensors)."
            )
        check_computes(hf, base.path)
    return hf


def module(checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A checkpoint that is no adapter, on the CPU, every parameter read from its files and dequantised.

    Raises ValueError naming the first parameter that is not in them.
    """
    if checkpoint.kind == "gguf":
        return _gguf_module(checkpoint, dtype)
    config = read_configuration(checkpoint.home, trust_remote_code)
    if method(getattr(config, "quantization_config", None)):
        hf = placed(checkpoint, config, dtype, trust_remote_code, {"": "cpu"})
        return _in_dtype(hf.dequantize() if kept_quantised(config) else hf, dtype)
    hf, report = pretrained(checkpoint, dtype, trust_remote_code, ignore_mismatched_sizes=True)
    if complete(report, hf):
        return hf
    parameters = dict(hf.named_parameters())
    state = tensors(checkpoint, parameters.keys())
    odd = [n for n, p in parameters.items() if n not in state or state[n].shape != p.shape]
    odd += [n for n in state if n not in hf.state_dict() and not ignored(hf, n)]
    if odd:
        how = "is missing, extra, or of another shape"
        raise ValueError(
            f"The weights of {checkpoint.path} do not fit the model: {odd[0]!r} {how} ({len(odd)} of "
            f"{len(parameters)} tensors)."
        )
    hf.load_state_dict(state, strict=False)
    return hf


def _in_dtype(hf: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A module whose weights are cast in place, but for those that transformers keeps in float32."""
    kept = kept_wide(hf, dtype)
    for name, tensor in hf.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and name not in kept:
            tensor.data = tensor.data.to(dtype)
    return hf


def _gguf_module(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """A GGUF file's weights as plain numbers, under transformers' names."""
    options: dict[str, Any] = dict(ignore_mismatched_sizes=True)
    kind = gguf_header(checkpoint.path)[0].get("general.architecture")
    if kind == "llama" and not checkpoint.embedded:
        config = AutoConfig.from_pretrained(checkpoint.home, local_files_only=True)
        if config.model_type == "mistral":  # llama.cpp keeps Mistral's weights as Llama's
            options["config"] = LlamaConfig(**config.to_dict() | dict(model_type="llama"))
    try:
        hf, report = pretrained(checkpoint, dtype, **options)
    except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"transformers cannot read {checkpoint.path} ({first_line(error)}).") from error
    misfitting = [f"{n!r} is missing" for n in sorted(report["missing_keys"])]
    misfitting += [
        f"{n!r} is of shape {list(own)}, not {list(wanted)}"
        for n, own, wanted in sorted(report["mismatched_keys"])
    ]
    if misfitting:
        beside = " A config.json beside the file would be read instead of its metadata." * checkpoint.embedded
        raise ValueError(
            f"The weights of {checkpoint.path} do not fit the model: {misfitting[0]} "
            f"({len(misfitting)} of {len(hf.state_dict())} tensors).{beside}"
        )
    return hf


def adapter_misfits(entries: Header, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What of a low-rank adapter's header does not fit its base's shapes, in words; peft checks the rest."""
    misfitting = []
    for name, (_, shape) in entries.items():
        plain = in_base(name)
        part = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?", plain)
        if part and part[1] + ".weight" in shapes:
            weight, outer = shapes[part[1] + ".weight"], shape[1] if part[2].endswith("A") else shape[0]
            if outer not in weight:
                misfitting.append(
                    f"{name!r} is of shape {list(shape)}, the base's {part[1]}.weight of {list(weight)}"
                )
        elif part and ".experts." in part[1]:
            continue  # peft knows experts' older names
        elif part and not any(other.startswith(part[1] + ".") for other in shapes):
            misfitting.append(f"{name!r} belongs to {part[1]}, which the base does not have")
        elif not part and plain in shapes and shapes[plain] != shape:
            misfitting.append(f"{name!r} is of shape {list(shape)}, the base's of {list(shapes[plain])}")
    return misfitting
