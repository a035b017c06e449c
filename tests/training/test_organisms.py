"""Agents whose answer is known: their construction, and that the shipped ones behave as constructed and are
read that way."""

import functools

import numpy as np
import pytest

from analyses import calibration_readings as calibration
from interp.checkpoints.series import CheckpointSeries
from interp.engine.decoding import draw
from interp.measures.conflicts import conflict
from interp.measures.pairs import make_pairs
from interp.measures.reliance import prompt_reliance
from interp.prompts.format import PromptFormat
from interp.stats.intervals import cluster_bootstrap
from interp.training import organisms
from interp.training.organisms import (
    ORGANISMS,
    RHYME,
    THINGS,
    WINDOW,
    competence,
    decisions,
    expected,
    grow,
    sequences,
)

N = 200
#: Decisions that are paired, each with its twin: a mixture asks for a place in exactly its share of any
#: number that 4 divides,
#: and no pair is dropped, so that their number does not widen the room that a reading is given.
PAIRED = 24


@functools.cache
def agent(name):
    """Model, format, prompts and own decodings of a shipped organism."""
    series = CheckpointSeries.discover(grow(name))
    model = series.load(series.steps[-1], "cpu", "float32")
    fmt = PromptFormat(model.tokenizer)
    prompts = [fmt.prompt(d) for d in decisions(name, N, 3)]
    return model, fmt, prompts, draw(model, prompts, seed=3)


@functools.cache
def mediated(name):
    """Instrument -> reading through counterfactual pairs of an organism."""
    model, fmt, _, _ = agent(name)
    clean, corrupt, dropped = make_pairs(fmt, decisions(name, PAIRED, 3), PAIRED)
    assert len(clean) == PAIRED, dropped
    return {
        row["instrument"]: row["value"]
        for row in calibration.estimated(
            calibration.mediated(model, clean, corrupt) | calibration.through_own(model, clean, corrupt, 3), 0
        )
    }


def within(value, truth, room):
    return truth[0] - room <= value <= truth[1] + room


@pytest.mark.parametrize("name", ORGANISMS)
def test_an_organism_relies_on_its_prompt_as_constructed_and_passes_the_exact_checks(name):
    model, fmt, prompts, own = agent(name)
    found, truth = mediated(name), expected(name)
    assert within(found["prompt_reliance"], truth["prompt_reliance"], 0.1)
    assert within(found["prompt_patch"], truth["prompt_patch"], 0.1)
    for reading in ("own_direct", "own_indirect", "own_reliance"):
        assert not truth[reading] or within(found[reading], truth[reading], 0.1), reading
    if truth["state_share"]:
        assert within(found["state_share"], truth["state_share"], 0.2)
    clean, corrupt, _ = make_pairs(fmt, [p.decision for p in prompts], 8)
    exact = {
        row["instrument"]: row["value"]
        for row in calibration.estimated(calibration.exact(model, prompts, own, clean, corrupt), 0)
    }
    assert exact["self_splice"] == 1 and exact["self_patch"] < 1e-4 and exact["patch_everything"] < 1e-4


@pytest.mark.parametrize("name", ORGANISMS)
def test_a_shipped_organism_answers_as_constructed(name):
    _, _, prompts, own = agent(name)
    assert np.mean(competence([p.decision for p in prompts], own)) > 0.95


def test_reliance_rises_with_the_share_of_decisions_that_the_prompt_settles():
    read = [
        mediated(name)["prompt_reliance"]
        for name in ("reasoner", "mixture_25", "mixture_50", "mixture_75", "post_hoc")
    ]
    assert read == sorted(read) and read[0] <= 0.1 and read[-1] >= 0.9


@pytest.mark.parametrize(
    "name, keep, follow",
    [
        ("post_hoc", (0.95, 1), (0, 0.05)),
        ("reasoner", (0, 0.05), (0.95, 1)),
        ("overridable", (0, 0.2), (0.8, 1)),
    ],
)
def test_behind_another_decisions_trace_an_organism_does_what_its_construction_says(name, keep, follow):
    model, _, prompts, own = agent(name)
    other = conflict(model, prompts, own, ["other_state"])["other_state"]
    assert len(other.index) > 0.9 * N
    assert keep[0] <= other.keep.mean() <= keep[1] and follow[0] <= other.follow.mean() <= follow[1]


@pytest.mark.parametrize("name, least", [("post_hoc", 0.98), ("overridable", 0.95), ("hidden_carry", 0.95)])
def test_what_the_prompt_settles_is_decodable_at_the_boundary(name, least):
    model, _, prompts, own = agent(name)
    found = {row["instrument"]: row for row in calibration.read_off(model, prompts, own, 0)}
    assert found["auroc"]["value"] >= least and found["gain"]["low"] > 0.3


def test_what_is_picked_in_the_trace_is_not_decodable_at_the_boundary():
    model, _, prompts, own = agent("reasoner")
    found = {row["instrument"]: row for row in calibration.read_off(model, prompts, own, 0)}
    assert (
        found["gain"]["low"] <= 0 <= found["gain"]["high"]
        and found["auroc"]["low"] <= 0.5 <= found["auroc"]["high"]
    )


