"""Captured activations on disk, none computed twice: safetensors shards and an append-only manifest.

A shard holds up to 128 decisions; the manifest has one JSON line for each, with the file's hash, what it is
of and its own hash, so that several processes may fill one folder and a killed one loses only the shard it
was at. `stream_capture` holds one at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise, repeat
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.checkpoints.headers import hash_files
from interp.checkpoints.identity import ORIGIN, hash_json
from interp.engine.capturing import Activations, at_ends, capture, check_finite
from interp.engine.positions import WITH_TRACES, At, Trace, is_single, readings
from interp.models.caches import Layers
from interp.models.hooked import HookedModel
from interp.models.site_names import every_layer
from interp.prompts.format import Prompt
from interp.prompts.text import AnyPrompt, Readable, read_texts
from interp.results.records import content_hash
from interp.results.tables import written
from interp.system.sources import source_hash

SHARD = 128


class Store:
    """The activations of one checkpoint, read the same way: rows of shards, found by their prompts' hashes.

    Args:
        folder: shared by any number of checkpoints, sites and processes.
        identity: what the rows are of (weights, configuration, sites, layers, dtype, source of the code);
            rows of anything else are not seen.
    """

    def __init__(self, folder: str | Path, identity: dict):
        self.folder = Path(folder)
        self.identity = identity
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = self.folder / "manifest.jsonl"
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._sound: dict[tuple[str, str], bool] = {}
        self._named: set[int] = set()

    def where(self) -> dict[str, tuple[str, int, int]]:
        """Hash -> shard, its first row there and the row after its last, of the shards that are whole.

        A damaged shard or line is named once. Raises ValueError for a manifest that names a shard outside
        its folder.
        """
        rows: dict[str, tuple[str, int, int]] = {}
        for entry in self._entries():
            if Path(entry["file"]).name != entry["file"]:
                raise ValueError(
                    f"{self.manifest} names the shard {entry['file']!r}, which is not in its folder: the "
                    "manifest has been tampered with."
                )
            if entry["key"] == self.key and self._whole(entry["file"], entry["sha256"]):
                counts = entry.get("counts") or [1] * len(entry["prompts"])
                ends = list(accumulate(counts))
                for prompt, count, end in zip(entry["prompts"], counts, ends):
                    rows[prompt] = (entry["file"], end - count, end)
        return rows

    def _entries(self) -> Iterator[dict]:
        """The manifest's lines that are as they were written; a last one that was cut short is not there."""
        content = self.manifest.read_bytes() if self.manifest.exists() else b""
        *lines, _ = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            entry = _entry(line)
            if entry:
                yield entry
            elif entry is None and number not in self._named:
                self._named.add(number)
                print(
                    f"Line {number} of {self.manifest} is damaged and left out; decisions that no other line "
                    "names are captured again."
                )

    def _whole(self, name: str, sha256: str) -> bool:
        if (name, sha256) not in self._sound:
            path = self.folder / name
            present = path.exists()
            sound = present and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
            self._sound[name, sha256] = sound
            if present and not sound:
                print(
                    f"The activation shard {path} is damaged (its hash is not the manifest's) and is "
                    "captured again."
                )
                path.unlink(missing_ok=True)
        return self._sound[name, sha256]

    def append(
        self, values: Tensor, hashes: Sequence[str], counts: Sequence[int] = (), **names: object
    ) -> None:
        """Add a shard: written aside, moved into place, then entered in the manifest in one locked write.

        Args:
            values: rows of each hash, one after another.
            counts: rows of each (one where not given).
            names: what the manifest says of them beside.
        """
        hashes = list(hashes)
        values = values.contiguous()
        own = values.view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16
        content = hashlib.sha256(own + json.dumps(hashes).encode()).hexdigest()
        path = self.folder / f"{self.key}-{content[:16]}.safetensors"
        try:
            with written(path) as temporary:
                save_file({"values": values}, temporary)
                digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        except SafetensorError as error:  # its own error for a full disk
            raise OSError(f"{path} cannot be written ({error}).") from error
        entry = dict(
            self.identity,
            key=self.key,
            file=path.name,
            sha256=digest,
            prompts=hashes,
            **names,
        )
        if counts:
            entry["counts"] = list(counts)
        try:
            self._enter(json.dumps(entry | dict(line=content_hash(entry)), sort_keys=True).encode() + b"\n")
        except OSError as error:
            raise type(error)(f"{self.manifest} cannot be written ({error.strerror or error}).") from error
        self._sound[path.name, digest] = True

    def _enter(self, line: bytes) -> None:
        """Add a line to the manifest, synced, in place of the rest of one that was cut short."""
        # A buffer would be written once more as it is closed.
        with open(self.manifest, "ab+", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            whole = stream.read().rfind(b"\n") + 1
            try:
                stream.truncate(whole)
                while line:
                    line = line[stream.write(line) :]
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), whole)
                raise

    def read(self, hashes: Sequence[str]) -> Tensor:
        """The rows [row, ...] of each hash, no others read; raises KeyError for a missing one."""
        where = self.where()
        shards: dict[str, list[str]] = defaultdict(list)
        for each in hashes:
            if each not in where:
                raise KeyError(
                    f"The store {self.folder} has no activations of prompt {each} with {self.identity}."
                )
            shards[where[each][0]].append(each)
        rows: dict[str, Tensor] = {}
        for shard, wanted in shards.items():
            with safe_open(self.folder / shard, framework="pt") as file:
                part = file.get_slice("values")
                rows.update({each: part[where[each][1] : where[each][2]] for each in wanted})
        return torch.cat([rows[each] for each in hashes])


