"""Prompt reliance: swapping keys and values against plain forward passes and constructed cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.decoding import closing
from interp.mediation import ARMS, prompt_reliance, spliced_cache
from interp.pairs import make_pairs
from tests.test_patching import difference, sides


@pytest.fixture(scope="module")
def pairs(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    return list(zip(*make_pairs(fmt, decisions, 8, seed=2)[:2]))


def effects(model, pairs):
    found = prompt_reliance(model, *sides(pairs), minimum=-1e9)
    assert found.dropped == 0 and found.kept.tolist() == list(range(len(pairs)))
    return found


def test_the_total_is_the_difference_of_two_plain_runs(model, pairs):
    found = effects(model, pairs)
    slow = [difference(model, p, "clean", "cot") - difference(model, p, "corrupt", "cot") for p in pairs]
    np.testing.assert_allclose(found.total, slow, atol=1e-4)
    assert np.abs(found.direct).max() > 1e-3 and np.abs(found.via_cot).max() > 1e-3


def held(model, pair, prompt, trace):
    """The difference with the prompt's keys and values of one run and the trace's of another, through plain caches."""
    fmt, found = pair[0].format, []
    for side in pair:
        ids = {n: [*p.ids, *fmt.with_trace(p.decision.trace)] for n, p in zip(("clean", "corrupt"), pair)}
        end = [*fmt.encode(side.decision.reference), closing(fmt)]
        first, cut = len(ids["clean"]) - 1, pair[0].boundary + 1
        caches = {}
        with torch.inference_mode():
            for name in ids:
                caches[name] = model.hf(torch.tensor([ids[name][:first]]), use_cache=True).past_key_values
            mixed = caches[prompt]
            for own, other in zip(mixed.layers, caches[trace].layers):
                own.keys = torch.cat([own.keys[:, :, :cut], other.keys[:, :, cut:]], 2)
                own.values = torch.cat([own.values[:, :, :cut], other.values[:, :, cut:]], 2)
            tail = [ids["clean"][first], *end]
            logp = model.hf(torch.tensor([tail]), past_key_values=mixed).logits[0].float().log_softmax(-1)
        found.append(sum(float(logp[t - 1, tail[t]]) for t in range(1, len(tail))))
    return found[0] - found[1]


def test_every_arm_equals_a_run_on_a_cache_spliced_by_hand(model, pairs):
    found = effects(model, pairs[:3])
    for i, pair in enumerate(pairs[:3]):
        base = held(model, pair, "clean", "clean")
        slow = [base - held(model, pair, *arm) for arm in ARMS[1:]]
        assert [found.direct[i], found.via_cot[i], found.total[i]] == pytest.approx(slow, abs=1e-4)
        assert found.interaction[i] == pytest.approx(slow[2] - slow[0] - slow[1], abs=2e-4)


def test_swapping_nothing_changes_nothing(model, pairs):
    same = [(a, replace(a, decision=replace(a.decision, reference=b.decision.reference))) for a, b in pairs[:3]]
    found = effects(model, same)
    for values in (found.direct, found.via_cot, found.total, found.interaction):
        np.testing.assert_allclose(values, 0, atol=1e-5)


def test_equal_prompts_leave_everything_to_the_trace(model, pairs):
    """With one prompt and two traces, the prompt's keys and values are the same: all of the effect is the trace's."""
    found = effects(model, [(a, replace(a, decision=b.decision)) for a, b in pairs])
    np.testing.assert_allclose(found.direct, 0, atol=1e-5)
    np.testing.assert_allclose(found.via_cot, found.total, atol=1e-5)
    assert found.prompt_reliance == pytest.approx(0, abs=1e-2)


def blind(model, cut_layers, first, last):
    """Zero what attention adds at tokens first..last, so that they carry nothing but themselves."""
    def edit(x):
        x = x.clone()
        x[:, first:last] = 0
        return x
    return {("attn_out", layer): edit for layer in cut_layers}


def test_a_trace_that_reads_nothing_leaves_everything_to_the_prompt(model, pairs):
    """Equal traces whose tokens attend to nothing have the same keys and values in both runs: via_cot is 0."""
    boundary, fmt, caches, end = pairs[0][0].boundary, pairs[0][0].format, {}, {}
    for name, prompt in zip(("clean", "corrupt"), pairs[0]):
        ids = [*prompt.ids, *fmt.with_trace(pairs[0][0].decision.trace)]
        with torch.inference_mode(), model.taps(blind(model, range(model.n_layers), boundary + 1, len(ids))):
            caches[name] = model.read(ids)
        end[name] = len(ids)
    spliced = spliced_cache(model, caches, boundary)
    clean, direct, via, total = range(4)
    for layer in spliced.layers:
        for kind in (layer.keys, layer.values):
            torch.testing.assert_close(kind[via], kind[clean])
            torch.testing.assert_close(kind[direct], kind[total])
    assert spliced.get_seq_length() == end["clean"]


def test_pairs_with_a_small_total_are_dropped_and_counted(model, pairs):
    every = effects(model, pairs)
    bound = float(np.median(every.total))
    found = prompt_reliance(model, *sides(pairs), minimum=bound)
    kept = np.flatnonzero(every.total >= bound)
    assert found.kept.tolist() == kept.tolist() and found.dropped == len(pairs) - len(kept) > 0
    np.testing.assert_allclose(found.direct, every.direct[kept], atol=1e-6)
    assert found.prompt_reliance == pytest.approx(found.direct.mean() / (found.direct.mean() + found.via_cot.mean()))
    none = prompt_reliance(model, *sides(pairs), minimum=1e9)
    assert none.dropped == len(pairs) and np.isnan(none.prompt_reliance)
    with pytest.raises(ValueError, match="at least one"):
        prompt_reliance(model, [], [])


def test_traces_of_unequal_length_are_refused(llama, pairs):
    """A shifted splice would be a silent difference."""
    clean, corrupt = pairs[0]
    longer = replace(corrupt, decision=replace(corrupt.decision, trace=corrupt.decision.trace + " And more."))
    with pytest.raises(ValueError, match="traces .* differ in length"):
        prompt_reliance(llama, [clean], [longer])
