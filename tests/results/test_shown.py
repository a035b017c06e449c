"""Results: equal by value, one line of shapes, an escaped table, a frame, and what other libraries take."""

import dataclasses
import importlib
import re

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.engine.activations import Activations
from interp.engine.decoding import Completion
from interp.measures.ablation import Ablation
from interp.measures.conflicts import Contrast, Outcome, Shift
from interp.measures.early import EarlyAnswers
from interp.measures.features import FeatureAblation, Features
from interp.measures.lens import Lens
from interp.measures.own_traces import OwnTraceEffects
from interp.measures.reliance import Reliance
from interp.measures.shares import Shares
from interp.measures.steered import Steered, Steering
from interp.measures.steered_answers import SteeredAnswers
from interp.measures.sweep import Sweep
from interp.probing.mdl import MDLResult
from interp.probing.probes import ProbeResult
from interp.probing.transfer import TransferResult
from interp.results.shown import Incomplete, Plotted, Shown, same, table_html

HOSTILE = "<script>alert(1)</script>\u202e&\n"


def sweep(at="boundary", pairs=4, sites=("resid_pre", "attn_out"), seed=0, **more):
    rng = np.random.default_rng(seed)
    shape = (pairs, len(sites), 3, 5) if at == "all" else (pairs, len(sites), 3)
    denoise = rng.normal(size=shape)
    denoise[1] = np.nan
    clean = np.full(pairs, 2.0)
    clean[1] = 0.5
    tokens = tuple(("a", " b", "\n", f"{HOSTILE} → d", "e")[: 5 - (p == 2)] for p in range(pairs))
    more = dict(tokens=tokens) | more if at == "all" else more
    return Sweep(sites, clean, np.zeros(pairs), denoise, denoise / 2, denoise * 2, **more)


def activations(**more):
    values = torch.arange(2 * 2 * 3 * 8, dtype=torch.float32).view(2, 2, 3, 8)
    fields = dict(
        values=values,
        sites=("resid_pre", "z"),
        layers=(0, 1, 2),
        prompts=("p0", "p1"),
        weights_hash="w",
        dtype="torch.float32",
        paths=("plain", "plain"),
    )
    return Activations(**{**fields, **more})


def outcome(kind="other_state", seed=0, n=6):
    rng = np.random.default_rng(seed)
    action = [str(each) if each != "d" else None for each in rng.choice(list("abcd"), n)]
    return Outcome(
        kind,
        np.arange(n),
        action,
        ["a"] * n,
        ["b"] * n,
        np.zeros(n, bool),
        -np.ones(n),
        -np.ones(n),
        [[1]] * n,
    )


def early(n=4):
    share = [np.array([0, 0.5, 1.0])] * n
    same = [np.array([i % 2 == 0, True, True]) for i in range(n)]
    distance = [np.array([0.6, 0.2, 0.0])] * (n - 1) + [np.array([])]
    return EarlyAnswers(np.arange(n), share, same, distance, [np.array([False, False, True])] * n)


def steering():
    def cell(kind, alpha, directions=1):
        action = [["look", None, "go"] for _ in range(directions)]
        flip = np.array([[alpha > 0, True, False]] * directions)
        parsed = np.array([[True, False, True]] * directions)
        return Steered(kind, alpha, action, flip, parsed, parsed, flip & parsed)

    cells = (cell("probe", 0.0), cell("probe", 1.0), cell("orthogonal", 0.0, 2), cell("orthogonal", 1.0, 2))
    before = ["look", "look", "go"]
    return Steering("cot", "cot", 1, 2.0, "shelf", "batched", before, np.zeros(3, bool), cells)


def steered_answers():
    effect = np.arange(18.0).reshape(3, 2, 3)
    return SteeredAnswers(1, 2.0, ("probe", "orthogonal", "orthogonal"), (-1.0, 1.0), np.ones(3), effect)


def probed():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(40, 3, 4))
    labels = np.where(acts[:, 1, 0] > 0, "shelf", "drawer")
    types = [f"type {i % 4}" for i in range(40)]
    return interp.probe(
        acts,
        labels,
        np.arange(40) // 2,
        prompts=[f"a {i}" for i in range(40)],
        types=types,
        draws=50,
        folds=2,
    )


def transferred():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(40, 2, 4))
    labels = np.where(acts[:, 1, 0] > 0, "shelf", "drawer").tolist()
    module = importlib.import_module("interp.probing.transfer")
    return module.transfer(
        {0: acts, 5: acts + 1}, {0: labels, 5: labels}, np.arange(40) // 2, folds=2, draws=50
    )


