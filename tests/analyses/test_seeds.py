"""Several trainings together: synthetic runs whose answer is known, what cannot be compared, and a tiny one."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from analyses.seeds import Config, readings_over, sources
from interp.plots.registry import figures
from interp.plots.seeds import seeds as draw
from interp.results.queries import need, pick
from interp.results.readings import read_readings, write_readings
from interp.results.tables import read_table, write_table
from interp.results.trainings import COLUMNS, MEAN
from tests.command_line import main

STEPS, EPISODES, EACH = (0, 50, 110), 60, 3
RATES = {0: (0.3, 0.45), 50: (0.4, 0.5), 110: (0.6, 0.7)}


def both(prompt, cot, draw):
    """Readings of both actions; a checkpoint of another rate differs at as few decisions as it can."""
    rng, n = np.random.default_rng(draw), EPISODES * EACH
    right = dict(prompt=rng.random(n) < prompt, cot=rng.random(n) < cot)
    columns = {f"action_{mode}": np.where(each, "right", f"wrong {mode}") for mode, each in right.items()}
    episode = [f"episode {i // EACH}" for i in range(n)]
    return pd.DataFrame(
        dict(right, **columns, episode=episode, parsed=True), index=[f"decision {i}" for i in range(n)]
    )


def pairs(direct, draw):
    rng = np.random.default_rng(draw)
    rows = dict(direct=rng.normal(direct, 1, 40), via_cot=rng.normal(4.0, 1, 40))
    return pd.DataFrame(
        dict(rows, episode=[f"episode {i // 2}" for i in range(40)]), index=[f"pair {i}" for i in range(40)]
    )


def made(steps=STEPS, **changes):
    provenance = dict(
        analysis="claims",
        config=dict(seed=0, decisions=180, series="somewhere", trace_tokens=96),
        weights={str(step): f"weights {step}" for step in steps},
        identity={},
        seed=0,
        device="cpu",
        dtype="torch.float32",
        corpus="corpus",
        format="format",
        environment="any",
        versions=dict(interp="1.0"),
        series_notes=[],
        command="python -m analyses claims",
    )
    return provenance | changes


def run_of(folder, shift=0.0, draw=0, steps=STEPS, **changes):
    """A finished run of a training whose rates at later checkpoints are shifted."""
    cells, rows = {}, []
    for step in steps:
        for number, split in enumerate(("in_domain", "out_of_domain")):
            prompt, cot = (rate + shift * (step > 0) for rate in RATES[step])
            cells[step, split, "free"] = both(prompt, cot, [draw, number])
            cells[step, split, "pairs"] = pairs(3.0 + step / 50, [draw, number])
            for metric, value in (("acc_prompt", prompt), ("acc_cot", cot)):
                size = dict(value=value, low=value - 0.1, high=value + 0.1, n=180, n_groups=60)
                rows.append(dict(step=step, split=split, metric=metric, **size))
    provenance = made(steps, **changes)
    write_table(folder / "tables", "behaviour", pd.DataFrame(rows), provenance)
    write_readings(folder / "tables", cells, provenance)
    return folder


def five(folder, spread, same=False):
    shifts = spread * np.array([-1, -0.5, 0, 0.5, 1])
    return [run_of(folder / f"seed-{s}", shift, 0 if same else s) for s, shift in enumerate(shifts)]


def over(folders):
    return pd.DataFrame(readings_over(sources(folders), 0.05, 0))


def mean_row(frame, quantity="change", statistic="gain_prompt", readout="free", step=110):
    where = dict(seed=MEAN, step=step, split="in_domain", statistic=statistic, readout=readout)
    return need(frame, quantity=quantity, **where).iloc[0]


def test_the_mean_of_equal_trainings_is_one_training_s_with_its_interval(tmp_path):
    frame = over(five(tmp_path, 0, same=True))
    for quantity, statistic, readout in (
        ("level", "gain_cot", "free"),
        ("change", "gap", "free"),
        ("change", "revision_own", "free"),
        ("level", "prompt_reliance", "pairs"),
        ("change", "prompt_reliance", "pairs"),
    ):
        row = mean_row(frame, quantity, statistic, readout)
        own = need(frame, seed="3", step=110, split="in_domain", quantity=quantity, statistic=statistic)
        own = need(own, readout=readout).iloc[0]
        assert row["value"] == pytest.approx(own["value"]) and row["seeds"] == 5
        assert (row["low"], row["high"]) == pytest.approx((own["low"], own["high"]), abs=0.015)
        assert row["n"] == 5 * own["n"] and row["n_groups"] == own["n_groups"]
        assert row["interval"] == "episodes x seeds" and own["interval"] == "episodes"
        assert row["verdict"] == own["verdict"] or quantity == "level"


def test_trainings_that_differ_widen_the_interval_and_weaken_the_verdict(tmp_path):
    rows = [mean_row(over(five(tmp_path / str(spread), spread))) for spread in (0.0, 0.15, 0.6)]
    widths = [row["high"] - row["low"] for row in rows]
    assert widths[0] < widths[1] < widths[2]
    assert [row["verdict"] for row in rows] == ["supported", "supported", "open"]


def test_each_training_s_row_is_what_its_own_table_of_claims_says(tmp_path):
    from analyses.claims import compared

    folders = five(tmp_path, 0.1)
    frame, (cells, _) = over(folders), read_readings(folders[2] / "tables")
    names = ("free", "pairs")
    base, later = ({name: cells[step, "in_domain", name] for name in names} for step in (0, 110))
    told = pd.DataFrame(compared(base, later))
    told = told[(told["subset"] == "all") & (told["statistic"] != "kappa")]
    own = pick(frame, seed="2", step=110, split="in_domain", quantity="change")
    parses = own["statistic"].str.startswith("parse_")  # told beside the claims
    assert own[parses]["value"].tolist() == [0.0, 0.0]
    own = own[~parses]
    columns = ["statistic", "readout", "verdict", "before", "after", "value", "low", "high", "n", "n_groups"]
    pd.testing.assert_frame_equal(
        own[columns].reset_index(drop=True), told[columns].reset_index(drop=True), check_dtype=False
    )
    mean = mean_row(frame)
    each = pick(frame[frame["seed"] != MEAN], step=110, split="in_domain", quantity="change")
    assert mean["value"] == pytest.approx(pick(each, statistic="gain_prompt")["value"].mean())


def test_one_command_joins_tabulates_and_draws(tmp_path, capsys, no_browser):
    folders = five(tmp_path / "runs", 0.05)
    assert main("seeds", "--runs", *folders, "--run", tmp_path / "out") == 0
    frame, provenance = read_table(tmp_path / "out" / "tables", "seeds")
    assert tuple(frame.columns) == COLUMNS and frame.columns[0] == "seed"
    assert set(frame["seed"]) == {MEAN, *"01234"}
    assert provenance["sources"]["3"]["run"] == str(folders[3]) and provenance["joined"] == ["behaviour"]
    joined, told = read_table(tmp_path / "out" / "joined", "behaviour")
    assert joined.columns[0] == "seed" and set(told["sources"]) == set("01234")
    own, _ = read_table(folders[2] / "tables", "behaviour")
    part = joined[joined["seed"].astype(str) == "2"].drop(columns="seed").reset_index(drop=True)
    pd.testing.assert_frame_equal(part, own)
    said = capsys.readouterr()
    assert "5 trainings; 1 tables joined" in said.out and "seeds.html" in said.out and not said.err
    assert (tmp_path / "out" / "seeds.html").exists()


def test_two_trainings_say_that_their_interval_is_over_episodes_alone(tmp_path, capsys, no_browser):
    folders = five(tmp_path / "runs", 0.05)[:2]
    assert main("seeds", "--runs", *folders, "--run", tmp_path / "out") == 0
    assert "the intervals are over episodes alone" in capsys.readouterr().err
    frame, _ = read_table(tmp_path / "out" / "tables", "seeds")
    assert set(frame["interval"]) == {"episodes"} and set(pick(frame, seed=MEAN)["seeds"]) == {2}
    (figure,) = (each for each in figures() if each.name == "seeds")
    assert "episodes alone" in figure.caption(frame).text


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(steps=(0, 110)), "it lacks checkpoint 50"),
        (dict(config=dict(seed=0, decisions=90, series="else")), "--decisions was 180 and is 90"),
        (dict(corpus="another"), "the corpus is another"),
        (dict(format="another"), "the prompt format is another"),
        (dict(versions=dict(interp="2.0")), "the release of the toolkit is another"),
        (dict(seed=1), "the seed is another"),
    ],
)
def test_what_differs_between_runs_is_named(tmp_path, capsys, changes, sentence):
    folders = [run_of(tmp_path / "seed-0"), run_of(tmp_path / "seed-1", **changes)]
    assert main("seeds", "--runs", *folders, "--run", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "cannot be put together" in said and sentence in said and not (tmp_path / "out").exists()


def test_other_decisions_and_missing_readings_are_named(tmp_path, capsys):
    one, other = run_of(tmp_path / "seed-0"), run_of(tmp_path / "seed-1")
    cells, provenance = read_readings(other / "tables")
    cells[50, "in_domain", "free"] = cells[50, "in_domain", "free"][:100]
    write_readings(other / "tables", cells, provenance)
    options = ("--run", tmp_path / "out")
    assert main("seeds", "--runs", one, other, *options) == 1
    assert "it read 100 decisions of in_domain at checkpoint 50" in capsys.readouterr().err
    (other / "tables" / "readings.parquet").unlink()
    assert main("seeds", "--runs", one, other, *options) == 1
    assert f"run `python -m analyses claims --run {other}`" in capsys.readouterr().err
    twin = shutil.copytree(one, tmp_path / "again" / "seed-0")
    assert main("seeds", "--runs", one, twin, *options) == 1
    assert "Two of the runs are of the seed 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ((), "Give the folders of finished runs (--runs), or those of the trainings"),
        (("--runs", "HERE", "--decisions", 4), "--decisions is an option of a study"),
        (("--runs", "HERE", "--trainings", "HERE"), "Give the folders of finished runs"),
        (("--trainings", "HERE", "--series", "HERE"), "--series names one training"),
        (("--runs", "HERE/gone"), "--runs: there is no file or folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, capsys, flags, sentence):
    flags = [str(flag).replace("HERE", str(tmp_path)) for flag in flags]
    assert main("seeds", *flags, "--run", tmp_path / "out") == 1
    assert sentence in capsys.readouterr().err


def test_the_figure_has_a_thin_line_for_each_training_under_the_mean(tmp_path):
    frame = over(five(tmp_path, 0.1))
    drawn = draw(frame, {})
    thin = [trace for trace in drawn.data if trace.line.width == 0.9]
    assert len(thin) == 5 * 3 * 2 and not any(trace.showlegend for trace in thin)
    mean = [trace for trace in drawn.data if trace.line.width == 2.2]
    bands = [trace for trace in drawn.data if trace.fill == "toself"]
    assert len(mean) == len(bands) == 3 * 2
    (note,) = (each.text for each in drawn.layout.annotations if each.name == "n")
    assert note == "n = 5 trainings, 180 decisions of 60 episodes each, by free decoding"
    (figure,) = (each for each in figures() if each.name == "seeds")
    caption = figure.caption(frame)
    assert len(caption.text.split()) <= 60 and "over episodes x seeds" in caption.text
    assert "the prompt action improves: supported in-domain and out-of-domain" in caption.text
    assert set(caption.numbers["reading"]) >= {"prompt action", "gap (CoT − prompt)", "prompt reliance"}
    assert all(text.count(",") == 4 for text in caption.numbers["each seed"])


def test_trainings_are_studied_one_after_the_other_and_put_together(
    series_folder, corpus_file, tmp_path, monkeypatch, capsys, no_browser
):
    """The same series under two names: what is computed is `all` as ever, and found again by a second call."""
    trainings = [shutil.copytree(series_folder, tmp_path / f"seed-{seed}") for seed in range(2)]
    left_out = "online probes transfer mdl conflict patching reliance own_traces early shares decisions diagnosis direct"
    command = ("seeds", "--trainings", *trainings, "--run", tmp_path / "run", "--skip", *left_out.split())
    command += ("--corpus", corpus_file, "--decisions", 6, "--choices", 3, "--device", "cpu")
    command += ("--checkpoints", 0, 110, "--splits", "in_domain")
    assert main(*command) == 0
    frame, provenance = read_table(tmp_path / "run" / "tables", "seeds")
    assert set(frame["seed"].astype(str)) == {MEAN, "0", "1"}
    row = need(frame, seed=MEAN, quantity="level", statistic="gain_cot", readout="free", step=110).iloc[0]
    behaviour, made = read_table(tmp_path / "run" / "seed-0" / "tables", "behaviour")
    assert row["value"] == pytest.approx(
        need(behaviour, step=110, metric="acc_cot")["value"].item(), abs=1e-5
    )
    assert "analyses behaviour" in made["command"] and "--series" in made["command"]
    assert provenance["sources"]["1"]["series"] == str(trainings[1])
    assert {"behaviour", "claims"} <= set(provenance["joined"])
    capsys.readouterr()
    assert main(*command) == 0 and "behaviour: made already" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "seed-1" / "tables" / "claims.json").read_text())["config"]
    assert (
        config["decisions"] == 6
        and Config(trainings=tuple(trainings)).study(trainings[1]).run.name == "seed-1"
    )
