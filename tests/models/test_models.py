"""Hooked models: hooks, parity with Hugging Face and TransformerLens, checkpoints that load, swap or are
refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.checkpoints.series import CheckpointSeries
from interp.engine.capturing import capture
from interp.models.hooked import HookedModel, pick_device, pick_dtype
from interp.models.site_names import SITES, parse_site
from interp.models.untrained import random_twin
from tests.conftest import tiny_hf

IDS = torch.arange(20, 45)[None]


def run(model, edits):
    with torch.inference_mode(), model.hooks(edits):
        return model.hf(IDS).logits


def test_every_tap_fires_once_and_may_replace_what_it_reads(model):
    every = [(site, layer) for site in model.hook_points for layer in range(model.n_layers)]
    assert set(model.hook_points) >= set(SITES) - {"resid_mid"}
    seen = []
    plain = run(model, {})
    torch.testing.assert_close(run(model, {key: lambda x, key=key: seen.append(key) for key in every}), plain)
    assert sorted(seen) == sorted(every)
    for key in every:
        assert not torch.allclose(run(model, {key: torch.zeros_like}), plain)
        torch.testing.assert_close(run(model, {key: torch.clone}), plain)
    torch.testing.assert_close(run(model, {}), plain)  # no hook is left behind


def test_a_tap_that_is_silent_or_fires_twice_is_named(llama):
    with pytest.raises(RuntimeError, match=r"blocks\.1\.hook_mlp_out did not fire"):
        with llama.hooks({("mlp_out", 1): lambda x: None}):
            pass
    with pytest.raises(RuntimeError, match=r"blocks\.2\.hook_z fired twice"):
        with llama.hooks({("z", 2): lambda x: None}):
            llama.inner(input_ids=IDS)
            llama.inner(input_ids=IDS)
    with pytest.raises(ZeroDivisionError):  # an edit's own error is not hidden
        run(llama, {("z", 0): lambda x: 1 / 0})
    run(llama, {})


@pytest.mark.parametrize(
    "name, site",
    [
        ("resid_pre", ("resid_pre", None)),
        ("blocks.3.hook_resid_mid", ("resid_mid", 3)),
        ("blocks.0.attn.hook_z", ("z", 0)),
        ("blocks.12.hook_attn_out", ("attn_out", 12)),
    ],
)
def test_site_names_are_transformerlens_names(name, site):
    assert parse_site(name) == site


@pytest.mark.parametrize("name", ["nope", "blocks.x.hook_resid_pre", "blocks.1.hook_nope", ""])
def test_unknown_sites_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="resid_pre, resid_mid"):
        parse_site(name)


def read_sites(model):
    found = {}
    run(
        model,
        {
            (site, layer): lambda x, key=(site, layer): found.update({key: x.clone()})
            for site in model.hook_points
            for layer in range(model.n_layers)
        },
    )
    return found


def test_residuals_add_up_and_equal_hugging_faces_hidden_states(model):
    found, n = read_sites(model), model.n_layers
    with torch.inference_mode():
        hidden = model.hf(IDS, output_hidden_states=True).hidden_states
    for layer in range(n):
        torch.testing.assert_close(found["resid_pre", layer], hidden[layer])
        middle = found["resid_pre", layer] + found["attn_out", layer]
        if "resid_mid" in model.hook_points:
            torch.testing.assert_close(found["resid_mid", layer], middle, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found["resid_post", layer], middle + found["mlp_out", layer], rtol=1e-4, atol=1e-4
        )
        if layer + 1 < n:
            torch.testing.assert_close(found["resid_post", layer], hidden[layer + 1])
    norm = next(
        getattr(model.inner, name)
        for name in ("norm", "ln_f", "final_layer_norm")
        if hasattr(model.inner, name)
    )
    torch.testing.assert_close(norm(found["resid_post", n - 1]), hidden[-1])


#: Families whose blocks differ in ways that matter: each must serve the sites exactly, or be refused by name.
FAMILIES = {
    "Qwen2": {},
    "Gemma": {},
    "Gemma2": {},
    "Phi3": {},
    "Olmo2": {},
    "Glm4": {},
    "Starcoder2": {},
    "Cohere": {},
    "Granite": dict(residual_multiplier=0.5, logits_scaling=1.0),
    "Glm": {},
    "StableLm": dict(use_parallel_residual=True),
    "GPTNeoX": dict(),
    "Olmo": {},
    "SmolLM3": {},
    "Helium": {},
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_other_families_are_served_exactly_or_refused_by_name(tokenizer, name):
    hf = tiny_hf(name, tokenizer, "eager", **FAMILIES[name])
    try:
        model = HookedModel(hf, tokenizer)
    except NotImplementedError as error:
        assert name in str(error)
        return
    test_residuals_add_up_and_equal_hugging_faces_hidden_states(model)
    out = model.hf(IDS)
    torch.testing.assert_close(model.logits(model.inner(input_ids=IDS).last_hidden_state), out.logits)


def test_a_site_that_a_model_does_not_have_is_refused_by_name(tokenizer):
    model = HookedModel(tiny_hf("GPTNeoX", tokenizer), tokenizer)
    with pytest.raises(NotImplementedError, match="no resid_mid"):
        run(model, {("resid_mid", 0): lambda x: None})


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The model loaded from a folder, as the bridge needs it."""
    folder = tmp_path_factory.mktemp("bridge") / "checkpoint-0"
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return CheckpointSeries.discover(folder.parent).load(0, "cpu", "float32")


