"""One household game in TextWorld's PDDL engine, by ALFWorld's own rules and grammar.

TextWorld translates a problem four times to load and reset it, parses the templates of its text at each load,
and its text grammar at every step; all are pure functions of their input and are remembered here. The text
that comes out is byte for byte the same (tested).
"""

from __future__ import annotations

import builtins
import copy
import functools
import random
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from interp.environments.alfworld.scenes import Game
from interp.environments.base import View

MISSING = (
    "The ALFWorld engine is not installed; recorded decisions work without it. To play games: "
    "`pip install 'interp-agents[alfworld]'` (needs a C++ compiler and cmake: `apt-get install g++ cmake "
    "make`)."
)


_IDLE: list = []  # engine libraries that no game uses


def _clone(symbol: Any, grammar: ModuleType) -> Any:
    """A grammar symbol without its context, which TextWorld assigns afterwards."""
    new = copy.copy(symbol)
    for name in ("symbol", "expression"):
        if isinstance(getattr(new, name, None), grammar.Symbol):
            setattr(new, name, _clone(getattr(new, name), grammar))
    return new


@functools.cache
def _engine() -> tuple[Callable[[], Any], str, str]:
    """What makes an environment, the rules and the text templates; imports TextWorld with caches, once."""
    try:
        import fast_downward
        import textworld
        import textworld.envs.pddl.logic as logic
        import textworld.envs.pddl.textgen as grammar
        import textworld.logic
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
        from textworld.envs import PddlEnv
    except ImportError as error:
        raise ImportError(MISSING) from error

    def shallow(value: Any) -> Any:  # stands in for deepcopy: everything but symbols is only read
        if isinstance(value, grammar.Symbol):
            return _clone(value, grammar)
        return [shallow(v) for v in value] if isinstance(value, list) else copy.copy(value)

    # What comes out is only read: `logic` makes new actions and a new grammar of it for each game.
    logic._PARSER.parse = functools.lru_cache(maxsize=64)(logic._PARSER.parse)
    parse = functools.cache(grammar._parse_and_convert)
    grammar._parse_and_convert = lambda text, rule_name, **_: shallow(parse(text, rule_name=rule_name))
    grammar.deepcopy = shallow
    query: Callable = functools.cache(textworld.logic.Rule.parse_conjunctive_query.__func__)
    textworld.logic.Rule.parse_conjunctive_query = classmethod(lambda cls, expression: query(cls, expression))

    def ordered(facts: Iterable) -> list:  # the order of Proposition.__lt__, through keys
        return builtins.sorted(
            facts,
            key=lambda f: (
                (f.name, [(v.name, v.type) for v in f.arguments])
                if isinstance(f, textworld.logic.Proposition)
                else f
            ),
        )

    textworld.logic.sorted = ordered
    translate = fast_downward.pddl2sas

    @functools.lru_cache(maxsize=64)
    def translated(domain: str, problem: str) -> object:
        arguments = sys.argv  # the translator overwrites them
        try:
            return translate(domain, problem, verbose=False, optimize=False)
        finally:
            sys.argv = arguments

    # `optimize=True` is asked for by the planner alone, which is never run here.
    fast_downward.pddl2sas = lambda domain, problem, verbose=False, optimize=False: translated(
        domain, problem
    )
    load = fast_downward.load_lib  # copies and maps a 30 MB file each time
    fast_downward.load_lib = lambda: _IDLE.pop() if _IDLE else load()
    with open(ALFRED_PDDL_PATH) as domain, open(ALFRED_TWL2_PATH) as text:
        rules, templates = domain.read(), text.read()

    def new() -> Any:
        return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)

    return new, rules, templates


class Household:
    """A game being played: `reset(game)` and `step(command)` return what the agent sees.

    >>> house = Household()
    >>> view = house.reset(game)
    >>> view = house.step(view.admissible[0])
    """

    game: Game | None = None

    def reset(self, game: Game) -> View:
        """The game from its start; it is loaded where another was played before."""
        if game is not self.game:
            self._load(game)
        return self._view(self._env.reset())

    def _load(self, game: Game) -> None:
        from alfworld.agents.utils.misc import add_task_to_grammar

        new, rules, templates = _engine()
        if self.game is not None:
            self.close()
        state = random.getstate()  # the task's wording is drawn from the global generator
        random.seed(game.id)
        text = add_task_to_grammar(templates, dict(task_type=game.task_type, pddl_params=game.params))
        random.setstate(state)
        self.game = game
        self._env = new()
        self._env.load(dict(pddl_domain=rules, grammar=text, pddl_problem=game.problem))

    def close(self) -> None:
        """Give back the engine's library, whose state is one game's; the next game takes it up."""
        _IDLE.append(self._env.unwrapped.downward_lib)
        self.game = None

    def step(self, command: str) -> View:
        """Play one command; one that is not admissible changes nothing and says so."""
        return self._view(self._env.step(command)[0])

    @staticmethod
    def _view(state: Any) -> View:
        text = " ".join(state.feedback.replace("-= Welcome to TextWorld, ALFRED! =-", "").split())
        commands = tuple(" ".join(c.split()) for c in state.admissible_commands)
        return View(text, commands, bool(state["won"]), float(bool(state["won"])))
