"""What the engine asks of a GPU, held by counts on a CPU: passes, fetches and waits."""

import numpy as np
import pytest
import torch

from analyses.benchmarks import counted_works
from analyses.benchmarks.counted_works import Inputs, counted, spoken, works
from analyses.benchmarks.counting import counting, is_marked
from interp.engine import bundles
from interp.engine.capturing import capture
from interp.measures.ablation import ablate
from interp.measures.early import early_answers
from interp.measures.patching import patch
from interp.models.devices import fetched, sent
from interp.models.hooked import HookedModel
from interp.results.tables import read_table
from interp.system.paths import ROOT
from tests.conftest import tiny_hf

#: What must not grow with depth, pairs or tokens.
FEW = ("passes", "fetches", "sends", "waits")


@pytest.fixture(autouse=True, scope="module")
def rows_as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(bundles, "DEVICES", ())
        yield


def numbers(counts):
    return {name: getattr(counts, name) for name in FEW}


# the counter

WAITING = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 1),
    "int": lambda x: int(x[0]),
    "text": lambda x: f"{x[0]:.2f}",
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to a name": lambda x: x.to("cpu"),
    "to a tensor": lambda x: x.to(torch.zeros(1)),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "nonzero": lambda x: (x > 1).nonzero(),
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: x.unique(),
    "a mask": lambda x: x[x > 1],
    "a list": lambda x: x[[0, 1]],
    "a tensor of the CPU": lambda x: x[torch.tensor([0, 1])],
    "an index of one number": lambda x: x[x.long()[0]],
    "made": lambda x: torch.tensor([1, 2], device=x.device),
    "sent": lambda x: torch.tensor([1, 2]).to(x.device),
    "assigned": lambda x: x.__setitem__(slice(2), torch.ones(2)),
    "read by an assignment": lambda x: torch.zeros(6).__setitem__(slice(2), x[:2]),
    "copied": lambda x: x.copy_(torch.ones(6)),
    "repeated": lambda x: x.repeat_interleave(x.long()),
}
FREE = {
    "views": lambda x: (x[2:].view(2, 2), *x),
    "sums": lambda x: (x + 1).sum() + torch.tensor(2.0),
    "indices of the device": lambda x: x[x.long()] + x.gather(0, x.long()),
    "a dtype": lambda x: x.to(torch.float64),
    "a number assigned": lambda x: x.__setitem__(x > 1, 0),
    "made there": lambda x: torch.zeros(3, device=x.device) + torch.arange(3, device=x.device),
    "of the CPU alone": lambda x: torch.tensor([1, 2])[[0]].tolist(),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("what", [*WAITING, *FREE])
def test_what_the_cpu_has_to_wait_for_is_counted(llama, what, grad):
    with torch.inference_mode(not grad), counting(llama) as counts:
        x = torch.arange(6.0, device=llama.device)
        (WAITING | FREE)[what](x)
    assert counts.waits.total() == (what in WAITING), counts.waits
    assert counts.fetches == counts.sends == 0
    assert all("test_counts.py" in place for place in counts.waits)


def test_the_proper_ways_are_counted_apart_and_lead_from_one_machine_to_the_other(llama):
    with counting(llama) as counts:
        there = sent(torch.arange(3), llama.device)
        here = fetched(there * 2)()
        assert is_marked(there) and not is_marked(here) and here.tolist() == [0, 2, 4]
        assert there.device == llama.device != here.device
    assert (counts.sends, counts.fetches, counts.kernels) == (1, 1, 1) and not counts.waits


def test_what_a_gpu_refuses_is_refused(llama):
    with counting(llama), pytest.raises(RuntimeError, match="add takes tensors of the device and of the CPU"):
        torch.ones(2, device=llama.device) + torch.ones(2)
    with counting(llama), pytest.raises(RuntimeError, match="indexed by one of the device"):
        torch.ones(2)[torch.zeros(1, dtype=torch.long, device=llama.device)]


def test_passes_tokens_and_masks_are_those_of_a_known_capture(llama, prompts):
    one, other = prompts[0], prompts[-1]
    a, b = len(one.ids), len(other.ids)
    counts = counted(llama, lambda: capture(llama, [one, other], layers=[0, 1]))
    assert (counts.passes, counts.tokens, counts.padding) == (1, 2 * max(a, b), abs(a - b)) and a != b
    assert (counts.blocks, counts.block_tokens) == (2, 4 * max(a, b))  # the last block is passed over
    assert counts.mask_bytes == counts.unembedded == 0
    with counting(llama) as counts:
        llama.mask(torch.ones(2, 3, 5, dtype=torch.bool), torch.ones(2, 3), torch.ones(2, 5))
        llama.logits(torch.zeros(4, llama.d_model, device=llama.device))
    assert counts.mask_bytes == 4 * 2 * 3 * 5 and counts.unembedded == 4


def test_nothing_is_left_on_a_model_that_was_counted(llama, prompts):
    before = capture(llama, prompts[:2]).values
    with counting(llama):
        values = capture(llama, prompts[:2]).values
    assert torch.equal(before, values) and not {"mask", "logits"} & set(vars(llama))
    assert not any(map(is_marked, llama.hf.parameters()))
    assert not any(module._forward_pre_hooks for module in llama.hf.modules())


# the engine's properties


@pytest.fixture(scope="module")
def decisions(episodes):
    return [d for e in episodes["test_in_domain"] for d in e.decisions()]


@pytest.fixture(scope="module")
def given(llama, decisions):
    return Inputs.of(llama, decisions, 3)


@pytest.fixture(scope="module")
def all_counts(given):
    return {name: counted(given.model, work) for name, work in works(given).items() if is_quick(name)}


def is_quick(work):
    return not work.startswith(("early answers", "layer x position"))


def test_nothing_waits(all_counts):
    assert {name: counts.waits for name, counts in all_counts.items() if counts.waits} == {}


def test_a_pass_is_fetched_once(all_counts):
    by_work = {name.partition(" of ")[0]: counts for name, counts in all_counts.items()}
    assert by_work["prompt reliance"].fetches == 1
    capture = by_work["boundary capture"]
    assert (capture.fetches, capture.passes) == (1, 2), "the last block reads boundaries in a pass of its own"
    # the unpatched runs, and the pass of cells
    assert by_work["ablation"].fetches == by_work["layer sweep"].fetches == 2
    # a row of tokens a step, and the log-probabilities of what opens a mode
    assert by_work["decoding 2 modes x 3 x 8 tokens"].fetches <= 8 + 1
    # each pass over trees, after the one that reads the prompts
    assert by_work["forced choice"].fetches == by_work["forced choice"].passes - 1


def test_depth_adds_kernels_alone(given, decisions, tokenizer, all_counts):
    """Nothing is sent, fetched or awaited in a loop over layers."""
    deep = HookedModel(tiny_hf("Llama", tokenizer, num_hidden_layers=5), tokenizer)
    for name, work in works(Inputs.of(deep, decisions, 3)).items():
        if is_quick(name):
            counts, shallow = counted(deep, work), all_counts[name]
            assert numbers(counts) == numbers(shallow), name
            assert counts.kernels > shallow.kernels


@pytest.mark.parametrize("name", ["layer sweep of", "prompt reliance of"])
def test_pairs_add_nothing_but_tokens(all_counts, name):
    one, many = (counts for key, counts in all_counts.items() if key.startswith(name))
    assert numbers(one) == numbers(many) and many.tokens > 2 * one.tokens


def test_sites_cost_no_pass(all_counts):
    one = all_counts["layer sweep of a pair"]
    three = all_counts["three sites, both directions, of a pair"]
    assert numbers(three) == numbers(one)


def test_a_grid_and_early_answers_wait_for_nothing_and_fetch_a_pass_once(llama, given):
    texts = "You see a mug 1 and a pen 1. Take the", "You see a pen 1 and a mug 1. Take the"
    grid = counted(llama, lambda: patch(llama, *texts, at="all", answers=(" mug 1", " pen 1"), minimum=-1e9))
    # the unpatched runs once, and each pass of cells; what is read before is not fetched
    assert not grid.waits and grid.fetches in (grid.passes, grid.passes - 1)
    two = given.prompts[-2:]
    early = counted(llama, lambda: early_answers(llama, two, list(map(spoken, two)), max_new_tokens=3))
    # a row of tokens a step and log-probabilities; then the distributions of both
    assert not early.waits and early.fetches <= 3 + 1 + 2


def test_ablated_prompts_add_no_pass(given):
    two, three = (counted(given.model, lambda n=n: ablate(given.model, given.prompts[:n])) for n in (2, 3))
    assert numbers(two) == numbers(three)


def test_tokens_add_no_pass(given):
    """The shortest pair and the longest."""
    ends = [
        Inputs(given.model, given.prompts, given.clean[part], given.corrupt[part])
        for part in (slice(1), slice(-1, None))
    ]
    for name in ("layer sweep of a pair", "prompt reliance of a pair", "attribution of a pair"):
        short, long = (counted(given.model, works(each)[name]) for each in ends)
        assert numbers(short) == numbers(long) and long.tokens > short.tokens


def test_attributed_pairs_add_no_pass(all_counts):
    """Two passes, and one back. What a pair gives is fetched by itself, and awaited at the end."""
    one, many = all_counts["attribution of a pair"], all_counts["attribution of 3 pairs"]
    assert one.passes == many.passes == 2
    assert many.fetches == 3 * one.fetches == 6


# the table


@pytest.fixture(scope="module")
def table():
    return read_table(ROOT / "figures" / "tables", "engine_counts")[0].set_index("work")


def test_no_work_counts_more_than_in_the_committed_table(table):
    """`python -m analyses engine_counts` writes it anew. (Kernels depend on the release of torch.)"""
    given = counted_works.tiny()
    everything = works(given)
    assert list(table.index) == list(everything)
    for name, work in everything.items():
        if table.kernels[name] < 700:  # others take seconds
            counts = counted(given.model, work)
            now = {**vars(counts), "waits": counts.waits.total(), "kernels": 0}
            assert {key: n for key, n in now.items() if n > table[key][name]} == {}, name
