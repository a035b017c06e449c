"""The elicited prompt action of a tiny series: its table, what the claims read of it, and what it refuses."""

import json

import numpy as np
import pytest

from interp.plots.elicited import elicited as drawn
from interp.results.queries import need, pick
from interp.results.tables import read_table
from interp.tasks.episodes import load_episodes
from tests.command_line import main

SHORT = ("--tuning.decisions", 12, "--tuning.rounds", 1, "--choices", 3)


@pytest.fixture(scope="module")
def options(series_folder, corpus_file):
    words = ("--series", series_folder, "--corpus", corpus_file, "--device", "cpu", "--decisions", 6)
    return (*words, "--checkpoints", 0, 110, "--splits", "in_domain")


def test_each_checkpoint_is_tuned_alike_and_the_claims_read_it(options, no_browser, tmp_path, capsys):
    for name, flags in (("elicited", SHORT), ("behaviour", ("--choices", 3)), ("claims", ())):
        assert main(name, "--run", tmp_path, *options, *flags) == 0, capsys.readouterr().err
    frame, made = read_table(tmp_path / "tables", "elicited")
    behaviour, _ = read_table(tmp_path / "tables", "behaviour")
    claims, told = read_table(tmp_path / "tables", "claims")
    assert made["tuned_on"] == 12 and 3 <= made["held_out"] < 6 and len(made["twin_nats"]) == 2
    for step in (0, 110):
        for readout, metric, n in (("free", "acc_prompt", 6), ("choice_sum", "choice_prompt_sum", 3)):
            rows = need(frame, step=step, split="in_domain", readout=readout).set_index("metric")
            same = need(behaviour, step=step, metric=metric)["value"].item()
            assert rows.loc["acc_prompt", "value"] == pytest.approx(same, abs=1e-5) and set(rows["n"]) == {n}
            value, moved = rows["value"], rows.loc["elicited_minus_prompt", "value"]
            assert moved == pytest.approx(value["acc_elicited"] - value["acc_prompt"], abs=1e-5)
            assert rows.loc["acc_prompt", "round"] == 0
        curve = need(frame, step=step, split="held_out", metric="nats")
        assert curve["round"].tolist() == [0, 1] and set(curve["n"]) == {made["held_out"]}
    twins = need(frame, metric="acc_twin", readout="free")
    assert twins["value"].nunique() == 1, "one twin for all checkpoints"
    for readout, of in (("elicited", "free"), ("elicited_choice", "choice_sum")):
        row = need(claims, statistic="gain_prompt", readout=readout, subset="all").iloc[0]
        values = need(frame, metric="acc_elicited", readout=of, split="in_domain").set_index("step")["value"]
        assert (row["before"], row["after"]) == pytest.approx((values[0], values[110]), abs=1e-5)
        assert row["verdict"] in ("supported", "contradicted", "open")
        assert set(pick(claims, readout=readout)["statistic"]) == {"gain_prompt"}
    assert "elicited prompt action" not in told["left_out"]
    bare = need(claims, readout="free_no_history_traces")
    assert set(bare["statistic"]) == {"gain_prompt"} and set(bare["verdict"].fillna("")) == {""}
    figure = drawn(frame)
    assert {trace.name for trace in figure.data if trace.showlegend} == {
        "elicited prompt action",
        "prompt action",
        "untrained twin, elicited",
    }
    assert (tmp_path / "elicited.html").exists()


def test_there_has_to_be_something_else_to_tune_on(options, corpus_file, tmp_path, capsys):
    studied = [e for e in load_episodes(corpus_file) if e.split == "test_in_domain"]
    file = tmp_path / "own.jsonl"
    rows = [
        dict(messages=d.messages, reference=d.reference, episode=d.episode, step=d.step)
        for episode in studied
        for d in episode.decisions()
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = [file if word == corpus_file else word for word in options]
    assert main("elicited", "--run", tmp_path / "run", *words) == 0
    said = capsys.readouterr().err
    assert "left out: elicited: The corpus has no split 'train' to tune on." in said and "--tune_on" in said
    assert main("elicited", "--run", tmp_path / "run", *words, "--tune_on", file) == 1
    assert "is studied and would be tuned on as well" in capsys.readouterr().err
    assert main("elicited", "--run", tmp_path / "run", *options, "--tuning.rounds", 0) == 1
    assert "--tuning.rounds is a number from 1" in capsys.readouterr().err
    assert not np.any([path.name == "tables" for path in (tmp_path / "run").rglob("*")])
