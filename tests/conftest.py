"""Small worlds for the tests: hand-made games, a tokenizer fitted on them, tiny random models and a tiny
trained series."""

import fcntl
import importlib
import os
import random
import shutil

# One thread each, also of processes that tests start: a test run is two processes on two cores.
for name, value in dict(
    HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error"
).items():
    os.environ.setdefault(name, value)

import jaxtyping
import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM

import tests.shapes  # noqa: F401  (before anything of interp, whose arrays it checks)

#: Packages whose arrays are checked: all others together would make the tests a third slower.
CHECKED = [f"interp.{name}" for name in ("engine", "measures", "probing", "stats")]
jaxtyping.install_import_hook(CHECKED, "tests.shapes.checked")

from interp.checkpoints.series import CheckpointSeries
from interp.models.hooked import HookedModel
from interp.prompts.format import PromptFormat
from interp.tasks.episodes import Episode, Step, save_episodes
from interp.training.trainer import Recipe, fit_tokenizer

torch.set_num_threads(1)
settings.register_profile("quiet", deadline=None, max_examples=40, print_blob=True)
settings.load_profile("quiet")

PLACES = ("drawer 1", "drawer 2", "drawer 3", "drawer 11", "shelf 1", "shelf 2", "desk 1")
THINGS = ("apple", "mug", "pen", "book")
TINY = Recipe(
    hidden=32,
    layers=3,
    heads=4,
    feed_forward=64,
    vocabulary=520,
    context=1024,
    base_steps=40,
    cot_steps=110,
    batch_tokens=1600,
    base_lr=1e-2,
    cot_lr=1e-2,
    checkpoints=(0, 20, 110),
)
#: Options of `analyses series` that train one condition once.
ONE_TRAINING = dict(conditions=("action_mask_0",), seeds=1, more=(), shipped="action_mask_0")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


#: Files that take half a minute or more, the dearest first, or one process would be left with one of them at
#: the end. The first trains the series that is shared; the second needs none, so that its process does not
#: wait for it.
LONG = (
    "test_masking",
    "test_notebooks",
    "test_patching",
    "test_cli",
    "test_plots",
    "test_organisms",
    "test_architectures",
    "test_scienceworld",
    "test_steering",
    "test_textworldexpress",
    "test_report",
    "test_alfworld",
    "test_series",
    "test_decode",
    "test_decisions",
    "test_attribution",
    "test_whole",
    "test_processes",
    "test_reinforcement",
    "test_side_by_side",
    "test_plots_masking",
    "test_training",
    "test_rendering",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU on this machine"))


def handmade(number: int, split: str, task_type: str = "pick_and_place_simple") -> Episode:
    """A game in the household's words, without the engine: search the drawers, take the thing, bring it to
    its place."""
    rng = random.Random(f"{split}/{number}")
    places = rng.sample(PLACES, len(PLACES))
    target, other = rng.sample(THINGS, 2)
    drawers = [p for p in places if p.startswith("drawer")]
    goal = rng.choice([p for p in places if not p.startswith("drawer")])
    content = {p: [] for p in places}
    where = rng.choice(drawers[:3])
    content[where] = [f"{target} 1", f"{other} 1"]
    task = f"Your task is to: put a {target} in {goal.split()[0]}."
    start = f"You are in a room. You see a {', a '.join(places)}. {task}"
    steps, here, held = [], "", ""

    def step(thought, action, observation):
        admissible = [f"go to {p}" for p in places if p != here] + [
            f"take {x} from {here}" for x in content.get(here, ())
        ]
        admissible += [f"move {held} to {here}"] if held and here else []
        trace = (
            f"Goal: {target} to {goal.split()[0]}. {f'I hold {held}' if held else 'Hands empty'}. {thought}"
        )
        steps.append(
            Step(
                trace + f" So {action}." * (rng.random() < 0.3),
                action,
                observation,
                action,
                tuple(admissible),
            )
        )

    for place in drawers[: drawers.index(where) + 1]:
        seen = ", ".join(f"a {x}" for x in content[place]) or "nothing"
        step(f"Next I check {place}.", f"go to {place}", f"You arrive at {place}. You see {seen}.")
        here = place
    step(
        f"{target} 1 is here, pick it up.",
        f"take {target} 1 from {here}",
        f"You pick up the {target} 1 from the {here}.",
    )
    held = f"{target} 1"
    step(f"Now it has to reach {goal}.", f"go to {goal}", f"You arrive at {goal}. You see nothing.")
    here = goal
    step(f"This is where {held} goes.", f"move {held} to {goal}", f"You move the {held} to the {goal}.")
    return Episode(f"{split}/{number}", split, task_type, number, task, start, tuple(steps), True)


SPLITS = dict(base=24, base_aimless=4, train=32, test_in_domain=10, test_out_of_domain=10)


@pytest.fixture(scope="session")
def episodes():
    """split -> hand-made episodes."""
    return {
        s: [
            handmade(
                i,
                s,
                "pick_two_obj_and_place"
                if s.endswith(("out_of_domain", "aimless"))
                else "pick_and_place_simple",
            )
            for i in range(n)
        ]
        for s, n in SPLITS.items()
    }


@pytest.fixture(scope="session")
def corpus_file(episodes, tmp_path_factory):
    return save_episodes(
        tmp_path_factory.mktemp("corpus") / "tiny.jsonl.xz", [e for group in episodes.values() for e in group]
    )


@pytest.fixture(scope="session")
def tokenizer(episodes):
    from analyses.shipped.series import texts

    return fit_tokenizer(texts(episodes), TINY.vocabulary)


@pytest.fixture(scope="session")
def fmt(tokenizer):
    return PromptFormat(tokenizer)


@pytest.fixture(scope="session")
def prompts(fmt, episodes):
    """The prompts of six episodes, ragged."""
    return [fmt.prompt(d) for e in episodes["test_in_domain"][:6] for d in e.decisions()]


def tiny_hf(architecture: str, tokenizer, attention: str | None = None, **extra):
    """A tiny random model, with weights large enough for its parts to matter."""
    shape = dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=1024,
        sliding_window=None,
    )
    own = {
        "Mistral": dict(sliding_window=40),
        "Gemma2": dict(sliding_window=40, query_pre_attn_scalar=8),
        "Gemma3Text": dict(
            sliding_window=40,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "GPTNeoX": dict(num_key_value_heads=None),
        "GPT2": dict(n_positions=1024, n_inner=64),
    }.get(architecture, {})
    options = (
        dict(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **(shape | own),
        )
        | extra
    )
    if architecture == "GPT2":
        options = {
            k: v
            for k, v in options.items()
            if k
            not in (
                "num_key_value_heads",
                "head_dim",
                "intermediate_size",
                "max_position_embeddings",
                "sliding_window",
            )
        }
    config = getattr(importlib.import_module("transformers"), f"{architecture}Config")(
        **{k: v for k, v in options.items() if v is not None or k == "sliding_window"}
    )
    torch.manual_seed(5)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    for parameter in hf.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return hf


#: Grouped heads, normed queries, windows everywhere and in some layers, soft caps, learned positions,
#: parallel residuals.
ARCHITECTURES = ("Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3Text", "GPT2", "GPTNeoX")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request, tokenizer):
    """A tiny random model of each supported family."""
    return HookedModel(tiny_hf(request.param, tokenizer), tokenizer)


