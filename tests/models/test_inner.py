"""Language models in wrappers, compiled or without a tokenizer; numbers that are not finite; ids that are no
tokens."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

import interp
from interp.checkpoints.series import CheckpointSeries
from interp.engine.cells import Run
from interp.engine.generation import continue_each
from interp.engine.packing import score
from interp.engine.sweeps import Packed
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel
from interp.models.inner import auto_class, in_dtype
from interp.models.untrained import random_twin
from interp.prompts.format import PromptFormat
from tests.conftest import tiny_hf

IDS = torch.arange(20, 60)[None]
VISION = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
    depth=2,
    num_heads=2,
    out_hidden_size=32,
    position_embedding_size=16,
)
ROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2]))
#: wrapper -> what its text section has of its own
WRAPPERS = {
    "gemma3": dict(sliding_window=8),
    "mistral3": dict(model_type="mistral"),
    "qwen2_5_vl": ROPE,
    "qwen3_vl": ROPE,
    "llava": dict(model_type="llama"),
    "internvl": dict(model_type="qwen2"),
    "gemma4": dict(num_kv_shared_layers=0, vocab_size_per_layer_input=600, hidden_size_per_layer_input=4),
}


def wrapper(kind, tokenizer):
    text = (
        dict(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            max_position_embeddings=1024,
            pad_token_id=0,
        )
        | WRAPPERS[kind]
    )
    more = (
        dict(vision_config=dict(model_type="pixtral", head_dim=8, **VISION))
        if kind == "mistral3"
        else dict(vision_config=VISION)
    )
    more = dict(vision_config=dict(model_type="clip_vision_model", **VISION)) if kind == "llava" else more
    config = AutoConfig.for_model(kind, text_config=text, **more)
    torch.manual_seed(0)
    hf = auto_class(config).from_config(config, dtype=torch.float32)
    for parameter in hf.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return hf.eval()


@pytest.mark.parametrize("kind", WRAPPERS)
@torch.inference_mode()
def test_the_language_model_inside_a_wrapper_is_studied(kind, tokenizer, prompts, tmp_path):
    hf = wrapper(kind, tokenizer)
    for step in (0, 5):
        hf.lm_head.weight.data[step] += step
        hf.save_pretrained(tmp_path / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    series = CheckpointSeries.discover(tmp_path)
    assert series.steps == [0, 5] and series.table().parameters.notna().all()
    model = series.load(0, "cpu", "float32")
    series.swap(model, 5)
    whole = hf(input_ids=IDS, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(
        model.logits(model.inner(input_ids=IDS, use_cache=False).last_hidden_state),
        whole.logits,
        rtol=1e-4,
        atol=1e-4,
    )
    values = interp.capture(model, prompts[:2], ["resid_pre", "mlp_out"]).values
    states = hf(
        input_ids=torch.tensor([prompts[0].ids]), use_cache=False, output_hidden_states=True
    ).hidden_states
    torch.testing.assert_close(values[0, 0, 2], states[2][0, -1], rtol=1e-4, atol=1e-4)
    logp = hf(input_ids=torch.tensor([[*IDS[0].tolist(), 7, 9]])).logits[0].log_softmax(-1)
    slow = logp[IDS.shape[1], 9]
    torch.testing.assert_close(
        score(model, model.read(IDS[0].tolist()), [[7, 9]], [1])[0], slow, rtol=0, atol=1e-4
    )


def test_a_compiled_model_is_unwrapped_and_compiled_parts_are_refused(tokenizer):
    hf = tiny_hf("Llama", tokenizer)
    assert HookedModel(torch.compile(hf), tokenizer).hf is hf
    assert HookedModel(torch.nn.DataParallel(hf), tokenizer).hf is hf
    hf.model.layers[1] = torch.compile(hf.model.layers[1])
    with pytest.raises(ValueError, match="model.layers.1 is compiled"):
        HookedModel(hf, tokenizer)
    whole = tiny_hf("Llama", tokenizer)
    whole.compile()
    with pytest.raises(ValueError, match="LlamaForCausalLM is compiled"):
        HookedModel(whole, tokenizer)


def test_a_model_without_a_tokenizer_works_where_none_is_needed(llama, prompts):
    model = HookedModel(llama.hf, None)
    torch.testing.assert_close(
        interp.capture(model, prompts[:2]).values, interp.capture(llama, prompts[:2]).values
    )
    assert model.bridge.tokenizer is None
    with pytest.raises(ValueError, match="no tokenizer"):
        PromptFormat(model.tokenizer)


@pytest.mark.parametrize("wrong", [-1, 10_000])
def test_an_id_that_is_no_token_is_named(llama, prompts, wrong):
    prompt = replace(prompts[0], ids=(*prompts[0].ids[:-1], wrong))
    for run in (
        lambda: interp.capture(llama, [prompt]),
        lambda: interp.decode(llama, [prompt]),
        lambda: llama.read(prompt.ids),
        lambda: score(llama, llama.read([5, 6]), [[3, wrong]], [1]),
        lambda: Packed(llama, [Run(prompt.ids, [[5, 6]], [1])]),
    ):
        with pytest.raises(ValueError, match=f"Token id {wrong} is none of this model's"):
            run()


def test_bidirectional_models_are_refused_and_decoders_of_the_same_kind_served():
    with pytest.raises(NotImplementedError, match="tokens after it"):
        HookedModel(tiny("bert", is_decoder=False), None)
    model = HookedModel(tiny("bert", is_decoder=True), None)
    with torch.inference_mode():
        out = model.hf(IDS, output_hidden_states=True, use_cache=False)
        torch.testing.assert_close(
            model.logits(model.inner(IDS).last_hidden_state), out.logits, rtol=1e-4, atol=1e-4
        )
        seen = {}
        with model.hooks({("resid_post", 1): lambda x: seen.update(x=x.clone())}):
            model.hf(IDS, use_cache=False)
    torch.testing.assert_close(seen["x"], out.hidden_states[2])


def test_numbers_that_are_not_finite_are_named_with_where_they_begin(tokenizer):
    def loud(layer, factor, dtype):
        hf = tiny_hf("Llama", tokenizer)
        hf.model.layers[layer].mlp.down_proj.weight.data *= factor
        return hf.to(dtype)

    with pytest.raises(
        ValueError, match=r"not finite in float16.*'model.layers.1(.mlp.down_proj|)'.*bfloat16 or float32"
    ):
        HookedModel(loud(1, 5e4, torch.float16), tokenizer)
    for dtype in (torch.bfloat16, torch.float32):  # what is advised helps
        assert HookedModel(loud(1, 5e4, dtype), tokenizer).support.capture == "fast"
    with pytest.raises(
        ValueError, match="weights .* not finite in float16, first in 'model.layers.1.mlp.down_proj.weight'"
    ):
        HookedModel(loud(1, 1e9, torch.float16), tokenizer)
    with pytest.raises(ValueError, match="not finite in float32.*No other dtype"):
        HookedModel(loud(1, float("nan"), torch.float32), tokenizer)


def test_a_checkpoint_that_overflows_is_named_after_a_swap_and_at_a_load(tokenizer, tmp_path):
    for step, norm in ((0, 1.0), (7, 1.0), (9, 3e4)):
        hf = tiny_hf("Llama", tokenizer)
        hf.model.norm.weight.data *= norm
        if step == 7:
            hf.model.layers[0].mlp.up_proj.weight.data *= 1e8
        hf.save_pretrained(tmp_path / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    series = CheckpointSeries.discover(tmp_path)
    model = series.load(0, "cpu", "float16")
    before = [p.clone() for p in model.hf.parameters()]
    with pytest.raises(
        ValueError, match="checkpoint-7 are not finite in float16, first 'model.layers.0.mlp.up_proj.weight'"
    ):
        series.swap(model, 7)
    assert model.step == 0 and all(map(torch.equal, before, model.hf.parameters()))
    for go in (lambda: series.swap(model, 9), lambda: series.load(9, "cpu", "float16")):
        with pytest.raises(ValueError, match="checkpoint-9 are not finite in float16.*'model.norm'"):
            go()
    assert series.load(9, "cpu", "bfloat16").step == 9  # what is advised helps


@pytest.mark.parametrize("family", ["inkling2_text", "deepseek_v3", "beam", "llama"])
@torch.inference_mode()
def test_a_narrow_checkpoint_is_what_transformers_loads(family, tokenizer, tmp_path):
    """Some families keep routers and small convolutions in float32, and all of them the frequencies of rotary
    embeddings."""
    hf = tiny(family, vocab_size=len(tokenizer), max_position_embeddings=1024)
    for step in (0, 1):
        hf.lm_head.weight.data[0] += step
        hf.save_pretrained(tmp_path / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    series = CheckpointSeries.discover(tmp_path)
    wanted = type(hf).from_pretrained(tmp_path / "checkpoint-1", dtype=torch.bfloat16)
    swapped = series.swap(series.load(0, "cpu", "bfloat16"), 1)
    found = series.load(1, "cpu", "bfloat16"), swapped, HookedModel(in_dtype(hf, torch.bfloat16), tokenizer)
    for model in found:
        names = dict([*model.hf.named_parameters(), *model.hf.named_buffers()])
        for name, tensor in [*wanted.named_parameters(), *wanted.named_buffers()]:
            assert names[name].dtype == tensor.dtype and torch.equal(names[name], tensor), name
        # Kernels for bfloat16 round by where weights lie in memory.
        logits = [each(IDS, use_cache=False).logits for each in (model.hf, wanted)]
        torch.testing.assert_close(*logits, rtol=0.02, atol=0.02)
    twin = random_twin(found[0])
    assert {n: t.dtype for n, t in twin.hf.state_dict().items()} == {
        n: t.dtype for n, t in wanted.state_dict().items()
    }
    assert all(
        torch.equal(t, dict(wanted.named_buffers())[n])
        for n, t in twin.hf.named_buffers()
        if n.endswith("inv_freq")
    )


def test_a_model_that_was_narrowed_altogether_is_refused_with_advice_that_helps(tmp_path):
    hf = tiny("inkling2_text")
    with pytest.raises(
        ValueError,
        match=r"Inkling2ForCausalLM fails.* keeps .* in float32.*Load the model with from_pretrained",
    ):
        HookedModel(copy.deepcopy(hf).bfloat16(), None)
    hf.save_pretrained(tmp_path)
    assert (
        HookedModel(type(hf).from_pretrained(tmp_path, dtype=torch.bfloat16), None).support.capture == "fast"
    )


def test_an_overflow_on_real_tokens_alone_is_named(tokenizer, prompts):
    hf = tiny_hf("Llama", tokenizer)
    model = HookedModel(hf.half(), tokenizer)
    hf.model.embed_tokens.weight.data[prompts[0].ids[-1]] = 6.4e4 * torch.tensor([1.0, -1.0]).repeat(16)
    hf.model.layers[0].mlp.down_proj.weight.data.fill_(500.0)
    with pytest.raises(
        ValueError, match="activations .* not finite in float16, first resid_post of layer 0 at prompt 0"
    ):
        interp.capture(model, prompts[:1])
    with pytest.raises(ValueError, match="logits .* not finite in float16"):
        continue_each(model, [prompts[0].ids], dict(a=[[5, 6]]), lambda ids: False, 3)


def test_a_twin_of_an_adapted_model_is_its_base_without_the_training(tokenizer):
    model = HookedModel(
        get_peft_model(tiny_hf("Llama", tokenizer), LoraConfig(target_modules=["q_proj"])), tokenizer
    )
    twin = random_twin(model)
    assert (
        twin.architecture == "LlamaForCausalLM" and twin.support.patch == "fast" and model.hook_points["z"][0]
    )
