"""Plain text: patched, captured, read by the lens and ablated, without an agent or a template."""

import numpy as np
import pytest
import torch

import interp
from interp.engine.positions import readings
from interp.measures.ablation import ablate
from interp.measures.attribution import attribute
from interp.measures.lens import lens
from interp.measures.patching import patch
from interp.measures.steered_answers import steer_answers
from interp.models.hooked import HookedModel, Support
from interp.prompts.text import answer_ids, read_texts
from tests.conftest import tiny_hf

CLEAN = "You see a mug 1 and a pen 1. You take the mug 1. Next I check drawer"
CORRUPT = "You see a mug 1 and a pen 1. You take the pen 1. Next I check drawer"
ANSWERS = (" mug", " pen")


@pytest.mark.parametrize("architecture", ["GPT2", "Llama", "Gemma2"])
def test_two_texts_are_patched_as_transformer_lens_patches_them(tokenizer, architecture):
    model = HookedModel(tiny_hf(architecture, tokenizer), tokenizer)
    sweep = patch(model, CLEAN, CORRUPT, at="all", answers=ANSWERS, minimum=-1e9)
    clean, corrupt = (torch.tensor([model.tokens(text)]) for text in (CLEAN, CORRUPT))
    first, second = (answer_ids(tokenizer, answer)[0] for answer in ANSWERS)
    bridge = model.bridge
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(clean)
        for layer in range(model.n_layers):
            name = f"blocks.{layer}.hook_resid_pre"
            for position in range(clean.shape[1]):

                def replaced(tensor, hook, position=position, name=name):
                    tensor[:, position] = cache[name][:, position]
                    return tensor

                logp = bridge.run_with_hooks(corrupt, fwd_hooks=[(name, replaced)])[0, -1].log_softmax(-1)
                expected = float(logp[first] - logp[second]) - sweep.corrupt[0]
                assert sweep.moved[0, 0, layer, position] == pytest.approx(expected, abs=1e-4)


def test_texts_of_other_lengths_are_patched_where_they_correspond(llama):
    clean, corrupt = "You take the mug 1. Next", "You take the old mug 2. Next"
    ids = [llama.tokens(text) for text in (clean, corrupt)]
    assert len(ids[0]) != len(ids[1])
    with pytest.raises(ValueError, match=r"tokens, so their positions do not correspond: .*\|.*align="):
        patch(llama, clean, corrupt, at="all", answers=ANSWERS)
    last = (len(ids[0]) - 1, len(ids[1]) - 1)
    sweep = patch(
        llama, clean, corrupt, at="all", answers=ANSWERS, minimum=-1e9, align={0: 0, last[0]: last[1]}
    )
    read = np.flatnonzero(~np.isnan(sweep.denoise[0, 0, 0]))
    assert read.tolist() == [0, last[0]]
    at_end = patch(llama, clean, corrupt, answers=ANSWERS, minimum=-1e9, align={last[0]: last[1]})
    np.testing.assert_allclose(at_end.denoise[0, 0], sweep.denoise[0, 0, :, last[0]], atol=1e-5)
    assert at_end.denoise[0, 0, -1] != 0 and np.isfinite(at_end.noise).all()
    screen = attribute(llama, clean, corrupt, answers=ANSWERS, minimum=-1e9, align={0: 0, last[0]: last[1]})
    assert np.flatnonzero(~np.isnan(screen.denoise[0, 0, 0])).tolist() == [0, last[0]]


