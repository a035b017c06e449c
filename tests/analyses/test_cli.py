"""The command line on a tiny series and corpus: same bytes twice, resuming after a kill, mistakes told in a
sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import interp
from analyses import decisions as by_decision
from analyses import patching as sweeps
from analyses import stages
from analyses.registry import chains, listed
from analyses.study import Study
from interp.measures import conflicts, patching
from interp.measures import reliance as mediation
from interp.results import tables
from interp.results.decisions import _NULLABLE, read_decisions, records
from interp.results.queries import pick
from interp.system.paths import ROOT
from interp.tasks.episodes import load_episodes, save_episodes
from tests.command_line import main

SIZES = dict(
    behaviour=("--choices", "4"),
    probes=("--folds", "2", "--draws", "50", "--labels", "eventual_target", "reference_target"),
    transfer=("--folds", "2", "--draws", "50", "--labels", "reference_target"),
    mdl=("--draws", "50", "--labels", "reference_target", "--shares", "0.3", "0.6", "1"),
    patching=("--pairs", "6"),
    reliance=("--pairs", "6"),
    own_traces=("--pairs", "4", "--samples", "2"),
    conflict=("--conflicts", "6"),
    early=("--conflicts", "6"),
    shares=("--decisions_read", "6"),
    steering=("--steered", "6", "--alphas", "0", "4"),
)


@pytest.fixture(scope="module")
def options(series_folder, corpus_file):
    """The common options, as `options(run, series=..., corpus=...)`."""

    def build(run, series=series_folder, corpus=corpus_file, checkpoints=("0", "110"), decisions="24"):
        return [
            "--run",
            str(run),
            "--series",
            str(series),
            "--corpus",
            str(corpus),
            "--device",
            "cpu",
            "--checkpoints",
            *checkpoints,
            "--decisions",
            decisions,
        ]

    return build


def start(*arguments, seed="0"):
    return subprocess.Popen(
        [sys.executable, "-m", "analyses", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PYTHONHASHSEED=seed),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a background job would ignore it


def contents(run):
    return {p.name: p.read_bytes() for p in sorted((run / "tables").glob("*.csv"))}


@pytest.fixture(scope="module", autouse=True)
def every_pair_counts():
    """So small a model moves by less than a nat: its pairs are kept here, or the tables would hold
    nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mediation, "prompt_reliance", partial(mediation.prompt_reliance, minimum=-1e9))
        patched.setattr(patching, "patch_modes", partial(patching.patch_modes, minimum=1e-4))
        yield


@pytest.fixture(scope="module")
def reference(options, tmp_path_factory):
    """A run of every offline analysis, start to end."""
    run = tmp_path_factory.mktemp("reference")
    for name, sizes in SIZES.items():
        assert main(name, *options(run), *sizes) == 0
    return run


def test_every_analysis_writes_its_table_and_what_made_it(reference, series):
    assert set(contents(reference)) == {f"{n}.csv" for n in SIZES}
    for name in SIZES:
        frame, provenance = tables.read_table(reference / "tables", name)
        assert (
            len(frame)
            and set(tables.ESTIMATE_COLUMNS) <= set(frame.columns)
            and set(frame.get("step", frame.get("test_step"))) == {0, 110}
            or name in ("own_traces", "conflict", "early", "shares", "steering")
        )
        if name == "probes":
            assert {
                "random_model",
                "control_task",
                "selectivity",
                "lda",
                "mean_difference",
                "gain",
                "gain_p",
            } <= set(frame.predictor)
        assert (
            provenance["analysis"] == name
            and provenance["device"] == "cpu"
            and provenance["dtype"] == "torch.float32"
        )
        assert provenance["weights"] == {str(s): series.weights_hash(s) for s in (0, 110)}
        assert {"seed", "config", "command", "format", "corpus", "versions"} <= set(provenance)
    frame, _ = tables.read_table(reference / "tables", "conflict")
    assert (frame[(frame.inserted_trace == "self_splice") & (frame.metric == "keep")].value == 1).all()
    for name in ("reliance", "patching"):
        frame, _ = tables.read_table(reference / "tables", name)
        assert frame.value.notna().any(), name


