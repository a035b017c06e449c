"""What other trainers leave: folders by their names, names by their prefixes, quantised weights, and what is
not read with its command."""

import copy
import multiprocessing
import shlex
import shutil
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from interp.checkpoints import contents as checkpoints
from interp.checkpoints import quantised, weights
from interp.checkpoints.quantised import batch_dependent
from interp.checkpoints.series import CheckpointSeries
from interp.training.trainer import finish
from tests.checkpoints.test_series import add_adapter, direct, edit, logits
from tests.conftest import tiny_hf

FOLDERS = [
    ("global_step100_hf", 100),
    ("global_step100", 100),
    ("step_100", 100),
    ("step=100", 100),
    ("epoch_1", 1),
    ("iter_0000100", 100),
    ("checkpoint-100-merged", 100),
    ("checkpoint_100", 100),
    ("my-run-step-100-hf", 100),
    ("global_step_7/policy/hf", 7),
    ("step_3/hf_model", 3),
    ("checkpoint-1e3", 1000),
    ("step_2k", 2000),
    ("checkpoint-10-merged-16bit", 10),
    ("step1000-tokens4B", 1000),
    ("100", 100),
]


@pytest.mark.parametrize("name, step", FOLDERS)
def test_other_trainers_folders_are_found_by_their_step(small, tmp_path, name, step):
    shutil.copytree(small, tmp_path / name)
    assert (
        CheckpointSeries.discover(tmp_path).steps
        == [step]
        == CheckpointSeries.from_paths([tmp_path / name]).steps
    )
    (tmp_path / "logs-3").mkdir()
    assert CheckpointSeries.discover(tmp_path).steps == [step]


def test_of_two_folders_of_one_step_the_one_that_can_be_read_is(small, tmp_path):
    shards = tmp_path / "global_step100"
    shards.mkdir()
    (shards / "mp_rank_00_model_states.pt").write_bytes(b"")
    shutil.copytree(small, tmp_path / "global_step100_hf")
    assert CheckpointSeries.discover(tmp_path).path(100).name == "global_step100_hf"
    shutil.copytree(small, tmp_path / "step_100")
    with pytest.raises(ValueError, match="are both checkpoint 100.*from_paths"):
        CheckpointSeries.discover(tmp_path)
    assert CheckpointSeries.from_paths([tmp_path / "step_100"]).steps == [100]  # the advice
    shutil.copytree(small, tmp_path / "epoch_1")
    with pytest.raises(ValueError, match="holds epoch_1 and .*cannot be put in one order.*from_paths"):
        CheckpointSeries.discover(tmp_path)


def test_a_folder_without_checkpoints_is_told_by_what_it_holds(tmp_path):
    (tmp_path / "wandb").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"No checkpoint-N folders in .* \(it holds wandb\): .*from_paths"
    ):
        CheckpointSeries.discover(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["v0-20250901-101010/checkpoint-10", "output/run/checkpoint-10", "snapshots/0123abc", "checkpoint-final"],
)
def test_checkpoints_further_down_are_named_and_read_when_given(small, tmp_path, name):
    shutil.copytree(small, tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match=r"No checkpoint-N folders in .*: checkpoints lie further down: give \S+\.$"
    ) as caught:
        CheckpointSeries.discover(tmp_path)
    advised = str(caught.value).split()[-1].removesuffix(".")  # the advice
    assert CheckpointSeries.discover(advised).steps == [10 if name.endswith("checkpoint-10") else 0]


def test_checkpoints_without_a_step_are_said_and_links_are_followed(small, tmp_path):
    for name in ("checkpoint-10", "checkpoint-final"):
        shutil.copytree(small, tmp_path / name)
    for name in ("tmp-checkpoint-20", "wandb-latest"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "checkpoint-10")
    with pytest.warns(
        UserWarning, match="^checkpoint-final in .* says no step and is left out: name it checkpoint-N"
    ):
        assert CheckpointSeries.discover(tmp_path).steps == [10]
    (tmp_path / "checkpoint-final").rename(tmp_path / "checkpoint-30")  # the advice
    assert CheckpointSeries.discover(tmp_path).steps == [10, 30]
    (tmp_path / "checkpoint-40").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="checkpoint-40 is a link to .*nowhere, which is not there"):
        CheckpointSeries.discover(tmp_path)


@pytest.mark.parametrize(
    "inner, words",
    [
        ("merged", "It holds a model in a folder of its own: give the path .*checkpoint-5/merged"),
        ("", "has no model.safetensors.index.json, which says what is in model-00001-of-00002.safetensors"),
    ],
)
def test_what_lies_in_a_checkpoint_instead_is_named(small, tmp_path, inner, words):
    folder = shutil.copytree(small, tmp_path / "checkpoint-5" / inner)
    if not inner:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=words):
        CheckpointSeries.discover(tmp_path)
    assert not inner or CheckpointSeries.from_paths([folder]).steps == [0]  # the advice


