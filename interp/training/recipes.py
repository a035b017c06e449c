"""What decides a training, as it is given on a command line and saved with what was trained; without torch.

>>> Recipe(cot_steps=100, checkpoints=(0, 100))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from interp.system.limits import Count, Limits, Seed, Several, StepLimit, Steps, Tokens


@dataclass
class Recipe:
    """Everything that decides a series; saved with it."""

    hidden: Count = 128
    """Width of the residual stream."""
    layers: Count = 4
    """Number of blocks."""
    heads: Count = 4
    """Attention heads."""
    feed_forward: Count = 512
    """Width of the MLP."""
    vocabulary: Count = 1024
    """Entries of the tokenizer fitted on the corpus."""
    context: Count = 3072
    """Longest sequence in tokens; longer episodes are left out."""
    base_steps: Count = 2200
    """Optimiser steps of the base on the broad mixture."""
    cot_steps: Count = 2000
    """Optimiser steps of the chain-of-thought training."""
    batch_tokens: Count = 4096
    """Tokens in a batch, padding included."""
    base_lr: Annotated[float, Limits(0, 10)] = 3e-3
    """Peak learning rate of the base."""
    cot_lr: Annotated[float, Limits(0, 10)] = 1e-3
    """Peak learning rate of the chain-of-thought training."""
    checkpoints: Steps = (0, 25, 60, 150, 350, 800, 1400, 2000)
    """Steps of the chain-of-thought training that are kept."""
    accumulate: Count = 1
    """Batches summed for one optimiser step."""
    seed: Seed = 0
    """Seed of initialisation, order and mixture."""


@dataclass
class Tuning:
    """Everything that decides a low-rank fine-tuning of a pretrained model (LoRA, Hu et al. 2021)."""

    rank: Count = 8
    """Rank of the update of every linear map of the blocks; its scale is twice the rank over the rank."""
    context: Count = 2048
    """Longest sequence in tokens; longer episodes are left out."""
    steps: Count = 180
    """Optimiser steps."""
    batch_tokens: Count = 2048
    """Tokens in a batch, padding included."""
    accumulate: Count = 1
    """Batches summed for one optimiser step."""
    lr: Annotated[float, Limits(0, 10)] = 1e-3
    """Peak learning rate."""
    checkpoints: Steps = (4, 12, 30, 75, 180)
    """Steps that are kept; the untouched model is checkpoint 0."""
    again: Annotated[tuple[int, ...], Several(twice=True, none=True)] = (160, 320)
    """Further steps, each lot with a learning rate that rises and falls; a lot ends in a checkpoint."""
    half: bool = False
    """Hold the model's own weights in bfloat16 and compute in it; the update stays in float32."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third slower."""
    seed: Seed = 0
    """Seed of initialisation and order."""


@dataclass
class Elicitation:
    """Everything that decides a prompt-to-action tuning, which shows what a model knows at the boundary."""

    decisions: Annotated[int, Limits(10, 100_000)] = 200
    """Decisions that it may read."""
    held_out: Annotated[float, Limits(0.05, 0.9)] = 0.2
    """Share of them, of other episodes, that says when to stop."""
    rank: Count = 8
    """Rank of the update of every linear map of the blocks; its scale is twice the rank over the rank."""
    lr: Annotated[float, Limits(0, 10)] = 1e-3
    """Learning rate."""
    batch: Count = 16
    """Decisions in an optimiser step."""
    rounds: Count = 5
    """Most passes through the decisions."""
    patience: Count = 1
    """Passes without a gain on the held-out decisions after which it stops."""
    batch_tokens: Count = 8192
    """Tokens of one pass, padding included."""


@dataclass
class Reinforcement:
    """Everything that decides a reinforcement learning; saved with it."""

    steps: Count = 60
    """Optimiser steps."""
    games: Count = 4
    """Different games in a step."""
    generations: Annotated[int, Limits(2, 1000)] = 8
    """Plays of each game, whose mean reward the advantage is over."""
    step_limit: StepLimit = 20
    """Steps after which a game is lost."""
    trace_tokens: Tokens = 96
    """Tokens that a trace and its action may take before a turn is given up."""
    temperature: Annotated[float, Limits(0.001, 100)] = 1.0
    """Of the sampled tokens."""
    format_penalty: float = 0.1
    """Taken from the reward of a game that an unparsed action ended."""
    action_mask: Annotated[float, Limits(0, 1)] = 0.0
    """Share of the steps whose action tokens are left out of the loss."""
    lr: Annotated[float, Limits(0, 10)] = 1e-4
    """Learning rate."""
    rank: Annotated[int, Limits(0, 10_000)] = 0
    """Rank of the update of every linear map of the blocks (LoRA); 0 trains all weights."""
    half: bool = False
    """Hold the model's own weights in bfloat16 and compute in it; an update by rank stays in float32."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third slower."""
    beta: float = 0.0
    """Weight of the KL divergence from the start."""
    checkpoints: Steps = (10, 30, 60)
    """Steps that are kept; the start is checkpoint 0."""
    games_held: Count = 400
    """Games that are drawn from."""
    vllm: bool = False
    """Sample with vLLM beside the trainer, on a GPU."""
    seed: Seed = 0
    """Seed of games, samples and masks."""
