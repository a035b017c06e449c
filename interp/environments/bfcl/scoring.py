"""Scoring of function calls by the Berkeley leaderboard's own checkers, reached by checked calls only.

The package evaluates the strings that it is given and keeps the state of its backends in a module's globals.
Here its evaluator sees only strings that were written from calls which `interp.environments.bfcl.calls` read
and held to the documentation, under a name that no other rollout has, and its globals are taken out again
after each use. Of the package only the two checkers and their backends are imported, which write no file;
what makes folders in its own is not.

>>> score_single(entry, "calculate_triangle_area(base=10, height=5)")
Verdict(valid=True, reason='')
"""

from __future__ import annotations

import collections
import decimal
import importlib
import importlib.util
import sys
import types
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from interp.environments.bfcl.calls import NotCalls, bind, read, written
from interp.environments.bfcl.entries import INSTALL, Entry

#: Actions of one turn (the package stops at 20, but the longest turn of its ground truth has 34 calls), and
#: copies of files in one rollout, each of which may double them.
STEPS, COPIES = 40, 10
#: Arguments that say how much is to be computed, and how far from 0 they may be.
COSTLY, MOST = ("precision", "exponent", "decimal_places"), 1000
_CONFIG = "bfcl_eval.constants.model_config"
#: What the package raises on arguments that it does not foresee.
_UNFORESEEN = (TypeError, KeyError, AttributeError, IndexError, ValueError, RecursionError)


class Verdict(NamedTuple):
    """Whether an answer is right, and why not."""

    valid: bool
    reason: str = ""


@cache
def _package() -> types.SimpleNamespace:
    """The package's checkers, imported with a stand-in for the module that needs every vendor's client.

    Raises ImportError where the package is not installed.
    """
    if importlib.util.find_spec("bfcl_eval") is None:
        raise ImportError(f"The leaderboard's package is not installed ({INSTALL}).")
    stub, before = types.ModuleType(_CONFIG), sys.modules.get(_CONFIG)
    models: dict = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
    vars(stub)["MODEL_CONFIG_MAPPING"] = models
    sys.modules[_CONFIG] = stub
    try:
        part = {
            name: importlib.import_module(f"bfcl_eval.eval_checker.{path}")
            for name, path in dict(
                single="ast_eval.ast_checker",
                multi="multi_turn_eval.multi_turn_checker",
                utils="multi_turn_eval.multi_turn_utils",
            ).items()
        }
    finally:
        del sys.modules[_CONFIG]
        if before is not None:
            sys.modules[_CONFIG] = before
    from bfcl_eval.constants.enums import Language

    return types.SimpleNamespace(**part, python=Language.PYTHON)


def checked(text: str, functions: Sequence[dict]) -> list[tuple[str, dict]]:
    """Name and arguments of each call in a text; raises NotCalls for anything but cheap, documented calls."""
    calls = bind(read(text), functions)
    for name, arguments in calls:
        for argument in COSTLY:
            value = arguments.get(argument, 0)
            if isinstance(value, (int, float)) and abs(value) > MOST:
                raise NotCalls(f"{name}'s {argument} is {value}, and at most {MOST} is computed")
    return calls


def score_single(entry: Entry, text: str) -> Verdict:
    """Score an answer to an entry of one turn: its calls against the possible ones, or that it has any.

    An answer that is no call of documented functions with literal arguments is wrong, also where nothing was
    to be called.
    """
    try:
        calls = checked(text, entry.functions)
    except NotCalls as error:
        return Verdict(False, str(error))
    if entry.answers is None:
        wanted = entry.category.endswith("_relevance")
        return Verdict(
            bool(calls) == wanted,
            "" if bool(calls) == wanted else "no function is called" if wanted else "a function is called",
        )
    package = _package()
    try:
        verdict = package.single.ast_checker(
            list(entry.functions),
            [{n: a} for n, a in calls],
            entry.answers,
            package.python,
            entry.category,
            "interp",
        )
    except _UNFORESEEN as error:
        return Verdict(False, f"the checker cannot compare these arguments ({type(error).__name__}: {error})")
    return Verdict(bool(verdict["valid"]), "" if verdict["valid"] else str(verdict["error"])[:300])


def score_multi(entry: Entry, turns: Sequence[Sequence[str]]) -> Verdict:
    """Score a rollout of several turns: its calls, executed, against the ground truth's states and results.

    An action that is not calls of documented functions makes the rollout wrong, and so does a turn of more
    than STEPS steps.
    """
    if len(turns) != len(entry.turns):
        return Verdict(False, f"there are {len(turns)} turns, and the conversation has {len(entry.turns)}")
    try:
        given = [[checked(text, entry.known(turn)) for text in steps] for turn, steps in enumerate(turns)]
        copies(call for steps in given for calls in steps for call in calls)
    except NotCalls as error:
        return Verdict(False, str(error))
    if any(len(steps) > STEPS for steps in given):
        return Verdict(False, f"a turn has more than {STEPS} steps")
    made = [[[written(*call) for call in calls] for calls in steps if calls] for steps in given]
    truth = [[written(*call) for call in turn] for turn in entry.calls]
    try:
        with _space({}) as (name, package):
            verdict = package.multi.multi_turn_checker(made, truth, entry.setup, entry.category, name)
    except (AssertionError, RecursionError, TypeError, AttributeError, KeyError) as error:
        # states that it does not foresee
        return Verdict(False, f"the checker cannot compare these states ({type(error).__name__}: {error})")
    return Verdict(bool(verdict["valid"]), "" if verdict["valid"] else str(verdict["error_message"])[:300])


def copies(calls: Iterable[tuple[str, dict]]) -> None:
    """Raise NotCalls where files are copied too often: copies of copies double."""
    if sum(name == "cp" for name, _ in calls) > COPIES:
        raise NotCalls(f"files are copied more than {COPIES} times")


def execute(entry: Entry, calls: Sequence[tuple[str, dict]], state: dict) -> list[str]:
    """What each checked call answers; `state` ({} at first) is updated in place with all that it leaves."""
    with _space(state) as (name, package):
        answers, _ = package.utils.execute_multi_turn_func_call(
            [written(*call) for call in calls],
            entry.setup["initial_config"],
            entry.setup["involved_classes"],
            name,
            entry.id,
            "long_context" in entry.category,
        )
    return answers


@contextmanager
def _space(state: dict) -> Iterator[tuple[str, types.SimpleNamespace]]:
    """A name in the package's globals with a rollout's backends under it; all of it is removed at the end."""
    package = _package()
    import mpmath

    space = vars(package.utils)
    name = state.setdefault("name", f"rollout{uuid.uuid4().hex}")
    space.update({k: v for k, v in state.items() if k.startswith(name)})
    try:
        with decimal.localcontext(), mpmath.workdps(15):  # backends set the precision of the whole process
            yield name, package
    finally:
        state.update({k: space.pop(k) for k in [k for k in space if k.startswith(name)]})
