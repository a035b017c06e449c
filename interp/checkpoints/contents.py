"""What trainers leave on disk: a checkpoint's weight files, and an adapter's base. No pickle is opened.

>>> checkpoint = find("runs/lora/checkpoint-100")      # .kind "adapter", .files, .base
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interp.checkpoints.conversions import conversion
from interp.checkpoints.files import check_folder, read_json
from interp.system.json_files import check_regular, read_training
from interp.system.paths import DATA
from interp.system.sentences import first_line

#: The series that is shipped.
SERIES = DATA / "series"
#: Where verl and its like keep Hugging Face files inside a step's folder.
NESTED = (
    "",
    "actor/huggingface",
    "huggingface",
    "policy/huggingface",
    "hf",
    "policy/hf",
    "hf_model",
    "actor/lora_adapter",
    "lora_adapter",
    "policy/lora_adapter",
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
#: What a tokenizer may be kept in; the first that is complete counts.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",))


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk: its folder (or GGUF file), kind, weight files, and an adapter's base."""

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


def training_notes(folder: Path) -> dict:
    """The trainer's notes beside the weights (training.json), {} without.

    Raises what `read_training` raises.
    """
    file = folder / "training.json"
    return read_training(file) if file.exists() else {}


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer, none where it has none."""
    return next(
        ([folder / n for n in names] for names in TOKENIZERS if all((folder / n).exists() for n in names)), []
    )


def shard_index(path: Path) -> dict[str, str]:
    """A shard index: tensor -> file."""
    shards = read_json(path).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(n, str) and "/" not in n for n in shards.values())
    ):
        raise ValueError(f"{path} is damaged: it has no weight_map from tensors to the files of its folder.")
    return shards


def _base(path: Path, base: str | Path | None, above: Sequence[Path]) -> Checkpoint:
    """An adapter's base: as given, or as adapter_config.json names it, a folder or a hub name.

    Where what it names is another adapter, the base that is given belongs to the lowest of them, unless it is
    an adapter itself.
    """
    config = read_json(path / "adapter_config.json")
    if base and Path(base).exists() and Path(base).resolve() == path.resolve():
        base = None  # the base that was given is this adapter itself, whose own base is the one that it names
    named, above = str(config.get("base_model_name_or_path") or ""), [*above, path.resolve()]
    if not base and not named:
        raise ValueError(
            f"{path / 'adapter_config.json'} names no base_model_name_or_path: give the base with base=."
        )
    below = _place(path, named) or (_cached_adapter(named, config.get("revision")) if base else None)
    given = _place(path, str(base)) if base else None
    if below is not None and (not base or (_adapts(below) and (given is None or not _adapts(given)))):
        return _below(below, above, base)
    if given is not None:
        return _below(given, above)
    try:
        if base or not HUB_NAME.fullmatch(named):
            raise FileNotFoundError
        place = fetch(named, config.get("revision"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The base {str(base or named)!r} of the adapter {path} was found neither from the working "
            "folder nor from the adapter's nor in the hub's cache: give its folder with base=."
        ) from error
    return _below(place, above)


def _place(path: Path, name: str) -> Path | None:
    """Where a base of this name is, from the working folder or the adapter's; None where it is not there."""
    location = next(
        (place for place in (Path(name), path / name, path.parent / name) if name and place.exists()), None
    )
    return location.resolve() if location is not None and ".." in location.parts else location


def _cached_adapter(name: str, revision: str | None) -> Path | None:
    """The folder of an adapter of this name in the hub's cache; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    file = (
        try_to_load_from_cache(name, "adapter_config.json", revision=revision)
        if HUB_NAME.fullmatch(name)
        else None
    )
    return Path(file).parent if isinstance(file, str) else None


def _adapts(path: Path) -> bool:
    return any((path / nested / "adapter_config.json").exists() for nested in NESTED)


def _below(place: Path, above: Sequence[Path], base: str | Path | None = None) -> Checkpoint:
    """The base of an adapter, a model or another adapter; raises ValueError where adapters form a circle."""
    if place.resolve() in above:
        raise ValueError(
            f"The adapter {above[-1]} is, by way of its base, its own base ({place}): give the model it was "
            "trained from with base=."
        )
    return find(place, base, above)


def fetch(repository: str, revision: str | None = None, code: bool = False) -> Path:
    """Local folder of a hub repository's safetensors, configuration and tokenizer (`code`: also Python)."""
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", *(["*.py"] if code else [])]
    twice = ["consolidated*", "original/*"]
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=twice)
        )
    except Exception as error:  # the client raises its own, and its transport's, many kinds
        raise FileNotFoundError(
            f"{repository}{f'@{revision}' if revision else ''} is not in the hub's cache and cannot be "
            f"fetched ({first_line(error)})."
        ) from error


