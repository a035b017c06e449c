"""Archives and other files given for decisions: damage, bombs, other formats and kinds of file are told in a
sentence; advice works."""

import bz2
import gzip
import json
import lzma
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.system import unpacking
from interp.tasks import json_lines
from interp.tasks.episodes import Episode, Step, load_episodes, save_episodes
from tests.tasks.test_bad_decisions import GOOD, put, row, text

FIRST, SECOND = (lzma.compress((line + "\n").encode()) for line in GOOD.splitlines())


def refused(path, words):
    with pytest.raises((ValueError, OSError)) as error:
        load_episodes(path)
    sentence = str(error.value)
    assert (
        str(path) in sentence and re.search(words, sentence) and "\n" not in sentence and len(sentence) < 700
    ), sentence
    return sentence


@pytest.mark.parametrize(
    "data", [FIRST + SECOND, FIRST + b"\0" * 8 + SECOND + b"\0" * 4, FIRST + lzma.compress(b"") + SECOND]
)
def test_streams_one_after_the_other_are_read(tmp_path, data):
    assert load_episodes(put(tmp_path / "d.jsonl.xz", data)) == load_episodes(
        put(tmp_path / "good.jsonl", GOOD)
    )


@pytest.mark.parametrize(
    "name, data, words",
    [
        (
            "the second stream's magic byte",
            FIRST + b"\xfc" + SECOND[1:],
            f"after line 1, in the part of the archive that begins at byte {len(FIRST)} ",
        ),
        ("rubbish after a stream", FIRST + b"rubbish", f"after line 1, .* begins at byte {len(FIRST)} "),
        ("a line end after a stream", FIRST + b"\n", f"after line 1, .* begins at byte {len(FIRST)} "),
        (
            "a cut second stream",
            FIRST + SECOND[:-8],
            f"after line 2, .* begins at byte {len(FIRST)} .it is cut off",
        ),
        ("padding of three bytes", FIRST + b"\0" * 3, "after line 1"),
        ("the first bytes alone", FIRST[:7], "after line 0, .* cut off"),
    ],
)
def test_a_damaged_stream_is_never_half_read(tmp_path, name, data, words):
    refused(put(tmp_path / "d.jsonl.xz", data), "is damaged " + words)


def test_an_archive_may_unpack_to_a_stated_size(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "LIMIT_MB", 1)
    packed = put(tmp_path / "bomb.jsonl.xz", lzma.compress(b"\n" * 2**21))
    plain = put(tmp_path / "large.jsonl", text([row(0)]) + "\n" * 2**21)
    refused(packed, r"unpacks to more than 0.\d+ MiB: give fewer decisions, or set INTERP_MAX_FILE_MB")
    refused(plain, "has 2.00 MiB, and may have 1.00 MiB: give fewer decisions, or set INTERP_MAX_FILE_MB")
    monkeypatch.setenv("INTERP_MAX_FILE_MB", "3")
    assert len(load_episodes(plain)) == 1
    refused(packed, "holds no episodes and no decisions")
    for wrong in ("0", "-1", "much", "1.5", "\u0663"):
        monkeypatch.setenv("INTERP_MAX_FILE_MB", wrong)
        with pytest.raises(ValueError, match="INTERP_MAX_FILE_MB is a whole number of MiB from 1 on"):
            load_episodes(plain)


def test_an_archive_may_ask_for_as_much_memory_as_is_stated(tmp_path):
    filters = [dict(id=lzma.FILTER_LZMA2, preset=1, dict_size=300 * 2**20)]
    refused(
        put(tmp_path / "d.jsonl.xz", lzma.compress(GOOD.encode(), filters=filters)),
        "asks for more than 256 MiB of memory",
    )


