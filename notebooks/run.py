"""Executes the notebooks: each source in a fresh kernel, into the `.ipynb` beside it.

    python notebooks/run.py                                   # all of them
    python notebooks/run.py 2_patching_any_text.py

Sources are Python in jupytext's percent format. Figures become SVG, all in one browser; without one they are
left out. A notebook keeps nothing that changes from one execution to the next: no times, no random ids.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jupytext
import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
FIGURE, DRAWN = "application/vnd.plotly.v1+json", "image/svg+xml"
#: Seconds that one cell may take on a busy machine.
TIMEOUT = 600
#: Where IPython says that a cell's code is; a temporary folder's name; a line of a progress bar.
_PLACE = re.compile(r"\S*ipykernel_\d+/\d+\.py:\d+")
_TEMPORARY = re.compile(r"\btmp[a-z0-9_]{8}\b")
_PROGRESS = re.compile(r"^.*\d+%\|.*\n?", re.MULTILINE)


def sources() -> list[Path]:
    """The source of each notebook, in order."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def read(source: Path) -> NotebookNode:
    """A source as a notebook without outputs; the same cells have the same ids."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{number}", {}
    notebook.metadata = {
        "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    return notebook


def execute(source: Path) -> NotebookNode:
    """Run a source top to bottom in a fresh kernel and an empty folder; figures stay data.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = read(source)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        home = {name: str(Path(folder) / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PLOTLY_RENDERER": "plotly_mimetype",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": folder,
            "PYTHONWARNINGS": "ignore:IProgress not found",  # progress is a line where there are no widgets
        }
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | home | own)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [each for each in cell.outputs if _settled(each, folder)]
    return notebook


def _settled(output: NotebookNode, folder: str) -> bool:
    """Take from an output what the next execution would have otherwise; False where nothing is left."""

    def settle(text: str) -> str:
        return _TEMPORARY.sub("folder", _PLACE.sub("cell", text.replace(folder, ".")))

    if output.output_type == "stream":
        output.text = _PROGRESS.sub("", settle(output.text)).replace("\r", "")
        return bool(output.text.strip())
    output.metadata = {}
    data = output.get("data", {})
    for kind in ("text/plain", "text/html"):
        if kind in data:
            data[kind] = settle(data[kind])
    if FIGURE in data:
        data["text/plain"] = "Figure"
        data.pop("text/html", None)
    return True


def _figures(notebooks: Sequence[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs that are figures, as data."""
    for notebook in notebooks:
        for cell in notebook.cells:
            yield from (each for each in cell.get("outputs", []) if FIGURE in each.get("data", {}))


def draw(notebooks: Sequence[NotebookNode]) -> None:
    """Replace every figure by its drawing, all in one browser; without one by nothing."""
    from interp.plots.export import save_static

    held = {f"figure_{number}": output for number, output in enumerate(_figures(notebooks))}
    figures = {name: go.Figure(json.loads(json.dumps(each.data.pop(FIGURE)))) for name, each in held.items()}
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        for path in save_static(figures, folder, ("svg",)) if figures else []:
            held[path.stem].data[DRAWN] = path.read_text(encoding="utf-8")


def main(names: Sequence[str]) -> None:
    """Execute the sources that are named, or all, and write their notebooks."""
    chosen = [FOLDER / Path(name).name for name in names] or sources()
    notebooks = {}
    for source in chosen:
        print(source.name, flush=True)
        notebooks[source.with_suffix(".ipynb")] = execute(source)
    draw(list(notebooks.values()))
    for path, notebook in notebooks.items():
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