def test_runs_stopped_in_the_middle_and_taken_up_again_give_the_same_bytes(
    options, reference, tmp_path, monkeypatch
):
    """Every analysis is stopped after each second stage until it ends."""
    real, written, stops = stages.write_record, [], 0

    def stopping(path, value):
        real(path, value)
        written.append(path)
        if len(written) % 6 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(stages, "write_record", stopping)
    for name, sizes in SIZES.items():
        while status := main(name, *options(tmp_path), *sizes):
            assert status == 130 and not (tmp_path / "tables" / f"{name}.csv").exists()
            stops += 1
    assert stops >= 4 and len(set(written)) == len(written)  # no stage was computed twice
    assert contents(tmp_path) == contents(reference)


def wait_for(process, run, partial):
    def stages():
        return [path for path in run.glob("partial/**/*.json") if path.parent.name != "first_use"]

    while process.poll() is None and len(stages()) < partial:
        time.sleep(0.02)


def test_a_process_killed_and_started_again_gives_the_same_bytes(options, reference, tmp_path):
    arguments = ("behaviour", *options(tmp_path), *SIZES["behaviour"])
    killed = start(*arguments, seed="1")
    wait_for(killed, tmp_path, 1)
    killed.kill()
    killed.communicate()
    stopped = start(*arguments, seed="2")
    wait_for(stopped, tmp_path, 2)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate()
    assert killed.returncode == -signal.SIGKILL and stopped.returncode == 130 and "Traceback" not in errors
    assert not contents(tmp_path)
    assert main(*arguments) == 0
    assert contents(tmp_path)["behaviour.csv"] == contents(reference)["behaviour.csv"]


def test_figures_are_drawn_from_the_tables(reference, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "interp.plots.export.save_static", lambda *a: []
    )  # a browser, and tested with the plots
    assert main("figures", "--tables", reference / "tables", "--out", tmp_path) == 0
    page = (tmp_path / "index.html").read_text()
    drawn = {path.stem for path in tmp_path.glob("*.html")}
    assert {*SIZES, "parse", "revision"} <= drawn, capsys.readouterr().err
    assert "python -m analyses online" in page  # what is not there is said, with the command that makes it
    assert (
        main("figures", "--tables", tmp_path / "nothing", "--out", tmp_path) == 1
        and "No table to draw" in capsys.readouterr().err
    )


def test_the_list_names_every_analysis_and_a_mistake_is_one_sentence(capsys):
    assert main() == 0
    out, _ = capsys.readouterr()
    assert all(f"\n  {name} " in out for name in listed())
    status = main("nope")
    out, errors = capsys.readouterr()
    assert (
        status == 1
        and not out
        and errors.startswith("error: There is no analysis 'nope': there are behaviour")
    )
    assert errors.count("\n") == 1


def empty(path):
    path.write_bytes(b"")
    return path


def cut(path, corpus):
    path.write_bytes(corpus.read_bytes()[:2000])
    return path


def noise(path):
    path.write_bytes(b"\xff\xfe not a corpus")
    return path


def no_lines(path):
    path.write_text("")
    return path


def damage(folder, name="model.safetensors", keep=-100):
    path = folder / "checkpoint-110" / name
    path.write_bytes(path.read_bytes()[:keep])
    return folder


def other_tokenizer(folder):
    path = folder / "checkpoint-110" / "tokenizer.json"
    path.write_text(path.read_text().replace("drawer", "drewar") + "\n")
    return folder


def pickled(folder):
    path = folder / "checkpoint-110" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))
    return folder


