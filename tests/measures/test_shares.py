"""Attention and gradient shares: against plain passes of the Hugging Face model, and against loops that do
one thing at a time."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp.measures.shares import (
    DEFINITIONS,
    METRICS,
    VERSIONS,
    _check_eager,
    _gradients,
    _masses,
    _Rows,
    by_span,
    sequence,
    shares,
    token_mass,
)
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel, layers_of
from interp.prompts.format import SPANS
from tests.conftest import tiny_hf

#: Of finite differences: small for what is not linear, large for Llama's norm, which rounds to float32.
STEP = 5e-3


@pytest.fixture(scope="module")
def few(prompts):
    return prompts[1:4]


@pytest.fixture(scope="module")
def found(model, few):
    return shares(model, few)


def eager_twin(model):
    """The plain model under eager attention, weights and all."""
    twin = copy.deepcopy(model.hf)
    twin.set_attn_implementation("eager")
    return twin


def members(spans):
    return np.stack([spans == name for name in SPANS], 1).astype(float)


def normalised(mass, spans):
    """[version, layer, span] by a loop over spans and layers."""
    return np.array(
        [
            [[row[skip:][spans[skip:] == name].sum() / row[skip:].sum() for name in SPANS] for row in mass]
            for skip in (0, 1)
        ]
    )


def parts(prompt):
    ids, spans = sequence(prompt, prompt.decision.trace, prompt.decision.reference)
    return ids, spans, int((spans == "action").sum())


def test_every_token_has_one_span(prompts, fmt):
    prompt = prompts[3]
    d = prompt.decision
    ids, spans, n = parts(prompt)
    assert len(ids) == len(spans) and set(spans) <= set(SPANS)
    assert ids == [*prompt.ids, *fmt.with_trace(d.trace), *fmt.action_ids(d.reference)]
    text = {name: fmt.text([i for i, s in zip(ids, spans) if s == name]) for name in SPANS}
    assert (
        text["cot"] == f"<think>{d.trace}</think>"
        and text["action_tag"] == "<action>"
        and text["action"] == f"{d.reference}</action>"
    )
    assert tuple(spans[: len(prompt.ids)]) == prompt.spans
    as_ids = sequence(prompt, fmt.with_trace(d.trace)[len(fmt.mode_prefix("cot")) :], d.reference)
    assert as_ids[0] == ids and (as_ids[1] == spans).all()
    at_once, spans = sequence(prompt, None, d.reference)
    assert (
        at_once == [*prompt.ids, *fmt.mode_prefix("prompt"), *fmt.action_ids(d.reference)]
        and "cot" not in spans
    )


def test_attention_equals_the_plain_models_patterns(model, few, found):
    twin = eager_twin(model)
    for i, prompt in enumerate(few):
        ids, spans, n = parts(prompt)
        with torch.inference_mode():
            layers = twin(torch.tensor([ids]), output_attentions=True).attentions
        mass = np.zeros((model.n_layers, len(ids)))
        for layer, pattern in enumerate(layers):
            for head in range(model.n_heads):
                for row in range(len(ids) - n, len(ids)):
                    mass[layer] += pattern[0, head, row].numpy() / (n * model.n_heads)
        for version, slow in zip(VERSIONS, normalised(mass, spans)):
            np.testing.assert_allclose(found.of("attention", version)[i], slow, atol=2e-5)


def leaf_loss(model, ids, n, layer, moved):
    """-log p of the last n tokens [n] where block `layer` reads `moved` [token, d_model] in place of its own
    input; and that input."""
    own = {}

    def edit(tensor):
        own[0] = tensor
        return None if moved is None else moved[None]

    with model.hooks({("resid_pre", layer): edit}):
        logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0].float()
    return -logits[-n - 1 : -1].log_softmax(-1).gather(1, torch.tensor(ids[-n:])[:, None])[:, 0], own[0][0]


def test_the_residual_gradient_equals_autograd_layer_by_layer(model, few, found):
    for i, prompt in enumerate(few):
        ids, spans, n = parts(prompt)
        mass = []
        for layer in range(model.n_layers):
            with torch.no_grad():
                entering = leaf_loss(model, ids, n, layer, None)[1].clone()
            entering.requires_grad_()
            leaf_loss(model, ids, n, layer, entering)[0].sum().backward()
            mass.append(entering.grad.norm(dim=-1).numpy())
        for version, slow in zip(VERSIONS, normalised(mass, spans)):
            np.testing.assert_allclose(found.of("gradient_resid", version)[i], slow, atol=2e-4)


def whole_gradients(model, ids, n):
    """|dL_t/dv| [layer][t, kv_head, token] and |dL_action/d resid_pre| [layer, token] of one plain pass."""
    cache, resid = model.new_cache(), {}

    def keep(layer):
        def hook(tensor):
            resid[layer] = tensor if layer else tensor.detach().requires_grad_()
            return None if layer else resid[layer]

        return hook

    ids = torch.tensor([list(ids)])
    with model.hooks({("resid_pre", layer): keep(layer) for layer in range(model.n_layers)}):
        hidden = model.inner(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]
    loss = -model.logits(hidden[-n - 1 : -1]).log_softmax(-1).gather(1, ids[0, -n:, None])[:, 0]
    values = [v for _, v in layers_of(cache)]
    each = [torch.autograd.grad(loss[t], values, retain_graph=True) for t in range(n)]
    total = torch.autograd.grad(loss.sum(), [resid[layer] for layer in range(model.n_layers)])
    return (
        [torch.stack([grad[0].norm(dim=-1) for grad in of_layer]) for of_layer in zip(*each)],
        np.stack([grad[0].norm(dim=-1).numpy() for grad in total]),
    )


def test_gradients_by_way_of_the_prompts_keys_and_values_are_those_of_one_whole_pass(model, few):
    for prompt in few:
        ids, _, n = parts(prompt)
        found = _gradients(model, _Rows(model, [(ids, n)]))
        values, resid = whole_gradients(model, ids, n)
        for own, whole in zip(found.values, values, strict=True):
            own = own[0].transpose(0, 1)
            torch.testing.assert_close(own, whole, rtol=1e-4, atol=1e-5 * float(whole.max()))
        np.testing.assert_allclose(found.resid[:, 0], resid, rtol=1e-4, atol=1e-5 * resid.max())


@pytest.fixture(scope="module")
def ragged(prompts):
    """Ids and numbers of last tokens of very different rows, the longest sequence neither first nor last."""
    ids, _, _ = parts(prompts[3])
    other, _, n = parts(prompts[1])
    return [(ids[:12], 1), (ids, 9), (other, n), (ids[-60:], 31), (other[:3], 1)]


def close(own, alone):
    """Equal in each definition and layer, to float32's rounding of its largest."""
    largest = alone.max(-1, keepdims=True)
    np.testing.assert_allclose(own / largest, alone / largest, rtol=1e-4, atol=1e-5)


