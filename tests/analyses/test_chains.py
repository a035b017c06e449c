"""Chains of command lines in processes that take each other's work."""

import json
import sys

import pytest
import torch

from analyses import __main__ as command_line
from analyses import all as everything
from analyses.chains import orders

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
    first, second = (json.dumps(order) for order in orders(CHAINS))
    (tmp_path / "0-0").touch()  # the other process is at `a`
    (tmp_path / "0-1").touch()  # and at `b`
    assert command_line.chain(second, str(tmp_path)) == 0 and ran == ["x", "y", "c"]
    ran.clear()
    assert command_line.chain(first, str(tmp_path)) == 0 and not ran


def test_what_follows_a_failure_is_begun_by_nobody(ran, tmp_path):
    first, second = (json.dumps(order) for order in orders(CHAINS))
    assert command_line.chain(first, str(tmp_path)) == 1 and ran == ["a", "b"]
    assert command_line.chain(second, str(tmp_path)) == 0 and ran == ["a", "b", "x", "y"]


@pytest.mark.parametrize("gib, alone", [(80, False), (0.01, True)])
def test_chains_run_side_by_side_on_a_gpu_with_room_for_their_models(monkeypatch, tmp_path, gib, alone):
    config = everything.Config(run=tmp_path, device="cuda")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("interp.models.hooked.pick_device", lambda name: torch.device("cuda"))
    properties = type("Properties", (), dict(total_memory=int(gib * 2**30)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert config.alone(2) is alone
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert config.alone(2)
