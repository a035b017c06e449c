"""Conversations that go on from the keys and values of what was read and written, against ones read afresh."""

import pytest
import torch

from interp.engine import reading, remembered
from interp.engine.generation import continue_each
from interp.models.devices import token_bytes


def test_an_episode_read_on_from_memory_continues_as_one_read_afresh(model, fmt, episodes):
    """Prompts of an episode extend one another; a prompt that does not is read from where it differs."""
    games = [e.decisions() for e in episodes["test_in_domain"][:4]]
    games[3] = (
        games[3][:1] + episodes["test_in_domain"][5].decisions()[1:]
    )  # another text under the same name
    memory, stop = {}, fmt.ended("cot")
    for step in range(4):
        rows = [fmt.prompt(g[step]).ids for g in games]
        suffixes = {"cot": [fmt.mode_prefix("cot")] * 4}
        with_memory = continue_each(
            model, rows, suffixes, stop, 6, batch_tokens=700, memory=memory, names=range(4)
        )
        afresh = continue_each(model, rows, suffixes, stop, 6)
        assert [c.ids for c in with_memory["cot"]] == [c.ids for c in afresh["cot"]]
        for one, other in zip(with_memory["cot"], afresh["cot"]):
            assert one.logp == pytest.approx(other.logp, abs=1e-4)
        for i, (ids, layers) in memory.items():
            whole = (*rows[i], *suffixes["cot"][i], *afresh["cot"][i].ids)
            assert ids == whole[: len(ids)] and len(ids) >= len(whole) - 1
            assert all(k.shape[1] == v.shape[1] == len(ids) for k, v in layers)


def conversations(model, rows, turns, memory, stop=lambda ids: False, watched=None):
    """Ids of prompts that extend what was written before them, turn by turn, and those that were read."""
    written = []
    for turn in range(turns):
        limits = dict(long=9, short=3)
        variants = dict(long=[[5, 6], None, [5, 6, 7]], short=[None, [8], None])
        names = None if memory is None else range(3)
        found = continue_each(model, rows, variants, stop, limits, memory=memory, names=names or ())
        new = [found["short" if i == 1 else "long"][i].ids for i in range(3)]
        suffixes = [[5, 6], [8], [5, 6, 7]]
        rows = [[*row, *s, *ids, 10 + turn] for row, s, ids in zip(rows, suffixes, new)]
        written.append(new)
    return written


def test_what_was_written_is_not_read_again(model, prompts, monkeypatch):
    """Ragged prompts, suffixes and limits of their own, and rows that are dropped before others end."""
    rows = [list(p.ids) for p in prompts[:3]]
    read, forward = [], reading.Rows.forward
    monkeypatch.setattr(
        reading.Rows, "forward", lambda self, ids: read.append(ids.shape[1]) or forward(self, ids)
    )
    afresh = conversations(model, rows, 3, None)
    read.clear()
    kept = conversations(model, rows, 3, {})
    assert kept == afresh
    # the last token that was written, which no pass has read, the one after it, and the longest suffix
    assert sorted(read)[-2:] == [5, 5] and sorted(read)[-3] == 3


def test_a_conversation_beside_others_is_read_anew_where_little_of_it_is_kept(model, prompts, monkeypatch):
    rows = [list(p.ids) for p in prompts[:3]]
    memory = {}
    conversations(model, rows[:2] + [rows[2]], 1, memory)
    first = dict(memory)
    del memory[1]  # as a game that has just begun
    read = []
    monkeypatch.setattr(remembered, "read_prompts", lambda *a: read.append(a[1]) or reading.read_prompts(*a))
    assert conversations(model, rows, 1, memory) == conversations(model, rows, 1, None)
    assert read == [[rows[1]]]
    for name, (ids, layers) in memory.items():
        assert ids == first[name][0]
        for own, other in zip(layers, first[name][1]):
            for one, two in zip(own, other):
                torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_a_memory_that_is_full_keeps_what_it_has_room_for(llama, prompts, monkeypatch):
    rows = [list(p.ids) for p in prompts[:3]]
    memory = {}
    conversations(llama, rows, 1, memory)
    sizes = {name: len(ids) for name, (ids, _) in memory.items()}
    least = min(sizes, key=sizes.get)
    monkeypatch.setattr(remembered, "HELD", token_bytes(llama) * sizes[least])
    memory = {}
    assert conversations(llama, rows, 2, memory) == conversations(llama, rows, 2, None)
    assert len(memory) <= 1
