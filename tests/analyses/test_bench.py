"""Every tool of the benchmark equals the plain loop, and the table holds what it says."""

import pandas as pd
import pytest
import torch

from analyses.benchmarks import rivals, settings, works
from interp.results.tables import read_table
from tests.conftest import tiny_hf

SHAPE = settings.Shape(hidden=32, layers=3, heads=4, kv_heads=2, feed_forward=64, vocabulary=1024)
TOOLS = (*rivals.TOOLS[1:], works.Interp)


@pytest.fixture(scope="module")
def inputs():
    """ids, action, donor [layer, position, d_model], cells, prompts of several lengths, prompts that extend
    one another."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(100, (24,), generator=generator).tolist()
    donor = torch.randn(3, 20, 32, generator=generator)
    return (
        ids[:20],
        ids[20:],
        donor,
        [(0, 0), (2, 7), (1, 19), (2, 3)],
        [ids[:9], ids[3:12], ids[:5]],
        [ids[:n] for n in (5, 9, 20)],
    )


def results(tool, work, inputs):
    ids, action, donor, cells, ragged, steps = inputs
    return {
        "layer_sweep": lambda: tool.layer_sweep(ids, donor[:, -1], action),
        "grid": lambda: tool.grid(ids, donor, action, cells),
        "some_layers": lambda: tool.layer_sweep(ids, donor[:, -1], action, [2, 0]),
        "capture": lambda: tool.capture(ragged),
        "episode": lambda: tool.episode(steps),
    }[work]()


@pytest.fixture(scope="module", params=TOOLS, ids=lambda t: t.name)
def both(request, tokenizer):
    """The plain loop and a tool over the same weights."""
    if not rivals.installed(request.param):
        pytest.skip(f"{request.param.package} is not installed (pip install 'interp-agents[bench]')")
    hf = tiny_hf("Llama", tokenizer)
    return rivals.Plain(hf, works._tokenizer()), request.param(hf, works._tokenizer())


@pytest.mark.parametrize("work", ["layer_sweep", "some_layers", "grid", "capture", "episode"])
def test_every_tool_equals_the_plain_loop(both, work, inputs):
    plain, tool = both
    expected = results(plain, work, inputs)
    try:
        found = results(tool, work, inputs)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    assert expected.std() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_cached_loop_refuses_prompts_that_do_not_extend_one_another(tokenizer):
    with pytest.raises(ValueError, match="must extend one another"):
        rivals.Cached(tiny_hf("Llama", tokenizer), tokenizer).episode([[1, 2, 3], [1, 5, 3, 4]])


def test_the_table_has_its_columns_and_says_what_was_sampled(tmp_path):
    config = settings.Config(
        out=tmp_path,
        lengths=(16,),
        grid_tokens=6,
        captured=3,
        episode=(8, 20, 3),
        action=3,
        threads=1,
        shape=SHAPE,
        budget=1e-3,
        repeats=2,
        tools=("plain, cached prefix",),
        works=("layer sweep", "boundary capture", "layer x position grid", "episode", "swap a checkpoint"),
    )
    works.run_works(config)
    table, provenance = read_table(tmp_path, "bench")
    assert tuple(table.columns) == works.COLUMNS and provenance["threads"] == 1
    assert set(table.work) == set(config.works)
    assert {"plain", "interp", "plain, cached prefix"} <= set(table.tool)
    assert (table.seconds > 0).all() and not (table.max_difference > 1e-4).any()
    assert table.sampled.dropna().str.fullmatch(r"\d+ of \d+").all()
    sampled = table[(table.work == "layer x position grid") & (table.tool == "plain")]
    assert sampled.sampled.item().endswith("of 18")


def test_works_measured_again_leave_the_others_as_they_were(tmp_path):
    config = dict(
        out=tmp_path,
        lengths=(12,),
        captured=2,
        threads=1,
        shape=SHAPE,
        budget=0.01,
        repeats=1,
        tools=("plain, cached prefix",),
    )
    works.run_works(settings.Config(**config, works=("layer sweep", "boundary capture")))
    first, made = read_table(tmp_path, "bench")
    works.run_works(settings.Config(**config, works=("boundary capture",)))
    again, provenance = read_table(tmp_path, "bench")
    rows = [t[t.work == "layer sweep"].reset_index(drop=True) for t in (first, again)]
    pd.testing.assert_frame_equal(
        *rows, check_exact=True, check_dtype=False
    )  # a column without any value is read as numbers
    assert sorted(again.work) == sorted(first.work)
    assert (
        provenance["measured"].keys() == made["measured"].keys()
        and provenance["measured"]["layer sweep"] == made["measured"]["layer sweep"]
    )


def test_the_command_names_the_tools_that_there_are():
    assert settings.TOOLS == tuple(tool.name for tool in rivals.TOOLS)
