"""Figures on disk: interactive HTML; and SVG, PDF and PNG from one browser, as large as they are printed.

>>> save_html({"behaviour": figure}, "figures")
>>> save_static({"behaviour": figure}, "figures", ("pdf", "png"), dpi=300)

A browser takes a figure's units for its pixels, of which an inch has 96; here an inch has 144 (see
`interp.plots.theme`). So an SVG is told its size in inches, and a PDF's page is scaled; its fonts are
embedded.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import plotly.graph_objects as go
import plotly.io
import plotly.offline

from interp.plots import drawn
from interp.plots.look import TOP, UNITS
from interp.plots.slim import slim
from interp.results.tables import write_text, written

SCRIPT = "plotly.min.js"
#: Seconds after which a browser that does not answer is gone.
PATIENCE = 120


def save_html(figures: dict[str, go.Figure], out: str | Path) -> list[Path]:
    """Write each figure as `<out>/<name>.html`, with plotly.js once beside them or in the folder above.

    Args:
        figures: figure per name.
        out: folder to write to.
    """
    out = Path(out)
    paths, script = [], _script(out)
    if script == SCRIPT:
        text = plotly.offline.get_plotlyjs()
        paths.append(out / SCRIPT)
        if not paths[0].exists() or paths[0].read_text(encoding="utf-8") != text:
            write_text(paths[0], text)
    for name, figure in figures.items():
        settings = {
            "displaylogo": False,
            "modeBarButtonsToRemove": ["sendChartToCloud"],  # results stay on the reader's machine
            "toImageButtonOptions": {"format": "svg", "filename": name},
        }
        page = plotly.io.to_html(
            _below_toolbar(figure), include_plotlyjs=script, div_id=name, config=settings, validate=False
        )
        page = page.replace("<head>", f"<head><title>{name}</title>", 1)
        paths.append(write_text(out / f"{name}.html", page))
    return paths


def save_data(figures: dict[str, go.Figure], out: str | Path) -> list[Path]:
    """Write what each figure draws as `<out>/<name>.csv`; a figure that is a table has none beside it.

    Args:
        figures: figure per name.
        out: folder to write to.
    """
    tables = {name: drawn.rows(figure) for name, figure in figures.items()}
    return [
        write_text(Path(out) / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
        for name, table in tables.items()
        if len(table)
    ]


def _script(out: Path) -> str:
    """Where a folder's pages find plotly.js: the folder above where that has this release's, else beside."""
    above = out.resolve().parent / SCRIPT
    size = len(plotly.offline.get_plotlyjs().encode())
    return f"../{SCRIPT}" if above.exists() and above.stat().st_size == size else SCRIPT


def save_static(
    figures: Mapping[str, go.Figure] | Iterable[tuple[str, dict]],
    out: str | Path,
    formats: tuple[str, ...] = ("svg", "pdf"),
    dpi: int = 300,
) -> list[Path]:
    """Write each figure as `<out>/<name>.<format>` with one browser for all; none, and a line, without one.

    Args:
        figures: figure per name; or names and figures as JSON, each rendered while the next is awaited.
        out: folder to write to.
        formats: any of svg, pdf, png.
        dpi: dots to the inch of a PNG.

    Raises:
        RuntimeError: the browser was there and a figure could not be rendered.
        OSError: the disk is full, say.
    """
    try:
        import kaleido  # noqa: F401
        import pypdf  # noqa: F401  (asked for before the browser works)
        from choreographer.errors import (
            BrowserClosedError,
            BrowserDepsError,
            BrowserFailedError,
            ChromeNotFoundError,
        )
    except ImportError:
        print(
            "No SVG or PDF written: kaleido or pypdf is missing; install them (`pip install kaleido pypdf`)."
        )
        return []
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    given = ((name, f.to_dict()) for name, f in figures.items()) if isinstance(figures, Mapping) else figures
    with ThreadPoolExecutor(1) as apart:  # a notebook's own thread has a loop that runs
        try:
            rendered = apart.submit(asyncio.run, _rendered(iter(given), formats, dpi)).result()
        except (BrowserClosedError, BrowserDepsError, BrowserFailedError, ChromeNotFoundError):
            print(
                "No SVG or PDF written: no working Chromium or Chrome found "
                "(Debian: `apt-get install chromium`)."
            )
            return []
    if errors := [content for content in rendered.values() if isinstance(content, BaseException)]:
        why = str(errors[0]) or repr(errors[0])
        raise RuntimeError(
            f"{len(errors)} of {len(rendered)} static figures could not be rendered into {out}: {why}"
        )
    for name, content in rendered.items():  # once all are there
        with written(out / name) as temporary:
            temporary.write_bytes(cast(bytes, content))
    return [out / name for name in rendered]


async def _rendered(
    figures: Iterator[tuple[str, dict]], formats: Sequence[str], dpi: int
) -> dict[str, bytes | BaseException]:
    """The files of figures by their names, or what went wrong with one; figures are rendered as they come."""
    import kaleido

    tab, gone = asyncio.Lock(), asyncio.Event()

    class Browser(kaleido.Kaleido):  # type: ignore[misc]  # untyped
        async def _return_kaleido_tab(self, tab: Any) -> None:
            """Give back a tab as it is: loading plotly.js anew takes longer than drawing."""
            await self.tabs_ready.put(tab)

    async def file(browser: Browser, figure: dict, suffix: str) -> bytes:
        scale = dpi / UNITS if suffix == "png" else 1
        async with tab:
            if gone.is_set():
                raise TimeoutError("the browser does not answer")
            try:
                drawing = browser.calc_fig(figure, {"format": suffix, "scale": scale})
                content = await asyncio.wait_for(drawing, PATIENCE)
            except TimeoutError:
                gone.set()
                raise TimeoutError("the browser does not answer") from None
        return await asyncio.to_thread(_FINISH[suffix], content)

    # which logs the last words of a browser that closes as an error, with a traceback
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)
    tasks: dict[str, asyncio.Task[bytes]] = {}
    async with Browser(page_generator=_page()) as browser:
        while (pair := await asyncio.to_thread(next, figures, None)) is not None:
            name, figure = pair
            numbered = _numbered(figure, name)
            for suffix in formats:
                tasks[f"{name}.{suffix}"] = asyncio.create_task(file(browser, numbered, suffix))
        contents = await asyncio.gather(*tasks.values(), return_exceptions=True)
    return dict(zip(tasks, contents, strict=True))


def _page() -> Any:
    """The browser's page without margins, which would make a PDF's figure smaller and cut it below."""
    import kaleido

    page = kaleido.PageGenerator(mathjax=False)
    page.header = page.header.replace(
        "<head>", "<head><style>@page { margin: 0; } body { margin: 0; }</style>"
    )
    return page


def _below_toolbar(figure: go.Figure) -> dict:
    """A figure as JSON, with room above its legends for the toolbar, which only the interactive page has."""
    made = figure.to_dict()
    layout = made["layout"]
    if "height" in layout:  # what is drawn keeps its size
        layout["height"] += _TOOLBAR
    layout["margin"] = {"t": TOP} | layout.get("margin", {})
    layout["margin"]["t"] += _TOOLBAR
    return made


def _numbered(figure: dict, name: str) -> dict:
    """A figure as JSON whose traces carry fixed ids in place of random ones."""
    traces = [trace | {"uid": f"{name}-{number:03d}"} for number, trace in enumerate(figure["data"])]
    return figure | {"data": traces}


def _svg_of_size(content: bytes) -> bytes:
    """A slim SVG whose size is in inches, and whose lengths are in units."""
    drawing = slim(content)
    start, rest = drawing.split(b">", 1)
    sides = (re.findall(rb'\b%s="([\d.]+)' % side, start) for side in (b"width", b"height"))
    width, height = (float(lengths[0]) for lengths in sides)
    start = re.sub(rb' (width|height|viewBox)="[^"]*"', b"", start)
    inches = f'width="{width / UNITS:.4g}in" height="{height / UNITS:.4g}in"'
    size = f' {inches} viewBox="0 0 {width:g} {height:g}"'
    return start + size.encode() + b">" + rest


def _pdf_of_size(content: bytes) -> bytes:
    """A PDF whose page is as large as the figure in print, without the date and ids of the day."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(content))
    for page in writer.pages:
        drawing = page.pop("/Contents")  # of which pypdf would read each operator
        page.scale_by(_PIXELS / UNITS)
        page[pypdf.generic.NameObject("/Contents")] = drawing
        stream = drawing.get_object()
        stream.set_data(b"%.8f 0 0 %.8f 0 0 cm\n" % (_PIXELS / UNITS, _PIXELS / UNITS) + stream.get_data())
    writer.metadata = {"/Producer": "Chromium, pypdf", "/CreationDate": "D:20000101000000Z"}
    writer.compress_identical_objects()
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


_PIXELS = 96  # to the inch, in a browser
#: What is done to each format's file of the browser.
_FINISH: dict[str, Callable[[bytes], bytes]] = {
    "svg": _svg_of_size,
    "pdf": _pdf_of_size,
    "png": lambda content: content,
}
_TOOLBAR = 28  # px
