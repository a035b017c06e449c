"""The report: numbers are the table's, words go where the numbers go, what is missing is left out, and the
page is whole."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from analyses import figures
from interp.plots.caption import Caption
from interp.plots.registry import figures as registered
from interp.report import masking as report_masking
from interp.report import page as report_page
from interp.report.behaviour import moves
from interp.report.claims import claims
from interp.report.numbers import macros, numbers_tex
from interp.report.sections import SECTIONS
from interp.report.study import Read, read, together
from interp.results.estimates import Ends, estimate
from interp.results.headline import headline
from interp.results.tables import read_table, write_table
from interp.results.wording import listed
from interp.system.paths import ROOT
from tests.plots.test_plots import PROVENANCE, STEPS, TABLES, old_patching_table, write_tables
from tests.plots.test_plots_masking import masking_table, selection_table

FIGURES = ROOT / "figures"
NAMES = sorted({figure.table for figure in registered()})
NUMBER = re.compile(r"[+−]?\d+\.\d+ \[[+−]?\d+\.\d+, [+−]?\d+\.\d+\]")
MASKING = dict(masking=masking_table, masking_selection=selection_table)


def study(**tables: pd.DataFrame) -> Read:
    """What a report reads of these tables, with nothing beside."""
    for frame in tables.values():
        frame.attrs = frame.attrs or dict(PROVENANCE)
    return Read(tables, {}, "")


def whole() -> Read:
    return study(**{name: make() for name, make in (TABLES | MASKING).items()})


#: Read once: a page has its own, to count its figures.
TEMPLATES = report_page._environment()


def words(of: Read, name: str = "") -> str:
    """The text of one section's lead, or of all; an item of a list, or a row of a table, a line."""
    parts = [
        str(report_page.said(section, of, TEMPLATES)) for section in SECTIONS if name in ("", section.name)
    ]
    text = re.sub(r"</t[hd]>", " ", "\n".join(parts))
    return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()


def ends(first: tuple, last: tuple) -> Ends:
    rows = pd.DataFrame(
        [
            dict(step=step, value=v, low=low, high=high)
            for step, (v, low, high) in zip((0, 800), (first, last))
        ]
    )
    return Ends(rows.iloc[0], rows.iloc[1])


@pytest.mark.parametrize(
    "first, last", [(3, 9), (10, 18), (10, 22), (18, 10), (25, 9), (0, 4), (0, 8), (40, 31), (20, 20)]
)
def test_a_change_is_one_where_newcombes_interval_excludes_0(first, last):
    """Against statsmodels' interval of the difference of two proportions, put together from the same Wilson
    intervals."""
    n = 40
    a, b = ((k / n, *proportion_confint(k, n, method="wilson")) for k in (first, last))
    low, high = confint_proportions_2indep(last, n, first, n, method="newcomb", compare="diff")
    assert ends(a, b).moved == ("up" if low > 0 else "down" if high < 0 else "level")


def test_words_of_a_change():
    low, high, none = (0.2, 0.15, 0.25), (0.6, 0.55, 0.65), (0.6, np.nan, np.nan)

    def said(first, last, steps=(0, 800)):
        frame = pd.DataFrame(
            [
                dict(
                    step=step,
                    split="in_domain",
                    metric="prompt_reliance",
                    value=v,
                    low=lo,
                    high=hi,
                    n=1,
                    n_groups=1,
                )
                for step, (v, lo, hi) in zip(steps, (first, last))
            ]
        )
        return words(study(reliance=frame), "answer")

    assert "goes around the trace, rises from 0.20 [0.15, 0.25] to 0.60 [0.55, 0.65]." in said(low, high)
    assert "falls from 0.60 [0.55, 0.65] to 0.20 [0.15, 0.25]." in said(high, low)
    assert "does not clearly change (0.20 [0.15, 0.25], then 0.20 [0.15, 0.25])." in said(low, low)
    assert "without intervals to judge" in said(low, none) and "the trace, is 0.60 [0.55, 0.65]." in said(
        low, high, (800, 800)
    )
    assert listed(["a", "", "b", "c"]) == "a, b and c"
    assert [(v.where, v.code) for v in together({"in_domain": (1, {}), "out_of_domain": (1, {})})] == [
        ("in-domain and out-of-domain", 1)
    ]
    assert [v.where for v in together({"in_domain": (1, {}), "out_of_domain": (0, {})})] == [
        "in-domain",
        "out-of-domain",
    ]