def coded():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(60, 4))
    labels = np.where(acts[:, 0] > 0, "shelf", "drawer")
    module = importlib.import_module("interp.probing.mdl")
    return module.mdl(acts, labels, np.arange(60) // 2, shares=(0.25, 0.5, 1.0), draws=50)


def reliance(n=5):
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(2, 1, n) for name in ("direct", "via_cot", "total", "via_text", "via_state")}
    return Reliance(**parts, kept=np.arange(n), dropped=2)


def own_traced(n=5):
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(2, 1, n) for name in ("direct", "indirect", "total")}
    return OwnTraceEffects(**parts, kept=np.arange(n), dropped=2, samples=4, unclosed=3)


def shares():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(8), (3, 2, 4, 3))
    return Shares(share, np.full(share.shape, 1 / 8), tuple("abcd"), "w", "torch.float32")


def ablated(at="all"):
    kl = np.random.default_rng(0).uniform(size=(2, 2, 3, 4) if at == "all" else (2, 2, 3))
    texts = (("a", "b", "c", "d"), ("a", "b", "c")) if at == "all" else ()
    return Ablation(
        ("attn_out", "mlp_out"), "mean", np.full(2, np.nan), np.full(kl.shape, np.nan), kl, "packed", texts
    )


def lensed(answers=2):
    rng = np.random.default_rng(0)
    probability = -np.sort(-rng.uniform(size=(3, 4, 2)), -1)
    tokens = rng.integers(0, 9, (3, 4, 2))
    named = tuple(tuple("ab"[:answers]) for _ in range(2))
    logp, rank = np.log(rng.uniform(size=(3, 4, answers))), rng.integers(0, 9, (3, 4, answers))
    texts = tuple(HOSTILE for _ in range(24))
    places = np.array([0, 0, 1]), np.array([4, 5, 6])
    return Lens((-1, 0, 1, 2), *places, tokens, texts, probability, named, logp, rank)


def featured():
    values = np.array([[0.0, 1.5, 0.0], [2.0, 0.0, 0.5]])
    return Features("resid_post", 3, values, np.array([0, 1]), np.array([7, 9]))


MADE = {
    Features: featured,
    FeatureAblation: lambda: FeatureAblation((4, 9), np.zeros(1), np.ones((1, 2)), np.ones((1, 2))),
    Ablation: ablated,
    Lens: lensed,
    Activations: activations,
    Completion: lambda: Completion((1, 2), HOSTILE, "go"),
    Sweep: lambda: sweep("all"),
    Reliance: reliance,
    OwnTraceEffects: own_traced,
    Outcome: outcome,
    Shift: lambda: Shift(np.arange(2), *(np.array([0.5, np.nan]) for _ in range(5))),
    Contrast: lambda: Contrast(np.arange(2), *(np.array([True, False]) for _ in range(3))),
    EarlyAnswers: early,
    Steered: lambda: steering().cells[1],
    Steering: steering,
    SteeredAnswers: steered_answers,
    ProbeResult: probed,
    TransferResult: transferred,
    MDLResult: coded,
    Shares: shares,
}


@pytest.fixture(scope="module", params=MADE, ids=lambda kind: kind.__name__)
def result(request):
    return MADE[request.param]()


def test_every_result_is_one_line_without_an_address(result):
    line = repr(result)
    assert line.startswith(f"{type(result).__name__}(") and line.endswith(")")
    assert "\n" not in line and len(line) < 200 and "0x" not in line and "array(" not in line


def test_every_result_is_a_table_of_named_columns(result):
    frame = result.to_frame()
    assert len(frame) and frame.columns.is_unique and isinstance(frame.index, pd.RangeIndex)


def test_every_result_is_shown_small_and_escaped(result):
    page = result._repr_html_()
    assert "<table>" in page and "<script" not in page and len(page) < 20_000


def test_every_result_is_equal_by_value_and_frozen(result):
    again = dataclasses.replace(result)
    assert result == again and not result != again and result != 1
    first = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, first, None)


def test_results_that_differ_in_one_number_are_not_equal():
    values = activations().values.clone()
    values[1, 1, 2, 7] += 1
    assert activations() != activations(values=values)
    one = sweep()
    other = dataclasses.replace(one, denoise=np.where(np.isnan(one.denoise), 0, one.denoise))
    assert one != other and one == sweep() and one != sweep(pairs=5)
    assert sweep(effects={"kl": one}) == sweep(effects={"kl": sweep()}) != sweep(effects={"kl": other})


