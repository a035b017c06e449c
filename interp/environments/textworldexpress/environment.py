"""TextWorldExpress, a fast engine of text games: The Common-Sense game (TWC) and CookingWorld.

In TWC things lie about in two rooms, and each has a usual place that common sense knows. The games of its
`dev` and `test` folds are about things that no game of its `train` fold names: they are out of domain.
CookingWorld's folds share their ingredients, so there recipes of four ingredients are out of domain, and of
two in domain: a shift of length, not of words.

>>> live = Live()
>>> view = live.reset(Game("twc", "train", 7))
>>> for action in gold(live.game):
...     view = live.step(action)
>>> view.won
True
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import NoReturn

from interp.environments.base import Environment, View
from interp.environments.java import Engine, missing
from interp.environments.phrases import IN_HAND
from interp.system.paths import DATA, PROGRAM
from interp.tasks.episodes import Decision

INSTALL = "pip install 'interp-agents[textworldexpress]'"
#: A game's name -> the engine's game and its parameters. (Four things to put away are too many for some of
#: TWC's rooms; in more rooms than three the solutions of CookingWorld walk to and fro.)
GAMES = {
    "twc": ("twc", "numLocations=2,numItemsToPutAway=3,includeDoors=0,limitInventorySize=0"),
    "cookingworld": (
        "cookingworld",
        "numLocations=3,numIngredients=2,numDistractorItems=2,includeDoors=0,limitInventorySize=0",
    ),
    "cookingworld-long": (
        "cookingworld",
        "numLocations=3,numIngredients=4,numDistractorItems=2,includeDoors=0,limitInventorySize=0",
    ),
}
#: (environment, a study's split) -> the games it is made of: (name, fold, seeds), drawn from alike. The
#: package's own lists hold the first thousand seeds of each fold; a game depends on its fold and seed alone,
#: so there are more.
SPLITS = {
    ("twc", "in_domain"): [("twc", "train", range(0, 10_000))],
    ("twc", "out_of_domain"): [("twc", "dev", range(10_000, 20_000)), ("twc", "test", range(20_000, 30_000))],
    ("cookingworld", "in_domain"): [("cookingworld", "train", range(0, 10_000))],
    ("cookingworld", "out_of_domain"): [("cookingworld-long", "train", range(0, 10_000))],
}
#: What a game is used for -> its shares of all games, in eighths by a hash of what its solution does.
USES = {"train": range(0, 5), "test": range(5, 7), "online": range(7, 8)}
_NAME = r"[\w'-]+(?: [\w'-]+)*"
_ACTION = re.compile(
    r"look around|inventory|move (?:north|east|south|west)"
    r"|(?:open|close) door to (?:north|east|south|west)"
    rf"|put {_NAME} in {_NAME}|cook {_NAME} in {_NAME}"
    rf"|(?:open|close|take|examine|read|eat|drink|chop|slice|dice|prepare) (?!door to){_NAME}"
)
#: What tells things of one class apart.
_QUALITIES = frozenset(
    "clean dirty wet rotten raw fried roasted grilled chopped sliced diced white gray black blue brown "
    "striped plaid checkered red yellow green orange teal maroon azure purple magenta".split()
)


@dataclass(frozen=True)
class Game:
    """A game of GAMES: the fold that its things are drawn from (train, dev, test), and its seed."""

    name: str
    fold: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}/{self.fold}/{self.seed}"


@cache
def _engine() -> Engine:
    """This process's one Java process, which all its games share."""
    return Engine("textworld_express", "textworld-express.jar", INSTALL)


class Live:
    """A game being played: `reset(game)` and `step(action)` return what the agent sees.

    Raises ImportError where the package or Java is missing, and ValueError for a game that is not of GAMES.
    """

    def __init__(self) -> None:
        self._interface = _engine().jvm.textworldexpress.runtime.PythonInterface()
        self.game: Game | None = None

    def reset(self, game: Game) -> View:
        """The game from its start: what there is to see, and the task."""
        self._start(game, path=False)
        return View(f"{self.view.text}\n\n{self._interface.getTaskDescription()}", self.view.admissible)

    def _start(self, game: Game, path: bool) -> None:
        if game.name not in GAMES:
            raise ValueError(f"There is no game {game.name!r}: there are {', '.join(GAMES)}.")
        if self.game is None or game.name != self.game.name:
            self._interface.load(*GAMES[game.name])
        self.game = game
        self._see(self._interface.generateNewGameJSON(game.seed, game.fold, path))

    def step(self, action: str) -> View:
        """Play one action; one that is not possible changes nothing and says so, in the engine's words."""
        if action not in self.view.admissible:
            return View(
                "Unknown action: I'm not sure what you mean.",
                self.view.admissible,
                self.view.done,
                self.view.score,
            )
        return self._see(self._interface.stepJSON(action))

    def _see(self, answer: str) -> View:
        state = json.loads(answer)
        text = "\n".join(line.rstrip() for line in state["observation"].strip().splitlines())
        self.view = View(
            text,
            tuple(sorted(state["validActions"])),
            state["tasksuccess"] or state["taskfailure"],
            max(0.0, state["score"]),
        )
        return self.view

    def gold(self, game: Game) -> list[str]:
        """The engine's solution of a game, without idle looks, impossible actions, and those after the end.

        It ends with the game played so far. Raises ValueError for a solution that does not win.
        """
        self._start(game, path=True)
        actions = []
        for action in self._interface.getGoldActionSequence():
            if action in self.view.admissible and action != "look around" and not self.view.done:
                actions.append(action)
                self.step(action)
        if not self.view.won:
            raise ValueError(f"The engine's solution of the game {game} does not win it.")
        return actions