def test_a_number_keeps_the_digits_that_say_something():
    def said(value, low, high, signed=False):
        return estimate(dict(value=value, low=low, high=high), signed)

    assert said(0.000209, -0.0000139, 0.000531) == "0.00021 [−0.00001, 0.00053]"
    assert said(0.0105, -0.0018, 0.0235, True) == "+0.011 [−0.002, +0.024]", "it is seen to cover 0"
    assert said(-0.02, -0.05, -0.0002, True) == "−0.020 [−0.050, −0.000]", "and not to"
    assert said(0.02, 0.004, 0.05) == "0.02 [0.00, 0.05]" and said(-0.001, -0.2, 0.1) == "0.00 [−0.20, 0.10]"
    assert (
        said(-1e-19, -0.02, 0.03, True) == "+0.00 [−0.02, +0.03]"
        and said(0, 0, 0, True) == "+0.00 [+0.00, +0.00]"
    )
    assert said(0.2, np.nan, np.nan) == "0.20 (no interval)"


def accuracies(
    cot: tuple, prompt: tuple, parse: float = 1.0, steps=(0, 800), half: float = 0.03
) -> pd.DataFrame:
    """Accuracies at two checkpoints, and their gap."""
    rows = []
    for i, step in enumerate(steps):
        values = dict(acc_cot=cot[i], acc_prompt=prompt[i], gap=cot[i] - prompt[i], parse_prompt=parse)
        rows += [
            dict(
                step=step,
                split="in_domain",
                metric=m,
                value=v,
                low=v - half,
                high=v + half,
                n=200,
                n_groups=50,
            )
            for m, v in values.items()
        ]
    return pd.DataFrame(rows)


def test_both_actions_are_told_at_both_ends_and_no_gain_is_placed_by_the_last_checkpoint():
    frame = accuracies((0.2, 0.8), (0.2, 0.35))
    (found,) = moves(study(behaviour=frame))
    assert estimate(frame[frame["metric"] == "acc_cot"].iloc[-1]) == found.changes["acc_cot"].last
    text = words(study(behaviour=frame), "answer")
    assert "In-domain. The CoT action's agreement with the expert rises from" in text
    assert found.changes["gap"].last in text and "lands" not in text and "not read" not in text
    mute = accuracies((0.2, 0.8), (0.0, 0.0), parse=0.1)
    assert "what the prompt alone predicts is not read" in words(study(behaviour=mute), "answer")
    assert "Forced choice" not in text and "admissible" not in text and "Both actions parse" not in text, (
        "an older table"
    )


def test_forced_choice_is_told_first_and_free_decoding_with_what_does_not_parse_set_apart():
    frame = TABLES["behaviour"]()
    text = " ".join(words(study(behaviour=frame), "answer").split())

    def said(metric, step=800, signed=False):
        return estimate(
            frame.query(f"metric == '{metric}' and step == {step} and split == 'in_domain'").iloc[0], signed
        )

    beginning = "In-domain. Forced choice among the listed actions (40 decisions): The CoT action's agreement with the expert rises from"
    assert f"{beginning} {said('choice_cot_sum', 0)} to {said('choice_cot_sum')}; the prompt action's" in text
    free = "Free decoding, in which an action that does not parse is wrong: The CoT action's agreement with the expert rises from"
    assert text.index(beginning) < text.index(f"{free} {said('acc_cot', 0)} to {said('acc_cot')}")
    assert (
        f"Both actions parse on 300 of 412 decisions of the last checkpoint: there the CoT action's agreement is "
        f"{said('acc_cot_parsed')}, the prompt action's {said('acc_prompt_parsed')}, the gap {said('gap_parsed')}."
    ) in text
    assert (
        f"admissible is {said('admissible_cot')} with the trace and {said('admissible_prompt')} without it."
        in text
    )
    assert (
        f"holds no traces, the prompt action's agreement rises from {said('acc_prompt_no_history_traces', 0)}"
        in text
    )
    assert f"({said('prompt_no_history_traces_difference', signed=True)} against the same decisions" in text
    every = frame.assign(n=412)
    assert "Both actions parse" not in words(study(behaviour=every), "answer"), "all do"
    none = frame.copy()
    none.loc[none["metric"].str.endswith("_parsed") & (none["step"] == 800), ["value", "low", "high"]] = (
        np.nan
    )
    assert "Both actions parse" not in words(study(behaviour=none), "answer"), (
        "none does at the last checkpoint"
    )


