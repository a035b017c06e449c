"""The instrument along the trace: which tokens it reads, its table and its figure."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analyses import along_trace
from interp.engine.decoding import Completion, decode
from interp.plots.registry import figures
from interp.results.tables import read_table


def test_points_are_the_boundary_the_ends_of_equal_parts_and_the_tag(fmt, prompts):
    trace = "Goal: mug to shelf. Hands empty. Next I check drawer 1."
    ids = [*fmt.trace_prefix(trace)[0].ids[len(fmt.mode_prefix("cot")) :], *fmt.action_ids("go to drawer 1")]
    completion = Completion(tuple(ids), trace, "go to drawer 1")
    ((sequence,), (places,)) = along_trace.points_of(prompts[:1], [completion], 5)
    assert places[0] == prompts[0].boundary and places[-1] == len(sequence) - 1 and len(places) == 7
    read = [fmt.text(sequence[len(prompts[0].ids) : place + 1]) for place in places]
    assert read[0] == "" and read[5].endswith("drawer 1.") and read[6].endswith(fmt.style.open_action)
    assert sorted(places) == places and places[1] > places[0]
    ((_,), (short,)) = along_trace.points_of(prompts[:1], [Completion(tuple(ids), trace, None)], 50)
    assert sorted(short) == short  # parts of no token are read at the one before


@pytest.fixture(scope="module")
def run(series_folder, corpus_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("along")
    config = along_trace.Config(
        run=folder,
        series=series_folder,
        corpus=corpus_file,
        decisions=24,
        checkpoints=(110,),
        device="cpu",
        points=2,
        folds=2,
        draws=20,
        labels=("eventual_verb",),
    )
    along_trace.run(config)
    return folder


def test_the_tag_without_a_trace_is_read_where_prompt_mode_reads_the_action(trained, trained_prompts):
    prompts = trained_prompts[:4]
    completions = decode(trained, prompts, "cot")
    config = SimpleNamespace(model=lambda step: trained)
    point = next(iter(along_trace._points(config, 0, prompts, completions, 2)))
    for prompt, acts, text in zip(prompts, point.acts, point.texts):
        ids = [*prompt.ids, *prompt.format.mode_prefix("prompt")]
        with torch.inference_mode():
            states = trained.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(acts[0], states[1][0, -1], atol=1e-4)
        assert text.endswith(prompt.format.style.open_action)


def test_the_table_has_every_point_with_its_controls_and_is_drawn(run):
    frame, provenance = read_table(run / "tables", "along_trace")
    assert frame["position"].unique().tolist() == [
        "action tag, no trace",
        "boundary",
        "50% of the trace",
        "100% of the trace",
        "action tag",
    ]
    for _, rows in frame.groupby("position"):
        assert {"probe", "gain", "majority", "tfidf", "named"} <= {*rows["predictor"]}
    named = frame[frame["predictor"] == "named"].set_index("position")["value"]
    assert (
        named["action tag, no trace"]
        == named["boundary"]
        == 0
        <= named["50% of the trace"]
        <= named["action tag"]
    )
    figure = next(each for each in figures() if each.name == "along_trace")
    assert len(figure.draw(frame, provenance).data) >= 4
    caption = figure.caption(frame)
    assert "boundary" in caption.message and len(f"{caption.message} {caption.drawn}".split()) <= 60
