"""Figures from synthetic tables: intervals drawn, axes titled, captions short with their numbers below,
redraws the same."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses import figures
from interp.plots import behaviour as plots
from interp.plots import claims as plots_claims
from interp.plots import export as report
from interp.plots import patching as plots_patching
from interp.plots import probes as plots_probes
from interp.plots import registry
from interp.plots import traces as plots_traces
from interp.plots.caption import Caption
from interp.plots.slim import slim
from interp.report.sections import SECTIONS
from interp.results.claims import COLUMNS, of_line
from interp.results.claims import lines as claims_lines
from interp.results.tables import read_table, write_table
from interp.system.paths import ROOT

STEPS = (0, 50, 100, 200, 400, 800)
SPLITS = ("in_domain", "out_of_domain")
PROVENANCE = {
    "date": "2025-01-02",
    "command": "python -m analyses quick",
    "model_hash": "0123456789abcdef" * 4,
}


def _once(make):
    """A table's function that builds it once: each call gives a copy, to be changed."""
    built = functools.cache(make)
    return functools.wraps(make)(lambda *given: built(*given).copy())


def _table(
    columns: dict, value, spread=0.05, floor: float | None = 0.0, top: float | None = 1.0
) -> pd.DataFrame:
    """One row per combination of the columns' values; `value(row, progress)` is its estimate."""
    rng = np.random.default_rng(0)
    rows = []
    for combination in itertools.product(*columns.values()):
        row = dict(zip(columns, combination))
        estimate = (
            value(row, STEPS.index(row["step"]) / (len(STEPS) - 1)) + 0.1 * spread * rng.standard_normal()
        )
        estimate = float(np.clip(estimate, floor, top))
        low, high = np.clip([estimate - spread, estimate + spread], floor, top)
        rows.append(row | dict(value=estimate, low=low, high=high, n=412, n_groups=57))
    return pd.DataFrame(rows)


@_once
def behaviour_table() -> pd.DataFrame:
    ends = {
        "acc_prompt": (0.22, 0.55), "acc_cot": (0.25, 0.68), "acc_empty_think": (0.20, 0.51), "gap": (0.03, 0.13),
        "headroom_gap": (0.04, 0.29), "agreement": (0.48, 0.74), "kappa": (0.35, 0.65), "revision": (0.52, 0.26),
        "revision_helpful": (0.12, 0.16), "revision_harmful": (0.10, 0.03), "revision_neutral": (0.30, 0.07),
        "parse_prompt": (0.35, 0.98), "parse_cot": (0.80, 0.995), "parse_empty_think": (0.30, 0.97),
        "mcnemar_p": (0.3, 0.001), "choice_prompt_sum": (0.3, 0.6), "choice_prompt_mean": (0.3, 0.58),
        "choice_cot_sum": (0.35, 0.7), "choice_cot_mean": (0.33, 0.69), "choice_gap_sum": (0.05, 0.1),
        "acc_prompt_parsed": (0.6, 0.56), "acc_cot_parsed": (0.58, 0.69), "gap_parsed": (-0.02, 0.131), "kappa_parsed": (0.4, 0.66),
        "admissible_prompt": (0.7, 0.93), "admissible_cot": (0.75, 0.97), "acc_prompt_no_history_traces": (0.18, 0.41),
        "parse_prompt_no_history_traces": (0.3, 0.9), "prompt_no_history_traces_difference": (-0.04, -0.14),
    }  # fmt: skip

    def value(row, progress):
        first, last = ends[row["metric"]]
        lost = 0.08 if row["split"] == "out_of_domain" and row["metric"].startswith("acc") else 0.0
        return first + (last - first) * progress - lost * progress

    frame = _table(dict(step=STEPS, split=SPLITS, metric=list(ends)), value, 0.035)
    frame.loc[frame["metric"].str.startswith("choice"), ["n", "n_groups"]] = 40, 12
    frame.loc[frame["metric"].str.endswith("_parsed"), ["n", "n_groups"]] = 300, 55
    frame.loc[frame["metric"].str.startswith("admissible"), ["n", "n_groups"]] = 390, 56
    return frame


@_once
def online_table() -> pd.DataFrame:
    def value(row, progress):
        if row["metric"] == "steps":
            return 48 - 20 * progress - 5 * (row["mode"] == "cot")
        if row["metric"] == "unparsed":
            return 0.3 - 0.1 * progress if row["mode"] == "prompt" else 0.3 * (1 - progress)
        return 0.05 + 0.4 * progress + 0.15 * progress * (row["mode"] == "cot")

    columns = dict(step=STEPS, split=SPLITS, mode=("prompt", "cot"))
    shares = _table(columns | dict(metric=("success", "unparsed")), value, 0.02)
    return pd.concat(
        [shares, _table(columns | dict(metric=("steps",)), value, 2.0, top=None)], ignore_index=True
    )


@_once
def probes_table(layers: int = 13) -> pd.DataFrame:
    flat = {
        "majority": 0.18,
        "previous_action": 0.30,
        "tfidf": 0.41,
        "prompt_length": 0.21,
        "embedding": 0.36,
    }
    flat |= {"shuffled": 0.16}

    def value(row, progress):
        depth = (row["layer"] if row["layer"] >= 0 else layers * 0.7) / layers
        gain = (0.05 + 0.25 * progress) * (2 * depth - depth**2) - 0.06
        return flat.get(row["predictor"], gain if row["predictor"] == "gain" else 0.41 + gain)

    columns = dict(
        step=STEPS, layer=range(-1, layers), label=("eventual_verb", "eventual_target"), split=SPLITS
    )
    read = _table(columns | dict(predictor=("probe", "gain"), metric=("accuracy",)), value, 0.04, floor=-1)
    controls = _table(columns | dict(layer=(-1,), predictor=list(flat), metric=("accuracy",)), value, 0.03)
    return pd.concat([read, controls], ignore_index=True)


@_once
def patching_table(layers: int = 12) -> pd.DataFrame:
    def value(row, progress):
        middle = layers * (0.65 - 0.25 * progress)
        late = 1 / (1 + np.exp(-(row["layer"] - middle) / 1.2))
        effect = late * (0.55 + 0.35 * progress) * (0.9 if row["direction"] == "noise" else 1.0)
        return effect * (0.4 if row["mode"] == "cot" else 1.0)

    columns = dict(step=STEPS, mode=("prompt", "cot"), layer=range(layers), site=("resid_pre",))
    columns |= dict(direction=("denoise", "noise"))
    edge = _table(columns, value, 0.06, floor=-0.1, top=1.2).assign(at="boundary")
    edge = pd.concat([edge.assign(metric="difference"), edge.assign(metric="kl")])
    columns |= dict(
        at=("task", "history", "observation", "prompt"), metric=("difference", "attribution", "kl")
    )
    spans = _table(
        columns,
        lambda row, progress: (
            value(row, progress) * dict(task=0.1, history=0.6, observation=0.4, prompt=1.0)[row["at"]]
        ),
        0.06,
        floor=-0.1,
        top=1.2,
    )
    columns |= dict(layer=(-1,), at=("spans",), metric=("attribution_pearson", "attribution_spearman"))
    return pd.concat(
        [edge, spans, _table(columns, lambda row, progress: 0.7, 0.1)], ignore_index=True
    ).assign(n_dropped=9)


