"""Processes started by one end with it, however it ends; and one that was ended is said to have been."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import ModuleType

import psutil
import pytest

from analyses import __main__ as cli
from analyses import chains
from interp.environments.recording import record
from interp.rollouts.workers import Engines, engines
from interp.system.paths import ROOT
from interp.system.processes import cores, how_it_ended, own_cores, side_by_side

PARENT = """
import signal, sys
from interp.system import processes
from interp.system.processes import side_by_side, stop_on_signals
processes.PATIENCE = 0.3, 0.5
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores interrupts
stop_on_signals()
try:
    side_by_side([[sys.executable, "-c", child] for child in sys.argv[1:]])
except KeyboardInterrupt as stop:
    sys.exit(getattr(stop, "status", 130))
"""
#: Stand-ins for chains: each says its process, and never ends by itself.
SLEEPING = """
import os, time
from interp.system.processes import end_with_parent
end_with_parent()
os.write(1, b"%d\\n" % os.getpid())
time.sleep(600)
"""
DEAF = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from interp.system.processes import end_with_parent
end_with_parent()
os.write(1, b"%d\\n" % os.getpid())
while True: signal.pause()
"""
LATE = """
import os, time
os.write(1, b"%d\\n" % os.getpid())
time.sleep(1)  # what a parent's end meets where a child is still starting
from interp.system.processes import end_with_parent
end_with_parent()
time.sleep(600)
"""
PLAYING = """
import os, time
from interp.rollouts.workers import engines
from interp.system.processes import end_with_parent
end_with_parent()
with engines(dict, 2) as pool:
    os.write(1, b"".join(b"%d\\n" % process.pid for process in pool._processes))
    time.sleep(600)
"""
SIGNALS = (signal.SIGKILL, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def started(*children, lines):
    """A parent with these children, and the processes that said their number."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *children],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    return parent, [psutil.Process(int(parent.stdout.readline())) for _ in range(lines)]


def left(below):
    """Those of some processes that have not ended after a minute; usually all end at once."""
    return psutil.wait_procs([process for process in below if process.is_running()], timeout=60)[1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_no_child_outlives_a_parent_that_alone_gets_a_signal(number):
    both = [started(SLEEPING, child, lines=2) for child in (SLEEPING, SLEEPING, DEAF, LATE)] + [
        started(PLAYING, lines=2)
    ]
    below = [child for parent, _ in both for child in psutil.Process(parent.pid).children(recursive=True)]
    assert {process.pid for _, told in both for process in told} <= {process.pid for process in below}
    for parent, _ in both:
        parent.send_signal(number)
    for parent, _ in both:
        assert parent.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        parent.stdout.close()
    assert not left(below)


def test_the_chains_of_all_end_with_it():
    code = "from analyses.chains import run_chains; run_chains([[['coverage']], [['coverage']]])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while parent.poll() is None and len(below := psutil.Process(parent.pid).children(recursive=True)) < 2:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert below and not left(below)


STUDY = "from analyses.__main__ import leave, main, stop_on_signals; stop_on_signals(); leave(main())"


def test_the_parts_of_the_masking_study_end_when_it_alone_is_hung_up(tmp_path):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            STUDY,
            "masking",
            "--processes",
            "2",
            "--run",
            str(tmp_path),
            "--device",
            "cpu",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    while parent.poll() is None and len(below := psutil.Process(parent.pid).children(recursive=True)) < 2:
        time.sleep(0.05)
    parent.send_signal(signal.SIGHUP)
    assert parent.wait(60) == 128 + signal.SIGHUP
    assert len(below) == 2 and not left(below)


def test_statuses_are_those_of_the_children_in_order():
    code = "import os, signal, sys; os.kill(os.getpid(), int(sys.argv[1])) if sys.argv[1] != '3' else sys.exit(3)"
    assert side_by_side([[sys.executable, "-c", code, each] for each in ("9", "3", "15")]) == [-9, 3, -15]
    assert side_by_side([]) == []
    assert how_it_ended(-9) == "was ended by signal 9 (SIGKILL), as the system does where memory runs out"
    assert (
        how_it_ended(-15) == "was ended by signal 15 (SIGTERM)"
        and how_it_ended(3) == "ended with exit status 3"
    )


def test_all_says_that_a_chain_was_killed_and_draws_no_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        chains, "side_by_side", lambda commands, environment, above: [-9, *[0] * (len(commands) - 1)]
    )
    monkeypatch.setattr(
        sys, "argv", ["analyses", "all", "--run", str(tmp_path), "--device", "cpu", "--skip", "online"]
    )
    assert cli.main() == 137 and not list(tmp_path.iterdir())
    words = capsys.readouterr().err
    assert words.startswith("error: the process of behaviour, probes") and words.count("\n") == 1
    assert (
        "was ended by signal 9 (SIGKILL), as the system does where memory runs out; finished stages are kept"
        in words
    )


def test_a_study_in_several_processes_takes_a_part_in_each(tmp_path, monkeypatch):
    from analyses.masking import run as masking

    ran = []
    monkeypatch.setattr(
        chains,
        "side_by_side",
        lambda commands, environment: [
            ran.append(json.loads(command[-3])[0][0][1]) or 0 for command in commands
        ],
    )
    monkeypatch.setattr(
        masking,
        "INSTRUMENT",
        replace(masking.INSTRUMENT, run=lambda config: ran.append((config.processes, config.part))),
    )
    monkeypatch.setattr(sys, "argv", ["analyses", "masking", "--processes", "2", "--run", str(tmp_path)])
    assert cli.main() == 0
    assert [command[-3:] for command in ran[:2]] == [["--part", str(i), "2"] for i in range(2)]
    assert ran[2] == (2, (0, 1))
    repeated = masking.Config(processes=1, part=(1, 2))
    assert (
        cli.configured(
            masking.Config, ["--processes", "2", "--processes", "1", "--part", "1", "2"], "masking"
        )
        == repeated
    )


LEAVING = """
import atexit, sys, threading, time
from interp.system.processes import leave
atexit.register(lambda: print("cleaned up"))
threading.Thread(target=time.sleep, args=(0.1 if int(sys.argv[1]) < 128 else 600,)).start()  # what reads weights, say
print("said")
leave(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "status, said", [(0, "said\ncleaned up\n"), (1, "said\ncleaned up\n"), (130, "said\n"), (143, "said\n")]
)
def test_what_a_signal_has_stopped_waits_for_no_thread(status, said):
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(status)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status and done.stdout == said


class Unsendable(Exception):
    def __init__(self, *words):
        super().__init__("the game is over", threading.Lock())


class Game:
    """Does to its worker what it is told to."""

    def reset(self, what):
        os.kill(os.getpid(), signal.SIGKILL) if what == "killed" else os._exit(3) if what == "exit" else None
        if what == "unsendable":
            raise Unsendable
        return what


def test_a_worker_that_ends_while_it_plays_is_said_to_have():
    for order, words in (
        ("killed", r"was ended by signal 9 \(SIGKILL\), as the system does where memory runs out"),
        ("exit", "ended with exit status 3"),
    ):
        with engines(Game, 2) as pool:
            assert pool.send({0: ("reset", "a"), 1: ("reset", "b")}) == {0: "a", 1: "b"}
            with pytest.raises(
                ChildProcessError, match=f"Worker process 2 of 2, which plays the games, {words}"
            ):
                pool.send({0: ("reset", "c"), 1: ("reset", order)})


def test_a_worker_that_was_killed_between_two_games_is_said_to_have_been():
    with engines(Game, 1) as pool:
        pool.send({0: ("reset", "a")})
        pool._processes[0].kill()
        pool._processes[0].join()
        with pytest.raises(
            ChildProcessError, match="Worker process 1 of 1, which plays the games, was ended by signal 9"
        ):
            pool.send({0: ("reset", "b")})


def test_an_error_that_cannot_be_sent_comes_in_its_words():
    with engines(Game, 1) as pool, pytest.raises(RuntimeError, match="Unsendable: .*the game is over"):
        pool.send({0: ("reset", "unsendable")})


def test_games_that_a_worker_cannot_make_are_refused(monkeypatch, tmp_path):
    module = ModuleType("only_here")
    module.Live = type("Live", (), {"__module__": "only_here"})
    monkeypatch.setitem(sys.modules, "only_here", module)
    with (
        engines(module.Live, 1) as pool,
        pytest.raises(
            ImportError, match=r"cannot be imported in a worker process \(No module named 'only_here'\)"
        ),
    ):
        pool.send({0: ("reset", "a")})
    with pytest.raises(
        ValueError,
        match="What makes the games cannot be sent to a worker process .*class or function of a module",
    ):
        Engines(lambda: None, 1)
    with pytest.raises(ValueError, match="1 worker process or more, not 0"):
        Engines(Game, 0)


def killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_recording_whose_worker_is_killed_is_a_sentence():
    with pytest.raises(ChildProcessError, match="A worker process, which plays the games, was ended"):
        record([1], killed, workers=1)


def test_cores_are_shared_with_the_processes_beside(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert own_cores() == cores()
    for given, own in (("1", 1), ("0", 1), ("10000", cores()), ("4,2", cores()), ("", cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert own_cores() == own


@pytest.mark.parametrize("into, status", [("/dev/full", 1), ("/dev/null", 0)])
def test_output_that_cannot_be_written_is_an_error(into, status):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(into, "w") as stream:
        command = [sys.executable, "-m", "analyses"]
        ended = subprocess.run(
            command, stdout=stream, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
    assert ended.returncode == status and ("cannot be written (No space left" in ended.stderr) == (
        status == 1
    )
