"""Counterfactual pairs, and activation patching against a slow twin."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.engine import sweeps
from interp.engine.cells import Cell, Run
from interp.engine.loops import Plain
from interp.engine.packing import divergence
from interp.engine.sweeps import Packed
from interp.measures import patching
from interp.measures.attribution import attribute
from interp.measures.pairs import continuations, make_pairs, mismatch, reference_actions, swap, swapped
from interp.measures.patching import METRICS, effects, patch, patch_modes
from interp.measures.sanity import sanity
from interp.models import devices, unembedding
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel, Support
from interp.models.site_names import SITES
from tests.conftest import tiny_hf

WORDS = st.sampled_from(
    [
        "drawer 1",
        "drawer 11",
        "drawer 2",
        "drawer 12",
        "mug",
        "mugs",
        "apple",
        "pineapple",
        "go to",
        ",",
        ".",
        "\n",
        "1",
    ]
)
NAMES = st.sampled_from(
    [("drawer 1", "drawer 2"), ("drawer 1", "drawer 11"), ("mug", "apple"), ("drawer 2", "drawer 12")]
)


@given(words=st.lists(WORDS), names=NAMES)
def test_swapping_twice_gives_back_the_text(words, names):
    text = " ".join(words)
    assert swap(swap(text, *names), *names) == text == swap(text, "sofa 1", "sofa 2")
    assert swap(text, *names) == swap(text, *names[::-1])


@given(st.lists(WORDS))
def test_swapping_touches_whole_names_only(words):
    text = " ".join(words)
    after = swap(text, "drawer 1", "drawer 2")
    assert [after.count(w) for w in ("drawer 11", "drawer 12")] == [
        text.count(w) for w in ("drawer 11", "drawer 12")
    ]
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
    assert (
        len(pairs) >= 15
        and sum(dropped.values()) + len(pairs) <= 60
        and len({c.decision.id for c, _ in pairs}) == len(pairs)
    )
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


@given(number=st.integers(0, 10**6))
def test_exchanging_two_names_in_a_decision_is_its_own_inverse_token_for_token(fmt, episodes, number):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    decision = decisions[number % len(decisions)]
    names = [
        ("drawer 1", "drawer 2"),
        ("shelf 1", "shelf 2"),
        ("mug", "apple"),
        ("pen", "book"),
        ("drawer 1", "drawer 11"),
    ][number % 5]
    twin = swapped(decision, *names)
    assert swapped(twin, *names) == decision
    a, b = fmt.prompt(decision), fmt.prompt(twin)
    if (
        a.spans == b.spans
    ):  # a token of one is a token of the other, and the same one everywhere but in the names
        back = fmt.prompt(swapped(b.decision, *names))
        assert back.ids == a.ids and back.spans == a.spans


def test_every_decision_is_paired_or_counted(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    clean, _, dropped = make_pairs(fmt, decisions, len(decisions), seed=1)
    assert len(clean) + sum(dropped.values()) == len(decisions) and set(dropped) <= {
        "no name to swap that changes the action",
        "no swap of equal token length",
    }


def test_pairs_are_drawn_by_seed(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    ids = [[p.decision.id for p in make_pairs(fmt, decisions, 5, seed)[0]] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 5


def run(model, ids, edits):
    with torch.inference_mode(), model.hooks(edits):
        return model.hf(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def difference(model, pair, name, mode, edits=lambda: {}):
    """log p(clean action) - log p(corrupt action) in one run of a pair, by plain forward passes over whole
    sequences."""
    prompt = pair[name == "corrupt"]
    fmt, found = prompt.format, []
    tail = fmt.mode_prefix("prompt") if mode == "prompt" else fmt.with_trace(prompt.decision.trace)
    for side in pair:
        end = fmt.action_ids(side.decision.reference)
        ids = [*prompt.ids, *tail, *end]
        logp = run(model, ids, edits())
        found.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(ids) - len(end), len(ids))))
    return found[0] - found[1]


def read(model, ids, site, layer, at):
    seen = []
    run(model, ids, {(site, layer): lambda x: seen.append(x[0, at].clone())})
    return seen[0]


def unpatched(model, pair, mode):
    """The difference of the clean run and of the corrupt one, which hang on no cell."""
    return tuple(difference(model, pair, name, mode) for name in ("clean", "corrupt"))


def twin(model, pair, site, layer, mode, differences, at=None):
    """(clean, corrupt, denoise, noise) by one forward pass for each number, at the boundary or the positions
    given.

    differences: what `unpatched` gives.
    """
    at = pair[0].boundary if at is None else at
    value = {n: read(model, p.ids, site, layer, at) for n, p in zip(("clean", "corrupt"), pair)}

    def put(donor):
        def edit(x):
            x = x.clone()
            x[0, at] = value[donor]
            return x

        return lambda: {(site, layer): edit}

    clean, corrupt = differences
    denoised, noised = (
        difference(model, pair, "corrupt", mode, put("clean")),
        difference(model, pair, "clean", mode, put("corrupt")),
    )
    return clean, corrupt, (denoised - corrupt) / (clean - corrupt), (clean - noised) / (clean - corrupt)


@pytest.mark.parametrize("mode", ["prompt", "cot"])
def test_the_packed_sweep_equals_one_forward_for_each_cell(model, pairs, mode):
    sites = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    gaps = [difference(model, p, "clean", mode) - difference(model, p, "corrupt", mode) for p in pairs[:10]]
    chosen = [pairs[i] for i in np.argsort(gaps)[-1:]]
    sites = tuple(s for s in sites if s in model.hook_points)
    sweep = patch(model, *sides(chosen), sites, mode=mode, minimum=0.01)
    assert (
        sweep.denoise.shape == sweep.noise.shape == (1, len(sites), 3)
        and sweep.sites == sites
        and sweep.path == "packed"
    )
    assert not np.isnan(sweep.denoise).any()
    for i, pair in enumerate(chosen):
        differences = unpatched(model, pair, mode)
        for s, site in enumerate(sites):
            for layer in range(3):
                slow = twin(model, pair, site, layer, mode, differences)
                fast = (
                    sweep.clean[i],
                    sweep.corrupt[i],
                    sweep.denoise[i, s, layer],
                    sweep.noise[i, s, layer],
                )
                scale = max(1.0, 1 / abs(slow[0] - slow[1]))
                assert fast == pytest.approx(slow, abs=1e-4 * scale)


@pytest.mark.parametrize("at", ["task", "history", "observation", "prompt"])
def test_a_span_and_the_whole_prompt_equal_one_forward_for_each_cell(llama, pairs, at):
    """Every position is replaced in the twin; the sweep leaves out those where both runs are still the
    same."""
    pair = next(p for p in pairs if len(p[0].positions("history")))
    places = list(range(len(pair[0].ids))) if at == "prompt" else pair[0].positions(at).tolist()
    sweep = patch(llama, *sides([pair]), ("resid_pre", "mlp_out"), at=at, minimum=-1e9)
    differences = unpatched(llama, pair, "prompt")
    for s, site in enumerate(sweep.sites):
        for layer in range(3):
            slow = twin(llama, pair, site, layer, "prompt", differences, places)
            assert (sweep.denoise[0, s, layer], sweep.noise[0, s, layer]) == pytest.approx(
                slow[2:], abs=1e-4 / abs(slow[0] - slow[1]) + 1e-4
            )


@pytest.mark.parametrize("mode", ["prompt", "cot"])
def test_the_action_tag_equals_one_forward_for_each_cell(llama, pairs, mode):
    """The last token of the opened action, which in mode `cot` stands after each run's own trace."""
    pair = pairs[0]
    sweep = patch(llama, *sides([pair]), ("resid_pre", "mlp_out"), at="action_tag", mode=mode, minimum=-1e9)
    clean, corrupt = unpatched(llama, pair, mode)
    assert (sweep.clean[0], sweep.corrupt[0]) == pytest.approx((clean, corrupt), abs=1e-4)
    fmt, opened = pair[0].format, {}
    for name, prompt in zip(("clean", "corrupt"), pair):
        trace = None if mode == "prompt" else prompt.decision.trace
        opened[name] = [*prompt.ids, *fmt.action_prefix(trace)]
    at = len(opened["clean"]) - 1
    assert fmt.text(opened["clean"]).endswith(fmt.style.open_action)

    def patched(name, donor, site, layer):
        value = read(llama, opened[donor], site, layer, at)

        def edit(x):
            x = x.clone()
            x[0, at] = value
            return x

        return difference(llama, pair, name, mode, lambda: {(site, layer): edit})

    for s, site in enumerate(sweep.sites):
        for layer in range(3):
            denoise = (patched("corrupt", "clean", site, layer) - corrupt) / (clean - corrupt)
            noise = (clean - patched("clean", "corrupt", site, layer)) / (clean - corrupt)
            assert (sweep.denoise[0, s, layer], sweep.noise[0, s, layer]) == pytest.approx(
                (denoise, noise), abs=1e-4 / abs(clean - corrupt) + 1e-4
            )
    if mode == "prompt":  # the tag's own embedding is the same in both runs
        assert sweep.denoise[0, 0, 0] == pytest.approx(0, abs=1e-4 / abs(clean - corrupt))


