"""Flags that make no sense: one sentence that names the flag, at once, before a model is loaded; and any
other error is one sentence as well."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest

from analyses import __main__ as cli
from analyses import behaviour, command, running
from analyses.study import Study
from interp.checkpoints.series import SERIES, CheckpointSeries
from interp.system import limits
from interp.system.limits import Limits, Several
from interp.system.paths import ROOT

#: NAME and flags -> what the sentence says. FILE is a file, GONE is nothing, and `series=` and `corpus=` name
#: a tiny series and its corpus.
BAD = {
    # numbers out of their range
    "behaviour --choices -1": "--choices is a number from 0 to 100,000, not -1",
    "behaviour --choices 99999999999": "--choices is a number from 0 to 100,000, not 99,999,999,999",
    "behaviour --decisions -5": "--decisions is a number from 0",
    "behaviour --seed -1": "--seed is a number from 0 to 4,294,967,295, not -1",
    "behaviour --seed 4294967296": "--seed is a number from 0 to",
    "behaviour --trace_tokens 0": "--trace_tokens is a number from 1 to 100,000, not 0",
    "behaviour --trace_tokens -5": "--trace_tokens is a number from 1",
    "behaviour --action_tokens -1": "--action_tokens is a number from 1",
    "behaviour --checkpoints -1": "--checkpoints is a number from 0",
    "conflict --conflicts -1": "--conflicts is a number from 0",
    "early --points 1": "--points is a number from 2 to 100, not 1",
    "shares --decisions_read -1": "--decisions_read is a number from 0",
    "reliance --pairs -1": "--pairs is a number from 0",
    "own_traces --samples 0": "--samples is a number from 1 to 100, not 0",
    "patching --pairs 10000000": "--pairs is a number from 0 to 100,000, not 10,000,000",
    "patching --span_checkpoints 9": "--span_checkpoints is 9, but 3 checkpoints are studied",
    "probes --folds 0": "--folds is a number from 2 to 100, not 0",
    "probes --folds 1": "--folds is a number from 2",
    "probes --draws 0": "--draws is a number from 10",
    "probes --pairs -2": "--pairs is a number from -1 to 1,000, not -2",
    "transfer --draws -3": "--draws is a number from 10",
    "mdl --shares 0.5 0.2 1": "shares must rise from above 0 to 1",
    "mdl --shares 0 1": "shares must rise from above 0 to 1",
    "mdl --shares nan 1": "--shares is a number from 0 to 1, not nan",
    "online --games -1": "--games is a number from 0",
    "online --step_limit 0": "--step_limit is a number from 1 to 10,000, not 0",
    "online --step_limit -1": "--step_limit is a number from 1",
    "online --workers -1": "--workers is a number from 0 to 64, not -1",
    "online --workers 1000": "--workers is a number from 0 to 64",
    "online --online_checkpoints 1000": "--online_checkpoints is 1,000, but 3 checkpoints are studied",
    "steering --alphas inf": "--alphas is a number from -1,000 to 1,000, not inf",
    "steering --layer 99": "--layer is 99, but the model's blocks are 0 to 3",
    "steering --per_decision 21": "--per_decision is a number from 0 to 20",
    "all --choices -1": "--choices is a number from 0",
    "all --decisions_read -1": "--decisions_read is a number from 0",
    "all --online_checkpoints 1000": "--online_checkpoints is 1,000, but 3 checkpoints are studied",
    "all --pairs 1000000": "--pairs is a number from 0 to 100,000, not 1,000,000",
    "reliance --pairs 1000": r"--pairs is 1,000, but no split holds more than \d+ decisions",
    "conflict --conflicts 1000": "--conflicts is 1,000, but no split holds more",
    "steering --steered 1000": "--steered is 1,000, but no split holds more",
    "calibration --decisions 0": "--decisions is a number from 1",
    "calibration --seeds -1": "--seeds is a number from 0",
    "coverage --classes 1": "--classes is a number from 2",
    "coverage --clusters 0": "--clusters is a number from 2",
    "masking --seeds 0": "--seeds is a number from 1",
    "masking --part 2 2": "--part is a number from 0 on and how many parts there are",
    "masking --processes 0": "--processes is a number from 1 to 64",
    "masking_power --rate 0.9 --effects 0.2": "--effects has 0.2, which at --rate 0.9 leads to no rate between 0 and 1",
    "masking_power --game_sd -1": "--game_sd is a number from 0 to 10",
    "pace --threads 0": "--threads is a number from 1",
    "bench --budget 0": "--budget is a number from 0.001",
    "bench --shape.layers 0": "--shape.layers is a number from 1",
    "bench_gpu --lengths 7": "--lengths is a number from 16",
    "bench_gpu --device cpu": "There is no GPU to time",
    "series --recipe.base_steps 0": "--recipe.base_steps is a number from 1",
    "series --recipe.cot_lr -1": "--recipe.cot_lr is a number from 0 to 10",
    "series --recipe.cot_steps 100": "--recipe.checkpoints has 2,000, but the training takes 100 steps",
    "series --recipe.heads 3": "--recipe.heads is 3, which does not divide --recipe.hidden 128",
    "smollm2 --time 301": "--time is a number from 0 to 300",
    "record --workers -1": "--workers is a number from 1",
    "record --sizes.train -1": "--sizes.train is a number from 0",
    "reinforce --recipe.action_mask 2": "--recipe.action_mask is a number from 0 to 1, not 2",
    "reinforce --recipe.generations 1": "--recipe.generations is a number from 2",
    # given twice, or not at all
    "behaviour --checkpoints 110 110": "--checkpoints has 110 twice",
    "behaviour --splits in_domain in_domain": "--splits has 'in_domain' twice",
    "probes --labels eventual_verb eventual_verb": "--labels has 'eventual_verb' twice",
    "patching --sites resid_pre resid_pre": "--sites has 'resid_pre' twice",
    "patching --modes": "--modes needs at least one value",
    "steering --positions": "--positions needs at least one value",
    # names of nothing
    "patching --metrics nope": "invalid choice 'nope' for argument '--metrics'.*logit_diff.*See `python -m analyses patching --help`",
    "patching --sites resid_nope": "--sites: There is no site 'resid_nope'",
    "patching --spans cot": "invalid choice 'cot' for argument '--spans'",
    "conflict --inserted_traces nope": "invalid choice 'nope' for argument '--inserted-traces'",
    "masking --conditions nope": "--conditions: There is no condition 'nope'",
    "probes --labels eventuel_target": "--labels: There is no label 'eventuel_target': labels are eventual_CLASS.*and reference_CLASS",
    "probes --labels eventual_": "--labels: There is no label 'eventual_'",
    "probes --labels eventual_colour": "names no class 'colour' of an action: it has verb, target",
    "mdl --labels ../../../x_target": "--labels: There is no label '../../../x_target'",
    "transfer --labels eventual_../target": "--labels: There is no label 'eventual_../target'",
    "behaviour --device mps": "--device: There is no device 'mps': use auto, cpu, cuda or cuda:N",
    "behaviour --device xla": "--device: There is no device 'xla'",
    "behaviour --device cpu:x": "--device: There is no device 'cpu:x'",
    "behaviour --dtype float8": "invalid choice 'float8' for argument '--dtype'",
    "behaviour --style xml": "--style: There is no prompt style 'xml': there are tags",
    "behaviour --environment ..:x": "--environment: There is no environment '..:x'",
    "behaviour --environment nowhere": "--environment: There is no environment 'nowhere'",
    "behaviour --environment nowhere:x": "--environment: The environment 'nowhere:x' cannot be imported",
    "behaviour --environment sys:path": "--environment: 'path' of the module sys is a list",
    "behaviour --environment broken_world:X": "its module broken_world raises ZeroDivisionError",
    "behaviour --generator vllm": "vLLM is not installed",
    "behaviour --official --environment any": "has no official games",
    "behaviour --system \udcff": r"--system holds a character that is no text \('\\udcff'\)",
    "behaviour --checkpoints 7": "There is no checkpoint 7 in this series: it has 0, 20, 110",
    "behaviour --decisions 9999": "9999 decisions were asked for, but",
    "nope": "There is no analysis 'nope'",
    "architectures --nope": "Unrecognized options: --nope",
    # files and folders
    "behaviour --base GONE": "--base: there is no folder .*gone",
    "masking --base GONE": "--base: there is no folder .*gone",
    "behaviour --tools FILE": "file is empty, and should hold the list of function signatures",
    "behaviour --tools /dev/zero": "/dev/zero is a device, and should be a file",
    "behaviour --tools /": "/ is a folder, and should be a file",
    "behaviour --template thinking": "--template takes NAME=VALUE, such as enable_thinking=false, not 'thinking'",
    "masking --template thinking": "--template takes NAME=VALUE",
    "reinforce --template thinking": "--template takes NAME=VALUE",
    "reinforce --tools FILE": "file is empty, and should hold the list of function signatures",
    "behaviour --corpus /dev/zero": "/dev/zero is a device, and should be a file",
    "behaviour --corpus /proc/self/mem": "/proc/self/mem cannot be read",
    "behaviour --tools GONE": "--tools: there is no file or folder .*gone",
    "behaviour --run NONE": "--run is empty: name a file or folder \\(the current folder is `.`\\)",
    "behaviour --run=": "--run is empty",
    "behaviour --corpus NONE --system NONE": "--corpus is empty",
    "reinforce --work NONE": "--work is empty",
    "environments --runs . NONE": "--runs is empty",
    "figures --tables NONE --out x": "--tables is empty",
    "behaviour --run FILE": "--run .*file: .*file is a file, and should be a folder",
    "behaviour --run FILE/below": "--run .*below: .*file is a file, and should be a folder",
    "behaviour --run /proc/none": "--run /proc/none: nothing can be written in /proc",
    "behaviour --series GONE": "No checkpoint-N folders in .*gone",
    "behaviour --corpus GONE": "No episodes at .*gone",
    "behaviour --decisions GONE": "name a file: --decisions takes a number beside --corpus",
    "reinforce --start GONE": "--start: there is no file or folder .*gone",
    "environments --runs GONE": "--runs: there is no file or folder .*gone",
    "figures --tables GONE": "Missing from python -m analyses figures: --out PATH",
    # what cannot be parsed
    "behaviour --choices many": "Error parsing --choices: invalid literal for int.*See `python -m analyses behaviour --help`",
    "behaviour --choices": "--choices",
    "behaviour --nope 1": "Unrecognized options: --nope, 1",
    "behaviour extra": "Unrecognized options: extra",
    "behaviour --size huge": "invalid choice 'huge' for argument '--size'",
    "all --skip nothing": "'nothing' is no part of `all`, which runs behaviour",
    "figures --nope": "Missing from python -m analyses figures: --tables PATH",
}
#: Analyses without a series.
ALONE = (
    "coverage",
    "masking",
    "masking_power",
    "pace",
    "bench",
    "bench_gpu",
    "series",
    "smollm2",
    "record",
    "reinforce",
    "environments",
    "figures",
    "nope",
    "architectures",
    "calibration",
)


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["analyses", *map(str, arguments)])
    return cli.main()


@pytest.fixture(scope="module")
def series_folder(tmp_path_factory):
    """A series of three checkpoints, none of which is loaded here: the shipped ones under other numbers."""
    folder = tmp_path_factory.mktemp("series")
    for own, shipped in ((0, 0), (20, 150), (110, 2000)):
        (folder / f"checkpoint-{own}").symlink_to(SERIES / f"checkpoint-{shipped}")
    return folder


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.setattr(CheckpointSeries, "load", lambda *a, **o: pytest.fail("a model was loaded"))
    monkeypatch.delenv("INTERP_DEBUG", raising=False)


@pytest.mark.parametrize("line", BAD, ids=ascii)
def test_a_bad_flag_is_one_sentence_before_a_model_is_loaded(
    line, series_folder, corpus_file, tmp_path, monkeypatch, capsys, unloaded
):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken_world.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    name, *flags = (
        line.replace("FILE", str(tmp_path / "file")).replace("GONE", str(tmp_path / "gone")).split(" ")
    )
    flags = ["" if word == "NONE" else word for word in flags]
    own = (
        []
        if name in ALONE
        else ["--series", series_folder, "--corpus", corpus_file, "--run", tmp_path / "run"]
    )
    assert main(monkeypatch, name, *own, *flags) == 1
    out, said = capsys.readouterr()
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 600 and not out
    assert (
        "Traceback" not in said and "defect" not in said and said.isprintable() is False
    )  # only for its line's end
    assert said[:-1].isprintable() and not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=BAD[line]):
        raise ValueError(said)


#: Refused before torch is imported, which takes most of a refusal's seconds and memory.
LIGHT = (
    "behaviour --choices -1",
    "probes --labels eventuel_target",
    "online --workers -1",
    "reliance --pairs x",
    "early --points 1",
    "shares --decisions_read -1",
    "transfer --folds 0",
    "all --run /dev/null",
    "behaviour --corpus /dev/zero",
    "behaviour --dtype int4",
    "all --tools gone.json",
    "conflict --inserted_traces nope",
    "patching --sites resid_nope",
    "patching --metrics nope",
    "mdl --shares x",
    "mdl --draws 0",
    "steering --positions nope",
    "steering --per_decision 21",
    "calibration --organisms nope",
    "calibration --dtype int4",
    "coverage --classes 1",
    "masking --conditions nope",
    "masking --instruments nope",
    "masking --base gone",
    "masking --part 2 2",
    "masking_power --rate 2",
    "series --recipe.heads 3",
    "organisms --device mpx:",
    "smollm2 --time 301",
    "pace --conditions nope",
    "reinforce --recipe.generations 1",
    "record --workers -1",
    "environments --runs gone",
    "seal --tables",
)


def test_torch_is_not_imported_for_a_bad_flag():
    code = """
