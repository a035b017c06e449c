"""An environment of one's own: its name, its module, its functions and their sources; each fault is one
sentence."""

import importlib
import re
import sys
import textwrap

import pytest

from interp.environments.base import find
from interp.system import user_code
from interp.tasks.episodes import Decision

TASK = """
from interp.environments.base import Environment
from interp.tasks.episodes import Decision
ONE = Decision(({"role": "user", "content": "Go."},), "open", (), "e", 0, "", "", "in_domain")
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules into a folder of the path; they are forgotten afterwards, and between two writes."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def forget():
        for name in [n for n in sys.modules if n.split(".")[0] in names]:
            del sys.modules[name]

    def put(**files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/', 1)}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
            names.append(name.split("__")[0])
        forget()
        importlib.invalidate_caches()

    yield put
    forget()


@pytest.mark.parametrize(
    "name",
    [
        "..:x",
        ".mod:x",
        "mod:",
        ":x",
        ":",
        "",
        "mod",
        "a..b:x",
        "mod:x:y",
        "mod:a.b",
        "mod :x",
        "a/b:x",
        "mod:x()",
        "3:x",
        "\0:x",
        "é-:x",
    ],
)
def test_a_malformed_name_is_one_sentence(name):
    with pytest.raises(
        ValueError, match="There is no environment .*: there are any, .* or one of your own as MODULE:NAME"
    ):
        find(name)


def test_a_file_given_for_a_module_is_told_how_it_is_named():
    with pytest.raises(ValueError, match=r"as MODULE:NAME \(my_task:TASK, run where that file is\)"):
        find("folder/my_task.py:TASK")


@pytest.mark.parametrize(
    "body, words",
    [
        ("1 / 0", r"its module broken raises ZeroDivisionError \(division by zero\)"),
        ("def f(:", "its module broken raises SyntaxError"),
        ("raise SystemExit(3)", r"its module broken raises SystemExit \(3\)"),
        ("raise ValueError('two\\n\\nlines')", r"raises ValueError \(two lines\)"),
        (
            "import no_such_module_at_all",
            "needs the module 'no_such_module_at_all', which is not installed: its broken imports it",
        ),
        ("from interp import nothing_of_this_name", "raises ImportError"),
        ("while True: pass", "takes longer than 0.6 seconds to import"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_sentence(write, monkeypatch, body, words):
    monkeypatch.setattr(user_code, "SECONDS", 0.05)
    write(broken=body)
    with pytest.raises((ImportError, ValueError)) as error:
        find("broken:TASK")
    assert (
        "'broken:TASK'" in str(error.value)
        and re.search(words, str(error.value))
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    "parser, words",
    [
        (
            "lambda text: text[99]",
            "The parser of the environment 'own:TASK' raises IndexError on 'open': string index out of range",
        ),
        ("lambda text: 3", "The parser .* returns a int on 'open', and should return str or None"),
        ("lambda text: int(text)", "The parser .* raises ValueError on 'open': invalid literal"),
        ("lambda: 'open'", "The parser .* raises TypeError"),
        ("lambda text: text + '.'", "reads the recorded action 'open' of e#0 as 'open.'"),
        ("lambda text: endless()", "The parser .* takes longer than 0.05 seconds on 'open'"),
        (
            "lambda text: re.match('(o+|[a-z]+)*$', text * 20 + '!')",
            "The parser .* takes longer than 0.05 seconds on 'open'",
        ),
    ],
)
def test_a_parser_at_fault_is_one_sentence(write, monkeypatch, parser, words):
    monkeypatch.setattr(user_code, "SECONDS", 0.05)
    write(
        own=TASK
        + f"""
import re
def endless():
    while True:
        try:
            while True: pass
        except Exception:
            pass
