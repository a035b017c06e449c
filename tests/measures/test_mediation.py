"""Prompt reliance: swapping keys and values against plain forward passes and constructed cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.measures.pairs import make_pairs
from interp.measures.reliance import EFFECTS, PATHS, TRACES, Swap, packed_paths, plain_paths, prompt_reliance
from tests.measures.test_patching import difference, sides


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
    """The difference with the prompt's keys and values of one run and the trace's of another, through plain
    caches."""
    fmt, found, (behind, text) = pair[0].format, [], trace
    own = dict(zip(("clean", "corrupt"), pair))
    for side in pair:
        ids = {
            (n, m): [*own[n].ids, *fmt.with_trace(own[m].decision.trace)]
            for n, m in ((prompt, prompt), (behind, text))
        }
        end = fmt.action_ids(side.decision.reference)
        first, cut = len(ids[prompt, prompt]) - 1, pair[0].boundary + 1
        with torch.inference_mode():
            caches = {
                n: model.hf(
                    torch.tensor([i[:first]]), past_key_values=model.new_cache(), use_cache=True
                ).past_key_values
                for n, i in ids.items()
            }
            mixed = caches[prompt, prompt]
            for mine, other in zip(mixed.layers, caches[behind, text].layers):
                mine.keys = torch.cat([mine.keys[:, :, :cut], other.keys[:, :, cut:]], 2)
                mine.values = torch.cat([mine.values[:, :, :cut], other.values[:, :, cut:]], 2)
            tail = [ids[prompt, prompt][first], *end]
            logp = model.hf(torch.tensor([tail]), past_key_values=mixed).logits[0].float().log_softmax(-1)
        found.append(sum(float(logp[t - 1, tail[t]]) for t in range(1, len(tail))))
    return found[0] - found[1]


def test_every_path_equals_a_run_on_a_cache_spliced_by_hand(model, pairs):
    found, swaps = effects(model, pairs[:3]), []
    for i, pair in enumerate(pairs[:3]):
        base = held(model, pair, *PATHS["unswapped"])
        slow = {path: base - held(model, pair, *PATHS[path]) for path in EFFECTS}
        assert {path: getattr(found, path)[i] for path in EFFECTS} == pytest.approx(slow, abs=2e-4)
        assert found.interaction[i] == pytest.approx(
            slow["total"] - slow["direct"] - slow["via_cot"], abs=4e-4
        )
        prompts, tails = (
            {n: f(p) for n, p in zip(("clean", "corrupt"), pair)}
            for f in (lambda p: p.ids, lambda p: p.format.with_trace(p.decision.trace))
        )
        actions = [[tails["clean"][-1], *range(30, 36)], [tails["clean"][-1], *range(30, 33), 9]]
        swap = Swap(prompts, {n: t[:-1] for n, t in tails.items()}, actions, [6, 1])
        swaps.append(swap)
        torch.testing.assert_close(
            packed_paths(model, [swap])[0], plain_paths(model, swap), rtol=0, atol=1e-4
        )
    together = packed_paths(model, swaps)  # of several lengths
    for found_together, swap in zip(together, swaps, strict=True):
        torch.testing.assert_close(found_together, plain_paths(model, swap), rtol=0, atol=1e-4)


def test_swapping_nothing_changes_nothing(model, pairs):
    same = [
        (a, replace(a, decision=replace(a.decision, reference=b.decision.reference))) for a, b in pairs[:3]
    ]
    found = effects(model, same)
    for values in (found.direct, found.via_cot, found.total, found.interaction):
        np.testing.assert_allclose(values, 0, atol=1e-4)


def test_equal_prompts_leave_everything_to_the_trace(model, pairs):
    """With one prompt and two traces, the prompt's keys and values are the same: all of the effect is the
    trace's."""
    same = [(a, replace(a, decision=b.decision)) for a, b in pairs]
    found = effects(model, same)
    np.testing.assert_allclose(found.direct, 0, atol=1e-4)
    np.testing.assert_allclose(found.via_cot, found.total, atol=1e-4)
    upward = [pair for pair, effect in zip(same, found.via_cot, strict=True) if effect > 1e-3]
    assert effects(model, upward).prompt_reliance == pytest.approx(0, abs=1e-2)


def test_a_trace_that_attends_to_nothing_carries_its_text_alone(model, pairs, monkeypatch):
    """With attention cut at the trace's tokens they are the same after either prompt: all that the trace
    carries is its text."""
    packed = model.packed
    for pair in pairs[:3]:
        traces = len(TRACES) * (len(pair[0].format.with_trace(pair[0].decision.trace)) - 1)
        cuts = []

        def cut(prefix, *arguments, prompts=2 * len(pair[0].ids), traces=traces, cuts=cuts):
            if prefix[0][0].shape[2] != prompts:  # a pass that reads the prompts
                return packed(prefix, *arguments)
            cuts.append(traces)

            def edit(x):
                x = x.clone()
                x[:, :traces] = 0
                return x

            with model.hooks({("attn_out", layer): edit for layer in range(model.n_layers)}):
                return packed(prefix, *arguments)

        monkeypatch.setattr(model, "packed", cut)
        found = effects(model, [pair])
        assert len(cuts) == 1
        np.testing.assert_allclose(found.via_state, 0, atol=1e-4)
        np.testing.assert_allclose(found.via_cot, found.via_text, atol=1e-4)


def test_pairs_with_a_small_total_are_dropped_and_counted(model, pairs):
    every = effects(model, pairs)
    bound = float(np.median(every.total))
    found = prompt_reliance(model, *sides(pairs), minimum=bound)
    kept = np.flatnonzero(every.total >= bound)
    assert found.kept.tolist() == kept.tolist() and found.dropped == len(pairs) - len(kept) > 0
    np.testing.assert_allclose(found.direct, every.direct[kept], atol=1e-6)
    means = np.array([found.direct.mean(), found.via_cot.mean()])
    # A part of a random model's effect can be negative.
    share = means[0] / means.sum() if (means > 0).all() else np.nan
    assert found.prompt_reliance == pytest.approx(share, nan_ok=True)
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