def test_ids_texts_and_lists_are_one_thing(llama):
    ids = [llama.tokens(text) for text in (CLEAN, CORRUPT)]
    by_text = patch(llama, CLEAN, CORRUPT, answers=ANSWERS, minimum=-1e9)
    answers = [tuple(answer_ids(llama.tokenizer, a) for a in ANSWERS)]
    by_ids = patch(llama, [ids[0]], [ids[1]], answers=answers, minimum=-1e9)
    np.testing.assert_array_equal(by_text.denoise, by_ids.denoise)
    last = patch(llama, CLEAN, CORRUPT, at="last", answers=ANSWERS, minimum=-1e9)
    np.testing.assert_array_equal(by_text.denoise, last.denoise)
    assert [p.ids for p in read_texts(None, torch.tensor(ids[0]))] == [tuple(ids[0])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), r"Plain text has no reference action: give answers="),
        (dict(answers=(" mug", " mug")), "differ in no token"),
        (dict(answers=[(" mug", " pen")] * 2), "a list of two for each of the 1 pairs"),
        (dict(answers=ANSWERS, at="history"), "not at 'history'"),
        (dict(answers=ANSWERS, at=99), "there is no position 99"),
        (dict(answers=ANSWERS, mode="cot"), "has no trace"),
        (dict(answers=ANSWERS, align={0: 500}), "`align` names position 500"),
        (dict(answers=("", " pen")), "has no token"),
    ],
)
def test_what_cannot_be_patched_is_said(llama, arguments, message):
    with pytest.raises(ValueError, match=message):
        patch(llama, CLEAN, CORRUPT, **arguments)


def test_without_a_tokenizer_texts_are_refused_and_ids_are_read(tokenizer):
    model = HookedModel(tiny_hf("Llama", tokenizer), None)
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        interp.capture(model, "some text")
    assert interp.capture(model, [5, 6, 7], at="all").values.shape == (3, 1, 3, 32)
    assert model.bridge.tokenizer is None and model.generate([5, 6, 7], 4)


@pytest.mark.parametrize("at", ["all", "boundary", -2, [0, 3], "history"])
def test_any_position_is_captured_as_in_a_plain_pass(model, prompts, at):
    some = prompts[:7]
    acts = interp.capture(model, some, ["resid_pre", "resid_post"], at, batch_tokens=700)
    assert len(acts) == len(some)
    for i, prompt in enumerate(some):
        wanted = readings([prompt], at)[0].positions if at != "history" or "history" in prompt.spans else ()
        _, cache = model.run_with_cache(prompt, ["resid_pre", "resid_post"])
        for s, site in enumerate(acts.sites):
            for layer in acts.layers:
                expected = cache[site, layer][0, list(wanted)]
                torch.testing.assert_close(acts.rows(i)[:, s, layer], expected, rtol=1e-4, atol=2e-4)
    assert acts["blocks.1.hook_resid_post"].shape == (len(acts.decisions), acts.values.shape[-1])


def test_trace_tokens_are_those_between_the_tags(llama, prompts, fmt):
    for trace in ("Goal: mug to shelf.", prompts[1].decision.trace):
        (reading,) = readings([prompts[1]], "trace", [trace])
        inside = fmt.text([reading.ids[p] for p in reading.positions])
        assert inside.strip() == trace
        ids = [
            *fmt.trace_prefix(trace)[0].ids[len(fmt.mode_prefix("cot")) :],
            *fmt.action_ids("go to shelf 1"),
        ]
        completion = interp.Completion(tuple(ids), trace, "go to shelf 1")
        assert readings([prompts[1]], "trace", [completion])[0].positions == reading.positions
        (tag,) = readings([prompts[1]], "action_tag", [completion])
        assert fmt.text(tag.ids).endswith(fmt.style.open_action) and tag.positions == (len(tag.ids) - 1,)
    acts = interp.capture(llama, prompts[:2], at="trace", traces=["a b c", None])
    assert np.diff(acts.offsets).tolist() == [len(acts.rows(0)), 0]
    with pytest.raises(ValueError, match="give what `decode` gave"):
        interp.capture(llama, prompts[:2], at="trace")


