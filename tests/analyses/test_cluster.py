"""A study spread over workers: units in an order that leaves the same tables, whatever becomes of workers."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.all import Config
from analyses.cluster import plan
from analyses.cluster.mirror import Mirror, reachable
from analyses.cluster.options import Trainings, executor, jobs
from analyses.cluster.units import LOSSES, Plan, Result, Unit
from analyses.cluster.worker import Worker
from analyses.command import configured
from analyses.registry import chains
from analyses.stages import alone
from interp.checkpoints import weights
from interp.results.records import read_record
from interp.results.tables import read_table
from interp.system.paths import ROOT
from tests.command_line import main

#: What is left out of a tiny study: games, and what takes seconds without showing more.
SKIP = ("online", "direct", "mdl", "shares", "diagnosis", "decisions", "own_traces")
#: What a run remembers beside stages.
NO_STAGES = ("made", "first_use", "measured")
#: Kinds of stages of the first analysis.
KINDS = ("decoded", "choices")
RAY = ("--executor", "ray")
#: Of the reference and of what is compared with it: two shards of the decisions.
CUT = ("--shard", "7")
SIZES = ("--decisions", "12", "--pairs", "4", "--conflicts", "4", "--choices", "4", "--skip", *SKIP)


def contents(run):
    return {path.name: path.read_bytes() for path in sorted((run / "tables").glob("*.csv"))}


def stages(run):
    """When each stage was computed."""
    paths = (path for path in run.glob("partial/*/*.json") if path.parent.name not in NO_STAGES)
    return {path.relative_to(run): path.stat().st_mtime_ns for path in paths}


# the plan

CELLS = [(step, split) for step in (0, 20, 110) for split in ("in_domain", "out_of_domain")]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_every_unit_is_done_once_in_order_whatever_happens(chains, closing, workers, seed):
    names = iter("abcdefghijkl")
    chains = [[(next(names),) for _ in chain] for chain in chains]
    then = [[(f"last {i}",) for i in range(closing)], [("after",)]]
    draw, todo = random.Random(seed), Plan(chains, then)
    has = {command: draw.sample(CELLS, draw.randrange(len(CELLS))) for chain in chains for command in chain}
    at, done, failed, split, wanted = {}, [], set(), Counter(), set()
    while True:
        for worker in range(workers):
            if worker not in at and (unit := todo.take(worker)):
                assert unit not in at.values() and unit not in done
                if unit.kind == "cell":
                    waits = [each for each in at.values() if each.shard]
                    assert unit._replace(kind="shard") not in [each._replace(shard=None) for each in waits]
                at[worker] = unit
        if not at:
            break
        worker = draw.choice(list(at))
        unit, fate = at.pop(worker), draw.random()
        if fate < 0.1 and todo.losses[unit] < LOSSES - 1:
            todo.lost(unit)
        elif fate < 0.2:
            todo.ended(unit, Result("busy"))
        elif fate < 0.35 and unit.kind == "cell" and split[unit] < 2:
            split[unit] += 1
            shards = [(f"stage {split[unit]}", k) for k in range(draw.randrange(2, 5))]
            wanted.update(unit._replace(kind="shard", shard=each) for each in shards)
            todo.ended(unit, Result("split", shards=shards))
        elif fate < 0.4:
            failed.add(unit.command)
            done.append(unit)
            todo.ended(unit, Result("failed", "why"))
        else:
            done.append(unit)
            todo.ended(unit, Result("done", cells=has.get(unit.command, ()) if unit.kind == "list" else ()))
        assert todo.left >= len(at)
    assert todo.left == 0 and len(todo.failures) >= len(failed)
    assert all(unit in done for unit in wanted if unit.command not in failed)
    for chain in chains:
        for command in chain:
            own = [unit for unit in done if unit.command == command]
            assert own[0].kind == "list"
            if command not in failed:
                assert {unit.cell for unit in own if unit.kind == "cell"} == set(has[command])
                assert own[-1] == Unit(command, "whole")
    _check_order(chains, then, done, failed, has)


def _check_order(chains, then, done, failed, has):
    place = {unit: i for i, unit in enumerate(done)}
    for chain in chains:
        for earlier, later in zip(chain, chain[1:]):
            for unit in done:
                if unit.command == later and unit.cell and earlier not in failed:
                    before = [Unit(earlier, "cell", c) for c in has[earlier] if c[0] == unit.cell[0]]
                    assert all(place[each] < place[unit] for each in before)
    first = [place[unit] for unit in done if len(unit.command[0]) == 1]
    groups = [first, *([place[Unit(command, "whole")] for command in group] for group in then)]
    for before, after in zip(groups, groups[1:]):
        assert not before or not after or max(before) < min(after)


def test_a_worker_stays_with_its_checkpoint_and_leaves_those_of_others():
    todo = Plan([[("a",), ("b",)]])
    for _ in range(2):
        todo.ended(todo.take(0), Result("done", cells=CELLS))
    one, two = todo.take(0), todo.take(1)
    assert one.cell[0] != two.cell[0] and todo.ahead(0) is None
    todo.ended(one, Result("done"))
    again = todo.take(0)
    assert again.cell[0] == one.cell[0] and again.cell != one.cell
    todo.ended(again, Result("done"))
    third = todo.take(0)
    assert (third.command, third.cell[0]) == (("b",), one.cell[0])
    todo.ended(third, Result("done"))
    last = todo.take(0)
    assert todo.ahead(0) == ({0, 20, 110} - {one.cell[0], two.cell[0]}).pop() and last.cell[0] == one.cell[0]


def test_a_unit_that_is_lost_again_and_again_is_given_up_and_the_others_go_on():
    todo = Plan([[("a",)], [("b",)]])
    for _ in range(LOSSES):
        todo.lost(todo.take(0))
    while unit := todo.take(0):
        todo.ended(unit, Result("done"))
    assert len(todo.failures) == 1 and todo.failures[0].startswith("a: its worker ended 5 times")


def test_trainings_are_spread_by_condition_and_seed():
    assert jobs(("x", "y"), 1, ("x",), 3) == [("x", 0), ("y", 0), ("x", 1), ("x", 2)]
    parts = [Trainings(part=(i, 3)).mine(jobs(("x", "y"), 1, ("x",), 3)) for i in range(3)]
    assert sorted(sum(parts, [])) == [("x", 0), ("x", 1), ("x", 2), ("y", 0)]
    with pytest.raises(ValueError, match="leave out --part"):
        Trainings(part=(0, 2), processes=2).check_parts()
    with pytest.raises(ValueError, match="no executor 'slurm': it is local, ray"):
        executor("slurm")


def test_no_ray_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'interp-agents\[ray\]'"):
        executor("ray")


# what a worker leaves


@pytest.fixture(scope="module")
def options(series_folder, corpus_file):
    def build(run):
        given = dict(run=run, series=series_folder, corpus=corpus_file, device="cpu")
        return [word for name, value in given.items() for word in (f"--{name}", str(value))] + [*SIZES]

    return build


@pytest.fixture(scope="module")
def reference(options, tmp_path_factory):
    """A study of this machine's processes, which cut cells as the workers of a cluster do."""
    run = tmp_path_factory.mktemp("local")
    ended = start(run, options)
    assert ended.wait() == 0, ended.stderr.read()
    return run