def changes_of(**rows: tuple) -> pd.DataFrame:
    """A table of claims of one split: statistic -> (readout, step, verdict, value, low, high, n) rows."""
    letters = dict(gain_prompt="a", gap="b", masked_minus_none="d", masked_minus_random="d")
    made = [
        dict(
            step=step,
            split="in_domain",
            claim=letters.get(statistic, "c"),
            statistic=statistic,
            readout=readout,
            subset="all",
            margin=0.05,
            verdict=verdict,
            value=value,
            low=low,
            high=high,
            n=n,
            n_groups=50,
        )
        for statistic, several in rows.items()
        for readout, step, verdict, value, low, high, n in several
    ]
    return pd.DataFrame(made)


def test_the_report_opens_with_the_verdict_on_each_claim_at_every_checkpoint():
    frame = changes_of(
        gain_prompt=[
            ("free", 20, "supported", 0.1, 0.05, 0.15, 400),
            ("free", 60, "supported", 0.2, 0.15, 0.25, 400),
            ("free", 200, "open", 0.03, -0.02, 0.08, 400),
            ("choice_sum", 200, "open", 0.02, -0.03, 0.07, 40),
        ],
        gap=[
            ("free", 20, "supported", 0.0, -0.03, 0.03, 400),
            ("free", 60, "open", -0.1, -0.15, -0.06, 400),
            ("free", 200, "contradicted", 0.3, 0.2, 0.4, 400),
        ],
        revision_own=[("free", 200, "contradicted", 0.1, 0.05, 0.15, 400)],
        prompt_reliance=[("pairs", 200, "open", 0.0, -0.1, 0.1, 12)],
        masked_minus_none=[("free", 600, "a gain of at least 0.05 excluded", 0.01, -0.01, 0.02, 99)],
        masked_minus_random=[("free", 600, "a gain of at least 0.05 excluded", 0.03, 0.01, 0.06, 99)],
    )
    text = " ".join(words(study(claims=frame), "claims").split())
    assert "(a) Training improves the prompt action." in text
    assert "prompt action, free decoding supported at 20, 60; open at 200" in text
    assert "step 200: +0.03 [−0.02, +0.08], 400 decisions" in text
    assert "supported at 20; contradicted at 200; open at 60" in text
    assert "At step 200: 0 supported, 1 contradicted, 1 open" in text
    assert (
        "A gain of at least 0.05 excluded at step 600" in text
        and "+0.01 [−0.01, +0.02] against no mask" in text
    )
    assert (
        "From fewer than 100 decisions or games, or 20 pairs: forced choice (40 decisions); prompt reliance (12 pairs)."
        in text
    )
    last = claims(study(claims=frame[frame["step"] < 200])).claims[1].readings[0][1][0]
    assert last.fell, "the gap narrows at the last of these, which is open"
    many = words(study(claims=frame.assign(n=500)), "claims")
    assert "From fewer than" not in many
    no_masks = words(study(claims=frame[frame["claim"] != "d"]), "claims")
    assert "Open: no training conditions are compared here." in no_masks


def test_an_older_run_says_that_its_claims_are_not_judged_and_its_masking_study_what_it_shows():
    text = words(study(behaviour=TABLES["behaviour"]()), "claims")
    assert "Claims (a) to (c) are not judged here: there is no table claims.csv of this run." in text
    text = words(study(masking=masking_table()), "claims")
    assert "not judged" not in text and "(d) Masked action supervision generalises better." in text
    assert words(study(reliance=TABLES["reliance"]()), "claims") == ""


def test_a_page_opens_with_its_results_and_ends_with_what_its_words_mean(tmp_path):
    def order(**tables):
        page = report_page.save_index([], study(**tables), tmp_path / "tables", tmp_path, ("svg",))
        return re.findall(r'<section id="(\w+)"', page.read_text())

    judged = order(claims=TABLES["claims"](), behaviour=TABLES["behaviour"]())
    assert judged[:2] == ["claims", "answer"] and judged[-2:] == ["question", "measured"]
    unjudged = order(behaviour=TABLES["behaviour"]())
    assert unjudged[0] == "answer" and unjudged.index("claims") > 0
    assert order(masking=masking_table())[:2] == ["claims", "masking"]
    text = (tmp_path / "index.html").read_text()
    assert not Page(text).open and text.index("<nav") < text.index("<main")


