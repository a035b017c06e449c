"""The function-calling leaderboard: its ground truth through our scorer, hostile answers, splits, prompts,
and its conversations played."""

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from interp.engine.decoding import Completion
from interp.environments import base as environments
from interp.environments.bfcl.calls import NotCalls, bind, parse, read, written
from interp.prompts.format import PromptFormat
from interp.rollouts import play as rollout
from interp.rollouts.workers import engines
from tests.prompts.test_templates import text_of, tokenizer_of

FUNCTIONS = [
    {
        "name": "sort",
        "parameters": {
            "type": "dict",
            "properties": {"file_name": {"type": "string"}, "by": {"type": "array"}},
            "required": ["file_name"],
        },
    },
    {"name": "disk.usage", "parameters": {"type": "dict", "properties": {}, "required": []}},
]


@pytest.fixture(scope="module")
def bfcl():
    """Skips where the leaderboard's package is not installed."""
    from interp.environments.bfcl import environment as bfcl
    from interp.environments.bfcl import scoring as bfcl_scoring

    for name in ("bfcl_eval", "mpmath"):
        pytest.importorskip(
            name, reason=f"the leaderboard's package is not installed ({bfcl_scoring.INSTALL})"
        )
    return bfcl


@pytest.fixture(scope="module")
def scoring(bfcl):
    from interp.environments.bfcl import scoring as bfcl_scoring

    bfcl_scoring._package()
    return bfcl_scoring


# Calls as data


@pytest.mark.parametrize(
    "text, calls",
    [
        ("[]", []),
        ("sort(file_name='a')", [{"name": "sort", "arguments": {"file_name": "a"}}]),
        (
            "[sort('a', by=[-1, 2.5, (True, None)]), disk.usage()]",
            [
                {"name": "sort", "arguments": {"by": [-1, 2.5, [True, None]]}, "positional": ["a"]},
                {"name": "disk.usage", "arguments": {}},
            ],
        ),
        (
            '{"name": "sort", "parameters": {"file_name": "é", "by": [{"x": null}]}}',
            [{"name": "sort", "arguments": {"file_name": "é", "by": [{"x": None}]}}],
        ),
        (' [{"name": "disk.usage"}] ', [{"name": "disk.usage", "arguments": {}}]),
        ("sort(file_name='sort(é)\\n')", [{"name": "sort", "arguments": {"file_name": "sort(é)\n"}}]),
    ],
)
def test_calls_are_read_as_data_from_json_or_python(text, calls):
    assert read(text) == calls
    assert read(parse(text)) == calls and parse(parse(text)) == parse(text)


def test_positional_arguments_get_their_documented_names():
    assert bind(read("sort('a', [1])"), FUNCTIONS) == [("sort", {"file_name": "a", "by": [1]})]
    for text, why in (
        ("sort('a', file_name='b')", "given twice"),
        ("sort('a', [], 3)", "2 arguments, not 3"),
        ("sort(x=1)", "no argument 'x'"),
        ("ls()", "no function 'ls'"),
    ):
        with pytest.raises(NotCalls, match=why):
            bind(read(text), FUNCTIONS)


@pytest.mark.parametrize(
    "value", ["sort(x)", "a\\(b", 'it\'s "("', "('(", "sort (", ["f(", {"k(": "\\x28("}], -1.5, True]
)
def test_a_written_call_says_the_same_and_opens_no_bracket_in_a_literal(value):
    text = written("sort", {"file_name": value})
    assert text.count("(") == 1 and read(text) == [{"name": "sort", "arguments": {"file_name": value}}]


