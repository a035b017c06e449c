"""Captured activations on disk: safetensors shards and an append-only manifest; nothing that is there is computed again.

A shard holds up to 128 decisions; the manifest has one JSON line for each, with the file's hash and what it is of, so
that several processes may fill one folder and a killed one loses only the shard it was at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import interp
from interp.capturing import Activations, capture
from interp.hooks import every_layer
from interp.prompts import Prompt

SHARD = 128


class Store:
    """The activations of one checkpoint, read the same way: rows of shards, found by their prompts' hashes.

    folder: shared by as many checkpoints, sites and processes as one likes; `of` says what this one's rows are of
    (weights, sites, layers, dtype, code version), and rows of anything else are not seen.
    """

    def __init__(self, folder: str | Path, of: dict):
        self.folder, self.of = Path(folder), of
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = self.folder / "manifest.jsonl"
        self.key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
        self._sound: dict[str, bool] = {}

    def where(self) -> dict[str, tuple[str, int]]:
        """Prompt hash -> (shard, row), of the shards that are there and whole; a damaged one is named once."""
        found: dict[str, tuple[str, int]] = {}
        for line in self.manifest.read_text().splitlines() if self.manifest.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # a line cut short by a full disk: its shard is simply not known
                continue
            if Path(entry["file"]).name != entry["file"]:
                raise ValueError(f"{self.manifest} names the shard {entry['file']!r}, which is not in its folder: the manifest has been tampered with.")
            if entry["key"] == self.key and self._whole(entry["file"], entry["sha256"]):
                found.update({prompt: (entry["file"], row) for row, prompt in enumerate(entry["prompts"])})
        return found

    def _whole(self, name: str, sha256: str) -> bool:
        if (name, sha256) not in self._sound:
            path = self.folder / name
            present = path.exists()
            self._sound[name, sha256] = sound = present and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
            if present and not sound:
                print(f"The activation shard {path} is damaged (its hash is not the manifest's) and is captured again.")
                path.unlink(missing_ok=True)
        return self._sound[name, sha256]

    def append(self, values: torch.Tensor, prompts: Sequence[Prompt]) -> None:
        """Add a shard: written aside, moved into place, then entered in the manifest in one locked write."""
        content = hashlib.sha256(values.numpy().tobytes() + json.dumps([p.hash for p in prompts]).encode()).hexdigest()[:16]
        path = self.folder / f"{self.key}-{content}.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_file({"values": values.contiguous()}, temporary)
            digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        entry = dict(self.of, key=self.key, file=path.name, sha256=digest, prompts=[p.hash for p in prompts],
                     decisions=[p.decision.id for p in prompts], format=prompts[0].format.hash)
        with open(self.manifest, "a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(json.dumps(entry, sort_keys=True) + "\n")
        self._sound[path.name, digest] = True

    def read(self, prompts: Sequence[str]) -> torch.Tensor:
        """Rows by prompt hash [prompt, ...], only those rows read from the memory-mapped shards; raises KeyError for one that is not there."""
        where, shards, rows = self.where(), defaultdict(list), {}
        for prompt in prompts:
            if prompt not in where:
                raise KeyError(f"The store {self.folder} has no activations of prompt {prompt} with {self.of}.")
            shards[where[prompt][0]].append((where[prompt][1], prompt))
        for name, wanted in shards.items():
            with safe_open(self.folder / name, framework="pt") as file:
                part = file.get_slice("values")
                rows.update({prompt: part[row] for row, prompt in wanted})
        return torch.stack([rows[prompt] for prompt in prompts])


def stored_capture(folder: str | Path, model, prompts: Sequence[Prompt], sites: Sequence[str] = ("resid_pre", "resid_post"),
                   layers: Sequence[int] | None = None, progress: bool = False) -> Activations:
    """As `capture` at the boundary, through a `Store`: only decisions that no shard holds are read by the model.

    A shard whose hash is not the manifest's is named, and its decisions alone are captured again.
    """
    if not prompts:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    names = every_layer(sites)
    wanted = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    store = Store(folder, dict(weights=model.weights_hash, sites=names, layers=list(wanted), dtype=str(model.dtype), at="boundary",
                               version=interp.__version__))
    known, paths = store.where(), dict.fromkeys((p.hash for p in prompts), "stored")
    missing = list({p.hash: p for p in prompts if p.hash not in known}.values())
    for start in range(0, len(missing), SHARD):
        chunk = missing[start:start + SHARD]
        acts = capture(model, chunk, names, layers=wanted, progress=progress)
        paths.update(zip(acts.prompts, acts.paths))
        store.append(acts.values, chunk)
    return Activations(store.read([p.hash for p in prompts]), tuple(names), wanted, tuple(p.hash for p in prompts), model.weights_hash,
                       str(model.dtype), tuple(paths[p.hash] for p in prompts))