def start(run, options, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "analyses", "all", *options(run), *CUT, *more],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(os.environ, OMP_NUM_THREADS="1", BROWSER_PATH=str(run / "no browser")),
        start_new_session=True,
    )


def test_units_one_after_another_leave_the_tables_of_a_whole_run(options, tmp_path, reference):
    config = configured(Config, [*options(tmp_path), *CUT], "all")
    names = [[name for name in chain if name not in SKIP] for chain in chains(quick=True)]
    todo, worker, kinds = Plan([config.commands(chain) for chain in names]), Worker(), set()
    while unit := todo.take(0):
        kinds.add(unit.kind)
        todo.ended(unit, worker.do(unit, todo.ahead(0)))
    assert not todo.failures and "shard" in kinds
    assert contents(tmp_path).items() <= contents(reference).items()
    assert contents(reference).keys() - contents(tmp_path) == {"claims.csv"}


def test_shards_of_a_cell_leave_the_tables_of_a_process_that_cuts_alike(options, tmp_path):
    """What goes decision by decision: by a process, by units in random order, and whole."""
    names = (("behaviour",), ("reliance", "own_traces", "early", "shares"))
    alone, spread = (
        configured(Config, [*options(tmp_path / name), "--shard", "3", "--decisions_read", "7"], "all")
        for name in ("alone", "spread")
    )
    for command in (each for chain in names for each in alone.commands(chain)):
        assert main(*command) == 0
    units = _done_in_random_order(Plan([spread.commands(chain) for chain in names]))
    kinds = Counter((unit.kind, unit.command[0]) for unit in units)
    cells = 3 * 2
    assert kinds["shard", "behaviour"] == cells * (4 + 4 + 2), "12 decoded twice, and 4 chosen, by 3"
    assert kinds["shard", "shares"] == cells * 3, "7 of them"
    assert all(kinds["shard", name] == cells * 2 for name in ("reliance", "own_traces", "early")), "4 each"
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")
    whole = configured(Config, [*options(tmp_path / "whole"), "--decisions_read", "7"], "all")
    for name in ("behaviour", "reliance", "early", "shares"):
        assert main(*whole.commands([name])[0]) == 0
        cut, uncut = (read_table(tmp_path / run / "tables", name)[0] for run in ("alone", "whole"))
        pd.testing.assert_frame_equal(cut, uncut, rtol=1e-3, atol=1e-4)