MISTAKES = {
    "unknown checkpoint": (lambda s, c, t: dict(checkpoints=["7"]), (), "no checkpoint 7.*0, 20, 110"),
    "truncated weights": (
        lambda s, c, t: dict(series=damage(s)),
        (),
        "checkpoint-110/model.safetensors cannot be read",
    ),
    "pickled weights": (lambda s, c, t: dict(series=pickled(s)), (), "pickle"),
    "another tokenizer": (lambda s, c, t: dict(series=other_tokenizer(s)), (), "tokenizer .*checkpoint-110"),
    "damaged config": (lambda s, c, t: dict(series=damage(s, "config.json", 20)), (), "config.json"),
    "damaged tokenizer": (
        lambda s, c, t: dict(
            series=[
                damage(s, "tokenizer.json", 20),
                shutil.rmtree(s / "checkpoint-0"),
                shutil.rmtree(s / "checkpoint-20"),
            ][0],
            checkpoints=["110"],
        ),
        (),
        "tokenizer",
    ),
    "no series": (lambda s, c, t: dict(series=t), (), "No checkpoint-N folders"),
    "no corpus": (lambda s, c, t: dict(corpus=t / "none.jsonl.xz"), (), "No episodes at"),
    "empty corpus": (
        lambda s, c, t: dict(corpus=empty(t / "empty.jsonl.xz")),
        (),
        "empty.jsonl.xz holds no episodes",
    ),
    "corpus of no lines": (
        lambda s, c, t: dict(corpus=no_lines(t / "bare.jsonl")),
        (),
        "bare.jsonl holds no episodes",
    ),
    "cut corpus": (lambda s, c, t: dict(corpus=cut(t / "cut.jsonl.xz", c)), (), "cut.jsonl.xz is damaged"),
    "noise corpus": (lambda s, c, t: dict(corpus=noise(t / "noise.jsonl")), (), "noise.jsonl"),
    "folder for a corpus": (lambda s, c, t: dict(corpus=t), (), "."),
    "unknown device": (lambda s, c, t: {}, ("--device", "gpu"), "gpu"),
    "unknown style": (lambda s, c, t: {}, ("--style", "xml"), "no prompt style 'xml'"),
    "too many decisions": (lambda s, c, t: dict(decisions="9999"), (), "hold only"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_and_leave_earlier_tables(
    options, reference, copied, corpus_file, tmp_path, capsys, mistake
):
    change, extra, words = MISTAKES[mistake]
    run = tmp_path / "run"
    shutil.copytree(reference / "tables", run / "tables")
    before = {p: p.read_bytes() for p in (run / "tables").iterdir()}
    given = change(copied, corpus_file, tmp_path)
    name = "behaviour" if mistake == "too many decisions" else "reliance"
    assert main(name, *options(run, **{"series": copied} | given), *extra, *SIZES[name]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and 15 < len(lines[0]) < 500
    assert pd.Series(lines).str.contains(words).all(), lines
    assert {p: p.read_bytes() for p in (run / "tables").iterdir()} == before


def test_a_stages_key_holds_everything_that_its_result_depends_on(
    series_folder, copied, corpus_file, tmp_path
):
    def key(split="in_domain", **changes):
        study = Study(
            **{
                **dict(run=tmp_path, series=series_folder, corpus=corpus_file, decisions=24, device="cpu"),
                **changes,
            }
        )
        return json.dumps(study.inputs(110, split), sort_keys=True)

    silent = save_episodes(
        tmp_path / "silent.jsonl", []
    )  # the same prompts, other candidates and traces to be judged
    episodes = [
        replace(
            e, steps=(*e.steps[:-1], replace(e.steps[-1], admissible=(e.steps[-1].reference,), trace="Hm."))
        )
        for e in load_episodes(corpus_file)
    ]
    silent = save_episodes(tmp_path / "other.jsonl.xz", episodes)
    shutil.copy(
        copied / "checkpoint-20" / "model.safetensors", copied / "checkpoint-110" / "model.safetensors"
    )
    keys = [
        key(),
        key(seed=1),
        key(series=copied),
        key(split="out_of_domain"),
        key(dtype="bfloat16"),
        key(corpus=silent),
    ]
    assert len(set(keys)) == len(keys) and key() == keys[0]
    assert "auto" not in keys[0]  # a GPU's bfloat16 must not be taken for the CPU's float32


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    frame = pd.DataFrame(dict(a=[1.23456789, None], b=["x", "y"]))
    tables.write_table(tmp_path, "t", frame, dict(seed=0))
    before = contents_of(tmp_path)
    monkeypatch.setattr(tables.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        tables.write_table(tmp_path, "t", frame.assign(a=2), dict(seed=1))
    assert contents_of(tmp_path) == before and b"1.23457" in before["t.csv"]


def contents_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_all_runs_the_chains_side_by_side_and_draws_what_they_wrote(options, no_browser, tmp_path, capsys):
    skipped = [name for name in sum(chains(), []) if name not in ("conflict", "patching")]
    few = ("--pairs", "4", "--conflicts", "4")
    done = start("all", *options(tmp_path, checkpoints=("110",), decisions="8"), *few, "--skip", *skipped)
    _, errors = done.communicate()
    assert done.returncode == 0, errors
    assert (
        set(contents(tmp_path)) == {"conflict.csv", "patching.csv", "diagnosis.csv"}
        and (tmp_path / "conflict.html").exists()
    )
    assert len(read_decisions(tmp_path / "tables")[0]) and (tmp_path / "decisions.html").exists()
    assert '<a href="decisions.html">' in (tmp_path / "index.html").read_text()
    provenance = json.loads((tmp_path / "tables" / "conflict.json").read_text())
    assert (
        provenance["command"].startswith("python -m analyses conflict --run")
        and "--decisions 8" in provenance["command"]
    )
    wrong = main("all", *options(tmp_path, checkpoints=("7",)))
    errors = capsys.readouterr().err
    assert wrong == 1 and errors.startswith("error: There is no checkpoint 7") and errors.count("\n") == 1


def test_an_own_trace_that_does_not_come_back_is_said_loudly(options, tmp_path, capsys, monkeypatch):
    real = conflicts.conflict

    def broken(*given, **options):
        found = real(*given, **options)
        own = found["self_splice"]
        return found | dict(self_splice=replace(own, action=["look", *own.action[1:]]))

    monkeypatch.setattr(conflicts, "conflict", broken)
    assert (
        main(
            "conflict",
            *options(tmp_path, checkpoints=("110",)),
            "--conflicts",
            "4",
            "--inserted_traces",
            "empty",
        )
        == 0
    )
    _, provenance = tables.read_table(tmp_path / "tables", "conflict")
    assert "SELF-SPLICE FAILED" in capsys.readouterr().err and provenance["self_splice"] == "FAILED"
    assert [len(ids) for ids in provenance["self_splice_failed"].values()] == [1, 1]


def test_decisions_are_what_the_tables_average(reference, options, capsys, monkeypatch):
    monkeypatch.delattr(Study, "stage")  # nothing is computed
    labels = ("--labels", "eventual_target", "reference_target")
    assert main("decisions", *options(reference), *labels) == 0
    assert f"open {reference / 'decisions.html'}" in capsys.readouterr().out
    frame, made = read_decisions(reference / "tables")
    assert made["analysis"] == "decisions" and set(made["weights"]) == {"0", "110"}
    assert interp.view(reference).path == reference / "decisions.html"
    assert main("records", *options(reference), *labels) == 0
    key = ["decision", "checkpoint", "mode"]
    written = records(reference).to_table().to_pandas(types_mapper=_NULLABLE.get)
    same_rows = [
        each.sort_values(key, ignore_index=True)[[*key, "is_correct", "direct"]] for each in (written, frame)
    ]
    pd.testing.assert_frame_equal(*same_rows, check_dtype=False)

    def mean(column, mode="cot"):
        return frame[frame["mode"] == mode].groupby(["checkpoint", "split"])[column].mean()

    def table(name, **where):
        rows = pick(tables.read_table(reference / "tables", name)[0], **where)
        return rows.rename(columns=dict(step="checkpoint")).set_index(["checkpoint", "split"])["value"]

    def same(ours, stored):
        stored = stored.dropna()  # of pairs of which none moves the action
        assert len(stored) and np.allclose(ours.astype(float).loc[stored.index], stored, atol=1e-5)

    for mode in ("prompt", "cot", "empty_think"):
        same(mean("is_correct", mode), table("behaviour", metric=f"acc_{mode}"))
        same(mean("parsed", mode), table("behaviour", metric=f"parse_{mode}"))
    same(mean("actions_differ"), table("behaviour", metric="revision"))
    same(mean("direct"), table("reliance", metric="direct"))
    same(mean("area_action"), table("early", metric="area_action"))
    frame["chosen"] = (frame["choice"] == frame["reference"]).where(frame["choice"].notna()).astype(float)
    same(mean("chosen", "prompt"), table("behaviour", metric="choice_prompt_sum"))

    def unfolded(column, mode="cot"):
        rows = frame.loc[frame["mode"] == mode, ["checkpoint", "split", column]].explode(column).dropna()
        return pd.concat([rows.reset_index(drop=True), pd.DataFrame(rows[column].tolist())], axis=1)

    by = ["checkpoint", "split"]
    inserted = pick(unfolded("conflicts"), inserted_trace="other_state")
    same(
        inserted.groupby(by)["follow"].mean(),
        table("conflict", inserted_trace="other_state", metric="follow"),
    )
    patched = pick(unfolded("patching", "prompt"), at="boundary", direction="noise", metric="difference")
    stored = table_of_patching(reference)
    same(patched["effect"].str[1].groupby(patched["checkpoint"]).mean(), stored)
    probed = pick(unfolded("probes"), label="eventual_target")
    probed["hit"] = probed["predicted"].str[2] == probed["truth"]
    where = dict(label="eventual_target", layer=2, predictor="probe", metric="accuracy")
    same(probed.groupby(by)["hit"].mean(), table("probes", **where))
    followed(frame)


def followed(frame):
    """The lens of both actions at every layer."""
    cot = frame[(frame["mode"] == "cot") & frame["parsed"]]
    layers = len(cot["probes"].dropna().iloc[0][0]["predicted"])
    for row in cot.itertuples():
        lens = {each["whose"]: each for each in row.lens}
        for whose, action in dict(eventual=row.action, reference=row.reference).items():
            assert lens[whose]["token"].strip() in action
            assert len(lens[whose]["rank"]) == len(lens[whose]["probability"]) == layers
            assert lens[whose]["rank"].min() >= 1
        if row.action == row.reference:
            assert lens["eventual"]["rank"].tolist() == lens["reference"]["rank"].tolist()


def table_of_patching(run):
    """Mean noise effects of layer 1 at the boundary, by checkpoint."""
    where = dict(at="boundary", direction="noise", metric="difference", layer=1, mode="prompt")
    return pick(tables.read_table(run / "tables", "patching")[0], **where).set_index("step")["value_own"]


def test_estimates_are_kept_at_the_tokens_where_they_are_largest(trained, episodes):
    fmt = interp.PromptFormat(trained.tokenizer)
    clean, corrupt, _ = interp.make_pairs(
        fmt, [d for e in episodes["test_in_domain"] for d in e.decisions()], 3
    )
    sweep = interp.attribute(trained, clean, corrupt, minimum=-1e9)
    rows = [dict(row, mode="prompt") for row in sweeps._by_token(sweep, clean[:2])]
    cell = SimpleNamespace(
        split="in_domain",
        step=0,
        config=SimpleNamespace(parts=["in_domain"]),
        kept=lambda _: dict(tokens=rows),
    )
    parts = {decision: columns["attribution"] for decision, _, columns in by_decision.attribution(cell)}
    assert [*parts] == [prompt.decision.id for prompt in clean[:2]]
    for pair, estimates in enumerate(parts.values()):
        for direction, grids in dict(denoise=sweep.denoise, noise=sweep.noise).items():
            grid = grids[pair, 0, :, : len(clean[pair].ids)]
            kept = [each for each in estimates if each["direction"] == direction]
            positions = [each["position"] for each in kept]
            assert positions == sorted(positions) and 0 < len(positions) <= sweeps.TOKENS
            left_out = np.delete(np.abs(grid).max(0), positions)
            assert left_out.max() <= np.abs(grid[:, positions]).max(0).min()
            np.testing.assert_allclose([each["effect"] for each in kept], grid[:, positions].T, atol=1e-4)
            assert any(" → " in each["token"] for each in kept), "where the prompts differ"


def test_decisions_without_a_record_are_left_out(options, tmp_path, capsys):
    assert main("decisions", *options(tmp_path)) == 0
    assert (
        "left out: " in (said := capsys.readouterr().err)
        and "run `python -m analyses behaviour` first" in said
    )