def zipped(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d.jsonl", GOOD)


def frame():
    return pd.DataFrame([json.loads(line) for line in GOOD.splitlines()])


def streamed(path):
    """A file as `datasets` keeps it."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pandas(frame())
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "name, write",
    [
        ("gzip", lambda path: path.write_bytes(gzip.compress(GOOD.encode()))),
        ("bzip2", lambda path: path.write_bytes(bz2.compress(GOOD.encode()))),
        ("lzma", lambda path: path.write_bytes(lzma.compress(GOOD.encode(), format=lzma.FORMAT_ALONE))),
        ("zip", zipped),
        ("parquet", lambda path: pytest.importorskip("pyarrow") and frame().to_parquet(path)),
        ("arrow", lambda path: pytest.importorskip("pyarrow") and frame().to_feather(path)),
        ("arrow", streamed),
    ],
)
def test_another_format_is_named_and_the_command_makes_a_file_that_is_read(tmp_path, name, write):
    path = tmp_path / "it's mine.jsonl"
    write(path)
    sentence = refused(path, f"is {name}, and should be .jsonl or .jsonl.xz")
    made(tmp_path, sentence)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_named_and_the_command_makes_a_file_that_is_read(tmp_path, indent):
    path = put(
        tmp_path / "it's mine.json",
        json.dumps([json.loads(line) for line in GOOD.splitlines()], indent=indent),
    )
    made(tmp_path, refused(path, "line 1: (there is a JSON list|a JSON value is spread over several lines)"))


def made(folder, sentence):
    """Run the command of a sentence, and hold what it wrote to the decisions."""
    command = re.search("`(.*)`", sentence).group(1).replace("python -c", f"{sys.executable} -c")
    ran = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    if "not found" in ran.stderr:
        pytest.skip(ran.stderr)
    assert ran.returncode == 0, ran.stderr
    assert load_episodes(folder / "it's mine-lines.jsonl") == load_episodes(put(folder / "good.jsonl", GOOD))


@pytest.mark.parametrize("name", ["decisions.jsonl", "decisions-lines.jsonl", "a.b.jsonl", ".jsonl", "lines"])
def test_a_command_never_writes_over_the_file_that_it_reads(name):
    *_, path, arrow, out = shlex.split(unpacking.command_of("gzip -dc < {path} > {out}", Path(name)))
    assert (path, arrow) == (name, ">") and out != name


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "away.jsonl").symlink_to(tmp_path / "none")
    refused(
        tmp_path / "pipe.jsonl", "is a named pipe, and should be a file: write what it gives to a file first"
    )
    refused(tmp_path / "loop.jsonl", "loop")
    refused(tmp_path / "away.jsonl", "No episodes at")
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match=f"{device} is a device"):
            load_episodes(device)
    refused(put(tmp_path / "empty.jsonl.xz", ""), "it is empty")
    if os.getuid():
        put(tmp_path / "closed.jsonl", GOOD).chmod(0)
        refused(tmp_path / "closed.jsonl", "Permission denied")


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
ACTIONS = st.lists(WORDS.filter(str.strip), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def corpora(draw):
    episodes = []
    for number in range(draw(st.integers(1, 3))):
        steps = [
            Step(draw(WORDS), draw(WORDS), draw(WORDS), listed[0], listed)
            for listed in draw(st.lists(ACTIONS, max_size=3))
        ]
        task = draw(WORDS)
        episodes.append(
            Episode(
                f"e{number}{draw(WORDS)}",
                "test_in_domain",
                draw(WORDS),
                draw(st.integers(-9, 9)),
                task,
                f"Go. {task}",
                tuple(steps),
                draw(st.booleans()),
            )
        )
    return episodes


@settings(max_examples=25)
@given(corpora())
def test_a_corpus_reads_back_equal(tmp_path_factory, episodes):
    path = tmp_path_factory.getbasetemp() / "corpus.jsonl.xz"
    assert load_episodes(save_episodes(path, episodes)) == episodes


@settings(max_examples=25)
@given(corpora(), st.booleans(), st.data())
def test_a_changed_byte_or_a_cut_is_a_sentence_or_without_effect(tmp_path_factory, episodes, packed, data):
    path = tmp_path_factory.getbasetemp() / ("changed.jsonl.xz" if packed else "changed.jsonl")
    whole = save_episodes(tmp_path_factory.getbasetemp() / "corpus.jsonl.xz", episodes).read_bytes()
    whole = whole if packed else lzma.decompress(whole)
    places = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=8, max_size=8)
    for at, flip in data.draw(places):
        put(path, whole[:at] + bytes([whole[at] ^ flip]) * (flip > 0) + whole[at + 1 :] * (flip > 64))
        try:
            found = load_episodes(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert found == episodes or not packed  # a changed letter of a plain text cannot be known


def test_a_file_may_hold_as_many_rows_as_is_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_ROWS", 3)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n \n{}\n\n  {}\r\n{}\n\n")
    assert [place.rsplit(" ")[-1] for place, _ in json_lines.lines(path)] == ["3", "5", "6"]
    path.write_bytes(path.read_bytes() + b"{}")
    with pytest.raises(
        ValueError,
        match=r"rows.jsonl has more than 3 lines, and may have 3: write those that are studied to a file of their own",
    ):
        next(json_lines.lines(path))
