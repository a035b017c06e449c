"""Bad series, weights and tokenizers: each is one sentence that names the file or the field, and leaves
earlier results as they are."""

import json
import os
import re
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import T5Config, ViTConfig

from interp.checkpoints import checks
from interp.checkpoints.series import CheckpointSeries
from tests.checkpoints.test_series import edit, write_gguf
from tests.command_line import main
from tests.conftest import tiny_hf


@pytest.fixture(scope="module")
def good(tokenizer, tmp_path_factory):
    """Series without a fault: `full`, `sharded`, `lora` (over `base`), and `gguf`, each of the steps 4 and
    9."""
    root = tmp_path_factory.mktemp("good")
    base, other = tiny_hf("Llama", tokenizer), tiny_hf("Llama", tokenizer, hidden_size=48)
    for name, hf in dict(base=base, other=other).items():
        hf.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for step in (4, 9):
        for kind, size in dict(full="1GB", sharded="20KB").items():
            base.save_pretrained(root / kind / f"checkpoint-{step}", max_shard_size=size)
            tokenizer.save_pretrained(root / kind / f"checkpoint-{step}")
        (root / "gguf").mkdir(exist_ok=True)
        write_gguf(base, root / "gguf" / f"tiny-{step}.gguf")
        lora(tiny_hf("Llama", tokenizer), root / "lora" / f"checkpoint-{step}")
    tokenizer.save_pretrained(root / "gguf")
    lora(tiny_hf("Llama", tokenizer, hidden_size=48), root / "wide")
    lora(tiny_hf("GPT2", tokenizer), root / "gpt2")
    return root


def lora(hf, out):
    get_peft_model(hf, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).save_pretrained(
        out
    )
    edit(out / "adapter_config.json", base_model_name_or_path="../../base")


def cut(path, keep=-300):
    path.write_bytes(path.read_bytes()[:keep])


def rewrite(path, change):
    found = load_file(path)
    change(found)
    save_file(found, path, metadata={"format": "pt"})


def weights(change):
    return lambda folder: rewrite(folder / "model.safetensors", change)


def adapter(change):
    return lambda folder: rewrite(folder / "adapter_model.safetensors", change)


def config(name="config.json", **new):
    return lambda folder: edit(folder / name, **new)


def put(name, content=b""):
    return lambda folder: (folder / name).write_bytes(content)


def gone(*names):
    return lambda folder: [(folder / n).unlink() for n in names]


def renamed(old, new):
    def apply(folder):
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)

    return apply


def pipe(name):
    def apply(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def everywhere(change):
    return lambda folder: [change(f) for f in folder.parent.iterdir()]


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


def value(number, name="model.layers.1.mlp.up_proj.weight"):
    return lambda found: found[name].view(-1)[:1].fill_(number)


def shard_of(folder, position=1):
    return sorted(folder.glob("model-*.safetensors"))[position]


def index(change):
    def apply(folder):
        path = folder / "model.safetensors.index.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return apply


def another(name):
    """The adapter of the series' folder replaced by another one."""

    def apply(folder):
        shutil.rmtree(folder)
        shutil.copytree(folder.parents[1] / name, folder)

    return apply


def ids_swapped(folder):
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    ids = found["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(found))


def no_memory(folder):
    pytest.MonkeyPatch().setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))


def long_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


LORA, GGUF, INDEX = "adapter_model.safetensors", "tiny-9.gguf", "model.safetensors.index.json"
A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

