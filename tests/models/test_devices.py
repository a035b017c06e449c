"""What fits a GPU, tried on a machine without one."""

from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedConfig

from interp.models import devices
from interp.models.devices import fetched, graph_tokens, halved, pass_tokens, sent


def test_what_does_not_fit_is_halved_in_order_and_one_alone_raises():
    tried = []

    def run(batch):
        tried.append(batch)
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too many")
        return batch

    assert list(halved([[1, 2, 3, 4, 5], [6]], run)) == [[1, 2], [3], [4, 5], [6]]
    assert tried == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5], [6]]

    def never(batch):
        raise torch.OutOfMemoryError("too many")

    with pytest.raises(torch.OutOfMemoryError):
        list(halved([[1, 2]], never))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(ZeroDivisionError):
        list(halved([[1, 2]], lambda batch: 1 / 0))


def placed(*where):
    """A module with a parameter on each of some devices."""
    return SimpleNamespace(parameters=lambda: [SimpleNamespace(device=each) for each in where])


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with so many bytes free, as torch would say it."""

    def with_free(free, share=1.0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 100, 80 * 2**30))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
        config = PreTrainedConfig(intermediate_size=100, attn_implementation="sdpa")
        device, sizes = torch.device("cuda"), dict(d_model=10, n_heads=4)
        return SimpleNamespace(device=device, hf=placed(device), dtype=torch.bfloat16, config=config, **sizes)

    return with_free


def test_a_pass_has_as_many_tokens_as_half_the_free_memory_takes(gpu):
    each = 2 * (4 * 100 + 12 * 10)
    assert pass_tokens(gpu(1000 * each), 50, 8192) == 500
    assert pass_tokens(gpu(60 * 2**30), 50, 8192) == devices.MOST
    eager = gpu(1000 * each)
    eager.config._attn_implementation = "eager"
    assert pass_tokens(eager, 50, 8192) == int(500 * each / (each + 4 * 50 * 6))


def test_a_pass_that_is_gone_back_through_holds_what_each_of_its_blocks_makes(gpu):
    each = 2 * (4 * 100 + 12 * 10)
    model = gpu(1200 * each)
    model.n_layers = 3
    assert graph_tokens(model) == 100


def test_of_several_gpus_the_fullest_says_how_much_is_free(gpu, monkeypatch):
    model = gpu(0)
    model.hf = placed(*(torch.device("cuda", i) for i in range(3)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 - 100 * device.index, 80 * 2**30))
    assert devices.free_for(model) == 800 + 300 - 200


def test_a_process_that_shares_a_gpu_counts_on_its_share_alone(gpu):
    each = 2 * (4 * 100 + 12 * 10)
    share = 1000 * each / (80 * 2**30)
    assert devices.free_bytes(gpu(60 * 2**30, share).device) == pytest.approx(1000 * each - 200, abs=1)
    assert devices.free_bytes(gpu(10_000, share).device) == 10_000


def test_a_pass_on_a_cpu_has_what_is_stated(llama):
    assert pass_tokens(llama, 50, 8192) == 8192


def test_on_a_cpu_tensors_are_where_they_were():
    tensor = torch.arange(3)
    assert sent(tensor, torch.device("cpu")) is tensor and fetched(tensor)() is tensor
