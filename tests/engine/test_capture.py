"""Captured activations, and many continuations in one forward pass."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses.benchmarks.counting import counting
from interp.engine import capturing
from interp.engine.capturing import capture
from interp.engine.packing import grow, plain_score, score
from interp.models import unembedding
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel, Support
from interp.models.unembedding import log_probability
from interp.models.whole import length_batches
from tests.conftest import ARCHITECTURES, tiny_hf

WIDE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def wide(model):
    """The sites as wide as the residual stream that this model has."""
    return [site for site in WIDE if site in model.hook_points]


def test_a_ragged_batch_equals_single_runs(model, prompts):
    together = capture(model, prompts, wide(model)).values
    alone = torch.cat([capture(model, [p], wide(model)).values for p in prompts])
    assert len({len(p.ids) for p in prompts}) > 4
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def final_norm(model):
    return next(
        getattr(model.inner, name)
        for name in ("norm", "ln_f", "final_layer_norm")
        if hasattr(model.inner, name)
    )


@torch.inference_mode()
def test_captured_residuals_are_hugging_faces_hidden_states(model, prompts):
    acts = capture(model, prompts[:6], ("resid_pre", "resid_post"))
    for i, prompt in enumerate(prompts[:6]):
        out = model.hf(torch.tensor([prompt.ids]), output_hidden_states=True)
        hidden = torch.stack(out.hidden_states)[:, 0, -1]
        torch.testing.assert_close(acts.values[i, 0], hidden[:-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(acts.values[i, 1, :-1], hidden[1:-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(final_norm(model)(acts.values[i, 1, -1]), hidden[-1], rtol=1e-4, atol=1e-5)
    assert acts.values.dtype == torch.float32 and len(acts) == 6 and acts.sites == ("resid_pre", "resid_post")


def rewritten(prompt, cut=20):
    """The prompt as a template that rewrites its end would give it: what follows `cut` is another's."""
    return replace(prompt, ids=(*prompt.ids[:-cut], *reversed(prompt.ids[-cut:])))


def test_an_episodes_prompts_are_read_in_one_pass_and_the_result_says_so(model, prompts):
    plain = capture(model, prompts, wide(model), trajectory=False)
    together = capture(model, prompts, wide(model))
    assert set(plain.paths) == {"plain"} and set(together.paths) == {"trajectory"}
    torch.testing.assert_close(together.values, plain.values, rtol=1e-4, atol=1e-4)
    changed = [rewritten(p) if p.decision.step % 2 else p for p in prompts if len(p.ids) > 60]
    plain, together = (capture(model, changed, trajectory=t) for t in (False, True))
    assert "shared prefix" in together.paths and set(plain.paths) == {"plain"}
    torch.testing.assert_close(together.values, plain.values, rtol=1e-4, atol=1e-4)
    first = [p for p in prompts if p.decision.step == 0]
    assert set(capture(model, first).paths) == {"plain"}


def test_a_trajectory_reads_each_token_once(llama, prompts):
    rows, _ = [], (llama.support, llama.widths)
    handle = llama.inner.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape)
    )
    episode = [p for p in prompts if p.decision.episode == prompts[0].decision.episode]
    capture(llama, episode)
    handle.remove()
    assert rows == [(1, max(len(p.ids) for p in episode)), (1, len(episode))], (
        "the last block reads boundaries"
    )


def test_a_capture_copies_once_a_pass_and_waits_for_nothing_inside_it(llama, prompts, monkeypatch):
    """A `.cpu()` in a hook would wait for the GPU at every layer; what a pass read is placed while the next
    one runs.
    """
    order, fetched = [], capturing.fetched
    for name in ("_read", "_read_few"):
        read = getattr(capturing, name)
        monkeypatch.setattr(capturing, name, lambda *a, read=read, **k: order.append("pass") or read(*a, **k))

    def watched(tensor):
        get = fetched(tensor)
        return lambda: order.append("copy") or get()

    monkeypatch.setattr(capturing, "fetched", watched)
    changed = [rewritten(p) if p.decision.step % 2 else p for p in prompts]
    capture(llama, changed, WIDE)  # what is tried once is tried
    order.clear()
    with counting(llama) as counts:
        capture(llama, changed, WIDE, batch_tokens=300)
    passes = order.count("pass")
    assert order == ["pass", *["pass", "copy"] * (passes - 1), "copy"] and passes > 4
    assert counts.fetches == passes
    assert all("masking_utils" in place for place in counts.waits)  # transformers' check before a plain pass


