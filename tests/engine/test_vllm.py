"""Decoding by vLLM: the same ids in and out. A stand-in for the engine decodes greedily here; the real one
needs a GPU."""

import sys
from types import SimpleNamespace

import pytest

from interp.engine.decoding import decode_modes
from interp.engine.vllm_backend import Engine
from interp.prompts.format import MODES


@pytest.fixture
def stand_in(trained, monkeypatch):
    """A module `vllm` whose engine is Hugging Face's `generate` on the same weights, with vLLM's
    arguments."""

    class LLM:
        def __init__(self, model, **options):
            assert options["enable_prefix_caching"] and 0 < options["gpu_memory_utilization"] < 1

        def generate(self, prompts, asked):
            import torch

            found = []
            for prompt in prompts:
                row, out = prompt["prompt_token_ids"], []
                while len(out) < asked.max_tokens and not (
                    out
                    and (
                        out[-1] in asked.stop_token_ids
                        or any(s in trained.tokenizer.decode(out) for s in asked.stop or ())
                    )
                ):
                    with torch.inference_mode():
                        out.append(int(trained.hf(torch.tensor([[*row, *out]])).logits[0, -1].argmax()))
                found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=out)]))
            return found

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))


def test_it_says_what_the_library_itself_says(stand_in, trained, trained_prompts, series):
    with Engine(series.path(series.steps[-1])) as engine:
        assert decode_modes(trained, trained_prompts[:5], MODES, engine=engine) == decode_modes(
            trained, trained_prompts[:5], MODES
        )


def test_what_it_cannot_read_and_its_absence_are_said(series, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="full weights"):
        Engine(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="vLLM is not installed"):
        Engine(series.path(series.steps[-1]))
