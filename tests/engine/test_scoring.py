"""Forced choice at many decisions in few passes, against plain passes over each continuation."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyses.benchmarks.counting import counting
from interp.engine import reading, scoring
from interp.engine.decoding import choose, choose_each, preferences
from interp.engine.packing import score_whole
from interp.engine.scoring import score_alone, score_each
from interp.models.hooked import HookedModel
from tests.conftest import tiny_hf

#: Windows everywhere, windows in some layers, learned positions.
FAMILIES = ("Llama", "Mistral", "Gemma3Text", "GPT2")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tokenizer):
    return HookedModel(tiny_hf(request.param, tokenizer), tokenizer)


def drawn(seed, most=6):
    """Ragged prompts, some of which begin alike, each with its own prefixes and endings."""
    draw = random.Random(seed)

    def ids(least, most):
        return [draw.randrange(20, 300) for _ in range(draw.randint(least, most))]

    start, prompts, prefixes, endings = ids(1, 60), [], [], []
    for _ in range(draw.randint(1, most)):
        prompts.append([*start[: draw.choice([0, 1, len(start)])], *ids(1, 30)])
        opening, name = ids(1, 6), ids(1, 3)
        prefixes.append([[*opening, *ids(0, 5)] for _ in range(draw.randint(1, 3))])
        endings.append([[*name, *ids(0, 4)] for _ in range(draw.randint(1, 5))])
    return prompts, prefixes, endings


def plain(model, prompts, prefixes, endings):
    """Each continuation read whole, by itself."""
    return [
        torch.stack([score_whole(model, [*ids, *prefix], after, list(map(len, after))) for prefix in before])
        for ids, before, after in zip(prompts, prefixes, endings)
    ]


def close(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    tree=st.sampled_from([5, 30, 512]),
    trees=st.sampled_from([12, 2048]),
    held=st.sampled_from([40_000, 2**29]),
)
def test_every_ending_is_scored_as_in_a_plain_pass_whatever_it_is_batched_with(
    family, seed, tree, trees, held
):
    asked = drawn(seed)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in dict(TREE=tree, TREES=trees, most_held=lambda model: held).items():
            patched.setattr(scoring, name, value)
        found = score_each(family, *asked)
    close(found, plain(family, *asked))
    close(found, [score_alone(family, *each) for each in zip(*asked)])


def counted(model, run):
    """What `run` gives, and the decoder's passes."""
    passes = []
    handle = model.inner.register_forward_pre_hook(lambda *a: passes.append(1))
    try:
        return run(), len(passes)
    finally:
        handle.remove()


def asked_of(prompts, names=("go to drawer 1", "go to drawer 11", "take mug 1 from drawer 1")):
    """Candidates and traces of three kinds: none, a text, and ids; decisions differ in how many they have."""
    candidates = [[*names, *p.decision.admissible][: 1 + i % 9] for i, p in enumerate(prompts)]
    kinds = [None, "Hands empty. Next I check drawer 2.", prompts[0].format.encode("I look.")]
    return candidates, [kinds[: 1 + i % 3] for i in range(len(prompts))]


def test_many_decisions_are_chosen_as_each_by_itself(family, prompts):
    candidates, traces = asked_of(prompts[:9])
    found = choose_each(family, prompts[:9], candidates, traces)
    close(found, [choose(family, *each) for each in zip(prompts, candidates, traces)])
    assert [tuple(each.shape) for each in found] == [(len(t), len(c), 2) for c, t in zip(candidates, traces)]
    fmt = prompts[0].format
    likely = preferences(
        family, prompts[:9], candidates, [[fmt.action_prefix(trace) for trace in own] for own in traces]
    )
    for share, logp in zip(likely, found):
        torch.testing.assert_close(torch.tensor(share), logp[..., 0].double().softmax(-1), rtol=0, atol=1e-9)
    bare = choose_each(family, prompts[:3], candidates[:3])
    close(bare, [each[:1] for each in found[:3]])


def test_the_number_of_passes_does_not_grow_with_decisions_or_traces(llama, prompts):
    one, many = prompts[:1], list(prompts[:20])
    names = [["go to drawer 1", "go to drawer 11"]]
    choose(llama, one[0], names[0])
    _, few = counted(llama, lambda: choose_each(llama, one, names))
    with counting(llama) as counts:
        _, all_of_them = counted(
            llama, lambda: choose_each(llama, many, names * 20, [[None, "I look.", "I look. I go."]] * 20)
        )
    assert few <= 3 and all_of_them <= 5  # of which one may ask how large keys and values are
    # the sums are fetched once a batch, whatever is in it
    assert counts.fetches <= 2 and not counts.waits


