"""The script that compares two runs: equal tables pass; a moved number, a lost row and a renamed column are
found."""

import numpy as np
import pandas as pd
import pytest

from tests import compare_tables


@pytest.fixture
def runs(tmp_path):
    """Two runs' folders with the same two tables."""
    estimates = pd.DataFrame(
        dict(
            step=[0, 0, 800],
            arm=["own", "other", "own"],
            value=[0.25, np.nan, 1200.0],
            low=[0.1, 0.2, 0.3],
            n=[40, 40, 40],
        )
    )
    settings = pd.DataFrame(dict(environment=["alfworld", "twc"], share=[0.5, 0.25]))
    for run in ("before", "after"):
        folder = tmp_path / run / "tables"
        folder.mkdir(parents=True)
        estimates.to_csv(folder / "conflict.csv", index=False)
        settings.to_csv(folder / "splits.csv", index=False)
    return tmp_path / "before", tmp_path / "after"


def changed(run, name, change):
    file = run / "tables" / f"{name}.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)


def test_equal_runs_pass_in_any_order_of_rows(runs, capsys):
    changed(runs[1], "conflict", lambda frame: frame.iloc[::-1])
    assert compare_tables.main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["conflict", "3", "0", "0", "0"]


@pytest.mark.parametrize("by, status", [(1e-4, 0), (1e-2, 1)])
def test_numbers_are_compared_relative_to_themselves_where_they_are_large(runs, by, status):
    changed(runs[1], "conflict", lambda frame: frame.assign(value=frame["value"] + by * (frame["step"] > 0)))
    assert compare_tables.main([str(run) for run in runs]) == status
    assert compare_tables.compare_runs(*runs)["conflict"].where == "value of 800, own, 0"


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.iloc[1:],
        lambda frame: pd.concat([frame, frame.iloc[:1]]),
        lambda frame: frame.fillna(0.0),
        lambda frame: frame.assign(arm=frame["arm"].str.upper()),
        lambda frame: frame.drop(columns="low"),
    ],
    ids=["a lost row", "a new row", "a gap that is filled", "other keys", "a lost column"],
)
def test_what_is_not_the_same_is_found(runs, change):
    changed(runs[1], "conflict", change)
    assert compare_tables.main([str(run) for run in runs]) == 1


def test_a_lost_table_and_a_table_without_estimates_are_compared(runs):
    changed(runs[1], "splits", lambda frame: frame.assign(share=frame["share"] + 0.1))
    found = compare_tables.compare_runs(*runs)["splits"]
    assert found.compared == 2 and found.difference == pytest.approx(0.1)
    (runs[1] / "tables" / "splits.csv").unlink()
    assert compare_tables.compare_runs(*runs)["splits"].missing == 2
    with pytest.raises(FileNotFoundError, match="has no tables"):
        compare_tables.compare_runs(runs[0] / "nowhere", runs[1])


def test_a_renamed_column_is_the_same_column(runs):
    changed(runs[1], "conflict", lambda frame: frame.rename(columns={"arm": "inserted_trace"}))
    assert compare_tables.main([str(run) for run in runs]) == 0
    changed(runs[1], "conflict", lambda frame: frame.rename(columns={"inserted_trace": "something"}))
    assert compare_tables.main([str(run) for run in runs]) == 1
