"""A task of one's own: recorded decisions, how actions are read and named, and games if it can be played.

ALFWorld is one instance; another is an object in a module of one's own, named on the command line
(`--environment my_task:TASK`):

>>> TASK = Environment("hall", decisions=recorded, live=Hall, games=lambda split, n, seed: range(n))
>>> find("alfworld").parse("go to desk 1")      # its own are found by name, others as "my_module:TASK"
'go to desk 1'
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from interp.system.renamed import renamed_fields
from interp.system.sentences import one_line
from interp.system.user_code import guarded, hash_sources, import_named
from interp.tasks import actions
from interp.tasks.episodes import SPLITS, Decision, Episode, by_split, checked, load_episodes
from interp.tasks.rows import MAX_ROWS


@dataclass(frozen=True)
class View:
    """What the agent sees: text, admissible actions (if listed), whether the game is over, and score.

    role: who says the text, `user` or `tool`. system: of a game's first view, a system message before the
    text.
    """

    text: str
    admissible: tuple[str, ...] = ()
    done: bool = False
    score: float = 0.0
    role: str = "user"
    system: str = ""

    @property
    def won(self) -> bool:
        return self.done and self.score >= 1


class Live(Protocol):
    """A game being played: one object plays many games in turn, in a worker process of its own."""

    def reset(self, game: Any) -> View:
        """Start a game and return what the agent sees first; the same game starts the same way each time."""

    def step(self, action: str) -> View:
        """Play one action; one that makes no sense is answered by a text, never by an exception."""


def as_recorded(decision: Decision, action: str) -> bool:
    """Whether an action is the recorded one."""
    return action == decision.reference


def no_swaps(decision: Decision, decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """No names whose exchange would change the action: nothing is paired."""
    return []


@renamed_fields(partners="swap_candidates", listed="closed_actions", right="is_correct")
@dataclass(frozen=True)
class Environment:
    """What a study needs to know of a task.

    A name is enough for decisions from a file with free-text actions.

    decisions: a file, or a function that returns episodes or decisions. parse: the action in a text, None
    where there is none; it gives a recorded action back as it is. classes: the classes of actions that probes
    predict, each a function of an action.
    is_correct: whether an action is right at a recorded decision; the recorded one alone where nothing is
    given. closed_actions: a decision's `admissible` are all the actions there are; where they are a sample of
    them, or none, candidates are also what was recorded and said (see `candidates`), and a conflicting trace
    may argue for any action. swap_candidates: of a decision, among all those that are paired, the pairs of
    names whose exchange changes the action, for counterfactual pairs and for mistakes in traces; nothing is
    paired where none are given. phrases: templates that say the same, in groups, by which traces are
    paraphrased: ("Next I check {r}.", "{r} comes next.").
    splits: what a study calls a split -> what the decisions call it. task: of a game's first text, the words
    that are the task ("": not told apart). live: makes a `Live` game (a class, since worker processes import
    it). games: the first n games of a study's split, by seed; a game is anything that can be pickled, and
    `str` names it. official: as `games`, the benchmark's own where they are fetched apart. graded: scores
    between 0 and 1 mean something. side_by_side: most games open at once. needs: (module, how it is
    installed) that playing needs, or a function that says what it lacks ("": nothing).
    source: content hash of one's own module, and of what it imports from its own folder.
    """

    name: str
    decisions: Path | Callable[[], Iterable[Episode | Decision]] | None = None
    parse: Callable[[str], str | None] = actions.parse
    classes: Mapping[str, Callable[[str], str]] = field(
        default_factory=lambda: dict(verb=actions.verb, target=actions.target)
    )
    is_correct: Callable[[Decision, str], bool] = as_recorded
    closed_actions: bool = True
    swap_candidates: Callable[[Decision, Sequence[Decision]], list[tuple[str, str]]] = no_swaps
    phrases: Sequence[Sequence[str]] = ()
    splits: Mapping[str, str] = field(default_factory=lambda: dict(SPLITS))
    task: Callable[[str], str] = lambda text: ""
    live: Callable[[], Live] | None = None
    games: Callable[[str, int, int], Sequence] | None = None
    official: Callable[[str, int, int], Sequence] | None = None
    graded: bool = False
    side_by_side: int = 32
    needs: tuple[str, str] | Callable[[], str] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if unknown := [s for s in self.splits if s not in SPLITS]:
            raise ValueError(
                f"The environment {self.name!r} has a split {unknown[0]!r}: a study's splits are "
                f"{' and '.join(SPLITS)}."
            )

    @property
    def judge(self) -> str:
        """What says whether an action is right, by its name in Python."""
        return f"{self.is_correct.__module__}.{self.is_correct.__qualname__}"

    def candidates(self, decision: Decision, *said: str | None) -> tuple[str, ...]:
        """The actions that a forced choice at a decision is among, each once; () where that is one alone.

        Where the listed actions are a sample, the recorded one, those of the sample, and what was `said`
        (None: nothing), in this order.
        """
        if self.closed_actions:
            return tuple(decision.admissible)
        options = tuple(
            dict.fromkeys(a for a in (decision.reference, *decision.admissible, *said) if a is not None)
        )
        return options if len(options) > 1 else ()

    def unplayable(self) -> str:
        """Why its games cannot be played here, as a sentence's end ("" where they can)."""
        if self.live is None or self.games is None:
            return f"the environment {self.name!r} has no games that can be played"
        if callable(self.needs):
            return self.needs()
        if self.needs and importlib.util.find_spec(self.needs[0]) is None:
            return f"{self.needs[0]} is not installed ({self.needs[1]})"
        return ""

    def recorded(self, path: Path | None = None) -> dict[str, list[Episode | Decision]]:
        """Its decisions, or those of a file, by split.

        Raises ValueError where there are none, one is at fault, or the parser reads a recorded action as
        another.
        """
        given = path or self.decisions
        if given is None:
            raise ValueError(
                f"The environment {self.name!r} brings no recorded decisions: give a file of them with "
                "--corpus."
            )
        if isinstance(given, Path):
            items = load_episodes(given, self.splits)
        else:
            items = checked(self._made(given), f"{self.name}'s decisions", self.splits)
        for item in items:
            for action in item.references:
                if (read := self.parse(action)) != action:
                    raise ValueError(
                        f"The parser of the environment {self.name!r} reads the recorded action {action!r} "
                        f"of {item.id} as {read!r}: a recorded action must come back as it is."
                    )
        return by_split(items)

    def _made(self, function: Callable[[], Iterable[Episode | Decision]]) -> list[Episode | Decision]:
        try:
            made = list(islice(function(), MAX_ROWS + 1))
        except OSError:  # names its file
            raise
        except Exception as error:
            raise ValueError(
                f"The decisions of the environment {self.name!r} could not be made: "
                f"{type(error).__name__}, {one_line(error)}."
            ) from error
        if len(made) > MAX_ROWS:
            raise ValueError(
                f"The environment {self.name!r} makes more than {MAX_ROWS:,} decisions or episodes, and may "
                f"make {MAX_ROWS:,}."
            )
        return made