TASK = Environment("own", decisions=lambda: [ONE], parse={parser})
"""
    )
    with pytest.raises(ValueError) as error:
        find("own:TASK").recorded()
    assert re.search(words, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "decisions, words",
    [
        (
            "lambda: 3",
            "The decisions of the environment 'own' could not be made: TypeError, 'int' object is not iterable",
        ),
        ("lambda: [{}['a']]", "could not be made: KeyError, 'a'"),
        ("lambda: None", "could not be made: TypeError"),
        ("lambda: open('no_such_file.jsonl')", "No such file or directory: 'no_such_file.jsonl'"),
    ],
)
def test_decisions_that_cannot_be_made_are_one_sentence(write, decisions, words):
    write(own=TASK + f"TASK = Environment('own', decisions={decisions})")
    with pytest.raises((ValueError, OSError), match=words):
        find("own:TASK").recorded()


def test_a_judge_and_a_class_at_fault_are_one_sentence(write):
    write(
        own=TASK
        + "TASK = Environment('own', is_correct=lambda d, a: None, classes=dict(first=lambda a: a[99]), task=lambda text: 3, swap_candidates=lambda d, among: 3)"
    )
    env = find("own:TASK")
    one = Decision(({"role": "user", "content": "Go."},), "open", (), "e", 0, "", "", "in_domain")
    for call, words in (
        (lambda: env.is_correct(one, "open"), "The judge of the environment 'own:TASK' returns a NoneType"),
        (lambda: env.classes["first"]("open"), "The class 'first' .* raises IndexError on 'open'"),
        (lambda: env.task("text"), "The task .* returns a int on 'text'"),
        (lambda: env.swap_candidates(one, [one]), "The swap_candidates .* returns a int"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert env.judge == "own.<lambda>"


def test_a_module_alone_keeps_the_hash_of_its_bytes(write, tmp_path):
    write(own=TASK + "import json, torch\nTASK = Environment('own')")
    import hashlib

    assert find("own:TASK").source == hashlib.sha256((tmp_path / "own.py").read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    "first, files, changed",
    [
        ("import helper", dict(helper="A = 1"), "helper"),
        ("from helper import A", dict(helper="A = 1"), "helper"),
        ("from helper import A", dict(helper="from deeper import A", deeper="A = 1"), "deeper"),
        ("from helper import A", dict(helper="import own\nA = 1"), "helper"),
        (
            "from parts.reading import A",
            dict(parts__reading="from .inner import A", parts__inner="A = 1"),
            "parts__inner",
        ),
        (
            "from parts import reading",
            dict(parts____init__="from parts.inner import A", parts__reading="", parts__inner="A = 1"),
            "parts__inner",
        ),
        ("import parts.reading", dict(parts____init__="A = 1", parts__reading=""), "parts____init__"),
        ("def late():\n    import helper", dict(helper="A = 1"), "helper"),
    ],
)
def test_a_changed_module_that_is_imported_is_another_source(write, first, files, changed):
    own = f"{first}\n{TASK}\nTASK = Environment('own')\n"
    write(own=own, stranger="B = 1", **files)
    before = find("own:TASK").source
    write(stranger="B = 2")
    assert find("own:TASK").source == before
    write(**{changed: files[changed] + "\nC = 2"})
    assert find("own:TASK").source != before


def test_a_module_of_a_package_is_read_with_what_it_imports(write):
    files = dict(
        pack____init__="",
        pack__task=f"from pack import reading\nfrom . import other\n{TASK}\nTASK = Environment('own')",
        pack__reading="A = 1",
        pack__other="",
    )
    write(**files)
    before = find("pack.task:TASK").source
    for name in ("pack__reading", "pack__other", "pack____init__"):
        write(**{name: files[name] + "\nC = 2"})
        after = find("pack.task:TASK").source
        assert after != before
        before = after


def test_a_guarded_function_leaves_the_clock_as_it_was(write):
    import signal

    write(own=TASK + "TASK = Environment('own')")
    before = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    assert find("own:TASK").parse(" open  it") == "open it"
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == before
