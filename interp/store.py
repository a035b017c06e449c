"""Captured activations on disk: safetensors shards named by their content's key, and a manifest; nothing is read twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interp.capturing import Activations, capture
from interp.prompts import Prompt
from interp.tables import write_json

SHARD = 128


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def stored_capture(folder: str | Path, model, prompts: Sequence[Prompt], sites: Sequence[str] = ("resid_pre", "resid_post"),
                   progress: bool = False) -> Activations:
    """As `capture` at the boundary, through shards of 128 decisions below `folder`.

    A shard is found by the hash of weights, prompt ids, sites and dtype; one that is missing or damaged is captured again.
    """
    if not prompts:
        raise ValueError("There is nothing to capture: the list of prompts is empty.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts, manifest = [], []
    for start in range(0, len(prompts), SHARD):
        chunk = prompts[start:start + SHARD]
        key = _digest(model.weights_hash, [p.hash for p in chunk], list(sites), str(model.dtype))
        path = folder / f"shard-{start // SHARD:05d}-{key}.safetensors"
        acts = _read(path)
        if acts is None:
            found = capture(model, chunk, sites, progress=progress)
            acts = found.values
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({"values": acts}, temporary)
            os.replace(temporary, path)
        parts.append(acts)
        manifest.append(dict(file=path.name, decisions=[p.decision.id for p in chunk], prompts=[p.hash for p in chunk]))
    write_json(folder / "manifest.json", dict(weights=model.weights_hash, sites=list(sites), dtype=str(model.dtype), at="boundary",
                                              format=prompts[0].format.hash, shards=manifest))
    return Activations(torch.cat(parts), tuple(sites), tuple(p.hash for p in prompts), model.weights_hash, str(model.dtype))


def _read(path: Path) -> torch.Tensor | None:
    if not path.exists():
        return None
    try:
        return load_file(path)["values"]
    except (SafetensorError, OSError, KeyError):
        print(f"The activation shard {path} is damaged and is captured again.")
        return None
