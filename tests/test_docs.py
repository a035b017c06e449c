"""The README and the documentation: examples run, numbers are the tables', and what they name is there."""

import re

import pandas as pd
import pytest

from analyses import readme
from analyses.pages import texts
from analyses.pages.tables import TABLES, commands
from interp.system.paths import ROOT

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in readme.pages()}
#: A block of Python, and whether a line before it marks it to be run.
BLOCK = re.compile(r"(<!-- (?:run|own task) -->\n)?```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "<!-- run -->" in text])
def test_the_examples_of_a_page_run_one_after_another(page, capsys):
    names = {}
    for marked, code in BLOCK.findall(PAGES[page]):
        if "run" in marked:
            exec(compile(code, page, "exec"), names)
    assert capsys.readouterr().out


def test_every_example_is_marked_to_run():
    for page, text in PAGES.items():
        assert all(marked for marked, _ in BLOCK.findall(text)), page


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "<!-- end " in text])
def test_generated_parts_are_those_of_the_committed_tables(page):
    """A number that its table no longer holds is stale: `python -m analyses readme` writes it anew."""
    assert readme.filled(PAGES[page]) == PAGES[page]


def test_every_generated_part_has_a_place():
    parts = {*TABLES, *(path.stem for path in texts.TEMPLATES.glob("*.md"))}
    assert parts == {name for text in PAGES.values() for name in re.findall(r"<!-- end ([\w-]+) -->", text)}


def test_a_part_that_is_unknown_or_not_begun_is_refused():
    with pytest.raises(ValueError, match="has a part 'prices'"):
        readme.filled("<!-- prices -->\n<!-- end prices -->")
    with pytest.raises(ValueError, match="does not begin that part with <!-- times -->"):
        readme.filled("<!-- end times -->")


def test_a_number_is_one_row_of_a_table():
    where = dict(metric="acc_cot", split="in_domain")
    assert texts.row("behaviour", **where, step="last").step == texts.rows("behaviour").step.max()
    assert texts.row("behaviour", **where, step="first").step == 0
    with pytest.raises(ValueError, match="8 rows of the table figures/behaviour have metric = acc_cot"):
        texts.row("behaviour", **where)


@pytest.mark.parametrize(
    "write, estimate, text",
    [
        (texts.percent, (0.8849, 0.846, 0.9151), "88 % [85, 92]"),
        (texts.decimal, (-0.001, -0.02, 0.10), "0.00 [-0.02, 0.10]"),
        (texts.points, (0.0105, -0.0019, 0.0237), "+1.1 points [\u22120.2, +2.4]"),
        (texts.thousandths, (-0.0004, -0.0068, 0.0041), "0.000 [\u22120.007, +0.004]"),
        (texts.nats, (-0.017, -0.03, -0.01), "0.0 nats"),
    ],
)
def test_estimates_are_written_with_their_interval(write, estimate, text):
    assert write(pd.Series(estimate, index=["value", "low", "high"])) == text


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_readme_links_to_files_that_are_there():
    for link in re.findall(r"\]\(([^)#]+)", PAGES["README.md"]):
        assert (ROOT / link).exists(), link


def test_commands_that_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    listed = set(re.findall(r"^\| `(\w+)`", commands(), re.MULTILINE))
    for page, text in PAGES.items():
        for code in re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", text, re.DOTALL):
            for line in "".join(code).splitlines():
                assert set(re.findall(r"^make ([\w-]+)", line)) <= targets, (page, line)
                assert set(re.findall(r"python -m analyses (\w+)", line)) <= {*listed, "NAME"}, (page, line)


def test_the_map_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding")[0]
    named = re.findall(r"`((?:interp|analyses|docs|tests)/[\w/]+(?:\.\w+)?/?)`", text)
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert len(named) > 8 and not missing


def test_what_the_code_cites_is_a_section_of_the_methods():
    sections = set(re.findall(r'<a id="([\d.]+)"></a>', PAGES["docs/methods.md"]))
    numbered = set(re.findall(r"^##+ ([\d.]+) ", PAGES["docs/methods.md"], re.MULTILINE))
    assert sections == numbered
    sources = [path for folder in ("interp", "analyses") for path in (ROOT / folder).rglob("*.py")]
    cited = {
        (str(path.relative_to(ROOT)), number)
        for path in sources
        for number in re.findall(r"docs/methods\.md ([\d.]*\d)", path.read_text())
    }
    assert len(cited) > 15 and not [place for place in cited if place[1] not in sections]
    assert not [path for path in sources if re.search(r"\bMETHODS\b", path.read_text())]


def test_every_package_has_a_page_of_the_api():
    packages = {path.parent.name for path in (ROOT / "interp").glob("*/__init__.py")}
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")}
    assert packages == set(pages) - {"index"}
    assert all(f"::: interp.{name}" in pages[name] for name in packages)
