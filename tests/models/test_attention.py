"""Which attention kernels the toolkit's passes may use, and that nothing of it is left behind."""

import threading
from dataclasses import replace

import pytest
import torch
from torch.backends.cuda import (
    cudnn_sdp_enabled,
    enable_cudnn_sdp,
    flash_sdp_enabled,
    math_sdp_enabled,
    mem_efficient_sdp_enabled,
)

from interp.engine.capturing import capture
from interp.engine.decoding import choose, decode
from interp.measures.attribution import attribute
from interp.measures.patching import patch
from interp.measures.reliance import prompt_reliance
from interp.measures.steering import steer
from interp.models.attention import without_cudnn
from interp.models.hooked import HookedModel
from tests.conftest import tiny_hf

MEASUREMENTS = {
    "capture": lambda m, a, b: capture(m, [a]),
    "decode": lambda m, a, b: decode(m, [a], max_new_tokens=2),
    "choose": lambda m, a, b: choose(m, a, ["go to desk 1"]),
    "patch": lambda m, a, b: patch(m, [a], [b], minimum=-1e9),
    "prompt_reliance": lambda m, a, b: prompt_reliance(m, [a], [b], minimum=-1e9),
    "attribute": lambda m, a, b: attribute(m, [a], [b], minimum=-1e9),
    "steer": lambda m, a, b: steer(m, [a], {"one": [1.0] * m.d_model}, 1, target="desk", max_new_tokens=2),
}


@pytest.fixture
def allowed(monkeypatch):
    """(cuDNN, flash, memory-efficient, math) as they are allowed in each attention that is computed."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        seen.append(
            (cudnn_sdp_enabled(), flash_sdp_enabled(), mem_efficient_sdp_enabled(), math_sdp_enabled())
        )
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_no_measurement_attends_with_cudnn(allowed, llama, prompts, name):
    reference = prompts[0].decision.reference
    twin = replace(prompts[0].decision, reference=reference[:-1] + "12"[reference.endswith("1")])
    other = (*prompts[0].ids[:30], 7, *prompts[0].ids[31:])
    MEASUREMENTS[name](llama, prompts[0], replace(prompts[0], ids=other, decision=twin))
    assert set(allowed) == {(False, True, True, True)} and cudnn_sdp_enabled()


def test_no_pass_of_a_model_attends_with_cudnn_from_its_first_trial_on(allowed, tokenizer):
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    assert model.support.patch == "fast"
    cache = model.read([5, 6, 7])
    model.whole(torch.tensor([[5, 6, 7]]))
    model.anew(9, 12)
    model.packed(
        [(layer.keys, layer.values) for layer in cache.layers],
        torch.tensor([[8]]),
        torch.tensor([[3]]),
        torch.ones(1, 1, 4, dtype=torch.bool),
        torch.arange(3)[None],
    )
    assert set(allowed) == {(False, True, True, True)} and cudnn_sdp_enabled()


def test_cudnn_is_allowed_where_it_is_asked_for(allowed, tokenizer):
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    model.cudnn_attention = True
    allowed.clear()
    model.read([5, 6, 7])
    assert set(allowed) == {(True, True, True, True)}


def test_a_users_own_passes_attend_as_before(allowed, llama):
    llama.hf(torch.tensor([[5, 6, 7]]))
    assert {cudnn for cudnn, *_ in allowed} == {True}


def test_what_was_set_before_is_set_again_after_an_error_too():
    for before in (True, False):
        enable_cudnn_sdp(before)
        try:
            with pytest.raises(ZeroDivisionError), without_cudnn():
                1 / 0
            assert cudnn_sdp_enabled() == before
        finally:
            enable_cudnn_sdp(True)


def test_threads_that_overlap_are_all_without_it_and_leave_it_as_it_was():
    """The first to enter leaves first: the switch is one for the whole process."""
    entered, left, seen = threading.Event(), threading.Event(), []

    def second():
        with without_cudnn():
            entered.set()
            left.wait(10)
            seen.append(cudnn_sdp_enabled())

    with without_cudnn():
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait(10)
    left.set()
    thread.join()
    assert seen == [False] and cudnn_sdp_enabled()
