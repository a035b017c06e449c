"""Training conditions side by side: synthetic runs of `seeds` whose answer is known, and what is not compared."""

import shutil

import numpy as np
import pandas as pd
import pytest

from analyses.conditions import kept, sources
from interp.plots import drawn as data_of
from interp.plots.conditions import conditions as draw
from interp.plots.look import Look
from interp.plots.registry import figures
from interp.results.condition_rows import named
from interp.results.queries import need, pick
from interp.results.readings import read_readings, write_readings
from interp.results.tables import read_table, write_table
from interp.results.trainings import COLUMNS, MEAN
from tests.analyses.test_seeds import STEPS, run_of
from tests.command_line import main

PURE, DROPOUT, NONE = "action_mask_0", "trace_dropout_0.15", "prompt_only"


def seeds_of(folder, shift=0.0, trainings=3, silent=False, **changes):
    """A finished run of `seeds` over trainings of one condition, whose later rates are shifted."""
    runs = [
        run_of(folder / f"seed-{s}", shift + 0.02 * (s - 1), 0, **dict(dict(training_seed=s), **changes))
        for s in range(trainings)
    ]
    for each in runs if silent else ():
        cells, made = read_readings(each / "tables")
        for (step, _, readout), frame in cells.items():
            if readout == "free" and step:
                frame["action_cot"], frame["cot"], frame["parsed"] = None, False, False
        write_readings(each / "tables", cells, made)
    assert main("seeds", "--runs", *runs, "--run", folder) == 0
    return folder


@pytest.fixture
def three(tmp_path, no_browser):
    return [
        seeds_of(tmp_path / PURE, 0.0),
        seeds_of(tmp_path / "anything", 0.2, training_condition=DROPOUT),
        seeds_of(tmp_path / NONE, 0.1, silent=True),
    ]


def compared(folders):
    return pd.concat(kept(sources(folders)), ignore_index=True)


def figure():
    (found,) = (each for each in figures() if each.name == "conditions")
    return found


def test_one_command_joins_the_conditions_into_one_small_table_and_draws(three, tmp_path, capsys):
    capsys.readouterr()
    assert main("conditions", "--runs", *three, "--run", tmp_path / "out") == 0
    frame, made = read_table(tmp_path / "out" / "tables", "conditions")
    assert tuple(frame.columns) == ("condition", *COLUMNS)
    assert frame["condition"].unique().tolist() == [PURE, DROPOUT, NONE], (
        "as their trainings, or folders, say"
    )
    own, _ = read_table(three[1] / "tables", "seeds")
    where = dict(seed=MEAN, split="in_domain", statistic="gap", readout="free", quantity="change", step=110)
    one = need(frame, condition=DROPOUT, **where).drop(columns="condition")
    pd.testing.assert_frame_equal(one.reset_index(drop=True), need(own, **where).reset_index(drop=True))
    single = frame[frame["seed"] != MEAN]
    assert set(single["statistic"]) == {"gain_prompt", "gain_cot"} and set(single["step"]) == {STEPS[-1]}
    assert len(single) == 3 * 3 * 2 * 2
    parses = need(frame, statistic="parse_cot", step=110, split="in_domain").set_index("condition")["value"]
    assert parses.to_dict() == {PURE: 1.0, DROPOUT: 1.0, NONE: 0.0}
    assert set(made["conditions"][DROPOUT]["sources"]) == set("012") and made["study"]["decisions"]
    said = capsys.readouterr()
    assert "3 conditions: action_mask_0, trace_dropout_0.15 and prompt_only" in said.out and not said.err
    assert (tmp_path / "out" / "conditions.html").exists()


