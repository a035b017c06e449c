"""Java processes: none outlives the process that started it, however that ends; and what is said where one
cannot be started."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from interp.environments import java
from interp.environments.base import find
from interp.environments.textworldexpress.environment import INSTALL
from interp.system.paths import ROOT

lacking = java.missing("textworld_express", INSTALL)
playable = pytest.mark.skipif(bool(lacking), reason=lacking)
SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores interrupts
from interp.environments.textworldexpress.environment import Game, Live, _engine
view = Live().reset(Game("twc", "train", 7))
assert len(view.admissible) > 2
print(_engine().process.pid, flush=True)
{rest}
"""


def started(rest):
    """A Python process with a game in it, and its Java process."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(rest=rest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    line = parent.stdout.readline()
    assert line, parent.stderr.read()
    return parent, psutil.Process(int(line))


def ended(process):
    """Whether a process ends (within a minute, usually at once); one that only waits to be reaped has
    ended."""
    for _ in range(1200):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@playable
@pytest.mark.parametrize(
    "rest, sent, status",
    [
        ("", None, 0),
        ("raise ValueError('on purpose')", None, 1),
        ("time.sleep(60)", signal.SIGINT, -signal.SIGINT),
        ("time.sleep(60)", signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["success", "exception", "SIGINT", "SIGKILL"],
)
def test_java_ends_with_its_parent(rest, sent, status):
    parent, process = started(rest)
    if sent:
        assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE and "java" in process.name()
        parent.send_signal(sent)
    assert parent.wait(120) == status
    assert ended(process)


@playable
def test_two_processes_play_at_once():
    both = [started("time.sleep(60)") for _ in range(2)]
    assert len({process.pid for _, process in both}) == 2 and all(process.is_running() for _, process in both)
    for parent, _ in both:
        parent.kill()
        parent.wait(120)
    assert all(ended(process) for _, process in both)


@playable
def test_a_closed_engine_is_gone_and_closing_again_does_nothing():
    engine = java.Engine("textworld_express", "textworld-express.jar", INSTALL)
    process = psutil.Process(engine.process.pid)
    assert "twc" in list(engine.jvm.textworldexpress.runtime.PythonInterface().getGameNames())
    engine.close()
    engine.close()
    assert ended(process)


def test_what_is_missing_is_a_sentence(monkeypatch):
    with pytest.raises(
        ImportError,
        match=r"cannot be played: no_such_package is not installed \(pip install no_such_package\)\. Recorded decisions work without it\.",
    ):
        java.Engine("no_such_package", "x.jar", "pip install no_such_package")
    monkeypatch.setattr(
        java,
        "importlib",
        type("Found", (), {"util": type("Util", (), {"find_spec": staticmethod(lambda name: object())})}),
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert (
        java.missing("textworld_express", INSTALL)
        == "Java is not installed, or not on PATH (Debian: apt-get install default-jre-headless)"
    )
    for name in ("twc", "cookingworld"):
        assert find(name).unplayable().startswith("Java is not installed")
    with pytest.raises(ImportError, match="Java is not installed, or not on PATH"):
        java.Engine("textworld_express", "textworld-express.jar", INSTALL)


@playable
def test_without_java_the_analyses_say_so_and_recorded_decisions_still_load(tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    command = [
        sys.executable,
        "-m",
        "analyses",
        "record",
        "--environment",
        "twc",
        "--out",
        str(tmp_path / "x.jsonl.xz"),
    ]
    found = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ, PATH=str(tmp_path)), cwd=ROOT
    )
    assert found.returncode == 1 and found.stderr == (
        "error: Nothing can be recorded: Java is not installed, or not on PATH "
        "(Debian: apt-get install default-jre-headless).\n"
    )