import sys
from analyses import __main__ as cli
for line in sys.argv[1:]:
    sys.argv[1:] = line.split()
    print(line, cli.main(), 'torch' in sys.modules, 'transformers' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, *LIGHT], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{line} 1 False False" for line in LIGHT], done.stderr


def test_there_are_at_least_sixty_kinds():
    assert len(BAD) >= 60


def test_a_model_is_loaded_where_nothing_is_wrong(
    series_folder, corpus_file, tmp_path, monkeypatch, unloaded
):
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        main(
            monkeypatch,
            "behaviour",
            "--series",
            series_folder,
            "--corpus",
            corpus_file,
            "--run",
            tmp_path,
            "--decisions",
            "4",
        )


def test_help_is_printed_and_ends_well(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        main(monkeypatch, "behaviour", "--help")
    assert not end.value.code and "--trace_tokens" in capsys.readouterr().out.replace("-tokens", "_tokens")


def test_python_is_told_as_well(series_folder, corpus_file):
    with pytest.raises(ValueError, match="--checkpoints has 110 twice"):
        Study(series=series_folder, corpus=corpus_file, checkpoints=(110, 110)).steps
    with pytest.raises(ValueError, match="--choices is a number from 0"):
        behaviour.Config(series=series_folder, corpus=corpus_file, choices=-1).steps


@dataclass
class Inner:
    share: Annotated[float, Limits(0, 1)] = 0.5


@dataclass
class Example:
    inner: Inner
    one: Literal["a", "b"] = "a"
    numbers: tuple[int, ...] = (1, 2)
    free: Annotated[tuple[int, ...], Several(twice=True, none=True)] = (1,)
    pair: tuple[int, int] = (1, 1)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (dict(), None),
        (dict(pair=(3, 3), free=(2, 2)), None),
        (dict(free=()), None),
        (dict(inner=Inner(1.5)), "--inner.share is a number from 0 to 1, not 1.5"),
        (dict(inner=Inner(float("nan"))), "--inner.share is a number from 0 to 1, not nan"),
        (dict(one="c"), "--one is one of a, b, not 'c'"),
        (dict(numbers=()), "--numbers needs at least one value"),
        (dict(numbers=(2, 2)), "--numbers has 2 twice"),
        (dict(numbers=(-1,)), "--numbers is a number from 0 to 1,000,000, not -1"),
        (dict(free=(float("inf"),)), "--free is a number from 0"),
    ],
)
def test_fields_are_held_to_their_types_and_limits(given, sentence):
    example = Example(**{"inner": Inner(), **given})
    if sentence is None:
        return limits.check(example)
    with pytest.raises(ValueError, match=sentence):
        limits.check(example)