def _entry(line: bytes) -> dict | None:
    """A line of the manifest: None where it is not as it was written.

    Nothing is in it where an older release wrote it without a hash.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    if "line" not in entry and {"key", "file", "prompts"} <= entry.keys():
        return {}
    return entry if entry.pop("line", None) == content_hash(entry) else None


def _remote_code(hf: torch.nn.Module) -> str:
    """Hash of the Python files of a model that brings its own code; empty for transformers' own."""
    module = type(hf).__module__
    if not module.startswith("transformers_modules."):
        return ""
    file = sys.modules[module].__file__
    assert file is not None
    return hash_files(sorted(Path(file).parent.glob("*.py")))


def _identity(
    model: HookedModel, sites: Sequence[str], layers: Sequence[int] | None, at: At, stored_as: torch.dtype
) -> dict[str, object]:
    """What the rows of a store are of; raises ValueError where the weights have no name."""
    if not model.weights_hash:
        raise ValueError(
            "The model has no weights_hash, so its activations could not be told from another's: load it "
            "with a CheckpointSeries, or give HookedModel a weights_hash of your own."
        )
    config = {name: value for name, value in model.hf.config.to_dict().items() if name not in ORIGIN}
    halved = {} if stored_as == torch.float32 else dict(stored_as=str(stored_as))
    return halved | dict(
        weights=model.weights_hash,
        config=hash_json(config),
        code=_remote_code(model.hf),
        sites=every_layer(sites),
        layers=list(range(model.n_layers) if layers is None else layers),
        dtype=str(model.dtype),
        at=at if isinstance(at, str) else "positions",
        source=source_hash("interp.engine.capturing"),
    )


def _named(prompts: Sequence[AnyPrompt]) -> dict[str, object]:
    """What the manifest says of a shard's prompts."""
    agents = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    if len(agents) < len(prompts):
        return {}
    return dict(decisions=[p.decision.id for p in agents], format=agents[0].format.hash)


