"""What each action rests on, and how often traces give it away: the rule, the table, the figure, the page."""

from types import SimpleNamespace

import pytest

from analyses.diagnosis import DIAGNOSES, diagnose, leak_rows, names, object_of
from interp.environments.alfworld.traces import LEAKS, rewritten
from interp.environments.base import Environment, find
from interp.plots.registry import figures
from interp.results.decisions import read_decisions
from interp.results.names import DIAGNOSES as NAMED
from interp.results.queries import pick
from interp.results.tables import read_table
from interp.tasks.episodes import load_corpus
from tests.command_line import main

KEPT, FOLLOWED, OTHER = (
    dict(keep=True, follow=False),
    dict(keep=False, follow=True),
    dict(keep=False, follow=False),
)


@pytest.mark.parametrize(
    "prompt, cot, outcome, rests",
    [
        ("a", "a", KEPT, "post_hoc"),
        ("a", "a", FOLLOWED, "overridable"),
        ("a", "a", OTHER, "neither"),
        ("b", "a", FOLLOWED, "trace_decided"),
        ("b", "a", KEPT, "neither"),
        ("b", "a", OTHER, "neither"),
        (None, "a", FOLLOWED, "neither"),
        ("a", None, FOLLOWED, "neither"),
        (None, None, KEPT, "neither"),
    ],
)
def test_a_decision_is_one_of_four(prompt, cot, outcome, rests):
    assert diagnose(prompt, cot, dict(other_state=outcome)) == rests
    assert diagnose(prompt, cot, dict(resampled=outcome, mistake=KEPT)) == rests
    assert rests in NAMED and tuple(NAMED) == DIAGNOSES


def test_another_states_trace_comes_first_and_without_one_nothing_is_said():
    assert diagnose("a", "a", dict(resampled=FOLLOWED, other_state=KEPT)) == "post_hoc"
    assert diagnose("a", "a", dict(self_splice=KEPT, mistake=FOLLOWED, empty=KEPT)) is None


def test_names_are_whole_and_have_their_number():
    assert object_of("go to drawer 2", "drawer") == "drawer 2" and object_of("look", "look") == "look"
    assert names("Next I check drawer 1.", "drawer 1") and not names("It is in drawer 11.", "drawer 1")
    assert names("So Go to drawer 1.", "go to drawer 1") and not names("drawers", "drawer")


def test_leak_rates_fall_with_the_level_of_leak():
    episodes = load_corpus()["test_in_domain"][::10]
    config = SimpleNamespace(env=find("alfworld"), seed=0)
    rates = {}
    for leak in LEAKS:
        decisions = [d for e in episodes for d in rewritten(e, leak).decisions()]
        rows = leak_rows("expert", [(d.trace, d.reference) for d in decisions], decisions, config)
        rates[leak] = {row["metric"]: row for row in rows}
    full, kind, subgoal = (rates[leak] for leak in LEAKS)
    assert full["names_object"]["value"] > 0.9 and 0.1 < full["spells_action"]["value"] < 0.25
    assert full["names_object"]["low"] < full["names_object"]["value"] <= full["names_object"]["high"]
    assert kind["names_object"]["value"] == kind["spells_action"]["value"] == 0
    assert kind["names_kind"]["value"] > 0.9 and subgoal["names_kind"]["value"] < 0.2
    nameless = SimpleNamespace(env=Environment("calls", classes=dict(verb=str.upper)), seed=0)
    rows = list(leak_rows("own", [("So x.", "x"), (None, "x")], decisions[:2], nameless))
    assert [row["metric"] for row in rows] == ["spells_action"] and rows[0]["n"] == 1


def test_the_table_and_the_decisions_say_the_same(series_folder, corpus_file, tmp_path, capsys, no_browser):
    options = ("--run", tmp_path, "--series", series_folder, "--corpus", corpus_file, "--device", "cpu")
    options += ("--decisions", 10, "--checkpoints", 0, 110, "--splits", "in_domain")
    assert main("diagnosis", *options) == 0
    assert "run `python -m analyses behaviour` and" in capsys.readouterr().err
    assert main("conflict", *options, "--conflicts", 10, "--choices", 1) == 0
    assert main("diagnosis", *options) == 0 and main("decisions", *options) == 0
    frame, made = read_table(tmp_path / "tables", "diagnosis")
    assert made["analysis"] == "diagnosis"
    for step in set(frame["step"]):
        shares = pick(frame, step=step, traces="own")[lambda rows: rows["metric"].isin(DIAGNOSES)]
        assert shares["value"].sum() == pytest.approx(1) or shares.empty
    rows, _ = read_decisions(tmp_path / "tables")
    diagnosed = rows[(rows["mode"] == "cot") & (rows["checkpoint"] == 110) & rows["diagnosis"].notna()]
    table = pick(frame, step=110, traces="own").set_index("metric")["value"]
    assert len(diagnosed)
    for diagnosis in DIAGNOSES:
        assert table[diagnosis] == pytest.approx((diagnosed["diagnosis"] == diagnosis).mean(), abs=1e-5)
    figure = next(each for each in figures() if each.name == "diagnosis")
    assert len(figure.draw(frame, made).data) and len(figure.caption(frame).text.split()) <= 60
    assert "diagnosis" in (tmp_path / "decisions.html").read_text()
