"""A checkpoint series: the ordered checkpoints of one training run, loaded once and swapped in place.

>>> series = CheckpointSeries.discover("runs/quick/series")
>>> model = series.load(0)
>>> series.swap(model, series.steps[-1])        # the next checkpoint's weights, in the same module
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from interp.checkpoints import adapters, checks, identity, notes, weights
from interp.checkpoints import contents as checkpoints
from interp.checkpoints.contents import SERIES, Checkpoint
from interp.checkpoints.folders import (
    by_step,
    checkpoints_below,
    contents,
    further_down,
    is_model,
    left_out,
    named_step,
    numbers_of,
)
from interp.checkpoints.headers import hash_files, headers, stored
from interp.checkpoints.quantised import adopt, kept_quantised, method
from interp.models import inner
from interp.models.finite import check_cast
from interp.models.hooked import HookedModel, pick_device, pick_dtype

Source = Path | tuple[str, str]
_threads: dict[str, ThreadPoolExecutor] = {}


def _thread(name: str) -> ThreadPoolExecutor:
    """A thread of this process (`reader` or `hasher`); a forked child has none of its parent's."""
    return _threads.setdefault(name, ThreadPoolExecutor(1, thread_name_prefix=name))


os.register_at_fork(after_in_child=_threads.clear)


class _Shared(NamedTuple):
    """What one module and one format for a whole series need; rows: of the smallest vocabulary."""

    untied: bool
    context: int | None
    rows: int


