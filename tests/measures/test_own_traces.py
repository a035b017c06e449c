"""Effects through own traces: against plain passes one by one, drawn by decision, and counted where left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.benchmarks.counting import counting
from interp.engine import bundles, reading
from interp.engine.generation import continue_each
from interp.measures import own_traces
from interp.measures.conflicts import resample
from interp.measures.own_traces import EFFECTS, own_trace_effects
from interp.measures.pairs import make_pairs, reference_actions
from interp.results.shown import Incomplete
from interp.stats.changes import part_share

SAMPLES = 3


@pytest.fixture(scope="module")
def pairs(fmt, episodes):
    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    return make_pairs(fmt, decisions, 5, seed=2)[:2]


def effects(model, pairs, **options):
    return own_trace_effects(model, *pairs, **dict(samples=SAMPLES) | options)


def plain(model, prompt, trace, actions):
    """log p(clean action) - log p(corrupt action) after a trace, a plain pass for each."""
    lead = [*prompt.ids, *prompt.format.action_prefix(trace)]
    logp = []
    for action in actions:
        ids = torch.tensor([[*lead, *action]])
        with torch.inference_mode():
            rows = model.hf(ids).logits[0, len(lead) - 1 : -1].float().log_softmax(-1)
        logp.append(float(rows.gather(1, ids[0, len(lead) :, None]).sum()))
    return logp[0] - logp[1]


def test_prompts_are_read_once_where_there_is_room_to_keep_them(trained, pairs, monkeypatch):
    monkeypatch.setattr(bundles, "DEVICES", ())  # what is counted is a GPU's
    with counting(trained) as once:
        kept = effects(trained, pairs)
    monkeypatch.setattr(reading, "REMEMBERED", 0)
    with counting(trained) as twice:
        afresh = effects(trained, pairs)
    with torch.inference_mode(), counting(trained) as read:
        reading.read_prompts(trained, [prompt.ids for both in pairs for prompt in both])
    saved = (twice.tokens - twice.padding) - (once.tokens - once.padding)
    assert saved == read.tokens - read.padding > 0 and twice.passes > once.passes
    for name in EFFECTS:
        np.testing.assert_allclose(getattr(kept, name), getattr(afresh, name), atol=1e-4)


def test_every_effect_is_that_of_plain_passes_over_the_drawn_traces(trained, pairs):
    clean, corrupt = pairs
    found = effects(trained, pairs)
    assert found.kept.tolist() == list(range(len(clean))) and found.dropped == 0
    seeds = [own_traces._seed_of(0, prompt) for prompt in clean]
    drawn = resample(trained, [*clean, *corrupt], samples=SAMPLES, seed=seeds * 2)
    traces = [
        [prefix for each in own if (prefix := clean[0].format.decoded_prefix(each.ids))] for own in drawn
    ]
    assert found.unclosed == 2 * len(clean) * SAMPLES - sum(map(len, traces))
    for i, (a, b) in enumerate(zip(clean, corrupt)):
        actions = reference_actions(a, b)
        mean = {
            (prompt, trace): np.mean(
                [plain(trained, pair, t, actions) for t in traces[trace * len(clean) + i]]
            )
            for prompt, pair in enumerate((a, b))
            for trace in (0, 1)
        }
        slow = (mean[0, 0] - mean[1, 0], mean[0, 0] - mean[0, 1], mean[0, 0] - mean[1, 1])
        assert [getattr(found, name)[i] for name in EFFECTS] == pytest.approx(slow, abs=2e-3)
        assert found.interaction[i] == pytest.approx(slow[2] - slow[0] - slow[1], abs=4e-3)


def test_what_is_drawn_depends_on_the_decision_and_not_on_the_others(trained, pairs):
    whole, alone = effects(trained, pairs), effects(trained, [side[2:4] for side in pairs])
    for name in EFFECTS:
        np.testing.assert_allclose(getattr(whole, name)[2:4], getattr(alone, name), atol=1e-3)
    assert whole == effects(trained, pairs) != effects(trained, pairs, seed=1)


def test_a_prompt_and_itself_have_no_effect_since_both_draw_alike(trained, pairs):
    clean, corrupt = pairs
    same = [replace(a, decision=replace(a.decision, reference=b.decision.reference)) for a, b in zip(*pairs)]
    found = effects(trained, (clean, same))
    for name in EFFECTS:
        np.testing.assert_allclose(getattr(found, name), 0, atol=1e-4)


def test_prompts_of_unequal_lengths_are_a_pair(trained, pairs, fmt):
    clean, corrupt = pairs[0][0], pairs[1][0]
    longer = [dict(m) for m in corrupt.decision.messages]
    longer[0]["content"] = "Think well. " + longer[0]["content"]
    other = fmt.prompt(replace(corrupt.decision, messages=tuple(longer)))
    assert len(other.ids) > len(clean.ids)
    found = effects(trained, ([clean], [other]))
    assert len(found.kept) == 1 and np.isfinite(found.total).all()


def test_traces_that_do_not_end_and_small_totals_are_dropped_and_counted(trained, pairs):
    with pytest.warns(Incomplete, match="30 of 30 drawn traces open no action .* with them 5 of 5 pairs"):
        none = effects(trained, pairs, max_new_tokens=2)
    assert none.dropped == 5 and none.unclosed == 30 and np.isnan(none.prompt_reliance)
    assert repr(none) == "OwnTraceEffects(0 pairs, 5 dropped; 3 traces of each prompt, 30 unclosed)"
    with pytest.raises(ValueError, match="nothing to draw"):
        none.plot()
    every = effects(trained, pairs)
    bound = float(np.median(every.total))
    with pytest.warns(Incomplete, match="2 of 5 pairs are dropped: exchanging .* lower minimum"):
        found = effects(trained, pairs, minimum=bound)
    assert found.kept.tolist() == np.flatnonzero(every.total >= bound).tolist() and found.dropped == 2


def test_what_is_no_pair_is_refused(trained, pairs):
    clean, corrupt = pairs
    with pytest.raises(ValueError, match="as many clean as corrupt"):
        effects(trained, (clean, corrupt[1:]))
    with pytest.raises(ValueError, match="differ in no token"):
        effects(trained, (clean, clean))
    with pytest.raises(ValueError, match="at least one trace"):
        effects(trained, pairs, samples=0)
    suffixes = dict(cot=[[5]])
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        continue_each(trained, [[5, 6]], suffixes, lambda ids: True, 2, temperature=1.0, seed=[1, 2])


def test_prompt_reliance_is_defined_where_no_part_is_negative():
    means = np.array([[3.0, 1.0], [10.0, -0.1], [-0.1, 4.0], [3.0, -1.0], [-3.0, -1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(part_share(means), [0.75, 1.0, 0.0, np.nan, np.nan, np.nan])
