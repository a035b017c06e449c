"""Disk that activations take: the estimate against what is written, the refusal, what stays, half precision."""

import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import storing
from analyses.all import Config as Everything
from analyses.boundary import READ
from analyses.probes import Config as Probes
from analyses.transfer import Config as Transfer
from interp.engine.store import Store, capture_and_keep, rounded, stored_capture
from interp.results.queries import need
from interp.results.tables import read_table
from tests.command_line import main

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def shared(series_folder, corpus_file):
    return dict(series=series_folder, corpus=corpus_file, device="cpu", decisions=20, checkpoints=(0, 110))


@pytest.fixture(scope="module")
def options(series_folder, corpus_file):
    words = ("--series", series_folder, "--corpus", corpus_file, "--device", "cpu", "--decisions", 20)
    words += ("--checkpoints", 0, 110, "--draws", 20)
    return (*words, "--labels", "reference_target", "--fit_decisions", 60)


@pytest.fixture(scope="module")
def probed(options, tmp_path_factory):
    run = tmp_path_factory.mktemp("storing") / "run"
    assert main("probes", "--run", run, *options) == 0
    return run


def shards(run):
    return sorted(run.glob("activations/*/*/*.safetensors"))


def size(run):
    return sum(path.stat().st_size for path in shards(run))


def names(run):
    return {f"{path.parent.parent.name}/{path.parent.name}" for path in shards(run)}


def test_the_estimate_is_what_is_stored(probed, shared):
    config = Probes(run=probed, fit_decisions=60, **shared)
    estimate = storing.estimated(config, "probes")
    headers = 200 * len(shards(probed))
    assert estimate <= size(probed) <= estimate + headers
    assert storing.to_store(config, "probes") == 0, "it is there already"
    half = Probes(run=probed / "none", fit_decisions=60, activation_dtype="bfloat16", **shared)
    assert storing.estimated(half, "probes") == storing.to_store(half, "probes") == estimate / 2
    own = storing.estimated(Transfer(run=probed, **shared), "transfer")
    assert 0 < own < estimate and storing.estimated(config, "behaviour") == 0
    everything = Everything(run=probed, **shared)
    assert storing.estimated(everything, "all") >= estimate
    everything.skip = ("probes", "transfer", "mdl")
    assert storing.estimated(everything, "all") == 0


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9 - 5000, 5000))
    for name, flags in (("probes", options), ("all", options[:8])):
        assert main(name, "--run", tmp_path / "run", *flags) == 1
        said = capsys.readouterr().err
        assert "stored activations will take" in said and "KiB, and 4.9 KiB are free in" in said
        assert "--activation_dtype bfloat16 halves it" in said and not (tmp_path / "run").exists()
    trainings = ("--trainings", options[1], "--corpus", options[3])
    assert main("seeds", *trainings, "--run", tmp_path / "seeds") == 1
    assert "and 4.9 KiB are free" in capsys.readouterr().err
    monkeypatch.setattr(storing, "WORTH_SAYING", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 10**9))
    storing.check_room(Probes(run=tmp_path / "run"), 3 * 2**30 // 4)
    assert "stored activations will take 768.0 MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "keep, left",
    [
        ("none", set()),
        ("boundary", {f"checkpoint-{step}/{split}" for step in (0, 110) for split in ("in_domain", "out_of_domain")}),
    ],
)  # fmt: skip
def test_what_is_not_kept_is_given_back_and_tables_are_the_same(
    probed, options, tmp_path, keep, left, capsys
):
    run = shutil.copytree(probed, tmp_path / "run")
    assert names(run) == {
        f"{model}/{split}"
        for model in ("checkpoint-0", "checkpoint-110", "random")
        for split in ("in_domain", "out_of_domain", "train")
    }
    assert main("probes", "--run", run, *options, "--keep_activations", keep) == 0
    assert names(run) == left
    assert (run / "tables" / "probes.csv").read_bytes() == (probed / "tables" / "probes.csv").read_bytes()
    assert not [
        path for path in (run / "activations").rglob("*") if path.is_dir() and not any(path.iterdir())
    ]
    if keep == "none":
        assert not (run / "activations").exists() or not any((run / "activations").iterdir())


def test_half_precision_is_said_and_computed_apart(probed, options, tmp_path):
    run = shutil.copytree(probed, tmp_path / "run")
    assert main("probes", "--run", run, *options, "--activation_dtype", "bfloat16") == 0
    assert size(run) == pytest.approx(1.5 * size(probed), rel=0.05), "half as much again beside it"
    frame, made = read_table(run / "tables", "probes")
    before, whole = read_table(probed / "tables", "probes")
    assert (made["activation_dtype"], whole["activation_dtype"]) == ("bfloat16", "float32")
    assert made["config"]["activation_dtype"] == "bfloat16"
    where = dict(predictor="probe", metric="log_loss", step=110)
    assert not need(frame, **where)["value"].equals(need(before, **where)["value"]), "fitted again"
    a, b = (need(each, **where)["value"].to_numpy(dtype=float) for each in (frame, before))
    assert np.allclose(a, b, rtol=0.1)