def _done_in_random_order(todo):
    """The units of a plan, each by one of three workers that end when they like."""
    draw, workers, at, done = random.Random(1), [Worker() for _ in range(3)], {}, []
    while True:
        for number in range(len(workers)):
            if number not in at and (unit := todo.take(number)):
                at[number] = unit
        if not at:
            assert not todo.failures
            return done
        number = draw.choice(list(at))
        done.append(unit := at.pop(number))
        todo.ended(unit, workers[number].do(unit))


def test_a_shard_that_fails_is_told_once_and_its_cell_is_not_read():
    todo = Plan([[("a",)]])
    todo.ended(todo.take(0), Result("done", cells=[(0, "in_domain")]))
    todo.ended(todo.take(0), Result("split", shards=[("s", k) for k in range(5)]))
    one, two = todo.take(0), todo.take(1)
    todo.ended(one, Result("failed", "why"))
    assert not todo.take(0), "no other is begun"
    todo.ended(two, Result("done"))
    assert not todo.take(0) and not todo.left
    assert todo.failures == ["a 0 in_domain, shard 0: why"]


def test_a_unit_that_fails_is_told_in_its_sentence_and_the_others_go_on(options, tmp_path):
    config = configured(Config, options(tmp_path), "all")
    then = [[("nothing",), config.commands(["claims"])[0]]]
    todo, worker = Plan([config.commands(["behaviour"])], then), Worker()
    while unit := todo.take(0):
        todo.ended(unit, worker.do(unit))
    assert len(todo.failures) == 1 and todo.failures[0].startswith("nothing: There is no analysis")
    assert set(contents(tmp_path)) == {"behaviour.csv", "claims.csv"}


def test_what_another_process_computes_is_left_to_it(options, tmp_path):
    config = configured(Config, options(tmp_path), "all")
    todo, worker = Plan([config.commands(["behaviour"])]), Worker()
    todo.ended(unit := todo.take(0), worker.do(unit))
    unit = todo.take(0)
    worker.do(unit)
    (kept,) = tmp_path.glob(f"partial/decoded/{unit.cell[0]}-{unit.cell[1]}-{'[0-9a-f]' * 16}.json")
    before = kept.read_bytes()
    kept.unlink()
    with alone(kept):
        assert worker.do(unit).status == "busy" and not kept.exists()
    assert worker.do(unit).status == "done" and json.loads(kept.read_bytes()) != before


# a model that is laid over several devices


def test_a_device_map_reaches_what_loads_a_model_and_tables_stay(options, tmp_path, reference, monkeypatch):
    given, placed = [], weights.placed
    monkeypatch.setattr(weights, "placed", lambda *all: given.append(all[-1]) or placed(*all))
    words = [word for word in options(tmp_path) if word not in ("--device", "cpu")]
    config = configured(Config, [*words, *CUT, "--device_map", "auto"], "all")
    assert config.processes(2) == 1
    todo, worker = Plan([config.commands(["behaviour"])]), Worker()
    while unit := todo.take(0):
        todo.ended(unit, worker.do(unit))
    assert not todo.failures and given == ["auto"]
    assert contents(tmp_path)["behaviour.csv"] == contents(reference)["behaviour.csv"]


