"""The page in a browser, at the widths of a phone, a tablet and a desk: nothing leaves it, nothing overlaps."""

from __future__ import annotations

import pytest

from interp.plots.registry import figures
from interp.report import page as report_page
from interp.results.tables import write_text
from tests.plots.test_plots import PROVENANCE
from tests.report.test_report import whole

WIDTHS = (390, 800, 1280)
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="5.5in" height="3in" viewBox="0 0 792 432"></svg>'
#: What is wrong with the boxes of a page: elements that reach out of it, texts that reach out of their boxes,
#: and pairs of blocks that overlap. What scrolls is clipped by what it scrolls in.
WRONG = """() => {
  const wide = document.documentElement.clientWidth, wrong = [];
  const name = e => `${e.tagName} ${e.id || e.className} ${e.textContent.trim().slice(0, 50)}`;
  const box = e => {
    const own = e.getBoundingClientRect(), around = e.parentElement.closest('.scroll, nav');
    const clip = around ? around.getBoundingClientRect() : {left: -1e9, right: 1e9, top: -1e9, bottom: 1e9};
    return {e, left: Math.max(own.left, clip.left), right: Math.min(own.right, clip.right),
            top: Math.max(own.top, clip.top), bottom: Math.min(own.bottom, clip.bottom)};
  };
  const shown = b => b.right - b.left > 1 && b.bottom - b.top > 1;
  if (document.documentElement.scrollWidth > wide) wrong.push('the page scrolls sideways');
  for (const b of [...document.querySelectorAll('body *')].map(box).filter(shown))
    if (b.left < -0.5 || b.right > wide + 0.5) wrong.push(`outside: ${name(b.e)}`);
  for (const e of document.querySelectorAll('h1, h2, h3, p, li, summary, figcaption'))
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth) wrong.push(`spills: ${name(e)}`);
  const blocks = [...document.querySelectorAll('h1, h2, h3, p, li, summary, figcaption, img, tr, nav')]
    .map(box).filter(shown);
  for (let i = 0; i < blocks.length; i++) for (let j = i + 1; j < blocks.length; j++) {
    const a = blocks[i], b = blocks[j];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1 && !a.e.contains(b.e) && !b.e.contains(a.e))
      wrong.push(`overlap: ${name(a.e)} / ${name(b.e)}`);
  }
  return wrong;
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of every figure that the tests' tables have, with long names, long words and every detail."""
    out, of = tmp_path_factory.mktemp("page"), whole()
    made = dict(PROVENANCE, command="python -m analyses behaviour " + "--series " + "folder/" * 40)
    entries = []
    for figure in figures():
        if figure.table not in of.tables:
            continue
        caption = figure.caption(of.tables[figure.table])
        write_text(out / f"{figure.name}.svg", DRAWING)
        write_text(out / f"{figure.name}.csv", "x,y\n")
        entry = report_page.Entry(figure.name, figure.title, figure.table, figure.section, made, caption)
        entries.append(entry)
    entries.append(report_page.Entry("odd", "x" * 120, "odd", "nulls", {}, None, "No table " + "y" * 200))
    notes = ["These tables are not of one study: the seed is 0 and " + "z" * 90]
    return report_page.save_index(entries, of, out / "tables", out, ("svg", "html"), notes)


@pytest.fixture
def opened(browser, path):
    """Opens the page at a width, all of its details unfolded."""
    pages = []

    def show(width: int):
        page = browser.new_page(viewport=dict(width=width, height=850))
        page.set_default_timeout(120_000)  # of a busy machine
        pages.append(page)
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        return page

    yield show
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_leaves_the_page_and_nothing_overlaps(opened, width):
    page = opened(width)
    assert page.locator("figure img").count() > 15
    assert page.evaluate(WRONG) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_contents_stay_in_sight_and_hide_no_heading(opened, width):
    page = opened(width)
    page.evaluate("location.hash = 'nulls'")
    page.wait_for_function("window.scrollY > 1000")
    nav, heading = (page.locator(each).bounding_box() for each in ("nav", "#nulls h2"))
    assert nav["y"] >= -1 and nav["y"] < 100
    beside = heading["x"] >= nav["x"] + nav["width"]
    assert 0 <= heading["y"] < 850 and (beside or heading["y"] >= nav["y"] + nav["height"] - 1)


def test_print_has_no_contents_and_fits_the_sheet(opened):
    page = opened(700)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".links").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_every_drawing_says_in_words_what_it_shows(opened, path):
    page = opened(1280)
    for image in page.locator("figure img").all():
        assert len(image.get_attribute("alt").split()) >= 4
    figure = page.locator("#reliance-figure")
    links = figure.locator(".links a").all_inner_texts()
    assert links[:2] == ["interactive", "SVG"] and links[-2:] == ["table (CSV)", "provenance (JSON)"]
