"""A checkpoint series: the ordered checkpoints of one training run, loaded once and swapped in place.

>>> series = CheckpointSeries.discover("runs/quick/series")
>>> model = series.load(0)
>>> series.swap(model, series.steps[-1])        # the next checkpoint's weights, in the same module
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interp.models import HookedModel, pick_device, pick_dtype

SERIES = Path(__file__).parent / "data" / "series"
_READER, _HASHER = ThreadPoolExecutor(1), ThreadPoolExecutor(1)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder's safetensors, or a sentence."""
    index = path / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if not (path / name).exists():
            pickled = list(path.glob("pytorch_model*.bin"))
            hint = " Only a pickle is there, which is never read: save it as safetensors." if pickled else ""
            raise FileNotFoundError(f"{path} has no {name}.{hint}")
        try:
            tensors.update(load_file(path / name))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"The weights {path / name} cannot be read ({error}): the file is truncated or damaged, "
                             "copy or train it again.") from error
    return tensors


def _renamed(path: Path, model: HookedModel) -> dict[str, torch.Tensor]:
    """Weights under the module's own names, where the files keep an older release's (empty where transformers finds gaps too)."""
    hf, report = AutoModelForCausalLM.from_pretrained(path, dtype=model.dtype, output_loading_info=True)
    return {} if report["missing_keys"] or report["mismatched_keys"] else hf.state_dict()


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else nullcontext(b"") as data:
            digest.update(data)
    return digest.hexdigest()[:16]


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}).") from error