def test_a_device_map_is_refused_beside_what_has_one_device(options, tmp_path, capsys):
    for name, words in (
        ("behaviour", ("--device", "cpu")),
        ("behaviour", ("--generator", "vllm")),
        ("masking", ("--run", tmp_path)),
    ):
        assert main(name, "--device_map", "auto", "--run", tmp_path, *words) == 1
        assert "--device_map" in capsys.readouterr().err


# Ray


@pytest.fixture(scope="module")
def with_ray():
    pytest.importorskip("ray")


def ray_workers():
    """Processes of Ray's workers that have begun a unit."""
    return [
        p
        for p in psutil.process_iter(["name", "cmdline"])
        if "ray::Worker" in " ".join(p.info["cmdline"] or p.info["name"])
    ]


def test_a_cluster_leaves_the_same_tables_though_workers_are_killed(options, reference, tmp_path, with_ray):
    """Ten kills at random times, and everything that was finished before each is there as it was."""
    study, draw, kept, kills = start(tmp_path, options, *RAY), random.Random(0), {}, 0
    while study.poll() is None:
        time.sleep(draw.uniform(0, 0.5))
        now = stages(tmp_path)
        if kills < 10 and len(now) > len(kept) + draw.randrange(2) and (workers := ray_workers()):
            with contextlib.suppress(psutil.NoSuchProcess):
                draw.choice(workers).kill()
                kills += 1
        kept = now | kept
    assert study.returncode == 0, study.stderr.read()
    assert contents(tmp_path) == contents(reference) and kills == 10
    now = stages(tmp_path)
    assert all(now[path] == at for path, at in kept.items())


def test_a_killed_driver_leaves_what_two_others_share(options, reference, tmp_path, with_ray):
    killed = start(tmp_path, options, *RAY)
    while killed.poll() is None and len(stages(tmp_path)) < 3:
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    kept = stages(tmp_path)
    assert len(kept) >= 3 and not contents(tmp_path)
    both = [start(tmp_path, options, *RAY, "--cluster_workers", "1") for _ in range(2)]
    for study in both:
        assert study.wait() == 0, study.stderr.read()
    assert contents(tmp_path) == contents(reference)
    now = stages(tmp_path)
    assert all(now[path] == at for path, at in kept.items())


# machines that share no folder


def test_what_one_machine_computes_another_finds(options, tmp_path):
    here, there, url = tmp_path / "here", tmp_path / "there", f"file://{tmp_path / 'store'}"
    one, two = (configured(Config, options(run), "all").commands(["behaviour"])[0] for run in (here, there))
    unit = Unit(one, "cell", (0, "in_domain"))
    assert Worker((here, url)).do(unit).status == "done"
    assert Mirror(here, url).push() == Mirror(here, url).pull() == 0, "all of it is there"
    assert Worker((there, url)).do(unit._replace(command=two)).status == "done"
    kept = [path.relative_to(here) for path in here.glob("partial/*/*.json") if path.parts[-2] in KINDS]
    assert kept and all((here / name).read_bytes() == (there / name).read_bytes() for name in kept)


def test_a_store_gives_nothing_outside_of_stages_and_tables(tmp_path):
    store = tmp_path / "store"
    for name in (
        "partial/decoded/0-a.json",
        "tables/a.csv",
        "index.html",
        "partial/made/a.json",
        ".x/tables/a",
    ):
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    run = tmp_path / "run"
    assert Mirror(run, f"file://{store}").pull() == 2
    assert {path.relative_to(run).as_posix() for path in run.rglob("*.*")} == {
        "partial/decoded/0-a.json",
        "tables/a.csv",
    }
    with pytest.raises(ValueError, match="cannot be reached"):
        reachable("nosuch://bucket")


# how long it would take

STUDY = plan.Workload(
    [
        plan.Measured("a", 0, 2, 4, 100.0),
        plan.Measured("b", 0, 1, 4, 50.0),
        plan.Measured("c", 1, 2, 2, 200.0),
    ],
    checkpoints=4,
    decisions=100,
    parameters=1e6,
    bytes=1e6,
)
TOTAL = 4 * 2 * 100 + 4 * 50 + 2 * 2 * 200


