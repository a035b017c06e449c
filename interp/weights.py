"""What trainers leave on disk: which files hold a checkpoint's weights, what their headers say, and the tensors. A pickle is never opened.

>>> checkpoint = find("runs/lora/checkpoint-100")      # .kind "adapter", .files, .base
>>> shapes = headers(checkpoint)                       # name -> (dtype, shape), from a few kilobytes
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import shlex
import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

Header = dict[str, tuple[str, tuple[int, ...]]]
#: Where verl keeps Hugging Face files inside a step's folder.
NESTED = ("", "actor/huggingface", "huggingface", "actor/lora_adapter", "lora_adapter")
#: A trainer's own pickles, which hold no weights.
STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state).*")
#: What a tokenizer may be kept in; the first that is complete counts.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",))
MODEL_CODE = "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
TENSORS_CODE = ("import sys, torch, safetensors.torch as s; t = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
                "s.save_file({k: v.contiguous() for k, v in t.items()}, sys.argv[2], metadata={'format': 'pt'})")
#: GGUF's plain value types: struct formats by number (8 is a string, 9 an array).
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk: its folder (or GGUF file), how its weights are kept, in which files, and an adapter's base."""

    path: Path
    kind: Literal["full", "sharded", "adapter", "gguf"]
    files: tuple[Path, ...]
    base: Checkpoint | None = None

    @property
    def home(self) -> Path:
        """The folder of the configuration: an adapter's is its base's."""
        return self.base.home if self.base else self.path.parent if self.kind == "gguf" else self.path

    @property
    def embedded(self) -> bool:
        """Whether a GGUF file brings its own tokenizer and configuration, since none lies beside it."""
        return self.kind == "gguf" and not (self.home / "config.json").exists()


def read_json(path: Path) -> dict:
    """A JSON object, or a sentence that names the file."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    return found


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer, none where it has none."""
    return next(([folder / n for n in names] for names in TOKENIZERS if all((folder / n).exists() for n in names)), [])


def _convert(path: Path) -> str:
    """What a folder without weights that are read has instead, and the command that converts it; empty where it has nothing."""
    def python(code, *paths):
        return f'python -c "{code}" ' + " ".join(shlex.quote(str(p)) for p in paths)

    pickles = sorted(p for e in ("bin", "pt", "pth") for n in {path, path / "actor"} for p in n.glob(f"*.{e}") if not STATE.match(p.name))
    shards = [p for p in pickles + sorted(path.parent.glob("*.pt")) if re.match(r"model_world_size_\d+_rank_\d+\.pt", p.name)]
    if shards:
        local = shards[0].parent
        folders = f"--local_dir {shlex.quote(str(local))} --target_dir {shlex.quote(str(local / 'huggingface'))}"
        return (" Only the shards of a distributed run are there, pickles which are never read: merge them with "
                f"`python -m verl.model_merger merge --backend fsdp {folders}`.")
    if found := sorted(path.glob("pytorch_model_fsdp_*")):
        command = f"accelerate merge-weights {shlex.quote(str(found[0]))} {shlex.quote(str(path))}"
    elif (path / "zero_to_fp32.py").exists():
        command = " ".join(["python", *(shlex.quote(str(p)) for p in (path / "zero_to_fp32.py", path, path)), "--safe_serialization"])
    elif any(p.name.startswith("pytorch_model") for p in pickles):
        command = python(MODEL_CODE, path)
    elif pickles:
        name = "adapter_model" if pickles[0].name.startswith("adapter_model") else "model"
        command = python(TENSORS_CODE, pickles[0], path / f"{name}.safetensors")
    else:
        return ""
    return f" Only a pickle is there, which is never read: if you trust the file, convert it with `{command}`."


