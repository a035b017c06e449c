"""Series of every kind a trainer leaves: what is loaded and swapped equals transformers' and peft's own
reading, bit for bit."""

import json
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from interp.checkpoints import checks
from interp.checkpoints import contents as checkpoints
from interp.checkpoints.differences import differing
from interp.checkpoints.folders import number
from interp.checkpoints.headers import hash_files
from interp.checkpoints.series import CheckpointSeries
from interp.engine.capturing import capture
from interp.engine.decoding import choose, decode
from interp.measures.attribution import attribute
from interp.measures.patching import patch
from interp.models.hooked import HookedModel
from interp.models.untrained import random_twin
from interp.system.paths import ROOT
from tests.conftest import tiny_hf

IDS = torch.arange(20, 45)[None]
FAMILIES = ("Qwen3", "Llama", "Mistral", "Gemma2", "GPT2", "GPTNeoX")
STEPS = (5, 10)
SMOLLM2 = ROOT / "runs" / "smollm2"


@torch.inference_mode()
def logits(hf):
    return hf.eval()(IDS).logits


def direct(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def add_adapter(base, out, seed, **options):
    """A random adapter over a base, saved as a trainer saves it."""
    torch.manual_seed(seed)
    usual = dict(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(direct(base), LoraConfig(**usual | options))
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    adapted.save_pretrained(out)
    return adapted


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tokenizer, tmp_path_factory):
    """The same series kept in every way: a base, adapters over it, and the merged models whole, in shards,
    and as verl keeps them."""
    root = tmp_path_factory.mktemp(request.param)
    tiny_hf(request.param, tokenizer).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    truth = {0: logits(direct(root / "base"))}
    for step in STEPS:
        adapted = add_adapter(root / "base", root / "adapter" / f"checkpoint-{step}", step)
        unmerged = logits(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
        truth[step] = logits(merged)
        torch.testing.assert_close(truth[step], unmerged, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(truth[step], truth[0])
        for kind, inner, size in (
            ("full", "", "1GB"),
            ("sharded", "", "20KB"),
            ("verl", "actor/huggingface", "1GB"),
        ):
            folder = root / kind / f"{'global_step_' if kind == 'verl' else 'checkpoint-'}{step}" / inner
            merged.save_pretrained(folder, max_shard_size=size)
            tokenizer.save_pretrained(folder)
    return root, truth


def discovered(root, kind):
    if kind == "paths":
        folders = root / "base", root / "adapter" / "checkpoint-5", root / "sharded" / "checkpoint-10"
        return CheckpointSeries.from_paths(folders, [0, *STEPS])
    return CheckpointSeries.discover(root / kind)


@pytest.mark.parametrize("kind", ["full", "sharded", "verl", "adapter", "paths"])
def test_every_step_and_every_swap_equals_the_model_loaded_directly(world, kind):
    root, truth = world
    series = discovered(root, kind)
    assert series.steps == ([0, *STEPS] if kind in ("adapter", "paths") else list(STEPS))
    model = series.load(series.steps[0], "cpu", "float32")
    pointers = [p.data_ptr() for p in model.hf.parameters()]
    assert torch.equal(logits(model.hf), truth[series.steps[0]])
    for step in (*STEPS, *series.steps[::-1], STEPS[-1]):
        series.swap(model, step, ahead=STEPS[-1])
        assert torch.equal(logits(model.hf), truth[step]) and model.weights_hash == series.weights_hash(step)
    assert [p.data_ptr() for p in model.hf.parameters()] == pointers
    fresh = series.load(STEPS[-1], "cpu", "float32")
    assert all(map(torch.equal, fresh.hf.state_dict().values(), model.hf.state_dict().values()))
    assert len({series.weights_hash(s) for s in series.steps}) == len(series.steps)


@pytest.fixture
def adapters(small, tmp_path):
    """Two adapters over a base, in folders of one's own; their configuration names the base by its folder
    beside them."""
    shutil.copytree(small, tmp_path / "base")
    for step in STEPS:
        folder = tmp_path / "run" / f"checkpoint-{step}"
        add_adapter(tmp_path / "base", folder, step)
        edit(folder / "adapter_config.json", base_model_name_or_path="../../base")
    return tmp_path / "run"


def edit(path, **new):
    path.write_text(json.dumps(json.loads(path.read_text()) | new))


OPTIONS = {
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "head": dict(modules_to_save=["lm_head"]),
    "bias": dict(bias="all"),
    "embedding": dict(target_modules=["embed_tokens", "q_proj"]),
    "ranks": dict(rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 1}),
    "some layers": dict(target_modules=["q_proj"], layers_to_transform=[1]),
}


@pytest.mark.parametrize("how", OPTIONS)
def test_adapters_of_every_kind_are_merged_as_peft_merges_them(small, tmp_path, how):
    adapted = add_adapter(small, tmp_path / "checkpoint-3", 1, **OPTIONS[how])
    unmerged, merged = logits(adapted), logits(adapted.merge_and_unload(safe_merge=True))
    series = CheckpointSeries.discover(tmp_path)
    model = series.load(3, "cpu", "float32")
    assert torch.equal(logits(model.hf), merged) and series.kind(3) == "adapter"
    torch.testing.assert_close(merged, unmerged, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits(series.swap(model, 0).hf), merged)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_is_merged_in_full_precision_and_rounded_once(adapters, dtype):
    base = AutoModelForCausalLM.from_pretrained(adapters.parent / "base", dtype=torch.float32)
    wanted = PeftModel.from_pretrained(base, adapters / "checkpoint-5").merge_and_unload(safe_merge=True)
    model = CheckpointSeries.discover(adapters).load(5, "cpu", dtype)
    assert model.dtype == getattr(torch, dtype)
    own = dict(model.hf.named_parameters())
    assert all(torch.equal(own[name], each.to(model.dtype)) for name, each in wanted.named_parameters())


def test_a_base_is_found_as_given_beside_the_adapter_or_by_name(adapters, monkeypatch):
    base, config = adapters.parent / "base", adapters / "checkpoint-5" / "adapter_config.json"
    found = CheckpointSeries.discover(adapters).checkpoint(5)
    assert found.base.path.resolve() == base
    edit(config, base_model_name_or_path="base")
    monkeypatch.chdir(adapters.parent)
    assert checkpoints.find(config.parent).base.path == Path("base")
    monkeypatch.chdir("/")
    edit(config, base_model_name_or_path="someone/model")
    monkeypatch.setattr(
        checkpoints,
        "fetch",
        lambda name, revision=None, code=False: base if name == "someone/model" else None,
    )
    assert checkpoints.find(config.parent).base.path == base
    assert CheckpointSeries.discover(adapters, base=base).checkpoint(5).base.path == base


def test_an_adapters_hash_is_its_own_and_its_bases(adapters):
    series = CheckpointSeries.discover(adapters)
    first = [series.weights_hash(s) for s in series.steps]
    assert [series.weights_hash(s) for s in series.steps] == first and len(set(first)) == 3
    edit(adapters / "checkpoint-5" / "adapter_config.json", lora_alpha=16)
    changed = [series.weights_hash(s) for s in series.steps]
    assert [a == b for a, b in zip(first, changed)] == [True, False, True]
    weight = adapters.parent / "base" / "model.safetensors"
    save_file({k: v + 1 for k, v in load_file(weight).items()}, weight, metadata={"format": "pt"})
    assert not {*first, *changed} & {series.weights_hash(s) for s in series.steps}


def test_a_merged_checkpoint_is_full_weights_beside_adapters(adapters, tokenizer):
    merged = PeftModel.from_pretrained(
        direct(adapters.parent / "base"), adapters / "checkpoint-10"
    ).merge_and_unload()
    merged.save_pretrained(adapters / "checkpoint-11")
    tokenizer.save_pretrained(adapters / "checkpoint-11")
    series = CheckpointSeries.discover(
        adapters
    )  # not adapters alone: the base is no checkpoint of this series
    assert series.steps == [5, 10, 11] and [series.kind(s) for s in series.steps] == [
        "adapter",
        "adapter",
        "full",
    ]
    model = series.load(10, "cpu", "float32")
    before = logits(model.hf)
    assert torch.equal(logits(series.swap(model, 11).hf), before)


def permuted(tensor, heads):
    """Rotary halves interleaved, as llama.cpp keeps them."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def write_gguf(hf, path, kind=gguf.GGMLQuantizationType.F32):
    """A GGUF file of a tiny model, as llama.cpp's converter writes it, without a tokenizer."""
    config, name = (
        hf.config,
        dict(mistral="llama", gpt_neox="gptneox").get(hf.config.model_type, hf.config.model_type),
    )
    heads, groups = (
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", config.num_attention_heads),
    )
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or config.n_inner)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if name == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    elif name == "gptneox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
    else:
        writer.add_head_count_kv(groups)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
    if name == "gemma2":
        writer.add_sliding_window(config.sliding_window)
    names = gguf.get_tensor_name_map(
        next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name), config.num_hidden_layers
    )
    for key, tensor in hf.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array, stem = tensor.numpy(), key.rsplit(".", 1)[0]
        if name == "llama" and stem.endswith(("q_proj", "k_proj")):
            array = permuted(array, heads if stem.endswith("q_proj") else groups)
        if name == "gemma2" and "norm" in stem:
            array = array + 1
        if name == "gpt2" and array.ndim == 2 and stem.endswith(("c_attn", "c_proj", "c_fc")):
            array = array.T
        array = np.ascontiguousarray(array, dtype=np.float32)
        own = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            names.get_name(stem) + key[len(stem) :], gguf.quants.quantize(array, own), raw_dtype=own
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPT2", "Gemma2", "Mistral"])
def test_gguf_files_are_dequantised_as_transformers_does_it(tokenizer, tmp_path, name):
    quantised = gguf.GGMLQuantizationType.Q8_0
    extra = {
        "Gemma2": dict(query_pre_attn_scalar=8, tie_word_embeddings=True),
        "Qwen3": dict(head_dim=128),
    }.get(name, {})
    models = {step: tiny_hf(name, tokenizer, **extra) for step in (3, 12)}
    for parameter in models[12].parameters():
        parameter.data.mul_(1.1)
    tokenizer.save_pretrained(tmp_path)
    for (step, hf), kind in zip(models.items(), (gguf.GGMLQuantizationType.F32, quantised)):
        write_gguf(hf, tmp_path / f"tiny-{step:03d}.{kind.name}.gguf", kind)
    options = {}
    if name in (
        "GPT2",
        "Mistral",
    ):  # GPT-2's metadata lack sizes; Mistral's files call it a Llama, and lack its window
        models[3].config.save_pretrained(tmp_path)
        options["config"] = (
            models[3].config
            if name == "GPT2"
            else LlamaConfig(**models[3].config.to_dict() | dict(model_type="llama"))
        )
    series = CheckpointSeries.discover(tmp_path)
    assert series.steps == [3, 12] and list(series.table().dtype) == ["F32", "Q8_0"]
    assert series.notes[1] == "Checkpoint 12 is dequantised from Q8_0 (tiny-012.Q8_0.gguf)."
    model = series.load(3, "cpu", "float32")
    for step in (3, 12, 3):
        series.swap(model, step)
        wanted = direct(tmp_path, gguf_file=series.path(step).name, **options)
        assert torch.equal(logits(model.hf), logits(wanted))
        assert model.weights_hash == hash_files([series.path(step)])
    if name in ("Llama", "Qwen3", "GPT2", "Mistral"):
        torch.testing.assert_close(logits(model.hf), logits(models[3]), rtol=1e-3, atol=1e-3)
    assert next(iter(model.tokenizer("go to drawer 1").input_ids)) == next(
        iter(tokenizer("go to drawer 1").input_ids)
    )


