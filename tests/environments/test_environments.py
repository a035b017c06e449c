"""A task of one's own: the documentation's example from file to tables, and what is refused of an
environment."""

import json
import re
import sys

import pandas as pd
import pytest

from analyses import all as whole
from analyses.behaviour import measure
from analyses.study import Study
from interp.engine.decoding import Completion
from interp.environments.alfworld.commands import parse
from interp.environments.base import ANY, Environment, find
from interp.measures.pairs import make_pairs
from interp.results import tables
from interp.system.paths import ROOT
from interp.tasks.episodes import CORPUS, Decision
from tests.tasks.test_bad_decisions import GOOD, main, put, text

PAGE = ROOT / "docs" / "task.md"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The documentation's example as a module in the folder that the command line runs in."""
    (code,) = re.findall(
        r"<!-- own task -->\n```python\n(.*?)```\n<!-- end own task -->", PAGE.read_text(), re.DOTALL
    )
    (tmp_path / "my_task.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    return code


def module(tmp_path, monkeypatch, name, content):
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_documented_task_is_short_and_goes_from_its_file_to_tables(own, series_folder, tmp_path):
    assert len(own.splitlines()) < 70 and max(map(len, own.splitlines())) <= 100
    common = (
        "--environment",
        "my_task:TASK",
        "--series",
        series_folder,
        "--device",
        "cpu",
        "--checkpoints",
        "110",
        "--run",
        tmp_path / "run",
    )
    assert main("behaviour", *common, "--decisions", "12", "--choices", "4") == 0
    frame, provenance = tables.read_table(tmp_path / "run" / "tables", "behaviour")
    assert set(frame.split) == {"in_domain", "out_of_domain"} and {"acc_cot", "choice_prompt_sum"} <= set(
        frame.metric
    )
    assert (
        provenance["environment"]["name"] == "hall"
        and provenance["environment"]["source"]
        and provenance["corpus"]
    )
    assert main("online", *common, "--games", "4", "--step_limit", "3", "--workers", "1") == 0
    frame, provenance = tables.read_table(tmp_path / "run" / "tables", "online")
    assert set(frame.metric) == {"success", "steps", "tokens", "unparsed"} and provenance["games"] == "hall"
    assert (
        frame[(frame.metric == "steps") & (frame.split == "in_domain")].n.eq(4).all()
        and frame[frame.metric == "steps"].value.gt(0).any()
    )
    routed = ("--decisions", "12", "--games", "4", "--step_limit", "3", "--workers", "1", "--folds", "2")
    assert main("direct", *common, *routed) == 0
    frame, _ = tables.read_table(tmp_path / "run" / "tables", "direct")
    assert {"margin", "random", "oracle"} <= set(frame[frame["where"] == "decisions"].router)
    played = frame[frame["where"] == "games"]
    assert set(played.router) == {"at_once", "thinking", "margin", "random"}
    assert played[(played.split == "in_domain") & (played.metric == "success")].n.eq(4).all()


def test_the_documented_game_is_won_by_its_own_expert(own):
    env = find("my_task:TASK")
    groups = env.recorded()
    assert {s: len(g) for s, g in groups.items()} == dict(test_in_domain=200, test_out_of_domain=200)
    first, second = groups["test_in_domain"][:2]
    hall = env.live()
    view = hall.reset(first.episode)
    assert (
        view.admissible == first.admissible
        and env.task(view.text) == first.task
        and first.messages[0]["content"] == view.text
    )
    assert not hall.step("sing").done
    assert not hall.step(first.reference).won and hall.step(second.reference).won
    assert env.classes["target"](second.reference) in env.task(view.text)


def test_a_changed_module_is_another_source_and_another_stage(own, series_folder, tmp_path, monkeypatch):
    def study():
        monkeypatch.delitem(sys.modules, "my_task", raising=False)
        return Study(
            run=tmp_path, series=series_folder, environment="my_task:TASK", decisions=4, device="cpu"
        ).inputs(110, "in_domain")

    before = study()
    (tmp_path / "my_task.py").write_text(own + "\n\n# another parser, say\n")
    after = study()
    assert (
        before["decisions"] == after["decisions"]
        and before["parser"] != after["parser"]
        and before["parser"].startswith("interp.tasks.actions ")
    )


def test_the_shipped_study_is_alfworlds_and_its_stages_keep_their_keys(series_folder, corpus_file):
    study = Study(series=series_folder, corpus=corpus_file, device="cpu", decisions=8)
    assert (
        study.env is find("alfworld")
        and study.parse is parse
        and study.inputs(110, "in_domain")["parser"] == "interp.environments.alfworld.commands"
    )
    assert Study().env.name == "alfworld" and Study().file == CORPUS == Study(environment="alfworld").file


def test_recorded_decisions_of_any_kind_have_no_games(tmp_path):
    study = whole.Config(decisions=put(tmp_path / "d.jsonl", GOOD))
    assert study.env is ANY and "no games" in study.env.unplayable()
    assert (
        "not installed (pip)"
        in Environment("x", live=object, games=list, needs=("no_such_engine", "pip")).unplayable()
    )


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "household",
            "There is no environment 'household': there are any, alfworld, bfcl, bfcl_single, scienceworld, twc, cookingworld, or one of your own as MODULE:NAME",
        ),
        ("nowhere_at_all:TASK", "'nowhere_at_all:TASK' cannot be imported .*run where nowhere_at_all.py is"),
        (
            "broken:TASK",
            "'TASK' of the module broken is not there, and should be an interp.environments.base.Environment",
        ),
        ("broken:OTHER", "'OTHER' of the module broken is a int"),
        ("broken:needy", "no decisions: give a file|brings no recorded decisions"),
        (
            "broken:WRONG",
            "The parser of the environment 'wrong' reads the recorded action 'open' of e#0 as None",
        ),
        (
            "broken:TWICE",
            r"twice's decisions, number 2: step 0 of the episode 'e' is there already \(number 1\)",
        ),
        (
            "broken:TEXTS",
            "texts's decisions, number 1: there is a str, and should be an interp.tasks.episodes.Decision",
        ),
        ("broken:EMPTY", "empty's decisions: there are no episodes and no decisions"),
    ],
)
def test_an_environment_at_fault_is_one_sentence(series_folder, tmp_path, monkeypatch, capsys, name, words):
    module(
        tmp_path,
        monkeypatch,
        "broken",
        """
from interp.environments.base import Environment
from interp.tasks.episodes import Decision
ONE = Decision(({"role": "user", "content": "Go."},), "open", (), "e", 0, "", "", "in_domain")
OTHER = 3
needy = Environment("needy")
WRONG = Environment("wrong", decisions=lambda: [ONE], parse=lambda text: None)
TWICE = Environment("twice", decisions=lambda: [ONE, ONE])
TEXTS = Environment("texts", decisions=lambda: ["go"])
EMPTY = Environment("empty", decisions=list)
""",
    )
    if name == "broken:needy":
        with pytest.raises(ValueError, match=words):
            find(name).recorded()
        return
    assert (
        main(
            "behaviour",
            "--environment",
            name,
            "--series",
            series_folder,
            "--run",
            tmp_path / "run",
            "--device",
            "cpu",
        )
        == 1
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(words, error), error
    assert not (tmp_path / "run").exists()


def test_splits_have_the_names_that_the_environment_gives_them(tmp_path):
    rows = [json.loads(line) | dict(split="valid_unseen") for line in GOOD.splitlines()]
    file = put(tmp_path / "d.jsonl", text(rows))
    found = Environment("x", splits=dict(out_of_domain="valid_unseen")).recorded(file)
    assert set(found) == {"valid_unseen"} and isinstance(found["valid_unseen"][0], Decision)
    with pytest.raises(
        ValueError, match="has a split 'test': a study's splits are in_domain and out_of_domain"
    ):
        Environment("x", splits=dict(test="test"))


def test_decisions_is_a_number_or_a_file(tmp_path, capsys, series_folder):
    file = put(tmp_path / "d.jsonl", GOOD)
    assert Study(decisions=file).corpus == file and Study(decisions=file).decisions == 0
    assert Study(decisions=5, corpus=file).decisions == 5
    assert whole.Config(decisions=file).arguments(Study) == ["--store_decoded", "--corpus", str(file)]
    run = ("--run", tmp_path / "run", "--series", series_folder, "--device", "cpu", "--checkpoints", "110")
    assert main("behaviour", *run, "--decisions", file) == 0
    assert pd.read_csv(tmp_path / "run" / "tables" / "behaviour.csv").n.max() == 2
    capsys.readouterr()
    for given, words in (
        (("--decisions", file, "--corpus", file), "Both --decisions .* and --corpus .* name a file"),
        (("--decisions", "-3"), "--decisions is a number from 0 to 1,000,000, not -3"),
        (("--decisions", "1e3"), "No episodes at 1e3: give a .jsonl"),
    ):
        assert main("behaviour", *run, *given) == 1
        assert re.search(words, capsys.readouterr().err)


#: The documented hall, judged by the verb alone, with a sample of its actions, and with doors that can be
#: exchanged (or not).
OTHERWISE = """
from dataclasses import replace
from my_task import TASK, recorded

def same_verb(decision, action):
    return action.split()[0] == decision.reference.split()[0]

def doors(decision, decisions):
    own = decision.reference.split()[-2]
    return [(own, other) for other in ("red", "blue", "green", "black", "white") if other != own and other in decision.messages[0]["content"]]

def sampled():
    return [replace(d, admissible=d.admissible[-1:] if d.step else ()) for d in recorded()]

VERB = replace(TASK, is_correct=same_verb)
SAMPLE = replace(TASK, decisions=sampled, closed_actions=False)
BARE = replace(TASK, decisions=lambda: [replace(d, admissible=()) for d in recorded()])
DOORS = replace(TASK, swap_candidates=doors)
"""


def test_what_is_right_is_the_environments_to_say(own, series_folder, tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "otherwise", OTHERWISE)
    found = {}
    for name in ("my_task:TASK", "otherwise:VERB"):
        run = tmp_path / name.replace(":", "-")
        common = (
            "--series",
            series_folder,
            "--device",
            "cpu",
            "--checkpoints",
            "110",
            "--decisions",
            "20",
            "--choices",
            "20",
            "--run",
            run,
        )
        assert main("behaviour", "--environment", name, *common) == 0
        frame, provenance = tables.read_table(run / "tables", "behaviour")
        found[provenance["judge"]] = frame.groupby("metric").value.mean()
    exact, verb = found["interp.environments.base.as_recorded"], found["otherwise.same_verb"]
    assert verb.acc_cot > exact.acc_cot and verb.choice_prompt_sum > exact.choice_prompt_sum
    assert verb.parse_cot == exact.parse_cot and verb.revision == exact.revision


def test_revisions_between_two_right_actions_are_neutral_and_what_did_not_parse_is_never_judged():
    decisions = [
        Decision(({"role": "user", "content": "Go."},), "go a", (), f"e{i}", 0, "", "", "in_domain")
        for i in range(6)
    ]
    judged = []
    said = dict(
        prompt=["go a", "go a", "no", "no", None, "go a"], cot=["go b", "no", "go a", "never", "go b", None]
    )
    rows = measure(
        {m: [Completion((), None, a) for a in actions] for m, actions in said.items()},
        decisions,
        lambda d, a: judged.append(a) or a.startswith("go"),
        seed=0,
    )
    every = [r for r in rows if not r["metric"].endswith("_parsed")]
    value = {r["metric"]: round(r["value"] * 6) for r in every if r["metric"].startswith(("acc", "revision"))}
    assert value == dict(
        acc_prompt=3, acc_cot=3, revision=6, revision_helpful=2, revision_harmful=2, revision_neutral=2
    )
    assert len(judged) == 10 and all(type(a) is str and a for a in judged)


def test_where_a_sample_is_listed_candidates_are_also_what_was_recorded_and_said():
    decision = Decision(
        ({"role": "user", "content": "Go."},), "open", ("look", "open", "wait"), "e", 0, "", "", "in_domain"
    )
    whole, part = Environment("whole"), Environment("part", closed_actions=False)
    assert whole.candidates(decision, "sing", None) == ("look", "open", "wait")
    assert part.candidates(decision, "sing", None, "look", "sing") == ("open", "look", "wait", "sing")
    none = Decision(decision.messages, "open", (), "e", 0, "", "", "in_domain")
    assert whole.candidates(none, "sing") == () == part.candidates(none, "open", None) and part.candidates(
        none, "sing"
    ) == ("open", "sing")


def test_a_sample_is_chosen_from_and_its_conflicts_argue_for_any_action(
    own, series_folder, tmp_path, monkeypatch
):
    module(tmp_path, monkeypatch, "otherwise", OTHERWISE)
    found = {}
    for name in ("SAMPLE", "BARE"):
        common = (
            "--environment",
            f"otherwise:{name}",
            "--series",
            series_folder,
            "--device",
            "cpu",
            "--checkpoints",
            "110",
            "--decisions",
            "12",
            "--run",
            tmp_path / name,
            "--splits",
            "in_domain",
        )
        for analysis in (
            ("behaviour", "--choices", "12"),
            ("conflict", "--conflicts", "12", "--choices", "12"),
            ("early", "--conflicts", "12", "--choices", "12"),
        ):
            assert main(*analysis, *common) == 0
        found[name] = {
            n: tables.read_table(tmp_path / name / "tables", n)[0].set_index("metric")
            for n in ("behaviour", "conflict", "early")
        }
    sample, bare = found["SAMPLE"], found["BARE"]
    assert (
        "choice_prompt_sum" in sample["behaviour"].index
        and "choice_prompt_sum" not in bare["behaviour"].index
    )
    assert "area_distribution" in sample["early"].index and "area_distribution" not in bare["early"].index
    assert (
        set(sample["conflict"].query("metric == 'shift'").inserted_trace) >= {"other_state", "empty"}
        and "shift" not in bare["conflict"].index
    )
    assert "other_state" in set(sample["conflict"].inserted_trace) and "other_state" not in set(
        bare["conflict"].inserted_trace
    )
    argued = sample["conflict"].query("inserted_trace == 'other_state'").loc["mass_argued"]
    assert (
        argued.n == sample["conflict"].query("inserted_trace == 'other_state'").loc["follow"].n > 2
    )  # every argued action is a candidate


def test_names_are_exchanged_as_the_environment_says(own, fmt, series_folder, tmp_path, monkeypatch, capsys):
    module(tmp_path, monkeypatch, "otherwise", OTHERWISE)
    env = find("otherwise:DOORS")
    decisions = env.recorded()["test_in_domain"]
    clean, corrupt, _ = make_pairs(fmt, decisions, 8, swap_candidates=env.swap_candidates)
    assert len(clean) > 2 and all(
        c.decision.reference.split()[:-2] == t.decision.reference.split()[:-2] for c, t in zip(clean, corrupt)
    )
    assert all(c.decision.reference != t.decision.reference for c, t in zip(clean, corrupt))
    seen = []
    make_pairs(fmt, decisions[:3], 3, swap_candidates=lambda decision, among: seen.append(len(among)) or [])
    assert seen == [3, 3, 3]
    common = (
        "--series",
        series_folder,
        "--device",
        "cpu",
        "--checkpoints",
        "110",
        "--decisions",
        "8",
        "--pairs",
        "3",
    )
    for analysis in ("patching", "reliance"):
        assert main(analysis, "--environment", "otherwise:DOORS", "--run", tmp_path / "doors", *common) == 0
        assert (tmp_path / "doors" / "tables" / f"{analysis}.csv").exists()
        capsys.readouterr()
        assert main(analysis, "--environment", "my_task:TASK", "--run", tmp_path / "hall", *common) == 0
        assert (
            "left out: " in (error := capsys.readouterr().err)
            and "a counterfactual twin" in error
            and "no name to swap" in error
        )