def test_ragged_rows_of_a_batch_are_read_as_each_alone(model, ragged):
    for own, (ids, n) in zip(_masses(model, ragged), ragged, strict=True):
        assert own.shape == (len(DEFINITIONS), model.n_layers, len(ids))
        close(own, token_mass(model, ids, n)[0])


def test_a_batch_may_hold_a_row_that_fills_the_context(tokenizer, ragged):
    """Padding after it has no position of its own, which GPT-2 would have to embed."""
    model = HookedModel(tiny_hf("GPT2", tokenizer, n_positions=len(ragged[1][0])), tokenizer)
    full, other = ragged[1], ragged[3]
    for own, (ids, n) in zip(_masses(model, [full, other]), [full, other], strict=True):
        close(own, token_mass(model, ids, n)[0])


def test_shares_are_the_same_in_batches_of_any_size_and_in_the_order_given(model, prompts, monkeypatch):
    some = [prompts[i] for i in (3, 0, 2, 1)]
    traces = ["I see it. " * 9, None, some[2].decision.trace, "Now."]
    actions = ["go to drawer 1", "take mug 1 from the shelf 1 and then look", "look", "open drawer 11"]
    read = {}
    for tokens, alike in ((1, 1.0), (700, 0.8), (10**6, 0.0)):
        monkeypatch.setattr("interp.measures.shares.READ", tokens)
        monkeypatch.setattr("interp.measures.shares.ALIKE", alike)
        read[tokens] = shares(model, some, traces, actions)
    alone = [shares(model, *([each] for each in row)) for row in zip(some, traces, actions)]
    for found in read.values():
        assert found.prompts == tuple(p.hash for p in some)
        np.testing.assert_allclose(
            found.share, np.concatenate([a.share for a in alone], 2), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(found.token_share, np.concatenate([a.token_share for a in alone], 2))


def test_a_batch_goes_back_once_for_the_tth_token_of_all_its_rows(llama, ragged, monkeypatch):
    backward, passes = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or backward(*a, **k))
    _masses(llama, ragged)
    assert len(passes) == max(n for _, n in ragged)