def old_patching_table() -> pd.DataFrame:
    """As committed before the spans were patched."""
    return (
        patching_table().query("at == 'boundary' and metric == 'difference'").drop(columns=["at", "metric"])
    )


@_once
def reliance_table() -> pd.DataFrame:
    ends = {
        "direct": (1.2, 3.4),
        "via_cot": (2.2, 2.0),
        "via_text": (1.9, 1.8),
        "via_state": (0.2, 0.1),
        "total": (3.1, 5.0),
        "interaction": (-0.3, -0.4),
    }

    def value(row, progress):
        first, last = ends.get(row["metric"], (0.35, 0.63))
        return first + (last - first) * progress - 0.05 * (row["split"] == "out_of_domain")

    share = _table(dict(step=STEPS, split=SPLITS, metric=("prompt_reliance",)), value, 0.06)
    parts = _table(dict(step=STEPS, split=SPLITS, metric=list(ends)), value, 0.3, floor=None, top=None)
    return pd.concat([share, parts], ignore_index=True)


@_once
def own_traces_table() -> pd.DataFrame:
    names = {"via_cot": "indirect"}
    frame = reliance_table().replace(dict(metric=names))
    kept = ("direct", "indirect", "total", "interaction", "prompt_reliance")
    return frame[frame["metric"].isin(kept)].reset_index(drop=True)


@_once
def conflict_table() -> pd.DataFrame:
    keep = {"self_splice": 1.0, "truncated": 0.8, "other_state": 0.3, "shuffled_words": 0.55}
    keep |= {"filler": 0.6, "empty": 0.5}

    def value(row, progress):
        kept = keep[row["inserted_trace"]] + (
            0.15 * progress if row["inserted_trace"] != "self_splice" else 0
        )
        shares = {
            "keep": kept,
            "follow": (1 - kept) * 0.7,
            "other": (1 - kept) * 0.2,
            "unparsed": (1 - kept) * 0.1,
        }
        return shares.get(row["metric"], 0.04)

    metrics = ("keep", "follow", "other", "unparsed", "leak_rate")
    frame = _table(dict(step=STEPS, split=SPLITS, inserted_trace=list(keep), metric=metrics), value, 0.04)
    exact = (frame["inserted_trace"] == "self_splice") & (frame["metric"] == "keep")
    frame.loc[exact, ["value", "low", "high"]] = 1.0
    columns = dict(step=STEPS, split=SPLITS, inserted_trace=list(keep), metric=("logp_trace",))
    logp = _table(columns, lambda row, progress: -3.0 + progress, 0.1, floor=None, top=None)
    shifts = _table(
        dict(
            step=STEPS,
            split=SPLITS,
            inserted_trace=list(keep)[1:],
            metric=("shift", "mass_own", "mass_own_before", "mass_argued", "mass_argued_before"),
        ),
        lambda row, progress: 0.6 - 0.2 * progress,
        0.05,
    )
    halves = _table(
        dict(
            step=STEPS,
            split=SPLITS,
            inserted_trace=("other_state",),
            metric=("follow_likely", "follow_unlikely"),
        ),
        lambda *_: 0.7,
        0.1,
    )
    rates = {"flip_removed": 0.3, "flip_substituted": 0.8, "flip_difference": 0.5}
    flips = _table(
        dict(
            step=STEPS,
            split=SPLITS,
            inserted_trace=("filler", "empty"),
            metric=[m + s for m in rates for s in ("", "_parsed")],
        ),
        lambda row, progress: rates[row["metric"].removesuffix("_parsed")] - 0.1 * progress,
        0.05,
    )
    few = pd.concat([shifts, halves, flips]).assign(n=31, n_groups=12)
    return pd.concat([frame, logp, few], ignore_index=True)


@_once
def early_table() -> pd.DataFrame:
    flat = {
        "area_action": 0.55,
        "area_filler": 0.7,
        "area_distribution": 0.48,
        "same_0": 0.2,
        "same_25": 0.3,
        "same_50": 0.45,
        "same_75": 0.7,
    }
    return _table(
        dict(step=STEPS, split=SPLITS, metric=list(flat)),
        lambda row, progress: flat[row["metric"]] + 0.1 * progress,
        0.05,
    )


@_once
def diagnosis_table() -> pd.DataFrame:
    own = {"post_hoc": 0.3, "overridable": 0.25, "trace_decided": 0.2, "neither": 0.25}
    leaks = {"spells_action": 0.15, "names_object": 0.8, "names_kind": 0.9}

    def value(row, progress):
        return (own | leaks)[row["metric"]] - 0.1 * progress * (row["traces"] == "own")

    shares = _table(dict(step=STEPS, split=SPLITS, traces=("own",), metric=list(own)), value, 0.05)
    columns = dict(step=STEPS, split=SPLITS, traces=("own", "expert"), metric=list(leaks))
    return pd.concat([shares, _table(columns, value, 0.05)], ignore_index=True)