def find(path: str | Path, base: str | Path | None = None, above: Sequence[Path] = ()) -> Checkpoint:
    """What a checkpoint's folder (or GGUF file) holds; an adapter's base is `base`, or as it names it.

    above: the adapters whose base is looked for. Raises FileNotFoundError where there are no weights that can
    be read (with the command that converts what is there), ValueError for a damaged index or configuration,
    or weights and an adapter in one folder.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
            raise ValueError(
                f"{path} is one part of a split GGUF, which is not read: join the parts with `gguf-split "
                "--merge`."
            )
        return Checkpoint(path, "gguf", (path,))
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"There is no checkpoint at {path}.")
        check_regular(path)
        raise NotADirectoryError(
            f"{path} is a file, and no checkpoint: give a folder with safetensors, or a .gguf file."
        )
    for folder in (path / nested for nested in NESTED):
        if folder.is_dir() and (checkpoint := _find_in(folder, base, above)):
            return checkpoint
    raise FileNotFoundError(f"{path} has no model.safetensors.{conversion(path) or _inside(path)}")


def _find_in(folder: Path, base: str | Path | None, above: Sequence[Path]) -> Checkpoint | None:
    """The checkpoint in this very folder, None where it has none."""
    check_folder(folder)
    whole, index, adapter = (
        folder / n for n in ("model.safetensors", "model.safetensors.index.json", "adapter_config.json")
    )
    low_rank, quantised = folder / "adapter_model.safetensors", sorted(folder.glob("*.gguf"))
    full = next((p for p in (whole, index) if p.exists()), None)
    if full and low_rank.exists():
        raise ValueError(
            f"{folder} holds both {full.name} and {low_rank.name}, so that it is not known whether the "
            "adapter is merged: leave one of them there."
        )
    if whole.exists() and index.exists():
        stray = [
            n for n in sorted(set(shard_index(index).values())) if n != whole.name and (folder / n).exists()
        ]
        if stray:
            raise ValueError(
                f"{folder} holds both {whole.name} and the shards of {index.name} ({stray[0]} and others): "
                "leave one of them there."
            )
    if whole.exists():
        return Checkpoint(folder, "full", (whole,))
    if index.exists():
        names = sorted(set(shard_index(index).values()))
        if missing := [n for n in names if not (folder / n).exists()]:
            raise FileNotFoundError(
                f"{folder} has no {missing[0]}, a shard that {index.name} names: copy it as well."
            )
        return Checkpoint(folder, "sharded", tuple(folder / n for n in names))
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has no {index.name}, which says what is in {shards[0].name} and its like: copy it as "
            "well."
        )
    if low_rank.exists() and not adapter.exists():
        raise FileNotFoundError(
            f"{folder} has adapter_model.safetensors but no adapter_config.json, so its base and rank are "
            "unknown."
        )
    if adapter.exists():
        read_json(adapter)
        if not low_rank.exists():
            raise FileNotFoundError(f"{folder} has no adapter_model.safetensors.{conversion(folder)}")
        return Checkpoint(folder, "adapter", (adapter, low_rank), _base(folder, base, above))
    if len(quantised) > 1:
        raise ValueError(
            f"{folder} holds {len(quantised)} GGUF files, {quantised[0].name} and others: a checkpoint is "
            "one, so give the files' paths."
        )
    return find(quantised[0]) if quantised else None


def _inside(path: Path) -> str:
    """Where models or adapters lie in folders of their own, in a sentence; else what the folder holds."""
    names = sorted(p.parent.name for p in path.glob("*/adapter_config.json"))
    if names:
        return (
            f" It holds adapters in folders of their own: {', '.join(names)}. Give the paths of one "
            "adapter's folders (from_paths)."
        )
    models = sorted(str(p.parent) for depth in ("*", "*/*") for p in path.glob(f"{depth}/config.json"))
    if models:
        return f" It holds a model in a folder of its own: give the path {models[0]}."
    small = (".json", ".jinja", ".txt")
    held = [p.name for p in sorted(path.iterdir(), key=lambda p: (p.suffix in small, p.name))]
    return (
        f" It holds {', '.join(held[:5])}{' and others' if len(held) > 5 else ''}."
        if held
        else " It is empty."
    )