@pytest.mark.parametrize(
    "names", [["hf_model_0001_0.pt", "hf_model_0002_0.pt"], ["pytorch_model_fsdp.bin"], ["last.ckpt"]]
)
def test_pickles_are_joined_by_the_command_that_is_named(small, tmp_path, names):
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i, name in enumerate(names):
        part = {key: tensor for j, (key, tensor) in enumerate(state.items()) if j % len(names) == i}
        torch.save(dict(state_dict=part) if name.endswith("ckpt") else part, folder / name)
    torch.save({}, folder / "optimizer.pt")
    with pytest.raises(FileNotFoundError, match="Only a pickle is there") as caught:
        checkpoints.find(folder)
    run_python(shlex.split(str(caught.value).split("`")[1]))
    assert torch.equal(
        logits(CheckpointSeries.from_paths([folder]).load(1, "cpu", "float32").hf), logits(direct(small))
    )


def run_python(command):
    """Run `python -c ...` in this process."""
    before, sys.argv = sys.argv, ["-c", *command[3:]]
    try:
        exec(command[2], {})
    finally:
        sys.argv = before


CONVERTED = {
    (
        "actor/dist_ckpt/__0_0.distcp",
        "actor/huggingface/config.json",
    ): r"`python -m verl.model_merger merge --backend megatron --local_dir \S+/actor --target",
    ("actor/model_world_size_8_rank_0.pt",): "`python -m verl.model_merger merge --backend fsdp --local_dir ",
    (
        "mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ): r"`python -m deepspeed.utils.zero_to_fp32 \S+ \S+/step_5_hf --tag step_5 --safe",
    ("mp_rank_00/model_optim_rng.pt",): "Megatron run .*`python -c .*AutoBridge.* BASE ",
    ("common.pt", "__0_0.distcp", ".metadata"): "Megatron run .*AutoBridge",
    ("context/model.yaml", "weights/__0_0.distcp"): "NeMo run .*export_ckpt",
    (
        "policy/weights/__0_0.distcp",
        "config.yaml",
    ): "`uv run examples/converters/convert_dcp_to_hf.py --config=",
    (".metadata", "__0_0.distcp"): "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch ",
    (
        "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "latest",
    ): r"`python -m deepspeed.utils.zero_to_fp32 \S+ \S+ --tag global_step5 --safe",
    ("pytorch_model_fsdp_0/__0_0.distcp",): r"`accelerate merge-weights \S+pytorch_model_fsdp_0 ",
}


@pytest.mark.parametrize("files", CONVERTED)
def test_what_is_not_read_comes_with_its_command(tmp_path, files):
    for name in files:
        (tmp_path / "step_5" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "step_5" / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="step_5.* has no model.safetensors.*" + CONVERTED[files]):
        CheckpointSeries.discover(tmp_path)


def test_shards_of_a_distributed_run_are_joined_by_the_commands_that_are_named(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.checkpoint.save(state, checkpoint_id=folder)
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as caught:
            checkpoints.find(folder)
        command = shlex.split(str(caught.value).split("`")[1])
        if command[1] == "-m":
            dcp_to_torch_save(*command[-2:])
            for shard in folder.glob("*.distcp"):
                shard.unlink()
        else:
            run_python(command)
    assert torch.equal(
        logits(CheckpointSeries.from_paths([folder]).load(1, "cpu", "float32").hf), logits(direct(small))
    )


WRAPPED = {
    "_orig_mod.": lambda n: "_orig_mod." + n,
    "module.": lambda n: "module." + n,
    "base_model.model.": lambda n: "base_model.model." + n,
    "_fsdp_wrapped_module.": lambda n: (
        "_fsdp_wrapped_module."
        + n.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
    ),
    "pretrained_model.": lambda n: "pretrained_model." + n,
    "actor_module.": lambda n: "actor_module." + n,
}


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("head", ["", "v_head.summary.weight"])
def test_a_wrappers_prefix_is_taken_off_and_a_head_of_values_left_aside(small, tmp_path, prefix, head):
    for step in (0, 5):
        shutil.copytree(small, tmp_path / f"checkpoint-{step}")
    path = tmp_path / "checkpoint-5" / "model.safetensors"
    state = {WRAPPED[prefix](n): t * 1.1 for n, t in load_file(path).items()} | (
        {head: torch.ones(1, 32)} if head else {}
    )
    save_file(state, path, metadata={"format": "pt"})
    series = CheckpointSeries.discover(tmp_path)
    model = series.load(0, "cpu", "float32")
    wanted = direct(small)
    for parameter in wanted.parameters():
        parameter.data.mul_(1.1)
    assert torch.equal(logits(series.swap(model, 5).hf), logits(wanted))
    assert f"named with {prefix!r}" in series.notes[0] and len(series.notes) == 1 + bool(head)


@pytest.mark.parametrize("first", ["tied", "untied"])
def test_tied_and_untied_checkpoints_share_one_module(tokenizer, tmp_path, first):
    order = [first, "untied" if first == "tied" else "tied"]
    for step, kind in enumerate(order):
        tiny_hf("Llama", tokenizer, tie_word_embeddings=kind == "tied").save_pretrained(
            tmp_path / f"checkpoint-{step}"
        )
        tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    series = CheckpointSeries.discover(tmp_path)
    model = series.load(0, "cpu", "float32")
    for step in (0, 1, 0):
        assert torch.equal(
            logits(series.swap(model, step).hf), logits(direct(tmp_path / f"checkpoint-{step}"))
        )
    assert model.hf.config.tie_word_embeddings is False


@pytest.mark.parametrize("tied", [True, False])
def test_the_advice_on_tied_embeddings_can_be_followed(tokenizer, tmp_path, tied):
    folder = tmp_path / "checkpoint-1"
    tiny_hf("Llama", tokenizer, tie_word_embeddings=tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    wanted = logits(direct(folder))
    edit(folder / "config.json", tie_word_embeddings=not tied)
    with pytest.raises(ValueError, match=f"set tie_word_embeddings to {str(tied).lower()}"):
        CheckpointSeries.discover(tmp_path).load(1, "cpu", "float32")
    edit(folder / "config.json", tie_word_embeddings=tied)
    assert torch.equal(logits(CheckpointSeries.discover(tmp_path).load(1, "cpu", "float32").hf), wanted)


@pytest.mark.parametrize("token", ["eos_token", "bos_token", "pad_token"])
def test_differing_special_tokens_are_said_and_the_first_ones_are_used(copied, token):
    edit(copied / "checkpoint-110" / "tokenizer_config.json", **{token: "<|user|>"})
    with pytest.warns(
        UserWarning,
        match=f"special tokens of .*checkpoint-110 are not the ones of the series.*{token} is '<.user.>', not ",
    ):
        series = CheckpointSeries.discover(copied)
    assert (
        getattr(series.load(110, "cpu").tokenizer, token)
        == getattr(series.load(0, "cpu").tokenizer, token)
        != "<|user|>"
    )


def test_tokenizers_of_a_series_nest(tokenizer, small, tmp_path):
    for step, token in enumerate(["", "<a>", "<b>"]):
        other = copy.deepcopy(tokenizer)
        other.add_special_tokens(dict(additional_special_tokens=[token] if token else []))
        hf = direct(small)
        hf.resize_token_embeddings(len(other), mean_resizing=False)
        hf.save_pretrained(tmp_path / f"checkpoint-{step}")
        other.save_pretrained(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="tokenizer of .*checkpoint-2 is not the one of .*checkpoint-1"):
        CheckpointSeries.discover(tmp_path)


def test_a_tokenizer_json_is_read_as_it_is_whatever_class_its_model_type_stands_for(tokenizer, tmp_path):
    tiny_hf("Qwen2", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match="read as its tokenizer.json describes it: transformers' Qwen2Tokenizer"
    ):
        own = CheckpointSeries.discover(tmp_path).load(0, "cpu", "float32").tokenizer
    assert own("go to drawer 11")["input_ids"] == tokenizer("go to drawer 11")["input_ids"] and len(
        own
    ) == len(tokenizer)


def test_a_series_is_read_in_a_forked_child(small):
    series = CheckpointSeries.discover(small)
    model = series.load(0, "cpu", "float32")
    series.swap(model, 0, ahead=0)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(
        target=lambda: answers.put(series.swap(series.load(0, "cpu", "float32"), 0).weights_hash)
    )
    child.start()
    assert answers.get(timeout=60) == model.weights_hash
    child.join()


def in_blocks(folder, blocks=32):
    """Weights as fp8 with a scale for each block, and the same dequantised."""
    path, kept, plain = folder / "model.safetensors", {}, {}
    for name, weight in load_file(path).items():
        kept[name] = plain[name] = weight
        if name.endswith("_proj.weight"):
            rows, columns = weight.shape
            split = weight.reshape(rows // blocks, blocks, columns // blocks, blocks)
            scale = split.abs().amax((1, 3)) / 448
            number = (split / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            kept[name], kept[name + "_scale_inv"] = number.reshape(rows, columns), scale
            plain[name] = (number.float() * scale[:, None, :, None]).reshape(rows, columns)
    save_file(kept, path, metadata={"format": "pt"})
    edit(
        folder / "config.json",
        quantization_config=dict(
            quant_method="fp8",
            activation_scheme="dynamic",
            weight_block_size=[blocks, blocks],
            modules_to_not_convert=["lm_head"],
        ),
    )
    return plain


def test_weights_in_fp8_are_dequantised_exactly_and_said(tokenizer, tmp_path):
    truth = {}
    for step in (0, 5):
        hf, folder = tiny_hf("Llama", tokenizer, head_dim=32), tmp_path / f"checkpoint-{step}"
        for parameter in hf.parameters():
            parameter.data.mul_(1 + step / 10)
        hf.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        hf.load_state_dict(in_blocks(folder))
        truth[step] = logits(hf)
    series = CheckpointSeries.discover(tmp_path)
    assert series.notes[0] == "The weights of checkpoint 0 are quantised (fp8), dequantised as it is loaded."
    model = series.load(0, "cpu", "float32")
    for step in (5, 0):
        torch.testing.assert_close(logits(series.swap(model, step).hf), truth[step], rtol=1e-4, atol=1e-4)
    add_adapter(tmp_path / "checkpoint-0", tmp_path / "lora" / "checkpoint-5", 1, target_modules=["lm_head"])
    adapted = CheckpointSeries.discover(tmp_path / "lora")
    assert "dequantised before the merge" in " ".join(adapted.notes)
    assert torch.equal(
        adapted.load(5, "cpu", "float32").hf.model.layers[0].mlp.up_proj.weight,
        model.hf.model.layers[0].mlp.up_proj.weight,
    )


@pytest.mark.parametrize(
    "given, depends",
    [
        (dict(load_in_8bit=True), True),
        (dict(load_in_4bit=True), False),
        (None, False),
        (dict(quant_method="gptq", load_in_8bit=True), False),
    ],
)
def test_eight_bits_of_bitsandbytes_depend_on_the_batch(given, depends):
    from transformers import BitsAndBytesConfig

    assert batch_dependent(given) == depends
    if given and "quant_method" not in given:
        assert batch_dependent(BitsAndBytesConfig(**given)) == depends


@pytest.mark.parametrize(
    "kind, packages",
    [
        ("gptq", "gptqmodel optimum"),
        ("awq", "gptqmodel"),
        ("bitsandbytes", "bitsandbytes"),
        ("compressed-tensors", "compressed-tensors"),
        ("torchao", "torchao"),
    ],
)
def test_quantised_weights_name_the_package_that_reads_them(small, tmp_path, monkeypatch, kind, packages):
    monkeypatch.setattr(quantised, "_installed", lambda package: False)
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    edit(folder / "config.json", quantization_config=dict(quant_method=kind))
    with pytest.raises(
        ImportError,
        match=rf"config.json has a quantization_config \({kind}\).*`pip install {packages}`, or save the model dequantised",
    ):
        CheckpointSeries.discover(tmp_path)


@pytest.mark.parametrize("kind", ["bitnet", "fp8", "metal"])
def test_a_quantization_that_is_left_over_is_told_before_anything_is_loaded(small, tmp_path, kind):
    folder = shutil.copytree(small, tmp_path / "checkpoint-1")
    edit(folder / "config.json", quantization_config=dict(quant_method=kind))
    with pytest.raises(
        ValueError,
        match=rf"config.json has a quantization_config \({kind}\), but the weights beside it are plain numbers: remove",
    ):
        CheckpointSeries.discover(tmp_path)
    edit(folder / "config.json", quantization_config=None)  # the advice
    assert torch.equal(
        logits(CheckpointSeries.discover(tmp_path).load(1, "cpu", "float32").hf), logits(direct(small))
    )


class Packed(torch.nn.Linear):
    """A layer that computes with what it made of its weights, as kernels for packed numbers do."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__(3, 3)
        self.handle = self.weight.detach().clone()

    def forward(self, x):
        return x @ self.handle


def test_what_a_quantised_layer_made_of_its_weights_is_adopted_and_hooks_stay():
    own, other, seen = torch.nn.Sequential(Packed(1)), torch.nn.Sequential(Packed(2)), []
    own[0].register_forward_hook(lambda *_: seen.append(1))
    quantised.adopt(own, other)
    assert torch.equal(own(torch.eye(3)), other(torch.eye(3))) and seen == [1]


def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(
        OSError, match=r"model.safetensors cannot be written \(.*No space left.*make room on its disk"
    ):
        weights.save({}, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="cannot be written .*No space left"):
        finish(SimpleNamespace(train=full), tmp_path, "loss", {})