def gold(game: Game) -> list[str]:
    """The actions that win a game, from the engine; raises what `Live.gold` raises."""
    return Live().gold(game)


def games(environment: str, split: str, use: str, seed: int) -> Iterator[Game]:
    """Games of a study's split for one of USES, in a seeded order.

    No two uses share one, whatever their seeds.

    Two seeds can give one game, so the use is told by a hash of what the solution handles; of games that
    handle the same things in the same way only the first is given.
    """
    rng, live, seen = random.Random(f"{environment}/{split}/{use}/{seed}"), Live(), set()
    orders = [
        [Game(name, fold, s) for s in rng.sample(seeds, len(seeds))]
        for name, fold, seeds in SPLITS[environment, split]
    ]
    for game in (game for together in zip(*orders) for game in together):
        what = sorted(
            {
                a
                for a in live.gold(game)
                if a.split()[0] not in ("look", "move", "open", "close", "inventory", "read")
            }
        )
        digest = hashlib.sha256("/".join(what).encode()).digest()
        if digest[0] % 8 in USES[use] and digest not in seen:
            seen.add(digest)
            yield game


def parse(text: str) -> str | None:
    """The action in `text`, or None where it is none of the engine's forms."""
    text = " ".join(text.split())
    return text if _ACTION.fullmatch(text) else None


def target(action: str) -> str:
    """What is acted on: `target("put dirty teal dress in laundry basket") == "dress"`.

    Else the whole action.
    """
    verb, _, rest = action.partition(" ")
    if verb in ("look", "inventory") or not rest:
        return action
    words = re.split(" in | to ", rest)[0].split()
    return " ".join([w for w in words[:-1] if w not in _QUALITIES] + words[-1:])


def verb(action: str) -> str:
    """What is done: the action's first word."""
    return action.partition(" ")[0]


def swap_candidates(decision: Decision, decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """Pairs of names whose exchange changes the action: two takeable things, never put away before."""
    what, _, thing = decision.reference.partition(" ")
    put = {
        m["action"].removeprefix("put ").partition(" in ")[0]
        for m in decision.messages
        if m["role"] == "agent" and m["action"].startswith("put ")
    }
    loose = [a.removeprefix("take ") for a in decision.admissible if a.startswith("take ")]
    return [
        (thing, other) for other in loose if what == "take" and other != thing and not {thing, other} & put
    ]


def task_of(text: str) -> str:
    """The task's words, the last paragraph of a game's first text."""
    return text.rpartition("\n\n")[2]


def _lacking() -> str:
    return missing("textworld_express", INSTALL)


def _online(environment: str, split: str, n: int, seed: int) -> list[Game]:
    return list(islice(games(environment, split, "online", seed), n))


def _twc(split: str, n: int, seed: int) -> list[Game]:
    return _online("twc", split, n, seed)


def _cookingworld(split: str, n: int, seed: int) -> list[Game]:
    return _online("cookingworld", split, n, seed)


def _unrecorded() -> NoReturn:
    raise ValueError(
        f"CookingWorld ships no recorded decisions: play some with `{PROGRAM} record --environment "
        "cookingworld --out FILE`, and give them with --corpus FILE."
    )


TWC_CORPUS = DATA / "twc.jsonl.xz"
TWC = Environment(
    "twc",
    decisions=TWC_CORPUS,
    parse=parse,
    classes=dict(verb=verb, target=target),
    swap_candidates=swap_candidates,
    phrases=IN_HAND,
    task=task_of,
    live=Live,
    games=_twc,
    graded=True,
    needs=_lacking,
)
COOKINGWORLD = Environment(
    "cookingworld",
    decisions=_unrecorded,
    parse=parse,
    classes=dict(verb=verb, target=target),
    swap_candidates=swap_candidates,
    phrases=IN_HAND,
    task=task_of,
    live=Live,
    games=_cookingworld,
    graded=True,
    needs=_lacking,
)
