"""The works of the benchmark, what each tool takes for them, and the table of it."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from tqdm import tqdm
from transformers import AutoTokenizer

import interp
from analyses.benchmarks.rivals import BATCH_TOKENS, TOOLS, Cached, Fit, Plain, installed, sklearn_sweep, twin
from analyses.benchmarks.settings import MEMORY, Config, Shape
from interp.engine.sweeps import Cell, Packed
from interp.probing.logistic import standardised
from interp.probing.solver import fit_logistic
from interp.prompts.format import Prompt
from interp.results.tables import read_table, write_table
from interp.tasks.episodes import Decision

COLUMNS = (
    "work",
    "tool",
    "tokens",
    "seconds",
    "ratio",
    "plain_forwards",
    "max_difference",
    "sampled",
    "peak_mb",
)
VERSIONS = (
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "pyvene",
    "scikit-learn",
    "safetensors",
    "numpy",
)
#: The bare forwards of the same batches, beside the captures.
FORWARD = "forward alone"
#: Decisions, classes, folds and inverse penalties of the probe sweep.
PROBES = dict(rows=500, classes=8, folds=5, grid=(1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0))


class Interp:
    """This toolkit behind the rivals' interface: every call into the engine is here."""

    name, package = "interp", ""

    def __init__(self, hf, tokenizer):
        self.model = interp.HookedModel(twin(hf), tokenizer)

    def layer_sweep(self, ids, donor, action, layers=()):
        return self.grid(
            ids,
            donor[:, None].expand(-1, len(ids), -1),
            action,
            [(i, len(ids) - 1) for i in layers or range(len(donor))],
        )

    def grid(self, ids, donor, action, cells):
        run = Packed(
            self.model, ids, [action], [len(action)], positions=sorted({position for _, position in cells})
        )
        return run.patched(
            [
                Cell("resid_pre", layer, (position,), donor[layer, position][None], slice(None))
                for layer, position in cells
            ]
        )[:, 0]

    def capture(self, prompts):
        made = [
            Prompt(tuple(ids), ("template",) * len(ids), Decision((), "", (), "bench", i, "", "", ""), None)
            for i, ids in enumerate(prompts)
        ]
        return interp.capture(self.model, made, batch_tokens=BATCH_TOKENS).values[:, 0]

    def episode(self, prompts):
        return self.capture(prompts)

    def pair(self, clean, corrupt, actions, sites=("resid_pre", "attn_out", "mlp_out")):
        """Both directions of one pair, every site and layer at the boundary, captures included: [direction, cell, action]."""
        cells = [(site, layer) for site in sites for layer in range(self.model.n_layers)]
        shared = next(i for i, (a, b) in enumerate(zip(clean, corrupt)) if a != b)
        apart = next(
            i for i, (a, b) in enumerate(zip(*actions)) if a != b
        )  # what both begin with is as likely in both
        runs, prefix = [], []
        for ids in (clean, corrupt):
            runs.append(
                Packed(
                    self.model, ids, actions, [len(a) - apart for a in actions], sites, [len(ids) - 1], prefix
                )
            )
            prefix = [(k[:, :, :shared], v[:, :, :shared]) for k, v in runs[0].layers]
        return torch.stack(
            [
                run.patched(
                    [Cell(*cell, (len(clean) - 1,), donor.values[cell], slice(None)) for cell in cells]
                )
                for run, donor in (runs, runs[::-1])
            ]
        )


def probe_sweep(
    features: np.ndarray, label: np.ndarray, folds: Sequence, cells: Sequence[Fit]
) -> torch.Tensor:
    """What `sklearn_sweep` returns, by the batched solver: all folds and C of a layer at once."""
    grid, found = sorted({c for _, _, c in cells}), {}
    for layer in sorted({layer for layer, _, _ in cells}):
        ends = [standardised(features[layer])(*fold) for fold in folds]
        weights, bias, _ = fit_logistic(
            [train for train, _ in ends], [label[train] for train, _ in folds], grid
        )
        for fold, (_, held_out) in enumerate(ends):
            probability = softmax(held_out @ weights[fold, :, : held_out.shape[1]] + bias[fold], axis=2)
            found.update({(layer, fold, c): torch.from_numpy(p) for c, p in zip(grid, probability)})
    return torch.stack([found[cell] for cell in cells])