def test_every_public_result_is_shown():
    for name in (
        "Ablation",
        "Lens",
        "Activations",
        "Completion",
        "Sweep",
        "Reliance",
        "OwnTraceEffects",
        "Outcome",
        "EarlyAnswers",
        "ProbeResult",
        "Steering",
        "SteeredAnswers",
    ):
        kind = getattr(interp, name)
        assert issubclass(kind, Shown) and kind in MADE
        assert kind.__repr__ is Shown.__repr__
    assert all(each.picture for each in MADE if issubclass(each, Plotted))


def test_same_compares_nested_values():
    nan = float("nan")
    assert same([np.array([1, nan]), {"a": nan}], [np.array([1, nan]), {"a": nan}])
    assert not same([np.array([1.0])], [np.array([1.0, 2.0])]) and not same({"a": 1}, {"b": 1})
    assert not same(np.array([1]), [1]) and same(None, None) and not same((1,), [1])


def test_a_table_says_how_much_more_there_is():
    page = table_html(pd.DataFrame({f"c{i}": range(30) for i in range(20)}))
    assert "22 more rows, 8 more columns" in page and page.count("<tr>") == 9
    assert "&lt;script&gt;" in table_html(pd.DataFrame({HOSTILE: [HOSTILE * 10]}))


def test_a_sweep_as_a_frame_and_with_named_axes():
    frame = sweep("all").to_frame()
    assert list(frame.columns) == [
        *("metric", "pair", "site", "layer", "position", "token", "denoise", "noise", "moved")
    ]
    assert len(frame) == (4 * 5 - 1) * 2 * 3, "a shorter prompt has no cells beyond its end"
    row = frame.iloc[-1]
    assert row.denoise == sweep("all").denoise[3, 1, 2, 4] and row.token == "e" and row.site == "attn_out"
    both = sweep(effects={"kl": sweep(seed=1)})
    assert both.to_frame().groupby("metric", sort=False).size().to_dict() == {"difference": 24, "kl": 24}
    assert repr(both) == "Sweep(4 pairs, 2 sites, 3 layers, metrics difference, kl, 1 dropped; packed)"


def test_what_a_lens_read_is_one_table():
    frame = lensed().to_frame()
    assert frame.groupby("read").size().to_dict() == {"answer": 24, "top": 24}
    followed = frame[(frame.read == "answer") & (frame.layer == 2) & (frame.position == 6)]
    assert followed.text.tolist() == ["a", "b"] and followed.decision.tolist() == [1, 1]
    np.testing.assert_allclose(followed.probability, np.exp(lensed().logp[2, 3]))
    assert len(lensed(answers=0).to_frame()) == 24
    assert len(ablated().to_frame()) == (4 + 3) * 6 and "token" not in ablated("boundary").to_frame()


def test_steered_answers_count_the_directions_of_each_kind():
    frame = steered_answers().to_frame()
    assert frame.groupby(["kind", "direction"], sort=False).size().to_dict() == {
        ("probe", 0): 6,
        ("orthogonal", 0): 6,
        ("orthogonal", 1): 6,
    }
    row = frame.iloc[-1]
    assert (row.alpha, row.prompt, row.effect, row.base) == (1.0, 2, 17.0, 1.0)
    line = next(each for each in steered_answers().plot().data if each.name == "probe's direction")
    np.testing.assert_allclose(line.y, steered_answers().effect[0].mean(1))


def test_features_that_are_0_have_no_row():
    assert featured().to_frame().to_numpy().tolist() == [[0, 7, 1, 1.5], [1, 9, 0, 2.0], [1, 9, 2, 0.5]]


def test_named_axes(monkeypatch):
    pytest.importorskip("xarray")
    axes = sweep("all").to_xarray()
    assert axes.denoise.dims == ("pair", "site", "layer", "position") and axes.clean.dims == ("pair",)
    assert axes.denoise.sel(site="attn_out", pair=0, layer=2, position=1) == sweep("all").denoise[0, 1, 2, 1]
    assert axes.token.sel(pair=0, position=1) == " b" and axes.token.sel(pair=2, position=4) == ""
    acts = activations().to_xarray()
    assert acts.dims == ("decision", "site", "layer", "d_model")
    assert acts.sel(site="z", layer=2).values.tolist() == activations().values[:, 1, 2].tolist()
    assert shares().to_xarray().share.dims == ("definition", "version", "decision", "layer", "span")