def test_every_site_equals_the_bridges_and_its_parameters_are_shared(saved):
    bridge = saved.bridge
    with torch.inference_mode():
        logits, cache = bridge.run_with_cache(IDS)
        torch.testing.assert_close(logits, saved.hf(IDS).logits, rtol=1e-4, atol=1e-4)
    for (site, layer), value in read_sites(saved).items():
        theirs = cache[f"blocks.{layer}.attn.hook_z" if site == "z" else f"blocks.{layer}.hook_{site}"]
        torch.testing.assert_close(value, theirs.reshape(value.shape), rtol=1e-4, atol=1e-4)
    ours, attention = {p.data_ptr() for p in saved.hf.parameters()}, saved.hf.config._attn_implementation
    assert attention == ("eager" if "Gemma2" in saved.architecture else "sdpa")
    if (
        not {p.data_ptr() for p in bridge.parameters()} <= ours
    ):  # TransformerLens splits a joint projection into copies
        assert saved.architecture.startswith("GPT")
        return
    saved.hf.get_input_embeddings().weight.data[20:45] *= 2
    with torch.inference_mode():
        torch.testing.assert_close(bridge(IDS), saved.hf(IDS).logits, rtol=1e-4, atol=1e-4)


def state(model):
    return [p.clone() for p in model.hf.parameters()]


def same(a, b):
    return all(map(torch.equal, a, b))


def test_the_next_checkpoint_is_read_ahead_and_is_the_same(series, copied):
    model, fresh = series.load(0, "cpu", "float32"), series.load(series.steps[-1], "cpu", "float32")
    series.swap(model, 20, ahead=110)
    assert list(series._ahead) == [110]
    series.swap(model, 110)
    assert same(state(model), state(fresh)) and model.weights_hash == fresh.weights_hash and not series._ahead
    own = CheckpointSeries.discover(copied)
    weights = copied / "checkpoint-110" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    own.swap(model, 20, ahead=110)  # a damaged file that is read ahead is an error only when its turn comes
    before = state(model)
    with pytest.raises(ValueError, match="truncated or damaged"):
        own.swap(model, 110)
    assert same(state(model), before) and model.step == 20


def test_a_swap_in_place_equals_a_fresh_load(series):
    model = series.load(series.steps[0], "cpu", "float32")
    pointers = [p.data_ptr() for p in model.hf.parameters()]
    for step in (*series.steps, *series.steps[::-1]):
        series.swap(model, step)
        fresh = series.load(step, "cpu", "float32")
        assert same(state(model), state(fresh))
        assert (
            (model.step, model.weights_hash)
            == (fresh.step, fresh.weights_hash)
            == (step, series.weights_hash(step))
        )
    assert [p.data_ptr() for p in model.hf.parameters()] == pointers
    assert len({series.weights_hash(s) for s in series.steps}) == len(series.steps)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


