"""What a run folder holds, damaged at random: without effect on any number, or named and computed again or
refused."""

import csv
import io
import json
import random
import re
import resource
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import __main__ as cli
from analyses.provenance import mixed
from analyses.study import Study
from interp.engine import store
from interp.engine.capturing import Activations
from interp.engine.store import stored_capture
from interp.prompts.text import TextPrompt
from interp.results.tables import _sealed, inside, read_table, seal_table, write_table
from interp.system.paths import ROOT
from tests.conftest import handmade

FIGURES = ROOT / "figures"
#: Errors that the command line prints as one sentence.
REFUSALS = (ValueError, OSError, NotImplementedError, ImportError)
FRAME = pd.DataFrame(
    dict(
        step=[0, 0, 20, 20],
        split=["in_domain", "out_of_domain"] * 2,
        metric="acc_cot",
        value=[0.25, 0.5, 0.625, 0.75],
        low=[0.1, 0.3, 0.5, 0.6],
        high=[0.4, 0.7, 0.8, 0.9],
        n=24,
        n_groups=10,
    )
)
MADE = dict(
    seed=0,
    weights={"0": "be207547ce593519"},
    config=dict(run="runs/quick", decisions=24),
    written="2026-11-26",
    seconds=1.5,
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A bit turned (half of the time), the end cut off, a byte left out, or bytes of something else in the
    middle."""
    at, kind = rng.randrange(len(content)), rng.random()
    if kind < 0.5:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind < 0.8:
        return content[:at]
    if kind < 0.9:
        return content[:at] + content[at + 1 :]
    return content[:at] + rng.randbytes(8) + content[at + 8 :]


def outcome(read, whole, names: tuple[str, ...], capsys) -> str:
    """What became of one damage; `whole` is what `read` returns without it, `names` what the sentence has to
    hold."""
    try:
        numbers, problem = read(), ""
    except REFUSALS as error:
        numbers, problem = None, str(error)
    said = "".join(capsys.readouterr()) + problem
    if problem:
        return (
            "refused, named"
            if any(name in said for name in names)
            else f"refused without the file's name: {problem[:200]}"
        )
    if numbers == whole:
        return "named, the same" if any(name in said for name in names) else "without effect"
    return "named" if any(name in said for name in names) else f"silent: {numbers}"[:400]


def tables(folder):
    write_table(folder, "behaviour", FRAME, MADE)

    def read():
        frame, made = read_table(folder, "behaviour")
        return frame.to_csv(), {key: made.get(key) for key in MADE}

    return read, [folder / "behaviour.csv", folder / "behaviour.json"], ()


def partials(folder):
    def read():
        study = Study(run=folder)
        return [
            study.stage(
                f"decoded/{name}",
                dict(weights=name),
                lambda: dict(rows=[[1, 2.5, None], [float(len(name)), -0.0, "go"]]),
            )
            for name in ("a", "bb")
        ]

    read()
    return read, sorted(folder.rglob("*.json")), ()


class Stub:
    """A model of nothing but a configuration, whose activations are its prompts' numbers."""

    n_layers, weights_hash, dtype, tokenizer = 2, "w", torch.float32, None
    hf = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: dict(rope_theta=10000.0)))


def stub_capture(model, prompts, sites, at, layers, traces=None, progress=False):
    values = torch.stack([torch.full((len(sites), len(layers), 3), float(p.ids[0])) for p in prompts])
    return Activations(
        values,
        tuple(sites),
        layers,
        tuple(p.hash for p in prompts),
        model.weights_hash,
        str(model.dtype),
        ("plain",) * len(prompts),
    )


PROMPTS = [TextPrompt((i,)) for i in range(9)]


def activations(folder):
    def read():
        first, second = (stored_capture(folder, Stub(), PROMPTS).values for _ in range(2))
        assert torch.equal(first, second), "what was captured again is found again"
        return first.tolist()

    read()
    return read, [folder / "manifest.jsonl", *sorted(folder.glob("*.safetensors"))], (str(folder),)