@pytest.mark.parametrize(
    "error, words",
    [
        (
            ValueError("a sentence\nin\ttwo \x1b[31mlines\x00\u202e"),
            r"error: a sentence in two \x1b[31mlines\x00\u202e",
        ),
        (KeyError("There is no such thing."), "error: There is no such thing."),
        (
            OSError(28, "No space left on device", "/run/x"),
            "error: [Errno 28] No space left on device: '/run/x'",
        ),
        (
            KeyError("columns"),
            "error: behaviour failed, which is a defect of this program or of code of yours that it runs (test_flags.py",
        ),
        (
            AttributeError("'NoneType' object has no attribute 'ids'"),
            "error: behaviour failed, which is a defect",
        ),
        (ValueError(), "error: behaviour failed, which is a defect"),
        (RecursionError("maximum depth"), "error: behaviour failed, which is a defect"),
        (
            MemoryError("Unable to allocate 90 GiB"),
            "error: behaviour ran out of memory; finished stages are kept (MemoryError: Unable to allocate 90 GiB)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1"),
            "error: behaviour ran out of memory",
        ),
    ],
)
def test_every_error_is_one_line_that_says_whose_it_is(error, words, monkeypatch, capsys, tmp_path):
    def fail(config):
        raise error

    monkeypatch.delenv("INTERP_DEBUG", raising=False)
    monkeypatch.setattr(behaviour, "INSTRUMENT", replace(behaviour.INSTRUMENT, run=fail))
    monkeypatch.setattr(cli, "configured", lambda *given: None)
    monkeypatch.setattr(running, "check_values", lambda config: None)
    assert main(monkeypatch, "behaviour") == 1
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == 1 and said[:-1].isprintable()
    assert ("INTERP_DEBUG=1 shows where." in said) == ("defect" in words)
    monkeypatch.setenv("INTERP_DEBUG", "1")
    with pytest.raises(type(error)):
        main(monkeypatch, "behaviour")


def test_what_is_long_is_cut_and_says_by_how_much():
    words = command.sentence("The template wrote " + "x" * 50_000_000 + " and ended.")
    assert (
        len(words) < 1100
        and words.startswith("The template wrote xxx")
        and words.endswith("x and ended.")
        and "49,999,030 characters" in words
    )