def test_trees_of_very_different_sizes_are_passes_of_their_own(llama, prompts, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        llama,
        "packed",
        lambda *a, packed=llama.packed: shapes.append((len(a[1]), a[1].shape[1])) or packed(*a),
    )
    names = [f"go to drawer {i}" for i in range(9)]
    candidates = [names if i % 2 else names[:1] for i in range(8)]
    found = choose_each(llama, prompts[:8], candidates)
    assert [rows for rows, _ in shapes[-2:]] == [4, 4] and shapes[-2][1] > 2 * shapes[-1][1]
    monkeypatch.undo()
    close(found, [choose(llama, *each) for each in zip(prompts, candidates)])


def test_a_tree_that_is_too_large_is_read_in_parts_of_a_stated_size(llama, prompts, monkeypatch):
    """Traces that have room are in one tree, another is read first and its candidates come in parts."""
    names, traces = [f"go to drawer {i}" for i in range(9)], [None, "Hands empty.", "I look. " * 9, None]
    whole, rows = choose(llama, prompts[0], names, traces), []
    assert scoring.parts_of([300, 212, 1, 600, 1, 1]) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    monkeypatch.setattr(
        scoring,
        "_score_rows",
        lambda m, own, *rest, real=scoring._score_rows: rows.extend(own) or real(m, own, *rest),
    )
    for most in (12, 30, 60):
        monkeypatch.setattr(scoring, "TREE", most)
        rows.clear()
        torch.testing.assert_close(choose(llama, prompts[0], names, traces), whole, rtol=0, atol=1e-4)
        assert len(rows) > 1 and all(len(row.tree) <= most for row in rows)
        assert sum(row.tree.width for row in rows) == len(names) * len(traces)
        assert any(len(row.ids) > len(prompts[0].ids) for row in rows)


def test_prompts_that_were_kept_are_not_read_again(family, monkeypatch):
    """Nor where more is read after one of them, whose keys and values go on from those kept."""
    prompts, prefixes, endings = drawn(3)
    afresh, memory, names = score_each(family, prompts, prefixes, endings), {}, range(len(prompts))
    for _ in range(2):
        kept = score_each(family, prompts, prefixes, endings, memory, names)
        for own, other in zip(kept, afresh, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-4)
        monkeypatch.setattr(reading, "read_prompts", None)
    longer = [[*ids, *range(30, 31 + k)] for k, ids in enumerate(prompts)]
    kept = score_each(family, longer, prefixes, endings, memory, names)
    for own, other in zip(kept, score_each(family, longer, prefixes, endings), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fits", [1, 4])
def test_a_batch_that_does_not_fit_is_halved(llama, prompts, monkeypatch, fits):
    candidates, traces = asked_of(prompts[:9])
    whole, sizes, score_pass = choose_each(llama, prompts[:9], candidates, traces), [], scoring._score_pass

    def small(model, layers, seen, rows):
        if len(seen) > fits:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(rows))
        return score_pass(model, layers, seen, rows)

    monkeypatch.setattr(scoring, "_score_pass", small)
    close(choose_each(llama, prompts[:9], candidates, traces), whole)
    assert max(sizes) <= fits


def test_what_cannot_be_asked_is_refused_in_a_sentence(llama, prompts, tokenizer):
    with pytest.raises(ValueError, match="Decision .* lists no admissible actions"):
        choose_each(llama, prompts[:2], [["look"], []])
    with pytest.raises(ValueError, match="2 prompts, candidates of 1 and traces of 2"):
        choose_each(llama, prompts[:2], [["look"]])
    with pytest.raises(ValueError, match="none of this model's"):
        choose_each(llama, prompts[:1], [["look"]], [[[10**6]]])
    short = HookedModel(tiny_hf("Llama", tokenizer, max_position_embeddings=64), tokenizer)
    with pytest.raises(ValueError, match="reads at most 64"):
        choose_each(short, prompts[:2], [["look"]] * 2)
    assert (
        choose_each(llama, [], []) == [] and choose_each(llama, prompts[:1], [["look"]], [[]])[0].numel() == 0
    )
