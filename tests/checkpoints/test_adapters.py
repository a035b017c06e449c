"""Adapters of every kind: what is merged computes as the adapter does unmerged; what cannot be is refused by
name and quickly."""

import copy

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from interp.checkpoints import adapters
from interp.checkpoints.series import CheckpointSeries
from interp.models.hooked import HookedModel
from interp.models.untrained import random_twin
from tests.checkpoints.test_series import IDS, direct, edit, logits
from tests.conftest import tiny_hf

SIZES = dict(num_hidden_layers=2)
MOE = dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1)
BASES = {
    "plain": ("Llama", SIZES),
    "tied": ("Llama", SIZES | dict(tie_word_embeddings=True)),
    "gpt2": ("GPT2", SIZES),
    "qwen3_moe": ("Qwen3Moe", SIZES | MOE),
    "mixtral": ("Mixtral", SIZES | dict(num_local_experts=4, num_experts_per_tok=2)),
}


@pytest.fixture(scope="module")
def bases(tokenizer, tmp_path_factory):
    """name -> folder of a base."""
    root = tmp_path_factory.mktemp("bases")
    for name, (architecture, extra) in BASES.items():
        tiny_hf(architecture, tokenizer, **extra).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in BASES}


def train(base, out, config, rows=0, seed=1):
    """An adapter whose every weight was moved, saved as a trainer saves it; returns the unmerged model."""
    torch.manual_seed(seed)
    hf = direct(base)
    if rows:
        hf.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(hf, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    adapted.save_pretrained(out)
    edit(out / "adapter_config.json", base_model_name_or_path=str(base))
    return adapted


def check_exact(run, base, trained, ids=IDS, again=False):
    """Loaded, swapped out, and (`again`) swapped in again: the trained model's logits, and the base's."""
    series = CheckpointSeries.discover(run)
    model, plain = series.load(5, "cpu", "float32"), logits(direct(base))
    with torch.inference_mode():
        wanted = trained.eval()(ids).logits
        torch.testing.assert_close(model.hf(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits(series.swap(model, 0).hf), plain)
        if again:
            torch.testing.assert_close(series.swap(model, 5).hf(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(trained)[..., :20], plain[..., :20])
    return series


def lora(*modules, **options):
    return LoraConfig(**dict(r=4, task_type="CAUSAL_LM", target_modules=list(modules)) | options)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXACT = {
    "head of tied": ("tied", lora("q_proj", "lm_head")),
    "embedding of tied": ("tied", lora("q_proj", "embed_tokens")),
    "both of tied": ("tied", lora("embed_tokens", "lm_head", use_dora=True)),
    "both of tied, kept tied": ("tied", lora("embed_tokens", "lm_head", ensure_weight_tying=True)),
    "saved head of tied": ("tied", lora("q_proj", modules_to_save=["lm_head"])),
    "saved both of tied": ("tied", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])),
    "saved both, kept tied": (
        "tied",
        lora("q_proj", modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    ),
    "trained tokens of tied": ("tied", lora("q_proj", trainable_token_indices=[20, 21])),
    "trained tokens alone": (
        "plain",
        peft.TrainableTokensConfig(
            task_type="CAUSAL_LM", token_indices=[20, 21], target_modules=["embed_tokens"]
        ),
    ),
    "both of gpt2": ("gpt2", lora("c_attn", "wte", "lm_head")),
    "bias of gpt2": ("gpt2", lora("c_attn", lora_bias=True, fan_in_fan_out=True)),
    "experts": ("qwen3_moe", lora("q_proj", target_parameters=EXPERTS)),
    "one of the experts": ("qwen3_moe", lora(target_parameters=EXPERTS[1:])),
    "experts' ranks": (
        "mixtral",
        lora("q_proj", target_parameters=EXPERTS, rank_pattern={"experts.down_proj": 8}),
    ),
    "router": ("mixtral", lora("q_proj", target_parameters=["mlp.gate.weight"])),
    "expressions": (
        "plain",
        lora(
            "q_proj",
            target_modules=r".*layers\.\d\.self_attn\.(q|v)_proj",
            exclude_modules=r".*\.0\..*v_proj",
            rank_pattern={r"layers\.1\..*q_proj": 2},
            alpha_pattern={"v_proj": 3},
        ),
    ),
    "pissa": ("plain", lora("q_proj", init_lora_weights="pissa")),
    "loha": ("plain", peft.LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])),
    "lokr": ("plain", peft.LoKrConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])),
    "ia3": (
        "plain",
        peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "oft": ("plain", peft.OFTConfig(task_type="CAUSAL_LM", oft_block_size=8, target_modules=["q_proj"])),
    "vera": ("plain", peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])),
    "adalora": ("plain", peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10)),
    "shira": ("plain", peft.ShiraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])),
}