def test_a_page_beside_the_main_one_has_its_own_title_and_links_back(tmp_path):
    for name in ("", "reinforcement"):
        (tmp_path / name).mkdir(exist_ok=True)
        of = study(masking=masking_table())
        folder = tmp_path / name
        text = report_page.save_index([], of, folder / "tables", folder, ("svg",)).read_text()
        assert ("Reinforcement learning" in text[: text.index("<nav")]) == bool(name)
        assert ('href="../index.html"' in text) == bool(name)


def test_every_headline_number_is_a_macro_of_its_own_with_letters_only():
    of = whole()
    made = {macro.name: macro.text for macro in macros(of)}
    assert len(made) == len(macros(of)) > 150 and all(re.fullmatch("[A-Za-z]+", name) for name in made)
    rows = TABLES["behaviour"]().query("metric == 'acc_cot'")
    for split, out in (("in_domain", ""), ("out_of_domain", "Out")):
        for end, step in (("First", 0), ("Last", 800)):
            row = rows.query(f"split == '{split}' and step == {step}").iloc[0]
            name = f"accCot{end}{out}"
            assert f"{made[name]} {made[f'{name}Interval']}" == estimate(row)
            assert made[f"{name}N"] == "412" and made[f"{name}Step"] == str(step)
    verdict = TABLES["claims"]().query("statistic == 'gap' and readout == 'free' and subset == 'all'")
    last = verdict.query("split == 'in_domain'").sort_values("step").iloc[-1]
    assert made["gapFreeChangeVerdict"] == last["verdict"]
    assert made["gapFreeChange"] == estimate(last, signed=True).partition(" ")[0]
    text = numbers_tex(of)
    assert text.isascii() and rf"\newcommand{{\accCotLast}}{{{made['accCotLast']}}}" in text
    assert macros(study()) == [] and macros(study(behaviour=TABLES["behaviour"]()[["step"]])) == []


def estimates(of: Read) -> set[str]:
    """Every estimate of every table, as it would be written."""
    tables = [
        *of.tables.values(),
        *(frame for other in of.beside.values() for frame in other.tables.values()),
    ]
    rows = (
        pd.concat([frame[["value", "low", "high"]] for frame in tables if "value" in frame])
        .dropna()
        .drop_duplicates()
        .to_dict("records")
    )
    return {estimate(row, signed) for row in rows for signed in (False, True)}


def test_every_number_with_an_interval_is_a_tables():
    of = whole()
    found = NUMBER.findall(words(of))
    assert len(found) > 60 and not set(found) - estimates(of)
    other = study(
        **{
            name: frame.assign(**{c: 0.9 * frame[c] for c in ("value", "low", "high")})
            for name, frame in of.tables.items()
        }
    )
    moved = NUMBER.findall(words(other))
    assert (
        len(moved) > 50
        and not set(moved) - estimates(other)
        and len(set(moved) - set(found)) > 0.8 * len(set(moved))
    )


@pytest.mark.parametrize(
    "folder",
    ("", "smollm2", "environments", "reinforcement", "masking_smollm2", "conditions", "smollm2_conditions"),
)
def test_every_number_of_the_committed_pages_is_a_stored_tables(folder):
    of = read(FIGURES / folder / "tables", FIGURES / folder, NAMES)
    found = NUMBER.findall(words(of))
    for figure in registered():
        try:
            caption = figure.caption(of.tables[figure.table])
        except (LookupError, ValueError):  # no such table, or one made before this figure was
            continue
        found += NUMBER.findall(f"{caption.text} {caption.numbers.to_csv()}")
    fewest = 20 if folder == "smollm2_conditions" else 21  # its two conditions have ten readings
    assert len(found) >= fewest and not set(found) - estimates(of)


def test_opposite_tables_give_opposite_words():
    of = whole()
    turned = study(
        **{
            name: (
                frame.assign(step=STEPS[-1] - frame["step"])
                if "step" in frame and name not in MASKING
                else frame
            )
            for name, frame in of.tables.items()
        }
    )
    for subject in (
        "prompt reliance, the share of the prompt's effect on the action that goes around the trace,",
        "The CoT action's agreement with the expert",
    ):
        assert f"{subject} rises" in words(of, "answer") and f"{subject} falls" in words(turned, "answer")
    lower = of.tables["conflict"].copy()
    lower.loc[lower["metric"] == "follow", ["value", "low", "high"]] = 0.1, 0.05, 0.15
    higher = lower.assign(
        **{c: 1 - lower[o] for c, o in (("value", "value"), ("low", "high"), ("high", "low"))}
    )
    assert "it does not follow such a trace more often than not" in words(study(conflict=lower), "answer")
    assert "it follows such a trace more often than not" in words(study(conflict=higher), "answer")


