"""Activation shards on disk: found again, damaged, cut short, shared by processes."""

import json
import multiprocessing

import pytest
import torch

from interp.engine import store
from interp.engine.capturing import capture
from interp.engine.generation import continue_each
from interp.engine.store import Boundaries, Store, stored_capture, stream_capture
from interp.models.hooked import HookedModel
from interp.results.records import content_hash
from tests.conftest import tiny_hf


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD", 10)


@pytest.fixture
def asked(monkeypatch):
    """How many decisions each capture was asked for."""
    found = []
    monkeypatch.setattr(
        store,
        "capture",
        lambda model, chunk, *a, **k: found.append(len(chunk)) or capture(model, chunk, *a, **k),
    )
    return found


def test_a_second_call_reads_the_shards_and_runs_nothing(llama, prompts, tmp_path, monkeypatch):
    first = stored_capture(tmp_path, llama, prompts)
    torch.testing.assert_close(
        first.values, capture(llama, prompts, ("resid_pre", "resid_post")).values, rtol=1e-5, atol=1e-5
    )
    assert (tmp_path / "manifest.jsonl").exists() and len(list(tmp_path.glob("*.safetensors"))) == -(
        -len(prompts) // 10
    )

    def refuse(*args, **kwargs):
        raise AssertionError("a forward pass ran")

    monkeypatch.setattr(llama.inner, "forward", refuse)
    again = stored_capture(tmp_path, llama, prompts)
    assert (
        torch.equal(again.values, first.values)
        and again.prompts == first.prompts
        and set(again.paths) == {"stored"}
    )


def test_any_decisions_in_any_order_are_read_and_only_new_ones_computed(llama, prompts, tmp_path, asked):
    whole = stored_capture(tmp_path, llama, prompts[5:])
    asked.clear()
    mixed = [prompts[9], prompts[2], prompts[7], prompts[2]]
    found = stored_capture(tmp_path, llama, mixed)
    assert asked == [1] and [p != "stored" for p in found.paths] == [False, True, False, True]
    torch.testing.assert_close(found.values[[0, 2]], whole.values[[4, 2]])
    torch.testing.assert_close(found.values[1], found.values[3])


@pytest.mark.parametrize("damage", ["missing", "truncated", "emptied", "one bit"])
def test_only_a_damaged_shard_is_captured_again(llama, prompts, tmp_path, asked, capsys, damage):
    first = stored_capture(tmp_path, llama, prompts)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    data = bytearray(victim.read_bytes())
    size = len(
        next(
            json.loads(line)
            for line in (tmp_path / "manifest.jsonl").read_text().splitlines()
            if victim.name in line
        )["prompts"]
    )
    if damage == "missing":
        victim.unlink()
    else:
        data[-1] ^= 1
        victim.write_bytes(data[:100] if damage == "truncated" else b"" if damage == "emptied" else data)
    asked.clear()
    again = stored_capture(tmp_path, llama, prompts)
    assert asked == [size]
    torch.testing.assert_close(again.values, first.values, rtol=1e-5, atol=1e-5)
    assert (victim.name in capsys.readouterr().out) == (damage != "missing") and not list(
        tmp_path.glob("*.tmp")
    )
    asked.clear()
    assert torch.equal(stored_capture(tmp_path, llama, prompts).values, again.values) and asked == []


def test_a_stopped_capture_goes_on_from_its_shards(llama, prompts, tmp_path, monkeypatch):
    calls = []

    def stops(model, chunk, *args, **kwargs):
        calls.append(len(chunk))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return capture(model, chunk, *args, **kwargs)

    monkeypatch.setattr(store, "capture", stops)
    with pytest.raises(KeyboardInterrupt):
        stored_capture(tmp_path, llama, prompts)
    with open(tmp_path / "manifest.jsonl", "a") as stream:
        stream.write('{"key": "cut sho\n')
    stored_capture(tmp_path, llama, prompts)
    assert sum(calls) == len(prompts) + 10


def test_any_number_of_prompts_is_streamed_without_being_held(llama, prompts, tmp_path, asked):
    """Of a generator no more is taken than one shard before that is written."""
    taken = []

    def given():
        for prompt in (*prompts, prompts[0]):
            shards = len(list(tmp_path.glob("*.safetensors")))
            assert len(taken) - 10 * shards <= 10
            taken.append(prompt)
            yield prompt

    found, paths = stream_capture(tmp_path, llama, given())
    assert sum(asked) == len(prompts) == len(paths) and max(asked) == 10
    plain = capture(llama, prompts[3:5], ("resid_pre", "resid_post")).values
    torch.testing.assert_close(found.read([p.hash for p in prompts[3:5]]), plain, rtol=1e-5, atol=1e-5)
    again = stream_capture(tmp_path, llama, iter(prompts))[1]
    assert set(again.values()) == {"stored"} and sum(asked) == len(prompts)


def test_rows_of_other_weights_prompts_sites_or_layers_are_not_used(tokenizer, llama, prompts, tmp_path):
    first = stored_capture(tmp_path, llama, prompts[:4])
    other = HookedModel(
        tiny_hf("Llama", tokenizer, num_hidden_layers=3, rms_norm_eps=0.5), tokenizer, weights_hash="other"
    )
    assert not torch.equal(stored_capture(tmp_path, other, prompts[:4]).values, first.values)
    assert not torch.equal(stored_capture(tmp_path, llama, prompts[4:8]).values, first.values)
    assert stored_capture(tmp_path, llama, prompts[:4], ["mlp_out"]).values.shape[1] == 1
    assert torch.equal(
        stored_capture(tmp_path, llama, prompts[:4], layers=[1]).values[:, :, 0], first.values[:, :, 1]
    )
    with pytest.raises(ValueError, match="empty"):
        stored_capture(tmp_path, llama, [])
    with pytest.raises(ValueError, match="no weights_hash"):
        stored_capture(tmp_path, HookedModel(other.hf, tokenizer), prompts[:4])
    with pytest.raises(KeyError, match="no activations of prompt"):
        Store(tmp_path, {"weights": "nobody's"}).read([prompts[0].hash])