@_once
def shares_table() -> pd.DataFrame:
    """Shares and token shares of every span; `history` has no tokens at the first checkpoint."""
    tokens = {
        "template": 0.1,
        "task": 0.05,
        "history": 0.4,
        "observation": 0.2,
        "boundary": 0.02,
        "cot": 0.15,
        "action_tag": 0.03,
        "action": 0.05,
    }
    columns = dict(
        step=STEPS,
        split=SPLITS,
        span=list(tokens),
        definition=("attention", "gradient_value", "gradient_resid"),
        version=("all", "sink_free"),
    )
    read = {"token_share": 0.0, "share": 1.0, "ratio": 0.0}

    def value(row, progress):
        ratio = (3 if row["span"] == "cot" else 0.5) ** progress * (
            2 if row["version"] == "all" and row["span"] == "template" else 1
        )
        return ratio if row["metric"] == "ratio" else tokens[row["span"]] * ratio ** read[row["metric"]]

    parts = [
        _table(
            columns | dict(metric=(m,)),
            value,
            0.2 if m == "ratio" else 0.01,
            top=None if m == "ratio" else 1.0,
        )
        for m in read
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame[(frame["span"] != "history") | (frame["step"] > 0)]


@_once
def steering_table() -> pd.DataFrame:
    slopes = {"probe": 0.07, "orthogonal": 0.02, "unembedding": 0.05, "shuffled": 0.025}
    reach = {"boundary": 0.2, "cot": 0.8, "action": 0.6, "everywhere": 1.0}

    def value(row, progress):
        flips = slopes[row["direction"]] * reach[row["position"]] * row["alpha"] * (1 - 0.5 * progress)
        return {
            "flip": flips,
            "flip_parsed": 0.9 * flips,
            "to_target": 0.5 * flips,
            "parse": 1 - 0.2 * flips,
        }[row["metric"]]

    columns = dict(
        step=STEPS,
        split=("in_domain",),
        position=list(reach),
        direction=list(slopes),
        alpha=(0.0, 2.0, 4.0, 8.0),
    )
    return _table(columns | dict(metric=("flip", "flip_parsed", "to_target", "parse")), value, 0.04)


@_once
def transfer_table() -> pd.DataFrame:
    def value(row, progress):
        apart = abs(STEPS.index(row["step"]) - STEPS.index(row["test_step"])) / len(STEPS)
        return {"probe": 0.6 - 0.5 * apart, "majority": 0.2, "drop": 0.3 * apart}[row["predictor"]]

    columns = dict(
        step=STEPS,
        test_step=STEPS,
        split=SPLITS,
        label=("eventual_target",),
        layer=(-1,),
        predictor=("probe", "majority", "drop"),
    )
    return _table(columns | dict(metric=("accuracy",)), value, 0.06, floor=-1).rename(
        columns=dict(step="train_step")
    )


@_once
def mdl_table() -> pd.DataFrame:
    ends = {"probe": (3.2, 2.4), "tfidf": (3.0, 2.8), "majority": (3.4, 3.3), "gain": (-0.2, 0.4)}

    def value(row, progress):
        bits = ends[row["predictor"]][0] + progress * (ends[row["predictor"]][1] - ends[row["predictor"]][0])
        return bits if row["metric"] == "bits" else 4.1 / bits

    frame = _table(
        dict(
            step=STEPS,
            split=SPLITS,
            label=("eventual_target",),
            predictor=tuple(ends),
            metric=("bits", "compression"),
        ),
        value,
        0.2,
        -1,
        None,
    )
    return frame[(frame["predictor"] != "gain") | (frame["metric"] == "bits")]


@_once
def claims_table() -> pd.DataFrame:
    """The prompt action improves throughout, the gap widens late, and what claim (c) rests on differs."""
    ends = {
        ("a", "gain_prompt", "choice_sum"): 0.15, ("b", "gain_cot", "choice_sum"): 0.4, ("b", "gap", "choice_sum"): 0.25,
        ("b", "headroom_gap", "choice_sum"): 0.3, ("a", "gain_prompt", "free"): 0.2, ("b", "gain_cot", "free"): 0.5,
        ("b", "gap", "free"): 0.3, ("b", "headroom_gap", "free"): 0.35, ("a", "gain_prompt", "games"): 0.1,
        ("b", "gain_cot", "games"): 0.3, ("b", "gap", "games"): 0.2, ("c", "revision_own", "free"): -0.2,
        ("c", "revision_conflict", "other_state"): -0.1, ("c", "revision_conflict", "resampled"): 0.1,
        ("c", "follow", "other_state"): -0.1, ("c", "prompt_reliance", "pairs"): 0.2, ("c", "kappa", "free"): 0.15,
        ("c", "area_action", "cut"): -0.05, ("b", "gap", "admissible"): 0.1,
    }  # fmt: skip
    told = ("gain_cot", "follow")
    frames = []
    for (claim, statistic, readout), end in ends.items():
        reach = lambda row, progress, end=end: end * progress**2  # noqa: E731
        frame = _table(dict(step=STEPS[1:], split=SPLITS), reach, 0.04, floor=-1)
        frame = frame.assign(
            claim=claim, statistic=statistic, readout=readout, subset="all", margin=0.05, before=0.3
        )
        frame = frame.assign(
            after=0.3 + frame["value"], low_90=frame["low"] + 0.01, high_90=frame["high"] - 0.01
        )
        falls = statistic in ("revision_own", "revision_conflict", "area_action")
        if statistic in told or readout == "admissible":
            words = [np.nan] * len(frame)
        elif statistic in ("gap", "headroom_gap"):
            within = (frame["high_90"] < 0.05) & (frame["low_90"] > -0.05)
            words = np.where(within, "supported", np.where(frame["low"] > 0, "contradicted", "open"))
        else:
            up, down = ("contradicted", "supported") if falls else ("supported", "contradicted")
            words = np.where(frame["low"] > 0, up, np.where(frame["high"] < 0, down, "open"))
        frames.append(frame.assign(verdict=words))
    few = dict(choice_sum=40, games=60, pairs=18)
    both = pd.concat(frames, ignore_index=True)
    both["n"] = both["readout"].map(few).fillna(both["n"]).astype(int)
    return both[list(COLUMNS)]


@_once
def elicited_table() -> pd.DataFrame:
    ends = {
        "acc_prompt": (0.2, 0.3), "acc_elicited": (0.3, 0.6), "acc_twin": (0.1, 0.1), "elicited_minus_prompt": (0.1, 0.3),
        "elicited_minus_twin": (0.2, 0.5), "parse_prompt": (0.4, 0.5), "parse_elicited": (0.9, 1.0), "parse_twin": (0.6, 0.6),
    }  # fmt: skip

    def value(row, progress):
        first, last = ends[row["metric"]]
        return first + (last - first) * progress

    columns = dict(step=STEPS, readout=("free", "choice_sum"), metric=list(ends))
    studied = _table(dict(columns, split=SPLITS), value, 0.03)
    curve = _table(dict(step=STEPS, round=(0, 1, 2)), lambda row, _: 9.0 - 2 * row["round"], top=None)
    curve = curve.assign(split="held_out", readout="logp", metric="nats")
    return pd.concat([studied.assign(round=2), curve], ignore_index=True)


TABLES = {
    "elicited": elicited_table,
    "claims": claims_table,
    "transfer": transfer_table, "mdl": mdl_table,
    "behaviour": behaviour_table, "online": online_table, "online_official": online_table, "probes": probes_table,
    "patching": patching_table, "reliance": reliance_table, "own_traces": own_traces_table,
    "conflict": conflict_table, "early": early_table,
    "diagnosis": diagnosis_table, "shares": shares_table,
    "steering": steering_table,
}  # fmt: skip


def write_tables(folder: Path, *names: str) -> Path:
    for name in names or TABLES:
        write_table(folder, name, TABLES[name](), PROVENANCE)
    return folder


DRAWN = ("behaviour", "parse", "revision", "reliance")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, Path, str]:
    """Two tables, the folder they were drawn into from a fresh process, and what that process printed."""
    tables = write_tables(tmp_path_factory.mktemp("tables"), "behaviour", "reliance")
    out = tables.parent / "figures"
    code = (
        "import sys; from analyses.__main__ import run; "
        f"status = run(['figures', '--tables', {str(tables)!r}, '--out', {str(out)!r}]); "
        "print('torch' in sys.modules, status)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return tables, out, run.stdout


def _has_interval(figure, name: str) -> bool:
    for trace in figure.data:
        if name in (trace.name or "") and (
            getattr(trace, "fill", None) == "toself"
            or trace.error_y.array is not None
            or trace.error_x.array is not None
        ):
            return True
    return False


ALL = {figure.name: figure for figure in registry.figures()}
OVER_STEPS = [
    figure for figure in ALL.values() if figure.table in TABLES
]  # the calibration's is tested by itself


def caption(name: str, frame: pd.DataFrame) -> str:
    return ALL[name].caption(frame).text


def told(name: str, frame: pd.DataFrame, **where) -> dict:
    """The one row of the numbers below a figure whose cells are these."""
    rows = ALL[name].caption(frame).numbers
    for column, value in where.items():
        rows = rows[rows[column.replace("_", " ")] == value]
    assert len(rows) == 1, (len(rows), where)
    return rows.iloc[0].to_dict()


def test_whiskers_of_stacked_revisions_are_of_helpful_ones_and_of_all():
    frame = behaviour_table()
    for split, axis in (("in_domain", "y"), ("out_of_domain", "y2")):
        for metric, name in (("revision_helpful", "helpful (wrong to right)"), ("revision", "all")):
            drawn = [each for each in plots.revision(frame).data if each.name == f"{name}, 95 % interval"]
            (whiskers,) = [each for each in drawn if (each.yaxis or "y") == axis]
            rows = frame.query("split == @split and metric == @metric").sort_values("step")
            np.testing.assert_allclose(whiskers.y, rows["value"])
            np.testing.assert_allclose(whiskers.y + whiskers.error_y.array, rows["high"])


@pytest.mark.parametrize("figure", OVER_STEPS, ids=[figure.name for figure in OVER_STEPS])
def test_intervals_drawn_and_axes_titled(figure):
    drawn = figure.draw(TABLES[figure.table](), PROVENANCE)
    shown = [trace for trace in drawn.data if trace.showlegend or figure.name == "overview"]
    lines = {t.name for t in shown if t.type in ("scatter", "bar") and t.name and t.hoverinfo != "skip"}
    lines = {name for name in lines if not name.endswith("interval covers 0")}
    lines -= {"supported", "contradicted", "open", "out of steps", "unparsed action"}  # marks and remainders
    lines -= {"harmful (right to wrong)", "neutral"}  # of parts of a whole, the lowest and all have whiskers
    assert lines or any(t.type == "heatmap" for t in drawn.data)
    for name in lines:
        assert _has_interval(drawn, name), f"no interval for {name}"
    titles = [axis.title.text for axis in [*drawn.select_xaxes(), *drawn.select_yaxes()] if axis.title.text]
    notes = [note.text for note in drawn.layout.annotations]
    assert any("training step" in text for text in [*titles, *notes, *lines])
    assert any(axis.title.text for axis in drawn.select_yaxes())
    assert drawn.layout.meta["provenance"] == PROVENANCE


def test_every_figure_over_checkpoints_is_tested():
    assert {figure.table for figure in ALL.values()} - set(TABLES) == {
        "along_trace",
        "calibration",
        "compare",
        "conditions",
        "direct",
        "environments",
        "splits",
        "masking",
        "masking_selection",
        "masking_power",
        "seeds",
    }  # those have tests of their own


def test_every_figure_has_a_section_and_stands_in_reading_order():
    known = {section.name for section in SECTIONS}
    assert {figure.section for figure in ALL.values()} - known == {"compared"}  # of no study's page
    for section, names in {
        "better": ["behaviour", "parse", "revision", "online", "online_official", "direct", "elicited"],
        "depends": [
            "patching",
            "patching_spans",
            "patching_screen",
            "reliance",
            "own_traces",
            "conflict",
            "conflict_shift",
            "removal",
            "early",
            "shares",
            "steering",
            "diagnosis",
        ],
    }.items():
        assert [figure.name for figure in ALL.values() if figure.section == section] == names


def test_a_new_figure_is_one_function_with_a_table_and_appears_on_the_page(monkeypatch, no_browser, tmp_path):
    monkeypatch.setattr(registry, "_FIGURES", dict(registry._FIGURES))
    found = lambda frame: Caption("<b>Found</b>.", "Drawn.", "n = 2.", frame)  # noqa: E731

    @registry.figure("A <new> instrument", table="mine", section="new things", caption=found)
    def mine(frame):
        return plots.go.Figure().add_scatter(y=frame["value"])

    frame = pd.DataFrame(dict(step=[0, 1], value=[0.5, 0.625]))
    write_table(tmp_path / "tables", "mine", frame, PROVENANCE)
    page = figures.draw(tmp_path / "tables", tmp_path / "out")[-1].read_text()
    assert (tmp_path / "out" / "mine.html").exists() and mine(frame, PROVENANCE).layout.meta[
        "provenance"
    ] == PROVENANCE
    section = page[page.index('<section id="new things"') : page.index('<section id="limits"')]
    assert (
        "A &lt;new&gt; instrument" in section
        and "&lt;b&gt;Found&lt;/b&gt;." in section
        and "<td>0.625</td>" in section
    )


def test_the_claims_figure_has_a_mark_for_every_verdict_and_the_margin():
    frame = claims_table()
    drawn = plots_claims.claims(frame)
    shown = [line for line in claims_lines(frame) if line.statistic != "headroom_gap"]
    for word in ("supported", "contradicted", "open"):
        said = sum(
            (of_line(frame, line, split)["verdict"] == word).sum() for line in shown for split in SPLITS
        )
        assert sum(len(trace.x) for trace in drawn.data if trace.name == word) == said > 0
    assert {shape.y0 for shape in drawn.layout.shapes} >= {-0.05, 0.05}
    notes = [note.text for note in drawn.layout.annotations if note.name == "n"]
    assert notes == [
        "a,\N{NO-BREAK SPACE}b: n = 40 decisions of 57 episodes by forced choice; "
        "c,\N{NO-BREAK SPACE}d: n = 18 to 412 decisions, pairs or games"
    ]
    unread = frame.assign(value=np.nan, low=np.nan, high=np.nan)
    with pytest.raises(ValueError, match="Figure claims: the table has no change of claims"):
        plots_claims.claims(unread)


def test_the_claims_are_a_table_for_a_paper_with_each_verdict_as_a_letter():
    frame = claims_table()
    text = ALL["claims"].latex(frame)
    assert text.count("{") == text.count("}") and text.count(r"\\begin") == text.count(r"\\end")
    for word, letter in (("supported", "s"), ("contradicted", "c"), ("open", "o")):
        said = sum(
            (of_line(frame, x, split)["verdict"] == word).sum()
            for x in claims_lines(frame)
            for split in SPLITS
        )
        assert text.count(rf"\mathrm{{{letter}}}") == said
    lines = [line for line in text.splitlines() if line.startswith("(b) gap")]
    assert len(lines) == 6 and all(line.count("&") == len(STEPS) - 1 for line in lines)


COMMITTED = ("", "smollm2", "environments", "masking_smollm2", "reinforcement", "conditions")


@pytest.mark.parametrize("folder", COMMITTED)
def test_captions_of_committed_tables_have_at_most_60_words_and_state_a_finding(folder):
    tables = ROOT / "figures" / folder / "tables"
    for figure in ALL.values():
        if not (tables / f"{figure.table}.csv").exists():
            continue
        frame, frame.attrs = read_table(tables, figure.table)
        try:
            figure.draw(frame)
        except ValueError:  # made before this figure was
            continue
        found = figure.caption(frame)
        assert len(found.text.split()) <= 60, (figure.name, len(found.text.split()), found.text)
        assert "nan" not in found.text.split() and "  " not in found.text
        assert found.message or figure.name in ("splits", "masking_table")
        assert len(found.numbers) or figure.name in ("splits", "masking_table")


def test_step_zero_has_its_place():
    axis = plots.behaviour(behaviour_table()).layout.xaxis
    assert list(axis.ticktext) == [str(step) for step in STEPS]
    assert list(axis.tickvals) == list(range(len(STEPS)))


def test_single_checkpoint_gets_a_whisker():
    base = behaviour_table().query("step == 0")
    for trace in plots.behaviour(base).data:
        assert trace.error_y.array is not None


def test_band_breaks_where_the_interval_is_unknown():
    frame = reliance_table()
    frame.loc[frame["step"] == 50, ["low", "high"]] = np.nan
    band, line = plots_patching.reliance(frame).data[:2]
    assert band.fill == "toself" and min(x for x in band.x if x is not None) == 2
    assert np.isfinite(line.error_y.array).tolist() == [True] + [False] * 5


def test_unknown_interval_leaves_the_line():
    frame = reliance_table().assign(low=np.nan, high=np.nan)
    figure = plots_patching.reliance(frame)
    assert not any(trace.fill == "toself" for trace in figure.data)
    assert len(figure.data) == 2 * (1 + 3)


def test_probes_are_drawn_as_gains_over_the_best_control_without_layer_0():
    frame = probes_table()
    chosen = frame.query("label == 'eventual_target' and split == 'in_domain' and predictor == 'gain'")
    drawn = {
        (trace.name, trace.yaxis): trace
        for trace in plots_probes.probes(frame).data
        if trace.mode == "lines+markers"
    }
    nested = drawn["probe − best control, nested layer", "y"]
    np.testing.assert_allclose(nested.y, chosen[chosen["layer"] == -1].sort_values("step")["value"])
    assert "embedding" not in str(drawn) and len(drawn) == 2 * (1 + 2)
    last = chosen[(chosen["step"] == 800) & (chosen["layer"] > 0)].sort_values("layer")
    np.testing.assert_allclose(drawn["training step 800", "y3"].y, last["value"])
    low, high = plots_probes.probes(
        frame.assign(value=lambda t: t["value"].mask(t["layer"] == 0, -9))
    ).layout.yaxis.range
    assert -0.5 < low < 0 < high < 0.5  # what layer 0 reads sets no axis
    text = caption("probes", frame)
    cells = frame.query("label == 'eventual_target' and predictor == 'gain' and layer >= 0")
    assert f"in {(cells['low'] > 0).sum()} of {len(cells)} cells (layer, checkpoint, split)" in text


def test_controls_of_activations_are_in_the_numbers():
    frame = probes_table()
    more = [
        frame[frame["predictor"] == "probe"].assign(
            predictor=predictor, value=value, low=value - 0.1, high=value + 0.1
        )
        for predictor, value in (("random_model", 0.25), ("control_task", 0.35), ("selectivity", 0.15))
    ]
    p = frame[(frame["predictor"] == "gain") & (frame["layer"] >= 0)].assign(
        predictor="gain_p", value=0.03, low=np.nan, high=np.nan
    )
    pair = frame[(frame["label"] == "eventual_verb") & (frame["layer"] == -1)].assign(
        label="pairwise go / take"
    )
    frame = pd.concat([frame, *more, p, pair], ignore_index=True)
    of = dict(
        split="in-domain",
        label="eventual action's target",
        layer="-1",
        first_checkpoint="0.25 [0.15, 0.35] (step 0)",
    )
    assert (
        told("probes", frame, predictor="random model", **of)["last checkpoint"]
        == "0.25 [0.15, 0.35] (step 800)"
    )
    rows = ALL["probes"].caption(frame).numbers
    assert {"control task", "selectivity", "gain p"} <= set(
        rows["predictor"]
    ) and "pairwise go / take" in set(rows["label"])


def test_a_drop_that_is_not_told_apart_from_0_is_blank():
    frame = transfer_table()
    maps = [t for t in plots_probes.transfer(frame).data if t.type == "heatmap"]
    drops = frame[frame["predictor"] == "drop"]
    apart = drops[(drops["low"] > 0) | (drops["high"] < 0)]
    assert sum(np.isfinite(t.z).sum() for t in maps) == len(apart) < len(drops)
    pairs = drops[drops["train_step"] != drops["test_step"]]
    clear = (pairs[pairs["split"] == "in_domain"]["low"] > 0).sum()
    assert f"in {clear} of 30 pairs in-domain" in caption("transfer", frame)
    assert (
        told("mdl", mdl_table(), metric="bits", predictor="saved by the activations", split="in-domain")["n"]
        == "412"
    )


def test_conflict_draws_what_is_followed_above_what_is_kept_and_says_what_does_not_parse():
    frame = conflict_table()
    drawn = plots_traces.conflict(frame)
    lines = {(t.name, t.yaxis) for t in drawn.data if t.mode == "lines+markers"}
    assert lines == {("other state's trace", y) for y in ("y", "y2")} | {
        (name, y) for name in ("truncated", "shuffled words", "filler", "empty") for y in ("y3", "y4")
    }
    kept = next(t for t in drawn.data if t.name == "filler" and t.mode == "lines+markers")
    row = frame.query("inserted_trace == 'filler' and metric == 'keep' and split == 'in_domain'")
    np.testing.assert_allclose(kept.y, row.sort_values("step")["value"])
    assert "Not parsed" not in caption("conflict", frame)
    empty = (frame["metric"] == "unparsed") & (frame["inserted_trace"] == "empty")
    assert "Not parsed: empty (88 %)." in caption(
        "conflict", frame.assign(value=frame["value"].mask(empty, 0.88))
    )


def test_a_share_of_fewer_than_five_decisions_is_left_to_the_table():
    frame = conflict_table()
    few = frame["inserted_trace"].eq("other_state") & frame["metric"].eq("follow") & frame["step"].eq(100)
    drawn = plots_traces.conflict(frame.assign(n=frame["n"].mask(few, 4)))
    (line,) = [each for each in drawn.data if each.name == "other state's trace" and each.showlegend]
    assert (
        np.isnan(line.y[list(STEPS).index(100)])
        and np.isfinite(np.delete(line.y, list(STEPS).index(100))).all()
    )
    (note,) = [note.text for note in drawn.layout.annotations if note.name == "n"]
    assert note.endswith("; fewer: table only") and "n = 4 " not in note


def test_failed_self_splice_check_is_said():
    frame = conflict_table()
    where = (frame["inserted_trace"] == "self_splice") & (frame["metric"] == "keep") & (frame["step"] == 100)
    frame.loc[where, "value"] = 0.97
    assert any("CHECK FAILED" in note.text for note in plots_traces.conflict(frame).layout.annotations)
    assert not any(
        "CHECK FAILED" in note.text for note in plots_traces.conflict(conflict_table()).layout.annotations
    )


def test_a_failed_self_splice_is_loud_in_the_caption():
    frame = conflict_table()
    assert "self-splice check passed" in caption("conflict", frame)
    frame.loc[
        (frame["inserted_trace"] == "self_splice") & (frame["metric"] == "keep") & (frame["step"] == 100),
        "value",
    ] = 0.97
    assert "SELF-SPLICE CHECK FAILED: keep falls to 0.970" in caption("conflict", frame)


def test_a_table_of_before_the_distributions_is_drawn_without_them(no_browser, tmp_path):
    frame = conflict_table()
    old = frame[frame["metric"].isin(("keep", "follow", "other", "unparsed", "leak_rate", "logp_trace"))]
    write_table(tmp_path / "tables", "conflict", old, PROVENANCE)
    page = figures.draw(tmp_path / "tables", tmp_path / "figures")[-1].read_text()
    assert "Conflicting traces" in page and "removed against" not in page and "How far another" not in page
    assert (tmp_path / "figures" / "conflict.html").exists()
    assert plots_traces.conflict(frame) == plots_traces.conflict(old)


def test_removal_stands_beside_substitution_on_the_same_decisions():
    frame = conflict_table()
    drawn = plots_traces.removal(frame)
    assert {trace.name for trace in drawn.data if trace.showlegend} == {
        "other state's trace",
        "filler",
        "empty",
    }
    for name in ("removed", "substituted", "difference"):
        end = _said(frame, step=800, split="in_domain", inserted_trace="filler", metric=f"flip_{name}_parsed")
        row = told("removal", frame, inserted_trace="filler", metric=f"flip {name} parsed", split="in-domain")
        assert row["last checkpoint"] == f"{end} (step 800)" and (row["n"], row["clusters"]) == ("31", "12")
    assert (
        "a wrong trace changes the action more often than none does in-domain and out-of-domain"
        in caption("removal", frame)
    )


def test_each_inserted_traces_shift_and_the_likelier_half_are_told():
    frame = conflict_table()
    drawn = plots_traces.conflict_shift(frame)
    shown = {
        place: {t.name for t in drawn.data if t.showlegend and t.legend == place}
        for place in ("legend", "legend2")
    }
    assert shown["legend"] == {"other state's trace"}
    assert shown["legend2"] == {"truncated", "shuffled words", "filler", "empty"}
    for inserted_trace, metric in (("filler", "shift"), ("other_state", "follow_likely")):
        row = told(
            "conflict_shift",
            frame,
            inserted_trace=inserted_trace.replace("_", " "),
            metric=metric.replace("_", " "),
            split="in-domain",
        )
        assert (
            row["last checkpoint"]
            == f"{_said(frame, step=800, split='in_domain', inserted_trace=inserted_trace, metric=metric)} (step 800)"
        )
    assert drawn.layout.legend.y > drawn.layout.legend2.y


def _said(frame: pd.DataFrame, **where) -> str:
    """Value and interval of the one row picked, as captions write them."""
    rows = frame.query(" and ".join(f"{column} == {value!r}" for column, value in where.items()))
    value, low, high = (
        f"{number:.2f}".replace("-", "−") for number in rows[["value", "low", "high"]].iloc[0]
    )
    assert len(rows) == 1
    return f"{value} [{low}, {high}]"


def test_forced_choice_is_in_the_numbers_with_its_own_size():
    frame = behaviour_table()
    for kind, called in dict(prompt_sum="prompt action by forced choice", cot_mean="choice cot mean").items():
        row = told("behaviour", frame, metric=called, split="in-domain")
        assert (
            row["last checkpoint"]
            == f"{_said(frame, metric=f'choice_{kind}', step=800, split='in_domain')} (step 800)"
        )
        assert (row["n"], row["clusters"]) == ("40", "12")
    for name in ("behaviour", "parse", "revision"):
        assert "n = 412 decisions in 57 episodes" in caption(name, frame)


@pytest.mark.parametrize(
    "name, metric, called, n",
    [
        ("behaviour", "acc_prompt_parsed", "prompt action, where both parse", "300"),
        ("revision", "kappa_parsed", "Cohen's κ, where both parse", "300"),
        ("behaviour", "admissible_cot", "CoT action, of the parsed: admissible", "390"),
        ("behaviour", "acc_prompt_no_history_traces", "prompt action, no traces in the history", "412"),
        ("behaviour", "prompt_no_history_traces_difference", "prompt action, no traces in the history − with them", "412"),
    ],
)  # fmt: skip
def test_what_parses_and_what_is_admissible_is_in_the_numbers(name, metric, called, n):
    frame = behaviour_table()
    row = told(name, frame, metric=called, split="in-domain")
    assert row["last checkpoint"] == f"{_said(frame, metric=metric, step=800, split='in_domain')} (step 800)"
    assert row["n"] == n


def test_unparsed_games_are_in_the_caption_where_they_are_many():
    frame = online_table()
    most = frame[(frame["metric"] == "unparsed") & (frame["step"] == 800)]["value"].max()
    assert f"Up to {100 * most:.0f} % of the last games end by an unparsed action" in caption("online", frame)
    frame.loc[frame["metric"] == "unparsed", "value"] = 0.05
    assert "unparsed" not in caption("online", frame)


def test_patching_draws_the_prompt_mode_and_says_the_other():
    frame = old_patching_table()
    prompt = frame.query("mode == 'prompt'")
    assert plots_patching.patching(frame) == plots_patching.patching(prompt.drop(columns="mode"))
    top = frame.query("mode == 'cot' and step == 800 and direction == 'denoise'")
    top = top.loc[top["value"].idxmax()]
    said = f"{top['value']:.2f} [{top['low']:.2f}, {top['high']:.2f}]"
    row = told("patching", frame, mode="action read after the trace", direction="denoise", step="800")
    assert row["value"] == said and row["layer"] == str(top["layer"]) and row["dropped"] == "9"
    with pytest.raises(ValueError, match="no rows with mode = prompt"):
        plots_patching.patching(frame.query("mode == 'cot'"))


def test_patching_draws_each_span_at_its_best_layer_over_checkpoints():
    frame = patching_table()
    drawn = plots_patching.patching(frame)
    lines = {t.name: t for t in drawn.data if t.showlegend}
    rows = frame.query("mode == 'prompt' and metric == 'difference'")
    means = rows.groupby(["at", "layer"])["value"].mean()
    best = {at: means[at].idxmax() for at in ("task", "history", "observation", "boundary")}
    assert set(lines) == {f"{at}, layer {layer}" for at, layer in best.items()}  # all of the prompt is 1
    history = rows.query(f"at == 'history' and direction == 'denoise' and layer == {best['history']}")
    np.testing.assert_allclose(lines[f"history, layer {best['history']}"].y, history["value"])
    assert caption("patching", frame) == caption("patching", old_patching_table())
    only_boundary = plots_patching.patching(old_patching_table())
    assert {t.name.partition(",")[0] for t in only_boundary.data if t.showlegend} == {"boundary"}


def test_a_boundary_that_moves_nothing_is_a_sentence_and_no_line():
    frame = patching_table()
    nothing = (frame["at"] == "boundary") & (frame["metric"] == "difference")
    for name, value in dict(value=0.0001, low=-0.002, high=0.003).items():
        frame[name] = frame[name].mask(nothing, value)
    for draw in (plots_patching.patching, plots_patching.spans):
        assert not any("boundary" in (t.name or "") for t in draw(frame).data)
    words = f"Patching the boundary alone moves nothing: none of {nothing.sum()} effects is above 0.01"
    assert words in caption("patching", frame)
    assert "moves nothing" not in caption("patching", patching_table())


def test_spans_are_lines_over_layers_at_the_ends():
    frame = patching_table()
    drawn = plots_patching.spans(frame)
    names = {t.name for t in drawn.data if t.showlegend}
    assert names == {"task", "history", "observation", "boundary", "whole prompt"}
    lines = [t for t in drawn.data if t.name == "history" and t.mode == "lines+markers"]
    rows = frame.query("mode == 'prompt' and metric == 'difference' and at == 'history'")
    for line, (direction, step) in zip(lines, itertools.product(("denoise", "noise"), (0, 800)), strict=True):
        of = rows.query(f"direction == '{direction}' and step == {step}").sort_values("layer")
        np.testing.assert_allclose(line.y, of["value"])
    top = frame.query(
        "mode == 'prompt' and metric == 'difference' and step == 800 and direction == 'noise' and at == 'history'"
    )
    top = top.loc[top["value"].idxmax()]
    frame.attrs = dict(not_paired={"no swap of equal token length": 3})
    row = told("patching_spans", frame, at="history", direction="noise", step="800", layer=str(top["layer"]))
    assert (
        row["value"] == f"{top['value']:.2f} [{top['low']:.2f}, {top['high']:.2f}]" and row["dropped"] == "9"
    )
    cells = ALL["patching_spans"].caption(frame).numbers.to_numpy().ravel()
    assert "no pair: no swap of equal token length" in cells and "kl" in cells
    with pytest.raises(ValueError, match="patching_screen: no pair is kept"):
        plots_patching.screen(frame.assign(value=np.nan, low=np.nan, high=np.nan))
    with pytest.raises(ValueError, match="patching_spans: the table has no rows with at = prompt"):
        plots_patching.spans(old_patching_table())


def test_the_screen_is_drawn_against_the_same_pairs_and_says_its_correlations():
    frame = patching_table()
    frame.loc[(frame["at"] == "task") & (frame["metric"] == "attribution"), "n"] = (
        7  # other pairs than those patched
    )
    assert {t.name for t in plots_patching.screen(frame).data} == {"history", "observation", "whole prompt"}
    said = _said(frame, step=800, mode="cot", direction="noise", metric="attribution_spearman")
    row = told(
        "patching_screen",
        frame,
        mode="action read after the trace",
        direction="noise",
        metric="attribution spearman",
    )
    assert row["last checkpoint"] == f"{said} (step 800)"


def test_a_figure_of_a_table_from_before_is_left_out(no_browser, tmp_path):
    tables = write_table(
        tmp_path / "tables", "patching", old_patching_table(), PROVENANCE | dict(not_paired={"why": 2})
    ).parent
    page = figures.draw(tables, tmp_path / "figures")[-1].read_text()
    assert (
        "Where the prompt acts" in page and "Which part of the prompt" not in page and "no pair: why" in page
    )


def test_log_probability_of_the_other_trace_is_in_the_numbers():
    frame = conflict_table()
    row = told(
        "conflict", frame, **{"inserted trace": "other state", "metric": "logp trace", "split": "in-domain"}
    )
    for step, at in ((0, "first checkpoint"), (800, "last checkpoint")):
        assert (
            row[at]
            == f"{_said(frame, step=step, split='in_domain', inserted_trace='other_state', metric='logp_trace')} (step {step})"
        )


def test_shares_stand_on_a_log_axis_about_one():
    frame = shares_table()
    frame.loc[frame["span"] == "boundary", ["value", "low"]] = 0.0
    figure = plots_traces.shares(frame)
    assert all(axis.type == "log" for axis in figure.select_xaxes())
    # The gradient along the residual is left to the table.
    assert {trace.name for trace in figure.data} == {"training step 0", "training step 800"}
    assert len(figure.data) == 2 * 2 * 2
    assert [axis.title.text for axis in figure.select_yaxes(col=1)] == ["attention", "gradient"]
    assert {shape.x0 for shape in figure.layout.shapes} == {1} and len(figure.layout.shapes) == 4
    labels = figure.layout.yaxis.ticktext
    assert "CoT" in labels and "boundary" not in labels
    for trace in figure.data:
        low = trace.x - trace.error_x.arrayminus
        assert (trace.x > 0).all() and (low > 0).all()
    one = plots_traces.shares(frame[frame["step"] == 800])
    assert len(one.data) == 4 and all(float(y).is_integer() for y in one.data[0].y)
    with pytest.raises(ValueError, match="no rows with version = all"):
        plots_traces.shares(frame[frame["version"] != "all"], version="all")


def test_shares_of_the_trace_are_in_the_numbers():
    frame = shares_table()
    where = dict(split="in_domain", span="cot", definition="gradient_value", version="sink_free")
    for metric in ("ratio", "share"):
        row = told(
            "shares", frame, definition="gradient, value path", span="CoT", metric=metric, split="in-domain"
        )
        assert row["last checkpoint"] == f"{_said(frame, step=800, metric=metric, **where)} (step 800)"
    assert "first position left out" in caption("shares", frame)


def test_steering_is_drawn_at_the_last_checkpoint_and_told_at_the_largest_alpha_that_parses():
    frame = steering_table()
    drawn = plots_traces.steering(frame)
    assert drawn == plots_traces.steering(frame[frame["step"] == 800])
    moved = frame[(frame["step"] == 800) & (frame["metric"] == "flip") & (frame["low"] > 0)][
        "position"
    ].unique()
    assert len(moved) == 4 and len(drawn.layout.meta["panels"]) == 2 * 3, "six panels at most"
    still = frame.assign(low=frame["low"].mask(frame["position"].isin(("boundary", "cot")), 0.0))
    titles = {note.text for note in plots_traces.steering(still).layout.annotations if note.name == "title"}
    assert titles == {"at the action", "everywhere"}, "what steering does not change is a sentence"
    where = dict(direction="probe's direction", metric="to target")
    row = told("steering", frame, position="during the CoT, alpha 8", **where)
    assert (
        row["first checkpoint"]
        == f"{_said(frame, step=0, position='cot', direction='probe', alpha=8.0, metric='to_target')} (step 0)"
    )
    broken = (
        (frame["metric"] == "parse")
        & (frame["alpha"] == 8)
        & (frame["position"] == "cot")
        & (frame["step"] == 800)
    )
    assert told(
        "steering",
        frame.assign(value=frame["value"].mask(broken, 0.4)),
        position="during the CoT, alpha 4",
        **where,
    )
    with pytest.raises(ValueError, match="Figure steering"):
        plots_traces.steering(frame[frame["metric"] == "parse"])


def test_a_folder_below_one_that_holds_the_script_refers_to_it(tmp_path):
    figure = plots.parse(behaviour_table())
    report.save_html({"parse": figure}, tmp_path)
    below = report.save_html({"parse": figure}, tmp_path / "other")
    assert [path.name for path in below] == ["parse.html"] and 'src="../plotly.min.js"' in below[
        0
    ].read_text()
    (tmp_path / "plotly.min.js").write_text("of another release")
    assert [path.name for path in report.save_html({"parse": figure}, tmp_path / "third")] == [
        "plotly.min.js",
        "parse.html",
    ]


def test_toolbar_has_room_above_the_interactive_figure(tmp_path):
    figure = plots_probes.probes(probes_table())
    before = figure.layout.height
    report.save_html({"probes": figure}, tmp_path)
    page = (tmp_path / "probes.html").read_text()
    assert figure.layout.height == before
    assert f'"height":{before + 28}' in page and f'"t":{figure.layout.margin.t + 28}' in page


def test_files_captions_and_no_torch(drawn):
    tables, out, printed = drawn
    assert printed.splitlines()[-1] == "False 0"
    for name in DRAWN:
        assert 'src="plotly.min.js"' in (out / f"{name}.html").read_text()
    page = (out / "index.html").read_text()
    frame = pd.read_csv(tables / "behaviour.csv").set_index(["step", "split", "metric"])
    for split, metric in itertools.product(SPLITS, ("acc_cot", "acc_prompt", "gap")):
        row = frame.loc[(800, split, metric)]
        assert (
            f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] (step 800)".replace("-", "−") in page
        )
    assert "n = 412 decisions in 57 episodes" in page
    assert 'href="../tables0/reliance.csv"' in page and 'href="../tables0/reliance.json"' in page
    assert "model_hash: 0123456789ab" in page and "0123456789abc" not in page


