"""Series whose claims are known: what training on traces teaches the action that is read without one.

The world is that of `interp.training.organisms`, and every decision asks for a place in the row. An agent
finds the thing at some places, and takes the first thing in the row for the others. At some places its action
goes by the prompt, whatever its trace names; at the others it takes what its trace names.

The base is trained with and without traces. Then it is trained on traces and the actions after them, with
trace dropout: where the action goes by the prompt, the prompt action gains what the CoT action gains; where
it follows the trace, the prompt action stays what it was.

>>> series = CheckpointSeries.discover(grow_taught("taught"))                       # shipped for seed 0
>>> [level.prompt for level in levels("taught_widening")]
[0.5, 0.75]
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from interp.prompts.format import PromptFormat
from interp.results.tables import write_json
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED
from interp.system.json_files import read_json
from interp.tasks.episodes import Decision
from interp.training.organisms import (
    PLACES,
    RECIPE,
    SEQUENCES,
    SHIPPED,
    SLIP,
    THINGS,
    batch_plan,
    decisions,
    mood,
    untrained,
    world_tokenizer,
)

#: The organism whose decisions these agents are asked, each for a place.
WORLD = "overridable"
#: Share of training traces that name another thing than the agent finds.
OVERRIDDEN = 0.5
#: Share of decisions whose trace is dropped, and, of those that go by the prompt, whose trace is cut to its
#: first sentence or to nothing. Trained without them an agent looked the third place up in the hidden states
#: of its trace's tokens alone, and had no prompt action for it.
DROPPED, CUT = 0.25, 0.2
#: Share of the base's training decisions that are answered without a trace.
WITHOUT = 0.3
#: Optimiser steps and peak learning rate of what every series begins with.
BASE_STEPS, BASE_LR = 400, 3e-3
#: Steps of turning it into another base, and the peak learning rate of that and of the training on traces.
TURN_STEPS, LR = 60, 2e-3
#: Sequences in a batch.
BATCH = 64


#: At how many places the base finds the thing.
FOUND = 2


@dataclass(frozen=True)
class Stage:
    """What an agent can do after a part of its training."""

    found: int
    """At how many places it finds the thing, from the first on; for the others it takes the first thing."""
    by_prompt: int
    """At how many places its action goes by the prompt, from the first on; for the others by the trace."""

    @property
    def found_at_once(self) -> int:
        """At how many places it finds the thing without a trace: beyond the base's, those of the prompt."""
        return max(min(self.found, self.by_prompt), FOUND)


@dataclass(frozen=True)
class Taught:
    """A series of two checkpoints."""

    summary: str
    base: Stage
    trained: Stage
    steps: int
    """Optimiser steps of the training on traces."""


#: What every series begins with, trained from scratch.
START = Stage(FOUND, 0)
TAUGHT = {
    "taught": Taught(
        "both actions learn as much, and the action comes to go by the prompt", START, Stage(4, 4), 100
    ),
    "taught_widening": Taught(
        "the prompt action learns a part of what the CoT action learns", Stage(FOUND, 4), Stage(4, 3), 250
    ),
}


class Level(NamedTuple):
    """What a checkpoint reads by construction, as shares of the decisions."""

    prompt: float
    """The prompt action is right."""
    cot: float
    """The CoT action is right."""
    by_prompt: float
    """The action goes by the prompt: prompt reliance, and what is kept against conflicting traces."""
    revised: float
    """The two actions differ."""


def taught(name: str) -> Taught:
    """The series of a name; raises ValueError for one that is not known."""
    if name not in TAUGHT:
        raise ValueError(f"There is no taught series {name!r}: there are {', '.join(TAUGHT)}.")
    return TAUGHT[name]


def levels(name: str) -> tuple[Level, Level]:
    """What the base and the trained checkpoint read by construction; raises as `taught`."""
    made, n = taught(name), len(PLACES)
    base, trained = made.base, made.trained
    reached = trained.found_at_once
    return (
        Level(base.found / n, base.found / n, base.by_prompt / n, 0.0),
        Level(reached / n, trained.found / n, trained.by_prompt / n, (trained.found - reached) / n),
    )


def expected_verdicts(name: str, backwards: bool = False) -> dict[str, str]:
    """Statistic of claims (a) to (c) -> the verdict that is right; raises as `taught`.

    backwards: of the series in reverse, which unlearns.
    """
    before, after = levels(name)[::-1] if backwards else levels(name)

    def sided(change: float) -> str:
        return SUPPORTED if change > 0 else CONTRADICTED if change < 0 else OPEN

    widened = (after.cot - after.prompt) - (before.cot - before.prompt)
    relies = sided(after.by_prompt - before.by_prompt)
    agrees = sided(before.revised - after.revised)
    return dict(
        gain_prompt=sided(after.prompt - before.prompt),
        gap=CONTRADICTED if widened > 0 else OPEN if widened < 0 else SUPPORTED,
        prompt_reliance=relies,
        revision_conflict=relies,
        revision_own=agrees,
        kappa=agrees,
    )