def test_a_manifest_cannot_reach_outside_its_folder(llama, prompts, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    stored_capture(tmp_path / "store", llama, prompts[:2])
    manifest = tmp_path / "store" / "manifest.jsonl"
    entry = json.loads(manifest.read_text()) | dict(file="../precious")
    entry.pop("line")
    manifest.write_text(json.dumps(entry | dict(line=content_hash(entry))) + "\n")
    with pytest.raises(ValueError, match="not in its folder"):
        stored_capture(tmp_path / "store", llama, prompts[:2])
    assert precious.read_text() == "keep me"


def _fill(folder, of, prompts, start):
    for i in range(start, start + 20):
        Store(folder, of).append(torch.full((1, 2), float(i)), [prompts[i % len(prompts)].hash])


def test_two_processes_may_fill_one_store(prompts, tmp_path):
    of, context = {"weights": "w"}, multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, of, prompts, start)) for start in (0, 1000)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and all(w.exitcode == 0 for w in workers)
    assert len(Store(tmp_path, of).read(sorted(Store(tmp_path, of).where()))) == len(
        {p for line in lines for p in line["prompts"]}
    )


def test_every_token_of_traces_is_stored_and_found_again(tmp_path, llama, prompts, monkeypatch):
    traces = ["Next I check drawer 1.", None, "Goal: mug.", "Hands empty."]
    direct = capture(llama, prompts[:4], ["resid_pre", "resid_post"], "trace", traces=traces)
    stored = stored_capture(tmp_path, llama, prompts[:4], at="trace", traces=traces)
    monkeypatch.setattr("interp.engine.store.capture", None)
    again = stored_capture(tmp_path, llama, prompts[3::-1], at="trace", traces=traces[::-1])
    assert stored.offsets == direct.offsets and stored.positions == direct.positions
    torch.testing.assert_close(stored.values, direct.values)
    assert all(torch.equal(again.rows(3 - i), stored.rows(i)) for i in range(4))
    with pytest.raises(TypeError):  # another trace is another row
        stored_capture(tmp_path, llama, prompts[:1], at="trace", traces=["Next I check drawer 2."])


@pytest.mark.parametrize("remembering", [False, True])
def test_what_is_read_to_be_continued_is_stored_as_it_is_captured(
    model, fmt, prompts, tmp_path, monkeypatch, remembering
):
    """Whatever the batches, and beside what a memory keeps; what is written does not change."""
    monkeypatch.setattr(model, "weights_hash", "of this test")
    rows, names = [p.ids for p in prompts], [p.decision.episode for p in prompts]
    variants = dict(one=[fmt.mode_prefix("cot")] * len(rows), other=[fmt.mode_prefix("prompt")] * len(rows))
    options = dict(memory={}, names=list(range(len(names)))) if remembering else {}
    for budget in (10_000, 400):
        folder = tmp_path / str(budget)
        kept = Boundaries(folder, model, prompts, ("resid_pre", "resid_post"))
        found = continue_each(model, rows, variants, lambda ids: False, 3, budget, on_read=kept, **options)
        kept.write()
        assert found == continue_each(model, rows, variants, lambda ids: False, 3, budget)
        close = dict(rtol=1e-4, atol=1e-4)
        with monkeypatch.context() as patched:
            patched.setattr(store, "capture", lambda *a, **k: pytest.fail("it was captured again"))
            kept = stored_capture(folder, model, prompts)
        assert set(kept.paths) == {"stored"}
        torch.testing.assert_close(
            kept.values, capture(model, prompts, ("resid_pre", "resid_post")).values, **close
        )


def test_what_was_stored_is_not_stored_again_while_it_is_read(llama, fmt, prompts, tmp_path):
    stored_capture(tmp_path, llama, prompts[:4])
    before = (tmp_path / "manifest.jsonl").read_text()
    variants = {mode: [fmt.mode_prefix(mode)] * 30 for mode in ("cot", "prompt")}
    kept = Boundaries(tmp_path, llama, prompts[:30], ("resid_pre", "resid_post"))
    continue_each(llama, [p.ids for p in prompts[:30]], variants, lambda ids: True, 1, on_read=kept)
    kept.write()
    added = (tmp_path / "manifest.jsonl").read_text().removeprefix(before)
    assert [len(json.loads(line)["prompts"]) for line in added.splitlines()] == [10, 10, 6]
    Boundaries(tmp_path / "none", llama, [], ("resid_post",)).write()
    assert not (tmp_path / "none").exists(), "nothing was read"


def test_what_is_read_is_stored_only_where_it_is_finite_and_the_prompt_is_named(
    llama, fmt, prompts, tmp_path, monkeypatch
):
    some = prompts[7::-1]
    variants = {mode: [fmt.mode_prefix(mode)] * 8 for mode in ("cot", "prompt")}
    read = store.at_ends

    def spoilt(model, rows, *rest):
        values = read(model, rows, *rest)
        values[rows.index(some[2].ids), 0, 1, 5] = torch.nan
        return values

    monkeypatch.setattr(store, "at_ends", spoilt)
    kept = Boundaries(tmp_path, llama, some, ("resid_post",))
    continue_each(llama, [p.ids for p in some], variants, lambda ids: True, 1, on_read=kept)
    with pytest.raises(ValueError, match="first resid_post of layer 1 at prompt 2"):
        kept.write()
    assert not list(tmp_path.glob("*.safetensors"))