def checkpoint(folder):
    """One checkpoint, loaded as a study loads it: its prompts, what its model makes of them, and its text."""
    decisions = handmade(0, "test_in_domain").decisions()[:2]

    def read():
        study = Study(run=folder / "run", series=folder / "series", device="cpu", decisions=2)
        study.stage("any", study.inputs(study.steps[0]), lambda: 1)
        model = study.model(study.steps[0])
        ids = [study.format.prompt(decision).ids for decision in decisions]
        logits = [model.hf(torch.tensor([row])).logits.double().sum().item() for row in ids]
        return ids, logits, [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    read()
    files = sorted(path for path in (folder / "series").rglob("*") if path.is_file()) + sorted(
        (folder / "run").rglob("first_use/*.json")
    )
    return read, files, (str(folder / "series"),)


@pytest.mark.parametrize(
    "make, times", [(tables, 150), (partials, 120), (activations, 130), (checkpoint, 100)]
)
def test_500_damages_are_without_effect_or_named(make, times, tmp_path, series_folder, monkeypatch, capsys):
    monkeypatch.setattr(store, "capture", stub_capture)
    monkeypatch.setattr(store, "SHARD", 4)
    if make is checkpoint:
        shutil.copytree(series_folder / "checkpoint-110", tmp_path / "series" / "checkpoint-110")
    read, files, more = make(tmp_path)
    whole, good = read(), {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert read() == whole and not "".join(capsys.readouterr())
    rng, found, bad = random.Random(21), Counter(), []
    for number in range(times):
        path = files[number % len(files)]
        path.write_bytes(damaged(good[path], rng))
        what = outcome(read, whole, (path.name, *more), capsys)
        found[f"{path.name if make is checkpoint else path.suffix} {what.partition(':')[0]}"] += 1
        if what.startswith(("silent", "refused without")):
            bad.append((path.name, what))
        for file, content in good.items():
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
        for file in set(tmp_path.rglob("*")) - good.keys():
            file.unlink() if file.is_file() else None
    assert not bad, (bad[:5], dict(found))
    assert sum(found.values()) == times and len({what.split(" ", 1)[1] for what in found}) > 1, dict(found)


def limited(size: int):
    """Files of this process may grow to `size` bytes: a stand-in for a full disk."""

    @contextmanager
    def context():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return context()


def test_a_full_disk_is_named_by_path_and_leaves_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "capture", stub_capture)
    monkeypatch.setattr(store, "SHARD", 4)
    stored_capture(tmp_path / "acts", Stub(), PROMPTS[:4])
    write_table(tmp_path, "behaviour", FRAME, MADE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with limited(100):
        with pytest.raises(OSError, match=f"{tmp_path}/behaviour.csv cannot be written"):
            write_table(tmp_path, "behaviour", FRAME.assign(value=1.0), MADE)
        with pytest.raises(OSError, match=f"{tmp_path}/run/partial/decoded/a-.*json cannot be written"):
            Study(run=tmp_path / "run").stage("decoded/a", {}, lambda: "x" * 200)
        with pytest.raises(OSError, match=f"{tmp_path}/acts/.*safetensors cannot be written"):
            stored_capture(tmp_path / "acts", Stub(), PROMPTS)
    with limited(600), pytest.raises(OSError, match=f"{tmp_path}/acts/manifest.jsonl cannot be written"):
        stored_capture(tmp_path / "acts", Stub(), PROMPTS)
    assert {path: path.read_bytes() for path in before} == before and not list(tmp_path.rglob("*.tmp"))
    assert stored_capture(tmp_path / "acts", Stub(), PROMPTS).values[:, 0, 0, 0].tolist() == list(range(9))


def test_what_is_written_is_synced_before_it_is_moved(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("os.fsync", lambda descriptor: done.append("sync"))
    monkeypatch.setattr("os.replace", lambda old, new: done.append("move") or shutil.move(old, new))
    write_table(tmp_path, "behaviour", FRAME, MADE)
    assert done == ["sync", "move", "sync"] * 2, "the file, its place, and the folder that names it"


LINES = {
    "not UTF-8": b"\xff\xfe\n",
    "null": b"null\n",
    "a number": b"17\n",
    "a list": b"[1]\n",
    "no prompts": b'{"key": "k", "file": "f", "line": "x"}\n',
    "nested deep": b"[" * 100_000 + b"\n",
    "cut short": b'{"key": "cut sho',
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_manifest_that_is_none_is_left_out(tmp_path, monkeypatch, capsys, name):
    asked = []
    monkeypatch.setattr(
        store,
        "capture",
        lambda *given, **options: asked.append(len(given[1])) or stub_capture(*given, **options),
    )
    first = stored_capture(tmp_path, Stub(), PROMPTS[:4])
    with open(tmp_path / "manifest.jsonl", "ab") as stream:
        stream.write(LINES[name])
    assert torch.equal(stored_capture(tmp_path, Stub(), PROMPTS[:4]).values, first.values)
    stored_capture(tmp_path, Stub(), PROMPTS[4:])
    assert stored_capture(tmp_path, Stub(), PROMPTS).values[:, 0, 0, 0].tolist() == list(
        range(9)
    ) and asked == [4, 5]
    said = capsys.readouterr().out
    assert ("Line 2 of" in said and "manifest.jsonl is damaged" in said) == (name != "cut short"), (
        "a torn last line is simply not there"
    )


def test_one_hash_less_shifts_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "capture", stub_capture)
    stored_capture(tmp_path, Stub(), PROMPTS)
    manifest = tmp_path / "manifest.jsonl"
    entry = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(entry | dict(prompts=entry["prompts"][:2] + entry["prompts"][3:])) + "\n")
    assert stored_capture(tmp_path, Stub(), PROMPTS).values[:, 0, 0, 0].tolist() == list(range(9))


def test_a_changed_digit_of_a_partial_result_is_computed_again(tmp_path, capsys):
    study, calls = Study(run=tmp_path), []
    stage = partial(study.stage, "decoded/a", {}, lambda: calls.append(1) or [0.75])
    assert stage() == stage() == [0.75] and len(calls) == 1
    (path,) = tmp_path.rglob("*.json")
    for content in (
        path.read_text().replace("0.75", "0.76"),
        "",
        "null",
        "[]",
        '{"seconds": 1, "value": [0.76]}',
    ):
        path.write_text(content)
        assert (
            stage() == [0.75] and str(path) in (said := capsys.readouterr().err) and "computed again" in said
        )
    assert stage() == [0.75] and len(calls) == 6 and not capsys.readouterr().err


def test_a_table_that_was_cut_names_its_rows_and_one_that_was_edited_is_read_when_that_is_said(
    tmp_path, capsys
):
    folder = tmp_path / "tables"
    path = write_table(
        folder, "behaviour", FRAME, MADE | dict(command="python -m analyses behaviour --run r")
    )
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(
        ValueError,
        match=r"2 rows now, 4 then.*analyses seal --tables .*make it again with `python -m analyses behaviour --run r`",
    ):
        read_table(folder, "behaviour")
    assert len(read_table(folder, "behaviour", edited=True)[0]) == 2
    assert cli.run(["seal", "--tables", str(folder), "--names", "behaviour"]) == 0
    frame, made = read_table(folder, "behaviour")
    assert len(frame) == 2 and made["edited"] and made["seed"] == 0 and "seal" not in made
    assert cli.run(["seal", "--tables", str(folder)]) == 0 and read_table(folder, "behaviour")[1] == made
    with pytest.raises(FileNotFoundError, match="no table to seal"):
        cli.run(["seal", "--tables", str(tmp_path)])


def resaved(separator=",", encoding="utf-8", **options):
    """A table as a spreadsheet saves it."""

    def change(content: bytes) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=separator, **options).writerows(csv.reader(io.StringIO(content.decode())))
        return text.getvalue().encode(encoding)

    return change


RESAVED = {
    "lines of Windows": resaved(),
    "all quoted": resaved(quoting=csv.QUOTE_ALL),
    "a mark of its order": resaved(encoding="utf-8-sig"),
    "semicolons": resaved(";"),
    "UTF-16": resaved(encoding="utf-16"),
    "emptied": lambda content: b"",
    "a line doubled": lambda content: content + content.splitlines(keepends=True)[-1],
    "another table": lambda content: FRAME.assign(value=1.0).to_csv(index=False).encode(),
}


@pytest.mark.parametrize("how", RESAVED)
def test_a_table_that_a_spreadsheet_saved_is_refused_and_the_advice_works(tmp_path, how):
    path = write_table(tmp_path, "behaviour", FRAME.assign(note=["a,b", "=x", "\u00e9", "go"]), MADE)
    good = read_table(tmp_path, "behaviour")[0]
    path.write_bytes(RESAVED[how](path.read_bytes()))
    with pytest.raises(ValueError, match="is not the one that behaviour.json was written with") as caught:
        read_table(tmp_path, "behaviour")
    if how in ("UTF-16", "emptied"):
        assert "analyses seal" not in str(caught.value) and "save it as CSV in UTF-8" in str(caught.value)
        return
    if how == "semicolons":
        with pytest.raises(ValueError, match="behaviour.csv is separated by ';': save it with commas"):
            seal_table(tmp_path, "behaviour")
        path.write_bytes(resaved()(good.to_csv(index=False).encode()))  # the advice
    seal_table(tmp_path, "behaviour")
    frame, made = read_table(tmp_path, "behaviour")
    assert made["edited"] and frame.equals(good) == (how not in ("a line doubled", "another table"))


def test_a_table_of_an_older_release_is_read_and_sealed_without_being_called_edited(tmp_path):
    FRAME.to_csv(tmp_path / "behaviour.csv", index=False)
    with pytest.raises(FileNotFoundError, match="no provenance behaviour.json beside it"):
        read_table(tmp_path, "behaviour")
    (tmp_path / "behaviour.json").write_text(json.dumps(MADE))
    assert read_table(tmp_path, "behaviour")[1] == MADE
    seal_table(tmp_path, "behaviour")
    assert (
        read_table(tmp_path, "behaviour")[1] == MADE
        and json.loads((tmp_path / "behaviour.json").read_text())["seal"]["rows"] == 4
    )


def test_a_table_that_lost_its_seal_is_refused(tmp_path):
    write_table(tmp_path, "behaviour", FRAME, MADE | dict(versions=dict(interp="0.1.0")))
    made = json.loads((tmp_path / "behaviour.json").read_text())
    for lost in ({}, dict(seam=made["seal"])):
        kept = {key: value for key, value in made.items() if key != "seal"}
        (tmp_path / "behaviour.json").write_text(json.dumps(kept | lost))
        with pytest.raises(
            ValueError, match="behaviour.json has lost its seal.*analyses seal --tables .*make it again with"
        ):
            read_table(tmp_path, "behaviour")
    seal_table(tmp_path, "behaviour")
    assert read_table(tmp_path, "behaviour")[0].equals(FRAME)


def test_a_table_renamed_together_with_its_provenance_is_refused(tmp_path):
    write_table(tmp_path, "probes", FRAME, MADE)
    made = json.loads((tmp_path / "probes.json").read_text())
    (tmp_path / "probes.csv").rename(tmp_path / "transfer.csv")
    unnamed = made | dict(seal={key: value for key, value in made["seal"].items() if key != "name"})
    renamed = made | dict(seal=made["seal"] | dict(name="transfer"))
    for provenance, words in (
        (made, "was written as 'probes', not as transfer"),
        (unnamed, "is not as it was written"),
        (renamed, "is not as it was written"),
    ):
        (tmp_path / "transfer.json").write_text(json.dumps(provenance))
        with pytest.raises(ValueError, match=f"{words}.*analyses seal"):
            read_table(tmp_path, "transfer")
    seal_table(tmp_path, "transfer")
    assert read_table(tmp_path, "transfer")[1]["edited"]


def test_the_seal_of_an_older_table_gets_its_name_without_a_word(tmp_path):
    path = write_table(tmp_path, "behaviour", FRAME, MADE)
    older = _sealed(MADE, path.read_bytes(), None, len(FRAME), [])
    (tmp_path / "behaviour.json").write_text(json.dumps(older))
    assert "name" not in older["seal"] and read_table(tmp_path, "behaviour")[1] == MADE
    seal_table(tmp_path, "behaviour")
    assert json.loads((tmp_path / "behaviour.json").read_text())["seal"]["name"] == "behaviour"
    assert read_table(tmp_path, "behaviour")[1] == MADE


def test_the_committed_tables_are_as_they_were_written():
    files = sorted(FIGURES.rglob("*.csv"))  # a figure's own data has no provenance beside it
    sealed = [path for path in files if path.parent.name == "tables" or path.with_suffix(".json").exists()]
    assert len(sealed) > 50
    for path in sealed:
        assert json.loads(path.with_suffix(".json").read_text())["seal"]["name"] == path.stem, path
        read_table(path.parent, path.stem)


@pytest.mark.parametrize("names", [["=1+1", "-x", "+y", "@z"], ["'=a", "=a"], ["-1", "plain"]], ids=ascii)
def test_a_columns_name_is_no_formula_either_and_comes_back(tmp_path, names):
    frame = pd.DataFrame({name: ["a", "007", "7"] for name in names})
    path = write_table(tmp_path, "behaviour", frame, MADE)
    header = next(csv.reader(io.StringIO(path.read_text())))
    assert all(name == "-1" or name[0] not in "=+-@" for name in header)
    assert read_table(tmp_path, "behaviour")[0].equals(frame)


IDS = [
    '=HYPERLINK("http://x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "'=quoted",
    "''=twice",
    "'plain",
    "-0.5",
    "+3",
    "1e-3",
    "go to drawer 1",
    "a,b\nc",
]


def test_cells_that_a_spreadsheet_would_run_are_quoted_and_come_back(tmp_path):
    frame = pd.DataFrame(dict(game=IDS, item=range(len(IDS)), mixed=[1, *IDS[1:]]))
    write_table(tmp_path, "masking_decisions", frame, MADE)
    with open(tmp_path / "masking_decisions.csv", newline="") as stream:
        cells = [row["game"] for row in csv.DictReader(stream)]
    number = re.compile(r"[+-]?[\d.]+(e-?\d+)?")
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r" and not number.fullmatch(cell)]
    read = read_table(tmp_path, "masking_decisions")[0]
    assert read.game.tolist() == IDS and read.mixed.tolist() == ["1", *IDS[1:]]


@settings(max_examples=25)
@given(st.lists(st.text(st.sampled_from("=+-@'\t\r\n ,\"ab01NA"), min_size=1, max_size=4), min_size=1))
def test_any_text_comes_back(texts):
    with tempfile.TemporaryDirectory() as folder:
        write_table(folder, "t", pd.DataFrame(dict(text=[*texts, "word"])), {})
        assert read_table(folder, "t")[0].text.tolist() == [*texts, "word"]


def test_ids_that_look_like_numbers_or_like_nothing_stay_apart(tmp_path):
    ids = ["007", "7", "7.0", "NA", "null", "nan"]
    write_table(
        tmp_path,
        "masking_games",
        pd.DataFrame(
            dict(game=ids, condition=["", "", "a", "a", None, "b"], n=["0", "4", "0", "4", "0", "4"])
        ),
        MADE,
    )
    frame = read_table(tmp_path, "masking_games")[0]
    assert frame.game.tolist() == ids and frame.groupby("game").size().tolist() == [1] * 6
    assert frame.condition.isna().tolist() == [
        True,
        True,
        False,
        False,
        True,
        False,
    ] and frame.n.tolist() == [
        0,
        4,
        0,
        4,
        0,
        4,
    ]


@pytest.mark.parametrize("name", ["../t", "/t", "a/../../t", "", "a\x00"])
def test_a_table_is_written_nowhere_else(tmp_path, name):
    with pytest.raises(ValueError, match="is no name of a file in"):
        write_table(tmp_path / "run", name, FRAME, MADE) if name else inside(tmp_path, name)
    assert not list(tmp_path.rglob("*.*"))


def test_tables_of_several_studies_are_told_apart():
    made = dict(
        seed=0,
        dtype="torch.float32",
        device="cpu",
        corpus="c",
        format="f",
        weights={"0": "w", "20": "v"},
        identity={"0": dict(config="x"), "20": dict(config="x")},
    )
    same = dict(
        behaviour=made,
        probes=made | dict(threads=2, seconds=9),
        masking=dict(seed=5),
        bench=dict(seed=3, dtype="float16"),
    )
    assert mixed(same) == []
    for change, said in (
        (dict(seed=1), "the seed is 0 in behaviour and 1 in probes"),
        (dict(dtype="torch.bfloat16"), "the dtype is"),
        (dict(weights={"0": "w", "20": "other"}), "the weights of checkpoint 20 is"),
        (
            dict(weights={"20": "v", "40": "v"}),
            "the list of checkpoints is 0, 20 in behaviour and 20, 40 in probes",
        ),
        (dict(identity={"0": dict(config="y")}), "the config.json of checkpoint 0 is"),
        (dict(corpus="d"), "the corpus is"),
    ):
        found = mixed(same | dict(probes=made | change))
        assert len(found) == 1 and said in found[0] and "not of one study" in found[0]
    fewer = mixed(same | dict(probes=made | dict(weights={"20": "v"})))
    assert fewer == ["Not every table has all 2 checkpoints: probes only 20."]
