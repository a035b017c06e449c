"""The table of decisions and the page that they are looked through on, in a browser where there is one."""

import json
import re

import pandas as pd
import pytest

import interp
from interp.report import viewer
from interp.report.viewer import save_viewer
from interp.results.decisions import COLUMNS, read_decisions, write_decisions
from tests.decision_rows import decision_rows

CHECKPOINTS = (0, 60, 110)
#: What must stay text: elements, ends of scripts, what turns the direction of a line, what is not seen.
HOSTILE = (
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'><!--\u202eevil\u2066\x07\u2028"
)
LONG = "x" * 50_000 + "MIDDLE" + "y" * 50_000


# ---- the table


def test_the_table_comes_back_as_it_was_written(tmp_path):
    rows = decision_rows(4)
    path = write_decisions(tmp_path, rows, dict(seed=0))
    frame, made = read_decisions(tmp_path)
    assert list(frame.columns) == list(COLUMNS) and len(frame) == len(rows) and made == dict(seed=0)
    first = frame.iloc[1]
    assert first["probes"][0]["predicted"].tolist() == rows[1]["probes"][0]["predicted"]
    assert [span["span"] for span in first["spans"]] == [span["span"] for span in rows[1]["spans"]]
    direct = pd.read_parquet(path)
    assert (direct["is_correct"].dtype, direct["checkpoint"].dtype) == ("boolean", "Int64")
    assert len(direct[direct["actions_differ"] & (direct["mode"] == "cot")]) == sum(
        row["actions_differ"] for row in rows if row["mode"] == "cot"
    )
    again = write_decisions(tmp_path / "again", rows, dict(seed=0))
    assert again.read_bytes() == path.read_bytes()


def test_what_no_analysis_kept_is_null(tmp_path):
    write_decisions(tmp_path, [dict(decision="a#0", checkpoint=0, mode="cot", parsed=True)], {})
    frame, _ = read_decisions(tmp_path)
    assert frame.drop(columns=["decision", "checkpoint", "mode", "parsed"]).isna().all(axis=None)


