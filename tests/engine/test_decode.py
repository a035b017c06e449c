"""Greedy decoding in batches, and forced choice among candidates."""

import copy
from dataclasses import replace

import pytest
import torch

from analyses.benchmarks.counting import counting
from interp.engine import bundles, generation, reading
from interp.engine.decoding import choose, decode, decode_each, decode_modes, parse_completion
from interp.engine.generation import continue_each
from interp.engine.reading import read_prompts, tree_batches
from interp.environments.alfworld.commands import parse
from interp.models.hooked import HookedModel
from interp.prompts.encoding import Encoder
from interp.prompts.format import MODES
from interp.tasks.actions import target, verb
from tests.conftest import tiny_hf


@pytest.mark.parametrize("mode", ["cot", "prompt", "empty_think"])
def test_batched_decoding_equals_one_by_one(trained, trained_prompts, mode):
    prompts = trained_prompts[:9]
    together = decode(trained, prompts, mode, max_new_tokens=40)
    assert together == [decode(trained, [p], mode, max_new_tokens=40)[0] for p in prompts]
    assert together == decode_modes(trained, prompts, MODES, max_new_tokens=40)[mode]


def slow_greedy(model, row, stop, n):
    found = []
    while len(found) < n and not (found and stop(found)):
        with torch.inference_mode():
            found.append(int(model.hf(torch.tensor([[*row, *found]])).logits[0, -1].argmax()))
    return tuple(found)


def test_every_continuation_equals_a_plain_argmax_loop_and_its_suffix_the_plain_log_probability(
    model, fmt, prompts
):
    rows, stop = [p.ids for p in prompts[:6]], fmt.ended("prompt")
    variants = dict(
        cot=[fmt.mode_prefix("cot")] * 6,
        ragged=[fmt.with_trace("I look." * i) if i % 3 else None for i in range(6)],
    )
    for budget in (10_000, 120):
        found = continue_each(model, rows, variants, stop, dict(cot=9, ragged=4), batch_tokens=budget)
        for name, limit in (("cot", 9), ("ragged", 4)):
            for row, suffix, continuation in zip(rows, variants[name], found[name]):
                assert (suffix is None) == (continuation is None)
                if suffix is not None:
                    assert continuation.ids == slow_greedy(model, [*row, *suffix], stop, limit)
                    n = len(suffix) - 1
                    assert continuation.logp == pytest.approx(
                        plain_logp(model, [*row, *suffix], n) / n if n else 0, abs=1e-4
                    )
    with pytest.raises(ValueError, match="at least one token"):
        continue_each(model, rows[:1], dict(nothing=[[]]), stop, 3)


def test_rows_that_end_early_do_not_disturb_the_others(model, fmt, prompts):
    """Any token may be the one that stops: rows then leave the batch at different times."""
    rows = [[*p.ids, *fmt.mode_prefix("cot")] for p in prompts[:9]]
    free = [slow_greedy(model, r, lambda ids: False, 12) for r in rows]
    stop = max(
        {t for f in free for t in f},
        key=lambda t: (sum(t in f for f in free) % 9, len({f.index(t) for f in free if t in f})),
    )
    found = continue_each(
        model, [r[:-1] for r in rows], dict(a=[r[-1:] for r in rows]), lambda ids: ids[-1] == stop, 12
    )["a"]
    cut = [f[: f.index(stop) + 1] if stop in f else f for f in free]
    assert [c.ids for c in found] == cut and (len(set(map(len, cut))) > 1 or len(set(free)) == 1)


@torch.inference_mode()
def test_tokens_are_drawn_from_the_models_own_distribution(llama, prompts):
    """Four thousand draws of one token against its plain probabilities, at two temperatures."""
    row, n = prompts[0].ids, 4000
    logits = llama.hf(torch.tensor([row])).logits[0, -1]
    for temperature in (1.0, 0.5):
        out = continue_each(
            llama,
            [row[:-1]],
            {str(k): [row[-1:]] for k in range(n)},
            lambda ids: True,
            1,
            temperature=temperature,
            seed=3,
        )
        drawn = torch.tensor([found[0].ids[0] for found in out.values()]).bincount(minlength=len(logits)) / n
        wanted = (logits / temperature).softmax(-1)
        assert (drawn - wanted).abs().max() < 5 * (wanted * (1 - wanted) / n).sqrt().max()


