"""A result's key knows the code that made it: an edited statement recomputes, an edited docstring does
not."""

import pytest

from interp.system import sources
from interp.system.sources import source_hash

FILES = {
    "interp/__init__.py": "",
    "interp/top.py": '"""Top."""\nfrom interp.low import one\n\n\ndef run():\n    """Run."""\n    from interp.late import two\n    return one() + two()\n',
    "interp/low.py": "def one():\n    return 1  # one\n",
    "interp/late.py": "from . import deep\n\n\ndef two():\n    return deep.TWO\n",
    "interp/deep.py": "TWO = 2\n",
    "interp/other.py": "X = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def edited(name, old, new):
        (tmp_path / name).write_text(FILES[name].replace(old, new))
        for kept in (sources.source_hash, sources._read):
            kept.cache_clear()
        found = source_hash("interp.top")
        (tmp_path / name).write_text(FILES[name])
        return found

    yield edited
    for kept in (sources.source_hash, sources._read):
        kept.cache_clear()


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("top", "one() +", "one() -"),
        ("low", "return 1", "return 3"),
        ("late", "deep.TWO", "deep.TWO + 1"),
        ("deep", "TWO = 2", "TWO = 4"),
    ],
)
def test_an_edited_statement_gives_another_key(package, name, old, new):
    before = package("interp/top.py", "", "")
    assert package(f"interp/{name}.py", old, new) != before


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("top", '"""Top."""', '"""What is on top."""'),
        ("top", '"""Run."""', '"""Runs."""'),
        ("low", "# one", "# the first number"),
        ("other", "X = 1", "X = 2"),
    ],
)
def test_an_edited_docstring_or_comment_or_another_module_does_not(package, name, old, new):
    before = package("interp/top.py", "", "")
    assert package(f"interp/{name}.py", old, new) == before


def test_code_of_ones_own_is_told_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "my_measure.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("my_measure")
    assert source_hash("my_measure") and source_hash("nowhere_to_be_found") == ""


def test_a_stage_is_keyed_by_its_instrument_and_what_it_decodes_with():
    assert source_hash("analyses.early") != source_hash("analyses.conflict")
    assert {"interp.engine.decoding", "interp.models.hooks"} <= set(_reached("analyses.study"))


def _reached(module):
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in found and (path := sources._file(name)):
            found.add(name)
            waiting += sources._read(path, name)[1]
    return found