def _index(path: Path) -> dict[str, str]:
    """A shard index: tensor -> file."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(n, str) and "/" not in n for n in found.values()):
        raise ValueError(f"{path} is damaged: it has no weight_map from tensors to the files of its folder.")
    return found


def _base(path: Path, base: str | Path | None) -> Checkpoint:
    """An adapter's base: as given, or as its adapter_config.json names it, a folder or a hub name (in the cache, or fetched)."""
    config = read_json(path / "adapter_config.json")
    name = str(base or config.get("base_model_name_or_path") or "")
    if not name:
        raise ValueError(f"{path / 'adapter_config.json'} names no base_model_name_or_path: give the base with base=.")
    for place in (Path(name), path / name, path.parent / name):
        if place.exists():
            return find(place.resolve() if ".." in place.parts else place)
    try:
        if base or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise FileNotFoundError
        place = fetch(name, config.get("revision"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The base {name!r} of the adapter {path} was found neither from the working folder nor from the adapter's "
                                "nor in the hub's cache: give its folder with base=.") from error
    return find(place)


def fetch(repository: str, revision: str | None = None, code: bool = False) -> Path:
    """The local folder of a hub repository's safetensors, configuration and tokenizer (`code`: its Python files too)."""
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", *(["*.py"] if code else [])]
    twice = ["consolidated*", "original/*"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=twice))
    except Exception as error:  # the client raises its own, and its transport's, many kinds
        raise FileNotFoundError(f"{repository}{f'@{revision}' if revision else ''} is not in the hub's cache and cannot be fetched "
                                f"({first_line(error)}).") from error


def find(path: str | Path, base: str | Path | None = None) -> Checkpoint:
    """What a checkpoint's folder (or GGUF file) holds; an adapter's base is `base`, or what its configuration names.

    Raises FileNotFoundError where there are no weights that can be read (with the command that converts a pickle), ValueError
    for a damaged index or configuration.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
            raise ValueError(f"{path} is one part of a split GGUF, which is not read: join the parts with `gguf-split --merge`.")
        return Checkpoint(path, "gguf", (path,))
    if not path.is_dir():
        raise (NotADirectoryError(f"{path} is a file, and no checkpoint: give a folder with safetensors, or a .gguf file.") if path.exists()
               else FileNotFoundError(f"There is no checkpoint at {path}."))
    for folder in (path / nested for nested in NESTED):
        index, adapter, quantised = folder / "model.safetensors.index.json", folder / "adapter_config.json", sorted(folder.glob("*.gguf"))
        if (folder / "model.safetensors").exists():
            return Checkpoint(folder, "full", (folder / "model.safetensors",))
        if index.exists():
            names = sorted(set(_index(index).values()))
            if missing := [n for n in names if not (folder / n).exists()]:
                raise FileNotFoundError(f"{folder} has no {missing[0]}, a shard that {index.name} names: copy it as well.")
            return Checkpoint(folder, "sharded", tuple(folder / n for n in names))
        if (folder / "adapter_model.safetensors").exists() and not adapter.exists():
            raise FileNotFoundError(f"{folder} has adapter_model.safetensors but no adapter_config.json, so its base and rank are unknown.")
        if adapter.exists():
            read_json(adapter)
            if not (folder / "adapter_model.safetensors").exists():
                raise FileNotFoundError(f"{folder} has no adapter_model.safetensors.{_convert(folder)}")
            return Checkpoint(folder, "adapter", (adapter, folder / "adapter_model.safetensors"), _base(folder, base))
        if len(quantised) > 1:
            raise ValueError(f"{folder} holds {len(quantised)} GGUF files, {quantised[0].name} and others: a checkpoint is one, "
                             "so give the files' paths.")
        if quantised:
            return find(quantised[0])
    raise FileNotFoundError(f"{path} has no model.safetensors.{_convert(path)}")


def first_line(error: Exception) -> str:
    """An error's first line without its full stop, at most 200 characters of it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


@contextmanager
def _mapped(path: Path):
    with open(path, "rb") as stream:
        if not path.stat().st_size:
            yield b""
        else:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"The weights {path} cannot be read ({why}): the file is truncated or damaged, copy or train it again.")


