"""Greedy decoding by vLLM, for GPU machines that have it (`pip install 'interp-agents[vllm]'`).

The same ids go in and come out as with `interp.engine.generation`; prompts are shared through vLLM's own
prefix cache. It reads a checkpoint's folder of full weights itself, beside the hooked model, and its
kernels round otherwise: near ties may fall otherwise.

>>> with Engine(series.path(step)) as engine:
...     completions = decode_modes(model, prompts, ["prompt", "cot"], engine=engine)
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MISSING = (
    "vLLM is not installed: `pip install 'interp-agents[vllm]'` on a machine with a GPU, or decode with the "
    "default generator, which needs neither."
)


class Engine:
    """A vLLM engine over one checkpoint's folder; `share` is the part of the GPU's memory that it may take.

    Raises ImportError where vLLM is not installed, ValueError for a checkpoint that is no folder of full
    weights.
    """

    def __init__(self, path: str | Path, share: float = 0.45, dtype: str = "bfloat16", **options: Any):
        if not isinstance(path, (str, Path)) or not list(Path(path).glob("model*.safetensors")):
            raise ValueError(
                f"vLLM reads a folder of full weights, which {path} is not: merge an adapter into its base "
                "first, or decode with the default generator."
            )
        try:
            import vllm
        except ImportError as error:
            raise ImportError(MISSING) from error
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=str(path), dtype=dtype, gpu_memory_utilization=share, enable_prefix_caching=True, **options
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._llm = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def continue_each(
        self,
        prompts: Sequence[Sequence[int]],
        openings: Mapping[str, Sequence[int]],
        limits: Mapping[str, int],
        closing: str,
        ends: Mapping[str, Sequence[int]],
    ) -> dict[str, list[tuple[int, ...]]]:
        """Continue every prompt after every mode's opening, greedily: mode -> generated ids of each prompt.

        Args:
            closing: text that ends a decoding, which is kept (none where it is empty).
            ends: tokens that end it too, for each mode.
        """
        continuations = {}
        for mode, opening in openings.items():
            parameters = self._vllm.SamplingParams(
                temperature=0.0,
                max_tokens=limits[mode],
                stop=[closing] if closing else None,
                include_stop_str_in_output=True,
                stop_token_ids=list(ends[mode]),
                ignore_eos=True,
                skip_special_tokens=False,
            )
            inputs = [dict(prompt_token_ids=[*prompt, *opening]) for prompt in prompts]
            outputs = self._llm.generate(inputs, parameters)
            continuations[mode] = [tuple(output.outputs[0].token_ids) for output in outputs]
        return continuations
