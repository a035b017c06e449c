"""Counterfactual pairs, and activation patching against a slow twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp import patching
from interp.capturing import capture
from interp.decoding import closing
from interp.pairs import make_pairs, mismatch, swap, swapped
from interp.patching import patch

WORDS = st.sampled_from(["drawer 1", "drawer 11", "drawer 2", "drawer 12", "mug", "mugs", "apple", "pineapple", "go to", ",", ".", "\n", "1"])
NAMES = st.sampled_from([("drawer 1", "drawer 2"), ("drawer 1", "drawer 11"), ("mug", "apple"), ("drawer 2", "drawer 12")])


@given(words=st.lists(WORDS), names=NAMES)
def test_swapping_twice_gives_back_the_text(words, names):
    text = " ".join(words)
    assert swap(swap(text, *names), *names) == text == swap(text, "sofa 1", "sofa 2")
    assert swap(text, *names) == swap(text, *names[::-1])


@given(st.lists(WORDS))
def test_swapping_touches_whole_names_only(words):
    text = " ".join(words)
    after = swap(text, "drawer 1", "drawer 2")
    assert [after.count(w) for w in ("drawer 11", "drawer 12")] == [text.count(w) for w in ("drawer 11", "drawer 12")]
    assert swap(text, "mug", "apple").count("mugs") == text.count("mugs")
    assert swap("drawer 11, drawer 1.", "drawer 1", "drawer 3") == "drawer 11, drawer 3."


@pytest.fixture(scope="module")
def found(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    return make_pairs(fmt, decisions, 60, seed=1)


@pytest.fixture(scope="module")
def pairs(found):
    """(clean, corrupt) prompts."""
    return list(zip(*found[:2]))


def sides(pairs):
    return [p for p, _ in pairs], [p for _, p in pairs]


def test_a_pair_is_equal_token_for_token_and_differs_in_its_action(fmt, found, pairs):
    dropped = found[2]
    assert len(pairs) >= 15 and sum(dropped.values()) + len(pairs) <= 60 and len({c.decision.id for c, _ in pairs}) == len(pairs)
    assert {c.decision.reference.split()[0] for c, _ in pairs} == {"go", "take"}
    for clean, corrupt in pairs:
        assert clean.decision.reference != corrupt.decision.reference and clean.ids != corrupt.ids
        assert clean.spans == corrupt.spans and len(clean.ids) == len(corrupt.ids)
        assert len(fmt.with_trace(clean.decision.trace)) == len(fmt.with_trace(corrupt.decision.trace))
        assert corrupt.decision.reference in corrupt.decision.admissible and not mismatch(clean, corrupt)


def test_a_twin_is_the_decision_with_two_names_exchanged(pairs):
    for clean, corrupt in pairs:
        actions = clean.decision.reference.split(), corrupt.decision.reference.split()
        a, b = [(a, b) for a, b in zip(*actions) if a != b][0]
        a, b = (f"{actions[0][2]} {a}", f"{actions[1][2]} {b}") if a.isdigit() else (a, b)
        assert swapped(clean.decision, a, b) == corrupt.decision
        assert swapped(corrupt.decision, a, b) == clean.decision


def test_pairs_are_drawn_by_seed(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    ids = [[p.decision.id for p in make_pairs(fmt, decisions, 5, seed)[0]] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 5


def run(model, ids, edits):
    with torch.inference_mode(), model.taps(edits):
        return model.hf(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def difference(model, pair, name, mode, edits=lambda: {}):
    """log p(clean action) - log p(corrupt action) in one run of a pair, by plain forward passes over whole sequences."""
    prompt = pair[name == "corrupt"]
    fmt, found = prompt.format, []
    tail = fmt.opening("prompt") if mode == "prompt" else fmt.with_trace(prompt.decision.trace)
    for side in pair:
        end = [*fmt.encode(side.decision.reference), closing(fmt)]
        ids = [*prompt.ids, *tail, *end]
        logp = run(model, ids, edits())
        found.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(ids) - len(end), len(ids))))
    return found[0] - found[1]


def read(model, ids, site, layer, at):
    seen = []
    run(model, ids, {(site, layer): lambda x: seen.append(x[0, at].clone())})
    return seen[0]


def twin(model, pair, site, layer, mode):
    """(clean, corrupt, denoise, noise) by one forward pass for each number."""
    at = pair[0].boundary
    value = {n: read(model, p.ids, site, layer, at) for n, p in zip(("clean", "corrupt"), pair)}

    def put(donor):
        def edit(x):
            x = x.clone()
            x[0, at] = value[donor]
            return x
        return lambda: {(site, layer): edit}

    clean, corrupt = (difference(model, pair, n, mode) for n in ("clean", "corrupt"))
    denoised, noised = difference(model, pair, "corrupt", mode, put("clean")), difference(model, pair, "clean", mode, put("corrupt"))
    return clean, corrupt, (denoised - corrupt) / (clean - corrupt), (clean - noised) / (clean - corrupt)


@pytest.mark.parametrize("mode", ["prompt", "cot"])
def test_the_packed_sweep_equals_one_forward_for_each_cell(model, pairs, mode):
    sites = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
    gaps = [difference(model, p, "clean", mode) - difference(model, p, "corrupt", mode) for p in pairs[:10]]
    chosen = [pairs[i] for i in np.argsort(gaps)[-1:]]
    sweep = patch(model, *sides(chosen), sites, mode=mode, minimum=0.01)
    assert sweep.denoise.shape == sweep.noise.shape == (1, 6, 3) and sweep.sites == sites
    assert not np.isnan(sweep.denoise).any()
    for i, pair in enumerate(chosen):
        for s, site in enumerate(sites):
            for layer in range(3):
                slow = twin(model, pair, site, layer, mode)
                fast = (sweep.clean[i], sweep.corrupt[i], sweep.denoise[i, s, layer], sweep.noise[i, s, layer])
                scale = max(1.0, 1 / abs(slow[0] - slow[1]))
                assert fast == pytest.approx(slow, abs=1e-4 * scale)


def test_patching_a_run_with_itself_changes_nothing(model, pairs, monkeypatch):
    chosen = pairs[:4]
    other = {a.hash: b for p in chosen for a, b in (p, p[::-1])}
    monkeypatch.setattr(patching, "capture", lambda model, prompts, *rest: capture(model, [other[p.hash] for p in prompts], *rest))
    sweep = patch(model, *sides(chosen), ("resid_pre", "resid_post", "z"), minimum=0.05)
    assert sweep.dropped < 4
    for effect in (sweep.denoise, sweep.noise):
        np.testing.assert_allclose(effect[~np.isnan(effect)], 0, atol=1e-3)


def test_a_pair_of_equal_runs_has_no_difference_to_divide_by(model, pairs):
    clean, corrupt = pairs[0]
    same = replace(clean, decision=replace(corrupt.decision, trace=clean.decision.trace))  # another action, the same run
    sweep = patch(model, [clean], [same], mode="cot")
    assert sweep.dropped == 1 and sweep.clean == pytest.approx(sweep.corrupt, abs=1e-5)


def boundary_pair(pairs, model):
    """Prompts that differ at the boundary token alone, actions ordered so that the gap is positive."""
    clean, other = pairs[0]
    actions = clean.decision.reference, other.decision.reference

    def made(first, second):
        return (replace(clean, decision=replace(clean.decision, reference=first)),
                replace(clean, ids=(*clean.ids[:-1], 33), decision=replace(clean.decision, reference=second)))

    found = made(*actions)
    if difference(model, found, "clean", "prompt") < difference(model, found, "corrupt", "prompt"):
        found = made(*actions[::-1])
    return found


@pytest.mark.parametrize("mode", ["prompt", "cot"])
def test_patching_everything_that_differs_gives_the_other_run(model, pairs, mode):
    sweep = patch(model, *sides([boundary_pair(pairs, model)]), ("resid_pre", "resid_post"), mode=mode, minimum=-1e9)
    rounding = max(1e-4, 1e-5 / abs(sweep.clean[0] - sweep.corrupt[0]))
    assert rounding < 0.05
    assert [sweep.denoise[0, 0, 0], sweep.noise[0, 0, 0]] == pytest.approx([1, 1], abs=rounding)
    # after the last block no later token reads the boundary
    assert [sweep.denoise[0, 1, -1], sweep.noise[0, 1, -1]] == pytest.approx([0, 0], abs=rounding)


def test_small_denominators_are_dropped_and_counted_and_wrong_use_is_refused(llama, pairs):
    sweep = patch(llama, *sides(pairs[:4]), minimum=1e9)
    assert sweep.dropped == 4 and np.isnan(sweep.denoise).all() and np.isfinite(sweep.clean).all()
    one = sides(pairs[:1])
    with pytest.raises(ValueError, match="at least one"):
        patch(llama, [], [])
    with pytest.raises(ValueError, match="1 and 2"):
        patch(llama, one[0], sides(pairs[:2])[1])
    with pytest.raises(ValueError, match="do not match.*make_pairs"):
        patch(llama, one[0], one[0])
    with pytest.raises(ValueError, match="not at 'task'"):
        patch(llama, *one, at="task")
    with pytest.raises(ValueError, match="no site"):
        patch(llama, *one, ["nope"])
    with pytest.raises(ValueError, match="mode"):
        patch(llama, *one, mode="empty_think")