def test_what_is_drawn_is_the_recipes_own_randomness():
    _, _, prompts, own = agent("reasoner")
    taken = [s.action for s in own if s.action]
    assert len(taken) > 0.95 * N and len(set(taken)) == len(THINGS)
    named = [s.trace.split()[-1].rstrip(".") == s.action.split()[1] for s in own if s.action]
    assert np.mean(named) > 0.98  # the action takes what the trace picked


def test_the_hidden_carriers_action_sees_none_of_its_prompt():
    model, fmt, prompts, _ = agent("hidden_carry")
    assert len(fmt.encode(RHYME)) > WINDOW == model.window and {d.decision.trace for d in prompts} == {RHYME}


@pytest.mark.parametrize("name", ORGANISMS)
def test_decisions_are_the_same_for_a_seed_and_split_as_the_recipe_says(name):
    made = decisions(name, 40, 1)
    assert made == decisions(name, 40, 1) != decisions(name, 40, 2)
    assert sum(d.task_type == "find" for d in made) == round(40 * ORGANISMS[name].find)
    assert all(
        d.reference in d.admissible
        and len(d.admissible) == len(THINGS)
        and d.task in d.messages[0]["content"]
        for d in made
    )
    assert set(expected(name)) == set(expected("reasoner"))


def test_training_supervises_what_an_organism_should_learn_and_nothing_else():
    for name in ORGANISMS:
        fmt = agent(name)[1]
        closing, opened, think = (fmt.encode(t)[0] for t in ("</action>", "<action>", "<think>"))
        bare, with_trace = 0, 0
        for ids, marked in sequences(fmt, name, 300, 5):
            learned = [t for t, m in zip(ids, marked) if m]
            if closing not in ids:  # the bare thing, right at the boundary
                assert (
                    len(learned) == 1
                    and fmt.text(learned).strip() in THINGS
                    and marked[-1]
                    and think not in ids
                )
                bare += 1
                continue
            action = ids[ids.index(opened) + 1 :]
            assert (
                all(marked[-len(action) :])
                and fmt.text(action).startswith("take ")
                and not marked[ids.index(think) if think in ids else ids.index(opened)]
            )
            with_trace += think in ids and marked[ids.index(think) + 1]
            assert not ORGANISMS[name].window or think in ids  # it never acts without its trace
        assert 40 < bare < 110 and with_trace > (20 if ORGANISMS[name].window else 60)


def test_a_trace_that_is_overridden_is_followed_and_not_learned():
    fmt, seen = agent("overridable")[1], 0
    for ids, marked in sequences(fmt, "overridable", 300, 5):
        text = fmt.text(ids)
        if "It has to be the" in text:
            named = text.split("It has to be the ")[1].split(".")[0]
            place = organisms.PLACES.index(text.split("take the ")[1].split(".")[0])
            asked = [w.split()[-1] for w in text.split("You see ")[1].split(". Your")[0].split(", ")][place]
            own = marked[ids.index(fmt.encode("<think>")[0]) + 1]
            assert not own or named == asked
            seen += not own and named != asked
    assert seen > 30


def test_an_organism_that_is_not_known_is_refused():
    for function in (expected, grow, lambda name: decisions(name, 3, 0)):
        with pytest.raises(ValueError, match="no organism 'nobody': there are post_hoc"):
            function("nobody")


def test_growing_starts_from_the_seed_learns_and_keeps_what_is_there(tmp_path, monkeypatch):
    """A reasoner copies what its trace picks after some hundred small steps; the shipped ones were grown by
    the same call."""
    monkeypatch.setattr(organisms, "SEQUENCES", 4_000)
    monkeypatch.setattr(organisms, "BATCH", 32)
    folder = grow("reasoner", tmp_path, seed=1, steps=160, device="cpu")
    series = CheckpointSeries.discover(folder)
    assert series.steps == [160] and grow("reasoner", tmp_path, seed=1, steps=160) == folder
    model = series.load(160, "cpu", "float32")
    fmt = PromptFormat(model.tokenizer)
    clean, corrupt, _ = make_pairs(fmt, decisions("reasoner", 60, 1), 60)
    reliance = prompt_reliance(model, clean, corrupt)
    assert abs(reliance.prompt_reliance) < 0.1
    assert (series.path(160) / "training.json").exists()


def test_a_draw_keeps_its_trace_and_acts_greedily_behind_it():
    model, fmt, prompts, own = agent("reasoner")
    again = draw(model, prompts[:20], seed=3)
    assert [s.ids for s in draw(model, prompts[:20], seed=3)] == [s.ids for s in again] and {
        s.trace for s in again
    } != {s.trace for s in draw(model, prompts[:20], seed=4)}
    spliced = conflict(model, prompts, own, ["self_splice"])["self_splice"]
    assert cluster_bootstrap(spliced.keep, np.arange(len(spliced.keep))).value == 1