@dataclass
class _Filling:
    """Prompts that no shard holds, until there are enough for one."""

    store: Store
    model: HookedModel
    at: At
    progress: bool
    stored_as: torch.dtype
    paths: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, tuple[AnyPrompt, Trace]] = field(default_factory=dict)

    def write(self) -> None:
        """Capture what waits, and write its shard."""
        if not self.waiting:
            return
        prompts = [prompt for prompt, _ in self.waiting.values()]
        identity = self.store.identity
        acts = capture(
            self.model,
            prompts,
            identity["sites"],
            self.at,
            layers=identity["layers"],
            traces=[trace for _, trace in self.waiting.values()] if self.at in WITH_TRACES else None,
            progress=self.progress,
        )
        self.paths.update(zip(acts.prompts, acts.paths))
        counts = [end - start for start, end in pairwise(acts.offsets)]
        values = rounded(acts.values, self.stored_as)
        self.store.append(values, acts.prompts, counts, **_named(prompts))
        self.waiting.clear()


def rounded(values: Tensor, stored_as: torch.dtype) -> Tensor:
    """Activations in the precision that they are stored in; raises ValueError for one that it cannot hold."""
    stored = values.to(stored_as)
    if not stored.isfinite().all():
        name = str(stored_as).removeprefix("torch.")
        raise ValueError(
            f"An activation of {float(values.abs().max()):.3g} is stored in {name}, which ends at "
            f"{torch.finfo(stored_as).max:.3g}: store bfloat16, which has float32's range."
        )
    return stored


def stream_capture(
    folder: str | Path,
    model: HookedModel,
    prompts: Iterable[Readable],
    sites: Sequence[str] = ("resid_pre", "resid_post"),
    layers: Sequence[int] | None = None,
    progress: bool = False,
    *,
    at: str | int | tuple[int, ...] = "boundary",
    traces: Iterable[Trace] | None = None,
    stored_as: torch.dtype = torch.float32,
) -> tuple[Store, dict[str, str]]:
    """Capture any number of prompts into a `Store`, a shard at a time; returns it and each prompt's path.

    Only prompts that no shard holds are read by the model; the store's `read` gives any of them by their
    hashes (`interp.engine.positions.readings`). A damaged shard is named, and its decisions alone are
    captured again.

    Args:
        prompts: may be a generator, of which no more than a shard is held.
        at, traces: the tokens that are read, as in `interp.capture`; traces may be a generator as well.
        stored_as: precision on disk: float32, or half of its bytes (bfloat16, float16).

    Raises:
        ValueError: the model has no `weights_hash`, or an activation is out of `stored_as`'s range.
    """
    store = Store(folder, _identity(model, sites, layers, at, stored_as))
    stored = store.where()
    filling = _Filling(store, model, at, progress, stored_as)
    for given, trace in zip(prompts, repeat(None) if traces is None else traces):
        (prompt,) = read_texts(model.tokenizer, given)
        (reading,) = readings([prompt], at, [trace] if at in WITH_TRACES else None)
        if not reading.positions:
            filling.paths[reading.hash] = "empty"
        elif reading.hash in stored:
            filling.paths[reading.hash] = "stored"
        elif reading.hash not in filling.paths:
            filling.waiting[reading.hash] = (prompt, trace)
        if len(filling.waiting) == SHARD:
            filling.write()
    filling.write()
    return store, filling.paths


def capture_and_keep(
    folder: str | Path,
    model: HookedModel,
    prompts: Readable | Iterable[Readable],
    sites: Sequence[str],
    kept: Sequence[str],
    kept_layers: Sequence[int],
    *,
    stored_as: torch.dtype = torch.float32,
) -> Float[Tensor, "prompt site layer width"]:
    """Boundary activations at all layers, of which a `Store` keeps some sites and layers.

    They are those that `stored_capture` gives of all sites, in the same passes, and rounded as there.

    Args:
        kept: sites that are stored, of `sites` (none: nothing is).
        kept_layers: their layers.
        stored_as: precision on disk, and of what is returned (in float32).
    """
    given = read_texts(model.tokenizer, prompts)
    hashes = [reading.hash for reading in readings(given, "boundary")]
    store = Store(folder, _identity(model, kept, kept_layers, "boundary", stored_as)) if kept else None
    stored = store.where() if store else {}
    once, parts = list(dict(zip(hashes, given)).values()), []
    for start in range(0, len(once), SHARD):
        read = once[start : start + SHARD]
        acts = capture(model, read, sites)
        values = rounded(acts.values, stored_as)
        if store and (new := [i for i, each in enumerate(acts.prompts) if each not in stored]):
            part = values[new][:, [list(sites).index(site) for site in kept]][:, :, list(kept_layers)]
            store.append(part, [acts.prompts[i] for i in new], (), **_named([read[i] for i in new]))
        parts.append(values.float())
    where = {each: row for row, each in enumerate(dict.fromkeys(hashes))}
    return torch.cat(parts)[[where[each] for each in hashes]]