@pytest.fixture(scope="session")
def llama(tokenizer):
    return HookedModel(tiny_hf("Llama", tokenizer), tokenizer, weights_hash="llama")


@pytest.fixture(scope="session")
def small(tokenizer, tmp_path_factory):
    """A Llama's folder, without a fault, for tests to copy."""
    folder = tmp_path_factory.mktemp("small") / "base"
    tiny_hf("Llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def series_folder(corpus_file, tmp_path_factory):
    """A series that `analyses series` trained in a few seconds, enough to close its tags.

    Once for all processes of a test run.
    """
    from analyses.shipped import series

    own = tmp_path_factory.getbasetemp()
    work = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "trained_series"
    with open(work.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not (work / "done").exists():
            series.run(
                series.Config(
                    work=work, out=work / "out", corpus=corpus_file, recipe=TINY, device="cpu", **ONE_TRAINING
                )
            )
            (work / "done").touch()
    return work / "out"


@pytest.fixture
def copied(series_folder, tmp_path):
    """The series in a folder of one's own, to damage."""
    return shutil.copytree(series_folder, tmp_path / "series")


@pytest.fixture(scope="session")
def series(series_folder):
    return CheckpointSeries.discover(series_folder)


@pytest.fixture(scope="session")
def trained(series):
    return series.load(series.steps[-1], "cpu", "float32")


@pytest.fixture(scope="session")
def trained_prompts(trained, episodes):
    form = PromptFormat(trained.tokenizer)
    return [form.prompt(d) for e in episodes["test_in_domain"] for d in e.decisions()]


@pytest.fixture
def no_browser(monkeypatch, tmp_path):
    """An environment in which no browser is found, so that a draw costs no rendering."""
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser-here"))


@pytest.fixture(scope="session")
def browser():
    """Chromium, started once."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def engine():
    """Skips where the household's engine is not installed."""
    reason = "the ALFWorld engine is not installed (pip install 'interp-agents[alfworld]')"
    for name in ("textworld", "alfworld", "fast_downward"):
        pytest.importorskip(name, reason=reason)
