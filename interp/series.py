"""A checkpoint series: the ordered checkpoints of one training run, loaded once and swapped in place.

>>> series = CheckpointSeries.discover("runs/quick/series")
>>> model = series.load(0)
>>> series.swap(model, series.steps[-1])        # the next checkpoint's weights, in the same module
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from interp import checkpoints, checks, weights
from interp.checkpoints import Checkpoint
from interp.finite import check_cast
from interp.headers import hash_files, headers, stored
from interp.inner import auto_class
from interp.models import HookedModel, pick_device, pick_dtype

SERIES = Path(__file__).parent / "data" / "series"
_READER, _HASHER = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
_NAMED = re.compile(r"(?:checkpoint|global_step)[-_](\d+)")
Source = Path | tuple[str, str]


def _number(path: Path) -> int | None:
    """The step at the end of a checkpoint's name, verl's inner folders and a GGUF's quantisation left out."""
    name = re.sub(r"[-_.](?:I?Q\d\w*|B?F16|F32)$", "", path.stem, flags=re.I) if path.suffix == ".gguf" else path.name
    for nested in filter(None, checkpoints.NESTED):
        if path.as_posix().endswith(f"/{nested}"):
            name = path.parents[nested.count("/")].name
            break
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _by_step(pairs: Iterable[tuple[int, Source]]) -> dict[int, Source]:
    """step -> source; raises ValueError where two have one step."""
    found: dict[int, Source] = {}
    for step, source in pairs:
        if step in found:
            raise ValueError(f"{found[step]} and {source} are both checkpoint {step}: a series has one checkpoint of each step.")
        found[step] = source
    return found


