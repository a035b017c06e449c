"""Direct action on a run of the tiny series: its table against what the run kept, and its figure."""

import numpy as np
import pandas as pd
import pytest

from analyses.direct import SHARES, Config, decided, routed
from analyses.kept import cells
from interp.plots.direct import direct as drawn
from interp.plots.registry import figures
from interp.results.queries import need, pick
from interp.results.tables import read_table
from interp.stats.routing import Ways
from tests.command_line import main


@pytest.fixture(scope="module")
def options(series_folder, corpus_file):
    words = ("--series", series_folder, "--corpus", corpus_file, "--device", "cpu", "--decisions", 12)
    return (*words, "--checkpoints", 110)


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """A run in which both splits were read by forced choice."""
    folder = tmp_path_factory.mktemp("direct") / "run"
    assert main("behaviour", "--run", folder, *options, "--choices", 12) == 0
    return folder


def test_both_ends_are_what_behaviour_reads(run, options, series_folder, corpus_file, no_browser, capsys):
    assert main("direct", "--run", run, *options, "--probe") == 0, capsys.readouterr().err
    frame, made = read_table(run / "tables", "direct")
    behaviour, _ = read_table(run / "tables", "behaviour")
    for split in ("in_domain", "out_of_domain"):
        told = pick(behaviour, split=split).set_index("metric")["value"]
        rows = pick(frame, split=split, metric="accuracy", rule="share")
        for router in ("margin", "random", "oracle"):
            ends = pick(rows, router=router).set_index("share")["value"]
            assert ends[1.0] == pytest.approx(told["choice_prompt_sum"], abs=1e-5)
            assert ends[0.0] == pytest.approx(told["acc_cot"], abs=1e-5)
        best = pick(rows, router="oracle").set_index("share")["value"]
        assert all(best[share] >= need(rows, share=share)["value"].max() - 0.1 for share in SHARES)
    assert set(frame["router"]) >= {"margin", "random", "oracle"} and set(made["thresholds"]) == {
        "in_domain",
        "out_of_domain",
    }
    config = Config(run=run, series=series_folder, corpus=corpus_file, device="cpu", decisions=12)
    config.checkpoints = (110,)
    cell = next(cells(config, "direct"))
    there, own = decided(cell), config.decoded(110, "in_domain", "cot")
    assert there.ways.tokens[:, 1].tolist() == [len(completion.ids) for completion in own]
    assert (there.margin >= 0).all() and there.ways.right[:, 1].tolist() == [
        completion.action == prompt.decision.reference
        for completion, prompt in zip(own, config.prompts("in_domain"))
    ]
    caption = next(figure for figure in figures() if figure.name == "direct").caption(frame)
    assert len(caption.text.split()) <= 60 and len(caption.numbers) and "nan" not in caption.text.split()
    assert (run / "direct.html").exists()


def simulated(knows):
    """Rows of decisions at which a router's confidence knows, or does not, whether acting at once is right."""
    rng = np.random.default_rng(0)
    right = rng.random((600, 2)) < [0.6, 0.8]
    ways = Ways(right, np.stack([np.full(600, 6), rng.integers(20, 60, 600)], axis=1))
    margin = right[:, 0] * knows + rng.random(600)
    names = [str(i // 4) for i in range(600)]

    class There:
        ids, episodes = names, names

    There.ways = ways
    return pd.DataFrame(routed(There, dict(margin=margin), 5, 0))


def test_a_margin_that_knows_beats_chance_and_one_that_does_not_is_not_told_apart():
    knowing, blind = simulated(2), simulated(0)
    for share in (0.2, 0.4, 0.6):
        over = [
            need(rows, rule="share", router="margin", share=share, metric="over_random").iloc[0]
            for rows in (knowing, blind)
        ]
        assert over[0]["low"] > 0 and over[1]["low"] < 0 < over[1]["high"]
    good = need(knowing, rule="as_good").set_index("metric")
    assert good.loc["tokens_saved", "low"] > 0.4 and abs(good.loc["accuracy_minus_thinking", "value"]) < 0.03
    score = {
        router: need(knowing, rule="share", router=router, share=0.6, metric="accuracy")["value"].item()
        for router in ("random", "margin", "oracle")
    }
    assert score["random"] < score["margin"] <= score["oracle"] + 0.02
    figure = drawn(pd.concat([knowing.assign(step=s, split="in_domain", where="decisions") for s in (0, 10)]))
    assert {trace.name for trace in figure.data if trace.showlegend} == {
        "oracle",
        "margin of the prompt action",
        "random, equal rate",
    }


def test_nothing_is_routed_where_nothing_is_on_record(options, run, tmp_path, capsys):
    assert main("direct", "--run", tmp_path, *options) == 0
    assert "left out: direct: " in capsys.readouterr().err and not (tmp_path / "tables").exists()
    assert main("direct", "--run", run, *options, "--folds", 50) == 0
    said = capsys.readouterr().err
    assert "have forced choices of fewer episodes than there are folds (50)" in said
