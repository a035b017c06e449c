"""Curves over checkpoints are of the pairs that every checkpoint keeps, beside what each keeps of its own."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from analyses import patching, reliance
from interp.plots import patching as plots
from interp.plots.registry import figures

NAN = np.nan
#: Effects of four pairs at two checkpoints: the base drops the last two, the later one the first.
EFFECTS = {0: [1.0, 2.0, NAN, NAN], 50: [NAN, 4.0, 6.0, 8.0]}
EPISODES = ["a", "a", "b", "c"]


def swept():
    return {
        step: {
            ("boundary", "prompt"): {
                "difference": dict.fromkeys(patching.DIRECTIONS, np.array(of)[:, None, None])
            }
        }
        for step, of in EFFECTS.items()
    }


def table():
    config, common = SimpleNamespace(seed=0), patching._common(swept().values())
    rows = [
        row
        for step, each in swept().items()
        for row in patching._effects(config, step, each, common, ["resid_pre"], EPISODES)
    ]
    return pd.DataFrame(rows)


def test_patching_averages_the_pairs_that_every_checkpoint_keeps():
    frame = table().set_index(["step", "direction"])
    assert frame["value"].tolist() == [2, 2, 4, 4], "the second pair alone"
    assert set(frame["n"]) == {1} and set(frame["n_dropped"]) == {3}
    assert frame["value_own"].tolist() == [1.5, 1.5, 6, 6] and frame["n_own"].tolist() == [2, 2, 3, 3]


def test_no_common_pair_is_no_value_and_still_drawn():
    by_step = swept()
    by_step[0]["boundary", "prompt"]["difference"] = dict.fromkeys(
        patching.DIRECTIONS, np.array([1.0, NAN, NAN, NAN])[:, None, None]
    )
    common = patching._common(by_step.values())
    rows = [
        row
        for step, each in by_step.items()
        for row in patching._effects(SimpleNamespace(seed=0), step, each, common, ["resid_pre"], EPISODES)
    ]
    frame = pd.DataFrame(rows)
    assert frame["value"].isna().all() and set(frame["n"]) == {0} and frame["n_own"].tolist() == [1, 1, 3, 3]
    drawn = next(each for each in figures() if each.name == "patching")
    assert len(drawn.draw(frame, {}).data) and drawn.caption(frame).message == ""


def test_prompt_reliance_averages_the_pairs_that_every_checkpoint_keeps():
    clean = [SimpleNamespace(decision=SimpleNamespace(episode=name)) for name in EPISODES]
    stored = dict(kept=[1, 2], effects=[[1.0, 3.0, 4.0, 3.0, 0.0], [8.0, 0.0, 8.0, 0.0, 0.0]])
    rows = {row["metric"]: row for row in reliance._rows(SimpleNamespace(seed=0), stored, {1}, clean)}
    direct, share = rows["direct"], rows["prompt_reliance"]
    assert (direct["value"], direct["n"], direct["n_dropped"], direct["value_own"], direct["n_own"]) == (
        1,
        1,
        3,
        4.5,
        2,
    )
    assert share["value"] == 0.25 and share["value_own"] == 9 / 12
    nothing = list(reliance._rows(SimpleNamespace(seed=0), dict(kept=[], effects=[]), set(), clean))
    assert all(np.isnan(row["value"]) and np.isnan(row["value_own"]) for row in nothing)


def test_the_caption_says_that_pairs_are_common_where_they_are():
    frame = table()
    assert "common pairs" in plots._size(frame)
    assert "common" not in plots._size(frame.drop(columns=["n_own", "value_own"]))