def test_the_action_tag_is_a_place_beside_others_and_plain_text_has_none(llama, pairs):
    metrics = ("difference", "kl")
    both = patch_modes(
        llama, *sides(pairs[:3]), ("resid_pre",), ["boundary", "action_tag"], minimum=1e-3, metrics=metrics
    )
    assert {*both} == {(at, mode) for at in ("boundary", "action_tag") for mode in ("prompt", "cot")}
    for mode in ("prompt", "cot"):
        alone = patch(llama, *sides(pairs[:3]), ("resid_pre",), at="action_tag", mode=mode, minimum=1e-3)
        np.testing.assert_allclose(both["action_tag", mode].denoise, alone.denoise, atol=1e-2)
        np.testing.assert_allclose(both["action_tag", mode].clean, both["boundary", mode].clean, atol=1e-4)
        assert both["action_tag", mode].of("kl").denoise.shape == alone.denoise.shape
    with pytest.raises(ValueError, match="not at 'action_tag'"):
        patch(llama, "a mug", "a pen", at="action_tag", answers=(" 1", " 2"))


@pytest.mark.parametrize("at", ["boundary", "observation", "prompt", "all"])
def test_every_metric_equals_its_slow_twin(model, pairs, monkeypatch, at):
    """All in nats: an effect times what it was divided by."""
    shortest = min(pairs, key=lambda p: len(p[0].ids))
    # One by one, the last tokens are enough: cells on both sides of LONG, and beyond every window.
    if at == "all":
        monkeypatch.setattr(sweeps, "LONG", 32 if model.window else 12)
    start = len(shortest[0].ids) - sweeps.LONG - 12 if at == "all" else 12
    pair = far_apart([shortest], model, from_=max(12, start))
    modes = ["prompt"] if at == "all" else ["prompt", "cot"]
    arguments = dict(at=[at], modes=modes, metrics=METRICS, minimum=-1e9)
    fast = patch_modes(model, *sides([pair]), **arguments)
    monkeypatch.setattr(
        model, "support", Support("fast", "plain loop", "plain loop", "plain loop", "a made-up reason")
    )
    slow = patch_modes(model, *sides([pair]), **arguments)
    assert set(fast) == set(slow) == {(at, mode) for mode in modes}
    for key in fast:
        for metric in METRICS:
            a, b = fast[key].of(metric), slow[key].of(metric)
            for side in ("clean", "corrupt"):
                np.testing.assert_allclose(
                    getattr(a, side), getattr(b, side), rtol=0, atol=1e-4, err_msg=metric
                )
            for direction, over in (("denoise", "corrupt"), ("noise", "clean")):
                nats = [
                    getattr(x, direction)[0]
                    * (getattr(x, over)[0] if metric == "kl" else x.clean[0] - x.corrupt[0])
                    for x in (a, b)
                ]
                np.testing.assert_allclose(*nats, rtol=0, atol=2e-4, err_msg=metric)
                assert at in ("boundary", "all") or np.nanmax(np.abs(nats[1])) > 1e-3