def test_the_figure_goes_from_the_base_to_the_last_checkpoint_and_says_where_no_trace_is_written(three):
    frame = compared(three)
    drawn = draw(frame, {})
    rows = data_of.rows(drawn)
    for split, panel in (("in_domain", "In-domain"), ("out_of_domain", "Out-of-domain")):
        here = pick(rows, panel=panel)
        levels = pick(
            frame, seed=MEAN, split=split, quantity="level", readout="free", statistic="gain_prompt"
        )
        for step, series in ((0, "prompt action, base"), (110, "prompt action")):
            mine, theirs = pick(here, series=series), pick(levels, step=step)
            assert mine["x"].tolist() == ["every trace kept", "15 % of traces left out", "no traces"]
            for column, name in dict(value="y", low="low", high="high", n="n").items():
                np.testing.assert_allclose(mine[name].astype(float), theirs[column])
        assert pick(here, series="CoT action")["x"].tolist() == [
            "every trace kept",
            "15 % of traces left out",
        ]
        assert here["series"].str.contains("seed").sum() == 3 * (3 + 2)
    notes = [note.text for note in drawn.layout.annotations]
    assert notes.count("writes no trace") == 2
    assert "n = 180 decisions of 60 episodes, 3 trainings of each condition, by free decoding" in notes
    assert len(drawn.layout.shapes) == 2 * (3 + 2), "a bar for each action of each condition"
    assert len(draw(frame, {}, Look("icml", columns=1)).layout.meta["panels"]) == 2


def test_the_caption_is_short_and_the_table_below_has_every_change_with_its_verdict(three):
    frame = compared(three)
    caption = figure().caption(frame)
    assert len(caption.text.split()) <= 60 and "No traces: no CoT action parses." in caption.text
    rows = pick(frame, seed=MEAN, split="in_domain", readout="free", quantity="change", step=110)
    least = need(rows, condition=PURE, statistic="gain_prompt")["value"].item()
    assert caption.message.startswith("In-domain, training changes the CoT action by +0.2")
    assert f"the prompt action by {least:+.2f} (every trace kept) to +0." in caption.message
    table = caption.numbers.set_index("change of")
    assert list(table) == ["every trace kept", "15 % of traces left out", "no traces"]
    assert table.loc["gap (CoT − prompt), in-domain", "no traces"] == "no trace written"
    assert table.loc["prompt action, in-domain", "no traces"].endswith(", supported")
    assert table.loc["prompt reliance, out-of-domain"].str.contains(r"\[").all()
    assert table.loc["trainings"].tolist() == ["3", "3", "3"]


