"""Chains of command lines in processes that take each other's work."""

import json
import sys
import threading

import pytest
import torch

from analyses import __main__ as command_line
from analyses import all as everything
from analyses.chains import claimed, help_along, orders
from analyses.progress import VARIABLE, end

CHAINS = [[["a"], ["b"], ["c"]], [["x"], ["y"]]]


@pytest.fixture
def ran(monkeypatch):
    """The commands that ran; `b` fails."""
    names = []

    def main(draw):
        names.append(sys.argv[1])
        return int(sys.argv[1] == "b")

    monkeypatch.setattr(sys, "argv", ["analyses"])
    monkeypatch.setattr(command_line, "end_with_parent", lambda: None)
    monkeypatch.setattr(command_line, "main", main)
    return names


def commands(process, then=()):
    return json.dumps([orders(CHAINS, 2)[process], [(f"then-{i}", [name]) for i, name in enumerate(then)]])


def test_a_process_goes_on_with_what_another_has_not_begun_from_its_end(ran, tmp_path):
    with claimed(tmp_path, "0-0"), claimed(tmp_path, "0-1"):  # the other process has begun `a` and `b`
        assert command_line.chain(commands(1), str(tmp_path)) == 0 and ran == ["x", "y", "c"]
    ran.clear()
    assert command_line.chain(commands(0), str(tmp_path)) == 0 and not ran


def test_what_follows_a_failure_is_begun_by_nobody(ran, tmp_path):
    assert command_line.chain(commands(0, ["last"]), str(tmp_path)) == 1 and ran == ["a", "b"]
    assert command_line.chain(commands(1, ["last"]), str(tmp_path)) == 0 and ran == ["a", "b", "x", "y"]


def test_what_follows_all_waits_for_them(ran, tmp_path):
    with claimed(tmp_path, "0-1") as mine:  # the other process is at `b`
        assert mine
        waiting = threading.Thread(target=command_line.chain, args=(commands(1, ["last"]), str(tmp_path)))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and ran == ["x", "y", "c", "a"]
    waiting.join(20)
    assert ran[4:] == ["last"]


def test_what_follows_all_is_not_run_where_a_process_is_gone(ran, tmp_path):
    (tmp_path / "0-1").touch()  # its lock is free, and it has not ended
    assert command_line.chain(commands(1, ["last"]), str(tmp_path)) == 0 and ran == ["x", "y", "c", "a"]


def test_processes_beyond_the_chains_begin_at_their_ends():
    first, second, third = orders(CHAINS, 3)
    assert [name for name, _ in first] == ["0-0", "0-1", "0-2", "1-1", "1-0"]
    assert [name for name, _ in second] == ["1-0", "1-1", "0-2", "0-1", "0-0"]
    assert [name for name, _ in third] == ["0-2", "0-1", "0-0", "1-1", "1-0"]


def test_who_has_nothing_left_reads_the_last_cells_of_what_others_are_at(
    series_folder, corpus_file, tmp_path, monkeypatch
):
    folder = tmp_path / "chains"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder / "at-0"))
    files = f"--run {tmp_path} --series {series_folder} --corpus {corpus_file}"
    words = f"conflict {files} --device cpu --checkpoints 0 110 --decisions 24 --conflicts 4".split()
    (folder / "at-1").write_text(json.dumps(["conflict", 0, 4]))
    kept = tmp_path / "partial" / "conflict"
    end(folder, "0-0")
    help_along([("0-0", words)], folder)  # has ended
    assert not kept.exists()
    help_along([("0-1", words)], folder)
    read = {path.name.rpartition("-")[0] for path in kept.glob("*.json")}
    assert read == {"110-in_domain", "110-out_of_domain"}, "the other is at checkpoint 0"


@pytest.mark.parametrize("gib, processes", [(80, 8), (0.5, 5), (0.01, 1)])
def test_many_processes_share_a_gpu_with_room_for_their_models(monkeypatch, tmp_path, gib, processes):
    config = everything.Config(run=tmp_path, device="cuda")
    monkeypatch.setattr(everything, "cores", lambda: 16)
    monkeypatch.setattr("interp.models.hooked.pick_device", lambda name: torch.device("cuda"))
    properties = type("Properties", (), dict(total_memory=int(gib * 2**30)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert config.processes(2) == processes
    monkeypatch.setattr(everything, "cores", lambda: 1)
    assert config.processes(2) == 1