def test_an_action_that_is_certain_has_no_gradient_and_leaves_its_neighbours_theirs(tokenizer, ragged):
    hf = tiny_hf("Llama", tokenizer)
    hf.lm_head.weight.data *= 1e4
    model = HookedModel(hf, tokenizer)
    certain = list(ragged[0][0])
    for _ in range(2):
        certain.append(int(hf(torch.tensor([certain])).logits[0, -1].argmax()))
    rows = [ragged[2], (certain, 2), ragged[3]]
    own = _masses(model, rows)
    assert own[1][0].any() and not own[1][1:].any()
    for i in (0, 2):
        close(own[i], token_mass(model, *rows[i])[0])
        assert own[i][1:].any((-2, -1)).all()


def test_what_a_row_computes_eagerly_is_judged_on_its_own_tokens(llama, ragged):
    rows = _Rows(llama, [ragged[3], ragged[0]])
    plain = torch.randn(*rows.tail.shape, llama.d_model)
    plain[0] *= 1e6  # beside which an error of the second row is none
    eager = plain.clone()
    eager[1, 1:] += 1
    _check_eager(llama, rows, eager, plain)
    eager[1, 0] += 1
    with pytest.raises(NotImplementedError, match="attending eagerly it computes something else"):
        _check_eager(llama, rows, eager, plain)


def test_nothing_is_computed_of_the_prompt_in_the_last_block(llama, few):
    ids, _, n = parts(few[0])
    ran = []
    last = llama.blocks[-1].mlp
    handle = last.register_forward_pre_hook(lambda module, args: ran.append(args[0].shape[1]))
    try:
        token_mass(llama, ids, n)
    finally:
        handle.remove()
    assert ran == [n + 1, n + 1]  # as loaded, and eagerly