def test_a_probe_that_gains_and_one_that_does_not():
    frame = TABLES["probes"]()
    gain, null = frame["predictor"] == "gain", frame.copy()
    null.loc[gain, ["value", "low", "high"]] = -0.05, -0.1, 0.0
    frame.loc[gain, ["value", "low", "high"]] = 0.1, 0.05, 0.15
    for of, said, listed_ in (
        (frame, "better than", False),
        (null, "no better or worse, for sure, than", True),
    ):
        assert f"reads the action to come {said} the best guess made without activations" in words(
            study(probes=of), "answer"
        )
        assert (
            "A gain of the boundary probe over its controls, for the eventual action's target"
            in words(study(probes=of), "nulls")
        ) == listed_
    assert "an interval above 0 in none of 78 cells of layer and checkpoint, −0.05 [−0.10, +0.00]" in words(
        study(probes=null), "nulls"
    )


def test_a_null_is_listed_only_where_it_is_one():
    of = whole()
    moved = of.tables["patching"].query("at == 'boundary' and metric == 'difference'")["value"].abs().max()
    assert moved > 0.5 and "boundary token" not in words(of, "nulls")
    still = of.tables["patching"].copy()
    edge = (still["at"] == "boundary") & (still["metric"] == "difference")
    still.loc[edge, ["value", "low", "high"]] = 0.0002, -0.0001, 0.0005
    assert "patching it gives back 0.00020 [−0.00010, 0.00050] of the difference at most" in words(
        study(patching=still), "nulls"
    )
    steering = of.tables["steering"].copy()
    assert "Steering at the boundary" not in words(study(steering=steering), "nulls")
    steering.loc[
        (steering["position"] == "boundary") & (steering["metric"] == "flip"), ["value", "low", "high"]
    ] = 0.03, 0.0, 0.08
    assert "changes more than 0.03 [0.00, 0.08] of the actions" in words(study(steering=steering), "nulls")
    games = of.tables["online"].copy()
    assert "More games won" not in words(study(online=games), "nulls")
    games.loc[games["metric"] == "success", ["value", "low", "high"]] = 0.0, 0.0, 0.06
    assert "none won at any checkpoint, 0.00 [0.00, 0.06] at the last, of 412 games" in words(
        study(online=games), "nulls"
    )


def test_what_a_table_lacks_is_left_out():
    """Each table alone, without each of its metrics, without a split, with one checkpoint: nothing fails, and
    no sentence has a hole."""
    for name, make in (TABLES | MASKING).items():
        frame = make()
        lacking = [frame, frame[:0]]
        lacking += [frame[frame["split"] == frame["split"].iloc[-1]]] if "split" in frame else []
        lacking += [frame[frame["step"] == frame["step"].max()]] if "step" in frame else []
        for column in (
            "metric",
            "predictor",
            "condition",
            "at",
            "contrast",
            "position",
            "direction",
            "statistic",
            "readout",
        ):
            lacking += (
                [frame[frame[column] != value] for value in frame[column].unique()] if column in frame else []
            )
        lacking += (
            [old_patching_table(), old_patching_table().drop(columns="mode")] if name == "patching" else []
        )
        for part in lacking:
            part.attrs = frame.attrs
            text = words(study(**{name: part}))
            assert not re.search(r"\bnan\b|None|  |: ?\.|\( |; ?\.|, ?\.", text), (
                name,
                re.search(r".{30}(\bnan\b|None|  |: ?\.|\( |; ?\.|, ?\.).{10}", text),
            )
    for name in ("trusted", "better", "predicted", "depends", "masking", "elsewhere", "nulls"):
        assert words(study(), name) == ""


def test_a_study_without_masking_trainings_says_so_only_beside_their_power():
    assert "masking" not in words(study(behaviour=TABLES["behaviour"]()), "masking")
    power = read_table(FIGURES / "tables", "masking_power")[0]
    assert "No trainings are compared here" in words(study(masking_power=power), "masking")
    assert "No trainings" not in words(study(masking_power=power, masking=masking_table()), "masking")


