"""The calibration's table, figure and caption: what is right, what is misread, and what the construction
leaves open."""

import pandas as pd
import pytest

from analyses import calibration, calibration_readings, figures
from analyses.provenance import made_by
from interp.plots import registry
from interp.plots.calibration import calibration as draw
from interp.plots.calibration import grown, verdicts
from interp.results.tables import read_table


def caption(frame):
    figure = next(each for each in registry.figures() if each.name == "calibration")
    return figure.caption(frame)


def row(agent, instrument, value, truth=None, seed=0, low=None, high=None):
    truth_low, truth_high = truth or (float("nan"), float("nan"))
    return dict(
        agent=agent,
        seed=seed,
        instrument=instrument,
        truth_low=truth_low,
        truth_high=truth_high,
        value=value,
        low=value - 0.02 if low is None else low,
        high=value + 0.02 if high is None else high,
        n=60,
        n_groups=60,
    )


@pytest.fixture
def frame():
    return pd.DataFrame(
        [
            row("post_hoc", "prompt_reliance", 0.97, (1, 1)),
            row("post_hoc", "attention_prompt", 0.66, (1, 1)),
            row("post_hoc", "steering", 0.0),
            row("reasoner", "prompt_reliance", 0.02, (0, 0)),
            row("reasoner", "keep", 0.3, (0.25, 0.5)),
            row("post_hoc", "self_patch", 3e-6, (0, 0)),
            row("post_hoc", "prompt_reliance", 0.95, (1, 1), seed=1),
            row("checkpoint-5", "self_splice", 1.0, (1, 1)),
        ]
    )


def test_a_reading_is_right_within_a_tenth_misread_beyond_it_and_open_where_nothing_is_decided(frame):
    assert verdicts(frame).tolist() == [
        "right",
        "misread",
        "open",
        "right",
        "right",
        "right",
        "right",
        "right",
    ]
    assert verdicts(
        pd.DataFrame(
            [row("a", "b", 0.111, (0, 0)), row("a", "b", 0.4, (0.51, 1)), row("a", "b", 0.099, (0, 0))]
        )
    ).tolist() == ["misread", "misread", "right"]


def test_the_figure_shows_how_far_every_reading_is_from_what_the_construction_allows(frame):
    fig = draw(frame, {"seed": 0})
    assert sorted(round(v, 6) for t in fig.data for v in t.x) == [-0.34, -0.05, -0.03, 0.0, 0.02]
    assert all(len(t.error_x.array) == len(t.x) for t in fig.data)
    assert {t.name for t in fig.data} == {"post-hoc", "reasoner"} and fig.layout.meta["provenance"] == {
        "seed": 0
    }
    assert "steering the boundary: excess flips" not in fig.layout.yaxis.ticktext  # nothing is decided
    with pytest.raises(ValueError, match="calibration"):
        draw(frame[frame.agent == "checkpoint-5"])


def test_the_caption_counts_and_names_the_misreadings_and_says_the_exact_checks(frame):
    found = caption(frame)
    assert "4 of 5 readings" in found.message and "2 training seed" in found.size
    rows = found.numbers.set_index(found.numbers.columns[0])
    assert rows.loc["attention share of the prompt, post-hoc"].tolist() == ["0.66", "1.00"]
    exact = {
        name.split(",")[1].split(":")[0].strip(): cells["reading"]
        for name, cells in rows.iterrows()
        if name.startswith("exact")
    }
    assert exact == {"own trace spliced back": "1", "a run patched with itself": "3e-06"}


def test_an_agent_that_has_not_learned_its_construction_calibrates_nothing_and_is_named(frame):
    competent = [
        row("post_hoc", "competence", 0.99, (1, 1)),
        row("post_hoc", "competence", 0.6, (1, 1), seed=1),
        row("reasoner", "competence", 1.0, (1, 1)),
    ]
    frame = pd.concat([frame, pd.DataFrame(competent)], ignore_index=True)
    kept, failed = grown(frame)
    assert failed[["agent", "seed"]].values.tolist() == [["post_hoc", 1]] and len(kept) == len(frame) - 2
    assert "Left out: 1 agent " in caption(frame).message and "Left out" not in caption(kept).message
    left = caption(frame).numbers.query("reading == '0.60 [0.58, 0.62]'").iloc[0, 0]
    assert left.startswith("left out") and left.endswith("post-hoc, seed 1")
    assert sum(len(t.x) for t in draw(frame).data) == 4


def test_the_command_reads_organisms_and_a_series_resumes_and_is_drawn(
    no_browser, series_folder, corpus_file, tmp_path, monkeypatch
):
    config = calibration.Config(
        run=tmp_path / "run",
        organisms=("reasoner",),
        taught=("taught",),
        claimed=60,
        decisions=40,
        series=series_folder,
        corpus=corpus_file,
        checks=4,
        device="cpu",
    )
    calibration.run(config)
    table, provenance = read_table(tmp_path / "run" / "tables", "calibration")
    read = table[table.agent == "reasoner"].set_index("instrument")
    assert (
        set(read.index) >= {"competence", "prompt_reliance", "keep", "auroc", "steering", "self_splice"}
        and abs(read.value["prompt_reliance"]) < 0.1
    )
    checked = table[table.agent != "reasoner"]
    assert (
        set(checked.instrument) <= {"self_splice", "self_patch", "patch_everything"}
        and (checked[checked.instrument != "self_splice"].value < 1e-3).all()
    )
    claimed, _ = read_table(tmp_path / "run" / "tables", "calibration_claims")
    assert set(claimed["agent"]) == {"taught"} and set(claimed["backwards"]) == {False, True}
    gain = claimed[(claimed["statistic"] == "gain_prompt") & ~claimed["backwards"]]
    assert (gain["verdict"] == "supported").all() and (gain["truth"] == "supported").all() and len(gain) == 2
    assert provenance["weights"]["reasoner 0"] and provenance["versions"]["torch"]
    monkeypatch.setattr(
        calibration_readings, "readings", lambda *_: pytest.fail("a finished stage was computed again")
    )
    calibration.run(config)
    assert any(
        p.name == "calibration.html" for p in figures.draw(tmp_path / "run" / "tables", tmp_path / "run")
    )


def test_provenance_names_what_ships_from_the_repositorys_root_and_other_files_as_given(tmp_path):
    made = made_by("calibration", calibration.Config(run=tmp_path), 0.0)
    assert made["config"]["corpus"] == "interp/data/alfworld.jsonl.xz" and made["config"]["run"] == str(
        tmp_path
    )