def value_loss(twin, ids, n, layer, edit):
    """-log p of the last n tokens [n] where `edit` [token, kv_head * head_dim] is added to a layer's
    values."""
    handle = twin.model.layers[layer].self_attn.v_proj.register_forward_hook(
        lambda module, args, output: output + edit
    )
    try:
        logits = twin(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        handle.remove()
    return -logits[-n - 1 : -1].log_softmax(-1).gather(1, torch.tensor(ids[-n:])[:, None])[:, 0]


@pytest.fixture(scope="module")
def exact(tokenizer):
    """A Llama with grouped heads, in float64 for differences of the loss."""
    return HookedModel(tiny_hf("Llama", tokenizer).double(), tokenizer)


def test_the_value_gradient_equals_finite_differences_with_grouped_heads(exact, few):
    """Each number of every value is moved up and down, and each action token's loss read again."""
    model, twin, width = exact, eager_twin(exact), 8
    ids, n = few[0].ids[-14:], 3
    with torch.inference_mode():
        alphas = twin(torch.tensor([list(ids)]), output_attentions=True).attentions
        mass = np.zeros((model.n_layers, len(ids)))
        for layer in range(model.n_layers):
            for i in range(len(ids)):
                slope = np.zeros((n, 2 * width))
                for number in range(2 * width):
                    edit = torch.zeros(len(ids), 2 * width, dtype=torch.float64)
                    edit[i, number] = STEP
                    slope[:, number] = (
                        value_loss(twin, ids, n, layer, edit) - value_loss(twin, ids, n, layer, -edit)
                    ).numpy() / (2 * STEP)
                for t in range(n):
                    for head in range(4):
                        shared = head // 2
                        alpha = float(alphas[layer][0, head, len(ids) - n - 1 + t, i])
                        mass[layer, i] += np.linalg.norm(
                            alpha * slope[t, shared * width : (shared + 1) * width]
                        )
    np.testing.assert_allclose(
        token_mass(model, list(ids), n)[0][DEFINITIONS.index("gradient_value")], mass, rtol=2e-3, atol=1e-4
    )


def test_the_value_gradient_equals_autograd_on_the_projection(llama, few):
    twin = eager_twin(llama)
    ids, spans, n = parts(few[0])
    with torch.no_grad():
        alphas = twin(torch.tensor([ids]), output_attentions=True).attentions
    mass = np.zeros((llama.n_layers, len(ids)))
    for layer in range(llama.n_layers):
        edit = torch.zeros(len(ids), 16, requires_grad=True)
        loss = value_loss(twin, ids, n, layer, edit)
        for t in range(n):
            (gradient,) = torch.autograd.grad(loss[t], edit, retain_graph=True)
            for head in range(4):
                alpha = alphas[layer][0, head, len(ids) - n - 1 + t]
                mass[layer] += (alpha[:, None] * gradient.view(-1, 2, 8)[:, head // 2]).norm(dim=-1).numpy()
    got = shares(llama, few[:1])
    for version, slow in zip(VERSIONS, normalised(mass, spans)):
        np.testing.assert_allclose(got.of("gradient_value", version)[0], slow, atol=1e-5)


def test_shares_and_token_shares_sum_to_one(model, found, few):
    assert (
        found.share.shape
        == found.token_share.shape
        == (len(DEFINITIONS), len(VERSIONS), len(few), model.n_layers, len(SPANS))
    )
    np.testing.assert_allclose(found.share.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found.token_share.sum(-1), 1, atol=1e-9)
    assert found.prompts == tuple(p.hash for p in few) and found.weights_hash == model.weights_hash


def test_token_shares_are_those_of_the_tokens_that_can_be_seen(model, found, few):
    """Counted one by one, each layer by its own window; what can be reached, by the tokens that have a
    gradient at all."""
    windows = [model.window if kind == "sliding_attention" else 10**9 for kind in model.layer_types]
    for i, prompt in enumerate(few):
        ids, spans, n = parts(prompt)
        for definition, back in (("attention", 0), ("gradient_value", 1)):
            slow = np.zeros((model.n_layers, len(SPANS)))
            for layer, window in enumerate(windows):
                for row in range(len(ids) - n - back, len(ids) - back):
                    seen = [s for k, s in enumerate(spans) if k <= row and row - k < window]
                    slow[layer] += np.array([seen.count(name) / len(seen) for name in SPANS]) / n
            np.testing.assert_allclose(found.of(definition, metric="token_share")[i], slow, atol=1e-12)
        mass, even = token_mass(model, ids, n)
        gradient, reach = mass[DEFINITIONS.index("gradient_resid")], even[DEFINITIONS.index("gradient_resid")]
        assert ((gradient > 0) == (reach > 0)).all() and not reach[:, -1].any()
        np.testing.assert_allclose(
            found.of("gradient_resid", metric="token_share")[i],
            reach @ members(spans) / reach.sum(1, keepdims=True),
        )


def test_without_the_sink_the_first_position_is_left_out_and_the_rest_renormalised():
    spans = np.array(["template", "template", "task", "boundary", "action"])
    mass = np.array([[[0.6, 0.1, 0.1, 0.0, 0.2]]])
    every, without = by_span(mass, spans)[0, :, 0]
    assert dict(zip(SPANS, every.round(9))) == {
        **dict.fromkeys(SPANS, 0.0),
        "template": 0.7,
        "task": 0.1,
        "action": 0.2,
    }
    assert dict(zip(SPANS, without.round(9))) == {
        **dict.fromkeys(SPANS, 0.0),
        "template": 0.25,
        "task": 0.25,
        "action": 0.5,
    }
    assert np.isnan(by_span(np.zeros((1, 1, 5)), spans)).all()


def test_uniform_attention_has_a_ratio_of_one(tokenizer, few):
    hf = tiny_hf("Llama", tokenizer)
    for block in hf.model.layers:
        block.self_attn.q_proj.weight.data.zero_()
    got = shares(HookedModel(hf, tokenizer), few)
    for version in VERSIONS:
        ratio = got.of("attention", version, "ratio")
        np.testing.assert_allclose(ratio[~np.isnan(ratio)], 1, atol=1e-4)
        assert (np.isnan(ratio) == (got.of("attention", version, "token_share") == 0)).all()


def test_soft_caps_that_bite_are_in_the_patterns(tokenizer, few):
    model = HookedModel(tiny_hf("Gemma2", tokenizer, attn_logit_softcapping=0.5), tokenizer)
    ids, spans, n = parts(few[0])
    with torch.inference_mode():
        mass = np.array(
            [
                p[0, :, -n:].mean((0, 1)).numpy()
                for p in eager_twin(model)(torch.tensor([ids]), output_attentions=True).attentions
            ]
        )
    np.testing.assert_allclose(
        shares(model, few[:1]).of("attention")[0], normalised(mass, spans)[0], atol=2e-5
    )


def state(model):
    hooks = sum(
        len(getattr(m, kind))
        for m in model.hf.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )
    return (
        model.hf.config._attn_implementation,
        hooks,
        model.hf.training,
        [p.requires_grad for p in model.hf.parameters()],
        [p.grad for p in model.hf.parameters()],
    )


def test_the_model_is_left_as_it_was(model, few):
    before, weights = state(model), [p.clone() for p in model.hf.parameters()]
    first = shares(model, few[:1])
    assert state(model) == before and not any(before[3]) and all(g is None for g in before[4])
    assert all(torch.equal(a, b) for a, b in zip(weights, model.hf.parameters()))
    with torch.inference_mode():
        again = shares(model, few[:1])
    np.testing.assert_array_equal(first.share, again.share)


def test_a_pass_that_fails_leaves_the_model_as_it_was(llama, few, monkeypatch):
    before = state(llama)
    monkeypatch.setattr(
        type(llama), "packed", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        shares(llama, few[:1])
    assert state(llama) == before


def test_a_model_that_attends_otherwise_when_eager_is_refused_by_name(tokenizer, few, monkeypatch):
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.repeat_kv", lambda x, n: x.repeat(1, n, 1, 1)
    )  # eager only: the wrong groups
    with pytest.raises(
        NotImplementedError,
        match="LlamaForCausalLM is not supported: attending eagerly it computes something else",
    ):
        shares(model, few[:1])
    assert model.hf.config._attn_implementation == "sdpa"


def test_patterns_that_do_not_sum_to_one_or_are_not_given_are_refused_by_name(tokenizer, few, monkeypatch):
    sinks = HookedModel(tiny("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=8), None)
    with pytest.raises(NotImplementedError, match="GptOssForCausalLM attends to more than its tokens"):
        token_mass(sinks, list(range(3, 33)), 4)
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    monkeypatch.setattr(model.hf, "set_attn_implementation", lambda name: None)
    with pytest.raises(NotImplementedError, match="LlamaForCausalLM gives no attention pattern at layer 0"):
        shares(model, few[:1])
    monkeypatch.setattr(
        model, "support", SimpleNamespace(mediation="plain loop", reason="packed tokens do not come out")
    )
    with pytest.raises(
        NotImplementedError,
        match="LlamaForCausalLM is not supported for shares: packed tokens do not come out",
    ):
        shares(model, few[:1])


def test_a_model_whose_states_depend_on_the_length_is_refused_where_padding_would_change_them(tokenizer, few):
    rope = dict(rope_type="dynamic", rope_theta=1e4, factor=64.0)
    hf = tiny_hf("Llama", tokenizer, max_position_embeddings=64, rope_parameters=rope)
    model = HookedModel(hf, tokenizer)
    assert model.stands_alone(len(few[0].ids))
    with pytest.raises(NotImplementedError, match="is not supported for shares: beyond 64 tokens"):
        shares(model, few)


def test_wrong_requests_are_refused(llama, few, fmt):
    with pytest.raises(ValueError, match="the list of prompts is empty"):
        shares(llama, [])
    with pytest.raises(ValueError, match="3 prompts but 1 traces"):
        shares(llama, few, traces=["a"])
    with pytest.raises(ValueError, match="3 prompts but 2 actions"):
        shares(llama, few, actions=["go", "go"])
    with pytest.raises(ValueError, match="has no action, so nothing reads its spans"):
        shares(llama, [replace(few[0], decision=replace(few[0].decision, reference=""))])
    with pytest.raises(ValueError, match="does not end with '<action>'"):
        shares(llama, few[:1], traces=[fmt.encode("Next I check drawer 1.")])
    with pytest.raises(ValueError, match="this model reads at most 1024"):
        shares(llama, few[:1], traces=["Next I check drawer 1. " * 400])
    found = shares(llama, few[:1])
    for wrong in (
        dict(definition="rollout"),
        dict(definition="attention", version="x"),
        dict(definition="attention", metric="y"),
    ):
        with pytest.raises(ValueError, match="There is no"):
            found.of(**wrong)
    assert METRICS == ("share", "token_share", "ratio")
