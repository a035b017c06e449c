"""Recorded steps, taken kernel by kernel on a machine without a GPU: the same code but for the graph."""

import pytest
import torch

from interp.engine import bundles, stepping
from interp.engine.decoding import decode_modes
from interp.engine.generation import continue_each, continue_rows
from interp.engine.picking import greedy
from interp.engine.reading import read_prompts
from interp.models.caches import NumberedLayer
from interp.models.hooked import HookedModel
from interp.prompts.format import MODES
from tests.conftest import tiny_hf
from tests.engine.test_decode import continued, even_rows, slow_greedy


@pytest.fixture
def taken(monkeypatch):
    """Rows of each recorded step that is taken, where every step is recorded."""
    rows, take = [], stepping.Step.take
    monkeypatch.setattr(bundles, "DEVICES", ())
    monkeypatch.setattr(stepping, "DEVICES", ("cpu",))
    monkeypatch.setattr(stepping, "LEAST", 1)
    monkeypatch.setattr(stepping.Step, "take", lambda step: rows.append(len(step.ids)) or take(step))
    return rows


@pytest.mark.parametrize("again", [1, 64])
def test_ragged_rows_with_ends_and_limits_of_their_own_go_on_as_an_argmax_loop(
    model, fmt, prompts, taken, monkeypatch, again
):
    monkeypatch.setattr(stepping, "AGAIN", again)
    rows = [p.ids for p in prompts[:6]]
    variants = dict(
        a=[fmt.mode_prefix("cot")] * 6, b=[fmt.with_trace("I look." * i) if i % 3 else None for i in range(6)]
    )
    free = {
        name: [
            each and slow_greedy(model, [*row, *each], lambda ids: False, n) for row, each in zip(rows, own)
        ]
        for (name, own), n in zip(variants.items(), (9, 4))
    }
    end = free["a"][1][3]
    stops = dict(a=lambda ids: ids[-1] == end, b=lambda ids: False)
    found = continue_each(model, rows, variants, stops, dict(a=9, b=4))
    cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in free["a"]]
    assert [c.ids for c in found["a"]] == cut and [c and c.ids for c in found["b"]] == free["b"]
    assert not model.unrecorded and taken


@pytest.mark.parametrize("again, rows_taken", [(1, [6] * 2 + [2] * 6), (6, [6] * 2 + [2] * 6), (7, [6] * 8)])
def test_rows_that_end_leave_only_where_many_steps_may_come(
    llama, fmt, taken, monkeypatch, again, rows_taken
):
    """The first step after that is recorded anew."""
    monkeypatch.setattr(stepping, "AGAIN", again)
    rows, (suffix, *_) = even_rows(fmt)[0], even_rows(fmt)[1]["a"]
    variants = dict(long=[suffix] * 2 + [None] * 4, short=[None] * 2 + [suffix] * 4)
    limits = dict(long=9, short=3)
    found = continue_each(llama, rows, variants, lambda ids: False, limits)
    for name, own in variants.items():
        for row, each, continuation in zip(rows, own, found[name]):
            if each:
                assert continuation.ids == slow_greedy(llama, [*row, *each], lambda ids: False, limits[name])
    assert taken == rows_taken


def test_rows_of_one_length_go_on_as_an_argmax_loop(model, fmt, taken):
    rows, variants = even_rows(fmt)
    suffix = variants["b"][0]
    found = continued(model, rows, {"b": variants["b"]}, 8)["b"]
    assert found == [slow_greedy(model, [*row, *suffix], lambda ids: False, 8) for row in rows]
    assert taken == [6] * 7 and not model.unrecorded


def test_every_mode_and_what_is_drawn_are_as_in_plain_steps(series, trained_prompts, taken, monkeypatch):
    model, prompts = series.load(series.steps[-1], "cpu", "float32"), trained_prompts[:12]
    settings = [dict(), dict(temperature=1.0, seed=3)]
    recorded = [decode_modes(model, prompts, MODES, **each) for each in settings]
    assert taken and not model.unrecorded
    monkeypatch.setattr(stepping, "DEVICES", ())
    assert recorded == [decode_modes(model, prompts, MODES, **each) for each in settings]