def test_static_files_where_a_browser_is_found(drawn):
    _, out, printed = drawn
    if "No SVG or PDF written" in printed:
        pytest.skip(printed.splitlines()[0])
    page = (out / "index.html").read_text()
    for name in DRAWN:
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{name}.svg").read_text().startswith("<svg")
        assert f'<img src="{name}.svg" alt="' in page and f'href="{name}.pdf"' in page
    assert not list(out.glob(".static-*"))


def test_a_page_shows_and_links_the_formats_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "interp.plots.export.save_static", lambda drawn, out, formats, dpi: [out / "reliance.svg"]
    )
    tables = write_tables(tmp_path / "tables", "reliance")
    written = figures.draw(tables, tmp_path / "figures", ("svg",))
    names = [path.name for path in written]
    assert names == [
        "reliance.tex",
        "reliance.csv",
        "numbers.tex",
        "summary.tex",
        "reliance.svg",
        "index.html",
    ]
    page = written[-1].read_text()
    linked = set(re.findall(r'(?:src|href)="(reliance\.\w+)"', page))
    assert linked == {"reliance.svg", "reliance.csv", "reliance.tex"} and "<iframe" not in page
    page = figures.draw(tables, tmp_path / "figures", ("html", "pdf"))[-1].read_text()
    linked = set(re.findall(r'(?:src|href)="(reliance\.\w+)"', page)) - linked
    assert linked == {"reliance.html", "reliance.pdf"}


