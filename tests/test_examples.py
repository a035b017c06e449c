"""Every example of a docstring runs, in a folder where the files that examples name are there, and shows what
it says it shows."""

import ast
import contextlib
import doctest
import importlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import interp
import tests.results.test_shown
from interp.plots import registry
from interp.results.decisions import write_decisions, write_records
from interp.system.paths import ROOT
from tests.analyses.test_direct import simulated
from tests.analyses.test_seeds import five, over
from tests.decision_rows import decision_rows
from tests.plots.test_plots import claims_table, diagnosis_table, elicited_table
from tests.results.test_records import cells

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
#: What an example needs that these tests do not have: another program, a cluster's folder, minutes of
#: training.
ELSEWHERE = {
    "interp.checkpoints.conversions": "a folder of another trainer",
    "interp.engine.vllm_backend": "vLLM",
    "interp.environments.alfworld.engine.Household": "a game's files",
    "interp.environments.bfcl.scoring": "the leaderboard's questions",
    "interp.environments.java": "Java",
    "interp.environments.scienceworld.environment": "Java",
    "interp.environments.textworldexpress.environment": "Java",
    "interp.models.architectures": "minutes",
    "interp.training.organisms": "minutes of training",
    "interp.training.reinforcement": "minutes of training",
    "interp.measures.features": "an autoencoder",
    "analyses.benchmarks.rivals": "the packages it is compared with",
    "analyses.progress": "processes",
    "analyses.shipped.packing": "SmolLM2's adapters",
    "interp.tasks.importers.inspect_logs": "a log of inspect",
}


