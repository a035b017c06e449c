"""Pictures of results: each is drawn, says n, holds the values of its frame, and shows text as text."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from interp.plots import probes as study_figures
from interp.plots.results import plot
from interp.results.shown import Plotted
from tests.results.test_shown import (
    MADE,
    ablated,
    early,
    lensed,
    outcome,
    own_traced,
    probed,
    reliance,
    sweep,
    transferred,
)

DRAWN = [kind for kind in MADE if issubclass(kind, Plotted)]


@pytest.fixture(scope="module", params=DRAWN, ids=lambda kind: kind.__name__)
def drawn(request):
    return MADE[request.param]().plot()


def test_every_picture_is_in_the_house_style_with_titled_axes(drawn):
    assert isinstance(drawn, go.Figure) and len(drawn.data)
    assert (
        drawn.layout.template.layout.colorway
        == go.Figure(layout_template="interp").layout.template.layout.colorway
    )
    assert any(axis.title.text for axis in drawn.select_yaxes()) or drawn.data[0].type in ("bar", "heatmap")
    assert "<script" not in drawn.to_json().replace("\\u003c", "<")


def test_a_sweep_over_tokens_is_a_heatmap_of_one_pair():
    swept = sweep("all")
    figure = swept.plot()
    assert [trace.type for trace in figure.data] == ["heatmap"] * 2
    np.testing.assert_allclose(figure.data[0].z, swept.denoise[0, 0])
    assert "pair 0 of 4" in figure.layout.title.text
    labels = figure.layout.xaxis.ticktext
    assert labels[1] == "\u00a0b" and labels[2] == "⏎" and labels[3].startswith("&lt;script>")
    np.testing.assert_allclose(swept.plot(pair=3, direction="noise").data[1].z, swept.noise[3, 1])
    assert swept.plot(pair=2).data[0].z.shape == (3, 4)
    with pytest.raises(ValueError, match="pair 1 was dropped"):
        swept.plot(pair=1)
    with pytest.raises(ValueError, match="holds no metric 'kl'"):
        swept.plot(metric="kl")
    with pytest.raises(ValueError, match="denoise or noise"):
        swept.plot(direction="both")


def test_pairs_of_the_same_tokens_are_averaged():
    same = sweep("all", tokens=(("a", "b", "c", "d", "e"),) * 4)
    figure = same.plot()
    np.testing.assert_allclose(figure.data[0].z, np.nanmean(same.denoise[:, 0], 0))
    assert "mean of n = 3 of 4 pairs" in figure.layout.title.text


def test_a_sweep_by_layer_has_a_line_for_each_site_and_direction():
    swept = sweep()
    figure = swept.plot()
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["resid_pre", "attn_out"] * 2
    np.testing.assert_allclose(lines[0].y, np.nanmean(swept.denoise[:, 0], 0))
    assert "n = 3 of 4 pairs" in figure.layout.title.text
    one = sweep(pairs=2).plot()  # one is left: no interval
    assert all(trace.mode == "lines+markers" for trace in one.data)


def test_a_sweep_of_many_heads_is_a_heatmap():
    swept = sweep(sites=tuple(f"z.{i}" for i in range(9)))
    figure = swept.plot()
    assert figure.data[0].type == "heatmap"
    np.testing.assert_allclose(figure.data[0].z, np.nanmean(swept.denoise, 0))


def test_outcomes_are_drawn_together_and_add_up():
    outcomes = {
        kind: outcome(kind, seed) for seed, kind in enumerate(("self_splice", "other_state", "empty"))
    }
    figure = plot(outcomes)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert len(bars) == 4
    np.testing.assert_allclose(sum(np.array(bar.x) for bar in bars), 1)
    assert figure.layout.yaxis.ticktext[-1] == "self-splice (n = 6)"
    with pytest.raises(ValueError, match="results of one type, not Outcome, Sweep"):
        plot([outcome(), sweep()])
    with pytest.raises(ValueError, match="not none"):
        plot({})


def test_early_answers_start_without_the_trace_and_end_with_it():
    line = next(trace for trace in early().plot().data if trace.mode == "lines+markers")
    assert line.y.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]


def test_a_lens_shows_its_answers_or_its_likeliest_tokens():
    answers = [trace for trace in lensed().plot().data if trace.mode == "lines+markers"]
    assert [line.name for line in answers] == ["a", "b"] and len(answers[0].y) == 4
    top = lensed().plot(read="top").data[0]
    np.testing.assert_allclose(top.z, lensed().probability[:, :, 0].T)
    with pytest.raises(ValueError, match="no rows with read = answer"):
        lensed(answers=0).plot(read="answer")


def test_an_ablation_is_drawn_by_layer_or_over_tokens():
    np.testing.assert_allclose(ablated().plot(prompt=1).data[0].z, ablated().kl[1, 0, :, :3])
    line = next(trace for trace in ablated("boundary").plot().data if trace.mode == "lines+markers")
    np.testing.assert_allclose(line.y, ablated("boundary").kl[:, 0].mean(0))
    with pytest.raises(ValueError, match="The metric is effect or kl"):
        ablated().plot(metric="difference")


@pytest.mark.parametrize("made", [reliance, own_traced])
def test_reliance_says_its_value_and_resamples_groups(made):
    result = made()
    title = result.plot().layout.title.text
    assert f"{result.prompt_reliance:.2f} [" in title and "n = 5 pairs" in title
    assert "[" not in result.plot(groups=["one"] * 5).layout.title.text


def test_study_figures_take_results():
    figure = study_figures.probes({0: probed(), 100: probed()})
    assert figure.layout.meta["figure"] == "probes"
    result = transferred()
    frame = result.to_frame().assign(label="label")
    assert study_figures.transfer(result).to_json() == study_figures.transfer(frame).to_json()


def test_nothing_left_is_no_picture():
    none = sweep()
    none = type(none)(**{**vars(none), "denoise": none.denoise * np.nan})
    with pytest.raises(ValueError, match="nothing to draw: all 4 pairs were dropped"):
        none.plot()
    with pytest.raises(ValueError, match="there are no decisions"):
        outcome(n=0).plot()
    assert pd.isna(none.denoise).all()
