"""Tables in LaTeX: what is escaped, what fits a column, and that all of it compiles without a box too wide."""

from __future__ import annotations

import re
import shutil
import string
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.plots import latex
from interp.plots.look import INCHES, Look
from tests.plots.test_plots import ALL, TABLES
from tests.plots.test_plots_masking import masking_table

needs_latex = pytest.mark.skipif(
    not shutil.which("pdflatex"),
    reason="needs pdflatex (Debian: texlive-latex-recommended, texlive-latex-extra)",
)
HOSTILE = (
    r"\input{/etc/passwd} & 50% $x_1$ {#} ~ ^ <b> | \write18 `` -- --- "
    + '"é ß 中 \N{NO-BREAK SPACE}\n\n\x07'
)


def overfull(log: str) -> list[float]:
    """Points by which boxes are too large, of those that are by more than 2."""
    return [
        float(points) for points in re.findall(r"Overfull \\[hv]box \((\d+\.\d+)pt", log) if float(points) > 2
    ]


def compiled(folder, text: str, look: Look) -> str:
    """The log of a document of this text."""
    column, page = INCHES[look.venue]
    two = column < page
    (folder / "text.tex").write_text(
        f"\\documentclass[10pt{',twocolumn' if two else ''}]{{article}}\n"
        f"\\usepackage[textwidth={page}in,textheight=9in{f',columnsep={page - 2 * column}in' if two else ''}]{{geometry}}\n"
        f"\\usepackage{{array,booktabs,longtable,placeins}}\n\\begin{{document}}\n{text}\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "text.tex"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    return log


@given(st.text(max_size=40))
def test_an_escaped_text_is_ascii_and_has_no_command_of_its_own(text):
    for made in (latex.escape(text), latex.code(text)):
        assert made.isascii() and made.isprintable()
        assert made.count("{") - made.count(r"\{") == made.count("}") - made.count(r"\}")
        plain = re.sub(
            r"\\(allowbreak|symbol|text\w+|times|pm|leq|geq|to|kappa|dots|cdot|circ|mu|ss|o|O|ae|AE|oe|aa)\b",
            "",
            made,
        )
        assert not re.search(r"\\[A-Za-z]{2,}", plain), made


@needs_latex
def test_all_signs_compile(tmp_path):
    text = f"{string.printable} {HOSTILE} −–×±≤≥→κ…°µäÅøçñ"
    log = compiled(tmp_path, f"{latex.escape(text)}\n\n\\raggedright {latex.code(text)}", Look())
    assert "Missing character" not in log


def numbers(rows: int, **columns: str) -> pd.DataFrame:
    return pd.DataFrame([columns] * rows).assign(row=[str(i) for i in range(rows)])


def test_a_table_takes_a_column_then_the_page_then_breaks_its_cells_then_runs_over_pages():
    look = Look("icml")
    small = latex.booktabs(numbers(3, value="0.42 [0.38, 0.46]"), "A & b.", "tab:a", look)
    assert (
        small.startswith(r"\begin{table}[t]") and r"\caption{A \& b.}" in small and r"\label{tab:a}" in small
    )
    assert [small.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    wide = latex.booktabs(numbers(3, one="a word " * 5, two="a word " * 5), "A.", "tab:a", look)
    assert wide.startswith(r"\begin{table*}") and "p{" not in wide
    words = numbers(3, one="a word " * 40, value="0.42 [0.38, 0.46]")
    broken = latex.booktabs(words, "A.", "tab:a", look)
    assert broken.startswith(r"\begin{table*}") and "p{" in broken and "0.42~[0.38,~0.46]" in broken
    assert latex.booktabs(words, "A.", "tab:a", Look("neurips")).startswith(r"\begin{table}")
    assert r"\begin{longtable}" in latex.booktabs(numbers(90, value="1"), "A.", "tab:a", look)
    with pytest.raises(ValueError, match="the table tab:a has no rows"):
        latex.booktabs(pd.DataFrame(), "A.", "tab:a", look)


def test_a_column_without_a_value_is_left_out():
    frame = pd.DataFrame({"metric": ["gap", "accuracy"], "first checkpoint": ["–"] * 2, "last": ["0.3", "–"]})
    text = latex.booktabs(frame, "Numbers.", "tab:a")
    assert "first" not in text and "metric & last" in text


def test_what_all_rows_share_is_told_once():
    frame = pd.DataFrame(
        {
            "metric": ["gap", "accuracy"],
            "first checkpoint": ["0.1 (step 0)", "0.2 (step 0)"],
            "last checkpoint": ["0.3 (step 9)", "0.4 (step 8)"],
            "n": ["400", "400"],
        }
    )
    text = latex.booktabs(frame, "Numbers.", "tab:a")
    assert "In all rows n: 400." in text and "first: step 0" in text and "(step 9)" in text
    assert text.count("400") == 1 and "(step 0)" not in text


@needs_latex
@pytest.mark.parametrize("venue", ("neurips", "icml"))
def test_every_table_of_a_paper_fits_its_venue(tmp_path, venue):
    look, parts = Look(venue), []
    for name in ("behaviour", "claims", "conflict", "probes"):
        frame = TABLES[name]()
        numbers = ALL[name].caption(frame).numbers
        parts.append(latex.booktabs(numbers, f"{name} {HOSTILE}", f"tab:{name}", look))
    parts += [ALL["claims"].latex(TABLES["claims"](), look), latex.masking_table(masking_table(), look)]
    floats = [part for part in parts if "longtable" not in part]
    text = "\n\\FloatBarrier\n".join([*floats, r"\onecolumn", *(set(parts) - set(floats))])
    assert not overfull(compiled(tmp_path, text, look))
