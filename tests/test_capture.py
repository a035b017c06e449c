"""Captured activations, shards on disk, and many continuations in one forward pass."""

import pytest
import torch

from interp import store
from interp.capturing import capture
from interp.generation import length_batches
from interp.models import HookedModel
from interp.packing import score
from interp.store import stored_capture
from tests.conftest import tiny_hf

WIDE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def test_a_ragged_batch_equals_single_runs(model, prompts):
    together = capture(model, prompts, WIDE).values
    alone = torch.cat([capture(model, [p], WIDE).values for p in prompts])
    assert len({len(p.ids) for p in prompts}) > 4
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_captured_residuals_are_hugging_faces_hidden_states(model, prompts):
    acts = capture(model, prompts[:6], ("resid_pre", "resid_post"))
    for i, prompt in enumerate(prompts[:6]):
        out = model.hf(torch.tensor([prompt.ids]), output_hidden_states=True)
        hidden = torch.stack(out.hidden_states)[:, 0, -1]
        torch.testing.assert_close(acts.values[i, 0], hidden[:-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(acts.values[i, 1, :-1], hidden[1:-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.inner.norm(acts.values[i, 1, -1]), hidden[-1], rtol=1e-4, atol=1e-5)
    assert acts.values.dtype == torch.float32 and len(acts) == 6 and acts.sites == ("resid_pre", "resid_post")


@pytest.mark.parametrize("budget", [1, 300, 10_000])
def test_batches_hold_every_prompt_once_within_the_budget(prompts, budget):
    lengths = [len(p.ids) for p in prompts]
    groups = length_batches(lengths, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= budget for g in groups)


def test_wrong_requests_are_refused(llama, prompts):
    with pytest.raises(ValueError, match="empty"):
        capture(llama, [])
    with pytest.raises(ValueError, match="not at 'end'"):
        capture(llama, prompts, at="end")
    with pytest.raises(ValueError, match="no site 'nowhere'"):
        capture(llama, prompts, ["nowhere"])
    short = HookedModel(tiny_hf("Llama", llama.tokenizer, max_position_embeddings=64), llama.tokenizer)
    with pytest.raises(ValueError, match="reads at most 64"):
        capture(short, prompts)


def test_a_site_of_another_width_is_refused_by_name(tokenizer, prompts):
    wide = HookedModel(tiny_hf("Qwen3", tokenizer, head_dim=16), tokenizer)
    with pytest.raises(ValueError, match="'z' is 64 wide, not d_model = 32"):
        capture(wide, prompts[:2], ["z"])


def test_a_site_named_with_its_layer_is_not_taken_for_all_layers(llama, prompts):
    """`blocks.1.hook_resid_pre` is one layer: reading every layer instead would be a silent difference."""
    with pytest.raises(ValueError, match="layer"):
        capture(llama, prompts[:2], ["blocks.1.hook_resid_pre"])


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD", 10)


@pytest.fixture
def forbidden(llama, monkeypatch):
    """A model that may not run."""
    def refuse(*args, **kwargs):
        raise AssertionError("a forward pass ran")
    return lambda: monkeypatch.setattr(llama.inner, "forward", refuse)


def test_a_second_call_reads_the_shards_and_runs_nothing(llama, prompts, tmp_path, small_shards, forbidden):
    first = stored_capture(tmp_path, llama, prompts)
    torch.testing.assert_close(first.values, capture(llama, prompts, ("resid_pre", "resid_post")).values, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "manifest.json").exists() and len(list(tmp_path.glob("*.safetensors"))) == -(-len(prompts) // 10)
    forbidden()
    again = stored_capture(tmp_path, llama, prompts)
    assert torch.equal(again.values, first.values) and again.prompts == first.prompts


@pytest.mark.parametrize("damage", ["missing", "truncated", "emptied"])
def test_only_a_damaged_shard_is_captured_again(llama, prompts, tmp_path, small_shards, monkeypatch, damage):
    first = stored_capture(tmp_path, llama, prompts)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100] if damage == "truncated" else b"")
    asked = []
    monkeypatch.setattr(store, "capture", lambda model, chunk, *a, **k: asked.append(len(chunk)) or capture(model, chunk, *a, **k))
    again = stored_capture(tmp_path, llama, prompts)
    assert asked == [10] and torch.equal(again.values, first.values)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_stopped_capture_goes_on_from_its_shards(llama, prompts, tmp_path, small_shards, monkeypatch):
    calls = []

    def stops(model, chunk, *args, **kwargs):
        calls.append(len(chunk))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return capture(model, chunk, *args, **kwargs)

    monkeypatch.setattr(store, "capture", stops)
    with pytest.raises(KeyboardInterrupt):
        stored_capture(tmp_path, llama, prompts)
    stored_capture(tmp_path, llama, prompts)
    assert sum(calls) == len(prompts) + 10


def test_shards_of_other_weights_prompts_or_sites_are_not_used(tokenizer, llama, prompts, tmp_path):
    first = stored_capture(tmp_path, llama, prompts[:4])
    other = HookedModel(tiny_hf("Llama", tokenizer, num_hidden_layers=3, rms_norm_eps=0.5), tokenizer, weights_hash="other")
    assert not torch.equal(stored_capture(tmp_path, other, prompts[:4]).values, first.values)
    assert not torch.equal(stored_capture(tmp_path, llama, prompts[4:8]).values, first.values)
    assert stored_capture(tmp_path, llama, prompts[:4], ["mlp_out"]).values.shape[1] == 1
    with pytest.raises(ValueError, match="empty"):
        stored_capture(tmp_path, llama, [])


def loop(model, prefixes, segments, scored):
    """The slow twin: one full forward pass for each row and segment."""
    found = torch.empty(len(prefixes), len(segments))
    for r, prefix in enumerate(prefixes):
        for s, (segment, n) in enumerate(zip(segments, scored)):
            ids = torch.tensor([*prefix, *segment])
            logp = model.hf(ids[None]).logits[0].float().log_softmax(-1)
            found[r, s] = sum(logp[t - 1, ids[t]] for t in range(len(ids) - n, len(ids)))
    return found


SEGMENTS = [[3, 40, 41], [3, 50], [7, 40, 41, 42, 43, 44], [9], [3, 40, 41]]
SCORED = [2, 1, 3, 0, 1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mistral"])
@torch.inference_mode()
def test_packed_scores_equal_a_loop_of_full_forwards(tokenizer, architecture, attention):
    model = HookedModel(tiny_hf(architecture, tokenizer, attention), tokenizer)
    rows = torch.randint(20, 300, (3, 17), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    model.inner(input_ids=rows, past_key_values=cache, use_cache=True)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    found = score(model, cache, SEGMENTS, SCORED)
    torch.testing.assert_close(found, loop(model, rows.tolist(), SEGMENTS, SCORED), rtol=0, atol=1e-4)
    assert cache.get_seq_length() == 17
    for layer, (keys, values) in zip(cache.layers, kept):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


@torch.inference_mode()
def test_scores_without_a_prefix_equal_the_loop(llama):
    found = score(llama, llama.new_cache(), SEGMENTS, SCORED)
    torch.testing.assert_close(found, loop(llama, [[]], SEGMENTS, SCORED), rtol=0, atol=1e-4)


def test_a_sliding_window_is_served_exactly_or_refused(tokenizer):
    """Packing brings its own mask: a window in the model's configuration must not be dropped in silence."""
    hf = tiny_hf("Mistral", tokenizer, sliding_window=8)
    try:
        model = HookedModel(hf, tokenizer)
    except NotImplementedError as error:
        assert "Mistral" in str(error)
        return
    prefix = list(range(20, 60))
    with torch.inference_mode():
        slow = loop(model, [prefix], SEGMENTS, SCORED)
    torch.testing.assert_close(score(model, model.read(prefix), SEGMENTS, SCORED), slow, rtol=0, atol=1e-4)


def test_logits_are_computed_only_where_a_token_is_scored(llama, monkeypatch):
    seen, head = [], llama.hf.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    score(llama, llama.read(range(20, 40)), SEGMENTS, SCORED)
    handle.remove()
    assert seen == [(1, sum(SCORED), 32)]


def test_a_token_scored_without_one_before_it_is_refused(llama):
    with pytest.raises(ValueError, match="one before it"):
        score(llama, llama.read([5, 6]), [[3, 4]], [2])


@pytest.mark.parametrize("sites, why", [(["resid_pre", "resid_pre"], "asked for twice"), ([], "No site"),
                                        (["z", "blocks.0.attn.hook_z"], "names one layer")])
def test_sites_that_would_leave_a_hole_are_refused(llama, prompts, sites, why):
    with pytest.raises(ValueError, match=why):
        capture(llama, prompts[:2], sites)
