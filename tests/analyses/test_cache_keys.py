"""What results on disk are kept by: everything that a model was loaded from, and every file of one's own
environment."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from analyses import __main__ as cli
from analyses.study import Study
from interp.engine import store
from interp.engine.store import stored_capture
from interp.environments.base import find
from tests.results.test_damage import PROMPTS, Stub, stub_capture


@pytest.fixture
def one(series_folder, tmp_path):
    """A series of one checkpoint, to change."""
    shutil.copytree(series_folder / "checkpoint-110", tmp_path / "series" / "checkpoint-110")
    return tmp_path / "series"


def with_json(name, **changes):
    def change(folder):
        path = folder / "checkpoint-110" / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **changes}))

    return change


def other_template(folder):
    path = folder / "checkpoint-110" / "chat_template.jinja"
    path.write_text(path.read_text() + "{# again #}")


def other_weights(folder):
    path = folder / "checkpoint-110" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


CHANGES = {
    "rope": (
        with_json(
            "config.json", rope_theta=500.0, rope_parameters=dict(rope_type="default", rope_theta=500.0)
        ),
        "config.json",
    ),
    "norm": (with_json("config.json", rms_norm_eps=0.1), "config.json"),
    "activation": (with_json("config.json", hidden_act="gelu"), "config.json"),
    "heads": (
        with_json("config.json", num_attention_heads=2, num_key_value_heads=2, head_dim=16),
        "config.json",
    ),
    "stop tokens": (with_json("generation_config.json", eos_token_id=[1, 2]), "generation_config.json"),
    "special tokens": (with_json("tokenizer_config.json", clean_up_tokenization_spaces=True), "tokenizer"),
    "template": (other_template, "chat template"),
    "weights": (other_weights, "weights"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_another_key_and_named(one, corpus_file, tmp_path, capsys, name):
    def key():
        study = Study(run=tmp_path / "run", series=one, corpus=corpus_file, device="cpu")
        study.stage("any", study.inputs(110), lambda: 1)
        return study.inputs(110)

    change, named = CHANGES[name]
    before = key()
    assert key() == before and not capsys.readouterr().err, "nothing changed"
    change(one)
    assert key() != before
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and f"its {named}" in said
        and str(one / "checkpoint-110") in said
        and str(tmp_path / "run") in said
    )
    key()
    assert not capsys.readouterr().err, "said once a result of it is kept"


def test_how_a_configuration_is_written_down_is_no_change(one, corpus_file, tmp_path, capsys):
    def key():
        study = Study(run=tmp_path / "run", series=one, corpus=corpus_file, device="cpu")
        study.stage("any", study.inputs(110), lambda: 1)
        return study.inputs(110)

    before, path = key(), one / "checkpoint-110" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert key() == before and not capsys.readouterr().err


def test_the_template_of_another_checkpoint_serves_and_counts(series_folder, corpus_file, tmp_path, capsys):
    series = shutil.copytree(series_folder, tmp_path / "series")

    def key():
        study = Study(
            run=tmp_path / "run", series=series, corpus=corpus_file, device="cpu", checkpoints=(110,)
        )
        study.stage("any", study.inputs(110), lambda: 1)
        return study.inputs(110)

    before, path = key(), series / "checkpoint-0" / "chat_template.jinja"
    path.write_text(path.read_text() + "{# again #}")
    with pytest.warns(UserWarning, match="chat template"):
        assert key() != before
    assert "chat template" in capsys.readouterr().err


def command(*arguments):
    before, sys.argv = sys.argv, ["analyses", *map(str, arguments)]
    try:
        return cli.main()
    finally:
        sys.argv = before


def test_a_run_taken_up_with_a_changed_configuration_is_the_fresh_runs(one, corpus_file, tmp_path, capsys):
    def behaviour(run):
        assert (
            command(
                "behaviour",
                "--run",
                tmp_path / run,
                "--series",
                one,
                "--corpus",
                corpus_file,
                "--device",
                "cpu",
                "--decisions",
                "6",
                "--choices",
                "2",
                "--splits",
                "in_domain",
            )
            == 0
        )
        return (tmp_path / run / "tables" / "behaviour.csv").read_bytes()

    old, config = behaviour("run"), (one / "checkpoint-110" / "config.json").read_bytes()
    CHANGES["rope"][0](one)
    new = behaviour("run")
    assert new == behaviour("fresh") != old
    assert capsys.readouterr().err.count("its config.json changed") == 1
    (one / "checkpoint-110" / "config.json").write_bytes(config)  # all of whose stages are kept
    for times in (1, 0):
        assert behaviour("run") == old
        assert capsys.readouterr().err.count("its config.json changed") == times


@pytest.mark.parametrize("change", [dict(rope_theta=500.0), dict(hidden_act="gelu"), dict(rms_norm_eps=0.5)])
def test_activations_of_another_configuration_are_not_used(tmp_path, monkeypatch, change):
    captured = []
    monkeypatch.setattr(
        store,
        "capture",
        lambda *given, **options: captured.append(len(given[1])) or stub_capture(*given, **options),
    )
    stored_capture(tmp_path, Stub(), PROMPTS)
    other, moved = Stub(), Stub()
    other.hf = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: dict(rope_theta=10000.0) | change))
    moved.hf = SimpleNamespace(
        config=SimpleNamespace(to_dict=lambda: dict(rope_theta=10000.0, _name_or_path="elsewhere"))
    )
    stored_capture(tmp_path, other, PROMPTS)
    stored_capture(tmp_path, moved, PROMPTS)
    assert captured == [9, 9], "where a configuration lies does not matter"


OWN = """
from interp.environments.base import Environment
{imports}