#: Decisions of any kind from a file, where any text is an action.
ANY = Environment("any")
#: name -> where it is; imported when it is asked for.
KNOWN = {
    "any": "interp.environments.base:ANY",
    "alfworld": "interp.environments.alfworld.environment:ALFWORLD",
    "bfcl": "interp.environments.bfcl.environment:BFCL",
    "bfcl_single": "interp.environments.bfcl.environment:BFCL_SINGLE",
    "scienceworld": "interp.environments.scienceworld.environment:SCIENCEWORLD",
    "twc": "interp.environments.textworldexpress.environment:TWC",
    "cookingworld": "interp.environments.textworldexpress.environment:COOKINGWORLD",
}


def find(name: str) -> Environment:
    """An environment by its name in KNOWN, or one's own as MODULE:NAME, whose module is imported and so runs.

    Raises ValueError for a name that is neither, and ImportError for a module that is not there or cannot be
    imported.
    """
    module, colon, what = KNOWN.get(name, name).partition(":")
    if not colon or not what.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        example = (
            f" ({Path(module).stem}:{what or 'TASK'}, run where that file is)"
            if module.endswith(".py")
            else ""
        )
        raise ValueError(
            f"There is no environment {name!r}: there are {', '.join(KNOWN)}, "
            f"or one of your own as MODULE:NAME{example}."
        )
    imported = import_named(name, module)
    environment = getattr(imported, what, None)
    if not isinstance(environment, Environment):
        raise ValueError(
            f"{what!r} of the module {module} is "
            f"{'not there' if environment is None else 'a ' + type(environment).__name__}, and should be an "
            "interp.environments.base.Environment."
        )
    return environment if name in KNOWN else _checked(environment, name, imported)


def _checked(found: Environment, name: str, module: ModuleType) -> Environment:
    """One's own environment with the hash of its sources; a fault in one of its functions is a sentence."""
    return replace(
        found,
        source=hash_sources(module),
        classes={
            kind: guarded(name, f"class {kind!r}", call, (str,)) for kind, call in found.classes.items()
        },
        parse=guarded(name, "parser", found.parse, (str, type(None))),
        is_correct=guarded(name, "judge", found.is_correct, (bool, np.bool_)),
        task=guarded(name, "task", found.task, (str,)),
        swap_candidates=guarded(name, "swap_candidates", found.swap_candidates, (list, tuple)),
    )