def test_what_a_mask_removes_is_said_beside_the_claim():
    rows = [
        dict(condition="action_mask_0", seed=0, step=step, part="action", metric=metric, n=12, n_groups=12)
        | dict(value=value, low=value / 2, high=value * 2)
        for step, values in {0: (0.5, 0.3), 600: (0.02, 0.04)}.items()
        for metric, value in zip(("nll", "gradient_share"), values, strict=True)
    ]
    said = words(study(masking=masking_table(), masking_manipulation=pd.DataFrame(rows)), "masking")
    assert "at step 600, the action's tokens have a loss of 0.02 [0.01, 0.04] nats" in said
    assert "0.04 [0.02, 0.08] of the gradient" in said


def test_conditions_that_were_trained_once_are_said_to_be_an_illustration():
    assert "trained once" not in words(study(masking=masking_table()), "masking")
    assert "trained once" in words(study(masking=masking_table().assign(seeds=1)), "masking")


def test_prompt_actions_that_hardly_parse_are_said_to_be_no_reading():
    frame = masking_table()
    rows = frame.query("metric == 'acc_prompt'").assign(metric="parse_prompt")
    for value, said in ((0.9, False), (0.2, True)):
        parsed = pd.concat([frame, rows.assign(value=value, low=value - 0.05, high=value + 0.05)])
        assert (
            "too rarely for the prompt action's accuracy" in words(study(masking=parsed), "masking")
        ) == said


def test_the_conditions_of_other_trainings_stand_beside_with_their_page():
    frame = masking_table()
    other = Read(dict(masking=frame.assign(seeds=1)), {}, "../reinforcement/index.html")
    of = study(masking=frame)._replace(beside=dict(reinforcement=other, smollm2=Read({}, {}, "")))
    table = report_masking.masked(of).table
    title = "Reinforcement learning from two of these trainings"
    assert [row[0] for row in table.rows] == ["this study"] * 2 + [title] * 2 and table.links == {
        title: "../reinforcement/index.html"
    }
    rows = frame.query(
        "metric == 'follow' and condition == 'action_mask_0.3' and contrast == 'difference' and split == 'out_of_domain'"
    )
    last = rows[rows["step"] == rows["step"].max()].iloc[0]
    assert table.rows[3][1:4] == ["k = .3", "out-of-domain", "1"]
    assert estimate(last, signed=True) == table.rows[3][table.heads.index("follows another state's trace")]
    for lacking in ({}, dict(masking=frame[frame["condition"] == "action_mask_0"])):
        assert (
            report_masking.masked(
                of._replace(beside=dict(reinforcement=other._replace(tables=lacking)))
            ).table
            is None
        )


def test_what_provenance_says_is_escaped():
    frame = TABLES["behaviour"]()
    frame.attrs = dict(PROVENANCE, environment=dict(name="<script>alert(1)</script>"))
    said = "".join(report_page.said(section, study(behaviour=frame)) for section in SECTIONS)
    assert "<script" not in said and "&lt;script&gt;" in said


def test_studies_that_stand_beside_are_told_and_linked(tmp_path, no_browser):
    tables = write_tables(tmp_path / "tables", "behaviour")
    merged = pd.concat(
        [
            headline({"behaviour": TABLES["behaviour"]()}).assign(environment=name)
            for name in ("alfworld", "twc")
        ]
    )
    write_tables(tmp_path / "smollm2" / "tables", "behaviour", "reliance")
    write_table(tmp_path / "environments" / "tables", "environments", merged, PROVENANCE)
    page = figures.draw(tables, tmp_path / "out")[-1].read_text()
    assert 'href="../smollm2/index.html"' in page and 'href="../environments/index.html"' in page
    section = page[page.index('<section id="elsewhere"') : page.index('<section id="limits"')]
    last = (
        TABLES["reliance"]()
        .query("step == 800 and split == 'in_domain' and metric == 'prompt_reliance'")
        .iloc[0]
    )
    assert (
        f"<td>{estimate(last)}</td>" in section
        and "TextWorld Commonsense" in section
        and "Table 2." in section
    )
    (tmp_path / "environments" / "tables" / "environments.json").unlink()
    assert "TextWorld Commonsense" not in figures.draw(tables, tmp_path / "out")[-1].read_text(), (
        "half a table is as none"
    )


