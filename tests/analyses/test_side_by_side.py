"""Studies of several environments side by side: what is merged, what is said of their splits, what is drawn
and what is refused."""

import json
import shutil

import pandas as pd
import pytest

from analyses import environments as side
from interp.plots.environments import ENVIRONMENTS
from interp.plots.registry import figures
from interp.results.tables import read_table, seal_table


@pytest.fixture
def study(tmp_path):
    """Makes a study's folder: the shipped study's tables under another environment's name."""

    def make(name, tables=("behaviour", "conflict", "probes")):
        folder = tmp_path / f"run-{name}" / "tables"
        folder.mkdir(parents=True)
        for table in tables:
            for suffix in ("csv", "json"):
                shutil.copy(side.FIGURES / "tables" / f"{table}.{suffix}", folder)
            made = json.loads((folder / f"{table}.json").read_text())
            (folder / f"{table}.json").write_text(
                json.dumps(made | dict(environment=dict(name=name, source="")))
            )
            seal_table(folder, table)
        return folder.parent

    return make


@pytest.fixture
def html_only(monkeypatch):
    monkeypatch.setattr("interp.plots.export.save_static", lambda *_, **__: [])


def test_studies_are_merged_without_a_change_of_their_numbers(study, tmp_path, html_only):
    side.run(side.Config(runs=(study("twc"), study("scienceworld", ("behaviour",))), out=tmp_path / "out"))
    merged, made = read_table(tmp_path / "out" / "tables", "environments")
    assert list(dict.fromkeys(merged.environment)) == ["alfworld", "scienceworld", "twc"] and set(
        made["studies"]
    ) == {"alfworld", "scienceworld", "twc"}
    here = {
        name: rows.set_index(["step", "split", "metric"]).sort_index()
        for name, rows in merged.groupby("environment")
    }
    told = (
        pd.read_csv(side.FIGURES / "tables" / "reliance.csv")
        .query("metric == 'prompt_reliance'")
        .set_index(["step", "split", "metric"])
        .sort_index()
    )
    ours = here["alfworld"].query("metric == 'prompt_reliance'")
    assert ours[["value", "low", "high", "n", "n_groups"]].equals(
        told[["value", "low", "high", "n", "n_groups"]]
    )
    assert set(here["twc"].reset_index().metric) == {
        "acc_cot",
        "acc_prompt",
        "choice_cot_sum",
        "choice_gap_sum",
        "choice_prompt_sum",
        "gap",
        "parse_cot",
        "parse_prompt",
        "keep",
        "follow",
        "probe_gain",
    }
    assert not {"keep", "prompt_reliance", "success_cot"} & set(here["scienceworld"].reset_index().metric)
    assert not merged.duplicated(["environment", "step", "split", "metric"]).any()


def test_a_study_that_is_added_keeps_the_ones_before(study, tmp_path, html_only):
    side.run(side.Config(runs=(study("twc"),), out=tmp_path / "out"))
    side.run(side.Config(out=tmp_path / "out"))
    assert set(read_table(tmp_path / "out" / "tables", "environments")[0].environment) == {"alfworld", "twc"}


def test_the_splits_are_counted_from_what_is_recorded(study, tmp_path, html_only):
    side.run(side.Config(runs=(study("twc"),), out=tmp_path / "out"))
    splits = read_table(tmp_path / "out" / "tables", "splits")[0].set_index(["environment", "split"])
    found = splits.loc["ALFWorld", "in domain"]
    assert found.task_types == 4 and found.episodes == 200 and found.studied == 400 and found.decisions > 1000
    assert (
        splits.loc[("ALFWorld", "out of domain")].task_types == 2
        and (splits.studied == 400).all()
        and splits.holds.str.len().gt(10).all()
    )
    assert set(splits.index.get_level_values(0)) == {ENVIRONMENTS["alfworld"], ENVIRONMENTS["twc"]}


def test_the_page_shows_the_table_and_both_splits_and_misses_nothing(study, tmp_path, html_only):
    side.run(side.Config(runs=(study("twc", ("behaviour",)),), out=tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text()
    assert [
        name in page for name in ("splits-figure", "environments-figure", "environments_readings-figure")
    ] == [True] * 3
    assert "Not drawn" not in page and '<th scope="row">TextWorld Commonsense</th>' in page


def test_environments_are_drawn_where_an_action_is_right_and_the_others_are_named():
    frame, frame.attrs = read_table(side.FIGURES / "environments" / "tables", "environments")
    by_name = {each.name: each for each in figures()}
    drawn, told = by_name["environments"].draw(frame), by_name["environments"].caption(frame)
    titles = [note.text for note in drawn.layout.annotations if note.name == "title"]
    right = frame[frame["metric"].isin(("acc_cot", "acc_prompt"))].groupby("environment")["value"].max() > 0
    assert set(titles) == {ENVIRONMENTS[name] for name in right.index[right]}
    for name in right.index[~right]:
        assert f"No action is right in {ENVIRONMENTS[name]}" in told.text
    readings = by_name["environments_readings"].draw(frame)
    assert len(readings.layout.meta["panels"]) <= 6
    follow = frame.query("environment == 'alfworld' and split == 'in_domain' and metric == 'follow'")
    last = follow.loc[follow["step"].idxmax(), "value"]
    assert any(last in list(trace.x) for trace in readings.data)


def test_a_study_of_something_else_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match="is a study of the environment 'hall': side by side stand alfworld"):
        side.run(side.Config(runs=(study("hall"),), out=tmp_path / "out"))