def test_the_lens_ends_at_the_models_own_logits(model):
    result = lens(model, [CLEAN, "a mug"], answers=ANSWERS, top=3)
    for i, text in enumerate((CLEAN, "a mug")):
        own = model(text)[0, -1].log_softmax(-1)
        tokens = [answer_ids(model.tokenizer, answer)[0] for answer in ANSWERS]
        np.testing.assert_allclose(result.logp[i, -1], own[tokens], atol=1e-4)
        assert result.tokens[i, -1].tolist() == own.topk(3).indices.tolist()
        assert result.rank[i, -1, 0] == int((own > own[tokens[0]]).sum())
    assert result.layers == (-1, 0, 1, 2) and result.tokens.shape == (2, 4, 3)
    with pytest.raises(ValueError, match="a token of their own"):
        lens(model, CLEAN, answers=(" mug", " mug"))


@pytest.mark.parametrize("how", ["zero", "mean", "resample", "direction"])
def test_ablations_are_what_replacing_by_hand_gives(model, how):
    texts = [CLEAN, CORRUPT, "You take the book 1 from shelf"]
    direction = np.arange(1, 33) if how == "direction" else None
    sites = [site for site in ("resid_pre", "mlp_out") if site in model.hook_points]
    result = ablate(model, texts, sites, how, answers=ANSWERS, direction=direction)
    tokens = [answer_ids(model.tokenizer, answer)[0] for answer in ANSWERS]
    acts = interp.capture(model, texts, sites)
    for s, site in enumerate(sites):
        own, others = acts.values[0, s, 1], acts.values[1:, s, 1]
        if how == "direction":
            unit = torch.tensor(direction / np.linalg.norm(direction), dtype=torch.float32)
            candidates = [own - (own @ unit) * unit]
        else:
            candidates = dict(
                zero=[torch.zeros_like(own)], mean=[acts.values[:, s, 1].mean(0)], resample=list(others)
            )[how]
        found = []
        for value in candidates:

            def replaced(tensor, value=value):
                tensor = tensor.clone()
                tensor[:, -1] = value
                return tensor

            with model.hooks({(site, 1): replaced}):
                logp = model(texts[0])[0, -1].log_softmax(-1)
            unablated = model(texts[0])[0, -1].log_softmax(-1)
            moved = (logp - unablated)[tokens[0]] - (logp - unablated)[tokens[1]]
            kl = (unablated.exp() * (unablated - logp)).sum()
            found.append((float(moved), float(kl)))
        own_values = (result.effect[0, s, 1], result.kl[0, s, 1])
        assert any(own_values == pytest.approx(each, abs=2e-4) for each in found)


def test_ablating_every_position_and_single_answers(llama):
    result = ablate(llama, [CLEAN, "a mug"], ["z"], "mean", "all")
    assert np.isnan(result.base).all() and result.kl.shape == (2, 4, 3, len(llama.tokens(CLEAN)))
    assert np.isnan(result.kl[1, 0, 0, len(llama.tokens("a mug")) :]).all()
    one = ablate(llama, [CLEAN, "a mug"], ["z"], "zero", answers=(" mug",))
    assert one.base[0] == pytest.approx(
        float(llama(CLEAN)[0, -1].log_softmax(-1)[answer_ids(llama.tokenizer, " mug")[0]]), abs=1e-4
    )
    for arguments, message in (
        (dict(how="some"), "not by 'some'"),
        (dict(how="direction"), "which needs it"),
        (dict(prompts=CLEAN, how="mean"), "at least two"),
        (dict(at="trace"), "not at 'trace'"),
        (dict(answers=" mug"), "one answer or two"),
    ):
        with pytest.raises(ValueError, match=message):
            ablate(llama, **(dict(prompts=[CLEAN, "a mug"]) | arguments))


def test_donors_of_ones_own_are_what_patching_puts_there(llama):
    """The clean run's activations as donors in the corrupt run: the numerator of denoising."""
    sweep = patch(llama, [CLEAN], [CORRUPT], ["resid_mid"], answers=ANSWERS, minimum=-1e9)
    acts = interp.capture(llama, CLEAN, ["resid_mid"])
    result = ablate(
        llama, CORRUPT, how="donors", donors={("resid_mid", 1): acts["resid_mid", 1]}, answers=ANSWERS
    )
    assert result.effect[0, 0, 1] == pytest.approx(sweep.moved[0, 0, 1], abs=1e-4)
    assert np.isnan(result.effect[0, 0, [0, 2]]).all()
    with pytest.raises(ValueError, match=r"needs \[1, 32\]"):
        ablate(llama, CORRUPT, how="donors", donors={("resid_mid", 1): torch.zeros(1, 5)})