def parse(text):
    {inside}
    return words.parse(text)

TASK = Environment("hall", parse=parse)
"""
PLACES = {
    "a neighbour": ("my_hall", dict(imports="import my_words as words", inside="pass"), "my_words.py"),
    "inside a function": ("my_hall", dict(imports="", inside="import my_words as words"), "my_words.py"),
    "through another": (
        "my_hall",
        dict(imports="import my_steps.more", inside="words = my_steps.more.words"),
        "my_words.py",
    ),
    "in a package": (
        "my_rooms.my_hall",
        dict(imports="from . import my_words as words", inside="pass"),
        "my_rooms/my_words.py",
    ),
    "its package": (
        "my_rooms.my_hall",
        dict(imports="from .my_words import words", inside="pass"),
        "my_rooms/__init__.py",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_changed_helper_module_is_another_source(tmp_path, monkeypatch, name):
    module, texts, helper = PLACES[name]
    for path, text in {
        "my_words.py": "def parse(text): return text\n",
        "my_steps/__init__.py": "",
        "my_steps/more.py": "import my_words as words\n",
        "my_rooms/__init__.py": "",
        "my_rooms/my_words.py": "class words:\n    parse = str\ndef parse(text): return text\n",
        module.replace(".", "/") + ".py": OWN.format(**texts),
        "unread.py": "import nowhere\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def source():
        for known in [known for known in sys.modules if known.startswith("my_")]:
            del sys.modules[known]
        return find(f"{module}:TASK").source

    before = source()
    (tmp_path / "unread.py").write_text("changed = 1\n")
    assert source() == before
    (tmp_path / helper).write_text((tmp_path / helper).read_text() + "\n# another one\n")
    assert source() != before
    [sys.modules.pop(known) for known in list(sys.modules) if known.startswith("my_")]


@pytest.mark.parametrize(
    "label", ["../../../x_target", "/x_target", "a/../../../../x_target", "a\x00_target", "a\nb_target"]
)
def test_no_name_leads_out_of_the_runs_folder(tmp_path, label):
    study = Study(run=tmp_path / "run")
    with pytest.raises(ValueError, match="is no name of a file in"):
        study.stage(f"probes/110-{label}" if label[0] != "/" else label, {}, lambda: 1)
    assert not list(tmp_path.rglob("*.json"))
    assert study.stage("probes/110-in/side", {}, lambda: 1) == 1
