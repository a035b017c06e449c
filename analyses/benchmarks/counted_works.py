"""The works whose counts are kept, on a tiny random model, and their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from transformers import AutoTokenizer

import interp
from interp.engine import bundles, generation, reading, scoring, sweeps
from interp.engine.decoding import Completion, decode_modes, parse_completion
from interp.measures.early import early_answers
from interp.models import devices
from interp.prompts.format import Prompt, PromptFormat

from .counting import Counts, counting
from .gpu_works import SITES, build

#: Pairs, prompts and decisions of the works that take many, and of those that take fewer.
MANY, FEW = 16, 8
#: Decisions of the shipped corpus from which they are taken, and most tokens of their prompts.
DRAWN, LONGEST = 64, 512
#: Every pair counts, whatever a random model makes of it.
ALL = -1e9
#: What is done otherwise on a CPU, and limits its batches: as on a GPU that has the memory.
LIMITS: tuple[tuple[ModuleType, str, Any], ...] = (
    (devices, "HELD", 2**34),
    (reading, "READ", devices.MOST),
    (scoring, "TREES", devices.MOST),
    (sweeps, "PASS", sweeps.PASS[1:] * 2),
    (sweeps, "BUDGET", 2**34),
    (generation, "FEWEST", generation.KEPT),
    (generation, "BATCH", generation.KEPT),
    (bundles, "DEVICES", ()),
)


@dataclass(frozen=True)
class Inputs:
    """What the works are done on; `clean` and `corrupt` are pairs, the shortest first."""

    model: interp.HookedModel
    prompts: Sequence[Prompt]
    clean: Sequence[Prompt]
    corrupt: Sequence[Prompt]

    @classmethod
    def of(cls, model: interp.HookedModel, decisions: Sequence[interp.Decision], many: int) -> Inputs:
        """Pairs of decisions, and as many prompts of all lengths up to `LONGEST`."""
        fmt = PromptFormat(model.tokenizer)
        decisions = [each for each in decisions if len(fmt.prompt(each).ids) <= LONGEST]
        pairs = list(zip(*interp.make_pairs(fmt, decisions, n=many)[:2]))
        pairs.sort(key=lambda pair: len(pair[0].ids))
        prompts = sorted(map(fmt.prompt, decisions), key=lambda prompt: len(prompt.ids))
        return cls(model, prompts[:: len(prompts) // many][:many], *map(list, zip(*pairs)))

    @property
    def pair(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        """The pair in the middle."""
        middle = slice(len(self.clean) // 2, len(self.clean) // 2 + 1)
        return self.clean[middle], self.corrupt[middle]


def tiny() -> Inputs:
    """A tiny random model, and decisions of the shipped corpus."""
    series = interp.CheckpointSeries.discover()
    tokenizer = AutoTokenizer.from_pretrained(series.path(series.steps[0]))
    hf = build("tiny", torch.device("cpu"), torch.float32, seed=0)
    decisions = interp.sample_decisions(interp.load_corpus()["test_in_domain"], DRAWN)
    return Inputs.of(interp.HookedModel(hf, tokenizer), decisions, MANY)


def spoken(prompt: Prompt) -> Completion:
    """The reference trace and action of a prompt, as if they were decoded."""
    fmt, decision = prompt.format, prompt.decision
    ids = [*fmt.with_trace(decision.trace), *fmt.action_ids(decision.reference)]
    return parse_completion(fmt, ids[len(fmt.mode_prefix("cot")) :], "cot")


def works(given: Inputs) -> dict[str, Callable[[], Any]]:
    """Every work by its name."""
    model, prompts, few = given.model, given.prompts, given.prompts[:FEW]
    pair, pairs = given.pair, (given.clean, given.corrupt)
    shortest = given.clean[:1], given.corrupt[:1]
    return {
        "layer sweep of a pair": lambda: interp.patch(model, *pair, minimum=ALL),
        f"layer sweep of {len(given.clean)} pairs": lambda: interp.patch(model, *pairs, minimum=ALL),
        "three sites, both directions, of a pair": lambda: interp.patch(model, *pair, SITES, minimum=ALL),
        "layer x position grid of a short pair": lambda: interp.patch(
            model, *shortest, at="all", minimum=ALL
        ),
        "prompt reliance of a pair": lambda: interp.prompt_reliance(model, *pair, minimum=ALL),
        f"prompt reliance of {len(given.clean)} pairs": lambda: interp.prompt_reliance(
            model, *pairs, minimum=ALL
        ),
        f"ablation of {len(few)} prompts": lambda: interp.ablate(model, few),
        "attribution of a pair": lambda: interp.attribute(model, *pair, minimum=ALL),
        f"attribution of {len(given.clean)} pairs": lambda: interp.attribute(model, *pairs, minimum=ALL),
        f"boundary capture of {len(prompts)} prompts": lambda: interp.capture(
            model, prompts, batch_tokens=devices.MOST
        ),
        f"forced choice of {len(prompts)} decisions": lambda: interp.choose_each(
            model, prompts, [prompt.decision.admissible for prompt in prompts]
        ),
        f"decoding 2 modes x {len(prompts)} x 8 tokens": lambda: decode_modes(
            model, prompts, ["prompt", "cot"], max_new_tokens=8
        ),
        f"early answers of {len(few)} decisions": lambda: early_answers(
            model, few, [spoken(prompt) for prompt in few], max_new_tokens=8
        ),
    }


@contextmanager
def much_memory() -> Iterator[None]:
    """Batches as large as on a GPU that has the memory."""
    before = [getattr(module, name) for module, name, _ in LIMITS]
    for module, name, value in LIMITS:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(LIMITS, before):
            setattr(module, name, value)


def counted(model: interp.HookedModel, work: Callable[[], Any]) -> Counts:
    """The counts of a work where memory is no limit.

    It is done once before: what is tried once for a model is not counted.
    """
    with much_memory():
        work()
        with counting(model) as counts:
            work()
    return counts


def count_works() -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """A row of counts for every work, and what waited in each: a place in the source -> how often."""
    given, rows, waits = tiny(), [], {}
    for name, work in works(given).items():
        counts = counted(given.model, work)
        rows.append(dict(work=name, **vars(counts)) | dict(waits=counts.waits.total()))
        waits[name] = dict(counts.waits)
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return pd.DataFrame(rows), waits
