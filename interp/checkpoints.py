"""What trainers leave on disk: which files hold a checkpoint's weights, and an adapter's base. A pickle is never opened.

>>> checkpoint = find("runs/lora/checkpoint-100")      # .kind "adapter", .files, .base
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: Where verl keeps Hugging Face files inside a step's folder.
NESTED = ("", "actor/huggingface", "huggingface", "actor/lora_adapter", "lora_adapter")
#: A trainer's own pickles, which hold no weights.
STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state).*")
#: What a tokenizer may be kept in; the first that is complete counts.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",))
MODEL_CODE = "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
TENSORS_CODE = ("import sys, torch, safetensors.torch as s; t = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
                "s.save_file({k: v.contiguous() for k, v in t.items()}, sys.argv[2], metadata={'format': 'pt'})")


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


def shard_index(path: Path) -> dict[str, str]:
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
            names = sorted(set(shard_index(index).values()))
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