class CheckpointSeries:
    """Ordered checkpoints of one training run: one architecture, one tokenizer, one chat template.

    sources: step -> folder, GGUF file, or (hub repository, revision). base: the base of adapters that do not say theirs.
    trust_remote_code: whether Python code that a checkpoint brings along may run.
    """

    def __init__(self, sources: Mapping[int, Source], base: str | Path | None = None, trust_remote_code: bool = False):
        if not sources:
            raise ValueError("A checkpoint series needs at least one checkpoint.")
        self.sources = dict(sorted(sources.items()))
        self.base, self.trust_remote_code = base, trust_remote_code
        self._ahead: dict[int, Future] = {}
        self._hashes: dict[tuple, str] = {}

    @classmethod
    def discover(cls, folder: str | Path = SERIES, base: str | Path | None = None, trust_remote_code: bool = False) -> CheckpointSeries:
        """What a trainer wrote below `folder`: `checkpoint-N` folders, verl's `global_step_N`, or `*.gguf` files.

        Each holds safetensors, whole or sharded, or an adapter (merged into its base as it is loaded: `base`, or what
        adapter_config.json names), or one GGUF file. Of adapters alone without a checkpoint-0 the first one's base becomes
        checkpoint 0, the untouched model. A folder that is itself a model is a series of one, of the step in its name or 0.

        Raises FileNotFoundError where there is no checkpoint, and what `check` raises.
        """
        folder = Path(folder)
        if folder.is_file():
            return cls.from_paths([folder], base=base, trust_remote_code=trust_remote_code)
        found = [(int(m[1]), p) for p in sorted(folder.glob("*")) if p.is_dir() and (m := _NAMED.fullmatch(p.name))]
        files = sorted(folder.glob("*.gguf"))
        model = any((folder / n / name).exists() for n in checkpoints.NESTED for name in ("config.json", "adapter_config.json"))
        if not found and model and len(files) < 2:
            named = _NAMED.fullmatch(folder.resolve().name)
            return cls.from_paths([folder], [int(named[1]) if named else 0], base, trust_remote_code)
        if not found and files:
            return cls.from_paths(files, base=base, trust_remote_code=trust_remote_code)
        if not found:
            raise FileNotFoundError(f"No checkpoint-N folders in {folder}: give the folder that the trainer wrote, "
                                    "or train a series with `make series`.")
        series = cls(_by_step(found), base, trust_remote_code)
        held = {step: series.checkpoint(step) for step in series.steps}
        series.sources = {step: c.path for step, c in held.items()}
        if 0 not in held and all(c.kind == "adapter" for c in held.values()):
            series.sources = {0: held[series.steps[0]].base.path, **series.sources}
        series.check()
        return series

    @classmethod
    def from_paths(cls, paths: Sequence[str | Path], steps: Sequence[int] | None = None, base: str | Path | None = None,
                   trust_remote_code: bool = False) -> CheckpointSeries:
        """The checkpoints at these paths, folders or GGUF files.

        steps: theirs, in the same order; else the numbers that their names end in, else, where one has none, their positions.
        Raises ValueError where two have one step, and what `check` raises.
        """
        paths = [Path(p) for p in paths]
        numbers = [_number(p) for p in paths] if steps is None else list(steps)
        if len(numbers) != len(paths):
            raise ValueError(f"There are {len(paths)} paths, but {len(numbers)} steps: give one step for each path.")
        if None in numbers or (steps is None and len(paths) == 1 and not _NAMED.search(paths[0].name)):
            numbers = list(range(len(paths)))
        series = cls(_by_step(zip(numbers, paths)), base, trust_remote_code)
        series.sources = {step: series.checkpoint(step).path for step in series.steps}
        series.check()
        return series

    @classmethod
    def from_hub(cls, repository: str, revisions: Sequence[str], base: str | Path | None = None,
                 trust_remote_code: bool = False) -> CheckpointSeries:
        """Revisions of one hub repository, keyed by the number in their name (from the cache, or fetched when they are loaded)."""
        numbers = [int(m[0]) if (m := re.search(r"\d+", r)) else i for i, r in enumerate(revisions)]
        return cls(_by_step((n, (repository, r)) for n, r in zip(numbers, revisions)), base, trust_remote_code)

    @property
    def steps(self) -> list[int]:
        return list(self.sources)

    def path(self, step: int) -> Source:
        """Where a checkpoint is; raises KeyError naming those there are."""
        if step not in self.sources:
            raise KeyError(f"There is no checkpoint {step} in this series: it has {', '.join(map(str, self.steps))}.")
        return self.sources[step]

    def checkpoint(self, step: int) -> Checkpoint:
        """What is on disk of a checkpoint now (a hub checkpoint is fetched); raises what `interp.checkpoints.find` raises."""
        path = self.path(step)
        return checkpoints.find(checkpoints.fetch(*path, code=self.trust_remote_code) if isinstance(path, tuple) else path, self.base)

    def kind(self, step: int) -> str:
        """How a checkpoint is kept: full, sharded, adapter, gguf, or hub."""
        return "hub" if isinstance(self.path(step), tuple) else self.checkpoint(step).kind

    @cached_property
    def notes(self) -> list[str]:
        """What of a series bears on its numbers, in sentences: merged adapters, dequantised weights, several dtypes."""
        found, dtypes = [], {}
        for step in [s for s in self.steps if not isinstance(self.path(s), tuple)]:
            checkpoint = self.checkpoint(step)
            kept = stored(headers(checkpoint))
            if checkpoint.kind == "gguf":
                found.append(f"Checkpoint {step} is dequantised from {kept} ({checkpoint.path.name}).")
            elif checkpoint.kind == "adapter":
                found.append(f"Checkpoint {step} is an adapter merged into {checkpoint.base.path}.")
            else:
                dtypes.setdefault(kept, []).append(step)
        if len(dtypes) > 1:
            kept = "; ".join(f"{k} ({', '.join(map(str, v))})" for k, v in dtypes.items())
            found.append(f"The checkpoints are kept in several dtypes: {kept}.")
        return found

    def table(self) -> pd.DataFrame:
        """One row for each checkpoint: step, kind, dtype as kept, parameters of the model, bytes of its weight files, path."""
        rows = []
        for step in self.steps:
            path, row = self.path(step), dict(step=step, kind=self.kind(step), dtype=None, parameters=None, bytes=None)
            if not isinstance(path, tuple):
                checkpoint = self.checkpoint(step)
                row |= dict(dtype=stored(headers(checkpoint)), parameters=self._blueprint.num_parameters(),
                            bytes=sum(f.stat().st_size for f in checkpoint.files if f.suffix != ".json"))
            rows.append(row | dict(path="@".join(path) if isinstance(path, tuple) else str(path)))
        return pd.DataFrame(rows)

    @cached_property
    def _blueprint(self):
        """The first checkpoint's model on the meta device."""
        return checks.blueprint(checks.configuration(self.checkpoint(self.steps[0]), self.trust_remote_code), self.trust_remote_code)

    @cached_property
    def template(self) -> str | None:
        """The series' one chat template: that of the first checkpoint that has one."""
        return next((t for step in self.steps if (t := checks.template(self.checkpoint(step))[0])), None)

    def check(self) -> None:
        """Read the checkpoints' small files and headers before anything is loaded.

        Raises ValueError or FileNotFoundError, naming the file, where one's tokenizer or architecture differs from the first
        one's, or tensors are missing, cut off, quantised, or not of the model's shapes; warns where chat templates or dtypes differ.
        """
        first = self.checkpoint(self.steps[0])
        wanted = checks.configuration(first, self.trust_remote_code)
        for step in self.steps:
            checkpoint = self.checkpoint(step)
            config = checks.configuration(checkpoint, self.trust_remote_code)
            checks.tokenizer_home(checkpoint)
            checks.check_tokenizer(checkpoint, first)
            checks.check_architecture(checkpoint, config, first, wanted)
        entries = len(checks.load_tokenizer(first, self.trust_remote_code))
        if entries > wanted.get_text_config().vocab_size:
            raise ValueError(f"The tokenizer of {first.path} has {entries} entries, but the model embeds only {wanted.get_text_config().vocab_size}: "
                             "they do not belong together.")
        for step in self.steps:
            checkpoint = self.checkpoint(step)
            checks.check_weights(checkpoint, headers(checkpoint), self._blueprint, self.trust_remote_code)
            own, file = checks.template(checkpoint)
            if own and own != self.template:
                warnings.warn(f"The chat template {file} is not the one of the series, which is used for all of its checkpoints: "
                              f"{checks.template_difference(own, self.template)}.", stacklevel=3)
        for note in self.notes:
            if "several dtypes" in note:
                warnings.warn(note, stacklevel=3)

    def weights_hash(self, step: int) -> str:
        """Content hash of a checkpoint's weight files, an adapter's with its base's (a hub checkpoint's repository and revision)."""
        path = self.path(step)
        return "@".join(path) if isinstance(path, tuple) else self._hash(self.checkpoint(step))

    def _hash(self, checkpoint: Checkpoint) -> str:
        if checkpoint.base:
            both = self._hash_files(checkpoint.files), self._hash(checkpoint.base)
            return hashlib.sha256("+".join(both).encode()).hexdigest()[:16]
        return self._hash_files(checkpoint.files)

    def _hash_files(self, files: Sequence[Path]) -> str:
        key = tuple((f, s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()])  # a file is hashed once for as long as it stays
        if key not in self._hashes:
            self._hashes[key] = hash_files(files)
        return self._hashes[key]

    def load(self, step: int, device: str = "auto", dtype: str = "auto", device_map: str | dict | None = None) -> HookedModel:
        """Load one checkpoint.

        device_map: "auto" lays a model that is larger than one GPU over all of them (accelerate's device map); `device` is then
        not read. Raises KeyError for a step that is not there, ValueError or FileNotFoundError for weights that cannot be read or
        that free memory does not hold.
        """
        self.path(step)
        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        checkpoint, code = self.checkpoint(step), self.trust_remote_code
        config = checks.configuration(checkpoint, code)
        tokenizer = checks.load_tokenizer(checkpoint, code)
        if len(tokenizer) > config.get_text_config().vocab_size:
            raise ValueError(f"The tokenizer of {checkpoint.path} has {len(tokenizer)} entries, but the model embeds only "
                             f"{config.get_text_config().vocab_size}: they do not belong together.")
        hub = isinstance(self.path(step), tuple)  # another revision is not fetched for this one's sake
        if not hub and self.template:
            tokenizer.chat_template = self.template
        blueprint = checks.blueprint(config, code) if hub else self._blueprint
        checks.check_weights(checkpoint, headers(checkpoint), blueprint, code)
        if device_map is None:
            count, copied = blueprint.num_parameters(), checkpoint.kind in ("adapter", "gguf")
            checks.check_memory(checkpoint.path, count, where, kind, copies=2 if copied and where.type == "cpu" else 1)
            if copied and where.type != "cpu":
                checks.check_memory(checkpoint.path, count, torch.device("cpu"), kind)
            with no_init_weights():  # every parameter is read from the files
                hf = (auto_class(config) or AutoModelForCausalLM).from_config(config, dtype=kind, trust_remote_code=code)
            hf.tie_weights()
            hf = hf.to(where)
        else:
            hf = weights.pretrained(checkpoint.base or checkpoint, kind, code, device_map=device_map)[0]
            if outside := [n for n, p in hf.named_parameters() if p.is_meta]:
                raise ValueError(f"{checkpoint.path} does not fit on the devices of the device map: {outside[0]!r} was put off to the CPU "
                                 "or the disk, where its weights cannot be swapped. Take a narrower dtype, or more GPUs.")
        hf.config.name_or_path = str(checkpoint.home)
        digest = self._put(hf, step)
        return HookedModel(hf, tokenizer, step, digest)

    def _read(self, step: int) -> tuple[dict[str, torch.Tensor] | None, str]:
        """A checkpoint's tensors (None where they are first computed, which the reader's thread must not do), and its hash."""
        checkpoint = self.checkpoint(step)
        if checkpoint.kind in ("adapter", "gguf"):
            return None, self.weights_hash(step)
        state = weights.tensors(checkpoint)
        digest = _HASHER.submit(self.weights_hash, step)  # hashing and checking read the same pages at the same time
        self._check_finite(checkpoint, state)
        return state, digest.result()

    @staticmethod
    def _check_finite(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise ValueError(f"The weights of {checkpoint.path} hold values that are not finite, first in {name!r}.")

    def _put(self, hf, step: int, ahead: int | None = None) -> str:
        """Read a checkpoint into a module in place, once all of it is known to fit; returns its hash."""
        self.path(step)
        state, digest = self._ahead.pop(step).result() if step in self._ahead else self._read(step)
        if ahead is not None and ahead not in self._ahead:
            self._ahead = {ahead: _READER.submit(self._read, ahead)}
        checkpoint, dtype = self.checkpoint(step), next(hf.parameters()).dtype
        if state is None:
            state = (weights.dequantised(checkpoint, dtype) if checkpoint.kind == "gguf"
                     else weights.merged(checkpoint, dtype, self.trust_remote_code))
            self._check_finite(checkpoint, state)
        check_cast(checkpoint.path, state, dtype)
        own = hf.state_dict(keep_vars=True)
        primary = {id(p): n for n, p in hf.named_parameters()}
        if not set(primary.values()) <= state.keys():  # an older release's names, perhaps
            renamed, report = weights.pretrained(checkpoint, dtype, self.trust_remote_code, ignore_mismatched_sizes=True)
            if checks.complete(report, hf):
                state = renamed.state_dict()
        if found := checks.misfits({n: t.shape for n, t in state.items()}, hf):
            raise ValueError(f"The weights of {checkpoint.path} do not fit the model: {found[0]} ({len(found)} of {len(own)} tensors).")
        for name, tensor in own.items():
            tied = primary.get(id(tensor), name)
            if tied != name and name in state and not torch.equal(state[name], state[tied]):
                raise ValueError(f"The weights of {checkpoint.path} hold two different tensors {tied!r} and {name!r}, which its "
                                 "config.json ties: set tie_word_embeddings to false there.")
        with torch.no_grad():
            for name, tensor in own.items():
                if name in state:
                    tensor.copy_(state[name])
        return digest

    def swap(self, model: HookedModel, step: int, ahead: int | None = None) -> HookedModel:
        """Put another checkpoint's weights into `model` in place; the model is left as it was when they cannot be read.

        ahead: the step wanted next, read in the background from now on. Raises ValueError or FileNotFoundError for weights
        that cannot be read, do not fit, or are not finite, and for logits of a short trial that are not (the model has the
        checkpoint's weights then).
        """
        with model.turns.swapping():
            model.weights_hash, model.step = self._put(model.hf, step, ahead), step
            model.check_finite(self.path(step))
            model.__dict__.pop("bridge", None)  # where TransformerLens copied parameters it would show the last checkpoint's
        return model