def test_a_table_that_is_not_there_or_was_changed_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="No table decisions.parquet in .*: run `python -m analyses decisions`"
    ):
        read_decisions(tmp_path)
    path = write_decisions(tmp_path, decision_rows(1), dict(command="python -m analyses decisions --run r"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        ValueError, match="not as it was written: make it again with `python -m analyses decisions --run r`"
    ):
        read_decisions(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="decisions.parquet .* has no provenance decisions.json"):
        read_decisions(tmp_path)


# ---- the page


def test_no_text_of_the_data_is_in_the_page_as_html(tmp_path):
    rows = hostile_rows()
    text = save_viewer(rows, tmp_path, dict(command=HOSTILE)).read_text()
    data = re.findall(r'<script type="application/json" id="[\w-]+">(.*?)</script>', text, re.DOTALL)
    assert len(data) == 1 + len({row["decision"] for row in rows})
    for block in data:
        assert not re.search("[<>&\u2028\u2029]", block)
    assert "<img" not in text and "onerror='" not in text and text.count("<script") == len(data) + 1
    about = json.loads(data[0])["decisions"][0]
    assert about["task"] == HOSTILE


def test_numbers_that_are_none_are_null(tmp_path):
    rows = [row | dict(direct=float("nan"), via_cot=float("-inf")) for row in decision_rows(1)]
    text = save_viewer(rows, tmp_path, {}).read_text()
    assert "NaN" not in text and "-Infinity" not in text


def test_a_notebook_frames_the_page_and_nothing_is_opened(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"has no decisions.html: make it with `python -m analyses decisions --run"
    ):
        interp.view(tmp_path)
    path = save_viewer(hostile_rows(), tmp_path, {})
    shown = interp.view(tmp_path)
    assert shown.path == path
    framed = shown._repr_html_()
    assert (
        framed.startswith("<iframe srcdoc=")
        and 'sandbox="allow-scripts"' in framed
        and "<script" not in framed
    )
    monkeypatch.setattr("interp.report.viewer.HELD", 10)
    monkeypatch.chdir(tmp_path.parent)
    assert f'<iframe src="{tmp_path.name}/decisions.html"' in shown._repr_html_()


def hostile_rows():
    """Two decisions whose every text is hostile, one of them long as well."""
    rows = decision_rows(2, (0,))
    for row in rows:
        second = row["decision"].endswith("#1")
        action = LONG if second else HOSTILE
        row |= dict(task=HOSTILE, task_type=HOSTILE, reference=HOSTILE, completion=HOSTILE, action=action)
        row |= dict(prompt=LONG if second else HOSTILE, spans=[dict(span="task", start=0, end=100_006)])
        if "trace" in row:
            row |= dict(trace=LONG if second else HOSTILE, twin=HOSTILE)
            texts = dict(inserted=HOSTILE, argued=HOSTILE, action=HOSTILE)
            row |= dict(conflicts=[each | texts for each in row["conflicts"]])
            row |= dict(probes=[dict(label=HOSTILE, truth=HOSTILE, predicted=[HOSTILE] * 2)])
            row |= dict(lens=[dict(whose="eventual", token=HOSTILE, rank=[1, 2], probability=[0.5, 0.1])])
        if "attribution" in row:
            row |= dict(attribution=[each | dict(token=HOSTILE) for each in row["attribution"]])
        if "candidates" in row:
            row |= dict(candidates=[HOSTILE, *row["candidates"][1:]], choice=HOSTILE)
    return rows


# ---- in a browser


@pytest.fixture
def opened(browser, tmp_path):
    """Opens rows on a page, and fails where the page has an error."""
    errors = []
    pages = []

    def show(rows, **options):
        page = browser.new_page(viewport=dict(width=1400, height=900), **options)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        path = save_viewer(rows, tmp_path, dict(command="python -m analyses decisions --run r"))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close()
    assert errors == []


def chosen(page):
    return page.locator('#list [aria-selected="true"]')


def test_filters_leave_what_they_name(opened):
    rows = decision_rows(12, CHECKPOINTS)
    page = opened(rows)
    cot = [row for row in rows if row["mode"] == "cot" and row["checkpoint"] == 110]
    assert page.locator("#count").inner_text() == "12 of 12 decisions"
    wanted = dict(
        differ=sum(row["actions_differ"] for row in cot),
        wrong=0,
        flipped=sum(row["flipped"] for row in cot),
        unparsed=len({row["decision"] for row in rows if row["action"] is None}),
        changed=12,
    )
    for name, count in wanted.items():
        button = page.locator(f"#filter-{name}")
        assert page.locator(f"#count-{name}").inner_text() == str(count)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator("#count").inner_text() == f"{count} of 12 decisions"
        assert page.locator("#list .row").count() == count
        button.click()
    page.locator("#filter-differ").click()
    page.locator("#filter-flipped").click()
    both = sum(row["actions_differ"] and row["flipped"] for row in cot)
    assert 0 < both < min(wanted["differ"], wanted["flipped"])
    assert page.locator("#count").inner_text() == f"{both} of 12 decisions"
    page.locator("#filter-differ").click()
    page.locator("#filter-flipped").click()
    page.locator("#split").select_option("out_of_domain")
    assert page.locator("#count").inner_text() == "6 of 12 decisions"
    page.locator("#split").select_option("")
    page.locator("#search").fill("MUG 7")
    page.locator("#count", has_text="1 of").wait_for()
    assert "mug 7" in page.locator("#detail h2").inner_text()
    page.locator("#search").fill("no such words")
    page.locator("#count", has_text="0 of").wait_for()
    assert "No decision is left" in page.locator("#detail").inner_text()


def test_everything_is_reached_by_keyboard(opened):
    page = opened(decision_rows(9, CHECKPOINTS))
    press = page.keyboard.press
    assert chosen(page).get_attribute("id") == "row-0"
    press("j")
    press("ArrowDown")
    assert chosen(page).get_attribute("id") == "row-2"
    press("k")
    assert chosen(page).get_attribute("id") == "row-1"
    assert page.locator("#list").get_attribute("aria-activedescendant") == "row-1"
    press("End")
    press("j")
    assert chosen(page).get_attribute("id") == "row-8"
    before = page.locator("#detail h2").inner_text()
    press("[")
    assert page.locator("#checkpoints input:checked").get_attribute("value") == "60"
    assert page.locator("#detail h2").inner_text() == before, "the decision stays"
    press("]")
    assert page.locator("#checkpoints input:checked").get_attribute("value") == "110"
    press("/")
    page.keyboard.type("mug 4 jjj")
    assert page.locator("#search").input_value() == "mug 4 jjj", "letters are no commands in the search"
    page.locator("#search").fill("mug 4")
    page.locator("#count", has_text="1 of").wait_for()
    press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus is seen"


def test_a_decision_is_shown_with_all_that_is_on_record_and_what_is_not(opened):
    rows = decision_rows(3, CHECKPOINTS)
    page = opened(rows)
    text = page.locator("#detail").inner_text()
    for part in ("What it did", "Over training", "Prompt", "Trace", "Forced choice", "Conflicting traces",
                 "Early answering", "Prompt reliance", "Probes and logit lens at the boundary",
                 "Patching", "First-order estimates"):  # fmt: skip
        assert part in text, part
    assert "Not on record" not in text
    assert page.locator(".prompt-text").inner_text() == rows[0]["prompt"][:-1] + "↵boundary"
    assert page.locator(".prompt-text .span.task").inner_text() == rows[0]["task"]
    page.locator(".moves thead button", has_text="60").click()
    assert "checkpoint 60" in page.locator("#detail").inner_text()
    assert page.evaluate("document.activeElement.textContent") == "60"
    metric = page.locator('#detail select[name="metric"]')
    metric.select_option("kl")
    assert metric.input_value() == "kl" and page.evaluate("document.activeElement.name") == "metric"
    assert page.locator(".heat").count() == 4, "effects at places and estimates at tokens, both directions"
    tokens = page.locator(".tokens .heat").first.locator("tbody tr")
    assert tokens.all_inner_texts() == [" mug → pen 5\t0.25" + "\t0.25" * 3, "↵ 6" + "\t−0.75" * 4]
    assert page.locator(".tokens td.below").count() == 8
    lens = page.locator(".layers tr", has_text="logit lens, CoT action").locator("td")
    assert lens.all_inner_texts() == ["900", "30", "4", "1"]
    shares = lens.evaluate_all("cells => cells.map(cell => cell.style.getPropertyValue('--share'))")
    assert shares == ["1%", "30%", "48%", "60%"]
    assert page.locator(".layers tr th:first-child").all_inner_texts()[-1].split("\n")[-1].strip() == "drawer"
    bare = [
        {
            name: row[name]
            for name in ("decision", "checkpoint", "mode", "prompt", "spans", "split", "reference")
        }
        for row in rows
    ]
    bare = opened(bare)
    assert (
        "Not on record of this decision here: forced choice, early answering"
        in bare.locator("#detail").inner_text()
    )
    assert "not decoded here" in bare.locator("#list").inner_text()


def test_hostile_text_is_shown_as_text(opened):
    page = opened(hostile_rows())
    assert page.evaluate("window.broken") is None
    assert page.locator("#detail img").count() == 0 and page.locator("#list img").count() == 0
    assert "<script>window.broken = 1</script>" in page.locator("#detail h2").inner_text()
    hidden = page.locator("#detail h2 .hidden-character").all_inner_texts()
    assert hidden == ["U+202E", "U+2066", "U+0007", "U+2028"]
    isolated = "[...document.querySelectorAll('#detail bdi')].every(each => getComputedStyle(each).unicodeBidi === 'isolate')"
    assert page.evaluate(isolated)
    assert "null" not in page.locator("#detail").inner_text()
    page.keyboard.press("j")
    trace = page.locator(".trace")
    assert len(trace.inner_text()) < 5_000 and "MIDDLE" not in trace.inner_text()
    trace.locator("button").click()
    assert trace.inner_text() == LONG
    page.locator("#search").fill("xmiddley")
    page.locator("#count", has_text="1 of").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing runs out of the page"


def test_400_decisions_at_8_checkpoints_open_with_as_few_elements_as_40(opened, record_property):
    steps = (0, 25, 60, 150, 350, 800, 1400, 2000)
    elements = {}
    for n in (40, 400):
        page = opened(decision_rows(n, steps))
        elements[n] = page.evaluate("document.querySelectorAll('body *:not(script)').length")
        assert page.evaluate("details.size") == 1, "a decision is read when it is shown"
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        record_property(f"milliseconds to open {n} x 8", round(loaded))
        print(f"{n} x 8: {loaded:.0f} ms to open")
    assert elements[400] < 1.1 * elements[40]
    assert page.locator("#list .row").count() < 40
    page.keyboard.press("End")
    assert chosen(page).get_attribute("aria-posinset") == "400"
    assert page.locator("#list .row").count() < 40


@pytest.fixture
def sharded(monkeypatch):
    """Pages whose decisions lie in files beside them, a few in each."""
    monkeypatch.setattr(viewer, "WHOLE", 1000)
    monkeypatch.setattr(viewer, "SHARD", 30_000)


def test_very_many_decisions_lie_in_files_that_the_page_loads_as_they_are_shown(sharded, opened, tmp_path):
    rows = decision_rows(60, (0, 110))
    page = opened(rows)
    (folder,) = tmp_path.glob("decisions-*")
    files = sorted(folder.glob("*.js"), key=lambda path: int(path.stem))
    assert len(files) > 9 and "detail-0" not in (tmp_path / "decisions.html").read_text()
    page.locator("#detail h2").wait_for()
    assert page.evaluate("[...shards.keys()]") == [0], "no other file is loaded"
    for key, place in (("End", 60), ("k", 59), ("Home", 1)):
        page.keyboard.press(key)
        page.locator(f"#detail h2 >> text=mug {place - 1} in").wait_for()
        assert chosen(page).get_attribute("aria-posinset") == str(place)
    for _ in range(59):
        page.keyboard.press("j")
    page.locator("#detail h2 >> text=mug 59 in").wait_for()
    assert page.evaluate("shards.size") <= 8, "the last few are held"
    page.locator("#search").fill("mug 17 ")
    page.locator("#count", has_text="1 of").wait_for()
    page.locator("#detail h2 >> text=mug 17 in").wait_for()
    page.locator("#search").fill("")
    page.locator("#count", has_text="60 of").wait_for()
    again = save_viewer(rows, tmp_path, {})
    assert again.read_text() and list(tmp_path.glob("decisions-*")) == [folder], (
        "the same rows, the same files"
    )
    save_viewer(decision_rows(59, (0, 110)), tmp_path, {})
    assert len(list(tmp_path.glob("decisions-*"))) == 1, "those of an older page are removed"


def test_files_of_decisions_hold_no_text_as_html_and_a_page_without_them_says_so(sharded, browser, tmp_path):
    path = save_viewer(hostile_rows(), tmp_path, {})
    (folder,) = tmp_path.glob("decisions-*")
    for file in folder.iterdir():
        assert not re.search("[<>&\u2028\u2029]", file.read_text())
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("#detail h2").wait_for()
    assert page.evaluate("window.broken") is None
    for file in folder.iterdir():
        file.unlink()
    page.reload()
    page.locator("#detail >> text=is not beside this page").wait_for()
    page.close()