def test_metrics_are_what_they_are_called(llama, pairs):
    """Each by its definition, from whole rows of log-probabilities, for one cell."""
    pair, layer, logp, ends = pairs[1], 1, {}, [p.format.action_ids(p.decision.reference) for p in pairs[1]]
    same = next(i for i, (a, b) in enumerate(zip(*ends)) if a != b)
    values = [read(llama, p.ids, "resid_pre", layer, p.boundary) for p in pair]

    def put(value):
        def edit(x):
            x = x.clone()
            x[0, pair[0].boundary] = value
            return x

        return {("resid_pre", layer): edit}

    for name, prompt, edits in (
        ("clean", pair[0], {}),
        ("corrupt", pair[1], {}),
        ("noised", pair[0], put(values[1])),
        ("denoised", pair[1], put(values[0])),
    ):
        start = len(prompt.ids) + len(prompt.format.mode_prefix("prompt")) - 1
        logp[name] = [
            run(llama, [*prompt.ids, *prompt.format.mode_prefix("prompt"), *end], edits)[
                start : start + len(end)
            ]
            for end in ends
        ]
    whole = {
        name: [float(rows.gather(1, torch.tensor(end)[:, None]).sum()) for rows, end in zip(both, ends)]
        for name, both in logp.items()
    }
    first = {name: both[0][same] for name, both in logp.items()}
    by_hand = dict(
        difference={n: a - b for n, (a, b) in whole.items()},
        logp={n: a for n, (a, _) in whole.items()},
        logit_diff={n: float(row[ends[0][same]] - row[ends[1][same]]) for n, row in first.items()},
    )
    sweep = patch(llama, *sides([pair]), minimum=-1e9, metrics=METRICS)
    for metric, value in by_hand.items():
        gap, found = value["clean"] - value["corrupt"], sweep.of(metric)
        want = (
            value["clean"],
            value["corrupt"],
            (value["denoised"] - value["corrupt"]) / gap,
            (value["clean"] - value["noised"]) / gap,
        )
        assert (
            found.clean[0],
            found.corrupt[0],
            found.denoise[0, 0, layer],
            found.noise[0, 0, layer],
        ) == pytest.approx(want, abs=1e-4 + 1e-4 / abs(gap))

    def kl(a, b):
        return float((first[a].exp() * (first[a] - first[b])).sum())

    found, want = sweep.of("kl"), (kl("clean", "corrupt"), kl("corrupt", "clean"))
    assert (found.clean[0], found.corrupt[0]) == pytest.approx(want, abs=1e-4)
    assert found.denoise[0, 0, layer] == pytest.approx(kl("corrupt", "denoised") / want[1], abs=1e-3)
    assert found.noise[0, 0, layer] == pytest.approx(kl("clean", "noised") / want[0], abs=1e-3)