class Page(HTMLParser):
    """Tags that are open, ids, targets, and what is fetched."""

    VOID = {"meta", "br", "link", "img", "hr"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.targets, self.fetched, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attributes:
            self.ids += [value] if key == "id" else []
            self.targets += [value] if key == "href" and tag == "a" else []
            self.fetched += [value] if key == "src" or (key == "href" and tag != "a") else []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another at {self.getpos()}"


def test_the_page_is_whole(tmp_path):
    of = whole()
    entries = []
    for figure in registered():
        caption = Caption("x < y.", "Drawn.", "n = 2.", pd.DataFrame(dict(reading=["<i>a"], value=["0.5"])))
        there = figure.table in of.tables
        entries.append(report_page.Entry(figure.name, figure.title, figure.table, figure.section, dict(PROVENANCE, odd="<&>"), caption if there else None,
                                         "" if there else "No <table>.", figure.name == "masking_table"))  # fmt: skip
    beside = ("calibration", "compare", "conditions", "seeds")
    entries = [entry for entry in entries if entry.name not in beside]
    text = report_page.save_index(entries, of, tmp_path / "tables", tmp_path, formats=("html",)).read_text()
    found = Page(text)
    assert not found.open and "script" not in found.tags and len(found.ids) == len(set(found.ids))
    within = [target[1:] for target in found.targets if target.startswith("#")]
    assert within == [section.name for section in SECTIONS if section.name != "trusted"] and set(
        within
    ) <= set(found.ids)
    assert all(not target.startswith(("http", "//")) for target in found.targets + found.fetched)
    drawn = sum(entry.caption is not None for entry in entries)
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", text)] == list(range(1, drawn)) and text.count(
        'class="missing"'
    ) == len(entries) - drawn
    assert re.findall(r"<b>Table (\d+)\.", text) == ["1", "2"], "the summary, and the conditions"
    assert [
        text.index(f'id="{entry.name}-figure"') for entry in entries if entry.name[:7] == "masking"
    ] == sorted(text.index(f'id="{entry.name}-figure"') for entry in entries if entry.name[:7] == "masking")


def test_a_second_draw_gives_the_same_page_and_leaves_the_tables(tmp_path, no_browser):
    tables = write_tables(tmp_path / "tables", "behaviour", "reliance")
    write_table(tables, "masking_selection", selection_table(), PROVENANCE)
    before = {path.name: path.read_bytes() for path in tables.iterdir()}
    page = figures.draw(tables, tmp_path / "out")[-1]
    first = page.read_bytes()
    assert figures.draw(tables, tmp_path / "out")[-1].read_bytes() == first
    assert figures.draw(tables, tmp_path / "further" / "out")[-1].read_bytes() == first.replace(
        b"../tables", b"../../tables"
    )
    assert before == {path.name: path.read_bytes() for path in tables.iterdir()}


def test_a_drawing_is_shown_with_its_message_and_leaves_the_page_whole(tmp_path):
    entry = report_page.Entry(
        "behaviour",
        "One",
        "behaviour",
        "better",
        dict(PROVENANCE, odd="<&>"),
        Caption('Said "so" <b>.', "", ""),
    )
    of = study(behaviour=TABLES["behaviour"]())
    text = report_page.save_index([entry], of, tmp_path / "tables", tmp_path, ("svg",)).read_text()
    shown = '<img src="behaviour.svg" alt="One. Said &#34;so&#34; &lt;b&gt;.">'
    assert not Page(text).open and shown in text and "&lt;&amp;&gt;" in text


@pytest.fixture
def page_only(monkeypatch):
    """A draw writes its page alone."""
    for name in ("save_html", "save_static"):
        monkeypatch.setattr(f"interp.plots.export.{name}", lambda *_: [])


HOSTILE = 'a"><script>alert(1)<'


def test_no_name_of_a_folder_enters_the_page_as_html(tmp_path, page_only):
    tables = write_tables(tmp_path / HOSTILE / "tables", "reliance")
    write_tables(tmp_path / HOSTILE / "smollm2" / "tables", "reliance")
    page = figures.draw(tables, tmp_path / "out")[-1]
    found = Page(page.read_text())
    assert not found.open and "script" not in found.tags
    linked = [target for target in found.targets if target.startswith("..")]
    assert len(linked) > 1 and all(
        (page.parent / unquote(target)).exists() for target in linked if not target.endswith("index.html")
    )
    assert any(unquote(target).endswith(f"{HOSTILE}/smollm2/index.html") for target in linked)


