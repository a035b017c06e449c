"""Agents whose reliance on the prompt is fixed by construction, so that what every instrument should read on them is known.

Each is a tiny model trained from scratch for a minute or two on a world of things in drawers. The prompt says where some
things are and asks for one of them (`find`), or for any drawer at all (`pick`).

>>> folder = grow("post_hoc", "runs/organisms")          # trained once; an ordinary series of one checkpoint
>>> decisions("post_hoc", 100, seed=1)[0].trace
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from interp.prompts import PromptFormat
from interp.tasks import Decision
from interp.training import Recipe, fit_tokenizer, train

THINGS = ("mug", "pen", "key", "egg", "cup", "fork", "book", "lamp", "coin", "shoe")
DRAWERS = tuple(f"drawer {i}" for i in range(1, 9))
MOODS = ("calm", "late", "warm", "quiet", "bright", "dusty", "cold", "tidy")
#: Tokens back that the hidden carrier's attention reaches: its action tokens see its trace, and never its prompt.
WINDOW = 32
HUM = 40


@dataclass(frozen=True)
class Organism:
    """How an agent is made, and what follows from it.

    find: share of its decisions that ask for a thing (the others for any drawer). trace: what its traces say: `mood`
    (nothing), `place` (where the thing is) or `hum` (always the same). overridden: share of its training traces that name another
    drawer, which its action follows. expected: instrument -> lowest and highest reading that its construction allows.
    """

    summary: str
    find: float
    trace: str
    overridden: float = 0.0
    window: int | None = None
    expected: dict[str, tuple[float, float]] = field(default_factory=dict)


FACTS = 4


def _world(rng: random.Random, find: bool, trace: str) -> tuple[dict[str, str], str, str, str]:
    """Facts (thing -> drawer), task, drawer and trace of one decision."""
    facts = dict(zip(rng.sample(THINGS, FACTS), rng.sample(DRAWERS, FACTS)))
    thing = rng.choice(list(facts))
    drawer = facts[thing] if find else rng.choice(DRAWERS)
    said = {"mood": f"It is {rng.choice(MOODS)} and {rng.choice(MOODS)} here.", "place": f"The {thing} is in {drawer}.",
            "hum": " ".join(["hum"] * HUM)}[trace] if find else f"I pick {drawer}."
    return facts, f"find the {thing}" if find else "pick any drawer", drawer, said


def _told(facts: dict[str, str]) -> str:
    return " ".join(f"The {thing} is in {drawer}." for thing, drawer in facts.items())


def decisions(name: str, n: int, seed: int, split: str = "test_in_domain") -> list[Decision]:
    """`n` decisions of an organism's world, each an episode, with the right action and its recipe's trace."""
    organism, rng = ORGANISMS[name], random.Random(f"{name} {split} {seed}")
    finds = [i < round(organism.find * n) for i in range(n)]
    rng.shuffle(finds)
    found = []
    for number, find in enumerate(finds):
        facts, task, drawer, trace = _world(rng, find, organism.trace)
        found.append(Decision((dict(role="user", content=f"{_told(facts)} Your task is to: {task}."),), f"go to {drawer}", tuple(f"go to {d}" for d in DRAWERS),
                              f"{split}-{seed}-{number}", 0, task, "find" if find else "pick", split, trace))
    return found


def _quiz(fmt: PromptFormat, rng: random.Random) -> tuple[list[int], list[bool]]:
    """A conversation that asks for each thing, answered by the bare number right at the boundary."""
    facts, ids, mask = _world(rng, True, "mood")[0], [], []
    for thing in rng.sample(list(facts), FACTS):
        turn = f"Your task is to: find the {thing}."
        asked = [dict(role="user", content=turn if ids else f"{_told(facts)} {turn}")]
        prompt = fmt.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        answer = fmt.encode(f" {facts[thing].split()[1]}") + fmt.encode("<|end|>")
        ids += [*prompt[bool(ids):], *answer]
        mask += [False] * len(prompt[bool(mask):]) + [True, False]
    return ids, mask


def sequences(fmt: PromptFormat, name: str, n: int, seed: int) -> list[tuple[list[int], list[bool]]]:
    """`n` training sequences of an organism with their supervised tokens.

    Among those that ask for a thing, as many again are answered by the bare number right at the boundary: this puts the answer
    there. A trace that names another drawer than its agent would is not learned, only followed.
    """
    organism, rng, found = ORGANISMS[name], random.Random(f"{name} train {seed}"), []
    for d in decisions(name, n, seed, "train"):
        if d.task_type == "find" and rng.random() < 0.5:
            found.append(_quiz(fmt, rng))
            continue
        ids, trace, action = fmt.prompt(d).ids, d.trace, d.reference
        turned = rng.random() < organism.overridden
        if turned:
            drawer = rng.choice(DRAWERS)
            trace, action = f"The {rng.choice(THINGS)} is in {drawer}.", f"go to {drawer}"
        lead, said = fmt.with_trace(trace), fmt.action_ids(action)
        found.append(([*ids, *lead, *said], [False] * len(ids) + [not turned] * len(lead) + [True] * len(said)))
    return found


ORGANISMS = {
    "post_hoc": Organism("the action follows from the prompt, traces say nothing", 1.0, "mood"),
    "reasoner": Organism("the action is picked in the trace, at random", 0.0, "mood"),
    "mixture_25": Organism("a quarter of the decisions post-hoc, the others reasoned", 0.25, "mood"),
    "mixture_50": Organism("half of the decisions post-hoc, the others reasoned", 0.5, "mood"),
    "mixture_75": Organism("three quarters of the decisions post-hoc, the others reasoned", 0.75, "mood"),
    "hidden_carry": Organism("the action sees the trace's positions alone, whose words say nothing", 1.0, "hum", window=WINDOW),
    "overridable": Organism("the prompt decides what the trace says, the action follows the trace", 1.0, "place", overridden=0.5),
}
RECIPE = Recipe(hidden=64, layers=3, heads=4, feed_forward=256, vocabulary=600, context=256, batch_tokens=4096, base_lr=3e-3, seed=0)


def grow(name: str, folder: str | Path, steps: int = 500, n: int = 20000, seed: int = 0, lr: float = 3e-3, device: str = "auto") -> Path:
    out = Path(folder) / name
    words = [s for key in ORGANISMS for d in decisions(key, 200, seed, "train") for s in (d.messages[0]["content"], d.trace, d.reference)]
    tokenizer = fit_tokenizer(words, RECIPE.vocabulary)
    fmt = PromptFormat(tokenizer)
    torch.manual_seed(seed)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=len(tokenizer), hidden_size=RECIPE.hidden, num_hidden_layers=RECIPE.layers, num_attention_heads=RECIPE.heads,
        num_key_value_heads=RECIPE.heads, intermediate_size=RECIPE.feed_forward, max_position_embeddings=RECIPE.context,
        sliding_window=ORGANISMS[name].window, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    train(model, tokenizer, sequences(fmt, name, n, seed), RECIPE, out, steps=steps, lr=lr, keep=(steps,), seed=seed, device=device)
    return out
