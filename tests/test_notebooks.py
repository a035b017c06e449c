"""The notebooks: each runs from a fresh kernel, and what is committed is made from its source."""

import importlib.util
import re

import nbformat
import pytest

from interp.system.paths import ROOT

for package in ("ipykernel", "jupytext", "nbclient"):
    pytest.importorskip(
        package, reason="the notebooks' packages are missing (pip install 'interp-agents[notebooks]')"
    )

_spec = importlib.util.spec_from_file_location("notebooks_run", ROOT / "notebooks" / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)

SOURCES = {source.stem: source for source in run.sources()}
MEBIBYTE = 2**20


def cells(notebook):
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", SOURCES)
def test_a_notebook_runs_in_a_fresh_kernel(name):
    notebook = run.execute(SOURCES[name])
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert outputs(notebook)
    for output in outputs(notebook):
        output.get("data", {}).pop(run.FIGURE, None)  # which a browser draws
    text = nbformat.writes(notebook)
    assert "/tmp" not in text and "ipykernel_" not in text and "it/s]" not in text


@pytest.mark.parametrize("name", SOURCES)
def test_a_committed_notebook_holds_its_source_s_cells_and_its_outputs(name):
    committed = nbformat.read(SOURCES[name].with_suffix(".ipynb"), 4)
    nbformat.validate(committed)
    assert cells(committed) == cells(run.read(SOURCES[name]))
    assert outputs(committed) and not any(run.FIGURE in each.get("data", {}) for each in outputs(committed))
    assert [each for each in outputs(committed) if each.output_type == "error"] == []


def test_there_are_six_and_they_are_light():
    committed = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in committed] == list(SOURCES) and len(committed) == 6
    assert sum(path.stat().st_size for path in committed) <= 1.2 * MEBIBYTE


def test_the_first_cell_is_the_readme_s_example():
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    notebook = run.read(SOURCES["1_boundary_and_two_actions"])
    assert next(cell.source for cell in notebook.cells if cell.cell_type == "code") == example.strip()


def test_links_lead_to_files():
    for name, source in SOURCES.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", source.read_text()):
            assert (ROOT / "notebooks" / link).exists(), (name, link)


def figure_notebook():
    data = {run.FIGURE: {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {}}, "text/plain": "Figure"}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data)])
    return nbformat.v4.new_notebook(cells=[cell])


def test_without_a_browser_figures_are_left_out(monkeypatch):
    from interp.plots import export

    monkeypatch.setattr(export, "save_static", lambda figures, out, formats: [])
    notebook = figure_notebook()
    run.draw([notebook])
    assert [dict(each.data) for each in outputs(notebook)] == [{"text/plain": "Figure"}]


def test_figures_become_drawings(monkeypatch):
    from interp.plots import export

    def drawn(figures, out, formats):
        (path,) = [run.Path(out) / f"{name}.{formats[0]}" for name in figures]
        path.write_text("<svg/>")
        return [path]

    monkeypatch.setattr(export, "save_static", drawn)
    notebook = figure_notebook()
    run.draw([notebook])
    assert outputs(notebook)[0].data[run.DRAWN] == "<svg/>"