#: name -> the kind of series, what is done to its checkpoint 9 (gguf: to the series' folder), and the words
#: of its sentence.
BAD = {
    "missing shard": (
        "sharded",
        lambda f: shard_of(f).unlink(),
        r"checkpoint-9 has no model-00002-of-\d+.safetensors, a shard that",
    ),
    "damaged shard index": (
        "sharded",
        lambda f: cut(f / INDEX),
        r"checkpoint-9/model.safetensors.index.json is damaged, it is no JSON",
    ),
    "shard index without a map": (
        "sharded",
        index(lambda i: i.pop("weight_map")),
        r"checkpoint-9/model.safetensors.index.json is damaged.*weight_map",
    ),
    "shard index leading elsewhere": (
        "sharded",
        index(lambda i: i["weight_map"].update(x="../x")),
        "the files of its folder",
    ),
    "shard index of a tensor nowhere": (
        "sharded",
        index(lambda i: i["weight_map"].update(more=[*i["weight_map"].values()][0])),
        r"index.json says that 'more' is in model-000",
    ),
    "truncated shard": (
        "sharded",
        lambda f: cut(shard_of(f), -30),
        r"checkpoint-9/model-00002-of-\d+.safetensors cannot be read.*describes",
    ),
    "truncated weights": (
        "full",
        lambda f: cut(f / "model.safetensors"),
        r"checkpoint-9/model.safetensors cannot be read \(its header describes",
    ),
    "half a header": (
        "full",
        lambda f: cut(f / "model.safetensors", 100),
        "checkpoint-9/model.safetensors cannot be read.*no safetensors header",
    ),
    "no safetensors": (
        "full",
        put("model.safetensors", b"not weights, a text"),
        "checkpoint-9/model.safetensors cannot be read.*no safetensors header",
    ),
    "an endless header": ("full", long_header, "checkpoint-9/model.safetensors cannot be read"),
    "empty weights": (
        "full",
        put("model.safetensors"),
        r"checkpoint-9/model.safetensors cannot be read \(it is empty",
    ),
    "weights of no tensors": (
        "full",
        weights(dict.clear),
        "checkpoint-9 do not fit the model: 'model.embed_tokens.weight' is missing",
    ),
    "no weights": ("full", gone("model.safetensors"), "checkpoint-9 has no model.safetensors"),
    "another tokenizer": (
        "full",
        ids_swapped,
        "tokenizer of .*checkpoint-9 is not the one of .*checkpoint-4",
    ),
    "a damaged tokenizer": (
        "full",
        lambda f: cut(f / "tokenizer.json"),
        "checkpoint-9/tokenizer.json cannot be read.*damaged, copy it again",
    ),
    "damaged tokenizers": (
        "full",
        everywhere(lambda f: cut(f / "tokenizer.json")),
        "checkpoint-4/tokenizer.json cannot be read.*damaged",
    ),
    "a damaged tokenizer_config": (
        "full",
        lambda f: cut(f / "tokenizer_config.json", 9),
        "checkpoint-9/tokenizer_config.json is damaged",
    ),
    "no tokenizer": ("full", gone("tokenizer.json"), "checkpoint-9 has no tokenizer.json"),
    "a tokenizer larger than the embedding": (
        "full",
        everywhere(config(vocab_size=100)),
        r"tokenizer of .*checkpoint-4 has \d+ entries.*embeds only 100",
    ),
    "no config": ("full", gone("config.json"), "checkpoint-9 has no config.json"),
    "a damaged config": (
        "full",
        lambda f: cut(f / "config.json", 50),
        "checkpoint-9/config.json is damaged, it is no JSON",
    ),
    "a config of no object": (
        "full",
        put("config.json", b"[1, 2]"),
        "checkpoint-9/config.json is damaged: it holds no JSON object",
    ),
    "a config nested too deeply": (
        "full",
        put("config.json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "checkpoint-9/config.json is damaged, it is nested too deeply",
    ),
    "a config in Latin-1": (
        "full",
        put("config.json", b'{"model_type": "ll\xe9"}'),
        "checkpoint-9/config.json is damaged, it is no text in UTF-8",
    ),
    "a config of gigabytes": (
        "full",
        lambda f: os.truncate(f / "config.json", 2**31),
        "checkpoint-9/config.json has 2,147,483,648 bytes, but at",
    ),
    "a template in Latin-1": (
        "full",
        put("chat_template.jinja", b"\xe9{{ x }}"),
        "checkpoint-9/chat_template.jinja is damaged, it is no text",
    ),
    "special tokens of no object": (
        "full",
        put("special_tokens_map.json", b"[1]"),
        "checkpoint-9/special_tokens_map.json is damaged",
    ),
    "a pipe for weights": (
        "full",
        pipe("model.safetensors"),
        "checkpoint-9/model.safetensors is a named pipe, and should be a file",
    ),
    "a pipe for a tokenizer": (
        "full",
        pipe("tokenizer.json"),
        "checkpoint-9/tokenizer.json is a named pipe, and should be a file",
    ),
    "a folder for a config": (
        "full",
        both(gone("config.json"), lambda f: (f / "config.json").mkdir()),
        "checkpoint-9/config.json is a folder, and should be a file",
    ),
    "a kernel from a hub": (
        "full",
        config(attn_implementation="someone/kernel"),
        "checkpoint-9/config.json names the attention implementation 'someone/kernel' in attn_implementation.*remove it",
    ),
    "a model of rewards": (
        "full",
        config(architectures=["LlamaForSequenceClassification"]),
        "checkpoint-9/config.json describes LlamaForSequenceClassification.*no language model",
    ),
    "a head of values alone": (
        "full",
        weights(lambda t: t.update({"score.weight": t.pop("lm_head.weight")})),
        "'lm_head.weight' is missing.*They hold 'score.weight', a head of values or classes",
    ),
    "a prefix on some tensors": (
        "full",
        weights(lambda t: t.update({"module.x": t.pop("model.norm.weight")})),
        "'model.norm.weight' is missing.*Their names have 'module.'",
    ),
    "an adapter saved unmerged": (
        "full",
        weights(
            lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)})
        ),
        "They hold an adapter that is not merged: save it with merge_and_unload",
    ),
    "training notes of no object": ("full", put("training.json", b"[1]"), "checkpoint-9/training.json"),
    "training notes of another kind": (
        "full",
        put("training.json", b'{"style": 3}'),
        "checkpoint-9/training.json.*style",
    ),
    "training notes cut off": (
        "full",
        put("training.json", b'{"style": "ta'),
        "checkpoint-9/training.json.*no JSON",
    ),
    "weights quantised by no known method": (
        "full",
        config(quantization_config=dict(quant_method="nonesuch")),
        r"quantization_config \(nonesuch\) that transformers does not read: save the model dequantised",
    ),
    "an unknown architecture": (
        "full",
        config(model_type="nonesuch"),
        "checkpoint-9/config.json describes no model that transformers",
    ),
    "a config without a model_type": (
        "full",
        put("config.json", b"{}"),
        "checkpoint-9/config.json describes no model",
    ),
    "another architecture": (
        "full",
        config(model_type="qwen3"),
        "architecture of .*checkpoint-9 .*: model_type is 'qwen3', not 'llama'",
    ),
    "another width": (
        "full",
        config(hidden_size=64),
        "architecture of .*checkpoint-9 .*: hidden_size is 64, not 32",
    ),
    "another rotary base": (
        "full",
        config(rope_parameters=dict(rope_theta=9.0, rope_type="default")),
        "checkpoint-9 .*: rope_parameters",
    ),
    "an impossible config": ("full", everywhere(config(num_attention_heads=0)), "checkpoint-4"),
    "NaN weights": (
        "full",
        weights(value(float("nan"))),
        "checkpoint-9 hold values that are not finite, first in 'model.layers.1.mlp.up_proj",
    ),
    "infinite weights": (
        "full",
        weights(value(float("inf"))),
        "checkpoint-9 hold values that are not finite, first in 'model.layers.1.mlp.up_proj",
    ),
    "extra tensors": (
        "full",
        weights(lambda t: t.update(more=torch.ones(2))),
        "checkpoint-9 do not fit the model: 'more' is extra",
    ),
    "a missing tensor": (
        "full",
        weights(lambda t: t.pop("model.norm.weight")),
        "checkpoint-9 do not fit the model: 'model.norm.weight' is missing",
    ),
    "a tensor of another shape": (
        "full",
        weights(lambda t: t.update({"model.norm.weight": torch.ones(31)})),
        r"checkpoint-9 do not fit the model: 'model.norm.weight' is of shape \[31\], not \[32\]",
    ),
    "fewer layers than the config": (
        "full",
        everywhere(config(num_hidden_layers=4)),
        "checkpoint-4 do not fit the model: 'model.layers.3",
    ),
    "quantised by its config": (
        "full",
        config(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True)),
        r"checkpoint-9/config.json has a quantization_config \(bitsandbytes\).*dequantised",
    ),
    "eight-bit weights": (
        "full",
        weights(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        "checkpoint-9 are quantised: 'model.norm.weight' is kept as I8.*dequantised",
    ),
    "remote code": (
        "full",
        config(auto_map={"AutoModelForCausalLM": "own.Own"}),
        "checkpoint-9/config.json has an auto_map.*trust_remote_code=True",
    ),
    "a tokenizer's remote code": (
        "full",
        config("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}),
        "checkpoint-9/tokenizer_config.json has an auto_map",
    ),
    "an encoder-decoder": (
        "full",
        lambda f: T5Config().save_pretrained(f),
        "checkpoint-9/config.json describes an encoder-decoder.*no boundary",
    ),
    "no language model": (
        "full",
        lambda f: ViTConfig().save_pretrained(f),
        "checkpoint-9/config.json describes no causal language model.*'vit'",
    ),
    "a pickle only": (
        "full",
        renamed("model.safetensors", "pytorch_model.bin"),
        r"checkpoint-9 has no model.safetensors.*pickle is there.*`python -c .*checkpoint-9`",
    ),
    "a bare pickle": (
        "full",
        renamed("model.safetensors", "consolidated.pth"),
        r"Only a pickle.*torch.load.*consolidated.pth .*model.safetensors`",
    ),
    "deepspeed's state only": (
        "full",
        both(gone("model.safetensors"), put("zero_to_fp32.py")),
        r"`python .*zero_to_fp32.py .*checkpoint-9 .*--safe_serialization`",
    ),
    "a trainer's state only": (
        "full",
        both(gone("model.safetensors"), put("optimizer.pt"), put("training_args.bin")),
        "has no model.safetensors. It holds optimizer.pt, training_args.bin",
    ),
    "FSDP shards only": (
        "full",
        renamed("model.safetensors", "actor/model_world_size_2_rank_0.pt"),
        r"`python -m verl.model_merger merge --backend fsdp --local_dir .*-9/actor --target_dir .*actor/huggingface`",
    ),
    "an adapter of another width": (
        "lora",
        another("wide"),
        r"checkpoint-9/adapter_model.safetensors does not fit its base.*is of shape \[48, 4\].*another base",
    ),
    "an adapter of another architecture": (
        "lora",
        another("gpt2"),
        "checkpoint-9/adapter_model.safetensors does not fit its base.*which the base does not have",
    ),
    "an adapter with a gap": (
        "lora",
        adapter(lambda t: t.pop(A)),
        "checkpoint-9/adapter_model.safetensors cannot be merged.*lora_A.weight' is missing",
    ),
    "an adapter of another rank": (
        "lora",
        config("adapter_config.json", r=2),
        "checkpoint-9/adapter_model.safetensors cannot be merged.*size mismatch",
    ),
    "an adapter of other modules": (
        "lora",
        config("adapter_config.json", target_modules=["query"]),
        "checkpoint-9/adapter_model.safetensors cannot be merged.*query",
    ),
    "an adapter that is not finite": (
        "lora",
        adapter(value(float("nan"), A)),
        "checkpoint-9/adapter_model.safetensors cannot be merged",
    ),
    "an adapter of an unknown kind": (
        "lora",
        config("adapter_config.json", peft_type="NONESUCH"),
        "checkpoint-9 is an adapter of kind 'NONESUCH', which is not supported",
    ),
    "a truncated adapter": (
        "lora",
        lambda f: cut(f / LORA),
        "checkpoint-9/adapter_model.safetensors cannot be read",
    ),
    "no base": (
        "lora",
        config("adapter_config.json", base_model_name_or_path="nowhere/at-all"),
        "base 'nowhere/at-all' of the adapter .*checkpoint-9 was found neither",
    ),
    "a base that is not named": (
        "lora",
        config("adapter_config.json", base_model_name_or_path=None),
        "checkpoint-9/adapter_config.json names no base_model",
    ),
    "a base without weights": (
        "lora",
        lambda f: gone("model.safetensors")(f.parents[1] / "base"),
        "base.* has no model.safetensors",
    ),
    "a base in a pickle": (
        "lora",
        lambda f: renamed("model.safetensors", "pytorch_model.bin")(f.parents[1] / "base"),
        "Only a pickle is there",
    ),
    "a damaged adapter_config": (
        "lora",
        lambda f: cut(f / "adapter_config.json", 40),
        "checkpoint-9/adapter_config.json is damaged, it is no JSON",
    ),
    "no adapter weights": ("lora", gone(LORA), "checkpoint-9 has no adapter_model.safetensors"),
    "no adapter_config": (
        "lora",
        gone("adapter_config.json"),
        "checkpoint-9 has adapter_model.safetensors but no adapter_config.json",
    ),
    "a pickled adapter": (
        "lora",
        renamed(LORA, "adapter_model.bin"),
        r"checkpoint-9 has no adapter_model.safetensors.*`python -c .*adapter_model.bin .*adapter_model.safetensors`",
    ),
    "a truncated GGUF": (
        "gguf",
        lambda f: cut(f / GGUF),
        r"tiny-9.gguf cannot be read \(its header describes",
    ),
    "a GGUF's half header": ("gguf", lambda f: cut(f / GGUF, 300), "tiny-9.gguf cannot be read"),
    "no GGUF": (
        "gguf",
        put(GGUF, b"not a model at all"),
        "tiny-9.gguf cannot be read.*does not begin with GGUF",
    ),
    "an empty GGUF": ("gguf", put(GGUF), "tiny-9.gguf cannot be read.*it is empty"),
    "a part of a GGUF": (
        "gguf",
        renamed(GGUF, "tiny-00001-of-00002.gguf"),
        "tiny-00001-of-00002.gguf is one part.*gguf-split",
    ),
    "no checkpoints": (
        "full",
        lambda f: [shutil.rmtree(p) for p in f.parent.iterdir()],
        "No checkpoint-N folders in",
    ),
    "two checkpoints of one step": (
        "full",
        lambda f: shutil.copytree(f, f.parent / "global_step_9"),
        "checkpoint-9 and .*global_step_9 are both checkpoint 9",
    ),
    "not enough memory": (
        "full",
        no_memory,
        r"checkpoint-9 needs [\d.]+ GiB of memory in float32, but cpu has 0.00 GiB free",
    ),
}


def told(capsys, tmp_path, folder, corpus_file, words, step="9"):
    """Run an analysis, and hold its standard error to one sentence and its earlier results to their bytes."""
    run = tmp_path / "run"
    for name in ("tables/behaviour.csv", "tables/behaviour.json", "partial/decoded/x.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"earlier {name}")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    status = main(
        "behaviour",
        "--run",
        run,
        "--series",
        folder,
        "--corpus",
        corpus_file,
        "--device",
        "cpu",
        "--decisions",
        "4",
        "--checkpoints",
        step,
    )
    shown = capsys.readouterr().err
    error = shown[shown.find("error: ") :]
    assert status == 1 and "Traceback" not in shown and error.startswith("error: ") and error.count("\n") == 1
    assert shown == error or re.fullmatch(r"[\s\r]*behaviour: +0%.*\s*", shown[: -len(error)]), (
        shown
    )  # a bar, once weights are read
    assert re.search(words, error.strip(), re.DOTALL), error
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", BAD)
def test_a_bad_series_is_one_sentence_and_leaves_earlier_results(
    good, tmp_path, corpus_file, capsys, monkeypatch, name
):
    kind, change, words = BAD[name]
    monkeypatch.setattr(
        checks.psutil, "virtual_memory", checks.psutil.virtual_memory
    )  # put back what a case changes
    for part in (kind, "base", "wide", "gpt2"):
        shutil.copytree(good / part, tmp_path / part)
    folder = tmp_path / kind
    change(folder if kind == "gguf" else folder / "checkpoint-9")
    told(capsys, tmp_path, folder, corpus_file, words)


@pytest.mark.parametrize(
    "name, words",
    [("notes.txt", "notes.txt is a file, and no checkpoint"), ("nowhere", "No checkpoint-N folders")],
)
def test_a_folder_that_is_none_is_one_sentence(tmp_path, corpus_file, capsys, name, words):
    (tmp_path / "notes.txt").write_text("not a series")
    told(capsys, tmp_path, tmp_path / name, corpus_file, words)


def test_the_series_without_a_fault_are_read(good):
    for kind in ("full", "sharded", "lora", "gguf"):
        assert CheckpointSeries.discover(good / kind).steps[-2:] == [4, 9]