@pytest.mark.parametrize("how", EXACT)
def test_an_adapter_computes_merged_as_it_does_unmerged(bases, tmp_path, how):
    name, config = EXACT[how]
    trained = train(bases[name], tmp_path / "checkpoint-5", copy.deepcopy(config))
    check_exact(tmp_path, bases[name], trained, again="head of tied" in how)


GROWN = {
    "saved by itself": ("plain", {}),
    "saved by itself, tied": ("tied", {}),
    "saved modules": ("plain", dict(modules_to_save=["embed_tokens", "lm_head"])),
    "saved modules, tied": ("tied", dict(modules_to_save=["embed_tokens", "lm_head"])),
    "adapted embeddings": ("plain", dict(target_modules=["q_proj", "embed_tokens", "lm_head"])),
    "trained tokens": ("plain", dict(trainable_token_indices=[-1, -2])),
    "trained tokens, tied": ("tied", dict(trainable_token_indices=[-1, -2])),
}


def larger(tokenizer, **tokens):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens(tokens or dict(additional_special_tokens=["<new>", "</new>"]))
    return other


@pytest.mark.parametrize("how", GROWN)
def test_tokens_that_a_trainer_added_come_with_the_adapter(bases, tokenizer, tmp_path, how):
    name, options = GROWN[how]
    rows = len(tokenizer) + 2
    options = {k: [rows + i for i in v] if k == "trainable_token_indices" else v for k, v in options.items()}
    trained = train(bases[name], tmp_path / "checkpoint-5", lora("q_proj", **options), rows)
    larger(tokenizer).save_pretrained(tmp_path / "checkpoint-5")
    with pytest.warns(UserWarning, match=f"vocabulary grows in the series .*0: {rows - 2}, 5: {rows}"):
        series = check_exact(
            tmp_path, bases[name], trained, torch.tensor([[20, rows - 1, 30, rows - 2, 21]]), again=True
        )
    model = series.load(0, "cpu", "float32")
    assert len(model.tokenizer) == rows and model.hf.config.vocab_size == rows - 2
    with pytest.raises(
        ValueError, match=f"Token {rows - 1} of the series' tokenizer was added by the trainer"
    ):
        model.hf(torch.tensor([[20, rows - 1]]))
    model.hf(IDS)


def test_a_padding_token_that_is_not_embedded_is_a_note_and_any_other_a_refusal(bases, tokenizer, tmp_path):
    folder = tmp_path / "checkpoint-5"
    trained = train(bases["plain"], folder, lora("q_proj"))
    larger(tokenizer, pad_token="[PAD]").save_pretrained(folder)
    with pytest.warns(UserWarning, match=r"padding token '\[PAD\]' .* is not embedded, and never read"):
        check_exact(tmp_path, bases["plain"], trained)
    larger(tokenizer).save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"checkpoint-5 has \d+ entries, but the model embeds only \d+, and not '<new>'"
    ):
        CheckpointSeries.discover(tmp_path)
    grown = train(bases["plain"], folder, lora("q_proj"), len(tokenizer) + 2)  # the advice
    grown.save_pretrained(folder, save_embedding_layers=True)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(bases["plain"]))
    with pytest.warns(UserWarning, match="vocabulary grows"):
        check_exact(tmp_path, bases["plain"], grown)


