"""The registry of commands: a new instrument is a module of its own, and a module with its figure."""

import subprocess
import sys

import pytest

import analyses
from analyses import __main__ as cli
from analyses import registry
from interp import plots
from interp.plots.registry import figures
from interp.results.tables import read_table

INSTRUMENT = '''"""Count letters: how many an agent has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd

from analyses.registry import Instrument
from interp.results.tables import write_table
from interp.system.limits import Folder


@dataclass
class Config:
    """Which letters."""

    run: Annotated[Path, Folder()] = Path("runs/quick")
    """Folder of the run."""
    letters: str = "abc"
    """Letters that are counted."""


def run(config: Config) -> None:
    rows = [dict(step=0, split="in_domain", value=len(config.letters), low=2, high=4, n=9, n_groups=3)]
    write_table(config.run / "tables", "tiny_letters", pd.DataFrame(rows), dict(analysis="tiny_letters"))


INSTRUMENT = Instrument("tiny_letters", Config, run, in_all=(1, 99))
'''
FIGURE = '''"""How many letters there are."""

import plotly.graph_objects as go

from interp.plots.caption import Caption
from interp.plots.registry import figure


@figure("Letters", table="tiny_letters", section="depends", caption=lambda frame: Caption("An agent has letters.", "Letters by step."))
def tiny_letters(frame, provenance=None):
    return go.Figure(go.Scatter(x=frame["step"], y=frame["value"]))
'''


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    """An instrument and its figure in a file each, on the packages' paths."""
    for package, name, text in (
        (analyses, "tiny_letters", INSTRUMENT),
        (plots, "tiny_letters", FIGURE),
    ):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for name in ("analyses.tiny_letters", "interp.plots.tiny_letters"):
        sys.modules.pop(name, None)
    from interp.plots.registry import _FIGURES

    _FIGURES.pop("tiny_letters", None)


def test_an_instrument_and_its_figure_are_two_files(two_files, no_browser, tmp_path, capsys):
    assert (
        cli.run([]) == 0 and "tiny_letters   Count letters: how many an agent has." in capsys.readouterr().out
    )
    assert "tiny_letters" in registry.chains()[1] and "tiny_letters" in {each.name for each in figures()}
    assert cli.run(["tiny_letters", "--run", str(tmp_path), "--letters", "xy"]) == 0
    assert read_table(tmp_path / "tables", "tiny_letters")[0]["value"].tolist() == [2]
    assert cli.run(["figures", "--tables", str(tmp_path / "tables"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "An agent has letters." in page and (tmp_path / "tiny_letters.html").exists()
    with pytest.raises(
        ValueError,
        match="'letters' is no part of `all`, which runs behaviour, .*shares, elicited, tiny_letters",
    ):
        registry.check_in_all("letters")


def test_what_all_runs_is_what_the_registry_says():
    first = ["behaviour", "probes", "transfer", "mdl", "conflict"]
    second = ["online", "patching", "reliance", "own_traces", "early", "shares"]
    assert registry.chains() == [first, [*second, "elicited"]]
    assert registry.chains(quick=True) == [first, second]
    assert registry.closing() == ["claims", "decisions", "diagnosis", "direct"]
    with pytest.raises(ValueError, match="There is no analysis 'behavior': there are behaviour, probes"):
        registry.find("behavior")


def test_listing_the_commands_does_not_import_torch():
    code = "import sys; from analyses import registry; registry.listed(); sys.exit(bool({'torch', 'pandas.core'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
