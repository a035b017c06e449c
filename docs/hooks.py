"""The site's figures: the committed SVG files, which lie beside the documentation and not in it."""

from pathlib import Path

from mkdocs.structure.files import File, Files

FIGURES = Path(__file__).resolve().parent.parent / "figures"


def on_files(files: Files, config) -> Files:
    """Add every committed SVG under `figures/`, so that pages can show it as `figures/NAME.svg`."""
    for path in sorted(FIGURES.rglob("*.svg")):
        name = f"figures/{path.relative_to(FIGURES).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
