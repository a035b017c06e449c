"""Chains of command lines in processes that take each other's work."""

import json
import sys

import pytest
import torch

from analyses import __main__ as command_line
from analyses import all as everything
from analyses.chains import help_along, orders
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


def test_a_process_goes_on_with_what_another_has_not_begun_from_its_end(ran, tmp_path):
    first, second = (json.dumps(order) for order in orders(CHAINS, 2))
    (tmp_path / "0-0").touch()  # the other process is at `a`
    (tmp_path / "0-1").touch()  # and at `b`
    assert command_line.chain(second, str(tmp_path)) == 0 and ran == ["x", "y", "c"]
    ran.clear()
    assert command_line.chain(first, str(tmp_path)) == 0 and not ran


def test_what_follows_a_failure_is_begun_by_nobody(ran, tmp_path):
    first, second = (json.dumps(order) for order in orders(CHAINS, 2))
    assert command_line.chain(first, str(tmp_path)) == 1 and ran == ["a", "b"]
    assert command_line.chain(second, str(tmp_path)) == 0 and ran == ["a", "b", "x", "y"]


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
    words = f"conflict {files} --device cpu --checkpoints 110 --decisions 24 --conflicts 4".split()
    (folder / "at-1").write_text(json.dumps(["conflict", 0, 2]))
    kept = tmp_path / "partial" / "conflict"
    end(folder, "0-0")
    help_along([("0-0", words), ("1-0", ["claims"])], folder)  # has ended, and reads no model
    assert not kept.exists()
    help_along([("0-1", words)], folder)
    assert [path.name.partition("-")[2][:13] for path in kept.glob("*.json")] == ["out_of_domain"]


@pytest.mark.parametrize("gib, processes", [(80, 8), (0.5, 5), (0.01, 1)])
def test_many_processes_share_a_gpu_with_room_for_their_models(monkeypatch, tmp_path, gib, processes):
    config = everything.Config(run=tmp_path, device="cuda")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("interp.models.hooked.pick_device", lambda name: torch.device("cuda"))
    properties = type("Properties", (), dict(total_memory=int(gib * 2**30)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert config.processes(2) == processes
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert config.processes(2) == 1