@pytest.mark.parametrize("at", ["boundary", "prompt", [1, -3]])
@pytest.mark.parametrize("architecture", ["GPT2", "Gemma2"])
def test_steering_texts_is_adding_by_hand(tokenizer, architecture, at):
    """Packed and in plain loops, against hooks in whole passes, with answers of several tokens."""
    model = HookedModel(tiny_hf(architecture, tokenizer), tokenizer)
    texts, answers = [CLEAN, "You take the pen 1 and the"], (" mug 1 from", " mug 2")
    rng = np.random.default_rng(0)
    directions = {"one": rng.normal(size=32), "two": rng.normal(size=(2, 32))}
    given = dict(layer=1, at=at, answers=answers, alphas=(-1.0, 0.0, 2.0, 2.0))
    result = steer_answers(model, texts, directions, **given)
    ids = [model.tokens(text) for text in texts]
    at_of = [range(len(each)) if at == "prompt" else [-1] if at == "boundary" else at for each in ids]
    at_of = [[i % len(each) for i in places] for each, places in zip(ids, at_of)]
    acts = [model.run_with_cache(each, ["resid_post"])[1]["resid_post", 1][0] for each in ids]
    norm = float(torch.cat([own[places].norm(dim=-1) for own, places in zip(acts, at_of)]).mean())
    assert result.norm == pytest.approx(norm, rel=1e-5)
    tails = [answer_ids(tokenizer, answer) for answer in answers]
    alike = next(i for i, (a, b) in enumerate(zip(*tails)) if a != b)

    def difference(own, places, vector):
        def added(tensor):
            tensor = tensor.clone()
            tensor[:, places] += vector
            return tensor

        logp = []
        for tail in tails:
            with model.hooks({("resid_post", 1): added}):
                scores = model([*own, *tail])[0].log_softmax(-1)[-len(tail) - 1 : -1]
            logp.append(float(scores.gather(1, torch.tensor(tail)[:, None])[alike:].sum()))
        return logp[0] - logp[1]

    rows = np.concatenate([np.atleast_2d(each) for each in directions.values()])
    for p, (own, places) in enumerate(zip(ids, at_of)):
        base = difference(own, places, torch.zeros(32))
        assert result.base[p] == pytest.approx(base, abs=1e-4)
        for d, row in enumerate(rows):
            for a, alpha in enumerate(result.alphas):
                vector = torch.tensor(alpha * norm * row / np.linalg.norm(row), dtype=torch.float32)
                moved = difference(own, places, vector) - base
                assert result.effect[d, a, p] == pytest.approx(moved, abs=1e-4)
    assert (result.kinds, result.alphas, result.path) == (("one", "two", "two"), (-1, 0, 2), "packed")
    assert np.isfinite(result.effect).all() and np.abs(result.effect).max() > 0.1
    model.support = Support("fast", "plain loop", "plain loop", "plain loop", "a made-up reason")
    plain = steer_answers(model, texts, directions, **given)
    assert "a made-up reason" in plain.path
    np.testing.assert_allclose(plain.effect, result.effect, atol=1e-4)


