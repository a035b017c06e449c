"""Two runs compared: paired by decision where both have a table of decisions, else by their estimates."""

import numpy as np
import pandas as pd
import pytest

from analyses import compare
from interp.results.decisions import write_decisions
from interp.results.tables import read_table, write_table
from interp.stats.intervals import cluster_bootstrap
from tests.command_line import main


def decisions(steps, shares, n=40, prompt="p"):
    """A table of decisions; `shares` right in each mode, of the same decisions."""
    rows = []
    for step in steps:
        for mode, share in shares.items():
            for i in range(n):
                right = i * 7 % n < share * n
                rows.append(
                    dict(
                        decision=f"{i // 4}#{i % 4}",
                        episode=str(i // 4),
                        step=i % 4,
                        split="in_domain",
                        checkpoint=step,
                        mode=mode,
                        parsed=True,
                        is_correct=right,
                        n_admissible=3,
                        prompt=prompt,
                        area_action=i / n if mode == "cot" else None,
                    )
                )
    return pd.DataFrame(rows).astype({"is_correct": "boolean", "parsed": "boolean"})


def written(tables, frame):
    """The table of decisions, sealed."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return write_decisions(tables, rows, dict(seed=0))


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, cot in (("a", 0.5), ("b", 0.75)):
        tables = tmp_path / name / "tables"
        tables.mkdir(parents=True)
        written(tables, decisions([0, 110], dict(cot=cot, prompt=0.5)))
        base = dict(step=110, split="in_domain", n=40, n_groups=10)
        rows = [dict(base, metric="prompt_reliance", value=cot, low=cot - 0.03, high=cot + 0.04)]
        write_table(tables, "reliance", pd.DataFrame(rows), dict(seed=0))
        folders.append(tmp_path / name)
    return folders


def test_differences_are_paired_by_decision_and_drawn(runs, tmp_path, capsys):
    assert main("compare", *runs, "--run", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    frame, made = read_table(tmp_path / "out" / "tables", "compare")
    rows = frame[frame.step == 110].set_index("metric")
    assert set(rows.index) == {
        "acc_cot",
        "acc_prompt",
        "gap",
        "parse_cot",
        "parse_prompt",
        "area_action",
        "prompt_reliance",
    }
    difference = np.array([20 <= i * 7 % 40 < 30 for i in range(40)]).astype(float)
    expected = cluster_bootstrap(difference, [i // 4 for i in range(40)])
    assert rows.loc["acc_cot", ["a", "b", "value"]].tolist() == [0.5, 0.75, 0.25]
    assert rows.loc["acc_cot", ["low", "high"]].tolist() == pytest.approx(
        [expected.low, expected.high], abs=1e-5
    )
    assert rows.loc["gap", "value"] == 0.25 and rows.loc["acc_prompt", ["value", "low", "high"]].tolist() == [
        0,
        0,
        0,
    ]
    apart = rows.loc["prompt_reliance"]
    assert not apart.paired and apart.low == pytest.approx(0.25 - np.hypot(0.03, 0.04))
    assert (
        "3 of 7 readings differ at checkpoint 110" in printed and "acc_cot in_domain: 0.50 to 0.75" in printed
    )
    assert "prompt_reliance in_domain: 0.50 to 0.75, +0.25" in printed and "not paired" in printed
    assert (tmp_path / "out" / "compare.html").exists() and made["runs"] == [str(folder) for folder in runs]


def test_without_a_table_of_decisions_estimates_are_compared_and_that_is_said(runs, tmp_path, capsys):
    (runs[1] / "tables" / "decisions.parquet").unlink()
    assert main("compare", *runs, "--run", tmp_path / "out") == 0
    assert f"No paired intervals: {runs[1]} has no table of decisions" in capsys.readouterr().err
    assert read_table(tmp_path / "out" / "tables", "compare")[0].metric.tolist() == ["prompt_reliance"]


def test_runs_without_common_checkpoints_are_compared_at_their_last():
    first, second = (
        pd.concat(compare._columns(decisions(steps, dict(cot=0.5)))) for steps in ([0, 60], [7, 90])
    )
    rows = list(compare.paired(first, second, 50, 0))
    assert {(row["step_a"], row["step"]) for row in rows} == {(60, 90)} and rows[0]["value"] == 0


def test_other_prompts_are_counted_and_a_damaged_table_is_refused(runs, tmp_path, capsys):
    path = written(runs[1] / "tables", decisions([110], dict(cot=0.5), prompt="q"))
    assert main("compare", *runs, "--run", tmp_path / "out") == 0
    assert "40 decisions have other prompts in the second run." in capsys.readouterr().err
    path.write_bytes(b"PAR1 damaged")
    assert main("compare", *runs, "--run", tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert (
        errors.startswith("error: ")
        and "is damaged, or no table of decisions" in errors
        and errors.count("\n") == 1
    )
    assert (
        main("compare", tmp_path / "gone", runs[0]) == 1
        and "--runs: there is no file" in capsys.readouterr().err
    )
    (tmp_path / "empty").mkdir()
    assert (
        main("compare", tmp_path / "empty", runs[0]) == 1
        and "no reading in common" in capsys.readouterr().err
    )