@pytest.mark.parametrize("rows", [1, 3])
def test_a_pass_that_does_not_fit_is_halved(llama, prompts, monkeypatch, rows):
    whole, read = capture(llama, prompts), capturing._read_few

    def small(*args, input_ids):
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError("no room")
        return read(*args, input_ids=input_ids)

    monkeypatch.setattr(capturing, "_read_few", small)
    found = capture(llama, prompts)
    torch.testing.assert_close(found.values, whole.values, rtol=1e-5, atol=1e-5)
    assert found.paths == whole.paths


def test_the_last_block_at_the_kept_tokens_alone_gives_what_it_gives_at_all(model, prompts, monkeypatch):
    """Several tokens of a row or one, at every site, in rows of different lengths and numbers of tokens."""
    places = [list(range(-1 - i % 3, 0)) for i, _ in enumerate(prompts)]
    for at in ("boundary", places):
        few = capture(model, prompts, wide(model), at, trajectory=at == "boundary")
        with monkeypatch.context() as patched:
            patched.setattr(capturing, "FEW", 10**9)
            whole = capture(model, prompts, wide(model), at, trajectory=at == "boundary")
        torch.testing.assert_close(few.values, whole.values, rtol=1e-4, atol=1e-4)
        assert few.positions == whole.positions and few.paths == whole.paths


def test_rows_of_which_one_is_kept_whole_are_read_whole(llama, prompts, monkeypatch):
    """Else each row would be as long in the last block as the one of which the most is kept."""
    places = [list(range(len(prompts[0].ids))), *([-1] for _ in prompts[1:])]
    monkeypatch.setattr(capturing, "_read_few", None)
    found = capture(llama, prompts, ("resid_post",), places, trajectory=False, batch_tokens=10**6)
    monkeypatch.undo()
    last = capture(llama, prompts[1:], ("resid_post",), trajectory=False)
    torch.testing.assert_close(found.values[len(prompts[0].ids) :], last.values, rtol=1e-4, atol=1e-4)


def test_no_layer_above_the_last_one_asked_for_is_computed(model, prompts):
    whole, ran = capture(model, prompts[:3]), []
    handles = [
        block.get_submodule(model.hook_points["mlp_out"][i].paths[0]).register_forward_hook(
            lambda *_, i=i: ran.append(i)
        )
        for i, block in enumerate(model.blocks)
    ]
    part = capture(model, prompts[:3], layers=[1, 0])
    [h.remove() for h in handles]
    assert set(ran) == {0, 1} and part.layers == (1, 0)
    torch.testing.assert_close(part.values, whole.values[:, :, [1, 0]])
    torch.testing.assert_close(capture(model, prompts[:3]).values, whole.values)  # nothing was left behind
    for wrong in ([], [3], [-1], [0, 0]):
        with pytest.raises(ValueError, match="different ones of 0 to 2"):
            capture(model, prompts[:3], layers=wrong)


@pytest.mark.parametrize("budget", [1, 300, 10_000])
def test_batches_hold_every_prompt_once_within_the_budget(prompts, budget):
    lengths = [len(p.ids) for p in prompts]
    groups = length_batches(lengths, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= budget for g in groups)


