"""The recipe for a paper's own scale: its very commands on a tiny random Qwen3, with everything made small."""

import re
import shlex
import subprocess

import pytest

from interp.checkpoints.series import CheckpointSeries
from interp.system.paths import ROOT
from interp.tasks.episodes import save_episodes
from tests.command_line import main
from tests.conftest import tiny_hf
from tests.prompts.test_formats import tokenizer_of

PAGE = (ROOT / "docs" / "paper-scale.md").read_text()
BLOCKS = re.findall(r"<!-- dry run -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
SMALL = "--tuning.rank 2 --tuning.steps 2 --tuning.checkpoints 2 --tuning.context 3000 --tuning.batch_tokens 3000 --tuning.accumulate 1"
FEW = "--decisions 4 --action_tokens 4 --trace_tokens 6 --device cpu"
#: What is appended to a command, so that it takes seconds.
TINY = {
    "train": f"{SMALL} --seeds 1 --more_seeds 1 --device cpu",
    "measure": f"{FEW} --instruments --games 0",
    "reinforce": "--recipe.steps 1 --recipe.games 1 --recipe.generations 2 --recipe.step_limit 1 --recipe.trace_tokens 6 "
    "--recipe.games_held 2 --recipe.checkpoints 1 --recipe.rank 2 --recipe.no-vllm --workers 1 --device cpu",
    "behaviour": f"{FEW} --choices 2",
}


def commands(base):
    """Every command of the page as the shell expands it."""
    listing = 'python() { printf "%s\\n" "${*@Q}"; }'
    environment = dict(BASE=str(base), FORMAT="--style qwen3 --history_traces kept")
    for block in BLOCKS:
        said = subprocess.run(
            ["bash", "-c", f"{listing}\n{block}"], capture_output=True, text=True, check=True, env=environment
        ).stdout
        yield from (shlex.split(line) for line in said.splitlines())


@pytest.fixture
def tiny_qwen3(tmp_path):
    tokenizer = tokenizer_of("qwen", "qwen3")
    model = tiny_hf("Qwen3", tokenizer, max_position_embeddings=4096)
    model.save_pretrained(tmp_path / "Qwen3")
    tokenizer.save_pretrained(tmp_path / "Qwen3")
    return tmp_path / "Qwen3"


def test_the_commands_of_the_page_run_one_after_another(tiny_qwen3, episodes, tmp_path, monkeypatch, engine):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "paper").mkdir(parents=True)
    few = [e for split in ("train", "test_in_domain", "test_out_of_domain") for e in episodes[split][:6]]
    save_episodes(tmp_path / "runs" / "paper" / "alfworld.jsonl.xz", few)
    for _, _, name, *options in commands(tiny_qwen3):
        if name == "record":  # ALFWorld's own games, which are not shipped
            continue
        if name == "all":  # of which one analysis reads the model as the others do
            name = "behaviour"
        if name == "merge":
            options[options.index("--step") + 1] = "2"
        stage = options[1] if name == "masking" else name
        assert main(name, *options, *shlex.split(TINY.get(stage, ""))) == 0, (name, options)
    for k in ("0", "0.3"):
        assert CheckpointSeries.discover(tmp_path / "runs" / "paper" / f"rl_{k}").steps == [0, 1]
    assert (tmp_path / "runs" / "paper" / "study_dropout" / "tables" / "behaviour.csv").exists()
    assert (tmp_path / "runs" / "paper" / "masking" / "tables" / "masking.csv").exists()


def test_every_command_is_there():
    names = [command[2] for command in commands("base")]
    assert names == [
        "record",
        "masking",
        "merge",
        "masking",
        *["merge", "reinforce"] * 2,
        "all",
        "masking",
    ]