@dataclass
class Work:
    """Something to time: `calls[tool](n)` does its first `n` of `units` parts, each tool's in the same random order.

    The first tool is the reference. Tools in `whole` share work between parts, so they always do all of them.
    forward: one plain forward of the prompt, without the language-model head.
    """

    name: str
    tokens: int
    units: int
    calls: dict[str, Callable[[int], torch.Tensor | None]]
    forward: Callable[[], None] | None = None
    whole: tuple[str, ...] = (Interp.name,)
    least: int = 1
    """Parts that ours does at least, where it is not in `whole`: packed passes need company."""


def kinds(config: Config) -> list[type]:
    """The tools of a run, the reference first and ours last."""
    return [
        *(t for t in TOOLS if installed(t) and (not config.tools or t is Plain or t.name in config.tools)),
        Interp,
    ]


def works(config: Config, hf, tokenizer) -> Iterator[Work]:
    """All works in order; each makes its inputs only when its turn comes."""
    generator = torch.Generator().manual_seed(config.seed)
    tools = {t.name: t(hf, tokenizer) for t in kinds(config)}
    plain, ours, n_layers = tools[Plain.name], tools[Interp.name], config.shape.layers

    def draw(n: int) -> list[int]:
        return torch.randint(config.shape.vocabulary, (n,), generator=generator).tolist()

    def shuffled(items: list) -> list:
        return [items[i] for i in torch.randperm(len(items), generator=generator)]

    def forward(ids):
        return lambda: plain.forward(torch.tensor([ids]))

    def donor(n: int) -> torch.Tensor:
        """resid_pre of another prompt, [layer, position, d_model]."""
        with torch.inference_mode():
            return torch.cat(
                plain.hf.model(torch.tensor([draw(n)]), output_hidden_states=True).hidden_states[:-1]
            )

    for n in config.lengths:
        ids, action, values, order = (
            draw(n),
            draw(config.action),
            donor(n)[:, -1],
            shuffled(list(range(n_layers))),
        )
        calls = {
            name: lambda k, t=t: t.layer_sweep(ids, values, action, order[:k]) for name, t in tools.items()
        }
        yield Work("layer sweep", n, n_layers, calls, forward(ids), (Interp.name, Cached.name))
    for n in config.lengths:
        prompts = [draw(n) for _ in range(config.captured)]
        calls = {
            name: lambda k, t=t: t.capture(prompts[:k]) for name, t in tools.items() if name != Cached.name
        }
        calls[FORWARD] = lambda k: plain.forwards(prompts[:k])
        yield Work("boundary capture", n, len(prompts), calls, forward(prompts[0]))
    ids, action, values = draw(config.grid_tokens), draw(config.action), donor(config.grid_tokens)
    # Whole layers, in random pairs as far above the middle as below it: ours costs less the higher a layer is.
    low = shuffled(list(range((n_layers + 1) // 2)))
    cells = [
        cell
        for i in low
        for cell in shuffled(
            [(layer, position) for layer in {i, n_layers - 1 - i} for position in range(len(ids))]
        )
    ]
    calls = {name: lambda k, t=t: t.grid(ids, values, action, cells[:k]) for name, t in tools.items()}
    yield Work("layer x position grid", len(ids), len(cells), calls, forward(ids), (), 2 * len(ids))
    first, last, number = config.episode
    ids = draw(last)
    steps = [ids[: round(n)] for n in np.linspace(first, last, number)]
    yield Work(
        "episode", last, 1, {name: lambda k, t=t: t.episode(steps) for name, t in tools.items()}, forward(ids)
    )
    n = 1024 if 1024 in config.lengths else max(config.lengths)
    # As in the recorded pairs, whose prompts share their first fifth, and whose actions their first half.
    clean, common = draw(n), draw(config.action // 2)
    corrupt, actions = (
        clean[: n // 5] + draw(n - n // 5),
        [common + draw(config.action - len(common)) for _ in range(2)],
    )
    yield Work(
        "three sites, both directions, one pair",
        n,
        1,
        {ours.name: lambda k: ours.pair(clean, corrupt, actions)},
        forward(clean),
    )

    rng = np.random.default_rng(config.seed)
    label = rng.permutation(np.arange(PROBES["rows"]) % PROBES["classes"])
    centres = rng.normal(size=(PROBES["classes"], config.shape.hidden)) / 4
    features = rng.normal(size=(n_layers, PROBES["rows"], config.shape.hidden)) + centres[label]
    parts = np.array_split(rng.permutation(PROBES["rows"]), PROBES["folds"])
    folds = [(np.concatenate(parts[:i] + parts[i + 1 :]), part) for i, part in enumerate(parts)]
    fits = shuffled(
        [(layer, fold, c) for layer in range(n_layers) for fold in range(len(folds)) for c in PROBES["grid"]]
    )
    yield Work(
        "probe sweep",
        0,
        len(fits),
        {
            "scikit-learn": lambda k: sklearn_sweep(features, label, folds, fits[:k]),
            ours.name: lambda k: probe_sweep(features, label, folds, fits[:k]),
        },
    )

    with tempfile.TemporaryDirectory() as folder:
        for step in range(2):
            hf.save_pretrained(Path(folder) / f"checkpoint-{step}")
            tokenizer.save_pretrained(Path(folder) / f"checkpoint-{step}")
        series = interp.CheckpointSeries.discover(folder)
        file = series.path(1) / "model.safetensors"
        buffer = bytearray(file.stat().st_size)

        def read(k):
            with open(file, "rb", buffering=0) as stream:
                view = memoryview(buffer)
                while view and (n := stream.readinto(view)):
                    view = view[n:]

        yield Work(
            "swap a checkpoint",
            0,
            1,
            {
                "file read into memory": read,
                "file mapped and summed": lambda k: sum(t.sum() for t in load_file(file).values()) and None,
                ours.name: lambda k: series.swap(ours.model, 1) and None,
            },
        )


def measure(work: Work, config: Config) -> list[dict]:
    """Time every tool on a work, interleaved and repeated, after one untimed run of one part."""

    def timed(call, *args):
        started = time.perf_counter()
        value = call(*args)
        return time.perf_counter() - started, value

    plan, values, seconds, forwards = {}, {}, {}, []
    for tool, call in work.calls.items():
        parts = (
            work.units if tool in work.whole else min(work.units, work.least) if tool == Interp.name else 1
        )
        try:
            took, value = timed(call, parts)
        except NotImplementedError as reason:
            tqdm.write(f"{work.name}: {tool} is left out, {reason}")
            continue
        once = took / parts
        more = parts if tool in work.whole else max(parts, min(work.units, int(config.budget / once)))
        plan[tool], seconds[tool] = (more, min(config.repeats, int(config.budget / (once * more)))), []
        if not plan[tool][1]:  # so long that the first run has to do
            plan[tool], seconds[tool], values[tool] = (parts, 0), [took * work.units / parts], value
    for turn in tqdm(
        range(max((repeats for _, repeats in plan.values()), default=0)), desc=work.name, leave=False
    ):
        for tool, (parts, repeats) in plan.items():
            if turn < repeats:
                took, values[tool] = timed(work.calls[tool], parts)
                seconds[tool].append(took * work.units / parts)
        if work.forward:
            forwards.append(timed(work.forward)[0])
    if work.forward and not forwards:
        forwards.append(timed(work.forward)[0])
    rows, reference = [], next(iter(work.calls))
    median = {tool: float(np.median(found)) for tool, found in seconds.items()}
    for tool, (parts, _) in plan.items():
        difference = float("nan")
        if tool != reference and values[tool] is not None and reference in plan:
            known = min(parts, plan[reference][0])
            same = slice(None) if known == work.units else slice(known)
            difference = float((values[tool][same] - values[reference][same]).abs().max())
        rows.append(
            dict(
                work=work.name,
                tool=tool,
                tokens=work.tokens,
                seconds=median[tool],
                ratio=median[tool] / median.get(Interp.name, float("nan")),
                plain_forwards=median[tool] / float(np.median(forwards)) if forwards else float("nan"),
                max_difference=difference,
                sampled=f"{parts} of {work.units}" if parts < work.units else "",
            )
        )
    return rows


def peak(tool: str, tokens: int, number: int, shape: Shape) -> float:
    """Megabytes by which a capture (or nothing but its forwards) raises this process's peak memory."""
    worker = {t.name: t for t in (*TOOLS, Interp)}.get(tool, Plain)(shape.build(0), _tokenizer())
    prompts = torch.randint(shape.vocabulary, (number, tokens), generator=torch.Generator().manual_seed(0))

    def run(prompts):
        (worker.forwards if tool == FORWARD else worker.capture)(prompts.tolist())

    run(prompts[:1, :8])
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # Linux: give back what building the model left free, then forget its peak
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        reset.write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(prompts)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory(config: Config, tokens: int) -> list[dict]:
    """Peak memory of a boundary capture, each tool in a process of its own."""
    code = (
        "import json, sys; from analyses.benchmarks.settings import Shape; from analyses.benchmarks.works import peak; "
        "print(peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Shape(**json.loads(sys.argv[4]))))"
    )
    rows = []
    for tool in tqdm([FORWARD, *(t.name for t in kinds(config) if t is not Cached)], desc="memory"):
        arguments = [tool, str(tokens), str(config.captured), json.dumps(dataclasses.asdict(config.shape))]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(config.threads)},
        )
        rows.append(
            dict(work=MEMORY, tool=tool, tokens=tokens, sampled="", peak_mb=float(done.stdout.split()[-1]))
        )
    return rows


def _tokenizer():
    series = interp.CheckpointSeries.discover()
    return AutoTokenizer.from_pretrained(series.path(series.steps[0]))


def run_works(config: Config) -> pd.DataFrame:
    """Measure everything, or the works that are asked for, and write the table."""
    started = time.time()
    torch.set_num_threads(config.threads)
    rows, measured = [], {}
    if config.works and (config.out / "bench.csv").exists():
        table, provenance = read_table(config.out, "bench")
        rows = table[~table.work.isin(config.works)].to_dict("records")
        measured = {work: when for work, when in provenance["measured"].items() if work not in config.works}

    def add(work: str, more: list[dict]) -> None:
        rows.extend(more)
        measured[work] = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        _write(config, rows, started, measured)

    if MEMORY in (config.works or [MEMORY]):
        add(MEMORY, memory(config, min(1024, max(config.lengths))))
    every = works(config, config.shape.build(config.seed), _tokenizer())
    for work in tqdm(every, desc="bench", unit="work", total=2 * len(config.lengths) + 5):
        if work.name in (config.works or [work.name]):
            add(work.name, measure(work, config))
    frame = _write(config, rows, started, measured)
    print(frame.to_string(index=False))
    return frame


def _write(config: Config, rows: list[dict], started: float, measured: dict[str, str]) -> pd.DataFrame:
    """The table of what has been measured so far; all tools of a work are of one run, which `measured` dates."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    known = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    write_table(
        config.out,
        "bench",
        frame,
        dict(
            analysis="bench",
            config=json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            seconds=round(time.time() - started, 1),
            command=" ".join(["python -m analyses", *map(str, sys.argv[1:])]),
            written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            seed=config.seed,
            measured=measured,
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
            threads=config.threads,
            dtype="float32",
            versions={
                "interp": interp.__version__,
                **{v: importlib.metadata.version(v) for v in VERSIONS if v in known},
            },
        ),
    )
    return frame