def test_a_gguf_that_transformers_cannot_read_is_refused_by_its_architecture(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tiny_hf("GPTNeoX", tokenizer), tmp_path / "neox-3.gguf")
    with pytest.raises(ValueError, match="neox-3.gguf.*gptneox"):
        CheckpointSeries.discover(tmp_path).load(3, "cpu", "float32")


def test_a_checkpoints_folder_may_hold_one_gguf(tokenizer, tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        tokenizer.save_pretrained(folder)
        hf = tiny_hf("Qwen3", tokenizer)
        write_gguf(hf, folder / "model.gguf")
    series = CheckpointSeries.discover(tmp_path)
    assert series.steps == [1, 2] and series.path(2).name == "model.gguf" and series.kind(2) == "gguf"
    with pytest.raises(
        ValueError, match=r"k_norm.weight' is of shape \[8\], not \[128\].*config.json beside the file"
    ):
        series.load(1, "cpu")  # what transformers takes from a Qwen3's metadata knows no head_dim
    for step in (1, 2):
        hf.config.save_pretrained(tmp_path / f"checkpoint-{step}")
    model = CheckpointSeries.discover(tmp_path).load(2, "cpu", "float32")
    torch.testing.assert_close(logits(model.hf), logits(hf), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(
    not ((SMOLLM2 / "base" / "model.safetensors").exists() and any(SMOLLM2.glob("package/*.gguf"))),
    reason="runs/smollm2 is not there (analyses smollm2 makes it)",
)
def test_the_real_gguf_is_the_base_that_was_made_of_it():
    series = CheckpointSeries.discover(SMOLLM2 / "package")
    assert series.notes == ["Checkpoint 0 is dequantised from Q4_1 (SmolLM2-135M-Instruct.Q4_1.gguf)."]
    model = series.load(0, "cpu", "bfloat16")
    wanted = load_file(SMOLLM2 / "base" / "model.safetensors")
    assert all(torch.equal(p, wanted[n].bfloat16()) for n, p in model.hf.named_parameters())


NAMES = [
    ("run/checkpoint-20", 20),
    ("global_step_7/actor/huggingface", 7),
    ("step12/huggingface", 12),
    ("x/model-100.Q4_K_M.gguf", 100),
    ("m_step5.gguf", 5),
    ("SmolLM2-135M-Instruct.Q4_1.gguf", None),
    ("final", None),
]


@pytest.mark.parametrize("path, step", NAMES)
def test_a_step_is_the_number_at_the_end_of_a_name(path, step):
    assert number(Path(path)) == step


def test_paths_take_their_numbers_their_steps_or_their_positions(copied):
    folders = [copied / f"checkpoint-{s}" for s in (110, 20)]
    assert CheckpointSeries.from_paths(folders).steps == [20, 110]
    assert CheckpointSeries.from_paths(folders, [1, 2]).path(1) == folders[0]
    folders.append((copied / "checkpoint-0").rename(copied / "final"))
    assert CheckpointSeries.from_paths(folders).path(2) == folders[2]
    with pytest.raises(ValueError, match="3 paths, but 2 steps"):
        CheckpointSeries.from_paths(folders, [1, 2])
    with pytest.raises(ValueError, match="both checkpoint 4"):
        CheckpointSeries.from_paths(folders, [1, 4, 4])


def test_a_model_alone_is_a_series_of_one(small, copied):
    assert CheckpointSeries.discover(small).steps == [0]
    assert CheckpointSeries.discover(copied / "checkpoint-20").steps == [20]


def test_the_table_has_a_row_for_each_checkpoint(adapters):
    frame = CheckpointSeries.discover(adapters).table()
    assert list(frame.columns) == ["step", "kind", "dtype", "parameters", "bytes", "path"]
    assert list(frame.kind) == ["full", "adapter", "adapter"] and frame.parameters.nunique() == 1
    assert frame.bytes[1] == (adapters / "checkpoint-5" / "adapter_model.safetensors").stat().st_size


def test_a_tokenizer_written_anew_by_a_trainer_is_the_same(copied):
    path = copied / "checkpoint-20" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(512)
    tokenizer.save(str(path), pretty=False)
    CheckpointSeries.discover(copied)


INERT = [
    dict(use_cache=False, unsloth_version="1", pad_token_id=3, transformers_version="4.0.0"),
    dict(output_router_logits=True),
    dict(attention_dropout=0.1, resid_pdrop=0.1),
    dict(max_position_embeddings=512),
    dict(initializer_range=0.5, router_aux_loss_coef=0.1),
]
COMPUTED = [
    dict(rms_norm_eps=0.1),
    dict(hidden_act="gelu"),
    dict(sliding_window=8),
    dict(attention_bias=True),
    dict(logit_scale=2.0),
    dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0)),
]


