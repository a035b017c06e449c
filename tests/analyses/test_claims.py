"""The four claims: agents whose answer is known, a run of the tiny series, and what is missing."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analyses.claims import READERS, Config, compared, games
from analyses.kept import cells
from interp.measures import reliance as mediation
from interp.results.claims import COLUMNS, lines, of_line
from interp.results.queries import need, pick
from interp.results.tables import read_table, write_table
from tests.command_line import main
from tests.plots.test_plots_masking import masking_table

EPISODES, EACH = 200, 8


def both_modes(prompt, cot, same, parses=1.0, seed=0):
    """Records of an agent: rates of its prompt and its CoT action, and how often both are the same one.

    A checkpoint of another rate differs at as few decisions as it can.
    """
    rng = np.random.default_rng(seed)
    n = EPISODES * EACH
    right = {mode: rng.random(n) < rate for mode, rate in (("prompt", prompt), ("cot", cot))}
    names = {mode: np.where(each, "right", f"wrong {mode}") for mode, each in right.items()}
    copied = rng.random(n) < same
    names["cot"] = np.where(copied, names["prompt"], names["cot"])
    right["cot"] = names["cot"] == "right"
    parsed = rng.random(n) < parses
    actions = [name if ok else None for name, ok in zip(names["prompt"], parsed)]
    return pd.DataFrame(
        dict(
            episode=[f"episode {i // EACH}" for i in range(n)],
            prompt=right["prompt"] & parsed,
            cot=right["cot"],
            action_prompt=actions,
            action_cot=names["cot"],
            parsed=parsed,
        ),
        index=[f"decision {i}" for i in range(n)],
    )


def verdicts(base, later, readout="free", subset="all"):
    frame = pd.DataFrame(compared({readout: base}, {readout: later}))
    return pick(frame, subset=subset).set_index("statistic")["verdict"].to_dict()


def test_claims_a_and_b_are_right_on_agents_that_are_built_for_them():
    base = both_modes(0.3, 0.5, 0.0)
    taught = both_modes(0.5, 0.7, 0.0)
    said = verdicts(base, taught)
    assert said["gain_prompt"] == said["gap"] == "supported"
    widened = both_modes(0.5, 0.9, 0.0)
    assert verdicts(base, widened)["gain_prompt"] == "supported"
    assert verdicts(base, widened)["gap"] == "contradicted"
    forgot = both_modes(0.1, 0.9, 0.0)
    said = verdicts(base, forgot)
    assert said["gain_prompt"] == said["gap"] == said["headroom_gap"] == "contradicted"
    said = verdicts(base, both_modes(0.3, 0.5, 0.0))
    assert said["gain_prompt"] == "open" and said["gap"] == "supported", "nothing moved"


def test_claim_c_is_right_on_agents_that_are_built_for_it():
    base = both_modes(0.4, 0.4, 0.2)
    said = verdicts(base, both_modes(0.4, 0.4, 0.6))
    assert said["revision_own"] == said["kappa"] == "supported"
    said = verdicts(base, both_modes(0.4, 0.4, 0.0))
    assert said["revision_own"] == said["kappa"] == "contradicted"


def read(columns, seed=0):
    """Records of another kind: columns of shares (truth values) or of means (nats)."""
    rng = np.random.default_rng(seed)
    made = {
        name: rng.random(300) < value if value <= 1 else rng.normal(value, 1.0, 300)
        for name, value in columns.items()
    }
    names = [f"decision {i}" for i in range(300)]
    return pd.DataFrame(dict(made, episode=[f"episode {i // 3}" for i in range(300)]), index=names)


@pytest.mark.parametrize(
    "readout, base, relies, follows",
    [
        ("other_state", dict(revised=0.5, followed=0.4), dict(revised=0.2, followed=0.1), dict(revised=0.8, followed=0.7)),
        ("pairs", dict(direct=3.0, via_cot=6.0), dict(direct=5.0, via_cot=4.0), dict(direct=1.5, via_cot=9.0)),
        ("own_traces", dict(direct=3.0, indirect=6.0), dict(direct=5.0, indirect=4.0), dict(direct=1.5, indirect=9.0)),
        ("cut", dict(area_action=0.6), dict(area_action=0.3), dict(area_action=0.9)),
    ],
)  # fmt: skip
def test_claim_c_is_right_on_readings_that_are_built_for_it(readout, base, relies, follows):
    judged = {
        "other_state": "revision_conflict",
        "pairs": "prompt_reliance",
        "own_traces": "prompt_reliance",
        "cut": "area_action",
    }[readout]
    for later, word in ((relies, "supported"), (follows, "contradicted"), (base, "open")):
        rows = pd.DataFrame(compared({readout: read(base)}, {readout: read(later)})).set_index("statistic")
        assert rows.loc[judged, "verdict"] == word
        told = rows.index.difference([judged])
        assert (rows.loc[told, "verdict"] == "").all(), "told beside it, and no verdict"


def test_prompt_reliance_of_a_negative_part_is_open():
    base = read(dict(direct=3.0, via_cot=6.0))
    negative = base.assign(direct=-base["direct"])
    rows = pd.DataFrame(compared(dict(pairs=base), dict(pairs=negative))).set_index("statistic")
    assert np.isnan(rows.loc["prompt_reliance", "after"]) and rows.loc["prompt_reliance", "verdict"] == "open"
    assert rows.loc["direct", "high"] < 0, "which the nats say"


def test_an_unparsed_action_agrees_with_nothing():
    base, mute = both_modes(0.4, 0.4, 0.5), both_modes(0.4, 0.4, 0.5, parses=0.0)
    mute["action_cot"] = None
    rows = pd.DataFrame(compared(dict(free=base), dict(free=mute)))
    row = need(rows, statistic="revision_own", subset="all").iloc[0]
    assert row["after"] == 1, "two that did not parse are not the same action"
    assert need(rows, statistic="kappa", subset="all").iloc[0]["after"] <= 0
    parsed = need(rows, subset="parsed")
    assert (parsed["n"] == 0).all() and set(parsed["verdict"]) == {"open", ""}
    half = both_modes(0.4, 0.4, 0.5, parses=0.5)
    rows = pd.DataFrame(compared(dict(free=base), dict(free=half)))
    fell, kept = (need(rows, statistic="gain_prompt", subset=s).iloc[0] for s in ("all", "parsed"))
    assert fell["verdict"] == "contradicted" and kept["verdict"] == "open" and kept["n"] < 0.6 * fell["n"]


def test_only_decisions_that_both_checkpoints_read_are_compared():
    base, later = both_modes(0.3, 0.5, 0.0), both_modes(0.5, 0.7, 0.0)
    rows = pd.DataFrame(compared(dict(free=base[:900]), dict(free=later[100:], games=later)))
    assert (
        set(rows["n"]) == {800} and set(rows["readout"]) == {"free"} and set(rows["n_groups"]) <= {101, 100}
    )


def test_games_are_paired_by_their_name_and_one_that_an_unparsed_action_ended_is_set_apart():
    def played(won, unparsed=()):
        return [dict(game=f"game {i}", won=i in won, unparsed=i in unparsed) for i in range(30)]

    def records(prompt, cot):
        results = {"online/5-in_domain-prompt": prompt, "online/5-in_domain-cot": cot}
        config = SimpleNamespace(official=False)
        return games(
            SimpleNamespace(step=5, split="in_domain", config=config, kept=lambda name, **_: results[name])
        )

    base = records(played(range(3)), played(range(10)))
    later = records(played(range(20), unparsed=[29]), played(range(25))[:28])
    assert len(later["games"]) == 28, "both modes were played"
    rows = pd.DataFrame(compared(base, later))
    moved = need(rows, statistic="gain_prompt", subset="all").iloc[0]
    assert (moved["value"], moved["n"], moved["verdict"]) == (pytest.approx(17 / 28), 28, "supported")
    assert records(None, played(range(3)))["games"].empty, "one mode alone"
    mute = records(played((), unparsed=range(15)), played(range(25)))
    assert set(pick(pd.DataFrame(compared(base, mute)), subset="parsed")["n"]) == {15}


def test_admissibility_is_told_and_not_judged():
    columns = ["episode", "prompt", "cot", "parsed"]
    base, later = both_modes(0.3, 0.5, 0.0)[columns], both_modes(0.5, 0.7, 0.0)[columns]
    rows = pd.DataFrame(compared(dict(admissible=base), dict(admissible=later)))
    assert set(rows["statistic"]) == {"gain_prompt", "gain_cot", "gap"} and set(rows["verdict"]) == {""}


@pytest.fixture(scope="module")
def options(series_folder, corpus_file):
    words = ("--series", series_folder, "--corpus", corpus_file, "--device", "cpu", "--decisions", 8)
    return (*words, "--checkpoints", 0, 110, "--splits", "in_domain")


@pytest.fixture(scope="module")
def study(options, tmp_path_factory):
    """A run of what the claims are read from, on two checkpoints."""
    run = tmp_path_factory.mktemp("claims") / "run"
    sizes = dict(behaviour=("--choices", 4), conflict=("--conflicts", 4), early=("--conflicts", 4))
    with pytest.MonkeyPatch.context() as patched:  # so small a model moves by less than a nat
        patched.setattr(mediation, "prompt_reliance", partial(mediation.prompt_reliance, minimum=-1e9))
        sizes |= dict(reliance=("--pairs", 4), own_traces=("--pairs", 4, "--samples", 2))
        for name, flags in sizes.items():
            assert main(name, "--run", run, *options, *flags) == 0
    write_table(run / "tables", "masking", masking_table(), dict(analysis="masking"))
    return run


def test_the_claims_are_read_from_what_a_run_kept(study, options, capsys, no_browser):
    assert main("claims", "--run", study, *options) == 0
    frame, made = read_table(study / "tables", "claims")
    assert list(frame.columns) == list(COLUMNS) and made["base"] == 0 and made["margin"] == 0.05
    ours = frame[frame["claim"] != "d"]
    assert set(ours["step"]) == {110} and set(ours["split"]) == {"in_domain"}
    assert {"free", "choice_sum", "choice_mean", "admissible"} <= set(ours["readout"])
    assert {"supported", "contradicted", "open"} >= set(ours["verdict"].dropna())
    masked = pick(frame, claim="d")
    assert set(masked["statistic"]) == {"masked_minus_none", "masked_minus_random"} and len(masked)
    behaviour, _ = read_table(study / "tables", "behaviour")
    forced = pick(frame, readout="choice_sum", subset="all").set_index("statistic")
    for metric, rows in (
        ("gap", pick(ours, readout="free", subset="all").set_index("statistic").loc["gap"]),
        ("acc_prompt", pick(ours, readout="free", subset="all").set_index("statistic").loc["gain_prompt"]),
        ("choice_prompt_sum", forced.loc["gain_prompt"]),
        ("choice_cot_sum", forced.loc["gain_cot"]),
    ):
        told = pick(behaviour, metric=metric).set_index("step")["value"]
        assert (rows["before"], rows["after"]) == pytest.approx((told[0], told[110]), abs=1e-5)
        assert rows["value"] == pytest.approx(told[110] - told[0], abs=1e-5)
    assert all(len(of_line(frame, line, "in_domain")) == 1 for line in lines(frame))
    said = capsys.readouterr()
    assert "claims.html" in said.out and (study / "claims.html").exists()
    assert made["left_out"][0] == "whole games" and "left out: claims: whole games" in said.err


def test_what_is_read_of_a_checkpoint_is_what_its_tables_average(study, series_folder, corpus_file):
    """Also what the base has no record of: so young a checkpoint writes no trace that could be replaced."""
    config = Config(
        run=study,
        series=series_folder,
        corpus=corpus_file,
        device="cpu",
        decisions=8,
        checkpoints=(0, 110),
        splits=("in_domain",),
    )
    cell = next(cell for cell in cells(config, "claims") if cell.step == 110)
    records = {name: frame for read in READERS.values() for name, frame in read(cell).items()}
    conflict, areas, nats, through = (
        read_table(study / "tables", name)[0] for name in ("conflict", "early", "reliance", "own_traces")
    )

    def told(table, **where):
        return need(table, step=110, **where)["value"].item()

    kinds = {"other_state", "resampled"} & set(pick(conflict, step=110)["inserted_trace"])
    assert kinds and kinds == {"other_state", "resampled"} & set(records) and "self_splice" not in records
    for kind in kinds:
        means = records[kind][["revised", "followed"]].mean()
        assert means["revised"] == pytest.approx(
            1 - told(conflict, inserted_trace=kind, metric="keep"), abs=1e-5
        )
        assert means["followed"] == pytest.approx(
            told(conflict, inserted_trace=kind, metric="follow"), abs=1e-5
        )
    assert records["cut"]["area_action"].mean() == pytest.approx(told(areas, metric="area_action"), abs=1e-5)
    assert len(records["pairs"]) == need(nats, step=110, metric="direct")["n"].item() > 0
    assert records["pairs"]["direct"].mean() == pytest.approx(told(nats, metric="direct"), abs=1e-4)
    for part in ("direct", "indirect"):
        assert records["own_traces"][part].mean() == pytest.approx(told(through, metric=part), abs=1e-4)


def test_a_table_of_claims_is_made_again_where_another_record_was_added(study, options, capsys):
    assert main("claims", "--run", study, *options) == 0
    capsys.readouterr()
    assert main("claims", "--run", study, *options) == 0 and "made already" in capsys.readouterr().out
    assert main("early", "--run", study, *options, "--conflicts", 3) == 0
    assert main("claims", "--run", study, *options) == 0
    assert "claims: made already" not in capsys.readouterr().out


def test_claims_without_records_or_with_one_checkpoint_are_left_out(options, tmp_path, capsys):
    assert main("claims", "--run", tmp_path, *options) == 0
    said = capsys.readouterr().err
    assert "left out: claims" in said and "run `python -m analyses behaviour` first" in said
    assert main("claims", "--run", tmp_path, *options[:8], "--checkpoints", 110) == 0
    assert (
        "left out: claims: A claim is about a change, and one checkpoint is studied"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "tables").exists()
    assert main("claims", "--run", tmp_path, *options, "--margin", 0) == 1
    assert "--margin is a number from 0.001 to 1" in capsys.readouterr().err
