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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import interp
from interp.engine.cells import Cell, Run
from interp.engine.sweeps import Packed
from interp.probing.logistic import standardised
from interp.probing.solver import fit_logistic
from interp.prompts.format import Prompt
from interp.results.tables import read_table, write_table
from interp.system.paths import PROGRAM
from interp.tasks.episodes import Decision

from .rivals import BATCH_TOKENS, TOOLS, Cached, Fit, Plain, installed, sklearn_sweep, twin
from .settings import MEMORY, Config, Shape

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

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = interp.HookedModel(twin(hf), tokenizer)

    def layer_sweep(
        self, ids: Sequence[int], donor: torch.Tensor, action: Sequence[int], layers: Sequence[int] = ()
    ) -> torch.Tensor:
        return self.grid(
            ids,
            donor[:, None].expand(-1, len(ids), -1),
            action,
            [(i, len(ids) - 1) for i in layers or range(len(donor))],
        )

    def grid(
        self, ids: Sequence[int], donor: torch.Tensor, action: Sequence[int], cells: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        positions = sorted({position for _, position in cells})
        packed = Packed(self.model, [Run(ids, [action], [len(action)], positions)])
        return packed.patched(
            [
                Cell("resid_pre", layer, [(position,)], donor[layer, position][None, None], slice(None))
                for layer, position in cells
            ]
        )[0, :, 0]

    def capture(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        made = [
            Prompt(tuple(ids), ("template",) * len(ids), Decision((), "", episode="bench", step=i), None)
            for i, ids in enumerate(prompts)
        ]
        return interp.capture(self.model, made, batch_tokens=BATCH_TOKENS).values[:, 0]

    def episode(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        return self.capture(prompts)

    def pair(
        self,
        clean: Sequence[int],
        corrupt: Sequence[int],
        actions: Sequence[Sequence[int]],
        sites: Sequence[str] = ("resid_pre", "attn_out", "mlp_out"),
    ) -> torch.Tensor:
        """Both directions of a pair at the boundary, with captures: [direction, (site, layer), action]."""
        cells = [(site, layer) for site in sites for layer in range(self.model.n_layers)]
        # what both begin with is as likely in both
        apart = next(i for i, (a, b) in enumerate(zip(*actions)) if a != b)
        boundary, scored = len(clean) - 1, [len(a) - apart for a in actions]
        packed = Packed(
            self.model, [Run(ids, actions, scored, [boundary]) for ids in (clean, corrupt)], sites
        )
        return packed.patched(
            [Cell(*cell, [(boundary,)] * 2, packed.values[cell].flip(0), slice(None)) for cell in cells]
        )


def probe_sweep(
    features: np.ndarray, label: np.ndarray, folds: Sequence, cells: Sequence[Fit]
) -> torch.Tensor:
    """What `sklearn_sweep` returns, by the batched solver: all folds and C of a layer at once."""
    grid, probabilities = sorted({c for _, _, c in cells}), {}
    for layer in sorted({layer for layer, _, _ in cells}):
        ends = [standardised(features[layer])(*fold) for fold in folds]
        weights, bias, _ = fit_logistic(
            [train for train, _ in ends], [label[train] for train, _ in folds], grid
        )
        for fold, (_, held_out) in enumerate(ends):
            probability = softmax(held_out @ weights[fold, :, : held_out.shape[1]] + bias[fold], axis=2)
            probabilities |= {(layer, fold, c): torch.from_numpy(p) for c, p in zip(grid, probability)}
    return torch.stack([probabilities[cell] for cell in cells])


@dataclass
class Work:
    """Something to time: `calls[tool](n)` does the first `n` of `units` parts, in one order for all tools.

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


class Bench:
    """The models of a run and the random inputs of its works, made in order when their turn comes."""

    def __init__(self, config: Config, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.hf, self.tokenizer = config, hf, tokenizer
        self.generator = torch.Generator().manual_seed(config.seed)
        self.tools = {tool.name: tool(hf, tokenizer) for tool in kinds(config)}
        self.plain: Plain = self.tools[Plain.name]
        self.ours: Interp = self.tools[Interp.name]
        self.n_layers = config.shape.layers

    def draw(self, n: int) -> list[int]:
        """Ids of a random text."""
        return torch.randint(self.config.shape.vocabulary, (n,), generator=self.generator).tolist()

    def shuffled(self, items: list) -> list:
        """The items in random order."""
        return [items[i] for i in torch.randperm(len(items), generator=self.generator)]

    def forward(self, ids: Sequence[int]) -> Callable[[], None]:
        """One plain forward."""
        return lambda: self.plain.forward(torch.tensor([ids]))

    @torch.inference_mode()
    def donor(self, n: int) -> torch.Tensor:
        """resid_pre of another prompt, [layer, position, d_model]."""
        ids = torch.tensor([self.draw(n)])
        return torch.cat(self.plain.hf.model(ids, output_hidden_states=True).hidden_states[:-1])

    def works(self) -> Iterator[Work]:
        """All works in order."""
        for n in self.config.lengths:
            yield self.layer_sweep(n)
        for n in self.config.lengths:
            yield self.capture(n)
        yield self.grid()
        yield self.episode()
        yield self.pair()
        yield self.probes()
        with tempfile.TemporaryDirectory() as folder:
            yield self.swap(Path(folder))

    def layer_sweep(self, n: int) -> Work:
        """resid_pre patched at the last token of every layer."""
        ids, action = self.draw(n), self.draw(self.config.action)
        values = self.donor(n)[:, -1]
        order = self.shuffled(list(range(self.n_layers)))
        calls = {
            name: lambda k, tool=tool: tool.layer_sweep(ids, values, action, order[:k])
            for name, tool in self.tools.items()
        }
        whole = (Interp.name, Cached.name)
        return Work("layer sweep", n, self.n_layers, calls, self.forward(ids), whole)

    def capture(self, n: int) -> Work:
        """resid_post of every layer at the boundary, beside the bare forwards."""
        prompts = [self.draw(n) for _ in range(self.config.captured)]
        calls = {
            name: lambda k, tool=tool: tool.capture(prompts[:k])
            for name, tool in self.tools.items()
            if name != Cached.name
        }
        calls[FORWARD] = lambda k: self.plain.forwards(prompts[:k])
        return Work("boundary capture", n, len(prompts), calls, self.forward(prompts[0]))

    def grid(self) -> Work:
        """resid_pre patched at every layer and position."""
        n = self.config.grid_tokens
        ids, action, values = self.draw(n), self.draw(self.config.action), self.donor(n)
        # Whole layers, in random pairs as far above the middle as below it: ours costs less the higher a
        # layer is.
        low = self.shuffled(list(range((self.n_layers + 1) // 2)))
        cells = []
        for i in low:
            layers = {i, self.n_layers - 1 - i}
            cells += self.shuffled([(layer, position) for layer in layers for position in range(n)])
        calls = {
            name: lambda k, tool=tool: tool.grid(ids, values, action, cells[:k])
            for name, tool in self.tools.items()
        }
        return Work("layer x position grid", n, len(cells), calls, self.forward(ids), (), 2 * n)

    def episode(self) -> Work:
        """A boundary capture of prompts that extend one another."""
        first, last, number = self.config.episode
        ids = self.draw(last)
        steps = [ids[: round(n)] for n in np.linspace(first, last, number)]
        calls = {name: lambda k, tool=tool: tool.episode(steps) for name, tool in self.tools.items()}
        return Work("episode", last, 1, calls, self.forward(ids))

    def pair(self) -> Work:
        """Three sites in both directions: as in recorded pairs, prompts share a fifth and actions a half."""
        lengths = self.config.lengths
        n = 1024 if 1024 in lengths else max(lengths)
        clean, common = self.draw(n), self.draw(self.config.action // 2)
        corrupt = clean[: n // 5] + self.draw(n - n // 5)
        actions = [common + self.draw(self.config.action - len(common)) for _ in range(2)]
        calls = {Interp.name: lambda k: self.ours.pair(clean, corrupt, actions)}
        return Work("three sites, both directions, one pair", n, 1, calls, self.forward(clean))

    def probes(self) -> Work:
        """Probes of every layer, fold and inverse penalty."""
        rng = np.random.default_rng(self.config.seed)
        hidden = self.config.shape.hidden
        label = rng.permutation(np.arange(PROBES["rows"]) % PROBES["classes"])
        centres = rng.normal(size=(PROBES["classes"], hidden)) / 4
        features = rng.normal(size=(self.n_layers, PROBES["rows"], hidden)) + centres[label]
        parts = np.array_split(rng.permutation(PROBES["rows"]), PROBES["folds"])
        folds = [(np.concatenate(parts[:i] + parts[i + 1 :]), part) for i, part in enumerate(parts)]
        fits = self.shuffled(list(product(range(self.n_layers), range(len(folds)), PROBES["grid"])))
        calls = {
            "scikit-learn": lambda k: sklearn_sweep(features, label, folds, fits[:k]),
            Interp.name: lambda k: probe_sweep(features, label, folds, fits[:k]),
        }
        return Work("probe sweep", 0, len(fits), calls)

    def swap(self, folder: Path) -> Work:
        """Another checkpoint's weights in the same module, beside reading their file."""
        for step in range(2):
            self.hf.save_pretrained(folder / f"checkpoint-{step}")
            self.tokenizer.save_pretrained(folder / f"checkpoint-{step}")
        series = interp.CheckpointSeries.discover(folder)
        file = series.path(1) / "model.safetensors"
        buffer = bytearray(file.stat().st_size)

        def read(k: int) -> None:
            with open(file, "rb", buffering=0) as stream:
                view = memoryview(buffer)
                while view and (n := stream.readinto(view)):
                    view = view[n:]

        calls = {
            "file read into memory": read,
            "file mapped and summed": lambda k: sum(t.sum() for t in load_file(file).values()) and None,
            Interp.name: lambda k: series.swap(self.ours.model, 1) and None,
        }
        return Work("swap a checkpoint", 0, 1, calls)


def measure(work: Work, config: Config) -> list[dict]:
    """Time every tool on a work, interleaved and repeated, after one untimed run of one part."""

    def timed(call: Callable, *args: int) -> tuple[float, Any]:
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
    median = {tool: float(np.median(each)) for tool, each in seconds.items()}
    for tool, (parts, _) in plan.items():
        difference = float("nan")
        if tool != reference and values[tool] is not None and reference in plan:
            shared = min(parts, plan[reference][0])
            same = slice(None) if shared == work.units else slice(shared)
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

    def run(prompts: torch.Tensor) -> None:
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
        f"import json, sys; from {__package__}.settings import Shape; "
        f"from {__package__}.works import peak; "
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


def _tokenizer() -> PreTrainedTokenizerBase:
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
    bench = Bench(config, config.shape.build(config.seed), _tokenizer())
    for work in tqdm(bench.works(), desc="bench", unit="work", total=2 * len(config.lengths) + 5):
        if work.name in (config.works or [work.name]):
            add(work.name, measure(work, config))
    frame = _write(config, rows, started, measured)
    print(frame.to_string(index=False))
    return frame


def _write(config: Config, rows: list[dict], started: float, measured: dict[str, str]) -> pd.DataFrame:
    """The table of what has been measured so far; `measured` dates the run of each work."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    installed_names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    write_table(
        config.out,
        "bench",
        frame,
        dict(
            analysis="bench",
            config=json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            seconds=round(time.time() - started, 1),
            command=" ".join([PROGRAM, *map(str, sys.argv[1:])]),
            written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            seed=config.seed,
            measured=measured,
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
            threads=config.threads,
            dtype="float32",
            versions={
                "interp": interp.__version__,
                **{v: importlib.metadata.version(v) for v in VERSIONS if v in installed_names},
            },
        ),
    )
    return frame