@pytest.mark.parametrize("path", sorted((ROOT / "figures").rglob("*.svg")), ids=lambda path: path.stem)
def test_a_committed_drawing_has_all_that_it_refers_to(path):
    text = path.read_text()
    assert "<text" in text and "data-" not in text.replace('href="data:', "")
    assert set(re.findall(r"url\(['\"]?#(\w+)", text)) == set(re.findall(r'id="(\w+)"', text))
    assert set(re.findall(r'class="(\w+)"', text)) == set(re.findall(r"\.(s\d+)\{", text))


def test_a_slim_drawing_keeps_what_is_referred_to_and_inherited():
    clip = '<clipPath id="clipA"><rect width="1.2345" height="7"/></clipPath><clipPath id="other"/>'
    marks = '<path d="M0,0.996h9" clip-path="url(#clipA)" style="fill: rgb(1, 2, 255); fill-opacity: 1; opacity: 1;"/>'
    start = '<svg xmlns="http://www.w3.org/2000/svg" class="main">'
    text = slim(
        f'{start}<defs id="d">{clip}</defs><g style="opacity: 0.5">{marks * 2}</g><text>a  b</text></svg>'.encode()
    )
    mark = '<path d="M0,1h9" clip-path="url(#c0)" class="s0"/>'
    assert text.decode() == (
        '<svg xmlns="http://www.w3.org/2000/svg"><style>.s0{fill:#0102ff;fill-opacity:1}</style>'
        '<defs><clipPath id="c0"><rect width="1.23" height="7"/></clipPath></defs>'
        f'<g style="opacity:0.5">{mark * 2}</g><text>a  b</text></svg>'
    )


