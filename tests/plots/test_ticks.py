"""Ticks, widths of text and tables that are laid out before a browser sees them."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.plots.look import Look, drawn_for
from interp.plots.tabular import draw_table
from interp.plots.theme import facets
from interp.plots.ticks import ticks_within
from interp.plots.wide import text_width, wrapped


@given(low=st.floats(-5, 5), size=st.floats(1e-3, 50), width=st.floats(60, 700), over=st.floats(0, 20))
def test_labels_of_ticks_keep_apart_and_within_their_room(low, size, width, over):
    axis = ticks_within(go.layout.XAxis(range=[low, low + size]), width, (over, over))
    places = [((at - low) * width / size, text_width(f"{at:g}")) for at in axis.tickvals]
    assert len(places) > 1 or width < 200
    assert all(at - wide / 2 >= -over - 1e-6 and at + wide / 2 <= width + over + 1e-6 for at, wide in places)
    for (a, wide), (b, wider) in zip(places, places[1:], strict=False):
        assert b - a >= (wide + wider) / 2


def test_axes_of_names_or_on_a_log_scale_keep_their_ticks():
    for axis in (dict(range=[0, 2], tickvals=[0, 1]), dict(range=[0, 2], type="log"), dict()):
        made = go.layout.XAxis(**axis)
        assert ticks_within(made, 100, (0, 0)).to_plotly_json() == axis


def test_a_low_panel_is_high_enough_for_a_browser_to_keep_its_margins():
    for look in (Look(), Look("icml", 1)):
        with drawn_for(look):
            assert facets(1, 20, 0, [""]).layout.meta["grid"]["heights"] == [96]


@pytest.mark.parametrize("look", (Look(), Look("icml", 1), Look("acl", 1)))
def test_columns_of_a_table_hold_their_longest_word(look):
    cells = dict(environment=["TextWorld Commonsense"], split=["out of domain"], holds=["a sentence " * 9])
    with drawn_for(look):
        figure = draw_table(cells, [1, 1, 4])
    for wide, words in zip(figure.data[0].columnwidth, ("Commonsense", "domain", "sentence"), strict=True):
        assert wide >= text_width(words) + 16
    assert sum(figure.data[0].columnwidth) == pytest.approx(look.width - 8)


def test_a_text_is_broken_between_words():
    assert wrapped("gap (CoT − prompt)", 80) == ["gap (CoT −", "prompt)"]
    assert wrapped("two<br>lines", 500) == ["two", "lines"] and wrapped("unbreakable", 5) == ["unbreakable"]