def documented():
    """(dotted name, docstring) of every module, class and function whose docstring has an example."""
    for package in ("interp", "analyses"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    text = ast.get_docstring(node) or ""
                    if ">>>" in text:
                        yield pytest.param(
                            module, text, id=".".join([module, *([node.name] if node is not tree else [])])
                        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, series_folder, small, corpus_file):
    """A folder with the runs, tables and files that examples name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from interp.results.tables import write_table

    at = tmp_path_factory.mktemp("examples")
    shutil.copytree(series_folder, at / "runs" / "quick" / "series")
    shutil.copytree(ROOT / "figures" / "tables", at / "figures" / "tables")
    shutil.copytree(at / "figures" / "tables", at / "runs" / "quick" / "tables")
    for name in ("environments", "conditions"):
        shutil.copytree(ROOT / "figures" / name / "tables", at / "figures" / name / "tables")
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    hf = get_peft_model(AutoModelForCausalLM.from_pretrained(small), lora)
    hf.peft_config["default"].base_model_name_or_path = str(small)
    hf.save_pretrained(at / "runs" / "lora" / "checkpoint-100")
    shutil.copytree(at / "runs" / "lora" / "checkpoint-100", at / "checkpoint-100")
    (at / "checkpoint-100" / "training.json").write_text("{}")
    write_decisions(at / "runs" / "quick" / "tables", decision_rows(4), {})
    write_records(at / "runs" / "quick", cells(decision_rows(4)), {})
    trainings = five(at / "trainings", 0.1)
    write_table(at / "runs" / "seeds" / "tables", "seeds", over(trainings), {})
    for kept in (trainings[0] / "tables").glob("readings.*"):
        shutil.copy(kept, at / "runs" / "quick" / "tables")
    (at / "tools.json").write_text("[]")
    shutil.copy(corpus_file, at / "decisions.jsonl.xz")
    (at / "decisions.jsonl").write_text(json.dumps(dict(id="1", split="test_in_domain")))
    turns = [dict(role="user", content="Go."), dict(role="assistant", content="go")]
    (at / "rollouts.jsonl").write_text(json.dumps(dict(messages=turns)))
    pd.DataFrame([dict(prompt="Go.", completion="go")]).to_parquet(at / "rollouts.parquet")
    difference = dict(step=0, step_a=0, split="in_domain", metric="gap", paired=True, a=0.1, b=0.3)
    difference |= dict(value=0.2, low=0.1, high=0.3, n=9, n_groups=3)
    write_table(at / "runs" / "quick" / "tables", "claims", claims_table(), {})
    write_table(at / "runs" / "quick" / "tables", "elicited", elicited_table(), {})
    direct = simulated(1).assign(step=0, split="in_domain", where="decisions")
    write_table(at / "runs" / "quick" / "tables", "direct", direct, {})
    write_table(at / "runs" / "quick" / "tables", "diagnosis", diagnosis_table(), {})
    write_table(at / "runs" / "compare" / "tables", "compare", pd.DataFrame([difference]), {})
    return at


@pytest.fixture(scope="module")
def world(folder, small, tokenizer, trained, trained_prompts, episodes, fmt):
    """The names that examples use and that are not of their own module."""
    import plotly.graph_objects as go

    from analyses.study import Study
    from interp.checkpoints.contents import find
    from interp.checkpoints.headers import headers
    from interp.checkpoints.series import CheckpointSeries
    from interp.engine.capturing import capture
    from interp.engine.decoding import decode
    from interp.measures.pairs import make_pairs
    from interp.plots.look import Look
    from interp.plots.theme import facets, panels
    from interp.probing.directions import orthogonal_directions
    from interp.probing.logistic import Fitter, grouped_splits, standardised
    from interp.prompts.styles import STYLES
    from interp.report import study
    from interp.results.names import STYLE
    from interp.results.tables import read_table
    from interp.tasks.episodes import load_corpus
    from interp.training.supervision import written

    decisions = [d for e in episodes["test_in_domain"] for d in e.decisions()]
    clean, corrupt, _ = make_pairs(trained_prompts[0].format, decisions, 6)
    code = np.arange(60) % 2
    labels = ["shelf" if c else "drawer" for c in code]
    acts = np.random.default_rng(0).normal(size=(60, 4, 8)).astype(np.float32) + code[:, None, None]
    group = np.arange(60) // 3
    direction = np.eye(trained.d_model, dtype=np.float32)[0]
    by_condition = pd.DataFrame(
        [
            dict(
                condition=name,
                seed=seed,
                game=str(game),
                item=f"{game}",
                value=float(game % 2 == 0),
                denominator=1.0,
            )
            for name in ("action_mask_0", "action_mask_0.3", "action_mask_0.7")
            for seed in range(3)
            for game in range(6)
        ]
    )
    everywhere = dict(
        interp=interp,
        np=np,
        pd=pd,
        Path=Path,
        CheckpointSeries=CheckpointSeries,
        find=find,
        decode=decode,
        read_table=read_table,
        tokenizer=tokenizer,
        fmt=fmt,
        model=trained,
        prompts=trained_prompts[:6],
        decision=decisions[0],
        clean=clean,
        corrupt=corrupt,
        acts=acts,
        labels=labels,
        episodes=[str(i) for i in group],
        texts=[f"a room {i}" for i in range(60)],
        code=code,
        group=group,
        n_classes=2,
        seed=0,
        groups=[str(i) for i in group],
        fitter=Fitter(code, group, 2, grouped_splits(group, 5, 0), 0),
        grouped_splits=grouped_splits,
        standardised=standardised,
        layers=range(4),
        correct_prompt=np.ones(60),
        correct_cot=(code == 1).astype(float),
        episode=[str(i) for i in group],
        token=7,
    )
    swept = interp.attribute(trained, clean, corrupt, minimum=0)
    own = {
        "interp.engine.activations": lambda: dict(capture=capture),
        "interp.environments.alfworld.traces": lambda: dict(load_corpus=load_corpus),
        "interp.training.parts": lambda: dict(episodes=episodes["train"][:2], written=written),
        "interp.measures.steered": lambda: dict(result=tests.results.test_shown.steering()),
        "interp.measures.sweep": lambda: dict(patch=interp.patch),
        "interp.plots.pictures": lambda: dict(
            frame=interp.patch(trained, clean[:1], corrupt[:1], minimum=0).to_frame()
        ),
        "interp.plots.results": lambda: dict(result=swept, outcomes=[tests.results.test_shown.outcome()]),
        "interp.plots.sweeps": lambda: dict(result=swept),
        "interp.checkpoints.checks": lambda: dict(checkpoint=find(small), headers=headers),
        "interp.checkpoints.notes": lambda: dict(CheckpointSeries=CheckpointSeries),
        "interp.measures.ablation": lambda: dict(direction=direction),
        "interp.measures.steered_answers": lambda: dict(direction=direction),
        "interp.measures.pairs": lambda: dict(decisions=decisions),
        "interp.environments.base": lambda: dict(recorded=lambda: decisions, Hall=object),
        "interp.environments.bfcl.calls": lambda: dict(
            functions=[
                dict(
                    name="get_weather",
                    parameters=dict(properties=dict(city=dict(type="string"), days=dict(type="integer"))),
                )
            ]
        ),
        "interp.measures.steering": lambda: dict(
            probe_direction=lambda *_: direction, orthogonal_directions=orthogonal_directions
        ),
        "interp.models.outputs": lambda: dict(
            hidden=torch.ones(1, 2, 3), weights=torch.ones(1), block=lambda hidden: (hidden, None)
        ),
        "interp.plots.arrange": lambda: dict(
            frame=read_table("figures/tables", "behaviour")[0], panels=panels
        ),
        "interp.plots.look": lambda: dict(frame=read_table("figures/tables", "behaviour")[0], panels=panels),
        "interp.plots.pgf": lambda: dict(figure=interp.figures.behaviour("figures"), Look=Look),
        "interp.plots.caption": lambda: dict(frame=read_table("figures/tables", "behaviour")[0]),
        "interp.plots.condition_panels": lambda: dict(frame=read_table("figures/tables", "masking")[0]),
        "interp.plots.export": lambda: dict(figure=go.Figure()),
        "interp.plots.latex": lambda: dict(frame=read_table("figures/tables", "masking")[0]),
        "interp.plots.registry": lambda: dict(
            reliance_caption=lambda frame: None,
            frame=read_table("figures/tables", "reliance")[0],
            provenance={},
        ),
        "interp.plots.series": lambda: dict(
            frame=read_table("figures/tables", "behaviour")[0], facets=facets, STYLE=STYLE
        ),
        "interp.plots.theme": lambda: dict(frame=read_table("figures/tables", "behaviour")[0]),
        "interp.probing.directions": lambda: dict(acts=acts[:, 0]),
        "interp.probing.metrics": lambda: dict(p=np.full((60, 2), 0.5), n_episodes=20),
        "interp.probing.pairwise": lambda: dict(
            chosen=["go to desk", "take pen"] * 30,
            rejected=["take pen", "go to desk"] * 30,
            previous_actions=["look"] * 60,
        ),
        "interp.probing.probes": lambda: dict(
            previous_actions=["look"] * 60,
            more_acts=acts,
            more_labels=labels,
            others=[f"another {i}" for i in group],
            more_texts=[f"a room {i}" for i in range(60)],
        ),
        "interp.probing.solver": lambda: dict(layer_0=acts[:, 0], layer_1=acts[:, 1]),
        "interp.probing.transfer": lambda: dict(
            acts_0=acts, acts_500=acts, labels_0=labels, labels_500=labels
        ),
        "interp.prompts.history": lambda: dict(STYLES=STYLES),
        "interp.prompts.stopping": lambda: dict(
            style=STYLES["tags"], encoder=trained_prompts[0].format.encoder
        ),
        "interp.system.options": lambda: dict(probe=interp.probe, acts=acts, labels=labels),
        "interp.prompts.rendering": lambda: dict(source="{{ messages[0].content }}"),
        "interp.prompts.templates": lambda: dict(STYLES=STYLES),
        "interp.report": lambda: dict(
            study=study.read("figures/tables", "figures", ["behaviour", "online"]),
            entries=[],
            names=["behaviour"],
            drawn=[],
            look=Look(),
        ),
        "interp.report.claims": lambda: dict(study=study.Read(dict(claims=claims_table()), {}, "")),
        "interp.report.viewer": lambda: dict(rows=decision_rows(2), made={}),
        "interp.results.headline": lambda: dict(study=study.read("figures/tables", "figures", ["behaviour"])),
        "interp.results.tables": lambda: dict(frame=pd.DataFrame(dict(step=[0], value=[1.0]))),
        "interp.stats.crossed": lambda: dict(frame=by_condition),
        "interp.system.user_code": lambda: dict(task=SimpleNamespace(parse=str)),
        "interp.tasks.rows": lambda: dict(
            row=dict(
                split="test_in_domain",
                messages=[dict(role="user", content="a")],
                reference="look",
                admissible=["look"],
            )
        ),
        "interp.training.elicitation": lambda: dict(prompts=trained_prompts[:12], others=trained_prompts[:2]),
        "interp.training.supervision": lambda: dict(episodes=episodes["train"][:2]),
        "analyses.partial": lambda: dict(
            folder="runs/new/tables", frame=pd.DataFrame(dict(step=[0])), provenance={}
        ),
        "analyses.kept": lambda: dict(
            config=Study(
                run=Path("runs/new"),
                series=Path("runs/quick/series"),
                corpus=Path("decisions.jsonl.xz"),
                decisions=4,
            ),
            decisions={},
        ),
        "analyses.storing": lambda: dict(
            config=Study(
                run=Path("runs/new"), series=Path("runs/quick/series"), corpus=Path("decisions.jsonl.xz")
            )
        ),
        "analyses.unchanged": lambda: dict(
            config=Study(run=Path("runs/new"), environment="any", corpus=Path("decisions.jsonl.xz"))
        ),
        "analyses.registry": lambda: dict(Config=object, run=print),
    }

    def names(module: str) -> dict:
        package = module.rpartition(".")[0]
        return everywhere | vars(importlib.import_module(module)) | own.get(module, own.get(package, dict))()

    return names


@pytest.mark.parametrize("module, text", documented())
def test_the_example_runs(module, text, folder, world, monkeypatch, request):
    if request.node.callspec.id in ELSEWHERE:
        pytest.skip(f"the example needs {ELSEWHERE[request.node.callspec.id]}")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "_FIGURES", dict(registry._FIGURES))  # what an example draws is its own
    monkeypatch.setenv("BROWSER_PATH", str(folder / "no-browser-here"))
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: None)
    names = world(module)
    for example in doctest.DocTestParser().get_examples(text):
        shown = _shown(example.source, names, bool(re.match(r"\w+Error: ", example.want)))
        if example.want:
            assert doctest.OutputChecker().check_output(example.want, shown, FLAGS), (
                f"{example.source}{shown}"
            )


def _shown(source: str, names: dict, fails: bool) -> str:
    """What a console shows after one statement, of an error that is shown its last line."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(source, "example", "single"), names)
    except Exception as error:
        if not fails:
            raise
        return f"{type(error).__name__}: {error}"
    return out.getvalue()
