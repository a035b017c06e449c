"""What a run folder holds, damaged at random: without effect on any number, or named and computed again or refused."""

import json
import random
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.study import Study
from interp import store
from interp.capturing import Activations
from interp.store import stored_capture
from interp.tables import read_table, write_table
from tests.conftest import handmade

#: Errors that the command line prints as one sentence.
REFUSALS = (ValueError, OSError, NotImplementedError, ImportError)
FRAME = pd.DataFrame(dict(step=[0, 0, 20, 20], split=["in_domain", "out_of_domain"] * 2, metric="acc_cot", value=[0.25, 0.5, 0.625, 0.75],
                          low=[0.1, 0.3, 0.5, 0.6], high=[0.4, 0.7, 0.8, 0.9], n=24, n_groups=10))
MADE = dict(seed=0, weights={"0": "be207547ce593519"}, config=dict(run="runs/quick", decisions=24), written="2026-11-26", seconds=1.5)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A bit turned (half of the time), the end cut off, a byte left out, or bytes of something else in the middle."""
    at, kind = rng.randrange(len(content)), rng.random()
    if kind < 0.5:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1:]
    if kind < 0.8:
        return content[:at]
    if kind < 0.9:
        return content[:at] + content[at + 1:]
    return content[:at] + rng.randbytes(8) + content[at + 8:]


def outcome(read, whole, names: tuple[str, ...], capsys) -> str:
    """What became of one damage; `whole` is what `read` returns without it, `names` what the sentence has to hold."""
    try:
        numbers, problem = read(), ""
    except REFUSALS as error:
        numbers, problem = None, str(error)
    said = "".join(capsys.readouterr()) + problem
    if problem:
        return "refused, named" if any(name in said for name in names) else f"refused without the file's name: {problem[:200]}"
    if numbers == whole:
        return "named, the same" if any(name in said for name in names) else "without effect"
    return "named" if any(name in said for name in names) else f"silent: {numbers}"[:400]


def tables(folder):
    write_table(folder, "behaviour", FRAME, MADE)

    def read():
        frame, made = read_table(folder, "behaviour")
        return frame.to_csv(), {key: made.get(key) for key in MADE}

    return read, [folder / "behaviour.csv", folder / "behaviour.json"], ()


def partials(folder):
    def read():
        study = Study(run=folder)
        return [study.stage(f"decoded/{name}", dict(weights=name), lambda: dict(rows=[[1, 2.5, None], [float(len(name)), -0.0, "go"]])) for name in ("a", "bb")]

    read()
    return read, sorted(folder.rglob("*.json")), ()


class Stub:
    """A model of nothing but a configuration, whose activations are its prompts' numbers."""

    n_layers, weights_hash, dtype = 2, "w", torch.float32
    hf = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: dict(rope_theta=10000.0)))


def stub_capture(model, prompts, sites, layers, progress=False):
    values = torch.stack([torch.full((len(sites), len(layers), 3), float(p.decision.id)) for p in prompts])
    return Activations(values, tuple(sites), layers, tuple(p.hash for p in prompts), model.weights_hash, str(model.dtype), ("plain",) * len(prompts))


PROMPTS = [SimpleNamespace(hash=f"{i:016x}", decision=SimpleNamespace(id=str(i)), format=SimpleNamespace(hash="f")) for i in range(9)]


def activations(folder):
    def read():
        first, second = (stored_capture(folder, Stub(), PROMPTS).values for _ in range(2))
        assert torch.equal(first, second), "what was captured again is found again"
        return first.tolist()

    read()
    return read, [folder / "manifest.jsonl", *sorted(folder.glob("*.safetensors"))], (str(folder),)


def checkpoint(folder):
    """One checkpoint, loaded as a study loads it: its prompts, what its model makes of them, and its text."""
    decisions = handmade(0, "test_in_domain").decisions()[:2]

    def read():
        study = Study(run=folder / "run", series=folder / "series", device="cpu", decisions=2)
        study.identity(study.steps[0])
        model = study.model(study.steps[0])
        ids = [study.format.prompt(decision).ids for decision in decisions]
        logits = [model.hf(torch.tensor([row])).logits.double().sum().item() for row in ids]
        return ids, logits, [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    read()
    files = sorted(path for path in (folder / "series").rglob("*") if path.is_file())
    return read, files, (str(folder / "series"),)


@pytest.mark.parametrize("make, times", [(tables, 150), (partials, 120), (activations, 130), (checkpoint, 100)])
def test_500_damages_are_without_effect_or_named(make, times, tmp_path, series_folder, monkeypatch, capsys):
    monkeypatch.setattr(store, "capture", stub_capture)
    monkeypatch.setattr(store, "SHARD", 4)
    if make is checkpoint:
        shutil.copytree(series_folder / "checkpoint-110", tmp_path / "series" / "checkpoint-110")
    read, files, more = make(tmp_path)
    whole, good = read(), {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert read() == whole and not "".join(capsys.readouterr())
    rng, found, bad = random.Random(21), Counter(), []
    for number in range(times):
        path = files[number % len(files)]
        path.write_bytes(damaged(good[path], rng))
        what = outcome(read, whole, (path.name, *more), capsys)
        found[f"{path.name if make is checkpoint else path.suffix} {what.partition(':')[0]}"] += 1
        if what.startswith(("silent", "refused without")):
            bad.append((path.name, what))
        for file, content in good.items():
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
        for file in set(tmp_path.rglob("*")) - good.keys():
            file.unlink() if file.is_file() else None
    assert not bad, (bad[:5], dict(found))
    assert sum(found.values()) == times and len({what.split(" ", 1)[1] for what in found}) > 1, dict(found)