def test_a_plan_takes_the_work_by_the_workers_and_never_less(monkeypatch):
    monkeypatch.setattr(plan, "STRAGGLE", 0.0)
    alone = plan.simulate(STUDY, 1, load=0)
    assert alone.hours * 3600 == pytest.approx(TOTAL, rel=1e-3) and alone.computing == pytest.approx(
        1, abs=1e-3
    )
    for workers in (2, 4, 8, 100):
        found = plan.simulate(STUDY, workers, load=10)
        assert found.hours * 3600 >= max(TOTAL / workers, 150)
        assert found.computing + found.loading <= 1 + 1e-9
    assert found.hours * 3600 < 300, "checkpoints, splits and chains are read side by side"


def test_a_plan_grows_with_model_prompts_and_decisions():
    config = plan.Config(parameters=2e6, tokens=3, decisions=200, checkpoints=8, speed=4, seeds=5)
    more = plan.scaled(STUDY, config)
    assert [each.seconds for each in more.analyses] == [100 * 2 * 3 * 2 / 4, 150.0, 600.0]
    assert [each.checkpoints for each in more.analyses] == [8, 8, 4]
    lines = plan.sizes(more, config)
    assert lines[1].startswith(f"{5 * (16 + 8 + 8):,} units of 3 analyses")
    assert lines[2] == f"at most {(2 + 2) * 8 * 5} units can be given at once."


def test_shards_of_decisions_let_more_workers_take_part(monkeypatch):
    monkeypatch.setattr(plan, "STRAGGLE", 0.0)
    apart = [replace(each, by_decision=0.8 * each.seconds) for each in STUDY.analyses]
    whole, cut = (replace(STUDY, analyses=apart, shard=shard) for shard in (0, 10))
    assert (whole.shards, cut.shards) == (1, 10)
    alone = plan.simulate(cut, 1, load=0)
    assert alone.hours * 3600 == pytest.approx(TOTAL, rel=1e-2)
    before, after = (plan.simulate(each, 100, load=0).hours for each in (whole, cut))
    assert after < 0.5 * before
    config = plan.Config()
    assert plan.sizes(cut, config)[1].startswith(f"{11 * (8 + 4 + 4):,} units")
    assert plan.sizes(cut, config)[2] == f"at most {10 * (2 + 2) * 4} units can be given at once."


def test_a_dry_run_knows_of_shards(options, tmp_path, capsys):
    assert main("all", *options(tmp_path), "probes", "patching", "transfer", "--dry_run", "--shard", "6") == 0
    assert capsys.readouterr().out.startswith("1 series of 3 checkpoints")
    kept = read_record(tmp_path / "partial" / "measured" / "study.json")
    by_name = {each["name"]: each for each in kept["analyses"]}
    assert kept["shard"] == 6 and 0 < by_name["behaviour"]["by_decision"] <= by_name["behaviour"]["seconds"]
    assert by_name["reliance"]["by_decision"] > 0 == by_name["conflict"]["by_decision"]
    assert main("plan", "--run", tmp_path, "--shard", "1000", "--decisions", "100000") == 0
    assert "100,000 decisions a split" in capsys.readouterr().out


def test_a_dry_run_measures_the_first_checkpoint_and_says_what_all_would_take(options, tmp_path, capsys):
    assert main("all", *options(tmp_path), "--dry_run") == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith("1 series of 3 checkpoints") and not contents(tmp_path)
    assert {path.name.partition("-")[0] for path in stages(tmp_path)} == {"0"}
    assert main("plan", "--run", tmp_path, "--parameters", "8e9", "--checkpoints", "40", "--seeds", "5") == 0
    assert capsys.readouterr().out.startswith("5 series of 40 checkpoints")
    assert main("plan", "--run", tmp_path / "none") == 1
    assert "was not measured: `python -m analyses all --dry_run" in capsys.readouterr().err


@pytest.mark.parametrize("gpus, taken", [(0, []), (0.25, [0.25]), (1, []), (2, [])])
def test_a_worker_takes_its_part_of_a_shared_gpus_memory(monkeypatch, gpus, taken):
    shares = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: shares.append(part)
    )
    Worker(gpus=gpus)
    assert shares == taken