def test_without_xarray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray"):
        sweep().to_xarray()


def test_activations_for_other_libraries():
    acts = activations()
    assert acts.numpy().shape == (2, 2, 3, 8) and acts.numpy().base is not None
    frame = acts.to_frame()
    assert list(frame.columns) == ["decision", "prompt", "site", "layer", *range(8)] and len(frame) == 12
    row = frame[(frame.decision == 1) & (frame.site == "z") & (frame.layer == 2)].iloc[0]
    assert row[list(range(8))].tolist() == acts.values[1, 1, 2].tolist() and row.prompt == "p1"
    cache = acts.to_cache()
    assert cache["resid_pre", 1].shape == (2, 1, 8)
    assert torch.equal(cache["blocks.2.attn.hook_z"][:, 0], acts.values[:, 1, 2])


def test_activations_as_a_dataset():
    pytest.importorskip("datasets")
    rows = activations().to_dataset()
    assert rows.column_names[:3] == ["decision", "prompt", "blocks.0.hook_resid_pre"] and len(rows) == 2
    assert rows[1]["blocks.2.attn.hook_z"] == activations().values[1, 1, 2].tolist()


def test_a_cache_with_its_model_has_heads_and_its_own_methods(llama, prompts, monkeypatch):
    monkeypatch.setitem(vars(llama), "bridge", object())
    acts = interp.capture(llama, prompts[:2], ["resid_pre", "z"])
    cache = acts.to_cache(llama)
    assert cache["blocks.1.attn.hook_z"].shape == (2, 1, 4, 8)
    assert cache.model is llama.bridge and "blocks.0.hook_resid_pre" in cache.keys()


def test_a_model_says_what_it_is_without_a_trial(tokenizer, llama, monkeypatch):
    line = "HookedModel(LlamaForCausalLM, 3 layers, d_model 32, 4 heads, float32, cpu; patching "
    monkeypatch.delitem(vars(llama), "support", raising=False)
    assert repr(llama) == f"{line}not tried yet)" and "support" not in vars(llama)
    assert llama.support.patch == "fast" and repr(llama) == f"{line}fast)"


@pytest.fixture(scope="module")
def pairs(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    return interp.make_pairs(fmt, decisions, 2)[:2]


def test_dropped_pairs_are_warned_of_with_the_remedy(llama, pairs):
    with pytest.warns(
        Incomplete,
        match="2 of 2 pairs are dropped .*prefers the clean action by less than 1e.06 nats .*minimum",
    ) as caught:
        swept = interp.patch(llama, *pairs, minimum=1e6)
    assert caught[0].filename == __file__  # the line that asked for it
    with pytest.raises(ValueError, match="nothing to draw: all 2 pairs were dropped"):
        swept.plot()
    with pytest.warns(Incomplete, match="2 of 2 pairs are dropped: swapping"):
        relied = interp.prompt_reliance(llama, *pairs, minimum=1e6)
    with pytest.raises(ValueError, match="nothing to draw"):
        relied.plot()
    with pytest.warns(Incomplete, match="pairs are dropped"):
        interp.attribute(llama, *pairs, minimum=1e6)


def test_what_does_not_parse_is_warned_of_with_the_remedy(llama, prompts):
    with pytest.warns(Incomplete, match="3 of 3 completions did not parse .*max_new_tokens"):
        decoded = interp.decode(llama, prompts[:3], max_new_tokens=2)
    with pytest.warns(Incomplete, match="3 of 3 decisions are left out"):
        outcomes = interp.conflict(llama, prompts[:3], decoded, ["empty"])
    with pytest.raises(ValueError, match="nothing to draw"):
        outcomes["empty"].plot()
    with pytest.warns(Incomplete, match="3 of 3 decisions are left out"):
        interp.early_answers(llama, prompts[:3], decoded)


def test_a_sweep_knows_its_tokens(llama, pairs):
    pairs = [each[:1] for each in pairs]
    swept = interp.patch(llama, *pairs, at="all", minimum=-1e9)
    texts = swept.tokens[0]
    assert len(texts) == len(pairs[0][0].ids) and any(" → " in text for text in texts)
    assert interp.attribute(llama, *pairs, minimum=-1e9).tokens == swept.tokens
    assert re.fullmatch(r"Sweep\(1 pair, 1 site, 3 layers, \d+ positions, 0 dropped; packed\)", repr(swept))
