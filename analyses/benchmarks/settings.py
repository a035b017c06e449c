"""What the benchmark compares, and the shape of its model; without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from interp.system.limits import Count, Folder, Limits, Seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEMORY = "memory of a boundary capture"
WORKS = (
    "layer sweep",
    "boundary capture",
    "layer x position grid",
    "episode",
    "three sites, both directions, one pair",
    "probe sweep",
    "swap a checkpoint",
    MEMORY,
)
#: Tools by name, the reference first; `analyses.benchmarks.rivals` has them.
TOOLS = (
    "plain",
    "plain, cached prefix",
    "TransformerLens",
    "TransformerLens, logits_to_keep",
    "nnsight",
    "pyvene",
)


@dataclass
class Shape:
    """A Llama's shape; the defaults are SmolLM2-135M's."""

    hidden: Count = 576
    layers: Count = 30
    heads: Count = 9
    kv_heads: Count = 3
    feed_forward: Count = 1536
    vocabulary: Count = 49152

    def build(self, seed: int) -> PreTrainedModel:
        """A Llama with random weights, wide enough that a patch moves log-probabilities by tenths of nats."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.feed_forward,
            vocab_size=self.vocabulary,
            rope_theta=100_000.0,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        )
        hf = (
            AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
            .eval()
            .requires_grad_(False)
        )
        generator = torch.Generator().manual_seed(seed)
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, self.hidden**-0.5, generator=generator)
        return hf


@dataclass
class Config:
    """What is compared, and how long it may take."""

    out: Annotated[Path, Folder()] = Path("figures/tables")
    """Folder of the table."""
    lengths: Annotated[tuple[int, ...], Limits(8, 100_000)] = (128, 512, 1024, 2048)
    """Prompt lengths, in tokens."""
    budget: Annotated[float, Limits(0.001, 100_000)] = 10.0
    """Seconds for one work of one tool at one length; of a longer one random parts are timed and scaled."""
    repeats: Count = 3
    """Timed runs of which the median is taken, as far as the budget goes."""
    works: tuple[Literal[WORKS], ...] = ()
    """Works to run, the rows of others staying as they are in the table; all when empty."""
    tools: tuple[Literal[TOOLS], ...] = ()
    """Tools to run, beside `plain` and `interp`; all that are installed when empty."""
    grid_tokens: Annotated[int, Limits(8, 100_000)] = 256
    """Prompt length of the layer x position grid."""
    captured: Count = 4
    """Prompts of a capture."""
    episode: Annotated[tuple[int, int, int], Limits(1, 100_000)] = (400, 1300, 10)
    """First and last prompt length of an episode, and how many prompts."""
    action: Annotated[int, Limits(2, 1000)] = 8
    """Tokens of an action."""
    threads: Annotated[int, Limits(1, 1024)] = 2
    """CPU threads."""
    seed: Seed = 0
    """Seed of weights, prompts and samples."""
    shape: Shape = field(default_factory=Shape)