def header(path: Path) -> Header:
    """Names, dtypes and shapes of a safetensors file; raises ValueError where it is not as long as they say."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if 8 + length > size:
                raise ValueError("it has no safetensors header")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        end = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
        found = {name: (e["dtype"], tuple(e["shape"])) for name, e in entries.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, first_line(error) if size else "it is empty") from error
    if end != size:
        raise _damaged(path, f"its header describes {end:,} bytes, it has {size:,}")
    return found


def gguf_header(path: Path) -> tuple[dict, Header]:
    """Metadata (of an array: its content hash) and tensors of a GGUF file; raises ValueError where the file is shorter than they say."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    with _mapped(path) as data:
        at = 0

        def take(kind: str):
            nonlocal at
            at += struct.calcsize(kind)
            return struct.unpack_from(f"<{kind}", data, at - struct.calcsize(kind))[0]

        def text() -> str:
            nonlocal at
            length = take("Q")
            at += length
            if at > len(data):
                raise ValueError("a text ends behind the file")
            return bytes(data[at - length:at]).decode(errors="replace")

        def value(kind: int):
            nonlocal at
            if kind == 8:
                return text()
            if kind != 9:
                return take(SCALARS[kind])
            inner, count, start = take("I"), take("Q"), at
            if inner in SCALARS:
                at += count * struct.calcsize(SCALARS[inner])
            else:
                for _ in range(count):
                    text() if inner == 8 else value(inner)
            return hashlib.sha256(data[start:at]).hexdigest()[:16]

        try:
            if data[:4] != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            at = 8
            tensors, pairs = take("Q"), take("Q")
            metadata = {text(): value(take("I")) for _ in range(pairs)}
            found, end = {}, 0
            for _ in range(tensors):
                name = text()
                shape = tuple(take("Q") for _ in range(take("I")))
                kind = GGMLQuantizationType(take("I"))
                block, width = GGML_QUANT_SIZES[kind]
                found[name] = (kind.name, shape)
                end = max(end, take("Q") + math.prod(shape) // block * width)
        except (struct.error, ValueError, KeyError, OverflowError) as error:
            raise _damaged(path, first_line(error) if len(data) else "it is empty") from error
        align = metadata.get("general.alignment", 32)
        end += -(-at // align) * align
        if end > len(data):
            raise _damaged(path, f"its header describes {end:,} bytes, it has {len(data):,}")
    return metadata, found


def headers(checkpoint: Checkpoint) -> Header:
    """Names, dtypes and shapes of a checkpoint's own tensors (an adapter's: of the adapter), read from the files' headers alone."""
    if checkpoint.kind == "gguf":
        return gguf_header(checkpoint.path)[1]
    found = {file: header(file) for file in checkpoint.files if file.suffix == ".safetensors"}
    if checkpoint.kind == "sharded":
        index = checkpoint.path / "model.safetensors.index.json"
        for name, shard in _index(index).items():
            if name not in found[checkpoint.path / shard]:
                raise ValueError(f"{index} says that {name!r} is in {shard}, but it is not: the index is not the one of these shards.")
    return {name: entry for entries in found.values() for name, entry in entries.items()}


def stored(entries: Header) -> str:
    """The dtype that most of a checkpoint's numbers are kept in, as its header writes it."""
    counts: Counter = Counter()
    for kind, shape in entries.values():
        counts[kind] += math.prod(shape)
    return counts.most_common(1)[0][0] if counts else "none"


def hash_files(paths: Sequence[Path]) -> str:
    """Content hash of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with _mapped(path) as data:
            digest.update(data)
    return digest.hexdigest()[:16]


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors in a full or sharded checkpoint's files, under the files' names."""
    headers(checkpoint)
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        try:
            found.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
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
            options["config"] = AutoConfig.from_pretrained(checkpoint.home, local_files_only=True)
    folder = checkpoint.path.parent if checkpoint.kind == "gguf" else checkpoint.path
    with _quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True,
                                                    local_files_only=True, trust_remote_code=trust_remote_code, **options)


def dequantised(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A GGUF file's weights as plain numbers, under transformers' names."""
    gguf_header(checkpoint.path)
    try:
        hf, report = pretrained(checkpoint, dtype, ignore_mismatched_sizes=True)
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