def test_a_condition_of_another_name_is_shown_as_it_is_and_no_markup(three):
    frame = compared(three[:2]).replace({"condition": {DROPOUT: "<b>mine_1"}})
    drawn = draw(frame, {})
    assert drawn.layout.yaxis.ticktext == ("every trace kept", "&lt;b>mine 1")
    with pytest.raises(ValueError, match="Figure conditions: the table has no level of both actions"):
        draw(frame[frame["statistic"] == "gap"], {})


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(weights={"0": "another", "50": "a", "110": "b"}), "start from another base"),
        (dict(steps=(0, 110)), "it has the checkpoints 0 and 110, and the other 0, 50 and 110"),
        (dict(corpus="another"), "the corpus is another"),
        (
            dict(config=dict(seed=0, decisions=90, series="else", trace_tokens=96)),
            "--decisions was 180 and is 90",
        ),
    ],
)
def test_what_differs_between_conditions_is_named(tmp_path, capsys, no_browser, changes, sentence):
    one, other = seeds_of(tmp_path / PURE), seeds_of(tmp_path / DROPOUT, **changes)
    assert main("conditions", "--runs", one, other, "--run", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{other} cannot be compared with {one}" in said and sentence in said
    assert not (tmp_path / "out").exists()


def earlier(folder, fewer=0):
    """The table of `seeds` as a release wrote it that kept no settings, and with fewer decisions."""
    frame, made = read_table(folder / "tables", "seeds")
    made = {key: value for key, value in made.items() if key not in ("study", "seal")}
    write_table(folder / "tables", "seeds", frame.assign(n=frame["n"] - fewer), made)


def test_of_tables_without_settings_the_numbers_of_decisions_are_compared(three, tmp_path, capsys):
    one, other = three[:2]
    earlier(one)
    assert main("conditions", "--runs", one, other, "--run", tmp_path / "out") == 0
    earlier(other, fewer=5)
    assert main("conditions", "--runs", one, other, "--run", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "it read other decisions: at checkpoint 0 in-domain 175 of them, and the other 180" in said


def test_decisions_of_other_ids_are_refused(tmp_path, capsys, no_browser):
    one = seeds_of(tmp_path / PURE)
    run = run_of(tmp_path / "seed-0", training_seed=0)
    cells, made = read_readings(run / "tables")
    renamed = {key: frame.rename(index=lambda name: f"{name} again") for key, frame in cells.items()}
    write_readings(run / "tables", renamed, made)
    assert main("seeds", "--runs", run, "--run", tmp_path / DROPOUT) == 0
    assert main("conditions", "--runs", one, tmp_path / DROPOUT, "--run", tmp_path / "out") == 1
    assert "it read other decisions." in capsys.readouterr().err


def test_one_condition_twice_and_a_run_without_the_table_are_refused(three, tmp_path, capsys):
    options = ("--run", tmp_path / "out")
    twin = shutil.copytree(three[0], tmp_path / "again" / PURE)
    assert main("conditions", "--runs", three[0], twin, *options) == 1
    assert "Two of the runs are of the condition action_mask_0" in capsys.readouterr().err
    assert main("conditions", "--runs", three[0], *options) == 1
    assert "Give the folders of two or more runs of `seeds`" in capsys.readouterr().err
    assert main("conditions", "--runs", three[0], three[1] / "seed-0", *options) == 1
    assert "has no table of several trainings" in capsys.readouterr().err


def test_what_is_no_table_of_seeds_is_said(three, tmp_path, capsys):
    """Edited tables, those of other programs, and what else a pattern of the shell names."""
    frame, made = read_table(three[1] / "tables", "seeds")
    weightless = {seed: each | dict(weights={}) for seed, each in made["sources"].items()}
    for table, about in (
        (frame[["seed", "step"]], made),
        (frame[frame["seed"] != MEAN], made),
        (frame.iloc[:0], made),
        (frame, {key: value for key, value in made.items() if key != "sources"}),
        (frame, made | dict(sources=[1])),
        (frame, made | dict(sources=weightless)),
    ):
        write_table(tmp_path / "odd" / "tables", "seeds", table, about)
        for runs in ((three[0], tmp_path / "odd"), (tmp_path / "odd", three[0])):
            assert main("conditions", "--runs", *runs, "--run", tmp_path / "out") == 1
            assert "seeds.csv is no whole table of `seeds`" in capsys.readouterr().err
    file = three[1] / "seeds.html"
    assert main("conditions", "--runs", three[0], file, "--run", tmp_path / "out") == 1
    assert f"{file} is a file: give the folder of a run of `seeds`." in capsys.readouterr().err


def test_one_training_beside_several_says_what_its_interval_is_over(three, tmp_path, no_browser):
    single = seeds_of(tmp_path / "single" / DROPOUT, trainings=1)
    assert (
        figure()
        .caption(compared([three[0], single]))
        .text.endswith(
            "n = 1 to 3 seeds, 180 decisions each, 60 episodes; 95 % intervals over episodes x seeds, where seeds "
            "are too few over episodes alone."
        )
    )
    other = seeds_of(tmp_path / "single" / NONE, trainings=1)
    assert "n = 1 seed, 180 decisions each" in figure().caption(compared([single, other])).text


def test_trainings_of_two_conditions_are_no_seeds_of_one(tmp_path, capsys):
    runs = [
        run_of(tmp_path / f"seed-{s}", training_seed=s, training_condition=name)
        for s, name in enumerate((PURE, DROPOUT))
    ]
    assert main("seeds", "--runs", *runs, "--run", tmp_path / "out") == 1
    assert "its training's condition is trace_dropout_0.15 and not action_mask_0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, words",
    [
        (PURE, "every trace kept"),
        (DROPOUT, "15 % of traces left out"),
        ("replay_0.1", "10 % replay of the base"),
        (NONE, "no traces"),
        ("action_mask_0.3", "30 % of actions masked"),
        ("random_mask_0.3", "30 % masked at random"),
        ("cot_only", "traces alone supervised"),
    ],
)
def test_conditions_are_named_in_words(name, words):
    assert named(name).words == words