def test_wrong_requests_are_refused(llama, prompts):
    with pytest.raises(ValueError, match="empty"):
        capture(llama, [])
    with pytest.raises(ValueError, match="no position 'end'"):
        capture(llama, prompts, at="end")
    with pytest.raises(ValueError, match="no site 'nowhere'"):
        capture(llama, prompts, ["nowhere"])
    short = HookedModel(tiny_hf("Llama", llama.tokenizer, max_position_embeddings=64), llama.tokenizer)
    with pytest.raises(ValueError, match="reads at most 64"):
        capture(short, prompts)


def test_a_site_of_another_width_is_refused_by_name(tokenizer, prompts):
    wide = HookedModel(tiny_hf("Qwen3", tokenizer, head_dim=16), tokenizer)
    with pytest.raises(ValueError, match="resid_pre 32, z 64"):
        capture(wide, prompts[:2], ["resid_pre", "z"])
    assert capture(wide, prompts[:2], ["z"]).values.shape == (2, 1, 3, 64)


def test_a_site_named_with_its_layer_is_not_taken_for_all_layers(llama, prompts):
    """`blocks.1.hook_resid_pre` is one layer: reading every layer instead would be a silent difference."""
    with pytest.raises(ValueError, match="layer"):
        capture(llama, prompts[:2], ["blocks.1.hook_resid_pre"])


def loop(model, prefix, segments, scored):
    """The reference implementation: one full forward pass of the Hugging Face model for each segment."""
    found = torch.empty(len(segments))
    for s, (segment, n) in enumerate(zip(segments, scored)):
        ids = torch.tensor([*prefix, *segment])
        logp = model.hf(ids[None]).logits[0].float().log_softmax(-1)
        found[s] = sum(logp[t - 1, ids[t]] for t in range(len(ids) - n, len(ids)))
    return found


SEGMENTS = [[3, 40, 41], [3, 50], [7, 40, 41, 42, 43, 44], [9], [3, 40, 41], [3, 40, 41, 42]]
SCORED = [2, 1, 3, 0, 1, 1]


@pytest.mark.parametrize("attention", [None, "eager"])  # None: SDPA where the architecture has it
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_packed_scores_equal_a_loop_of_full_forwards(tokenizer, architecture, attention):
    model = HookedModel(tiny_hf(architecture, tokenizer, attention), tokenizer)
    assert model.support == Support("fast", "fast", "fast", "fast")
    prefix = torch.randint(
        20, 300, (57,), generator=torch.Generator().manual_seed(0)
    ).tolist()  # longer than any window
    cache = model.read(prefix)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    slow = loop(model, prefix, SEGMENTS, SCORED)
    torch.testing.assert_close(score(model, cache, SEGMENTS, SCORED), slow, rtol=0, atol=1e-4)
    torch.testing.assert_close(plain_score(model, cache, SEGMENTS, SCORED), slow, rtol=0, atol=1e-4)
    assert cache.get_seq_length() == 57
    for layer, (keys, values) in zip(cache.layers, kept):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    torch.testing.assert_close(
        score(model, model.new_cache(), SEGMENTS, SCORED),
        loop(model, [], SEGMENTS, SCORED),
        rtol=0,
        atol=1e-4,
    )


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_tree_holds_every_continuation_once(sequences):
    tree = grow(sequences, [len(s) - 1 for s in sequences])
    assert len(tree) == len({tuple(s[:i]) for s in sequences for i in range(1, len(s))})
    for number, sequence in enumerate(sequences):
        asked = [(node, token) for owner, node, token in tree.targets if owner == number]
        assert [token for _, token in asked] == sequence[1:]
        for depth, (node, _) in enumerate(asked):
            above = tree.visible[node].nonzero()[:, 0].tolist()
            assert [tree.tokens[n] for n in above] == sequence[: depth + 1] and tree.depths[node] == depth


def test_logits_are_computed_only_where_a_token_is_scored(llama, monkeypatch):
    seen, logits = [], type(llama).logits
    monkeypatch.setattr(
        type(llama),
        "logits",
        lambda self, hidden, tokens: seen.append(tuple(hidden.shape)) or logits(self, hidden, tokens),
    )
    score(llama, llama.read(range(20, 40)), SEGMENTS, SCORED)
    assert seen == [(len({node for _, node, _ in grow(SEGMENTS, SCORED).targets}), 32)]


