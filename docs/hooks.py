"""The site's figures and notebooks, which lie beside the documentation and not in it."""

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FIGURES, NOTEBOOKS = ROOT / "figures", ROOT / "notebooks"


def on_files(files: Files, config) -> Files:
    """Add every committed SVG under `figures/` as `figures/NAME.svg`, and the notebooks as pages."""
    for path in sorted(FIGURES.rglob("*.svg")):
        name = f"figures/{path.relative_to(FIGURES).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, content in _notebooks():
        files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _notebooks() -> Iterator[tuple[str, str | bytes]]:
    """Name and content of each notebook's page, and of the pictures in it."""
    exporter = MarkdownExporter()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, resources = exporter.from_filename(str(path), {"unique_key": path.stem})
        yield (
            f"{path.stem}.md",
            re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text).replace("](../docs/", "](../"),
        )
        yield from resources["outputs"].items()
