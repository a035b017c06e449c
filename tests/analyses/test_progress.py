"""One progress display of analyses side by side."""

import json
import sys

from analyses.progress import VARIABLE, display, end, position, reached, tracked
from interp.system.processes import side_by_side


def test_an_analysis_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "0"))
    told = [json.loads((tmp_path / "0").read_text()) for _ in tracked(["a", "b"], "probes")]
    assert told == [["probes", 0, 2], ["probes", 1, 2]] and not capsys.readouterr().err
    monkeypatch.delenv(VARIABLE)
    assert list(tracked([1, 2], "mdl")) == [1, 2] and "mdl" in capsys.readouterr().err


def test_the_display_counts_what_is_done(tmp_path, monkeypatch):
    assert position(3, tmp_path) == ([], 0.0)
    (tmp_path / "at-0").write_text(json.dumps(["probes", 3, 4]))
    (tmp_path / "at-1").write_text("[")  # of another hand
    end(tmp_path, "0-0")
    assert position(3, tmp_path) == (["probes 4/4"], 1.75)
    (tmp_path / "at-1").write_text(json.dumps(["patching", 0, 2]))
    assert position(3, tmp_path) == (["probes 4/4", "patching 1/2"], 1.75)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "at-0"))
    assert (reached("probes"), reached("patching"), reached("mdl")) == (3, 0, -1)
    end(tmp_path, "0-1")
    assert position(3, tmp_path) == (["patching 1/2"], 2.0) and reached("probes") == -1


def test_what_processes_print_is_handed_on_line_by_line_to_its_stream(tmp_path):
    code = "import os, sys; print('out', os.environ['INTERP_PROGRESS'][-1]); print('bad', file=sys.stderr); sys.exit({})"
    lines = []
    with display(2, tmp_path) as environment:
        commands = [[sys.executable, "-c", code.format(number)] for number in (0, 3)]
        statuses = side_by_side(commands, environment, lambda line, stream: lines.append((line, stream)))
    assert statuses == [0, 3]
    assert sorted(line for line, stream in lines if stream is sys.stdout) == ["out 0\n", "out 1\n"]
    assert [line for line, stream in lines if stream is sys.stderr] == ["bad\n", "bad\n"]