@pytest.mark.parametrize("new", INERT)
def test_what_changes_no_forward_pass_is_no_other_architecture(copied, new):
    for step in (0, 20, 110):
        edit(
            copied / f"checkpoint-{step}" / "config.json",
            output_router_logits=False,
            resid_pdrop=0.0,
            router_aux_loss_coef=0.0,
        )
    edit(copied / "checkpoint-20" / "config.json", **new)
    series = CheckpointSeries.discover(copied)
    told = [
        n
        for n in series.notes
        if n.startswith("The configuration of checkpoint 20 differs")
        and all(f"{k} ({v!r}, not" in n for k, v in new.items())
    ]
    assert bool(told) == ("use_cache" not in new)
    assert series.load(0, "cpu").context == min(1024, new.get("max_position_embeddings", 1024))
    assert torch.equal(logits(series.load(20, "cpu", "float32").hf), logits(direct(copied / "checkpoint-20")))


@pytest.mark.parametrize("new", COMPUTED)
def test_what_changes_a_forward_pass_is_refused_with_both_values(copied, new):
    for step in (0, 20, 110):
        edit(copied / f"checkpoint-{step}" / "config.json", sliding_window=None, logit_scale=1.0)
    edit(copied / "checkpoint-20" / "config.json", **new)
    with pytest.raises(ValueError, match=f"checkpoint-20 .*: {[*new][0]} is .*, not "):
        CheckpointSeries.discover(copied)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_the_longest_sequence_decides_where_positions_depend_on_it(kind):
    own = dict(
        model_type="llama", max_position_embeddings=512, rope_parameters=dict(rope_type=kind, rope_theta=1e4)
    )
    assert differing(own, own | dict(max_position_embeddings=1024)) == [
        ("max_position_embeddings", 512, 1024, False)
    ]
    plain = own | dict(rope_parameters=dict(rope_type="default", rope_theta=1e4))
    assert differing(plain, plain | dict(max_position_embeddings=1024)) == [
        ("max_position_embeddings", 512, 1024, True)
    ]
    assert (
        differing(dict(model_type="gpt2", n_positions=8), dict(model_type="gpt2", n_positions=9))[0][3]
        is False
    )


