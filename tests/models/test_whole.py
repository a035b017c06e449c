"""Models and lengths for which nothing may be shared or gone on with: every measurement against whole plain
passes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.engine.capturing import capture
from interp.engine.decoding import choose_each
from interp.engine.generation import continue_each
from interp.engine.packing import score
from interp.measures.attribution import attribute, gradients, whole_gradients
from interp.measures.pairs import continuations, reference_actions
from interp.measures.patching import patch
from interp.measures.reliance import prompt_reliance
from interp.measures.sanity import sanity
from interp.measures.steering import steer
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel
from interp.models.support import named_lengths
from tests.measures.test_patching import difference, far_apart, read, sides

#: Where the rules of the families below change, in tokens: there are prompts on both sides of it.
SWITCH = 80
LONG = dict(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=[1.0] * 4,
    long_factor=[2.0, 4.0, 8.0, 16.0],
    original_max_position_embeddings=SWITCH,
)
#: model type -> what its tiny configuration needs, and how it is read: packed; packed up to SWITCH and whole
#: beyond; never
#: packed, since it counts hook_points in memory; or by plain passes alone, since it keeps a state in place of
#: keys and values.
FAMILIES = {
    "llama": ({}, "packed"),
    "phi3": (
        dict(
            num_hidden_layers=3,
            max_position_embeddings=1024,
            rope_parameters=LONG,
            original_max_position_embeddings=SWITCH,
        ),
        "whole",
    ),
    "dynamic": (
        dict(
            max_position_embeddings=SWITCH,
            rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0),
        ),
        "whole",
    ),
    "ministral3": (
        dict(
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=1e4,
                factor=4.0,
                original_max_position_embeddings=SWITCH,
                llama_4_scaling_beta=0.5,
            )
        ),
        "packed",
    ),
    "llama4_text": (
        dict(
            attention_chunk_size=SWITCH,
            floor_scale=16,
            attn_scale=0.5,
            num_local_experts=2,
            intermediate_size_mlp=64,
            num_hidden_layers=4,
        ),
        "unpacked",
    ),
    "gpt_neo": (dict(attention_types=[[["global", "local"], 2]], window_size=SWITCH), "unpacked"),
    "qwen3_next": (
        dict(
            num_hidden_layers=4,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
        "plain",
    ),
    "mamba": ({}, "plain"),
    "jamba": (
        dict(
            num_hidden_layers=4,
            attn_layer_offset=1,
            attn_layer_period=2,
            mamba_d_state=8,
            mamba_dt_rank=4,
            num_experts=2,
            use_mamba_kernels=False,
        ),
        "plain",
    ),
    "falcon_h1": (
        dict(
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=16,
        ),
        "plain",
    ),
    "lfm2": (dict(num_hidden_layers=4, full_attn_idxs=[1, 3]), "plain"),
}


def made(name, tokenizer, **extra):
    own, _ = FAMILIES[name]
    hf = tiny(
        "llama" if name == "dynamic" else name,
        vocab_size=len(tokenizer),
        **{"max_position_embeddings": 1024, **own, **extra},
    )
    return HookedModel(hf, tokenizer)


@pytest.fixture(scope="module", params=FAMILIES)
def named(request, tokenizer):
    return request.param, made(request.param, tokenizer)


@pytest.fixture(scope="module")
def some(prompts):
    """Prompts on both sides of SWITCH: two of one episode, two of another."""
    found = [*prompts[:2], *prompts[4:6]]
    assert (
        sorted(len(p.ids) > SWITCH for p in found) == [False, False, True, True]
        and min(len(p.ids) for p in found) < SWITCH - 20
    )
    return found


@pytest.fixture(scope="module")
def pairs(prompts, llama):
    """One pair on each side, the last tokens of which differ."""
    actions = [p.decision.reference for p in prompts[:2]]
    others = [a[:-1] + "12"[a.endswith("1")] for a in actions]
    return [
        far_apart([(p, replace(p, decision=replace(p.decision, reference=other)))], llama, from_=-12)
        for p, other in zip(prompts, others)
    ]


@torch.inference_mode()
def logp(model, ids):
    return model.hf(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


@torch.inference_mode()
def test_boundaries_are_those_of_a_pass_over_each_prompt_alone(named, some):
    _, model = named
    acts = capture(model, some, ["resid_pre"])
    for i, prompt in enumerate(some):
        entering = []
        handles = [
            block.register_forward_pre_hook(
                lambda module, args, kwargs: entering.append((*args, *kwargs.values())[0][0, -1]),
                with_kwargs=True,
            )
            for block in model.blocks
        ]
        model.hf(torch.tensor([prompt.ids]), use_cache=False)
        [handle.remove() for handle in handles]
        torch.testing.assert_close(acts.values[i, 0], torch.stack(entering), rtol=1e-3, atol=1e-3)


def test_decoding_is_the_argmax_of_whole_passes(named, fmt, some):
    _, model = named
    suffixes = dict(
        a=[fmt.mode_prefix("cot")] * len(some), b=[None, *[fmt.with_trace("I look.")] * (len(some) - 1)]
    )
    found = continue_each(model, [p.ids for p in some], suffixes, lambda ids: False, 3)
    for name, rows in suffixes.items():
        for prompt, suffix, continuation in zip(some, rows, found[name]):
            if suffix is None:
                assert continuation is None
                continue
            ids = [*prompt.ids, *suffix]
            before = logp(model, ids)
            plain = [float(before[t - 1, ids[t]]) for t in range(len(prompt.ids) + 1, len(ids))]
            assert continuation.logp == pytest.approx(np.mean(plain) if plain else 0, abs=1e-3)
            for token in continuation.ids:
                last = logp(model, ids)[-1]
                assert last.max() - last[token] < 1e-3
                ids.append(token)


def test_a_forced_choice_is_that_of_whole_passes(named, fmt, some):
    _, model = named
    extremes = (min(some, key=lambda p: len(p.ids)), max(some, key=lambda p: len(p.ids)))
    names, traces = ["go to desk 1", "go to drawer 11"], [None, "Hands empty."]
    chosen = choose_each(model, extremes, [names] * 2, [traces] * 2)
    for prompt, found in zip(extremes, chosen):
        found = found[..., 0]
        for row, trace in zip(found, traces):
            ends = [fmt.action_ids(name) for name in names]
            ids = [[*prompt.ids, *fmt.action_prefix(trace), *end] for end in ends]
            plain = [
                sum(
                    float(logp(model, whole)[t - 1, whole[t]])
                    for t in range(len(whole) - len(end), len(whole))
                )
                for whole, end in zip(ids, ends)
            ]
            assert row.tolist() == pytest.approx(plain, abs=1e-3)
    cache = model.read(prompt.ids)
    again = score(
        model, cache, [[*fmt.action_prefix(None), *end] for end in ends], [len(end) for end in ends]
    )
    torch.testing.assert_close(again, found[0], rtol=0, atol=1e-3)


def by_whole_passes(model, pair, layer):
    """(clean, corrupt, denoise, noise) of resid_pre at the boundary; a donor's activation is that of its own
    pass over the same continuation."""
    fmt, at = pair[0].format, pair[0].boundary
    ends = [[*fmt.mode_prefix("prompt"), *fmt.action_ids(p.decision.reference)] for p in pair]

    def put(donor):
        values = iter([read(model, [*donor.ids, *end], "resid_pre", layer, at) for end in ends])

        def edits():
            value = next(values)
            return {
                ("resid_pre", layer): lambda x: torch.cat(
                    [x[:, :at], value.expand(1, 1, -1), x[:, at + 1 :]], 1
                )
            }

        return edits

    clean, corrupt = (difference(model, pair, n, "prompt") for n in ("clean", "corrupt"))
    denoised, noised = (
        difference(model, pair, "corrupt", "prompt", put(pair[0])),
        difference(model, pair, "clean", "prompt", put(pair[1])),
    )
    return clean, corrupt, (denoised - corrupt) / (clean - corrupt), (clean - noised) / (clean - corrupt)


def test_patching_at_the_boundary_is_that_of_whole_passes_and_says_its_path(named, pairs):
    name, model = named
    way = FAMILIES[name][1]
    for pair in pairs[way == "plain" :]:
        sweep = patch(model, *sides([pair]), minimum=-1e9)
        gap = abs(sweep.clean[0] - sweep.corrupt[0])
        for layer in (1, model.n_layers - 1):
            slow = by_whole_passes(model, pair, layer)
            fast = (sweep.clean[0], sweep.corrupt[0], sweep.denoise[0, 0, layer], sweep.noise[0, 0, layer])
            assert fast == pytest.approx(slow, abs=2e-3 * max(1, 1 / gap))
    wanted = {"packed": "packed", "whole": f"plain loop: beyond {SWITCH} tokens"}.get(
        way, f"plain loop: {model.support.reason}"
    )
    assert len(pair[0].ids) > SWITCH and sweep.path.startswith(wanted)
    assert way != "unpacked" or "packed tokens do not come out" in sweep.path
    checked = sanity(model, *sides(pairs[:1]))
    assert checked.self_patch < 1e-3 and checked.everything < 1e-3


def test_prompt_reliance_is_exact_or_refused_by_name(named, pairs):
    name, model = named
    if FAMILIES[name][1] == "plain":
        with pytest.raises(
            NotImplementedError, match=f"{model.architecture} is not supported for prompt reliance: it has"
        ):
            prompt_reliance(model, *sides(pairs))
        return
    found = prompt_reliance(model, *sides(pairs), minimum=-1e9)
    slow = [difference(model, p, "clean", "cot") - difference(model, p, "corrupt", "cot") for p in pairs]
    np.testing.assert_allclose(found.total, slow, atol=2e-3)


@pytest.mark.parametrize("name", ["phi3", "lfm2"])
def test_steering_past_the_switch_is_exact_at_alpha_zero_and_does_something(tokenizer, some, name):
    model = made(name, tokenizer)
    vector = np.random.default_rng(0).standard_normal((1, model.d_model))
    found = steer(
        model,
        some[:2],
        {"random": vector},
        1,
        target="x",
        position="everywhere",
        alphas=(0.0, 9.0),
        max_new_tokens=2,
    )
    assert found.path.startswith("plain loop") and not found.resample.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name, path",
    [
        ("llama", "fast"),
        ("qwen3", "fast"),
        ("gemma2", "fast"),
        ("gemma3_text", "fast"),
        ("phi3", "fast"),
        ("gpt_neo", "plain loop"),
        ("bloom", "plain loop"),
        ("llama4_text", "plain loop"),
    ],
)
def test_the_path_is_the_same_in_every_dtype(name, path, dtype):
    """A path is right or wrong by what it computes: in a narrow dtype a wrong one is off by little more than
    its rounding."""
    extra = FAMILIES[name][0] if name in ("phi3", "llama4_text") else {}
    hf = tiny(name, dtype=dtype, **extra)
    before = [p.clone() for p in hf.parameters()]
    model = HookedModel(hf, None)
    assert model.support.patch == model.support.trajectory == path and not model.wide
    assert model.stands_alone(SWITCH + 1) == (name == "phi3")
    assert all(
        a.dtype == dtype and torch.equal(a, b) for a, b in zip(hf.parameters(), before)
    )  # as they were


def test_a_pass_does_not_depend_on_those_before_it(tokenizer):
    """Dynamic rotary frequencies stay those of the longest sequence seen, unless they are set back."""
    model = made("dynamic", tokenizer)
    ids = list(range(20, 20 + SWITCH + 10))
    first = logp(model, ids)
    logp(model, ids * 2)
    assert torch.equal(logp(model, ids), first) and model.context == 4 * SWITCH


def test_the_lengths_of_a_configuration_are_found_by_their_names():
    assert named_lengths(tiny("phi3", **FAMILIES["phi3"][0]).config) == [
        8,
        SWITCH,
        1024,
    ]  # its window, its switch, its context
    assert SWITCH in named_lengths(tiny("gpt_neo", **FAMILIES["gpt_neo"][0]).config)
    assert {16, SWITCH} <= set(named_lengths(tiny("llama4_text", **FAMILIES["llama4_text"][0]).config))


def test_a_model_that_looks_ahead_is_refused_by_name():
    hf = tiny("llama")
    for layer in hf.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(
        NotImplementedError,
        match="LlamaForCausalLM is not supported: a token's states depend on the tokens after it",
    ):
        HookedModel(hf, None).support


@pytest.mark.parametrize("name", ["llama", "lfm2", "mamba", "phi3"])
def test_first_order_estimates_from_whole_passes_are_those_from_one_reading(tokenizer, pairs, name):
    """Of a model that can be read on, by both; of the others, against what patching does where it is close to
    linear."""
    model = made(name, tokenizer)
    if name == "llama":
        actions = [continuations(reference_actions(*pairs[0]), [5, 6])]
        ways = [
            read(model, pairs[0][0].ids, actions, ["resid_pre", "mlp_out"])
            for read in (gradients, whole_gradients)
        ]
        assert ways[0][0] == pytest.approx(ways[1][0], abs=1e-4)
        for k in range(4):
            one, two = (sum(of[k] for _, of in terms[0]) for _, terms in ways)
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
        return
    screen = attribute(model, *sides(pairs[1:]), minimum=-1e9)
    last = attribute(model, *sides(pairs[1:]), ["resid_post"], minimum=-1e9).denoise[
        0, 0, -1
    ]  # read by nothing but the boundary's own token
    assert (
        np.isfinite(screen.denoise).all()
        and np.abs(last[: len(pairs[1][0].ids) - 1]).max() < 1e-4 < np.abs(screen.denoise).max()
    )
