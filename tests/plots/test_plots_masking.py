"""Figures, captions and the paper's table of the masking study, from synthetic tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses import figures
from interp.plots import latex as tex
from interp.plots import masking as plots_masking
from interp.plots import masking_power as plots_masking_power
from interp.plots import registry
from interp.results import condition_rows
from interp.results.tables import read_table, write_table
from interp.system.limits import SMALLEST
from interp.system.paths import ROOT
from interp.training.supervision import Supervision

CONDITIONS = (
    "action_mask_0",
    "action_mask_0.1",
    "action_mask_0.3",
    "action_mask_0.5",
    "action_mask_0.7",
    "random_mask_0.3",
    "action_only",
)
SPLITS = ("in_domain", "out_of_domain")
STEPS = (0, 25, 60, 150, 350, 600)
PROVENANCE = {
    "verdict": "open",
    "selection": "k = 0 is chosen: no mask's acc_cot out of domain is better with an interval above 0",
    "model_hash": "0123" * 16,
}
#: Level of k = 0, what a share of 1 would add, and half an interval.
METRICS = {
    "acc_cot": (0.62, 0.05, 0.04), "acc_prompt": (0.5, -0.3, 0.05), "gap": (0.12, 0.35, 0.05), "parse_cot": (0.99, 0.0, 0.01),
    "parse_prompt": (0.97, -0.1, 0.02), "success_cot": (0.22, 0.05, 0.08), "success_prompt": (0.15, -0.05, 0.07),
    "prompt_reliance": (0.55, -0.35, 0.09), "follow": (0.6, 0.3, 0.08), "keep": (0.3, -0.2, 0.07),
    "probe_gain": (0.12, -0.1, 0.08), "patch_prompt": (0.7, -0.2, 0.1), "patch_boundary": (0.3, -0.1, 0.06),
}  # fmt: skip


def masking_table(conditions=CONDITIONS, splits=SPLITS, metrics=tuple(METRICS)) -> pd.DataFrame:
    """Table `masking` as the study writes it: every contrast that the conditions allow, at the last step,
    reliance at all steps."""
    rng, rows = np.random.default_rng(0), []
    for metric in metrics:
        base, slope, half = METRICS[metric]
        for step in STEPS if metric == "prompt_reliance" else STEPS[-1:]:
            for split in splits:
                key = dict(step=step, split=split, metric=metric)

                def row(contrast, condition, value, width, seed=-1, seeds=3):
                    ends = dict(low=value - width, high=value + width)
                    of = dict(contrast=contrast, condition=condition, seed=seed, seeds=seeds)
                    rows.append(key | of | dict(value=value, **ends, n=62 * seeds, n_groups=62))

                level = {}
                for condition in conditions:
                    kind, _, share = condition.rpartition("_")
                    effect = (
                        0.3 * slope
                        if share == "only"
                        else slope * float(share) * (0.3 if kind == "random_mask" else 1)
                    )
                    level[condition] = (
                        base * (0.9 if split == "out_of_domain" else 1) + effect * step / STEPS[-1]
                    )
                    level[condition] += 0.01 * rng.standard_normal() * (step > 0)
                    n = 5 if condition in ("action_mask_0", "action_mask_0.3", "random_mask_0.3") else 3
                    for seed in range(n):
                        row(
                            "training",
                            condition,
                            level[condition] + 0.3 * half * rng.standard_normal(),
                            0.8 * half,
                            seed,
                            1,
                        )
                    row("level", condition, level[condition], half, seeds=n)
                for condition in conditions:
                    if condition != "action_mask_0" and "action_mask_0" in conditions:
                        row("difference", condition, level[condition] - level["action_mask_0"], 0.9 * half)
                    if (
                        condition.startswith("random")
                        and (masked := condition.replace("random", "action")) in conditions
                    ):
                        row("control", masked, level[masked] - level[condition], 0.9 * half)
                if sum(condition.startswith("action_mask") for condition in conditions) > 1:
                    row("slope", "", slope, 2 * half)
    return pd.DataFrame(rows)


def selection_table() -> pd.DataFrame:
    found = ((0.0, 0.0, np.nan), (0.1, 0.01, 0.05), (0.3, 0.06, 0.05), (0.5, 0.07, 0.06), (0.7, 0.02, 0.07))
    of = dict(step=600, split="out_of_domain", metric="acc_cot", seeds=3, n=186, n_groups=62)
    return pd.DataFrame(
        [
            dict(of, condition=f"action_mask_{k:g}", share=k, value=v, low=v - w, high=v + w, chosen=k == 0.3)
            for k, v, w in found
        ]
    )


def as_read(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """As a command reads it: through a CSV, in which the slope's empty condition and the world `null` become
    NaN."""
    write_table(folder, "masking", frame, PROVENANCE)
    read, read.attrs = read_table(folder, "masking")
    return read


ALL = {figure.name: figure for figure in registry.figures()}
FIGURES = {name: (figure.draw, figure.caption) for name, figure in ALL.items() if figure.table == "masking"}
#: Tables as they may come: what is left of the study's where a user has less, and the figures that are then
#: not drawn.
LESS = {
    "all": ({}, set()),
    "one_split": (dict(splits=("in_domain",)), set()),
    "no_instruments": (dict(metrics=("acc_cot", "acc_prompt", "gap", "parse_cot", "parse_prompt")), {"masking_reliance"}),
    "two_conditions": (dict(conditions=("action_mask_0", "action_mask_0.3")), set()),
    "own_conditions": (dict(conditions=("action_mask_0", "action_mask_0.25", "random_mask_0.25", "action_mask_0.05", "cot_only")), set()),
    "no_baseline": (dict(conditions=("action_mask_0.3", "random_mask_0.3")), {"masking_dose"}),
    "one_condition": (dict(conditions=("action_mask_0",)), {"masking_dose", "masking_mechanism"}),
}  # fmt: skip


@pytest.mark.parametrize("less", LESS)
def test_what_a_table_has_is_drawn_and_told(less, tmp_path):
    having, lacking = LESS[less]
    frame = as_read(masking_table(**having), tmp_path)
    for name, (plot, caption) in FIGURES.items():
        if name in lacking:
            with pytest.raises(ValueError, match=f"Figure {name}"):
                plot(frame, PROVENANCE)
            continue
        drawn, text = plot(frame, PROVENANCE), caption(frame).text
        assert drawn.layout.meta["figure"] == name and drawn.layout.meta["provenance"] == PROVENANCE
        assert "nan" not in text.lower() and "  " not in text and ". ." not in text, text
        if name != "masking_table":
            titles = {axis.title.text for axis in [*drawn.select_xaxes(), *drawn.select_yaxes()]}
            titles |= {note.text for note in drawn.layout.annotations}
            assert any(word in str(titles) for word in ("share of examples", "training step", "shares"))
            for trace in drawn.data:
                if trace.showlegend and trace.type == "scatter" and trace.name != "one training":
                    band = any(
                        t.type == "scatter" and t.fill == "toself" and t.legendgroup == trace.legendgroup
                        for t in drawn.data
                    )
                    assert band or trace.error_y.array is not None or trace.error_x.array is not None, (
                        trace.name
                    )


def test_levels_stand_at_their_condition_with_their_trainings():
    frame = masking_table()
    drawn = plots_masking.success(frame)
    masked = next(t for t in drawn.data if t.name == "actions masked" and t.yaxis == "y3")
    rows = frame.query("metric == 'acc_cot' and split == 'out_of_domain' and contrast == 'level'").set_index(
        "condition"
    )
    np.testing.assert_allclose(masked.x, [rows.loc[condition, "value"] for condition in CONDITIONS[1:5]])
    assert list(masked.y) == [1, 2, 3, 4]
    np.testing.assert_allclose(
        masked.error_x.array,
        [rows.loc[condition, "high"] - rows.loc[condition, "value"] for condition in CONDITIONS[1:5]],
    )
    dots = next(t for t in drawn.data if t.name == "one training")
    names = ["k = 0", "k = .1", "k = .3", "k = .5", "k = .7", "random mask of .3"]
    assert len(dots.x) == 5 * 3 + 3 * 3 and list(drawn.layout.yaxis.ticktext) == names
    lines = [shape.x0 for shape in drawn.layout.shapes]
    assert rows.loc["action_mask_0", "value"] in lines and lines.count(SMALLEST) == 2 and len(lines) == 4
    assert "Table only: action only." in ALL["masking_success"].caption(frame).text


@pytest.mark.parametrize("name, metric", [("masking_gap", "gap"), ("masking_reliance", "prompt_reliance")])
def test_conditions_are_compared_in_four_panels(name, metric):
    frame = masking_table()
    drawn = ALL[name].draw(frame)
    assert len(drawn.layout.meta["panels"]) == 4
    where = "metric == @metric and split == 'in_domain' and contrast == 'difference' and step == 600"
    rows = frame.query(where).set_index("condition")["value"]
    masked = next(t for t in drawn.data if t.name == "actions masked" and t.xaxis == "x2")
    np.testing.assert_allclose(masked.x, rows[list(CONDITIONS[1:5])])


def test_differences_are_drawn_with_what_they_are_held_against():
    frame = masking_table(conditions=("action_mask_0", "action_mask_0.7", "random_mask_0.7"))
    low, high = plots_masking.gap(frame).layout.xaxis2.range
    assert low < 0 < high and plots_masking.success(frame).layout.xaxis2.range[1] > SMALLEST
    control = [
        t for t in plots_masking.success(frame).data if t.name == "difference to the random mask of its share"
    ]
    row = frame.query("metric == 'acc_cot' and split == 'in_domain' and contrast == 'control'").iloc[0]
    assert len(control) == 2 and list(control[0].x) == [row["value"]]


def test_a_reading_of_a_few_games_is_left_to_the_table():
    frame = masking_table()
    few = frame["metric"].eq("success_cot") & frame["contrast"].isin(("difference", "control"))
    frame.loc[few, ["value", "low", "high"]] = 0.0, -0.39, 0.39
    drawn = plots_masking.mechanism(frame)
    assert plots_masking.MECHANISM["success_cot"] not in drawn.layout.yaxis.ticktext
    assert drawn.layout.xaxis.range[1] < 0.39
    found = ALL["masking_mechanism"].caption(frame)
    assert "Too wide to draw: games won with CoT." in found.text
    assert "games won with CoT" in set(found.numbers["metric"])
    frame.loc[few, ["low", "high"]] = 0.1, 0.9  # as wide, and beyond 0
    assert plots_masking.MECHANISM["success_cot"] in plots_masking.mechanism(frame).layout.yaxis.ticktext


def test_the_last_checkpoint_is_shown():
    frame = masking_table(metrics=("acc_cot", "acc_prompt", "gap"))
    early = frame.assign(step=60, value=0.111, low=0.1, high=0.12)
    both = pd.concat([frame, early], ignore_index=True)
    for name in ("masking_success", "masking_dose", "masking_gap", "masking_mechanism", "masking_table"):
        plot, caption = FIGURES[name]
        assert (
            plot(both).to_json() == plot(frame).to_json() and caption(both).message == caption(frame).message
        )


@pytest.mark.parametrize("verdict, words", [
    ("open", "out of domain: "), ("supported", "out of domain: "), ("refuted", "out of domain: "),
    ("none: there is no control of action_mask_0.3 out of domain", "is not judged: there is no control"),
])  # fmt: skip
def test_the_verdict_is_the_provenances(verdict, words):
    frame = masking_table()
    frame.attrs = dict(verdict=verdict)
    text = ALL["masking_success"].caption(frame).message
    assert words in text
    row = frame.query("metric == 'acc_cot' and split == 'out_of_domain' and contrast == 'control'").iloc[0]
    told = f"({row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}])".replace("-", "−")
    assert (f"against the random mask {told}" in text) == (not verdict.startswith("none"))
    assert "refuted" not in text


@pytest.mark.parametrize("low, high, words", [
    (0.01, 0.2, "a gain"), (-0.01, 0.024, "a gain of at most 0.024"), (-0.1, 0.1, "no gain shown"),
    (-0.2, -0.1, "worse"), (np.nan, np.nan, "no gain shown"),
])  # fmt: skip
def test_a_gain_is_worded_by_its_interval(low, high, words):
    assert plots_masking.gain(pd.Series(dict(value=0.0, low=low, high=high))) == words


def test_nulls_are_said():
    frame = masking_table(metrics=("acc_cot", "gap"))
    wide = frame["contrast"].eq("difference")
    frame.loc[wide, ["value", "low", "high"]] = 0.0, -0.1, 0.1
    assert "No condition's gap is told apart from k = 0." in ALL["masking_gap"].caption(frame).message
    key = dict(metric="gap", contrast="difference", condition="action_mask_0.7", split="out_of_domain")
    apart = (frame[list(key)] == pd.Series(key)).all(axis=1)
    frame.loc[apart, ["value", "low", "high"]] = -0.2, -0.3, -0.1
    found = ALL["masking_gap"].caption(frame)
    assert "told apart from k = 0 for: none of 6 in-domain and k = .7 (lower) out-of-domain" in found.message
    rows = found.numbers
    assert "−0.20 [−0.30, −0.10] (step 600)" in set(
        rows[(rows["condition"] == "k = .7") & (rows["split"] == "out-of-domain")]["last checkpoint"]
    )
    single = frame.assign(seeds=1)
    assert (
        "over games alone" in ALL["masking_gap"].caption(single).size and "over games alone" not in found.size
    )


def test_predicted_sides_are_shaded_and_judged():
    frame = masking_table()
    sides = [shape for shape in plots_masking.mechanism(frame).layout.shapes if shape.type == "rect"]
    order = [name for name in plots_masking.MECHANISM if (frame["metric"] == name).any()]
    shaded = {
        axis: {order[round(s.y0 + 0.42)]: np.sign(s.x1) for s in sides if s.xref == axis}
        for axis in ("x", "x2")
    }
    predicted = dict(acc_prompt=-1, gap=1, prompt_reliance=-1, follow=1)
    assert (
        shaded == {"x": predicted, "x2": dict(predicted, acc_cot=1)} and len(sides) == 9
    )  # out of domain the claim as well
    key = dict(metric="follow", split="in_domain", condition="action_mask_0.3")
    ends = {1: (0.2, 0.1, 0.3), 0: (0.0, -0.1, 0.1), -1: (-0.2, -0.3, -0.1)}
    for zero, control in ((1, 1), (1, 0), (1, -1), (0, 1), (-1, 0)):
        for contrast, side in (("difference", zero), ("control", control)):
            rows = (frame[list(key)] == pd.Series(key)).all(axis=1) & (frame["contrast"] == contrast)
            frame.loc[rows, ["value", "low", "high"]] = ends[side]
        condition = condition_rows.claimed(frame)
        assert plots_masking.moves(frame, condition, "in_domain")["follow"][0] == zero
        assert plots_masking.moved_further(frame, condition, "in_domain").get("follow", "none") == (
            control if zero == 1 else "none"
        )


def test_what_moved_as_predicted_is_counted():
    frame = masking_table()
    for contrast in ("difference", "control"):
        frame.loc[frame["contrast"].eq(contrast), ["value", "low", "high"]] = -0.2, -0.3, -0.1
    message = ALL["masking_mechanism"].caption(frame).message
    assert (
        "2 of 4 readings (2 the other way) (2 beyond the random mask) in-domain and out-of-domain" in message
    )


def test_random_masks_are_hollow_in_the_dose():
    marks = {t.name: t for t in plots_masking.dose(masking_table()).data if t.showlegend}
    random = marks["CoT action, random mask"]
    assert len(marks["CoT action"].x) == 5 and len(random.x) == 1 and random.marker.symbol == "circle-open"
    frame = masking_table()
    frame.attrs = PROVENANCE
    found = ALL["masking_dose"].caption(frame)
    assert "Prompt accuracy falls with k in-domain and out-of-domain." in found.message
    assert "−0.30 [−0.40, −0.20] (step 600)" in set(found.numbers["last checkpoint"])


def test_selection_shows_the_chosen_share():
    frame = selection_table()
    chosen, others = plots_masking.selection(frame).data
    assert list(chosen.y) == [2] and list(others.y) == [0, 1, 3, 4]
    assert (chosen.marker.symbol, others.marker.symbol) == ("circle", "circle-open")
    text = ALL["masking_selection"].caption(frame).text
    assert "k = .3 is chosen out-of-domain" in text and "too large on average" in text
    assert (
        "k = 0 is chosen out-of-domain: no share"
        in ALL["masking_selection"].caption(frame.assign(chosen=frame["share"] == 0)).text
    )


def test_power_is_drawn_and_the_null_is_read_back_from_its_csv():
    frame = pd.read_csv(ROOT / "figures" / "tables" / "masking_power.csv")
    drawn = plots_masking_power.power(frame)
    lines = [t for t in drawn.data if t.name == "k = .3 > k = 0, effect .2" and t.mode == "lines+markers"]
    expected = frame.query(
        "world == 'action' and effect == 0.2 and contrast == 'difference' and what == 'above'"
    )
    assert len(lines) == 4 and sorted(v for t in lines for v in t.y) == sorted(expected["value"])
    null = frame[frame["world"].isna() & (frame["contrast"] == "difference") & (frame["what"] == "above")]
    least, most = 100 * null["value"].min(), 100 * null["value"].max()
    assert (
        f"without one, they find one in {least:.1f} to {most:.1f} %"
        in ALL["masking_power"].caption(frame).text
    )
    found = frame.query(
        "world == 'action' and effect == 0.2 and seeds == 5 and contrast == 'difference' and what == 'above'"
    )["value"]
    rows = ALL["masking_power"].caption(frame).numbers
    row = rows[
        (rows["planted"] == "action") & (rows["effect"] == ".2") & (rows["found"] == "k = .3 > k = 0")
    ].iloc[0]
    assert row["5 seeds"] == f"{100 * found.min():.0f} to 100 %"


def test_the_papers_table_is_the_tables():
    frame = masking_table()
    text = tex.masking_table(frame)
    assert text == tex.masking_table(frame)
    lines = text.splitlines()
    body = [line.removesuffix("[2pt]") for line in lines if line.endswith((r"\\", r"\\[2pt]"))]
    assert {len(line.replace(r"\multicolumn{2}", "&").split("&")) for line in body} == {
        9
    }  # every row fills every column
    assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    assert lines[lines.index(r"\midrule", lines.index(r"\midrule") + 1) + 1].startswith(
        "$k$ = .3 $-$ $k$ = 0 & 3 & "
    )
    assert len(body) == 2 + 2 * 9, "values and, below them, intervals"
    last = frame.query("metric == 'prompt_reliance' and split == 'out_of_domain' and step == 600")
    row = last.query("contrast == 'difference' and condition == 'action_mask_0.3'").iloc[0]
    told = [f"{row['value']:+.2f}", f"[{row['low']:.2f}, {row['high']:.2f}]"]
    value, interval = (text.replace("0.", ".").replace("-", "$-$") for text in told)
    assert (
        value in body[-4].split(" & ")
        and rf"{{\scriptsize {interval}}}" in body[-3].split(" & ")
        and text.isascii()
    )
    assert (
        condition_rows.cell(pd.Series(dict(value=10.0, low=-0.5, high=0.996))) == "10.00 [−.50, 1.00]"
        and condition_rows.cell(None) == "–"
    )
    shown = plots_masking.table(frame).data[0]
    assert list(shown.cells["values"][0])[-1] == "k = .3 − random" and len(shown.cells["values"]) == 9
    without = tex.masking_table(
        masking_table(conditions=("action_mask_0",), splits=("in_domain",), metrics=("acc_cot",))
    )
    assert without.count(r"\midrule") == 1 and "$k$ = .3" not in without


def test_draw_writes_the_latex_the_same_twice(no_browser, tmp_path):
    tables = write_table(tmp_path / "tables", "masking", masking_table(), PROVENANCE).parent
    write_table(tables, "masking_selection", selection_table(), PROVENANCE)
    paths = figures.draw(tables, tmp_path / "figures")
    first = {path.name: path.read_bytes() for path in paths}
    assert {f"{name}.html" for name in FIGURES} | {"masking_selection.html", "masking_table.tex"} <= set(
        first
    )
    assert "Not drawn" not in paths[-1].read_text() and 'href="masking_table.tex"' in paths[-1].read_text()
    assert {path.name: path.read_bytes() for path in figures.draw(tables, tmp_path / "figures")} == first
    other = write_table(tmp_path / "less", "masking_selection", selection_table(), PROVENANCE).parent
    written = {path.name for path in figures.draw(other, tmp_path / "none") if path.suffix == ".tex"}
    assert written == {"masking_selection.tex", "numbers.tex"}


def test_a_name_that_is_no_conditions_is_refused():
    with pytest.raises(ValueError, match="'keep_mask_0.3' is no condition of training"):
        condition_rows.named("keep_mask_0.3")
    for name in (*CONDITIONS, "cot_only", "random_mask_0.25", "action_mask_1"):
        assert condition_rows.named(name).name == name == Supervision.named(name).name