def test_steering_an_agents_prompt_and_single_answers(llama, prompts):
    direction = np.linspace(-1, 1, 32)
    action = prompts[0].decision.reference
    one = steer_answers(llama, prompts[:3], {"line": direction}, 0, "boundary", answers=[action])
    tail = [*prompts[0].format.action_prefix(None), *prompts[0].format.action_ids(action)]
    n = len(prompts[0].format.action_ids(action))
    scores = llama([*prompts[0].ids, *tail])[0].log_softmax(-1)[-n - 1 : -1]
    expected = float(scores.gather(1, torch.tensor(tail[-n:])[:, None]).sum())
    assert one.base[0] == pytest.approx(expected, abs=1e-4)
    assert one.effect.shape == (1, 4, 3) and len(one.to_frame()) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompts=[]), "nothing to steer"),
        (dict(answers=()), "give one answer or two"),
        (dict(answers=" mug"), "one answer or two"),
        (dict(answers=(" mug", " mug")), "differ in no token"),
        (dict(layer=3), "one of 0 to 2, not 3"),
        (dict(alphas=[np.nan]), "finite numbers"),
        (dict(directions={}), "No direction is given"),
        (dict(directions={"a": np.zeros(32)}), "not zero"),
        (dict(directions={"a": np.ones(31)}), "has 32 numbers"),
        (dict(at="all"), "not at 'all'"),
        (dict(at="trace"), "not at 'trace'"),
        (dict(at="history"), "no span 'history'"),
        (dict(at=99), "there is no position 99"),
        (dict(at=[[]]), "has no token at"),
    ],
)
def test_what_cannot_be_steered_is_said(llama, arguments, message):
    given = dict(prompts=CLEAN, directions={"a": np.ones(32)}, layer=1, answers=ANSWERS) | arguments
    with pytest.raises(ValueError, match=message):
        steer_answers(llama, **given)
    with pytest.raises(ValueError, match="`interp.steer_answers` reads"):
        interp.steer(llama, CLEAN, {"a": np.ones(32)}, 1, target="shelf")


def test_hooks_run_in_every_pass_and_know_their_tokens(llama, prompts, fmt):
    """A vector added from the boundary on: batched, alone, and as `generate` does it by hand."""
    vector = torch.linspace(-3, 3, llama.d_model)
    seen = []

    def added(tensor, where):
        seen.append((where.prompt.tolist(), where.position.tolist()))
        return tensor + vector * (where.position >= 30)[..., None]

    some = [prompts[0], prompts[3], prompts[5]]
    plain = interp.decode(llama, some, "prompt", max_new_tokens=6)
    hooked = interp.decode(llama, some, "prompt", max_new_tokens=6, hooks={("resid_post", 1): added})
    assert {i for rows, _ in seen for i in rows} == {0, 1, 2} and any(
        -1 in row for _, at in seen for row in at
    )
    assert [c.ids for c in plain] != [c.ids for c in hooked]
    for prompt, completion in zip(some, hooked):
        one = interp.decode(
            llama, [prompt], "prompt", max_new_tokens=6, hooks={"blocks.1.hook_resid_post": added}
        )
        assert one[0].ids == completion.ids
        ids = [*prompt.ids, *fmt.mode_prefix("prompt")]
        for token in completion.ids:
            with llama.hooks({("resid_post", 1): added}, passes="any"):
                assert int(llama(ids)[0, -1].argmax()) == token
            ids.append(token)
    assert llama.generate(list(some[0].ids), 3, hooks={("resid_post", 1): added})


def test_a_model_reads_text_as_a_transformer_lens_user_expects(llama):
    logits, cache = llama.run_with_cache(CLEAN)
    assert logits.shape == (1, len(llama.tokens(CLEAN)), llama.vocabulary)
    torch.testing.assert_close(logits, llama(CLEAN))
    assert cache["z", 0] is cache["blocks.0.attn.hook_z"] and ("resid_mid", 2) and "nothing" not in cache
    with pytest.raises(KeyError, match="was not read"):
        llama.run_with_cache(CLEAN, ["resid_pre"])[1]["z", 0]
    with pytest.raises(ValueError, match="One text at a time"):
        llama([CLEAN, CORRUPT])
    assert isinstance(llama.generate(CLEAN, 3), str)


def test_a_model_is_loaded_from_a_folder(small):
    model = HookedModel.from_pretrained(small)
    assert model(CLEAN).shape[-1] == model.vocabulary and model.dtype == torch.float32
