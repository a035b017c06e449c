"""The wheel: built, installed into an environment without the toolkit, and run from a folder of a user's own."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from interp.system.paths import ROOT

MEBIBYTE = 2**20
#: A user's folder whose names are also the toolkit's: imported, each would end the program.
OWN = ("analyses/__init__.py", "analyses/__main__.py", "interp/__init__.py", "tqdm.py", "json.py")
TASK = 'from interp.environments import Environment\nMINE = Environment("mine")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the files that are here."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("interp", "analyses"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, out], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment that has the wheel, and what it depends on from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-compile"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with files of the toolkit's names, an own task and a log."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in OWN:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('raise SystemExit("a file of the user was imported")\n')
    (folder / "my_task.py").write_text(TASK)
    turns = [dict(role="user", content="Go."), dict(role="assistant", content="go")]
    (folder / "log.jsonl").write_text(json.dumps(dict(messages=turns)) + "\n")
    return folder


def ran(folder, *command):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(OMP_NUM_THREADS="1")
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_wheel_holds_every_module_and_has_at_most_45_mebibytes(wheel):
    assert wheel.stat().st_size <= 45 * MEBIBYTE
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "interp").rglob("*.py")}
    modules |= {f"interp/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "analyses").rglob("*.py")}
    assert modules <= names, modules - names
    assert not {name for name in names if name.startswith(("analyses/", "tests/"))}
    for kept in ("interp/py.typed", "interp/report/templates/page.html", "interp/data/alfworld.jsonl.xz"):
        assert kept in names
    assert any(name.startswith("interp/analyses/pages/templates/") for name in names)


def test_no_module_of_the_analyses_imports_them_by_a_name_that_is_not_installed():
    for path in (ROOT / "analyses").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "analyses" for name in names), f"{path}:{node.lineno}"


def test_the_console_script_runs_where_a_user_has_files_of_the_same_names(installed, elsewhere):
    done = ran(elsewhere, installed / "interp-analyses", "import", "log.jsonl")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "decisions.jsonl: 1 decisions of 1 episodes (openai)" in done.stdout
    assert "Study them: interp-analyses all --decisions decisions.jsonl" in done.stdout
    done = ran(
        elsewhere,
        installed / "interp-analyses",
        "behaviour",
        "--environment",
        "my_task:MINE",
        "--choices",
        "-1",
    )
    assert done.returncode == 1 and done.stderr.startswith("error: --choices is a number from 0"), done.stderr


def test_chains_of_an_installed_command_line_import_the_toolkit_and_not_the_users_files(installed, elsewhere):
    code = (
        "import sys; from interp.analyses.chains import run_chains; "
        "sys.exit(run_chains([[['import', 'log.jsonl', '--out', f'{name}.jsonl']] for name in 'ab']))"
    )
    done = ran(elsewhere, installed / "python", "-P", "-c", code)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "a.jsonl").read_text() == (elsewhere / "b.jsonl").read_text() != ""
    hashes = (
        "from interp.system.sources import source_hash as h, _file; "
        "assert _file('analyses.study') and h('interp.analyses.study') == h('analyses.study') != ''"
    )
    assert ran(elsewhere, installed / "python", "-P", "-c", hashes).returncode == 0
