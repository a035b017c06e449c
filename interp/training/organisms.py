"""Agents whose reliance on the prompt is fixed by construction, so that every instrument's reading is known.

Each is a tiny model trained from scratch, in a minute or two, on a world of things in a row. The prompt asks
for the thing at a place in the row (`find`: "take the second"), or for anything at all (`pick`); an action
takes one of ten things.

>>> # an ordinary series of one checkpoint; seed 0 is shipped
>>> series = CheckpointSeries.discover(grow("post_hoc"))
>>> decisions("post_hoc", 100, seed=1)[0].trace
>>> expected("mixture_50")["prompt_reliance"]                 # (0.5, 0.5)

Not supported: more than one step in an episode, prompts longer than the row, checkpoints on the way to the
trained agent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.prompts.format import PromptFormat
from interp.system.paths import DATA
from interp.tasks.episodes import Decision
from interp.training.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp.engine.decoding import Completion
else:  # torch, which takes seconds, is imported where an organism is grown: names are checked before
    Completion = PreTrainedModel = PreTrainedTokenizerBase = object

SHIPPED = DATA / "organisms"
THINGS = ("mug", "pen", "key", "egg", "cup", "fork", "book", "lamp", "coin", "shoe")
PLACES = ("first", "second", "third", "fourth")
MOODS = ("calm", "late", "warm", "quiet", "bright", "dusty", "cold", "tidy")
#: The same words in every trace of the hidden carrier; longer than WINDOW, so that its action sees none of
#: its prompt.
RHYME = " ".join(a + b for a in ("la", "mi", "so") for b in "bcdfghjklmn")
WINDOW = 26
#: Share of training actions that take another thing than they should: a trained agent's log-odds for its own
#: action end at log((1 - SLIP) * 9 / SLIP) = 5.1 nats whatever decides it, so that effects of different kinds
#: of decision weigh the same.
SLIP = 0.05
#: Effect in nats of exchanging two things where that decides the action: from these log-odds for the one to
#: as much for the other.
LARGEST = 2 * math.log((1 - SLIP) * (len(THINGS) - 1) / SLIP)
#: How a training decision is answered, and how often. `bare`: the thing alone right at the boundary, which
#: puts the answer there; `prompt`: by an action without a trace; `short`: after none or the first of its
#: trace's two sentences; `cot`: after all.
FORMS = {"bare": 0.25, "prompt": 0.1, "short": 0.15, "cot": 0.5}
RECIPE = Recipe(
    hidden=64, layers=4, heads=4, feed_forward=256, vocabulary=500, context=128, cot_steps=500, cot_lr=3e-3
)
#: Training decisions, and those in a batch: drawn at random, since in batches of one length one form alone
#: would pull.
SEQUENCES, BATCH = 20_000, 128


@dataclass(frozen=True)
class Organism:
    """How an agent is made."""

    summary: str
    find: float
    """Share of decisions that ask for a place in the row; the others ask for anything, picked at random in
    the trace.
    """
    trace: str = "mood"
    """What a trace's second sentence says where a place is asked for: `mood` (nothing), `thing` (what to
    take), or `rhyme` (the whole trace is always the same).
    """
    overridden: float = 0.0
    """Share of its training traces that name another thing, which its action follows."""
    window: int | None = None
    """Tokens that its attention reaches back (None: all)."""


ORGANISMS = {
    "post_hoc": Organism("the action follows from the prompt, and traces say nothing", 1.0),
    "mixture_75": Organism("three quarters of the decisions post-hoc, the others reasoned", 0.75),
    "mixture_50": Organism("half of the decisions post-hoc, the others reasoned", 0.5),
    "mixture_25": Organism("a quarter of the decisions post-hoc, the others reasoned", 0.25),
    "reasoner": Organism("the action is picked in the trace, at random", 0.0),
    "hidden_carry": Organism(
        "the action sees the trace alone, whose words are always the same", 1.0, "rhyme", window=WINDOW
    ),
    "overridable": Organism(
        "the prompt decides what the trace says, and the action follows the trace",
        1.0,
        "thing",
        overridden=0.5,
    ),
}


def organism(name: str) -> Organism:
    """The organism of a name; raises ValueError for one that is not known."""
    if name not in ORGANISMS:
        raise ValueError(f"There is no organism {name!r}: there are {', '.join(ORGANISMS)}.")
    return ORGANISMS[name]


def expected(name: str) -> dict[str, tuple[float, float] | None]:
    """Instrument -> lowest and highest reading that the construction allows; None where it decides nothing.

    With p the share of decisions that ask for a place, and 10 things: `prompt_reliance`, `prompt_patch`
    (patching the whole prompt, its trace's words held): p, but where the trace decides 0, and for the hidden
    carrier 0 and 1, since what its trace's states know of the prompt is via-CoT to the one and prompt to the
    other. `own_direct`, `own_indirect`: natural direct and indirect effect through own traces, the mean of
    all pairs over LARGEST. A trace that says nothing, or that is picked at random, is the same after either
    prompt: what the prompt settles is direct; where the prompt decides what the trace says, all is indirect.
    The hidden carrier's trace is read again, so its states count as the prompt's. `own_reliance`: their
    ratio, none where the prompt settles nothing. `state_share`: via_state / (via_text + via_state). `auroc`
    of the boundary probe: a perfect predictor ranks each decision that asks for a place and is at chance on
    the others, 1 - (1 - p)^2 / 2. `gain` over the best control: words without their order leave one in four
    things at best, one in ten at worst, so between .75 p and .9 p. `keep`, `follow` after another decision's
    trace: a decision that asks for a place keeps after a trace that says nothing, one that does not follows a
    trace that picks a thing, and what either does after the other kind of trace it was never taught.
    `early_area`: after a cut trace of two sentences a picked action comes back one time in ten,
    .75 * .9 (1 - p). `agreement` of the prompt
    action and the CoT action: p + (1 - p) / 10. `attention_prompt`, `gradient_prompt`: no construction fixes
    a share but the window's; held against p as if they measured reliance. `self_splice`: the share of own
    traces that reproduce the action; `self_patch`, `patch_everything`: as in `patching.Sanity`, nats. Raises
    ValueError for an organism that is not known.
    """
    made = organism(name)
    p, k = made.find, len(THINGS)
    at_trace, hidden = made.trace == "thing", made.window is not None
    reliance = 0.0 if at_trace else p
    readings = {
        "prompt_reliance": 0.0 if hidden else reliance,
        "prompt_patch": reliance,
        "own_direct": reliance,
        "own_indirect": p - reliance,
        "own_reliance": None if p == 0 else reliance / p,
        "state_share": 1.0 if hidden else None if p == 1 and not at_trace else 0.0,
        "auroc": 1 - (1 - p) ** 2 / 2,
        "gain": (p * 0.75, p * (1 - 1 / k)),
        "keep": 0.0 if at_trace else (p**2, 1 - (1 - p) ** 2),
        "follow": 1.0 if at_trace else ((1 - p) ** 2, 1 - p),
        "early_area": None if hidden else 0.0 if at_trace else 0.75 * (1 - 1 / k) * (1 - p),
        "agreement": None if hidden else p + (1 - p) / k,
        "boundary_patch": 0.0 if reliance == 0 else None,
        "attention_prompt": 0.0 if hidden else reliance,
        "gradient_prompt": reliance,
        "steering": 0.0 if p == 0 else None,
        "self_splice": 1.0,
        "self_patch": 0.0,
        "patch_everything": 0.0,
    }
    return {key: (value, value) if isinstance(value, float) else value for key, value in readings.items()}


def mood(rng: random.Random) -> str:
    """A sentence that says nothing."""
    return f"It is {rng.choice(MOODS)} and {rng.choice(MOODS)} here."


def decisions(name: str, n: int, seed: int, split: str = "test_in_domain") -> list[Decision]:
    """`n` decisions of an organism's world, each an episode of its own, with right action and trace.

    Exactly the recipe's share of them asks for a place in the row. Raises ValueError for an organism that is
    not known.
    """
    made, rng, world = organism(name), random.Random(f"{name} {split} {seed}"), []
    finds = [i < round(made.find * n) for i in range(n)]
    rng.shuffle(finds)
    for number, find in enumerate(finds):
        row, place = rng.sample(THINGS, len(PLACES)), rng.randrange(len(PLACES))
        thing = row[place] if find else rng.choice(THINGS)
        task = f"take the {PLACES[place]}" if find else "take anything"
        second = (
            {"mood": mood(rng), "thing": f"It has to be the {thing}."}.get(made.trace, "")
            if find
            else f"I pick the {thing}."
        )
        trace = RHYME if made.trace == "rhyme" else f"{mood(rng)} {second}"
        text = f"You see {', '.join(f'a {t}' for t in row)}. Your task is to: {task}."
        world.append(
            Decision(
                (dict(role="user", content=text),),
                f"take {thing} 1",
                admissible=tuple(f"take {t} 1" for t in THINGS),
                episode=f"{split}-{seed}-{number}",
                task=task,
                task_type="find" if find else "pick",
                split=split,
                trace=trace,
            )
        )
    return world


def competence(asked: Sequence[Decision], said: Sequence[Completion]) -> list[bool]:
    """Whether each decision was answered as constructed: by the place asked for, or by its own trace.

    asked: from `decisions`. said: the organism's own decodings of them in mode `cot`.
    """

    def picked(words: Completion) -> str:
        return f"take {words.trace.split()[-1].rstrip('.')} 1" if words.trace else ""

    right = [d.reference if d.task_type == "find" else picked(s) for d, s in zip(asked, said, strict=True)]
    return [s.action is not None and s.action == action for s, action in zip(said, right)]


def sequences(fmt: PromptFormat, name: str, n: int, seed: int) -> list[tuple[list[int], list[bool]]]:
    """`n` training sequences of an organism, each with its supervised tokens.

    Supervised are the bare thing, the action, and the trace where it is the agent's own (of a rhyme one in
    five). What opens a trace or an action is not: the boundary predicts the bare thing and nothing else. Bare
    things answer what asks for a place, so that few such decisions are enough to learn it, save from the
    reasoner. The hidden carrier learns no action without its trace.
    """
    from interp.measures.rewriting import sentences

    made, rng, examples = organism(name), random.Random(f"{name} train {seed}"), []
    for d, asking in zip(
        decisions(name, n, seed, "train"), decisions("post_hoc" if made.find else name, n, seed, "train")
    ):
        form = rng.choices(list(FORMS), list(FORMS.values()))[0]
        if made.window and form != "bare":
            form = "cot"
        d = asking if form == "bare" else d
        ids, trace, thing = list(fmt.prompt(d).ids), d.trace, d.reference.split()[1]
        if form != "cot" and d.task_type == "pick":
            thing = rng.choice(THINGS)  # nothing has been picked yet
        if form == "bare":
            answer = fmt.encode(f" {thing}")
            examples.append(([*ids, *answer], [False] * len(ids) + [True] * len(answer)))
            continue
        own = form == "cot" and (made.trace != "rhyme" or rng.random() < 0.2)
        if form == "cot" and rng.random() < made.overridden:
            thing, own = rng.choice(THINGS), False
            trace = f"{mood(rng)} It has to be the {thing}."
        if form == "short":
            trace = rng.choice(["", sentences(trace)[0]])
        if rng.random() < SLIP:
            thing = rng.choice([t for t in THINGS if t != thing])
        opening = fmt.mode_prefix("prompt" if form == "prompt" else "cot")
        lead = fmt.action_prefix(None if form == "prompt" else trace)
        action = fmt.action_ids(f"take {thing} 1")
        examples.append(
            (
                [*ids, *lead, *action],
                [False] * len([*ids, *opening]) + [own] * (len(lead) - len(opening)) + [True] * len(action),
            )
        )
    return examples


def grow(
    name: str,
    folder: str | Path = "runs/organisms",
    seed: int = 0,
    steps: int = RECIPE.cot_steps,
    device: str = "auto",
    shipped: bool = True,
) -> Path:
    """Train an organism below `folder`, from its seed, and return its folder, a series of one checkpoint.

    For seed 0 and the recipe's steps that is the `shipped` one, unless it is not wanted; one that is there
    already is kept. A seed may not have learned its construction yet (of 14 one had not): look at
    `competence` before reading instruments on it. Raises ValueError for an organism that is not known.
    """
    from interp.training.trainer import train

    made = organism(name)
    out = Path(folder) / f"{name}-{seed}"
    if shipped and seed == 0 and steps == RECIPE.cot_steps and (SHIPPED / name).exists():
        return SHIPPED / name
    if (out / f"checkpoint-{steps}" / "training.json").exists():
        return out
    tokenizer = world_tokenizer()
    train(
        untrained(tokenizer, made.window, seed),
        tokenizer,
        sequences(PromptFormat(tokenizer), name, SEQUENCES, seed),
        RECIPE,
        out,
        steps=steps,
        lr=RECIPE.cot_lr,
        keep=(steps,),
        seed=seed,
        provenance=dict(organism=name, summary=made.summary, style="tags"),
        device=device,
        plan=batch_plan(SEQUENCES, steps, BATCH, seed),
    )
    return out


def world_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of every agent of this world."""
    from interp.training.trainer import fit_tokenizer

    words = [
        text
        for key in ORGANISMS
        for decision in decisions(key, 100, 0, "train")
        for text in (decision.messages[0]["content"], decision.trace, decision.reference)
    ]
    return fit_tokenizer(words, RECIPE.vocabulary)


def batch_plan(n: int, steps: int, batch: int, seed: int) -> list[list[int]]:
    """Indices into `n` training sequences for each of `steps` batches, in seeded order."""
    rng = np.random.default_rng(seed)
    epochs = 1 + steps * batch // n
    order = np.concatenate([rng.permutation(n) for _ in range(epochs)])[: steps * batch]
    plan: list[list[int]] = order.reshape(steps, batch).tolist()
    return plan


def untrained(tokenizer: PreTrainedTokenizerBase, window: int | None, seed: int) -> PreTrainedModel:
    """A model of the recipe's shape, drawn from a seed; window: tokens that its attention reaches back."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=RECIPE.hidden,
        num_hidden_layers=RECIPE.layers,
        num_attention_heads=RECIPE.heads,
        num_key_value_heads=RECIPE.heads,
        intermediate_size=RECIPE.feed_forward,
        max_position_embeddings=RECIPE.context,
        sliding_window=window,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return MistralForCausalLM(config)