def test_nothing_is_recorded_on_a_cpu_for_few_steps_or_under_hooks(llama, fmt, taken, monkeypatch):
    rows, variants = even_rows(fmt)
    handle = llama.blocks[0].register_forward_hook(lambda *a: None)
    continued(llama, rows, variants)
    handle.remove()
    monkeypatch.setattr(stepping, "LEAST", 5)
    continued(llama, rows, variants, 5)
    continued(llama, rows, variants, hooks={("resid_pre", 1): lambda tensor, where: None})
    monkeypatch.setattr(stepping, "LEAST", 1)
    monkeypatch.setattr(stepping, "LONGEST", 40)
    continued(llama, rows, {"a": [[5]] * 6})
    monkeypatch.undo()
    continued(llama, rows, variants, 20)
    assert not taken and not llama.unrecorded


def read_a_number(forward):
    def reading(hidden, *args, **kwargs):
        hidden.sum().item()
        return forward(hidden, *args, **kwargs)

    return reading


def see_a_static_cache(forward):
    """As a model that makes something of how many slots its cache shows, and writes there besides."""

    def seeing(hidden, *args, past_key_values, **kwargs):
        layer = past_key_values.layers[0]
        if isinstance(layer, NumberedLayer):
            layer.keys.index_fill_(2, layer._slot, 7.0)
            hidden = hidden + 1
        return forward(hidden, *args, past_key_values=past_key_values, **kwargs)

    return seeing


def raise_out_of_memory(forward):
    def raising(hidden, *args, past_key_values, **kwargs):
        if isinstance(past_key_values.layers[0], NumberedLayer):
            raise torch.OutOfMemoryError("no room")
        return forward(hidden, *args, past_key_values=past_key_values, **kwargs)

    return raising


@pytest.mark.parametrize(
    "change, why, tries",
    [
        (read_a_number, "its step cannot be recorded (RuntimeError: it reads numbers of a tensor", 1),
        (see_a_static_cache, "a recorded step differs by 0.", 1),
        (raise_out_of_memory, "", 2),
    ],
)
def test_a_step_that_cannot_be_recorded_is_launched_and_the_model_says_why(
    tokenizer, fmt, taken, monkeypatch, change, why, tries
):
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    rows, variants = even_rows(fmt)
    plain = {
        name: [slow_greedy(model, [*row, *suffix], lambda ids: False, 6) for row, suffix in zip(rows, own)]
        for name, own in variants.items()
    }
    block, recorded, record = model.blocks[1], [], stepping.record
    monkeypatch.setattr(stepping, "record", lambda step: recorded.append(step) or record(step))
    monkeypatch.setattr(block, "forward", change(block.forward))
    for name in "ab":
        assert continued(model, rows, {name: variants[name]}, 6)[name] == plain[name]
    assert model.unrecorded.startswith(why) and bool(model.unrecorded) == bool(why)
    assert len(recorded) == tries and len(taken) <= 1


def test_masked_steps_do_not_repeat_the_keys_of_grouped_heads(llama, fmt, taken, monkeypatch):
    """Of one token, the queries of a group stand as tokens of its one key head."""
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, **options):
        seen.append((attn_mask is not None, query.shape[1:3], key.shape[1]))
        return attend(query, key, value, attn_mask=attn_mask, **options)

    rows = [row[i:] for i, row in enumerate(even_rows(fmt)[0])]
    for devices in (("cpu",), ()):
        monkeypatch.setattr(stepping, "DEVICES", devices)
        layers, kept = read_prompts(llama, rows, room=6)
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
            continue_rows(llama, layers, kept, [[5]] * 6, [lambda ids: False] * 6, [6] * 6, greedy)
        assert len(taken) == 5 and set(seen) == {(True, (2, 2), 2)}


def test_a_row_that_has_ended_takes_no_position_beyond_the_context(tokenizer, taken):
    """It waits for the others, and a model of learned positions has none to give it."""
    model = HookedModel(tiny_hf("GPT2", tokenizer, n_positions=64), tokenizer)
    rows = [list(range(start, start + n)) for start, n in ((20, 58), (30, 20), (40, 20))]
    variants = dict(short=[[5], None, None], long=[None, [5], [5]])
    found = continue_each(model, rows, variants, lambda ids: False, dict(short=5, long=30))
    ids = [c.ids for each in found.values() for c in each if c]
    assert ids == [slow_greedy(model, [*row, 5], lambda ids: False, n) for row, n in zip(rows, (5, 30, 30))]