@pytest.mark.parametrize("given", [False, True])
def test_a_chain_of_adapters_is_merged_in_order(bases, tmp_path, given):
    below, folder = tmp_path / "sft", tmp_path / "run" / "checkpoint-5"
    first = logits(train(bases["plain"], below, lora("q_proj")))
    merged = PeftModel.from_pretrained(direct(bases["plain"]), below).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    last = logits(train(tmp_path / "merged", folder, lora("q_proj", "v_proj"), seed=2))
    edit(folder / "adapter_config.json", base_model_name_or_path="nowhere/at-all" if given else str(below))
    series = CheckpointSeries.discover(folder.parent, base=below if given else None)
    model = series.load(5, "cpu", "float32")
    torch.testing.assert_close(logits(model.hf), last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(series.swap(model, 0).hf), first, rtol=1e-4, atol=1e-4)
    assert (
        series.notes[1]
        == f"Checkpoint 5 is an adapter merged into {bases['plain']}, after the adapter {below}."
    )
    edit(below / "adapter_config.json", base_model_name_or_path=str(folder))
    with pytest.raises(ValueError, match="is, by way of its base, its own base"):
        CheckpointSeries.discover(folder.parent, base=below if given else None)


@pytest.mark.parametrize("given, how", [("moved", "named"), ("moved", "given"), ("there", "named")])
def test_a_base_that_is_given_belongs_to_the_lowest_adapter_of_a_chain(bases, tmp_path, given, how):
    below, folder = tmp_path / "sft", tmp_path / "run" / "checkpoint-5"
    train(bases["plain"], below, lora("q_proj")).merge_and_unload().save_pretrained(tmp_path / "merged")
    last = logits(train(tmp_path / "merged", folder, lora("v_proj"), seed=2))
    edit(folder / "adapter_config.json", base_model_name_or_path="../../sft")
    if given == "moved":
        edit(below / "adapter_config.json", base_model_name_or_path="somewhere/else")
        with pytest.raises(
            FileNotFoundError,
            match="base 'somewhere/else' of the adapter .*sft was found neither .*give its folder with base=",
        ):
            CheckpointSeries.discover(folder.parent, base=below if how == "given" else None)
    series = CheckpointSeries.discover(folder.parent, base=bases["plain"])  # the advice
    torch.testing.assert_close(logits(series.load(5, "cpu", "float32").hf), last, rtol=1e-4, atol=1e-4)
    assert "after the adapter" in " ".join(series.notes)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_wrapped_names_of_an_adapter_are_read(bases, tmp_path, prefix):
    trained = train(bases["plain"], tmp_path / "checkpoint-5", lora("q_proj"))
    file = tmp_path / "checkpoint-5" / "adapter_model.safetensors"
    where = "base_model.model."
    names = {
        n: n.replace(where, where + prefix) if prefix.startswith("_") else prefix + n for n in load_file(file)
    }
    save_file({names[n]: t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    check_exact(tmp_path, bases["plain"], trained)


SLOW = r"(\w|\.|[a-z])*(\w|[a-z.])*(\w|[a-z.])*\d\d\d"
REFUSED = {
    "prompt tuning": (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        {},
        "kind PROMPT_TUNING, which adds no weights",
    ),
    "prefix tuning": (
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        {},
        "kind PREFIX_TUNING, which adds no weights",
    ),
    "aLoRA": (
        lora("q_proj", alora_invocation_tokens=[20]),
        {},
        "alora_invocation_tokens.*aLoRA.*no one merged model",
    ),
    "a bias without one": (
        lora("q_proj", lora_bias=True),
        {},
        "cannot be merged .*lora_bias.*leave this checkpoint out",
    ),
    "another kind": (lora("q_proj"), dict(peft_type="XLORA"), "kind 'XLORA', which is not supported"),
    "a kind that builds code": (
        lora("q_proj"),
        dict(peft_type="BOFT"),
        "kind 'BOFT', which is not supported",
    ),
    "a kind without a name": (lora("q_proj"), dict(peft_type=None), "kind None, which is not supported"),
    "a start from data": (
        lora("q_proj"),
        dict(init_lora_weights="corda", corda_config=dict(cache_file="/etc/passwd")),
        "init_lora_weights 'corda'",
    ),
    "megatron": (lora("q_proj"), dict(megatron_config={"a": 1}, megatron_core="os"), "sets megatron_config"),
    "a field of later releases": (
        lora("q_proj"),
        dict(brand_new=3),
        "the field 'brand_new', which peft .* does not know",
    ),
    "a slow expression": (
        lora("q_proj"),
        dict(target_modules=SLOW),
        r"expression in target_modules that takes more than 0.1 s",
    ),
    "a slow rank": (
        lora("q_proj"),
        dict(rank_pattern={SLOW: 3}),
        r"expression in rank_pattern that takes more than 0.1 s",
    ),
    "a broken expression": (
        lora("q_proj"),
        dict(target_modules="(("),
        "expression in target_modules that cannot be read",
    ),
    "an expression of nothing": (
        lora("q_proj"),
        dict(target_modules="nothing.*"),
        "target_modules that matches no module",
    ),
    "an expression in a list": (
        lora("q_proj"),
        dict(modules_to_save=[SLOW]),
        "in modules_to_save, where only names of modules are read",
    ),
    "layers by expression": (
        lora("q_proj"),
        dict(layers_pattern=SLOW, layers_to_transform=[1]),
        "in layers_pattern, where only names",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_adapter_that_is_not_read_is_refused_by_name(bases, tmp_path, monkeypatch, why):
    monkeypatch.setattr(adapters, "MATCHING", 0.1)
    config, changes, words = REFUSED[why]
    train(bases["plain"], tmp_path / "checkpoint-5", copy.deepcopy(config))
    edit(tmp_path / "checkpoint-5" / "adapter_config.json", **changes)
    with pytest.raises((ValueError, NotImplementedError), match=words) as caught:
        CheckpointSeries.discover(tmp_path).load(5, "cpu", "float32")
    assert "damaged" not in str(caught.value) and "quantised" not in str(caught.value)


def test_a_merge_that_changes_numbers_is_refused(bases, tmp_path, monkeypatch):
    train(bases["plain"], tmp_path / "checkpoint-5", lora("q_proj"))
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(ValueError, match="does not compute the same merged into its base"):
        CheckpointSeries.discover(tmp_path).load(5, "cpu", "float32")


def test_weights_and_an_adapter_in_one_folder_are_refused(bases, tmp_path):
    train(bases["plain"], tmp_path / "checkpoint-5", lora("q_proj"))
    direct(bases["plain"]).save_pretrained(tmp_path / "checkpoint-5")
    with pytest.raises(ValueError, match="holds both model.safetensors and adapter_model.safetensors"):
        CheckpointSeries.discover(tmp_path)
    (tmp_path / "checkpoint-5" / "model.safetensors").unlink()  # the advice
    CheckpointSeries.discover(tmp_path).load(5, "cpu")


def test_a_base_that_lacks_a_tensor_is_refused_before_anything_is_merged(bases, tokenizer, tmp_path):
    base = tmp_path / "base"
    direct(bases["plain"]).save_pretrained(base)
    tokenizer.save_pretrained(base)
    train(base, tmp_path / "run" / "checkpoint-5", lora("q_proj"))
    state = load_file(base / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="base do not fit the model: 'model.norm.weight' is missing"):
        CheckpointSeries.from_paths([tmp_path / "run" / "checkpoint-5"])


def test_every_kind_of_peft_is_merged_adds_no_weights_or_is_refused():
    known = {kind.value for kind in peft.PeftType}
    assert set(adapters.MERGED) | set(adapters.PROMPTED) <= known
    assert known - {*adapters.MERGED, *adapters.PROMPTED} == {
        "BOFT",
        "BEFT",
        "LILY",
        "POLY",
        "SHADOW",
        "XLORA",
    }


def test_the_random_twin_of_a_peft_model_is_its_bases(bases, tokenizer):
    adapted = get_peft_model(direct(bases["plain"]), lora("q_proj"))
    twin = random_twin(HookedModel(adapted, tokenizer), 3)
    wanted = random_twin(HookedModel(direct(bases["plain"]), tokenizer), 3)
    assert twin.weights_hash == wanted.weights_hash and torch.equal(logits(twin.hf), logits(wanted.hf))
