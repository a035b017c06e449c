"""Figures as they are printed: sizes, type, labels that keep apart, their data, and their source for LaTeX."""

from __future__ import annotations

import math
import re
import shutil
import struct
import subprocess

import numpy as np
import pandas as pd
import pytest

import interp
from interp.plots import behaviour as plots
from interp.plots import drawn as data_of
from interp.plots import export, pgf, registry
from interp.plots import masking as plots_masking
from interp.plots import probes as plots_probes
from interp.plots.look import Look, current, drawn_for
from interp.results.condition_rows import conditions_of
from interp.results.tables import write_table
from tests.plots.test_plots import PROVENANCE, SPLITS, STEPS, TABLES, behaviour_table, online_table
from tests.plots.test_plots_masking import masking_table

LOOKS = {"icml1": Look("icml", 1), "neurips2": Look("neurips", 2), "icml2": Look("icml", 2)}
#: Whose labels are held apart.
APART = (
    *(
        "overview",
        "claims",
        "behaviour",
        "revision",
        "online",
        "elicited",
        "reliance",
        "patching",
        "diagnosis",
    ),
    *("patching_spans", "patching_screen", "own_traces", "probes", "transfer", "mdl", "conflict", "removal"),
    *("conflict_shift", "early", "shares", "steering"),
)
EVERY = [figure for figure in registry.figures() if figure.table in TABLES]