YARN = dict(rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=128)
TYPES = dict(model_type="qwen3", layer_types=["full_attention"] * 2, sliding_window=None)
ALIKE = [
    (
        dict(rope_parameters=dict(type="linear", factor=2.0, rope_theta=1e4)),
        dict(rope_parameters=dict(rope_type="linear", factor=2, rope_theta=10000)),
    ),
    (
        dict(rope_parameters=YARN),
        dict(rope_parameters=YARN | dict(beta_fast=32, beta_slow=1.0, attention_factor=None)),
    ),
    (
        dict(rope_parameters=YARN, max_position_embeddings=512),
        dict(rope_parameters=YARN, max_position_embeddings=1024),
    ),
    (dict(hidden_act="silu"), dict(hidden_act="swish")),
    (TYPES | dict(max_window_layers=28), TYPES | dict(max_window_layers=36)),
    (TYPES, TYPES | dict(sliding_window=4096)),
    (
        dict(model_type="mixtral", router_jitter_noise=0.0),
        dict(model_type="mixtral", router_jitter_noise=0.1),
    ),
]
UNLIKE = [
    (dict(rope_parameters=YARN), dict(rope_parameters=YARN | dict(beta_fast=16))),
    (dict(hidden_act="gelu_new"), dict(hidden_act="gelu_pytorch_tanh")),
    (dict(rope_parameters=YARN), dict(rope_parameters=YARN | dict(mscale=1.0))),
    (dict(model_type="phimoe", router_jitter_noise=0.0), dict(model_type="phimoe", router_jitter_noise=0.1)),
    (dict(model_type="mistral", sliding_window=None), dict(model_type="mistral", sliding_window=4096)),
    (
        {**TYPES, "layer_types": ["full_attention", "sliding_attention"]},
        {**TYPES, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
    ),
]


@pytest.mark.parametrize("own, other", [*ALIKE, *UNLIKE])
def test_one_computation_is_told_however_it_is_written(own, other):
    assert all(inert for *_, inert in differing(own, other)) == ((own, other) in ALIKE)


def test_attention_of_a_package_that_is_not_there_is_torchs_own(copied):
    edit(copied / "checkpoint-20" / "config.json", attn_implementation="flash_attention_2")
    model = CheckpointSeries.discover(copied).load(20, "cpu", "float32")
    assert model.hf.config._attn_implementation in ("sdpa", "flash_attention_2")


def test_differing_templates_are_said_and_the_first_one_is_used(copied):
    changed = copied / "checkpoint-110" / "chat_template.jinja"
    own = changed.read_text()
    changed.write_text(own[:-5] + "another" + own[-5:])
    with pytest.warns(
        UserWarning,
        match=r"checkpoint-110/chat_template.jinja is not the one of the series.*line \d+ is '.*another",
    ):
        series = CheckpointSeries.discover(copied)
    assert series.load(110, "cpu").tokenizer.chat_template == own
    (copied / "checkpoint-0" / "chat_template.jinja").unlink()
    changed.write_text(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            CheckpointSeries.discover(copied).load(0, "cpu").tokenizer.chat_template == own
        )  # a base has none, often


def test_several_dtypes_are_said(copied):
    path = copied / "checkpoint-20" / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"several dtypes: F16 \(0, 110\); BF16 \(20\)"):
        series = CheckpointSeries.discover(copied)
    assert series.load(20, "cpu").dtype == torch.float32


