"""The disk that a study's activations take: estimated before it starts, refused, and given back at its end.

>>> estimated(config, "probes")                # bytes; None where the model's shape is not on this machine
>>> check_room(config, to_store(config, "all"))  # raises where the disk is too small
>>> give_back(config)                          # as --keep_activations says
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .boundary import ACTIVATIONS, RANDOM, READ, TRAIN, sample_episodes, stores_decoded
from .registry import chains
from .study import Study

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Analyses that store activations of the study's own decisions, and probes, which read others as well.
READ_OWN = ("transfer", "mdl")
PROBES = "probes"
#: From so many bytes on a run says beforehand what it will store.
WORTH_SAYING = 100 * 2**20
#: Bytes of a number.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def estimated(config: Study, name: str) -> int | None:
    """Bytes of activations that an analysis, or `all`, will have stored when it ends; None where not known.

    It is exact but for the headers of shards and the manifest. Raises ValueError for a layer that is stored
    and not there.
    """
    names = {each for chain in chains() for each in chain} if name == "all" else {name}
    names -= set(getattr(config, "skip", ()))
    reads, decodes = bool(names & {PROBES, *READ_OWN}), config.store_decoded and name != "all"
    if not reads and not decodes:
        return 0
    shape = _shape(config)
    if not shape:
        return None
    if not reads and not stores_decoded(config, shape.num_hidden_layers):
        return 0
    decisions = len(config.steps) * sum(_own(config).values())
    if PROBES in names:
        read = _of_probes(config)
        decisions = sum(read.values()) * (len(config.steps) + _controlled(config))
    layers = config.stored_layers(shape.num_hidden_layers)
    width = sum(_width(shape, site) for site in config.stored_sites)
    return decisions * len(layers) * width * _BYTES[config.activation_dtype]


def _shape(config: Study) -> PretrainedConfig | None:
    """The configuration of the language model, where it is on this machine and says layers and width."""
    if config.revisions:
        return None
    shape = config.checkpoint_series.configuration(config.steps[0]).get_text_config()
    known = getattr(shape, "num_hidden_layers", None) and getattr(shape, "hidden_size", None)
    return shape if known else None


def _width(shape: PretrainedConfig, site: str) -> int:
    """Numbers at a site of a layer."""
    heads = getattr(shape, "num_attention_heads", None)
    if site != "z" or not heads:
        return shape.hidden_size
    return heads * (getattr(shape, "head_dim", None) or shape.hidden_size // heads)


def _held(config: Study) -> dict[str, int]:
    """How many decisions each split has."""
    return {split: sum(len(each.references) for each in config.episodes[split]) for split in config.parts}


def _own(config: Study) -> dict[str, int]:
    """How many decisions of each split are studied."""
    wanted = config.decisions if isinstance(config.decisions, int) else 0
    return {split: min(n, wanted or config.number(0, 160, 400)) for split, n in _held(config).items()}


def _of_probes(config: Study) -> dict[str, int]:
    """How many decisions of each split probes read, those that they are fitted on among them."""
    wanted = config.number(getattr(config, "fit_decisions", 0), 1500, 4000)
    fitted = len(sample_episodes(config.training, wanted, config.seed))
    own, held = _own(config), _held(config)
    most = getattr(config, "test_decisions", 0) or (10**6 if config.size == "full" and fitted else 0)
    tested = {split: max(own[split], min(most, held[split])) for split in config.parts}
    return tested | {TRAIN: fitted}


def _controlled(config: Study) -> bool:
    """Whether probes read random weights as well."""
    return getattr(config, "controls", "auto") != "few"


def to_store(config: Study, name: str) -> int:
    """Bytes of activations that an analysis has still to store; 0 where that is not known."""
    needed = estimated(config, name)
    return max(0, needed - sum(each.stat().st_size for each in _reusable(config))) if needed else 0


def _reusable(config: Study) -> Iterator[Path]:
    """Files of activations that are stored as the study stores them."""
    shape, wanted = _shape(config), config.stored_sites
    layers = config.stored_layers(shape.num_hidden_layers) if shape else []
    own = [site for site in wanted if site in READ]
    for manifest in (config.run / ACTIVATIONS).glob("*/*/manifest.jsonl"):
        for line in manifest.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                sites, path = entry["sites"], manifest.with_name(Path(entry["file"]).name)
                dtype = entry.get("stored_as", "torch.float32").removeprefix("torch.")
                same = (entry["layers"], dtype) == (layers, config.activation_dtype)
            except (ValueError, KeyError, TypeError, AttributeError):  # damaged, and captured again
                continue
            together = sites == own or not set(sites) & set(READ) and set(sites) <= set(wanted)
            if same and together and path.exists():
                yield path


def check_room(config: Study, needed: int) -> None:
    """Say what will be stored, where that is much.

    Raises OSError, naming both numbers, where the disk of the run's folder has no room for it.

    needed: bytes.
    """
    if needed >= WORTH_SAYING:
        print(f"{config.run}: stored activations will take {_size(needed)}.", file=sys.stderr)
    folder = config.run.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        half = " --activation_dtype bfloat16 halves it," if config.activation_dtype == "float32" else ""
        raise OSError(
            f"--run {config.run}: stored activations will take {_size(needed)}, and {_size(free)} are free "
            f"in {folder}:{half} fewer --decisions, --checkpoints, --activation_sites or --activation_layers "
            "take less, or give another --run."
        )


def _size(n: int) -> str:
    """Bytes in the largest unit that there is one of."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= unit:
            return f"{n / unit:,.1f} {name}"
    return f"{n} bytes"


def _shards(run: Path, places: Sequence[str] = ("*/*",)) -> list[Path]:
    """Files of activations in the folders of a run, by their places there."""
    folders = [folder for place in places for folder in (run / ACTIVATIONS).glob(place)]
    return [path for folder in folders for path in folder.glob("*.safetensors")]


def give_back(config: Study) -> int:
    """Remove the stored activations that a study does not keep; how many bytes they had."""
    if config.keep_activations == "all":
        return 0
    places = ["*/*"] if config.keep_activations == "none" else [f"{RANDOM}/*", f"*/{TRAIN}"]
    shards = _shards(config.run, places)
    freed = sum(path.stat().st_size for path in shards)
    for path in shards:
        path.unlink(missing_ok=True)
    for place in places:
        for folder in (config.run / ACTIVATIONS).glob(place):
            (folder / "manifest.jsonl").unlink(missing_ok=True)
            for empty in (folder, folder.parent):
                if not any(empty.iterdir()):
                    empty.rmdir()
    return freed
