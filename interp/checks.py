"""What must hold of a checkpoint before it is loaded, told from its small files and headers.

>>> config = configuration(checkpoint)
>>> check_weights(checkpoint, headers(checkpoint), blueprint(config))      # names, shapes, dtypes
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import psutil
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interp.checkpoints import Checkpoint, first_line, read_json, tokenizer_files
from interp.headers import Header, gguf_header, hash_files
from interp.inner import auto_class
from interp.weights import adapter_misfits, pretrained

FLOATING = ("F64", "F32", "F16", "BF16")
#: What a configuration says that does not decide the computation.
VOLATILE = ("dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "name_or_path", "architectures", "auto_map",
            "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def configuration(checkpoint: Checkpoint, trust_remote_code: bool = False):
    """A checkpoint's configuration, as transformers reads it.

    Raises FileNotFoundError where there is none, ValueError where it is damaged, asks for code of its own, or says that the weights
    are quantised, NotImplementedError for what is no causal language model.
    """
    if checkpoint.embedded:
        return _gguf_configuration(checkpoint.path, checkpoint.path.stat().st_mtime_ns)
    file = checkpoint.home / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{checkpoint.home} has no config.json, so it is not a complete Hugging Face checkpoint.")
    raw = read_json(file)
    for other in (file, checkpoint.home / "tokenizer_config.json"):
        if not trust_remote_code and other.exists() and "auto_map" in read_json(other):
            raise ValueError(f"{other} has an auto_map: it asks to run Python code from its repository, which is not run unless "
                             "trust_remote_code=True is given, by someone who has read that code.")
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "a method it does not name") if isinstance(quantised, dict) else quantised
        raise ValueError(f"{file} has a quantization_config ({method}): quantised weights are not read. Save the model dequantised "
                         "(model.dequantize(), then save_pretrained), or give the weights that it was quantised from.")
    if raw.get("is_encoder_decoder"):
        raise NotImplementedError(f"{file} describes an encoder-decoder ({raw.get('model_type')}), which is not supported: an encoder "
                                  "reads the prompt, so there is no boundary in the decoder.")
    try:
        config = AutoConfig.from_pretrained(checkpoint.home, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # strict configurations raise their own kinds
        raise ValueError(f"{file} describes no model that transformers {transformers.__version__} knows ({first_line(error)}).") from error
    if not trust_remote_code and auto_class(config) is None:
        raise NotImplementedError(f"{file} describes no causal language model: its model_type is {config.model_type!r}.")
    return config


@lru_cache(8)
def _gguf_configuration(path: Path, changed: int):
    gguf_header(path)
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ValueError, KeyError) as error:
        raise ValueError(f"transformers {transformers.__version__} cannot read the GGUF {path} ({first_line(error)}).") from error


def _same(a, b) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_same(a.get(k), b.get(k)) for k in {*a, *b})
    number = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (a, b))
    return math.isclose(a, b, rel_tol=1e-6) if number else a == b


def check_architecture(checkpoint: Checkpoint, config, first: Checkpoint, wanted) -> None:
    """Raise ValueError, naming the field, where two checkpoints' configurations do not describe the same computation."""
    own, other = config.to_dict(), wanted.to_dict()
    both = ["model_type", *sorted((own.keys() & other.keys()) - {*VOLATILE, "model_type"})]
    if differ := [k for k in both if not _same(own[k], other[k])]:
        raise ValueError(f"The architecture of {checkpoint.path} is not the one of {first.path}: {differ[0]} is {own[differ[0]]!r}, "
                         f"not {other[differ[0]]!r}.")


def tokenizer_home(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint's tokenizer (an adapter's base's where it has none of its own), None where a GGUF file brings it."""
    for folder in dict.fromkeys([checkpoint.path if checkpoint.kind == "adapter" else checkpoint.home, checkpoint.home]):
        if tokenizer_files(folder):
            return folder
    source = checkpoint.base or checkpoint
    if source.kind == "gguf":
        return None
    raise FileNotFoundError(f"{checkpoint.path} has no tokenizer.json, so it is not a complete Hugging Face checkpoint.")


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool = False):
    """A checkpoint's tokenizer; raises ValueError, naming the file, where it is damaged."""
    folder, source = tokenizer_home(checkpoint), checkpoint.base or checkpoint
    options = dict(gguf_file=source.path.name) if folder is None else {}
    try:
        return AutoTokenizer.from_pretrained(folder or source.path.parent, trust_remote_code=trust_remote_code, local_files_only=True,
                                             **options)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        named = tokenizer_files(folder)[0] if folder else source.path
        raise ValueError(f"The tokenizer {named} cannot be read ({first_line(error)}): {named.name} is damaged, copy it again.") from error


def tokenizer_id(checkpoint: Checkpoint) -> str:
    """Content hash of a checkpoint's tokenizer files (of what of a GGUF file makes its tokenizer)."""
    folder = tokenizer_home(checkpoint)
    if folder:
        return hash_files(tokenizer_files(folder))
    metadata = gguf_header((checkpoint.base or checkpoint).path)[0]
    return json.dumps({k: v for k, v in sorted(metadata.items()) if k.startswith("tokenizer.") and k != "tokenizer.chat_template"})