def _architecture(path: Path) -> dict:
    """What of a checkpoint's configuration decides the computation."""
    volatile = ("dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "name_or_path")
    return {k: v for k, v in _json(path / "config.json").items() if k not in volatile}


def _template(path: Path) -> str | None:
    """A checkpoint's chat template, from its own file or the tokenizer's configuration."""
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text()
    return _json(path / "tokenizer_config.json").get("chat_template") if (path / "tokenizer_config.json").exists() else None


class CheckpointSeries:
    """Ordered checkpoints of one training run: one architecture, one tokenizer."""

    def __init__(self, sources: Mapping[int, Path | tuple[str, str]]):
        if not sources:
            raise ValueError("A checkpoint series needs at least one checkpoint.")
        self.sources = dict(sorted(sources.items()))
        self._ahead: dict[int, Future] = {}
        self._hashes: dict[tuple, str] = {}

    @classmethod
    def discover(cls, folder: str | Path = SERIES) -> "CheckpointSeries":
        """All `checkpoint-N` folders below `folder`.

        Raises FileNotFoundError where there is none, ValueError where their tokenizers or shapes differ.
        """
        folder = Path(folder)
        found = {int(m.group(1)): p for p in folder.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))}
        if not found:
            raise FileNotFoundError(f"No checkpoint-N folders in {folder}: give the folder that the trainer wrote, "
                                    "or train a series with `make series`.")
        series = cls(found)
        series.check()
        return series

    @classmethod
    def from_hub(cls, repository: str, revisions: Sequence[str]) -> "CheckpointSeries":
        """Revisions of one hub repository, keyed by the number in their name (needs the network when loaded)."""
        steps = [re.search(r"\d+", r) for r in revisions]
        return cls({int(m.group()) if m else i: (repository, r) for i, (m, r) in enumerate(zip(steps, revisions))})

    @property
    def steps(self) -> list[int]:
        return list(self.sources)

    def path(self, step: int) -> Path | tuple[str, str]:
        """Where a checkpoint is; raises KeyError naming those there are."""
        if step not in self.sources:
            raise KeyError(f"There is no checkpoint {step} in this series: it has {', '.join(map(str, self.steps))}.")
        return self.sources[step]

    def check(self) -> None:
        """Raise ValueError where a checkpoint's tokenizer or architecture differs from the first one's."""
        first = self.path(self.steps[0])
        for step in self.steps:
            path = self.path(step)
            for name in ("config.json", "tokenizer.json"):
                if not (path / name).exists():
                    raise FileNotFoundError(f"{path} has no {name}, so it is not a complete Hugging Face checkpoint.")
            if _hash_files([path / "tokenizer.json"]) != _hash_files([first / "tokenizer.json"]):
                raise ValueError(f"The tokenizer of {path} is not the one of {first}: a series has one tokenizer.")
            if _template(path) != _template(first):
                raise ValueError(f"The chat template of {path} is not the one of {first}: their prompts would differ.")
            own, other = _architecture(path), _architecture(first)
            differ = [k for k in sorted({*own, *other}) if own.get(k) != other.get(k)]
            if differ:
                raise ValueError(f"The architecture of {path} is not the one of {first}: {differ[0]} is {own.get(differ[0])!r}, "
                                 f"not {other.get(differ[0])!r}.")

    def weights_hash(self, step: int) -> str:
        """Content hash of a checkpoint's weight files (a hub checkpoint's repository and revision)."""
        path = self.path(step)
        if isinstance(path, tuple):
            return "@".join(path)
        files = sorted(path.glob("*.safetensors"))
        key = tuple((f, s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()])  # a file is hashed once for as long as it stays
        if key not in self._hashes:
            self._hashes[key] = _hash_files(files)
        return self._hashes[key]

    def load(self, step: int, device: str = "auto", dtype: str = "auto") -> HookedModel:
        """Load one checkpoint.

        Raises KeyError for a step that is not there, ValueError or FileNotFoundError for weights that cannot be read.
        """
        path, where = self.path(step), pick_device(device)
        kind = pick_dtype(dtype, where)
        if isinstance(path, tuple):
            tokenizer = AutoTokenizer.from_pretrained(path[0], revision=path[1])
            hf = AutoModelForCausalLM.from_pretrained(path[0], revision=path[1], dtype=kind)
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(path)
            except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
                raise ValueError(f"The tokenizer of {path} cannot be read ({error}): tokenizer.json is damaged, copy it again.") from error
            hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=kind)
            hf.config.name_or_path = str(path)
            if len(tokenizer) > hf.config.vocab_size:
                raise ValueError(f"The tokenizer of {path} has {len(tokenizer)} entries, but the model embeds only "
                                 f"{hf.config.vocab_size}: they do not belong together.")
        model = HookedModel(hf.to(where), tokenizer)
        if isinstance(path, tuple):
            model.step, model.weights_hash = step, self.weights_hash(step)
        else:
            self.swap(model, step)
        return model

    def _read(self, step: int) -> tuple[dict[str, torch.Tensor], str, list[str]]:
        """A checkpoint's tensors, its hash, and the names of those that are not finite."""
        path = self.path(step)
        if isinstance(path, tuple):
            state = AutoModelForCausalLM.from_pretrained(path[0], revision=path[1]).state_dict()
        else:
            state = _tensors(path)
        digest = _HASHER.submit(self.weights_hash, step)  # hashing and checking read the same pages at the same time
        bad = [n for n, t in state.items() if t.is_floating_point() and not t.sum().isfinite() and not t.isfinite().all()]
        return state, digest.result(), bad

    def swap(self, model: HookedModel, step: int, ahead: int | None = None) -> HookedModel:
        """Put another checkpoint's weights into `model` in place; the model is left as it was when they cannot be read.

        ahead: the step wanted next, read in the background from now on. Raises ValueError or FileNotFoundError for weights
        that cannot be read, do not fit, or are not finite.
        """
        path, own = self.path(step), dict(model.hf.named_parameters())
        state, digest, bad = self._ahead.pop(step).result() if step in self._ahead else self._read(step)
        if ahead is not None and ahead not in self._ahead:
            self._ahead = {ahead: _READER.submit(self._read, ahead)}
        if not isinstance(path, tuple) and not own.keys() <= state.keys() and (renamed := _renamed(path, model)):
            state = renamed
        wrong = [n for n, p in own.items() if n not in state or state[n].shape != p.shape]
        unknown = [n for n in state if n not in own and n not in model.hf.state_dict()]
        if wrong or unknown:
            raise ValueError(f"The weights of {path} do not fit the model: {(wrong + unknown)[0]!r} is missing, extra or of "
                             f"another shape ({len(wrong)} of {len(own)} parameters, {len(unknown)} extra).")
        if bad:
            raise ValueError(f"The weights of {path} hold values that are not finite, first in {bad[0]!r}.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
        model.step, model.weights_hash = step, digest
        model.__dict__.pop("bridge", None)  # where TransformerLens copied parameters it would show the last checkpoint's
        return model