def test_what_is_drawn_follows_the_seed_and_is_greedy_when_cold(trained, trained_prompts):
    prompts = trained_prompts[:8]
    draws = {seed: decode(trained, prompts, temperature=1.0, seed=seed) for seed in (0, 1)}
    assert draws[0] == decode(trained, prompts, temperature=1.0, seed=0) != draws[1]
    assert decode(trained, prompts, temperature=1e-4) == decode(trained, prompts)
    with pytest.raises(ValueError, match="0 .greedy. or above"):
        decode(trained, prompts, temperature=-1)


def test_decoding_stops_at_the_closing_tag_and_nowhere_else(trained, trained_prompts):
    stop = trained_prompts[0].format.encode("</action>")[0]
    for words in decode(trained, trained_prompts[:14]):
        assert words.ids.count(stop) <= 1 and (stop not in words.ids or words.ids[-1] == stop)
        assert (words.action is not None) == (stop in words.ids)


@pytest.mark.parametrize(
    "setting",
    [dict(repetition_penalty=3.0), dict(no_repeat_ngram_size=2), dict(suppress_tokens=[30, 31, 294])],
)
def test_greedy_decoding_ignores_the_checkpoints_own_generation_settings(
    trained, trained_prompts, setting, monkeypatch
):
    """Hub checkpoints ship a generation_config (Qwen: a repetition penalty); greedy means the argmax all the
    same."""
    plain = decode(trained, trained_prompts[:4])
    for name, value in setting.items():
        monkeypatch.setattr(trained.hf.generation_config, name, value)
    assert decode(trained, trained_prompts[:4]) == plain


def test_what_does_not_close_or_parse_is_no_action(fmt):
    def spoken(text, mode="cot", parser=str):
        words = parse_completion(fmt, fmt.encode(text), mode, parser)
        return words.trace, words.action

    assert spoken("I look.</think><action>go to desk 1</action>") == ("I look.", "go to desk 1")
    assert spoken("I look.</think><action>fly</action>", parser=parse) == ("I look.", None)
    assert spoken("I look.</think><action>go to desk 1") == ("I look.", None)
    assert spoken("I look and look") == (None, None)
    assert spoken("go to desk 1</action>", "prompt", parse) == (None, "go to desk 1")
    assert spoken("</action>", "prompt") == (None, None)


def test_wrong_requests_are_refused(llama, prompts, tokenizer):
    with pytest.raises(ValueError, match="empty"):
        decode(llama, [])
    with pytest.raises(ValueError, match="no decoding mode"):
        decode(llama, prompts, "loud")
    short = HookedModel(tiny_hf("Llama", tokenizer, max_position_embeddings=128), tokenizer)
    with pytest.raises(ValueError, match="reads at most 128"):
        decode(short, prompts[:2])


@torch.inference_mode()
def plain_logp(model, ids, n):
    logp = model.hf(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return float(sum(logp[t - 1, ids[t]] for t in range(len(ids) - n, len(ids))))


@pytest.mark.parametrize("with_trace", [False, True])
def test_a_choice_is_the_plain_log_probability_of_each_candidate(model, fmt, prompts, with_trace):
    for prompt in prompts[:3]:
        trace = "Hands empty. Next I check drawer 2." if with_trace else None
        lead = fmt.mode_prefix("prompt") if trace is None else fmt.with_trace(trace)
        (found,) = choose(model, prompt, prompt.decision.admissible, [trace])
        for row, candidate in zip(found, prompt.decision.admissible):
            action = fmt.action_ids(candidate)
            plain = plain_logp(model, [*prompt.ids, *lead, *action], len(action))
            assert row.tolist() == pytest.approx([plain, plain / len(action)], abs=1e-4)


def test_candidates_are_ordered_freely_and_may_begin_one_another(llama, prompts):
    """The closing tag counts, so "go to drawer 1" is not preferred for being the beginning of "go to drawer
    11"."""
    names = ["go to drawer 1", "go to drawer 11", "take mug 1 from drawer 1"]
    forth, back = choose(llama, prompts[0], names)[0], choose(llama, prompts[0], names[::-1])[0]
    torch.testing.assert_close(forth, back.flip(0), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no admissible actions"):
        choose(llama, prompts[0], [])


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("go to desk 1", "go to desk 1"),
        ("  take  mug 1 from\nshelf 11 ", "take mug 1 from shelf 11"),
        ("move pen 2 to desk 1",) * 2,
        ("heat egg 1 with microwave 1",) * 2,
        ("inventory",) * 2,
        ("go to desk", None),
        ("go to desk 1.", None),
        ("take mug 1", None),
        ("put mug 1 in desk 1", None),
        ("", None),
        ("go to desk 1 go to desk 2", None),
        ("GO TO DESK 1", None),
    ],
)
def test_only_the_engines_commands_parse(text, wanted):
    assert parse(text) == wanted


