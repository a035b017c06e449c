"""What the benchmark on a GPU times, and at which shapes; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from interp.system.limits import Count, Folder, Limits, Seed

from ..fields import Device

#: Qwen3's shapes, and a tiny one for machines without a GPU.
SHAPES: dict[str, dict] = {
    "0.6B": dict(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "8B": dict(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    "tiny": dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=1024,
        tie_word_embeddings=True,
    ),
}
ROWS = ("sweep", "sites", "reliance", "pairs", "capture", "decode", "ragged", "episodes", "choose", "grid")


@dataclass
class Config:
    """What is timed, and for how long."""

    out: Annotated[Path, Folder()] = Path("figures/tables")
    """Folder of the table."""
    models: tuple[Literal["0.6B", "8B", "tiny"], ...] = ("0.6B", "8B")
    """Shapes."""
    lengths: Annotated[tuple[int, ...], Limits(16, 32768)] = (512, 2048, 8192)
    """Prompt lengths, in tokens."""
    rows: tuple[Literal[ROWS], ...] = ROWS
    """Works to time."""
    rivals: bool = True
    """Compare with TransformerLens, too, where it is installed."""
    repeats: Count = 3
    """Timed runs of which the median is taken, as far as the budget goes."""
    budget: Annotated[float, Limits(0.001, 10_000)] = 8.0
    """Seconds for the repeats of one call."""
    pairs: Count = 64
    """Pairs of the row `pairs`."""
    captured: Count = 16
    """Prompts of a capture."""
    decoded: Count = 32
    """Prompts that are decoded."""
    new_tokens: Count = 48
    """Tokens that each decoding takes."""
    choices: Count = 40
    """Decisions of the forced choice."""
    sampled: Count = 3
    """Cells of a loop with hooks that are timed, and scaled."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto (float32 on the CPU, bfloat16 on a GPU), float32, bfloat16 or float16."""
    seed: Seed = 0
    """Seed of weights and prompts."""