def _canonical(path: Path) -> str:
    """A tokenizer.json as the library writes it, without how it pads and truncates, which a trainer sets."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # bare Exception
        raise ValueError(f"The tokenizer {path} cannot be read ({first_line(error)}): tokenizer.json is damaged, copy it again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.to_str()


def check_tokenizer(checkpoint: Checkpoint, first: Checkpoint) -> None:
    """Raise ValueError where two checkpoints' tokenizers differ in more than how they are written down."""
    if tokenizer_id(checkpoint) == tokenizer_id(first):
        return
    folders = [tokenizer_home(c) for c in (checkpoint, first)]
    if all(f and (f / "tokenizer.json").exists() for f in folders):
        same = _canonical(folders[0] / "tokenizer.json") == _canonical(folders[1] / "tokenizer.json")
    else:
        same = load_tokenizer(checkpoint).get_vocab() == load_tokenizer(first).get_vocab()
    if not same:
        raise ValueError(f"The tokenizer of {checkpoint.path} is not the one of {first.path}: a series has one tokenizer.")


def template(checkpoint: Checkpoint) -> tuple[str | None, Path]:
    """A checkpoint's chat template and the file it is in: the tokenizer's own file, its configuration, or a GGUF file."""
    folder, source = tokenizer_home(checkpoint), checkpoint.base or checkpoint
    if folder is None:
        return gguf_header(source.path)[0].get("tokenizer.chat_template"), source.path
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(), folder / "chat_template.jinja"
    file = folder / "tokenizer_config.json"
    found = read_json(file).get("chat_template") if file.exists() else None
    return found if isinstance(found, str) else None, file


def template_difference(own: str, other: str) -> str:
    """Where two chat templates first differ: the line, and what either has there."""
    a, b = own.splitlines(), other.splitlines()
    line = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    x, y = (side[line] if line < len(side) else "" for side in (a, b))
    at = max(0, next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y))) - 20)
    return f"line {line + 1} is {x[at:at + 60]!r}, not {y[at:at + 60]!r}"


def blueprint(config, trust_remote_code: bool = False):
    """The model of a configuration without any numbers, on the meta device."""
    try:
        with torch.device("meta"):
            return (auto_class(config) or AutoModelForCausalLM).from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"No model can be built from the configuration of {config.name_or_path or config.model_type} "
                         f"({first_line(error)}).") from error


def ignored(hf, name: str) -> bool:
    """Whether transformers leaves a tensor of this name in a file aside: older releases kept tables there that are computed now."""
    return any(re.search(p, name) for p in (r"rotary_emb\.inv_freq$", r"masked_bias$", *(hf._keys_to_ignore_on_load_unexpected or ())))


def complete(report: Mapping, hf) -> bool:
    """Whether transformers, which knows the names of older releases, found every tensor of a model and no other."""
    return not report["missing_keys"] and not report["mismatched_keys"] and all(ignored(hf, n) for n in report["unexpected_keys"])


def misfits(shapes: Mapping[str, Sequence[int]], hf) -> list[str]:
    """What of named shapes does not fit a module, in words: parameters that are missing, of another shape, or more than it has."""
    own = {n: tuple(p.shape) for n, p in hf.named_parameters()}
    known = {n: tuple(t.shape) for n, t in hf.state_dict().items()}
    missing = [f"{n!r} is missing" for n in own if n not in shapes]
    other = [f"{n!r} is of shape {list(s)}, not {list(known[n])}" for n, s in shapes.items() if n in known and tuple(s) != known[n]]
    extra = [f"{n!r} is extra" for n in shapes if n not in known and not ignored(hf, n)]
    return missing + other + extra


def check_weights(checkpoint: Checkpoint, entries: Header, hf, trust_remote_code: bool = False) -> None:
    """Raise ValueError where the tensors that a checkpoint's headers list are not the ones of `hf` (a model on the meta device)."""
    if checkpoint.kind == "gguf":
        return  # its names are known when transformers dequantises it
    shapes = {name: shape for name, (_, shape) in entries.items()}
    whole = {n: tuple(t.shape) for n, t in hf.state_dict().items()}
    if odd := [n for n, (kind, _) in entries.items() if kind not in FLOATING and (n in whole or checkpoint.kind == "adapter")]:
        raise ValueError(f"The weights of {checkpoint.path} are quantised: {odd[0]!r} is kept as {entries[odd[0]][0]}, which is no "
                         "floating point. Save the model dequantised, or give the weights that it was quantised from.")
    if checkpoint.kind == "adapter":
        if found := adapter_misfits(entries, whole):
            raise ValueError(f"The adapter {checkpoint.files[1]} does not fit its base {checkpoint.base.path}: {found[0]}. "
                             "It was trained on another base.")
        return
    found = misfits(shapes, hf)
    if found and any(n not in shapes for n in dict(hf.named_parameters())):  # an older release's names, perhaps
        report = pretrained(checkpoint, torch.float32, trust_remote_code, device_map={"": "meta"}, ignore_mismatched_sizes=True)[1]
        if complete(report, hf):
            return
    if found:
        raise ValueError(f"The weights of {checkpoint.path} do not fit the model: {found[0]} ({len(found)} of {len(whole)} tensors).")


def check_memory(path: object, parameters: int, device: torch.device, dtype: torch.dtype, copies: int = 1) -> None:
    """Raise ValueError where a device's free memory does not hold `copies` of so many parameters."""
    if device.type == "meta":
        return
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    needed = parameters * dtype.itemsize * copies
    if needed > free:
        twice = " (its copy while it is read counted in)" if copies > 1 else ""
        raise ValueError(f"{path} needs {needed / 2**30:.2f} GiB of memory in {str(dtype).removeprefix('torch.')}{twice}, but {device} has "
                         f"{free / 2**30:.2f} GiB free: take a narrower dtype, a larger machine, or device_map='auto' over several GPUs.")
