"""Adapters as they are shipped: small, close to what was trained, and whole after unpacking."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from analyses.shipped import packing, smollm2


@pytest.fixture
def adapter(tmp_path):
    """A trained adapter's folder: a module of rank 4, its configuration, and what made it."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "q_proj.lora_A.weight": torch.rand(4, 300, generator=generator) - 0.5,
        "q_proj.lora_B.weight": 0.01 * torch.randn(200, 4, generator=generator),
        "v_proj.lora_B.weight": torch.zeros(20, 4),
    }
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    save_file({name: weight.half() for name, weight in weights.items()}, folder / packing.WEIGHTS)
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "training.json").write_text('{"step": 4}')
    return folder


def test_an_unpacked_adapter_is_within_half_a_step_of_the_trained_one(adapter, tmp_path):
    packed = packing.pack(adapter, tmp_path / "shipped")
    assert packed.stat().st_size < 0.6 * (adapter / packing.WEIGHTS).stat().st_size
    weights = load_file(packing.unpack(packed.parent, tmp_path / "series"))
    trained = load_file(adapter / packing.WEIGHTS)
    assert weights.keys() == trained.keys()
    for name, weight in trained.items():
        assert weights[name].dtype == torch.float16
        longer = 1 if "lora_A" in name else 0
        step = weight.float().abs().amax(longer, keepdim=True) / packing.LEVELS
        assert ((weights[name].float() - weight.float()).abs() <= 0.55 * step).all()
    for name in packing.BESIDE:
        assert (tmp_path / "series" / name).read_text() == (adapter / name).read_text()


def test_the_same_adapter_gives_the_same_bytes(adapter, tmp_path):
    first, second = (packing.pack(adapter, tmp_path / name).read_bytes() for name in ("one", "two"))
    assert first == second


def test_a_damaged_file_and_a_weight_that_is_not_finite_are_refused(adapter, tmp_path):
    packed = packing.pack(adapter, tmp_path / "shipped")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ValueError, match="adapter_model.packed.xz is damaged"):
        packing.unpack(packed.parent, tmp_path / "series")
    save_file({"v_proj.lora_B.weight": torch.tensor([[float("inf")]])}, adapter / packing.WEIGHTS)
    with pytest.raises(ValueError, match="'v_proj.lora_B.weight' that is not finite"):
        packing.pack(adapter, tmp_path / "shipped")


def test_the_shipped_adapters_are_those_that_are_studied(tmp_path):
    steps = sorted(int(folder.name.split("-")[1]) for folder in smollm2.SHIPPED.iterdir())
    assert tuple(steps) == smollm2.STUDIED
    folder = smollm2.SHIPPED / "checkpoint-4"
    weights = load_file(packing.unpack(folder, tmp_path))
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    assert len(weights) == 2 * 7 * 30 and all(rank in weight.shape for weight in weights.values())


def test_only_what_was_trained_is_shipped(tmp_path):
    with pytest.raises(ValueError, match="give --retrain as well"):
        smollm2.Config(out=tmp_path).check()
