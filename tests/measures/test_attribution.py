"""Attribution patching against finite differences, and against what it is exact for."""

import numpy as np
import pytest
import torch

from interp.engine.cells import Cell, Run
from interp.engine.loops import Plain
from interp.measures.attribution import at_span, attribute, attribute_modes, gradients, packed_gradients
from interp.measures.pairs import continuations, make_pairs, reference_actions
from interp.measures.patching import patch


@pytest.fixture(scope="module")
def pairs(fmt, episodes):
    return make_pairs(fmt, [d for e in episodes["test_in_domain"] for d in e.decisions()], 6, seed=1)[:2]


@pytest.mark.parametrize("mode", ["prompt", "cot"])
def test_an_estimate_is_the_slope_towards_the_other_run(model, pairs, mode):
    """The slow twin: a small step from the run's own activation towards the other's, and one away from it."""
    clean, corrupt = pairs[0][:1], pairs[1][:1]
    sites = [s for s in ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z") if s in model.hook_points]
    screen = attribute(model, clean, corrupt, sites, mode, minimum=-1e9)
    gap, size, step = screen.clean[0] - screen.corrupt[0], len(clean[0].ids), 0.03
    assert screen.path == "first order" and screen.sites == (
        *[s for s in sites if s != "z"],
        *[f"z.{h}" for h in range(4)],
    )
    positions = [size - 1, size // 2]
    runs = [
        Plain(
            model,
            [
                Run(
                    p.ids,
                    *continuations(
                        reference_actions(clean[0], corrupt[0]),
                        p.format.action_prefix(None if mode == "prompt" else p.decision.trace),
                    ),
                    range(size),
                )
            ],
            sites,
        )
        for p in (clean[0], corrupt[0])
    ]
    for run, donor, found in ((*runs, -screen.noise), (*runs[::-1], screen.denoise)):
        for s, label in enumerate(screen.sites):
            if label in ("z.1", "z.2"):  # the first and the last head: one of each head of keys and values
                continue
            site, width = label.split(".")[0], 8
            columns = (
                slice(int(label[2:]) * width, (int(label[2:]) + 1) * width) if site == "z" else slice(None)
            )
            for layer in range(model.n_layers):
                own, other = (r.values[site, layer][0][positions][:, columns] for r in (run, donor))
                cells = [
                    Cell(site, layer, [(p,)], [(own[i] + sign * step * (other[i] - own[i]))[None]], columns)
                    for i, p in enumerate(positions)
                    for sign in (1, -1)
                ]
                logp = run.patched(cells)[0].double()
                slope = (
                    (logp[:, 0] - logp[:, 1]).view(-1, 2) @ torch.tensor([1.0, -1.0]).double()
                ).numpy() / (2 * step)
                np.testing.assert_allclose(found[0, s, layer, positions] * gap, slope, rtol=0.02, atol=1e-3)


def test_the_denominators_are_those_of_patching_and_spans_add_up(llama, pairs):
    clean, corrupt = pairs
    for mode, screen in attribute_modes(llama, clean, corrupt, minimum=1e-2).items():
        true = patch(llama, clean, corrupt, mode=mode, minimum=1e-2)
        np.testing.assert_allclose([screen.clean, screen.corrupt], [true.clean, true.corrupt], atol=1e-4)
        assert (np.isnan(screen.denoise).all((1, 2, 3)) == np.isnan(true.denoise).all((1, 2))).all()
        edge = at_span(screen, clean, "boundary")
        np.testing.assert_array_equal(
            edge.denoise, np.stack([v[..., len(p.ids) - 1] for v, p in zip(screen.denoise, clean)])
        )
        spans = [
            at_span(screen, clean, at).noise
            for at in ("template", "task", "history", "observation", "boundary")
        ]
        np.testing.assert_allclose(
            np.nansum(spans, 0), np.nan_to_num(at_span(screen, clean, "prompt").noise), atol=1e-4
        )
        first = next(i for i, (a, b) in enumerate(zip(clean[0].ids, corrupt[0].ids)) if a != b)
        assert (
            not np.nan_to_num(screen.denoise[0, ..., :first]).any()
            and np.isnan(screen.denoise[0, ..., len(clean[0].ids) :]).all()
        )


def test_the_estimate_is_exact_where_the_step_is_small(llama, pairs):
    """Where the boundary's own activation is all that differs, by little, first order is all there is."""
    clean, corrupt = pairs[0][:1], pairs[1][:1]
    screen, true = (f(llama, clean, corrupt, minimum=-1e9) for f in (attribute, patch))
    near = at_span(screen, clean, "boundary").denoise[0, 0]
    small = np.abs(true.denoise[0, 0]) < 0.05
    assert small.any()
    np.testing.assert_allclose(near[small], true.denoise[0, 0][small], atol=0.03)


def test_inference_mode_around_it_does_no_harm(llama, pairs):
    plain = attribute(llama, pairs[0][:1], pairs[1][:1], minimum=-1e9)
    with torch.inference_mode():
        again = attribute(llama, pairs[0][:1], pairs[1][:1], minimum=-1e9)
    np.testing.assert_array_equal(plain.denoise, again.denoise)
    with pytest.raises(ValueError, match="do not match"):
        attribute(llama, pairs[0][:1], pairs[0][:1])


def test_prompts_together_have_the_gradients_of_each_by_itself(model, pairs):
    """Ragged ones, in both modes, and an action right after the prompt."""
    sites = [s for s in ("resid_pre", "attn_out", "z") if s in model.hook_points]
    runs = []
    for clean, corrupt in zip(pairs[0][:2], pairs[1][:2]):
        for prompt in (clean, corrupt):
            prefixes = prompt.format.action_prefix(None), prompt.format.action_prefix(prompt.decision.trace)
            actions = [continuations(reference_actions(clean, corrupt), prefix) for prefix in prefixes]
            runs.append((prompt.ids, actions))
    runs.append((runs[0][0][:40], [([[5, 6], [7, 8]], [2, 2]), ([[9], [10]], [1, 1])]))
    for found, (ids, actions) in zip(packed_gradients(model, runs, sites), runs, strict=True):
        differences, terms = gradients(model, ids, actions, sites)
        assert found[0] == pytest.approx(differences, abs=1e-4)
        for (mine,), (own,) in zip(found[1], terms, strict=True):
            for name in ("activations", "gradients"):
                for a, b in zip(getattr(mine, name), getattr(own, name), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