class Boundaries:
    """Boundary activations of prompts that something else reads: an `OnRead` of `continue_each`.

    They go into a `Store`, where they are found as those that `stored_capture` keeps of all layers; `write`
    stores the last of them.

    Args:
        prompts: those that are read.
        sites: stored at every layer.
        stored_as: precision on disk.
    """

    def __init__(
        self,
        folder: str | Path,
        model: HookedModel,
        prompts: Sequence[AnyPrompt],
        sites: Sequence[str],
        *,
        stored_as: torch.dtype = torch.float32,
    ) -> None:
        self.folder, self.model, self.prompts, self.sites = folder, model, prompts, sites
        self.stored_as = stored_as
        self._readings = readings(prompts, "boundary")
        self._read: dict[str, tuple[int, Tensor]] = {}

    @cached_property
    def store(self) -> Store:
        """Made where something is read."""
        return Store(self.folder, _identity(self.model, self.sites, None, "boundary", self.stored_as))

    @cached_property
    def _stored(self) -> set[str]:
        return set(self.store.where())

    def __call__(self, group: Sequence[int], layers: Layers, seen: Bool[Tensor, "row slot"]) -> None:
        """Read the ends of prompts; raises as `write` does."""
        values = at_ends(self.model, [self._readings[i].ids for i in group], layers, seen, self.sites)
        for i, value in zip(group, values):
            if self._readings[i].hash not in self._stored:
                self._read[self._readings[i].hash] = i, value
        if len(self._read) >= SHARD:
            self.write()

    def write(self) -> None:
        """Store what was read.

        Raises ValueError for an activation that is not finite or not in the range of `stored_as`, and OSError
        where it cannot be written.
        """
        while self._read:
            hashes = list(self._read)[:SHARD]
            indices, values = zip(*(self._read.pop(each) for each in hashes))
            together, identity = torch.stack(values), self.store.identity
            check_finite(self.model, together, identity["sites"], identity["layers"], np.array(indices))
            prompts = [self.prompts[i] for i in indices]
            self.store.append(rounded(together, self.stored_as), hashes, (), **_named(prompts))
            self._stored.update(hashes)


def stored_capture(
    folder: str | Path,
    model: HookedModel,
    prompts: Readable | Iterable[Readable],
    sites: Sequence[str] = ("resid_pre", "resid_post"),
    layers: Sequence[int] | None = None,
    progress: bool = False,
    *,
    at: str | int | tuple[int, ...] = "boundary",
    traces: Sequence[Trace] | None = None,
    stored_as: torch.dtype = torch.float32,
) -> Activations:
    """As `capture`, through a `Store` (see `stream_capture`); in float32, whatever they are stored in.

    Raises ValueError for an empty list, and for a model without a `weights_hash`.
    """
    given = read_texts(model.tokenizer, prompts)
    if not given:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    store, paths = stream_capture(
        folder, model, given, sites, layers, progress, at=at, traces=traces, stored_as=stored_as
    )
    wanted = readings(given, at, traces)
    hashes = tuple(reading.hash for reading in wanted)
    counts = [len(reading.positions) for reading in wanted]
    return Activations(
        store.read([reading.hash for reading in wanted if reading.positions]).float(),
        tuple(store.identity["sites"]),
        tuple(store.identity["layers"]),
        hashes,
        model.weights_hash,
        str(model.dtype),
        tuple(paths[h] for h in hashes),
        tuple(p for reading in wanted for p in reading.positions),
        () if is_single(at) else (0, *accumulate(counts)),
    )
