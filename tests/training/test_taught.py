"""Series whose claims are known: their construction, and the verdicts that a study's comparison gives on them."""

import functools

import pandas as pd
import pytest

from analyses.calibration_claims import judged, of_json, records, to_json
from interp.checkpoints.series import CheckpointSeries
from interp.prompts.format import PromptFormat
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED
from interp.training.organisms import PLACES, THINGS
from interp.training.taught import (
    START,
    TAUGHT,
    expected_verdicts,
    grow_taught,
    levels,
    row_of,
    sequences,
    taught_decisions,
)

N, PAIRS = 120, 40


@functools.cache
def series(name):
    """Format, and what each checkpoint of a shipped series is read to do."""
    checkpoints = CheckpointSeries.discover(grow_taught(name))
    model = checkpoints.load(checkpoints.steps[0], "cpu", "float32")
    fmt, decisions = PromptFormat(model.tokenizer), taught_decisions(N, 3)
    read = []
    for step in checkpoints.steps:
        if step != model.step:
            checkpoints.swap(model, step)
        read.append(records(model, fmt, decisions, PAIRS, seed=3))
    return fmt, read


@pytest.mark.parametrize("name", TAUGHT)
def test_a_shipped_series_does_what_its_construction_says(name):
    for read, level in zip(series(name)[1], levels(name), strict=True):
        for readout in ("free", "choice_sum"):
            frame = read[readout]
            assert frame["prompt"].mean() == pytest.approx(level.prompt, abs=0.06)
            assert frame["cot"].mean() == pytest.approx(level.cot, abs=0.06)
        assert len(read["free"]) == N == len(read["choice_sum"])
        assert 1 - read["other_state"]["revised"].mean() == pytest.approx(level.by_prompt, abs=0.1)
        # With given traces what their hidden states carry counts as via-CoT: the level is not fixed there.
        direct, indirect = read["own_traces"][["direct", "indirect"]].mean()
        assert direct / (direct + indirect) == pytest.approx(level.by_prompt, abs=0.1)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", TAUGHT)
def test_every_verdict_is_the_one_that_the_construction_says(name, backwards):
    rows = pd.DataFrame(judged(name, *series(name)[1], 0.05, 0, backwards))
    assert set(zip(rows["statistic"], rows["readout"])) >= {
        ("gain_prompt", "choice_sum"), ("gap", "free"), ("revision_conflict", "other_state"),
        ("prompt_reliance", "pairs"), ("prompt_reliance", "own_traces"), ("kappa", "free"),
    }  # fmt: skip
    wrong = rows[rows["verdict"] != rows["truth"]]
    assert wrong.empty, wrong[["statistic", "readout", "truth", "verdict", "value", "low", "high"]]


def test_each_claim_is_true_of_one_series_and_false_of_another():
    said = {
        (name, backwards): expected_verdicts(name, backwards)
        for name in TAUGHT
        for backwards in (False, True)
    }
    for statistic in ("gain_prompt", "gap", "prompt_reliance", "revision_conflict"):
        assert {SUPPORTED, CONTRADICTED} <= {each[statistic] for each in said.values()}
    assert said["taught", False]["revision_own"] == OPEN
    assert said["taught_widening", True]["gap"] == OPEN, "it narrows"


def test_without_a_trace_the_action_is_the_one_that_the_stage_finds_at_once():
    fmt = series("taught")[0]
    opened, think, closing = (fmt.encode(tag)[0] for tag in ("<action>", "<think>", "</action>"))
    for stage, without in ((START, 0.3), *((made.trained, 0.0) for made in TAUGHT.values())):
        right = bare = 0
        for (ids, marked), decision in zip(
            sequences(fmt, stage, 400, 1, without), taught_decisions(400, 1, "train"), strict=True
        ):
            assert marked[-1] and ids[-1] == closing
            assert not any(marked[: ids.index(think if think in ids else opened) + 1])
            if think in ids:
                continue
            row, place = row_of(decision), PLACES.index(decision.task.split()[-1])
            finds = row[place] if place < stage.found_at_once else row[0]
            bare += 1
            right += fmt.text(ids).split("take ")[-1].split()[0] == finds
        assert 70 < bare < 150 and right > 0.85 * bare


def test_an_action_follows_its_prompt_or_its_trace_as_the_stage_says():
    fmt = series("taught")[0]
    for made in TAUGHT.values():
        kept = followed = 0
        for ids, _ in sequences(fmt, made.trained, 200, 1):
            text = fmt.text(ids)
            place = PLACES.index(text.split("take the ")[1].split(".")[0])
            if "It has to be the " not in text:
                continue
            named, taken = (
                text.split("It has to be the ")[1].split(".")[0],
                text.split("take ")[-1].split()[0],
            )
            asked = [w.split()[-1] for w in text.split("You see ")[1].split(". Your")[0].split(", ")][place]
            assert {named, taken, asked} <= {*THINGS}
            if named != asked:
                kept += taken == asked and place < made.trained.by_prompt
                followed += taken == named and place >= made.trained.by_prompt
        assert kept > 30 and bool(followed) == (made.trained.by_prompt < len(PLACES))


def test_records_are_kept_as_they_are_and_an_unknown_series_is_refused():
    base, _ = series("taught")[1]
    for name, frame in of_json(to_json(base)).items():
        pd.testing.assert_frame_equal(frame, base[name], check_names=False)
    for function in (levels, expected_verdicts, grow_taught):
        with pytest.raises(ValueError, match="no taught series 'nobody': there are taught, taught_widening"):
            function("nobody")
