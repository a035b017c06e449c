"""Greedy decoding in batches, and forced choice among candidates."""

import pytest
import torch

from interp.engine import decoding, generation
from interp.tasks.actions import target, verb
from interp.environments.alfworld.commands import parse
from interp.engine.decoding import choose, decode, decode_modes, said
from interp.engine.generation import _read, continue_each, tree_batches
from interp.models.hooked import HookedModel
from interp.prompts.format import MODES
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


def test_every_continuation_equals_a_plain_argmax_loop_and_its_suffix_the_plain_log_probability(model, fmt, prompts):
    rows, stop = [p.ids for p in prompts[:6]], fmt.ended("prompt")
    variants = dict(cot=[fmt.opening("cot")] * 6, ragged=[fmt.with_trace("I look." * i) if i % 3 else None for i in range(6)])
    for budget in (10_000, 120):
        found = continue_each(model, rows, variants, stop, dict(cot=9, ragged=4), batch_tokens=budget)
        for name, limit in (("cot", 9), ("ragged", 4)):
            for row, suffix, continuation in zip(rows, variants[name], found[name]):
                assert (suffix is None) == (continuation is None)
                if suffix is not None:
                    assert continuation.ids == slow_greedy(model, [*row, *suffix], stop, limit)
                    n = len(suffix) - 1
                    assert continuation.logp == pytest.approx(plain_logp(model, [*row, *suffix], n) / n if n else 0, abs=1e-4)
    with pytest.raises(ValueError, match="at least one token"):
        continue_each(model, rows[:1], dict(nothing=[[]]), stop, 3)


def test_rows_that_end_early_do_not_disturb_the_others(model, fmt, prompts):
    """Any token may be the one that stops: rows then leave the batch at different times."""
    rows = [[*p.ids, *fmt.opening("cot")] for p in prompts[:9]]
    free = [slow_greedy(model, r, lambda ids: False, 12) for r in rows]
    stop = max({t for f in free for t in f}, key=lambda t: (sum(t in f for f in free) % 9, len({f.index(t) for f in free if t in f})))
    found = continue_each(model, [r[:-1] for r in rows], dict(a=[r[-1:] for r in rows]), lambda ids: ids[-1] == stop, 12)["a"]
    cut = [f[:f.index(stop) + 1] if stop in f else f for f in free]
    assert [c.ids for c in found] == cut and (len(set(map(len, cut))) > 1 or len(set(free)) == 1)


@torch.inference_mode()
def test_tokens_are_drawn_from_the_models_own_distribution(llama, prompts):
    """Four thousand draws of one token against its plain probabilities, at two temperatures."""
    row, n = prompts[0].ids, 4000
    logits = llama.hf(torch.tensor([row])).logits[0, -1]
    for temperature in (1.0, 0.5):
        out = continue_each(llama, [row[:-1]], {str(k): [row[-1:]] for k in range(n)}, lambda ids: True, 1, temperature=temperature, seed=3)
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


@pytest.mark.parametrize("setting", [dict(repetition_penalty=3.0), dict(no_repeat_ngram_size=2), dict(suppress_tokens=[30, 31, 294])])
def test_greedy_decoding_ignores_the_checkpoints_own_generation_settings(trained, trained_prompts, setting, monkeypatch):
    """Hub checkpoints ship a generation_config (Qwen: a repetition penalty); greedy means the argmax all the same."""
    plain = decode(trained, trained_prompts[:4])
    for name, value in setting.items():
        monkeypatch.setattr(trained.hf.generation_config, name, value)
    assert decode(trained, trained_prompts[:4]) == plain


def test_what_does_not_close_or_parse_is_no_action(fmt):
    def spoken(text, mode="cot", parser=str):
        words = said(fmt, fmt.encode(text), mode, parser)
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
        lead = fmt.opening("prompt") if trace is None else fmt.with_trace(trace)
        found, = choose(model, prompt, prompt.decision.admissible, [trace])
        for row, candidate in zip(found, prompt.decision.admissible):
            action = fmt.action_ids(candidate)
            plain = plain_logp(model, [*prompt.ids, *lead, *action], len(action))
            assert row.tolist() == pytest.approx([plain, plain / len(action)], abs=1e-4)