def rewrite(change):
    def apply(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def poison(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")


BROKEN = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "nan": rewrite(poison),
    "shape": rewrite(lambda t: t.update({"model.norm.weight": torch.ones(31)})),
    "lacking": rewrite(lambda t: t.pop("model.norm.weight")),
    "extra": rewrite(lambda t: t.update(more=torch.ones(2))),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_failed_swap_leaves_the_model_as_it_was_and_names_the_file(copied, how):
    series = CheckpointSeries.discover(copied)
    model = series.load(0, "cpu", "float32")
    before, label = state(model), (model.step, model.weights_hash)
    BROKEN[how](copied / "checkpoint-20" / "model.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match="checkpoint-20"):
        series.swap(model, 20)
    assert same(state(model), before) and (model.step, model.weights_hash) == label
    with pytest.raises((ValueError, FileNotFoundError), match="checkpoint-20"):
        series.load(20, "cpu", "float32")


def change_json(name, **new):
    def apply(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | new))

    return apply


UNFIT = {
    "tokenizer": (
        lambda f: (f / "tokenizer.json").write_text(
            (f / "tokenizer.json").read_text().replace("drawer", "drewar")
        ),
        "tokenizer",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "damaged config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "width": (change_json("config.json", hidden_size=64), "architecture"),
    "heads": (change_json("config.json", num_attention_heads=8, num_key_value_heads=8), "architecture"),
    "rotary base": (
        change_json("config.json", rope_parameters=dict(rope_theta=99.0, rope_type="default")),
        "architecture",
    ),
    "norm": (change_json("config.json", rms_norm_eps=0.5), "architecture"),
}


@pytest.mark.parametrize("how", UNFIT)
def test_checkpoints_that_do_not_belong_to_one_series_are_refused(copied, how):
    change, words = UNFIT[how]
    change(copied / "checkpoint-20")
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        CheckpointSeries.discover(copied)
    assert "checkpoint-20" in str(caught.value)


def test_what_is_not_there_is_said_in_a_sentence(copied, tmp_path):
    series = CheckpointSeries.discover(copied)
    with pytest.raises(KeyError, match="no checkpoint 7.*0, 20, 110"):
        series.load(7)
    with pytest.raises(FileNotFoundError, match="No checkpoint-N folders"):
        CheckpointSeries.discover(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least one"):
        CheckpointSeries({})
    weights = copied / "checkpoint-20" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(FileNotFoundError, match="pickle is there, which is never read"):
        series.load(20)


def test_a_tokenizer_larger_than_the_embedding_is_refused(copied):
    for folder in copied.iterdir():
        change_json("config.json", vocab_size=100)(folder)
    with pytest.raises(ValueError, match="embeds only 100"):
        CheckpointSeries.discover(copied).load(0)


def test_devices_and_dtypes_are_picked_or_refused(series, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = series.load(0)
    assert model.device.type == "cpu" and model.dtype == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match="no GPU"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="no dtype 'int3'"):
        pick_dtype("int3", torch.device("cpu"))
    with pytest.raises(ValueError, match="gpu"):
        pick_device("gpu")


def test_a_random_twin_is_the_architecture_without_the_training(trained, trained_prompts):
    before = torch.random.get_rng_state()
    twin, again, other = (random_twin(trained, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    shapes, mine = ({name: p.shape for name, p in m.hf.named_parameters()} for m in (trained, twin))
    assert shapes == mine and type(twin.hf) is type(trained.hf) and twin.tokenizer is trained.tokenizer
    assert (
        twin.weights_hash == again.weights_hash != other.weights_hash
        and twin.weights_hash != trained.weights_hash
    )
    read = [
        capture(m, trained_prompts[:3], sites=["resid_post"], at="boundary").values
        for m in (twin, again, other, trained)
    ]
    assert torch.equal(read[0], read[1]) and not any(
        torch.allclose(read[0], each, atol=0.01) for each in read[2:]
    )