def test_more_metrics_leave_the_default_as_it_is(llama, pairs):
    alone, more = (
        patch(llama, *sides(pairs[:3]), minimum=1e-3),
        patch(llama, *sides(pairs[:3]), minimum=1e-3, metrics=["kl", "logp"]),
    )
    np.testing.assert_allclose(more.denoise, alone.denoise, atol=1e-5)
    assert not alone.effects and set(more.effects) == {"kl", "logp"} and more.of("difference") is more
    with pytest.raises(ValueError, match="no metric 'logit_diff'"):
        more.of("logit_diff")
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        patch(llama, *sides(pairs[:1]), metrics=["accuracy"])


def test_a_metric_drops_the_pairs_that_it_cannot_divide(llama, pairs):
    sweep = patch(llama, *sides(pairs[:8]), minimum=-1e9, metrics=METRICS)
    limit = float(np.median(np.minimum(sweep.of("kl").clean, sweep.of("kl").corrupt)))
    kl = patch(llama, *sides(pairs[:8]), minimum=limit, metrics=METRICS).of("kl")
    assert kl.dropped == 4 and (np.isnan(kl.denoise) == np.isnan(kl.noise)).all()


@pytest.mark.parametrize("tile", [64, 100, 4096])
def test_kl_by_tiles_is_kl_by_whole_rows(model, monkeypatch, tile):
    monkeypatch.setattr(unembedding, "TILE", tile)
    monkeypatch.setattr(unembedding, "ROWS", 4)
    with torch.inference_mode():
        base, hidden = torch.randn(2, model.d_model), torch.randn(5, 2, model.d_model)
        p, q = (model.logits(h).log_softmax(-1) for h in (base, hidden))
        torch.testing.assert_close(
            divergence(model, hidden, p), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(divergence(model, base[None], p), torch.zeros(1, 2), rtol=0, atol=1e-5)


def test_patching_everything_gives_the_other_run_and_with_itself_nothing(model, pairs, monkeypatch):
    usable = [far_apart([p], model, from_=12) for p in pairs[:2]]
    found = sanity(model, *sides(usable))
    assert found.self_patch < 1e-4 and found.everything < 1e-4
    sweep = patch(model, *sides(usable), at="prompt", minimum=1e-2)
    np.testing.assert_allclose([sweep.denoise[:, 0, 0], sweep.noise[:, 0, 0]], 1, atol=1e-3)
    cells = patching.cells_of  # a position that is forgotten is found
    monkeypatch.setattr(
        importlib.import_module("interp.measures.sanity"),
        "cells_of",
        lambda model, names, values, places, taken, donors: cells(
            model,
            names,
            values,
            [[p[:-1] for p in place] for place in places],
            [[index[:-1] for index in place] for place in taken],
            donors,
        ),
    )
    assert sanity(model, *sides(usable)).everything > 1e-3


def test_resid_mid_is_replaced_in_the_stream_and_not_only_before_the_mlp(model, pairs):
    """As in TransformerLens: resid_post = what was put there + mlp_out."""
    if "resid_mid" not in model.hook_points:
        pytest.skip("attention and MLP read the same residual: there is no resid_mid")
    seen, value = {}, torch.arange(model.d_model) / 10.0

    def put(x):
        x = x.clone()
        x[0, 5] = value
        return x

    run(
        model,
        pairs[0][0].ids,
        {
            ("resid_mid", 1): put,
            ("mlp_out", 1): lambda x: seen.__setitem__("mlp_out", x.clone()),
            ("resid_post", 1): lambda x: seen.__setitem__("resid_post", x.clone()),
        },
    )
    torch.testing.assert_close(seen["resid_post"][0, 5], value + seen["mlp_out"][0, 5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("places", [None, "all", "some"])
def test_patching_a_run_with_itself_changes_nothing(model, fmt, prompts, places):
    """Every site, head and position with its own value: the very numbers of the unpatched run."""
    prompt, size = prompts[3], len(prompts[3].ids)
    tails = [[*fmt.mode_prefix("prompt"), *fmt.action_ids(a)] for a in ("go to desk 1", "go to drawer 11")]
    positions = dict(all=[(i,) for i in range(0, size, 13)], some=[(3, 8, size - 1)]).get(
        places, [(size - 1,)]
    )
    flat = sorted({p for place in positions for p in place})
    names = [s for s in SITES if s in model.hook_points]
    run = Packed(model, [Run(prompt.ids, tails, [2, 3], flat)], names)
    places = [[place] for place in positions], [[[flat.index(p) for p in place]] for place in positions]
    (found,) = run.patched(patching.cells_of(model, names, run.values, *places, [0]))
    assert len(found) == (len(names) - 1 + model.n_heads) * model.n_layers * len(positions)
    np.testing.assert_allclose(found, run.base.expand_as(found), atol=1e-4)


def test_a_pair_of_equal_runs_has_no_difference_to_divide_by(model, pairs):
    clean, corrupt = pairs[0]
    same = replace(
        clean, decision=replace(corrupt.decision, trace=clean.decision.trace)
    )  # another action, the same run
    sweep = patch(model, [clean], [same], mode="cot")
    assert sweep.dropped == 1 and sweep.clean == pytest.approx(sweep.corrupt, abs=1e-5)


def far_apart(pairs, model, from_=-1):
    """A pair whose prompts differ in every token from one on (the boundary alone, by default), actions
    ordered so that the gap is positive."""
    clean, other = pairs[0]
    actions = clean.decision.reference, other.decision.reference

    def made(first, second):
        changed = [33 + (7 * i) % 300 for i in range(len(clean.ids[from_:]))]
        return (
            replace(clean, decision=replace(clean.decision, reference=first)),
            replace(
                clean, ids=(*clean.ids[:from_], *changed), decision=replace(clean.decision, reference=second)
            ),
        )

    found = made(*actions)
    if difference(model, found, "clean", "prompt") < difference(model, found, "corrupt", "prompt"):
        found = made(*actions[::-1])
    return found


@pytest.fixture(scope="module")
def kept():
    """What the slow twin said, which hangs on no size of a packed pass."""
    return {}


def both(model, fmt, prompt, donor, names, positions, budget=256 * 2**20, kept=None):
    """Log-probabilities of every cell by the packed sweep and by its slow twin, the latter kept in `kept`."""
    kept = {} if kept is None else kept
    key = type(model.hf).__name__, names, tuple(positions)
    tails = [
        [*fmt.mode_prefix("prompt"), *fmt.action_ids(a)]
        for a in ("go to desk 1", "go to drawer 11", "take mug 1 from desk 1")
    ]
    flat = sorted({p for place in positions for p in place})
    run, other = (Run(p.ids, tails, [2, 3, 6], flat) for p in (prompt, donor))
    fast, slow = Packed(model, [run], names, budget=budget), Plain(model, [run], names)
    values = {
        at: [each.flip(-1) for each in held] for at, held in Plain(model, [other], names).values.items()
    }
    for at, (value,) in slow.values.items():
        torch.testing.assert_close(fast.values[at][0], value, rtol=1e-4, atol=1e-4)
    places = [[place] for place in positions], [[[flat.index(p) for p in place]] for place in positions]
    cells = patching.cells_of(model, names, values, *places, [0])
    torch.testing.assert_close(fast.base, slow.base, rtol=0, atol=1e-4)
    if key not in kept:
        kept[key] = slow.patched(cells)[0]
    return fast.patched(cells)[0], kept[key], fast.base[0]


@pytest.mark.parametrize(
    "budget, long", [(256 * 2**20, 64), (256 * 2**20, 10**6), (256 * 2**20, 0), (200_000, 64)]
)
@pytest.mark.parametrize(
    "names, places",
    [(("resid_pre", "attn_out", "mlp_out"), "grid"), (("z",), "boundary"), (("resid_post", "z"), "span")],
)
def test_every_cell_of_the_grid_of_a_span_and_of_a_head_equals_its_slow_twin(
    model, fmt, pairs, monkeypatch, kept, names, places, budget, long
):
    """Side by side in one row, as rows of a batch, and mixed, in large passes and small ones."""
    monkeypatch.setattr(sweeps, "LONG", long)
    prompt, donor = pairs[0]
    size = len(prompt.ids)
    positions = dict(
        grid=[(i,) for i in range(2, size, 29)],
        boundary=[(size - 1,)],
        span=[tuple(prompt.positions("observation").tolist())],
    )[places]
    fast, slow, base = both(model, fmt, prompt, donor, names, positions, budget, kept)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4)
    assert (slow - base).abs().max() > 1e-3  # and the cells do something


@pytest.mark.parametrize("long", [10**6, 0])
def test_a_pass_that_does_not_fit_is_halved_until_it_does(llama, fmt, pairs, monkeypatch, long):
    prompt, donor = pairs[0]
    positions, run, sizes = [(i,) for i in range(0, len(prompt.ids), 13)], Packed._pass, []

    def small(self, columns, runs):
        sizes.append(len(columns) * len(runs))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("no room")
        return run(self, columns, runs)

    monkeypatch.setattr(sweeps, "LONG", long)
    monkeypatch.setattr(sweeps, "PASS", (4096, 4096))
    monkeypatch.setattr(Packed, "_pass", small)
    fast, slow, _ = both(llama, fmt, prompt, donor, ("resid_pre",), positions)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4)
    assert max(sizes) > 3
    monkeypatch.setattr(
        Packed, "_pass", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no room"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        both(llama, fmt, prompt, donor, ("resid_pre",), positions)


@pytest.mark.parametrize("held", [2**40, 0])
@pytest.mark.parametrize("at", ["boundary", "observation", "prompt"])
def test_pairs_together_are_the_pairs_by_themselves(model, pairs, monkeypatch, at, held):
    """Ragged ones in one batch, or in batches of one; some of them dropped, and one whose runs are the same."""
    some = [far_apart([pair], model, from_=12 if at == "prompt" else -1) for pair in pairs[:4]]
    some[1] = pairs[1][0], replace(pairs[1][0], decision=pairs[1][1].decision)
    alone = [
        patch(model, [a], [b], ("resid_pre", "z"), at=at, minimum=-1e9, metrics=METRICS) for a, b in some
    ]
    gaps = sorted(float(sweep.clean[0] - sweep.corrupt[0]) for sweep in alone)
    monkeypatch.setattr(devices, "HELD", held)
    together = patch(model, *sides(some), ("resid_pre", "z"), at=at, minimum=-1e9, metrics=METRICS)
    for metric in METRICS:
        for name in ("clean", "corrupt", "moved"):
            wanted = np.concatenate([getattr(sweep.of(metric), name) for sweep in alone])
            np.testing.assert_allclose(getattr(together.of(metric), name), wanted, rtol=0, atol=2e-4)
    kept = patch(model, *sides(some), ("resid_pre", "z"), at=at, minimum=(gaps[1] + gaps[2]) / 2)
    assert kept.dropped == 2
    for i in range(4):
        if not np.isnan(kept.denoise[i]).all():
            np.testing.assert_allclose(kept.moved[i], together.moved[i], rtol=0, atol=2e-4)


@pytest.fixture
def passes(llama):
    """Shapes of the ids of each pass of the decoder."""
    seen = []

    def see(module, args, kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))

    handle = llama.inner.register_forward_pre_hook(see, with_kwargs=True)
    yield seen
    handle.remove()


def test_many_pairs_take_as_many_passes_as_one(llama, pairs, passes):
    patch(llama, *sides(pairs[:1]), minimum=-1e9)
    one = passes.copy()
    passes.clear()
    patch(llama, *sides(pairs[:8]), minimum=-1e9)
    assert len(passes) <= len(one) + 2  # prompts that share a beginning may be read in packs


def test_a_model_that_cannot_be_packed_takes_the_plain_loop_and_says_so(tokenizer, pairs):
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    fast = patch(model, *sides(pairs[:1]), ("resid_pre", "z"), minimum=0.01)
    model.support = Support("fast", "plain loop", "plain loop", "plain loop", "a made-up reason")
    slow = patch(model, *sides(pairs[:1]), ("resid_pre", "z"), minimum=0.01)
    assert slow.path == "plain loop: a made-up reason" and fast.sites == slow.sites == (
        "resid_pre",
        "z.0",
        "z.1",
        "z.2",
        "z.3",
    )
    np.testing.assert_allclose(fast.denoise, slow.denoise, atol=1e-2)


def test_both_modes_from_one_reading_are_the_modes_by_themselves(model, pairs):
    found = patch_modes(model, *sides(pairs[:3]), ("resid_pre",), minimum=1e-3)
    for (_, mode), sweep in found.items():
        alone = patch(model, *sides(pairs[:3]), ("resid_pre",), mode=mode, minimum=1e-3)
        np.testing.assert_allclose(sweep.clean, alone.clean, atol=1e-4)
        np.testing.assert_allclose(sweep.denoise, alone.denoise, atol=0.05)


def test_several_places_from_one_reading_are_the_places_by_themselves(llama, pairs):
    places = ["boundary", "observation", "task", "prompt"]
    found = patch_modes(llama, *sides(pairs[:3]), ("resid_pre", "z"), places, ["prompt"], minimum=1e-2)
    assert not found["prompt", "prompt"].dropped == 3
    for at in places:
        alone = patch(llama, *sides(pairs[:3]), ("resid_pre", "z"), at=at, minimum=1e-2)
        np.testing.assert_allclose(found[at, "prompt"].denoise, alone.denoise, atol=1e-2)
        np.testing.assert_allclose(found[at, "prompt"].noise, alone.noise, atol=1e-2)


def test_the_grid_has_the_boundary_as_its_last_column_and_ends_where_a_prompt_ends(llama, pairs):
    by_length = sorted(pairs, key=lambda p: len(p[0].ids))
    chosen = [
        next(p for p in each if not patch(llama, *sides([p]), minimum=1e-3).dropped)
        for each in (by_length, reversed(by_length))
    ]
    assert len(chosen[0][0].ids) < len(chosen[1][0].ids)
    grid = patch(llama, *sides(chosen), ("resid_pre",), at="all", minimum=1e-3)
    edge = patch(llama, *sides(chosen), ("resid_pre",), minimum=1e-3)
    for i, (clean, corrupt) in enumerate(chosen):
        size = len(clean.ids)
        np.testing.assert_allclose(grid.denoise[i, :, :, size - 1], edge.denoise[i], atol=1e-2)
        assert np.isnan(grid.denoise[i, :, :, size:]).all()
        first = next(k for k, (a, b) in enumerate(zip(clean.ids, corrupt.ids)) if a != b)
        np.testing.assert_allclose(
            grid.denoise[i, :, :, :first], 0, atol=1e-2
        )  # equal tokens so far, equal activations


@pytest.mark.parametrize("mode", ["prompt", "cot"])
def test_patching_everything_that_differs_gives_the_other_run(model, pairs, mode):
    sweep = patch(
        model, *sides([far_apart(pairs, model)]), ("resid_pre", "resid_post"), mode=mode, minimum=-1e9
    )
    rounding = max(1e-4, 1e-5 / abs(sweep.clean[0] - sweep.corrupt[0]))
    assert rounding < 0.1
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
    with pytest.raises(ValueError, match="not at 'everywhere'"):
        patch(llama, *one, at="everywhere")
    with pytest.raises(ValueError, match="no site"):
        patch(llama, *one, ["nope"])
    with pytest.raises(ValueError, match="mode"):
        patch(llama, *one, mode="empty_think")


def test_a_pair_without_any_difference_has_no_share_but_what_patching_moved():
    clean, corrupt = np.array([0.5, 1.0, -1.0]), np.array([0.5, 0.0, 1.0])
    denoised = np.array([0.75, 0.25, 0.5]).reshape(3, 1, 1)
    sweep = effects("difference", ["resid_pre"], (clean, corrupt), (denoised, denoised), -np.inf, "packed")
    np.testing.assert_array_equal(sweep.denoise[:, 0, 0], [np.nan, 0.25, 0.25])
    np.testing.assert_array_equal(sweep.moved[:, 0, 0], [0.25, 0.25, -0.5])


def test_heads_are_cut_by_each_layer_s_own_width(fmt, pairs):
    """Full layers whose heads are twice as wide: each head by one forward pass of its own, and estimates of
    the same heads."""
    model = HookedModel(tiny("gemma4_text", vocab_size=520, max_position_embeddings=1024), None)
    clean, corrupt = pairs[0]
    sweep = patch(model, [clean], [corrupt], sites=["z"], minimum=-1e9)
    screen = attribute(model, [clean], [corrupt], sites=["z"], minimum=-1e9)
    assert sweep.sites == screen.sites == ("z.0", "z.1", "z.2", "z.3") and np.isfinite(screen.denoise).all()
    tails, scored = continuations(reference_actions(clean, corrupt), fmt.action_prefix(None))
    for layer in (0, 1, 2):
        width = model.blocks[layer].self_attn.o_proj.in_features // 4
        runs = {
            run: Plain(model, [Run(p.ids, tails, scored, [len(p.ids) - 1])], ["z"])
            for run, p in (("clean", clean), ("corrupt", corrupt))
        }
        for head in range(4):
            columns = slice(head * width, (head + 1) * width)
            cell = Cell(
                "z",
                layer,
                [(len(clean.ids) - 1,)],
                [runs["clean"].values["z", layer][0][:, columns]],
                columns,
            )
            logp = runs["corrupt"].patched([cell])[0, 0]
            effect = (logp[0] - logp[1] - sweep.corrupt[0]) / (sweep.clean[0] - sweep.corrupt[0])
            assert sweep.denoise[0, head, layer] == pytest.approx(effect.item(), abs=1e-3)