def test_memory_is_looked_at_before_anything_is_loaded(series, adapters, monkeypatch):
    needed = series.blueprint(series.configuration(series.steps[0])).num_parameters() * 4
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: type("M", (), dict(available=needed)))
    series.load(0, "cpu", "float32")
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: type("M", (), dict(available=needed - 1)))
    with pytest.raises(ValueError, match=r"needs 0\.00 GiB of memory in float32, but cpu has 0\.00 GiB free"):
        series.load(0, "cpu", "float32")
    series.load(0, "cpu", "bfloat16")
    lora = CheckpointSeries.discover(adapters)
    monkeypatch.setattr(
        checks.psutil,
        "virtual_memory",
        lambda: type(
            "M", (), dict(available=lora.blueprint(lora.configuration(lora.steps[0])).num_parameters() * 7)
        ),
    )
    lora.load(0, "cpu", "float32")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match="in float32 .its copy .* Merge it on a larger machine"):
            lora.load(5, "cpu", dtype)


@pytest.mark.parametrize("step", [0, 5])
def test_a_device_map_gives_the_same_model(adapters, step):
    series = CheckpointSeries.discover(adapters)
    mapped, plain = (
        series.load(step, "cpu", "float32", device_map={"": "cpu"}),
        series.load(step, "cpu", "float32"),
    )
    assert torch.equal(logits(mapped.hf), logits(plain.hf)) and mapped.weights_hash == plain.weights_hash
    assert torch.equal(logits(series.swap(mapped, 10).hf), logits(series.swap(plain, 10).hf))


