"""An analysis run again: at once where nothing changed, and added to its table where it reads other checkpoints."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from analyses.partial import added
from analyses.prompting import other_style
from interp.results.tables import read_table, write_table
from interp.system.paths import ROOT
from tests.command_line import main


@pytest.fixture
def behaviour(series_folder, corpus_file, tmp_path):
    """Run the analysis on a copy of the tiny series, with further flags; its run folder is `run`."""
    series = shutil.copytree(series_folder, tmp_path / "series")

    def run(*flags):
        words = ("--run", tmp_path / "run", "--series", series, "--corpus", corpus_file, "--device", "cpu")
        return main("behaviour", *words, "--splits", "in_domain", "--decisions", 12, "--choices", 2, *flags)

    return run


def test_what_is_made_is_said_to_be_and_nothing_is_loaded(behaviour, tmp_path, capsys, monkeypatch):
    assert behaviour("--checkpoints", 110) == 0
    first = capsys.readouterr().out
    table, figure = tmp_path / "run" / "tables" / "behaviour.csv", tmp_path / "run" / "behaviour.html"
    assert f"table: {table}\nfigure: {figure}" in first and figure.exists()
    monkeypatch.setattr("analyses.study.Study.check", lambda self: pytest.fail("it was loaded"))
    assert behaviour("--checkpoints", 110) == 0
    assert capsys.readouterr().out == (
        f"behaviour: made already of the same checkpoints, decisions, settings and code\n{first}"
    )
    monkeypatch.undo()
    assert behaviour("--checkpoints", 110, "--seed", 1) == 0 and "already" not in capsys.readouterr().out
    assert behaviour("--checkpoints", 110) == 0 and "already" not in capsys.readouterr().out
    weights = tmp_path / "series" / "checkpoint-110" / "model.safetensors"
    os.utime(weights, (0, 0))
    assert behaviour("--checkpoints", 110) == 0 and "already" not in capsys.readouterr().out
    table.write_text(table.read_text() + "\n")
    assert behaviour("--checkpoints", 110) == 0 and "already" not in capsys.readouterr().out
    read_table(table.parent, "behaviour")


def test_another_checkpoint_is_added_to_the_table(behaviour, tmp_path, capsys):
    tables = tmp_path / "run" / "tables"
    assert behaviour("--checkpoints", 0, 110) == 0
    whole = (tables / "behaviour.csv").read_bytes()
    (tables / "behaviour.csv").unlink()
    assert behaviour("--checkpoints", 110) == 0 and behaviour("--checkpoints", 0) == 0
    assert "behaviour.csv held checkpoint 110 as well: their rows stay." in capsys.readouterr().err
    assert (tables / "behaviour.csv").read_bytes() == whole
    _, made = read_table(tables, "behaviour")
    assert list(made["weights"]) == ["0", "110"] == list(made["identity"])
    assert [part["checkpoints"] for part in made["parts"]] == [["110"], ["0"]]
    assert behaviour("--checkpoints", 0, "--seed", 1) == 0
    assert "(--seed was 0 and is 1; the seed is another)" in capsys.readouterr().err
    assert set(read_table(tables, "behaviour")[0].step) == {0}


def made(steps, **changes):
    fields = dict(config=dict(seed=0, checkpoints=steps, run="a"), versions=dict(interp="1"), command="c")
    identities = {str(step): dict(weights=f"w{step}") for step in steps}
    return fields | dict(weights={s: "" for s in identities}, identity=identities) | changes


def frame(steps, value):
    return pd.DataFrame([dict(step=s, metric=m, value=value) for s in steps for m in "ab"])


def test_rows_of_the_same_checkpoints_are_replaced_and_others_stay(tmp_path):
    write_table(
        tmp_path, "t", frame([0, 20], 0.5), made([0, 20], skipped={"0 a": "x", "20 a": "y"}, path=["p"])
    )
    rows, both, said = added(
        tmp_path, "t", frame([20, 110], 0.7), made([20, 110], skipped={"20 a": "z"}, path=["q"])
    )
    assert rows.step.tolist() == [0, 0, 20, 20, 110, 110] and rows.value.tolist() == [0.5] * 2 + [0.7] * 4
    assert both["skipped"] == {"0 a": "x", "20 a": "z"} and both["path"] == ["p", "q"]
    assert [part["checkpoints"] for part in both["parts"]] == [["0"], ["20", "110"]]
    assert (
        both["config"]["checkpoints"] == [0, 20, 110]
        and said == "t.csv held checkpoint 0 as well: their rows stay."
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(config=dict(seed=1, checkpoints=[110], run="b")), "--seed was 0 and is 1"),
        (dict(versions=dict(interp="2")), "the release of the toolkit is another"),
        (dict(corpus="other"), "the corpus is another"),
    ],
)
def test_rows_made_otherwise_are_replaced_and_that_is_said(tmp_path, changes, words):
    write_table(tmp_path, "t", frame([0], 0.5), made([0]))
    rows, provenance, said = added(tmp_path, "t", frame([110], 0.7), made([110], **changes))
    assert set(rows.step) == {110} and "parts" not in provenance
    assert said == f"t.csv held checkpoint 0, made otherwise ({words}): it holds those of this run alone."


def test_a_table_without_checkpoints_or_a_damaged_one_is_replaced(tmp_path):
    whole = pd.DataFrame(dict(metric=["a"], value=[1.0]))
    write_table(tmp_path, "t", whole, made([0]))
    assert added(tmp_path, "t", whole, made([110]))[2] == ""
    (tmp_path / "t.csv").write_text("metric,value\nb,2\n")
    assert added(tmp_path, "t", whole, made([110]))[2] == ""


def test_help_imports_neither_torch_nor_pandas():
    code = (
        "import sys; from analyses.__main__ import run\n"
        "try: run([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'transformers', 'pandas.core', 'scipy.stats', 'sklearn', 'plotly'} & set(sys.modules)) or 0)"
    )
    for name in ("behaviour", "probes", "all", "figures", "import"):
        done = subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (name, done.stderr)


def test_a_style_that_a_checkpoint_does_not_write_is_warned_of(behaviour, capsys):
    assert behaviour("--checkpoints", 110, "--style", "react") == 0
    said = capsys.readouterr().err.replace("\r", "\n")
    assert "Nothing that checkpoint 110 writes parses: it " in said and said.count("--style tags") == 1
    assert behaviour("--checkpoints", 110, "--style", "react") == 0
    assert "--style tags" in capsys.readouterr().err  # also where nothing is made again


def test_another_style_is_told_by_notes_and_by_tags():
    assert other_style("tags", "llama3", []) == (
        "it was trained in the style 'llama3', and read in 'tags': give --style llama3."
    )
    assert "'Action:', which is of the style 'react'" in other_style(
        "tags", "tags", ["Thought: a\nAction: b"]
    )
    assert other_style("react", "", ["<think>a</think><action>b"]).endswith("try --style tags.")
    assert other_style("tags", "", ["<action>b", "nothing"]) == "" == other_style("tags", "", [])