def test_redraw_gives_the_same_files(drawn, tmp_path):
    """Drawn again alone, in another process and browser: every byte of the figure the same, its table
    untouched."""
    _, out, _ = drawn
    one = write_tables(tmp_path / "tables", "reliance")
    before = {path.name: path.read_bytes() for path in one.iterdir()}
    of_both = {"index.html", "numbers.tex", "summary.tex"}
    for path in figures.draw(one, tmp_path / "figures"):
        if path.name not in of_both:
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert before == {path.name: path.read_bytes() for path in one.iterdir()}


def test_an_optional_figure_is_not_missed(no_browser, tmp_path):
    paths = figures.draw(write_tables(tmp_path / "tables", "reliance"), tmp_path / "figures")
    page = paths[-1].read_text()
    assert "Not drawn" in page and "own games" not in page and "online_official" not in page
    page = figures.draw(write_tables(tmp_path / "official", "online_official"), tmp_path / "played")[
        -1
    ].read_text()
    assert "ALFWorld&#39;s own games" in page and "Games won, in the environment" not in page


def test_without_a_browser_one_line_and_html(no_browser, tmp_path, capfd):
    tables = write_tables(tmp_path / "tables")
    paths = figures.draw(tables, tmp_path / "figures")
    captured = capfd.readouterr()
    assert len(captured.out.splitlines()) == 1 and "apt-get install chromium" in captured.out
    assert captured.err == ""
    pages = {f"{figure.name}.html" for figure in OVER_STEPS}
    by_suffix = {suffix: {p.name for p in paths if p.suffix == suffix} for suffix in (".csv", ".tex")}
    assert {path.name for path in paths} == {"plotly.min.js", "index.html"}.union(pages, *by_suffix.values())
    assert len(by_suffix[".csv"]) == len(pages)
    assert {"claims.tex", "reliance.tex", "summary.tex", "numbers.tex"} <= by_suffix[".tex"]
    assert '<iframe src="behaviour.html"' in (tmp_path / "figures" / "index.html").read_text()


def test_missing_tables_are_said(no_browser, tmp_path):
    tables = write_tables(tmp_path / "tables", "reliance")
    figures.draw(tables, tmp_path / "figures")
    page = (tmp_path / "figures" / "index.html").read_text()
    assert page.count("Not drawn. No table") == 8 and "Prompt reliance" in page
    figures.draw(tables, tmp_path / "figures")
    assert page == (tmp_path / "figures" / "index.html").read_text()
    with pytest.raises(FileNotFoundError, match="No table to draw"):
        figures.draw(tmp_path / "empty", tmp_path / "figures")


def test_rows_that_are_missing_are_said(no_browser, tmp_path):
    steps_only = online_table().query("metric == 'steps'")
    tables = write_table(tmp_path / "tables", "online", steps_only, PROVENANCE).parent
    figures.draw(tables, tmp_path / "figures")
    page = (tmp_path / "figures" / "index.html").read_text()
    assert "Not drawn. Figure online: the table has no rows with metric = success." in page