HOSTILE = {
    "import": "__import__('os').system('touch hacked')",
    "import as a call": "__import__(name='os')",
    "statement": "import os; os.system('touch hacked')",
    "dunder access": "sort.__class__.__bases__[0].__subclasses__()",
    "dunder as a name": "sort.__globals__.clear()",
    "attribute chain": "os.path.join.os.system('touch hacked')",
    "nested call": "sort(file_name=open('hacked', 'w').write('x'))",
    "nested documented call": "sort(file_name=sort('a'))",
    "eval": "eval('1')",
    "exec": "exec(\"open('hacked','w')\")",
    "lambda": "(lambda: open('hacked', 'w'))()",
    "lambda as an argument": "sort(file_name=lambda: 1)",
    "comprehension bomb": "sort(file_name=[x for x in range(10**9) for y in range(10**9)])",
    "generator": "sort(file_name=(x for x in range(10**9)))",
    "f-string": "sort(file_name=f\"{open('hacked', 'w')}\")",
    "format spec": "sort(file_name=f'{1:>999999999}')",
    "very long string": "sort(file_name='" + "a" * 5_000_000 + "')",
    "repetition": "sort(file_name='a' * 10**10)",
    "deep brackets": "sort(file_name=" + "[" * 5000 + "]" * 5000 + ")",
    "deep JSON": '{"name": "sort", "arguments": {"file_name": ' + "[" * 9000 + "]" * 9000 + "}}",
    "deep within the limits of JSON": '{"name": "sort", "arguments": {"file_name": '
    + "[" * 100
    + "]" * 100
    + "}}",
    "deep signs": "sort(file_name=" + "-" * 15000 + "1)",
    "deep attributes": "a" + ".a" * 9000 + "()",
    "NUL": "sort(file_name='a\x00')",
    "escaped control character": "sort(file_name='\\x1b[2J')",
    "turned text": "sort(file_name='\u202ea')",
    "half a surrogate": '{"name": "sort", "arguments": {"file_name": "\\ud800"}}',
    "look-alike function": "ｓort(file_name='a')",
    "look-alike letter": "sоrt(file_name='a')",
    "look-alike argument": "sort(ﬁle_name='a')",
    "star argument": "sort(*['a'])",
    "double star": "sort(**{'file_name': 'a'})",
    "walrus": "sort(file_name=(x := 'a'))",
    "walrus around": "(x := sort(file_name='a'))",
    "power": "sort(file_name=9**9**9)",
    "power without a call": "9**9**9",
    "huge whole number": "sort(file_name=" + "9" * 6000 + ")",
    "huge hexadecimal": "sort(file_name=0x" + "f" * 15000 + ")",
    "huge whole number in JSON": '{"name": "sort", "arguments": {"file_name": ' + "9" * 6000 + "}}",
    "infinity": "sort(file_name=1e999)",
    "infinity in JSON": '{"name": "sort", "arguments": {"file_name": Infinity}}',
    "bytes": "sort(file_name=b'a')",
    "a set": "sort(file_name={'a'})",
    "conditional": "sort(file_name='a') if 1 else exit()",
    "boolean": "sort(file_name='a') or exit()",
    "subscript": "[sort][0](file_name='a')",
    "await": "await sort(file_name='a')",
    "chained": "sort(file_name='a').upper()",
    "more after": "sort(file_name='a')\nopen('hacked', 'w')",
    "exit": "exit()",
    "private method": "_load_scenario(scenario={})",
    "private state": "sort.__self__(x=1)",
    "given twice": "sort(file_name='a', file_name='b')",
    "given twice in JSON": '{"name": "sort", "name": "exit", "arguments": {}}',
    "a name that is code": '{"name": "exit() or sort", "arguments": {"file_name": "a"}}',
    "an argument that is code": '{"name": "sort", "arguments": {"file_name=exit(), by": "a"}}',
    "arguments that are text": '{"name": "sort", "arguments": "file_name=exit()"}',
    "many calls": "[" + ",".join(["sort('a')"] * 1500) + "]",
    "prose": "I would sort the file.",
    "nothing": "",
}