def test_verbs_and_targets_are_the_classes_probes_predict():
    assert [(verb(c), target(c)) for c in ("take mug 1 from shelf 2", "go to shelf 2", "inventory")] == [
        ("take", "mug"),
        ("go", "shelf"),
        ("inventory", "inventory"),
    ]


@torch.inference_mode()
@pytest.mark.parametrize("pack", [64, 300, 2048])
def test_each_beginning_of_a_tree_is_read_once_and_its_keys_and_values_are_those_of_a_plain_pass(
    model, prompts, monkeypatch, pack
):
    monkeypatch.setattr(reading, "PACK", pack)
    monkeypatch.setattr(reading, "WORTH", 10.0)  # whatever plain rows would cost
    rows = [list(p.ids) for p in prompts[:7]]
    rows += [
        rows[0],
        rows[1][:-5],
        rows[2][:40] + rows[3][40:],
        rows[4] + [7, 8],
    ]  # twice, a part, a branch, and one that goes on
    read, packed = [], HookedModel.packed
    monkeypatch.setattr(
        HookedModel,
        "packed",
        lambda self, prefix, ids, *a, **k: read.append(ids.shape[1]) or packed(self, prefix, ids, *a, **k),
    )
    layers, seen = read_prompts(model, rows)
    assert seen.sum(1).tolist() == [len(row) for row in rows] and all(
        s[: len(r)].all() for s, r in zip(seen, rows)
    )
    for i, row in enumerate(rows):
        for (keys, values), layer in zip(layers, model.read(row).layers):
            torch.testing.assert_close(keys[i, :, : len(row)], layer.keys[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(values[i, :, : len(row)], layer.values[0], rtol=1e-3, atol=1e-4)
    beginnings = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    common = sum(all(row[:n] == rows[0][:n] for row in rows) for n in range(1, min(map(len, rows)) + 1))
    if pack == 2048:
        assert sum(read) == len(beginnings) - common < sum(map(len, rows)) / 2
    assert all(n <= max(pack, max(map(len, rows))) for n in read)


@torch.inference_mode()
@pytest.mark.parametrize("read", [60, 300, 8192])
def test_prompts_that_extend_one_another_or_share_nothing_are_plain_rows_without_a_mask(
    model, prompts, monkeypatch, read
):
    """Of an episode's the longest alone is read, and no pass is given a mask."""
    monkeypatch.setattr(reading, "READ", read)
    games = [
        [list(p.ids) for p in prompts if p.decision.episode == name]
        for name in list(dict.fromkeys(p.decision.episode for p in prompts))[:3]
    ]
    rows = [
        row for k, game in enumerate(games) for row in [[30 + k, *ids] for ids in game]
    ]  # they begin otherwise
    tokens, masks = [], []

    def entering(module, args, kwargs):
        tokens.append(kwargs["input_ids"].shape)
        masks.append(kwargs.get("attention_mask"))

    handle = model.inner.register_forward_pre_hook(entering, with_kwargs=True)
    layers, seen = read_prompts(model, rows, room=3)
    handle.remove()
    assert masks == [None] * len(tokens) and sum(n for n, _ in tokens) == 3
    assert len(tokens) == {60: 3, 8192: 1}.get(read, len(tokens)) and max(n for _, n in tokens) == max(
        map(len, rows)
    )
    assert seen.shape == (len(rows), max(map(len, rows))) and layers[0][0].shape[2] == seen.shape[1] + 3
    for i in (0, 1, len(rows) - 1):
        for (keys, values), layer in zip(layers, model.read(rows[i]).layers):
            torch.testing.assert_close(keys[i, :, : len(rows[i])], layer.keys[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(values[i, :, : len(rows[i])], layer.values[0], rtol=1e-3, atol=1e-4)


def continued(model, rows, variants, n=5, **options):
    found = continue_each(model, rows, variants, lambda ids: False, n, **options)
    return {name: [c and c.ids for c in each] for name, each in found.items()}


def even_rows(fmt, n=6, length=40):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(20, 300, (n, length), generator=generator).tolist()
    return rows, {"a": [fmt.mode_prefix("prompt")] * n, "b": [fmt.mode_prefix("cot")] * n}


def test_rows_of_one_length_need_no_mask_and_their_keys_are_not_repeated(llama, fmt, monkeypatch):
    """Grouped heads share their keys and values in the attention itself."""
    rows, variants = even_rows(fmt)
    continued(llama, rows, variants)
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, **options):
        seen.append((attn_mask is None or query.shape[2] > 1 and query.shape[2] < key.shape[2], key.shape[1]))
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(llama, "mask", lambda *a: pytest.fail("a mask was made"))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    steps = continued(llama, rows, {"a": [row[-1:] for row in variants["a"]]}, 6)
    assert (
        all(unmasked and heads == 2 for unmasked, heads in seen) and len(seen) == 3 * 7 - 1
    )  # the prompts' last layer does not attend
    monkeypatch.undo()
    assert steps["a"] == [
        slow_greedy(llama, [*row, variants["a"][0][-1]], lambda ids: False, 6) for row in rows
    ]


def test_ragged_rows_have_one_mask_for_all_steps(llama, fmt, monkeypatch):
    rows = [row[i:] for i, row in enumerate(even_rows(fmt)[0])]
    made, mask = [], llama.mask
    monkeypatch.setattr(llama, "mask", lambda *a: made.append(a[0].shape) or mask(*a))
    opening = fmt.with_trace("")
    found = continued(llama, rows, {"a": [opening] * 6}, 8)
    assert made == [(6, len(opening), 40 + len(opening)), (6, 1, 40 + len(opening) + 8)]
    assert found["a"] == [slow_greedy(llama, [*row, *opening], lambda ids: False, 8) for row in rows]


@pytest.mark.parametrize("stopping", [False, True])
def test_a_pass_begun_ahead_changes_nothing(model, fmt, prompts, monkeypatch, stopping):
    """On a GPU the next pass is begun before its tokens are looked at: a row that has ended is computed once
    too often.
    """
    rows = [p.ids for p in prompts[:9]]
    free = continued(model, rows, {"a": [fmt.mode_prefix("cot")] * 9}, 12)["a"]
    stop = max({t for f in free for t in f}, key=lambda t: len({f.index(t) for f in free if t in f}))
    ends = (lambda ids: ids[-1] == stop) if stopping else lambda ids: False
    found = {}
    for ahead in (0, 1):
        monkeypatch.setattr(generation, "_ahead", lambda model: ahead)
        found[ahead] = continue_each(
            model, rows, {"a": [fmt.mode_prefix("cot")] * 9, "b": [[5]] * 9}, ends, 12
        )
    assert found[0] == found[1]
    assert not stopping or len({len(c.ids) for c in found[1]["a"]}) > 1 or len(set(free)) == 1


def test_decoding_waits_for_nothing_but_one_row_of_tokens_a_step(llama, fmt, prompts, monkeypatch):
    monkeypatch.setattr(bundles, "DEVICES", ())
    rows = [p.ids for p in prompts[:6]]
    variants = {"a": [fmt.mode_prefix("cot")] * 6, "b": [fmt.with_trace("I look.")] * 6}
    continued(llama, rows, variants)
    with counting(llama) as counts:
        found = continued(llama, rows, variants, 7)
    # a row of tokens a step for both variants, and log-probabilities once
    assert counts.fetches == 7 + 1 and not counts.waits
    assert found == {name: continued(llama, rows, {name: variants[name]}, 7)[name] for name in variants}


def test_variants_of_few_rows_are_continued_side_by_side():
    """No part is larger than a batch, and rows of one length stay without a mask."""
    waiting = {"a": [0, 1], "b": [0], "c": [], "d": [0, 1, 2]}
    lengths = {"a": {1}, "b": {1}, "c": set(), "d": {2}}

    def parts(most, even):
        return [
            [f"{name}{row}" for name, row in part]
            for part in generation._side_by_side(waiting, lengths, most, even)
        ]

    assert parts(6, False) == [["a0", "a1", "b0", "d0", "d1", "d2"]]
    assert parts(6, True) == [["a0", "a1", "b0"], ["d0", "d1", "d2"]]
    assert parts(3, False) == [["a0", "a1", "b0"], ["d0", "d1", "d2"]]
    assert parts(1, False) == [["a0", "a1"], ["b0"], ["d0", "d1", "d2"]]


def test_each_variant_has_its_own_end_and_limit_beside_another(model, fmt, prompts):
    rows, variants = (
        [p.ids for p in prompts[:5]],
        {"a": [fmt.mode_prefix("cot")] * 5, "b": [fmt.with_trace("I look.")] * 5},
    )
    free = continue_each(model, rows, variants, lambda ids: False, dict(a=8, b=3))
    assert {len(c.ids) for c in free["a"]} == {8} and {len(c.ids) for c in free["b"]} == {3}
    end = free["a"][0].ids[4]
    stops = {"a": lambda ids: ids[-1] == end, "b": lambda ids: False}
    found = continue_each(model, rows, variants, stops, dict(a=8, b=3))
    assert found["b"] == free["b"]
    for whole, cut in zip(free["a"], found["a"]):
        assert cut.ids == (whole.ids[: whole.ids.index(end) + 1] if end in whole.ids else whole.ids)


@pytest.mark.parametrize("fits", [1, 4])
def test_a_batch_that_does_not_fit_is_halved(llama, fmt, prompts, monkeypatch, fits):
    rows, variants = [p.ids for p in prompts[:9]], {"a": [fmt.mode_prefix("cot")] * 9}
    whole, read = continued(llama, rows, variants), generation.read_prompts
    sizes = []

    def small(model, group, room=0):
        if len(group) > fits:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(group))
        return read(model, group, room)

    monkeypatch.setattr(generation, "read_prompts", small)
    assert continued(llama, rows, variants) == whole
    assert sum(sizes) == 9 and max(sizes) <= fits


def test_a_gpus_batch_is_as_large_as_its_keys_and_values_fit(llama, monkeypatch):
    """Of what is free, half, for a few copies of the prompts' and of what follows them."""
    kept = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    monkeypatch.setattr(HookedModel, "device", torch.device("cuda"))
    monkeypatch.setattr(HookedModel, "empty", lambda self: [(torch.zeros(1, 2, 0, 8),) * 2] * 3)
    monkeypatch.setattr(generation, "free_for", lambda model: 1000 * 2 * 2.5 * kept * 1.5)
    assert generation._batch_tokens(llama, 100, 50) == 1000
    monkeypatch.setattr(generation, "free_for", lambda model: 10**15)
    assert generation._batch_tokens(llama, 100, 50) == generation.KEPT


def test_the_test_for_an_end_decodes_each_token_once_and_no_text(trained, trained_prompts, monkeypatch):
    fmt = trained_prompts[0].format
    fresh = [replace(p, format=copy.copy(fmt)) for p in trained_prompts[:8]]
    fresh = [replace(p, format=fresh[0].format) for p in fresh]
    vars(fresh[0].format).pop("stopping", None)
    decoded, text = [], Encoder.text
    monkeypatch.setattr(Encoder, "text", lambda self, ids: decoded.append(tuple(ids)) or text(self, ids))
    out = decode(trained, fresh, "cot", max_new_tokens=40)
    monkeypatch.undo()
    singles = [ids for ids in decoded if len(ids) == 1]
    longer = [ids for ids in decoded if len(ids) > 1]
    closing = sum(">" in fmt.text([i]) for words in out for i in words.ids)
    assert len(singles) <= len({i for words in out for i in words.ids}) + len(fmt.ends) + 1
    assert len(longer) <= closing + 2 * len(
        out
    )  # where a tag may have been closed, and each whole text in the end


def test_what_is_drawn_does_not_depend_on_the_batches(llama, fmt, prompts):
    """A GPU's batches are as large as its memory."""
    rows, variants = [p.ids for p in prompts[:9]], {name: [fmt.mode_prefix("cot")] * 9 for name in "ab"}
    draws = [
        continued(llama, rows, variants, temperature=1.0, seed=4, batch_tokens=budget)
        for budget in (1, 300, 100_000)
    ]
    assert draws[0] == draws[1] == draws[2] and draws[0]["a"] != draws[0]["b"]


@pytest.mark.parametrize("budget", [1, 400, 10_000])
def test_batches_hold_every_prompt_once_and_keep_an_episodes_together(prompts, budget):
    rows = [p.ids for p in prompts]
    groups = tree_batches(rows, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(rows)))
    assert all(len(g) == 1 or max(len(rows[i]) for i in g) * len(g) <= budget for g in groups)
    assert [tuple(rows[i]) for g in groups for i in g] == sorted(map(tuple, rows))


def test_prompts_in_modes_of_their_own_are_decoded_as_in_each_mode(trained, trained_prompts):
    some = trained_prompts[:5]
    modes = ["cot", "prompt", "cot", "empty_think", "prompt"]
    found = decode_each(trained, some, modes)
    every = decode_modes(trained, some, MODES)
    assert found == [every[mode][i] for i, mode in enumerate(modes)]
    memory = {}
    assert decode_each(trained, some, modes, memory=memory) == found
    assert list(memory) and set(memory) == {(p.decision.episode, m) for p, m in zip(some, modes)}
    assert decode_each(trained, some, modes, memory=memory) == found