@pytest.mark.parametrize(
    "sites, layers",
    [(["resid_post"], []), (["resid_pre", "resid_post", "mlp_out"], [1]), (["z"], [0, 1])],
)
def test_what_is_stored_is_chosen_and_analyses_read_the_same(
    probed, options, shared, tmp_path, sites, layers
):
    run = tmp_path / "run"
    chosen = ("--activation_sites", *sites, *(("--activation_layers", *layers) if layers else ()))
    given = dict(fit_decisions=60, activation_sites=tuple(sites), activation_layers=tuple(layers))
    config = Probes(run=run, **given, **shared)
    estimate = storing.estimated(config, "probes")
    assert estimate == storing.to_store(config, "probes") > 0
    assert main("probes", "--run", run, *options, *chosen) == 0
    assert (run / "tables" / "probes.csv").read_bytes() == (probed / "tables" / "probes.csv").read_bytes()
    assert estimate <= size(run) <= estimate + 200 * len(shards(run)) and not storing.to_store(
        config, "probes"
    )
    assert names(run) == names(probed)
    whole = Probes(run=run, fit_decisions=60, **shared)
    assert storing.to_store(whole, "probes") == storing.estimated(whole, "probes"), "other sites are no help"


def test_what_is_chosen_is_stored_once_with_its_own_numbers(llama, prompts, tmp_path):
    whole = stored_capture(tmp_path / "whole", llama, prompts[:5]).values
    for _ in range(2):
        read = capture_and_keep(tmp_path / "part", llama, prompts[:5], READ, READ[1:], [1])
        assert torch.equal(read, whole)
        manifest = (tmp_path / "part" / "manifest.jsonl").read_text().splitlines()
        assert len(manifest) == 1, "stored by the first"
    part = stored_capture(tmp_path / "part", llama, prompts[:5], READ[1:], [1])
    assert part.paths == ("stored",) * 5 and torch.equal(part.values, whole[:, 1:, 1:2])


@pytest.mark.parametrize(
    "chosen, sentence",
    [
        (("--activation_sites", "resid_end"), "There is no site 'resid_end': the sites are resid_pre, resid_mid"),
        (("--activation_sites", "blocks.1.hook_z"), "names a layer: name the site alone, and layers by --act"),
        (("--activation_layers", 1, 40), "--activation_layers: there is no layer 40: the model's layers are 0 to"),
    ],
)  # fmt: skip
def test_a_site_or_layer_that_there_is_not_is_refused_first(options, tmp_path, capsys, chosen, sentence):
    for name, flags in (("probes", options), ("all", options[:8])):
        assert main(name, "--run", tmp_path / "run", *flags, *chosen) == 1
        assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_store_holds_halves_and_gives_whole_numbers(llama, prompts, tmp_path):
    whole = stored_capture(tmp_path, llama, prompts[:5])
    half = stored_capture(tmp_path, llama, prompts[:5], stored_as=torch.bfloat16)
    assert half.values.dtype == torch.float32
    assert torch.equal(half.values, whole.values.to(torch.bfloat16).float())
    assert stored_capture(tmp_path, llama, prompts[:5]).paths == ("stored",) * 5
    assert len(Store(tmp_path, {}).manifest.read_text().splitlines()) == 2
    with pytest.raises(
        ValueError, match="1e[+]05 is stored in float16, which ends at 6.55e[+]04: store bfloat16"
    ):
        rounded(torch.tensor([1.0, 1e5]), torch.float16)


def test_what_is_stored_as_prompts_are_decoded_is_what_probes_read(probed, options, tmp_path):
    run = tmp_path / "run"
    assert main("behaviour", "--run", run, *options[:11], "--choices", 2, "--store_decoded") == 0
    stored = shards(run)
    assert names(run) == {
        f"checkpoint-{step}/{split}" for step in (0, 110) for split in ("in_domain", "out_of_domain")
    }
    assert main("probes", "--run", run, *options, "--store_decoded") == 0
    assert names(run) == names(probed)
    assert stored == [path for path in shards(run) if path.parent in {each.parent for each in stored}]
    ours, theirs = (read_table(each / "tables", "probes")[0] for each in (run, probed))
    assert list(ours) == list(theirs) and len(ours) == len(theirs)
    np.testing.assert_allclose(ours.value, theirs.value, atol=1e-3)
    none = tmp_path / "none"
    flags = ("--store_decoded", "--activation_layers", 0)
    assert main("behaviour", "--run", none, *options[:11], "--choices", 2, *flags) == 0
    assert not shards(none)


def test_what_cannot_be_stored_as_prompts_are_decoded_is_said_and_decoding_is_kept(
    options, tmp_path, monkeypatch, capsys
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "append", full)
    words = (*options[:11], "--choices", 2)
    assert main("behaviour", "--run", tmp_path / "run", *words, "--store_decoded") == 0
    said = capsys.readouterr().err
    assert "activations are not stored as prompts are decoded" in said and "No space left" in said
    assert main("behaviour", "--run", tmp_path / "plain", *words) == 0
    ours, theirs = (read_table(tmp_path / name / "tables", "behaviour")[0] for name in ("run", "plain"))
    pd.testing.assert_frame_equal(ours, theirs)


def test_a_disk_that_is_too_small_for_what_is_stored_as_prompts_are_decoded_is_refused(
    options, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9 - 5000, 5000))
    words = (*options[:11], "--choices", 2)
    assert main("behaviour", "--run", tmp_path / "run", *words, "--store_decoded") == 1
    assert "stored activations will take" in capsys.readouterr().err
    assert (
        main("behaviour", "--run", tmp_path / "run", *words, "--store_decoded", "--activation_layers", 0) == 0
    )
    assert main("behaviour", "--run", tmp_path / "run", *words) == 0