def test_candidates_are_ordered_freely_and_may_begin_one_another(llama, prompts):
    """The closing tag counts, so "go to drawer 1" is not preferred for being the beginning of "go to drawer 11"."""
    names = ["go to drawer 1", "go to drawer 11", "take mug 1 from drawer 1"]
    forth, back = choose(llama, prompts[0], names)[0], choose(llama, prompts[0], names[::-1])[0]
    torch.testing.assert_close(forth, back.flip(0), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no admissible actions"):
        choose(llama, prompts[0], [])


def test_many_candidates_are_read_in_packs_of_a_stated_size(llama, prompts, monkeypatch):
    names = [f"go to drawer {i}" for i in range(9)]
    whole = choose(llama, prompts[0], names, [None, "Hands empty."])
    monkeypatch.setattr(decoding, "PACK_TOKENS", 20)
    assert decoding.packs_of([7, 7, 7, 30, 1, 1]) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    monkeypatch.setattr(llama, "packed", lambda *arguments, packed=llama.packed: sizes.append(len(arguments[1])) or packed(*arguments))
    sizes = []
    torch.testing.assert_close(choose(llama, prompts[0], names, [None, "Hands empty."]), whole, rtol=1e-5, atol=1e-5)
    assert len(sizes) > 4 and max(sizes) <= 20


@pytest.mark.parametrize("text, wanted", [
    ("go to desk 1", "go to desk 1"), ("  take  mug 1 from\nshelf 11 ", "take mug 1 from shelf 11"), ("move pen 2 to desk 1",) * 2,
    ("heat egg 1 with microwave 1",) * 2, ("inventory",) * 2, ("go to desk", None), ("go to desk 1.", None), ("take mug 1", None),
    ("put mug 1 in desk 1", None), ("", None), ("go to desk 1 go to desk 2", None), ("GO TO DESK 1", None)])
def test_only_the_engines_commands_parse(text, wanted):
    assert parse(text) == wanted


def test_verbs_and_targets_are_the_classes_probes_predict():
    assert [(verb(c), target(c)) for c in ("take mug 1 from shelf 2", "go to shelf 2", "inventory")] == [
        ("take", "mug"), ("go", "shelf"), ("inventory", "inventory")]


@torch.inference_mode()
@pytest.mark.parametrize("pack", [64, 300, 2048])
def test_each_beginning_is_read_once_and_its_keys_and_values_are_those_of_a_plain_pass(model, prompts, monkeypatch, pack):
    monkeypatch.setattr(generation, "PACK", pack)
    rows = [list(p.ids) for p in prompts[:7]]
    rows += [rows[0], rows[1][:-5], rows[2][:40] + rows[3][40:], rows[4] + [7, 8]]  # twice, a part, a branch, and one that goes on
    read, packed = [], HookedModel.packed
    monkeypatch.setattr(HookedModel, "packed", lambda self, prefix, ids, *a, **k: read.append(len(ids)) or packed(self, prefix, ids, *a, **k))
    layers, seen = _read(model, rows)
    assert seen.sum(1).tolist() == [len(row) for row in rows] and all(s[:len(r)].all() for s, r in zip(seen, rows))
    for i, row in enumerate(rows):
        for (keys, values), layer in zip(layers, model.read(row).layers):
            torch.testing.assert_close(keys[i, :, :len(row)], layer.keys[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(values[i, :, :len(row)], layer.values[0], rtol=1e-3, atol=1e-4)
    beginnings = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    common = sum(all(row[:n] == rows[0][:n] for row in rows) for n in range(1, min(map(len, rows)) + 1))
    if pack == 2048:
        assert sum(read) == len(beginnings) - common < sum(map(len, rows)) / 2
    assert all(n <= max(pack, max(map(len, rows))) for n in read)


@pytest.mark.parametrize("budget", [1, 400, 10_000])
def test_batches_hold_every_prompt_once_and_keep_an_episodes_together(prompts, budget):
    rows = [p.ids for p in prompts]
    groups = tree_batches(rows, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(rows)))
    assert all(len(g) == 1 or max(len(rows[i]) for i in g) * len(g) <= budget for g in groups)
    assert [tuple(rows[i]) for g in groups for i in g] == sorted(map(tuple, rows))


def test_an_episode_read_on_from_memory_continues_as_one_read_afresh(model, fmt, episodes):
    """Prompts of an episode extend one another; a prompt that does not is read from where it differs."""
    games = [e.decisions() for e in episodes["test_in_domain"][:4]]
    games[3] = games[3][:1] + episodes["test_in_domain"][5].decisions()[1:]  # another text under the same name
    memory, stop = {}, fmt.ended("cot")
    for step in range(4):
        rows = [fmt.prompt(g[step]).ids for g in games]
        suffixes = {"cot": [fmt.opening("cot")] * 4}
        with_memory = continue_each(model, rows, suffixes, stop, 6, batch_tokens=700, memory=memory, names=range(4))
        afresh = continue_each(model, rows, suffixes, stop, 6)
        assert [c.ids for c in with_memory["cot"]] == [c.ids for c in afresh["cot"]]
        assert {name: ids for name, (ids, _) in memory.items()} == dict(enumerate(rows))
        assert all(k.shape[1] == len(ids) for ids, layers in memory.values() for k, _ in layers)