class CheckpointSeries:
    """Ordered checkpoints of one training run: one architecture, one tokenizer, one chat template.

    sources: step -> folder, GGUF file, or (hub repository, revision). base: the base of adapters that do not
    say theirs.
    trust_remote_code: whether Python code that a checkpoint brings along may run.
    """

    def __init__(
        self, sources: Mapping[int, Source], base: str | Path | None = None, trust_remote_code: bool = False
    ) -> None:
        if not sources:
            raise ValueError("A checkpoint series needs at least one checkpoint.")
        self.sources = dict(sorted(sources.items()))
        self.base, self.trust_remote_code = base, trust_remote_code
        self._ahead: dict[int, Future] = {}
        self._process = os.getpid()
        self._blueprints: dict[str, PreTrainedModel] = {}
        self._hashes: dict[tuple, str] = {}

    def __repr__(self) -> str:
        return f"CheckpointSeries({len(self.sources)} checkpoints, steps {', '.join(map(str, self.steps))})"

    @classmethod
    def discover(
        cls, folder: str | Path = SERIES, base: str | Path | None = None, trust_remote_code: bool = False
    ) -> CheckpointSeries:
        """The checkpoints below `folder`: `checkpoint-N`, folders of other trainers, or `*.gguf` files.

        Each holds safetensors, whole or sharded, or an adapter (merged into its base as it is loaded: `base`,
        or what adapter_config.json names), or one GGUF file. Of adapters alone without a checkpoint-0 the
        first one's base becomes checkpoint 0, the untouched model. A folder that is itself a model is a
        series of one, of the step in its name or 0.

        Raises FileNotFoundError where there is no checkpoint, and what `check` raises.
        """
        folder = Path(folder)
        if folder.is_file():
            return cls.from_paths([folder], base=base, trust_remote_code=trust_remote_code)
        steps = checkpoints_below(folder, base)
        files = sorted(folder.glob("*.gguf"))
        if not steps and is_model(folder) and len(files) < 2:
            return cls.from_paths([folder], [named_step(folder.resolve().name) or 0], base, trust_remote_code)
        if not steps and files:
            return cls.from_paths(files, base=base, trust_remote_code=trust_remote_code)
        if not steps:
            remedy = further_down(folder) or (
                "give the folder that the trainer wrote, the checkpoints' own paths "
                "(CheckpointSeries.from_paths), or train a series with `make series`"
            )
            raise FileNotFoundError(f"No checkpoint-N folders in {folder}{contents(folder)}: {remedy}.")
        if others := left_out(folder, [p for _, p in steps]):
            warnings.warn(
                f"{', '.join(p.name for p in others)} in {folder} says no step and is left out: name it "
                "checkpoint-N to have it read.",
                stacklevel=2,
            )
        series = cls(by_step(steps), base, trust_remote_code)
        held = {step: series.checkpoint(step) for step in series.steps}
        series.sources = {step: c.path for step, c in held.items()}
        if 0 not in held and all(c.kind == "adapter" for c in held.values()):
            first = adapters.lineage(held[series.steps[0]])[-2]
            series.sources = {0: first.path, **series.sources}
        series.check()
        return series

    @classmethod
    def from_paths(
        cls,
        paths: Sequence[str | Path],
        steps: Sequence[int] | None = None,
        base: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> CheckpointSeries:
        """The checkpoints at these paths, folders or GGUF files.

        steps: theirs, in the same order; else the numbers that their names end in, else, where one has none,
        their positions. Raises ValueError where two have one step, and what `check` raises.
        """
        places = [Path(path) for path in paths]
        if steps is not None and len(steps) != len(places):
            raise ValueError(
                f"There are {len(places)} paths, but {len(steps)} steps: give one step for each path."
            )
        numbers = numbers_of(places) if steps is None else steps
        series = cls(by_step(zip(numbers, places)), base, trust_remote_code)
        series.sources = {step: series.checkpoint(step).path for step in series.steps}
        series.check()
        return series

    @classmethod
    def from_hub(
        cls,
        repository: str,
        revisions: Sequence[str],
        base: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> CheckpointSeries:
        """Revisions of one hub repository, keyed by the number in their name, fetched when loaded."""
        numbers = [int(m[0]) if (m := re.search(r"\d+", r)) else i for i, r in enumerate(revisions)]
        sources = by_step((n, (repository, revision)) for n, revision in zip(numbers, revisions))
        return cls(sources, base, trust_remote_code)

    @property
    def steps(self) -> list[int]:
        return list(self.sources)

    def path(self, step: int) -> Source:
        """Where a checkpoint is; raises KeyError naming those there are."""
        if step not in self.sources:
            raise KeyError(
                f"There is no checkpoint {step} in this series: it has {', '.join(map(str, self.steps))}."
            )
        return self.sources[step]

    def checkpoint(self, step: int) -> Checkpoint:
        """A checkpoint as it is on disk now (a hub checkpoint is fetched).

        Raises what `contents.find` raises.
        """
        path = self.path(step)
        if isinstance(path, tuple):
            path = checkpoints.fetch(*path, code=self.trust_remote_code)
        return checkpoints.find(path, self.base)

    def kind(self, step: int) -> str:
        """How a checkpoint is kept: full, sharded, adapter, gguf, or hub."""
        return "hub" if isinstance(self.path(step), tuple) else self.checkpoint(step).kind

    @cached_property
    def notes(self) -> list[str]:
        """What of a series bears on its numbers, in sentences (`interp.checkpoints.notes`)."""
        return notes.of_series(self)

    def table(self) -> pd.DataFrame:
        """One row for each checkpoint: step, kind, stored dtype, parameters, bytes of its files, path."""
        rows = []
        for step in self.steps:
            path = self.path(step)
            row: dict = dict(step=step, kind=self.kind(step), dtype=None, parameters=None, bytes=None)
            if not isinstance(path, tuple):
                checkpoint = self.checkpoint(step)
                row |= dict(
                    dtype=stored(headers(checkpoint)),
                    parameters=self.blueprint(self.configuration(step)).num_parameters(),
                    bytes=sum(f.stat().st_size for f in checkpoint.files if f.suffix != ".json"),
                )
            rows.append(row | dict(path="@".join(path) if isinstance(path, tuple) else str(path)))
        return pd.DataFrame(rows)

    @cached_property
    def local(self) -> dict[int, Checkpoint]:
        """step -> checkpoint on disk; a hub's revisions are looked at when they are loaded."""
        return {step: self.checkpoint(step) for step in self.steps if not isinstance(self.path(step), tuple)}

    def blueprint(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model of a configuration on the meta device, built once for each that differs."""
        key = identity.hash_config(config)
        if key not in self._blueprints:
            self._blueprints[key] = checks.blueprint(config, self.trust_remote_code)
        return self._blueprints[key]

    def configuration(self, step: int) -> PretrainedConfig:
        """A checkpoint's configuration.

        An adapter's as after its merge (`interp.checkpoints.adapters.adjusted`).
        """
        checkpoint = self.checkpoint(step)
        config = checks.configuration(checkpoint, self.trust_remote_code)
        if checkpoint.base is None:
            return config
        return adapters.adjusted(config, checkpoint, self.blueprint(config))

    @cached_property
    def _shared(self) -> _Shared:
        """What one module and one format for the whole series need.

        Untied embeddings where any checkpoint has them, the shortest context, the fewest rows of vocabulary.
        """
        configs = [self.configuration(step) for step in self.local]
        lengths = [n for c in configs if (n := getattr(c.get_text_config(), "max_position_embeddings", None))]
        return _Shared(
            untied=not all(map(weights.tied, configs)),
            context=min(lengths, default=None),
            rows=min(c.get_text_config().vocab_size for c in configs),
        )

    @cached_property
    def template(self) -> str | None:
        """The series' one chat template: that of the first checkpoint that has one."""
        return next((t for step in self.steps if (t := checks.template(self.checkpoint(step))[0])), None)

    @cached_property
    def tokenizers(self) -> dict[int, PreTrainedTokenizerBase]:
        """step -> tokenizer of a checkpoint on disk, where it differs from all before it."""
        tokenizers: dict[int, PreTrainedTokenizerBase] = {}
        seen: set[str] = set()
        for step, checkpoint in self.local.items():
            key = identity.tokenizer_hash(checkpoint)
            if key not in seen:
                tokenizers[step] = checks.load_tokenizer(checkpoint, self.trust_remote_code)
            seen.add(key)
        return tokenizers

    def tokenizer(self, step: int) -> PreTrainedTokenizerBase:
        """The series' one tokenizer: the first checkpoint's, or the first with all tokens that were added."""
        if step not in self.local:
            return checks.load_tokenizer(self.checkpoint(step), self.trust_remote_code)
        widest = copy.deepcopy(max(self.tokenizers.values(), key=len))  # the first of them
        if self.template:
            widest.chat_template = self.template
        return widest

    @cached_property
    def template_file(self) -> Path | None:
        """The file that the series' chat template is in."""
        return next(
            (file for step in self.steps for text, file in [checks.template(self.checkpoint(step))] if text),
            None,
        )

    def check(self) -> None:
        """Read the checkpoints' small files and headers before anything is loaded.

        Raises ValueError or FileNotFoundError, naming the file, where one's tokenizer or architecture differs
        from the first one's, or tensors are missing, cut off, or not of the model's shapes; warns where chat
        templates, special tokens or dtypes differ.
        """
        first = widest = self.checkpoint(self.steps[0])
        wanted = checks.configuration(first, self.trust_remote_code)
        for step in self.steps:
            checkpoint = self.checkpoint(step)
            config = checks.configuration(checkpoint, self.trust_remote_code)
            checks.tokenizer_home(checkpoint)
            widest = checkpoint if checks.check_tokenizer(checkpoint, widest) else widest
            checks.check_architecture(checkpoint, config, first, wanted)
        vocabularies = notes.vocabulary(self)
        for step, checkpoint in self.local.items():
            base = self.blueprint(checks.configuration(checkpoint, self.trust_remote_code))
            for part in adapters.lineage(checkpoint):
                checks.check_weights(part, headers(part), base, self.trust_remote_code)
            own, file = checks.template(checkpoint)
            if own and self.template and own != self.template:
                warnings.warn(
                    f"The chat template {file} is not the one of the series, which is used for all of its "
                    f"checkpoints: {checks.template_difference(own, self.template)}.",
                    stacklevel=3,
                )
        dtypes = [note for note in self.notes if "several dtypes" in note]
        for sentence in [*vocabularies, *notes.special_tokens(self), *dtypes]:
            warnings.warn(sentence, stacklevel=3)

    def weights_hash(self, step: int) -> str:
        """Content hash of a checkpoint's weight files with its base's; of a hub checkpoint its revision."""
        path = self.path(step)
        return "@".join(path) if isinstance(path, tuple) else self._hash(self.checkpoint(step))

    def identity(self, step: int) -> dict[str, str]:
        """Content hashes of what decides a checkpoint's numbers, by part (`interp.checkpoints.identity`).

        A part that is not there is "". Weights are hashed once for as long as their files stay.
        """
        checkpoint = self.checkpoint(step)
        return dict(weights=self.weights_hash(step)) | identity.identity(checkpoint, self.trust_remote_code)

    def _hash(self, checkpoint: Checkpoint) -> str:
        if checkpoint.base:
            both = self._hash_files(checkpoint.files), self._hash(checkpoint.base)
            return hashlib.sha256("+".join(both).encode()).hexdigest()[:16]
        return self._hash_files(checkpoint.files)

    def _hash_files(self, files: Sequence[Path]) -> str:
        # a file is hashed once for as long as it stays
        key = tuple((file, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()])
        if key not in self._hashes:
            self._hashes[key] = hash_files(files)
        return self._hashes[key]

    def load(
        self, step: int, device: str = "auto", dtype: str = "auto", device_map: str | dict | None = None
    ) -> HookedModel:
        """Load one checkpoint.

        device_map: "auto" lays a model that is larger than one GPU over all of them (accelerate's device
        map); `device` is then not read. Raises KeyError for a step that is not there, ValueError or
        FileNotFoundError for weights that cannot be read or that free memory does not hold.
        """
        self.path(step)
        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        checkpoint, config, tokenizer = self.checkpoint(step), self.configuration(step), self.tokenizer(step)
        if step not in self.local:  # another revision is not fetched for this one's sake
            checks.check_vocabulary(checkpoint, tokenizer, config.get_text_config().vocab_size)
            if checkpoint.base is None:
                checks.check_weights(
                    checkpoint, headers(checkpoint), self.blueprint(config), self.trust_remote_code
                )
        elif self._shared.untied:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        if step in self.local and self._shared.context:
            config.get_text_config().max_position_embeddings = self._shared.context
        if device_map is None and not method(getattr(config, "quantization_config", None)):
            hf = self._empty(checkpoint, config, where, kind)
            hf.config.name_or_path = str(checkpoint.home)
            digest = self._put(hf, step)
        else:
            hf, digest = self._placed(step, config, where, kind, device_map)
        if (stops := checks.stop_tokens(checkpoint)) is not None:
            hf.generation_config.eos_token_id = stops
        if step in self.local and len(tokenizer) > self._shared.rows:
            weights.guard(hf, self.local[step].path.parent)
        return HookedModel(hf, tokenizer, step, digest)

    def _empty(
        self, checkpoint: Checkpoint, config: PretrainedConfig, where: torch.device, dtype: torch.dtype
    ) -> PreTrainedModel:
        """A module on its device whose parameters are yet to be read from the files."""
        count, copied = self.blueprint(config).num_parameters(), checkpoint.kind in ("adapter", "gguf")
        merged, on_cpu = checkpoint.kind == "adapter", copied and where.type == "cpu"
        # adapters are merged in float32 (`adapters.merged`)
        held = torch.promote_types(dtype, torch.float32) if merged else dtype
        if not on_cpu:
            checks.check_memory(checkpoint.path, count, where, dtype)
        if copied:
            checks.check_memory(checkpoint.path, count, torch.device("cpu"), held, 1 + on_cpu, merged)
        with no_init_weights():
            kind = inner.auto_class(config) or AutoModelForCausalLM
            hf = inner.empty(kind, config, dtype, trust_remote_code=self.trust_remote_code)
        hf.tie_weights()
        placed: PreTrainedModel = hf.to(where)  # type: ignore[arg-type]  # transformers wraps it untyped
        return placed

    def _placed(
        self,
        step: int,
        config: PretrainedConfig,
        where: torch.device,
        dtype: torch.dtype,
        device_map: str | dict | None,
    ) -> tuple[PreTrainedModel, str]:
        """A module as transformers places and quantises it, and the hash of its weights."""
        checkpoint = self.checkpoint(step)
        hf = weights.placed(checkpoint, config, dtype, self.trust_remote_code, device_map or {"": where})
        hf.config.name_or_path = str(checkpoint.home)
        if outside := [n for n, p in hf.named_parameters() if p.is_meta]:
            raise ValueError(
                f"{checkpoint.path} does not fit on the devices of the device map: {outside[0]!r} was put "
                "off to the CPU or the disk, where its weights cannot be swapped. Take a narrower dtype, or "
                "more GPUs."
            )
        if method(getattr(config, "quantization_config", None)):
            self._check_finite(checkpoint, dict(hf.named_parameters()))
            return hf, self.weights_hash(step)
        return hf, self._put(hf, step)

    def _read(self, step: int) -> tuple[dict[str, torch.Tensor] | None, str]:
        """A checkpoint's tensors and hash.

        None where they are computed first, which the reader's thread must not.
        """
        checkpoint = self.checkpoint(step)
        if checkpoint.kind in ("adapter", "gguf") or method(checks.quantisation(checkpoint)):
            return None, self.weights_hash(step)
        config = checks.configuration(checkpoint, self.trust_remote_code)
        state = weights.tensors(checkpoint, dict(self.blueprint(config).named_parameters()).keys())
        # hashing and checking read the same pages at the same time
        digest = _thread("hasher").submit(self.weights_hash, step)
        self._check_finite(checkpoint, state)
        return state, digest.result()

    @staticmethod
    def _check_finite(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise ValueError(
                    f"The weights of {checkpoint.path} hold values that are not finite, first in {name!r}."
                )

    def _put(self, hf: PreTrainedModel, step: int, ahead: int | None = None) -> str:
        """Read a checkpoint into a module in place, once all of it is known to fit; returns its hash."""
        self.path(step)
        if self._process != os.getpid():  # what a parent reads ahead never arrives in its forked child
            self._process, self._ahead = os.getpid(), {}
        state, digest = self._ahead.pop(step).result() if step in self._ahead else self._read(step)
        if ahead is not None and ahead not in self._ahead:
            self._ahead = {ahead: _thread("reader").submit(self._read, ahead)}
        checkpoint, config = self.checkpoint(step), self.configuration(step)
        dtype = next(hf.parameters()).dtype
        own, kept_as = kept_quantised(hf.config), kept_quantised(config)
        if own != kept_as:
            raise ValueError(
                f"The weights of {checkpoint.path} are kept as {kept_as or 'plain numbers'}, those of the "
                f"module as {own or 'plain numbers'}: load this checkpoint by itself, or give a series that "
                "is kept in one way."
            )
        if method(getattr(config, "quantization_config", None)):
            places = getattr(hf, "hf_device_map", None) or {"": next(hf.parameters()).device}
            other = weights.placed(checkpoint, config, dtype, self.trust_remote_code, places)
            self._check_finite(checkpoint, dict(other.named_parameters()))
            adopt(hf, other)
            return digest
        if state is None:
            state = (
                weights.module(checkpoint, dtype).state_dict()
                if checkpoint.kind == "gguf"
                else adapters.merged(checkpoint, dtype, self.trust_remote_code)
            )
            self._check_finite(checkpoint, state)
        kept = inner.kept_wide(hf, dtype)
        check_cast(checkpoint.path, {n: t for n, t in state.items() if n not in kept}, dtype)
        wanted = {n for n, _ in hf.named_parameters()}
        if weights.tied(config):
            wanted.discard(f"{weights.embedding_names(hf)[1]}.weight")
        if not wanted <= state.keys():  # an older release's names, perhaps
            renamed, report = weights.pretrained(
                checkpoint, dtype, self.trust_remote_code, ignore_mismatched_sizes=True
            )
            if weights.complete(report, hf):
                state = renamed.state_dict()
        weights.fill(hf, state, config, checkpoint.path)
        return digest

    def swap(self, model: HookedModel, step: int, ahead: int | None = None) -> HookedModel:
        """Put another checkpoint's weights into `model` in place.

        It stays as it was when they cannot be read.

        ahead: the step wanted next, read in the background from now on. Raises ValueError or
        FileNotFoundError for weights that cannot be read, do not fit, or are not finite, and for logits of a
        short trial that are not (the model has the checkpoint's weights then).
        """
        with model.turns.swapping():
            model.weights_hash, model.step = self._put(model.hf, step, ahead), step
            model.check_finite(self.path(step))
            # where TransformerLens copied parameters it would show the last checkpoint's
            model.__dict__.pop("bridge", None)
        return model