def test_no_text_of_a_table_or_its_provenance_enters_a_page_as_html(tmp_path, no_browser):
    tags = "</script><script>alert(1)</script><a href='x'>y</a>"
    tables = tmp_path / "tables"
    for name in ("probes", "mdl"):
        frame = TABLES[name]()
        changed = frame.assign(label=tags) if "label" in frame else frame
        write_table(
            tables, name, changed, dict(PROVENANCE, note=tags, environment=dict(name=tags)) | {tags: tags}
        )
    splits = dict(
        environment=tags,
        trained_on=tags,
        split=tags,
        holds=tags,
        task_types=tags,
        episodes=1,
        decisions=1,
        studied=1,
    )
    write_table(tables, "splits", pd.DataFrame([splits]), PROVENANCE)
    for path in figures.draw(tables, tmp_path / "out"):
        text = path.read_text() if path.suffix == ".html" else ""
        assert (
            tags not in text
            and "<script>alert" not in text
            and "\\u003ca href" not in re.sub(r'"meta":\{.*', "", text)
        ), path
    assert "script" not in Page((tmp_path / "out" / "index.html").read_text()).tags


def nothing_matches(frame):
    return frame.assign(**{name: "nothing" for name in frame.select_dtypes(exclude=["number", "bool"])})


ODD = {
    "names that match nothing": nothing_matches,
    "columns that are missing": lambda frame: frame[list(frame)[:2]],
    "texts for numbers": lambda frame: frame.astype({name: object for name in frame}).assign(
        **{name: "x" for name in ("value", "low", "high") if name in frame}
    ),
    "no rows": lambda frame: frame[:0],
    "one metric unknown": lambda frame: frame.assign(metric="other") if "metric" in frame else frame,
}


@pytest.mark.parametrize("odd", ODD)
def test_tables_of_something_else_are_said_and_end_nothing(tmp_path, page_only, odd):
    for name, make in dict(
        reliance=TABLES["reliance"], conflict=TABLES["conflict"], masking=masking_table
    ).items():
        write_table(tmp_path / "tables", name, ODD[odd](make()), PROVENANCE)
    page = figures.draw(tmp_path / "tables", tmp_path / "out")[-1].read_text()
    assert page.count('class="missing"') > 3 and "Not drawn." in page and not Page(page).open


def test_a_damaged_table_is_named_and_the_others_are_drawn(tmp_path, page_only, capsys):
    tables = write_tables(tmp_path / "tables", "reliance", "conflict")
    write_table(tables, "masking", masking_table(), PROVENANCE)
    for name in ("conflict", "masking"):
        path = tables / f"{name}.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(
        ValueError,
        match="index.html was drawn without 2 of its tables. The table .*conflict.csv is not the one",
    ):
        figures.draw(tables, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "reliance-figure" in page and "reliance.html" in page
    for name in ("conflict", "removal", "masking_success", "masking_gap"):
        figure = page[page.index(f'id="{name}-figure"') :]
        assert "Not drawn. The table" in figure[:300]


def test_tables_of_two_studies_are_said_to_be_so(tmp_path, page_only, capsys):
    made = dict(PROVENANCE, corpus="c", weights={"0": "w"})
    write_table(tmp_path / "tables", "early", TABLES["early"](), made | dict(seed=0))
    write_table(tmp_path / "tables", "reliance", TABLES["reliance"](), made | dict(seed="<b>1"))
    page = figures.draw(tmp_path / "tables", tmp_path / "out")[-1].read_text()
    said = "These tables are not of one study: the seed is 0 in early and <b>1 in reliance."
    assert said in capsys.readouterr().err and said.replace("<b>", "&lt;b&gt;") in page[: page.index("<nav")]


def test_a_probe_of_an_earlier_checkpoint_is_said_to_be_of_that_one():
    made = dict(PROVENANCE, weights={"0": "a", "800": "b"})
    frame = TABLES["probes"]()
    frame.attrs = made
    behaviour = TABLES["behaviour"]()
    behaviour.attrs = made
    last = int(frame.step.max())
    assert last == 800 and "At the last checkpoint" in words(
        study(behaviour=behaviour, probes=frame), "answer"
    )
    earlier = frame[frame.step < last].copy()
    earlier.attrs = made
    said = words(study(behaviour=behaviour, probes=earlier), "answer")
    assert f"At checkpoint {int(earlier.step.max())} " in said and "At the last checkpoint" not in said
