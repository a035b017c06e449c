"""A run's manuscript: it compiles, names what is missing, and holds the run's numbers and provenance."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from analyses import manuscript
from interp.plots.look import Look
from interp.results.estimates import estimate
from interp.results.tables import write_table
from tests.plots.test_latex import HOSTILE, needs_latex, overfull
from tests.plots.test_plots import PROVENANCE, TABLES

ROOT = Path(__file__).parents[2]
MADE = dict(
    PROVENANCE,
    command="python -m analyses behaviour --series " + "folder_1/" * 30,
    config=dict(series=HOSTILE, size="quick", seed=3),
    corpus="fb02ceb511e2e26f" * 4,
    device="cpu",
    dtype="torch.float32",
    environment=dict(name=HOSTILE, source=""),
    seed=3,
    series_notes=[HOSTILE],
    versions=dict(torch="2.13.0", odd=HOSTILE),
    weights={"0": "be207547ce593519", "800": "4da93890b1d525bd"},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for name in ("behaviour", "reliance", "claims"):
        write_table(folder / "tables", name, TABLES[name](), MADE)
    return folder


@pytest.mark.parametrize("venue", ("neurips", "icml"))
def test_a_manuscript_has_the_runs_numbers_figures_tables_and_methods(
    run, tmp_path, no_browser, venue, capsys
):
    paths = manuscript.write(run, tmp_path, Look(venue))
    assert "The manuscript is without" in capsys.readouterr().err
    texts = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in paths}
    main, methods = texts["main.tex"], texts["methods.tex"]
    assert set(re.findall(r"\\input\{(tables/\w+)\}", main + methods)) == {
        name.removesuffix(".tex") for name in texts if name.startswith("tables/")
    }
    kind = "figure*" if venue == "icml" else "figure"
    assert (
        rf"\begin{{{kind}}}[t]" in main and r"\drawing{overview}" in main and r"\label{fig:reliance}" in main
    )
    last = TABLES["behaviour"]().query("metric == 'acc_cot' and step == 800 and split == 'in_domain'").iloc[0]
    value = estimate(last).partition(" ")[0]
    assert rf"\newcommand{{\accCotLast}}{{{value}}}" in texts["numbers.tex"] and value not in main
    assert r"\accCotLast{}" in main
    assert "torch~2.13.0" in methods and "Seeds: 3." in methods
    assert "be207547ce593519" in texts["tables/checkpoints.tex"]
    assert all(r"\input{/etc" not in text and r"\write18" not in text for text in texts.values())
    second = manuscript.write(run, tmp_path / "again", Look(venue))
    assert [path.read_text() for path in second] == list(texts.values())
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in ("", ".tex")]


@needs_latex
@pytest.mark.parametrize("venue", ("neurips", "icml"))
def test_it_compiles_without_a_box_too_wide(run, tmp_path, no_browser, venue):
    manuscript.write(run, tmp_path, Look(venue))
    _compiled(tmp_path)
    log = _compiled(tmp_path)
    assert not overfull(log) and "too large" not in log
    assert "undefined references" not in log and "multiply defined" not in log


@needs_latex
@pytest.mark.parametrize("venue", ("neurips", "icml", "acl"))
def test_that_of_the_committed_tables_compiles_without_a_box_too_wide(tmp_path, no_browser, venue):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tables").symlink_to(ROOT / "figures" / "tables")
    manuscript.write(tmp_path / "run", tmp_path, Look(venue))
    log = _compiled(tmp_path)
    assert not overfull(log) and "too large" not in log


def _compiled(folder: Path) -> str:
    """The log of `main.tex`."""
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-3000:]
    return log


def test_a_run_with_few_tables_makes_one_and_says_what_it_lacks(tmp_path, no_browser, capsys):
    write_table(tmp_path / "run" / "tables", "early", TABLES["early"](), PROVENANCE)
    manuscript.run(manuscript.Config(tmp_path / "run", tmp_path / "paper"))
    said = capsys.readouterr()
    assert "pdflatex main" in said.out and "behaviour (no behaviour.csv)" in said.err
    main = (tmp_path / "paper" / "main.tex").read_text()
    assert r"\drawing{early}" in main and r"\drawing{behaviour}" not in main
    assert (tmp_path / "paper" / "numbers.tex").read_text().count("newcommand") == 0


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No table to draw in .*tables"):
        manuscript.write(tmp_path, tmp_path / "paper", Look())
    assert not (tmp_path / "paper").exists()