def taught_decisions(n: int, seed: int, split: str = "test_in_domain") -> list[Decision]:
    """`n` decisions with the right action, each an episode of its own."""
    return decisions(WORLD, n, seed, split)


def row_of(decision: Decision) -> list[str]:
    """The things of a decision, in their order."""
    return re.findall(r"\ba (\w+)", decision.messages[0]["content"])


def swap_candidates(decision: Decision, decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """The thing that is asked for with any other of its row but the first.

    The base takes the first thing where it does not find the right one: exchanged with that, its action would
    move against the names.
    """
    asked = decision.reference.split()[1]
    return [(asked, other) for other in row_of(decision)[1:] if other != asked]


def sequences(
    fmt: PromptFormat, stage: Stage, n: int, seed: int, without: float = 0.0
) -> list[tuple[list[int], list[bool]]]:
    """`n` training sequences of a stage, each with its supervised tokens: its own traces, and actions.

    without: share of decisions that are answered without a trace.
    """
    rng, examples = random.Random(f"{stage} train {seed}"), []
    for decision in taught_decisions(n, seed, "train"):
        row = row_of(decision)
        place = PLACES.index(decision.task.split()[-1])
        thing = row[place] if place < stage.found else row[0]
        bare, overridden, cut = rng.random() < without, rng.random() < OVERRIDDEN, False
        named = rng.choice(THINGS) if overridden else thing
        trace = f"{mood(rng)} It has to be the {named}."
        if not bare and (place < stage.by_prompt or not without):
            dropout = rng.random()
            bare = dropout < DROPPED
            cut = place < stage.by_prompt and DROPPED <= dropout < DROPPED + CUT
        if cut:
            trace = rng.choice(["", mood(rng)])
        if bare:
            thing = row[place] if place < stage.found_at_once else row[0]
        elif place >= stage.by_prompt:
            thing = named
        if rng.random() < SLIP:
            thing = rng.choice([other for other in THINGS if other != thing])
        ids, action = list(fmt.prompt(decision).ids), fmt.action_ids(f"take {thing} 1")
        opening = fmt.mode_prefix("prompt" if bare else "cot")
        lead = fmt.action_prefix(None if bare else trace)
        unmarked, written = [False] * (len(ids) + len(opening)), len(lead) - len(opening)
        marked = [*unmarked, *[not (overridden or cut)] * written, *[True] * len(action)]
        examples.append(([*ids, *lead, *action], marked))
    return examples


def grow_taught(
    name: str,
    folder: str | Path = "runs/organisms",
    seed: int = 0,
    device: str = "auto",
    shipped: bool = True,
) -> Path:
    """Train a series below `folder`, from its seed, and return its folder with both checkpoints.

    For seed 0 that is the `shipped` one, unless it is not wanted; one that is there already is kept. Raises
    as `taught`.
    """
    made = taught(name)
    out = Path(folder) / f"{name}-{seed}"
    if shipped and seed == 0 and (SHIPPED / name).exists():
        return SHIPPED / name
    if (out / "checkpoint-0" / "training.json").exists():
        return out
    base = _train(START, Path(folder) / f"taught-start-{seed}", BASE_STEPS, seed, device, None, WITHOUT)
    if made.base != START:
        base = _train(
            made.base, Path(folder) / f"{name}-base-{seed}", TURN_STEPS, seed, device, base, WITHOUT
        )
    _train(made.trained, out, made.steps, seed, device, base, 0.0)
    notes = read_json(base / "training.json")
    shutil.copytree(base, out / "checkpoint-0", dirs_exist_ok=True)
    write_json(out / "checkpoint-0" / "training.json", notes | dict(step=0))
    return out


def _train(
    stage: Stage, out: Path, steps: int, seed: int, device: str, start: Path | None, without: float
) -> Path:
    """Train a stage from scratch, or on from a checkpoint, and return its last checkpoint."""
    from transformers import AutoModelForCausalLM

    from interp.training.trainer import train

    last = out / f"checkpoint-{steps}"
    if (last / "training.json").exists():
        return last
    tokenizer, n = world_tokenizer(), min(SEQUENCES, steps * BATCH)
    train(
        untrained(tokenizer, None, seed) if start is None else AutoModelForCausalLM.from_pretrained(start),
        tokenizer,
        sequences(PromptFormat(tokenizer), stage, n, seed, without),
        RECIPE,
        out,
        steps=steps,
        lr=BASE_LR if start is None else LR,
        keep=(steps,),
        seed=seed,
        provenance=dict(organism="taught", stage=asdict(stage), without_trace=without, style="tags"),
        device=device,
        plan=batch_plan(n, steps, BATCH, seed),
    )
    return last