def test_accelerates_hooks_change_no_measurement(tokenizer, prompts):
    plain, hf = HookedModel(tiny_hf("Llama", tokenizer), tokenizer), tiny_hf("Llama", tokenizer)
    places = {
        name: "cpu"
        for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "model.layers", "lm_head")
    }
    hf = dispatch_model(hf, places, force_hooks=True)
    hf.hf_device_map = {"model": 0, "lm_head": 1}  # as it were
    mapped = HookedModel(hf, tokenizer)
    assert mapped.support == plain.support and hasattr(mapped.inner, "_hf_hook")
    sides = "You see a mug 1 in a drawer", "You see a pen 1 in a drawer"
    for model in (plain, mapped):
        acts = capture(model, prompts[:6], ("resid_post", "z")).values
        model.found = [acts, model.hf(IDS).logits, choose(model, prompts[0], ("go", "take it"))]
        model.found += [torch.tensor(each.ids) for each in decode(model, prompts[:4], "cot")]
        answers = dict(answers=(" mug", " pen"), minimum=0)
        model.found.append(torch.tensor(patch(model, *sides, at="all", **answers).denoise))
        model.found.append(torch.tensor(attribute(model, *sides, **answers).denoise))
    for one, other in zip(plain.found, mapped.found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_an_untrained_twin_lies_where_its_model_does(tokenizer, monkeypatch):
    hf = tiny_hf("Llama", tokenizer)
    model, given = HookedModel(hf, tokenizer), []
    places = dict.fromkeys((name for name, _ in hf.named_children()), "cpu")
    monkeypatch.setattr("interp.models.inner.dispatch_model", lambda hf, places: given.append(places) or hf)
    plain = random_twin(model, 3)
    assert not given
    hf.hf_device_map = places | {"lm_head": 1}
    twin = random_twin(model, 3)
    assert given == [hf.hf_device_map] and torch.equal(twin.hf(IDS).logits, plain.hf(IDS).logits)


def test_what_a_device_map_puts_off_to_the_disk_is_refused(small):
    with pytest.raises(ValueError, match="was put off to the CPU or the disk"):
        CheckpointSeries.discover(small).load(
            0, "cpu", "float32", device_map={"model": "cpu", "lm_head": "meta"}
        )


def test_names_of_older_releases_are_read(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    path = folder / "model.safetensors"
    inner = {k.removeprefix("model."): v for k, v in load_file(path).items()}
    inner["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(inner, path, metadata={"format": "pt"})
    model = CheckpointSeries.discover(tmp_path).load(1, "cpu", "float32")
    assert torch.equal(logits(model.hf), logits(direct(small)))


def test_two_tensors_that_the_configuration_ties_are_refused(tokenizer, tmp_path):
    folder = tmp_path / "checkpoint-1"
    tiny_hf("Llama", tokenizer, tie_word_embeddings=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="set tie_word_embeddings to false"):
        CheckpointSeries.discover(tmp_path).load(1, "cpu")


CODE = """from transformers import LlamaForCausalLM
class OwnForCausalLM(LlamaForCausalLM):
    pass
"""


def test_code_of_a_checkpoint_runs_only_when_it_is_asked_for_by_name(small, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    (folder / "own.py").write_text(CODE)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.OwnForCausalLM"})
    for call in (
        lambda: CheckpointSeries.discover(tmp_path),
        lambda: CheckpointSeries.from_paths([folder]),
        lambda: CheckpointSeries({1: folder}).load(1, "cpu"),
    ):
        with pytest.raises(ValueError, match="config.json has an auto_map.*trust_remote_code=True"):
            call()
    model = CheckpointSeries.discover(tmp_path, trust_remote_code=True).load(1, "cpu", "float32")
    assert model.architecture == "OwnForCausalLM" and torch.equal(logits(model.hf), logits(direct(small)))


def test_hub_revisions_are_folders_of_the_cache(copied, monkeypatch):
    asked = []

    def fetch(repository, revision=None, code=False):
        asked.append((repository, revision, code))
        return copied / revision

    monkeypatch.setattr(checkpoints, "fetch", fetch)
    series = CheckpointSeries.from_hub("someone/model", ["checkpoint-0", "checkpoint-110"])
    assert (
        series.steps == [0, 110]
        and not asked
        and series.kind(0) == "hub"
        and list(series.table().kind) == ["hub", "hub"]
    )
    model = series.load(0, "cpu", "float32")
    assert model.weights_hash == "someone/model@checkpoint-0" and {r for _, r, _ in asked} == {"checkpoint-0"}
    assert torch.equal(logits(series.swap(model, 110).hf), logits(direct(copied / "checkpoint-110")))
    assert ("someone/model", "checkpoint-110", False) in asked


def test_the_command_that_converts_a_pickle_does(small, tmp_path, monkeypatch):
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.pt").write_bytes(b"")
    adapter = tmp_path / "checkpoint-2"
    add_adapter(small, adapter, 1)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    wanted = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    for path in (folder, adapter):
        with pytest.raises(FileNotFoundError, match="Only a pickle") as caught:
            checkpoints.find(path)
        python, flag, code, *arguments = shlex.split(str(caught.value).split("`")[1])
        assert (python, flag) == ("python", "-c") and "\n" not in str(caught.value)
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        exec(code, {})
    assert torch.equal(
        logits(CheckpointSeries.from_paths([folder]).load(1, "cpu", "float32").hf), logits(direct(small))
    )
    found = load_file(adapter / "adapter_model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


CHANGES = {
    "config": lambda f: edit(f / "config.json", rms_norm_eps=0.5),
    "generation_config": lambda f: edit(f / "generation_config.json", eos_token_id=[2, 7]),
    "tokenizer": lambda f: edit(f / "tokenizer_config.json", eos_token="<other>"),
    "template": lambda f: (f / "chat_template.jinja").write_text("another"),
    "weights": lambda f: save_file(
        {k: v + 1 for k, v in load_file(f / "model.safetensors").items()},
        f / "model.safetensors",
        metadata={"format": "pt"},
    ),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_checkpoints_identity_names_what_changed(copied, part):
    folder = copied / "checkpoint-20"
    if not (folder / "generation_config.json").exists():
        (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    series = CheckpointSeries.discover(copied)
    before = series.identity(20)
    assert before["adapter_config"] == before["code"] == "" and all(before[k] for k in CHANGES)
    edit(folder / "config.json", transformers_version="4.0.0")
    assert series.identity(20) == before == CheckpointSeries.discover(copied).identity(20)
    CHANGES[part](folder)
    after = series.identity(20)
    assert [k for k in before if before[k] != after[k]] == [part]


def test_an_adapters_identity_has_its_configuration_and_code_only_where_it_may_run(adapters):
    series = CheckpointSeries.discover(adapters)
    before = series.identity(5)
    (adapters / "checkpoint-5" / "own.py").write_text("")
    assert (
        before["adapter_config"]
        and before == series.identity(5)
        and series.identity(0)["adapter_config"] == ""
    )
    assert CheckpointSeries.discover(adapters, trust_remote_code=True).identity(5)["code"]
    edit(adapters / "checkpoint-5" / "adapter_config.json", lora_alpha=16)
    assert series.identity(5)["adapter_config"] != before["adapter_config"]