def test_a_vocabulary_in_tiles_gives_the_probabilities_of_the_whole(model, monkeypatch):
    hidden = torch.randn(11, model.d_model, generator=torch.Generator().manual_seed(0)) * 3
    row, token = (
        torch.tensor([0, 3, 3, 10, 9, 4]),
        torch.tensor([0, 31, 32, model.hf.config.vocab_size - 1, 7, 40]),
    )
    whole = model.logits(hidden).log_softmax(-1)[row, token]
    for rows, tile in ((512, 4096), (4, 32), (3, 7)):
        monkeypatch.setattr(unembedding, "ROWS", rows)
        monkeypatch.setattr(unembedding, "TILE", tile)
        torch.testing.assert_close(log_probability(model, hidden, row, token), whole, rtol=0, atol=1e-5)


def test_reading_ends_with_the_last_layer_s_keys_and_leaves_an_ordinary_cache(model):
    ids, ended = list(range(20, 33)), []
    handle = model.blocks[-1].register_forward_hook(lambda *_: ended.append(True))
    cache = model.read(ids[8:], model.read(ids[:8]))
    handle.remove()
    assert not ended and cache.get_seq_length() == 13
    whole = model.new_cache()
    with torch.inference_mode():
        model.inner(input_ids=torch.tensor([ids]), past_key_values=whole, use_cache=True)
        for layer, kept in zip(whole.layers, cache.layers, strict=True):
            torch.testing.assert_close((kept.keys, kept.values), (layer.keys, layer.values))
        after = [
            model.inner(input_ids=torch.tensor([[5]]), past_key_values=c, use_cache=True).last_hidden_state
            for c in (cache, whole)
        ]
    torch.testing.assert_close(*after)  # nothing stops a pass that goes on from it


def test_a_token_scored_without_one_before_it_is_refused(llama):
    with pytest.raises(ValueError, match="one before it"):
        score(llama, llama.read([5, 6]), [[3, 4]], [2])


@pytest.mark.parametrize(
    "sites, why",
    [
        (["resid_pre", "resid_pre"], "asked for twice"),
        ([], "No site"),
        (["z", "blocks.0.attn.hook_z"], "names one layer"),
    ],
)
def test_sites_that_would_leave_a_hole_are_refused(llama, prompts, sites, why):
    with pytest.raises(ValueError, match=why):
        capture(llama, prompts[:2], sites)


def test_widths_that_differ_between_layers_are_refused_together_and_read_by_themselves(prompts):
    model = HookedModel(tiny("gemma4_text", vocab_size=520, max_position_embeddings=1024), None)
    assert model.widths["z"] == (32, 64, 32, 64) and model.heads == (4, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"z differs in width between layers \(32 in layers 0, 2, 64 in layers 1, 3\)"
    ):
        capture(model, prompts[:2], ["z"])
    wide = capture(model, prompts[:2], ["z"], layers=[1, 3]).values
    seen = {}
    with torch.inference_mode(), model.hooks({("z", 3): lambda x: seen.update(x=x[0, -1].clone())}):
        model.hf(torch.tensor([prompts[0].ids]), use_cache=False)
    torch.testing.assert_close(wide[0, 0, 1], seen["x"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gptj", "codegen", "gpt_neo"])
def test_models_whose_blocks_give_tuples_are_read_below_the_top(name, prompts):
    model = HookedModel(tiny(name, vocab_size=520, max_position_embeddings=1024), None)
    whole = capture(model, prompts[:3]).values
    assert model.layout is not None and whole.shape == (3, 1, 4, 32)
    for layer in range(4):
        torch.testing.assert_close(
            capture(model, prompts[:3], layers=[layer]).values[:, :, 0], whole[:, :, layer]
        )
