"""Which architectures are exact is found out by trying, and said: every causal family of the installed transformers is listed."""

import os
from pathlib import Path

import pytest
import torch

from interp.architectures import COLUMNS, FAMILIES, document, families, table, tiny
from interp.generation import continue_each
from interp.models import HookedModel
from interp.packing import score
from interp.sweeps import Cell, Packed, Plain

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
#: The whole walk takes minutes: INTERP_EVERY_ARCHITECTURE=1 walks all families, else these.
SAMPLE = ("llama", "gemma3_text", "granite", "cohere2", "bloom", "gpt_neo", "deepseek_v3", "gpt_oss", "minicpm3", "modernbert-decoder")
WALKED = families() if os.environ.get("INTERP_EVERY_ARCHITECTURE") else SAMPLE


@pytest.fixture(scope="module")
def found():
    return table().set_index("family")


def listed() -> dict[str, list[str]]:
    """Family -> the cells of its row in the committed page."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


def test_every_family_is_fast_plain_or_refused_with_a_reason(found):
    assert list(found.index) == list(FAMILIES)
    for column in COLUMNS:
        assert set(found[column]) <= {"fast", "plain loop", "refused"}
    assert (found.reason[found.patch != "fast"] != "").all()
    fast = ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "granite", "cohere2"]
    assert (found.loc[fast, list(COLUMNS)] == "fast").all().all()
    assert (found.loc["bart", list(COLUMNS)] == "refused").all() and "encoder" in found.reason["bart"]


@pytest.mark.parametrize("family", ["mamba", "qwen3_next"])
def test_a_model_that_keeps_a_state_is_read_by_plain_passes_and_has_no_keys_to_swap(found, family):
    assert found.loc[family, list(COLUMNS)].tolist() == ["fast", "plain loop", "plain loop", "refused"]
    assert "'linear_attention', which do not keep keys and values of each token" in found.reason[family]


def test_the_page_lists_every_family_of_transformers_and_is_what_comes_out(found):
    page = listed()
    assert sorted(page) == families()
    for family, row in found.iterrows():
        assert page[family] == [row.architecture, *(row[c] for c in COLUMNS), row.reason], family
    if os.environ.get("INTERP_EVERY_ARCHITECTURE"):
        assert PAGE.read_text() == document()


def plain(model, ids, n):
    """Log-probability of the last n of some ids, by the model's own forward pass."""
    logp = model.hf(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(logp[t - 1, ids[t]].item() for t in range(len(ids) - n, len(ids)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", WALKED)
@torch.inference_mode()
def test_what_a_family_is_served_equals_plain_passes(family, dtype):
    """Prompts on both sides of the window: states, logits, scores and patched cells; a refusal is a sentence that names the family."""
    try:
        hf = tiny(family).to(dtype)
    except Exception:
        assert listed()[family][1] in ("not built", "refused")
        return
    try:
        model = HookedModel(hf, None)
        assert model.support
    except NotImplementedError as error:
        assert type(hf).__name__ in str(error)
        return
    tails, scored = [[4, 8, 15], [4, 16, 23, 42]], [2, 3]
    # bfloat16's own rounding moves a sum of log-probabilities by this; a wrong mask or position moves it by nats.
    tolerance = 2e-4 if dtype == torch.float32 else 0.5
    for length in (5, 21):
        prompt = [(7 * i + 3) % 97 for i in range(length)]
        slow = torch.tensor([plain(model, [*prompt, *tail], n) for tail, n in zip(tails, scored)])
        torch.testing.assert_close(score(model, model.read(prompt), tails, scored), slow, rtol=0, atol=tolerance)
        sites = [s for s in model.places if all(model.places[s])]
        kind = Packed if model.support.patch == "fast" else Plain
        packed, loop = (k(model, prompt, tails, scored, sites, [length - 1]) for k in (kind, Plain))
        torch.testing.assert_close(packed.base, slow, rtol=0, atol=tolerance)
        cells = [Cell(s, 1, (length - 1,), packed.values[s, 0] * 0.5, slice(None)) for s in sites if model.width(s, 0) == model.width(s, 1)]
        if cells:
            torch.testing.assert_close(packed.patched(cells), loop.patched(cells), rtol=0, atol=tolerance)
    states = model.hf(torch.tensor([prompt]), use_cache=False, output_hidden_states=True).hidden_states
    if states is not None and len(states) == model.n_layers + 1 and "resid_pre" in sites:
        for layer in range(model.n_layers):
            torch.testing.assert_close(packed.values["resid_pre", layer][0].float(), states[layer][0, -1].float(), rtol=1e-3,
                                       atol=1e-4 if dtype == torch.float32 else 0.1)


@torch.inference_mode()
def test_an_architecture_with_a_mask_of_its_own_takes_the_plain_loop_and_is_right():
    """GPT-Neo masks by place in memory, not by position: packing would be silently wrong, and it is found out."""
    model = HookedModel(tiny("gpt_neo"), None)
    assert model.support.patch == "plain loop" and "as in a plain pass" in model.support.reason
    prompt, tails, scored = [5, 9, 60, 33, 7, 12, 44, 3, 71, 20], [[4, 8, 15], [4, 16, 23, 42]], [2, 2]
    slow = torch.tensor([plain(model, [*prompt, *tail], n) for tail, n in zip(tails, scored)])
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
