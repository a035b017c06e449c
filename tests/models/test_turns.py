"""One model, one measurement at a time: threads wait, and what reaches into a running pass, or into training,
is refused."""

import copy
import threading

import pytest
import torch

from interp.engine.capturing import capture
from interp.engine.decoding import choose, choose_each, decode
from interp.measures.conflicts import conflict
from interp.measures.early import early_answers
from interp.measures.own_traces import own_trace_effects
from interp.measures.patching import patch
from interp.measures.reliance import prompt_reliance
from interp.measures.shares import shares
from interp.models.hooked import HookedModel
from interp.models.turns import Turns


def test_threads_get_the_values_of_one(llama, prompts):
    alone = [capture(llama, prompts[i : i + 6]).values for i in range(4)]
    said = decode(llama, prompts[:4], max_new_tokens=4)
    found, errors = {}, []

    def work(number):
        try:
            for _ in range(3):
                found[number] = capture(llama, prompts[number : number + 6]).values
                assert decode(llama, prompts[:4], max_new_tokens=4) == said
        except Exception as error:  # what a thread raises would else be lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors and all(torch.equal(found[number], alone[number]) for number in range(4))


def test_a_swap_waits_for_a_measurement_and_a_measurement_for_a_swap(series, trained_prompts):
    model = series.load(0, "cpu", "float32")
    wanted = {
        series.weights_hash(step): capture(series.swap(model, step), trained_prompts[:4]).values
        for step in series.steps
    }
    found, over = [], threading.Event()

    def swapping():
        while not over.is_set():
            for step in series.steps:
                series.swap(model, step)

    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        found = [capture(model, trained_prompts[:4]) for _ in range(12)]
    finally:
        over.set()
        thread.join()
    assert all(torch.equal(acts.values, wanted[acts.weights_hash]) for acts in found)


def test_what_reaches_into_a_running_pass_is_refused(series, trained_prompts):
    model, some = series.load(0, "cpu", "float32"), trained_prompts[:1]

    def run(inside):
        with torch.inference_mode(), model.hooks({("resid_pre", 1): lambda tensor: inside() and None}):
            model.inner(input_ids=torch.tensor([some[0].ids]))

    with pytest.raises(ValueError, match="capture was called while a pass of the same model is hooked"):
        run(lambda: capture(model, some))
    with pytest.raises(ValueError, match="weights were to be swapped in the midst of a measurement"):
        run(lambda: series.swap(model, 20))
    assert model.step == 0 and len(capture(model, some)) == 1  # nothing is left of it


def test_taps_that_another_thread_left_open_are_named_and_may_be_closed_by_any_thread(llama, prompts):
    opened = []

    def hooking():
        with llama.hooks({("resid_pre", 1): lambda tensor: None}):
            llama.whole(torch.tensor([prompts[0].ids]))
            yield

    def opening():
        opened.append(hooking())
        next(opened[0])

    thread = threading.Thread(target=opening)
    thread.start()
    thread.join()
    with pytest.raises(
        ValueError, match="thread that is over left a pass of this model hooked: close the generator"
    ):
        capture(llama, prompts[:1])
    opened[0].close()
    assert len(capture(llama, prompts[:1])) == 1


def test_two_wrappers_of_one_model_share_its_lock(llama):
    assert HookedModel(llama.hf, llama.tokenizer).turns is llama.turns


def pair(prompts):
    return [prompts[0]], [prompts[0]]


MEASUREMENTS = {
    "capture": lambda m, p: capture(m, p),
    "decode_modes": lambda m, p: decode(m, p),
    "choose": lambda m, p: choose(m, p[0], ["go to desk 1"]),
    "choose_each": lambda m, p: choose_each(m, p, [["go to desk 1"]]),
    "patch_modes": lambda m, p: patch(m, *pair(p)),
    "prompt_reliance": lambda m, p: prompt_reliance(m, *pair(p)),
    "own_trace_effects": lambda m, p: own_trace_effects(m, *pair(p)),
    "shares": lambda m, p: shares(m, p),
    "conflict": lambda m, p: conflict(m, p, []),
    "early_answers": lambda m, p: early_answers(m, p, []),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_model_in_training_mode_is_refused_and_the_advice_helps(llama, prompts, name):
    llama.hf.train()
    try:
        with pytest.raises(ValueError, match=rf"training mode .*call model.hf.eval\(\) before {name}"):
            MEASUREMENTS[name](llama, prompts[:1])
    finally:
        llama.hf.eval()
    assert len(capture(llama, prompts[:1])) == 1


def test_gradient_checkpointing_changes_nothing_in_evaluation_mode(series, trained_prompts):
    model = series.load(series.steps[-1], "cpu", "float32")  # it leaves a hook behind
    plain = decode(model, trained_prompts[:3])
    model.hf.gradient_checkpointing_enable()
    assert decode(model, trained_prompts[:3]) == plain


def test_a_copied_model_has_a_lock_of_its_own(llama):
    assert isinstance(copy.deepcopy(llama.turns), Turns) and copy.deepcopy(llama.turns) is not llama.turns


def test_no_token_to_generate_is_refused_and_not_taken_for_the_default(llama, prompts):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"at least one token: max_new_tokens is {wrong}"):
            decode(llama, prompts[:1], max_new_tokens=wrong)