@pytest.fixture(scope="module")
def forbidden():
    """Files opened for writing, processes, and connections since the list was last emptied (an audit hook
    cannot be taken out: it is turned off)."""
    seen, on = [], [True]

    def hook(event, args):
        written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if on and (
            written
            or event
            in (
                "os.system",
                "subprocess.Popen",
                "os.exec",
                "os.fork",
                "os.posix_spawn",
                "os.remove",
                "os.mkdir",
                "socket.connect",
            )
        ):
            seen.append((event, args))

    sys.addaudithook(hook)
    yield seen
    on.clear()


def test_the_hook_sees_what_the_answers_must_not_do(forbidden, tmp_path):
    forbidden.clear()
    (tmp_path / "written").write_text("x")
    (tmp_path / "folder").mkdir()
    assert [event for event, _ in forbidden] == ["open", "os.mkdir"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_wrong_and_does_nothing(scoring, bfcl, forbidden, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    entry = bfcl.entries("multi_turn_base")["multi_turn_base_0"]
    single, none = (
        bfcl.entries("simple_python")["simple_python_0"],
        bfcl.entries("irrelevance")["irrelevance_0"],
    )
    single, none = (replace(e, functions=(*e.functions, FUNCTIONS[0])) for e in (single, none))
    threads, keys = threading.active_count(), set(vars(scoring._package().utils))
    turns = [[bfcl.action([call]) for call in turn] for turn in entry.calls]
    turns[1].append(HOSTILE[name])
    forbidden.clear()
    found = [
        scoring.score_single(single, HOSTILE[name]),
        scoring.score_single(none, HOSTILE[name]),
        scoring.score_multi(entry, turns),
    ]
    assert not any(v.valid for v in found) and all(v.reason for v in found), found
    assert not forbidden and threading.active_count() == threads and not list(tmp_path.iterdir())
    assert set(vars(scoring._package().utils)) == keys
    game = bfcl.Conversation()
    game.reset(entry.id)
    view = game.step(HOSTILE[name])
    assert view.role == "tool" and "error" in json.loads(view.text) and not game.called and not forbidden


@pytest.mark.parametrize(
    "calls",
    [
        "power(base=9, exponent=387420489)",
        "logarithm(value=2.0, base=10.0, precision=1000000000)",
        "square_root(number=2, precision=100000000)",
        "round_number(number=5, decimal_places=-1000000000)",
    ],
)
def test_what_would_compute_for_hours_is_not_computed(scoring, bfcl, calls):
    entry = next(
        e for e in bfcl.entries("multi_turn_base").values() if "MathAPI" in e.setup["involved_classes"]
    )
    verdict = scoring.score_multi(entry, [[calls]] + [[] for _ in entry.turns[1:]])
    assert not verdict.valid and "at most 1000 is computed" in verdict.reason


def test_copies_of_copies_and_endless_turns_are_stopped(scoring, bfcl):
    entry = bfcl.entries("multi_turn_base")["multi_turn_base_0"]
    turns = [[f"cp(source='document', destination='d{i}')" for i in range(11)], [], [], []]
    assert "copied more than 10 times" in scoring.score_multi(entry, turns).reason
    assert "more than 40 steps" in scoring.score_multi(entry, [["ls()"] * 41, [], [], []]).reason
    game = bfcl.Conversation()
    game.reset(entry.id)
    views = [game.step("ls()") for _ in range(41)]
    assert not views[-2].done and views[-1].done and views[-1].score == 0


def test_the_package_leaves_nothing_behind(scoring, bfcl):
    """No state of a rollout, no stand-in module, no folder: the part that makes folders is never imported."""
    package, entry = scoring._package(), bfcl.entries("multi_turn_base")["multi_turn_base_0"]
    assert (
        "bfcl_eval.constants.model_config" not in sys.modules
        and "bfcl_eval.constants.eval_config" not in sys.modules
    )
    root = Path(package.utils.__file__).parents[3]
    assert not [f for f in ("result", "score", ".file_locks") if (root / f).exists()]
    import decimal

    import mpmath

    before = set(vars(package.utils)), mpmath.mp.dps, decimal.getcontext().prec
    maths = next(
        e for e in bfcl.entries("multi_turn_base").values() if "MathAPI" in e.setup["involved_classes"]
    )
    state, other = {}, {}
    scoring.execute(
        maths,
        [
            ("logarithm", dict(value=2.0, base=10.0, precision=3)),
            ("square_root", dict(number=2, precision=2)),
        ],
        {},
    )
    assert scoring.execute(entry, [("cd", {"folder": "document"}), ("mkdir", {"dir_name": "new"})], state)
    assert (
        "new" in scoring.execute(entry, [("ls", {})], state)[0]
        and "new" not in scoring.execute(entry, [("ls", {})], other)[0]
    )
    assert before == (set(vars(package.utils)), mpmath.mp.dps, decimal.getcontext().prec)


# The ground truth

#: Entries whose ground truth no answer meets: no possible value, or an argument that is not documented.
UNMET = {"live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_862-181-3", "live_multiple_964-207-0"}


def test_the_ground_truth_of_every_question_passes_and_other_answers_do_not(scoring, bfcl):
    for category in bfcl.SINGLE:
        found = bfcl.entries(category)
        if category == "live_relevance":
            continue
        wrong = {i for i, e in found.items() if not scoring.score_single(e, bfcl.action(bfcl.gold(e))).valid}
        assert wrong <= UNMET and len(wrong) <= 0.01 * len(found), (category, wrong)
        none = [scoring.score_single(e, "[]").valid for e in found.values()]
        assert all(none) if category.endswith("irrelevance") else not any(none)
        if not category.endswith("irrelevance"):
            for e in list(found.values())[:40]:
                (name, arguments), *rest = bfcl.gold(e)
                once = (name, arguments)
                for changed in (
                    [("no_" + name, arguments), *rest],
                    [(name, {**arguments, "unheard_of": 1}), *rest],
                    [once, *rest, once],
                ):
                    assert not scoring.score_single(e, bfcl.action(changed)).valid
    relevant = next(iter(bfcl.entries("live_relevance").values()))
    assert (
        scoring.score_single(relevant, json.dumps({"name": relevant.functions[0]["name"]})).valid
        and not scoring.score_single(relevant, "[]").valid
    )


def test_the_ground_truth_of_conversations_passes_and_a_missing_call_does_not(scoring, bfcl):
    everything = [e for category in bfcl.MULTI for e in bfcl.entries(category).values()]
    chosen = [everything[i] for i in np.random.default_rng(0).choice(len(everything), 100, replace=False)]
    turns = {e.id: [[bfcl.action([call]) for call in turn] for turn in e.calls] for e in chosen}
    wrong = [e.id for e in chosen if not scoring.score_multi(e, turns[e.id]).valid]
    assert set(wrong) <= {"multi_turn_miss_func_49"} and len(wrong) <= 1
    for entry in chosen[:30]:
        last = max(i for i, t in enumerate(turns[entry.id]) if t)
        assert not scoring.score_multi(
            entry, [[] if i == last else t for i, t in enumerate(turns[entry.id])]
        ).valid
        assert "turns" in scoring.score_multi(entry, turns[entry.id][:-1]).reason


# Decisions, prompts, splits


@pytest.fixture(scope="module")
def recorded(bfcl):
    return bfcl.BFCL.recorded()


def test_decisions_are_split_without_leaks(bfcl, recorded):
    assert set(recorded) == {"train", "test_in_domain", "test_out_of_domain"} and all(
        len(g) > 500 for g in recorded.values()
    )
    assert {d.task_type for d in recorded["test_out_of_domain"]} == {"multi_turn_long_context"}
    assert "multi_turn_long_context" not in {
        d.task_type for s in ("train", "test_in_domain") for d in recorded[s]
    }
    numbers = {
        s: {d.episode.rsplit("_", 1)[1] for d in g if d.task_type in bfcl.MULTI} for s, g in recorded.items()
    }
    assert not numbers["train"] & (numbers["test_in_domain"] | numbers["test_out_of_domain"])
    for shared in (lambda e: tuple(sorted(f["name"] for f in e.functions)), lambda e: json.dumps(e.asked(0))):
        sides = {}
        for category in bfcl.SINGLE:
            for e in bfcl.entries(category).values():
                assert sides.setdefault(shared(e), e.split) == e.split
    assert {bfcl.BFCL.classes["call"](d.reference) for d in recorded["test_in_domain"]} == {"call", "none"}
    games = bfcl.games("out_of_domain", 5, 0)
    assert games == bfcl.games("out_of_domain", 9, 0)[:5] != bfcl.games("out_of_domain", 5, 1)
    assert {g.rsplit("_", 1)[1] for g in games} <= numbers["test_out_of_domain"]


def test_an_answer_that_is_not_the_recorded_one_can_be_right(scoring, bfcl, recorded):
    """The checker judges questions; a step of a conversation is right where it is the ground truth's."""
    judge, seen = bfcl.BFCL.right, {}
    for d in recorded["test_in_domain"]:
        seen.setdefault(d.task_type, []).append(d)
    for category, decisions in seen.items():
        assert all(judge(d, d.reference) for d in decisions[:30]) and not any(
            judge(d, '{"name": "no_such_function", "arguments": {}}') for d in decisions
        )
        assert not any(judge(d, "[]") for d in decisions if d.reference != "[]")
    other = 0
    for d in seen["parallel"][:30]:  # in another order, and with another possible value
        calls = json.loads(d.reference)
        assert judge(d, json.dumps(calls[::-1])) and not judge(d, json.dumps(calls[:-1]))
    for d in seen["simple_python"]:
        (answer,) = bfcl.entries("simple_python")[d.episode].answers
        ((name, possible),) = answer.items()
        for argument, values in possible.items():
            if (
                len(values) > 1
                and argument in json.loads(d.reference)["arguments"]
                and all(type(v) is str and v for v in values)
            ):
                call = bfcl.action([(name, json.loads(d.reference)["arguments"] | {argument: values[1]})])
                other += call != d.reference and judge(d, call)
    assert other > 5
    step = next(d for d in seen["multi_turn_base"] if d.reference != "[]")
    call = json.loads(step.reference)
    assert judge(step, step.reference) and not judge(
        step, bfcl.action([(call["name"], call["arguments"] | {"unheard_of": 1})])
    )
    assert bfcl.BFCL.judge == "interp.environments.bfcl.environment.right" and not bfcl.BFCL.listed


def test_the_questions_alone_are_tested_ones_with_those_of_users_out_of_domain(bfcl, recorded):
    found = bfcl.BFCL_SINGLE.recorded()
    assert (
        set(found) == {"test_in_domain", "test_out_of_domain"}
        and environments.find("bfcl_single") is bfcl.BFCL_SINGLE
    )
    tested = {d.id: d for d in recorded["test_in_domain"] if d.task_type in bfcl.SINGLE}
    for split, live in (("test_in_domain", False), ("test_out_of_domain", True)):
        assert len(found[split]) > 400 and all(
            d.task_type.startswith("live_") is live and replace(d, split="test_in_domain") == tested[d.id]
            for d in found[split]
        )
        assert {bfcl.called(d.reference) for d in found[split]} == {"call", "none"}
    assert "live_relevance" not in {d.task_type for g in found.values() for d in g}
    curated, users = (
        {bfcl.groups()[d.episode] for d in found[split]} for split in ("test_in_domain", "test_out_of_domain")
    )
    assert not curated & users and sum(map(len, found.values())) > len(tested) - 10
    assert "no games" in bfcl.BFCL_SINGLE.unplayable()


@pytest.mark.parametrize(
    "style, template",
    [("tags", ""), ("qwen3_tools", ""), ("qwen3_tools", "qwen3.jinja"), ("tags", "qwen2_5.jinja")],
)
def test_decisions_render_in_both_styles_with_their_functions(bfcl, recorded, tokenizer, style, template):
    if template:
        pytest.importorskip("trl", reason="trl, which ships the chat templates, is not installed")
        tokenizer = tokenizer_of("qwen", text_of(template))
    fmt = PromptFormat(tokenizer, style=style)
    seen = {}
    for d in recorded["test_in_domain"]:
        seen.setdefault((d.task_type, d.reference == "[]"), d)
    assert len(seen) == 10 + 3 * 2  # conversations both call and end their turns
    for d in seen.values():
        prompt = fmt.prompt(d)
        text = fmt.text(prompt.ids)
        assert (
            '"parameters"' in text
            and d.task.strip() in text
            and d.messages[-1]["content"].strip() in text
            and prompt.spans[prompt.boundary] == "boundary"
        )
        said = fmt.style.turn(None, d.reference)
        assert fmt.style.parse(said.removeprefix(fmt.style.open_action), False)[1] == d.reference


def test_a_conversation_too_long_for_the_model_is_refused_by_its_length(recorded, tokenizer):
    """One far too long is not tokenised to its end, so the sentence says what it has at least."""
    long = next(d for d in recorded["test_out_of_domain"])
    with pytest.raises(ValueError, match=rf"{long.id} has more than [\d,]+ tokens, .* at most 2048"):
        PromptFormat(tokenizer, context=2048).prompt(long)


# Conversations played


def test_every_view_of_a_game_is_what_the_recorded_decision_saw(bfcl):
    game = bfcl.Conversation()  # one object plays them all
    for category in bfcl.MULTI:
        for entry in list(bfcl.entries(category).values())[:48:6]:
            view = game.reset(entry.id)
            assert view.system == entry.system and bfcl.BFCL.task(view.text) == next(bfcl.walk(entry)).task
            for decision in bfcl.walk(entry):
                assert not view.done and decision.messages[-1] == dict(role=view.role, content=view.text)
                view = game.step(decision.reference)
            assert view.won
            game.reset(entry.id)
            while not view.done or view.won:
                view = game.step("[]")
            assert not view.won


def test_conversations_are_played_by_the_rollout_with_system_and_tool_messages(bfcl, monkeypatch):
    entry = bfcl.entries("multi_turn_base")["multi_turn_base_0"]
    decisions, seen = list(bfcl.walk(entry)), []

    class Format:
        def prompt(self, decision):
            seen.append(decision)
            return type("P", (), dict(dropped=0))

    monkeypatch.setattr(
        rollout,
        "decode_each",
        lambda *a, **k: [Completion("", None, decisions[len(seen) - 1].reference)],
    )
    pool = type("Pool", (), {})()
    game = bfcl.Conversation()
    pool.send = lambda orders: {s: getattr(game, order)(what) for s, (order, what) in orders.items()}
    (result,) = rollout.play(None, Format(), bfcl.BFCL, [entry.id], "prompt", pool, step_limit=100)
    assert result.won and result.steps == len(decisions)
    assert [d.messages for d in seen] == [d.messages for d in decisions]


def test_a_worker_plays_a_conversation(bfcl):
    with engines(bfcl.Conversation, 1) as pool:
        views = [
            pool.send({3: order})[3]
            for order in (("reset", "multi_turn_base_0"), ("step", '{"name": "pwd"}'), ("step", "exit()"))
        ]
    assert (
        [v.role for v in views] == ["user", "tool", "tool"]
        and json.loads(views[1].text)
        and "no function 'exit'" in views[2].text
    )


def test_without_the_package_a_sentence_says_how_it_is_installed(monkeypatch):
    from interp.environments.bfcl import entries as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module._folder.cache_clear()
    with pytest.raises(ImportError, match="pip install --no-deps bfcl-eval"):
        module._folder()
    assert "pip install --no-deps bfcl-eval" in environments.find("bfcl").unplayable()
