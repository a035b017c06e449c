"""What probes are fitted on and tested on, and what becomes of one where a control cannot be had."""

import numpy as np
import pytest

from analyses.boundary import held_out_decisions, sample_episodes, training_decisions
from analyses.probes import ALL, FOLDS, TRAIN, Config, _no_control_task, _probed
from analyses.study import Study
from interp.plots.registry import figures
from interp.results.queries import label_of, pick
from interp.results.tables import read_table
from interp.tasks.episodes import load_episodes, save_episodes
from tests.command_line import main


def arguments(types, n=48):
    rng = np.random.default_rng(0)
    labels = ["a" if i % 2 else "b" for i in range(n)]
    acts = rng.normal(size=(n, 2, 4)) + np.array([[[x == "a"]] for x in labels]) * 2
    return dict(
        acts=acts,
        labels=labels,
        groups=[str(i // 4) for i in range(n)],
        prompts=[f"text {i % 3}" for i in range(n)],
        previous=["" for _ in range(n)],
        types=types,
        random_acts=rng.normal(size=(n, 2, 4)),
    )


def test_one_prompt_type_loses_the_control_task_and_nothing_else():
    single, several = arguments(["look"] * 48), arguments([f"look {i % 6}" for i in range(48)])
    reason = _no_control_task([single], 0)
    assert reason.startswith("1 prompt types are too few or too uneven for a control task")
    assert _no_control_task([several], 0) == "" == _no_control_task([arguments(None)], 0)
    options = dict(folds=2, seed=0, draws=20, **ALL)
    ids = [str(i) for i in range(48)]
    rows = {
        which: {row["predictor"] for row in _probed([given], ids, 0, "eventual_target", options)["rows"]}
        for which, given in (("several", several), ("single", single | dict(types=None)))
    }
    assert rows["several"] - rows["single"] == {"control_task", "selectivity"}
    assert {"probe", "random_model", "lda", "gain", "tfidf"} <= rows["single"]


@pytest.fixture
def study(series_folder, corpus_file, tmp_path):
    return Study(run=tmp_path, series=series_folder, corpus=corpus_file, decisions=12, device="cpu")


def test_whole_episodes_are_drawn_by_seed_until_there_are_enough(episodes):
    drawn = sample_episodes(episodes["train"], 40, 0)
    by_name = {e.id: e for e in episodes["train"]}
    names = list(dict.fromkeys(d.episode for d in drawn))
    assert len(drawn) >= 40 > len(drawn) - len(by_name[names[-1]].steps)
    assert [d.id for d in drawn] == [d.id for name in names for d in by_name[name].decisions()]
    assert sample_episodes(episodes["train"], 40, 0) == drawn != sample_episodes(episodes["train"], 40, 1)
    every = sum(len(e.steps) for e in episodes["train"])
    assert len(sample_episodes(episodes["train"], 10**6, 0)) == every and sample_episodes([], 5, 0) == []


def test_training_decisions_are_of_the_training_split_alone(study, corpus_file, tmp_path, series_folder):
    train = training_decisions(study, 30)
    assert {p.decision.split for p in train.prompts} == {"train"} and len(train.prompts) >= 30
    assert len(train.texts) == len(train.prompts) and not len(train.drawn)
    tested = [e for e in load_episodes(corpus_file) if e.split.startswith("test")]
    bare = save_episodes(tmp_path / "bare.jsonl.xz", tested)
    alone = Study(run=tmp_path, series=series_folder, corpus=bare, decisions=12, device="cpu")
    assert training_decisions(alone, 30) is None


def test_more_decisions_hold_the_studys(study):
    own = held_out_decisions(study, "in_domain", 0)
    assert own.prompts == study.prompts("in_domain") and own.drawn.tolist() == list(range(12))
    more = held_out_decisions(study, "in_domain", 10**6)
    held = [d.id for e in study.episodes["in_domain"] for d in e.decisions()]
    assert [p.decision.id for p in more.prompts] == held
    assert [more.prompts[i] for i in more.drawn] == own.prompts
    assert len(held_out_decisions(study, "in_domain", 20).prompts) == 20


def test_reference_labels_are_fitted_on_the_training_split_and_the_lens_stands_beside(
    series_folder, corpus_file, tmp_path, no_browser
):
    options = ("--run", tmp_path, "--series", series_folder, "--corpus", corpus_file, "--device", "cpu")
    options += ("--decisions", 24, "--checkpoints", 0, 110, "--folds", 2, "--draws", 20)
    options += ("--labels", "reference_verb", "eventual_verb", "--fit_decisions", 60, "--controls", "few")
    assert main("probes", *options, "--test_decisions", 30) == 0
    frame, made = read_table(tmp_path / "tables", "probes")
    assert label_of(frame) == "reference_verb"
    nested = pick(frame, layer=-1, metric="accuracy", predictor="gain")
    reference, eventual = (pick(nested, label=f"{whose}_verb") for whose in ("reference", "eventual"))
    assert set(reference["fitted_on"]) == {TRAIN} and set(reference["n"]) == {30}
    assert set(eventual["fitted_on"]) == {FOLDS} and eventual["n"].max() <= 24
    text = pick(frame, label="reference_verb", predictor="tfidf", metric="accuracy", split="in_domain")
    assert len(text) == 2 and text["value"].nunique() == 1, "the text is the same at every checkpoint"
    assert made["decisions_read"]["train"]["decisions"] >= 60 and made["fit_activations_bytes"] > 0
    errors = made["gain_standard_error"]
    widest = (reference["high"] - reference["low"]).groupby(reference["split"]).max() / 3.92
    assert errors["reference_verb in_domain"] == pytest.approx(widest["in_domain"], abs=1e-4)
    lens = pick(frame, predictor="lens", label="reference_token", split="in_domain", metric="accuracy")
    assert len(lens) == 2 * 4 and lens["value"].between(0, 1).all() and set(lens["n"]) == {24}
    ranks = pick(frame, predictor="lens", metric="reciprocal_rank")
    assert ranks["value"].between(0, 1, inclusive="right").all() and "eventual_token" in set(ranks["label"])
    figure = next(each for each in figures() if each.name == "probes")
    assert len(figure.draw(frame, made).data)
    caption = figure.caption(frame)
    assert len(caption.text.split()) <= 60 and "training split" in caption.text
    assert "logit lens" in caption.numbers.to_string()
    assert main("probes", *options, "--test_decisions", 10_000) == 1


def test_eventual_labels_are_fitted_on_the_training_split_where_it_is_decoded(
    series_folder, corpus_file, tmp_path, no_browser
):
    options = ("--run", tmp_path, "--series", series_folder, "--corpus", corpus_file, "--device", "cpu")
    options += ("--decisions", 12, "--checkpoints", 110, "--draws", 20, "--splits", "in_domain")
    options += ("--labels", "eventual_verb", "--fit_decisions", 30, "--controls", "few", "--decode_fit")
    assert main("probes", *options) == 0
    frame, made = read_table(tmp_path / "tables", "probes")
    assert set(frame[frame["predictor"] != "lens"]["fitted_on"]) == {TRAIN}
    assert any(key.startswith("110 train") for key in made["without_action"]) or not made["without_action"]
    assert Config(labels=("reference_verb",)).decode_fit is False
