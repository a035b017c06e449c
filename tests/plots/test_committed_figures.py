"""Every committed figure by the boxes of its text, as it is and as it would be in a column of a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.io
import plotly.offline
import pytest

from analyses import figures
from interp.plots import drawn
from interp.plots.look import UNITS, Look

ROOT = Path(__file__).parents[2] / "figures"
FOLDERS = ("", "smollm2", "environments", "masking_smollm2", "reinforcement", "conditions")
DRAWINGS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.svg"))
COLUMN = Look("icml", columns=1)
#: Text of a drawing, and boxes and size of type in its units.
TEXTS = """([root, wide]) => {
  const all = document.querySelector(root).getBoundingClientRect(), unit = wide / all.width;
  return [...document.querySelectorAll('text')].filter(t => t.textContent.trim()).map(t => {
    const box = t.getBoundingClientRect();
    return {text: t.textContent, left: (box.left - all.left) * unit, right: (box.right - all.left) * unit,
            top: (box.top - all.top) * unit, bottom: (box.bottom - all.top) * unit, high: all.height * unit,
            size: parseFloat(getComputedStyle(t).fontSize), legend: t.closest('.legend') !== null};
  });
}"""
#: Places of panels.
PANELS = """() => Object.values(document.querySelector('#figure')._fullLayout._plots).map(plot => ({
  left: plot.xaxis._offset, right: plot.xaxis._offset + plot.xaxis._length,
  top: plot.yaxis._offset, bottom: plot.yaxis._offset + plot.yaxis._length}))"""
DRAW = "([made, wide]) => { const all = JSON.parse(made); all.layout.width = wide; \
return Plotly.newPlot('figure', all.data, all.layout, {staticPlot: true}); }"


def wrong(texts: list[dict], wide: float) -> list[str]:
    """What is wrong with the texts of a drawing: type below 7 points, cut at its edge, over each other."""
    found = [f"{each['text']!r} is {each['size'] / 2} points" for each in texts if each["size"] < 14]
    for number, a in enumerate(texts):
        if a["left"] < -1 or a["top"] < -1 or a["right"] > wide + 1 or a["bottom"] > a["high"] + 1:
            found.append(f"{a['text']!r} is cut")
        found += [f"{a['text']!r} is over {b['text']!r}" for b in texts[:number] if _meet(a, b)]
    return found


def _meet(a: dict, b: dict) -> bool:
    across = min(a["right"], b["right"]) - max(a["left"], b["left"])
    return across > 1 and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 2


@pytest.fixture(scope="module")
def column():
    """Every committed figure drawn for a single column: folder and name -> figure."""
    plots = {}
    for folder in FOLDERS:
        for figure in figures.wanted(ROOT / folder / "tables"):
            _, plot, _ = figures.entry_of(figure, ROOT / folder / "tables", COLUMN)
            if plot is not None:
                plots[folder, figure.name] = plot
    return plots


def test_every_figure_of_the_tables_is_committed_and_no_other(column):
    assert {(str(path.parent.relative_to(ROOT)).strip("."), path.stem) for path in DRAWINGS} == set(column)


def test_labels_of_committed_drawings_keep_apart_and_are_no_smaller_than_seven_points(browser):
    page, found = browser.new_page(), {}
    for path in DRAWINGS:
        wide = float(re.search(r'viewBox="0 0 ([\d.]+) ', path.read_text()).group(1))
        assert f'width="{wide / UNITS:.4g}in"' in path.read_text()
        page.goto(path.as_uri())
        if faults := wrong(page.evaluate(TEXTS, ["svg", wide]), wide):
            found[str(path.relative_to(ROOT))] = faults
    page.close()
    assert not found


def test_in_a_column_labels_keep_apart_and_legends_stand_beside_panels(browser, column):
    page, found = browser.new_page(viewport=dict(width=900, height=2000)), {}
    page.set_content("<body style='margin: 0'><div id='figure'></div>")
    page.add_script_tag(content=plotly.offline.get_plotlyjs())
    for where, plot in column.items():
        page.evaluate(DRAW, [plotly.io.to_json(plot, validate=False), COLUMN.width])
        texts = page.evaluate(TEXTS, [".svg-container", COLUMN.width])
        faults = wrong(texts, COLUMN.width)
        for panel in page.evaluate(PANELS):
            faults += [
                f"{each['text']!r} is in a panel" for each in texts if each["legend"] and _meet(each, panel)
            ]
        if faults:
            found[where] = faults
    page.close()
    assert not found


def test_in_a_column_are_at_most_six_panels_and_every_figure_says_its_n(column):
    for where, plot in column.items():
        notes = [note.text for note in plot.layout.annotations if note.name == "n"]
        assert len(notes) == 1 and "n = " in notes[0] or plot.data[0].type == "table", where
        assert len((plot.layout.meta or {}).get("panels", ())) <= 6, where


def test_no_panel_is_flat_and_no_point_rests_on_fewer_than_five(column):
    for where, plot in column.items():
        rows = drawn.rows(plot)
        assert not (rows["n"].astype(float) < 5).any(), where
        for axes, panel in (plot.layout.meta or {}).get("panels", {}).items():
            points = rows.loc[rows["panel"] == panel, ["y", "low", "high"]].apply(pd.to_numeric)
            x, y = (plot.layout[f"{axis[0]}axis{axis[1:]}"] for axis in re.findall(r"[xy]\d*", axes))
            ends = (x if y.ticktext else y).range
            if ends and len(points):
                assert np.ptp(points.stack().dropna()) > 0.05 * (ends[1] - ends[0]), (*where, panel)