def _draw(figure: registry.Figure, look: Look):
    beside = {name: TABLES[name]() for name in figure.beside}
    return figure.draw(TABLES[figure.table](), PROVENANCE, look=look, **beside)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Every figure in a column, and some in the wider looks, rendered by one browser."""
    out = tmp_path_factory.mktemp("printed")
    figures = {f"{figure.name}-icml1": _draw(figure, LOOKS["icml1"]) for figure in EVERY}
    for figure in (figure for figure in EVERY if figure.name in APART[:3]):
        figures |= {f"{figure.name}-{name}": _draw(figure, LOOKS[name]) for name in ("neurips2", "icml2")}
    if not export.save_static(figures, out, ("svg",)):
        pytest.skip("no browser")
    return out, figures


def test_no_type_is_below_seven_points_and_every_figure_is_as_wide_as_its_column(printed):
    out, figures = printed
    small = {}
    for name, figure in figures.items():
        text = (out / f"{name}.svg").read_text()
        least = min(float(size) for size in re.findall(r"font-size:\s*([\d.]+)px", text))
        if least < 14:
            small[name] = least
        inches = LOOKS[name.split("-")[1]].inches
        assert f'width="{inches:.4g}in"' in text and f'viewBox="0 0 {round(144 * inches)} ' in text
        notes = [note.name for note in figure.layout.annotations]
        assert "n" in notes or figure.data[0].type == "table", f"{name} does not say its n"
    assert not small


def test_labels_keep_apart_and_stand_on_the_page(printed, browser):
    out, figures = printed
    boxes = """() => [...document.querySelectorAll("text")].filter(t => t.textContent.trim()).map(t => {
        const box = t.getBoundingClientRect(), all = document.documentElement.getBoundingClientRect();
        return [t.textContent, box.left, box.top, box.right, box.bottom, all.right, all.bottom]; })"""
    wrong = []
    page = browser.new_page()
    for name in (name for name in figures if name.split("-")[0] in APART):
        page.goto(f"file://{out}/{name}.svg")
        found = page.evaluate(boxes)
        for i, (text, left, top, right, bottom, width, height) in enumerate(found):
            if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
                wrong.append((name, text, "is cut"))
            for other, x0, y0, x1, y1, *_ in found[:i]:
                if min(right, x1) - max(left, x0) > 1 and min(bottom, y1) - max(top, y0) > 2:
                    wrong.append((name, text, other))
    page.close()
    assert not wrong


def test_files_are_as_large_as_in_print_and_fonts_are_in_them(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    figure = plots.parse(behaviour_table(), look=Look("icml", 1, font="serif"))
    if not export.save_static({"parse": figure}, tmp_path, ("pdf", "png"), dpi=100):
        pytest.skip("no browser")
    page = pypdf.PdfReader(tmp_path / "parse.pdf").pages[0]
    assert float(page.mediabox.width) == pytest.approx(3.25 * 72, abs=0.5)
    assert float(page.mediabox.height) == pytest.approx(figure.layout.height / 2, abs=0.5)
    type_: list[float] = []

    def read(text: str, cm: list[float], tm: list[float], _: object, size: float) -> None:
        if text.strip():
            type_.append(size * math.hypot(*tm[:2]) * math.hypot(*cm[:2]))

    page.extract_text(visitor_text=read)
    assert min(type_) == pytest.approx(7, abs=0.02), "nothing is made smaller, or larger"
    for font in page["/Resources"]["/Font"].values():
        inner = font.get_object()["/DescendantFonts"][0].get_object()["/FontDescriptor"].get_object()
        assert {"/FontFile2", "/FontFile3"} & set(inner)
    width, height = struct.unpack(">II", (tmp_path / "parse.png").read_bytes()[16:24])
    assert width == 325 and height == pytest.approx(figure.layout.height * 100 / 144, abs=1)


def test_a_figure_is_drawn_alike_after_any_other(tmp_path):
    """Files are the same bytes by themselves and after others; one that cannot be drawn stops no other."""
    pytest.importorskip("pypdf")
    small = Look("icml", 1)
    figures = {
        "parse": plots.parse(behaviour_table(), look=small),
        "table": _draw(next(figure for figure in EVERY if figure.name == "claims"), small),
        "behaviour": plots.behaviour(behaviour_table(), look=Look("neurips", 2)),
    }
    formats = ("svg", "pdf", "png")
    if not export.save_static(figures, tmp_path / "one", formats):
        pytest.skip("no browser")
    export.save_static(dict(reversed(figures.items())), tmp_path / "other", formats)
    broken = dict(data=[dict(type="scatter", y=[1])], layout=dict(xaxis=5))
    drawn = [("broken", broken), *((name, figure.to_dict()) for name, figure in figures.items())]
    with pytest.raises(RuntimeError, match="3 of 12 static figures could not be rendered"):
        export.save_static(drawn, tmp_path / "broken", formats)
    for name, figure in figures.items():
        export.save_static({name: figure}, tmp_path / "alone", formats)
        for suffix in formats:
            alone = (tmp_path / "alone" / f"{name}.{suffix}").read_bytes()
            assert alone == (tmp_path / "one" / f"{name}.{suffix}").read_bytes()
            assert alone == (tmp_path / "other" / f"{name}.{suffix}").read_bytes()


def test_the_data_of_a_figure_is_what_it_draws(tmp_path):
    table = behaviour_table()
    figure = plots.behaviour(table, look=Look("icml", 1))
    export.save_data({"behaviour": figure}, tmp_path)
    rows = pd.read_csv(tmp_path / "behaviour.csv")
    assert len(rows) == 5 * len(STEPS) * len(SPLITS) and list(rows) == data_of.COLUMNS
    mine = rows[(rows["panel"] == "Out-of-domain: accuracy") & (rows["series"] == "CoT action")]
    theirs = table[(table["metric"] == "acc_cot") & (table["split"] == "out_of_domain")].sort_values("step")
    assert mine["x"].tolist() == list(STEPS)
    names = dict(value="y", low="low", high="high", n="n", n_groups="clusters")
    for column, name in names.items():
        np.testing.assert_allclose(mine[name], theirs[column], rtol=1e-5)


def test_the_data_of_bars_and_of_heatmaps():
    bars = data_of.rows(plots.online(online_table()))
    first = bars[(bars["panel"] == "In-domain: share of games") & (bars["x"] == 0)]
    both = first.groupby(first["series"].str.startswith("won"))["y"].sum()
    assert both.sum() == pytest.approx(2), "both modes' games are all accounted for"
    figure = plots_probes.transfer(TABLES["transfer"]())
    cells = data_of.rows(figure)
    drawn = sum(
        np.isfinite(np.asarray(each.z, dtype=float)).sum() for each in figure.data if each.type == "heatmap"
    )
    assert len(cells[cells["low"].notna()]) >= drawn > 0


def test_the_data_of_rows_of_estimates_name_the_row_and_its_single_trainings():
    table = masking_table()
    rows = data_of.rows(plots_masking.gap(table))
    levels = rows[rows["panel"] == "gap (CoT − prompt): in-domain"]
    titles = [condition.title for condition in conditions_of(table) if condition.kind != "only"]
    mean = levels[levels["series"] != "one training"]
    assert set(mean["x"]) == set(titles) and mean["n"].notna().all()
    for title, each in levels[levels["series"] == "one training"].groupby("x"):
        assert title in titles and each["y"].between(-1, 1).all()


def test_panels_with_axes_of_their_own_are_named_by_them():
    figure = interp.figures.overview(behaviour_table(), reliance=TABLES["reliance"]())
    assert data_of.rows(figure)["panel"].unique().tolist() == [
        "Both actions: accuracy",
        "What the trace adds: CoT − prompt",
        "What moves the action: effect (nats)",
    ]


def test_figures_are_functions_of_tables_and_runs(tmp_path):
    run = write_table(tmp_path / "tables", "behaviour", behaviour_table(), PROVENANCE).parent.parent
    figure = interp.figures.behaviour(run, venue="acl", columns=1, font="serif", titles=True)
    assert figure.layout.template.layout.width == 436 and figure.layout.meta["provenance"]["command"]
    assert figure.layout.title.text == "Accuracy with and without the trace"
    assert interp.figures.parse(run / "tables" / "behaviour.csv").layout.meta["figure"] == "parse"
    assert len(interp.figures.overview(behaviour_table()).layout.meta["panels"]) == 2
    assert (
        len(interp.figures.overview(behaviour_table(), reliance=TABLES["reliance"]()).layout.meta["panels"])
        == 3
    )
    assert "overview" in dir(interp.figures)
    with pytest.raises(
        AttributeError, match="There is no figure 'behavior': there are along_trace, behaviour, "
    ):
        _ = interp.figures.behavior
    with pytest.raises(ValueError, match="venue is one of plain, neurips, .*, not 'nature'"):
        interp.figures.behaviour(run, venue="nature")
    with pytest.raises(FileNotFoundError):
        interp.figures.reliance(run)


def test_a_look_holds_while_a_figure_is_drawn_and_stacks_its_splits():
    with drawn_for(Look("icml", 1)):
        narrow = plots.behaviour(behaviour_table())
    assert current() == Look()
    wide = plots.behaviour(behaviour_table(), look=Look("neurips"))
    across = lambda figure: len({axis.domain for axis in figure.select_xaxes()})  # noqa: E731
    assert (across(narrow), across(wide)) == (1, 2)
    letters = [note.text for note in narrow.layout.annotations if note.name == "letter"]
    assert letters == [f"<b>{letter}</b>" for letter in "abcd"]
    assert [note.text for note in wide.layout.annotations if note.name == "n"] == [
        "n = 412 decisions of 57 episodes"
    ]


def test_lines_have_a_source_for_latex_that_compiles(tmp_path, capsys):
    look = Look("icml", 1)
    figures = {
        "behaviour": plots.behaviour(behaviour_table(), look=look),
        "online": plots.online(online_table()),
        "claims": _draw(next(figure for figure in EVERY if figure.name == "claims"), look),
        "shares": _draw(next(figure for figure in EVERY if figure.name == "shares"), look),
    }
    (written,) = pgf.save(figures, tmp_path, look)
    assert written.name == "behaviour.pgf" and "online, claims, shares" in capsys.readouterr().out
    assert written.read_text().count("\\nextgroupplot") == 4
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is missing (Debian: texlive-pictures)")
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\\usepackage{pgfplots}\\usepgfplotslibrary{groupplots}\\pgfplotsset{compat=1.16}"
        "\\begin{document}\\noindent\\input{behaviour.pgf}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if "pgfplots.sty' not found" in done.stdout:
        pytest.skip("pgfplots is missing (Debian: texlive-pictures)")
    assert done.returncode == 0, done.stdout[-2000:]
