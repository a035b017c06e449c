"""Which architectures are exact is found out by trying, and said."""

import pytest
import torch

from interp.architectures import COLUMNS, FAMILIES, table, tiny
from interp.generation import continue_each
from interp.models import HookedModel
from interp.packing import score
from interp.sweeps import Plain


@pytest.fixture(scope="module")
def found():
    return table().set_index("architecture")


def test_every_family_is_fast_plain_or_refused_with_a_reason(found):
    assert len(found) == len(FAMILIES)
    for column in COLUMNS:
        assert set(found[column]) <= {"fast", "plain loop", "refused"}
    assert (found.reason[found.patch != "fast"] != "").all()
    fast = ["Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3", "GPTNeoX"]
    assert (found.loc[[f"{name}ForCausalLM" for name in fast] + ["GPT2LMHeadModel"], list(COLUMNS)] == "fast").all().all()


def test_what_cannot_be_exact_is_refused_by_name_and_reason(found):
    name = "T5ForConditionalGeneration"
    assert (found.loc[name, list(COLUMNS)] == "refused").all() and "encoder" in found.reason[name]


@pytest.mark.parametrize("name", ["MambaForCausalLM", "Qwen3NextForCausalLM"])
def test_a_model_that_keeps_a_state_is_read_by_plain_passes_and_has_no_keys_to_swap(found, name):
    assert found.loc[name, list(COLUMNS)].tolist() == ["fast", "plain loop", "plain loop", "refused"]
    assert "'linear_attention', which do not keep keys and values of each token" in found.reason[name]


@torch.inference_mode()
def test_an_architecture_with_a_mask_of_its_own_takes_the_plain_loop_and_is_right():
    """GPT-Neo masks by place in memory, not by position: packing would be silently wrong, and it is found out."""
    model = HookedModel(tiny("gpt_neo", **FAMILIES["gpt_neo"]), None)
    assert model.support.patch == "plain loop" and "as in a plain pass" in model.support.reason
    prompt, tails, scored = [5, 9, 60, 33, 7, 12, 44, 3, 71, 20], [[4, 8, 15], [4, 16, 23, 42]], [2, 2]

    def plain(ids, n):
        logp = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logp[t - 1, ids[t]].item() for t in range(len(ids) - n, len(ids)))

    slow = torch.tensor([plain([*prompt, *tail], n) for tail, n in zip(tails, scored)])
    torch.testing.assert_close(score(model, model.read(prompt), tails, scored), slow, rtol=0, atol=1e-4)
    torch.testing.assert_close(Plain(model, prompt, tails, scored).base, slow, rtol=0, atol=1e-4)
    continued = continue_each(model, [prompt, prompt[:4]], dict(a=[[4, 8], None]), lambda ids: ids[-1] == 96, 5)["a"]
    ids = [*prompt, 4, 8]
    for token in continued[0].ids:
        assert token == model.hf(torch.tensor([ids])).logits[0, -1].argmax()
        ids.append(token)
    assert continued[1] is None and len(continued[0].ids) == 5


@torch.inference_mode()
def test_a_wrong_mask_would_be_found_out(monkeypatch):
    """The trial itself: packing that lets a branch see another one is not taken for exact."""
    model = HookedModel(tiny("llama"), None)
    mask = model.mask
    monkeypatch.setattr(model, "mask", lambda visible, at, keys_at: mask(torch.ones_like(visible), at, keys_at))
    assert model.support.patch == "plain loop"

