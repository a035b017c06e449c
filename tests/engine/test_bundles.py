"""Continuations of a prompt that share a row, against a row for each."""

import pytest

from interp.engine import bundles
from interp.engine.decoding import decode_modes
from interp.engine.generation import _bundled, continue_each
from interp.prompts.format import MODES


def both(monkeypatch, run):
    """What a row for each continuation gives, and what shared rows give, which must be used."""
    used, forward = [], bundles.Bundles.step
    with monkeypatch.context() as patches:
        patches.setattr(bundles, "DEVICES", ())
        apart = run()
    with monkeypatch.context() as patches:
        patches.setattr(bundles.Bundles, "step", lambda *args: used.append(args) or forward(*args))
        shared = run()
    return apart, shared, used


@pytest.mark.parametrize("options", [dict(), dict(temperature=1.0, seed=5), dict(batch_tokens=900)])
def test_shared_rows_continue_as_rows_of_their_own(model, fmt, prompts, monkeypatch, options):
    """Ragged prompts and suffixes, some of one variant only, with ends and limits of their own."""
    rows = [p.ids for p in prompts[:7]]
    variants = dict(
        a=[fmt.mode_prefix("cot")] * 7,
        b=[fmt.with_trace("I look." * i) if i % 3 else None for i in range(7)],
        c=[None] * 5 + [fmt.with_trace("")] * 2,
    )
    free = continue_each(model, rows, variants, lambda ids: False, 12)
    ends = {free["a"][i].ids[3] for i in range(7)}
    limits = dict(a=12, b=7, c=3)

    def run():
        return continue_each(
            model, rows, variants, lambda ids: len(ids) > 3 and ids[-1] in ends, limits, **options
        )

    apart, shared, used = both(monkeypatch, run)
    assert bool(used) == (set(model.layer_types) == {"full_attention"})
    for name in variants:
        for one, other in zip(apart[name], shared[name], strict=True):
            assert (one is None) == (other is None)
            if one:
                assert one.ids == other.ids and other.logp == pytest.approx(one.logp, abs=1e-4)


def test_every_mode_reads_the_keys_of_a_prompt_once_a_step(trained, trained_prompts, monkeypatch):
    def run():
        return decode_modes(trained, trained_prompts[:12], MODES)

    apart, shared, used = both(monkeypatch, run)
    longest = max(len(completion.ids) for own in shared.values() for completion in own)
    assert apart == shared and len(used) == longest - 1


def test_rows_and_columns_that_ended_are_left(trained, trained_prompts, monkeypatch):
    rows = [p.ids for p in trained_prompts[:6]]
    suffix = trained_prompts[0].format.mode_prefix("cot")
    variants = dict(long=[suffix] * 2 + [None] * 4, short=[suffix] * 6, shorter=[suffix] * 6)
    shapes, forward = [], bundles.Bundles.step

    def step(self, *args):
        shapes.append(tuple(self._columns.shape))
        return forward(self, *args)

    monkeypatch.setattr(bundles.Bundles, "step", step)
    limits = dict(long=9, short=6, shorter=3)
    found = continue_each(trained, rows, variants, lambda ids: False, limits)
    assert shapes == [(6, 3)] * 2 + [(6, 2)] * 3 + [(2, 1)] * 3
    assert all(len(c.ids) == limits[name] for name, own in found.items() for c in own if c)
    assert (
        found["short"][0].ids
        == found["long"][0].ids[:6]
        == (*found["shorter"][0].ids, *found["long"][0].ids[3:6])
    )


def test_parts_have_as_many_variants_as_a_batch_has_room_for():
    waiting = {name: [0, 1] for name in "abcde"}
    assert _bundled(waiting, 9) == [[(name, row) for name in "abcde" for row in (0, 1)]]
    assert [sorted({name for name, _ in part}) for part in _bundled(waiting, 3)] == [
        ["a", "c", "e"],
        ["b", "d"],
    ]
    assert len(_bundled(waiting, 0)) == 5
